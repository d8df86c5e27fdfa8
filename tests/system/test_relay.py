"""Interfaces in daily life: up, down, gone, too large, and the plugs that have no network."""

import socket

import pytest

from conftest import wait_until
from peers import in_namespace


def interface(daemon, container, *addresses, vnl='vxvde://', mtu=1500):
    """Give a container an interface vde0, switched on when it gets addresses."""
    container.client('-s', daemon.socket, vnl)
    container.ip('link set vde0 mtu %d' % mtu)
    if addresses:
        container.up('vde0', *addresses)


def frames_of(container):
    """A socket for raw frames of vde0."""
    sock = container.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
    sock.bind(('vde0', 0x88b5))
    return sock


def no_answer(container, address, size=56):
    """Pings of a size are not answered."""
    done = container.run('ping', '-n', '-w', 1, '-i', '0.2', '-s', size, address, check=False)
    assert done.returncode == 1 and '100% packet loss' in done.stdout


def session_ends(daemon, sessions):
    """Wait until there are no more than so many sessions, for two seconds at most."""
    wait_until(lambda: len(daemon.pids()) <= sessions + 1, 2, 'a session ends')


def test_frames_before_link_up_are_dropped_and_the_interface_works_afterwards(pair):
    daemon, a, b = pair
    interface(daemon, a, '10.0.0.1/24')
    interface(daemon, b)
    frames_of(a).send(b'\xff' * 6 + b'\x02\0\0\0\0\x01\x88\xb5' + bytes(46))
    no_answer(a, '10.0.0.2')
    b.up('vde0', '10.0.0.2/24')
    a.ping('10.0.0.2')
    assert 'close interface' not in daemon.log()
    assert len(daemon.pids()) == 3


def test_an_interface_may_go_down_and_up_again(pair):
    daemon, a, b = pair
    interface(daemon, a, '10.0.0.1/24')
    interface(daemon, b, '10.0.0.2/24')
    a.ping('10.0.0.2')
    for _ in range(2):
        b.ip('link set vde0 down')
        no_answer(a, '10.0.0.2')
        b.ip('link set vde0 up')
        a.ping('10.0.0.2')
        b.ping('10.0.0.1')
    assert 'close interface' not in daemon.log()


def test_deleting_the_interface_ends_its_session_and_no_other(pair):
    daemon, a, b = pair
    interface(daemon, a, '10.0.0.1/24')
    interface(daemon, b, '10.0.0.2/24')
    b.ip('link del vde0')
    session_ends(daemon, 1)
    wait_until(lambda: daemon.log().count('close interface: vxvde://') == 1, 2)
    interface(daemon, b, '10.0.0.2/24')
    a.ping('10.0.0.2')


def test_jumbo_frames_pass(pair):
    daemon, a, b = pair
    interface(daemon, a, '10.0.0.1/24', mtu=9000)
    interface(daemon, b, '10.0.0.2/24', mtu=9000)
    for size in 56, 1472, 8000, 8972:
        a.ping('10.0.0.2', size=size)


def test_an_mtu_that_is_too_large_costs_only_the_frames_that_are_too_long(pair):
    daemon, a, b = pair
    interface(daemon, a, '10.0.0.1/24', mtu=65000)
    interface(daemon, b, '10.0.0.2/24', mtu=65000)
    a.ping('10.0.0.2')
    a.ping('10.0.0.2', size=9192)               # 9234 bytes with the headers
    for size in 9193, 60000:
        no_answer(a, '10.0.0.2', size)
    a.ping('10.0.0.2', size=9192)
    assert 'close interface' not in daemon.log()


@pytest.mark.parametrize('vnl', ['vxvde://', 'udp://7->192.0.2.%d:7'])
def test_a_cable_that_is_pulled_in_the_middle_of_bulk_costs_only_frames(
        host, new_host, new_container, new_daemon, vnl):
    far, a, b = new_host('far'), new_container('a'), new_container('b')
    host.wire(far)
    daemons = new_daemon(host), new_daemon(far)
    for daemon, container, end in (daemons[0], a, 1), (daemons[1], b, 2):
        interface(daemon, container, '10.0.0.%d/24' % end, mtu=1450,
                  vnl=vnl % (3 - end) if '%' in vnl else vnl)
    a.ping('10.0.0.2')
    a.ip('neigh replace 10.0.0.2 lladdr %s dev vde0' % b.ip('-o link show vde0').stdout.split(
        'link/ether ')[1].split()[0])       # so that frames go on without an answer
    out = a.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(3):
        host.ip('link set eth0 down')
        for _ in range(500):
            out.sendto(bytes(1000), ('10.0.0.2', 9))
        host.ip('link set eth0 up')
        host.ip('route replace 239.0.0.0/8 dev eth0')
        wait_until(lambda: 'LOWER_UP' in host.ip('link show eth0').stdout)
        wait_until(lambda: a.ping('10.0.0.2', 1, check=False).returncode == 0)
    for daemon in daemons:
        assert 'close interface' not in daemon.log() and 'gone' not in daemon.log()
        assert len(daemon.pids()) == 2


def test_a_network_without_a_route_is_taken_for_a_usual_one(host, vdelxcd):
    assert in_namespace(host, lambda: vdelxcd.path_mtu(('198.51.100.1', 7))) == 1500 - 28
    assert in_namespace(host, lambda: vdelxcd.path_mtu(('2001:db8::1', 7))) == 1500 - 48


def test_a_tap_of_the_host_is_the_other_end_of_the_interface(host, new_daemon, new_container):
    daemon, a = new_daemon(host), new_container('a')
    interface(daemon, a, '10.0.0.1/24', vnl='tap://lan0')
    host.ip('addr add 10.0.0.254/24 dev lan0')
    host.ip('link set lan0 up')
    a.ping('10.0.0.254')
    host.ping('10.0.0.1')


def test_taps_of_the_host_join_containers_through_a_bridge(pair):
    daemon, a, b = pair
    host = daemon.host
    interface(daemon, a, '10.0.0.1/24', vnl='tap://lan0')
    interface(daemon, b, '10.0.0.2/24', vnl='tap://lan1')
    host.ip('link add bridge type bridge')
    for name in 'lan0', 'lan1', 'bridge':
        host.ip('link set %s%s up' % (name, '' if name == 'bridge' else ' master bridge'))
    a.ping('10.0.0.2')
    b.ping('10.0.0.1')


def test_a_tap_of_the_host_that_is_taken_is_busy_until_its_session_ends(pair):
    daemon, a, b = pair
    interface(daemon, a, '10.0.0.1/24', vnl='tap://lan0')
    refused = b.client('-s', daemon.socket, 'tap://lan0', check=False)
    assert refused.returncode == 1
    assert 'Device or resource busy' in refused.stderr and refused.stderr.startswith('vdelxcd')
    assert 'vde0' not in b.interfaces()
    a.ip('link del vde0')
    wait_until(lambda: 'lan0' not in daemon.host.interfaces())
    interface(daemon, b, '10.0.0.2/24', vnl='tap://lan0')
    assert 'lan0' in daemon.host.interfaces()


def test_deleting_the_tap_of_the_host_ends_the_session_and_the_interface(host, new_daemon,
                                                                         new_container):
    daemon, a = new_daemon(host), new_container('a')
    interface(daemon, a, '10.0.0.1/24', vnl='tap://lan0')
    host.ip('link del lan0')
    session_ends(daemon, 0)
    wait_until(lambda: 'vde0' not in a.interfaces())


@pytest.mark.parametrize('vnl', ['null://', 'null:///any/text'])
def test_null_takes_everything_and_gives_nothing(pair, vnl):
    daemon, a, b = pair
    interface(daemon, a, '10.0.0.1/24', vnl=vnl)
    interface(daemon, b, '10.0.0.2/24', vnl=vnl)
    sock = frames_of(a)
    for _ in range(200):
        sock.send(b'\xff' * 6 + b'\x02\0\0\0\0\x01\x88\xb5' + bytes(1400))
    no_answer(a, '10.0.0.2')
    for container in a, b:
        received = container.ip('-s -o link show vde0').stdout.split('RX:')[1].split('\\')[1]
        assert received.split()[:2] == ['0', '0']
    assert len(daemon.pids()) == 3
    a.ip('link del vde0')
    session_ends(daemon, 1)
