"""Bulk between two vdelxcd, and the super-segments in it, byte for byte and with all wrong."""

import socket
import struct
import time

import pytest

from fuzzing import fuzz                                                        # noqa: F401
from segments import is_right, ones_sum, segment
from test_fuzz_frames import fill, frames_of

HERE, THERE, ELSEWHERE = ('192.0.2.1', 4001), ('192.0.2.2', 4002), ('192.0.2.3', 4003)
VXLAN = bytes.fromhex('0800000012345600')           # VNI 0x123456
ALICE, BOB = b'\x02\0\0\0\0\x0a', b'\x02\0\0\0\0\x0b'
PARTIAL = 0x8000


class Wire:
    """The socket of a plug: what is sent waits in sent, [(peer, datagram)], in order."""

    def __init__(self):
        self.sent = []

    def sendto(self, data, flags, peer):
        self.sent.append((peer, bytes(data)))

    def sendmsg(self, pieces, ancillary, flags, peer):
        data = b''.join(pieces)
        size = struct.unpack('H', ancillary[0][2])[0] if ancillary else len(data)
        assert len(data) <= 65507 and -(-len(data) // size) <= 64
        for start in range(0, len(data), size):
            self.sendto(data[start:start + size], flags, peer)

    def getsockopt(self, level, option):
        return 0


@pytest.fixture
def node(vdelxcd, monkeypatch):
    """node(address, giants) makes a vxvde plug with Bulk and without sockets; path: its MTU."""
    monkeypatch.setattr(vdelxcd, 'path_mtu', lambda *address, most=0: node_path[0])
    monkeypatch.setattr(vdelxcd.Vxvde, 'is_ours', lambda self, peer, now: near[0])
    monkeypatch.setattr(vdelxcd.Vxvde, 'take_trains', lambda self: None)
    node_path, near = [1472], [False]

    def make(giants=False):
        plug = vdelxcd.Vxvde.__new__(vdelxcd.Vxvde)
        plug.header, plug.macs, plug.ports = VXLAN, vdelxcd.MacTable(128.0), {}
        plug.everyone = ('239.0.0.1', 14789)
        plug.sender = vdelxcd.UdpPort(Wire(), 8)
        plug.wire = plug.sender.sock
        plug.bulk = vdelxcd.Bulk(plug)
        plug.other = vdelxcd.OffloadTap.__new__(vdelxcd.OffloadTap) if giants else None
        plug.taken = []
        if giants:
            plug.other.take_giants = plug.taken.append
        return plug
    make.path, make.near = node_path, near
    return make


def hear(vdelxcd, plug, data, peer=THERE, size=None, now=1.0):
    """Have a plug take what came in one recvmsg(); the burst."""
    burst = vdelxcd.Burst(3 * 65536 + 10000)
    burst.view[100:100 + len(data)] = data
    end = plug.bulk.take(burst, 100, 100 + len(data), size or len(data), peer, now)
    assert 100 <= end <= 100 + len(data) + plug.bulk.LONGEST
    assert all(100 <= start < stop <= end for start, stop in zip(burst.starts, burst.ends))
    return burst


def agree(vdelxcd, ours, theirs):
    """One plug learns that BOB is at THERE, and that THERE takes bulk."""
    ours.macs.learn(int.from_bytes(BOB, 'big'), THERE, vdelxcd.time.monotonic())
    fellow = ours.bulk.meet(THERE)
    ours.bulk.ask(THERE, fellow, vdelxcd.time.monotonic())
    peer, question = ours.wire.sent.pop()
    assert peer == THERE and len(question) == 24
    hear(vdelxcd, theirs, question, HERE, now=vdelxcd.time.monotonic())
    theirs.bulk.answer()
    peer, answer = theirs.wire.sent.pop()
    assert peer == HERE
    hear(vdelxcd, ours, answer, THERE, now=vdelxcd.time.monotonic())
    return fellow


def send(plug, burst):
    """What a plug sends for a burst."""
    plug.send(burst)
    sent, plug.wire.sent = plug.wire.sent, []
    return sent


def giant(version, size, payload, **more):
    """(super-segment as a kernel makes it, burst.giants of it): its sum is the pseudo header's."""
    data = bytearray(segment(version, 1000, payload, **more))
    tcp = 34 if version == 4 else 54
    if version == 4:
        addresses, length = data[26:34], len(data) - 34
    else:
        addresses, length = data[22:54], len(data) - 54
    data[tcp + 16:tcp + 18] = struct.pack('!H', ones_sum(
        bytes(addresses) + struct.pack('!IHH', length, 0, 6)))
    return bytes(data), (size, tcp | PARTIAL)


# ---- super-segments -----------------------------------------------------------------------------

@pytest.mark.parametrize('length', [1, 2, 3, 1460, 2048, 2049, 4096, 65000, 65001])
def test_a_checksum_is_completed_as_the_internet_has_it(vdelxcd, fuzz, length):
    data = bytearray(fuzz.noise(length + 20))
    burst = fill(vdelxcd, [bytes(data), bytes(16)], 8)
    start, end = burst.starts[0], burst.ends[0]
    vdelxcd.add_checksum(burst, start, end, 16)
    whole = bytes(burst.view[start:end])
    assert whole[:16] == data[:16] and whole[18:] == data[18:]
    expected = 0xffff - ones_sum(bytes(data))
    assert int.from_bytes(whole[16:18], 'big') in {expected, 0xffff if expected == 0 else expected}


def test_a_checksum_of_udp_is_never_zero(vdelxcd):
    burst = fill(vdelxcd, [b'\xff\xff' + bytes(18), bytes(16)], 8)
    vdelxcd.add_checksum(burst, burst.starts[0], burst.ends[0], 16)
    assert burst.view[burst.starts[0] + 16:burst.starts[0] + 18] == b'\xff\xff'


@pytest.mark.parametrize('version', [4, 6])
@pytest.mark.parametrize('flags', [0x10, 0x19, 0x98])
@pytest.mark.parametrize('options', [b'', b'\1\1\x08\x0a' + bytes(range(8))])
@pytest.mark.parametrize('size, length', [(1448, 65160), (1448, 1449), (537, 5371), (48, 1000)])
def test_a_cut_super_segment_is_what_a_device_makes_of_it(
        vdelxcd, fuzz, version, flags, options, size, length):
    payload = fuzz.noise(length)
    data, about = giant(version, size, payload, flags=flags, options=options, ident=65530)
    burst = fill(vdelxcd, [data], 8)
    burst.giants[8] = about
    parts = [payload[at:at + size] for at in range(0, length, size)]
    last = len(parts) - 1
    assert frames_of(vdelxcd.cut_giant(burst, 8, 8 + len(data))) == [
        segment(version, 1000 + size * index, part, options=options, ident=65530 + index & 0xffff,
                flags=flags & ~(0 if index == last else 9) & ~(0x80 if index else 0))
        for index, part in enumerate(parts)]


def test_a_tagged_super_segment_is_cut_with_its_tag(vdelxcd, fuzz):
    data, (size, tcp) = giant(4, 1000, fuzz.noise(2500))
    tag = b'\x81\0\0\5'
    burst = fill(vdelxcd, [data[:12] + tag + data[12:]], 8)
    burst.giants[8] = size, tcp + 4
    found = frames_of(vdelxcd.cut_giant(burst, 8, 12 + len(data)))
    assert len(found) == 3
    for each in found:
        assert each[12:16] == tag and is_right(4, each[:12] + each[16:])


# ---- the agreement ------------------------------------------------------------------------------

def test_a_peer_that_says_nothing_is_asked_ever_more_rarely(vdelxcd, node, monkeypatch):
    plug, now = node(), [100.0]
    plug.macs.learn(int.from_bytes(BOB, 'big'), THERE, now[0])
    monkeypatch.setattr(vdelxcd.time, 'monotonic', lambda: now[0])
    frames, asked = [BOB + ALICE + b'\x08\0' + bytes(1500)] * 8, []
    for _ in range(2000):
        plug.macs.learn(int.from_bytes(BOB, 'big'), THERE, now[0])
        sent = send(plug, fill(vdelxcd, frames, 8))
        asked += [now[0]] * sum(data[0] == 0x88 for _, data in sent)
        assert [data for _, data in sent if data[0] != 0x88] == [VXLAN + each for each in frames]
        now[0] += 0.1
    assert 8 <= len(asked) <= 16
    gaps = [later - sooner for sooner, later in zip(asked, asked[1:])]
    assert gaps == sorted(gaps) and 50 < gaps[-1] < 70


def test_frames_that_fit_the_path_are_sent_as_ever_and_nobody_is_asked(vdelxcd, node):
    plug = node()
    plug.macs.learn(int.from_bytes(BOB, 'big'), THERE, vdelxcd.time.monotonic())
    frames = [BOB + ALICE + b'\x08\0' + bytes(1450)] * 30
    assert send(plug, fill(vdelxcd, frames, 8)) == [(THERE, VXLAN + each) for each in frames]


def test_no_frames_are_no_matter(vdelxcd, node):
    """As they come from vlan://, which dropped them."""
    plug = node()
    assert send(plug, fill(vdelxcd, [], 8)) == []


def test_bulk_needs_a_yes_with_the_number_of_the_question(vdelxcd, node):
    plug, other = node(), node()
    fellow = plug.bulk.meet(THERE)
    plug.bulk.ask(THERE, fellow, 1.0)
    hear(vdelxcd, other, plug.wire.sent.pop()[1], HERE)
    other.bulk.answer()
    right = other.wire.sent.pop()[1]
    for wrong in (right[:16] + b'\0' * 8 + right[24:], right[:-1], right + b'\0', right[:16],
                  right[:14] + b'\xff\xfc' + right[16:], b'\x08' + right[1:],
                  right[:7] + b'\1' + right[8:]):
        hear(vdelxcd, plug, wrong)
        assert fellow.until == 0.0
    hear(vdelxcd, plug, right, now=5.0)
    assert fellow.until == 25.0 and not fellow.giants
    hear(vdelxcd, plug, right[:14] + b'\xff\xfd' + right[16:], now=6.0)       # no
    assert fellow.until == 0.0 and fellow.again > 6.0


def test_who_leaves_is_no_fellow_any_more(vdelxcd, node):
    plug, other = node(), node()
    agree(vdelxcd, plug, other)
    assert THERE in plug.bulk.fellows and HERE in other.bulk.askers
    for each, peer in ((plug, THERE), (other, HERE)):
        assert not each.look(bytearray(VXLAN), 0, 8, peer, 1.0)
        assert not each.bulk.fellows and not each.bulk.askers and not each.bulk.coming


def test_however_many_peers_there_are_few_are_kept(vdelxcd, node):
    plug = node()
    piece = struct.pack('>B3xIHIH', 0x88, 0x12345600, 7, 5000, 0) + bytes(100)
    question = struct.pack('>B3xIHIH', 0x88, 0x12345600, 0, 0, 0xffff) + bytes(8)
    for number in range(1000):
        peer = ('192.0.2.9', number)
        hear(vdelxcd, plug, question, peer)
        hear(vdelxcd, plug, piece, peer)
        plug.bulk.meet(peer)
    for known in plug.bulk.askers, plug.bulk.coming, plug.bulk.fellows:
        assert len(known) == 64 and peer in known


def test_who_loses_much_says_no_and_is_sent_frames(vdelxcd, node):
    plug, other = node(), node()
    fellow = agree(vdelxcd, plug, other)
    frames = [BOB + ALICE + b'\x08\0' + bytes(1500)] * 8
    for number in range(65):
        for index, (_, data) in enumerate(send(plug, fill(vdelxcd, frames, 8))):
            if number % 5 or index != 3:
                hear(vdelxcd, other, data, HERE)
        assert (number < 64) == (not other.wire.sent)
    hear(vdelxcd, plug, other.wire.sent.pop()[1], now=vdelxcd.time.monotonic())
    assert fellow.again > vdelxcd.time.monotonic() + 50
    assert [data for _, data in send(plug, fill(vdelxcd, frames, 8))] == [
        VXLAN + each for each in frames]
    for _ in range(3):                      # nor does it say yes
        plug.bulk.ask(THERE, fellow, vdelxcd.time.monotonic())
        hear(vdelxcd, other, plug.wire.sent.pop()[1], HERE)
        other.bulk.answer()
        assert not other.wire.sent


def test_who_will_be_quiet_says_so(vdelxcd, node):
    plug, other = node(True), node(True)
    fellow = agree(vdelxcd, plug, other)
    assert fellow.giants and fellow.until
    other.bulk.end()
    assert other.taken == [False]
    hear(vdelxcd, plug, other.wire.sent.pop()[1], now=1.0)
    assert not fellow.until and fellow.again < 1.1


# ---- frames in bulk -----------------------------------------------------------------------------

def some_burst(vdelxcd, fuzz, gap=8):
    """A burst of frames to BOB, and what they are."""
    chance = fuzz.chance
    lengths = [chance.choice([14, 60, 100, 1514, 1515, 9234]) for _ in range(chance.randint(8, 40))]
    lengths[chance.randrange(len(lengths))] = 1514          # one at least does not fit
    frames = [BOB + ALICE + fuzz.noise(length - 12) for length in lengths]
    return fill(vdelxcd, frames, gap), frames


def trains(fuzz, sent):
    """What the kernel may make of datagrams on their way: runs of one size, the last shorter."""
    random = fuzz.chance.random
    while sent:
        size, count = len(sent[0]), 1
        while count < min(len(sent), 44) and len(sent[count]) <= size and random() < 0.9:
            count += 1
            if len(sent[count - 1]) < size:
                break
        yield b''.join(sent[:count]), size
        sent = sent[count:]


@pytest.mark.parametrize('gap', [8, 12])
def test_whatever_goes_as_bulk_comes_out_in_order(vdelxcd, node, fuzz, gap):
    plug, other = node(), node()
    fellow = agree(vdelxcd, plug, other)
    for _ in fuzz.rounds(100):
        fellow.size = fuzz.chance.choice([1472, 1452, 548, 4000, 65507])
        fellow.most = (fellow.size - 16) * min(64, 65507 // fellow.size)
        burst, frames = some_burst(vdelxcd, fuzz, gap)
        sent = [data for peer, data in send(plug, burst) if peer == THERE]
        if fellow.size < 1500:
            assert {data[0] for data in sent} == {0x88}
            assert max(map(len, sent)) <= fellow.size
        found = []
        for data, size in trains(fuzz, sent):
            if data[0] == 0x88:
                found += frames_of(hear(vdelxcd, other, data, HERE, size))
            else:
                found += [data[at + 8:at + size] for at in range(0, len(data), size)]
        assert found == frames
    assert other.macs.find(int.from_bytes(ALICE, 'big'), 1.0) == HERE and not other.drops


def test_of_bulk_with_datagrams_lost_doubled_and_swapped_whole_frames_come_or_none(
        vdelxcd, node, fuzz):
    plug, other, passed = node(), node(), 0
    fellow = agree(vdelxcd, plug, other)
    other.bulk.askers.clear()               # they would say no
    for _ in fuzz.rounds(200):
        expected, sent = [], []
        for _ in range(3):
            burst, frames = some_burst(vdelxcd, fuzz)
            expected += frames
            sent += [data for _, data in send(plug, burst)]
        for _ in range(fuzz.chance.randrange(3)):
            place, way = fuzz.chance.randrange(len(sent)), fuzz.chance.randrange(3)
            if way == 0:
                del sent[place]
            elif way == 1:
                sent.insert(place, sent[fuzz.chance.randrange(len(sent))])
            else:
                sent[place - 1], sent[place] = sent[place], sent[place - 1]
        found = []
        for data, size in trains(fuzz, sent):
            found += frames_of(hear(vdelxcd, other, data, HERE, size))
        passed += len(found)
        assert fellow.until
        for each in found:
            assert each in expected
        # In order, for what a swap or a second copy brings is left out, or whole.
        places = [expected.index(each) for each in found if expected.count(each) == 1]
        assert places == sorted(places) or len(set(places)) < len(places)
    assert passed > 1000


def test_from_any_datagrams_come_only_frames_that_may_be(vdelxcd, node, fuzz):
    plug, passed = node(), 0
    plug.other = vdelxcd.OffloadTap.__new__(vdelxcd.OffloadTap)
    for _ in fuzz.rounds(1500):
        chance, records = fuzz.chance, b''
        for _ in range(chance.randrange(4)):
            if chance.random() < 0.3:
                data, (size, tcp) = giant(chance.choice([4, 6]), 1448, fuzz.noise(4000))
                size, tcp = chance.choice([(size, tcp & 0x7fff), (0, 0), (size, tcp), (1, tcp),
                                           (size, chance.randrange(65536))])
            else:
                data, size, tcp = fuzz.noise(chance.randrange(100)), 0, 0
            length = len(data) if chance.random() < 0.9 else chance.randrange(1 << 17)
            records += struct.pack('>IHH', length, size, tcp) + data
        total = len(records) if chance.random() < 0.9 else chance.randrange(1 << 18)
        data = struct.pack('>B3xIHIH', 0x88, 0x12345600, 1, total, 0) + records
        if chance.random() < 0.5:
            data = fuzz.spoil(data)
        size = chance.choice([None, len(data), max(len(data) // 2, 1), 17, 100])
        burst = hear(vdelxcd, plug, data, HERE, size)
        for start, end in zip(burst.starts, burst.ends):
            if start in burst.giants:
                size, tcp = burst.giants[start]
                assert size >= 8 and not tcp & PARTIAL and start + tcp + 20 <= end
                plug.other.giant(burst, burst.starts.index(start))
            else:
                assert 14 <= end - start <= 9234
        assert set(burst.giants) <= set(burst.starts)
        passed += len(burst.starts)
    assert passed > 200


@pytest.fixture
def plug(vdelxcd):
    """A vxvde plug with sockets, on loopback, that is not busy yet."""
    own, heard = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with own, heard:
        own.bind(('127.0.0.1', 0))
        heard.bind(('127.0.0.1', 0))
        yield vdelxcd.Vxvde(vdelxcd.read_vnl('vxvde:///vni=1193046'), 0, (own, heard))


def say(plug, data, size):
    """Send a plug datagrams of this size, as one train; what it makes of them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendmsg([data], [(socket.IPPROTO_UDP, 103, struct.pack('H', size))], 0,
                     plug.sender.sock.getsockname())
    return frames_of(plug.recv(plug.sender.sock.fileno()))


def pieces(stream, number, step):
    """A bulk, the datagrams of it."""
    return [struct.pack('>B3xIHIH', 0x88, 0x12345600, number, len(stream), index)
            + stream[at:at + step] for index, at in enumerate(range(0, len(stream), step))]


def record(frame):
    """A frame as it is in a bulk."""
    return struct.pack('>IHH', len(frame), 0, 0) + frame


def test_bulk_that_a_small_buffer_has_no_room_for_ends_no_relay(vdelxcd, plug):
    frames = [BOB + ALICE + bytes([number]) * 6000 for number in range(10)]
    data = pieces(b''.join(map(record, frames)), 1, 6008)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(2):
            for each in data:
                sock.sendto(each, plug.sender.sock.getsockname())
            found = frames_of(plug.recv(plug.sender.sock.fileno()))
            found += frames_of(plug.recv(plug.sender.sock.fileno()))
    assert found == frames and plug.drops == 1


def test_bulks_that_came_in_one_train_do_not_overwrite_each_other(vdelxcd, node, fuzz):
    """Their last datagrams are as long as all others; so the kernel joins them."""
    plug, step, passed = node(), 1456, 0
    for _ in fuzz.rounds(60):
        sent, expected = [], []
        for number in range(fuzz.chance.randint(1, 9)):
            room, records = step * fuzz.chance.choice([1, 2, 9, 40, 44, 45]), []
            while room:
                length = room if room < 3000 else fuzz.chance.randint(100, 2000)
                records.append(record(BOB + ALICE + fuzz.noise(length - 20)))
                room -= length
            expected += [each[8:] for each in records]
            sent += pieces(b''.join(records), number, step)
        burst, found = vdelxcd.Burst(vdelxcd.LARGE_BUFFER[1]), []
        start, drops = 0, plug.drops
        while sent:
            count = fuzz.chance.randint(1, 44)
            data, sent = b''.join(sent[:count]), sent[count:]
            if start > len(burst.buf) - 65536:          # as trains() has it
                found += frames_of(burst)
                del burst.starts[:], burst.ends[:]
                start = 0
            burst.view[start:start + len(data)] = data
            start = plug.bulk.take(burst, start, start + len(data), step + 16, THERE, 1.0)
            assert start <= len(burst.buf)
        found += frames_of(burst)
        assert found == expected or plug.drops > drops and not [
            each for each in found if each not in expected]
        passed += found == expected
    assert passed > 20


@pytest.mark.parametrize('first', [0, 1, 5, 9])
def test_frames_and_bulk_may_come_in_one_train(vdelxcd, plug, first):
    """A frame of 1464 bytes makes a datagram as long as those of bulk."""
    plug.take_trains()
    frames = [BOB + ALICE + bytes([number]) * 1452 for number in range(10)]
    plain = [VXLAN + each for each in frames]
    more = BOB + ALICE + bytes(11 * 1456 - 10 * 1472 - 20)      # the bulk ends with a full datagram
    bulk = pieces(b''.join(map(record, frames + [more])), 1, 1456)
    sent = [*plain[:first], *bulk, *plain[first:]]
    assert {len(each) for each in sent} == {1472}
    assert say(plug, b''.join(sent), 1472) == [
        *frames[:first], *frames, more, *frames[first:]]
    assert plug.drops == 0


def test_a_look_for_tags_does_not_go_on_and_on(vdelxcd, node):
    """Once 24 ms for each of these datagrams, of what earlier ones had left in the buffer."""
    plug, burst = node(True), vdelxcd.Burst(vdelxcd.LARGE_BUFFER[1])
    burst.buf[:] = (b'\x81\0' * len(burst.buf))[:len(burst.buf)]
    data, = pieces(struct.pack('>IHH', 14, 1000, 34) + b'\x81\0' * 7, 1, 100)
    burst.view[:len(data)] = data
    before = time.process_time()
    for _ in range(100):
        plug.bulk.take(burst, 0, len(data), len(data), THERE, 1.0)
    assert time.process_time() - before < 0.2 and plug.drops == 100


# ---- super-segments in bulk ---------------------------------------------------------------------

@pytest.mark.parametrize('version', [4, 6])
def test_a_super_segment_goes_whole_to_who_takes_it_and_its_checksum_is_right(
        vdelxcd, node, fuzz, version):
    plug, other = node(True), node(True)
    agree(vdelxcd, plug, other)
    data, about = giant(version, 1448, fuzz.noise(65160))
    data = BOB + ALICE + data[12:]
    burst = fill(vdelxcd, [data, data[:60]], 8)
    burst.giants[8] = about
    found, giants = [], []
    for each in trains(fuzz, [text for _, text in send(plug, burst)]):
        came = hear(vdelxcd, other, each[0], HERE, each[1])
        found += frames_of(came)
        giants += came.giants.values()
    assert giants == [(1448, about[1] & 0x7fff)] and plug.taken == [True]
    assert is_right(version, found[0]) and found[1:] == [data[:60]]
    check = about[1] - PARTIAL + 16
    assert found[0][:check] == data[:check] and found[0][check + 2:] == data[check + 2:]


def test_on_one_host_the_checksum_is_left_to_the_kernel(vdelxcd, node, fuzz):
    node.near[0], node.path[0] = True, 65507
    plug, other = node(True), node(True)
    agree(vdelxcd, plug, other)
    data, about = giant(4, 1448, fuzz.noise(60000))
    burst = fill(vdelxcd, [BOB + ALICE + data[12:]], 8)
    burst.giants[8] = about
    (_, text), = send(plug, burst)
    came = hear(vdelxcd, other, text, HERE)
    assert list(came.giants.values()) == [about]
    header, view = other.other.giant(came, 0)
    assert struct.unpack('=BBHHHH', header) == (1, 1, 54, 1448, 34, 16)
    assert bytes(view) == BOB + ALICE + data[12:]
    node.near[0] = False                    # from another host nobody takes that
    assert not hear(vdelxcd, other, text, HERE).starts


def test_who_takes_no_super_segments_gets_segments_and_soon_there_are_none(vdelxcd, node, fuzz):
    plug, other = node(True), node(False)
    fellow = agree(vdelxcd, plug, other)
    assert fellow.until and not fellow.giants
    payload = fuzz.noise(5000)
    data, about = giant(4, 1000, payload)
    for number in range(20):
        burst = fill(vdelxcd, [BOB + ALICE + data[12:]], 8)
        burst.giants[8] = about
        assert [text[8:] for _, text in send(plug, burst)] == [
            BOB + ALICE + segment(4, 1000 + at, payload[at:at + 1000], ident=7 + at // 1000)[12:]
            for at in range(0, 5000, 1000)]
        assert plug.taken == ([] if number < 15 else [False])
    assert not hear(vdelxcd, other, struct.pack(        # and it takes none that come
        '>B3xIHIHIHH', 0x88, 0x12345600, 1, len(data) + 8, 0, len(data), 1000, 34) + data).starts


def test_a_super_segment_is_merged_with_nothing(vdelxcd, monkeypatch):
    """The checksum of one may not be done yet."""
    written, tap = [], vdelxcd.OffloadTap.__new__(vdelxcd.OffloadTap)
    monkeypatch.setattr(vdelxcd.os, 'writev', lambda fd, pieces: written.append(b''.join(pieces)))
    data, about = giant(4, 500, bytes(1000))
    plain, tap.fd = segment(4, 1000 - 1200, bytes(1200)), -1
    burst = fill(vdelxcd, [plain, data], 8)
    burst.giants[burst.starts[1]] = about
    tap.send(burst)
    assert [each[10:] for each in written] == [plain, data]


def test_what_the_kernel_left_to_the_device_is_done(vdelxcd, fuzz):
    tap = vdelxcd.OffloadTap.__new__(vdelxcd.OffloadTap)
    data, _ = giant(4, 0, fuzz.noise(999))

    def complete(*header, text=data):
        tap.prefix = bytearray(struct.pack('=BBHHHH', *header))
        burst = fill(vdelxcd, [text, bytes(20)], 8)
        return tap.complete(burst, 8, burst.ends[0]), burst
    done, burst = complete(1, 0, 0, 0, 34, 16)
    assert done and is_right(4, frames_of(burst)[0]) and not burst.giants
    done, burst = complete(0, 0, 0, 0, 0, 0)
    assert done and frames_of(burst)[0] == data
    done, burst = complete(1, 1, 54, 500, 34, 16)
    assert done and burst.giants == {8: (500, 34 | PARTIAL)} and frames_of(burst)[0] == data
    for header in ((0, 1, 54, 500, 34, 16), (1, 1, 54, 7, 34, 16), (1, 0, 0, 0, 65535, 16),
                   (1, 0, 0, 0, 34, 65535), (1, 0, 0, 0, 5, 2), (1, 1, 54, 500, 40, 16),
                   (1, 3, 42, 500, 34, 6)):
        text = data if header[1] != 3 else data[:23] + b'\x11' + data[24:]
        assert not complete(*header, text=text)[0]
    # A container can have what is read begin elsewhere (TUNSETVNETHDRSZ), or give us UDP.
    data, (size, tcp) = giant(6, 500, fuzz.noise(999))
    for text in data, data[:tcp - PARTIAL + 12] + b'\x40' + data[tcp - PARTIAL + 13:], (
            data + bytes(65557 - len(data))):
        assert complete(1, 4, 74, 500, 54, 16, text=text)[0] == (text is data)
    assert not complete(1, 5, 62, 500, 54, 6)[0]


def test_an_interface_is_told_once_that_super_segments_are_wanted(vdelxcd, monkeypatch):
    told = []
    monkeypatch.setattr(vdelxcd.fcntl, 'ioctl', lambda fd, number, value: told.append(value))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tap = vdelxcd.OffloadTap(ours.detach(), 'vde0')
        for really in (False, True, True, False, False, True):
            tap.take_giants(really)
        tap.close()
    assert told == [7, 0, 7]


def test_a_capture_keeps_all_of_a_burst_of_many_short_frames(vdelxcd, closing):
    """More than one sendmsg() takes; a train of acknowledgements can be as many, too."""
    ours, theirs = map(closing, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    control = vdelxcd.Control(None)
    control.captures[0] = [ours, 0]
    control.conns[0] = ours
    control.capture(fill(vdelxcd, [bytes(22)] * 2900, 8))
    assert control.captures[0][1] == 0
    ours.shutdown(socket.SHUT_WR)
    assert sum(map(len, iter(lambda: theirs.recv(1 << 17), b''))) == 2900 * (22 + 16)
