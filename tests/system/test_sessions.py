"""Sessions asked what they do: --list, --close, --capture; and who may not ask."""

import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import time

import peers
import pytest
from conftest import DAEMON, PYTHON, Container, require, wait_until
from peers import RawPort, Switch, another, frame, join, session_pid
from test_daemon_life import fds
from test_hand_over import BY_HAND
from test_privileges import as_root, needs_all_pids, taken

USER = ['setpriv', '--reuid=4711', '--regid=4711', '--clear-groups']
ANYBODYS = '/usr/bin/python3' if os.path.exists('/usr/bin/python3') else PYTHON
PCAP_HEADER, RECORD = struct.Struct('=IHHiIII'), struct.Struct('=IIII')

# A listener at a session's name: the name, then what it does with those who come
FAKE = """if True:
    import socket, sys, time
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind('\\0vdelxcd/' + sys.argv[1])
    listener.listen(5)
    print('ready', flush=True)
    words = sys.stdin.buffer.read()
    while True:
        if sys.argv[2] == 'silent':
            time.sleep(1000)
        conn = listener.accept()[0]
        try:
            conn.recv(100)
            conn.send(words if sys.argv[2] == 'say' else b'x' * 65536)
            if sys.argv[2] == 'much':
                conn.send(b'y' * 65536)
        except OSError:
            pass
        conn.close()
"""


def ask(daemon, *argv, check=True, before=(), **more):
    """Run vdelxcd.py on a daemon's host; without check it may fail."""
    return daemon.host.run(*before, PYTHON, DAEMON, *argv, check=check, **more)


def listed(daemon, **more):
    """--list --json: {pid: object}."""
    done = ask(daemon, '--list', '--json', **more)
    assert done.stderr == ''
    return {each['pid']: each for each in json.loads(done.stdout)}


def state(daemon, pid):
    """The state of a session; None when it is not there."""
    return listed(daemon).get(pid, {}).get('state')


def failing(daemon, *argv, **more):
    """The one line of a failure."""
    done = ask(daemon, *argv, check=False, **more)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1), done.stderr
    return done.stderr


def silence(*containers):
    """The kernel sends nothing of its own."""
    for each in containers:
        each.run('sh', '-c', 'echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6')


def counters(container, name='vde0'):
    """What the container's kernel counted: in_frames, in_bytes, out_frames, out_bytes."""
    words = [int(word) for word in re.findall(
        r'(?:RX|TX):[^\n]*\n\s*(\d+)\s+(\d+)', container.ip('-s link show ' + name).stdout)
             for word in word]
    return words[1], words[0], words[3], words[2]


def agree(facts, container):
    """Does a session count what the container's kernel counts? That counts padding as well."""
    ours, theirs = tallies(facts), counters(container)
    return ours[0] == theirs[0] and ours[2:] == theirs[2:] and (
        0 <= theirs[1] - ours[1] <= ours[0])


def tallies(facts):
    """The same of a session."""
    return tuple(facts[key] for key in ('in_frames', 'in_bytes', 'out_frames', 'out_bytes'))


def only(sessions, **facts):
    """The one session of a list that has these facts."""
    found = [each for each in sessions.values()
             if all(each.get(key) == value for key, value in facts.items())]
    assert len(found) == 1, sessions
    return found[0]


def inode(container):
    """A container's network namespace, as a session names it."""
    return container.inode()


class Capture:
    """A --capture that runs, its output in a file."""

    def __init__(self, daemon, session, directory, *argv, stdout=None):
        self.path = os.path.join(str(directory), 'capture%d' % len(os.listdir(str(directory))))
        # standard error keeps the pipe's other end with us
        self.process = daemon.host.popen(
            PYTHON, DAEMON, '--capture', session, *(argv or ('-w', self.path)),
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
            universal_newlines=True)

    def frames(self):
        """[(time, frame)] so far; only whole records count."""
        try:
            with open(self.path, 'rb') as file:
                return records(file.read())
        except FileNotFoundError:
            return []

    def ours(self):
        """The test frames so far."""
        return [data for _, data in self.frames() if peers.is_test_frame(data)]

    def runs(self, container, name='vde0'):
        """Wait until frames are captured."""
        port = RawPort(container, name)
        try:
            def seen():
                port.send(b'\xff' * 6 + peers.mac(9) + b'\x88\xb7' + bytes(46))
                return self.process.poll() is not None or self.frames()
            wait_until(seen, what='a frame is captured')
            assert self.process.poll() is None, self.process.stderr.read()
        finally:
            port.close()
        return self

    def end(self, number=signal.SIGTERM):
        """End it by a signal: what it said."""
        self.process.send_signal(number)
        said = self.process.communicate(timeout=10)[1]
        assert self.process.returncode == 0
        return said


def records(data):
    """[(time, frame)] of a pcap file."""
    if len(data) < PCAP_HEADER.size:
        return []
    magic, major, minor, _, _, longest, kind = PCAP_HEADER.unpack_from(data)
    assert (magic, major, minor, kind) == (0xa1b2c3d4, 2, 4, 1) and longest >= 9234
    found, place = [], PCAP_HEADER.size
    while place + RECORD.size <= len(data):
        seconds, micros, here, wire = RECORD.unpack_from(data, place)
        assert here == wire and micros < 1000000
        place += RECORD.size
        if place + here > len(data):
            break
        found.append((seconds + micros / 1e6, data[place:place + here]))
        place += here
    return found


@pytest.fixture
def wired(pair):
    """A daemon and two containers that see each other, without frames of their kernels."""
    daemon, a, b = pair
    silence(a, b)
    join(a, daemon, 'vxvde://', '10.0.0.1/24', mtu=9000)
    join(b, daemon, 'vxvde://', '10.0.0.2/24', mtu=9000)
    return daemon, a, b


# ---- the list -----------------------------------------------------------------------------------

def test_where_there_is_nothing_the_list_is_its_header(host, new_daemon):
    daemon = new_daemon(host)
    done = ask(daemon, '--list')
    assert done.stdout.split()[:3] == ['PID', 'OWNER', 'INTERFACE']
    assert (done.stdout.count('\n'), done.stderr, listed(daemon)) == (1, '', {})


def test_a_session_tells_who_it_is_for_and_what_it_carried(wired):
    daemon, a, b = wired
    before = time.time()
    a.ping('10.0.0.2', count=20)
    for container in a, b:
        facts = only(listed(daemon), container=inode(container))
        assert facts['pid'] in daemon.pids()
        assert (facts['interface'], facts['state'], facts['vnl']) == ('vde0', 'up', 'vxvde://')
        assert (facts['owner'], facts['uid'], facts['gid']) == (os.geteuid(), 0, 0)
        assert facts['daemon'] == daemon.socket and before - 60 < facts['since'] <= time.time()
        assert '(vde0, pid %d ' % facts['client'] in daemon.log()
        assert tallies(facts) == counters(container)
        assert facts['out_frames'] >= 21 and facts['in_drops'] == facts['out_drops'] == 0
    lines = ask(daemon, '--list').stdout.splitlines()
    assert len(lines) == 3 and all('vxvde://' in line for line in lines[1:])
    ends = [re.search(r'IN-FRAMES', lines[0]).end()]
    assert all(line[end - 1].isdigit() and line[end] == ' ' for line in lines[1:] for end in ends)


def test_a_new_name_is_shown_and_taken(pair):
    daemon, a, _ = pair
    join(a, daemon, 'null://')
    a.ip('link set vde0 down')
    a.ip('link set vde0 name new7')
    assert only(listed(daemon))['interface'] == 'new7'
    assert 'vde0: no session has this' in failing(daemon, '--close', 'vde0')
    ask(daemon, '--close', 'new7')
    wait_until(lambda: 'new7' not in a.interfaces())


def test_drops_are_counted_on_the_way_that_they_were_on(wired):
    daemon, a, b = wired
    b.ip('link set vde0 down')
    port = RawPort(a, 'vde0')
    port.send(*[frame(source=1)] * 7)
    pid = only(listed(daemon), container=inode(b))['pid']
    wait_until(lambda: listed(daemon)[pid]['in_drops'] == 7)
    with daemon.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b'no frame', ('239.0.0.1', 14789))
    wait_until(lambda: listed(daemon)[pid]['in_drops'] == 8)
    assert listed(daemon)[pid]['out_drops'] == 0
    port.close()


def test_numbers_and_the_session_survive_the_network(pair, tmp_path, closing):
    """A switch that is killed and started again; meanwhile the keeper answers, and may be asked."""
    daemon, a, _ = pair
    silence(a)
    switch = closing(Switch(tmp_path / 'ctl', tmp_path / 'management'))
    join(a, daemon, 'vde://%s' % switch.path, '10.0.0.1/24')
    pid = session_pid(daemon)
    port = closing(RawPort(a, 'vde0'))
    capture = Capture(daemon, str(pid), tmp_path).runs(a)
    port.send(*[frame(100)] * 5)
    wait_until(lambda: tallies(listed(daemon)[pid]) == counters(a))
    before = listed(daemon)[pid]
    switch.kill()
    waiting = wait_until(lambda: another(daemon, pid))
    facts = listed(daemon)[waiting]
    assert facts['interface'] == 'vde0' and facts['out_frames'] >= before['out_frames']
    assert (facts['state'], facts['since']) == ('waiting', before['since'])
    switch.restart()
    pid = wait_until(lambda: another(daemon, waiting))
    assert state(daemon, pid) == 'up'

    def captured_again():
        port.send(frame(200))
        return frame(200) in capture.ours()
    wait_until(captured_again)
    assert capture.ours().count(frame(100)) == 5
    wait_until(lambda: tallies(listed(daemon)[pid]) == counters(a))
    assert capture.end() == ''
    switch.kill()
    waiting = wait_until(lambda: another(daemon, pid))
    ask(daemon, '--close', str(waiting))
    assert daemon.pids() == [daemon.process.pid]


def test_numbers_survive_where_the_keeper_ends_the_relay(pair, tmp_path):
    daemon, a, b = pair
    silence(a, b)
    for each, address in (a, '10.0.0.1/24'), (b, '10.0.0.2/24'):
        join(each, daemon, 'ptp://%s' % (tmp_path / 'link'), address)
    a.ping('10.0.0.2')
    pid = only(listed(daemon), container=inode(a))['pid']
    ask(daemon, '--close', str(only(listed(daemon), container=inode(b))['pid']))
    wait_until(lambda: 'network gone' in daemon.log())
    wait_until(lambda: state(daemon, pid) in ('waiting', 'up'))
    assert tallies(listed(daemon)[pid]) == counters(a)


@pytest.mark.parametrize('vnl', ['null://', 'hub://{}/node', 'vxvde://'])
def test_who_is_kept_from_answering_is_shown_so_and_can_be_closed(pair, tmp_path, vnl):
    """Root in a container has the TAP, too, and makes the session's read wait for a frame."""
    daemon, a, b = pair
    holder = a.popen(PYTHON, BY_HAND, daemon.socket, 'hold', vnl.format(tmp_path),
                     stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b'"0\\u0000"\n'
    a.ip('link set hold0 up')
    port, pid = RawPort(a, 'hold0'), only(listed(daemon))['pid']

    def hangs():
        port.send(*[frame()] * 100)         # so many that a quiet relay is none any more
        return state(daemon, pid) == 'no answer'
    wait_until(hangs)
    port.close()
    if vnl == 'null://':                    # a new daemon does not wait for it
        assert 'to be named by process id: %d' % pid in failing(daemon, '--close', 'hold0')
        assert 'does not answer' in failing(daemon, '--capture', str(pid), '-w', '-')
        daemon.stop()
        started = time.monotonic()
        daemon.start()
        join(b, daemon, 'null://')
        assert time.monotonic() - started < 3
        ask(daemon, '--close', 'vde0')
    ask(daemon, '--close', str(pid))
    assert sorted(daemon.pids()) == sorted([daemon.process.pid, holder.pid])
    assert not os.path.exists(str(tmp_path / 'node'))


def test_a_list_that_cannot_be_written_is_one_line(pair):
    daemon, a, _ = pair
    join(a, daemon, 'null://')
    for redirect, reason in ('> /dev/full', 'No space left on device'), ('>&-', 'Bad file desc'):
        for option in '', ' --json':
            done = daemon.host.run('sh', '-c', '%s %s --list%s %s' % (
                PYTHON, DAEMON, option, redirect), check=False)
            assert (done.returncode, done.stdout) == (1, '')
            assert done.stderr.startswith('vdelxcd: output: ' + reason)
            assert done.stderr.count('\n') == 1


# ---- an end -------------------------------------------------------------------------------------

def test_closing_by_pid_and_by_name(pair, tmp_path):
    daemon, a, b = pair
    # a client with settings waits until nobody has its connection any more: neither has the relay
    a.client('-s', daemon.socket, '-a', '10.0.0.1/24', 'hub://%s' % (tmp_path / 'node'))
    join(b, daemon, 'null://')
    first, second = sorted(listed(daemon))
    assert failing(daemon, '--close', 'vde0').endswith(': %d, %d\n' % (first, second))
    assert failing(daemon, '--close', 'vde').startswith('vdelxcd: vde: no session has this')
    assert len(daemon.pids()) == 4
    done = ask(daemon, '--close', str(first))
    assert done.stdout == done.stderr == ''
    assert sorted(daemon.pids()) == sorted([daemon.process.pid, second]), 'at once, and no later'
    assert not os.path.exists(str(tmp_path / 'node')) and 'vde0' not in a.interfaces()
    ask(daemon, '--close', 'vde0')
    assert daemon.pids() == [daemon.process.pid]
    assert daemon.log().count('closed by request') == 2


# ---- frames -------------------------------------------------------------------------------------

@pytest.mark.parametrize('more', [(), ('--offload',)])
def test_captured_frames_are_those_that_were_sent_byte_for_byte(pair, tmp_path, closing, more):
    """Both ways, tagged or not, short and long, alone and in bursts; to two at once."""
    daemon, a, b = pair
    silence(a, b)
    for each in a, b:
        each.client('-s', daemon.socket, '--mtu', '9000', '--up', *more + ('vxvde://',))
    session = str(only(listed(daemon), container=inode(a))['pid'])
    captures = [Capture(daemon, session, tmp_path).runs(a) for _ in range(2)]
    there, here = closing(RawPort(b, 'vde0')), closing(RawPort(a, 'vde0'))
    sent = []
    for round in range(4):
        for source, port in (1, here), (2, there):
            lot = [frame(length, source=source, tags=tags, seed=round)
                   for length in (60, 61, 1514, 9014) for tags in ((), [(0x8100, 7)])]
            port.send(*lot * (1 + round))
            sent += lot * (1 + round)
    for capture in captures:
        wait_until(lambda: len(capture.ours()) >= len(sent))
        assert sorted(capture.ours()) == sorted(sent)
        for source in 1, 2:
            mine = [each for each in sent if each[6:12] == peers.mac(source)]
            assert [each for each in capture.ours() if each[6:12] == peers.mac(source)] == mine
        times = [when for when, _ in capture.frames()]
        assert times == sorted(times) and time.time() - 30 < times[0] <= times[-1] <= time.time()
        assert capture.end() == ''


def test_tcpdump_reads_it_live_and_may_leave(wired, tmp_path):
    require('tcpdump')
    daemon, a, _ = wired
    session = str(only(listed(daemon), container=inode(a))['pid'])
    shell = ('%s %s --capture %s | tcpdump --immediate-mode -lnr - -c 3 icmp; '
             'echo ${PIPESTATUS[*]}' % (PYTHON, DAEMON, session))
    piped = daemon.host.popen('bash', '-c', shell, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, universal_newlines=True)

    def done():
        a.ping('10.0.0.2')
        return piped.poll() is not None
    wait_until(done)
    said, complaints = piped.communicate()
    assert said.count('ICMP echo') == 3 and said.endswith('\n0 0\n'), said + complaints
    assert 'Traceback' not in complaints and 'vdelxcd' not in complaints
    a.ping('10.0.0.2')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_reader_that_stopped_misses_frames_and_nobody_else_does(wired, tmp_path, number):
    """The queue has its bound, and so has what the session keeps; how many is told at the end."""
    daemon, a, b = wired
    pid = only(listed(daemon), container=inode(a))['pid']
    capture = Capture(daemon, str(pid), tmp_path).runs(a)
    os.kill(capture.process.pid, signal.SIGSTOP)
    port, lot = RawPort(a, 'vde0'), [frame(9014, seed=seed) for seed in range(50)]
    session = connected(daemon, pid)

    def out():
        session.send(b'status')
        return int(re.search(b'out_frames=([0-9]+)', session.recv(8192)).group(1))
    first = out()
    for _ in range(60):                     # 27 MB, more than any queue takes
        before = out()
        port.send(*lot)
        wait_until(lambda: out() >= before + 40)
    assert memory(pid) < 40000
    a.ping('10.0.0.2')
    os.kill(capture.process.pid, signal.SIGCONT)
    said = capture.end(number)
    told = re.match(r'vdelxcd: the reader was too slow: (\d+) frames left out\n$', said)
    assert told, said
    # before the first of them runs() sent some, and the ping more
    assert len(capture.ours()) + int(told.group(1)) >= out() - first - 10
    assert len(capture.frames()) + int(told.group(1)) <= sum(
        listed(daemon)[pid][key] for key in ('in_frames', 'out_frames'))
    port.close()


def connected(daemon, pid):
    """A connection to a session, at the socket of its process that listens."""
    table = daemon.host.run('cat', '/proc/net/unix').stdout
    name, = [name for inode, name in re.findall(r' 00010000 \S+ \S+ +(\d+) @(vdelxcd/\S+)', table)
             if 'socket:[%s]' % inode in fds(pid)]
    sock = daemon.host.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect('\0' + name)
    return sock


def memory(pid):
    """The resident memory of a process in kB."""
    with open('/proc/%d/status' % pid) as file:
        return int(re.search(r'VmRSS:\s*(\d+)', file.read()).group(1))


def test_a_capture_that_can_not_be_written_is_one_line(wired, tmp_path):
    daemon, a, _ = wired
    pid = only(listed(daemon), container=inode(a))['pid']
    assert '/dev/full: No space left' in failing(daemon, '--capture', str(pid), '-w', '/dev/full')
    assert '/no/file: No such file' in failing(daemon, '--capture', str(pid), '-w', '/no/file')
    closed = ask(daemon, '--capture', pid, check=False, before=('sh', '-c', 'exec "$@" >&-', 'sh'))
    assert (closed.returncode, closed.stderr) == (1, 'vdelxcd: output: Bad file descriptor\n')
    primary, secondary = pty.openpty()
    process = daemon.host.popen(PYTHON, DAEMON, '--capture', pid, stdout=secondary,
                                stderr=subprocess.PIPE, universal_newlines=True)
    said = process.communicate(timeout=10)[1]
    assert process.returncode == 1 and 'not to a terminal: name a file with -w' in said
    assert said.count('\n') == 1
    os.close(primary)
    os.close(secondary)
    capture = Capture(daemon, str(pid), tmp_path).runs(a)
    ask(daemon, '--close', str(pid))
    assert capture.process.communicate(timeout=10)[1] == '' and capture.process.returncode == 0


# ---- who may not --------------------------------------------------------------------------------

@as_root
def test_another_user_of_the_host_learns_nothing_and_ends_nothing(wired, closing):
    require('setpriv')
    place = closing(peers.Place())          # a copy of the script that anybody can read
    daemon, a, b = wired
    table, sessions = daemon.host.run('cat', '/proc/net/unix').stdout, listed(daemon)
    names = re.findall(r'@vdelxcd/\S+', table)
    assert len(set(names)) == 2
    code = ("import socket, sys\n"
            "for name in sys.argv[1:]:\n"
            "    for word in b'status', b'close', b'capture':\n"
            "        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "        s.settimeout(5)\n"
            "        s.connect('\\0' + name[1:])\n"
            "        try:\n"
            "            s.send(word)\n"
            "            print(s.recv(100))\n"
            "        except ConnectionError:\n"
            "            print(b'')\n")
    said = daemon.host.run(*USER, ANYBODYS, '-c', code, *sorted(set(names))).stdout
    assert said == "b''\n" * 6
    script = USER + [ANYBODYS, place.daemon]
    done = daemon.host.run(*script, '--list')
    assert done.stdout.count('\n') == 1 and done.stderr == ''
    for pid in sessions:
        done = daemon.host.run(*script, '--close', pid, check=False)
        assert done.returncode == 1 and 'no session' in done.stderr
    a.ping('10.0.0.2')
    assert set(listed(daemon)) == set(sessions)


@as_root
def test_a_flood_of_connections_does_not_stop_relay_or_list(wired):
    require('setpriv')
    daemon, a, b = wired
    pids = set(listed(daemon))
    code = ("import re, socket\n"
            "names = re.findall(r'@(vdelxcd/\\S+)', open('/proc/net/unix').read())\n"
            "print('ready', flush=True)\n"
            "while True:\n"
            "    kept = []\n"
            "    for name in names * 20:\n"
            "        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
            "        s.setblocking(False)\n"
            "        try:\n"
            "            s.connect('\\0' + name)\n"
            "            kept.append(s)\n"
            "        except OSError:\n"
            "            s.close()\n")
    flood = daemon.host.popen(*USER, ANYBODYS, '-c', code, stdout=subprocess.PIPE)
    assert flood.stdout.readline() == b'ready\n'
    for _ in range(2):
        a.ping('10.0.0.2', count=10)
        assert {each['state'] for each in listed(daemon).values()} == {'up'}
        assert set(listed(daemon)) == pids
    flood.kill()


@as_root
def test_who_squats_the_names_deceives_nobody(pair, tmp_path):
    """Fakes that say nothing, too much, nonsense, or that they are another's interface."""
    require('setpriv')
    daemon, a, _ = pair
    join(a, daemon, 'null://')
    mine = session_pid(daemon)
    lies = ['interface=vde0', 'pid=%d' % mine, 'owner=0', 'state=\x1b[31mup\n',
            'since=' + '9' * 20, 'in_frames=' + '9' * 5000, 'out_frames=-1', 'in_bytes=x',
            'vnl=\xff\xfe', 'odd=1', '=', 'daemon=' + daemon.socket, 'container=\x00\x00']
    fakes = []
    for index, kind in enumerate(['silent', 'say', 'much']):
        fake = daemon.host.popen(*USER, ANYBODYS, '-c', FAKE, '%d-%d' % (mine, index), kind,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        fake.stdin.write('\0'.join(lies).encode('latin-1'))
        fake.stdin.close()
        assert fake.stdout.readline() == b'ready\n'
        fakes.append(fake)
    odd = daemon.host.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    odd.bind(b'\0vdelxcd/1\n0: 00000002 00000000 00010000 0005 01 1 @vdelxcd/1-\xff')
    odd.listen(1)
    started = time.monotonic()
    done = ask(daemon, '--list')
    assert time.monotonic() - started < 3 and done.stderr == ''
    assert re.match(r'[ -~\n]*\Z', done.stdout)
    for line in done.stdout.splitlines()[1:]:
        assert int(line.split()[1]) == (0 if line.split()[0] == str(mine) else 4711)
    found = listed(daemon)
    assert len(found) == 4 and found[mine]['state'] == 'up' and found[mine]['owner'] == 0
    for facts in found.values():
        assert 'odd' not in facts and all(
            isinstance(facts[key], int) for key in ('in_frames', 'out_frames') if key in facts)
    ask(daemon, '--close', 'vde0')          # a name means ours
    assert daemon.pids() == [daemon.process.pid]
    assert all(fake.poll() is None for fake in fakes)
    assert 'vde0: no session' in failing(daemon, '--close', 'vde0')
    odd.close()
    daemon.stop()
    started = time.monotonic()
    daemon.start()
    join(a, daemon, 'null://')
    assert time.monotonic() - started < 3
    for fake in fakes:
        fake.kill()


def test_a_container_of_its_own_network_can_not_reach_a_session(wired):
    daemon, a, _ = wired
    assert '@vdelxcd/' in daemon.host.run('cat', '/proc/net/unix').stdout
    assert '@vdelxcd/' not in a.run('cat', '/proc/net/unix').stdout
    done = a.run(PYTHON, DAEMON, '--list')
    assert done.stdout.count('\n') == 1


# Sockets with names like sessions', which nobody answers on; the queues of some are full.
CROWD = r"""
import os, resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
kept = []
def new():
    kept.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    return kept[-1]
for number in range(1500):
    name = '\0vdelxcd/%d-%016x' % (os.getpid(), number)
    new().bind(name)
    kept[-1].listen(0)
    if number % 2:
        new().connect(name)
print(flush=True)
time.sleep(600)
"""


@as_root
def test_a_crowd_of_another_users_sockets_hides_no_session_and_keeps_nobody_waiting(
        wired, new_container, closing):
    daemon, a, b = wired
    crowd = daemon.host.popen(*USER, ANYBODYS, '-c', CROWD, stdout=-1)
    closing(crowd.stdout)
    assert crowd.stdout.readline()
    daemon.stop()
    daemon.start()                          # looks for what the last one left
    started = time.monotonic()
    new_container().client('-s', daemon.socket, 'null://')
    sessions = [each for each in listed(daemon).values() if each['owner'] == 0]
    assert [each['state'] for each in sessions] == ['up'] * 3
    assert time.monotonic() - started < 6   # 1 s at the start; 1 s for ours, 1 s for the others


@as_root
def test_the_root_of_a_user_namespace_on_the_hosts_network_is_nobody_here(wired):
    daemon, _, _ = wired
    code = 'unshare --user --map-root-user --mount %s %s --list' % (ANYBODYS, DAEMON)
    done = daemon.host.run(*USER, 'sh', '-c', 'cd /; ' + code, check=False)
    if done.returncode:
        pytest.skip('no user namespaces for users: ' + done.stderr)
    assert done.stdout.count('\n') == 1


def test_more_connections_than_a_session_takes(wired, vdelxcd):
    daemon, a, _ = wired
    pid = min(listed(daemon))
    conns = [connected(daemon, pid) for _ in range(vdelxcd.Control.CONNECTIONS_MAX)]
    for conn in conns:
        conn.send(b'status')
        assert conn.recv(8192)
    assert state(daemon, pid) == 'busy'
    a.ping('10.0.0.2')
    conns.pop().close()
    wait_until(lambda: state(daemon, pid) == 'up')
    conns[-1].send(b'no such request')
    assert conns[-1].recv(100) == b''


# ---- a daemon after another ---------------------------------------------------------------------

def test_a_new_daemon_counts_what_an_earlier_one_left(host, new_container, new_daemon, tmp_path):
    daemon = new_daemon(host, '-v', '--max-sessions', '2')
    a, b, c = [new_container(name) for name in 'abc']
    join(a, daemon, 'null://')
    join(b, daemon, 'hub://%s' % (tmp_path / 'node'))
    daemon.stop(signal.SIGKILL)
    assert len(listed(daemon)) == 2
    daemon.start()
    assert os.strerror(122) in taken(c, daemon)
    assert 'there are 2 interfaces, and may be no more' in daemon.log()
    other = new_daemon(host, '-v', '--max-sessions', '1')
    join(c, other, 'null://')               # whose place is not this one's
    b.ip('link del vde0')
    wait_until(lambda: len(listed(daemon)) == 2)
    join(b, daemon, 'null://')
    assert os.strerror(122) in taken(a, daemon, '-i', 'vde1')


@as_root
@needs_all_pids
def test_a_new_daemon_ends_what_dead_containers_left(host, new_container, new_daemon):
    daemon, dead, living = new_daemon(host), new_container('dead'), new_container('living')
    join(dead, daemon, 'null://')
    join(living, daemon, 'null://')
    first = only(listed(daemon), container=inode(dead))['pid']
    daemon.stop(signal.SIGKILL)
    daemon.start()
    Container.close(dead)
    wait_until(lambda: 'session %d ended' % first in daemon.log(), timeout=14)
    assert 'vde0' in living.interfaces() and len(listed(daemon)) == 1
