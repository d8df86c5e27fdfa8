"""The hand-over, both halves against literal bytes."""

import array
import errno
import fcntl
import os
import socket
import struct
import termios
import threading
import time

import pytest

from conftest import wait_until


@pytest.fixture
def ends():
    """The two ends of a stream."""
    one, other = socket.socketpair()
    for end in one, other:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack('ll', 5, 0))
    with one, other:
        yield one, other


@pytest.fixture
def some_file(tmp_path):
    """A descriptor to hand over."""
    fd = os.open(str(tmp_path / 'some file'), os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def descriptors():
    """The descriptors that this process has."""
    return sorted(os.listdir('/proc/self/fd'))


def give(sock, data, fds=()):
    """Send bytes and descriptors in one message."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
    sock.sendmsg([data], rights)


def answer(vdelxcc, ends, some_file, data, timeout=5.0):
    """Hand over when this answer waits; the words of the Failure, or None."""
    client, daemon = ends
    daemon.sendall(data)
    daemon.shutdown(socket.SHUT_WR)
    try:
        vdelxcc.hand_over(client, some_file, 'vxvde://', {}, timeout)
    except vdelxcc.Failure as failure:
        return str(failure)


# ---- the client ---------------------------------------------------------------------------------

@pytest.mark.parametrize('vnl', ['', 'vxvde://', 'vde:///vde/a b', '\udcff', 'x' * 4095])
def test_a_request_is_vnl_and_nul_and_one_descriptor_in_one_message(vdelxcc, ends, some_file, vnl):
    client, daemon = ends
    daemon.sendall(b'0\0')
    vdelxcc.hand_over(client, some_file, vnl, {}, 5.0)
    data, ancillary, flags, _ = daemon.recvmsg(5000, socket.CMSG_SPACE(16))
    assert data == os.fsencode(vnl) + b'\0'
    assert not flags & socket.MSG_CTRUNC
    (level, kind, content), = ancillary
    assert (level, kind, len(content)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, 4)
    fd = struct.unpack('i', content)[0]
    assert os.path.sameopenfile(fd, some_file)
    os.close(fd)


@pytest.mark.parametrize('data', [b'0\0', b'0', b'0\0mtu=1450\0', b'00\0'])
def test_the_number_0_is_success(vdelxcc, ends, some_file, data):
    assert answer(vdelxcc, ends, some_file, data) is None


@pytest.mark.parametrize('data, begin', [
    (b'13\0', 'vdelxcd: Permission denied: refused by'),
    (b'13', 'vdelxcd: Permission denied: '),
    (b'013\0', 'vdelxcd: Permission denied: '),
    (b'2\0', 'vdelxcd: No such file or directory: '),
    (b'93\0reason=x\0', 'vdelxcd: Protocol not supported: '),
    (b'22\0', 'vdelxcd: Invalid argument: '),
    (b'16\0', 'vdelxcd: Device or resource busy: '),
    (b'5\0', 'vdelxcd: Input/output error'),
    (b'999999999\0', 'vdelxcd: Unknown error 999999999'),
])
def test_another_number_is_a_refusal_in_words_of_the_system(vdelxcc, ends, some_file, data, begin):
    assert answer(vdelxcc, ends, some_file, data).startswith(begin)


@pytest.mark.parametrize('data', [
    b'', b'\0', b'OK\0', b'-1\0', b'+0\0', b' 0\0', b'0 \0', b'0\n', b'0x0\0', b'0.0\0', b'\xff\0',
    b'0,\0', b'0000000000\0', b'99999999999999999999\0', b'0' * 5000, b'\xd9\xa0\0', b'\x1b[2J\0',
])
def test_whatever_is_no_number_is_no_success(vdelxcc, ends, some_file, data):
    text = answer(vdelxcc, ends, some_file, data)
    assert text.startswith('vdelxcd: ')
    assert text.isprintable()


def test_an_answer_may_come_in_pieces(vdelxcc, ends, some_file):
    client, daemon = ends

    def answer_slowly():
        daemon.sendall(b'1')
        wait_until(lambda: fcntl.ioctl(daemon, termios.TIOCOUTQ, bytes(4)) == bytes(4))
        daemon.sendall(b'3\0')
    thread = threading.Thread(target=answer_slowly)
    thread.start()
    with pytest.raises(vdelxcc.Failure) as caught:
        vdelxcc.hand_over(client, some_file, 'vxvde://', {}, 5.0)
    thread.join()
    assert 'Permission denied' in str(caught.value)


def test_silence_is_a_failure_after_the_time_limit(vdelxcc, some_file, tmp_path):
    path = str(tmp_path / 'sock')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(5)
        begin = time.monotonic()
        with vdelxcc.connect(path, 0.3) as daemon, pytest.raises(vdelxcc.Failure) as caught:
            vdelxcc.hand_over(daemon, some_file, 'vxvde://', {}, 0.3)
    assert str(caught.value) == 'vdelxcd: Connection timed out: no answer within 0.3 s'
    assert 0.3 <= time.monotonic() - begin < 5


def test_a_busy_daemon_is_given_up_after_the_time_limit(vdelxcc, tmp_path):
    path = str(tmp_path / 'sock')
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        queue, begin = [], time.monotonic()
        with pytest.raises(vdelxcc.Failure) as caught:
            while True:                     # however long the queue is
                queue.append(vdelxcc.connect(path, 0.2))
        for waiting in queue:
            waiting.close()
    assert str(caught.value).startswith('connect: ') and path in str(caught.value)
    assert 0.2 <= time.monotonic() - begin < 5


# ---- the client: where the daemon is, what the interface is called ------------------------------

@pytest.mark.parametrize('path, name, expected', [
    (None, 'vdelxcs', ['/vde/vdelxcs', '/var/vde/vdelxcs']),
    ('', 'vdelxcs', ['/vde/vdelxcs', '/var/vde/vdelxcs']),
    ('/a', 'x', ['/a/x']), ('/a:/b/', 'x', ['/a/x', '/b/x']), ('/a::/b:', 'x', ['/a/x', '/b/x']),
    ('/a', '/b/x', ['/b/x']), ('/a', './x', ['./x']), ('/a', 'b/x', ['b/x']),
])
def test_a_socket_name_without_slash_is_looked_up(vdelxcc, monkeypatch, path, name, expected):
    monkeypatch.delenv('VDELXC_PATH', raising=False)
    if path is not None:
        monkeypatch.setenv('VDELXC_PATH', path)
    assert vdelxcc.socket_paths(name) == expected


def test_the_first_daemon_that_answers_is_the_one(vdelxcc, monkeypatch, tmp_path):
    paths = [str(tmp_path / name) for name in 'abc']
    for path in paths:
        os.mkdir(path)
    monkeypatch.setenv('VDELXC_PATH', ':'.join(paths))
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as listener:
        dead.bind(paths[1] + '/vdelxcs')
        with pytest.raises(vdelxcc.Failure) as caught:
            vdelxcc.connect('vdelxcs', 1.0)
        assert 'Connection refused' in str(caught.value) and paths[1] in str(caught.value)
        listener.bind(paths[2] + '/vdelxcs')
        listener.listen(1)
        with vdelxcc.connect('vdelxcs', 1.0) as daemon:
            assert daemon.getpeername() == paths[2] + '/vdelxcs'


def test_without_a_daemon_all_places_that_were_tried_are_told(vdelxcc, monkeypatch):
    monkeypatch.setenv('VDELXC_PATH', '/nosuch:/nowhere')
    with pytest.raises(vdelxcc.Failure) as caught:
        vdelxcc.connect('vdelxcs', 1.0)
    assert str(caught.value).startswith('connect: No such file or directory: ')
    assert '/nosuch/vdelxcs, /nowhere/vdelxcs' in str(caught.value)


def test_a_socket_path_has_107_bytes_at_most(vdelxcc, tmp_path):
    for path, text in ('/' + 'a' * 106, 'No such file'), ('/' + 'a' * 107, 'File name too long'), (
            '/' + os.fsdecode(b'\xc3\xa9') * 54, 'File name too long'):
        with pytest.raises(vdelxcc.Failure) as caught:
            vdelxcc.connect(path, 1.0)
        assert str(caught.value).startswith('connect: ' + text)


def test_a_name_that_ends_in_a_digit_is_taken_as_it_is_and_every_other_is_numbered(vdelxcc):
    assert vdelxcc.interface_names('vde0') == ['vde0']
    assert vdelxcc.interface_names('eth10') == ['eth10']
    assert vdelxcc.interface_names('7') == ['7']
    assert vdelxcc.interface_names('vde') == ['vde%d' % number for number in range(256)]
    assert vdelxcc.interface_names('a0b')[:2] == ['a0b0', 'a0b1']


def test_an_interface_name_has_15_characters_at_most(vdelxcc):
    assert vdelxcc.interface_names('a' * 14 + '0') == ['a' * 14 + '0']
    assert vdelxcc.interface_names('a' * 14) == ['a' * 14 + str(number) for number in range(10)]
    assert len(vdelxcc.interface_names('a' * 13)) == 100
    for name in 'a' * 15, 'a' * 15 + '0', 'a' * 5000:
        with pytest.raises(vdelxcc.Failure) as caught:
            vdelxcc.interface_names(name)
        assert 'File name too long' in str(caught.value)


@pytest.mark.parametrize('name', ['', '.', '..', 'a/b', 'a:b', 'a b', ' a', 'a\n', 'a%d', '\x1b0',
                                  '\udcff0', 'a\t0'])
def test_what_cannot_be_an_interface_is_refused_before_anything_is_opened(vdelxcc, name):
    with pytest.raises(vdelxcc.Failure) as caught:
        vdelxcc.interface_names(name)
    assert str(caught.value).startswith('interface definition: Invalid argument')


# ---- the daemon ---------------------------------------------------------------------------------

def receive(vdelxcd, conn, seconds=5.0):
    """Read a request in the daemon's way; (text, descriptor) or the errno of the Failure."""
    try:
        return vdelxcd.receive_request(conn, time.monotonic() + seconds)[:2]
    except vdelxcd.Failure as failure:
        return failure.errno


@pytest.mark.parametrize('data, text', [
    (b'vxvde://\0', 'vxvde://'), (b'\0', ''), (b'vxvde://\0key=value\0', 'vxvde://'),
    (b'\xff\0', '\udcff'), (b'a' * 4095 + b'\0', 'a' * 4095),
])
def test_a_request_is_read_up_to_its_nul(vdelxcd, ends, some_file, data, text):
    give(ends[0], data, [some_file])
    received, fd = receive(vdelxcd, ends[1])
    assert received == text
    assert os.path.sameopenfile(fd, some_file)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(fd)


@pytest.mark.parametrize('first', [0, 1])
def test_a_request_may_come_in_pieces(vdelxcd, ends, some_file, first):
    give(ends[0], b'vx', [some_file] if first == 0 else [])
    give(ends[0], b'vde://\0', [some_file] if first == 1 else [])
    received, fd = receive(vdelxcd, ends[1])
    assert received == 'vxvde://'
    os.close(fd)


@pytest.mark.parametrize('messages, number', [
    ([(b'vxvde://\0', 0)], errno.EBADF),
    ([(b'vxvde://\0', 2)], errno.EINVAL),
    ([(b'vxvde://\0', 3)], errno.EINVAL),
    ([(b'vxvde://\0', 100)], errno.EINVAL),
    ([(b'vx', 1), (b'vde://\0', 1)], errno.EINVAL),
    ([(b'vxvde://', 1)], errno.EPIPE),
    ([], errno.EPIPE),
    ([(b'a' * 4096, 1)], errno.EINVAL),
    ([(b'a' * 5000 + b'\0', 1)], errno.EINVAL),
])
def test_a_malformed_request_is_refused_and_its_descriptors_are_closed(
        vdelxcd, ends, some_file, messages, number):
    for data, count in messages:
        give(ends[0], data, [some_file] * count)
    ends[0].shutdown(socket.SHUT_WR)
    before = descriptors()
    assert receive(vdelxcd, ends[1]) == number
    assert descriptors() == before


@pytest.mark.parametrize('data', [b'', b'vxvde://'])
def test_an_unfinished_request_is_given_up_at_the_deadline(vdelxcd, ends, some_file, data):
    if data:
        give(ends[0], data, [some_file])
    before, begin = descriptors(), time.monotonic()
    assert receive(vdelxcd, ends[1], 0.2) == errno.ETIMEDOUT
    assert time.monotonic() - begin < 4
    assert descriptors() == before


@pytest.mark.parametrize('number, data', [(0, b'0\0'), (13, b'13\0'), (93, b'93\0')])
def test_an_answer_is_a_decimal_number_and_nul(vdelxcd, ends, number, data):
    assert vdelxcd.reply(ends[1], number)
    ends[1].close()
    assert ends[0].recv(100) + ends[0].recv(100) == data


def test_an_answer_that_nobody_hears_is_told_to_the_caller(vdelxcd, ends):
    ends[0].close()
    assert not vdelxcd.reply(ends[1], 0)


def test_the_client_and_the_daemon_understand_each_other(vdelxcc, vdelxcd, ends, some_file):
    vdelxcd.reply(ends[1], 0, mtu=1450)
    ends[1].shutdown(socket.SHUT_WR)
    keys = {'mtu': 'auto', 'offload': '1'}
    answer = vdelxcc.hand_over(ends[0], some_file, 'vxvde://239.1.1.1', keys, 5.0)
    assert answer == {'mtu': '1450'}
    text, fd, found = vdelxcd.receive_request(ends[1], time.monotonic() + 5)
    assert (text, found) == ('vxvde://239.1.1.1', keys)
    os.close(fd)


def test_a_reason_is_ascii_short_and_only_for_who_named_the_network(vdelxcd):
    def reason(number, sentence, told='', vnl='x://'):
        return vdelxcd.reason_for(vdelxcd.Failure(number, sentence, told), vnl)
    assert reason(errno.EINVAL, 'secret') == ''
    assert reason(errno.EACCES, 'secret') == 'the daemon may not open it'
    assert reason(errno.EINVAL, 'secret', 'no such option') == 'no such option'
    assert reason(errno.EINVAL, 'secret', 'no such option', vnl='') == ''
    assert reason(errno.EINVAL, 'secret', '\xe9' * 5000) == '?' * 600


@pytest.mark.parametrize('path', ['/dev/null', '/dev/zero', '/', '/proc/self/status'])
def test_what_is_no_tap_is_refused(vdelxcd, path):
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(vdelxcd.Failure) as caught:
            vdelxcd.check_tap(fd, False)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(fd)
