"""Frames for a TAP whose kernel merges: the last of a burst, which may have to wait, never stays.

What the kernel does with them is for tests/system/test_merged_tcp.py.
"""

import errno
import os
import socket
import threading
import time

import pytest

from segments import segment

PAYLOAD = bytes(range(200)) * 5
PSH, URG, FIN, RST, SYN = 0x08, 0x20, 0x01, 0x04, 0x02
TAG, QINQ = b'\x81\x00\x00\x07', b'\x88\xa8\x00\x09'


def plain(index=0, version=4, flags=0x10, **change):
    """A segment in a row of them."""
    return segment(version, 1000 + len(PAYLOAD) * index, PAYLOAD, flags, ident=index, **change)


def tagged(data, *tags):
    """A frame with tags."""
    return data[:12] + b''.join(tags) + data[12:]


@pytest.fixture
def network(closing):
    """Two ends of a datagram socket: the network's and ours."""
    return [closing(each) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]


@pytest.fixture
def tap(vdelxcd, closing):
    """A MergingTap whose frames come out of a socket: (MergingTap, socket)."""
    ours, theirs = (closing(each) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    theirs.setblocking(False)
    return vdelxcd.MergingTap(ours.fileno(), 'vde0'), theirs


def written(sock):
    """The frames that were written so far."""
    found = []
    try:
        while True:
            found.append(sock.recv(70000))
    except BlockingIOError:
        return found


def burst_of(vdelxcd, *frames):
    """A Burst of these frames, side by side."""
    burst = vdelxcd.Burst(sum(map(len, frames)) + 100)
    place = 0
    for each in frames:
        burst.starts.append(place)
        burst.view[place:place + len(each)] = each
        place += len(each)
        burst.ends.append(place)
    return burst


KEPT = {
    'IPv4': plain(), 'IPv6': plain(version=6), 'tagged': tagged(plain(), TAG),
    'tagged twice': tagged(plain(version=6), QINQ, TAG),
    'options': plain(options=b'\1\1\x08\x0a' + bytes(8)),
}
NOT_KEPT = {
    'short': segment(4, 1, bytes(100)), 'no payload': segment(4, 1, b''),
    'UDP': plain()[:23] + b'\x11' + plain()[24:], 'UDP 6': plain(version=6)[:20] + b'\x11'
    + plain(version=6)[21:], 'no IP': plain()[:12] + b'\x88\xb5' + plain()[14:],
    'three tags': tagged(plain(), TAG, TAG, TAG),
    'tagged, marked': tagged(plain(flags=0x18), TAG),
    'IP options, marked': plain(flags=0x18)[:14] + b'\x46' + plain(flags=0x18)[15:34] + bytes(4)
    + plain(flags=0x18)[34:],
}
NOT_KEPT.update(('flag %02x, IPv%d' % (flag, version), plain(flags=0x10 | flag, version=version))
                for flag in (PSH, URG, FIN, RST, SYN) for version in (4, 6))


@pytest.mark.parametrize('kind', sorted(KEPT))
def test_a_segment_that_may_be_kept_is_held_until_there_is_more_or_nothing(vdelxcd, tap, kind):
    plug, sock = tap
    first, last, other = plain(7), KEPT[kind], plain(8, flags=0x10 | PSH)
    plug.send(burst_of(vdelxcd, first, last))
    assert written(sock) == [first]
    plug.send(burst_of(vdelxcd, other))
    assert written(sock) == [last, other], 'in the order in which they came, and as they came'
    plug.send(burst_of(vdelxcd, last))
    assert written(sock) == [] and plug.held == last
    plug.send_held()
    assert written(sock) == [last + b'\0'] and plug.held is None


@pytest.mark.parametrize('kind', sorted(NOT_KEPT))
def test_what_is_not_kept_is_written_at_once_and_as_it_came(vdelxcd, tap, kind):
    plug, sock = tap
    frames = [plain(), NOT_KEPT[kind]]
    plug.send(burst_of(vdelxcd, *frames))
    assert written(sock) == frames and plug.held is None


def test_the_held_frame_is_not_what_the_next_burst_puts_in_its_place(vdelxcd, tap):
    plug, sock = tap
    burst = burst_of(vdelxcd, plain(1))
    plug.send(burst)
    burst.view[:] = bytes(len(burst.view))
    plug.send_held()
    assert written(sock) == [plain(1) + b'\0']


def relayed(vdelxcd, plug, network, act):
    """Relay between a TAP and the end of a network while act() runs, which ends the interface."""
    def do():
        try:
            act()
            done.append(True)
        finally:
            control.send(b'!')
    done = []
    own, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class End(vdelxcd.Control):
        """Ends the relay when something comes."""

        def fds(self):
            return {own.fileno(): vdelxcd.select.EPOLLIN}

        def recv(self, fd):
            raise vdelxcd.Ended

    thread = threading.Thread(target=do)
    with own, control:
        thread.start()
        try:
            with pytest.raises(vdelxcd.Ended):
                vdelxcd.relay(plug, vdelxcd.LocalSocket(network), End(plug))
        finally:
            thread.join()
    assert done, 'act() failed'


def test_a_relay_with_nothing_more_to_read_lets_go_of_the_frame_at_once(vdelxcd, tap, network):
    (plug, sock), (ours, theirs) = tap, network
    sock.settimeout(5)

    def act():
        theirs.send(plain())
        since = time.monotonic()
        assert sock.recv(9999) == plain() + b'\0'
        assert time.monotonic() - since < 1
    relayed(vdelxcd, plug, ours, act)


def test_a_relay_whose_interface_sends_all_the_time_lets_go_of_the_frame(vdelxcd, tap, network,
                                                                         monkeypatch):
    (plug, sock), (ours, theirs) = tap, network
    monkeypatch.setattr(plug, 'recv', lambda fd: vdelxcd.Burst(1))      # and there is always more
    sock.settimeout(5)

    def act():
        sock.send(plain(1))
        theirs.send(plain())
        since = time.monotonic()
        assert sock.recv(9999) == plain() + b'\0'
        assert time.monotonic() - since < 1
    relayed(vdelxcd, plug, ours, act)


def test_a_relay_that_is_calm_does_not_return_with_a_frame_in_hand(vdelxcd, tap, network):
    (plug, sock), (ours, theirs) = tap, network
    theirs.send(plain())
    vdelxcd.relay(plug, vdelxcd.LocalSocket(ours), calm=0)
    assert plug.held is None and written(sock) == [plain() + b'\0']


def test_a_held_frame_that_cannot_be_written_is_counted_or_ends_the_interface(vdelxcd, tap,
                                                                             monkeypatch):
    plug, _ = tap

    def refuse(*_):
        raise OSError(number, os.strerror(number))
    for number in errno.EIO, errno.EBADFD:
        plug.send(burst_of(vdelxcd, plain()))
        with monkeypatch.context() as patch:
            patch.setattr(vdelxcd.os, 'write', refuse)
            if number == errno.EIO:
                plug.send_held()
                assert plug.drops == 1 and plug.held is None
            else:
                with pytest.raises(vdelxcd.Ended):
                    plug.send_held()


def test_an_order_says_whether_the_tap_merges(vdelxcd):
    for merges in True, False:
        order = vdelxcd.Order('vde0', merges, 'vde0, pid 1 uid 2 gid 3', 'null://', 'net:[1]', {},
                              vdelxcd.read_vnl('null://'))
        assert vdelxcd.Order.unpack(order.pack()).merges is merges


def test_lengths_in_a_frame_are_not_believed(vdelxcd):
    """The shortest frame that is looked at has all that is read, whatever it says of itself."""
    for version in 4, 6:
        data = tagged(plain(version=version), QINQ, TAG)[:vdelxcd.MergingTap.SHORTEST]
        for first in range(256):
            vdelxcd.is_kept(data[:22] + bytes([first]) + data[23:], 0)
