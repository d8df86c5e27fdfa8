"""vxlan://, against the kernel's own vxlan device on another host."""

import os

import pytest

import peers
from conftest import require, wait_until
from peers import RawPort, expect, frame, join, refused

GROUPS = {4: '239.5.5.5', 6: 'ff05::5:5'}


@pytest.fixture(params=[4, 6])
def kernel(request, host, new_host, new_daemon, new_container):
    """(daemon, container with vde0, the far host with the kernel's x0): an overlay of one VNI."""
    require('ethtool')
    far = new_host('far')
    host.wire(far, mtu=1600)
    for each in host, far:
        each.ip('-6 route replace multicast ff05::/16 dev eth0 table local', check=False)
    group = GROUPS[request.param]
    far.ip('link add x0 type vxlan id 4242 group %s dstport 8472 dev eth0 ttl 4' % group)
    # A cable of the tests carries the inner checksum unfinished, as for a card that finishes it.
    far.run('ethtool', '-K', 'x0', 'tx', 'off')
    far.ip('addr add 10.0.0.2/24 dev x0')
    far.ip('-6 addr add 2001:db8:1::2/64 dev x0 nodad')
    far.ip('link set x0 up')
    daemon, c = new_daemon(host), new_container('c')
    join(c, daemon, 'vxlan://%s/vni=4242/port=8472/if=eth0' % group,
         '10.0.0.1/24', '2001:db8:1::1/64')
    return daemon, c, far


def test_the_kernels_device_is_a_peer(kernel, closing):
    _, c, far = kernel
    c.ping('10.0.0.2')
    far.ping('10.0.0.1')
    far.ping('2001:db8:1::1')
    c.ping('2001:db8:1::2', size=1400)
    peers.transfer(c, far, '10.0.0.2', 2 << 20)
    peers.transfer(far, c, '10.0.0.1', 2 << 20)


def test_a_learned_mac_is_sent_to_alone(kernel, closing):
    _, c, far = kernel
    near, end, wire = [closing(RawPort(*each)) for each in ((c, 'vde0'), (far, 'x0'),
                                                            (far, 'eth0'))]
    near.send(frame(source=1, target=2, seed=0))
    expect(end, frame(source=1, target=2, seed=0))
    assert datagrams(wire) == (1, 0), 'not learned yet: to the group'
    end.send(frame(source=2, target=1, seed=1))
    expect(near, frame(source=2, target=1, seed=1))
    sent = [frame(source=1, target=2, seed=seed) for seed in range(2, 52)]
    near.send(*sent)
    expect(end, *sent)
    assert datagrams(wire) == (0, 50), 'nothing to the group, all to one host'


def test_frames_reach_the_kernel_and_come_back_as_they_are(kernel, closing):
    _, c, far = kernel
    near, end = closing(RawPort(c, 'vde0')), closing(RawPort(far, 'x0'))
    tagged = [(0x8100, 0xe005)]
    for length in 60, 61, 1000, 1514:
        near.send(frame(length, source=1, seed=length))
        expect(end, frame(length, source=1, seed=length))
        end.send(frame(length, source=2, target=1, seed=length))
        expect(near, frame(length, source=2, target=1, seed=length))    # and no echo before
    near.send(frame(100, source=1, target=2, tags=tagged))
    expect(end, frame(100, source=1, target=2, tags=tagged))


def test_another_vni_is_not_heard(kernel, new_container, new_daemon, closing):
    daemon, c, far = kernel
    group = GROUPS[6 if 'ff05' in far.ip('-d link show x0').stdout else 4]
    far.ip('link set x0 down')
    far.ip('link del x0')
    far.ip('link add x0 type vxlan id 7 group %s dstport 8472 dev eth0 ttl 4' % group)
    far.ip('link set x0 up')
    near, end = closing(RawPort(c, 'vde0')), closing(RawPort(far, 'x0'))
    end.send(frame(seed=1))
    near.send(frame(seed=2))
    far.ip('link set x0 down')
    far.ip('link del x0')
    far.ip('link add x0 type vxlan id 4242 group %s dstport 8472 dev eth0 ttl 4' % group)
    far.ip('link set x0 up')
    end = closing(RawPort(far, 'x0'))
    end.send(frame(seed=3))
    expect(near, frame(seed=3))
    near.send(frame(seed=4))
    expect(end, frame(seed=4))


ERRORS = [
    ('vxlan://10.0.0.1', 22, '10.0.0.1 is not a multicast group'),
    ('vxlan://example.org', 22, 'example.org is not an IP address'),
    ('vxlan://239.1.1.1/if=nothere', 19, 'no interface nothere on this host'),
    ('vxlan://239.1.1.1/vni=16777216', 22, 'is not within 0 to 16777215'),
    ('vxlan://239.1.1.1/port=0', 22, 'is not within 1 to 65535'),
    ('vxlan://239.1.1.1/bind=127.0.0.1', 22, 'no option bind'),
    ('vxlan://239.1.1.1/v6', 22, 'IPv4 and IPv6 mixed'),
    ('vxvde://239.1.1.1/if=nothere', 19, 'no interface nothere on this host'),
    ('vxvde://192.0.2.1', 22, '192.0.2.1 is not a multicast group'),
    ('vxvde://239.1.1.1/bind=192.0.2.77', 99, 'group 239.1.1.1'),
]


def test_errors_name_the_number_and_the_reason(host, new_daemon, new_container):
    daemon, c = new_daemon(host), new_container('c')
    for vnl, number, words in ERRORS:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line, vnl
        assert words in logged and vnl in logged, logged
    host.ip('route del 239.0.0.0/8 dev lo')
    for scheme in 'vxlan', 'vxvde':
        line, logged = refused(c, daemon, scheme + '://239.1.1.1')
        assert os.strerror(19) in line or os.strerror(101) in line
        assert '239.1.1.1: ' in logged and 'no route to it' in logged


def test_a_host_has_room_for_one_vxlan_on_a_port(host, new_daemon, new_container):
    daemon, c = new_daemon(host), new_container('c')
    join(c, daemon, 'vxlan://239.1.1.1', name='one0')
    done = c.client('-s', daemon.socket, '-i', 'two0', 'vxlan://239.1.1.2', check=False)
    assert done.returncode == 1 and os.strerror(98) in done.stderr
    assert os.strerror(98) in daemon.log() and 'vxlan://239.1.1.2' in daemon.log()
    wait_until(lambda: c.interfaces() == {'lo', 'one0'})
    join(c, daemon, 'vxlan://239.1.1.2/port=4790', name='two0')


def test_a_silent_peer_is_forgotten(host, new_host, new_daemon, new_container, closing):
    """After expiretime a frame for a learned MAC goes to the group again."""
    far = new_host('far')
    host.wire(far)
    daemon, c = new_daemon(host), new_container('c')
    join(c, daemon, 'vxlan://239.5.5.5/expiretime=1/if=eth0')
    far.ip('link add x0 type vxlan id 1 group 239.5.5.5 dstport 4789 dev eth0')
    far.ip('link set x0 up')
    near, end = closing(RawPort(c, 'vde0')), closing(RawPort(far, 'x0'))
    wire = closing(RawPort(far, 'eth0'))
    end.send(frame(source=2, seed=1))
    expect(near, frame(source=2, seed=1))
    near.send(frame(source=1, target=2, seed=2))
    expect(end, frame(source=1, target=2, seed=2))
    assert datagrams(wire)[1] == 1

    def flooded():
        near.send(frame(source=1, target=2, seed=3))
        return end.frames(1) and datagrams(wire)[0]
    wait_until(flooded, timeout=4)


def datagrams(wire):
    """The test frames in what a raw port got: (to a group, to one host); a train holds many."""
    found = [0, 0]
    for data in iter(lambda: wire.one(0.05), None):
        found[not data[0] & 1] += data.count(peers.ETHERTYPE)
    return tuple(found)
