"""The README's tutorial in real LXC containers, made with the busybox template.

Busybox has no Python: the container gets the interpreter of the host. Its libraries are there
already, because the template mounts /lib and /usr/lib of the host.
"""

import os
import shutil
import subprocess

import pytest

from conftest import CLIENT, Daemon, PYTHON, require, wait_until

LOCKS = '/run/lxc/lock'                     # LXC never removes its lock files
CGROUP = 'vdelxc-test'
INTERPRETER = os.path.realpath('/usr/bin/python3')

# What keeps everything in our hands, then the entries of the README.
PLAIN = """
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.cgroup.dir.monitor = {cgroup}/{name}.monitor
lxc.cgroup.dir.monitor.pivot = {cgroup}/{name}.pivot
lxc.cgroup.dir.container = {cgroup}/{name}.payload
"""
TUTORIAL = """
lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file
lxc.mount.entry = {shared} vde none rw,bind,create=dir
lxc.mount.entry = {interpreter} usr/bin/python3 none ro,bind,create=file
lxc.cgroup2.devices.allow = c 10:200 rwm
"""


class Lxc:
    """An LXC container in a directory of its own."""

    def __init__(self, directory, name, config, shared=None):
        self.path, self.name = str(directory), name
        self.log = os.path.join(self.path, name + '.log')
        base = os.path.join(self.path, name + '.base')
        with open(base, 'w') as file:
            file.write(config.format(shared=shared, interpreter=INTERPRETER, cgroup=CGROUP,
                                     name=name))
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
        found.append(Lxc(tmp_path, 'plain', PLAIN))
        refusal = found[0].start()
        if refusal:
            pytest.skip('LXC can start no container here, not even a plain one: ' + refusal)
        for name in 'one', 'two':
            found.append(Lxc(tmp_path, name, PLAIN + TUTORIAL, shared))
            refusal = found[-1].start()
            assert not refusal, 'a plain container starts, that of the tutorial does not: ' + refusal
        yield [closing(Daemon(host, shared, '-v'))] + found[1:]
    finally:
        for each in found:
            each.close()
        remove_cgroups()


def check_network(daemon, one, two):
    """Both have a vde0: configure, ping both ways, delete."""
    for container, address in (one, '10.0.0.1'), (two, '10.0.0.2'):
        container.attach('ip', 'addr', 'add', address + '/24', 'dev', 'vde0')
        container.attach('ip', 'link', 'set', 'vde0', 'up')
    one.attach('ping', '-c', 1, '-W', 10, '10.0.0.2')
    two.attach('ping', '-c', 1, '-W', 10, '10.0.0.1')
    one.attach('ip', 'link', 'delete', 'vde0')
    wait_until(lambda: 'close interface: vxvde:// (vde0' in daemon.log(),
               what='the session ends with its interface: ' + daemon.log())


def test_the_tutorial_gives_two_lxc_containers_a_network(containers):
    daemon, one, two = containers
    for container in one, two:
        with open(CLIENT) as script:
            container.attach('sh', '-c', 'cat > /usr/bin/vdelxcc.py', stdin=script)
        done = container.attach('python3', '/usr/bin/vdelxcc.py', 'vxvde://')
        assert (done.stdout, done.stderr) == ('', ''), daemon.log()
    check_network(daemon, one, two)


def test_lxc_containers_get_interfaces_by_standard_input_and_from_the_host(containers):
    daemon, one, two = containers
    with open(CLIENT) as script:
        one.attach('python3', '-', 'vxvde://', stdin=script)
    pid = two.lxc('info', '-p', '-H').stdout.strip()
    subprocess.check_call(['nsenter', '-t', pid, '-n', PYTHON, CLIENT, '-s', daemon.socket,
                           'vxvde://'], timeout=60)
    check_network(daemon, one, two)
