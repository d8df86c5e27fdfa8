"""Quiet relays of vxlan:// and udp://: as those of vxvde://, but with one socket."""

import os
import socket
import time

import pytest

import peers
from aftermath import private_memory
from conftest import parent, wait_until
from peers import RawPort, expect, frame, in_namespace, join, session_pid, session_pids
from test_quiet import ASKED, QUIET, forker, is_quiet, prove_no_rights
from test_sessions import agree, listed, only, silence

PORT = 4789
HEADER = b'\x08\0\0\0\0\0\x07\0'            # VXLAN, VNI 7
VNLS = {
    'vxlan-4': ('vxlan://239.5.5.5/vni=7/if=eth0',) * 2,
    'vxlan-6': ('vxlan://ff05::5:5/vni=7/if=eth0',) * 2,
    'udp-4': ('udp://5001->192.0.2.2:5002', 'udp://5002->192.0.2.1:5001'),
    'udp-6': ('udp://5001->[2001:db8::2]:5002', 'udp://5002->[2001:db8::1]:5001'),
}


@pytest.fixture(params=['udp-4', pytest.param('udp-6', marks=pytest.mark.core),
                        pytest.param('vxlan-4', marks=pytest.mark.core), 'vxlan-6'])
def both(request, host, new_host, new_daemon, new_container):
    """Two hosts, each with its daemon and a container: [(daemon, container)]."""
    far = new_host('far')
    host.wire(far, mtu=1600)
    found = []
    for number, (each, vnl) in enumerate(zip((host, far), VNLS[request.param]), 1):
        each.ip('-6 route replace multicast ff05::/16 dev eth0 table local', check=False)
        daemon, container = new_daemon(each), new_container()
        silence(container)
        join(container, daemon, vnl, '10.0.0.%d/24' % number)
        found.append((daemon, container))
    return found


def test_it_is_quiet_costs_little_and_grows(both):
    pids = []
    for daemon, _ in both:
        pids += session_pids(daemon)
        assert parent(pids[-1]) == forker(daemon)
        prove_no_rights(pids[-1])
    a, b = [container for _, container in both]
    a.run('ping', '-n', '-q', '-i', '0.01', '-c', 50, '10.0.0.2')
    b.ping('10.0.0.1')
    costs = [private_memory(pid) for pid in pids]
    for daemon, _ in both:
        assert len(listed(daemon)) == 1
    asked = [private_memory(pid) for pid in pids]
    print('private memory of quiet relays: %s kB, asked %s kB' % (
        [cost >> 10 for cost in costs], [cost >> 10 for cost in asked]))
    assert (max(costs) < QUIET and max(asked) < QUIET + ASKED) or 'COVERAGE_RCFILE' in os.environ
    assert all(map(is_quiet, pids))
    peers.transfer(a, b, '10.0.0.2', 2 << 20)
    peers.transfer(b, a, '10.0.0.1', 2 << 20)
    assert not any(map(is_quiet, pids))
    for daemon, container in both:              # nothing was forgotten
        wait_until(lambda: agree(only(listed(daemon)), container))
    a.run('ping', '-n', '-q', '-i', '0.002', '-c', 300, '10.0.0.2')
    b.ping('10.0.0.1')
    assert all(map(is_quiet, pids)), 'frames came one by one again'
    assert [pid for daemon, _ in both for pid in session_pids(daemon)] == pids
    for daemon, container in both:
        wait_until(lambda: agree(only(listed(daemon)), container))
        assert 'error' not in daemon.log()


def bound(host, address, port):
    """A UDP socket of a host."""
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    sock = in_namespace(host, lambda: socket.socket(family, socket.SOCK_DGRAM))
    sock.bind((address, port))
    sock.settimeout(5)
    return sock


@pytest.mark.parametrize('mine, others, group', [
    ('192.0.2.1', '192.0.2.2', '239.5.5.5'), ('2001:db8::1', '2001:db8::2', 'ff05::5:5')])
def test_a_vxlan_peer_is_where_its_frames_come_from_on_the_port_of_all(
        host, new_host, new_daemon, new_container, closing, mine, others, group):
    far = new_host('far')
    host.wire(far)
    far.ip('-6 route replace multicast ff05::/16 dev eth0 table local', check=False)
    host.ip('-6 route replace multicast ff05::/16 dev eth0 table local', check=False)
    daemon, c = new_daemon(host), new_container()
    silence(c)
    join(c, daemon, 'vxlan://%s/vni=7/if=eth0' % group)
    here = closing(RawPort(c, 'vde0'))
    port, one, another = [closing(bound(far, others, number)) for number in (PORT, 0, 0)]

    def heard_alone():
        """Was a frame to the peer's MAC sent to the peer alone?"""
        here.send(frame(60, 1, 7))
        port.settimeout(0.3)
        try:
            return port.recv(100) == HEADER + frame(60, 1, 7)
        except socket.timeout:
            return False

    assert not heard_alone()
    for sock in one, another:                   # a flow of the kernel's has a port of its own
        for _ in range(3):
            sock.sendto(HEADER + frame(60, 7, 1), (mine, PORT))
            expect(here, frame(60, 7, 1))
            assert heard_alone()
    one.sendto(HEADER, (mine, PORT))            # the peer leaves
    time.sleep(0.2)
    assert not heard_alone()
    before = only(listed(daemon))
    bad = [b'', b'x', HEADER[:7], HEADER + bytes(13), HEADER + bytes(9235),
           b'\x08\0\0\0\0\0\x02\0' + frame(60)]
    for datagram in bad:
        one.sendto(datagram, (mine, PORT))
    wait_until(lambda: only(listed(daemon))['in_drops'] == before['in_drops'] + len(bad))
    one.sendto(HEADER + frame(60, 7, 1), (mine, PORT))
    expect(here, frame(60, 7, 1))
    assert heard_alone() and is_quiet(session_pid(daemon))
    wait_until(lambda: here.send(*[frame(60, 1)] * 100) or not is_quiet(session_pid(daemon)))
    assert heard_alone(), 'what was learned is known'


@pytest.mark.parametrize('mine', ['127.0.0.1', '::1'])
def test_a_quiet_relay_of_udp_hears_its_peer_alone(host, new_daemon, new_container, closing, mine):
    daemon, c = new_daemon(host), new_container()
    silence(c)
    text = '[%s]' % mine if ':' in mine else mine
    join(c, daemon, 'udp://%s:7001->%s:7002' % (text, text), mtu=9100)
    here = closing(RawPort(c, 'vde0'))
    peer, stranger = [closing(bound(host, mine, number)) for number in (7002, 7003)]
    wanted = 0
    for sock, datagram, good in (
            (stranger, frame(60, seed=1), False), (peer, frame(60, seed=2), True),
            (stranger, frame(60, seed=2), False), (peer, b'', False), (peer, bytes(13), False),
            (peer, frame(9018, seed=3), True), (peer, bytes(9300), False),
            (stranger, b'', False), (peer, frame(60, seed=4), True)):
        sock.sendto(datagram, (mine, 7001))
        if good:
            expect(here, datagram)
            here.send(datagram)
            assert peer.recv(20000) == datagram, 'no header, no more, no less'
        else:
            wanted += 1
            wait_until(lambda: only(listed(daemon))['in_drops'] == wanted)
    for number in range(300):                   # of MACs there may be as many as there are
        peer.sendto(frame(60, number + 1000), (mine, 7001))
        expect(here, frame(60, number + 1000))
        time.sleep(0.001)                       # one by one: no burst
    assert is_quiet(session_pid(daemon))
    stranger.setblocking(False)
    with pytest.raises(BlockingIOError):
        stranger.recv(20000)
