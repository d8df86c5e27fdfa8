"""Merging TCP segments: what the kernel would find in a super-segment, computed the plain way."""

import random
import struct

import pytest

from segments import is_right, segment


class Writes:
    """An OffloadTap without a TAP: merge() only looks at a burst."""

    def __init__(self, vdelxcd):
        self.vdelxcd = vdelxcd
        self.tap = vdelxcd.OffloadTap.__new__(vdelxcd.OffloadTap)

    def merged(self, frames):
        """What would be written: [(virtio header or None, frame)]."""
        burst = self.vdelxcd.Burst(sum(map(len, frames)) + 8 * len(frames))
        place = 0
        for frame in frames:
            place += 8
            burst.starts.append(place)
            burst.buf[place:place + len(frame)] = frame
            place += len(frame)
            burst.ends.append(place)
        first, out = 0, []
        while first < len(frames):
            last, pieces = self.tap.merge(burst, first)
            if pieces is None:
                assert last == first + 1
                out.append((None, bytes(burst.view[burst.starts[first]:burst.ends[first]])))
            else:
                out.append((struct.unpack('=BBHHHH', pieces[0]), b''.join(pieces[1:])))
            first = last
        return out


@pytest.fixture
def writes(vdelxcd):
    return Writes(vdelxcd)


OPTIONS = b'\1\1\x08\x0a' + b'\0\1\2\3' + b'\4\5\6\7'       # NOP NOP timestamp
VERSIONS = pytest.mark.parametrize('version', [4, 6])


@VERSIONS
def test_a_row_of_segments_becomes_one_with_right_checksums(writes, version):
    chance = random.Random(version)
    for count in 2, 3, 17, 44:
        for size, last in (1448, 1448), (1448, 1), (1448, 777), (536, 536), (1000, 999):
            options = chance.choice([b'', OPTIONS])
            start = chance.choice([5, 0xffffffff - 3 * size, 0x7fffffff])
            payloads = [bytes(chance.getrandbits(8) for _ in range(size)) for _ in range(count - 1)]
            payloads.append(bytes(chance.getrandbits(8) for _ in range(last)))
            frames = [segment(version, start + size * index, payload, options=options, ident=index)
                      for index, payload in enumerate(payloads)]
            assert all(is_right(version, frame) for frame in frames)
            (header, frame), = writes.merged(frames)
            head = {4: 34, 6: 54}[version] + 20 + len(options)
            assert header == (0, {4: 1, 6: 4}[version], head, size, 0, 0)
            assert frame[head:] == b''.join(payloads)
            assert is_right(version, frame)
            length = struct.unpack('!H', frame[16:18] if version == 4 else frame[18:20])[0]
            assert length == len(frame) - (14 if version == 4 else 54)


@VERSIONS
def test_one_wrong_bit_anywhere_is_never_made_right(writes, version):
    chance = random.Random(7 + version)
    size = 600
    good = [segment(version, 1000 + size * index, bytes(chance.getrandbits(8) for _ in range(size)),
                    options=OPTIONS) for index in range(5)]
    for _ in range(3000):
        frames = list(good)
        which, place = chance.randrange(5), chance.randrange(14, len(good[0]))
        frame = bytearray(frames[which])
        frame[place] ^= 1 << chance.randrange(8)
        frames[which] = bytes(frame)
        known = {bytes(each): True for each in good}
        delivered = b''
        for header, frame in writes.merged(frames):
            if header is None:
                if is_right(version, frame):
                    # Fields that no checksum covers are the sender's business.
                    assert frame in known or version == 6
                    delivered += frame[-size:]
            elif is_right(version, frame):
                delivered += frame[header[2]:]
        whole = [each[-size:] for each in good]
        assert len(delivered) % size == 0
        for index in range(0, len(delivered), size):
            assert delivered[index:index + size] in whole


@VERSIONS
@pytest.mark.parametrize('change', [
    dict(flags=0x18), dict(flags=0x11), dict(flags=0x90), dict(ack=100), dict(window=501),
    dict(ports=(4001, 5201)), dict(options=OPTIONS[:-1] + b'\x09')])
def test_what_differs_in_any_other_field_is_not_merged(writes, version, change):
    first = dict(options=OPTIONS)
    second = dict(first, **change)
    frames = [segment(version, 0, b'a' * 500, **first), segment(version, 500, b'b' * 500, **second)]
    assert writes.merged(frames) == [(None, frame) for frame in frames]


@VERSIONS
def test_neither_gaps_nor_order_nor_fragments_nor_odd_sizes_are_merged(writes, version):
    def alone(*frames):
        assert writes.merged(list(frames)) == [(None, frame) for frame in frames]
    alone(segment(version, 0, b'a' * 500), segment(version, 1000, b'b' * 500))
    alone(segment(version, 500, b'a' * 500), segment(version, 0, b'b' * 500))
    alone(segment(version, 0, b'a' * 501), segment(version, 501, b'b' * 501))
    alone(segment(version, 0, b'a' * 500), segment(version, 500, b'b' * 502))
    alone(segment(version, 0, b''), segment(version, 0, b''))
    alone(segment(version, 0, b'a' * 500, flags=2), segment(version, 500, b'b' * 500, flags=2))
    alone(segment(version, 0, b'a' * 500) + b'pad', segment(version, 500, b'b' * 500))
    alone(segment(version, 0, b'a' * 500), segment(version, 500, b'b' * 500) + b'pad')
    for fragment in (0x2000, 0x0040, 0x4040, 0x8000, 0x0001) if version == 4 else ():
        more = dict(dont_fragment=fragment)
        alone(segment(4, 0, b'a' * 500, **more), segment(4, 500, b'b' * 500, **more))


def test_a_super_segment_fits_an_ip_packet(writes):
    frames = [segment(4, 9000 * index, bytes(9000)) for index in range(20)]
    sizes = [len(frame) for _, frame in writes.merged(frames)]
    assert max(sizes) <= 65535 + 14 and len(sizes) == 3


def test_other_frames_pass_as_they_are(writes):
    chance = random.Random(3)
    for _ in range(2000):
        frame = bytearray(segment(chance.choice([4, 6]), 5, bytes(400)))
        frame[12:16] = bytes(chance.getrandbits(8) for _ in range(4))
        frames = [bytes(frame), bytes(frame)]
        assert writes.merged(frames) == [(None, each) for each in frames]
