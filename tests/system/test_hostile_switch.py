"""Switches and members that stall, lie or shout: they hurt themselves only."""

import os
import select
import shutil
import signal
import socket
import struct
import threading
import time

import pytest

import peers
from aftermath import new_bystanders, private_memory                            # noqa: F401
from conftest import Daemon, wait_until
from fuzzing import fuzz                                                        # noqa: F401
from peers import carrier, expect, frame, join

pytestmark = pytest.mark.slow


class FalseSwitch:
    """A control socket whose every connection is handled by behave(switch, conn) in a thread.

    The data socket is never read, unless the test does.
    """

    def __init__(self, path, behave):
        os.makedirs(path)
        self.path, self.behave, self.conns = path, behave, []
        self.closed = False
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path + '/ctl')
        self.listener.listen(5)
        self.data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.data.bind(path + '/data')
        self.data.settimeout(10)
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                conn = self.listener.accept()[0]
            except OSError:
                return
            self.conns.append(conn)
            threading.Thread(target=self.handle, args=(conn,), daemon=True).start()

    def handle(self, conn):
        try:
            conn.recv(4096)
            self.behave(self, conn)
        except OSError:                     # it is over
            pass

    def answer(self, conn):
        """What a switch says."""
        conn.sendall(peers.SOCKADDR_UN.pack(1, os.fsencode(self.path + '/data')))

    def close(self):
        self.closed = True
        self.listener.shutdown(socket.SHUT_RDWR)
        for each in [self.listener, self.data] + self.conns:
            each.close()
        shutil.rmtree(self.path, ignore_errors=True)


def says_nothing(switch, conn):
    """It takes the request, and that was it."""


def says_nonsense(switch, conn):
    conn.sendall(os.urandom(4096))


def names_another_socket(switch, conn):
    conn.sendall(peers.SOCKADDR_UN.pack(1, b'/run/systemd/journal/dev-log'))


def speaks_slowly(switch, conn):
    """A byte now and then: each comes in time, and all of them never."""
    while not switch.closed and not select.select([], [], [], 0.2)[0]:
        conn.sendall(b'\1')


def answers_and_stalls(switch, conn):
    switch.answer(conn)


def answers_and_shouts(switch, conn):
    switch.answer(conn)
    while True:
        conn.sendall(bytes(65536))


@pytest.fixture
def new_switch(closing, tmp_path):
    """new_switch(behave) starts a FalseSwitch."""
    return lambda behave: closing(FalseSwitch(str(tmp_path / behave.__name__), behave))


@pytest.mark.parametrize('behave, number', [
    (says_nothing, 110), (says_nonsense, 71), (names_another_socket, 71), (speaks_slowly, 110)])
def test_a_false_answer_is_a_refusal_in_time(host, new_daemon, new_container, new_bystanders,
                                             new_switch, behave, number):
    daemon, container = new_daemon(host), new_container()
    bystanders, switch = new_bystanders(daemon), new_switch(behave)
    with bystanders.pinging():
        since = time.monotonic()
        done = container.client('-s', daemon.socket, 'vde://' + switch.path, check=False)
        assert done.returncode == 1 and os.strerror(number) in done.stderr, done.stderr
        assert time.monotonic() - since < 4.5
    assert sorted(os.listdir(switch.path)) == ['ctl', 'data']
    bystanders.prove()


def test_a_link_that_is_turned_after_the_rules_had_a_look_leads_nowhere(
        host, new_container, new_bystanders, closing, tmp_path, tmp_path_factory):
    secret = closing(FalseSwitch(str(tmp_path / 'secret'), answers_and_stalls))
    (tmp_path / 'rules').write_text('deny vde://%s\npfxallow\n' % secret.path)
    link, harmless = str(tmp_path / 'link'), str(tmp_path / 'harmless')

    def turn(switch, conn):
        """The harmless switch turns the link to the secret one, and is gone."""
        os.symlink(secret.path, link + '2')
        os.rename(link + '2', link)
        conn.close()
    turner = closing(FalseSwitch(harmless, turn))
    os.symlink(harmless, link)
    daemon = closing(Daemon(host, tmp_path_factory.mktemp('vde'), '-v', '-f',
                            str(tmp_path / 'rules')))
    bystanders, container = new_bystanders(daemon), new_container()
    for number, spelling in (13, secret.path), (13, str(tmp_path / 'x' / '..' / 'secret')):
        done = container.client('-s', daemon.socket, 'vde://' + spelling, check=False)
        assert os.strerror(number) in done.stderr
    turner.behave = answers_and_stalls
    join(container, daemon, 'vde://' + link)
    turner.behave = turn
    turner.conns[-1].close()                # the session comes back, and then by the link
    wait_until(lambda: secret.conns, what='the session follows the link')
    assert not carrier(container)
    wait_until(lambda: len(secret.conns) > 1, what='it has to try again')
    assert not carrier(container)
    done = container.client('-s', daemon.socket, 'vde://' + link, check=False)
    assert os.strerror(13) in done.stderr
    container.ip('link delete vde0')
    bystanders.prove()


@pytest.mark.parametrize('behave', [answers_and_stalls, answers_and_shouts])
def test_a_switch_that_reads_no_frames_holds_up_nothing(
        host, new_daemon, new_container, new_bystanders, new_switch, closing, behave):
    daemon, container = new_daemon(host), new_container()
    bystanders, switch = new_bystanders(daemon), new_switch(behave)
    join(container, daemon, 'vde://' + switch.path)
    port = closing(peers.RawPort(container, 'vde0'))
    with bystanders.pinging():
        port.send(*[frame(1514, seed=seed) for seed in range(3000)])
        assert carrier(container)
        while True:                         # who waits longest is heard when it reads again
            if peers.ETHERTYPE in switch.data.recv(20000):
                break
        since = time.monotonic()
        container.ip('link delete vde0')
        wait_until(lambda: len(daemon.pids()) == 3, 3, 'the session ends')
        assert time.monotonic() - since < 3
    bystanders.prove()


def test_an_interface_can_go_while_its_switch_comes_back_slowly(
        host, new_daemon, new_container, new_bystanders, new_switch):
    daemon, container = new_daemon(host), new_container()
    bystanders, switch = new_bystanders(daemon), new_switch(answers_and_stalls)
    join(container, daemon, 'vde://' + switch.path)
    switch.behave = speaks_slowly
    switch.conns[0].close()
    wait_until(lambda: len(switch.conns) > 1, what='the session tries again')
    container.ip('link delete vde0')
    wait_until(lambda: len(daemon.pids()) == 3, 6, 'the session ends')
    bystanders.prove()


def removes_names(switch, conn):
    """It cleans up in its directory when it should not."""
    for name in os.listdir(switch.path):
        if name.startswith('.'):
            os.unlink(switch.path + '/' + name)
    switch.answer(conn)


def test_who_removes_the_sockets_of_others_ends_no_interface(
        host, new_daemon, new_container, new_bystanders, new_switch, tmp_path):
    daemon, container = new_daemon(host), new_container()
    bystanders, switch = new_bystanders(daemon), new_switch(removes_names)
    join(container, daemon, 'vde://' + switch.path)
    switch.conns[0].close()
    wait_until(lambda: len(switch.conns) > 1 and carrier(container), 6, 'the network is back')
    container.ip('link delete vde0')
    container.client('-s', daemon.socket, 'ptp://%s/cable' % tmp_path)
    os.unlink(str(tmp_path / 'cable'))
    container.ip('link delete vde0')
    bystanders.prove()
    assert 'internal error' not in daemon.log()


def test_a_stopped_switch_is_no_network_and_later_one_again(
        host, new_daemon, new_container, new_bystanders, closing, tmp_path):
    daemon, container = new_daemon(host), new_container()
    switch = closing(peers.Switch(tmp_path / 'sw', tmp_path / 'management'))
    friends = new_bystanders(daemon, vnl='vde://' + switch.path, net='10.0.0')
    bystanders = new_bystanders(daemon)
    with bystanders.pinging():
        switch.process.send_signal(signal.SIGSTOP)
        done = container.client('-s', daemon.socket, 'vde://' + switch.path, check=False)
        assert done.returncode == 1 and os.strerror(110) in done.stderr
        ping = friends.pinger.run('ping', '-f', '-q', '-w', '1', '10.0.0.2', check=False)
        assert ', 0 received' in ping.stdout
        switch.process.send_signal(signal.SIGCONT)
        wait_until(lambda: friends.pinger.ping('10.0.0.2', 1, False).returncode == 0, 6)
    bystanders.prove()
    friends.note()
    friends.prove()


def test_a_member_that_never_reads_holds_up_no_other_and_costs_little(
        host, new_daemon, new_container, new_bystanders, closing, tmp_path):
    daemon, path = new_daemon(host), str(tmp_path / 'hub')
    hub = new_bystanders(daemon, vnl='hub://' + path, net='10.0.0')
    bystanders = new_bystanders(daemon)
    idle, loud = (closing(peers.Member(path)) for _ in range(2))
    loud.data.settimeout(5)
    flood = [frame(9000, 5, seed=seed) for seed in range(1000)]
    with bystanders.pinging():
        loud.send(*flood)
        hub.ping(20)
    used = [private_memory(pid) >> 10 for pid in daemon.pids()]
    print('private memory of the processes: %s kB' % used)
    assert max(used) < 16 << 10
    expect(idle, flood[0])
    idle.close()
    loud.close()
    bystanders.prove()
    hub.ping()


def test_requests_full_of_faults_are_refused_and_hold_up_no_node(
        host, new_daemon, new_bystanders, closing, tmp_path, fuzz):
    daemon, path = new_daemon(host), str(tmp_path / 'node')
    members = new_bystanders(daemon, vnl='switch://' + path, net='10.0.0')
    bystanders = new_bystanders(daemon)
    data = closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    data.bind(path + '/.data')
    good = struct.pack('=III', peers.MAGIC, 3, 0) + peers.SOCKADDR_UN.pack(
        1, os.fsencode(path) + b'/.data') + b'somebody'
    held = []
    with bystanders.pinging(), members.pinging():
        for _ in fuzz.rounds(2000):
            conn = socket.socket(socket.AF_UNIX)
            conn.settimeout(5)
            conn.connect(path + '/ctl')
            request = fuzz.spoil(good) if fuzz.chance.random() < 0.8 else good
            try:
                for piece in fuzz.pieces(request, 4):
                    conn.sendall(piece)
                conn.sendall(fuzz.noise(fuzz.chance.randrange(2000)))
            except OSError:                 # refused already
                pass
            held.append(conn)
            if len(held) > 50:
                held.pop(fuzz.chance.randrange(len(held))).close()
    for conn in held:
        conn.close()
    bystanders.prove()
    members.ping()
