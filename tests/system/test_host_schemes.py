"""tap://, macvtap://, seqpacket:// and null://."""

import os
import select
import socket

import peers
from conftest import require, wait_until
from peers import RawPort, expect, frame, join, refused


def test_tap_is_an_interface_of_the_host(host, new_container, new_daemon, closing):
    daemon, c = new_daemon(host), new_container('c')
    join(c, daemon, 'tap://lan0', '10.0.0.1/24')
    host.ip('addr add 10.0.0.2/24 dev lan0')
    host.ip('link set lan0 up')
    c.ping('10.0.0.2')
    host.ping('10.0.0.1')
    peers.transfer(c, host, '10.0.0.2', 1 << 20)
    peers.transfer(host, c, '10.0.0.1', 1 << 20)
    for namespace, name in (c, 'vde0'), (host, 'lan0'):
        namespace.ip('link set %s mtu 9100' % name)
    near, far = closing(RawPort(c, 'vde0')), closing(RawPort(host, 'lan0'))
    for length in 60, 1514, 9018:
        near.send(frame(length, seed=1))
        expect(far, frame(length, seed=1))
        far.send(frame(length, seed=2))
        expect(near, frame(length, seed=2))
    done = c.client('-s', daemon.socket, 'tap://lan0', check=False)
    assert done.returncode == 1 and os.strerror(16) in done.stderr
    assert 'interface lan0: ' + os.strerror(16) in daemon.log()
    host.ip('link set lan0 down')           # nothing ends while it is down
    near.send(frame(seed=3))
    host.ip('link set lan0 up')
    c.ping('10.0.0.2')
    c.ip('link del vde0')
    wait_until(lambda: 'lan0' not in host.interfaces(), what='it goes with the interface')
    join(c, daemon, 'tap://lan0')
    host.ip('link del lan0')
    wait_until(lambda: 'vde0' not in c.interfaces(), what='and the interface with it')


def test_macvtap_is_a_neighbour_on_the_hosts_cable(host, new_host, new_container, closing):
    require('unshare', 'nsenter')
    far, c = new_host('far'), new_container('c')
    host.wire(far)
    done = host.ip('link add link eth0 name mv0 type macvtap mode bridge', check=False)
    if 'Unknown device type' in done.stderr:
        peers.pytest.skip('this kernel has no macvtap devices: it needs CONFIG_MACVTAP')
    assert done.returncode == 0, done.stderr
    host.ip('link set mv0 up allmulticast on')      # else it filters IPv6's neighbour discovery
    address = host.ip('-o link show mv0').stdout.split('link/ether ')[1].split()[0]
    # The device node goes into a /dev of the daemon's own: the machine's stays as it is.
    place = closing(peers.Place())
    daemon = closing(peers.start_daemon(host, place.path, before=['unshare', '-m', 'sh', '-c', '''
        mount -t sysfs none /sys && mount -t tmpfs none /dev && mknod /dev/null c 1 3 &&
        IFS=: read major minor < $(echo /sys/class/net/mv0/tap*/dev) &&
        mknod /dev/tap$(cat /sys/class/net/mv0/ifindex) c $major $minor && exec "$@"''', '-']))
    c.client('-s', daemon.socket, 'macvtap://mv0')
    c.ip('link set vde0 address ' + address)
    c.up('vde0', '192.0.2.9/24', '2001:db8::9/64')
    c.ping('192.0.2.2')
    far.ping('2001:db8::9')
    peers.transfer(c, far, '192.0.2.2', 1 << 20)
    peers.transfer(far, c, '192.0.2.9', 1 << 20)
    done = c.client('-s', daemon.socket, 'macvtap://mv0', check=False)
    assert done.returncode == 1 and os.strerror(16) in done.stderr, done.stderr
    host.ip('link del mv0')
    wait_until(lambda: 'vde0' not in c.interfaces(), what='the interface ends with the device')


INHERIT = '''
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
os.dup2(sock.fileno(), 9, inheritable=True)
os.dup2(os.open('/dev/null', os.O_RDWR), 8, inheritable=True)
os.dup2(socket.socketpair()[0].detach(), 7, inheritable=True)
os.execv(sys.argv[2], sys.argv[2:])
'''


def test_seqpacket_is_a_socket_that_the_daemon_inherited(host, new_container, closing,
                                                         tmp_path_factory):
    directory, c = tmp_path_factory.mktemp('vde'), new_container('c')
    listener = closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    listener.bind(str(directory / 'peer'))
    listener.listen(1)
    daemon = closing(peers.start_daemon(host, directory, before=peers.python(
        '-c', INHERIT, directory / 'peer')))
    peer = closing(listener.accept()[0])
    for vnl, number, words in [
            ('seqpacket://8', 9, 'no SOCK_SEQPACKET socket'),       # /dev/null
            ('seqpacket://7', 9, 'no SOCK_SEQPACKET socket'),       # a stream
            ('seqpacket://77', 9, 'descriptor 77: Bad file descriptor'),
            ('seqpacket://0', 22, '0 is not within 3 to'),
            ('seqpacket://x', 22, 'x is not a decimal number'), ('seqpacket://', 22, 'nothing')]:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line, (vnl, line)
        assert words in logged and vnl in logged, logged
    join(c, daemon, 'seqpacket://9', mtu=9100)
    port = closing(RawPort(c, 'vde0'))
    for length in 60, 1514, 9018:
        peer.send(frame(length, seed=1))
        expect(port, frame(length, seed=1))
        port.send(frame(length, seed=2))
        data = b''
        while peers.ETHERTYPE not in data[12:14]:
            assert select.select([peer], [], [], 5)[0]
            data = peer.recv(20000)
        assert data == frame(length, seed=2)
    peer.send(b'short')
    peer.send(bytes(9300))
    peer.send(frame(seed=3))
    expect(port, frame(seed=3))
    daemon.stop()
    wait_until(lambda: len(daemon.pids()) == 1)
    peer.send(frame(seed=4))
    expect(port, frame(seed=4))             # the interface outlives the daemon
    peer.close()
    wait_until(lambda: 'vde0' not in c.interfaces(), what='the end of the socket is the end')


def test_null_swallows_everything(host, new_container, new_daemon, closing):
    daemon, c = new_daemon(host), new_container('c')
    join(c, daemon, 'null://', '10.0.0.1/24', name='one0')
    join(c, daemon, 'null://any text at all', '10.0.1.1/24', name='two0')
    port = closing(RawPort(c, 'one0'))
    port.send(*[frame(1514, seed=seed) for seed in range(2000)])
    done = c.run('ping', '-c2', '-i0.1', '-W0.2', '10.0.0.2', check=False)
    assert ' 0 received' in done.stdout
    counters = '/proc/%d/net/dev' % c.holder.pid

    def sent():
        lines = [line.split() for line in open(counters) if 'one0:' in line]
        return int(lines[0][10])
    wait_until(lambda: sent() > 1000, what='it takes what it is given')
    c.ip('link del one0')
    c.ip('link del two0')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])


def test_errors_name_the_number_and_the_reason(host, new_container, new_daemon):
    daemon, c = new_daemon(host), new_container('c')
    host.ip('link add other0 type veth peer name other1')
    for vnl, number, words in [
            ('tap://', 22, 'nothing is not an interface name'),
            ('tap://with%2Fslash', 22, 'is not an interface name'),
            ('tap://a234567890123456', 22, 'is not an interface name'),
            ('tap://other0', 22, 'interface other0: Invalid argument'),
            ('tap://lo', 22, 'interface lo'),
            ('macvtap://', 22, 'nothing is not an interface name'),
            ('macvtap://nothere', 19, 'no interface nothere on this host'),
            ('tap://x/mode=3', 22, 'is not an interface name')]:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line, (vnl, line)
        assert words in logged and vnl in logged, logged
    line, logged = refused(c, daemon, 'macvtap://other0')   # there, and no macvtap
    assert os.strerror(2) in line or os.strerror(22) in line or os.strerror(25) in line
    assert 'other0' in logged


def test_no_socket_of_the_daemon_itself_is_a_network(pair):
    """Only what it inherited is: a frame to the forker would be an order, or have it fork."""
    daemon, container, _ = pair
    join(container, daemon, 'vxvde:///if=lo')                   # now there is a forker
    for number in range(3, 20):
        for vnl in 'seqpacket://%d', 'vlan://3{seqpacket://%d}':
            done = container.client('-s', daemon.socket, vnl % number, check=False)
            assert done.returncode == 1 and os.strerror(9) in done.stderr, (vnl, number)
    assert container.interfaces() == {'lo', 'vde0'}
