"""What every plug does, whatever network it is an end of; the TAP is one of them.

A scheme takes part with one entry below: a function that opens two connected ends on a bench.
"""

import itertools
import os
import socket
import subprocess

import pytest

from conftest import require, require_namespaces, wait_until
from ends import Bench, Refused, bench, frame, new_bench                        # noqa: F401

LENGTHS = (60, 1514, 9018, 9234)
LONGEST = 9234
GAP = 12                                # what the hungriest network wants before each frame

SCHEMES = {}
HELLOS = itertools.count(10000)        # seeds of frames that are sent once


def ends_of(name, lengths=LENGTHS, inside=False):
    """Enter a function bench -> two ends; lengths are those that the network can carry.

    inside says that send() looks into the frames. It counts on readers, who give it nothing else.
    """
    def enter(function):
        SCHEMES[name] = function, lengths, inside
        return function
    return enter


@ends_of('TAP')
def open_taps(bench):
    ends = bench.tap('a0', GAP), bench.tap('b0', GAP)
    bench.bridge('a0', 'b0')
    return ends


@ends_of('tap')
def open_host_taps(bench):
    ends = bench.open('tap://a0'), bench.open('tap://b0')
    bench.bridge('a0', 'b0')
    return ends


# The device node goes into a /dev of the plug's own: the machine's stays as it is.
WITH_NODE = """mount -t sysfs none /sys && mount -t tmpfs none /dev && mknod /dev/null c 1 3 &&
    IFS=: read major minor < $(echo /sys/class/net/%s/tap*/dev) &&
    mknod /dev/tap$(cat /sys/class/net/%s/ifindex) c $major $minor && exec "$@\""""


@ends_of('macvtap')
def open_macvtaps(bench):
    bench.host.ip('link add e0 mtu 9300 type veth peer name e1 mtu 9300')
    for name in 'e0', 'e1', 'm0', 'm1':
        if name[0] == 'm':
            done = bench.host.ip('link add link e%s name %s type macvtap mode passthru'
                                 % (name[1], name), check=False)
            if 'Unknown device type' in done.stderr:
                pytest.skip('this kernel has no macvtap devices: it needs CONFIG_MACVTAP')
            assert done.returncode == 0, done.stderr
        bench.set('ipv6/conf/%s/disable_ipv6' % name, 1)
        bench.host.ip('link set %s allmulticast on up' % name)
    return tuple(bench.open('macvtap://' + name, before=(
        'unshare', '-m', 'sh', '-c', WITH_NODE % (name, name), '-')) for name in ('m0', 'm1'))


@ends_of('vxvde')
def open_vxvde(bench):
    return bench.open('vxvde://'), bench.open('vxvde://')


@ends_of('vxvde on IPv6')
def open_vxvde_6(bench):
    return bench.open('vxvde:///v6'), bench.open('vxvde:///v6')


@ends_of('vxlan')
def open_vxlan(bench):
    far = bench.wired()
    return bench.open('vxlan://'), bench.open('vxlan://', host=far)


@ends_of('udp')
def open_udp(bench):
    return bench.open('udp://1001->127.0.0.1:1002'), bench.open('udp://1002->127.0.0.1:1001')


@ends_of('udp on IPv6')
def open_udp_6(bench):
    return bench.open('udp://1001->[::1]:1002'), bench.open('udp://[::1]:1002->[::1]:1001')


@ends_of('vde to a vde_switch', lengths=(60, 1514))
def open_vde(bench):
    require('vde_switch')
    path = bench.directory + '/switch'
    bench.host.popen('vde_switch', '-s', path, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_until(lambda: os.path.exists(path + '/ctl'))
    return bench.open('vde://' + path), bench.open('vde://' + path)


def open_node(scheme, other):
    """An opener of ends: the node itself, and one that joins it."""
    def opened(bench):
        path = '://' + bench.directory + '/node'
        return bench.open(scheme + path), bench.open(other + path)
    return opened


for scheme in 'hub', 'switch', 'multi', 'bonding':
    ends_of(scheme, inside=scheme == 'switch')(open_node(scheme, 'vde'))
ends_of('hub joined by its own name')(open_node('hub', 'hub'))


@ends_of('members of a switch node')
def open_members(bench):
    path = '://' + bench.directory + '/node'
    bench.open('switch' + path)
    return bench.open('vde' + path), bench.open('switch' + path)


@ends_of('ptp')
def open_ptp(bench):
    path = 'ptp://' + bench.directory + '/ptp'
    return bench.open(path), bench.open(path)


@ends_of('seqpacket')
def open_seqpacket(bench):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        return tuple(bench.open('seqpacket://%d' % each.fileno(), inherited=(each.fileno(),))
                     for each in (ours, theirs))


@ends_of('cmd')
def open_cmd(bench):
    there, back = bench.directory + '/there', bench.directory + '/back'
    os.mkfifo(there)
    os.mkfifo(back)
    line = "cmd://sh -c 'cat %s & cat > %s'"
    return bench.open(line % (there, back)), bench.open(line % (back, there))


@ends_of('vlan, nothing tagged', inside=True)
def open_vlan(bench):
    return bench.open('vlan://{vxvde://}'), bench.open('vlan://{vxvde://}')


@ends_of('vlan, tagged on the network', lengths=(60, 1514, 9018, 9230), inside=True)
def open_tagged(bench):
    return bench.open('vlan://5{vxvde://}'), bench.open('vlan://5{vxvde://}')


def test_every_scheme_takes_part(vdelxcd):
    assert set(vdelxcd.PLUGS) - {name.split()[0].strip(',') for name in SCHEMES} == {'null'}


# ---- the suite ----------------------------------------------------------------------------------

@pytest.fixture(scope='module', params=sorted(SCHEMES))
def network(request, tmp_path_factory):
    """(two connected ends of one scheme, the rest of its entry above), for all tests."""
    require_namespaces()
    bench = Bench(tmp_path_factory.mktemp('bench'))
    try:
        function, *rest = SCHEMES[request.param]
        yield [function(bench)] + rest
    finally:
        bench.close()


@pytest.fixture
def ends(network):
    """Two connected ends that take frames and have just heard each other; nothing is on its way."""
    a, b = network[0]
    for end in a, b:
        end.do('go_on')
    for source, sink, number in (a, b, 1), (b, a, 2):
        hello = frame(60, number, seed=next(HELLOS))
        source.send([hello])
        wait_until(lambda: sink.take(1, 1)[-1:] == [hello], what='a frame comes last')
    return a, b


def test_frames_of_every_length_pass_unchanged_and_in_order(network):
    (a, b), lengths, _ = network
    for round in range(2):
        for source, sink, names in (a, b, (1, 2)), (b, a, (2, 1)):
            frames = [frame(length, *names, seed=round) for length in lengths]
            source.send(frames)
            assert sink.take(len(frames)) == frames


BURSTS = [
    [1514] * 64,
    [60] * 64,
    [1514] * 63 + [61],
    [60, 1514, 1514, 600, 60, 1000, 1000, 999, 1000, 15, 14, 16] * 5,
]


@pytest.mark.slow
def test_bursts_pass_unchanged_and_in_order(ends):
    for lengths in BURSTS:
        for source, sink, names in (ends[0], ends[1], (1, 2)), (ends[1], ends[0], (2, 1)):
            frames = [frame(length, *names, seed=index) for index, length in enumerate(lengths)]
            source.send(frames)
            assert sink.take(len(frames)) == frames
    several = [frame(1000, 2, b'\x33\x33\0\0\0' + bytes([index % 3]), index)
               for index in range(30)]
    ends[1].send(several)
    assert ends[0].take(30) == several


def test_what_is_no_frame_is_dropped_whole_and_changes_no_neighbour(network, ends):
    a, b = ends
    good = [frame(100, 1, 2, seed=seed) for seed in range(9)]
    short = [] if network[2] else [frame(length, 1, 2) for length in (13, 6, 13, 13, 9)]
    a.send([good[0]] + short[:1] + [good[1]] + short[1:2] + [good[2]])
    a.send(short[2:4], [good[3]] + short[4:])
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


def received(end, count):
    """So many frames, by recv() of a descriptor that is readable."""
    frames = []
    while len(frames) < count:
        readable = end.do('readable', seconds=10)
        assert readable, 'only %d frames came' % len(frames)
        frames += end.recv(readable[0])[0]
    return frames


def test_a_descriptor_is_readable_while_frames_wait(ends):
    a, b = ends
    b.do('hold')
    frames = [frame(300, 1, 2, seed) for seed in range(4)]
    a.send(frames[:2])
    assert received(b, 2) == frames[:2]
    assert b.do('readable', seconds=0) == []
    a.send(frames[2:3])
    assert received(b, 1) == frames[2:3]
    assert b.do('readable', seconds=0) == []


@pytest.mark.slow
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


def test_a_hundred_frames_that_wait_come_complete_and_in_order(ends):
    a, b = ends
    b.do('hold')
    frames = [frame(300, 1, 2, seed) for seed in range(100)]
    a.send(frames[:50], frames[50:])
    assert received(b, 100) == frames


@pytest.mark.parametrize('scheme', sorted(SCHEMES))
def test_close_closes_every_descriptor_and_may_come_twice(bench, scheme):
    for end in reversed(SCHEMES[scheme][0](bench)):
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
    ('nosuch://', 93, 'nosuch'),
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


@pytest.mark.parametrize('kind', ['a pipe', 'a stream', 'UDP', 'nothing'])
def test_a_descriptor_that_is_no_packet_socket_is_refused_and_not_kept(bench, kind):
    unix = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pipe = os.pipe()
    with unix[0], unix[1], socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        number = {'a pipe': pipe[0], 'a stream': unix[0].fileno(), 'UDP': udp.fileno(),
                  'nothing': 999}[kind]
        end = bench.end(inherited=() if kind == 'nothing' else (number,))
        before = end.do('descriptors')
        with pytest.raises(Refused) as refused:
            end.open('seqpacket://%d' % number)
    for fd in pipe:
        os.close(fd)
    assert refused.value.errno == 9
    assert end.do('descriptors') == before


def test_null_swallows_everything_and_gives_nothing(bench):
    end = bench.open('null://any/thing')
    assert end.do('fds') == []
    assert end.send([frame(60), frame(9234)] * 20)[1] == 0
    assert end.take(1, 0.1) == []
    end.do('close')
    end.do('close')
