"""--offload and --mtu of the client, and what daemon and client tell each other for them."""

import re
import socket

import pytest

from answers import Listener
from conftest import PYTHON, wait_until

# A TCP receiver and a sender of seeded bytes; both print the SHA-256 of what they saw.
TRANSFER = """if True:
    import hashlib, random, socket, sys
    way, address, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    digest, count = hashlib.sha256(), 0
    if way == 'receive':
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 7000))
        listener.listen(1)
        print('ready', flush=True)
        conn = listener.accept()[0]
        while True:
            data = conn.recv(1 << 20)
            if not data:
                break
            digest.update(data)
            count += len(data)
    else:
        conn = socket.create_connection((address, 7000), 10)
        conn.settimeout(60)
        chance = random.Random(size)
        while count < size:
            data = chance.getrandbits(8 << 16).to_bytes(1 << 16, 'big')
            conn.sendall(data)
            digest.update(data)
            count += len(data)
        conn.shutdown(socket.SHUT_WR)
        conn.recv(1)
    print(count, digest.hexdigest())
"""


def transfer(a, b, address, size, tmp_path):
    """Send size bytes of TCP from a to b, whose address it is; both must have seen the same."""
    script = tmp_path / 'transfer.py'
    script.write_text(TRANSFER)
    receiver = b.popen(PYTHON, script, 'receive', address, size, stdout=-1, universal_newlines=True)
    assert receiver.stdout.readline() == 'ready\n'
    sent = a.run(PYTHON, script, 'send', address, size, timeout=90).stdout
    assert receiver.stdout.readline() == sent
    assert int(sent.split()[0]) >= size


def received(container, interface='vde0'):
    """(packets, bytes) that a container's interface has received."""
    text = container.ip('-s link show %s' % interface).stdout
    count, packets = re.search(r'RX:[^\n]*\n\s*(\d+)\s+(\d+)', text).groups()
    return int(packets), int(count)


def csum_errors(container):
    """How many TCP segments a container's kernel found to be corrupt."""
    lines = [line.split() for line in container.run('cat', '/proc/net/snmp').stdout.splitlines()
             if line.startswith('Tcp:')]
    return int(dict(zip(*lines))['InCsumErrors'])


def join(container, daemon, address, *argv):
    """An interface vde0 with an address; gives what the client printed."""
    done = container.client('-s', daemon.socket, *argv)
    container.up('vde0', address)
    return done


@pytest.mark.core
@pytest.mark.parametrize('vnl', ['vxvde://', 'vxvde:///v6'])
def test_offload_carries_tcp_byte_by_byte_in_fewer_packets(
        host, new_host, new_container, new_daemon, vnl, tmp_path):
    other = new_host()
    host.wire(other)
    a, b = new_container('a'), new_container('b')
    join(a, new_daemon(host), '10.0.0.1/24', '--offload', '--mtu', 'auto', vnl)
    join(b, new_daemon(other), '10.0.0.2/24', '--offload', '--mtu', 'auto', vnl)
    a.ping('10.0.0.2')
    before = received(b)
    transfer(a, b, '10.0.0.2', 30 << 20, tmp_path)
    packets, size = (now - then for now, then in zip(received(b), before))
    assert size > 30 << 20
    assert size / packets > 3000            # more than two full segments a packet
    assert csum_errors(b) == 0
    transfer(b, a, '10.0.0.1', 5 << 20, tmp_path)


def test_offload_and_plain_interfaces_are_on_one_network(pair, tmp_path):
    daemon, a, b = pair
    join(a, daemon, '10.0.0.1/24', '--offload', 'vxvde://')
    join(b, daemon, '10.0.0.2/24', 'vxvde://')
    a.ping('10.0.0.2', size=1400)
    transfer(a, b, '10.0.0.2', 5 << 20, tmp_path)
    transfer(b, a, '10.0.0.1', 5 << 20, tmp_path)


PROXY = """if True:
    import random, select, socket, sys
    port, chance, count = int(sys.argv[1]), random.Random(11), 0
    inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    inside.bind(('127.0.0.1', port))
    inside.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    ways = {port + 1: port + 2, port + 2: port + 1}
    print('ready', flush=True)
    while True:
        select.select([inside], [], [])
        batch = []
        try:
            while len(batch) < 60:
                batch.append(inside.recvfrom(65535, socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass
        for data, peer in batch:
            count += len(data) > 500
            if len(data) > 500 and count % 101 == 0:
                data = bytearray(data)
                data[chance.randrange(66, len(data))] ^= 1 << chance.randrange(8)
            inside.sendto(data, ('127.0.0.1', ways[peer[1]]))
"""


def test_no_corrupted_byte_is_delivered_and_none_is_lost_for_good(host, pair, tmp_path):
    """One bit of every 101st segment is wrong, so never two in what is merged.

    A super-segment has one checksum, as every TCP segment has: two wrong bits can cancel out.
    """
    daemon, a, b = pair
    script = tmp_path / 'proxy.py'
    script.write_text(PROXY)
    proxy = host.popen(PYTHON, script, 6000, stdout=-1)
    assert proxy.stdout.readline() == b'ready\n'
    join(a, daemon, '10.0.0.1/24', '--offload', 'udp://6001->127.0.0.1:6000')
    join(b, daemon, '10.0.0.2/24', '--offload', 'udp://6002->127.0.0.1:6000')
    before = received(b)
    transfer(a, b, '10.0.0.2', 10 << 20, tmp_path)
    packets, size = (now - then for now, then in zip(received(b), before))
    assert size / packets > 1514 * 1.1      # something was merged
    assert csum_errors(b) > 30              # and the kernel saw what was corrupt


@pytest.fixture
def plain(closing, tmp_path):
    """A daemon of the plain protocol, as the C daemon is: no keys, a bare errno for a greeting."""
    return lambda *answers: closing(Listener(str(tmp_path / 'vdelxcs'), answers))


@pytest.mark.core
def test_with_a_plain_daemon_the_client_goes_on_without(new_container, plain):
    daemon, c = plain(b'9', b'0'), new_container('c')
    done = c.client('-v', '-s', daemon.path, '--offload', '--mtu', 'auto', 'vxvde://')
    assert done.stdout == 'vde0\n'
    assert 'no offload' in done.stderr and 'stays 1500' in done.stderr
    assert daemon.requests == [b'\0hello=1\0', b'vxvde://\0']
    assert 'vde0' in c.interfaces()


@pytest.mark.core
def test_a_plain_request_has_no_keys_and_needs_one_connection(new_container, plain):
    daemon, c = plain(b'0', b'0'), new_container('c')
    assert c.client('-s', daemon.path, 'vxvde://').stderr == ''
    assert c.client('-s', daemon.path, '-i', 'lan0', '-t', '3', 'vxvde://').stderr == ''
    assert daemon.requests == 2 * [b'vxvde://\0']


@pytest.mark.parametrize('argv', [['-v'], ['-u'], ['-a', '10.0.0.1/24'], ['--mac', 'auto:x'],
                                  ['--mtu', '1400']])
def test_a_request_with_other_options_has_no_keys_either_for_a_plain_daemon(
        new_container, plain, argv):
    daemon, c = plain(b'9', b'0'), new_container('c')
    c.client('-s', daemon.path, *(argv + ['vxvde://']))
    assert daemon.requests == [b'\0hello=1\0', b'vxvde://\0']


def mtu(container):
    """The MTU of a container's vde0."""
    return int(re.search(r'mtu (\d+)', container.ip('link show vde0').stdout).group(1))


@pytest.mark.parametrize('vnl, expected', [
    ('vxvde://', 1450), ('vxvde:///v6', 1430), ('vlan://3{vxvde://}', 1446), ('vxlan://', 1450),
    ('udp://5000->192.0.2.2:5000', 1458), ('null://', 1500)])
def test_auto_is_the_largest_mtu_that_is_not_fragmented(host, new_host, new_container, new_daemon,
                                                        vnl, expected):
    host.wire(new_host())
    daemon, c = new_daemon(host), new_container('c')
    c.client('-s', daemon.socket, '--mtu', 'auto', vnl)
    assert mtu(c) == expected


def test_the_advice_is_right(host, new_host, new_container, new_daemon):
    """Datagrams of the advised size leave whole, and one byte more is fragmented."""
    other = new_host()
    host.wire(other)
    a, b = new_container('a'), new_container('b')
    for container, there, address in (a, host, '10.0.0.1/24'), (b, other, '10.0.0.2/24'):
        container.client('-s', new_daemon(there).socket, '--mtu', 'auto', 'vxvde://')
        container.up('vde0', address)

    def fragments():
        lines = [line.split() for line in host.run('cat', '/proc/net/snmp').stdout.splitlines()
                 if line.startswith('Ip:')]
        return int(dict(zip(*lines))['FragCreates'])
    a.ping('10.0.0.2', size=mtu(a) - 28)
    assert fragments() == 0
    for container in a, b:
        container.ip('link set vde0 mtu %d' % (mtu(container) + 1))
    a.ping('10.0.0.2', size=mtu(a) - 28)
    assert fragments() > 0


def test_mtu_is_set_before_the_network_is_open_and_a_wrong_one_leaves_nothing(pair):
    daemon, c, _ = pair
    c.client('-s', daemon.socket, '--mtu', '1280', 'null://')
    assert mtu(c) == 1280
    for wrong in '67', '65522', 'big', '', '-1', '1e3':
        done = c.client('-s', daemon.socket, '-i', 'x', '--mtu', wrong, 'null://', check=False)
        assert done.returncode == 1 and done.stderr.startswith('vdelxcc: --mtu'), wrong
    assert c.interfaces() == {'lo', 'vde0'}


def test_v_says_when_the_mtu_does_not_fit(host, new_host, new_container, new_daemon):
    host.wire(new_host())
    daemon, c = new_daemon(host), new_container('c')
    done = c.client('-v', '-s', daemon.socket, '--mtu', '1500', 'vxvde://')
    assert done.stdout == 'vde0\n' and '1500' in done.stderr and '1450' in done.stderr
    done = c.client('-v', '-s', daemon.socket, '--mtu', '1450', 'vxvde://')
    assert done.stdout == 'vde1\n' and 'does not fit' not in done.stderr


@pytest.mark.core
def test_the_daemon_answers_a_greeting_and_nothing_is_logged(pair):
    daemon, c, _ = pair
    with c.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
        conn.settimeout(5)
        conn.connect(daemon.socket)
        conn.sendall(b'\0hello=1\0')
        answer = b''
        for part in iter(lambda: conn.recv(4096), b''):
            answer += part
    assert answer.startswith(b'0\0') and b'offload=1\0' in answer and b'mtu=1\0' in answer
    assert b'reason=1\0' in answer
    wait_until(lambda: len(daemon.pids()) == 1)
    assert daemon.log() == ''


def test_offload_must_be_asked_for(pair):
    """A TAP with an offload header in a plain request, and a plain one in an offload request."""
    daemon, c, _ = pair
    for flags, request in (0x5002, b'null://\0'), (0x1002, b'null://\0offload=1\0'):
        script = ("import fcntl,os,socket,struct,sys;"
                  "t=os.open('/dev/net/tun',2);"
                  "fcntl.ioctl(t,0x400454ca,struct.pack('16sH22x',b'x0',%d));"
                  "s=socket.socket(1);s.connect(sys.argv[1]);"
                  "s.sendmsg([%r],[(1,1,struct.pack('i',t))]);print(s.recv(99))" % (flags, request))
        assert c.run(PYTHON, '-c', script, daemon.socket).stdout == "b'22\\x00'\n"


def test_the_daemon_says_when_the_mtu_does_not_fit(host, new_host, new_container, new_daemon):
    host.wire(new_host())
    daemon, c = new_daemon(host), new_container('c')
    c.client('-s', daemon.socket, '--mtu', '1500', '-v', 'vxvde://')
    line = 'the MTU of 1500 does not fit: datagrams will be fragmented; it may be 1450: vxvde:// ('
    wait_until(lambda: daemon.log().count(line) == 1)
    c.client('-s', daemon.socket, '-i', 'plain0', 'vxvde://')
    wait_until(lambda: daemon.log().count(line) == 2)       # who does not tell has the default
    for argv in (['--mtu', '1450', 'vxvde://'], ['--mtu', 'auto', 'vxvde://'],
                 ['--mtu', '9000', 'null://'], ['--mtu', '1446', 'vlan://3{vxvde://}']):
        done = c.client('-v', '-s', daemon.socket, *argv)
        assert 'fragmented' not in done.stderr, argv
    done = c.client('-v', '-s', daemon.socket, '--mtu', '1447', 'vlan://3{vxvde://}')
    assert 'fragmented' in done.stderr
    wait_until(lambda: daemon.log().count('fragmented') == 3)
