"""What every plug does, whatever network it is an end of; the TAP is one of them.

A scheme takes part with one entry below: a function that opens two connected ends on a bench.
"""

import pytest

from conftest import wait_until
from ends import Refused, bench, frame, new_bench                               # noqa: F401

LENGTHS = (60, 1514, 9018, 9234)
LONGEST = 9234
GAP = 8                                 # what the hungriest plug wants before each frame

SCHEMES = {}


def ends_of(name, lengths=LENGTHS):
    """Enter a function (bench, gap) -> two ends; lengths are those that the network can carry."""
    def enter(function):
        SCHEMES[name] = function, lengths
        return function
    return enter


@ends_of('TAP')
def open_taps(bench, gap):
    ends = bench.tap('a0', gap), bench.tap('b0', gap)
    bench.bridge('a0', 'b0')
    return ends


@ends_of('tap')
def open_host_taps(bench, gap):
    ends = bench.open('tap://a0', gap), bench.open('tap://b0', gap)
    bench.bridge('a0', 'b0')
    return ends


@ends_of('vxvde')
def open_vxvde(bench, gap):
    return bench.open('vxvde://', gap), bench.open('vxvde://', gap)


@ends_of('vxvde on IPv6')
def open_vxvde_6(bench, gap):
    return bench.open('vxvde:///v6', gap), bench.open('vxvde:///v6', gap)


# ---- the suite -----------------------------------------------------------------------------------

@pytest.fixture(params=sorted(SCHEMES))
def network(request, bench):
    """(two ends, the lengths that pass between them)."""
    function, lengths = SCHEMES[request.param]
    return function(bench, GAP), lengths


@pytest.fixture
def ends(network):
    """Two connected ends that have heard each other: networks learn where who is."""
    a, b = network[0]
    a.send([frame(60, source=1, seed=1)])
    assert b.take(1) == [frame(60, source=1, seed=1)]
    b.send([frame(60, source=2, seed=1)])
    assert a.take(1) == [frame(60, source=2, seed=1)]
    return a, b


def test_frames_of_every_length_pass_unchanged_and_in_order(network):
    (a, b), lengths = network
    for round in range(2):
        for source, sink, names in (a, b, (1, 2)), (b, a, (2, 1)):
            frames = [frame(length, *names, seed=round) for length in lengths]
            source.send(frames)
            assert sink.take(len(frames)) == frames


@pytest.mark.parametrize('lengths', [
    [1514] * 64,
    [60] * 64,
    [1514] * 63 + [61],
    [60, 1514, 1514, 600, 60, 1000, 1000, 999, 1000, 15, 14, 16] * 5,
    [200] * 5 + [1400] * 50 + [9],
], ids=['64 equal', '64 short', 'a shorter last', 'mixed', 'runt last'])
def test_a_burst_passes_unchanged_and_in_order(ends, lengths):
    for source, sink, names in (ends[0], ends[1], (1, 2)), (ends[1], ends[0], (2, 1)):
        frames = [frame(length, *names, seed=index) for index, length in enumerate(lengths)]
        source.send(frames)
        whole = [each for each in frames if len(each) >= 14]
        assert sink.take(len(whole)) == whole


def test_frames_to_many_targets_in_one_burst_all_pass_in_order(ends):
    a, b = ends
    frames = [frame(1000, 1, b'\x33\x33\0\0\0' + bytes([index % 3]), index) for index in range(30)]
    a.send(frames)
    assert b.take(30) == frames


def test_what_is_no_frame_is_dropped_whole_and_changes_no_neighbour(network, ends):
    a, b = ends
    good = [frame(100, 1, 2, seed=seed) for seed in range(9)]
    a.send([good[0], frame(13, 1, 2), good[1], frame(6, 1, 2), good[2]])
    a.send([frame(13, 1, 2), frame(13, 1, 2)], [good[3]])
    assert b.take(4) == good[:4]
    if max(network[1]) == LONGEST:
        long = [frame(length, 1, 2) for length in (9234, 9235, 9300, 20000, 40000)]
        a.send([good[4]], long[:2], [good[5], long[2], good[6]], long[3:], [good[7]])
        assert b.take(5) == [good[4], long[0], good[5], good[6], good[7]]
    a.send([good[8]])
    assert b.take(1) == [good[8]]


def test_recv_without_frames_gives_an_empty_burst_at_once(ends):
    for end in ends:
        end.do('hold')
        assert end.do('fds') and end.do('readable', seconds=0) == []
        frames, seconds = end.recv()
        assert (frames, seconds < 0.5) == ([], True)


def test_a_descriptor_is_readable_while_frames_wait(ends):
    a, b = ends
    b.do('hold')
    frames = [frame(300, 1, 2, seed) for seed in range(3)]
    a.send(frames[:2])
    readable = b.do('readable', seconds=10)
    assert len(readable) == 1
    assert b.recv(readable[0])[0] == frames[:2]
    assert b.do('readable', seconds=0) == []
    a.send(frames[2:])
    assert b.do('readable', seconds=10) == readable
    assert b.recv(readable[0])[0] == frames[2:]


def test_send_never_waits_and_a_full_queue_costs_only_frames(ends):
    a, b = ends
    b.do('hold')
    many = [frame(1514, 1, 2, seed) for seed in range(64)]
    seconds, _ = a.send(many, times=100)
    assert seconds < 1
    b.do('go_on')
    last = frame(77, 1, 2)
    came = []

    def arrived():
        a.send([last])
        came.extend(b.take(1, 0.1))
        return last in came
    wait_until(arrived)
    came = came[:came.index(last)]
    assert came[:64] == many
    assert set(came) <= set(many)
    assert len(came) < 64 * 100, 'the queue was never full: the test proves nothing'


def test_more_frames_than_a_buffer_holds_come_in_several_bursts(ends):
    a, b = ends
    b.do('hold')
    frames = [frame(1514, 1, 2, seed) for seed in range(100)]
    a.send(frames[:50], frames[50:])
    came, bursts = [], 0
    while len(came) < 100:
        readable = b.do('readable', seconds=10)
        assert readable, 'only %d frames came' % len(came)
        part, _ = b.recv(readable[0])
        came += part
        bursts += 1
    assert (came, bursts > 1) == (frames, True)


def test_open_and_close_leave_no_descriptor_and_close_may_come_twice(ends):
    for end in ends:
        fds = end.do('fds')
        end.do('close')
        left = [line.split()[0] for line in end.do('descriptors')]
        assert not set(map(str, fds)) & set(left)
        end.do('close')


OPEN_AND_CLOSE = ['null://', 'tap://a0', 'vxvde://', 'vxvde:///v6', 'vxvde://239.9.9.9/if=lo']


@pytest.mark.parametrize('vnl', OPEN_AND_CLOSE)
def test_the_descriptors_after_close_are_those_before_open(bench, vnl):
    end = bench.end()
    before = end.do('descriptors')
    for _ in range(3):
        end.open(vnl)
        assert vnl == 'null://' or end.do('descriptors') != before
        end.do('close')
        assert end.do('descriptors') == before


REFUSALS = [
    ('vxvde://192.0.2.1', 22, 'not a multicast group'),
    ('vxvde:///if=nosuch', 19, 'nosuch'),
    ('vxvde:///bind=198.51.100.1', 99, 'assign'),
    ('tap://taken0', 16, 'taken0'),
    ('tap://lo', 22, 'lo'),
    ('nosuch://', 93, 'no such scheme'),
]


@pytest.mark.parametrize('vnl, number, words', REFUSALS)
def test_a_refused_open_has_its_errno_and_leaves_no_descriptor(bench, vnl, number, words):
    bench.tap('taken0')
    end = bench.end()
    before = end.do('descriptors')
    with pytest.raises(Refused) as refused:
        end.open(vnl)
    assert refused.value.errno == number
    assert words in str(refused.value)
    assert end.do('descriptors') == before


def test_null_swallows_everything_and_gives_nothing(bench):
    end = bench.open('null://any/thing')
    assert end.do('fds') == []
    assert end.send([frame(60), frame(9234)] * 20)[1] == 0
    assert end.take(1, 0.1) == []
    end.do('close')
    end.do('close')
