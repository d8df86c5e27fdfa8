"""Bulk between two vdelxcd: what is on the wire, who gets it, and what becomes of damage."""

import re
import time

import pytest

import peers
from conftest import PYTHON, require, wait_until
from test_interop_vxvde import vde_plug                                         # noqa: F401
from test_offload_mtu import csum_errors, join, received, transfer
from test_quiet import is_quiet
from peers import RawPort, session_pids
from test_sessions import silence

MANY = 10 << 20                         # bytes
both_families = pytest.mark.parametrize('vnl', [
    pytest.param('vxvde://', marks=pytest.mark.core), 'vxvde:///v6'])


def fragments(host):
    """How many IP fragments a host's kernel has made, IPv4 and IPv6."""
    lines = [line.split() for line in host.run('cat', '/proc/net/snmp').stdout.splitlines()
             if line.startswith('Ip:')]
    six = re.search(r'Ip6FragCreates\s+(\d+)', host.run('cat', '/proc/net/snmp6').stdout)
    return int(dict(zip(*lines))['FragCreates']) + int(six.group(1))


@pytest.fixture
def hosts(host, new_host, new_daemon, new_container):
    """Two hosts, the daemon of each, and a container of each."""
    other = new_host()
    host.wire(other)
    return (host, other), (new_daemon(host), new_daemon(other)), (new_container('a'),
                                                                   new_container('b'))


@both_families
def test_frames_that_do_not_fit_the_path_need_no_fragments(hosts, closing, tmp_path, vnl):
    (host, _), daemons, (a, b) = hosts
    for number, (container, daemon) in enumerate(zip((a, b), daemons), 1):
        join(container, daemon, '10.0.0.%d/24' % number, vnl)
    a.ping('10.0.0.2')
    transfer(a, b, '10.0.0.2', 1 << 20, tmp_path)           # in which they agree
    wire = closing(RawPort(host, 'eth0', 0x800 if 'v6' not in vnl else 0x86dd))
    before = fragments(host), received(b)
    transfer(a, b, '10.0.0.2', MANY, tmp_path)
    assert fragments(host) - before[0] < (received(b)[0] - before[1][0]) / 20
    assert csum_errors(b) == 0
    transfer(b, a, '10.0.0.1', MANY, tmp_path)
    flags = {data[42 if 'v6' not in vnl else 62] for data in iter(lambda: wire.one(0), None)}
    assert 0x88 in flags


@both_families
def test_super_segments_of_two_hosts_go_whole(hosts, tmp_path, vnl):
    _, daemons, (a, b) = hosts
    for number, (container, daemon) in enumerate(zip((a, b), daemons), 1):
        join(container, daemon, '10.0.0.%d/24' % number, '--offload', vnl)
    a.ping('10.0.0.2')
    transfer(a, b, '10.0.0.2', 1 << 20, tmp_path)
    for one, other, address in (a, b, '10.0.0.2'), (b, a, '10.0.0.1'):
        before = received(other)
        transfer(one, other, address, MANY, tmp_path)
        packets, size = (now - then for now, then in zip(received(other), before))
        assert MANY < size and size / packets > 8000
        assert csum_errors(other) == 0


def test_super_segments_of_one_host_go_whole_over_ipv6_too(pair, tmp_path):
    daemon, a, b = pair
    join(a, daemon, '10.0.0.1/24', '--offload', 'vxvde://')
    join(b, daemon, '10.0.0.2/24', '--offload', 'vxvde://')
    for container, address in (a, 'fd00::1/64'), (b, 'fd00::2/64'):
        container.ip('addr add %s dev vde0 nodad' % address)
    a.ping('10.0.0.2')
    for address in '10.0.0.2', 'fd00::2':
        before = received(b)
        script = tmp_path / 'transfer.py'
        script.write_text(TRANSFER_ANY)
        done = b.popen(PYTHON, script, 'receive', address, stdout=-1)
        assert done.stdout.readline() == b'ready\n'
        a.run(PYTHON, script, 'send', address, str(MANY))
        assert done.stdout.readline() == b'%d\n' % MANY
        packets, size = (now - then for now, then in zip(received(b), before))
        assert size / packets > 8000 and csum_errors(b) == 0


# Bytes of TCP over whatever family the address has, each telling where it is.
TRANSFER_ANY = """if True:
    import socket, sys
    way, address = sys.argv[1:3]
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    block = bytes(range(251)) * 1000
    if way == 'receive':
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 7001))
        listener.listen(1)
        print('ready', flush=True)
        conn, count = listener.accept()[0], 0
        while True:
            data = conn.recv(100000)
            if not data:
                break
            at = count % 251
            assert data == block[at:at + len(data)], count
            count += len(data)
        print(count, flush=True)
    else:
        conn = socket.create_connection((address, 7001), 10)
        left = int(sys.argv[3])
        while left:
            count = min(left, len(block))
            conn.sendall(block[:count])
            left -= count
        conn.shutdown(socket.SHUT_WR)
        conn.recv(1)
"""

# A node between two networks (VNI 1 and 2) of another host, transparent but for some bits.
MIDDLE = """if True:
    import random, select, socket, struct, sys
    group, port, every = '239.0.0.1', 14789, int(sys.argv[1])
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.bind(('192.0.2.2', 0))
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    heard.bind((group, port))
    heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                     socket.inet_aton(group) + socket.inet_aton('192.0.2.2'))
    own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton('192.0.2.2'))
    peers, chance, count, wrong = {}, random.Random(5), 0, 0
    print('ready', flush=True)
    while True:
        for sock in select.select([own, heard], [], [])[0]:
            data, peer = sock.recvfrom(65535)
            vni = data[6]
            if peer[1] == own.getsockname()[1] or vni not in (1, 2) or len(data) < 9:
                continue
            peers[vni] = peer
            data = bytearray(data)
            data[6] = 3 - vni
            if data[0] == 0x88 and len(data) > 500:
                count += 1
                if count % every == 0:
                    data[chance.randrange(16, len(data))] ^= 1 << chance.randrange(8)
                    wrong += 1
            own.sendto(data, (group, port) if sock is heard else peers.get(3 - vni, (group, port)))
"""


def test_no_corrupted_byte_is_delivered_and_none_is_lost_for_good(hosts, tmp_path):
    """Of every 307th datagram one bit is wrong, and its UDP checksum is right."""
    (_, other), (daemon, _), (a, b) = hosts
    script = tmp_path / 'middle.py'
    script.write_text(MIDDLE)
    middle = other.popen(PYTHON, script, '307', stdout=-1)
    assert middle.stdout.readline() == b'ready\n'
    join(a, daemon, '10.0.0.1/24', '--offload', 'vxvde://')
    join(b, daemon, '10.0.0.2/24', '--offload', 'vxvde:///vni=2')
    a.ping('10.0.0.2')
    transfer(a, b, '10.0.0.2', 1 << 20, tmp_path)
    before = received(b)
    transfer(a, b, '10.0.0.2', MANY, tmp_path)
    packets, size = (now - then for now, then in zip(received(b), before))
    assert size / packets > 3000            # there were super-segments
    assert csum_errors(b) > 5               # and the kernel saw what was corrupt


def test_c_nodes_and_plain_interfaces_get_plain_frames(host, pair, vde_plug, new_container,
                                                       closing, tmp_path):
    """Beside an interface that takes super-segments, and while it does."""
    daemon, a, b = pair
    c, d = new_container('c'), new_container('d')
    join(a, daemon, '10.0.0.1/24', '--offload', 'vxvde://')
    join(b, daemon, '10.0.0.2/24', '--offload', 'vxvde://')
    join(c, daemon, '10.0.0.3/24', 'vxvde://')
    vde_plug(host, d, 'vxvde://', '10.0.0.4/24')
    for each in '10.0.0.2', '10.0.0.3', '10.0.0.4':
        a.ping(each)
    before = received(b)
    transfer(a, b, '10.0.0.2', MANY, tmp_path)
    packets, size = (now - then for now, then in zip(received(b), before))
    assert size / packets > 8000
    for each, address, name in (c, '10.0.0.3', 'vde0'), (d, '10.0.0.4', 'c0'):
        before = received(each, name)
        transfer(a, each, address, 5 << 20, tmp_path)
        packets, size = (now - then for now, then in zip(received(each, name), before))
        assert size / packets < 1515 and csum_errors(each) == 0
        transfer(each, a, '10.0.0.1', 5 << 20, tmp_path)
    assert csum_errors(a) == 0
    transfer(a, b, '10.0.0.2', 1 << 20, tmp_path)


def test_after_bulk_relays_are_quiet_again_and_bulk_comes_back(pair, tmp_path):
    daemon, a, b = pair
    join(a, daemon, '10.0.0.1/24', '--offload', 'vxvde://')
    join(b, daemon, '10.0.0.2/24', '--offload', 'vxvde://')
    a.ping('10.0.0.2')
    for _ in range(2):
        before = received(b)
        transfer(a, b, '10.0.0.2', MANY, tmp_path)
        packets, size = (now - then for now, then in zip(received(b), before))
        assert size / packets > 8000
        wait_until(lambda: a.run('ping', '-n', '-q', '-i', '0.002', '-c', 300, '10.0.0.2') and all(
            map(is_quiet, session_pids(daemon))), 30, 'it is quiet again')
    assert csum_errors(a) == csum_errors(b) == 0


def test_no_relay_is_quiet_that_has_super_segments_switched_on(pair, tmp_path):
    """It may have been between two calm times; then no TCP came through any more."""
    require('ethtool')
    daemon, a, b = pair
    silence(a, b)
    join(a, daemon, '10.0.0.1/24', '--offload', 'vxvde://')
    pid, = session_pids(daemon)
    join(b, daemon, '10.0.0.2/24', '--offload', 'vxvde://')
    for count in 120, 115, 120, 125, 120, 115, 120, 125:    # of 100 it is calm, once
        transfer(a, b, '10.0.0.2', 1 << 20, tmp_path)
        a.run('ping', '-n', '-q', '-i', '0.002', '-c', count, '10.0.0.2')
        features = a.run('ethtool', '-k', 'vde0').stdout
        if is_quiet(pid):
            assert 'tcp-segmentation-offload: off' in features
    transfer(a, b, '10.0.0.2', 1 << 20, tmp_path)


def test_a_peer_that_starts_again_is_found_again(pair, tmp_path):
    daemon, a, b = pair
    join(a, daemon, '10.0.0.1/24', '--offload', 'vxvde://')
    for _ in range(3):
        join(b, daemon, '10.0.0.2/24', '--offload', '--mac', 'auto:b', 'vxvde://')
        a.ping('10.0.0.2')
        transfer(a, b, '10.0.0.2', MANY, tmp_path)
        b.ip('link delete vde0')
        wait_until(lambda: len(session_pids(daemon)) == 1)


def test_a_capture_shows_super_segments(pair, tmp_path):
    require('tcpdump')
    daemon, a, b = pair
    join(a, daemon, '10.0.0.1/24', '--offload', 'vxvde://')
    join(b, daemon, '10.0.0.2/24', '--offload', 'vxvde://')
    a.ping('10.0.0.2')
    file = tmp_path / 'file.pcap'
    pid = session_pids(daemon)[0]
    capture = daemon.host.popen(PYTHON, peers.DAEMON, '--capture', pid, '-w', file)
    wait_until(lambda: file.exists() and file.stat().st_size >= 24)
    transfer(a, b, '10.0.0.2', 5 << 20, tmp_path)
    time.sleep(0.2)
    capture.terminate()
    capture.wait(5)
    lines = daemon.host.run('tcpdump', '-nr', file).stdout.splitlines()
    lengths = [int(each) for line in lines for each in re.findall(r'length (\d+)$', line)]
    assert max(lengths) > 20000
    assert sum(lengths) >= 5 << 20
