"""cmd://, and every scheme that needs vde_plug: streams, processes, permission."""

import json
import os
import signal
import struct
import time

import pytest

import peers
from conftest import CLIENT, DAEMON, PYTHON, parent, processes, require, wait_until
from peers import RawPort, alive, expect, frame, join, refused

ALLOW = '-v', '--allow-commands'
BY_HAND = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'by_hand.py')

# A program for cmd://: what it does follows from the name it is given.
PEER = r'''
import json, os, random, signal, struct, subprocess, sys, time

def frames(stream, slow=0):
    data = b''
    while True:
        part = os.read(0, 997 if slow else 65536)
        if not part:
            return
        time.sleep(slow)
        data += part
        while len(data) >= 2:
            length = struct.unpack('>H', data[:2])[0]
            if len(data) < 2 + length:
                break
            assert 14 <= length <= 9234, length
            yield data[2:2 + length]
            data = data[2 + length:]

def put(data, sizes):
    while data:
        data = data[os.write(1, data[:sizes()]):]

def echo(sizes, slow=0):
    """Send test frames back, with the last byte of the source MAC raised."""
    for each in frames(0, slow):
        if each[12:14] == b'\x88\xb5':
            back = each[:11] + bytes([each[11] + 1]) + each[12:]
            put(struct.pack('>H', len(back)) + back, sizes)

kind = sys.argv[1]
if kind == 'bytes':
    echo(lambda: 1)
elif kind == 'odd':
    echo(lambda r=random.Random(1): r.choice((1, 2, 3, 5, 700, 4999)))
elif kind == 'whole':
    echo(lambda: 65536)
elif kind == 'slow':
    echo(lambda: 65536, 0.0002)
elif kind == 'nonsense':
    with open(sys.argv[2], 'rb') as file:
        put(file.read(), lambda r=random.Random(2): r.randrange(1, 5000))
    echo(lambda: 65536)
elif kind == 'facts':
    facts = {'argv': sys.argv[3:], 'pgid': os.getpgid(0), 'pid': os.getpid(), 'sid': os.getsid(0),
             'fds': sorted(int(fd) for fd in os.listdir('/proc/self/fd')
                           if os.path.exists('/proc/self/fd/' + fd))}
    with open(sys.argv[2] + '.new', 'w') as file:
        json.dump(facts, file)
    os.rename(sys.argv[2] + '.new', sys.argv[2])
    for each in frames(0):
        pass
elif kind == 'family':
    signal.signal(signal.SIGTERM, signal.SIG_IGN)       # nobody goes of his own accord
    child = subprocess.Popen([sys.executable, '-c', """if True:
        import os, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        other = os.fork()
        if other:
            with open(sys.argv[1] + '.new', 'w') as file:
                file.write('%d %d %d' % (os.getppid(), os.getpid(), other))
            os.rename(sys.argv[1] + '.new', sys.argv[1])
        time.sleep(600)""", sys.argv[2]])
    time.sleep(600)
elif kind == 'end':
    for each in frames(0):
        if each[12:14] == b'\x88\xb5':
            sys.stderr.write('first line\nhad \x1b[31menough\n')
            sys.exit(3)
'''


@pytest.fixture
def peer(tmp_path):
    """peer(kind, arguments ...) is a cmd:// VNL that runs PEER."""
    path = tmp_path / 'peer.py'
    path.write_text(PEER)

    def vnl(*words):
        return 'cmd://' + ' '.join(peers.python(path, *words))
    return vnl


def echoed(data):
    """What PEER sends back for a frame."""
    return data[:11] + bytes([data[11] + 1]) + data[12:]


# ---- the stream ---------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', ['bytes', 'odd', 'whole'])
def test_frames_survive_every_read_boundary(host, new_container, new_daemon, closing, peer, kind):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    join(c, daemon, peer(kind), mtu=9216)
    port = closing(RawPort(c, 'vde0'))
    lengths = [60, 61, 255, 256, 257, 1514, 9018, 9230] * (2 if kind == 'bytes' else 20)
    sent = [frame(length, seed=seed) for seed, length in enumerate(lengths)]
    for first in range(0, len(sent), 8):    # a burst; no more than the kernel queues for us
        port.send(*sent[first:first + 8])
        expect(port, *[echoed(each) for each in sent[first:first + 8]])


def test_a_program_that_reads_slowly_gets_whole_frames(host, new_container, new_daemon, closing,
                                                       peer):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    join(c, daemon, peer('slow'), mtu=9000)
    port = closing(RawPort(c, 'vde0'))
    sent = [frame(2000 + seed % 3000, seed=seed) for seed in range(1500)]
    port.send(*sent)                        # far more than fits in between: some must be dropped
    found = []
    while True:
        more = port.frames(10, 0.5)
        if not more:
            break
        found += more
    places = {echoed(each): place for place, each in enumerate(sent)}
    assert all(each in places for each in found), 'a frame is whole or it is not there'
    order = [places[each] for each in found]
    assert order == sorted(order) and 20 < len(order) < len(sent)
    port.send(frame(seed=5000))
    expect(port, echoed(frame(seed=5000)))


def test_nonsense_in_the_stream_is_skipped(host, new_container, new_daemon, closing, peer,
                                           tmp_path):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')

    def item(data):
        return struct.pack('>H', len(data)) + data
    bad = frame(60, seed=999)
    good = [frame(length, seed=length) for length in (60, 1514, 9230, 61)]
    stream = b''.join([
        item(b''), item(good[0]), item(b''), item(b''), item(bytes(9235)), item(bad[:13]),
        item(good[1]),
        item(bad + bytes(65535 - 60)), item(b'x'), item(b'y' * 13), item(good[2]),
        item(bytes(65535)) * 5, item(good[3])]) * 3
    os.mkfifo(str(tmp_path / 'fifo'))
    join(c, daemon, peer('nonsense', tmp_path / 'fifo'), mtu=9216)
    port = closing(RawPort(c, 'vde0'))
    with open(str(tmp_path / 'fifo'), 'wb') as fifo:        # now that somebody listens
        fifo.write(stream)
    expect(port, *(good * 3))
    port.send(frame(seed=1))
    expect(port, echoed(frame(seed=1)))


def test_vde_plug_is_a_program_like_any_other(host, new_container, new_daemon, tmp_path):
    require('vde_plug')
    daemon, c, n = new_daemon(host, *ALLOW), new_container('c'), new_container('n')
    join(n, daemon, 'hub://%s/node' % tmp_path, '10.0.0.2/24')
    join(c, daemon, 'vlan://{cmd://vde_plug vde://%s/node}' % tmp_path, '10.0.0.1/24')
    c.ping('10.0.0.2')
    peers.transfer(c, n, '10.0.0.2', 1 << 20)
    peers.transfer(n, c, '10.0.0.1', 1 << 20)


# ---- processes ----------------------------------------------------------------------------------

WORDS = [
    ('plain words   between blanks', ['plain', 'words', 'between', 'blanks']),
    ("'single $HOME \\n' \"double $HOME `id`\"", ['single $HOME \\n', 'double $HOME `id`']),
    (r'back\ slash \"quoted\" "in \"quotes\" \x"', ['back slash', '"quoted"', 'in "quotes" \\x']),
    ("$(id) `id` * ~ ; | & > /dev/null #x {a,b} %41 a=b [1]",
     ['$(id)', '`id`', '*', '~', ';', '|', '&', '>', '/dev/null', '#x', '{a,b}', '%41', 'a=b',
      '[1]']),
    ("'' \"\" jo'in'\"ed\"", ['', '', 'joined']),
    ('{nested} }{', ['{nested}', '}{']),
]


def test_words_are_split_like_a_shells_without_a_shell(host, new_container, closing, peer,
                                                       tmp_path, tmp_path_factory):
    c = new_container('c')
    daemon = closing(peers.start_daemon(host, tmp_path_factory.mktemp('vde'), *ALLOW, before=[
        'sh', '-c', 'exec "$@" 9</dev/null', '-']))     # it inherited something itself
    for count, (text, words) in enumerate(WORDS):
        path = tmp_path / ('facts%d' % count)
        join(c, daemon, peer('facts', path, text))
        wait_until(path.exists)
        facts = json.loads(path.read_text())
        assert facts['argv'] == words
        # It has its own group and nothing of the daemon's.
        assert facts['pgid'] == facts['pid']
        assert [fd for fd in facts['fds'] if fd > 2] == []
        c.ip('link del vde0')
        wait_until(lambda: not alive(facts['pid']), what='it ends with the interface')


def test_signals_are_for_a_program_what_they_are_for_everybody(host, new_container, new_daemon,
                                                               tmp_path):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    join(c, daemon, "cmd://sh -c 'cp /proc/self/status %s/new; mv %s/new %s/status; exec cat'"
         % (tmp_path, tmp_path, tmp_path))
    wait_until((tmp_path / 'status').exists)
    lines = dict(line.split(':', 1) for line in (tmp_path / 'status').read_text().splitlines())
    # Python itself ignores SIGPIPE and SIGXFSZ; what the caller of the tests ignores stays ignored.
    ours = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD,
                                              signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
    assert int(lines['SigIgn'], 16) & ours == 0
    assert int(lines['SigBlk'], 16) == 0


@pytest.mark.parametrize('way', ['ip link del', 'SIGTERM'])
def test_the_whole_family_ends_with_the_interface(host, new_container, new_daemon, peer, tmp_path,
                                                  way):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    path = tmp_path / 'pids'
    join(c, daemon, peer('family', path))
    wait_until(path.exists)
    pids = [int(pid) for pid in path.read_text().split()]
    assert len(pids) == 3 and all(map(alive, pids))
    if way == 'ip link del':
        c.ip('link del vde0')
    else:
        os.kill(peers.session_pid(daemon), peers.signal.SIGTERM)
    wait_until(lambda: not any(map(alive, pids)), timeout=3, what='child and grandchildren end')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    wait_until(lambda: c.interfaces() == {'lo'})


def programs(argument):
    """The processes that run sleep with this argument."""
    return [pid for pid in processes('sleep\0' + argument) if peers.process_name(pid) == 'sleep']


def test_a_session_told_to_end_while_it_opens_ends_its_program(host, new_container, new_daemon):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    client = c.popen(PYTHON, CLIENT, '-s', daemon.socket, 'cmd://sleep 654.321')
    pid, = wait_until(lambda: programs('654.321'))
    os.kill(parent(pid), signal.SIGTERM)
    client.wait(10)
    wait_until(lambda: not programs('654.321') and daemon.pids() == [daemon.process.pid], 3)
    wait_until(lambda: c.interfaces() == {'lo'})


def test_a_request_that_is_complete_at_the_last_moment_leaves_no_program(
        host, new_container, closing, tmp_path, tmp_path_factory):
    """A session has as much time to open its network as the client took, not what that left."""
    script = tmp_path / 'vdelxcd.py'
    with open(DAEMON) as file:
        text = file.read()
    assert text.count('HAND_OVER_TIME = 5.0 ') == 1
    script.write_text(text.replace('HAND_OVER_TIME = 5.0 ', 'HAND_OVER_TIME = 1.0 '))
    daemon = closing(peers.start_daemon(host, tmp_path_factory.mktemp('vde'), *ALLOW,
                                        script=str(script)))
    c = new_container('c')
    for delay in 0.9, 0.95, 0.99:
        c.run(PYTHON, BY_HAND, daemon.socket, 'late', delay, 'cmd://sleep 654.987')
        c.ip('link del late0', check=False)
        wait_until(lambda: daemon.pids() == [daemon.process.pid], 3)
        wait_until(lambda: not programs('654.987'), 3)


def test_a_program_starts_with_the_usual_signals(host, new_container, new_daemon, tmp_path):
    daemon, c, path = new_daemon(host, *ALLOW), new_container('c'), tmp_path / 'status'
    refused(c, daemon, 'cmd://cp /proc/self/status %s' % path)      # no shell: that resets them
    status = dict(line.split(':', 1) for line in path.read_text().splitlines())
    for field in 'SigBlk', 'SigIgn', 'SigCgt':
        assert int(status[field], 16) & 0x7fffffff == 0, field      # 32 and 33 are the C library's


def test_the_interface_ends_with_the_program_and_the_log_has_its_last_words(
        host, new_container, new_daemon, closing, peer):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    join(c, daemon, peer('end'))
    closing(RawPort(c, 'vde0')).send(frame())
    wait_until(lambda: c.interfaces() == {'lo'}, timeout=3)
    wait_until(lambda: 'close interface: cmd://' in daemon.log())
    assert r'the program ended: had \x1b[31menough' in daemon.log()
    wait_until(lambda: daemon.pids() == [daemon.process.pid])


def test_programs_that_do_not_start(host, new_container, new_daemon, tmp_path):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    (tmp_path / 'data').write_text('not a program')
    for vnl, number, words in [
            ('cmd://', 22, 'no command'), ("cmd://'open", 22, 'unfinished quote'),
            ('cmd://no-such-program x', 2, 'no-such-program: No such file or directory'),
            ('cmd://%s/data' % tmp_path, 13, 'data: Permission denied'),
            ('cmd://false', 5, 'false: ended at once'),
            ('cmd://sh -c "echo reason >&2; exit 3"', 5, 'sh: reason'),
            ('vlan://5{cmd://no-such-program}', 2, 'No such file or directory')]:
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(number) in line, (vnl, line)
        assert words in logged, logged


# ---- permission ---------------------------------------------------------------------------------

UNKNOWN = 'nosuch://x'
# rules file or None, options, VNL, errno or None (allowed), words of the log line
PERMISSION = [
    (None, [], 'cmd://cat', 13, '--allow-commands'),
    (None, [], UNKNOWN, 93, '--allow-commands'),
    (None, [], 'vlan://3{cmd://cat}', 13, 'cmd:// runs a program on this host'),
    (None, [], 'vlan://3{vlan://4/q{vlan://5{nosuch://}}}', 93, '--allow-commands'),
    (None, [], 'nosuch://x{cmd://cat}', 93, 'nosuch:// runs a program on this host'),
    (None, [], 'nosuch://x{vxvde://}', 93, 'nosuch:// runs a program on this host'),
    (None, ['--allow-commands'], 'cmd://cat', None, ''),
    (None, ['--allow-commands'], 'vlan://3{cmd://cat}', None, ''),
    ('pfxallow', [], 'cmd://cat', 13, 'pfxallow cmd://'),
    ('pfxallow', [], UNKNOWN, 93, 'pfxallow nosuch://'),
    ('pfxallow', [], 'vlan://3{vlan://4/q{cmd://cat}}', 13, 'pfxallow cmd://'),
    ('pfxallow', [], 'vlan://3{nosuch://}', 93, 'pfxallow nosuch://'),
    ('pfxallow', ['--allow-commands'], 'cmd://cat', 13, 'pfxallow cmd://'),
    ('pfxallow c\npfxallow n', [], 'cmd://cat', 13, 'pfxallow cmd://'),
    ('pfxallow c\npfxallow n', [], UNKNOWN, 93, 'pfxallow nosuch://'),
    ('pfxallow cmd://', [], 'cmd://cat', None, ''),
    ('pfxallow cmd://', [], 'vlan://3{cmd://cat}', 13, 'no rule allows vlan://3'),
    ('pfxallow cmd://\npfxallow vlan://', [], 'vlan://3{cmd://cat}', None, ''),
    ('allow cmd://cat', [], 'cmd://cat', None, ''),
    ('allow cmd://cat', [], "cmd://'cat'", None, ''),
    ('allow cmd://cat', [], 'cmd://cat /etc/shadow', 13, 'pfxallow cmd://'),
    ('default cmd://cat', [], '', None, ''),
    ('default cmd://cat\npfxallow', [], 'cmd://cat -', 13, 'pfxallow cmd://'),
    ('deny cmd://cat\npfxallow cmd://', [], 'cmd://cat', 13, 'deny cmd://cat'),
    ('pfxdeny nosuch\npfxallow nosuch://', [], UNKNOWN, 13, 'pfxdeny nosuch'),
    ('allow vlan://3{cmd://cat}', [], 'vlan://3{cmd://cat}', None, ''),
    ('allow vlan://3{cmd://cat}', [], 'cmd://cat', 13, 'pfxallow cmd://'),
    ('allow vlan://3{cmd://cat}', [], 'vlan://3{cmd://cat /etc/shadow}', 13, 'no rule allows'),
]


def test_a_program_runs_only_where_it_is_named(host, new_container, closing, tmp_path_factory):
    c = new_container('c')
    daemons = {}
    for rules, options, vnl, number, words in PERMISSION:
        key = rules, tuple(options)
        if key not in daemons:
            directory = tmp_path_factory.mktemp('vde')
            argv = ['-v'] + options
            if rules is not None:
                (directory / 'rules').write_text(rules + '\n')
                argv += ['-f', str(directory / 'rules')]
            daemons[key] = closing(peers.start_daemon(host, directory, *argv))
        daemon = daemons[key]
        if number is None:
            c.client('-s', daemon.socket, vnl)
            c.ip('link del vde0')
            wait_until(lambda: daemon.pids() == [daemon.process.pid])
        else:
            line, logged = refused(c, daemon, vnl)
            assert os.strerror(number) in line, (rules, options, vnl, line)
            assert words in logged, (rules, options, vnl, logged)


def test_a_default_of_the_command_line_names_its_scheme_and_no_other(host, new_container,
                                                                     new_daemon):
    daemon, c = new_daemon(host, vnl='vlan://3{cmd://cat}'), new_container('c')
    join(c, daemon, '')
    c.ip('link del vde0')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    for vnl, number in ('cmd://cat', 13), (UNKNOWN, 93), ('nosuch://x{cmd://cat}', 93):
        line, _ = refused(c, daemon, vnl)
        assert os.strerror(number) in line, vnl


# ---- the bridge ---------------------------------------------------------------------------------

def test_a_scheme_that_nobody_has_is_not_supported(host, new_container, new_daemon, closing,
                                                   tmp_path_factory):
    """Allowed, but there is no such plugin, or no vde_plug at all."""
    require('vde_plug')
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    line, logged = refused(c, daemon, UNKNOWN)
    assert os.strerror(93) in line and 'nosuch' in logged, (line, logged)
    for vnl in '-h://x', '--help://x', '_://x':     # nor is an option of vde_plug a scheme
        line, logged = refused(c, daemon, vnl)
        assert os.strerror(93) in line and 'not a scheme' in logged
    bare = closing(peers.start_daemon(host, tmp_path_factory.mktemp('vde'), *ALLOW,
                                      before=['env', 'PATH=/nowhere']))
    line, logged = refused(c, bare, 'slirp://')
    assert os.strerror(93) in line and 'vde_plug, which is not installed' in logged


DHCP_SCRIPT = '''#!/bin/sh
if [ "$1" = bound ]; then
    ip addr add $ip/24 dev $interface && ip route add default via $router &&
    echo "$ip $router $dns" > %s
fi
'''


def test_slirp_gives_a_container_an_address_and_a_gateway(host, new_container, closing, tmp_path,
                                                          tmp_path_factory):
    peers.require_plugin('slirp')
    require('busybox')
    directory, c = tmp_path_factory.mktemp('vde'), new_container('c')
    (directory / 'rules').write_text('pfxallow slirp://\n')
    daemon = closing(peers.start_daemon(host, directory, '-v', '-f', str(directory / 'rules')))
    script = tmp_path / 'script'
    script.write_text(DHCP_SCRIPT % (tmp_path / 'lease'))
    script.chmod(0o755)
    join(c, daemon, 'slirp://')
    c.run('busybox', 'udhcpc', '-i', 'vde0', '-n', '-q', '-t', '5', '-T', '1', '-s', script)
    assert (tmp_path / 'lease').read_text().split() == ['10.0.2.15', '10.0.2.2', '10.0.2.3']
    c.ping('10.0.2.2')
    # TCP through it: 10.0.2.2 is the host's own loopback.
    peers.transfer(c, host, '10.0.2.2', 1 << 20, bind='127.0.0.1')
    session = peers.session_pid(daemon)
    with open('/proc/%d/task/%d/children' % (session, session)) as file:
        plug, = set(map(int, file.read().split())) - set(daemon.pids())      # beside the relay
    c.ip('link del vde0')
    wait_until(lambda: daemon.pids() == [daemon.process.pid] and not alive(plug))


def test_agno_hides_what_two_containers_say(host, new_container, new_daemon, closing, tmp_path):
    peers.require_plugin('agno')
    daemon, a, b, spy = [new_daemon(host, *ALLOW)] + [new_container(name) for name in 'abs']
    (tmp_path / 'key').write_text('00112233445566778899aabbccddeeff\n')
    vnl = 'agno://%s/key{vxvde://239.7.7.7}' % tmp_path
    join(a, daemon, vnl, '10.0.0.1/24')
    join(b, daemon, vnl, '10.0.0.2/24')
    join(spy, daemon, 'vxvde://239.7.7.7')
    eyes = closing(RawPort(spy, 'vde0'))
    one, two = closing(RawPort(a, 'vde0')), closing(RawPort(b, 'vde0'))
    a.ping('10.0.0.2')
    one.send(frame(200, seed=1))
    expect(two, frame(200, seed=1))
    seen = [data for data in iter(lambda: eyes.one(0.2), None) if data[6:12] == frame()[6:12]]
    assert seen and all(data[12:14] == b'\xa6\xde' and frame(200, seed=1)[14:80] not in data
                        for data in seen)
    peers.transfer(a, b, '10.0.0.2', 1 << 20)
    done = a.client('-s', daemon.socket, '-i', 'bad0', 'agno://%s/none{vxvde://}' % tmp_path,
                    check=False)
    assert done.returncode == 1 and 'vdelxcd: ' in done.stderr
    wait_until(lambda: 'bad0' not in a.interfaces())


def test_a_program_that_answers_late_is_no_trouble(host, new_container, new_daemon, closing):
    daemon, c = new_daemon(host, *ALLOW), new_container('c')
    started = time.monotonic()
    join(c, daemon, "cmd://sh -c 'sleep 1; exec cat'")
    assert time.monotonic() - started < 0.9
    port = closing(RawPort(c, 'vde0'))
    port.send(frame(seed=1))
    expect(port, frame(seed=1))             # it waited in the socket
