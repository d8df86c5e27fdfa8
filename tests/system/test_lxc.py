"""The README's recipes for LXC in real containers, made with the busybox template.

Busybox has no Python: the container gets the interpreter of the host. Its libraries are there
already, because the template mounts /lib and /usr/lib of the host.
"""

import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile

import pytest

from conftest import CLIENT, ROOT, Daemon, PYTHON, require, wait_until

LOCKS = '/run/lxc/lock'                     # LXC never removes its lock files
CGROUP = 'vdelxc-test-%d' % os.getpid()
INTERPRETER = os.path.realpath('/usr/bin/python3')
with open(CLIENT, encoding='ascii') as script:
    CLIENT_TEXT = script.read()             # for pipes: lxc-attach changes the mode of a file

# What keeps everything in our hands.
PLAIN = """
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.cgroup.dir.monitor = {cgroup}/{name}.monitor
lxc.cgroup.dir.monitor.pivot = {cgroup}/{name}.pivot
lxc.cgroup.dir.container = {cgroup}/{name}.payload
"""


def tutorial(pattern, title='## LXC'):
    """What a pattern finds in a section of the README, by default the one about LXC."""
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        part = file.read().split('\n%s\n' % title)[1]
    return re.findall(pattern, re.split(r'^##+ ', part, flags=re.M)[0], re.M)


def entries(shared):
    """The lines of the README for the container's configuration, with the paths of here."""
    lines = '\n'.join(tutorial(r'^lxc\..*'))
    assert ' /tmp/vde ' in lines and ' /usr/bin/python3.11 ' in lines
    return lines.replace('/tmp/vde', str(shared)).replace('/usr/bin/python3.11', INTERPRETER) + '\n'


class Lxc:
    """An LXC container in a directory of its own.

    maps are lines of its configuration that it is made with; more are added at the end.
    """

    def __init__(self, directory, name, more='', maps='', around=()):
        self.path, self.name, self.around = str(directory), name, list(around)
        self.log = os.path.join(self.path, name + '.log')
        base = os.path.join(self.path, name + '.base')
        with open(base, 'w') as file:
            file.write(PLAIN.format(cgroup=CGROUP, name=name) + maps)
        self.monitor = None
        self.lxc('create', '-t', 'busybox', '-f', base)
        with open(os.path.join(self.path, name, 'config'), 'a') as file:
            file.write(more)                # behind the template's lines

    def lxc(self, tool, *argv, check=True, **more):
        """Run one of the lxc- tools on this container."""
        command = self.around + ['lxc-' + tool, '-P', self.path, '-n', self.name]
        command += [str(arg) for arg in argv]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True, timeout=60, **more)
        if check and done.returncode:
            pytest.fail('%s: exit %d\n%s%s' % (' '.join(command), done.returncode, done.stdout,
                                               done.stderr))
        return done

    def start(self):
        """Start it; return None when it runs, else LXC's own reason."""
        self.monitor = subprocess.Popen(
            self.around + ['lxc-start', '-P', self.path, '-n', self.name, '-F', '-l', 'DEBUG', '-o',
                           self.log],
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
def new_lxc(tmp_path):
    """new_lxc(name, more lines of its configuration) makes a container; LXC starts some here."""
    require('lxc-create', 'busybox', 'nsenter')
    made = []

    def new(name, more='', directory=tmp_path, **others):
        made.append(Lxc(directory, name, more, **others))
        return made[-1]
    try:
        refusal = new('plain').start()
        if refusal:
            pytest.skip('LXC can start no container here, not even a plain one: ' + refusal)
        yield new
    finally:
        for each in made:
            each.close()
        remove_cgroups()


@pytest.fixture
def daemon(tmp_path, host, closing):
    """A daemon on a host, its directory to be shared."""
    shared = tmp_path / 'shared'
    shared.mkdir()
    return closing(Daemon(host, shared, '-v'))


@pytest.fixture
def containers(daemon, new_lxc):
    """The daemon, and two started containers that have its directory as /vde."""
    if not os.path.exists(INTERPRETER):
        pytest.skip('no /usr/bin/python3 that a container could use')
    found = [daemon]
    for name in 'one', 'two':
        found.append(new_lxc(name, entries(daemon.directory)))
        refusal = found[-1].start()
        assert not refusal, 'a plain one starts, that of the tutorial does not: ' + refusal
    return found


def copy_client(container):
    """Copy the client as the README does; its one command for it names the container bb1."""
    command, = tutorial(r'^\(host\)\$ cat vdelxcc.py \| lxc-attach -n bb1 -- (.*)')
    container.attach(*shlex.split(command), input=CLIENT_TEXT)


def test_the_tutorial_gives_two_lxc_containers_a_network(containers):
    daemon, one, two = containers
    client, ping, delete = tutorial(r'^\(container\)\$ (.*)')
    for container, line in (one, client), (two, client.replace('10.0.0.1/', '10.0.0.2/')):
        copy_client(container)
        done = container.attach('sh', '-c', line)
        assert (done.stdout, done.stderr) == ('', ''), daemon.log()
        held = container.attach('cat', '/sys/class/net/vde0/gro_flush_timeout').stdout
        assert held == '4000000\n', 'TCP segments that come in are not merged'
    assert '1 packets received' in one.attach('sh', '-c', ping).stdout
    assert '1 packets received' in two.attach('sh', '-c', ping.replace('.2', '.1')).stdout
    for count, container in enumerate((one, two), 1):
        container.attach('sh', '-c', delete)
        wait_until(lambda: daemon.log().count('close interface: vxvde:// (vde0') == count,
                   what='the session ends with its interface: ' + daemon.log())


def test_lxc_containers_get_interfaces_by_standard_input_and_from_the_host(containers):
    daemon, one, two = containers
    one.attach('python3', '-', 'vxvde://', input=CLIENT_TEXT)
    pid = two.lxc('info', '-p', '-H').stdout.strip()
    subprocess.check_call(['nsenter', '-t', pid, '-n', PYTHON, CLIENT, '-s', daemon.socket,
                           'vxvde://'], timeout=60)
    for container, address in (one, '10.0.0.1/24'), (two, '10.0.0.2/24'):
        container.attach('ip', 'addr', 'add', address, 'dev', 'vde0')
        container.attach('ip', 'link', 'set', 'vde0', 'up')
    one.attach('ping', '-c', 1, '-W', 10, '10.0.0.2')


def hooks(daemon, *changes):
    """The lines of the README by which the host gives a container its interface at the start."""
    lines = tutorial(r'^lxc\.hook.*', '### LXC: an interface from the start')
    assert len(lines) == 3
    text = '\n'.join(lines) + '\n'
    for old, new in ((' vdelxcc ', ' %s %s ' % (PYTHON, CLIENT)),
                     ('/tmp/vde/vdelxcs', daemon.socket)) + changes:
        assert old in text
        text = text.replace(old, new)
    return text


def test_a_hook_of_the_host_gives_a_bare_container_its_interface(daemon, new_lxc, new_container):
    bare = new_lxc('bare', hooks(daemon) + 'lxc.cap.drop = net_admin\n')
    refusal = bare.start()
    assert not refusal, refusal
    for lacking in 'test -e /dev/net/tun', 'test -e /vde', 'python3 -V', 'ip link set vde0 down':
        assert bare.attach('sh', '-c', lacking, check=False).returncode, lacking
    other = new_container()
    other.client('-s', daemon.socket, '-a', '10.0.0.2/24', 'vxvde://')
    bare.attach('ping', '-c', 1, '-W', 10, '10.0.0.2')
    other.ping('10.0.0.1')
    assert daemon.log().count('open interface: ') == 2
    bare.lxc('stop', '-k')
    end = re.compile(r'close interface: vxvde:// \(vde0, .*: the interface was deleted\)')
    wait_until(lambda: end.search(daemon.log()), timeout=3,
               what='the other hook ends the session: ' + daemon.log())



def test_a_container_whose_hook_is_refused_does_not_start_and_the_log_says_why(daemon, new_lxc):
    bare = new_lxc('bare', hooks(daemon, ('vxvde://', 'vde:///nowhere')))
    assert bare.start().endswith('Script exited with status 1')
    with open(bare.log) as file:
        assert 'vdelxcd: No such file or directory' in file.read()


@pytest.fixture
def open_directory():
    """A directory that everybody may look into, unlike tmp_path."""
    directory = tempfile.mkdtemp(prefix='vdelxc-test-')
    os.chmod(directory, 0o755)
    yield directory
    shutil.rmtree(directory)


def test_an_unprivileged_container_needs_an_open_device_and_an_open_socket(
        open_directory, host, closing, new_lxc):
    require('newuidmap')
    maps = tutorial(r'^lxc\.idmap = [ug] 0 100000 65536$', '### LXC: unprivileged')
    assert len(maps) == 2
    mode, = tutorial(r'vdelxcd\.py -v (-m \d+) ', '### LXC: unprivileged')
    shared, device, ranges = (os.path.join(open_directory, name)
                              for name in ('shared', 'tun', 'ranges'))
    os.mkdir(shared)
    os.mknod(device, stat.S_IFCHR | 0o600, os.stat('/dev/net/tun').st_rdev)
    with open(ranges, 'w') as file:
        file.write('root:100000:65536\n')
    lines = entries(shared).replace('/dev/net/tun dev/', device + ' dev/')
    bind = 'for kind in u g; do mount --bind %s /etc/sub${kind}id || exit; done; exec "$@"' % ranges
    one = new_lxc('one', lines, maps='\n'.join(maps) + '\n', directory=open_directory,
                  around=['unshare', '--mount', 'sh', '-c', bind, 'sh'])
    refusal = one.start()
    assert not refusal, refusal
    assert one.attach('cat', '/proc/self/uid_map').stdout.split() == ['0', '100000', '65536']

    def client():
        return one.attach('python3', '-', '-a', '10.0.0.1/24', 'vxvde://', input=CLIENT_TEXT,
                          check=False)
    daemon = closing(Daemon(host, shared, '-v'))
    os.chmod(daemon.socket, 0o755)
    assert client().stderr.startswith('connect: Permission denied: /vde/vdelxcs: ')
    daemon.stop()
    daemon.argv[2:2] = mode.split()
    daemon.start()
    assert client().stderr.startswith('interface definition: Permission denied: /dev/net/tun: ')
    os.chmod(device, 0o666)
    assert client().stderr == ''
    assert ' 10.0.0.1/24 ' in one.attach('ip', 'addr', 'show', 'dev', 'vde0').stdout
    assert 'open interface: vxvde:// (vde0, pid ' in daemon.log()
    assert ' uid 100000 gid 100000' in daemon.log()
