"""Figures of the README's section about security that no other test holds; -s shows what was seen.

What an idle interface costs, and how long traffic is away when something of the host goes.
"""

import os
import re
import signal
import time

import peers
import pytest
from conftest import CLIENT, PYTHON, processes, wait_until
from peers import join, session_pids

MANY, AWAY = 150, 1             # interfaces; seconds without a switch
# Many clients in one process, since 150 interpreters would take longer than what is measured.
CLIENTS = """
import sys
sys.path.insert(0, sys.argv[1])
import vdelxcc
for number in range(%d):
    if vdelxcc.main(['-u', '-s', sys.argv[2], 'vxvde:///if=lo/vni=%%d' %% (number + 1)]):
        sys.exit(1)
""" % MANY


def memory(pids, word):
    """kB of memory of processes: what lines of smaps_rollup that begin with word add up to.

    One that has ended has none: what opens an interface ends a moment after the client's answer.
    """
    total = 0
    for pid in pids:
        try:
            with open('/proc/%d/smaps_rollup' % pid) as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(word))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total


def test_150_interfaces_cost_little_and_an_idle_one_next_to_nothing(host, new_container,
                                                                    new_daemon):
    daemon, container = new_daemon(host), new_container()
    container.run(PYTHON, '-c', CLIENTS, CLIENT.rpartition('/')[0], daemon.socket)
    sessions = session_pids(daemon)
    assert len(sessions) == MANY
    together = memory(processes(daemon.socket), 'Pss:')
    dearest = max(memory([pid], 'Private') for pid in sessions)
    print('%d interfaces: %d kB together, at most %d kB of its own each' % (
        MANY, together, dearest))
    assert together < 500 << 10
    distributions = os.path.realpath(PYTHON) == os.path.realpath('/usr/bin/python3')
    assert dearest < (320 if distributions else 1 << 10) or 'COVERAGE_RCFILE' in os.environ


class Pinging:
    """A ping every 50 ms while a with statement lasts; lost is how many were not answered."""

    def __init__(self, container, address, directory):
        self.log = str(directory / 'pings')
        with open(self.log, 'w') as log:
            self.ping = container.popen('ping', '-n', '-i', '0.05', address, stdout=log)

    def answers(self):
        with open(self.log) as log:
            return log.read().count(' bytes from ')

    def go_on(self):
        """Some more are answered."""
        seen = self.answers()
        wait_until(lambda: self.answers() >= seen + 4, what='pings are answered')

    def __enter__(self):
        self.go_on()
        return self

    def __exit__(self, *exception):
        self.go_on()
        self.ping.send_signal(signal.SIGINT)
        self.ping.wait(10)
        with open(self.log) as log:
            sent, answered = map(int, re.search(
                r'(\d+) packets transmitted, (\d+) received', log.read()).groups())
        self.lost = sent - answered


def test_a_daemon_that_ends_and_starts_interrupts_no_ping(pair, tmp_path):
    daemon, a, b = pair
    join(a, daemon, 'vxvde:///if=lo', '10.0.0.1/24')
    join(b, daemon, 'vxvde:///if=lo', '10.0.0.2/24')
    a.ping('10.0.0.2')
    for number in signal.SIGTERM, signal.SIGKILL:
        with Pinging(a, '10.0.0.2', tmp_path) as pings:
            daemon.stop(number)
            daemon.start()
        print('pings lost over %s and a new start: %d' % (number.name, pings.lost))
        assert pings.lost <= 1              # the last one may be under way


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_traffic_is_back_in_time_when_a_switch_starts_again(pair, closing, tmp_path, number):
    daemon, a, b = pair
    switch = closing(peers.Switch(str(tmp_path / 'sw'), str(tmp_path / 'management')))
    join(a, daemon, 'vde://' + switch.path, '10.0.0.1/24')
    join(b, daemon, 'vde://' + switch.path, '10.0.0.2/24')
    a.ping('10.0.0.2')
    switch.process.send_signal(number)
    switch.process.wait(10)
    wait_until(lambda: not peers.carrier(a) and not peers.carrier(b), what='the network is gone')
    time.sleep(AWAY)                        # the case itself: tries become rarer
    switch.restart()
    since = time.monotonic()
    wait_until(lambda: a.run('ping', '-n', '-c', '1', '-W', '0.2', '10.0.0.2',
                             check=False).returncode == 0, 6, 'traffic is back')
    print('a switch came back, and traffic %.2f s later' % (time.monotonic() - since))
