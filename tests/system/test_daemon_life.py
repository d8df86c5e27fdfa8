"""The daemon's life: start, socket, pidfile, detaching, signals, the log, and what outlives it."""

import errno
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile

import pytest

from conftest import (DAEMON, PYTHON, Daemon, end_in_order, kill_each, processes, require,
                      wait_until)

BY_HAND = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'by_hand.py')
REFUSED = os.strerror(errno.EACCES)


# ---- helpers ------------------------------------------------------------------------------------

class Detached:
    """A directory for daemons that are started with -d; close() ends all that name it.

    Its last part is unique, so that relative paths show whose a process is.
    """

    def __init__(self, host, directory):
        self.host, self.directory = host, str(directory)
        self.socket = os.path.join(self.directory, 'vdelxcs')
        self.pidfile = os.path.join(self.directory, 'pid')

    def start(self, *argv, check=True, wrap=(), **more):
        """vdelxcd -d ... to its end; the CompletedProcess."""
        more.setdefault('cwd', self.directory)
        return self.host.run(*(list(wrap) + [PYTHON, DAEMON, '-d'] + list(argv)), check=check,
                             timeout=20, **more)

    def pid(self):
        with open(self.pidfile) as file:
            return int(file.read())

    def answers(self):
        return listens(self.socket)

    def pids(self):
        return processes(os.path.basename(self.directory) + '/')

    def stop(self, number=signal.SIGTERM):
        pid = self.pid()
        os.kill(pid, number)
        wait_until(lambda: pid not in self.pids(), what='the daemon ends')

    def close(self):
        end_in_order(self.pids)

        def ended():
            kill_each(self.pids())
            return not self.pids()
        wait_until(ended)


@pytest.fixture
def detached(host, closing, tmp_path):
    return closing(Detached(host, tempfile.mkdtemp(prefix='life', dir=str(tmp_path))))


def listens(path):
    """Does somebody accept connections at a socket's path, now?"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(path)
            return True
        except OSError:
            return False


def comm(pid):
    with open('/proc/%d/comm' % pid) as file:
        return file.read().rstrip('\n')


def fds(pid):
    """What a process has open: a list of texts, sorted."""
    directory = '/proc/%d/fd' % pid
    found = []
    for fd in os.listdir(directory):
        try:
            found.append(os.readlink(os.path.join(directory, fd)))
        except OSError:
            pass                            # closed meanwhile
    return sorted(found)


def children(pid):
    """The children of a process: pid -> state, 'Z' for a zombie."""
    with open('/proc/%d/task/%d/children' % (pid, pid)) as file:
        pids = file.read().split()
    states = {}
    for child in pids:
        try:
            with open('/proc/%s/stat' % child) as file:
                states[int(child)] = file.read().rpartition(')')[2].split()[0]
        except OSError:
            pass
    return states


def failing(host, *argv, wrap=(), **more):
    """Start a daemon that must fail: exit 1 and one line. Returns the line."""
    done = host.run(*(list(wrap) + [PYTHON, DAEMON] + [str(arg) for arg in argv]), check=False,
                    timeout=20, **more)
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('vdelxcd: '), done.stderr
    return done.stderr


def connected(daemon, a, b):
    """Give both containers an interface on vxvde:// and ping."""
    for container, address in (a, '10.0.0.1/24'), (b, '10.0.0.2/24'):
        container.client('-s', daemon.socket, 'vxvde://')
        container.up('vde0', address)
    a.ping('10.0.0.2')


def in_mounts(script):
    """A command line prefix: run sh script in mounts of its own, then what follows."""
    return ['unshare', '--mount', 'sh', '-ec', script + '\nexec "$@"', 'sh']


# ---- detaching ----------------------------------------------------------------------------------

def test_d_returns_when_the_socket_listens_and_the_pidfile_is_written(detached):
    for _ in range(5):
        done = detached.start('-p', detached.pidfile, detached.socket)
        assert detached.answers()               # at once, without waiting
        assert comm(detached.pid()) == 'vdelxcd'
        assert (done.stdout, done.stderr) == ('', '')
        detached.stop()
        assert os.listdir(detached.directory) == []


def test_a_detached_daemon_has_no_terminal_no_streams_and_no_directory(detached):
    detached.start('-v', '-p', detached.pidfile, detached.socket)
    pid = detached.pid()
    with open('/proc/%d/stat' % pid) as file:
        parent, group, session, terminal = file.read().rpartition(')')[2].split()[1:5]
    assert (parent, terminal) == ('1', '0') or terminal == '0' and parent != str(os.getpid())
    assert str(pid) not in (group, session)     # no session leader: never gets a terminal
    assert os.readlink('/proc/%d/cwd' % pid) == '/'
    for fd in 0, 1, 2:
        assert os.readlink('/proc/%d/fd/%d' % (pid, fd)) == '/dev/null'


def test_d_lets_go_of_the_streams_that_it_was_started_with(detached):
    reader, writer = os.pipe()
    command = detached.host.command(PYTHON, DAEMON, '-d', detached.socket)
    child = subprocess.Popen(command, stdout=writer, stderr=writer)
    os.close(writer)
    assert child.wait(10) == 0
    with os.fdopen(reader, 'rb') as file:       # who reads to the end gets there
        assert select.select([file], [], [], 10)[0] and file.read() == b''
    assert detached.answers()


def test_relative_paths_mean_the_directory_where_d_was_called(detached, new_container):
    with open(detached.directory + '/rules', 'w') as file:
        file.write('allow null://one\n')
    parent, here = os.path.split(detached.directory)
    detached.start('-f', here + '/rules', '-p', './%s/../%s/pid' % (here, here), here + '/vdelxcs',
                   cwd=parent)
    assert detached.answers() and comm(detached.pid()) == 'vdelxcd'
    container = new_container()
    container.client('-s', detached.socket, 'null://one')
    with open(detached.directory + '/rules', 'w') as file:
        file.write('allow null://two\n')
    os.kill(detached.pid(), signal.SIGHUP)      # the rules are found again too
    wait_until(lambda: container.client('-s', detached.socket, 'null://two',
                                        check=False).returncode == 0)
    detached.stop()
    assert os.listdir(detached.directory) == ['rules']


@pytest.mark.parametrize('redirection', ['<&- >&- 2>&-', '2>&-', '<&-', '2>/dev/full', '>&- 2>&-'])
def test_d_works_whatever_the_streams_are(detached, new_container, redirection):
    wrap = ['sh', '-c', 'exec "$@" ' + redirection, 'sh']
    detached.start('-v', '-p', detached.pidfile, detached.socket, wrap=wrap)
    new_container().client('-s', detached.socket, 'null://')


def test_d_prints_what_went_wrong_and_returns_1(host, tmp_path):
    (tmp_path / 'rules').write_text('allow null://\nalow x\ndeny\n')
    done = host.run(PYTHON, DAEMON, '-d', '-f', 'rules', 'sock', cwd=str(tmp_path), check=False)
    assert done.returncode == 1 and done.stdout == ''
    first, second = done.stderr.splitlines()    # every fault of the file
    assert 'rules:2: ' in first and 'rules:3: ' in second
    assert '/nowhere/sock' in failing(host, '-d', '/nowhere/sock')
    assert '/nowhere/pid' in failing(host, '-d', '-p', '/nowhere/pid', tmp_path / 'sock')
    assert 'rules.not' in failing(host, '-d', '-f', tmp_path / 'rules.not', tmp_path / 'sock')
    assert os.listdir(str(tmp_path)) == ['rules']


@pytest.mark.parametrize('limit', [0, 1, 2])
def test_a_daemon_that_cannot_fork_leaves_no_socket(host, limit):
    require('setpriv', 'prlimit')
    other = ['setpriv', '--reuid=64321', '--regid=64321', '--clear-groups']
    if host.run(*(other + ['env', PYTHON, '-c', '']), check=False).returncode:
        pytest.skip('another user cannot run %s' % PYTHON)
    # Not below pytest's own directory, which other users cannot enter.
    with tempfile.TemporaryDirectory(prefix='vdelxc') as directory:
        os.chown(directory, 64321, 64321)
        path, script = os.path.join(directory, 'sock'), os.path.join(directory, 'vdelxcd.py')
        shutil.copy(DAEMON, script)
        os.chmod(script, 0o755)
        done = host.run(*(other + ['prlimit', '--nproc=%d' % limit, PYTHON, script, '-d', path]),
                        check=False)
        kill_each(processes(directory))
        assert done.returncode == 1 and done.stderr.count('\n') == 1
        assert os.strerror(errno.EAGAIN) in done.stderr
        assert os.listdir(directory) == ['vdelxcd.py']


# ---- the socket ---------------------------------------------------------------------------------

def test_a_stale_socket_is_replaced(host, new_daemon):
    daemon = new_daemon(host, start=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(daemon.socket)
    daemon.start()
    assert listens(daemon.socket)


@pytest.mark.parametrize('more', [[], ['-d']])
def test_a_living_daemon_is_respected(pair, more):
    daemon, a, b = pair
    before = os.stat(daemon.socket)
    connected(daemon, a, b)
    text = failing(daemon.host, *(more + [daemon.socket]))
    assert 'already running' in text
    assert os.stat(daemon.socket).st_ino == before.st_ino
    a.ping('10.0.0.2')
    a.client('-s', daemon.socket, 'vxvde://')


def test_a_daemon_that_is_too_busy_to_accept_is_respected(host, new_daemon):
    daemon = new_daemon(host)
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        assert 'already running' in failing(host, daemon.socket)
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)
    assert listens(daemon.socket)


@pytest.mark.parametrize('kind', ['file', 'directory', 'link', 'dangling link', 'datagram socket',
                                  'FIFO'])
def test_what_is_no_socket_is_refused_and_left_alone(host, tmp_path, kind):
    path, target = str(tmp_path / 'sock'), str(tmp_path / 'target')
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if kind == 'file':
        open(path, 'w').close()
    elif kind == 'directory':
        os.mkdir(path)
    elif kind == 'FIFO':
        os.mkfifo(path)
    elif kind == 'datagram socket':
        other.bind(path)
    else:
        os.symlink(target, path)
        if kind == 'link':
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
                dead.bind(target)
    before, names = os.lstat(path), os.listdir(str(tmp_path))
    for more in [], ['-d']:
        assert path in failing(host, *(more + [path]))
        assert os.lstat(path) == before and os.listdir(str(tmp_path)) == names
    other.close()


def test_a_socket_path_over_107_bytes_is_an_error(host, tmp_path):
    path = str(tmp_path / ('s' * 107))
    assert '107 bytes' in failing(host, path)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('umask', ['0', '022', '077', '777'])
def test_m_is_the_mode_whatever_the_umask(host, new_daemon, umask):
    wrap = ['sh', '-c', 'umask %s; exec "$@"' % umask, 'sh']
    for argv, mode in (['-m', '660'], 0o660), (['-m', '0777'], 0o777), (['-m', '0'], 0), (
            [], 0o777 & ~int(umask, 8)):
        daemon = new_daemon(host, '-v', *argv, start=False)
        daemon.argv = wrap + daemon.argv
        daemon.start()
        assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == mode
        daemon.stop()


def test_a_mode_that_is_none_is_wrong_usage(host, tmp_path):
    for mode in '8', '1000', '-1', '', 'rw', '0o7', '7 7':
        done = host.run(PYTHON, DAEMON, '-m', mode, str(tmp_path / 'sock'), check=False)
        assert done.returncode == 1 and done.stdout == ''
        fault, usage = done.stderr.splitlines()
        assert fault.startswith('vdelxcd: -m') and usage.startswith('Usage: vdelxcd')
    assert os.listdir(str(tmp_path)) == []


def test_a_socket_that_was_replaced_is_not_removed(host, new_daemon):
    daemon = new_daemon(host)
    os.unlink(daemon.socket)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(daemon.socket)
        other.listen(1)
        assert daemon.stop() == 0
        assert listens(daemon.socket)


@pytest.mark.parametrize('mode', ['r', 'closed'])
def test_a_standard_error_that_takes_nothing_hurts_nobody(host, new_daemon, new_container, mode):
    daemon, c = new_daemon(host, start=False), new_container('c')
    redirect = '2< /dev/null' if mode == 'r' else '2>&-'
    daemon.process = host.popen('sh', '-c', 'exec "$@" ' + redirect, 'sh', *daemon.argv)
    wait_until(daemon.accepts)
    assert c.client('-s', daemon.socket, 'nonsense://x', check=False).returncode == 1
    c.client('-s', daemon.socket, 'null://')


# ---- the pidfile --------------------------------------------------------------------------------

@pytest.mark.parametrize('content', ['', '1\n', '999999999\n', '\0' * 50])
def test_a_stale_pidfile_is_replaced(detached, content):
    with open(detached.pidfile, 'w') as file:
        file.write(content)
    before = os.stat(detached.pidfile).st_ino
    with open(detached.pidfile):                # keeps its inode from being used again
        detached.start('-p', detached.pidfile, detached.socket)
        assert os.stat(detached.pidfile).st_ino != before       # a new file, renamed
    assert comm(detached.pid()) == 'vdelxcd'
    assert sorted(os.listdir(detached.directory)) == ['pid', 'vdelxcs']     # nothing temporary


@pytest.mark.parametrize('content', ['nonsense', '-5', 'allow vxvde://\n', '17 allow null://\n'])
def test_a_file_that_is_no_pidfile_is_not_replaced(host, tmp_path, content):
    path = tmp_path / 'rules'
    path.write_text(content)
    assert 'rules: exists and is no pidfile; left alone' in failing(
        host, '-p', path, tmp_path / 'sock')
    assert path.read_text() == content
    assert os.listdir(str(tmp_path)) == ['rules']


@pytest.mark.parametrize('more', [[], ['-d']])
def test_the_pidfile_of_a_living_daemon_is_respected(detached, more):
    detached.start('-p', detached.pidfile, detached.socket)
    pid = detached.pid()
    other = os.path.join(detached.directory, 'other')
    text = failing(detached.host, *(more + ['-p', detached.pidfile, other]))
    assert 'already running: process %d' % pid in text
    assert sorted(os.listdir(detached.directory)) == ['pid', 'vdelxcs']
    assert detached.pid() == pid and detached.answers()


@pytest.mark.parametrize('kind', ['directory', 'link', 'FIFO', 'socket'])
def test_a_pidfile_that_is_no_regular_file_is_refused(host, tmp_path, kind):
    path = str(tmp_path / 'pid')
    (tmp_path / 'target').write_text('precious')
    if kind == 'directory':
        os.mkdir(path)
    elif kind == 'FIFO':
        os.mkfifo(path)
    elif kind == 'link':
        os.symlink('target', path)
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.bind(path)
    before = os.lstat(path)
    for more in [], ['-d']:
        assert path in failing(host, *(more + ['-p', path, str(tmp_path / 'sock')]))
    assert os.lstat(path) == before
    assert (tmp_path / 'target').read_text() == 'precious'
    assert sorted(os.listdir(str(tmp_path))) == ['pid', 'target']


@pytest.mark.parametrize('more', [[], ['-d']])
@pytest.mark.parametrize('script, number', [
    ('mount -t tmpfs -o size=4k none "$0"; cat /dev/zero > "$0/fill" 2>&- || :', errno.ENOSPC),
    ('mount -t tmpfs -o ro none "$0"', errno.EROFS),
])
def test_a_pidfile_that_cannot_be_written_ends_the_start(host, tmp_path, script, number, more):
    (tmp_path / 'full').mkdir()
    wrap = ['unshare', '--mount', 'sh', '-c', script + '\n"$@"; x=$?; ls "$0"; exit $x',
            str(tmp_path / 'full')]
    done = host.run(*(wrap + [PYTHON, DAEMON] + more + [
        '-p', str(tmp_path / 'full' / 'pid'), str(tmp_path / 'sock')]), check=False)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('vdelxcd: pidfile ') and os.strerror(number) in done.stderr
    assert done.stdout in ('', 'fill\n')        # no half of a pidfile
    assert os.listdir(str(tmp_path)) == ['full']


def test_what_a_killed_daemon_of_the_same_number_left_of_a_pidfile_is_no_trouble(
        host, new_daemon):
    daemon = new_daemon(host, start=False)
    pidfile = daemon.directory + '/pid'
    daemon.argv[2:2] = ['-p', pidfile]
    daemon.argv = ['sh', '-c', 'ln -s precious "$0.$$"; exec "$@"', pidfile] + daemon.argv
    daemon.start()
    wait_until(lambda: os.path.exists(pidfile))         # the socket listens before it is there
    with open(pidfile) as file:
        assert int(file.read()) == daemon.process.pid
    assert sorted(os.listdir(daemon.directory)) == ['log', 'pid', 'vdelxcs']


def test_a_pidfile_that_was_replaced_is_not_removed(detached):
    detached.start('-p', detached.pidfile, detached.socket)
    pid = detached.pid()
    os.rename(detached.pidfile, detached.pidfile + '.old')
    with open(detached.pidfile, 'w') as file:
        file.write("somebody else's")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(detached.socket))
    wait_until(lambda: not detached.pids())
    with open(detached.pidfile) as file:
        assert file.read() == "somebody else's"


def test_an_error_and_what_others_write_to_the_same_file_are_both_there(host, new_daemon, tmp_path):
    """As in a script whose whole output goes to one file, opened without O_APPEND."""
    daemon, file = new_daemon(host, start=False), tmp_path / 'output'
    daemon.argv[-1] = '/nonexistent/socket'
    host.run('sh', '-c', '{ echo before; "$@"; echo after; } > %s 2>&1' % file, 'sh', *daemon.argv)
    lines = file.read_text().splitlines()
    assert lines == ['before', lines[1], 'after'] and lines[1].startswith('vdelxcd: socket /nonex')


# ---- signals ------------------------------------------------------------------------------------

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_daemon_removes_its_files_and_leaves_the_interfaces(
        pair, new_container, tmp_path, number):
    daemon, a, b = pair
    daemon.stop()
    daemon.argv[2:2] = ['-p', str(tmp_path / 'pid')]
    daemon.start()
    connected(daemon, a, b)
    assert (tmp_path / 'pid').read_text() == '%d\n' % daemon.process.pid
    assert daemon.stop(number) == 0
    assert not os.path.exists(daemon.socket) and not (tmp_path / 'pid').exists()
    a.ping('10.0.0.2')
    daemon.start()
    newcomer = new_container()
    newcomer.client('-s', daemon.socket, 'vxvde://')
    newcomer.up('vde0', '10.0.0.3/24')
    newcomer.ping('10.0.0.1')
    a.ping('10.0.0.2')


def test_interfaces_outlive_a_killed_daemon_and_a_new_one_serves_newcomers(pair, new_container):
    daemon, a, b = pair
    connected(daemon, a, b)
    daemon.stop(signal.SIGKILL)
    assert os.path.exists(daemon.socket)
    a.ping('10.0.0.2')
    daemon.start()
    newcomer = new_container()
    newcomer.client('-s', daemon.socket, 'vxvde://')
    newcomer.up('vde0', '10.0.0.3/24')
    newcomer.ping('10.0.0.2')
    a.ping('10.0.0.2')


def test_control_c_on_the_terminal_ends_the_daemon_alone(host, new_container, new_daemon):
    daemon = new_daemon(host, start=False)
    a, b = new_container('a'), new_container('b')
    with open(daemon.logfile, 'ab') as log:
        daemon.process = host.popen(*daemon.argv, stderr=log, start_new_session=True)
    wait_until(daemon.accepts)
    connected(daemon, a, b)
    os.killpg(daemon.process.pid, signal.SIGINT)        # what the terminal does
    assert daemon.process.wait(10) == 0
    a.ping('10.0.0.2')
    assert len(daemon.pids()) == 2
    assert 'Traceback' not in daemon.log()


def test_a_daemon_stopped_as_soon_as_it_listens_removes_its_files(host, new_daemon):
    for _ in range(5):
        daemon = new_daemon(host, start=False)
        daemon.argv[2:2] = ['-p', daemon.directory + '/pid']
        with open(daemon.logfile, 'ab') as log:
            daemon.process = host.popen(*daemon.argv, stderr=log)
        while not os.path.exists(daemon.socket):        # no pause: the first moment counts
            assert daemon.process.poll() is None
        assert daemon.stop() == 0
        assert os.listdir(daemon.directory) == ['log'] and daemon.log() == ''


def test_a_killed_session_takes_just_its_interface(pair):
    daemon, a, b = pair
    connected(daemon, a, b)
    a.client('-s', daemon.socket, '-i', 'other0', 'vxvde://')
    sessions = {comm(pid): pid for pid in daemon.pids()}
    os.kill(sessions['vdelxcd:other0'], signal.SIGTERM)
    wait_until(lambda: a.interfaces() == {'lo', 'vde0'})
    wait_until(lambda: len(daemon.pids()) == 3)
    assert 'close interface: vxvde:// (other0' in daemon.log()
    a.ping('10.0.0.2')
    assert 'Z' not in children(daemon.process.pid).values()


def test_sighup_to_everything_of_that_name_ends_no_session(pair):
    """As pkill -HUP vdelxcd sends it."""
    daemon, a, b = pair
    connected(daemon, a, b)
    sessions = set(daemon.pids()) - {daemon.process.pid}
    for pid in daemon.pids():
        os.kill(pid, signal.SIGHUP)
    wait_until(lambda: 'rules read again' in daemon.log())
    a.ping('10.0.0.2')
    assert set(daemon.pids()) == sessions | {daemon.process.pid}


def test_sighup_reads_the_rules_again_all_or_nothing(host, new_container, new_daemon, tmp_path):
    rules = tmp_path / 'rules'
    rules.write_text('allow null://one\n')
    daemon, container = new_daemon(host, '-f', str(rules)), new_container()

    def allowed():
        found = []
        for name in 'one', 'two':
            done = container.client('-s', daemon.socket, '-i', 'x0', 'null://' + name, check=False)
            if done.returncode == 0:
                container.ip('link del x0')
                found.append(name)
        return found

    def hup(expected):
        count = daemon.log().count(expected)
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: daemon.log().count(expected) > count)

    assert allowed() == ['one']
    rules.write_text('allow null://two\n')
    assert allowed() == ['one']                 # not before it is told
    hup('rules read again')
    assert allowed() == ['two']
    rules.write_text('allow null://one\nnonsense\n')
    hup('the old ones stay: %s:2' % rules)
    assert allowed() == ['two']
    rules.unlink()
    hup('the old ones stay: %s' % rules)
    assert allowed() == ['two']
    rules.write_text('allow null://one\nallow null://two\n')
    hup('rules read again')
    assert allowed() == ['one', 'two']


def test_thirty_sessions_that_end_at_once_leave_no_zombies(host, new_container, new_daemon):
    daemon, container = new_daemon(host), new_container()
    done = container.run(PYTHON, BY_HAND, daemon.socket, 'many', 30)
    assert json.loads(done.stdout) == ['0\0'] * 30
    pid = daemon.process.pid
    wait_until(lambda: len(children(pid)) == 30)
    before = [fd for fd in fds(pid) if 'socket' in fd]
    container.run('ip', '-batch', '-', input=''.join('link del many%d\n' % n for n in range(30)))
    wait_until(lambda: children(pid) == {})
    assert [fd for fd in fds(pid) if 'socket' in fd] == before[:1]
    assert listens(daemon.socket)


def test_zombies_go_even_when_the_daemon_was_stopped_meanwhile(host, new_container, new_daemon):
    daemon, container = new_daemon(host), new_container()
    done = container.run(PYTHON, BY_HAND, daemon.socket, 'many', 10)
    assert json.loads(done.stdout) == ['0\0'] * 10
    pid = daemon.process.pid
    wait_until(lambda: len(children(pid)) == 10)
    os.kill(pid, signal.SIGSTOP)
    for session in children(pid):
        os.kill(session, signal.SIGKILL)
    wait_until(lambda: set(children(pid).values()) == {'Z'})
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: children(pid) == {})


# ---- processes ----------------------------------------------------------------------------------

def test_processes_are_named(host, new_container, new_daemon):
    daemon, container = new_daemon(host), new_container()
    for name in 'vde0', 'abcdefghijklmn1':
        container.client('-s', daemon.socket, '-i', name, 'null://')
    assert sorted(comm(pid) for pid in daemon.pids()) == [
        'vdelxcd', 'vdelxcd:abcdefg', 'vdelxcd:vde0']


def test_a_session_has_its_tap_its_network_and_nothing_of_the_server(
        host, new_container, new_daemon):
    daemon, container = new_daemon(host), new_container()
    for name in 'vde0', 'vde1', 'vde2':
        container.client('-s', daemon.socket, '-i', name, 'vxvde://')
    server = set(fds(daemon.process.pid))
    private = {fd for fd in server if fd.startswith(('socket:', 'pipe:'))}
    assert private
    sockets = []
    for pid in set(daemon.pids()) - {daemon.process.pid}:
        found = fds(pid)
        assert not private & set(found)         # no listener, no connection, no signal pipe
        assert found.count('/dev/net/tun') == 1
        own = [fd for fd in found if fd.startswith('socket:')]
        assert len(own) == 3                    # vxvde:// has two, and one is to be asked on
        sockets += own
        rest = set(found) - set(own) - {'/dev/net/tun'}
        assert rest == {'/dev/null', daemon.logfile}
        assert os.readlink('/proc/%d/fd/0' % pid) == os.readlink('/proc/%d/fd/1' % pid)
    assert len(set(sockets)) == 9               # none is shared


# ---- the log ------------------------------------------------------------------------------------

def nobody_is_hurt(daemon, container):
    """Interfaces, refusals and newcomers, many times: more lines than any buffer takes."""
    for index in range(2):
        container.client('-s', daemon.socket, '-i', 'log%d' % index, 'null://')
    done = container.run(PYTHON, BY_HAND, daemon.socket, 'vnls', timeout=60,
                         input=json.dumps(['nonsense://%s\0' % ('x' * 900)] * 20))
    assert json.loads(done.stdout) == ['%d\0' % errno.EPROTONOSUPPORT] * 20
    container.client('-s', daemon.socket, '-i', 'log2', 'null://')
    assert container.interfaces() == {'lo', 'log0', 'log1', 'log2'}
    container.ip('link del log0')
    wait_until(lambda: len(daemon.pids()) == 3)


@pytest.mark.parametrize('kind', ['closed', '/dev/full', 'full pipe', 'pipe without reader',
                                  'socket'])
def test_a_stderr_that_takes_nothing_hurts_nobody(host, new_container, new_daemon, kind):
    daemon = new_daemon(host, start=False)
    reader, writer = os.pipe()
    near, far = socket.socketpair()
    stderr, wrap = writer, []
    if kind == 'closed':
        wrap = ['sh', '-c', 'exec "$@" 2>&-', 'sh']
    elif kind == '/dev/full':
        wrap = ['sh', '-c', 'exec "$@" 2>/dev/full', 'sh']
    elif kind == 'pipe without reader':
        os.close(reader)
    elif kind == 'socket':
        stderr = far.fileno()
    if kind in ('full pipe', 'socket'):
        os.set_blocking(stderr, False)
        try:
            while True:
                os.write(stderr, b'x' * 4096)
        except BlockingIOError:
            os.set_blocking(stderr, True)
    daemon.process = host.popen(*(wrap + daemon.argv), stderr=stderr)
    os.close(writer)
    far.close()
    wait_until(daemon.accepts)
    nobody_is_hurt(daemon, new_container())
    assert daemon.stop() == 0
    if kind != 'pipe without reader':
        os.close(reader)
    near.close()


def test_log_lines_never_go_into_an_interface(host, new_container, new_daemon):
    """With closed streams the TAP must not become descriptor 2."""
    daemon = new_daemon(host, start=False)
    daemon.argv = ['sh', '-c', 'exec "$@" <&- >&- 2>&-', 'sh'] + daemon.argv
    daemon.start()
    container = new_container()
    container.client('-s', daemon.socket, 'null://')
    session = max(set(daemon.pids()) - {daemon.process.pid})
    for pid in daemon.process.pid, session:
        for fd in 0, 1, 2:
            assert os.readlink('/proc/%d/fd/%d' % (pid, fd)) == '/dev/null'


class Syslog:
    """A /dev/log for daemons that run in mounts of their own."""

    def __init__(self, directory):
        self.path = os.path.join(str(directory), 'log')
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        os.chmod(self.path, 0o666)          # relays are nobody
        os.chmod(str(directory), 0o755)
        self.wrap = in_mounts(
            'cd %s; touch null; mount --bind /dev/null null; mount -t tmpfs none /dev\n'
            'touch /dev/null; mount --bind null /dev/null; mkdir /dev/d; mount --bind . /dev/d\n'
            'ln -s /dev/d/log /dev/log' % directory)
        self.lines = []

    def read(self):
        """All lines so far."""
        while select.select([self.socket], [], [], 0)[0]:
            self.lines.append(self.socket.recv(8192).decode())
        return self.lines

    def close(self):
        self.socket.close()


@pytest.fixture
def syslog(closing, tmp_path_factory):
    return closing(Syslog(tmp_path_factory.mktemp('syslog')))


def test_a_detached_daemon_logs_to_syslog(detached, new_container, syslog):
    detached.start('-v', '-p', detached.pidfile, detached.socket, 'null://only', wrap=syslog.wrap)
    container = new_container()
    container.client('-s', detached.socket)
    container.client('-s', detached.socket, 'null://\x1b[31m\nother', check=False)
    container.client('-s', detached.socket, 'null://other', check=False)
    container.ip('link del vde0')
    wait_until(lambda: any('close interface' in line for line in syslog.read()))
    for line in syslog.lines:           # the number is facility (daemon, 3) * 8 + level
        assert re.match(r'<(2[4-9]|3[01])>vdelxcd\[\d+\]: [ -~]+$', line), line
    texts = [line.partition(': ')[2] for line in syslog.lines]
    for begin in ('open interface: null://only (vde0', 'close interface: null://only (vde0',
                  'open interface permission denied: null://other ('):
        assert any(text.startswith(begin) for text in texts), texts


def test_without_v_a_detached_daemon_is_silent_but_for_refusals(detached, new_container, syslog):
    detached.start('-p', detached.pidfile, detached.socket, 'null://only', wrap=syslog.wrap)
    container = new_container()
    container.client('-s', detached.socket)
    container.ip('link del vde0')
    wait_until(lambda: len(detached.pids()) == 1)
    container.client('-s', detached.socket, 'null://other', check=False)
    wait_until(syslog.read)
    assert len(syslog.lines) == 1 and 'permission denied: null://other (' in syslog.lines[0]


@pytest.mark.parametrize('kind', ['missing', 'dead', 'stalled'])
def test_a_syslog_that_takes_nothing_hurts_nobody(detached, new_container, syslog, kind):
    if kind != 'stalled':
        syslog.close()
    if kind == 'missing':
        os.unlink(syslog.path)
    detached.start('-v', '-p', detached.pidfile, detached.socket, wrap=syslog.wrap)
    nobody_is_hurt(detached, new_container())
    detached.stop()


def test_a_syslog_that_comes_back_is_used_again(detached, new_container, syslog):
    syslog.close()
    os.unlink(syslog.path)
    detached.start('-p', detached.pidfile, detached.socket, wrap=syslog.wrap)
    container = new_container()
    container.client('-s', detached.socket, 'nonsense://one', check=False)
    syslog.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.socket.bind(syslog.path)
    container.client('-s', detached.socket, 'nonsense://two', check=False)
    wait_until(syslog.read)
    assert 'nonsense://two' in syslog.lines[0]


# ---- several at once ----------------------------------------------------------------------------

def test_of_daemons_started_at_once_on_a_stale_socket_one_serves(host, tmp_path, closing):
    """The others end with one line; the socket answers afterwards."""
    daemons = [closing(Daemon(host, tmp_path, start=False)) for _ in range(4)]
    for _ in range(4):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind(daemons[0].socket)
        for daemon in daemons:
            daemon.process = host.popen(*daemon.argv, stderr=subprocess.PIPE)
        wait_until(lambda: sum(daemon.process.poll() is not None for daemon in daemons) == 3)
        alive = [daemon for daemon in daemons if daemon.process.poll() is None]
        assert len(alive) == 1 and listens(alive[0].socket)
        for daemon in daemons:
            if daemon is not alive[0]:
                text = daemon.process.communicate()[1].decode()
                assert daemon.process.returncode == 1
                assert text.count('\n') == 1 and 'already running' in text
        assert alive[0].stop() == 0
        alive[0].process.stderr.close()
        assert not os.path.exists(daemons[0].socket)


def test_a_daemon_waits_while_another_one_starts_in_its_directory(host, new_daemon):
    daemon = new_daemon(host, start=False)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(daemon.socket)
    fd = os.open(daemon.directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)              # as the other one does
    before = os.stat(daemon.socket)
    daemon.process = host.popen(*daemon.argv, stderr=subprocess.DEVNULL)
    wait_until(lambda: daemon.directory in fds(daemon.process.pid))
    assert os.stat(daemon.socket) == before     # the stale socket is not touched yet
    os.close(fd)
    wait_until(lambda: daemon.accepts())
    assert daemon.directory not in fds(daemon.process.pid)


def test_a_lock_that_a_container_holds_delays_the_start_and_no_more(host, new_daemon):
    daemon = new_daemon(host, start=False)
    fd = os.open(daemon.directory, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    daemon.start()
    os.close(fd)
    assert listens(daemon.socket)
