"""The client: names, the search for the socket, every failure in one line, nothing left behind."""

import errno
import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
import time

import pytest

from answers import Listener
from conftest import (CLIENT, PYTHON, Container, processes, require, require_namespaces,
                      wait_until)

QUIET = {name: value for name, value in os.environ.items() if not name.startswith('PYTHON')}


@pytest.fixture
def container(new_container):
    return new_container()


@pytest.fixture(scope='module')
def bystander():
    """A container for clients that fail: it stays as it is, so one is enough."""
    require_namespaces()
    container = Container('bystander')
    yield container
    container.close()


@pytest.fixture
def daemon(host, new_daemon):
    return new_daemon(host)


def failing(container, *argv, python=(PYTHON,), **more):
    """Run the client, which must fail: exit 1, one line, no interface and no process left."""
    before = container.interfaces()
    done = container.run(*(list(python) + [CLIENT] + list(argv)), check=False,
                         env=dict(QUIET, **more.pop('env', {})), **more)
    assert (done.returncode, done.stdout) == (1, ''), done
    assert done.stderr.count('\n') == 1 and done.stderr.endswith('\n'), done.stderr
    assert 'Traceback' not in done.stderr and done.stderr[:-1].isprintable()
    assert container.interfaces() == before
    return done.stderr[:-1]


def system_text(number):
    return ': %s: ' % os.strerror(number)


def cables(container, names):
    """Interfaces that are no TAPs; each two of them are the ends of one cable."""
    pairs = zip(names[::2], names[1::2])
    container.run('ip', '-batch', '-', input=''.join(
        'link add %s type veth peer name %s\n' % pair for pair in pairs))


# ---- names --------------------------------------------------------------------------------------

def test_success_is_silent_and_v_prints_the_name(container, daemon):
    done = container.client('-s', daemon.socket, 'null://')
    assert (done.stdout, done.stderr) == ('', '')
    done = container.client('--socket=' + daemon.socket, '--verbose', 'null://')
    assert done.stdout == 'vde1\n' and done.stderr.count('\nvdelxcc: vde1: ') == 3
    assert container.interfaces() == {'lo', 'vde0', 'vde1'}


def test_a_prefix_gets_the_first_number_that_nothing_holds(container, daemon):
    cables(container, ['vde0', 'vde1', 'vde2', 'x'])                # answer EINVAL
    container.client('-s', daemon.socket, '-i', 'vde3', 'null://')  # answers EBUSY
    done = container.client('-s', daemon.socket, '-v', 'null://')
    assert done.stdout == 'vde4\n'
    done = container.client('-s', daemon.socket, '-v', '-i', 'eth', 'null://')
    assert done.stdout == 'eth0\n'


def test_a_name_that_ends_in_a_digit_is_taken_as_it_is(container, daemon):
    done = container.client('-s', daemon.socket, '-v', '-i', 'lan7', 'null://')
    assert done.stdout == 'lan7\n' and 'lan7' in container.interfaces()
    text = failing(container, '-s', daemon.socket, '-i', 'lan7', 'null://')
    assert text.startswith('interface definition' + system_text(errno.EBUSY) + 'lan7: ')
    assert '-i' in text
    cables(container, ['dum5', 'x'])
    text = failing(container, '-s', daemon.socket, '-i', 'dum5', 'null://')
    assert text.startswith('interface definition' + system_text(errno.EINVAL) + 'dum5: ')
    assert 'no TAP' in text


def test_when_every_number_is_taken_the_range_is_told(container, daemon):
    prefix = 'abcdefghijklmn'                   # 14 characters: room for one digit
    cables(container, [prefix + str(number) for number in range(10)])
    text = failing(container, '-s', daemon.socket, '-i', prefix, 'null://')
    assert text.startswith('interface definition: ')
    assert text.endswith('%s0 to %s9: all taken' % (prefix, prefix))
    container.ip('link del %s6' % prefix)           # and with it its other end, 7
    assert container.client('-s', daemon.socket, '-v', '-i', prefix,
                            'null://').stdout == prefix + '6\n'


def test_all_256_numbers_are_tried(container, daemon):
    cables(container, ['vde%d' % number for number in range(255)] + ['x'])
    assert container.client('-s', daemon.socket, '-v', 'null://').stdout == 'vde255\n'
    text = failing(container, '-s', daemon.socket, 'null://')
    assert text.endswith('vde0 to vde255: all taken')


@pytest.mark.parametrize('name', ['abcdefghijklmno', 'abcdefghijklmn12', 'x' * 300 + '1',
                                  'ääääääää1'])
def test_a_name_over_15_bytes_is_an_error_and_never_cut(bystander, name):
    text = failing(bystander, '-s', '/nowhere/x', '-i', name, 'null://', env={'LC_ALL': 'C.UTF-8'})
    assert text.startswith('interface definition' + system_text(errno.ENAMETOOLONG))
    assert '15' in text


def test_a_name_of_15_characters_is_taken(container, daemon):
    done = container.client('-s', daemon.socket, '-v', '-i', 'abcdefghijklmn7', 'null://')
    assert done.stdout == 'abcdefghijklmn7\n'
    assert 'abcdefghijklmn7' in container.interfaces()


@pytest.mark.parametrize('name', [b'', b'.', b'..', b'a/b0', b'a b0', b'a%d', b'a:0', b'a\n0',
                                  b'\xff\xfe0', b'\x1b[31m0', b'0 '])
def test_what_can_be_no_name_is_one_line(bystander, name):
    text = failing(bystander, '-s', '/nowhere/x', '-i', os.fsdecode(name), 'null://')
    assert text.startswith('interface definition' + system_text(errno.EINVAL))


# ---- the socket ---------------------------------------------------------------------------------

def test_s_with_a_slash_is_a_path_and_without_one_a_name_to_look_up(container, daemon):
    container.client('-s', './vdelxcs', 'null://', cwd=daemon.directory)
    text = failing(container, '-s', 'vdelxcs', 'null://', cwd=daemon.directory,
                   env={'VDELXC_PATH': '/nowhere'})
    assert '/nowhere/vdelxcs' in text
    container.client('-s', 'vdelxcs', 'null://', env=dict(QUIET, VDELXC_PATH=daemon.directory))
    container.client('null://', env=dict(QUIET, VDELXC_PATH='/nowhere:' + daemon.directory))
    assert container.interfaces() == {'lo', 'vde0', 'vde1', 'vde2'}


def test_the_search_goes_past_dead_sockets_to_a_live_one(container, daemon, tmp_path):
    for name in 'stale', 'file', 'nothing':
        (tmp_path / name).mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / 'stale' / 'vdelxcs'))
    (tmp_path / 'file' / 'vdelxcs').write_text('')
    dead_ones = ':'.join(str(tmp_path / name) for name in ('stale', 'file', 'nothing'))
    done = container.client('null://', env=dict(
        QUIET, VDELXC_PATH='%s::%s' % (dead_ones, daemon.directory)))
    assert (done.stdout, done.stderr) == ('', '')
    text = failing(container, 'null://', env={'VDELXC_PATH': dead_ones})
    assert text.startswith('connect' + system_text(errno.ECONNREFUSED))
    assert str(tmp_path / 'stale') in text and 'start vdelxcd' in text


def test_without_a_socket_the_places_that_were_tried_are_told(bystander):
    text = failing(bystander, '-s', 'no-such-daemon', 'null://')
    assert text.startswith('connect' + system_text(errno.ENOENT))
    assert '/vde/no-such-daemon, /var/vde/no-such-daemon' in text and 'start vdelxcd' in text
    text = failing(bystander, 'null://', env={'VDELXC_PATH': '/one:/two'})
    assert '/one/vdelxcs, /two/vdelxcs' in text
    text = failing(bystander, '-s', '/dev/null/x', 'null://')
    assert text.startswith('connect' + system_text(errno.ENOENT)) and '/dev/null/x' in text


def test_a_socket_path_has_107_bytes_at_most(container, host, new_daemon, tmp_path):
    directory = str(tmp_path)
    directory = os.path.join(directory, 'd' * (107 - len(directory) - len('//vdelxcs')))
    os.mkdir(directory)
    daemon = new_daemon(host, start=False)
    daemon.directory, daemon.socket = directory, os.path.join(directory, 'vdelxcs')
    assert len(daemon.socket) == 107
    daemon.argv[-1] = daemon.socket
    daemon.start()
    container.client('-s', daemon.socket, 'null://')
    text = failing(container, '-s', daemon.socket + 'x', 'null://')
    assert text.startswith('connect' + system_text(errno.ENAMETOOLONG)) and '107' in text


def test_the_search_goes_past_a_path_that_is_too_long(container, daemon):
    long = '/' + 'd' * 100
    container.client('null://', env=dict(QUIET, VDELXC_PATH='%s:%s' % (long, daemon.directory)))
    text = failing(container, 'null://', env={'VDELXC_PATH': long + ':/nowhere'})
    assert text.startswith('connect' + system_text(errno.ENAMETOOLONG) + long)


def test_a_socket_that_may_not_be_opened_says_so(container, host, new_daemon):
    require('setpriv')
    daemon = new_daemon(host, '-m', '600')
    os.chown(daemon.socket, 65534, 65534)
    capabilities = '-dac_override,-dac_read_search'
    text = failing(container, '-s', daemon.socket, 'null://', python=(
        'setpriv', '--bounding-set=' + capabilities, '--inh-caps=' + capabilities, PYTHON))
    assert text.startswith('connect' + system_text(errno.EACCES)) and '-m' in text


# ---- advice -------------------------------------------------------------------------------------

def test_without_the_tun_device_the_mount_line_is_told(container, daemon):
    hidden = ('unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none /dev/net && exec "$@"', 'sh',
              PYTHON)
    text = failing(container, '-s', daemon.socket, 'null://', python=hidden)
    assert text.startswith('interface definition' + system_text(errno.ENOENT) + '/dev/net/tun: ')
    assert 'lxc.mount.entry = /dev/net/tun' in text and 'podman: --device /dev/net/tun' in text


def test_without_the_capability_it_is_named(container, daemon):
    require('setpriv')
    dropped = ('setpriv', '--bounding-set=-net_admin', '--inh-caps=-net_admin', PYTHON)
    text = failing(container, '-s', daemon.socket, 'null://', python=dropped)
    assert text.startswith('interface definition' + system_text(errno.EPERM) + 'vde0: ')
    assert 'CAP_NET_ADMIN' in text and 'podman: --cap-add NET_ADMIN' in text


def test_a_refusal_names_the_rules(container, host, new_daemon):
    daemon = new_daemon(host, vnl='null://only')
    text = failing(container, '-s', daemon.socket, 'null://other')
    assert text.startswith('vdelxcd' + system_text(errno.EACCES)) and 'rules' in text
    text = failing(container, '-s', daemon.socket, 'nonsense://')
    assert text.startswith('vdelxcd' + system_text(errno.EPROTONOSUPPORT)) and 'scheme' in text
    text = failing(container, '-s', daemon.socket, 'vxvde:///colour=red')
    assert text.startswith('vdelxcd' + system_text(errno.EINVAL)) and 'vnl(7)' in text


# ---- answers ------------------------------------------------------------------------------------

@pytest.fixture
def fake(closing, tmp_path):
    """fake(behave) is the path of a socket where one client is answered by behave(conn)."""
    def start(behave, keep=False):
        start.daemon = closing(Listener(str(tmp_path / 'fake'), [behave], keep))
        return start.daemon.path
    return start


def until_closed(conn):
    """Say nothing until the client has gone."""
    while conn.recv(4096):
        pass


def saying(*pieces):
    """A behaviour: send pieces, each when the one before was read, then close."""
    def behave(conn):
        for piece in pieces:
            conn.sendall(piece)
            wait_until(lambda: not struct.unpack('i', fcntl.ioctl(conn, termios.TIOCOUTQ,
                                                                  bytes(4)))[0])
    return behave


@pytest.mark.parametrize('pieces', [[b'0\0'], [b'0', b'\0'], [b'0'], [b'0\0mtu=1450\0']])
def test_a_complete_zero_is_success(container, fake, pieces):
    path = fake(saying(*pieces), keep=True)
    done = container.client('-s', path, 'vxvde://x')
    assert (done.stdout, done.stderr) == ('', '')
    assert fake.daemon.requests == [b'vxvde://x\0'] and len(fake.daemon.fds) == 1
    assert 'vde0' in container.interfaces()             # the fake daemon holds it
    name, flags = struct.unpack('16sH22x', fcntl.ioctl(fake.daemon.fds[0], 0x800454d2, bytes(40)))
    assert name.rstrip(b'\0') == b'vde0' and flags & 0x1002 == 0x1002       # TAP, no packet info


@pytest.mark.parametrize('pieces, number', [
    ([b'13\0'], errno.EACCES), ([b'13'], errno.EACCES), ([b'1', b'3\0'], errno.EACCES),
    ([b'2\0'], errno.ENOENT), ([b'22\0reason=x\0'], errno.EINVAL), ([b'93\0'], 93),
    ([b'16\0'], errno.EBUSY), ([b'71\0'], errno.EPROTO),
])
def test_a_number_is_told_in_the_words_of_the_system(bystander, fake, pieces, number):
    text = failing(bystander, '-s', fake(saying(*pieces)), 'null://')
    assert text.startswith('vdelxcd: ' + os.strerror(number))


def test_13_says_that_the_rules_refused(bystander, fake):
    assert 'refused by' in failing(bystander, '-s', fake(saying(b'13\0')), 'null://')


def test_an_unknown_number_is_told_too(bystander, fake):
    text = failing(bystander, '-s', fake(saying(b'9999\0')), 'null://')
    assert text.startswith('vdelxcd: ') and '9999' in text


@pytest.mark.parametrize('pieces', [
    [], [b'\0'], [b'', b'\0' * 100], [b'-1\0'], [b'+0\0'], [b' 0\0'], [b'0\n'], [b'0x0\0'],
    [b'no\0'], [b'\xff\xfe\x1b[2J\n\0'], [b'99999999999999999999\0'], [b'0' * 5000],
    [b'9' * 100000], [b'\xc2\xb2\0'],
])
def test_what_is_no_number_is_no_success(bystander, fake, pieces):
    text = failing(bystander, '-s', fake(saying(*pieces)), 'null://')
    assert text.startswith('vdelxcd: ')
    assert len(text) < 300


def test_the_answer_of_a_daemon_that_did_not_read_is_heard(vdelxcc):
    for answer, number in (b'11\0', errno.EAGAIN), (b'0\0', errno.ECONNRESET):
        ours, theirs = socket.socketpair()
        theirs.send(answer)
        theirs.close()
        with ours, open(os.devnull) as null:
            with pytest.raises(vdelxcc.Failure) as raised:
                vdelxcc.hand_over(ours, null.fileno(), 'null://', {}, 5)
        assert str(raised.value).startswith('vdelxcd: ' + os.strerror(number))


# ---- time ---------------------------------------------------------------------------------------

def timed(container, *argv):
    """The client's one line of failure, and the seconds it took."""
    started = time.monotonic()
    text = failing(container, *argv)
    return text, time.monotonic() - started


def test_a_daemon_that_stays_silent_is_given_up(bystander, fake):
    text, seconds = timed(bystander, '-t', '0.7', '-s', fake(until_closed), 'null://')
    assert text.startswith('vdelxcd' + system_text(errno.ETIMEDOUT)) and '0.7 s' in text
    assert 0.7 <= seconds < 4


def test_half_an_answer_is_no_answer(bystander, fake):
    def behave(conn):
        conn.sendall(b'0')
        until_closed(conn)
    text, seconds = timed(bystander, '--timeout=0.5', '-s', fake(behave), 'null://')
    assert text.startswith('vdelxcd' + system_text(errno.ETIMEDOUT))
    assert seconds < 4


def test_a_daemon_that_drips_is_given_up(bystander, fake):
    def behave(conn):
        while True:
            conn.sendall(b'1')
            time.sleep(0.05)                    # the dripping itself
    text, seconds = timed(bystander, '-t', '0.5', '-s', fake(behave), 'null://')
    assert text.startswith('vdelxcd' + system_text(errno.ETIMEDOUT))
    assert 0.5 <= seconds < 4


def test_a_daemon_that_does_not_accept_is_given_up(bystander, tmp_path):
    path = str(tmp_path / 'full')
    waiting = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(0)
        try:
            while len(waiting) < 10:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting[-1].setblocking(False)
                waiting[-1].connect(path)
        except BlockingIOError:
            pass
        text, seconds = timed(bystander, '-t', '0.5', '-s', path, 'null://')
        for conn in waiting:
            conn.close()
    assert text.startswith('connect' + system_text(errno.EAGAIN)) and 'does not accept' in text
    assert 0.5 <= seconds < 4


@pytest.mark.parametrize('value', ['0', '-1', 'nan', 'inf', 'x', '', '1e9'])
def test_a_senseless_timeout_is_wrong_usage(bystander, value):
    done = bystander.client('-t', value, 'null://', check=False)
    assert done.returncode == 1 and done.stderr.count('\n') == 2
    assert done.stderr.startswith('vdelxcc: ') and '\nUsage: ' in done.stderr


def test_an_interrupted_client_leaves_no_interface(container, fake):
    child = container.popen(PYTHON, CLIENT, '-s', fake(until_closed), 'null://',
                            stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_until(lambda: 'vde0' in container.interfaces())
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (1, b'', b'')
    assert 'vde0' not in container.interfaces()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_client_that_is_ended_after_the_hand_over_leaves_no_interface(container, daemon, tmp_path,
                                                                        number):
    if number == signal.SIGTERM and 'COVERAGE_RCFILE' in os.environ:
        pytest.skip('coverage.py has its own handler of SIGTERM')
    ours, theirs = os.pipe()                        # nobody reads what it says at the end
    os.set_blocking(theirs, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(theirs, bytes(512))
    os.set_blocking(theirs, True)
    with open(str(tmp_path / 'steps'), 'wb') as steps:
        child = container.popen(PYTHON, CLIENT, '-vu', '-s', daemon.socket, 'null://',
                                stdout=theirs, stderr=steps)
    wait_until(lambda: 'vde0: up' in (tmp_path / 'steps').read_text())
    child.send_signal(number)
    assert child.wait(10) == 1
    assert container.interfaces() == {'lo'}
    wait_until(lambda: daemon.pids() == [daemon.process.pid], what='the session ends')
    os.close(ours), os.close(theirs)


def test_a_client_that_ignores_the_end_of_its_terminal_goes_on_ignoring_it(container, fake):
    def behave(conn):
        os.kill(child.pid, signal.SIGHUP)
        conn.sendall(b'0\0')
    path = fake(behave, keep=True)
    child = container.popen('sh', '-c', "trap '' HUP; exec \"$@\"", 'sh', PYTHON, CLIENT, '-s',
                            path, 'null://')
    assert child.wait(10) == 0 and 'vde0' in container.interfaces()


# ---- the command line ---------------------------------------------------------------------------

def test_it_runs_from_standard_input(container, daemon):
    with open(CLIENT) as script:
        done = container.run(PYTHON, '-', '-v', '-s', daemon.socket, 'null://', stdin=script)
    assert done.stdout == 'vde0\n'
    assert 'vde0' in container.interfaces()


@pytest.mark.parametrize('argv', [['-x'], ['--nonsense'], ['-s'], ['-i'], ['--he=1'], ['a', 'b'],
                                  [b'--\xff\xfe'], [b'a', b'\xff\n\x1b[2J']])
def test_wrong_usage_is_the_fault_and_the_usage_line(bystander, argv):
    argv = [os.fsdecode(arg) for arg in argv]
    done = bystander.client(*argv, check=False, env=QUIET)
    assert (done.returncode, done.stdout) == (1, '')
    fault, usage, rest = done.stderr.split('\n')
    assert fault.startswith('vdelxcc: ') and usage.startswith('Usage: vdelxcc ') and rest == ''
    assert fault.isprintable()


@pytest.mark.parametrize('argv', [['-s', b'/tmp/\xff\xfe/x'], ['-s', b'\xff'], ['-s', 'a\nb/c'],
                                  ['-s', ''], ['-s', 'x' * 5000]])
def test_odd_bytes_in_a_path_are_one_printable_line(bystander, argv):
    text = failing(bystander, *[os.fsdecode(arg) for arg in argv])
    assert text.startswith('connect: ')


def test_odd_bytes_of_a_vnl_reach_the_daemon_as_they_are(container, fake):
    container.client('-s', fake(saying(b'0\0')), os.fsdecode(b'x://\xff\xc3\x28\n'))
    assert fake.daemon.requests == [b'x://\xff\xc3\x28\n\0']


def test_a_vnl_over_4095_bytes_is_refused_here(container, daemon):
    text = failing(container, '-s', daemon.socket, 'null://' + 'x' * 4089)
    assert text == 'vdelxcc: the VNL is longer than 4095 bytes'


@pytest.mark.parametrize('argv', [['-h'], ['--help'], ['--version'], ['-v', '-h']])
def test_help_and_version_go_to_stdout(bystander, argv):
    done = bystander.client(*argv)
    assert done.stderr == '' and 'vdelxcc' in done.stdout


@pytest.mark.parametrize('redirection', ['>&-', '>/dev/full', '>/dev/null 2>&-'])
@pytest.mark.parametrize('script, option', [(CLIENT, '-h'), (CLIENT, '--version'),
                                            (os.path.dirname(CLIENT) + '/vdelxcd.py', '-h')])
def test_output_that_fails_is_one_line_and_exit_1(redirection, script, option):
    done = subprocess.run(['sh', '-c', 'exec "$@" ' + redirection, 'sh', PYTHON, script, option],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=QUIET)
    if 'null' in redirection:
        assert (done.returncode, done.stdout, done.stderr) == (0, b'', b'')
    else:
        assert done.returncode == 1 and done.stderr.count(b'\n') == 1
        assert done.stderr.startswith(os.path.basename(script)[:-3].encode() + b': output: ')


def test_output_into_a_closed_pipe_is_one_line_and_exit_1():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([PYTHON, CLIENT, '-h'], stdout=writer, stderr=subprocess.PIPE, env=QUIET)
    os.close(writer)
    assert done.returncode == 1 and done.stderr.count(b'\n') == 1
    assert os.strerror(errno.EPIPE).encode() in done.stderr


@pytest.mark.parametrize('redirection', ['2>&-', '2>/dev/full', '<&- >&- 2>&-'])
def test_an_error_that_nobody_can_read_is_still_exit_1(redirection):
    done = subprocess.run(['sh', '-c', 'exec "$@" ' + redirection, 'sh', PYTHON, CLIENT,
                           '-s', '/nowhere/x', 'null://'],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=QUIET)
    assert (done.returncode, done.stdout, done.stderr) == (1, b'', b'')


def test_closed_streams_do_not_spoil_an_interface(container, daemon):
    container.run('sh', '-c', 'exec "$@" <&- >&- 2>&-', 'sh', PYTHON, CLIENT, '-s', daemon.socket,
                  'vxvde://')
    container.up('vde0', '10.0.0.1/24')
    assert 'LOWER_UP' in container.ip('link show vde0').stdout


def test_a_failed_client_leaves_no_process(container, daemon):
    failing(container, '-s', daemon.socket, '-i', 'gone0', 'nonsense://')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    assert processes('gone0') == []
