"""The whole way: two containers on one host, one daemon, a network, a ping."""

import pytest

pytestmark = pytest.mark.core


def test_two_containers_ping_each_other(pair):
    daemon, a, b = pair
    for container, address in (a, '10.0.0.1'), (b, '10.0.0.2'):
        done = container.client('-s', daemon.socket, 'vxvde://')
        assert (done.stdout, done.stderr) == ('', '')
        container.up('vde0', address + '/24')
    a.ping('10.0.0.2')
    b.ping('10.0.0.1')
