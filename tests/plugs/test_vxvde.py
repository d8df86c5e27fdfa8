"""vxvde: who hears what, what is on the wire, and what is done with what comes from it."""

import socket
import struct
import time

import pytest

from conftest import Namespace, wait_until
from ends import EVERYONE, Refused, bench, frame, new_bench                     # noqa: F401

pytestmark = pytest.mark.slow

PORT = 14789
HEADER = bytes.fromhex('0800000000000100')          # the VNI is 1
GROUPS = {4: '239.0.0.1', 6: 'ff05:56de::1'}
VNLS = {4: 'vxvde://', 6: 'vxvde:///v6'}
both_families = pytest.mark.parametrize('family', (4, 6), ids=('IPv4', 'IPv6'))


class Node:
    """A node made of two plain sockets: the bytes that it gets and sends are nobody's but ours."""

    def __init__(self, host, family=4, group=None, own_port=0):
        kind = (socket.AF_INET6 if family == 6 else socket.AF_INET), socket.SOCK_DGRAM
        self.everyone = group or GROUPS[family], PORT
        self.own, self.heard = host.socket(*kind), host.socket(*kind)
        self.own.bind(('', own_port))
        self.port = self.own.getsockname()[1]
        self.heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.heard.bind(self.everyone)
        binary = socket.inet_pton(kind[0], self.everyone[0])
        if family == 6:
            self.heard.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, binary + bytes(4))
        else:
            self.heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, binary + bytes(8))

    def say(self, *datagrams):
        """Send datagrams to the group."""
        for datagram in datagrams:
            self.own.sendto(datagram, self.everyone)

    def hear(self):
        """The next datagram to the group from somebody else: (bytes, sender)."""
        while True:
            data, peer = self.heard.recvfrom(65536)
            if peer[1] != self.port:
                return data, peer

    def learn_where(self, end, vnl_number=1):
        """The address of the own socket of an End that opened a network."""
        end.send([frame(60, vnl_number, EVERYONE, seed=99)])
        data, peer = self.hear()
        assert data == HEADER + frame(60, vnl_number, EVERYONE, seed=99)
        return peer


def heard_alone(end, sender, source, seed=1000):
    """What an End got before a last broadcast that the sender now sends: a short wait."""
    last = frame(60, source, EVERYONE, seed)
    sender.send([last])
    came = []
    wait_until(lambda: came.extend(end.take(1, 1)) or last in came)
    assert came[-1] == last
    return came[:-1]


class Wire:
    """Every IP packet that goes out of an interface, as it is given to it."""

    def __init__(self, host, interface, family=4):
        self.family = family
        self.ethertype = 0x86dd if family == 6 else 0x0800
        everything = 3                          # ETH_P_ALL; others see only what comes in
        self.sock = host.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(everything))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.sock.bind((interface, everything))

    def datagram(self):
        """The next UDP datagram, or train: a dictionary of its fields."""
        while True:
            data, address = self.sock.recvfrom(1 << 17)
            if address[1:3] != (self.ethertype, socket.PACKET_OUTGOING):
                continue
            if self.family == 6:
                head, protocol, ttl = 40, data[6], data[7]
                source = socket.inet_ntop(socket.AF_INET6, data[8:24])
                target = socket.inet_ntop(socket.AF_INET6, data[24:40])
            else:
                head, protocol, ttl = (data[0] & 15) * 4, data[9], data[8]
                source, target = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
            if protocol == socket.IPPROTO_UDP:
                ports = struct.unpack('!2H', data[head:head + 4])
                return {'ttl': ttl, 'source': (source, ports[0]), 'target': (target, ports[1]),
                        'payload': data[head + 8:]}


# ---- learning -----------------------------------------------------------------------------------

@both_families
def test_a_frame_to_a_learned_mac_goes_to_its_peer_alone(bench, family):
    a, b, c = (bench.open(VNLS[family]) for _ in range(3))
    b.send([frame(60, 2)])
    assert a.take(1) == c.take(1) == [frame(60, 2)]
    frames = [frame(200, 1, 2, seed) for seed in range(20)]
    a.send(frames)
    assert b.take(20) == frames
    assert heard_alone(c, a, 1) == []


@pytest.mark.parametrize('target', [77, EVERYONE, b'\x01\0\x5e\0\0\x01', b'\x33\x33\0\0\0\x01'],
                         ids=['unknown', 'broadcast', 'IPv4 multicast', 'IPv6 multicast'])
def test_a_frame_for_many_or_for_an_unknown_mac_reaches_every_node(bench, target):
    nodes = [bench.open('vxvde://') for _ in range(4)]
    nodes[0].send([frame(60, 1, target)])
    for node in nodes[1:]:
        assert node.take(1) == [frame(60, 1, target)]
    assert heard_alone(nodes[0], nodes[1], 2) == []


def test_a_mac_that_was_silent_for_the_expiry_time_is_unknown_again(bench):
    a, b, c = (bench.open('vxvde:///expiretime=1') for _ in range(3))
    b.send([frame(60, 2)])
    a.take(1), c.take(1)
    learned = time.monotonic()
    a.send([frame(60, 1, 2)])
    assert heard_alone(c, a, 1) == [] or time.monotonic() - learned > 1
    wait_until(lambda: a.send([frame(61, 1, 2)]) and c.take(1, 0.1) == [frame(61, 1, 2)], 4)
    assert time.monotonic() - learned >= 1


def test_a_mac_that_moves_is_followed_to_its_new_peer(bench):
    a, b, c = (bench.open('vxvde://') for _ in range(3))
    for old, new in (b, c), (c, b):
        new.send([frame(60, 2)])
        assert a.take(1) == old.take(1) == [frame(60, 2)]
        a.send([frame(90, 1, 2)])
        assert new.take(1) == [frame(90, 1, 2)]
        assert heard_alone(old, a, 1) == []
        new.take(1)


def test_sources_that_are_multicast_addresses_take_no_place_in_the_mac_table(bench, vdelxcd):
    node = Node(bench.host)
    a = bench.open('vxvde://')
    node.say(HEADER + frame(60, 2))
    assert a.take(1) == [frame(60, 2)]
    for first in range(0, vdelxcd.MACS_MAX, 512):
        odd = [EVERYONE + b'\x03\0\0\0' + number.to_bytes(2, 'big') + b'\x88\xb5'
               for number in range(first, first + 512)]
        node.say(*[HEADER + each for each in odd])
        assert a.take(512) == odd
    a.send([frame(70, 1, 2)])
    assert node.own.recv(9999) == HEADER + frame(70, 1, 2)


def test_ten_thousand_macs_are_bounded_and_the_latest_are_kept(bench, vdelxcd):
    node = Node(bench.host)
    a = bench.open('vxvde://')
    count, kept = 10000, vdelxcd.MACS_MAX
    for first in range(0, count, 500):
        frames = [frame(14, number) for number in range(1000 + first, 1500 + first)]
        node.say(*[HEADER + each for each in frames])
        assert a.take(500) == frames
    for number, known in ((0, False), (count - kept - 1, False), (count - kept, True),
                          (count - 1, True)):
        wanted = frame(60, 1, 1000 + number)
        a.send([wanted])
        if known:
            assert node.own.recv(9999) == HEADER + wanted
        else:
            assert node.hear()[0] == HEADER + wanted
    node.own.settimeout(0)
    node.heard.settimeout(0)
    for sock in node.own, node.heard:
        with pytest.raises(BlockingIOError):
            while sock is node.heard:           # its own flood came back to it
                node.hear()
            sock.recv(9999)


# ---- leaving ------------------------------------------------------------------------------------

@both_families
def test_a_node_that_closes_tells_the_group_with_a_bare_header(bench, family):
    node = Node(bench.host, family)
    a = bench.open('vxvde:///v%d/vni=%d' % (family, 0xabcdef))
    a.do('close')
    assert node.hear()[0] == bytes.fromhex('08000000abcdef00')


def test_a_bare_header_makes_forget_the_macs_of_its_sender_and_of_nobody_else(bench):
    leaving, staying = Node(bench.host), Node(bench.host)
    a = bench.open('vxvde://')
    leaving.say(HEADER + frame(60, 2), HEADER + frame(60, 3))
    staying.say(HEADER + frame(60, 4))
    a.take(3)
    for node, number in (leaving, 2), (leaving, 3), (staying, 4):
        a.send([frame(60, 1, number)])
        assert node.own.recv(9999) == HEADER + frame(60, 1, number)
    leaving.say(HEADER)
    leaving.say(HEADER + frame(60, 5))
    assert a.take(1) == [frame(60, 5)]          # a bare header itself is no frame
    a.send([frame(60, 1, 2)], [frame(60, 1, 3)], [frame(60, 1, 4)], [frame(60, 1, 5)])
    wait = Node(bench.host)
    a.send([frame(60, 1, seed=5)])
    assert wait.hear()[0] == HEADER + frame(60, 1, seed=5)
    assert leaving.own.recv(9999) == HEADER + frame(60, 1, 5)
    assert staying.own.recv(9999) == HEADER + frame(60, 1, 4)
    flooded = []
    while not flooded or flooded[-1] != HEADER + frame(60, 1, seed=5):
        data, peer = staying.hear()
        if peer[1] != leaving.port:
            flooded.append(data)
    assert flooded[:2] == [HEADER + frame(60, 1, 2), HEADER + frame(60, 1, 3)]


def test_a_bare_header_is_honoured_on_the_own_socket_too(bench):
    node = Node(bench.host)
    a = bench.open('vxvde://')
    where = node.learn_where(a)
    node.own.sendto(HEADER + frame(60, 2), where)
    assert a.take(1) == [frame(60, 2)]
    a.send([frame(60, 1, 2)])
    assert node.own.recv(9999) == HEADER + frame(60, 1, 2)
    node.own.sendto(HEADER, where)
    node.own.sendto(HEADER + frame(60, 3), where)
    assert a.take(1) == [frame(60, 3)]
    a.send([frame(60, 1, 2)])
    assert node.hear()[0] == HEADER + frame(60, 1, 2)


# ---- what comes from the wire -------------------------------------------------------------------

GOOD = frame(60, 2, 1)
BAD = {
    'empty': b'',
    'one byte': HEADER[:1],
    'short header': HEADER[:7],
    'no ethernet header': HEADER + GOOD[:13],
    'a byte after the header': HEADER + b'x',
    'flags 0': b'\x00' + HEADER[1:] + GOOD,
    'flags 0x88': b'\x88' + HEADER[1:] + GOOD,
    'flags 0x09': b'\x09' + HEADER[1:] + GOOD,
    'reserved 1': HEADER[:1] + b'\x01' + HEADER[2:] + GOOD,
    'reserved 3': HEADER[:3] + b'\x80' + HEADER[4:] + GOOD,
    'last reserved': HEADER[:7] + b'\x01' + GOOD,
    'VNI 2': HEADER[:6] + b'\x02\x00' + GOOD,
    'VNI 257': HEADER[:5] + b'\x01\x01\x00' + GOOD,
    'VNI 65537': HEADER[:4] + b'\x01\x00\x01\x00' + GOOD,
    'too long': HEADER + frame(9235, 2, 1),
    'much too long': HEADER + frame(40000, 2, 1),
}


@pytest.mark.parametrize('seen', [False, True], ids=['first', 'in a flow'])
@pytest.mark.parametrize('busy', [False, True], ids=['idle', 'after a flood'])
def test_what_is_no_frame_of_this_network_is_dropped_and_teaches_nothing(bench, seen, busy):
    node, other = Node(bench.host), Node(bench.host)
    a = bench.open('vxvde://')
    if busy:                                    # other buffers, trains on
        flood = [frame(9000, 3, seed=seed) for seed in range(10)]
        node.say(*[HEADER + each for each in flood])
        assert a.take(10) == flood
    before = a.do('drops')
    if seen:
        node.say(HEADER + GOOD)
        assert a.take(1) == [GOOD]
    for bad in BAD.values():
        other.say(bad)
        if seen:                                # from the same peer, after a good one
            node.say(bad, HEADER + GOOD)
            assert a.take(1) == [GOOD]
    other.say(HEADER + frame(60, 9))
    assert a.take(1) == [frame(60, 9)]
    counted = len(BAD) - 1                      # an empty datagram is nothing at all
    assert a.do('drops') - before == counted * (2 if seen else 1)
    a.send([frame(70, 1, 2)])
    if seen:
        assert node.own.recv(9999) == HEADER + frame(70, 1, 2)
    else:
        data, peer = other.hear()
        while peer[1] == node.port:
            data, peer = other.hear()
        assert data == HEADER + frame(70, 1, 2)


@pytest.mark.parametrize('other', ['vxvde:///vni=2', 'vxvde:///port=14790', 'vxvde://239.0.0.2',
                                   'vxvde:///v6'])
def test_networks_with_another_vni_port_or_group_hear_nothing_of_each_other(bench, other):
    a, b = bench.open('vxvde://'), bench.open('vxvde://')
    c, d = bench.open(other), bench.open(other)
    for sender, source, strangers in (a, 1, (c, d)), (c, 3, (a, b)):
        sender.send([frame(60, source, seed=seed) for seed in range(5)])
        friend, stranger = (b, strangers) if sender is a else (d, strangers)
        assert len(friend.take(5)) == 5
        assert heard_alone(stranger[1], stranger[0], 8) == []
        stranger[0].take(0, 0)


def test_a_datagram_from_our_port_number_on_another_host_is_not_our_echo(bench, new_host):
    far = new_host('far')
    bench.host.wire(far)
    node = Node(far)
    a = bench.open('vxvde:///if=eth0')
    own_port = node.learn_where(a)[1]
    twin = Node(far, own_port=own_port)
    twin.say(HEADER + frame(60, 2))
    assert a.take(1) == [frame(60, 2)]
    a.send([frame(60, 1, 2)])
    assert twin.own.recv(9999) == HEADER + frame(60, 1, 2)


# ---- what is on the wire ------------------------------------------------------------------------

def test_the_bytes_on_the_wire_are_header_and_frame_and_nothing_else(bench):
    node = Node(bench.host)
    a = bench.open('vxvde:///vni=%d' % 0x123456)
    header = bytes.fromhex('0800000012345600')
    for length in 14, 60, 1514, 9234:
        a.send([frame(length, 1)])
        data, peer = node.hear()
        assert data == header + frame(length, 1)
    node.own.sendto(header + frame(60, 2), ('127.0.0.1', peer[1]))
    assert a.take(1) == [frame(60, 2)]
    a.send([frame(100, 1, 2)])
    data, peer_alone = node.own.recvfrom(9999)
    assert (data, peer_alone[1]) == (header + frame(100, 1, 2), peer[1])


@both_families
@pytest.mark.parametrize('given, ttl', [('', 1), ('/ttl=7', 7)])
def test_ttl_is_that_of_the_option_to_the_group_and_to_a_peer(bench, family, given, ttl):
    node = Node(bench.host, family)
    a = bench.open('vxvde:///v%d%s' % (family, given))
    where = node.learn_where(a)
    node.own.sendto(HEADER + frame(60, 2), where)
    a.take(1)
    wire = Wire(bench.host, 'lo', family)
    a.send([frame(60, 1)], [frame(60, 1, 2)])
    to_group, to_peer = wire.datagram(), wire.datagram()
    assert (to_group['target'], to_group['ttl']) == ((GROUPS[family], PORT), ttl)
    assert (to_peer['target'][1], to_peer['ttl']) == (node.port, ttl)


@both_families
def test_if_sends_and_joins_there_whatever_the_routes_say(bench, new_host, family):
    far = new_host('far')
    bench.host.wire(far)
    bench.host.ip('route replace 239.0.0.0/8 dev lo')
    bench.host.ip('-6 route add local ff05::/16 dev lo')
    node = Node(far, family)
    a = bench.open('vxvde:///v%d/if=eth0' % family)
    a.send([frame(60, 1)])
    assert node.hear()[0] == HEADER + frame(60, 1)
    node.say(HEADER + frame(60, 2))
    assert a.take(1) == [frame(60, 2)]


@both_families
def test_bind_is_the_address_that_datagrams_come_from(bench, new_host, family):
    far = new_host('far')
    bench.host.wire(far)
    address = '192.0.2.77' if family == 4 else '2001:db8::77'
    bench.host.ip('addr add %s dev eth0%s' % (address, ' nodad' if family == 6 else ''))
    node = Node(far, family)
    a = bench.open('vxvde:///v%d/bind=%s' % (family, address))
    assert node.learn_where(a)[0] == address


@pytest.mark.parametrize('vnl', ['vxvde://', 'vxvde:///v6', 'vxvde://239.7.7.7'])
def test_a_group_without_a_route_is_refused_with_advice(new_bench, closing, vnl):
    bench = new_bench(closing(Namespace('nowhere')))
    with pytest.raises(Refused) as refused:
        bench.open(vnl)
    assert refused.value.errno in (19, 101)
    assert 'no route' in str(refused.value) and 'if=' in str(refused.value)


def test_grp_makes_vni_and_group(bench):
    node = Node(bench.host, group='239.1.2.3')
    a = bench.open('vxvde:///grp=%d' % 0x010203)
    a.send([frame(60, 1)])
    assert node.hear()[0] == bytes.fromhex('0800000001020300') + frame(60, 1)


# ---- trains -------------------------------------------------------------------------------------

@both_families
@pytest.mark.parametrize('known', [False, True], ids=['to the group', 'to a peer'])
def test_equal_frames_leave_in_trains_and_arrive_one_by_one(bench, family, known):
    a, b = bench.open(VNLS[family]), bench.open(VNLS[family])
    old = bench.end()
    old.do('old_kernel')
    old.open(VNLS[family])
    receivers = [b, old]
    if known:
        for each in receivers:
            each.send([frame(60, 2 + receivers.index(each))])
            a.take(1)
        for each in receivers:
            each.take(1)
    wire = Wire(bench.host, 'lo', family)
    frames = {number: [frame(1000, 1, number if known else EVERYONE, seed) for seed in range(40)]
              + [frame(500, 1, number if known else EVERYONE)] for number in (2, 3)}
    for number, receiver in zip((2, 3), receivers):
        a.send(frames[number])
        assert wire.datagram()['payload'] == b''.join(HEADER + each for each in frames[number])
        assert receiver.take(41) == frames[number]
        if not known:
            other = receivers[receivers.index(receiver) - 1]
            assert other.take(41) == frames[number]


def test_a_train_has_at_most_64_frames_and_65000_bytes(bench):
    a, b = bench.open('vxvde://'), bench.open('vxvde://')
    wire = Wire(bench.host, 'lo')
    small = [frame(60, 1, seed=seed) for seed in range(150)]
    large = [frame(9234, 1, seed=seed) for seed in range(20)]
    a.send(small, large)
    counts = []
    while sum(counts) < 150:
        counts.append(len(wire.datagram()['payload']) / 68)
    assert counts == [64, 64, 22]
    counts = []
    while sum(counts) < 20:
        counts.append(len(wire.datagram()['payload']) / 9242)
    assert counts == [7, 7, 6]
    assert b.take(170) == small + large


@both_families
@pytest.mark.parametrize('length', [1514, 1443, 1000])
def test_trains_that_do_not_fit_the_mtu_arrive_all_the_same(new_bench, new_host, family, length):
    near, far = new_bench(), new_bench()
    near.host.wire(far.host)
    a, b = (bench.open('vxvde:///v%d/if=eth0' % family) for bench in (near, far))
    wire = Wire(near.host, 'eth0', family)
    wire.sock.settimeout(0.2)
    for known in False, True:
        frames = [frame(length, 1, 2, seed) for seed in range(64)]
        a.send(frames, [frame(1000, 1, 2, seed) for seed in range(10)])
        assert b.take(74) == frames + [frame(1000, 1, 2, seed) for seed in range(10)]
        b.send([frame(60, 2)])
        assert a.take(1) == [frame(60, 2)]
    longest = 0
    with pytest.raises(socket.timeout):
        while True:
            longest = max(longest, len(wire.datagram()['payload']))
    if family == 4:         # the shorter ones still went in trains, whatever happened to others
        assert longest >= 10 * 1008


def test_an_old_kernel_without_trains_sends_and_receives_the_same(bench):
    old = []
    for _ in range(2):
        end = bench.end()
        end.do('old_kernel')
        old.append(end.open('vxvde://'))
    new = bench.open('vxvde://')
    wire = Wire(bench.host, 'lo')
    for sender, receivers in (old[0], (old[1], new)), (new, old):
        frames = [frame(1500, 1, EVERYONE, seed) for seed in range(64)]
        sender.send(frames, [frame(60, 1)])
        for receiver in receivers:
            assert receiver.take(65) == frames + [frame(60, 1)]
        sent = []
        while not sent or sent[-1] != HEADER + frame(60, 1):
            sent.append(wire.datagram()['payload'])
        assert len(sent) == (65 if sender is old[0] else 3)
