"""Ends of a network that leave, stall or shout at an odd moment: sockets of this process."""

import errno
import os
import socket
import struct
import threading
import time

import pytest

from conftest import wait_until

RUNT = b'runt'
EVERYONE, ALICE, BOB = b'\xff' * 6, b'\2\0\0\0\0\1', b'\2\0\0\0\0\2'


def frame(target, source, length=60):
    """An Ethernet frame."""
    return target + source + b'\x08\0' + bytes(length - 14)


def burst_of(vdelxcd, *frames):
    """A burst with these frames, side by side."""
    burst = vdelxcd.Burst(sum(map(len, frames)) + 16)
    burst.buf[:] = b''.join(frames) + bytes(16)
    for each in frames:
        start = burst.ends[-1] if burst.ends else 0
        burst.starts.append(start)
        burst.ends.append(start + len(each))
    return burst


def address(path):
    """A struct sockaddr_un."""
    return struct.pack('=H108s', 1, os.fsencode(path))


@pytest.fixture
def listening(closing, tmp_path):
    """listening(name, kind) is a socket that listens there, and its path."""
    def listen(name, kind):
        path, sock = str(tmp_path / name), closing(socket.socket(socket.AF_UNIX, kind))
        sock.bind(path)
        sock.listen(5)
        sock.settimeout(10)
        return sock, path
    return listen


def opened(vdelxcd, closing, vnl, listener, answer):
    """A plug, and the other end of its connection, which heard a request and gave the answer."""
    conns = []

    def serve():
        conns.append(closing(listener.accept()[0]))
        if vnl.startswith('vde'):
            conns[0].recv(4096)
        conns[0].send(answer)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return closing(vdelxcd.open_plug(vdelxcd.read_vnl(vnl))), conns[0]
    finally:
        thread.join()


@pytest.fixture
def switch_plug(vdelxcd, closing, listening, tmp_path):
    """A Vde, and its switch's end of the control connection."""
    listener, _ = listening('ctl', socket.SOCK_STREAM)
    data = closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    data.bind(str(tmp_path / 'data'))
    return opened(vdelxcd, closing, 'vde://%s' % tmp_path, listener, address(tmp_path / 'data'))


@pytest.fixture
def cable_plug(vdelxcd, closing, listening, monkeypatch):
    """A Ptp that speaks packets, and the other end of its connection."""
    monkeypatch.setattr(vdelxcd.Ptp, 'packets', False)
    listener, path = listening('cable', socket.SOCK_SEQPACKET)
    return opened(vdelxcd, closing, 'ptp://' + path, listener, b'\0')


@pytest.mark.parametrize('kind', ['switch_plug', 'cable_plug'])
def test_who_says_a_word_and_leaves_is_gone_and_the_interface_stays(vdelxcd, request, closing,
                                                                    kind):
    plug, other = request.getfixturevalue(kind)
    ours, theirs = (closing(each) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    tap = vdelxcd.LocalSocket(ours)
    plug.turns = 1                          # as after a lone frame
    other.send(RUNT)
    other.close()
    with pytest.raises(vdelxcd.PlugGone):
        vdelxcd.relay(tap, plug)


def test_a_cable_whose_other_end_does_not_read_is_waited_for_a_moment_a_burst(vdelxcd, cable_plug):
    plug, _ = cable_plug
    burst = burst_of(vdelxcd, *[frame(BOB, ALICE, 1500)] * 3)
    since = time.monotonic()
    while plug.drops < 2 * 3:
        plug.send(burst)
    assert time.monotonic() - since < plug.ANSWER_TIME, 'one frame alone was waited for so long'


def test_the_socket_of_a_group_that_we_may_not_give_does_not_stay(vdelxcd, closing, listening,
                                                                  monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    listening('ctl', socket.SOCK_STREAM)
    monkeypatch.setattr(vdelxcd.os, 'chown', refuse)
    with pytest.raises(vdelxcd.Failure) as caught:
        vdelxcd.open_plug(vdelxcd.read_vnl('vde://%s[group=5]' % tmp_path))
    assert caught.value.errno == errno.EPERM
    assert os.listdir(str(tmp_path)) == ['ctl']


# ---- nodes --------------------------------------------------------------------------------------

@pytest.fixture
def node(vdelxcd, closing, tmp_path):
    """node(scheme, count) is a node and the data sockets of its members."""
    def make(scheme, count):
        path, members = str(tmp_path / 'node'), []
        plug = closing(vdelxcd.open_plug(vdelxcd.read_vnl('%s://%s' % (scheme, path))))
        for number in range(count):
            data = closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            data.bind('%s/.%d' % (path, number))
            conn = closing(socket.socket(socket.AF_UNIX))
            conn.connect(path + '/ctl')
            conn.send(struct.pack('=III', 0xfeedface, 3, 0) + address('%s/.%d' % (path, number)))
            wait_until(lambda: [plug.recv(fd) for fd in list(plug.fds())]
                       and len(plug.ports) > number)
            members.append(data)
        return plug, members
    return make


def test_a_member_that_leaves_within_a_burst_ends_no_switch(vdelxcd, node):
    plug, (leaving, staying) = node('switch', 2)
    leaving.sendto(frame(EVERYONE, ALICE), next(iter(plug.ports.values())).name)
    for fd in list(plug.ports):
        plug.recv(fd)
    assert staying.recv(2000) == frame(EVERYONE, ALICE)
    leaving.close()
    plug.send(burst_of(vdelxcd, frame(EVERYONE, BOB), frame(ALICE, BOB), frame(EVERYONE, BOB)))
    assert len(plug.ports) == 1
    assert [staying.recv(2000) for _ in range(2)] == [frame(EVERYONE, BOB)] * 2


def test_what_members_that_never_read_cost_is_bounded_in_bytes(vdelxcd, node):
    plug, members = node('hub', 1)
    port, = plug.ports.values()
    lengths = 60, 9234
    for length in lengths:
        burst = burst_of(vdelxcd, *[frame(EVERYONE, ALICE, length)] * 64)
        while not port.drops:
            port.send(burst)
        assert len(port.backlog) <= port.BACKLOG_MAX
        assert port.waiting == sum(map(len, port.backlog)) < port.BACKLOG_BYTES + max(lengths)
        while port.backlog:
            members[0].recv(10000)
            port.flush()
        assert port.waiting == 0
        port.drops = 0
    most = (port.BACKLOG_BYTES + max(lengths)) * plug.PORTS_MAX
    assert most < vdelxcd.DATA_MAX / 2


def test_what_a_member_sends_that_is_no_frame_is_counted_at_once(vdelxcd, node):
    plug, (member,) = node('hub', 1)
    (fd, port), = plug.ports.items()
    member.sendto(RUNT, port.name)
    plug.recv(fd)
    assert vdelxcd.drops_of(plug) == (1, 1)


@pytest.mark.parametrize('text', ['vde:///x[group=%d]', 'ptp:///x[group=%d]', 'hub:///x[grp=%d]',
                                  'vxvde:///grp=%d'])
def test_a_group_has_a_number_that_the_kernel_takes(vdelxcd, text):
    for number in 0, 0xfffffffe:
        vdelxcd.read_vnl(text % number)
    for number in 0xffffffff, 1 << 32, 10 ** 30:
        with pytest.raises(vdelxcd.Failure) as caught:
            vdelxcd.read_vnl(text % number)
        assert caught.value.errno == errno.EINVAL and str(number) in str(caught.value)


def test_a_program_starts_at_once_however_many_descriptors_there_may_be(vdelxcd, monkeypatch):
    monkeypatch.setattr(vdelxcd.os, 'sysconf', lambda name: 1 << 30)
    inherited = os.open('/dev/null', os.O_RDONLY)
    os.set_inheritable(inherited, True)
    try:
        with pytest.raises(vdelxcd.Failure) as caught:
            vdelxcd.open_plug(vdelxcd.read_vnl(
                'cmd://sh -c "test ! -e /proc/self/fd/%d && echo none >&2"' % inherited))
    finally:
        os.close(inherited)
    assert str(caught.value) == 'sh: none'
