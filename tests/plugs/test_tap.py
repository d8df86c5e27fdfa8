"""The TAP as a plug: what its interface does, seen from both of its sides."""

import socket

import pytest

from conftest import wait_until
from ends import bench, frame, new_bench                                        # noqa: F401

ETHERTYPE = 0x88b5


@pytest.fixture
def tap(bench):
    """A TAP a0 that is down, as an End."""
    end = bench.tap('a0')
    bench.set('ipv6/conf/a0/disable_ipv6', 1)
    return end


def up(bench, mtu=1500):
    """Switch a0 on; return a socket for the frames of its other side, the host's."""
    bench.host.ip('link set a0 mtu %d up' % mtu)
    sock = bench.host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
    sock.bind(('a0', ETHERTYPE))
    return sock


def test_frames_pass_between_the_plug_and_the_interface(bench, tap):
    sock = up(bench, 9220)
    for length in 60, 1514, 9018, 9234:
        tap.send([frame(length)])
        assert sock.recv(9999) == frame(length)
        sock.send(frame(length))
        assert tap.take(1) == [frame(length)]


def test_frames_before_up_are_dropped_and_counted_and_nothing_ends(bench, tap):
    assert tap.send([frame(60, seed=seed) for seed in range(5)])[1] == 5
    assert tap.do('end', seconds=0) is None
    sock = up(bench)
    assert tap.send([frame(60, seed=6)])[1] == 0
    assert sock.recv(9999) == frame(60, seed=6)


def test_down_and_up_again_costs_only_the_frames_in_between(bench, tap):
    sock = up(bench)
    bench.host.ip('link set a0 down')
    assert tap.send([frame(60, seed=1)])[1] == 1
    bench.host.ip('link set a0 up')
    tap.send([frame(60, seed=2)])
    with pytest.raises(OSError):                # the socket reports the time when it was down
        sock.recv(9999)
    assert sock.recv(9999) == frame(60, seed=2)
    sock.send(frame(60, seed=3))
    assert tap.take(1) == [frame(60, seed=3)]


def test_frames_that_are_too_long_are_dropped_whole_and_counted(bench, tap):
    sock = up(bench, 65000)
    for length in 9235, 9236, 20000, 65014, 9234:
        sock.send(frame(length))
    assert tap.take(1) == [frame(9234)]
    assert tap.do('drops') == 4


def test_a_burst_with_a_runt_delivers_the_others(bench, tap):
    sock = up(bench)
    assert tap.send([frame(60, seed=1), frame(13), frame(60, seed=2)])[1] == 1
    assert [sock.recv(9999), sock.recv(9999)] == [frame(60, seed=1), frame(60, seed=2)]


@pytest.mark.parametrize('state', ['up', 'down'])
def test_deleting_the_interface_ends_the_plug(bench, tap, state):
    if state == 'up':
        up(bench)
    bench.host.ip('link del a0')
    assert tap.do('end', seconds=5) == 'Ended'


def test_sending_to_a_deleted_interface_ends_the_plug(bench, tap):
    tap.do('hold')
    bench.host.ip('link del a0')
    tap.send([frame(60)])
    assert tap.do('end', seconds=0) == 'Ended'


def test_the_carrier_goes_and_comes_back(bench, tap):
    up(bench)
    for on in False, True:
        tap.do('carrier', on=on)
        wait_until(lambda: ('NO-CARRIER' not in bench.host.ip('link show a0').stdout) == on)
    assert 'a0' in bench.host.interfaces()
