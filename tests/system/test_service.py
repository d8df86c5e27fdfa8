"""The daemon under a service manager: readiness, notifications, sockets passed on, units."""

import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess

import pytest

from conftest import DAEMON, PYTHON, ROOT, end_in_order, processes, require, wait_until

# What systemd does before it starts a service with a socket: python -c ACTIVATE FD COUNT ARGV
ACTIVATE = '''
import os, sys
fd = int(sys.argv[1])
if fd != 3:
    os.dup2(fd, 3)
    os.close(fd)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS=sys.argv[2], LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='name')
os.execv(sys.argv[3], sys.argv[3:])
'''


class Services:
    """Starts daemons that name one directory; close() ends them and their sessions."""

    def __init__(self, directory):
        self.directory = str(directory)
        self.socket, self.rules, self.pidfile, self.logfile = (
            os.path.join(self.directory, name) for name in ('vdelxcs', 'rules', 'pid', 'log'))
        self.children = []
        self.write_rules('pfxallow null://\n')

    def write_rules(self, text):
        with open(self.rules, 'w') as file:
            file.write(text)

    def start(self, *argv, before=(), fds=(), host=None, **environment):
        """Start a daemon, with what comes before it on the command line."""
        command = list(before) + [PYTHON, DAEMON] + [str(arg) for arg in argv]
        if host:
            command = host.command(*command)
        with open(self.logfile, 'ab') as log:
            child = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=log,
                                     stderr=log, env=dict(os.environ, **environment))
        self.children.append(child)
        return child

    def activate(self, sock, *argv, count=1, **more):
        """Start a daemon that gets a socket as systemd passes it on."""
        before = [PYTHON, '-c', ACTIVATE, str(sock.fileno()), str(count)]
        return self.start(*argv, before=before, fds=[sock.fileno()], **more)

    def failing(self, child):
        """The one line with which a daemon refused to start; that it left nothing behind."""
        assert child.wait(20) == 1
        line = self.log()
        assert line.startswith('vdelxcd: ') and line.count('\n') == 1, line
        os.unlink(self.logfile)
        assert set(os.listdir(self.directory)) <= {'rules', 'passed', 'notify'}
        return line

    def log(self):
        with open(self.logfile) as file:
            return file.read()

    def pid(self):
        with open(self.pidfile) as file:
            return int(file.read())

    def close(self):
        end_in_order(lambda: processes(self.directory))

        def ended():
            for pid in processes(self.directory):
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            return not processes(self.directory)
        wait_until(ended)
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture
def services(closing, tmp_path):
    return closing(Services(tmp_path))


class Notices:
    """A socket as that of NOTIFY_SOCKET, and what arrives there."""

    def __init__(self, directory, kind):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if kind == 'path':
            self.name = os.path.join(directory, 'notify')
            self.sock.bind(self.name)
        else:
            self.sock.bind('')              # the kernel chooses a free abstract name
            self.name = '@' + os.fsdecode(self.sock.getsockname()[1:])
        self.sock.settimeout(20)

    def next(self):
        """The next message as a dict."""
        text = self.sock.recv(4096).decode()
        fields = [line.partition('=')[::2] for line in text.split('\n')]
        assert len(dict(fields)) == len(fields)
        return dict(fields)

    def close(self):
        self.sock.close()


@pytest.fixture
def new_notices(services, closing):
    return lambda kind='path': closing(Notices(services.directory, kind))


@pytest.fixture
def passed(closing, services):
    """A listening socket, at a path of its own."""
    sock = closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    sock.bind(os.path.join(services.directory, 'passed'))
    sock.listen(5)
    return sock


def is_answered(path):
    """Does a daemon, and not just the kernel, answer there? It is asked what it can do."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        try:
            sock.connect(path)
        except OSError:
            return False
        sock.sendall(b'\0hello=1\0')
        return sock.recv(100).startswith(b'0\0')


def comm(pid):
    """The name of a process; '' when it has ended."""
    try:
        with open('/proc/%d/comm' % pid) as file:
            return file.read().rstrip('\n')
    except OSError:
        return ''


def descriptors(pid):
    """What a process has open: number -> text; nothing when it has ended."""
    directory, found = '/proc/%d/fd' % pid, {}
    try:
        for fd in os.listdir(directory):
            try:
                found[int(fd)] = os.readlink(os.path.join(directory, fd))
            except OSError:                 # it was closed since
                pass
    except OSError:
        pass
    return found


# ---- sd_notify ----------------------------------------------------------------------------------

@pytest.mark.core
@pytest.mark.parametrize('kind', ['path', 'abstract'])
def test_the_manager_is_told_of_start_reload_and_end(services, new_notices, kind):
    notices = new_notices(kind)
    services.write_rules('pfxallow null://1\nallow vxvde://\ndefault null://\n')
    daemon = services.start('-f', services.rules, services.socket, NOTIFY_SOCKET=notices.name)
    assert notices.next() == {'READY': '1', 'STATUS': '3 rules, 1 warning'}
    assert is_answered(services.socket)         # it was ready when it said so
    before = services.log().count('\n')

    services.write_rules('allow null://\n')
    daemon.send_signal(signal.SIGHUP)
    with open('/proc/uptime') as file:
        uptime = float(file.read().split()[0])
    reloading = notices.next()
    assert reloading.pop('RELOADING') == '1'
    assert abs(int(reloading.pop('MONOTONIC_USEC')) / 1e6 - uptime) < 600 and not reloading
    assert notices.next() == {'READY': '1', 'STATUS': '1 rule'}
    assert services.log().split('\n')[before:] == ['rules read again: 1 rule', '']

    services.write_rules('alow null://\ndeny\n')
    daemon.send_signal(signal.SIGHUP)
    assert notices.next()['RELOADING'] == '1'
    failed = {'READY': '1', 'STATUS': 'rules not read again, the old ones stay: 2 faults'}
    assert notices.next() == failed
    assert re.findall(r'the old ones stay: %s:(\d)' % services.rules, services.log()) == ['1', '2']

    daemon.terminate()
    assert notices.next() == {'STOPPING': '1'}
    assert daemon.wait(20) == 0 and not os.path.exists(services.socket)


def test_a_detached_daemon_tells_its_process_id(services, new_notices):
    notices = new_notices()
    first = services.start('-d', '-p', services.pidfile, services.socket,
                           NOTIFY_SOCKET=notices.name)
    assert first.wait(20) == 0
    notices.sock.setblocking(False)             # it was told before -d returned
    assert notices.next() == {
        'READY': '1', 'MAINPID': str(services.pid()),
        'STATUS': 'no rules: everything that runs no program is allowed'}


def test_a_start_that_fails_is_not_ready(services, new_notices):
    notices = new_notices()
    services.failing(services.start('/nosuch/s', NOTIFY_SOCKET=notices.name))
    notices.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        notices.next()


@pytest.mark.parametrize('name', [
    '', '@', '/', '/nosuch/socket', 'relative', 'vsock:2:1', '{}/rules', '/' + 'x' * 200,
    '@' + 'x' * 200, '\udcff'])
def test_a_manager_that_cannot_be_told_hurts_nobody(services, name):
    daemon = services.start(services.socket, NOTIFY_SOCKET=name.format(services.directory))
    wait_until(lambda: is_answered(services.socket))
    daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: 'rules read again' in services.log())
    daemon.terminate()
    assert daemon.wait(20) == 0
    assert services.log().count('\n') == 1


def test_a_manager_that_does_not_read_keeps_nobody_waiting(services, new_notices):
    notices = new_notices()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):    # its queue is full
            while True:
                other.sendto(b'x', notices.name)
    daemon = services.start(services.socket, NOTIFY_SOCKET=notices.name)
    wait_until(lambda: is_answered(services.socket))
    daemon.terminate()
    assert daemon.wait(20) == 0


# ---- sockets passed on --------------------------------------------------------------------------

@pytest.mark.core
@pytest.mark.parametrize('arguments', [[], ['{}'], ['null://default'], ['{}', 'null://default']])
def test_a_socket_from_the_manager_is_used_and_never_removed(services, passed, new_notices,
                                                             arguments):
    path = passed.getsockname()
    before = os.lstat(path)
    notices = new_notices()
    daemon = services.activate(
        passed, '-p', services.pidfile, *[each.format(path) for each in arguments],
        NOTIFY_SOCKET=notices.name)
    assert notices.next()['STATUS'] == (
        'one network: null://default' if 'null://default' in arguments
        else 'no rules: everything that runs no program is allowed')
    assert is_answered(path)
    assert services.pid() == daemon.pid
    with open('/proc/%d/fdinfo/3' % daemon.pid) as file:
        flags = int(re.search(r'flags:\s*(\d+)', file.read()).group(1), 8)
    assert flags & os.O_CLOEXEC
    daemon.terminate()
    assert daemon.wait(20) == 0 and services.log() == ''
    assert (os.lstat(path).st_ino, os.lstat(path).st_mtime) == (before.st_ino, before.st_mtime)
    assert not os.path.exists(services.pidfile)
    again = services.activate(passed, '-d', '-p', services.pidfile, *[
        each.format(path) for each in arguments])
    assert again.wait(20) == 0                  # who comes in between waits for the next daemon
    assert is_answered(path)
    os.kill(services.pid(), signal.SIGTERM)
    wait_until(lambda: not os.path.exists(services.pidfile))
    assert os.lstat(path).st_ino == before.st_ino


@pytest.mark.core
def test_a_client_that_comes_before_the_daemon_is_served_by_it(services, passed):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(passed.getsockname())
        sock.sendall(b'\0hello=1\0')
        services.activate(passed, '-f', services.rules)
        assert sock.recv(100).startswith(b'0\0')


def unsuitable(kind, directory):
    """A descriptor that cannot be listened on, and a word of why."""
    path = os.path.join(directory, 'passed')
    if kind == 'file':
        return open(os.devnull), 'is no socket'
    if kind == 'pair':
        return socket.socketpair()[0], 'does not listen'
    if kind == 'TCP':
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.listen(1)
        return sock, 'is no UNIX stream socket'
    sock = socket.socket(socket.AF_UNIX, {
        'packets': socket.SOCK_SEQPACKET, 'datagrams': socket.SOCK_DGRAM}.get(
            kind, socket.SOCK_STREAM))
    sock.bind(path)
    if kind == 'packets':
        sock.listen(1)
    return sock, 'does not listen' if kind == 'bound only' else 'is no UNIX stream socket'


@pytest.mark.parametrize('kind', ['file', 'pair', 'TCP', 'packets', 'datagrams', 'bound only'])
def test_what_is_no_listening_unix_socket_is_refused(services, closing, kind):
    sock, word = unsuitable(kind, services.directory)
    closing(sock)
    line = services.failing(services.activate(sock, '-p', services.pidfile))
    assert 'descriptor 3' in line and word in line


def test_a_socket_that_is_not_there_is_refused(services):
    script = 'exec 3>&-; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
    daemon = services.start(services.socket, before=['sh', '-c', script, 'sh'])
    assert 'descriptor 3' in services.failing(daemon)


@pytest.mark.parametrize('count', ['2', '-1', 'x', ' 1', '99999999999999999999'])
def test_any_number_of_sockets_but_one_is_refused(services, passed, count):
    line = services.failing(services.activate(passed, count=count))
    assert line.startswith('vdelxcd: LISTEN_FDS=%s: ' % count)


def test_a_socket_that_is_not_the_one_of_the_command_line_is_refused(services, passed):
    for argument in services.socket, passed.getsockname() + 'x', '/':
        line = services.failing(services.activate(passed, argument))
        assert argument in line and passed.getsockname() in line
    daemon = services.activate(passed, services.directory + '/./x/../passed', '-f', services.rules)
    assert is_answered(passed.getsockname())
    daemon.terminate()
    assert daemon.wait(20) == 0


def test_the_mode_of_a_socket_that_was_passed_on_is_not_ours(services, passed):
    os.chmod(passed.getsockname(), 0o640)
    daemon = services.activate(passed, '-m', '666')
    assert daemon.wait(20) == 1
    fault, usage = services.log().splitlines()
    assert fault.startswith('vdelxcd: -m: ') and usage.startswith('Usage: ')
    assert stat.S_IMODE(os.lstat(passed.getsockname()).st_mode) == 0o640


@pytest.mark.parametrize('more', [{'LISTEN_PID': '1', 'LISTEN_FDS': '1'}, {'LISTEN_FDS': '1'},
                                  {'LISTEN_PID': 'x', 'LISTEN_FDS': 'x'}])
def test_sockets_for_another_process_are_not_taken(services, more):
    daemon = services.start(services.socket, **more)
    wait_until(lambda: is_answered(services.socket))
    daemon.terminate()
    assert daemon.wait(20) == 0 and not os.path.exists(services.socket)


def test_an_abstract_socket_may_be_passed_on(services, closing, new_notices):
    sock, notices = closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)), new_notices()
    sock.bind('')
    sock.listen(5)
    services.activate(sock, '-f', services.rules, NOTIFY_SOCKET=notices.name)
    assert notices.next()['READY'] == '1'
    assert is_answered(sock.getsockname())


def test_systemd_socket_activate_starts_the_daemon_at_the_first_client(services):
    if not shutil.which('systemd-socket-activate'):
        pytest.skip('systemd-socket-activate is missing')
    path = os.path.join(services.directory, 'passed')
    services.start('-f', services.rules, before=['systemd-socket-activate', '-l', path])
    wait_until(lambda: is_answered(path))


# ---- what sessions inherit ----------------------------------------------------------------------

def test_a_session_has_neither_the_socket_nor_the_words_of_the_manager(
        services, passed, new_notices, host, new_container):
    container, notices = new_container(), new_notices()
    seen = os.path.join(services.directory, 'seen')
    script = os.path.join(services.directory, 'program')
    with open(script, 'w') as file:
        file.write('env > %s.new; ls -l /proc/$$/fd >> %s.new; mv %s.new %s; exec cat\n' % (
            seen, seen, seen, seen))
    services.write_rules('pfxallow cmd://\n')
    daemon = services.activate(passed, '-f', services.rules, host=host, VISIBLE='yes',
                               NOTIFY_SOCKET=notices.name)
    assert notices.next()['READY'] == '1'
    container.client('-s', passed.getsockname(), 'cmd://sh ' + script)
    wait_until(lambda: os.path.exists(seen))
    with open(seen) as file:
        text = file.read()
    inode = 'socket:[%d]' % os.fstat(passed.fileno()).st_ino
    assert 'VISIBLE=yes' in text and inode in descriptors(daemon.pid).values()
    assert 'NOTIFY' not in text and 'LISTEN_' not in text and inode not in text
    sessions = [pid for pid in processes(services.rules) if pid != daemon.pid]
    assert 'vdelxcd:vde0' in map(comm, sessions)
    assert [pid for pid in sessions if inode in descriptors(pid).values()] == []


# ---- --ready-fd ---------------------------------------------------------------------------------

@pytest.mark.core
@pytest.mark.parametrize('detached', [False, True])
def test_a_newline_is_written_when_the_daemon_is_ready(services, detached):
    reader, writer = os.pipe()
    daemon = services.start('--ready-fd', writer, '-p', services.pidfile, *(
        ['-d'] * detached + [services.socket]), fds=[writer])
    pipe = os.readlink('/proc/self/fd/%d' % writer)
    os.close(writer)
    with open(reader, 'rb', 0) as file:
        assert select.select([file], [], [], 20)[0] and file.read(1) == b'\n'
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(services.socket)       # at once
        pid = services.pid()
        assert select.select([file], [], [], 20)[0] and file.read(1) == b''     # nobody has it
    assert descriptors(pid) and pipe not in descriptors(pid).values()
    assert is_answered(services.socket)
    if detached:
        assert daemon.wait(20) == 0
    else:
        assert pid == daemon.pid and daemon.poll() is None


def test_nothing_is_written_when_the_start_fails(services):
    reader, writer = os.pipe()
    for more in [], ['-d']:
        daemon = services.start('--ready-fd', writer, '-p', '/nosuch/pid', services.socket, *more,
                                fds=[writer])
        services.failing(daemon)
    os.close(writer)
    with open(reader, 'rb') as file:
        assert file.read() == b''


@pytest.mark.parametrize('fd', [1, 2])
def test_a_standard_stream_may_be_told(services, fd):
    services.start('--ready-fd', fd, '-f', services.rules, services.socket)
    wait_until(lambda: services.log() == '\n')
    pid = services.children[0].pid
    assert descriptors(pid)[fd] == '/dev/null'
    services.children[0].send_signal(signal.SIGHUP)
    wait_until(lambda: 'rules read again' in services.log())
    assert is_answered(services.socket)


@pytest.mark.parametrize('fd', ['77', '999999999', 'reading end'])
def test_a_descriptor_that_cannot_be_written_to_ends_the_start(services, fd):
    fds = []
    if fd == 'reading end':
        fds = list(os.pipe())[:1]
        fd = fds[0]
    for more in [], ['-d']:
        line = services.failing(services.start('--ready-fd', fd, services.socket, *more, fds=fds))
        assert line == 'vdelxcd: --ready-fd %s: Bad file descriptor\n' % fd


def test_who_reads_no_more_hurts_nobody(services):
    reader, writer = os.pipe()
    os.close(reader)
    services.start('--ready-fd', writer, services.socket, fds=[writer])
    os.close(writer)
    wait_until(lambda: is_answered(services.socket))


# ---- the units of the manual page ---------------------------------------------------------------

def units():
    """The units of vdelxcd(1): 'system/NAME' or 'user/NAME' -> text."""
    with open(os.path.join(ROOT, 'man', 'vdelxcd.1')) as file:
        found = re.findall(r'^\.Ss The unit (\S+)( of a user)?\n.*?^\.Bd -literal.*?\n(.*?)^\.Ed',
                           file.read(), re.S | re.M)
    return {('user/' if user else 'system/') + name: text for name, user, text in found}


def settings(unit, name):
    """The values of one setting of a unit, in their order."""
    return re.findall('^%s=(.*)' % name, units()[unit], re.M)


def test_the_page_has_services_a_socket_and_a_service_of_a_user():
    assert sorted(units()) == ['system/vdelxcd.service', 'system/vdelxcd.socket',
                               'system/vdelxcd@.service', 'user/vdelxcd.service']


@pytest.mark.parametrize('directory', ['system', 'user'])
def test_systemd_finds_no_fault_in_the_units(tmp_path, directory):
    if not shutil.which('systemd-analyze'):
        pytest.skip('systemd-analyze is missing')
    program = tmp_path / 'vdelxcd'
    program.symlink_to(DAEMON)
    files = []
    for name, text in units().items():
        if name.startswith(directory):
            files.append(str(tmp_path / os.path.basename(name)))
            text = re.sub(r'^ExecStart=\S+/vdelxcd', 'ExecStart=%s' % program, text, flags=re.M)
            (tmp_path / os.path.basename(name)).write_text(text)

    def verify():
        done = subprocess.run(
            ['systemd-analyze', 'verify', '--man=no', '--' + directory] + files, timeout=60,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True, env=dict(os.environ, XDG_RUNTIME_DIR=str(tmp_path)))
        return [line for line in done.stdout.splitlines() if 'vdelxcd' in line]
    assert verify() == []
    with open(files[0], 'a') as file:
        file.write('[Service]\nNoSuchSetting=yes\n')
    assert 'NoSuchSetting' in ''.join(verify())         # it does look


def test_the_services_call_the_daemon_as_it_can_be_called(vdelxcd):
    for unit, socket_path in (('system/vdelxcd.service', '/run/vdelxcd/vdelxcs'),
                              ('system/vdelxcd@.service', '/run/vdelxcd/bb1/vdelxcs'),
                              ('user/vdelxcd.service', '/run/user/1000/vdelxcd/vdelxcs')):
        command, = settings(unit, 'ExecStart')
        for specifier, value in ('%h', '/home/me'), ('%t', '/run/user/1000'), ('%i', 'bb1'):
            command = command.replace(specifier, value)
        words = command.split()
        for inherited in False, True:
            options = vdelxcd.parse_arguments(words[1:], inherited)
            assert options['socket'] == socket_path
            assert options['vnl'] is None or vdelxcd.read_vnl(options['vnl'])
        assert settings(unit, 'KillMode') == ['process']
        assert settings(unit, 'RuntimeDirectoryPreserve') == ['yes']
    assert settings('system/vdelxcd.socket', 'ListenStream') == ['/run/vdelxcd/vdelxcs']


def test_the_capabilities_of_the_unit_suffice(services, host, new_container):
    require('setpriv')
    names = ' '.join(settings('system/vdelxcd.service', 'CapabilityBoundingSet')).lower().split()
    assert len(names) > 5
    services.write_rules('pfxallow\n')
    kept = '-all,' + ','.join(name.replace('cap_', '+') for name in names)
    daemon = services.start('-f', services.rules, services.socket, host=host, before=[
        'setpriv', '--bounding-set', kept, '--no-new-privs'])
    wait_until(lambda: is_answered(services.socket))
    with open('/proc/%d/status' % daemon.pid) as file:
        effective = int(re.search(r'^CapEff:\s*(\w+)', file.read(), re.M).group(1), 16)
    assert bin(effective).count('1') <= len(names)
    a, b = new_container('a'), new_container('b')
    for vnl, name in (('vxvde://', 'x0'), ('hub://%s/hub' % services.directory, 'h0')):
        for container, address in (a, '10.0.%d.1/24'), (b, '10.0.%d.2/24'):
            container.client('-s', services.socket, '-i', name, vnl)
            container.up(name, address % (name == 'h0'))
    a.client('-s', services.socket, '-i', 't0', 'tap://tap0')
    a.ping('10.0.0.2')
    a.ping('10.0.1.2')
    assert 'tap0' in host.interfaces()
