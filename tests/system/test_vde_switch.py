"""vde://, against a real vde_switch and against a switch played by the test."""

import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time

import pytest

import peers
from conftest import require, wait_until
from peers import carrier, expect, frame, join, place, refused        # noqa: F401 (a fixture)


@pytest.fixture
def new_switch(closing, tmp_path):
    """new_switch(path, options ...) starts a vde_switch."""
    def start(path=None, *argv, **more):
        count = len(os.listdir(str(tmp_path)))
        return closing(peers.Switch(path or str(tmp_path / 'sw'),
                                    str(tmp_path / ('management%d' % count)), *argv, **more))
    return start


def endpoints(switch):
    """The switch's ports: number -> the description of who is there."""
    found, port = {}, None
    for line in switch.ask('port/print').splitlines():
        match = re.match(r'Port (\d+)', line)
        port = int(match.group(1)) if match else port
        match = re.match(r'\s+-- endpoint ID \d+ module (.*)', line)
        if match:
            found.setdefault(port, []).append(match.group(1))
    return found


def test_containers_and_vde_plug_meet_on_a_switch(pair, new_switch, new_container):
    daemon, a, b = pair
    switch, c = new_switch(), new_container('c')
    join(a, daemon, 'vde://' + switch.path, '10.0.0.1/24', name='lan0')
    join(b, daemon, switch.path + '[9]', '10.0.0.2/24')
    peers.plug_in(c, 'vde://' + switch.path, '10.0.0.3/24')
    a.ping('10.0.0.2')
    a.ping('10.0.0.3')
    c.ping('10.0.0.2')
    ports = endpoints(switch)
    assert len(ports) == 3 and len(ports[9]) == 1
    mine = [text for texts in ports.values() for text in texts if 'vdelxcd' in text]
    assert len(mine) == 2
    assert 'vde0' in ports[9][0] and 'uid 0' in ports[9][0]
    assert sum('lan0' in text for text in mine) == 1
    assert all(re.search(r'pid \d+', text) for text in mine)
    assert [name for name in os.listdir(switch.path) if name.startswith('.')] == []


@pytest.mark.parametrize('text', ['[port=7]', '[7]', '[po=7]'])
def test_a_port_is_the_port_that_was_asked_for(host, new_container, new_daemon, new_switch, text):
    daemon, a, switch = new_daemon(host), new_container('a'), new_switch()
    join(a, daemon, 'vde://' + switch.path + text)
    assert list(endpoints(switch)) == [7]


def test_bulk_passes_a_switch_unchanged(pair, new_switch):
    daemon, a, b = pair
    switch = new_switch()
    join(a, daemon, 'vde://' + switch.path, '10.0.0.1/24')
    join(b, daemon, 'vde://' + switch.path, '10.0.0.2/24')
    peers.transfer(a, b, '10.0.0.2')
    peers.transfer(b, a, '10.0.0.1')


def test_default_paths_in_the_home_directory(host, new_container, closing, tmp_path_factory,
                                             new_switch, tmp_path):
    home, c = tmp_path_factory.mktemp('home'), new_container('c')
    daemon = closing(peers.start_daemon(host, tmp_path_factory.mktemp('vde'), '-v',
                                        before=['env', 'HOME=%s' % home]))
    (home / '.vdeplug').mkdir()
    (home / '.vde2').mkdir()
    second = new_switch(str(home / '.vde2' / 'default.switch'))
    join(c, daemon, 'vde://', name='two0')
    first = new_switch(str(home / '.vdeplug' / 'default'))
    join(c, daemon, 'vde://', name='one0')
    join(c, daemon, 'vde://[3]', name='one3')
    assert [text for texts in endpoints(second).values() for text in texts if 'two0' in text]
    assert 'one3' in endpoints(first)[3][0] and len(endpoints(first)) == 2


def test_default_paths_of_the_system(host, new_container, closing):
    """In a mount namespace of its own: the machine's /run and /tmp are not touched."""
    require('unshare', 'nsenter')
    # Not below /tmp nor /run, which others have in that namespace.
    place = closing(peers.Place('/var/tmp'))
    hidden = closing(peers.Switch(
        '/tmp/vde.ctl', place.join('m1'),
        before=['unshare', '-m', 'sh', '-c', 'mount -t tmpfs none /tmp && '
                'mount -t tmpfs none $(readlink -f /var/run) && exec "$@"', '-']))
    inside = ['nsenter', '--mount=/proc/%d/ns/mnt' % hidden.process.pid]
    c = new_container('c')
    daemon = closing(peers.start_daemon(host, place.path, script=place.daemon,
                                        before=inside + ['env', 'HOME=/nowhere']))
    join(c, daemon, 'vde://', name='tmp0')
    assert 'tmp0' in str(endpoints(hidden))
    run = closing(peers.Switch('/var/run/vde.ctl', place.join('m2'), before=inside))
    join(c, daemon, 'vde://', name='run0')
    assert 'run0' in str(endpoints(run)) and 'run0' not in str(endpoints(hidden))


def as_user(name):
    """A command line that becomes a user without anything that root may."""
    require('setpriv')
    become = ['setpriv', '--reuid=' + name, '--regid=nogroup', '--clear-groups',
              '--no-new-privs', '--inh-caps=-all']
    if subprocess.call(become + peers.python('-c', ''), stderr=subprocess.DEVNULL):
        pytest.skip('the user %s cannot run %s' % (name, peers.PYTHON))
    return become


@pytest.mark.parametrize('switch_user, daemon_user', [
    ('nobody', None), ('nobody', 'nobody'), ('daemon', 'nobody'), (None, 'nobody')])
def test_a_switch_of_another_user(host, new_container, closing, place, new_switch,
                                  switch_user, daemon_user):
    switch = closing(peers.Switch(
        place.join('sw'), place.join('management'), '--mode', '777', '--dirmode', '777',
        before=as_user(switch_user) if switch_user else ()))
    daemon = closing(peers.start_daemon(
        host, place.path, '-v', '-m', '777', script=place.daemon,
        before=as_user(daemon_user) if daemon_user else ()))
    a, b = new_container('a'), new_container('b')
    join(a, daemon, 'vde://' + switch.path, '10.0.0.1/24')
    join(b, daemon, 'vde://' + switch.path, '10.0.0.2/24')
    a.ping('10.0.0.2')
    b.ping('10.0.0.1')
    assert len(endpoints(switch)) == 2


# ---- a switch that is played --------------------------------------------------------------------

class PlayedSwitch:
    """A control socket that takes one request and tells what it saw."""

    def __init__(self, path, name='ctl', backlog=5, delay=0, data='data', mutual=False):
        os.makedirs(path, exist_ok=True)
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.path.join(path, name))
        self.listener.listen(backlog)
        self.delay = delay
        self.listener.settimeout(10)
        self.data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.mutual = mutual                # is the data socket connected to who joined, too?
        self.data_path = os.path.join(path, data)
        self.data.bind(self.data_path)
        self.seen = []
        self.answers = True
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        time.sleep(self.delay)              # a switch that has no time
        while True:
            try:
                conn = self.listener.accept()[0]
                request = conn.recv(4096)
                if not request:
                    continue
                name = request[14:122].partition(b'\0')[0]
                self.seen.append((request, os.fsdecode(name), os.stat(name), conn))
                if self.answers is True:
                    if self.mutual:
                        self.data.connect(name)
                    conn.send(peers.SOCKADDR_UN.pack(1, os.fsencode(self.data_path)))
                elif self.answers is False:
                    conn.close()
                else:
                    conn.send(self.answers)
            except OSError:
                return

    def close(self):
        self.listener.close()
        self.data.close()
        for _, _, _, conn in self.seen:
            conn.close()
        shutil.rmtree(self.path, ignore_errors=True)


@pytest.fixture
def played(closing, tmp_path):
    return closing(PlayedSwitch(str(tmp_path / 'played')))


TOLD = [                                # options of the VNL -> type, mode and group of our socket
    ('', 0, 0o700, 0), ('[5]', 5 << 8, 0o700, 0), ('[port=65536]', 65536 << 8, 0o700, 0),
    ('[mode=770]', 0, 0o770, 0), ('[group=12345]', 0, 0o700, 12345),
    ('[3/mode=0710/group=12345]', 3 << 8, 0o710, 12345)]


def test_what_a_switch_is_told(host, new_container, new_daemon, played):
    daemon, c = new_daemon(host), new_container('c')
    for count, (options, kind, mode, group) in enumerate(TOLD):
        join(c, daemon, 'vde://' + played.path + options, name='vde%d' % count)
        request, name, status, _ = played.seen[count]
        assert struct.unpack('=III', request[:12]) == (0xfeedface, 3, kind), options
        assert struct.unpack('=H', request[12:14]) == (socket.AF_UNIX,)
        assert re.match(r'\.\d{5,}-\d{5}$', os.path.basename(name))
        assert os.path.dirname(name) == played.path
        assert request[14 + len(name):122].strip(b'\0') == b''
        text = request[122:]
        assert text.startswith(b'vdelxcd vde%d' % count) and len(text) <= 128 and b'\0' not in text
        assert stat.S_ISSOCK(status.st_mode) and stat.S_IMODE(status.st_mode) == mode, options
        assert status.st_gid == group, options
        assert not os.path.exists(name), 'the name goes once both are connected'


def test_a_port_group_is_a_socket_beside_ctl(host, new_container, new_daemon, closing, tmp_path):
    daemon, c = new_daemon(host), new_container('c')
    path = str(tmp_path / 'sw')
    plain, special = closing(PlayedSwitch(path)), None
    os.unlink(path + '/data')
    special = closing(PlayedSwitch(path, name='blue'))
    for text, target in ('[blue]', special), ('[portgroup=blue]', special), ('[green]', plain):
        join(c, daemon, 'vde://%s%s' % (path, text), name='x%s' % 'abc'[len(c.interfaces()) - 1]
             + str(len(c.interfaces())))
        wait_until(lambda: target.seen)
    assert (len(special.seen), len(plain.seen)) == (2, 1)


def test_frames_are_datagrams_both_ways(host, new_container, new_daemon, played, closing):
    daemon, c = new_daemon(host), new_container('c')
    join(c, daemon, 'vde://' + played.path, mtu=9200)
    port = closing(peers.RawPort(c, 'vde0'))
    session = played.data
    for length in 60, 1514, 9018:
        port.send(frame(length, seed=length))
        while True:                         # the stack of the container says something too
            data, address = session.recvfrom(20000)
            if data == frame(length, seed=length):
                break
            assert not peers.is_test_frame(data)
    # The session's socket has lost its name, and the answer still finds it: by connection only.
    assert os.path.exists(played.path + '/data')
    session_name = played.seen[0][1]
    assert not os.path.exists(session_name)


@pytest.mark.parametrize('name, least, most', [('data', 20, 60), ('fd3', 300, 400)])
def test_what_waits_for_a_switch_is_less_than_it_has_room_for(
        host, new_container, new_daemon, closing, tmp_path, name, least, most):
    """A vde_switch drops what does not fit on the way to a port (93 frames); a node has room."""
    daemon, c = new_daemon(host), new_container('c')
    played = closing(PlayedSwitch(str(tmp_path / 'played'), data=name, mutual=True))
    join(c, daemon, 'vde://' + played.path)
    port = closing(peers.RawPort(c, 'vde0'))
    port.send(*[frame(1514, seed=seed) for seed in range(300)])
    time.sleep(1)
    played.data.setblocking(False)
    waiting = 0
    try:
        while True:
            waiting += peers.is_test_frame(played.data.recv(20000))
    except BlockingIOError:
        pass
    assert least <= waiting <= most


def test_a_switch_that_answers_badly_is_refused(host, new_container, new_daemon, played):
    daemon, c = new_daemon(host), new_container('c')
    for played.answers, number, words in [
            (False, 111, 'let us not in'),
            (struct.pack('=H108s', 2, b'/x'), 71, 'not a sockaddr_un'),
            (b'\x01\x00/half', 110, 'no answer')]:
        line, logged = refused(c, daemon, 'vde://' + played.path)
        assert os.strerror(number) in line and words in logged and played.path in logged
    assert [name for name in os.listdir(played.path) if name.startswith('.')] == []


def test_a_switch_that_many_join_at_once_is_waited_for(host, new_container, new_daemon, closing,
                                                        tmp_path):
    daemon, c = new_daemon(host), new_container('c')
    played = closing(PlayedSwitch(str(tmp_path / 'sw'), backlog=0, delay=1))
    other = socket.socket(socket.AF_UNIX)
    other.connect(played.path + '/ctl')     # nobody else fits in until the switch has time
    other.close()
    join(c, daemon, 'vde://' + played.path)
    assert len(played.seen) == 1


# ---- coming and going ---------------------------------------------------------------------------

def test_an_interface_outlives_its_switch(pair, new_switch):
    daemon, a, b = pair
    switch = new_switch()
    join(a, daemon, 'vde://' + switch.path, '10.0.0.1/24', '2001:db8::1/64')
    join(b, daemon, 'vde://%s[4]' % switch.path, '10.0.0.2/24')
    a.ping('10.0.0.2')
    before = a.ip('-o addr show vde0').stdout
    assert carrier(a) and carrier(b)
    killed = time.monotonic()
    switch.kill()
    wait_until(lambda: not carrier(a) and not carrier(b), what='NO-CARRIER')
    assert time.monotonic() - killed < 1
    assert '10.0.0.1/24' in a.ip('-o addr show vde0').stdout
    assert '2001:db8::1/64' in a.ip('-o addr show vde0').stdout
    switch.restart()
    back = time.monotonic()
    wait_until(lambda: a.run('ping', '-c1', '-W1', '10.0.0.2', check=False).returncode == 0)
    assert time.monotonic() - back < 6
    wait_until(lambda: carrier(a) and carrier(b))
    assert [line.split()[3] for line in a.ip('-o addr show vde0').stdout.splitlines()] == \
        [line.split()[3] for line in before.splitlines()]
    assert 4 in endpoints(switch), 'the port that was asked for is asked for again'
    assert daemon.log().count('network gone') == 2 and daemon.log().count('network back') == 2


def test_a_stopped_interface_ends_while_it_waits(host, new_container, new_daemon, new_switch):
    daemon, c, switch = new_daemon(host), new_container('c'), new_switch()
    join(c, daemon, 'vde://' + switch.path)
    switch.kill()
    wait_until(lambda: not carrier(c))
    c.ip('link del vde0')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    assert 'internal error' not in daemon.log()


def test_frames_written_while_the_switch_is_away_are_dropped_and_harm_nothing(
        host, new_container, new_daemon, new_switch, closing):
    daemon, c, switch = new_daemon(host), new_container('c'), new_switch()
    join(c, daemon, 'vde://' + switch.path, '10.0.0.1/24')
    peers.plug_in(new_container('d'), 'vde://' + switch.path)
    switch.kill()
    wait_until(lambda: not carrier(c))
    port = closing(peers.RawPort(c, 'vde0'))
    for seed in range(1000):
        try:
            port.send(frame(seed=seed))
        except OSError:                     # the kernel's own answer: the link is down
            pass
    switch.restart()
    wait_until(lambda: carrier(c), timeout=6)
    far = peers.Member(switch.path)
    closing(far)
    port.send(frame(seed=5000))
    expect(far, frame(seed=5000))


def test_a_switch_that_stands_still_holds_up_nothing(pair, new_switch, closing):
    daemon, a, b = pair
    switch = new_switch()
    join(a, daemon, 'vde://' + switch.path, '10.0.0.1/24')
    join(b, daemon, 'vde://' + switch.path, '10.0.0.2/24')
    a.ping('10.0.0.2')
    switch.process.send_signal(signal.SIGSTOP)
    port = closing(peers.RawPort(a, 'vde0'))
    started = time.monotonic()
    port.send(*[frame(1514, seed=seed) for seed in range(3000)])
    a.ip('link del vde0')
    wait_until(lambda: len(peers.session_pids(daemon)) == 1, timeout=3, what='the session ends')
    assert time.monotonic() - started < 4
    assert carrier(b)
    switch.process.send_signal(signal.SIGCONT)
    join(a, daemon, 'vde://' + switch.path, '10.0.0.1/24')
    b.ip('neigh flush dev vde0')
    b.ping('10.0.0.1')


# ---- errors -------------------------------------------------------------------------------------

ERRORS = [                              # VNL -> errno, words of the log line
    ('vde:///nowhere/sw', 2, '/nowhere/sw: No such file or directory'),
    ('/nowhere/sw', 2, '/nowhere/sw: No such file or directory'),
    ('vde:///etc/passwd', 20, 'Not a directory'),
    ('vde:///tmp[speed=3]', 22, 'no option speed'),
    ('vde:///tmp[port=x]', 22, 'option port: x is not a decimal number'),
    ('vde:///tmp[mode=9]', 22, 'option mode: 9 is not an octal mode'),
    ('vde:///tmp[group=no-such-group]', 22, 'no-such-group is not a group'),
    ('vde:///tmp[3', 22, '[ without ]'),
    ('vde:///tmp[3/4]', 22, 'option port given twice'),
    ('vde:///tmp[portgroup=..%2Fx]', 22, 'not a name'),
    ('vde:///' + 'x' * 120, 36, 'longer than 107 bytes')]


def test_errors_name_the_number_and_the_reason(host, new_container, new_daemon):
    daemon, c = new_daemon(host), new_container('c')
    for vnl, number, words in ERRORS:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line, vnl
        assert words in logged and vnl.replace('vde://', '') in logged, logged


def test_no_default_switch_is_no_such_file(host, new_container, closing, tmp_path_factory):
    if os.path.exists('/var/run/vde.ctl') or os.path.exists('/tmp/vde.ctl'):
        pytest.skip('this machine has a default switch')
    daemon = closing(peers.start_daemon(host, tmp_path_factory.mktemp('vde'), '-v',
                                        before=['env', 'HOME=/nowhere']))
    line, logged = refused(new_container('c'), daemon, 'vde://')
    assert os.strerror(2) in line and 'switch (default)' in logged


def test_a_switch_that_died_and_a_port_that_does_not_exist(host, new_container, new_daemon,
                                                           new_switch):
    daemon, c, switch = new_daemon(host), new_container('c'), new_switch()
    line, logged = refused(c, daemon, 'vde://' + switch.path + '[4000]')
    assert os.strerror(16) in line and 'port 4000 is taken or does not exist' in logged
    switch.kill()
    line, logged = refused(c, daemon, 'vde://' + switch.path)
    assert os.strerror(111) in line and 'Connection refused' in logged


def test_a_directory_that_may_not_be_entered(host, new_container, closing, place, tmp_path):
    switch = closing(peers.Switch(str(tmp_path / 'sw'), str(tmp_path / 'm')))
    daemon = closing(peers.start_daemon(host, place.path, '-m', '777', script=place.daemon,
                                        before=as_user('nobody')))
    line, logged = refused(new_container('c'), daemon, 'vde://' + switch.path)
    assert os.strerror(13) in line and switch.path in logged
    assert subprocess.call(['test', '-S', switch.path + '/ctl']) == 0
