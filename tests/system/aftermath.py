"""After an attack: is the daemon as it was, does an innocent go on, is a newcomer served?

A Baseline is noted before the attack, when the daemon is at peace; its check() afterwards waits
until processes, descriptors and processor time are back, five seconds at most. Bystanders are two
containers on a network of the daemon, and a third that comes later.
"""

import contextlib
import os
import re
import signal
import subprocess
import time

import pytest

from conftest import wait_until

TICKS = os.sysconf('SC_CLK_TCK')        # of processor time, a second
WATCHED = 0.5                           # seconds of wall time in which a process must be quiet
BUSY = 0.1                              # the share of that which is too much, all together
BACK = 5                                # seconds until everything must be as before
SERVED = 6                              # seconds until a newcomer must have its interface
OF_ITS_OWN = 'vxvde:///port=14900/if=lo/bind=127.0.0.1'         # a network inside of a host


class Process:
    """What /proc tells about a process. Raises OSError when it is gone."""

    def __init__(self, pid):
        self.pid = pid
        with open('/proc/%d/stat' % pid) as file:
            self.name, _, rest = file.read().partition('(')[2].rpartition(')')
        fields = rest.split()
        self.state, self.parent = fields[0], int(fields[1])
        self.ticks = int(fields[11]) + int(fields[12])          # utime, stime
        self.fds = len(os.listdir('/proc/%d/fd' % pid)) if self.state != 'Z' else 0


def private_memory(pid):
    """Bytes of memory that a process shares with nobody (smaps_rollup; Linux 4.14)."""
    with open('/proc/%d/smaps_rollup' % pid) as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith('Private'))


def have_keeper(container, daemon):
    """Have the keeper of quiet relays start now, not when there is the first switch."""
    container.client('-s', daemon.socket, '-i', 'none0', 'vde:///nowhere', check=False)


def belonging(daemon):
    """The processes of a daemon: those with its socket in the command line, and their children.

    Zombies and programs that a session runs are among the children.
    """
    everything = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            everything[int(pid)] = Process(int(pid))
        except OSError:
            pass
    found = {pid for pid in daemon.pids() if pid in everything}
    size = -1
    while size < len(found):
        size = len(found)
        found |= {pid for pid, each in everything.items() if each.parent in found}
    return [everything[pid] for pid in sorted(found)]


def costs(processes):
    """What can leak: (pid, is it a zombie, number of its descriptors) of each."""
    return sorted((each.pid, each.state == 'Z', each.fds) for each in processes)


def at_peace(daemon):
    """The processes of a daemon when none of them comes, goes or works; waits for that.

    A process that hears a client, or looks for dead containers, is a child of the server, and has
    no name of its own; who is about to close something does not sleep.
    """
    def at_rest(processes):
        servers = {each.pid for each in processes
                   if not each.name.startswith(('vdelxcd:', 'vdelxcd-'))}
        return all(each.state == 'S' and not (each.pid in servers and each.parent in servers)
                   for each in processes)

    def looked_at_twice():
        one, two = belonging(daemon), belonging(daemon)
        return two if at_rest(one + two) and costs(one) == costs(two) else None
    return wait_until(looked_at_twice, what='the daemon is at peace')


class Baseline:
    """What a daemon and its sessions use, to be compared with what they use later.

    daemon has pids(); more is how many sessions were started on purpose since and stay.
    """

    def __init__(self, daemon):
        self.daemon = daemon
        self.before = at_peace(daemon)

    def check(self, more=0, seconds=BACK):
        """As many processes and descriptors as before, no zombie and no spinning, in time.

        Processes may have been replaced by others (a restart); what each is allowed to have open
        is what the one in its place had. Of further sessions only the number counts.
        """
        self.wait(lambda: self.fault(more), seconds)

    def check_same(self, seconds=BACK):
        """The very same processes, each with as many descriptors as before, and no other; soon."""
        self.wait(self.difference, seconds)

    @staticmethod
    def wait(look, seconds):
        """Until look() finds no fault."""
        deadline = time.monotonic() + seconds
        while True:
            fault = look()
            if not fault:
                return
            if time.monotonic() > deadline:
                pytest.fail('not back at the baseline within %g s: %s' % (seconds, fault))
            time.sleep(0.02)

    def difference(self):
        """What of processes and descriptors is not the same, or None."""
        before, now = costs(self.before), costs(belonging(self.daemon))
        return None if now == before else '%s, and before: %s' % (now, before)

    def fault(self, more=0):
        """What is not as it was, or None; takes WATCHED seconds when the rest is fine."""
        now = belonging(self.daemon)
        zombies = [each.pid for each in now if each.state == 'Z']
        if zombies:
            return 'zombies: %s' % zombies
        if len(now) != len(self.before) + more:
            return '%d processes, not %d: %s' % (len(now), len(self.before) + more, [
                '%d (%s)' % (each.pid, each.name) for each in now])
        mine = sorted(each.fds for each in self.before)
        theirs = sorted(each.fds for each in now)
        if mine != theirs and not more:
            return 'descriptors %s, not %s' % (theirs, mine)
        if more and sum(theirs) > sum(mine) + more * max(mine):
            return 'descriptors %s, and before: %s' % (theirs, mine)
        return self.spinning(now)

    def spinning(self, before):
        """Who works although nobody asks for anything, or None."""
        since = time.monotonic()
        time.sleep(WATCHED)             # the measurement itself
        ticks = {each.pid: each.ticks for each in before}
        used = {'%d (%s)' % (each.pid, each.name): each.ticks - ticks.get(each.pid, 0)
                for each in belonging(self.daemon)}
        share = sum(used.values()) / TICKS / (time.monotonic() - since)
        if share >= BUSY:
            return 'processor time in %g s, in ticks of 1/%d s: %s' % (WATCHED, TICKS, used)
        return None


class Bystanders:
    """Two containers that ping each other on a network, and newcomers on the same.

    new_container makes a Container. The other one may have another daemon (on another host), and
    another VNL. shared says whether more than two can join.
    """

    def __init__(self, daemon, new_container, vnl=OF_ITS_OWN, net='10.9.9', daemon2=None,
                 vnl2=None, shared=True):
        self.daemon, self.vnl, self.net, self.shared = daemon, vnl, net, shared
        self.pinger, self.other, self.newcomer = (new_container(name) for name in (
            'innocent', 'other', 'newcomer'))
        for container, number, its_daemon, its_vnl in (
                (self.pinger, 1, daemon, vnl), (self.other, 2, daemon2 or daemon, vnl2 or vnl)):
            container.client('-s', its_daemon.socket, '-i', 'vde0', its_vnl)
            container.up('vde0', '%s.%d/24' % (net, number))
        self.ping()
        have_keeper(self.pinger, daemon)
        self.note()

    def note(self):
        """What the daemon uses now is what it may use afterwards."""
        self.baseline = Baseline(self.daemon)

    def ping(self, count=3, size=56):
        """The innocent's ping goes on."""
        self.pinger.ping(self.net + '.2', count, size=size)

    @contextlib.contextmanager
    def pinging(self, least=0.9):
        """While this lasts (a second at least) a ping goes on; the least share is answered."""
        since = time.monotonic()
        ping = self.pinger.popen('ping', '-q', '-n', '-i', '0.05', self.net + '.2',
                                 stdout=subprocess.PIPE)
        yield
        wait_until(lambda: time.monotonic() - since > 1)
        ping.send_signal(signal.SIGINT)
        text = ping.communicate(timeout=10)[0].decode()
        sent, answered = map(int, re.search(r'(\d+) packets transmitted, (\d+) received',
                                            text).groups())
        assert answered >= least * (sent - 2), text         # the last ones may be under way

    def serve_newcomer(self):
        """A newcomer gets an interface in time, and it works; the seconds until it had it."""
        since = time.monotonic()
        self.newcomer.client('-s', self.daemon.socket, '-i', 'new0',
                             self.vnl if self.shared else OF_ITS_OWN)
        took = time.monotonic() - since
        assert took < SERVED, 'the newcomer waited for %.1f s' % took
        if self.shared:
            self.newcomer.up('new0', self.net + '.3/24')
            wait_until(lambda: self.newcomer.ping(self.net + '.1', 1, False).returncode == 0,
                       SERVED, 'the newcomer is on the network')
        self.newcomer.ip('link delete new0')
        return took

    def prove(self, more=0):
        """After an attack: the ping goes on, a newcomer is served, and nothing of it stays."""
        self.ping()
        self.serve_newcomer()
        self.baseline.check(more)


@pytest.fixture
def new_bystanders(new_container):
    """new_bystanders(daemon, vnl=..., net=...) brings the innocent."""
    return lambda daemon, **more: Bystanders(daemon, new_container, **more)
