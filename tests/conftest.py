"""Fixtures: the two scripts as modules, network namespaces, hosts, containers, daemons, waiting.

Everything real: namespaces are held by sleeping processes and end with them; nothing is sent
outside of them. The scripts run under $VDELXC_PYTHON (default: the python3 of the system).
"""

import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from _pytest import runner

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CLIENT = os.path.join(ROOT, 'vdelxcc.py')
DAEMON = os.path.join(ROOT, 'vdelxcd.py')
PYTHON = os.environ.get('VDELXC_PYTHON') or (
    '/usr/bin/python3' if os.path.exists('/usr/bin/python3') else sys.executable)
UNDER_CI = os.environ.get('CI') == 'true'
PATH = os.environ.get('PATH', '') + ':/usr/local/sbin:/usr/sbin:/sbin'
os.environ['PATH'] = PATH


# ---- what the machine has -----------------------------------------------------------------------

# tool -> the Debian package that has it; the Makefile's test-tools installs them all
PACKAGES = {
    'ip': 'iproute2', 'ping': 'iputils-ping', 'tcpdump': 'tcpdump', 'iperf3': 'iperf3',
    'vde_plug': 'vdeplug', 'vde_switch': 'vde-switch', 'mandoc': 'mandoc',
    'lxc-create': 'lxc', 'busybox': 'busybox-static', 'unshare': 'util-linux',
    'newuidmap': 'uidmap', 'nsenter': 'util-linux', 'ethtool': 'ethtool',
    'setpriv': 'util-linux', 'make': 'make',
}
MISSING = set()             # packages for want of which a test was skipped


def missing(what, package):
    """Skip the test, or under CI fail it: a tool that should be there is not."""
    text = '%s is missing: apt-get install %s (or: make test-tools)' % (what, package)
    if UNDER_CI:
        pytest.fail(text)
    MISSING.add(package)
    pytest.skip(text)


def pytest_addoption(parser):
    """Several runs can share the suite: see jobs.sh."""
    parser.addoption('--share', metavar='DIRECTORY',
                     help='run only files of tests that no other run with this DIRECTORY took')
    parser.addoption('--job', type=int, default=1, metavar='NUMBER',
                     help='which of these runs this is; the even ones begin with the last file')


def pytest_configure(config):
    """The core is what runs under every interpreter: make test-pythons."""
    config.addinivalue_line('markers', 'slow: not part of the core, for it takes long')
    config.addinivalue_line('markers', 'core: part of what runs under every interpreter')
    config.addinivalue_line('markers', 'alone: measures; no other job runs a test meanwhile')
    if config.getoption('share'):
        config.pluginmanager.register(Share(config.getoption('share')))


class Share:
    """The part of the suite that this run has, where several share it."""

    def __init__(self, directory):
        self.directory = directory
        self.mine = {}              # file -> is it ours?
        self.gate, self.lock = (open(os.path.join(directory, name), 'w')
                                for name in ('.gate', '.lock'))
        # A shell's background job ignores these, and so would all that it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        """Files from both ends of the list, and each file's tests in their order."""
        yield
        if config.getoption('job') % 2 == 0:
            files = sorted({str(item.fspath) for item in items}, reverse=True)
            items.sort(key=lambda item: files.index(str(item.fspath)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        """Leave out a test of a file that is another's; True says that it is done.

        After the last test of a file nobody knows which is next: all that is set up ends.
        """
        name = os.path.relpath(str(item.fspath), ROOT).replace(os.sep, '-')
        if name not in self.mine:
            try:
                os.mkdir(os.path.join(self.directory, name))
                self.mine[name] = True
            except FileExistsError:
                self.mine[name] = False
        if not self.mine[name]:
            return True
        if nextitem and nextitem.fspath == item.fspath:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        runner.runtestprotocol(item, nextitem=None)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item):
        """Who measures waits until the others' tests are over, and lets them begin no new one."""
        alone = item.get_closest_marker('alone')
        fcntl.flock(self.gate, fcntl.LOCK_EX)
        fcntl.flock(self.lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(self.gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)
            fcntl.flock(self.gate, fcntl.LOCK_UN)


def pytest_collection_modifyitems(items):
    """All that is not slow in unit/ and plugs/ is core; elsewhere the marker says what is."""
    for item in items:
        directory = os.path.basename(os.path.dirname(str(item.fspath)))
        if directory in ('unit', 'plugs') and not item.get_closest_marker('slow'):
            item.add_marker('core')


def pytest_terminal_summary(terminalreporter):
    """One command for everything that was skipped for want of a tool."""
    if MISSING:
        terminalreporter.write_sep('=', 'tools are missing')
        terminalreporter.write_line('To run the tests that need them, as root: make test-tools')
        terminalreporter.write_line('or: apt-get install ' + ' '.join(sorted(MISSING)))


def require(*tools):
    """The test needs these programs."""
    for tool in tools:
        if shutil.which(tool, path=PATH) is None:
            missing(tool, PACKAGES.get(tool, tool))


def require_namespaces():
    """The test needs network namespaces and /dev/net/tun."""
    require('unshare', 'nsenter', 'ip')
    if subprocess.call(['unshare', '--net', 'true'], stderr=subprocess.DEVNULL):
        pytest.skip('network namespaces need root, or: unshare -rm make test')
    try:
        os.close(os.open('/dev/net/tun', os.O_RDWR))
    except OSError as error:
        pytest.skip('/dev/net/tun cannot be opened here: %s' % error)


# ---- waiting ------------------------------------------------------------------------------------

def wait_until(condition, timeout=10, what=None):
    """Poll until condition() is true and return its value; fail after timeout seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail('not true within %g s: %s' % (timeout, what or condition))
        time.sleep(0.02)


# ---- the scripts as modules ---------------------------------------------------------------------

def load(path):
    """A script as a module, without leaving a __pycache__."""
    name = os.path.basename(path)[:-3]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def vdelxcd():
    """The daemon as a module; its log goes to stderr."""
    module = load(DAEMON)
    module.log.write = lambda line: sys.stderr.write(line.decode())
    return module


@pytest.fixture(scope='session')
def vdelxcc():
    """The client as a module."""
    return load(CLIENT)


# ---- namespaces ---------------------------------------------------------------------------------

class Namespace:
    """A network namespace, alive as long as its holder process."""

    HOLDER = 'unshare', '--net', 'sleep', 'infinity'
    ENTER = '--net=/proc/%d/ns/net',

    def __init__(self, name):
        self.name = name
        self.children, self.sockets = [], []
        self.holder = subprocess.Popen(self.HOLDER)
        mine = os.readlink('/proc/self/ns/net')
        wait_until(lambda: self.inode() not in (None, mine), what='namespace ' + name)
        wait_until(self.has_begun, what='holder of ' + name)
        self.run('ip', 'link', 'set', 'lo', 'up')

    def has_begun(self):
        with open('/proc/%d/comm' % self.holder.pid) as file:
            return file.read() == 'sleep\n'

    def inode(self):
        try:
            return os.readlink('/proc/%d/ns/net' % self.holder.pid)
        except OSError:
            return None

    def command(self, *argv):
        """argv, to be run inside."""
        enter = [each.replace('%d', str(self.holder.pid)) for each in self.ENTER]
        return ['nsenter'] + enter + [str(arg) for arg in argv]

    def run(self, *argv, check=True, timeout=30, **more):
        """Run to the end; the CompletedProcess has stdout and stderr as text."""
        done = subprocess.run(self.command(*argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True, timeout=timeout, **more)
        if check and done.returncode:
            pytest.fail('%s: %s: exit %d\n%s%s' % (self.name, ' '.join(map(str, argv)),
                                                   done.returncode, done.stdout, done.stderr))
        return done

    def popen(self, *argv, **more):
        """Start; ends with the namespace at the latest."""
        child = subprocess.Popen(self.command(*argv), **more)
        self.children.append(child)
        return child

    def ip(self, text, check=True):
        """ip link add ... ; words are split at blanks."""
        return self.run('ip', *text.split(), check=check)

    def socket(self, *kind):
        """A socket of this process that lives inside; waits on it end after ten seconds."""
        opened = []

        def enter_and_open():           # a thread, since it never comes back
            with open('/proc/%d/ns/net' % self.holder.pid) as namespace:
                if ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0:
                    opened.append(socket.socket(*kind))
        thread = threading.Thread(target=enter_and_open)
        thread.start()
        thread.join()
        self.sockets += opened
        opened[0].settimeout(10)
        return opened[0]

    def interfaces(self):
        """The names of the interfaces inside."""
        lines = self.ip('-o link show').stdout.splitlines()
        return {line.split(':')[1].strip().split('@')[0] for line in lines}

    def ping(self, address, count=3, check=True, size=56):
        """Ping, several packets in quick succession; with check, all must be answered."""
        done = self.run('ping', '-n', '-c', count, '-i', '0.05', '-w', 10, '-s', size, address,
                        check=False)
        if check and done.returncode:
            pytest.fail('%s cannot ping %s:\n%s%s' % (self.name, address, done.stdout, done.stderr))
        return done

    def close(self):
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for each in self.sockets:
            each.close()
        self.holder.kill()
        self.holder.wait()


class Host(Namespace):
    """A namespace that plays a machine: multicast goes out on lo until it is wired."""

    def __init__(self, name):
        super().__init__(name)
        self.ip('route add 239.0.0.0/8 dev lo')
        self.ip('-6 route add local ff05::/16 dev lo', check=False)     # others on lo only refuse

    def wire(self, other, mine='192.0.2.1', others='192.0.2.2', mtu=1500):
        """A cable (veth) to another host, with IPv4 and IPv6 addresses and the multicast routes."""
        self.ip('link add eth0 mtu %d type veth peer name eth0 mtu %d netns /proc/%d/ns/net'
                % (mtu, mtu, other.holder.pid))
        for host, address in (self, mine), (other, others):
            host.run('sh', '-c', 'echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad', check=False)
            host.ip('addr add %s/24 dev eth0' % address)
            host.ip('-6 addr add 2001:db8::%s/64 dev eth0 nodad' % address.rsplit('.')[-1])
            host.ip('link set eth0 up')
            host.ip('route replace 239.0.0.0/8 dev eth0')
            host.ip('-6 route del local ff05::/16 dev lo', check=False)     # now ff00::/8 on eth0
        for host in self, other:
            wait_until(lambda: 'LOWER_UP' in host.ip('link show eth0').stdout)


class Container(Namespace):
    """A namespace that plays a container, with a /sys of its own: it runs the client."""

    HOLDER = ('unshare', '--net', '--mount', 'sh', '-c',
              'mount -t sysfs sysfs /sys && exec sleep infinity')
    ENTER = '--net=/proc/%d/ns/net', '--mount=/proc/%d/ns/mnt', '--wd=.'

    def client(self, *argv, check=True, python=PYTHON, **more):
        """Run vdelxcc.py."""
        return self.run(python, CLIENT, *argv, check=check, **more)

    def up(self, interface, *addresses):
        """Give an interface addresses and switch it on."""
        for address in addresses:
            nodad = ' nodad' if ':' in address else ''
            self.ip('addr add %s dev %s%s' % (address, interface, nodad))
        self.ip('link set %s up' % interface)


def processes(marker):
    """The pids of the processes that have marker in their command line; zombies do not count."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/cmdline' % pid, 'rb') as file:
                if os.fsencode(str(marker)) in file.read():
                    found.append(int(pid))
        except OSError:
            pass
    return sorted(set(found) - {os.getpid()})


def is_helper(pid, names=('forker', 'keeper')):
    """Is it the process that quiet relays are forked from, or their keeper?

    They stay as long as their daemon, and the keeper as long as it has a relay.
    """
    try:
        with open('/proc/%d/comm' % pid) as file:
            return file.read() in ['vdelxcd-%s\n' % name for name in names]
    except OSError:
        return False


def parent(pid):
    """The pid of a process's parent; 0 when it is gone."""
    try:
        with open('/proc/%d/stat' % pid) as file:
            return int(file.read().rpartition(')')[2].split()[1])
    except OSError:
        return 0


def kill_each(pids):
    """SIGKILL for processes, some of which may have ended since they were listed."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def end_in_order(pids):
    """Under make coverage, end the processes that pids() lists so that each reports its lines.

    Without it nothing happens here: they will be killed.
    """
    patience, told = time.monotonic() + 5, set()
    while 'COVERAGE_RCFILE' in os.environ and pids() and time.monotonic() < patience:
        parents = {parent(pid) for pid in pids()}       # relays first: keepers kill theirs
        for pid in set(pids()) - parents - told:
            told.add(pid)
            try:
                os.kill(pid, signal.SIGTERM)
            except OSError:
                pass
        time.sleep(0.02)


class Daemon:
    """A vdelxcd in a host, its socket in a directory of its own."""

    def __init__(self, host, directory, *argv, vnl=None, python=PYTHON, start=True):
        self.host = host
        self.directory = str(directory)
        self.socket = os.path.join(self.directory, 'vdelxcs')
        self.logfile = os.path.join(self.directory, 'log')
        self.argv = [python, DAEMON] + list(argv) + [self.socket] + ([vnl] if vnl else [])
        self.process = None
        if start:
            self.start()

    def start(self):
        with open(self.logfile, 'ab') as log:
            self.process = self.host.popen(*self.argv, stderr=log)
        wait_until(lambda: self.process.poll() is not None or self.accepts(),
                   what='the daemon listens: ' + self.log())
        assert self.process.poll() is None, self.log()

    def accepts(self):
        """Does the daemon listen? Asks the kernel's table, not the daemon."""
        try:
            with open('/proc/%d/net/unix' % self.host.holder.pid) as table:
                lines = [line.split() for line in table]
        except OSError:
            return False
        return any(line[-1] == self.socket and line[5] == '01' and line[3] == '00010000'
                   for line in lines)

    def log(self):
        """What the daemon and its sessions wrote so far."""
        try:
            with open(self.logfile) as file:
                return file.read()
        except OSError:
            return ''

    def pids(self):
        """The processes of this daemon: itself and its sessions, without its helpers."""
        return [pid for pid in processes(self.socket) if not is_helper(pid)]

    def stop(self, number=signal.SIGTERM):
        """Stop the daemon; its sessions go on."""
        self.process.send_signal(number)
        return self.process.wait(10)

    def close(self):
        """Stop the daemon and end its sessions."""
        end_in_order(self.pids)
        deadline = time.monotonic() + 10
        # A session may be about to be one, of another process; helpers end when there is none.
        while processes(self.socket) and time.monotonic() < deadline:
            patient = time.monotonic() < deadline - 5
            for pid in self.pids() if patient else processes(self.socket):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            time.sleep(0.02)
        if self.process:
            self.process.wait(10)


@pytest.fixture
def closing():
    """Call closing(thing) and thing.close() is called at the end, last things first."""
    things = []

    def keep(thing):
        things.append(thing)
        return thing
    yield keep
    for thing in reversed(things):
        thing.close()


@pytest.fixture
def host(closing):
    """A host of its own."""
    require_namespaces()
    return closing(Host('host'))


@pytest.fixture
def new_host(closing):
    """new_host(name) makes a further host."""
    require_namespaces()
    return lambda name='host2': closing(Host(name))


@pytest.fixture
def new_container(closing):
    """new_container(name) makes a container."""
    require_namespaces()
    return lambda name='container': closing(Container(name))


@pytest.fixture
def new_daemon(closing, tmp_path_factory):
    """new_daemon(host, *options, vnl=...) starts a daemon, -v unless options say otherwise."""
    def start(host, *argv, **more):
        directory = tmp_path_factory.mktemp('vde')
        return closing(Daemon(host, directory, *(argv or ('-v',)), **more))
    return start


@pytest.fixture
def pair(host, new_container, new_daemon):
    """A daemon on a host and two containers without interfaces: (daemon, container, container)."""
    return new_daemon(host), new_container('a'), new_container('b')
