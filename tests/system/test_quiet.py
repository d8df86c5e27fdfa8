"""Quiet relays: what costs next to nothing until there is something to do, and what comes then."""

import os
import re
import signal
import socket
import time

import pytest

from aftermath import private_memory
from conftest import PYTHON, is_helper, parent, processes, wait_until
from peers import RawPort, carrier, frame, join, session_pid, session_pids, transfer
from test_daemon_life import fds
from test_sessions import agree, ask, connected, counters, listed, only, silence, tallies

# Bytes of its own. Debian's interpreter takes 270 kB; one whose site-packages import threading and
# random (a .pth file may), which have code of their own run after each fork, twice as much.
QUIET = (320 if os.path.realpath(PYTHON) == os.path.realpath('/usr/bin/python3') else 850) << 10
ASKED = 80 << 10                # more, once it was asked for its status
GROUP = '239.0.0.1', 14789      # of vxvde://
HEADER = b'\x08\0\0\0\0\0\x01\0'        # VXLAN, VNI 1
# A client that hangs up as soon as it has handed over its TAP.
HASTY = """
import array, fcntl, os, socket, struct, sys
fd = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', b'vde0', 0x1002))
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
sock.sendmsg([b'vxvde://\\0'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [fd]))])
"""


def forkers(daemon):
    """The pids of the forkers of a daemon."""
    return [pid for pid in processes(daemon.socket) if is_helper(pid, ['forker'])]


def forker(daemon):
    """The pid of its one forker."""
    pid, = forkers(daemon)
    return pid


def is_quiet(pid):
    """Has a session done nothing yet that takes a whole relay?

    A whole one waits with epoll.
    """
    return 'anon_inode:[eventpoll]' not in fds(pid)


def prove_no_rights(pid):
    """A relay is nobody, without capabilities, and limited."""
    with open('/proc/%d/status' % pid) as file:
        status = dict(re.findall(r'(\w+):[ \t]*(.*)', file.read()))
    if os.geteuid() == 0:
        assert set(status['Uid'].split() + status['Gid'].split()) == {'65534'}
        assert status['Groups'].strip() == '' and int(status['CapEff'], 16) == 0
    with open('/proc/%d/limits' % pid) as file:
        limits = dict(re.findall(r'Max ([a-z ]*?) {2,}(\w+) ', file.read()))
    assert [limits[kind] for kind in ('processes', 'open files', 'core file size')] == [
        '0', '64', '0']


@pytest.fixture
def two(pair):
    """A daemon and two containers on vxvde://, without frames of their kernels."""
    daemon, a, b = pair
    silence(a, b)
    join(a, daemon, 'vxvde://', '10.0.0.1/24')
    join(b, daemon, 'vxvde://', '10.0.0.2/24')
    return daemon, a, b


@pytest.fixture
def wire(host, closing):
    """Frames of peers, and what is sent to the group, from a socket of the host."""
    sock = closing(host.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind(('', 0))
    return sock


@pytest.mark.core
def test_a_relay_is_quiet_until_there_is_more_to_do(two):
    daemon, a, b = two
    pids = session_pids(daemon)
    a.ping('10.0.0.2')
    b.ping('10.0.0.1')
    facts = [each for each in listed(daemon).values()]
    assert sorted(each['pid'] for each in facts) == pids
    assert [parent(pid) for pid in pids] == [forker(daemon)] * 2
    assert all(map(is_quiet, pids))
    a.run('ping', '-n', '-q', '-i', '0.01', '-c', 100, '10.0.0.2')
    assert all(map(is_quiet, pids)), 'that is not much'
    here = RawPort(a, 'vde0')
    wait_until(lambda: here.send(*[frame(60, 1)] * 100) or not any(map(is_quiet, pids)),
               what='there is more to do')
    here.close()
    a.ping('10.0.0.2')
    assert session_pids(daemon) == pids
    for container in a, b:                      # nothing was forgotten
        now = only(listed(daemon), container=container.inode())
        assert tallies(now) == counters(container)
        assert now['in_drops'] == now['out_drops'] == 0
    assert 'error' not in daemon.log()


@pytest.mark.core
def test_what_a_quiet_relay_costs(two):
    daemon, a, _ = two
    a.ping('10.0.0.2')
    costs = [private_memory(pid) for pid in session_pids(daemon)]
    for _ in range(2):
        assert len(listed(daemon)) == 2
    asked = [private_memory(pid) for pid in session_pids(daemon)]
    print('private memory of quiet relays: %s kB, asked %s kB; of their forker: %d kB' % (
        [cost >> 10 for cost in costs], [cost >> 10 for cost in asked],
        private_memory(forker(daemon)) >> 10))
    assert (max(costs) < QUIET and max(asked) < QUIET + ASKED) or 'COVERAGE_RCFILE' in os.environ


def test_a_quiet_relay_has_no_more_rights_than_others(two):
    daemon, _, _ = two
    for pid in session_pids(daemon):
        prove_no_rights(pid)
        sockets = [fd for fd in fds(pid) if fd.startswith('socket:')]
        assert len(sockets) == 3 and not set(sockets) & set(fds(forker(daemon)))


def test_a_peer_is_learned_and_forgotten_when_it_leaves(two, wire):
    daemon, a, _ = two
    here = RawPort(a, 'vde0')
    wire.setblocking(False)

    def heard_alone():
        """Was a frame to the peer's MAC sent to the peer alone?"""
        here.send(frame(60, 1, 7))
        time.sleep(0.2)
        try:
            return wire.recv(100) == HEADER + frame(60, 1, 7)
        except BlockingIOError:
            return False

    assert not heard_alone()
    wire.sendto(HEADER + frame(60, 7, 1), GROUP)
    assert here.frames(1) == [frame(60, 7, 1)]
    assert heard_alone()
    wire.sendto(HEADER, GROUP)
    time.sleep(0.2)
    assert not heard_alone()
    wire.sendto(HEADER + frame(60, 7, 1), GROUP)
    assert here.frames(1) and heard_alone()
    assert all(map(is_quiet, session_pids(daemon)))
    wait_until(lambda: here.send(*[frame(60, 1)] * 100) or not any(
        map(is_quiet, session_pids(daemon))))
    assert heard_alone()
    here.close()


def test_a_conversation_ends_when_the_peer_moves_or_is_silent_too_long(pair, host, wire, closing):
    daemon, a, b = pair
    silence(a, b)
    join(a, daemon, 'vxvde:///expiretime=2', '10.0.0.1/24')
    here, other = RawPort(a, 'vde0'), closing(host.socket(socket.AF_INET, socket.SOCK_DGRAM))
    other.bind(('', 0))
    for sock in wire, other:
        sock.settimeout(5)
    for sock in wire, other, wire:
        for _ in range(3):                      # the second and third are known by the first
            sock.sendto(HEADER + frame(60, 7, 1), GROUP)
            assert here.frames(1) == [frame(60, 7, 1)]
            here.send(frame(60, 1, 7))
            assert sock.recv(100) == HEADER + frame(60, 1, 7)
        # What is too short begins in the buffer as the frame before it.
        before = only(listed(daemon))
        for length in 0, 7, 9, 21:
            sock.sendto((HEADER + frame(60, 7, 1))[:length], GROUP)
        wait_until(lambda: only(listed(daemon))['in_drops'] == before['in_drops'] + 4)
        assert only(listed(daemon))['in_frames'] == before['in_frames']
    here.send(frame(60, 1, 7))
    assert wire.recv(100)
    time.sleep(2.5)
    here.send(frame(60, 1, 7))                  # to the group again
    wire.settimeout(0.5)
    with pytest.raises(socket.timeout):
        wire.recv(100)
    assert all(map(is_quiet, session_pids(daemon)))
    here.close()


def test_what_is_no_frame_is_dropped_and_counted(two, wire):
    daemon, a, b = two
    before = only(listed(daemon), container=b.inode())
    for datagram in b'', b'x', HEADER[:7], HEADER + bytes(13), HEADER + bytes(9235), (
            b'\x08\0\0\0\0\0\x02\0' + frame(60)):
        wire.sendto(datagram, GROUP)
    facts = wait_until(lambda: (lambda now: now['in_drops'] == 6 and now)(
        only(listed(daemon), container=b.inode())))
    assert facts['in_frames'] == before['in_frames']
    b.ip('link set vde0 down')
    wire.sendto(HEADER + frame(60, 7), GROUP)
    wait_until(lambda: only(listed(daemon), container=b.inode())['in_drops'] == 7)
    assert all(map(is_quiet, session_pids(daemon)))


def test_many_peers_are_no_matter_of_a_quiet_relay(two, wire):
    daemon, a, _ = two
    here = RawPort(a, 'vde0')
    for number in range(260):
        wire.sendto(HEADER + frame(60, number + 1000), GROUP)
        time.sleep(0.002)                       # one by one: no burst
    wait_until(lambda: not any(map(is_quiet, session_pids(daemon))))
    assert len(here.frames(260)) == 260
    here.close()


def test_who_asks_for_more_than_the_status_gets_it(two, tmp_path):
    daemon, a, b = two
    pids = session_pids(daemon)
    capture = daemon.host.popen(PYTHON, daemon.argv[1], '--capture', str(pids[0]), '-w',
                                str(tmp_path / 'pcap'))
    wait_until(lambda: not is_quiet(pids[0]))
    a.ping('10.0.0.2', count=3)
    capture.send_signal(signal.SIGINT)
    assert capture.wait(10) == 0
    assert os.path.getsize(str(tmp_path / 'pcap')) > 500
    ask(daemon, '--close', str(pids[1]))
    wait_until(lambda: session_pids(daemon) == pids[:1])
    assert 'closed by request' in daemon.log()


def test_a_quiet_relay_answers_many_who_ask_and_shows_a_new_name(two):
    daemon, a, _ = two
    pid = only(listed(daemon), container=a.inode())['pid']
    before = fds(pid)
    a.ip('link set vde0 down')
    for old, new in ('vde0', 'new-7'), ('new-7', 'new.8\\'), ('new.8\\', 'vde0'):
        a.run('ip', 'link', 'set', old, 'name', new)
        for _ in range(3):
            now = only(listed(daemon), container=a.inode())
            assert (now['interface'], now['state']) == (new.replace('\\', '\\' * 2), 'up')
    with connected(daemon, pid) as asker:
        asker.send(b'')                         # what means nothing is no matter either
        assert only(listed(daemon), container=a.inode())['pid'] == pid
    assert is_quiet(pid) and fds(pid) == before


def test_who_asks_and_says_nothing_holds_up_nobody(two):
    daemon, a, _ = two
    pid = session_pids(daemon)[0]
    connected(daemon, pid).close()
    a.ping('10.0.0.2')
    assert is_quiet(pid)
    with connected(daemon, pid) as silent:
        wait_until(lambda: not is_quiet(pid))
        a.ping('10.0.0.2')
        silent.send(b'status')
        assert b'state=up' in silent.recv(8192)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_quiet_relay_that_is_ended_says_goodbye(two, wire, number):
    daemon, _, _ = two
    member = wire
    member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                      socket.inet_aton(GROUP[0]) + bytes(4))
    heard = daemon.host.socket(socket.AF_INET, socket.SOCK_DGRAM)
    heard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    heard.bind(GROUP)
    heard.settimeout(5)
    pid = session_pids(daemon)[0]
    os.kill(pid, number)
    while heard.recv(9000) != HEADER:
        pass
    wait_until(lambda: pid not in session_pids(daemon))
    assert 'ended by signal %d' % number in daemon.log()
    heard.close()


def test_a_quiet_relay_ends_with_its_interface(two):
    daemon, a, b = two
    a.ip('link del vde0')
    wait_until(lambda: len(session_pids(daemon)) == 1, 2)
    wait_until(lambda: 'close interface: vxvde://' in daemon.log(), 2)
    assert len(listed(daemon)) == 1


def test_a_client_that_hangs_up_leaves_no_quiet_relay(host, new_container, new_daemon):
    daemon, container = new_daemon(host), new_container()
    for _ in range(3):
        container.run(PYTHON, '-c', HASTY, daemon.socket)
        wait_until(lambda: 'vde0' not in container.interfaces())
        wait_until(lambda: daemon.pids() == [daemon.process.pid])
    join(container, daemon, 'vxvde://')
    assert is_quiet(session_pid(daemon))


def test_the_forker_ends_with_its_daemon_and_interfaces_do_not(two):
    daemon, a, _ = two
    pids = session_pids(daemon)
    for number in signal.SIGTERM, signal.SIGKILL:
        daemon.stop(number)
        wait_until(lambda: forkers(daemon) == [])
        a.ping('10.0.0.2')
        daemon.start()
        assert session_pids(daemon) == pids
    assert all(map(is_quiet, pids))             # the new daemon asked them who they are
    os.kill(pids[0], signal.SIGKILL)            # nobody has to wait for it
    wait_until(lambda: session_pids(daemon) == pids[1:])


def test_interfaces_of_quiet_relays_count(host, new_container, new_daemon):
    daemon, container = new_daemon(host, '--max-per-container', '2'), new_container()
    for name in 'a0', 'b0':
        join(container, daemon, 'vxvde://', name=name)
    done = container.client('-s', daemon.socket, '-i', 'c0', 'vxvde://', check=False)
    assert done.returncode == 1 and 'quota' in done.stderr.lower()
    container.ip('link del a0')
    wait_until(lambda: len(session_pids(daemon)) == 1)
    time.sleep(0.1)
    join(container, daemon, 'vxvde://', name='c0')


def test_without_the_forker_relays_are_as_they_were_and_then_there_is_a_new_one(two, new_container):
    daemon, a, _ = two
    old = forker(daemon)
    os.kill(old, signal.SIGSTOP)
    c = new_container()
    join(c, daemon, 'vxvde://', '10.0.0.3/24')  # it takes a second longer
    c.ping('10.0.0.1')
    last, = set(session_pids(daemon)) - set(session_pids(daemon)[:0]) - {
        pid for pid in session_pids(daemon) if parent(pid) == old}
    assert parent(last) == daemon.process.pid
    os.kill(old, signal.SIGCONT)                # what it finds now comes too late
    time.sleep(0.3)
    assert len(session_pids(daemon)) == 3
    join(c, daemon, 'vxvde://', name='vde1')
    assert sum(parent(pid) == old for pid in session_pids(daemon)) == 3
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: forkers(daemon) == [])
    a.ping('10.0.0.2')
    join(c, daemon, 'vxvde://', name='vde2')
    assert forker(daemon) != old
    assert sum(parent(pid) == forker(daemon) for pid in session_pids(daemon)) == 1
    assert carrier(c, 'vde2') and 'error' not in daemon.log()


def test_other_schemes_need_no_forker(host, new_container, new_daemon):
    daemon, container = new_daemon(host), new_container()
    join(container, daemon, 'null://')
    assert forkers(daemon) == []


@pytest.mark.slow
def test_after_bursts_it_is_quiet_again_and_nothing_was_lost(two, wire):
    daemon, a, b = two
    wire.sendto(HEADER + frame(60, 7, 1), GROUP)
    wire.settimeout(5)
    here = RawPort(a, 'vde0')
    for _ in range(2):
        transfer(a, b, '10.0.0.2')
        assert not any(map(is_quiet, session_pids(daemon)))
        wait_until(lambda: a.run('ping', '-n', '-q', '-i', '0.002', '-c', 300, '10.0.0.2') and all(
            map(is_quiet, session_pids(daemon))), 30, 'it is quiet again')
        here.send(frame(60, 1, 7))              # where the peer is was not forgotten
        assert wire.recv(100) == HEADER + frame(60, 1, 7)
        for container in a, b:
            assert agree(only(listed(daemon), container=container.inode()), container)
        a.ping('10.0.0.2')
        assert not any(map(is_quiet, session_pids(daemon))), 'who was asked'
    here.close()
