"""What relays may still do, how many there are at most, and what a dead container leaves."""

import errno
import json
import os
import re
import signal
import subprocess
import time

import peers
import pytest
from conftest import ROOT, Container, require, wait_until
from peers import carrier, join, session_pids

as_root = pytest.mark.skipif(
    os.geteuid() != 0 or open('/proc/self/uid_map').read().split()[:3] != ['0', '0', '4294967295'],
    reason='needs the real root')


def status(pid):
    """/proc/PID/status as a dict of str."""
    with open('/proc/%d/status' % pid) as file:
        return {name: value.strip() for name, value in (
            line.split(':', 1) for line in file)}


def limits(pid):
    """The hard limits of a process: name -> str."""
    with open('/proc/%d/limits' % pid) as file:
        return {line[:26].strip(): line[47:68].strip() for line in file}


def relays(daemon):
    """The pids of the processes that carry frames: those without children."""
    pids = [pid for pid in daemon.pids() if peers.process_name(pid).startswith('vdelxcd:')]
    parents = {peers.parent(pid) for pid in pids}
    return [pid for pid in pids if pid not in parents]


def descriptors(pid):
    """What the descriptors of a process are, but for the standard streams and the log."""
    here = '/proc/%d/fd' % pid
    return [os.readlink(os.path.join(here, fd)) for fd in os.listdir(here) if int(fd) > 2]


# ---- privileges ---------------------------------------------------------------------------------

# VNL (with a directory), descriptors that the relay may have
KINDS = [('vxvde:///if=lo', 64), ('vxlan:///if=lo', 64), ('null://', 64), ('tap://tap7', 64),
         ('udp://127.0.0.1:7->127.0.0.1:7', 64), ('ptp://{}/link', 64), ('hub://{}/node', 564),
         ('switch://{}/node', 564), ('vlan://3{hub://{}/node}', 564), ('cmd://cat', 64)]


@as_root
@pytest.mark.parametrize('vnl, most', KINDS)
def test_a_relay_is_nobody_and_can_do_nothing(host, new_container, new_daemon, tmp_path, vnl, most):
    daemon, c = new_daemon(host, '-v', '--allow-commands'), new_container('c')
    join(c, daemon, vnl.replace('{}', str(tmp_path)))
    pid, = [pid for pid in relays(daemon) if status(pid)['Name'] == 'vdelxcd:vde0']
    facts = status(pid)
    assert facts['Uid'].split() == facts['Gid'].split() == ['65534'] * 4
    assert facts['Groups'] == ''
    for name in 'CapInh', 'CapPrm', 'CapEff', 'CapAmb':
        assert int(facts[name], 16) == 0, name
    allowed = limits(pid)
    assert allowed['Max core file size'] == allowed['Max processes'] == '0'
    assert allowed['Max open files'] == str(most)
    assert allowed['Max data size'] == str(256 << 20)
    names = descriptors(pid)
    assert names.count('/dev/net/tun') == 1 + vnl.startswith('tap:'), names
    shared = set(names) & set(descriptors(daemon.process.pid))
    assert shared <= {'anon_inode:[eventpoll]', daemon.logfile}, 'what is the daemon\'s is left'
    c.ip('link del vde0')
    wait_until(lambda: daemon.pids() == [daemon.process.pid])


@pytest.mark.parametrize('vnl, most', KINDS)
def test_no_relay_keeps_the_connection_of_the_client(host, new_container, new_daemon, tmp_path, vnl,
                                                     most):
    """The answer ends for a client that reads to the end of it."""
    daemon, c = new_daemon(host, '-v', '--allow-commands'), new_container('c')
    done = c.run(*peers.python(os.path.join(ROOT, 'tests', 'system', 'by_hand.py'), daemon.socket,
                               'many', 1, vnl.replace('{}', str(tmp_path))))
    assert json.loads(done.stdout) == ['0\0']


@as_root
def test_without_a_log_file_a_relay_can_write_no_file(host, new_container, tmp_path, closing,
                                                      new_daemon):
    daemon, c = new_daemon(host, start=False), new_container('c')
    read, write = os.pipe()
    daemon.process = host.popen(*daemon.argv, stderr=write)
    os.close(write)
    wait_until(daemon.accepts)
    join(c, daemon, 'null://')
    assert limits(relays(daemon)[0])['Max file size'] == '0'
    os.close(read)


@as_root
@pytest.mark.parametrize('option, uid, gid', [
    ('daemon', 1, 1), ('daemon:12345', 1, 12345), ('4711', 4711, 4711), ('4711:0', 4711, 0),
    ('root', 0, 0), ('0:0', 0, 0)])
def test_the_user_is_chosen_by_name_or_number(host, new_container, new_daemon, option, uid, gid):
    daemon, c = new_daemon(host, '-v', '--user', option), new_container('c')
    join(c, daemon, 'null://')
    facts = status(relays(daemon)[0])
    assert facts['Uid'].split() == [str(uid)] * 4 and facts['Gid'].split() == [str(gid)] * 4


@pytest.mark.parametrize('option, words', [
    ('no-such-user', 'no such user'), ('nobody:no-such-group', 'no such group'),
    ('', 'no such user'), ('99999999999', 'no such user'), ('-1', 'no such user'),
    ('4294967295', 'no such user'),
    ('nobody:4294967295', 'no such group')])        # which the kernel takes for "no change"
def test_a_user_that_is_none_is_refused_at_the_start(host, new_daemon, option, words):
    if os.geteuid():
        pytest.skip('needs root')
    daemon = new_daemon(host, '--user=' + option, start=False)
    done = host.run(*daemon.argv, check=False)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert done.stderr.startswith('vdelxcd: --user ' + option) and words in done.stderr
    assert os.listdir(daemon.directory) == []


@as_root
def test_where_nobody_is_no_user_relays_keep_the_daemons_rights(host, new_container, new_daemon):
    """In a user namespace there may be no other user; who was asked for by name must be there."""
    if subprocess.call(['unshare', '--map-root-user', 'true'], stderr=subprocess.DEVNULL):
        pytest.skip('user namespaces are not allowed here')
    daemon, c = new_daemon(host, '-v', start=False), new_container('c')
    daemon.argv = ['unshare', '--map-root-user'] + daemon.argv
    done = host.run(*(daemon.argv + ['--user', 'nobody']), check=False)
    assert done.returncode == 1 and done.stderr.count('\n') == 1
    assert '--user nobody: we cannot become that user here' in done.stderr
    daemon.start()
    assert 'relays keep our rights' in daemon.log()
    join(c, daemon, 'null://')
    assert status(relays(daemon)[0])['Uid'].split() == ['0'] * 4
    assert limits(relays(daemon)[0])['Max processes'] == '0'


@as_root
def test_an_ordinary_user_stays_who_he_is_and_can_name_nobody_else(host, new_container, closing):
    require('setpriv')
    place = closing(peers.Place())
    user = ['setpriv', '--reuid=4711', '--regid=4711', '--clear-groups']
    daemon = closing(peers.start_daemon(host, place.path, before=user, script=place.daemon))
    c = new_container('c')
    join(c, daemon, 'null://')
    assert status(relays(daemon)[0])['Uid'].split() == ['4711'] * 4
    assert limits(relays(daemon)[0])['Max processes'] == '0'
    done = host.run(*(user + peers.python(place.daemon, '--user', 'nobody', place.join('other'))),
                    check=False)
    assert done.returncode == 1 and 'only root can become somebody else' in done.stderr
    # He has no name here: where his nodes are by default is told by his number.
    done = host.run(*(user + peers.python(place.daemon, '--test', 'hub://')))
    assert 'hub:///tmp/vdenode_4711' in done.stdout


@as_root
def test_a_network_comes_back_to_a_relay_without_rights(host, new_container, new_daemon, closing,
                                                        tmp_path):
    daemon, a, b = new_daemon(host), new_container('a'), new_container('b')
    switch = closing(peers.Switch(str(tmp_path / 'sw'), str(tmp_path / 'management')))
    assert os.stat(switch.path + '/ctl').st_uid == 0 and os.stat(switch.path).st_mode & 0o7 == 0
    join(a, daemon, 'vde://' + switch.path, '10.0.0.1/24')
    join(b, daemon, 'vde://' + switch.path, '10.0.0.2/24')
    a.ping('10.0.0.2')
    before = set(relays(daemon))
    switch.kill()
    wait_until(lambda: not carrier(a))
    switch.restart()
    wait_until(lambda: carrier(a) and carrier(b), timeout=6)
    a.ping('10.0.0.2')
    for pid in relays(daemon):
        assert pid not in before and status(pid)['Uid'].split() == ['65534'] * 4


@as_root
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize('which', ['relay', 'keeper'])
def test_relay_and_keeper_end_together_and_tidy_up(host, new_container, new_daemon, tmp_path, which,
                                                   number):
    daemon, c = new_daemon(host), new_container('c')
    join(c, daemon, 'hub://%s/node' % tmp_path)
    keeper, = session_pids(daemon)
    relay, = relays(daemon)
    assert keeper != relay and peers.parent(relay) == keeper
    os.kill(relay if which == 'relay' else keeper, number)
    wait_until(lambda: daemon.pids() == [daemon.process.pid])
    wait_until(lambda: 'vde0' not in c.interfaces())
    if (which, number) != ('keeper', signal.SIGKILL):
        assert os.listdir(str(tmp_path)) == []
    join(c, daemon, 'hub://%s/node' % tmp_path)


@pytest.mark.parametrize('vnl', ['null://', 'hub://{}/node'], ids=['alone', 'with a keeper'])
def test_a_relay_that_can_not_give_up_its_rights_never_carries_a_frame(
        host, new_container, closing, tmp_path, tmp_path_factory, vnl):
    """The client is told EPERM, the log why; neither interface nor process nor node stays."""
    no_limits, c = os.path.join(ROOT, 'tests', 'system', 'no_limits.py'), new_container('c')
    if host.run(*peers.python(no_limits, 'true'), check=False).returncode:
        pytest.skip('system calls can not be filtered here')
    daemon = closing(peers.start_daemon(host, tmp_path_factory.mktemp('vde'),
                                        before=peers.python(no_limits)))
    for _ in range(2):
        said, logged = peers.refused(c, daemon, vnl.replace('{}', str(tmp_path)))
        assert os.strerror(errno.EPERM) in said and said.count('\n') == 1
        assert 'giving up rights: %s' % os.strerror(errno.EPERM) in logged and '(vde0, ' in logged
        assert os.listdir(str(tmp_path)) == []


# ---- quotas -------------------------------------------------------------------------------------

def taken(container, daemon, *argv):
    """Ask for an interface; what the client said, '' when it got one."""
    return container.client('-s', daemon.socket, *argv, 'null://', check=False).stderr


def test_a_container_has_as_many_interfaces_as_it_may(host, new_container, new_daemon):
    daemon = new_daemon(host, '--max-per-container', '2')
    a, b = new_container('a'), new_container('b')
    assert taken(a, daemon) == taken(a, daemon) == ''
    started = time.monotonic()
    lines = [taken(a, daemon) for _ in range(10)]
    assert all(os.strerror(122) in line and line.count('\n') == 1 for line in lines), lines
    assert a.interfaces() == {'lo', 'vde0', 'vde1'}
    logged = daemon.log().splitlines()
    assert 1 <= len(logged) <= 1 + time.monotonic() - started, logged
    assert re.match(r'open interface failed: null:// \(vde2, pid \d+ uid 0 gid 0\): the container '
                    r'\(net:\[\d+\]\) has 2 interfaces, and may have no more$', logged[0]), logged
    time_out = time.monotonic() + 5
    while 'requests since' not in daemon.log() and time.monotonic() < time_out:
        taken(a, daemon)
    assert re.search(r'; \d+ requests since the last such line', daemon.log())
    assert taken(b, daemon) == '', 'another container has its own'
    a.ip('link del vde0')
    wait_until(lambda: len(daemon.pids()) == 3)
    assert taken(a, daemon) == '', 'and what was given back can be had again'


def test_the_daemon_has_as_many_interfaces_as_it_may(host, new_container, new_daemon):
    daemon = new_daemon(host, '--max-sessions=2')
    a, b, c = [new_container(name) for name in 'abc']
    assert taken(a, daemon) == taken(b, daemon) == ''
    assert os.strerror(122) in taken(c, daemon)
    assert 'there are 2 interfaces, and may be no more' in daemon.log()
    b.ip('link del vde0')
    wait_until(lambda: len(daemon.pids()) == 2)
    assert taken(c, daemon) == ''


@pytest.mark.parametrize('argv', [('--max-sessions', 'x'), ('--max-sessions=-1',),
                                  ('--max-per-container', '1e3'), ('--max-per-container=',)])
def test_a_limit_is_a_number(host, new_daemon, argv):
    daemon = new_daemon(host, *argv, start=False)
    done = host.run(*daemon.argv, check=False)
    assert done.returncode == 1 and done.stderr.startswith('vdelxcd: --max-')
    assert 'not a number' in done.stderr.splitlines()[0]


# ---- the end of a container ---------------------------------------------------------------------

def in_initial_pids():
    """Are we where all processes can be seen?"""
    return os.readlink('/proc/self/ns/pid') == 'pid:[4026531836]'


needs_all_pids = pytest.mark.skipif(not in_initial_pids(),
                                    reason='not in the initial pid namespace')


@as_root
@needs_all_pids
@pytest.mark.slow
def test_a_dead_container_leaves_no_session_and_a_living_one_is_let_alone(
        host, new_container, new_daemon, closing, tmp_path):
    """Who is kept alive: by a task, a descriptor, a mount, a thread of a process elsewhere.

    Of the mounts one is at a place whose name would be lines of its own to many a reader.
    """
    daemon = new_daemon(host)
    living, dead, held, mounted = [new_container(name) for name in ('live', 'dead', 'held', 'mnt')]
    for each in living, dead, held, mounted:
        join(each, daemon, 'null://')
    (tmp_path / 'ns').write_text('')
    strange = tmp_path / 'a\r\rb'
    strange.mkdir()
    holder = subprocess.Popen(
        ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none "$2"; mount --bind "$1" "$3"; echo;'
         'exec sleep 1000', 'sh', '/proc/%d/ns/net' % mounted.holder.pid, str(strange),
         str(tmp_path / 'ns')], stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        with open('/proc/%d/ns/net' % held.holder.pid):
            for each in dead, held, mounted:
                Container.close(each)
            gone = time.monotonic()
            wait_until(lambda: len(session_pids(daemon)) == 3, timeout=12, what='its session ends')
            assert 'container gone: net:[' in daemon.log()
            wait_until(lambda: time.monotonic() > gone + 12, timeout=15)
            assert len(session_pids(daemon)) == 3, daemon.log()
            assert 'vde0' in living.interfaces()
    finally:
        holder.kill()
        holder.wait()
    wait_until(lambda: len(session_pids(daemon)) == 1, timeout=12, what='the rest ends, too')
    assert daemon.log().count('container gone') == 3
    join(living, daemon, 'null://', name='vde1')


@as_root
@needs_all_pids
def test_who_connects_while_the_daemon_looks_for_the_dead_gets_nothing_of_that(
        host, new_container, new_daemon):
    daemon, b, found = new_daemon(host), new_container('b'), set()
    server = daemon.process.pid

    def looking():
        """The process that looks; it is stopped at once."""
        try:
            with open('/proc/%d/task/%d/children' % (server, server)) as file:
                found = set(map(int, file.read().split())) - set(first)
            for pid in found:
                os.kill(pid, signal.SIGSTOP)
            return found
        except ProcessLookupError:
            return set()
    for _ in range(5):                      # it looks once for each container, and not for long
        join(new_container(), daemon, 'null://')
        first, patience = session_pids(daemon), time.monotonic() + 5
        while not found and time.monotonic() < patience:
            time.sleep(0.0005)
            found = looking()
        if found:
            break
    pid, = found
    join(b, daemon, 'null://')
    session, = set(session_pids(daemon)) - set(first) - {pid}
    assert not [each for each in descriptors(session) if each.startswith('pipe:')]
    os.kill(pid, signal.SIGCONT)


def test_the_daemon_does_not_read_the_mounts_of_containers_itself(vdelxcd, tmp_path):
    """A list of them can be long; and a place can have a name with carriage returns."""
    strange = tmp_path / 'a\r\rb'
    strange.mkdir()
    (tmp_path / 'ns').write_text('')
    holder = subprocess.Popen(
        ['unshare', '-rmn', 'sh', '-c', 'mount -t tmpfs none "$1"; touch "$1/ns"; '
         'mount --bind /proc/self/ns/net "$1/ns"; readlink /proc/self/ns/net; exec cat',
         'sh', str(strange)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        namespace = holder.stdout.readline().decode().strip()
        path = '/proc/%d/mountinfo' % holder.pid
        assert not vdelxcd.is_witness(path, namespace)
        found = vdelxcd.find_witnesses([namespace], {namespace: path})
        assert found.decode() == '%s %s\n' % (namespace, path)
        assert vdelxcd.is_witness('/proc/%d/ns/net' % holder.pid, namespace)
    finally:
        holder.communicate()
