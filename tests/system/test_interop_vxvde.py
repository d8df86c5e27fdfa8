"""vxvde together with the C implementation: Debian's vde_plug on one side, our daemon on the other.

A vde_plug carries frames between vxvde and a TAP of its host; the TAP then moves into a container,
which is thus on the network without a line of our code.
"""

import hashlib
import os
import random
import socket
import struct
import subprocess
import threading

import pytest

from conftest import require, wait_until

OURS, THEIRS = 1, 2
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC = 263, 1, 1     # linux/if_packet.h


@pytest.fixture
def vde_plug(new_container):
    """vde_plug(host, container, vnl, *addresses): the C implementation gives a container c0."""
    require('vde_plug')
    taps = iter(range(100))

    def start(host, container, vnl, *addresses, mtu=1500):
        name = 'c%d' % next(taps)
        host.popen('vde_plug', vnl, 'tap://' + name, stdin=subprocess.DEVNULL)
        wait_until(lambda: name in host.interfaces(), what='vde_plug has its TAP')
        host.ip('link set %s netns /proc/%d/ns/net' % (name, container.holder.pid))
        container.ip('link set %s name c0 mtu %d' % (name, mtu))
        container.up('c0', *addresses)
    return start


def ours(daemon, container, vnl, *addresses, mtu=1500):
    """Our client gives a container vde0."""
    container.client('-s', daemon.socket, vnl)
    container.ip('link set vde0 mtu %d' % mtu)
    container.up('vde0', *addresses)


class Raw:
    """The frames of an interface that are of the ethertype for experiments."""

    def __init__(self, container, interface, number):
        self.mac = b'\x02\0\0\0\0' + bytes([number])
        self.sock = container.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.sock.bind((interface, 0x88b5))
        # Frames to other MACs are wanted as well: a third node must not even see them.
        index = int(container.ip('-o link show ' + interface).stdout.split(':')[0])
        self.sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP,
                             struct.pack('iHH8x', index, PACKET_MR_PROMISC, 0))

    def send(self, length, seed, target=b'\xff' * 6):
        """Send a frame and return it."""
        noise = random.Random('%d %d' % (length, seed)).getrandbits(8 * (length - 14))
        data = target + self.mac + b'\x88\xb5' + noise.to_bytes(length - 14, 'big')
        self.sock.send(data)
        return data

    def get(self, count):
        """The next frames."""
        return [self.sock.recv(65536) for _ in range(count)]


NETWORKS = ['vxvde://', 'vxvde:///v6', 'vxvde://239.1.2.3', 'vxvde://ff05::77',
            'vxvde:///port=4444', 'vxvde:///vni=77',
            'vxvde://239.5.6.7/port=999/vni=16777215/ttl=3']


@pytest.mark.parametrize('vnl', NETWORKS)
@pytest.mark.parametrize('hosts', [1, 2], ids=['one host', 'two hosts'])
def test_ping_both_ways(pair, new_host, vde_plug, vnl, hosts):
    daemon, a, b = pair
    far = daemon.host
    if hosts == 2:
        far = new_host('far')
        daemon.host.wire(far)
    vde_plug(far, b, vnl, '10.0.0.2/24', 'fd00::2/64')
    ours(daemon, a, vnl, '10.0.0.1/24', 'fd00::1/64')
    for address in '10.0.0.2', 'fd00::2':
        a.ping(address)
    for address in '10.0.0.1', 'fd00::1':
        b.ping(address)


@pytest.mark.parametrize('hosts', [1, 2], ids=['one host', 'two hosts'])
def test_frames_of_60_to_9018_bytes_pass_unchanged_both_ways(pair, new_host, vde_plug, hosts):
    daemon, a, b = pair
    far = daemon.host
    if hosts == 2:
        far = new_host('far')
        daemon.host.wire(far)
    vde_plug(far, b, 'vxvde://', mtu=9004)
    ours(daemon, a, 'vxvde://', mtu=9004)
    here, there = Raw(a, 'vde0', OURS), Raw(b, 'c0', THEIRS)
    for target in None, here.mac:               # first to the group, then to each other
        for seed, length in enumerate([60, 61, 64, 500, 1442, 1443, 1514, 1515, 4000, 9017, 9018]):
            for sender, receiver in (here, there), (there, here):
                to = b'\xff' * 6 if target is None else receiver.mac
                assert [sender.send(length, seed, to)] == receiver.get(1)


def test_a_burst_of_equal_frames_arrives_whole_and_in_order(pair, vde_plug):
    daemon, a, b = pair
    vde_plug(daemon.host, b, 'vxvde://')
    ours(daemon, a, 'vxvde://')
    here, there = Raw(a, 'vde0', OURS), Raw(b, 'c0', THEIRS)
    for sender, receiver in (here, there), (there, here):
        assert [sender.send(60, 0)] == receiver.get(1)
        lengths = [1000] * 60 + [999] + [60] * 60
        sent = [sender.send(length, seed, receiver.mac) for seed, length in enumerate(lengths)]
        assert receiver.get(len(sent)) == sent


@pytest.mark.parametrize('other', ['vxvde:///vni=2', 'vxvde:///port=14790', 'vxvde://239.0.0.9'])
def test_another_vni_port_or_group_hears_nothing(host, new_daemon, new_container, vde_plug, other):
    daemon = new_daemon(host)
    mine, friend, stranger, beyond = (new_container(name) for name in 'abcd')
    ours(daemon, mine, 'vxvde://')
    vde_plug(host, friend, 'vxvde://')
    vde_plug(host, stranger, other)
    ours(daemon, beyond, other)
    nodes = [Raw(mine, 'vde0', 1), Raw(friend, 'c0', 2), Raw(stranger, 'c0', 3),
             Raw(beyond, 'vde0', 4)]
    sent = [nodes[0].send(60, seed) for seed in range(3)]
    assert nodes[1].get(3) == sent
    sent = [nodes[1].send(70, seed) for seed in range(3)]
    assert nodes[0].get(3) == sent
    for sender, receiver in (3, 2), (2, 3):     # the first that they hear is from each other
        assert [nodes[sender].send(80, 1)] == nodes[receiver].get(1)


@pytest.mark.parametrize('learner', ['ours', 'theirs'])
def test_after_learning_a_third_node_sees_nothing(host, new_daemon, new_container, vde_plug,
                                                  learner):
    daemon = new_daemon(host)
    containers = [new_container(name) for name in 'abcd']
    ours(daemon, containers[0], 'vxvde://')
    vde_plug(host, containers[1], 'vxvde://')
    vde_plug(host, containers[2], 'vxvde://')
    ours(daemon, containers[3], 'vxvde://')
    nodes = [Raw(containers[0], 'vde0', 1), Raw(containers[1], 'c0', 2),
             Raw(containers[2], 'c0', 3), Raw(containers[3], 'vde0', 4)]
    sender, receiver = nodes[:2] if learner == 'ours' else (nodes[1], nodes[0])
    others = nodes[2:]
    unknown = sender.send(60, 1, receiver.mac)
    for node in [receiver] + others:            # nobody knows it yet
        assert node.get(1) == [unknown]
    answer = receiver.send(60, 2, sender.mac)
    assert sender.get(1) == [answer]
    alone = [sender.send(100, seed, receiver.mac) for seed in range(20)]
    assert receiver.get(20) == alone
    last = sender.send(60, 3)
    for node in others:
        assert node.get(1) == [last]


def test_a_c_node_forgets_ours_when_its_interface_ends(host, new_daemon, new_container, vde_plug):
    daemon = new_daemon(host)
    containers = [new_container(name) for name in 'abc']
    ours(daemon, containers[0], 'vxvde://')
    vde_plug(host, containers[1], 'vxvde://')
    ours(daemon, containers[2], 'vxvde://')
    leaving, theirs, third = (Raw(container, name, number) for number, (container, name)
                              in enumerate(zip(containers, ('vde0', 'c0', 'vde0'))))
    assert 2 * [leaving.send(60, 1)] == theirs.get(1) + third.get(1)
    theirs.send(60, 2, leaving.mac)
    leaving.get(1)
    containers[0].ip('link del vde0')
    wait_until(lambda: 'close interface' in daemon.log() and len(daemon.pids()) == 2)
    flooded = theirs.send(60, 3, leaving.mac)
    assert third.get(1) == [flooded]


@pytest.mark.parametrize('hosts, mtu', [(1, 1500), (1, 9000), (2, 1500), (2, 1450)])
def test_tcp_is_byte_exact_both_ways(pair, new_host, vde_plug, hosts, mtu):
    daemon, a, b = pair
    far = daemon.host
    if hosts == 2:
        far = new_host('far')
        daemon.host.wire(far)
    vde_plug(far, b, 'vxvde://', '10.0.0.2/24', mtu=mtu)
    ours(daemon, a, 'vxvde://', '10.0.0.1/24', mtu=mtu)
    data = os.urandom(1 << 16) * 64 + os.urandom(12345)
    a.ping('10.0.0.2', count=1)
    for sender, receiver, address in (a, b, '10.0.0.2'), (b, a, '10.0.0.1'):
        assert copy(sender, receiver, address, data) == hashlib.sha256(data).digest()


def copy(sender, receiver, address, data):
    """Send data by TCP; the digest of what arrived."""
    listener = receiver.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen(1)
    out = sender.socket(socket.AF_INET, socket.SOCK_STREAM)
    out.connect(listener.getsockname())
    incoming = listener.accept()[0]
    incoming.settimeout(10)

    def push():
        out.sendall(data)
        out.shutdown(socket.SHUT_WR)
    pusher = threading.Thread(target=push)
    pusher.start()
    digest = hashlib.sha256()
    try:
        for part in iter(lambda: incoming.recv(1 << 16), b''):
            digest.update(part)
    finally:
        incoming.close()
        pusher.join()
    return digest.digest()
