"""Quiet relays of vde://, and the one process that opens their networks again."""

import os
import signal
import subprocess
import threading
import time

import pytest

from aftermath import private_memory
from conftest import PYTHON, Container, is_helper, parent, processes, wait_until
from peers import RawPort, Switch, carrier, frame, join, session_pid, session_pids, transfer
from test_daemon_life import fds
from test_hand_over import BY_HAND
from test_hostile_switch import FalseSwitch
from test_privileges import needs_all_pids
from test_quiet import ASKED, HASTY, QUIET, forker, forkers, is_quiet, prove_no_rights
from test_sessions import agree, ask, counters, listed, only, silence, tallies

A, B = '10.0.0.1', '10.0.0.2'


def keepers(daemon):
    """The pids of the keepers of a daemon."""
    return [pid for pid in processes(daemon.socket) if is_helper(pid, ['keeper'])]


@pytest.fixture
def switch(closing, tmp_path):
    """A vde_switch."""
    return closing(Switch(tmp_path / 'sw', tmp_path / 'management'))


@pytest.fixture
def two(pair, switch):
    """A daemon and two containers at the switch, without frames of their kernels."""
    daemon, a, b = pair
    silence(a, b)
    join(a, daemon, 'vde://' + switch.path, A + '/24')
    join(b, daemon, 'vde://' + switch.path, B + '/24')
    return daemon, a, b


def quiet_ones(daemon, before):
    """The pids of sessions that are quiet relays, and were not before."""
    return [pid for pid in set(session_pids(daemon)) - set(before)
            if parent(pid) in forkers(daemon) and is_quiet(pid)]


def outage(daemon, switch, count=None):
    """The switch goes and comes; all sessions, or this many, are quiet relays again."""
    pids = session_pids(daemon)
    switch.kill()
    wait_until(lambda: all(each['state'] == 'waiting' for each in listed(daemon).values())
               and len(listed(daemon)) == len(pids))
    switch.restart()
    wait_until(lambda: len(quiet_ones(daemon, pids)) == (count or len(pids)), 6, 'it is back')


@pytest.mark.core
def test_an_idle_interface_at_a_switch_costs_little_and_one_keeper_is_for_all(two):
    daemon, a, b = two
    pids, (keeper,) = session_pids(daemon), keepers(daemon)
    a.ping(B)
    b.ping(A)
    assert [parent(pid) for pid in pids] == [forker(daemon)] * 2
    costs = [private_memory(pid) for pid in pids]
    for _ in range(2):
        assert sorted(listed(daemon)) == pids
    asked = [private_memory(pid) for pid in pids]
    print('private memory of quiet relays at a switch: %s kB, asked %s kB; of their keeper: %d kB'
          % ([cost >> 10 for cost in costs], [cost >> 10 for cost in asked],
             private_memory(keeper) >> 10))
    assert (max(costs) < QUIET and max(asked) < QUIET + ASKED) or 'COVERAGE_RCFILE' in os.environ
    assert all(map(is_quiet, pids))
    assert fds(keeper).count('/dev/net/tun') == 2
    for pid in pids:
        sockets = [fd for fd in fds(pid) if fd.startswith('socket:')]
        assert len(sockets) == 4 and not set(sockets) & set(fds(forker(daemon)))
        assert len(set(sockets) & set(fds(keeper))) == 1        # that which answers who asks


def test_relays_at_a_switch_have_no_more_rights_than_others(two):
    daemon, _, _ = two
    for pid in session_pids(daemon):
        prove_no_rights(pid)


class TalkingSwitch(FalseSwitch):
    """It answers, and sends what the test does with send()."""

    def __init__(self, path):
        super().__init__(path, None)
        self.conn = None

    def handle(self, conn):
        name = conn.recv(4096)[14:14 + 108].rstrip(b'\0')
        self.data.connect(name)
        self.answer(conn)
        self.conn = conn


def test_frames_are_counted_and_what_is_none_is_dropped(pair, closing, tmp_path):
    daemon, a, _ = pair
    switch = TalkingSwitch(str(tmp_path / 'false'))
    closing(switch.listener)
    silence(a)
    join(a, daemon, 'vde://' + switch.path)
    port, pid = closing(RawPort(a, 'vde0')), session_pid(daemon)
    port.send(frame(60, 1), frame(1514, 2))
    assert [switch.data.recv(10000) for _ in range(2)] == [frame(60, 1), frame(1514, 2)]
    for data in (b'', bytes(13), frame(60, 3), bytes(9235), frame(60, 4), frame(60, 4)[:14]):
        switch.data.send(data)
    assert port.frames(2) == [frame(60, 3), frame(60, 4)]
    wait_until(lambda: listed(daemon)[pid]['in_frames'] == 3)
    a.ip('link set vde0 down')
    switch.data.send(frame(60, 5))
    wait_until(lambda: listed(daemon)[pid]['in_frames'] == 4)
    now = listed(daemon)[pid]
    assert (now['in_bytes'], now['in_drops']) == (194, 3)
    assert (now['out_frames'], now['out_bytes'], now['out_drops']) == (2, 1574, 0)
    assert is_quiet(pid)
    switch.conn.sendall(b'what no switch says')
    wait_until(lambda: not is_quiet(pid))
    switch.data.send(frame(60, 6))
    wait_until(lambda: listed(daemon)[pid]['in_frames'] == 5)
    assert listed(daemon)[pid]['in_drops'] == 4


@pytest.mark.slow
@pytest.mark.parametrize('offload', [False, True], ids=['plain', 'offload'])
def test_bursts_at_a_switch_and_then_it_is_quiet_again(pair, switch, offload):
    daemon, a, b = pair
    silence(a, b)
    for container, address in (a, A), (b, B):
        container.client(*['--offload'] * offload, '-s', daemon.socket, 'vde://' + switch.path)
        container.up('vde0', address + '/24')
    pids = session_pids(daemon)
    a.ping(B, size=1400)
    assert all(map(is_quiet, pids))
    for _ in range(2):
        transfer(a, b, B)
        assert not any(map(is_quiet, pids))
        wait_until(lambda: a.run('ping', '-n', '-q', '-i', '0.002', '-c', 300, B) and all(
            map(is_quiet, pids)), 30, 'it is quiet again')
        for container in a, b:
            now = only(listed(daemon), container=container.inode())
            assert offload or agree(now, container)         # merged frames are one
    assert session_pids(daemon) == pids and 'error' not in daemon.log()


@pytest.mark.core
def test_the_network_comes_back_to_quiet_relays_as_often_as_it_goes(two, switch):
    daemon, a, b = two
    keeper, = keepers(daemon)
    since = {each['since'] for each in listed(daemon).values()}
    for _ in range(2):
        a.ping(B)
        outage(daemon, switch)
        assert carrier(a) and carrier(b)
        wait_until(lambda: a.ping(B, 1, False).returncode == 0, 6)
        for container in a, b:
            now = only(listed(daemon), container=container.inode())
            wait_until(lambda: tallies(only(listed(daemon), container=container.inode())) == (
                counters(container)), what='%s %s' % (now, counters(container)))
    assert {each['since'] for each in listed(daemon).values()} == since
    assert keepers(daemon) == [keeper]
    assert daemon.log().count('network gone') == daemon.log().count('network back') == 4
    a.ip('link del vde0')
    wait_until(lambda: len(session_pids(daemon)) == 1)


def test_who_waits_for_the_network_can_be_ended_in_any_way(two, switch, new_container):
    daemon, a, b = two
    c = new_container()
    join(c, daemon, 'vde://' + switch.path)
    of = {container: only(listed(daemon), container=container.inode())['pid']
          for container in (a, b, c)}
    switch.kill()
    wait_until(lambda: not set(session_pids(daemon)) & set(of.values()) and sorted(
        each['state'] for each in listed(daemon).values()) == ['waiting'] * 3)
    waiting = {container: only(listed(daemon), container=container.inode())['pid']
               for container in of}
    assert not carrier(a)
    ask(daemon, '--close', str(waiting[a]))
    os.kill(waiting[b], signal.SIGTERM)
    c.ip('link del vde0')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    wait_until(lambda: not any('vde0' in container.interfaces() for container in of))
    keeper, = keepers(daemon)
    wait_until(lambda: len([fd for fd in fds(keeper) if fd.startswith('socket:')]) <= 3)
    assert '/dev/net/tun' not in fds(keeper)
    join(a, daemon, 'null://')


def test_the_daemon_may_be_gone_when_the_network_comes_back(two, switch):
    daemon, a, _ = two
    keeper, = keepers(daemon)
    for number in signal.SIGTERM, signal.SIGKILL:
        daemon.stop(number)
        outage(daemon, switch)
        wait_until(lambda: a.ping(B, 1, False).returncode == 0, 6)
        daemon.start()
        assert len(listed(daemon)) == 2
    assert keepers(daemon) == [keeper]
    for pid in session_pids(daemon):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: keepers(daemon) == [] and forkers(daemon) == [], what='the last one is gone')


def test_without_its_keeper_a_relay_ends_with_its_network(two, switch, new_container):
    daemon, a, _ = two
    old, = keepers(daemon)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: keepers(daemon) == [])
    a.ping(B)
    c = new_container()
    join(c, daemon, 'vde://' + switch.path, '10.0.0.3/24')      # it has a new one
    new, = keepers(daemon)
    a.ping('10.0.0.3')
    switch.kill()
    wait_until(lambda: 'vde0' not in a.interfaces())
    wait_until(lambda: len(session_pids(daemon)) == 1)
    assert daemon.log().count('its keeper is gone') == 2
    switch.restart()
    wait_until(lambda: carrier(c), 6)
    assert keepers(daemon) == [new]


def test_a_stopped_keeper_holds_up_nobody_for_long(two, switch, new_container):
    daemon, a, _ = two
    keeper, = keepers(daemon)
    os.kill(keeper, signal.SIGSTOP)
    c = new_container()
    since = time.monotonic()
    join(c, daemon, 'vde://' + switch.path, '10.0.0.3/24')
    assert time.monotonic() - since < 3
    c.ping(A)
    last, = [pid for pid in session_pids(daemon) if parent(pid) != forker(daemon)]
    pids = session_pids(daemon)
    switch.kill()                               # that one has a keeper of its own
    wait_until(lambda: 'waiting' in [each['state'] for each in listed(daemon).values()])
    switch.restart()
    wait_until(lambda: carrier(c), 6)
    assert last in session_pids(daemon)
    os.kill(keeper, signal.SIGCONT)
    wait_until(lambda: len(session_pids(daemon)) == 3 and all(
        each['state'] == 'up' for each in listed(daemon).values()), 6)
    assert set(session_pids(daemon)) & set(pids) == {last}
    wait_until(lambda: c.ping(B, 1, False).returncode == 0 and a.ping(B, 1, False).returncode == 0)


def test_without_the_forker_a_relay_that_comes_back_is_kept_by_two_processes(two, switch):
    daemon, a, _ = two
    pids, (old,) = session_pids(daemon), keepers(daemon)
    os.kill(forker(daemon), signal.SIGKILL)
    wait_until(lambda: forkers(daemon) == [])
    for _ in range(2):
        switch.kill()
        wait_until(lambda: not set(session_pids(daemon)) & set(pids) and sorted(
            each['state'] for each in listed(daemon).values()) == ['waiting'] * 2)
        switch.restart()
        wait_until(lambda: a.ping(B, 1, False).returncode == 0, 6)
    assert len(session_pids(daemon)) == 2 and len(daemon.pids()) == 5
    assert keepers(daemon) == [old]             # for those that may come
    join(a, daemon, 'vde://' + switch.path, name='vde1')        # all is as it was
    newest, = [pid for pid in session_pids(daemon) if parent(pid) == forker(daemon)]
    wait_until(lambda: old not in keepers(daemon))      # it had none left
    assert is_quiet(newest) and len(keepers(daemon)) == 1
    outage(daemon, switch, 1)


@needs_all_pids
@pytest.mark.slow
def test_a_dead_container_is_noticed_after_the_network_came_back(host, new_container, new_daemon,
                                                                 switch):
    daemon, container = new_daemon(host, '-v'), new_container()
    join(container, daemon, 'vde://' + switch.path)
    outage(daemon, switch)
    Container.close(container)
    wait_until(lambda: session_pids(daemon) == [], 12, 'its session ends')
    assert 'container gone: net:[' in daemon.log()


def test_a_network_that_flaps_is_tried_less_often(pair, tmp_path, closing):
    daemon, a, _ = pair
    seen = []

    def flap(switch, conn):
        seen.append(time.monotonic())
        switch.answer(conn)
        conn.close()
    switch = FalseSwitch(str(tmp_path / 'false'), lambda switch, conn: switch.answer(conn))
    closing(switch.listener)
    join(a, daemon, 'vde://' + switch.path)
    switch.behave = flap
    switch.conns[0].close()
    wait_until(lambda: len(seen) > 4, 15)
    waits = [after - before for before, after in zip(seen, seen[1:])]
    assert waits[3] > 1.5 * waits[0] and waits[3] > 1 and max(waits) < 3, waits
    switch.behave = lambda switch, conn: switch.answer(conn)
    wait_until(lambda: carrier(a), 6)
    a.ip('link del vde0')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])


def test_the_frame_that_ends_a_quiet_time_is_not_lost(pair, tmp_path, closing):
    """A switch that takes a moment to read: its queue is full before the burst is over."""
    daemon, a, _ = pair
    switch = FalseSwitch(str(tmp_path / 'false'), lambda switch, conn: switch.answer(conn))
    closing(switch.listener)
    silence(a)
    join(a, daemon, 'vde://' + switch.path)
    port, pid = closing(RawPort(a, 'vde0')), session_pid(daemon)
    burst = [frame(1000, number + 1) for number in range(40)]

    def all_arrive():
        """Do they, with a break before the first is read? And was the socket full meanwhile?"""
        wait_until(lambda: is_quiet(pid) or port.send(frame()) or switch.data.recv(10000) is None,
                   30)
        dropped, got = listed(daemon)[pid]['out_drops'], []

        def read():
            got.append(switch.data.recv(10000))
            time.sleep(0.004)
            while len(got) < len(burst):
                got.append(switch.data.recv(10000))
        switch.data.settimeout(1)
        thread = threading.Thread(target=read)
        thread.start()
        port.send(*burst)
        thread.join()
        return not is_quiet(pid) and got == burst and listed(daemon)[pid]['out_drops'] == dropped
    assert any(all_arrive() for _ in range(5))


def test_a_client_that_hangs_up_leaves_nothing_behind(host, new_container, new_daemon, switch):
    daemon, container = new_daemon(host), new_container()
    for _ in range(5):
        container.run(PYTHON, '-c', HASTY.replace('vxvde://', 'vde://' + switch.path),
                      daemon.socket)
        wait_until(lambda: 'vde0' not in container.interfaces())
        wait_until(lambda: daemon.pids() == [daemon.process.pid])
    keeper, = keepers(daemon)
    wait_until(lambda: '/dev/net/tun' not in fds(keeper))
    join(container, daemon, 'vde://' + switch.path)
    assert is_quiet(session_pid(daemon)) and fds(keeper).count('/dev/net/tun') == 1


def test_who_is_kept_from_answering_is_ended_and_not_the_keeper(two, switch, new_container):
    """Root in a container makes the reads of a busy relay wait for a frame."""
    daemon, a, b = two
    c, pids = new_container(), session_pids(daemon)
    holder = c.popen(PYTHON, BY_HAND, daemon.socket, 'hold', 'vde://' + switch.path,
                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b'"0\\u0000"\n'
    c.ip('link set hold0 up')
    pid, = set(session_pids(daemon)) - set(pids)
    port, (keeper,) = RawPort(c, 'hold0'), keepers(daemon)

    def hangs():
        port.send(*[frame()] * 100)
        return only(listed(daemon), pid=pid)['state'] == 'no answer'
    wait_until(hangs)
    port.close()
    ask(daemon, '--close', str(pid))
    assert session_pids(daemon) == pids
    outage(daemon, switch)
    assert keepers(daemon) == [keeper]
    wait_until(lambda: a.ping(B, 1, False).returncode == 0 and b.ping(A, 1, False).returncode == 0)
    holder.kill()
    holder.wait()
