"""What the server and its processes do when something fails that hardly ever fails.

Descriptors really run out, connections are really reset and processes really gone.
"""

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import time

import pytest


@contextlib.contextmanager
def no_descriptors():
    """There is none to be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def server(vdelxcd, tmp_path):
    """A Server in this process, which never serves."""
    before = {number: signal.getsignal(number) for number in vdelxcd.SIGNALS}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / 'socket'))
        listener.listen(1)
        server = vdelxcd.Server(listener, None, None)
        try:
            yield server
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            server.poller.close()
            for fd in server.signals:
                os.close(fd)


@pytest.fixture
def child():
    """A process that does not end by itself."""
    with subprocess.Popen(['sleep', '1000']) as process:
        yield process
        process.kill()


def pair():
    """The two ends of a link between the server and a process."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def reset(link, far_end):
    """The process ended before it read all."""
    link.send(b'never read')
    far_end.close()


def hand_over(server, link, pid):
    """Let the server know of a process that hears a client."""
    server.hand_overs[link.fileno()] = link, pid, 1e12
    server.hearing[link.fileno()] = 'net:[1]'
    server.poller.register(link.fileno())
    return link.fileno()


# ---- hand-overs ---------------------------------------------------------------------------------

def test_who_takes_too_long_is_killed_and_counts_as_stuck_until_it_is_gone(server, child, capsys):
    link, far_end = pair()
    with far_end:
        server.cut_off(hand_over(server, link, child.pid))
        assert child.wait(10) == -signal.SIGKILL
        assert server.stuck == {child.pid: 'net:[1]'} and not server.hand_overs
        assert capsys.readouterr().err == 'hand-over of process %d cut off\n' % child.pid


def test_who_is_gone_when_its_time_is_over_does_not_count_as_stuck(server, child):
    child.kill()
    child.wait()
    link, far_end = pair()
    with far_end:
        server.cut_off(hand_over(server, link, child.pid))
    assert not server.stuck and not server.hand_overs and not server.hearing


@pytest.mark.parametrize('end', ['done', 'reset'])
def test_who_finished_just_in_time_is_not_killed(vdelxcd, server, child, end, capsys):
    link, far_end = pair()
    fd = hand_over(server, link, child.pid)
    if end == 'done':
        far_end.send(vdelxcd.DONE_WORD)
        far_end.close()
    else:
        reset(link, far_end)
    server.cut_off(fd)
    assert child.poll() is None and not server.stuck and not capsys.readouterr().err


def test_a_process_that_hears_a_client_and_is_gone_is_forgotten(server):
    link, far_end = pair()
    fd = hand_over(server, link, 1)
    server.hear(fd)                         # nothing yet: that was about another one of its number
    assert fd in server.hand_overs and fd in server.hearing
    reset(link, far_end)
    server.hear(fd)
    assert not server.hand_overs and not server.hearing and link.fileno() == -1


@pytest.mark.parametrize('there', [True, False], ids=['who asked waits', 'who asked is gone'])
def test_where_no_relay_can_be_made_the_client_has_to_try_again(server, there, capsys):
    link, far_end = pair()
    fd = hand_over(server, link, 1)
    far_end.send(b'net:[1]')
    if not there:
        far_end.close()
    with no_descriptors():
        server.hear(fd)
    assert server.paused_until and not server.sessions and not server.hand_overs
    assert capsys.readouterr().err == 'fork: %s\n' % os.strerror(errno.EMFILE)
    if there:
        assert far_end.recv(100) == b'%d ' % errno.EAGAIN
        far_end.close()


def test_a_client_whose_connection_is_reset_is_heard_to_its_end(vdelxcd):
    ours, theirs = socket.socketpair()
    with ours:
        ours.send(b'never read')
        client = vdelxcd.Client(ours)
        theirs.close()
        client.look()
        assert client.ready
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(vdelxcd.Failure) as failure:
        ours.send(b'never read')
        theirs.close()
        vdelxcd.receive_request(ours, time.monotonic() + 10)
    assert failure.value.errno == errno.ECONNRESET
    assert str(failure.value) == 'reading the request: ' + os.strerror(errno.ECONNRESET)


# ---- sessions -----------------------------------------------------------------------------------

def test_without_descriptors_a_session_does_without_what_it_can(vdelxcd, capsys):
    with no_descriptors():
        vdelxcd.name_process(b'another name')
        control = vdelxcd.make_control(None, {})
        session = vdelxcd.Session(None, None, None, 'me', 64)
        with pytest.raises(vdelxcd.Failure) as failure:
            session.fork()
    assert control.listener is None and control.fds() == {}
    assert capsys.readouterr().err == 'session %d can not be asked: %s\n' % (
        os.getpid(), os.strerror(errno.EMFILE))
    assert failure.value.errno == errno.EMFILE and session.child is None
    assert str(failure.value) == 'fork: ' + os.strerror(errno.EMFILE)


def test_a_daemon_that_can_not_detach_says_so(vdelxcd):
    with no_descriptors(), pytest.raises(vdelxcd.Failure) as failure:
        vdelxcd.detach()
    assert str(failure.value) == 'detaching: ' + os.strerror(errno.EMFILE)


def test_sessions_that_can_not_be_looked_for_are_not_forgotten(server, capsys):
    server.sessions[b'\0vdelxcd/a', 1] = 'net:[1]'
    with no_descriptors():
        server.adopt()
        server.forget_ended()
    assert list(server.sessions) == [(b'\0vdelxcd/a', 1)]
    assert capsys.readouterr().err == 'sessions of an earlier daemon: %s\n' % os.strerror(
        errno.EMFILE)
    server.forget_ended()
    assert server.sessions == {}


def test_a_session_that_does_not_answer_is_known_by_who_has_its_socket(vdelxcd):
    def anybody(_):
        return True

    name = vdelxcd.Control.NAME.encode() + b'a'
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(name)
        listener.listen(1)
        inode = vdelxcd.find_sessions()[name]
        asked = vdelxcd.Asked(name, inode)
        assert asked.look_up(vdelxcd.find_holders({'1', inode}, anybody))
        assert (asked.pid, asked.owner) == (os.getpid(), os.geteuid())
        assert not vdelxcd.Asked(name, '1').look_up(vdelxcd.find_holders({'1', inode}, anybody))
        assert vdelxcd.find_holders({inode}, lambda owner: owner != os.geteuid()) == {}
        assert vdelxcd.find_holders(set(), anybody) == {}
        with pytest.raises(ProcessLookupError):
            vdelxcd.end_session(os.getpid(), '1')
    assert vdelxcd.find_holders({inode}, anybody) == {}


def test_a_session_that_too_many_ask_can_be_closed(vdelxcd):
    """Here it is gone when it is to be killed, which is as good."""
    name, waiting = b'\0vdelxc-test-%d' % os.getpid(), []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(name)
        listener.listen(0)
        asked = vdelxcd.Asked(name, '0')
        asked.facts, asked.pid = {'state': 'up'}, 0
        with pytest.raises(BlockingIOError):
            while True:
                waiting.append(vdelxcd.connect_session(name))
        vdelxcd.close_session(asked)
    for sock in waiting:
        sock.close()


# ---- the reaper ---------------------------------------------------------------------------------

def test_a_reaper_that_can_not_look_looks_later(vdelxcd, server):
    reaper = server.reaper
    reaper.able, server.sessions[1] = True, 'net:[1]'
    since = reaper.next
    with no_descriptors():
        reaper.look(since, None, server.poller)
    assert reaper.fd is None and reaper.next == since + reaper.INTERVAL
    reaper.fd, far_end = os.pipe2(os.O_NONBLOCK)
    server.poller.register(reaper.fd)
    reaper.hear(server.poller)              # nothing is said there
    assert reaper.fd is None and reaper.next == since + reaper.INTERVAL + reaper.LATER
    assert reaper.missed == {}
    os.close(far_end)


def test_sessions_of_a_dead_container_that_are_gone_already_hurt_no_other(server, child, capsys):
    gone = subprocess.Popen(['true'])
    gone.wait()
    adopted = b'\0vdelxcd/a', gone.pid
    server.sessions.update({gone.pid: 'net:[1]', adopted: 'net:[1]', child.pid: 'net:[1]',
                            (b'\0vdelxcd/b', 0): 'net:[1]', 1: 'net:[2]'})
    server.reaper.end('net:[1]')
    assert child.wait(10) == -signal.SIGTERM
    assert set(server.sessions) == {gone.pid, child.pid, 1}     # their end will be told
    assert capsys.readouterr().err == 'container gone: net:[1]: session %d ended\n' % child.pid
