"""Fuzzers of what comes as bytes: datagrams, trains, streams, frames with tags, segments.

Each keeps an opinion of its own on what has to come out. See fuzzing.py for longer runs.
"""

import os
import select
import socket
import struct

import pytest

from fuzzing import fuzz                                                        # noqa: F401
from segments import is_right, segment
from test_merging import writes                                                 # noqa: F401

SHORTEST, LONGEST = 14, 9234
EVERYONE = b'\xff' * 6
HEADER = bytes.fromhex('0800000000000100')          # the VNI is 1
SOL_UDP, UDP_SEGMENT = 17, 103
LENGTHS = (0, 1, 7, 8, 13, 14, 15, 21, 22, 23, 60, 64, 1400, 1514, 9233, 9234, 9235, 9242, 9243,
           20000, 60000)


def is_frame(data):
    """May these bytes be a frame?"""
    return SHORTEST <= len(data) <= LONGEST


def some_length(chance):
    """A length: often an edge, else anything short."""
    return chance.choice(LENGTHS) if chance.random() < 0.3 else chance.randrange(200)


def frames_of(burst):
    """The frames of a burst as bytes."""
    return [bytes(burst.view[start:end]) for start, end in zip(burst.starts, burst.ends)]


def fill(vdelxcd, frames, gap):
    """A burst of frames with so many free bytes before each, and noise there."""
    burst = vdelxcd.Burst(sum(map(len, frames)) + gap * len(frames) + 1)
    end = 0
    for each in frames:
        burst.view[end:end + gap] = b'\xa5' * gap
        start = end + gap
        end = start + len(each)
        burst.view[start:end] = each
        burst.starts.append(start)
        burst.ends.append(end)
    return burst


def drain(plug, fd, turns=64):
    """All that a plug takes from a descriptor in which something waits."""
    plug.turns, found = turns, []
    while select.select([fd], [], [], 0)[0]:
        found += frames_of(plug.recv(fd))
    return found


# ---- over UDP -----------------------------------------------------------------------------------

class Overlays:
    """A plug of an overlay, its two sockets on loopback, and a peer that says what it likes."""

    def __init__(self, vdelxcd, scheme):
        self.plug = vdelxcd.PLUGS[scheme].__new__(vdelxcd.PLUGS[scheme])
        plug = self.plug
        plug.header, plug.macs, plug.ports = HEADER, vdelxcd.MacTable(128.0), {}
        plug.burst = plug.seen = plug.seen_peer = None
        plug.seen_time, plug.learn_again, plug.local, plug.kind = 0.0, 1.0, {}, socket.AF_INET
        self.own, self.group, self.peer, self.other = (self.bound() for _ in range(4))
        plug.sender = plug.add_socket(self.own)
        plug.add_socket(self.group)
        plug.own_port = self.own.getsockname()[1]
        plug.everyone = self.other.getsockname()
        plug.bulk = vdelxcd.Bulk(plug) if scheme == 'vxvde' else None

    @staticmethod
    def bound():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for option in socket.SO_RCVBUF, socket.SO_SNDBUF:
            sock.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        sock.bind(('127.0.0.1', 0))
        sock.setblocking(False)
        return sock

    def close(self):
        for each in self.own, self.group, self.peer, self.other:
            each.close()


@pytest.fixture
def overlay(vdelxcd, closing):
    """overlay(scheme) makes an Overlays."""
    return lambda scheme: closing(Overlays(vdelxcd, scheme))


def datagrams(fuzz):
    """Some datagrams, alike in size now and then."""
    chance = fuzz.chance
    for _ in range(chance.randint(1, 6)):
        kind, count = chance.randrange(6), chance.choice([1, 1, 2, 9])
        if kind == 0:
            yield fuzz.noise(some_length(chance))
        elif kind == 1:
            yield HEADER[:chance.randrange(9)]
        elif kind == 2:
            yield fuzz.spoil(HEADER + fuzz.noise(60))
        else:
            body, length = HEADER + fuzz.noise(12), some_length(chance)
            for _ in range(count):
                yield body + fuzz.noise(length)


@pytest.mark.parametrize('scheme', ['vxvde', 'vxlan'])
def test_of_all_datagrams_the_frames_come_out_and_nothing_else(vdelxcd, fuzz, overlay, scheme):
    chance, over, passed = fuzz.chance, overlay(scheme), 0
    for _ in fuzz.rounds(300):
        sent, target = [], chance.choice([over.own, over.group])
        for data in datagrams(fuzz):
            if len(sent) < 40 and sum(map(len, sent)) + len(data) < 500000:
                over.peer.sendto(data, target.getsockname())
                sent.append(data)
        expected = [data[8:] for data in sent if data.startswith(HEADER) and is_frame(data[8:])]
        assert drain(over.plug, target.fileno(), chance.choice([1, 2, 64])) == expected
        passed += len(expected)
        assert len(over.plug.macs.entries) <= vdelxcd.MACS_MAX
    assert passed > 300 or len(fuzz.rounds(300)) < 300


def test_trains_are_taken_apart_into_the_datagrams_that_went_into_them(vdelxcd, fuzz, overlay):
    chance, over, passed = fuzz.chance, overlay('vxvde'), 0
    try:
        over.peer.getsockopt(SOL_UDP, UDP_SEGMENT)
    except OSError:
        pytest.skip('this kernel has no UDP_SEGMENT: it needs Linux 4.18')
    for port in over.plug.ports.values():
        port.take_trains(True)
    over.plug.burst = vdelxcd.Burst(vdelxcd.LARGE_BUFFER[1])
    for _ in fuzz.rounds(300):
        size = chance.choice([8, 9, 21, 22, 23, 40, 68, 500, 1472])
        count, rest = chance.randint(1, min(60, 60000 // size)), chance.randint(1, size)
        same = HEADER + fuzz.noise(12)
        pieces = []
        for length in [size] * count + [rest]:
            data = (same + fuzz.noise(length))[:length]
            way = chance.randrange(12)
            if way == 0:                    # another VNI, or another flag, or noise
                data = bytearray(data)
                data[chance.randrange(length)] ^= 1 << chance.randrange(8)
            elif way == 1:
                data = fuzz.noise(length)
            elif way == 2:
                data = (HEADER + fuzz.noise(length))[:length]
            pieces.append(bytes(data))
        over.peer.sendmsg([b''.join(pieces)], [(SOL_UDP, UDP_SEGMENT, struct.pack('H', size))], 0,
                          over.own.getsockname())
        expected = [data[8:] for data in pieces if data.startswith(HEADER) and is_frame(data[8:])]
        assert drain(over.plug, over.own.fileno(), chance.choice([1, 64])) == expected
        passed += len(expected)
    assert passed > 1000 or len(fuzz.rounds(300)) < 300


def test_trains_are_not_switched_off_while_one_waits(vdelxcd, fuzz, overlay):
    over = overlay('vxvde')
    try:
        over.peer.getsockopt(SOL_UDP, UDP_SEGMENT)
    except OSError:
        pytest.skip('this kernel has no UDP_SEGMENT: it needs Linux 4.18')
    over.plug.take_trains()
    same = HEADER + fuzz.noise(12)
    pieces = [same + fuzz.noise(1400) for _ in range(40)]
    over.peer.sendmsg([b''.join(pieces)], [(SOL_UDP, UDP_SEGMENT, struct.pack('H', 1420))], 0,
                      over.own.getsockname())
    assert not over.plug.take_no_trains() and over.plug.takes_trains()
    assert drain(over.plug, over.own.fileno(), 64) == [data[8:] for data in pieces]
    assert over.plug.take_no_trains() and not over.plug.takes_trains()
    assert over.plug.drops == 0


def test_every_frame_is_sent_once_in_order_to_whom_it_is_for(vdelxcd, fuzz, overlay):
    chance, over = fuzz.chance, overlay('vxvde')
    known = [b'\x02\0\0\0\0' + bytes([number]) for number in range(3)]
    for _ in fuzz.rounds(150):
        over.plug.macs.learn(int.from_bytes(known[0], 'big'), over.peer.getsockname(), 1e12)
        frames, length = [], 60
        for _ in range(chance.randint(1, 64)):
            length = some_length(chance) if chance.random() < 0.2 else length
            length = min(max(length, SHORTEST), LONGEST)
            target = chance.choice(known[:1] * 3 + known + [EVERYONE])
            frames.append(target + fuzz.noise(length - 6))
        over.plug.send(fill(vdelxcd, frames, 8))
        for sock, mine in (over.peer, True), (over.other, False):
            expected = [HEADER + each for each in frames if (each[:6] == known[0]) == mine]
            found = []
            while len(found) < len(expected) and select.select([sock], [], [], 5)[0]:
                found.append(sock.recv(65536))
            assert found == expected
            assert not select.select([sock], [], [], 0)[0]


def test_udp_takes_the_frames_of_its_peer_and_of_nobody_else(vdelxcd, fuzz, closing):
    chance = fuzz.chance
    peer, stranger = closing(Overlays.bound()), closing(Overlays.bound())
    plug = closing(vdelxcd.open_plug(vdelxcd.read_vnl(
        'udp://->127.0.0.1:%d' % peer.getsockname()[1])))
    fd = plug.port.sock.fileno()
    target = '127.0.0.1', plug.port.sock.getsockname()[1]
    for _ in fuzz.rounds(300):
        expected = []
        for _ in range(chance.randint(1, 20)):
            data = fuzz.noise(min(some_length(chance), 20000))
            sender = chance.choice([peer, peer, stranger])
            sender.sendto(data, target)
            if sender is peer and is_frame(data):
                expected.append(data)
        assert drain(plug, fd, chance.choice([1, 64])) == expected


# ---- local sockets and streams ------------------------------------------------------------------

def test_a_local_socket_takes_frames_and_skips_the_rest(vdelxcd, fuzz, closing):
    chance = fuzz.chance
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    closing(ours)
    plug = closing(vdelxcd.LocalSocket(theirs))
    for _ in fuzz.rounds(400):
        plug.gap = chance.choice([0, 8, 12])
        sent = [fuzz.noise(min(some_length(chance), 20000)) for _ in range(chance.randint(1, 8))]
        for data in sent:
            ours.send(data)
        assert drain(plug, plug.fd, chance.choice([1, 64])) == [
            data for data in sent if is_frame(data)]


@pytest.fixture
def command(vdelxcd, closing):
    """A Command without a program, and the program's end of its stream."""
    plug = vdelxcd.Command.__new__(vdelxcd.Command)
    plug.text, plug.pending, plug.errors = b'', b'', -1
    plug.burst, plug.fill, plug.parsed = None, 0, 0
    plug.sock, theirs = socket.socketpair()
    plug.sock.setblocking(False)
    closing(plug.sock)
    return plug, closing(theirs)


def test_a_stream_gives_its_frames_wherever_it_is_cut(vdelxcd, fuzz, command):
    chance, (plug, theirs) = fuzz.chance, command
    theirs.setblocking(False)
    for _ in fuzz.rounds(150):
        sent = [fuzz.noise(min(some_length(chance), 65535)) for _ in range(chance.randint(1, 12))]
        stream = b''.join(struct.pack('>H', len(data)) + data for data in sent)
        found = []
        for piece in fuzz.pieces(stream, 20):
            while piece:
                piece = piece[theirs.send(piece):]
                found += drain(plug, plug.sock.fileno())
        assert found == [data for data in sent if is_frame(data)]


def test_a_reader_that_takes_bits_gets_whole_frames_in_order(vdelxcd, fuzz, command):
    chance, (plug, theirs) = fuzz.chance, command
    plug.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.setblocking(False)
    sent, stream = {}, bytearray()          # number -> frame
    for _ in fuzz.rounds(200):
        frames = []
        for _ in range(chance.randint(1, 20)):
            length = min(max(some_length(chance), SHORTEST), LONGEST)
            head = struct.pack('>I', len(sent))
            sent[len(sent)] = (head + fuzz.noise(60) * 160)[:length]
            frames.append(sent[len(sent) - 1])
        if plug.pending:
            plug.flush()
        plug.send(fill(vdelxcd, frames, 2))
        for _ in range(chance.randint(0, 9)):
            try:
                stream += theirs.recv(chance.choice([1, 2, 100, 5000, 20000]))
            except BlockingIOError:
                break
    while plug.pending or select.select([theirs], [], [], 0)[0]:
        if plug.pending:
            plug.flush()
        stream += theirs.recv(65536)
    place, last, found = 0, -1, 0
    while place < len(stream):
        length = struct.unpack_from('>H', stream, place)[0]
        data = stream[place + 2:place + 2 + length]
        number = struct.unpack_from('>I', data)[0]
        assert number > last and sent[number] == data
        place, last, found = place + 2 + length, number, found + 1
    assert place == len(stream), 'a frame was cut off'
    assert found + plug.drops == len(sent) and found


# ---- VLANs --------------------------------------------------------------------------------------

class Inner:
    """The network inside of a VLAN: what is sent to it, and what it has for us."""

    headroom, drops, changed, groups = 0, 0, False, ()

    def send(self, burst):
        self.sent = frames_of(burst)

    def recv(self, fd):
        return self.burst


def vlan_of(data, kind):
    """The VLAN of a frame, 0 without a tag of the kind."""
    return struct.unpack('>H', data[14:16])[0] & 0xfff if data[12:14] == kind and len(
        data) >= 18 else 0


def retag(data, kind, new):
    """The frame in another VLAN, 0 for none; priority is kept, alone if need be."""
    tagged = data[12:14] == kind and len(data) >= 18
    control = struct.unpack('>H', data[14:16])[0] if tagged else 0
    if new or (tagged and not control & 0xfff):
        return data[:12] + kind + struct.pack('>H', control & 0xf000 | new) + data[
            16 if tagged else 12:]
    return data[:12] + data[16 if tagged else 12:]


def test_tags_are_changed_as_the_vnl_says_and_nothing_else_is(vdelxcd, fuzz):
    chance, passed = fuzz.chance, 0
    for _ in fuzz.rounds(300):
        untagged, untag, a, b, c = chance.sample(range(2, 4095), 5)
        untagged, untag = chance.choice([untagged, 0]), chance.choice([untag, 0])
        trunk, qinq = chance.random() < 0.5, chance.random() < 0.3
        text = 'vlan://%s/tag=%d:%d-%d' % (untagged or '', a, b, c)
        text += ('/untag=%d' % untag if untag else '') + '/trunk' * trunk + '/qinq' * qinq
        plug = vdelxcd.Vlan(vdelxcd.read_vnl(text + '{null://}'), Inner())
        kind = b'\x88\xa8' if qinq else b'\x81\x00'
        table = {a: a, b: c}                # here -> there; 0 is untagged
        table.update({0: untagged} if untagged or not untag else {})
        table.update({untag: 0} if untag else {})
        inside = {there: here for here, there in table.items()}
        frames = []
        for _ in range(chance.randint(1, 30)):
            data = fuzz.noise(12)
            for _ in range(chance.choice([0, 0, 1, 1, 2])):
                vlan = chance.choice([0, 1, 4095, a, b, c, untag, untagged, chance.randrange(4096)])
                data += chance.choice([kind, kind, b'\x81\x00', b'\x88\xa8'])
                data += struct.pack('>H', vlan | chance.randrange(16) << 12)
            data += b'\x88\xb5' + fuzz.noise(chance.randrange(60))
            frames.append(data[:chance.choice([14, 15, 17, 18])] if chance.random() < 0.1 else data)
        for outward in True, False:
            rule = table if outward else inside
            expected = []
            for data in frames:
                vlan = vlan_of(data, kind)
                new = rule.get(vlan, vlan if trunk and 2 <= vlan <= 4094 else None)
                if new is not None:
                    expected.append(retag(data, kind, new))
            plug.inner.burst = fill(vdelxcd, frames, plug.headroom)
            if outward:
                plug.send(plug.inner.burst)
                found = plug.inner.sent
            else:
                found = frames_of(plug.recv(3))
            assert found == expected, text
            passed += len(found)
    assert passed > 200 or len(fuzz.rounds(300)) < 300


# ---- merged segments ----------------------------------------------------------------------------

def apart(version, header, data):
    """A super-segment as the kernel takes it apart, and as the segments were before it."""
    head, size = header[2], header[3]
    payload, found = data[head:], []
    tcp = 34 if version == 4 else 54
    sequence = struct.unpack('>I', data[tcp + 4:tcp + 8])[0]
    for place in range(0, len(payload), size):
        found.append((data[:14], data[tcp:tcp + 4], (sequence + place) & 0xffffffff,
                      data[tcp + 8:tcp + 16], data[tcp + 18:head], payload[place:place + size]))
    return found


def facts(version, data):
    """The same of a single segment."""
    tcp = 34 if version == 4 else 54
    head = tcp + (data[tcp + 12] >> 4 << 2)
    return (data[:14], data[tcp:tcp + 4], struct.unpack('>I', data[tcp + 4:tcp + 8])[0],
            data[tcp + 8:tcp + 16], data[tcp + 18:head], data[head:])


def flows(fuzz, version):
    """A burst of segments of a few connections, in order by and large."""
    chance, frames = fuzz.chance, []
    places = [chance.choice([5, 0xfffff000, 0x7fffff00]) for _ in range(2)]
    size = chance.choice([200, 536, 1448])
    options = chance.choice([b'', b'\1\1\x08\x0a' + fuzz.noise(8)])
    flow = 0
    for index in range(chance.randint(1, 40)):
        flow = chance.randrange(2) if chance.random() < 0.1 else flow
        length = size if chance.random() < 0.9 else chance.randrange(size + 1)
        ack = 99 if chance.random() < 0.95 else 100
        flags = 0x10 if chance.random() < 0.95 else chance.choice([0x18, 0x11, 2])
        frames.append(segment(version, places[flow], fuzz.noise(length), flags, options, index,
                              ports=(4000 + flow, 5201), ack=ack))
        if chance.random() < 0.97:
            places[flow] += length
    return frames


@pytest.mark.parametrize('version', [4, 6])
def test_what_was_merged_is_what_came_when_it_is_taken_apart(writes, fuzz, version):   # noqa: F811
    merged = 0
    for _ in fuzz.rounds(25):
        frames, found = flows(fuzz, version), []
        for header, data in writes.merged(frames):
            assert is_right(version, data)
            if header is None:
                found.append(facts(version, data))
            else:
                merged += 1
                found += apart(version, header, data)
        assert found == [facts(version, data) for data in frames]
    assert merged > 10


def test_whatever_frames_a_burst_has_all_of_their_bytes_are_written(vdelxcd, fuzz, closing):
    chance = fuzz.chance
    ours, theirs = (closing(each) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(False)
    tap = vdelxcd.OffloadTap.__new__(vdelxcd.OffloadTap)        # a write is a datagram
    tap.fd, merged = ours.fileno(), 0
    for _ in fuzz.rounds(150):
        frames, found = [], 0
        for data in flows(fuzz, chance.choice([4, 6]))[:8]:     # as many datagrams may wait
            way = chance.randrange(8)
            if way == 0:
                data = (fuzz.spoil(data) + bytes(14))[:9234]
            elif way == 1:
                data = data[:chance.randint(14, len(data))]
            elif way == 2 and frames:
                data = frames[-1]
            frames.append(data)
        tap.send(fill(vdelxcd, frames, 0))
        for data in iter(lambda: read_or_nothing(theirs), b''):
            _, kind, head, size, _, _ = struct.unpack('=BBHHHH', data[:10])
            found += len(data) - 10
            if kind:                        # the kernel repeats the headers
                merged += 1
                found += (-(-(len(data) - 10 - head) // size) - 1) * head
        assert found == sum(map(len, frames))
    assert merged > 20 and not tap.drops


def read_or_nothing(sock):
    """What waits in a socket, or nothing."""
    try:
        return sock.recv(1 << 17)
    except BlockingIOError:
        return b''
