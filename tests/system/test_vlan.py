"""vlan://, over several networks and itself: against raw frames, the kernel, and vde_plug."""

import os

import pytest

import peers
from conftest import wait_until
from peers import RawPort, carrier, expect, frame, join, refused

Q, AD = 0x8100, 0x88a8
PRIORITY = 0xb000                       # PCP 5, DEI 1

# The head of the VNL, then pairs of tags: what the container has, what the network has. What is
# None does not pass from the other side.
MAPS = [
    ('', [([], []), ([(Q, 5)], None), (None, [(Q, 5)]), ([(AD, 5)], [(AD, 5)])]),
    ('5', [([], [(Q, 5)]), ([(Q, 7)], None), ([(Q, 5)], None), (None, []), (None, [(Q, 7)])]),
    ('0005', [([], [(Q, 5)])]),
    ('5/untag=9', [([], [(Q, 5)]), ([(Q, 9)], []), ([(Q, 5)], None), (None, [(Q, 9)])]),
    ('/u=9', [([], None), ([(Q, 9)], []), (None, [(Q, 9)])]),
    ('5/tag=7:20-30.8', [([], [(Q, 5)]), ([(Q, 7)], [(Q, 7)]), ([(Q, 8)], [(Q, 8)]),
                         ([(Q, 20)], [(Q, 30)]), ([(Q, PRIORITY | 20)], [(Q, PRIORITY | 30)]),
                         ([(Q, 30)], None), (None, [(Q, 20)]), (None, [(Q, 9)]), (None, [])]),
    ('/t=2-4094', [([], []), ([(Q, 0xf000 | 2)], [(Q, 0xf000 | 4094)])]),
    ('5/x', [([], [(Q, 5)]), ([(Q, 2)], [(Q, 2)]), ([(Q, PRIORITY | 4094)], [(Q, PRIORITY | 4094)]),
             (None, []), ([(Q, 1)], None), (None, [(Q, 1)]), ([(Q, 4095)], None),
             (None, [(Q, 4095)])]),
    ('/trunk/tag=20-30', [([], []), ([(Q, 20)], [(Q, 30)]), ([(Q, 21)], [(Q, 21)])]),
    ('/trunk/untag=9', [([(Q, 9)], []), ([(Q, 8)], [(Q, 8)]), ([], None)]),
    ('5/qinq', [([], [(AD, 5)]), ([(Q, 7)], [(AD, 5), (Q, 7)]), (None, [(Q, 5)]), (None, []),
                ([(Q, PRIORITY | 7), (Q, 3)], [(AD, 5), (Q, PRIORITY | 7), (Q, 3)])]),
    ('5/ad/tag=6-8/untag=9', [([(AD, 6)], [(AD, 8)]), ([(AD, 9)], []), ([], [(AD, 5)]),
                              ([(AD, 9), (Q, 2)], [(Q, 2)])]),
    ('5[untag=9/tag=7]', [([], [(Q, 5)]), ([(Q, 9)], []), ([(Q, 7)], [(Q, 7)])]),
    ('[x/q]', [([], []), ([(AD, 7)], [(AD, 7)]), ([(Q, 7)], [(Q, 7)])]),
]


@pytest.fixture
def hub(host, new_container, new_daemon, closing, tmp_path):
    """(daemon, container n with the node, its raw port, the VNL of the node)."""
    daemon, n = new_daemon(host), new_container('n')
    join(n, daemon, 'hub://%s/node' % tmp_path, mtu=2000)
    return daemon, n, closing(RawPort(n, 'vde0')), 'vde://%s/node' % tmp_path


def check_map(near, far, pairs):
    """Every pair passes, both ways, and what must not pass does not."""
    last = [pair for pair in pairs if None not in pair][0]
    for source, target, mine, others in (near, far, 0, 1), (far, near, 1, 0):
        for seed, pair in enumerate(pairs):
            if pair[mine] is None:
                continue
            for length in 46, 60, 1514:
                source.send(frame(length, tags=pair[mine], seed=seed))
                if pair[others] is not None:
                    expect(target, frame(length, tags=pair[others], seed=seed))
                else:                       # the next one to arrive is one that may
                    source.send(frame(60, tags=last[mine], seed=99))
                    expect(target, frame(60, tags=last[others], seed=99))


def test_tags_between_the_container_and_the_network(hub, new_container, closing):
    daemon, _, far, vnl = hub
    c = new_container('c')
    for head, pairs in MAPS:
        join(c, daemon, 'vlan://%s{%s}' % (head, vnl), mtu=2000)
        near = RawPort(c, 'vde0')
        check_map(near, far, pairs)
        near.close()
        c.ip('link del vde0')
        wait_until(lambda: len(peers.session_pids(daemon)) == 1)


def test_priority_tags_keep_their_priority(hub, new_container, closing):
    daemon, _, far, vnl = hub
    c = new_container('c')
    join(c, daemon, 'vlan://5{%s}' % vnl)
    near = closing(RawPort(c, 'vde0'))
    near.send(frame(tags=[(Q, PRIORITY)]))              # VLAN 0: untagged, with a priority
    expect(far, frame(tags=[(Q, PRIORITY | 5)]))


def test_vlans_nest(hub, new_container, closing):
    daemon, _, far, vnl = hub
    c, d = new_container('c'), new_container('d')
    join(c, daemon, 'vlan://5/tag=7{vlan://6/qinq{%s}}' % vnl, '10.0.0.1/24', mtu=1500)
    near = closing(RawPort(c, 'vde0'))
    check_map(near, far, [([], [(AD, 6), (Q, 5)]),
                          ([(Q, PRIORITY | 7)], [(AD, 6), (Q, PRIORITY | 7)]),
                          (None, [(AD, 6)]), (None, [(Q, 5)]), (None, [(AD, 7), (Q, 5)])])
    # A tag of the other kind is payload: each level puts its own before it.
    levels = [(vlan, AD if vlan % 2 else Q) for vlan in range(2, 12)]
    join(d, daemon, ''.join('vlan://%d%s{' % (vlan, '/ad' * (kind == AD)) for vlan, kind in levels)
         + vnl + '}' * 10)
    deepest = closing(RawPort(d, 'vde0'))
    check_map(deepest, far, [([], [(kind, vlan) for vlan, kind in reversed(levels)])])


@pytest.mark.parametrize('network', ['vxvde://239.9.9.9', 'node'])
@pytest.mark.parametrize('here, there', [
    ('vlan://30{%s}', 'vlan://20{vlan:///tag=20-30{%s}}'),
    ('vlan://30{%s}', 'vlan://30{vlan://5/trunk{%s}}'),
    ('vlan://30/q{%s}', 'vlan://20/q{vlan:///ad/tag=20-30{%s}}'),
    ('%s', 'vlan://9{vlan://7/untag=9{%s}}')])
def test_bulk_passes_every_kind_of_change_unharmed(hub, new_container, network, here, there):
    daemon, _, _, vnl = hub
    vnl = vnl if network == 'node' else network
    c, d = new_container('c'), new_container('d')
    join(c, daemon, here % vnl, '10.5.0.1/24')
    join(d, daemon, there % vnl, '10.5.0.2/24')
    d.ping('10.5.0.1', size=1400)
    peers.transfer(c, d, '10.5.0.2', 2 << 20)
    peers.transfer(d, c, '10.5.0.1', 2 << 20)


@pytest.mark.parametrize('network', ['vxvde://239.9.9.9', 'node'])
def test_the_kernels_vlan_devices_are_at_the_other_end(hub, new_container, network):
    daemon, n, _, vnl = hub
    peers.require_vlan_devices(n)
    c = new_container('c')
    if network != 'node':
        vnl, n = network, new_container('m')
        join(n, daemon, vnl)
    n.ip('link set vde0 mtu 1600')
    join(c, daemon, 'vlan://5/tag=20-30/trunk/untag=9{%s}' % vnl, '10.5.0.1/24')
    for container, device, vlan, address in (
            (n, 'vde0', 5, '10.5.0.2'), (n, 'vde0', 30, '10.30.0.2'), (n, 'vde0', 40, '10.40.0.2'),
            (c, 'vde0', 20, '10.30.0.1'), (c, 'vde0', 40, '10.40.0.1'), (c, 'vde0', 9, '10.9.0.1')):
        container.ip('link add link %s name v%d type vlan id %d' % (device, vlan, vlan))
        container.up('v%d' % vlan, address + '/24')
    n.up('vde0', '10.9.0.2/24')
    for address in '10.5.0.2', '10.30.0.2', '10.40.0.2', '10.9.0.2':
        c.ping(address, count=2)
        c.ping(address, count=2, size=1400)
    for address in '10.5.0.', '10.30.0.':
        peers.transfer(c, n, address + '2', 2 << 20)
        peers.transfer(n, c, address + '1', 2 << 20)


def test_the_kernels_802_1ad_device_is_at_the_other_end(hub, new_container):
    daemon, n, _, vnl = hub
    peers.require_vlan_devices(n)
    c = new_container('c')
    join(c, daemon, 'vlan://5/qinq{%s}' % vnl, '10.5.0.1/24')
    n.ip('link add link vde0 name s5 type vlan protocol 802.1ad id 5')
    n.up('s5', '10.5.0.2/24')
    for container, device, address in (n, 's5', '10.7.0.2'), (c, 'vde0', '10.7.0.1'):
        container.ip('link add link %s name c7 type vlan id 7' % device)
        container.up('c7', address + '/24')
    c.ping('10.5.0.2')
    c.ping('10.7.0.2')
    peers.transfer(n, c, '10.7.0.1', 1 << 20)


@pytest.mark.parametrize('option, kind', [('', Q), ('/q', AD)])
def test_vde_plug_speaks_the_same_vlans(hub, new_container, closing, option, kind):
    peers.require_plugin('vlan')
    daemon, _, network, vnl = hub
    c, d = new_container('c'), new_container('d')
    join(c, daemon, 'vlan://5/untag=9%s{%s}' % (option, vnl), '10.5.0.1/24')
    peers.plug_in(d, 'vlan://5/untag=9%s{%s}' % (option, vnl), '10.5.0.2/24')
    c.ping('10.5.0.2')
    d.ping('10.5.0.1', size=1400)
    peers.transfer(c, d, '10.5.0.2', 1 << 20)
    near, far = closing(RawPort(c, 'vde0')), closing(RawPort(d, 'peer0'))
    for source, target in (near, far), (far, near):
        for tags, between in ([], [(kind, 5)]), ([(kind, 9)], []):
            source.send(frame(100, tags=tags, seed=len(tags)))
            expect(target, frame(100, tags=tags, seed=len(tags)))
            expect(network, frame(100, tags=between, seed=len(tags)))


def test_a_node_inside_of_a_vlan_has_the_tagged_frames(host, new_container, new_daemon, closing,
                                                       tmp_path):
    daemon, c, path = new_daemon(host), new_container('c'), str(tmp_path / 'node')
    join(c, daemon, 'vlan://5{switch://%s}' % path)
    near = closing(RawPort(c, 'vde0'))
    one, two = [closing(peers.Member(path)) for _ in range(2)]
    near.send(frame(source=9))
    expect(one, frame(source=9, tags=[(Q, 5)]))
    expect(two, frame(source=9, tags=[(Q, 5)]))
    one.send(frame(source=1, target=9, tags=[(Q, 5)]))
    expect(near, frame(source=1, target=9))
    two.close()
    wait_until(lambda: len(os.listdir(path)) == 2)
    three = closing(peers.Member(path))
    near.send(frame(seed=2))
    expect(three, frame(seed=2, tags=[(Q, 5)]))


def test_a_vlan_waits_for_its_network(host, new_container, new_daemon, closing, tmp_path):
    daemon, c = new_daemon(host), new_container('c')
    switch = closing(peers.Switch(str(tmp_path / 'sw'), str(tmp_path / 'm')))
    join(c, daemon, 'vlan://5{vlan://6/q{vde://%s}}' % switch.path)
    near = closing(RawPort(c, 'vde0'))
    switch.kill()
    wait_until(lambda: not carrier(c), timeout=1)
    switch.restart()
    wait_until(lambda: carrier(c), timeout=6)
    far = closing(peers.Member(switch.path))
    near.send(frame())
    expect(far, frame(tags=[(AD, 6), (Q, 5)]))


ERRORS = [
    ('vlan://1{null://}', 22, '1 is not within 2 to 4094'),
    ('vlan://4095{null://}', 22, '4095 is not within'),
    ('vlan://x{null://}', 22, 'x is not a decimal number'),
    ('vlan://5', 22, 'needs a VNL in braces'),
    ('vlan://5/untag=0{null://}', 22, 'option untag: 0 is not within'),
    ('vlan://5/untag={null://}', 22, 'option untag: nothing'),
    ('vlan://5/tag=7.7{null://}', 22, 'a VLAN is named twice'),
    ('vlan://5/tag=7-9:8-9{null://}', 22, 'a VLAN is named twice'),
    ('vlan://5/tag=7-{null://}', 22, 'option tag'),
    ('vlan://5/tag=4095{null://}', 22, 'option tag: 4095'),
    ('vlan://5/x=3{null://}', 22, 'takes no value'),
    ('vlan://5/port=3{null://}', 22, 'no option port'),
    ('vlan://5{null://}x', 22, 'text after }'),
    ('vlan://5{vde:///nowhere/sw}', 2, 'switch /nowhere/sw: No such file or directory'),
    ('vlan://5{vlan://6{udp://5}}', 22, 'no destination'),
    ('vlan://5{}', 2, 'switch (default)'),
    ('vlan://5{nosuch://}', 93, 'nosuch:// runs a program on this host'),
    ('vlan://2{' * 32 + 'null://' + '}' * 32, 22, 'more than 32 nested levels'),
]


def test_errors_name_the_number_and_the_reason(host, new_container, closing, tmp_path_factory):
    daemon = closing(peers.start_daemon(host, tmp_path_factory.mktemp('vde'),
                                        before=['env', 'HOME=/nowhere']))
    c = new_container('c')
    for vnl, number, words in ERRORS:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line, (vnl, line)
        assert words in logged and vnl in logged, logged
    for vnl in 'vlan://{null://}', 'vlan://5{null://', 'vlan://2{' * 31 + 'null://':
        join(c, daemon, vnl)
        c.ip('link del vde0')
