"""What goes over the wire and to the kernel, byte for byte."""

import errno
import importlib.util
import os
import socket
import struct

import pytest

from conftest import CLIENT, DAEMON

PEER, OTHER = ('192.0.2.7', 4000), ('192.0.2.8', 5000)
GROUP = ('239.0.0.1', 14789)
ALICE, BOB, CAROL = b'\x02\0\0\0\0\x0a', b'\x02\0\0\0\0\x0b', b'\x02\0\0\0\0\x0c'
EVERYONE = b'\xff' * 6
HEADER = bytes.fromhex('0800000012345600')          # VNI 0x123456


# ---- structs and ioctl numbers ------------------------------------------------------------------

def test_the_request_for_a_tap_is_an_ifreq_with_its_name_and_flags(vdelxcc, vdelxcd):
    expected = b'vde0' + bytes(12) + struct.pack('=H', 0x1002) + bytes(22)
    for module in vdelxcc, vdelxcd:
        assert module.IFREQ.pack(b'vde0', module.IFF_TAP | module.IFF_NO_PI) == expected
        assert len(expected) == 40


@pytest.mark.parametrize('data, path', [
    (struct.pack('=H108s', 1, b'/run/x'), b'/run/x'), (struct.pack('=H108s', 1, b''), b''),
    (struct.pack('=H108s', 1, b'x' * 108), b'x' * 108), (struct.pack('=H108s', 1, b'a\0b'), b'a'),
    (struct.pack('=H108s', 2, b'/run/x'), None), (struct.pack('=H107s', 1, b'/run/x'), None),
    (b'', None)])
def test_a_switch_names_a_path_by_a_whole_sockaddr_un(vdelxcd, data, path):
    if path is not None:
        assert vdelxcd.unpack_path(data) == path
        return
    with pytest.raises(ValueError):
        vdelxcd.unpack_path(data)


def test_last_words_are_heard_from_one_who_left_without_hearing_ours(vdelxcd):
    for said in b'words', b'':
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            assert vdelxcd.take_packet(ours) == b''         # nothing yet; it does not wait
            ours.send(b'never read')
            if said:
                theirs.send(said)
            theirs.close()
            assert vdelxcd.take_packet(ours) == said


def test_only_a_socket_that_nobody_has_open_is_stale(vdelxcd, tmp_path):
    path, kind = str(tmp_path / 'socket'), socket.SOCK_STREAM
    assert vdelxcd.remove_stale(path, kind)
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = []
        for _ in range(3):                  # and then its backlog is full
            assert not vdelxcd.remove_stale(path, kind) and os.path.exists(path)
            waiting.append(socket.socket(socket.AF_UNIX, kind))
            waiting[-1].setblocking(False)
            try:
                waiting[-1].connect(path)
            except BlockingIOError:
                pass
        for each in waiting:
            each.close()
    assert vdelxcd.remove_stale(path, kind) and not os.path.exists(path)


@pytest.mark.parametrize('name, size', [
    ('IFREQ', 40), ('UCRED', 12), ('IP_MREQN', 12), ('IPV6_MREQ', 20), ('SOCK_FILTER', 8),
    ('SOCK_FPROG', 2 * struct.calcsize('P')), ('VXLAN_HEADER', 8), ('INT', 4)])
def test_a_struct_of_the_daemon_has_the_size_that_the_kernel_has(vdelxcd, name, size):
    assert getattr(vdelxcd, name).size == size


def test_a_struct_timeval_is_two_longs(vdelxcc):
    assert vdelxcc.TIMEVAL.size == 2 * struct.calcsize('l')


def test_the_memberships_have_the_group_and_the_interface_where_the_kernel_wants_them(vdelxcd):
    index = struct.pack('=i', 7)
    assert vdelxcd.IPv4.membership('239.1.2.3', 7) == bytes([239, 1, 2, 3, 0, 0, 0, 0]) + index
    assert vdelxcd.IPv4.outgoing(7) == bytes(8) + index
    assert vdelxcd.IPv6.membership('ff05:56de::1', 7) == (
        bytes.fromhex('ff0556de000000000000000000000001') + index)
    assert vdelxcd.IPv6.outgoing(7) == index


def test_the_filter_that_accepts_everything_is_one_return(vdelxcd):
    assert vdelxcd.ACCEPT_ALL == struct.pack('=HBBI', 6, 0, 0, 0xffffffff)


USUAL = 0x400454ca, 0x800454d2, 0x400454e2          # TUNSETIFF, TUNGETIFF, TUNSETCARRIER
SWAPPED = 0x800454ca, 0x400454d2, 0x800454e2


@pytest.mark.parametrize('machine, numbers', [
    ('x86_64', USUAL), ('aarch64', USUAL), ('armv7l', USUAL), ('s390x', USUAL), ('riscv64', USUAL),
    ('mips', SWAPPED), ('mips64', SWAPPED), ('ppc', SWAPPED), ('ppc64le', SWAPPED),
    ('sparc64', SWAPPED), ('alpha', SWAPPED), ('parisc64', SWAPPED)])
def test_the_ioctl_numbers_are_those_of_the_architecture(monkeypatch, machine, numbers):
    uname = os.uname()
    monkeypatch.setattr(os, 'uname', lambda: type(uname)(tuple(uname[:4]) + (machine,)))
    modules = []
    for path in CLIENT, DAEMON:
        spec = importlib.util.spec_from_file_location('on_another_machine', path)
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    client, daemon = modules
    assert (client.TUNSETIFF, daemon.TUNGETIFF, daemon.TUNSETCARRIER) == numbers
    assert client.TUNSETIFF == daemon.TUNSETIFF
    direction = numbers[0] & 0xc0000000
    size = struct.calcsize('@HP') << 16
    assert daemon.TUNATTACHFILTER == direction | size | 0x54d5
    assert daemon.TUNDETACHFILTER == direction | size | 0x54d6


# ---- vxvde --------------------------------------------------------------------------------------

class Recorder:
    """In the place of a UdpPort and its socket: notes each run of frames that would be sent."""

    def __init__(self):
        self.runs, self.sock = [], self

    def sendto(self, datagram, flags, peer):
        self.runs.append((peer, [bytes(datagram)]))

    def send(self, burst, first, last, peer, plug):
        header = plug.headroom
        self.runs.append((peer, [bytes(burst.view[burst.starts[index] - header:burst.ends[index]])
                                 for index in range(first, last)]))


@pytest.fixture
def plug(vdelxcd):
    """A vxvde plug with VNI 0x123456 and no sockets."""
    plug = vdelxcd.Vxvde.__new__(vdelxcd.Vxvde)
    plug.header = vdelxcd.VXLAN_HEADER.pack(vdelxcd.VXLAN_FLAGS, 0x123456 << 8)
    plug.macs = vdelxcd.MacTable(128.0)
    plug.sender, plug.everyone = Recorder(), GROUP
    plug.seen = plug.seen_peer = None
    plug.bulk = vdelxcd.Bulk(plug)
    return plug


def frame(target, source, size=60):
    """An Ethernet frame."""
    return target + source + b'\x08\x00' + bytes(size - 14)


def look(plug, datagram, peer=PEER):
    """Does the plug take this datagram for a frame?"""
    before, after = b'left over', b'left over too'
    buf = bytearray(before + datagram + after)
    return plug.look(buf, len(before), len(before) + len(datagram), peer, 1.0)


def send(vdelxcd, plug, frames):
    """Send frames in one burst; the runs in which they go out."""
    burst = vdelxcd.Burst(2 * 65536)
    end = 0
    for each in frames:
        burst.view[end:end + 8] = b'\xee' * 8       # whatever was there before
        start = end + 8
        end = start + len(each)
        burst.view[start:end] = each
        burst.starts.append(start)
        burst.ends.append(end)
    plug.send(burst)
    return plug.sender.runs


def test_the_header_of_a_frame_is_flags_and_vni(vdelxcd, plug):
    assert plug.header == HEADER
    assert vdelxcd.VXLAN_HEADER.pack(vdelxcd.VXLAN_FLAGS, 1 << 8) == b'\x08\0\0\0\0\0\x01\0'


def test_every_frame_that_is_sent_has_the_header(vdelxcd, plug):
    frames = [frame(BOB, ALICE, size) for size in (60, 60, 60, 100, 1514, 14)]
    sent = [datagram for _, run in send(vdelxcd, plug, frames) for datagram in run]
    assert sent == [HEADER + each for each in frames]


def test_a_frame_with_our_header_is_taken_and_teaches_where_its_source_is(plug):
    assert look(plug, HEADER + frame(BOB, ALICE))
    assert plug.macs.find(int.from_bytes(ALICE, 'big'), 1.0) == PEER
    assert look(plug, HEADER + frame(BOB, ALICE), OTHER)
    assert plug.macs.find(int.from_bytes(ALICE, 'big'), 1.0) == OTHER
    assert plug.drops == 0


@pytest.mark.parametrize('header', [
    '0800000012345700', '0800000012345601', '0800000112345600', '0801000012345600',
    '0900000012345600', '0000000012345600', '8800000012345600', '0800000000000000',
    '0c00000012345600', '0056341200000008'])
def test_another_header_is_dropped_and_teaches_nothing(plug, header):
    assert not look(plug, bytes.fromhex(header) + frame(BOB, ALICE))
    assert plug.macs.entries == {}
    assert plug.drops == 1


@pytest.mark.parametrize('size, taken', [(14, True), (60, True), (1514, True), (9234, True),
                                         (1, False), (12, False), (13, False), (9235, False)])
def test_a_frame_has_14_to_9234_bytes(plug, size, taken):
    datagram = HEADER + (BOB + ALICE + b'\x08\x00' + bytes(9300))[:size]
    assert look(plug, datagram) is taken
    assert plug.drops == (0 if taken else 1)
    assert bool(plug.macs.entries) is taken


@pytest.mark.parametrize('datagram', [b'', b'\x08', HEADER[:7], HEADER[:4]])
def test_less_than_a_header_is_dropped_even_if_the_rest_lies_behind_it(plug, datagram):
    buf = bytearray(datagram + HEADER[len(datagram):] + frame(BOB, ALICE))
    assert not plug.look(buf, 0, len(datagram), PEER, 1.0)
    assert plug.drops == 1


def test_a_header_without_a_frame_makes_us_forget_its_sender_only(plug):
    look(plug, HEADER + frame(BOB, ALICE), PEER)
    look(plug, HEADER + frame(ALICE, BOB), OTHER)
    assert not look(plug, HEADER, PEER)
    assert plug.macs.find(int.from_bytes(ALICE, 'big'), 1.0) is None
    assert plug.macs.find(int.from_bytes(BOB, 'big'), 1.0) == OTHER
    assert plug.drops == 0
    assert not look(plug, bytes.fromhex('0800000012345700'), OTHER)     # of another network
    assert plug.macs.find(int.from_bytes(BOB, 'big'), 1.0) == OTHER


def test_a_multicast_source_is_never_learned(plug):
    for source in EVERYONE, b'\x01\0\x5e\0\0\x01', b'\x33\x33\0\0\0\x01':
        assert look(plug, HEADER + frame(BOB, source))
    assert plug.macs.entries == {}


def test_a_frame_goes_to_the_learned_peer_and_every_other_to_the_group(vdelxcd, plug, monkeypatch):
    look(plug, HEADER + frame(BOB, ALICE), PEER)
    monkeypatch.setattr(vdelxcd.time, 'monotonic', lambda: 2.0)
    multicast = b'\x33\x33\0\0\0\x01'
    frames = [frame(ALICE, BOB), frame(CAROL, BOB), frame(EVERYONE, BOB), frame(multicast, BOB)]
    assert send(vdelxcd, plug, frames) == [
        (PEER, [HEADER + frames[0]]), (GROUP, [HEADER + frames[1]]),
        (GROUP, [HEADER + frames[2]]), (GROUP, [HEADER + frames[3]])]


def test_a_peer_that_was_not_heard_for_too_long_is_sent_nothing(vdelxcd, plug, monkeypatch):
    look(plug, HEADER + frame(BOB, ALICE), PEER)
    for now, peer in (128.9, PEER), (129.1, GROUP):
        monkeypatch.setattr(vdelxcd.time, 'monotonic', lambda: now)
        plug.sender.runs.clear()
        assert send(vdelxcd, plug, [frame(ALICE, BOB)])[0][0] == peer


@pytest.mark.parametrize('sizes, runs', [
    ([60], [1]), ([60, 60, 60], [3]), ([60, 60, 50], [3]), ([60, 50, 60], [2, 1]),
    ([60, 70, 60], [1, 2]), ([60, 50, 50], [2, 1]), ([50, 60, 60, 60, 20], [1, 4]),
    ([1514] * 64, [64]), ([60, 50, 40, 30], [2, 2]),
])
def test_a_run_has_frames_of_one_size_of_which_the_last_may_be_shorter(vdelxcd, plug, sizes, runs):
    frames = [frame(BOB, ALICE, size) for size in sizes]
    sent = send(vdelxcd, plug, frames)
    assert [len(run) for _, run in sent] == runs
    assert [datagram for _, run in sent for datagram in run] == [HEADER + each for each in frames]


def test_a_run_has_one_target(vdelxcd, plug):
    frames = [frame(target, ALICE) for target in (BOB, BOB, CAROL, BOB, EVERYONE, EVERYONE)]
    sent = send(vdelxcd, plug, frames)
    assert [len(run) for _, run in sent] == [2, 1, 1, 2]
    assert [datagram for _, run in sent for datagram in run] == [HEADER + each for each in frames]


class NoTrains:
    """A UDP socket of a path that carries no trains while full is True; notes what goes out."""

    def __init__(self):
        self.full, self.sent = True, []

    def getsockopt(self, *_):
        return 0

    def sendmsg(self, pieces, *_):
        if self.full:
            raise OSError(errno.EMSGSIZE, 'text')
        self.sent.append('train')

    def sendto(self, datagram, *_):
        self.sent.append('datagram')


def test_a_peer_that_took_no_trains_is_tried_again_after_a_minute(vdelxcd, monkeypatch):
    now, sock = [1000.0], NoTrains()
    monkeypatch.setattr(vdelxcd.time, 'monotonic', lambda: now[0])
    port, burst = vdelxcd.UdpPort(sock, 0), vdelxcd.Burst(300)
    burst.starts, burst.ends = [0, 100, 200], [100, 200, 300]
    for later, full, sent in (0, True, ['datagram'] * 3), (59, False, ['datagram'] * 3), (
            2, False, ['train']), (100, False, ['train']):
        now[0] += later
        sock.full, sock.sent = full, []
        port.send(burst, 0, 3, PEER, None)
        assert sock.sent == sent


def test_addresses_that_are_multicast_are_told_from_others(vdelxcd):
    for address in '224.0.0.0', '239.255.255.255', 'ff00::', 'ff05:56de::1':
        assert vdelxcd.is_multicast(address)
    for address in '223.255.255.255', '240.0.0.0', 'feff::1', '::', '0.0.0.0':
        assert not vdelxcd.is_multicast(address)


def test_a_socket_address_has_the_interface_for_ipv6_only(vdelxcd):
    assert vdelxcd.IPv4.socket_address('239.0.0.1', 14789, 3) == ('239.0.0.1', 14789)
    assert vdelxcd.IPv6.socket_address('ff05::1', 14789, 3) == ('ff05::1', 14789, 0, 3)
    assert vdelxcd.IPv6.FAMILY == socket.AF_INET6
