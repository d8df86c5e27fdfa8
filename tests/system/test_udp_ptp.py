"""udp:// and ptp://: against vde_plug, against each other, and against peers made by hand."""

import os
import select
import signal
import socket
import stat
import threading
import time

import pytest

import peers
from conftest import wait_until
from peers import RawPort, carrier, expect, frame, in_namespace, join, refused


# ---- udp:// -------------------------------------------------------------------------------------

UDP_PAIRS = [
    ('udp://5001->127.0.0.1:5002', 'udp://5002->127.0.0.1:5001'),
    ('udp://[::1]:5001->[::1]:5002', 'udp://5002->[0::1]:5001'),
    ('udp://127.0.0.1:5001->localhost:5002', 'udp://127.0.0.1:5002->localhost:5001'),
    ('udp://[::]:5001->ip6-name:5002', 'udp://[::1]:5002->ip6-name:5001'),
]


@pytest.mark.parametrize('mine, others', UDP_PAIRS)
def test_two_containers_talk_over_udp(host, new_container, closing, tmp_path_factory, mine, others):
    directory = tmp_path_factory.mktemp('vde')
    (directory / 'hosts').write_text('127.0.0.1 localhost\n::1 ip6-name\n')
    daemon = closing(peers.start_daemon(host, directory, before=[
        'unshare', '-m', 'sh', '-c', 'mount --bind "$0" /etc/hosts && exec "$@"',
        str(directory / 'hosts')]))
    a, b = new_container('a'), new_container('b')
    join(a, daemon, mine, '10.0.0.1/24', '2001:db8::1/64')
    closing(RawPort(a, 'vde0')).send(*[frame(seed=seed) for seed in range(9)])  # nobody there yet
    join(b, daemon, others, '10.0.0.2/24', '2001:db8::2/64')
    a.ping('10.0.0.2')
    b.ping('2001:db8::1', size=1400)


def test_udp_with_vde_plug(host, new_container, new_daemon, closing):
    daemon, c = new_daemon(host), new_container('c')
    join(c, daemon, 'udp://6001->127.0.0.1:6002', '10.0.0.1/24', '2001:db8::1/64')
    closing(RawPort(c, 'vde0')).send(*[frame(seed=seed) for seed in range(9)])  # a late peer
    peers.plug_in(host, 'udp://6002->127.0.0.1:6001', '10.0.0.2/24', '2001:db8::2/64')
    c.ping('10.0.0.2')
    c.ping('2001:db8::2')
    host.ping('10.0.0.1')
    peers.transfer(c, host, '10.0.0.2', 1 << 20)
    peers.transfer(host, c, '10.0.0.1', 1 << 20)


@pytest.mark.parametrize('address', ['127.0.0.1', '::1'])
def test_udp_hears_its_peer_alone(host, new_container, new_daemon, closing, address):
    daemon, c = new_daemon(host), new_container('c')
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    text = '[%s]' % address if ':' in address else address
    peer, stranger = [closing(in_namespace(host, lambda: socket.socket(family, socket.SOCK_DGRAM)))
                      for _ in range(2)]
    peer.bind((address, 7002))
    stranger.bind((address, 7003))
    join(c, daemon, 'udp://%s:7001->%s:7002' % (text, text), mtu=9100)
    port = closing(RawPort(c, 'vde0'))
    here = (address, 7001)
    stranger.sendto(frame(seed=1), here)
    for nothing in b'', b'x' * 13, bytes(9300):     # none of it is a frame, none of it is the end
        peer.sendto(nothing, here)
    for length in 60, 1514, 9018:
        peer.sendto(frame(length, seed=2), here)
        expect(port, frame(length, seed=2))
    stranger.sendto(b'', here)
    port.send(frame(seed=3))
    wait_until(lambda: peer.recv(20000) == frame(seed=3), what='no header, no more, no less')
    stranger.setblocking(False)
    with pytest.raises(BlockingIOError):
        stranger.recv(20000)


UDP_ERRORS = [
    ('udp://5000', 22, 'no destination'), ('udp://5000->', 22, 'no destination'),
    ('udp://5000->127.0.0.1', 22, 'no destination'), ('udp://', 22, 'no destination'),
    ('udp://->:5000', 22, 'no destination'), ('udp://5000->127.0.0.1:99999', 22, 'is not within'),
    ('udp://70000->127.0.0.1:1', 22, 'is not within'),
    ('udp://5000->::1:5000', 22, 'goes in brackets'),
    ('udp://localhost:5000->127.0.0.1:5000', 22, 'localhost is not an IP address'),
    ('udp://5000->no.such.host.invalid:5000', 113, 'host no.such.host.invalid'),
    ('udp://5000->198.51.100.1:5000', 101, 'Network is unreachable'),
    ('udp://192.0.2.9:5000->127.0.0.1:5000', 99, 'Cannot assign requested address'),
]


def test_udp_errors_name_the_number_and_the_reason(host, new_container, new_daemon, closing):
    daemon, c = new_daemon(host), new_container('c')
    for vnl, number, words in UDP_ERRORS:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line, vnl
        assert words in logged and vnl in logged, logged
    taken = closing(in_namespace(host, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
    taken.bind(('', 5000))
    line, logged = refused(c, daemon, 'udp://5000->127.0.0.1:1')
    assert os.strerror(98) in line and 'Address already in use' in logged


def test_a_name_server_that_is_silent_is_told_as_such(host, new_container, closing,
                                                      tmp_path_factory):
    """Within the time that a client has, and with a line in the log."""
    directory, c = tmp_path_factory.mktemp('vde'), new_container('c')
    (directory / 'resolv.conf').write_text('nameserver 127.0.0.1\n')
    server = closing(in_namespace(host, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
    server.bind(('127.0.0.1', 53))
    daemon = closing(peers.start_daemon(host, directory, before=[
        'unshare', '-m', 'sh', '-c', 'mount --bind "$0" "$(readlink -f /etc/resolv.conf)" '
        '&& exec "$@"', str(directory / 'resolv.conf')]))
    line, logged = refused(c, daemon, 'udp://5000->some.name.invalid:5000')
    assert os.strerror(113) in line and 'host some.name.invalid: ' in logged
    server.settimeout(1)
    assert b'some' in server.recv(1000), 'it was asked'


# ---- ptp://, datagrams --------------------------------------------------------------------------

def test_ptp_with_vde_plug_whoever_comes_first(host, new_container, new_daemon, closing,
                                               tmp_path):
    daemon, c, d = new_daemon(host), new_container('c'), new_container('d')
    path = str(tmp_path / 'link')
    peers.plug_in(d, 'ptp://' + path, '10.0.0.2/24')
    join(c, daemon, 'ptp://' + path, '10.0.0.1/24')
    c.ping('10.0.0.2')
    assert sorted(os.listdir(str(tmp_path))) == ['link', 'link+']
    done = d.client('-s', daemon.socket, 'ptp://' + path, check=False)
    assert done.returncode == 1 and os.strerror(98) in done.stderr
    assert os.strerror(98) in daemon.log()
    wait_until(lambda: 'vde0' not in d.interfaces())
    c.ip('link del vde0')
    wait_until(lambda: os.listdir(str(tmp_path)) == ['link'], what='our own name goes, not theirs')

    path = str(tmp_path / 'other')
    join(c, daemon, 'ptp://' + path, '10.1.0.1/24')
    child = peers.plug_in(d, 'ptp://' + path, '10.1.0.2/24', name='peer1')
    c.ping('10.1.0.2')
    peers.transfer(c, d, '10.1.0.2', 1 << 20)
    peers.transfer(d, c, '10.1.0.1', 1 << 20)
    child.kill()
    child.wait()
    wait_until(lambda: 'peer1' not in d.interfaces())
    port = closing(RawPort(c, 'vde0'))
    port.send(*[frame(seed=seed) for seed in range(9)])         # into the void: it is noticed
    wait_until(lambda: not carrier(c), timeout=1)
    assert '10.1.0.1/24' in c.ip('addr show vde0').stdout
    peers.plug_in(d, 'ptp://' + path, '10.1.0.2/24', name='peer1')
    wait_until(lambda: carrier(c), timeout=6)
    d.ping('10.1.0.1')
    c.ping('10.1.0.2')


def test_ptp_between_containers_the_other_end_comes_back(pair, tmp_path):
    daemon, a, b = pair
    path = str(tmp_path / 'link')
    join(a, daemon, 'ptp://' + path, '10.0.0.1/24')
    assert carrier(a), 'to come first is no loss'
    for number in 0, signal.SIGKILL, 0:         # it leaves its name behind, or not
        join(b, daemon, 'ptp://' + path, '10.0.0.2/24')
        wait_until(lambda: carrier(a), timeout=6)
        a.ping('10.0.0.2')
        if number:
            os.kill(max(peers.session_pids(daemon)), number)
        else:
            b.ip('link del vde0')
        wait_until(lambda: 'vde0' not in b.interfaces())
        a.run('ping', '-c', '1', '-W', '1', '10.0.0.2', check=False)
        wait_until(lambda: not carrier(a), timeout=2)
    a.ip('link del vde0')
    wait_until(lambda: len(daemon.pids()) == 1)


def test_ptp_between_containers_and_names_left_behind(pair, tmp_path):
    daemon, a, b = pair
    path = str(tmp_path / 'link')
    join(a, daemon, 'ptp://%s[mode=770/group=12345]' % path, '10.0.0.1/24')
    first = peers.session_pid(daemon)
    status = os.stat(path)
    assert stat.S_IMODE(status.st_mode) == 0o770 and status.st_gid == 12345
    join(b, daemon, 'ptp://' + path, '10.0.0.2/24')
    assert stat.S_IMODE(os.stat(path + '+').st_mode) == 0o700
    a.ping('10.0.0.2')
    peers.kill(first)
    assert os.path.exists(path), 'the name of the killed one stays'
    wait_until(lambda: 'vde0' not in a.interfaces())
    join(a, daemon, 'ptp://' + path, '10.0.0.1/24')
    a.ping('10.0.0.2')
    b.ip('link del vde0')
    a.ip('link del vde0')
    wait_until(lambda: os.listdir(str(tmp_path)) == [], what='both names go at the end')


@pytest.mark.parametrize('name', ['link', 'link+'])
def test_ptp_leaves_what_is_no_socket_alone(host, new_container, new_daemon, tmp_path, name):
    daemon, c = new_daemon(host), new_container('c')
    (tmp_path / name).write_text('precious')
    if name == 'link+':                     # the second opener comes upon it
        join(new_container('d'), daemon, 'ptp://%s/link' % tmp_path)
        done = c.client('-s', daemon.socket, 'ptp://%s/link' % tmp_path, check=False)
        line, logged = done.stderr, daemon.log()
        assert done.returncode == 1
        wait_until(lambda: c.interfaces() == {'lo'})
    else:
        line, logged = refused(c, daemon, 'ptp://%s/link' % tmp_path)
    assert os.strerror(17) in line and 'ptp %s/link: File exists' % tmp_path in logged
    assert (tmp_path / name).read_text() == 'precious'


def test_ptp_errors(host, new_container, new_daemon, tmp_path):
    daemon, c = new_daemon(host), new_container('c')
    for vnl, number, words in [
            ('ptp://', 22, 'needs a path'), ('ptp:///nowhere/x', 2, '/nowhere/x: No such file'),
            ('ptp://%s/x[port=3]' % tmp_path, 22, 'no option port'),
            ('ptp:///' + 'x' * 107, 36, 'longer than 107 bytes')]:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line and words in logged, logged
    assert os.listdir(str(tmp_path)) == []


# ---- ptp://, packets ----------------------------------------------------------------------------

class PacketPeer:
    """The newer dialect: listens with packets, says one byte, 0 or an errno."""

    def __init__(self, path, greeting=b'\0'):
        self.path, self.greeting = path, greeting
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(1)
        self.listener.settimeout(8)
        self.sock = None
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self):
        conn = self.listener.accept()[0]
        if self.greeting is not None:
            conn.send(self.greeting)
        self.sock = conn

    def send(self, *frames):
        for each in frames:
            self.sock.send(each)

    def one(self, timeout):
        if not select.select([self.sock], [], [], timeout)[0]:
            return None
        return self.sock.recv(20000)

    frames = RawPort.frames

    def close(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.listener.close()
        if self.sock:
            self.sock.close()


def test_ptp_speaks_packets_and_waits_for_the_peer_to_return(host, new_container, new_daemon,
                                                             closing, tmp_path):
    daemon, c, path = new_daemon(host), new_container('c'), str(tmp_path / 'link')
    peer = closing(PacketPeer(path))
    join(c, daemon, 'ptp://' + path, '10.0.0.1/24', mtu=9100)
    port = closing(RawPort(c, 'vde0'))
    for length in 60, 1514, 9018:
        peer.send(frame(length, seed=length))
        expect(port, frame(length, seed=length))
        port.send(frame(length, seed=length + 1))
        expect(peer, frame(length, seed=length + 1))
    assert os.listdir(str(tmp_path)) == ['link']
    peer.close()
    wait_until(lambda: not carrier(c), timeout=1)
    for seed in range(2):
        left_alone_until = time.monotonic() + 1     # longer than our first attempts take
        while time.monotonic() < left_alone_until:
            assert os.listdir(str(tmp_path)) == [], 'the path is left to the peer'
        peer = closing(PacketPeer(path))
        wait_until(lambda: carrier(c), timeout=6)
        port.send(frame(seed=10 + seed))
        expect(peer, frame(seed=10 + seed))
        assert '10.0.0.1/24' in c.ip('addr show vde0').stdout
        peer.close()
        wait_until(lambda: not carrier(c), timeout=1)
    # And back with datagrams.
    d = new_container('d')
    peers.plug_in(d, 'ptp://' + path, '10.0.0.2/24')
    wait_until(lambda: carrier(c), timeout=6)
    c.ping('10.0.0.2')


@pytest.mark.parametrize('greeting, number', [(bytes([106]), 106), (b'', 111), (None, 110)])
def test_ptp_is_refused_by_a_packet_peer(host, new_container, new_daemon, closing, tmp_path,
                                         greeting, number):
    daemon, c, path = new_daemon(host), new_container('c'), str(tmp_path / 'link')
    peer = closing(PacketPeer(path, greeting))
    if greeting == b'':
        wait_until(lambda: peer.thread.is_alive())
        threading.Thread(target=lambda: (peer.thread.join(), peer.sock.close()),
                         daemon=True).start()
    line, logged = refused(c, daemon, 'ptp://' + path)
    assert os.strerror(number) in line, line
    assert 'ptp %s: %s' % (path, os.strerror(number)) in logged or number == 110, logged
