"""Storms of connections, and a host that runs out of descriptors or processes meanwhile.

Everybody who can be served is; who cannot is told so; and when the storm is over all is as before.
"""

import errno
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

import pytest

from aftermath import SERVED, Process
from attacks import Attacker, new_scene, scene                  # noqa: F401
from conftest import DAEMON, PYTHON, Daemon, require, wait_until

AGAIN = '%d\0' % errno.EAGAIN
USER = 64321
PAUSE = 0.2                 # seconds in which a daemon that could not fork tries nothing


def quiet(pid, seconds=0.5):
    """A process does next to nothing, although there is something that it cannot do now."""
    before = Process(pid).ticks
    time.sleep(seconds)                 # the measurement itself
    return (Process(pid).ticks - before) / os.sysconf('SC_CLK_TCK') < 0.2 * seconds


def descriptors(pid):
    return len(os.listdir('/proc/%d/fd' % pid))


# ---- clients that say nothing, or the wrong thing -----------------------------------------------

@pytest.mark.parametrize('request_text', ['', 'vxvde:/'], ids=['silent', 'half a request'])
def test_with_500_silent_clients_a_newcomer_is_served(scene, request_text):
    scene.attacker.silent(500, request_text)
    took = scene.bystanders.serve_newcomer()
    print('a newcomer beside 500 clients was served after %.2f s' % took)
    scene.bystanders.ping()
    assert scene.attacker.silent_end() >= 500 - 64 - 1      # the oldest go when more come
    scene.prove()


def test_clients_that_keep_coming_do_not_keep_a_newcomer_out(new_scene, new_container):
    """Twelve hundred, one after the other, by two who do not wait."""
    scene = new_scene()
    helper = Attacker(new_container('helper'), scene.daemon)
    for each in scene.attacker, helper:
        each.begin('silent', 600)
    took = [scene.bystanders.serve_newcomer() for _ in range(3)]
    print('newcomers were served after', took)
    for each in scene.attacker, helper:
        each.end()
    helper.stop()
    scene.attacker.silent_end()
    scene.prove()


def test_500_silent_clients_do_not_cut_off_who_waits_for_a_slow_network(scene, tmp_path):
    """A switch that takes a second to answer; many more clients come meanwhile."""
    newcomer = scene.bystanders.newcomer
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control, socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM) as data:
        os.chmod(str(tmp_path), 0o777)
        control.bind(str(tmp_path / 'ctl'))
        data.bind(str(tmp_path / 'data'))
        control.listen(1)
        control.settimeout(10)
        client = newcomer.popen(PYTHON, os.path.join(os.path.dirname(DAEMON), 'vdelxcc.py'), '-s',
                                scene.daemon.socket, '-i', 'slow0', 'vde://%s' % tmp_path)
        conn = control.accept()[0]
        scene.attacker.silent(500)
        wait_until(lambda: scene.attacker.silent_over() > 300, 5)
        conn.settimeout(10)
        conn.recv(4096)
        conn.send(struct.pack('=H108s', socket.AF_UNIX, os.fsencode(str(tmp_path / 'data'))))
        assert client.wait(10) == 0
        newcomer.ip('link del slow0')
        conn.close()
    scene.attacker.silent_end()
    scene.prove()


def test_a_request_in_many_pieces_is_put_together(scene):
    assert scene.attacker.in_pieces('null://' + 'x' * 500) == '0\0'
    wait_until(lambda: 'open interface: null://xxx' in scene.daemon.log())
    scene.attacker.ip('link del bit0')
    scene.prove()


def test_a_peer_that_closes_one_direction_gets_what_it_can_hear(scene):
    for step, answers in (
            ('reading, before', ['', 'reset']), ('reading, after', ['', 'reset', '0\0']),
            ('writing, half', ['%d\0' % errno.EPIPE]), ('writing, whole', ['0\0'])):
        for _ in range(10):
            assert scene.attacker.half_close(step) in answers, step
            scene.attacker.ip('link del half0', check=False)
    scene.prove()


def test_clients_killed_at_any_moment_leave_nothing(scene, new_container):
    """The real client, killed after ever longer: before it connects, while it waits, when done."""
    container, daemon = new_container('mortal'), scene.daemon
    since = time.monotonic()
    container.client('-s', daemon.socket, '-i', 'dead0', 'null://')
    whole = time.monotonic() - since
    container.ip('link del dead0')
    for step in range(24):
        client = container.popen(PYTHON, os.path.join(os.path.dirname(DAEMON), 'vdelxcc.py'),
                                 '-s', daemon.socket, '-i', 'dead0', 'null://', stderr=-3)
        try:
            client.wait(whole * step / 20)
        except subprocess.TimeoutExpired:
            client.kill()
            client.wait()
        container.ip('link del dead0', check=False)
    wait_until(lambda: container.interfaces() == {'lo'}, 5)
    scene.prove()


# ---- descriptors run out ------------------------------------------------------------------------

def test_with_few_descriptors_500_silent_clients_do_not_keep_a_newcomer_out(host, new_daemon,
                                                                            new_scene):
    require('prlimit')
    daemon = new_daemon(host, start=False)
    daemon.argv = ['prlimit', '--nofile=64'] + daemon.argv
    daemon.start()
    scene = new_scene(daemon=daemon)
    scene.attacker.silent(500)
    took = scene.bystanders.serve_newcomer()
    print('a newcomer beside 500 clients was served after %.2f s, with 64 descriptors' % took)
    scene.bystanders.ping()
    scene.attacker.silent_end()
    scene.prove()


def test_a_daemon_without_descriptors_serves_as_soon_as_it_has_some_again(scene):
    daemon, attacker = scene.daemon, scene.attacker
    pid = daemon.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    for more in 0, 1, 2:                # accept() fails, what comes after it fails
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + more, limits[1]))
        attacker.begin('newcomer')
        assert quiet(pid)
        scene.bystanders.ping()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        answer, seconds = attacker.end()
        assert answer in ('0\0', AGAIN) and seconds < SERVED
        wait_until(lambda: attacker.newcomer()[0] == '0\0', 2)
    scene.prove()


# ---- processes run out --------------------------------------------------------------------------

class AnotherUsers(Daemon):
    """A daemon of an ordinary user, for limits that do not bind root; reads itself from stdin."""

    def __init__(self, host):
        require('setpriv', 'prlimit')
        self.user = user = ['setpriv', '--reuid=%d' % USER, '--regid=%d' % USER, '--clear-groups']
        if host.run(*(user + [PYTHON, '-c', '']), check=False).returncode:
            pytest.skip('another user cannot run %s' % PYTHON)
        # Not below pytest's own directory, which other users cannot enter.
        super().__init__(host, tempfile.mkdtemp(prefix='vdelxc'), '-v', start=False)
        os.chown(self.directory, USER, USER)
        self.argv = ['sh', '-c', 'exec "$@" < ' + DAEMON, 'sh'] + user + [
            PYTHON, '-'] + self.argv[2:]
        self.start()

    def limit_processes(self, limit):
        """The most processes that the user may have, from now on."""
        self.host.run(*(self.user + ['prlimit', '--pid', self.process.pid, '--nproc=%s:' % limit]))

    def close(self):
        super().close()
        shutil.rmtree(self.directory)


def exhaust_processes(scene, exhausted, restored, clients=8, seconds=0):
    """While no process can be made everybody is told to try again; then everybody is served.

    So many clients come at once, again and again for so many seconds.
    """
    attacker, daemon = scene.attacker, scene.daemon
    innocent, logged, since = scene.sessions('vde0'), len(daemon.log()), time.monotonic()
    exhausted()
    with scene.bystanders.pinging():
        while True:
            found = attacker.storm(clients, 'late')
            assert set(found) == {AGAIN}, found
            done = attacker.container.client('-s', daemon.socket, 'null://', check=False)
            assert done.returncode == 1 and os.strerror(errno.EAGAIN) in done.stderr, done.stderr
            if time.monotonic() - since >= seconds:
                break
        assert quiet(daemon.process.pid)
    lines, lasted = daemon.log()[logged:].splitlines(), time.monotonic() - since
    restored()
    wait_until(lambda: attacker.newcomer()[0] == '0\0', 2)
    assert len(innocent) == 2 and scene.sessions('vde0') == innocent
    # A line for each try, and after one that failed none for a moment.
    assert all(line.startswith('fork: ') for line in lines), lines
    assert 2 <= len(lines) <= 1 + lasted / PAUSE, lines
    scene.prove()


def test_a_user_without_processes_loses_nobody_and_serves_again_afterwards(host, closing,
                                                                          new_scene):
    daemon = closing(AnotherUsers(host))
    scene = new_scene(daemon=daemon)
    for clients, seconds in (1, 0), (8, 10):
        exhaust_processes(scene, lambda: daemon.limit_processes(1),
                          lambda: daemon.limit_processes(1000), clients, seconds)


class Cgroup:
    """A control group that counts processes."""

    def __init__(self):
        self.path = None
        with open('/proc/mounts') as file:
            for _, place, kind, options in (line.split()[:4] for line in file):
                if kind == 'cgroup' and 'pids' in options.split(','):
                    self.path = place
                elif kind == 'cgroup2' and not self.path and 'pids' in self.read(
                        place + '/cgroup.subtree_control').split():
                    self.path = place
        if not self.path:
            pytest.skip('no control group counts processes here: mount -t cgroup -o pids ...')
        self.path = tempfile.mkdtemp(prefix='vdelxc', dir=self.path)

    @staticmethod
    def read(path):
        with open(path) as file:
            return file.read()

    def set(self, name, value):
        with open(os.path.join(self.path, name), 'w') as file:
            file.write(str(value))

    def count(self):
        return int(self.read(self.path + '/pids.current'))

    def close(self):
        wait_until(lambda: not self.count())
        os.rmdir(self.path)


def test_a_full_control_group_loses_nobody_and_serves_again_afterwards(host, closing, new_daemon,
                                                                       new_scene):
    if os.geteuid():
        pytest.skip('control groups need root')
    try:
        group = closing(Cgroup())
    except OSError as error:
        pytest.skip('no control group can be made here: %s' % error)
    daemon = new_daemon(host)
    group.set('cgroup.procs', daemon.process.pid)
    scene = new_scene(daemon=daemon)
    exhaust_processes(scene, lambda: group.set('pids.max', group.count()),
                      lambda: group.set('pids.max', 'max'))


def test_a_hand_over_that_needs_more_processes_than_there_are_fails_whole(host, closing,
                                                                         new_scene):
    """Whatever fork fails in the middle: an errno, no interface, no process left."""
    daemon = closing(AnotherUsers(host))
    scene = new_scene(daemon=daemon)
    attacker, now = scene.attacker, len(scene.bystanders.baseline.before)
    for more in range(4):
        daemon.limit_processes(now + more)
        answers = attacker.storm(6, 'tight')
        assert all(answer.rstrip('\0').isdigit() for answer in answers), answers
        made = answers.count('0\0')
        assert made <= more
        wait_until(lambda: len(attacker.container.interfaces()) == 1 + made, 5)
        daemon.limit_processes(1000)
        for name in attacker.container.interfaces() - {'lo'}:
            attacker.ip('link del ' + name)
        wait_until(lambda: attacker.newcomer()[0] == '0\0', 2)
    scene.prove()


# ---- signals from outside -----------------------------------------------------------------------

def test_a_storm_of_signals_changes_nothing(scene):
    """SIGCHLD for nobody, SIGHUP and SIGPIPE, while clients come and go."""
    pid, stop = scene.daemon.process.pid, threading.Event()

    def shoot():
        while not stop.wait(0.001):         # without a pause it is the processor that is attacked
            for number in signal.SIGCHLD, signal.SIGPIPE, signal.SIGCHLD, signal.SIGHUP:
                os.kill(pid, number)
    thread = threading.Thread(target=shoot)
    thread.start()
    try:
        answers = [scene.attacker.newcomer()[0] for _ in range(10)]
        scene.attacker.silent(30)
        scene.attacker.silent_end()
        took = scene.bystanders.serve_newcomer()
    finally:
        stop.set()
        thread.join()
    assert answers == ['0\0'] * 10 and took < 3
    scene.prove()


def test_what_is_signalled_as_soon_as_it_is_there_leaves_the_server_alone(host, new_daemon):
    """SIGTERM to each process of the daemon's, from its first moment on."""
    daemon = new_daemon(host)
    pid, stop, hit = daemon.process.pid, threading.Event(), set()

    def shoot():
        with open('/proc/%d/task/%d/children' % (pid, pid), 'rb') as file:
            while not stop.is_set():
                file.seek(0)
                for child in map(int, file.read().split()):
                    try:
                        os.kill(child, signal.SIGTERM)
                        hit.add(child)
                    except OSError:
                        pass                # it was gone already
    thread = threading.Thread(target=shoot)
    thread.start()
    try:
        for _ in range(150):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
                conn.settimeout(10)
                conn.connect(daemon.socket)
                conn.send(b'\0hello=1\0')
                try:
                    conn.recv(100)
                except ConnectionResetError:
                    pass
    finally:
        stop.set()
        thread.join()
    assert daemon.process.poll() is None and len(hit) > 20
