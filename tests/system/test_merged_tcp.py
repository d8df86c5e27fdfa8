"""TCP that comes in, merged by the container's kernel (GRO): faster, and nothing waits for long.

The frames for these tests are told apart by what comes out of a packet socket, which sees them as
TCP will: merged.
"""

import os
import socket
import subprocess
import time

import pytest

from conftest import CLIENT, PYTHON, wait_until
from peers import (                                                             # noqa: F401
    Member, Switch, frame, in_namespace, join, place, session_pids, transfer)
from segments import segment
from test_quiet import GROUP, HEADER, is_quiet, wire                            # noqa: F401
from test_sessions import silence

IFF_NAPI, IFF_VNET_HDR = 0x10, 0x4000
HELD = 4000000                          # ns, as the client has it
FOREVER = 10 ** 10                      # ns: what waits so long is found to wait
IPV4, IPV6 = 0x0800, 0x86dd
SIZE = 1000                             # bytes of payload


def setting(container, name='vde0', value=None):
    """How long GRO keeps a segment (ns); with a value it is set first."""
    path = '/sys/class/net/%s/gro_flush_timeout' % name
    if value is not None:
        container.run('sh', '-c', 'echo %d > %s' % (value, path))
    return int(container.run('cat', path).stdout)


def flags_of(container, name='vde0'):
    """The flags of a TAP."""
    return int(container.run('cat', '/sys/class/net/%s/tun_flags' % name).stdout, 16)


class Eyes:
    """What TCP will see of an interface: [(length, first bytes)]."""

    def __init__(self, container, version=4, name='vde0'):
        protocol = IPV4 if version == 4 else IPV6

        def make():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
            sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)        # SO_RCVBUFFORCE
            sock.bind((name, protocol))
            return sock
        self.sock = in_namespace(container, make)

    def look(self, seconds, enough=float('inf')):
        """What came in within so many seconds, or until there is so much payload."""
        found, payload = [], 0
        until = time.monotonic() + seconds
        while payload < enough and time.monotonic() < until:
            self.sock.settimeout(max(until - time.monotonic(), 0.001))
            try:
                data, _, _, address = self.sock.recvmsg(1 << 17)
            except socket.timeout:
                break
            if address[2] != socket.PACKET_OUTGOING:
                found.append(data)
                payload += len(data) - 54 - 20 * (data[12] == 0x86)
        return found

    def close(self):
        self.sock.close()


@pytest.mark.core
def test_a_new_interface_has_its_kernel_merge_what_comes_in(host, new_daemon, new_container):
    daemon, container = new_daemon(host), new_container('a')
    done = container.client('-v', '-s', daemon.socket, 'vxvde://')
    assert 'vde0: TCP segments that come in are merged (GRO)' in done.stderr
    assert flags_of(container) & IFF_NAPI and setting(container) == HELD


@pytest.mark.parametrize('address', ['10.0.0.1', 'fd00::1'])
@pytest.mark.parametrize('vnl', ['vxvde://', 'vde://'])
def test_tcp_sees_large_segments_and_every_byte_of_them(pair, closing, place, vnl, address):
    daemon, a, b = pair
    if vnl == 'vde://':
        closing(Switch(place.join('sw'), place.join('mgmt')))
        vnl += place.join('sw')
    join(a, daemon, vnl, '10.0.0.1/24', 'fd00::1/64')
    join(b, daemon, vnl, '10.0.0.2/24', 'fd00::2/64')
    eyes = closing(Eyes(a, 6 if ':' in address else 4))
    transfer(b, a, address, 24 << 20)
    lengths = [len(data) for data in eyes.look(0.5) if len(data) > 200]
    assert lengths and sum(lengths) / len(lengths) > 1.5 * 1514, 'they are not merged'


@pytest.mark.parametrize('why', ['read-only', 'none', 'of another'])
def test_a_container_whose_sysfs_cannot_be_used_has_an_interface_as_ever(
        host, new_daemon, new_container, why):
    daemon, container = new_daemon(host), new_container('a')
    container.ip('tuntap add mode tap name x0')         # no other has that
    before = {'read-only': ['unshare', '-m', 'sh', '-c', 'mount -o remount,ro /sys && exec "$@"',
                            'sh'],
              'none': ['unshare', '-m', 'sh', '-c', 'umount -l /sys && exec "$@"', 'sh'],
              'of another': []}[why]
    command = [PYTHON, CLIENT, '-v', '-s', daemon.socket, '-a', '10.0.0.1/24', 'vxvde://']
    if why == 'of another':
        done = subprocess.run(['nsenter', '--net=/proc/%d/ns/net' % container.holder.pid] + command,
                              stderr=subprocess.PIPE, universal_newlines=True)
        assert done.returncode == 0
    else:
        done = container.run(*before + command)
    assert 'are not merged: /sys is not writable' in done.stderr
    assert not flags_of(container) & IFF_NAPI and setting(container) == 0


def test_offload_merges_by_itself(host, new_daemon, new_container):
    daemon, container = new_daemon(host), new_container('a')
    container.client('-s', daemon.socket, '--offload', 'vxvde://')
    assert flags_of(container) & (IFF_NAPI | IFF_VNET_HDR) == IFF_VNET_HDR
    assert setting(container) == 0


# ---- nothing waits ------------------------------------------------------------------------------

class Overlay:
    """A peer of vxvde:// that sends frames; together() in one train, or nearly."""

    VNL = 'vxvde://'

    def __init__(self, wire):
        self.wire = wire

    def send(self, *frames):
        for each in frames:
            self.wire.sendto(HEADER + each, GROUP)


@pytest.fixture(params=['vxvde', 'vde'])
def scene(request, host, new_daemon, new_container, closing, place):
    """A container whose kernel keeps segments for ten seconds, and a peer on its network."""
    daemon, container = new_daemon(host), new_container('a')
    silence(container)
    if request.param == 'vde':
        closing(Switch(place.join('sw'), place.join('mgmt')))
        vnl, peer = 'vde://' + place.join('sw'), closing(Member(place.join('sw')))
    else:
        vnl, peer = 'vxvde://', Overlay(request.getfixturevalue('wire'))
    join(container, daemon, vnl, '10.0.0.1/24')
    setting(container, value=FOREVER)
    pid, = session_pids(daemon)
    return container, peer, pid


def row(count, first=0, version=4, last=0x10):
    """Segments of a flow, none of them marked as the last one; or the last as it says."""
    return [segment(version, 1000 + SIZE * index, bytes([index & 255]) * SIZE,
                    last if index == first + count - 1 else 0x10, ident=index & 0xffff)
            for index in range(first, first + count)]


def bytes_of(found, version=4):
    """The payload of what was seen, put together; padding cut off as IP does."""
    head, text = 54 if version == 4 else 74, b''
    for data in found:
        length = int.from_bytes(data[16:18], 'big') + 14 if version == 4 else (
            int.from_bytes(data[18:20], 'big') + 54)
        text += data[head:length]
    return text


def until_busy(peer, pid):
    """Have a relay be no quiet one."""
    wait_until(lambda: peer.send(*[frame(source=9)] * 100) or not is_quiet(pid),
               what='there is more to do')


def test_what_is_kept_waits_and_is_seen_to_wait(scene, closing):
    """That the scene of the other tests would show it: a segment too short to be looked at."""
    container, peer, _ = scene
    eyes = closing(Eyes(container))
    peer.send(segment(4, 1000, bytes(100)))
    assert eyes.look(1) == []
    peer.send(segment(4, 1100, bytes(50), 0x18))
    assert len(bytes_of(eyes.look(1, 150))) == 150


@pytest.mark.core
@pytest.mark.parametrize('version', [4, 6])
def test_a_lone_segment_through_a_quiet_relay_does_not_wait(scene, closing, version):
    container, peer, pid = scene
    eyes = closing(Eyes(container, version))
    for index in range(5):
        one, = row(1, index, version)
        peer.send(one)
        assert bytes_of(eyes.look(1, SIZE), version) == bytes([index]) * SIZE
    assert is_quiet(pid)


@pytest.mark.core
@pytest.mark.parametrize('version', [4, 6])
def test_the_last_segments_through_a_busy_relay_do_not_wait(scene, closing, version):
    container, peer, pid = scene
    eyes = closing(Eyes(container, version))
    for index in range(0, 200, 20):
        until_busy(peer, pid)               # each time: it may have become quiet again
        frames = row(20, index, version)
        peer.send(*frames)
        found = eyes.look(1, 20 * SIZE)
        assert bytes_of(found, version) == b''.join(each[-SIZE:] for each in frames)


def test_merged_segments_are_whole_whatever_comes_between(scene, closing):
    """Two flows in turns, with what is no TCP in between: each flow's bytes come in order."""
    container, peer, pid = scene
    until_busy(peer, pid)
    eyes = closing(Eyes(container))
    setting(container, value=HELD)
    flows = {port: [segment(4, 1000 + SIZE * index, os.urandom(SIZE), ports=(port, 5201),
                            ident=index) for index in range(60)] for port in (4001, 4002)}
    for index in range(60):
        peer.send(flows[4001][index], flows[4002][index])
        if index % 7 == 0:
            peer.send(frame(source=9))
            time.sleep(0.01)                            # a switch has room for 93 frames
    found = eyes.look(3, 120 * SIZE)
    for port, frames in flows.items():
        ours = [each for each in found if each[34:36] == port.to_bytes(2, 'big')]
        assert bytes_of(ours) == b''.join(each[-SIZE:] for each in frames)
