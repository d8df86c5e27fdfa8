"""Many interfaces at work for long: nothing is lost, nothing grows, and nobody is starved.

VDELXC_SOAK_SECONDS says how long the soak lasts (default 60). What was measured is printed: to see
it, run pytest with -rP.
"""

import json
import os
import random
import select
import signal
import socket
import struct
import time

import peers
import pytest
from aftermath import private_memory
from conftest import DAEMON, PYTHON, ROOT, require, wait_until
from peers import in_namespace, join, process_name, session_pids

SECONDS = float(os.environ.get('VDELXC_SOAK_SECONDS') or 60)
WARM_UP = min(10, SECONDS / 2)
RATE = 300                  # datagrams a second, from each interface to its partner
TICK = 0.01                 # seconds between the bursts of an interface
WARM_TICK = 0.25            # the same while it gets warm: long bursts, for which buffers grow
LOST = 3.0                  # seconds after which what did not arrive is lost
GROWTH = 64                 # kB of memory of its own that a process may gain after the warm-up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif('COVERAGE_RCFILE' in os.environ,
                       reason='who measures coverage takes time and memory of his own')]


class Usage:
    """What a process takes: kB of memory of its own, descriptors, seconds of a processor."""

    def __init__(self, pid):
        self.private = private_memory(pid) >> 10
        with open('/proc/%d/stat' % pid) as file:
            fields = file.read().rpartition(')')[2].split()
        self.seconds = (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
        self.descriptors = len(os.listdir('/proc/%d/fd' % pid))


def session_processes(daemon):
    """The pids of relays and keepers."""
    return [pid for pid in daemon.pids() if process_name(pid).startswith('vdelxcd:')]


# ---- the soak -----------------------------------------------------------------------------------

class Flow:
    """Numbered datagrams from one container to another; each is checked when it arrives.

    window      datagrams that are under way at most: what a machine that stands still for a
                moment queues up must fit the shortest queue, or else the loss is nobody's fault
    ordered     does the network promise to keep the order?
    """

    HEAD = struct.Struct('=Q')
    PATTERN = random.Random(1).getrandbits(8 * 4096).to_bytes(4096, 'big')

    def __init__(self, name, sender, receiver, target, window, ordered):
        self.name, self.sender, self.receiver, self.target = name, sender, receiver, target
        self.window, self.ordered = window, ordered
        self.sent = self.arrived = self.next = self.late = 0
        self.missing, self.faults = set(), []
        self.heard = 0.0                # when the last one came; there is something to wait for

    @classmethod
    def datagram(cls, number):
        """The datagram of a number: 64 to 1400 bytes, three in a row of one length."""
        length = 64 + number // 3 * 37 % 1337
        start = number % 2048
        return cls.HEAD.pack(number) + cls.PATTERN[start:start + length - cls.HEAD.size]

    def send(self, most):
        """As many as the rate and the window allow."""
        if self.arrived == self.sent:
            self.heard = time.monotonic()
        for _ in range(min(most, self.window - (self.sent - self.arrived))):
            self.sender.sendto(self.datagram(self.sent), self.target)
            self.sent += 1

    def receive(self):
        """All that waits."""
        while True:
            try:
                data = self.receiver.recv(2048)
            except BlockingIOError:
                return
            number, = self.HEAD.unpack_from(data)
            if data != self.datagram(number):
                self.faults.append('datagram %d was changed' % number)
            elif number >= self.next:
                self.missing.update(range(self.next, number))
                self.next = number + 1
            elif number in self.missing:
                self.missing.remove(number)
                self.late += 1
            else:
                self.faults.append('datagram %d came twice' % number)
            self.arrived += 1
            self.heard = time.monotonic()

    def check(self):
        """Fail when something is wrong."""
        if self.arrived < self.sent and time.monotonic() > self.heard + LOST:
            self.faults.append('of %d datagrams %d did not arrive' % (
                self.sent, self.sent - self.arrived))
        if self.late and self.ordered:
            self.faults.append('%d datagrams came after later ones' % self.late)
        assert not self.faults, '%s: %s' % (self.name, '; '.join(self.faults[:5]))


def networks(place):
    """The pairs: VNL of one, VNL of the other, window, is the order kept?

    In a local socket wait ten datagrams or so; of an UDP network the kernel makes no promise.
    """
    vde = 'vde://%s/switch' % place
    link = '->127.0.0.1:', 'udp://127.0.0.1:'
    return [('vxvde://239.1.0.1/if=lo',) * 2 + (100, False),
            ('vxvde://239.1.0.1/if=lo',) * 2 + (100, False),
            ('vxvde://239.1.0.2/vni=7/if=lo',) * 2 + (100, False),
            ('vlan://3/tag=5{vxvde://239.1.0.2/vni=8/if=lo}',) * 2 + (100, False),
            ('%s7001%s7002' % link[::-1], '%s7002%s7001' % link[::-1], 100, False),
            ('hub://%s/hub' % place,) * 2 + (3, True),
            ('switch://%s/node' % place,) * 2 + (3, True),
            (vde, vde, 3, True), (vde, vde, 3, True),
            ('ptp://%s/cable' % place,) * 2 + (3, True)]


def udp_socket(container, address):
    """A socket inside of a container, at an address; it does not wait."""
    def make():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)         # SO_RCVBUFFORCE
        sock.bind((address, 9))
        sock.setblocking(False)
        return sock
    return in_namespace(container, make)


def carry(flows, tick, until):
    """Send at the rate, a burst every tick, and check what arrives, until a moment."""
    receivers = {flow.receiver.fileno(): flow for flow in flows}
    poller = select.poll()
    for fd in receivers:
        poller.register(fd, select.POLLIN)
    due = time.monotonic()
    while time.monotonic() < until:
        for fd, _ in poller.poll(max(due - time.monotonic(), 0) * 1000):
            receivers[fd].receive()
        if time.monotonic() >= due:
            due = max(due + tick, time.monotonic())
            for flow in flows:
                flow.send(int(RATE * tick))
                flow.check()


def settle(flows):
    """Until all is there that was sent."""
    deadline = time.monotonic() + LOST
    while any(flow.arrived < flow.sent for flow in flows) and time.monotonic() < deadline:
        for flow in flows:
            flow.receive()
        time.sleep(TICK)


@pytest.mark.alone
def test_twenty_interfaces_lose_nothing_and_need_no_more_and_more(host, new_container, new_daemon,
                                                                  closing, tmp_path):
    daemon = new_daemon(host)
    closing(peers.Switch(tmp_path / 'switch', tmp_path / 'management'))
    flows, owners = [], {}
    for index, (one, other, window, ordered) in enumerate(networks(tmp_path)):
        addresses, containers = ['10.0.%d.%d' % (index, end) for end in (1, 2)], []
        for end, vnl in enumerate((one, other)):
            container = new_container('%d%s' % (index, 'ab'[end]))
            join(container, daemon, vnl, addresses[end] + '/24')
            containers.append(container)
            for pid in session_processes(daemon):
                owners.setdefault(pid, vnl.partition(':')[0])
        containers[0].ping(addresses[1])
        socks = [closing(udp_socket(*each)) for each in zip(containers, addresses)]
        for end in 0, 1:
            flows.append(Flow('%s, %d' % (one, end), socks[end], socks[1 - end],
                              (addresses[1 - end], 9), window, ordered))

    begin = time.monotonic()
    carry(flows, WARM_TICK, begin + WARM_UP)
    before = {pid: Usage(pid) for pid in owners}
    sent = sum(flow.sent for flow in flows)
    carry(flows, TICK, begin + SECONDS)
    after = {pid: Usage(pid) for pid in owners}
    settle(flows)
    assert set(session_processes(daemon)) == set(owners) and len(session_pids(daemon)) == 20
    for flow in flows:
        flow.check()
        assert flow.arrived == flow.sent and not flow.missing
        assert flow.sent > SECONDS * RATE / 10, '%s is too slow' % flow.name

    growth = {pid: after[pid].private - before[pid].private for pid in owners}
    seconds = {pid: after[pid].seconds - before[pid].seconds for pid in owners}
    total, late = sum(flow.sent for flow in flows), sum(flow.late for flow in flows)
    print('soak: %d interfaces, %.0f s, %d datagrams (slowest flow %d), 0 lost, 0 twice, %d late; '
          '%d processes grew by %d to %d kB; %.1f %% of a processor, %.0f us a datagram' % (
              len(flows), SECONDS, total, min(flow.sent for flow in flows), late, len(owners),
              min(growth.values()), max(growth.values()),
              100 * sum(seconds.values()) / (SECONDS - WARM_UP),
              1e6 * sum(seconds.values()) / (total - sent)))
    for scheme in sorted(set(owners.values())):
        pids = [pid for pid in owners if owners[pid] == scheme]
        print('soak: %s: private kB %s; %.1f %% of a processor' % (
            scheme, ' '.join(str(after[pid].private) for pid in pids),
            100 * sum(seconds[pid] for pid in pids) / (SECONDS - WARM_UP)))
    assert max(growth.values()) < GROWTH, growth
    assert max(each.private for each in after.values()) < 2500
    assert {pid: after[pid].descriptors for pid in owners} == {
        pid: before[pid].descriptors for pid in owners}
    assert late <= total / 1000


# ---- memory -------------------------------------------------------------------------------------

def test_memory_does_not_grow_with_traffic(pair):
    require('iperf3')
    daemon, a, b = pair
    for container, address in (a, '10.0.0.1/24'), (b, '10.0.0.2/24'):
        join(container, daemon, 'vxvde:///if=lo', address)
    a.ping('10.0.0.2')
    pids = session_processes(daemon)
    idle = [Usage(pid).private for pid in pids]
    b.popen('iperf3', '-s', '-1', **peers.QUIET)
    wait_until(lambda: ':5201' in b.run('ss', '-ltn').stdout)
    client = a.popen('iperf3', '-c', '10.0.0.2', '-t', 8, **peers.QUIET)
    most = list(idle)
    while client.poll() is None:
        most = [max(each, Usage(pid).private) for each, pid in zip(most, pids)]
        time.sleep(0.1)
    after = [Usage(pid).private for pid in pids]
    print('memory: private kB idle %s, most under load %s, afterwards %s' % (idle, most, after))
    assert client.returncode == 0
    assert max(most) < 4096


@pytest.mark.parametrize('scheme', ['vxvde', 'vde'])
def test_a_hundred_and_fifty_interfaces_need_less_than_500_mib(host, new_container, new_daemon,
                                                               closing, tmp_path, scheme):
    daemon, container = new_daemon(host), new_container('many')
    vnl = 'vxvde:///if=lo'
    if scheme == 'vde':
        closing(peers.Switch(tmp_path / 'switch', tmp_path / 'management', '-n', '200'))
        vnl = 'vde://%s' % (tmp_path / 'switch')
    done = container.run(PYTHON, os.path.join(ROOT, 'tests', 'system', 'by_hand.py'),
                         daemon.socket, 'many', 150, vnl, timeout=60)
    assert done.stdout.count('"0\\u0000"') == 150, done.stdout
    wait_until(lambda: len(session_pids(daemon)) == 150)
    pids = session_processes(daemon)
    private = sorted(Usage(pid).private for pid in pids)
    print('150 interfaces, %s: %d processes, private kB %d to %d, together %.0f MiB' % (
        scheme, len(pids), private[0], private[-1], sum(private) / 1024))
    assert sum(private) < 500 << 10


# ---- fairness -----------------------------------------------------------------------------------

FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], 7))
while True:
    try:
        sock.send(bytes(1000))
    except OSError:
        pass                            # nobody listens there, or the queue is full
"""


def received(container):
    """Frames that came in at vde0 so far."""
    with open('/proc/%d/net/dev' % container.holder.pid) as table:
        return int(table.read().partition('vde0:')[2].split()[1])


def crossing_times(sender, receiver, target, count):
    """Milliseconds that datagrams take from one container to the other, sorted."""
    times = []
    for number in range(count):
        begin = time.monotonic()
        sender.sendto(b'%d' % number, target)
        while select.select([receiver], [], [], max(begin + 1 - time.monotonic(), 0))[0]:
            if receiver.recv(100) == b'%d' % number:
                times.append(1000 * (time.monotonic() - begin))
                break
        time.sleep(0.002)
    return sorted(times)


@pytest.mark.parametrize('vnl, ends', [
    ('vxvde:///if=lo', ('delete', 'signal')), ('vxvde:///if=lo', ('signal', 'delete')),
    ('hub://{}/hub', ('delete', 'signal')), ('ptp://{}/cable', ('signal', 'delete'))])
def test_a_flood_starves_neither_the_other_direction_nor_requests(pair, closing, tmp_path, vnl,
                                                                  ends):
    """One session has its TAP full, the other its network; ends are how they end."""
    daemon, a, b = pair
    sessions = []
    for container, address in (a, '10.0.0.1'), (b, '10.0.0.2'):
        join(container, daemon, vnl.format(tmp_path), address + '/24')
        sessions += set(session_pids(daemon)) - set(sessions)
    a.ping('10.0.0.2')
    taker, giver = closing(udp_socket(a, '10.0.0.1')), closing(udp_socket(b, '10.0.0.2'))
    flood = a.popen(PYTHON, '-c', FLOOD, '10.0.0.2')
    wait_until(lambda: received(b) > 5000, what='the flood arrives')

    times = crossing_times(giver, taker, ('10.0.0.1', 9), 200)
    p99 = times[int(len(times) * 0.99)]
    listed = json.loads(daemon.host.run(*peers.python(DAEMON, '--list', '--json')).stdout)
    seconds = []
    # First the one at which the flood arrives: without the other there is none.
    for container, session, end in reversed(list(zip((a, b), sessions, ends))):
        begin = time.monotonic()
        if end == 'signal':
            os.kill(session, signal.SIGTERM)
        else:
            container.ip('link delete vde0')
        wait_until(lambda: session not in daemon.pids(), 5)
        seconds.append(time.monotonic() - begin)
    assert flood.poll() is None
    print('flood, %s: against it %d of 200 arrive, ms p50 %.1f p99 %.1f; ended by %s after %s s' % (
        vnl, len(times), times[len(times) // 2], p99, ' and '.join(reversed(ends)),
        ' and '.join('%.2f' % each for each in seconds)))
    assert len(times) == 200 and p99 < 200
    assert {each['pid']: each['state'] for each in listed} == dict.fromkeys(sessions, 'up')
    assert max(seconds) < 1
