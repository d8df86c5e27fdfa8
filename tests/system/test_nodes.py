"""hub://, switch://, multi://, bonding://: an interface that is a node which others join."""

import os
import signal
import socket
import stat
import struct
import subprocess
import time

import pytest

import peers
from conftest import wait_until
from peers import Member, RawPort, carrier, expect, frame, join, kill, refused, session_pid

ADDRESSES = '10.0.0.1/24', '10.0.0.2/24', '10.0.0.3/24'


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'node')


@pytest.fixture
def node(host, new_container, new_daemon, closing, path, tmp_path):
    """node(scheme, options) opens it for a container: (daemon, container, its raw port)."""
    def make(scheme, options=''):
        daemon, c = new_daemon(host), new_container('c')
        join(c, daemon, '%s://%s%s' % (scheme, path, options), mtu=9100)
        return daemon, c, closing(RawPort(c, 'vde0'))
    return make


@pytest.fixture
def members(closing, path, tmp_path):
    """members(count) joins the node that many times, by hand."""
    def make(count):
        return [closing(Member(path)) for _ in range(count)]
    return make


def gone(path):
    wait_until(lambda: not os.path.lexists(path), what='the directory is removed')


# ---- joining, and who takes over ----------------------------------------------------------------

@pytest.mark.parametrize('scheme', ['hub', 'switch'])
def test_containers_and_vde_plug_meet_at_a_node(pair, new_container, path, scheme):
    daemon, a, b = pair
    d = new_container('d')
    join(a, daemon, '%s://%s' % (scheme, path), ADDRESSES[0])
    join(b, daemon, '%s://%s' % (scheme, path), ADDRESSES[1])
    plug = peers.plug_in(d, 'vde://' + path, ADDRESSES[2])
    a.ping('10.0.0.2')
    b.ping('10.0.0.3')
    d.ping('10.0.0.1')
    peers.transfer(a, d, '10.0.0.3', 2 << 20)
    peers.transfer(d, b, '10.0.0.2', 2 << 20)
    assert len([name for name in os.listdir(path) if name.startswith('fd')]) == 2
    plug.kill()
    wait_until(lambda: len([name for name in os.listdir(path) if name.startswith('fd')]) == 1,
               what='the socket of a member goes with it')
    a.ping('10.0.0.2')
    b.ip('link del vde0')
    wait_until(lambda: os.listdir(path) == ['ctl'])
    a.ip('link del vde0')
    gone(path)


def test_a_node_of_the_library_is_joined(host, new_container, new_daemon, path):
    daemon, c, d = new_daemon(host), new_container('c'), new_container('d')
    peers.plug_in(d, 'hub://' + path, ADDRESSES[1])
    peers.plug_in(d, 'vde://' + path, name='other0')
    join(c, daemon, 'hub://' + path, ADDRESSES[0])
    c.ping('10.0.0.2')
    c.ip('link del vde0')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    assert os.path.exists(path + '/ctl'), 'it is not ours to remove'


@pytest.mark.parametrize('end', ['ip link del', 'SIGTERM', 'SIGKILL'])
def test_a_survivor_takes_over(host, new_container, new_daemon, path, end):
    daemon = new_daemon(host)
    a, b, c = [new_container(name) for name in 'abc']
    vnl = 'switch://' + path
    join(a, daemon, vnl, ADDRESSES[0])
    owner = session_pid(daemon)
    join(b, daemon, vnl, ADDRESSES[1])
    join(c, daemon, vnl, ADDRESSES[2])
    b.ping('10.0.0.3')
    ended = time.monotonic()
    if end == 'ip link del':
        a.ip('link del vde0')
    else:
        os.kill(owner, getattr(peers.signal, end))
    wait_until(lambda: not carrier(b) or not carrier(c), timeout=2, what='the owner is missed')
    wait_until(lambda: not b.run('ping', '-c1', '-W1', '10.0.0.3', check=False).returncode)
    assert time.monotonic() - ended < 6
    wait_until(lambda: 'vde0' not in a.interfaces())
    join(a, daemon, vnl, ADDRESSES[0])
    a.ping('10.0.0.2')
    for each in a, b, c:
        each.ip('link del vde0')
    gone(path)
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    assert 'internal error' not in daemon.log()


def test_many_ask_for_the_same_path_at_once(host, new_container, new_daemon, path):
    daemon, c = new_daemon(host), new_container('c')
    clients = [c.popen(*peers.python(peers.os.path.join(os.path.dirname(peers.DAEMON),
                                                        'vdelxcc.py'),
                                     '-s', daemon.socket, '-i', 'vde%d' % n, 'hub://' + path),
                       stderr=subprocess.PIPE) for n in range(8)]
    for client in clients:
        assert client.communicate(timeout=20)[1] == b'' and client.returncode == 0
    assert len([name for name in os.listdir(path) if name.startswith('fd')]) == 7
    for number in range(8):
        c.ip('link del vde%d' % number)
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    gone(path)


def test_a_directory_left_behind_is_taken_over(node, members, path, new_container):
    daemon, c, _ = node('hub', '[mode=0666/dirmode=0777]')
    members(2)
    kill(session_pid(daemon))
    assert sorted(os.listdir(path)) and 'ctl' in os.listdir(path)
    join(new_container('d'), daemon, 'hub://' + path)
    assert os.listdir(path) == ['ctl']
    members(1)
    kill(session_pid(daemon), peers.signal.SIGTERM)
    gone(path)


def snapshot(path):
    """Everything about a path that a refusal must not change."""
    found = []
    for place, directories, names in os.walk(path):
        for name in [''] + directories + names:
            status = os.lstat(os.path.join(place, name))
            found.append((place, name, status.st_ino, status.st_mode, status.st_gid,
                          status.st_mtime))
    return sorted(found)


def test_what_is_no_node_is_refused_and_untouched(host, new_container, new_daemon, tmp_path):
    daemon, c = new_daemon(host), new_container('c')
    for name, content in ('documents', 'letter'), ('dots', '.profile'), ('data', 'fd3'), \
            ('control', 'ctl'):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text('precious')
    (tmp_path / 'tree' / '.git').mkdir(parents=True)
    (tmp_path / 'file').write_text('precious')
    (tmp_path / 'link').symlink_to(str(tmp_path / 'tree'))
    before = snapshot(str(tmp_path))
    assert len(before) > 10
    for name, number in (('documents', 17), ('dots', 17), ('data', 17), ('control', 17),
                         ('tree', 17), ('file', 20), ('link', 20)):
        line, logged = refused(c, daemon, 'hub://%s/%s' % (tmp_path, name))
        assert os.strerror(number) in line, (name, line)
        assert 'node %s/%s: ' % (tmp_path, name) in logged
    assert snapshot(str(tmp_path)) == before


def test_errors(host, new_container, new_daemon, tmp_path):
    daemon, c = new_daemon(host), new_container('c')
    for vnl, number, words in [
            ('hub:///nowhere/node', 2, 'node /nowhere/node: No such file or directory'),
            ('switch://%s/x[port=3]' % tmp_path, 22, 'no option port'),
            ('multi://%s/x[mode=8]' % tmp_path, 22, '8 is not an octal mode'),
            ('bonding://%s/x[grp=no-such-group]' % tmp_path, 22, 'is not a group'),
            ('hub:///' + 'x' * 100, 36, 'longer than 107 bytes')]:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line and words in logged, logged
    assert os.listdir(str(tmp_path)) == []


# ---- permissions --------------------------------------------------------------------------------

MODES = [                               # options -> mode of ctl and fdN, of the directory; group
    ('', 0o600, 0o2700, None), ('[mode=0660]', 0o660, 0o2770, None),
    ('[mode=666]', 0o666, 0o2777, None),
    ('[mode=660/dirmode=0750/grp=12345]', 0o660, 0o750, 12345)]


def test_modes_and_groups_are_those_that_were_asked_for(host, new_container, new_daemon, path,
                                                        tmp_path, closing):
    daemon, c = new_daemon(host), new_container('c')
    for options, mode, directory_mode, group in MODES:
        join(c, daemon, 'switch://' + path + options)
        closing(Member(path))
        status = os.stat(path)
        if group is None:               # that of the relay
            group = peers.group_of(max(daemon.pids()))
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (directory_mode, group), options
        names = os.listdir(path)
        assert len(names) == 2
        for name in names:
            status = os.stat(os.path.join(path, name))
            assert (stat.S_IMODE(status.st_mode), status.st_gid) == (mode, group), (options, name)
        c.ip('link del vde0')
        gone(path)


# ---- what each kind does with frames ------------------------------------------------------------

def test_a_hub_gives_everything_to_everyone_else(node, members):
    _, _, port = node('hub')
    one, two, three = members(3)
    for length in 60, 1514, 9018:
        one.send(frame(length, seed=1))
        for each in two, three, port:
            expect(each, frame(length, seed=1))
        port.send(frame(length, source=9, seed=2))
        for each in one, two, three:
            expect(each, frame(length, source=9, seed=2))
    two.send(frame(source=2, target=1))
    expect(one, frame(source=2, target=1))
    expect(three, frame(source=2, target=1))
    expect(port, frame(source=2, target=1))


def test_multi_sends_to_all_and_members_do_not_hear_each_other(node, members):
    _, _, port = node('multi')
    one, two = members(2)
    one.send(frame(seed=1))
    expect(port, frame(seed=1))
    port.send(frame(seed=2))
    expect(one, frame(seed=2))
    expect(two, frame(seed=2))


def test_bonding_sends_to_the_members_in_turn(node, members):
    _, _, port = node('bonding')
    for seed in range(3):
        port.send(frame(seed=seed))         # nobody there: no harm
    one, two, three = everyone = members(3)
    sent = [frame(seed=seed) for seed in range(10, 40)]
    port.send(*sent)
    found = [[], [], []]

    def all_came():
        for frames, each in zip(found, everyone):
            frames += [data for data in each.frames(1, 0) if data in sent]
        return sum(map(len, found)) >= 30
    wait_until(all_came)
    assert sorted(sum(found, [])) == sorted(sent)
    assert all(7 <= len(frames) <= 13 for frames in found), 'the stack says something in between'
    one.send(frame(seed=50))
    expect(port, frame(seed=50))
    two.send(frame(seed=51))
    expect(port, frame(seed=51))
    three.close()
    wait_until(lambda: len(os.listdir(os.path.dirname(one.peer))) == 3)
    port.send(*sent)
    left = []
    wait_until(lambda: left.extend(one.frames(1, 0) + two.frames(1, 0)) or len(left) >= 30)
    assert sorted(left) == sorted(sent), 'none for who is gone'


def test_a_switch_learns_and_ages_each_vlan_by_itself(node, members):
    _, _, port = node('switch', '[expiretime=1]')
    one, two, three = members(3)
    five, six = [(0x8100, 0xa005)], [(0x8100, 6)]
    one.send(frame(source=1, tags=five))
    for each in two, three, port:
        expect(each, frame(source=1, tags=five))
    two.send(frame(source=2, target=1, tags=five))          # known in VLAN 5
    expect(one, frame(source=2, target=1, tags=five))
    port.send(frame(source=9, target=1, tags=five, seed=1))
    expect(one, frame(source=9, target=1, tags=five, seed=1))
    one.send(frame(source=1, target=9, tags=five, seed=2))
    expect(port, frame(source=1, target=9, tags=five, seed=2))
    for tags in six, []:                                    # and nowhere else
        two.send(frame(source=2, target=1, tags=tags))
        for each in one, three, port:
            expect(each, frame(source=2, target=1, tags=tags))
    three.send(frame(source=1, tags=five, seed=3))          # it moves
    for each in one, two, port:
        expect(each, frame(source=1, tags=five, seed=3))
    two.send(frame(source=2, target=1, tags=five, seed=4))
    expect(three, frame(source=2, target=1, tags=five, seed=4))
    two.send(frame(source=2, seed=5))       # what one and port get next shows what they did not
    for each in one, three, port:
        expect(each, frame(source=2, seed=5))

    def flooded():
        two.send(frame(source=2, target=1, tags=five, seed=6))
        return one.frames(1, 0.1)
    wait_until(flooded, timeout=4, what='the MAC is too old')


def test_a_switch_keeps_the_order_of_a_burst_that_goes_to_one_and_to_all(node, members):
    daemon, _, port = node('switch')
    one, two = members(2)
    port.send(frame(source=9))
    expect(one, frame(source=9))
    sessions = [pid for pid in daemon.pids() if pid != daemon.process.pid]
    for pid in sessions:
        os.kill(pid, signal.SIGSTOP)
    mixed = [frame(source=1, target=9 if number % 2 else peers.EVERYONE, seed=number)
             for number in range(9)]        # as many as wait in a socket
    one.send(*mixed)
    for pid in sessions:
        os.kill(pid, signal.SIGCONT)
    expect(port, *mixed)
    expect(two, frame(source=9), *mixed[::2])


def test_the_mac_of_a_member_that_left_is_forgotten(node, members, path):
    _, _, port = node('switch')
    one, two = members(2)
    one.send(frame(source=1))
    expect(port, frame(source=1))
    expect(two, frame(source=1))
    one.close()
    wait_until(lambda: len(os.listdir(path)) == 2)
    two.send(frame(source=2, target=1, seed=1))
    expect(port, frame(source=2, target=1, seed=1))


# ---- who does harm ------------------------------------------------------------------------------

@pytest.mark.parametrize('scheme', ['hub', 'switch'])
def test_a_member_that_never_reads_holds_up_nobody(node, members, scheme):
    _, _, port = node(scheme)
    slow, one, two = members(3)
    slow.data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
    started, slowest = time.monotonic(), 0
    for seed in range(2000):
        source = one if seed % 2 else port
        sent = frame(1400, source=1 + seed % 2, seed=seed)
        before = time.monotonic()
        source.send(sent)
        expect(two, sent)
        expect(port if source is one else one, sent)
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 1 and time.monotonic() - started < 20
    got = slow.frames(3000, 0.3)
    assert 100 < len(got) < 2000, 'some waited for it, and not without end'
    assert [struct.unpack('>I', each[18:22])[0] for each in got[:100]] == list(range(100))
    one.send(frame(seed=9999))
    expect(slow, frame(seed=9999))          # and it is a member still


def test_malformed_requests_hurt_nobody(node, members, path, tmp_path):
    daemon, _, port = node('switch')
    one = members(1)[0]
    (tmp_path / 'file').write_text('precious')
    os.mkfifo(str(tmp_path / 'fifo'))
    service = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)      # of somebody else on this host
    service.bind(str(tmp_path / 'service'))
    os.symlink(str(tmp_path / 'service'), str(tmp_path / 'vde.link'))
    good = struct.pack('=III', peers.MAGIC, 3, 0)

    def address(name):
        return peers.SOCKADDR_UN.pack(1, os.fsencode(str(tmp_path / name)))
    conns = []
    for request in (
            b'', b'x', good, good + b'\1', good + address('file')[:50],     # short
            struct.pack('=III', 0xdeadbeef, 3, 0) + address('file'),
            struct.pack('=III', peers.MAGIC, 2, 0) + address('file'),
            struct.pack('=III', peers.MAGIC, 0xffffffff, 0) + address('file'),
            good + address('file') + b'text', good + address('fifo'), good + address('nothing'),
            good + address('node'), good + address('node/ctl'),             # no data sockets
            good + address('service'), good + address('vde.link'),          # not a member's
            good + peers.SOCKADDR_UN.pack(2, b'/x'), good + bytes(110),
            good + peers.SOCKADDR_UN.pack(1, b'\xff' * 108), b'\xff' * 4096, os.urandom(70000)):
        conn = socket.socket(socket.AF_UNIX)
        conn.connect(path + '/ctl')
        conn.settimeout(5)
        try:
            conn.sendall(request)
        except OSError:
            pass                            # turned away before the end
        conns.append(conn)
    for conn in conns[5:]:
        try:
            assert conn.recv(100) == b'', 'an answer to nonsense'
        except ConnectionResetError:
            pass
    assert (tmp_path / 'file').read_text() == 'precious'
    one.send(frame(seed=1))
    expect(port, frame(seed=1))
    slow = conns[4]                         # a request may come in pieces
    data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    data.bind(path + '/.late')
    os.chmod(path + '/.late', 0o777)
    slow = socket.socket(socket.AF_UNIX)
    slow.settimeout(5)
    slow.connect(path + '/ctl')
    for byte in good + peers.SOCKADDR_UN.pack(1, os.fsencode(path + '/.late')):
        slow.sendall(bytes([byte]))
    assert slow.recv(200)[2:].startswith(os.fsencode(path) + b'/fd')
    for conn in conns:
        conn.close()
    one.send(frame(seed=2))
    expect(port, frame(seed=2))
    data.settimeout(5)
    assert data.recv(9000)
    slow.close()
    data.close()
    os.unlink(path + '/.late')
    wait_until(lambda: len(os.listdir(path)) == 2)
    assert 'internal error' not in daemon.log()
    with service, pytest.raises(BlockingIOError):
        service.recv(9000, socket.MSG_DONTWAIT)


def test_odd_datagrams_are_no_frames(node, members):
    _, _, port = node('switch')
    one, two = members(2)
    one.send(b'', b'\xff', b'\xff' * 13, b'\xff' * 9400)
    one.send(frame(seed=1))
    expect(port, frame(seed=1))
    data = two.one(2)
    while data is not None and peers.ETHERTYPE not in data:
        assert 14 <= len(data) <= 9234, 'a fragment of a frame was passed on'
        data = two.one(2)
    assert data == frame(seed=1)


def test_a_node_has_room_for_so_many_and_again_when_they_left(node, members, path, vdelxcd):
    _, _, port = node('hub')
    first, = members(1)
    conns = []
    for _ in range(vdelxcd.Node.PORTS_MAX + 9):
        conns.append(socket.socket(socket.AF_UNIX))
        conns[-1].settimeout(5)
        conns[-1].connect(path + '/ctl')
    turned_away = conns[-10:]
    assert [conn.recv(1) for conn in turned_away] == [b''] * 10
    conns[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        conns[0].recv(1)
    first.send(frame(seed=1))
    expect(port, frame(seed=1))
    for conn in conns:
        conn.close()
    late, = members(1)
    late.send(frame(seed=2))
    expect(port, frame(seed=2))


def test_a_node_that_does_not_answer_is_told_as_such(host, new_container, new_daemon, path):
    daemon, c, d = new_daemon(host), new_container('c'), new_container('d')
    join(c, daemon, 'hub://' + path)
    owners = [pid for pid in daemon.pids() if pid != daemon.process.pid]    # relay and keeper
    for pid in owners:
        os.kill(pid, peers.signal.SIGSTOP)
    done = d.client('-s', daemon.socket, 'hub://' + path, check=False)
    assert done.returncode == 1 and os.strerror(110) in done.stderr
    assert 'hub://%s (vde0' % path in daemon.log() and 'no answer' in daemon.log()
    for pid in owners:
        os.kill(pid, peers.signal.SIGCONT)
    join(d, daemon, 'hub://' + path)


def test_who_joined_with_vde_waits_for_the_node(host, new_container, new_daemon, closing, path):
    daemon, a, b = new_daemon(host), new_container('a'), new_container('b')
    join(a, daemon, 'switch://' + path, ADDRESSES[0])
    join(b, daemon, 'vde://' + path, ADDRESSES[1])
    a.ping('10.0.0.2')
    a.ip('link del vde0')
    wait_until(lambda: not carrier(b), timeout=1)
    gone(path)
    join(a, daemon, 'switch://' + path, ADDRESSES[0])
    wait_until(lambda: carrier(b), timeout=6)
    a.ping('10.0.0.2')
    assert '10.0.0.2/24' in b.ip('addr show vde0').stdout
