"""The README's tutorial in real LXC containers, made with the busybox template.

Busybox has no Python: the container gets the interpreter of the host. Its libraries are there
already, because the template mounts /lib and /usr/lib of the host.
"""

import os
import re
import shlex
import shutil
import subprocess

import pytest

from conftest import CLIENT, ROOT, Daemon, PYTHON, require, wait_until

LOCKS = '/run/lxc/lock'                     # LXC never removes its lock files
CGROUP = 'vdelxc-test-%d' % os.getpid()
INTERPRETER = os.path.realpath('/usr/bin/python3')

# What keeps everything in our hands.
PLAIN = """
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.cgroup.dir.monitor = {cgroup}/{name}.monitor
lxc.cgroup.dir.monitor.pivot = {cgroup}/{name}.pivot
lxc.cgroup.dir.container = {cgroup}/{name}.payload
"""


def tutorial(pattern):
    """What a pattern finds in the README's section about LXC."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        return re.findall(pattern, file.read().split('\n## LXC\n')[1].split('\n## ')[0], re.M)


def entries(shared):
    """The lines of the README for the container's configuration, with the paths of here."""
    lines = '\n'.join(tutorial(r'^lxc\..*'))
    assert ' /tmp/vde ' in lines and ' /usr/bin/python3.11 ' in lines
    return lines.replace('/tmp/vde', str(shared)).replace('/usr/bin/python3.11', INTERPRETER) + '\n'


class Lxc:
    """An LXC container in a directory of its own."""

    def __init__(self, directory, name, more=''):
        self.path, self.name = str(directory), name
        self.log = os.path.join(self.path, name + '.log')
        base = os.path.join(self.path, name + '.base')
        with open(base, 'w') as file:
            file.write(PLAIN.format(cgroup=CGROUP, name=name) + more)
        self.monitor = None
        self.lxc('create', '-t', 'busybox', '-f', base)

    def lxc(self, tool, *argv, check=True, **more):
        """Run one of the lxc- tools on this container."""
        command = ['lxc-' + tool, '-P', self.path, '-n', self.name] + [str(arg) for arg in argv]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True, timeout=60, **more)
        if check and done.returncode:
            pytest.fail('%s: exit %d\n%s%s' % (' '.join(command), done.returncode, done.stdout,
                                               done.stderr))
        return done

    def start(self):
        """Start it; return None when it runs, else LXC's own reason."""
        self.monitor = subprocess.Popen(
            ['lxc-start', '-P', self.path, '-n', self.name, '-F', '-l', 'ERROR', '-o', self.log],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: self.monitor.poll() is not None or self.running(), timeout=30,
                   what='container %s runs' % self.name)
        if self.monitor.poll() is None:
            return None
        with open(self.log) as file:
            errors = [line.split(' ERROR ', 1)[-1].strip() for line in file if ' ERROR ' in line]
        return errors[0] if errors else 'exit %d' % self.monitor.returncode

    def running(self):
        """Does it run, and can it be entered?"""
        return (self.lxc('info', '-s', check=False).stdout.split()[-1:] == ['RUNNING']
                and self.attach('true', check=False).returncode == 0)

    def attach(self, *argv, check=True, **more):
        """Run a command inside."""
        return self.lxc('attach', '--clear-env', '--', *argv, check=check, **more)

    def close(self):
        if self.monitor:
            self.lxc('stop', '-k', check=False)
            try:
                self.monitor.wait(10)
            except subprocess.TimeoutExpired:
                self.monitor.kill()
                self.monitor.wait()
        self.lxc('destroy', check=False)
        shutil.rmtree(LOCKS + self.path, ignore_errors=True)
        try:
            os.removedirs(os.path.dirname(LOCKS + self.path))
        except OSError:
            pass


def remove_cgroups():
    """Remove our empty control groups, in every hierarchy."""
    for top, directories, _ in os.walk('/sys/fs/cgroup'):
        if CGROUP in directories:
            for where, _, _ in os.walk(os.path.join(top, CGROUP), topdown=False):
                try:
                    os.rmdir(where)
                except OSError:
                    pass
        del directories[:]
        if top == '/sys/fs/cgroup':
            directories.extend(each for each in os.listdir(top)
                               if os.path.isdir(os.path.join(top, each)) and each != CGROUP)


@pytest.fixture
def containers(tmp_path, host, closing):
    """A daemon's shared directory on a host, and two started containers that have it as /vde."""
    require('lxc-create', 'busybox', 'nsenter')
    if not os.path.exists(INTERPRETER):
        pytest.skip('no /usr/bin/python3 that a container could use')
    shared = tmp_path / 'shared'
    shared.mkdir()
    found = []
    try:
        found.append(Lxc(tmp_path, 'plain'))
        refusal = found[0].start()
        if refusal:
            pytest.skip('LXC can start no container here, not even a plain one: ' + refusal)
        for name in 'one', 'two':
            found.append(Lxc(tmp_path, name, entries(shared)))
            refusal = found[-1].start()
            assert not refusal, 'a plain one starts, that of the tutorial does not: ' + refusal
        yield [closing(Daemon(host, shared, '-v'))] + found[1:]
    finally:
        for each in found:
            each.close()
        remove_cgroups()


def copy_client(container):
    """Copy the client as the README does; its one command for it names the container bb1."""
    command, = tutorial(r'^\(host\)\$ cat vdelxcc.py \| lxc-attach -n bb1 -- (.*)')
    with open(CLIENT) as script:
        container.attach(*shlex.split(command), stdin=script)


def test_the_tutorial_gives_two_lxc_containers_a_network(containers):
    daemon, one, two = containers
    client, ping, delete = tutorial(r'^\(container\)\$ (.*)')
    for container, line in (one, client), (two, client.replace('10.0.0.1/', '10.0.0.2/')):
        copy_client(container)
        done = container.attach('sh', '-c', line)
        assert (done.stdout, done.stderr) == ('', ''), daemon.log()
    assert '1 packets received' in one.attach('sh', '-c', ping).stdout
    assert '1 packets received' in two.attach('sh', '-c', ping.replace('.2', '.1')).stdout
    for count, container in enumerate((one, two), 1):
        container.attach('sh', '-c', delete)
        wait_until(lambda: daemon.log().count('close interface: vxvde:// (vde0') == count,
                   what='the session ends with its interface: ' + daemon.log())


def test_lxc_containers_get_interfaces_by_standard_input_and_from_the_host(containers):
    daemon, one, two = containers
    with open(CLIENT) as script:
        one.attach('python3', '-', 'vxvde://', stdin=script)
    pid = two.lxc('info', '-p', '-H').stdout.strip()
    subprocess.check_call(['nsenter', '-t', pid, '-n', PYTHON, CLIENT, '-s', daemon.socket,
                           'vxvde://'], timeout=60)
    for container, address in (one, '10.0.0.1/24'), (two, '10.0.0.2/24'):
        container.attach('ip', 'addr', 'add', address, 'dev', 'vde0')
        container.attach('ip', 'link', 'set', 'vde0', 'up')
    one.attach('ping', '-c', 1, '-W', 10, '10.0.0.2')
