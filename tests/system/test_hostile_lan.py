"""A LAN full of enemies: what anybody who can send a datagram can do to the interfaces.

The enemy is the switch itself, between two hosts: it sends to both whatever it likes, under any
address. Each attack ends with a proof that nobody was hurt (see aftermath.py).
"""

import os
import socket
import struct
import subprocess
import sys
import time

import pytest

from aftermath import Baseline, new_bystanders, private_memory                  # noqa: F401
from conftest import (PYTHON, Host, Namespace, kill_each, processes, require_namespaces,
                      wait_until)
from fuzzing import fuzz                                                        # noqa: F401
from peers import EVERYONE, frame, mac, session_pid

pytestmark = pytest.mark.slow
GROUP, PORT = '239.0.0.1', 14789
NEAR, FAR, ENEMY = '192.0.2.1', '192.0.2.2', '192.0.2.66'
HEADER = bytes.fromhex('0800000000000100')          # the VNI is 1
BULK = struct.Struct('>B3xIHIH')                    # as HEADER; number, length, index
ROOM = 2500                             # datagrams that wait in a session's socket at most

SUSPECT = """
print('ready', flush=True)
input()
%s
print('done', flush=True)
%s
"""


class Lan:
    """Two hosts at a switch that is the enemy."""

    def __init__(self, closing):
        self.enemy = closing(Namespace('enemy'))
        self.near, self.far = closing(Host('near')), closing(Host('far'))
        self.enemy.ip('link add lan type bridge mcast_snooping 0')
        self.enemy.ip('addr add %s/24 dev lan' % ENEMY)
        self.enemy.ip('link set lan up')
        self.enemy.ip('route add 239.0.0.0/8 dev lan')
        self.cable(1, self.near)
        self.cable(2, self.far)
        self.udp = self.enemy.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((ENEMY, 0))
        self.raw = self.enemy.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

    def cable(self, number, host):
        """A new cable to a host."""
        self.enemy.ip('link add port%d type veth peer name eth0 netns /proc/%d/ns/net'
                      % (number, host.holder.pid))
        self.enemy.ip('link set port%d master lan up' % number)
        host.ip('addr add 192.0.2.%d/24 dev eth0' % number)
        host.ip('link set eth0 address 02:00:c0:00:02:%02x up' % number)
        host.ip('route replace 239.0.0.0/8 dev eth0')
        wait_until(lambda: 'LOWER_UP' in host.ip('link show eth0').stdout)

    def send(self, datagrams, *targets):
        """Datagrams in turn to the targets, (address, port) each, no faster than they are read."""
        for index, datagram in enumerate(datagrams, 1):
            self.udp.sendto(datagram, targets[index % len(targets)])
            if index % ROOM == 0:
                self.wait_until_read()
        self.wait_until_read()

    def wait_until_read(self):
        """Wait until nothing waits in the sockets of both hosts."""
        for host in self.near, self.far:
            wait_until(lambda: not any(waits for _, waits, _ in sockets(host)), what='all is read')
            assert not any(lost for _, _, lost in sockets(host)), 'sent faster than it is read'

    def spoof(self, source, target, payload):
        """A datagram to (address, port) from another one, whosever that is."""
        udp = struct.pack('!4H', source[1], target[1], 8 + len(payload), 0) + payload
        self.packet(source[0], target[0], socket.IPPROTO_UDP, udp)

    def packet(self, source, target, protocol, payload):
        """An IP packet."""
        self.raw.sendto(ip_header(source, target, protocol, len(payload)) + payload, (target, 0))

    def complain(self, source, target, code, mtu=0):
        """An ICMP error, "unreachable", to a source for what it sent to a target.

        Both are (address, port).
        """
        udp = struct.pack('!4H', source[1], target[1], 1408, 0)
        text = struct.pack('!BBHHH', 3, code, 0, 0, mtu)
        text += ip_header(source[0], target[0], socket.IPPROTO_UDP, 1408) + udp
        text = text[:2] + struct.pack('!H', checksum(text)) + text[4:]
        self.packet(ENEMY, source[0], socket.IPPROTO_ICMP, text)


def ip_header(source, target, protocol, size):
    """An IPv4 header."""
    head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + size, 1, 0, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack('!H', checksum(head)) + head[12:]


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return 0xffff - total


def sockets(host):
    """The UDP sockets of a host, IPv4: (port, bytes that wait to be read, lost datagrams)."""
    with open('/proc/%d/net/udp' % host.holder.pid) as table:
        rows = [line.split() for line in table][1:]
    return [(int(row[1].split(':')[1], 16), int(row[4].split(':')[1], 16), int(row[12]))
            for row in rows]


def own_port(host):
    """The port of a host's one session, not that of the group if it is another one."""
    ports = [port for port, _, _ in sockets(host)]
    return [port for port in ports if port != PORT or len(ports) == 1][0]


@pytest.fixture
def lan(closing):
    """A Lan."""
    require_namespaces()
    return Lan(closing)


class Scene:
    """Victims on the LAN, one a host, and innocents on the near host alone.

    session is the pid of the near victim's session; near and far are where the two sessions hear
    what is for them alone.
    """

    def __init__(self, lan, new_daemon, new_bystanders, vnl='vxvde:///if=eth0', **more):
        near, far = new_daemon(lan.near), new_daemon(lan.far)
        self.victims = new_bystanders(near, vnl=vnl, net='10.0.0', daemon2=far, **more)
        self.session = session_pid(near)
        self.near, self.far = ((address, own_port(host)) for host, address in (
            (lan.near, NEAR), (lan.far, FAR)))
        self.innocents = new_bystanders(near)
        self.victims.note()

    def prove(self):
        """Nobody was hurt."""
        self.innocents.ping()
        self.victims.prove()


@pytest.fixture
def new_scene(lan, new_daemon, new_bystanders):
    """new_scene(vnl=..., ...) sets a Scene."""
    return lambda **more: Scene(lan, new_daemon, new_bystanders, **more)


# ---- nonsense -----------------------------------------------------------------------------------

def bulk_datagrams():
    """Bulk, whole and in pieces, super-segments in it too, and words about it."""
    found = [BULK.pack(0x88, 0x100, 0, 0, word) + bytes(size)
             for word in (0xffff, 0xfffe, 0xfffd) for size in (8, 9)]
    records = [struct.pack('>IHH', 100, *about) + frame(100, 77, seed=seed)
               for seed, about in enumerate([(0, 0), (0, 0), (40, 34), (40, 0x8022)])]
    for text in b''.join(records[:2]), b''.join(records), records[2] * 3:
        for size in 50, 150, 1000:
            found += [BULK.pack(0x88, 0x100, len(text), len(text), index) + text[at:at + size]
                      for index, at in enumerate(range(0, len(text), size))]
    return found


def odd_datagrams(fuzz, count):
    """That many datagrams, each with some fault (and some without)."""
    bulk = bulk_datagrams()
    seeds = [HEADER + frame(length, 77, target, seed=length)
             for length in (14, 60, 64, 100, 1000) for target in (EVERYONE, 5)]
    for length in range(101):
        yield seeds[-1][:length]
    yield from (b'\xff' * 9300, HEADER + bytes(20000), HEADER * 1000, HEADER + bytes(9235))
    chance = fuzz.chance
    for index in fuzz.rounds(count - 105):
        kind = index & 7
        if kind == 0:
            yield fuzz.noise(chance.randrange(120))
        elif kind == 1:
            head = bytearray(HEADER)
            head[chance.randrange(8)] ^= 1 << chance.randrange(8)
            yield bytes(head) + seeds[1][8:]
        elif kind == 2:
            yield HEADER + fuzz.noise(chance.randrange(120))
        elif kind == 3:                     # in order, most of them
            data = bulk[index // 8 % len(bulk)]
            yield fuzz.spoil(data) if chance.random() < 0.3 else data
        else:
            yield fuzz.spoil(chance.choice(seeds))


@pytest.mark.parametrize('count, more', [
    (100000, {}),
    (20000, {'vnl': 'vxlan:///if=eth0', 'shared': False}),
    (20000, {'vnl': 'udp://7000->%s:7000' % FAR, 'vnl2': 'udp://7000->%s:7000' % NEAR,
             'shared': False})], ids=['vxvde', 'vxlan', 'udp'])
def test_datagrams_full_of_faults_hurt_nobody(lan, new_scene, fuzz, count, more):
    scene = new_scene(**more)
    targets = [scene.near, scene.far]
    if 'vxlan' in more.get('vnl', ''):
        targets.append((GROUP, 4789))
    elif not more:
        targets = [(GROUP, PORT), scene.near, (GROUP, PORT), scene.far]
    with scene.innocents.pinging():
        lan.send(odd_datagrams(fuzz, count), *targets)
        if 'udp' in more.get('vnl', ''):            # what its peer says is heard
            for datagram in odd_datagrams(fuzz, 3000):
                lan.spoof(scene.far, scene.near, datagram[:1400])
    scene.prove()


def test_giant_and_empty_datagrams_hurt_nobody(lan, new_scene):
    scene = new_scene()
    giants = [HEADER + frame(size, 77) for size in (65507 - 8, 65000, 40000, 9235)]
    giants += [bytes(65507), HEADER * 8188, b'']
    lan.udp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with scene.innocents.pinging():
        for _ in range(30):
            lan.send(giants + [b''] * 30, (GROUP, PORT), scene.near)
    scene.prove()


# Trains of datagrams, each with a MAC of its own: more than can be read, on a busy machine, too.
FLOOD = """
import itertools, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
rest, many = bytes.fromhex(sys.argv[1]), 64
try:
    sock.setsockopt(17, 103, len(rest))         # UDP_SEGMENT (Linux 4.18)
except OSError:
    many = 1
for first in itertools.cycle(range(0, 1 << 24, many)):
    sock.sendto(b''.join(rest[:16] + number.to_bytes(4, 'big') + rest[20:]
                         for number in range(first, first + many)), ('%s', %d))
""" % (GROUP, PORT)


def test_a_flood_at_full_speed_starves_nobody(lan, new_scene):
    scene = new_scene()
    datagram = HEADER + EVERYONE + mac(0) + frame(60, 0)[12:]
    flood = lan.enemy.popen(PYTHON, '-c', FLOOD, datagram.hex())
    wait_until(lambda: any(lost for _, _, lost in sockets(lan.near)), what='too much to be read')
    with scene.innocents.pinging():
        print('a newcomer waited for %.2f s' % scene.innocents.serve_newcomer())
        scene.innocents.ping(20)
    flood.kill()
    flood.wait()
    print('private memory: %d kB' % (private_memory(scene.session) >> 10))
    scene.prove()


# ---- lies ---------------------------------------------------------------------------------------

def test_a_flood_of_macs_costs_little_and_the_known_are_learned_again(lan, new_scene):
    scene, count = new_scene(), 200000
    idle = private_memory(scene.session)
    tail = frame(60, 0)[12:]
    flood = (HEADER + EVERYONE + mac(number) + tail for number in range(1 << 20, (1 << 20) + count))
    with scene.innocents.pinging():
        lan.send(flood, scene.near)
    used = private_memory(scene.session)
    print('private memory: %d kB when idle, %d kB after %d MACs' % (
        idle >> 10, used >> 10, count))
    assert used < 64 << 20
    scene.prove()
    # Who was pushed out of the table is back in it: frames go to it alone.
    heard = lan.enemy.socket(socket.AF_INET, socket.SOCK_DGRAM)
    heard.bind((GROUP, PORT))
    heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                     socket.inet_aton(GROUP) + socket.inet_aton(ENEMY))
    scene.victims.ping(10)
    heard.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            assert heard.recv(9999)[20:22] != b'\x08\x00', 'an IPv4 frame went to everyone'


def test_a_stolen_mac_is_its_owners_again_when_the_owner_speaks(lan, new_scene):
    scene = new_scene()
    victims = scene.victims
    with open('/proc/%d/net/arp' % victims.pinger.holder.pid) as table:
        owner = [line.split()[3] for line in table if line.startswith('10.0.0.2 ')][0]
    claim = HEADER + EVERYONE + bytes.fromhex(owner.replace(':', '')) + frame(60, 0)[12:]

    def is_stolen():
        """Nothing in the protocol tells a thief from somebody who moved.

        The owner's kernel may just say something of its own, and have it back.
        """
        lan.send([claim], (GROUP, PORT))
        ping = victims.pinger.run('ping', '-n', '-c', '1', '-W', '1', '10.0.0.2', check=False)
        return ping.returncode == 1
    wait_until(is_stolen)
    assert frame_of_ping(lan.udp.recv(9999))
    victims.other.ping('10.0.0.1')
    victims.ping()
    scene.prove()


def frame_of_ping(datagram):
    """Is this datagram a frame with an ICMP echo request?"""
    return datagram[20:22] == b'\x08\x00' and datagram[31] == 1 and datagram[42] == 8


def test_false_goodbyes_interrupt_nothing(lan, new_scene):
    scene = new_scene()
    with scene.victims.pinging(), scene.innocents.pinging():
        for _ in range(10):
            for _ in range(500):
                lan.udp.sendto(HEADER, (GROUP, PORT))
                lan.spoof(scene.far, scene.near, HEADER)
                lan.spoof(scene.far, (GROUP, PORT), HEADER)
                lan.spoof(scene.near, scene.far, HEADER)
            lan.wait_until_read()
    scene.prove()


def test_icmp_errors_without_end_interrupt_nothing(lan, new_scene):
    scene = new_scene()
    with scene.victims.pinging(), scene.innocents.pinging():
        for _ in range(1000):
            for target in scene.far, (GROUP, PORT):
                for code in 0, 1, 2, 3, 9, 10, 13:  # of network, host, protocol, port, by filters
                    lan.complain(scene.near, target, code)
                lan.complain(scene.near, target, 4, mtu=68)
    scene.victims.ping(size=1472)
    # No complaint of a size was believed: the MTU that fits is still the cable's.
    newcomer = scene.victims.newcomer
    newcomer.client('-s', scene.victims.daemon.socket, '-i', 'new0', '--mtu', 'auto',
                    'vxvde:///if=eth0')
    assert ' mtu 1450 ' in newcomer.ip('link show new0').stdout
    newcomer.ip('link delete new0')
    scene.prove()


# ---- the cable ----------------------------------------------------------------------------------

def back_in_time(container, address):
    """Pings are answered again within 6 seconds; how long it took."""
    since = time.monotonic()
    wait_until(lambda: container.run('ping', '-n', '-c', '1', '-W', '0.2', address,
                                     check=False).returncode == 0, 6, 'traffic is back')
    return time.monotonic() - since


def test_a_cable_that_is_pulled_and_an_address_that_goes_are_survived(lan, new_scene):
    scene = new_scene()
    victims = scene.victims

    def interrupted(ip, off, on, seconds=1):
        """Nothing passes between the two commands; then it does again."""
        ip(off)
        done = victims.pinger.run('ping', '-n', '-i', '0.2', '-w', seconds, '10.0.0.2', check=False)
        assert done.returncode == 1
        ip(on)
        back_in_time(victims.pinger, '10.0.0.2')
        back_in_time(victims.other, '10.0.0.1')
    with scene.innocents.pinging():
        interrupted(lan.near.ip, 'link set eth0 down', 'link set eth0 up', 2)
        interrupted(lan.enemy.ip, 'link set port1 down', 'link set port1 up')
    interrupted(lan.near.ip, 'addr del %s/24 dev eth0' % NEAR, 'addr add %s/24 dev eth0' % NEAR)
    scene.prove()


@pytest.mark.parametrize('more', [
    {'vnl': 'vxvde:///if=eth0'}, {'vnl': 'vxlan://', 'shared': False}],
    ids=lambda more: more['vnl'])
def test_an_interface_of_the_host_may_go_and_come_back_as_another(lan, new_scene, more):
    scene = new_scene(**more)
    victims = scene.victims
    with scene.innocents.pinging():
        lan.enemy.ip('link delete port1')
        done = victims.pinger.run('ping', '-n', '-i', '0.2', '-w', '1', '10.0.0.2', check=False)
        assert done.returncode == 1
        lan.cable(1, lan.near)
        for container, address in (victims.pinger, '10.0.0.2'), (victims.other, '10.0.0.1'):
            container.ip('neigh flush dev vde0')            # it asks everybody
            back_in_time(container, address)
    scene.prove()


def test_without_a_route_one_is_told_and_with_one_it_works(closing, new_daemon, new_bystanders,
                                                           new_container):
    require_namespaces()
    host, container = closing(Namespace('nowhere')), new_container()
    daemon = new_daemon(host)
    done = container.client('-s', daemon.socket, 'vxvde://', check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert 'Network is unreachable' in done.stderr or 'No such device' in done.stderr
    lines = daemon.log().splitlines()
    assert len(lines) == 1 and 'no route to it: use if=' in lines[0], lines
    host.ip('route add 239.0.0.0/8 dev lo')
    new_bystanders(daemon, vnl='vxvde://').prove()


# ---- the measure itself -------------------------------------------------------------------------

@pytest.mark.parametrize('crime, rest, word', [
    ('', 'while True: pass', 'processor'),
    ('held = [open("/dev/null") for _ in range(3)]', 'input()', 'descriptors'),
    ('import os; os.fork() or os._exit(0)', 'input()', 'zombies'),
    ('import os; os.fork()', 'input()', 'processes')], ids=['cpu', 'files', 'zombie', 'fork'])
def test_the_baseline_finds_what_an_attack_leaves_behind(closing, tmp_path, crime, rest, word):
    class Suspect:
        """A process that passes for a daemon."""
        process = subprocess.Popen(
            [sys.executable, '-c', SUSPECT % (crime, rest), str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def pids(self):
            return processes(tmp_path)

        def close(self):
            kill_each(self.pids())
            self.process.communicate()
    suspect = closing(Suspect())
    suspect.process.stdout.readline()
    baseline = Baseline(suspect)
    baseline.check()
    suspect.process.stdin.write(b'\n')
    suspect.process.stdin.flush()
    suspect.process.stdout.readline()
    with pytest.raises(pytest.fail.Exception) as failure:
        baseline.check(seconds=0.5)
    assert word in str(failure.value)
