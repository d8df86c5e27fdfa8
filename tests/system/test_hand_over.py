"""The hand-over against a hostile client: an errno, never success; and nobody else notices.

Wrong descriptors are in test_hostile_descriptors.py.
"""

import errno
import json
import os
import signal
import threading

import pytest

from aftermath import Baseline, have_keeper
from conftest import PYTHON, wait_until

BY_HAND = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'by_hand.py')


def by_hand(container, daemon, *command, **more):
    """Run by_hand.py in a container; what it found."""
    done = container.run(PYTHON, BY_HAND, daemon.socket, *command, timeout=60, **more)
    return json.loads(done.stdout.splitlines()[-1])


def ask(container, daemon, requests):
    """The answers to requests (bytes, NUL included), each sent with a good TAP."""
    return by_hand(container, daemon, 'vnls',
                   input=json.dumps([request.decode('latin-1') for request in requests]))


def answered(number):
    """What the daemon sends for an errno."""
    return '%d\0' % number


class Innocents:
    """Two containers that ping each other while others attack, and the daemon's state before."""

    def __init__(self, pair, attacker):
        self.daemon, self.a, self.b = pair
        self.attacker = attacker
        for container, address in (self.a, '10.0.0.1/24'), (self.b, '10.0.0.2/24'):
            container.client('-s', self.daemon.socket, 'vxvde://')
            container.up('vde0', address)
        self.a.ping('10.0.0.2')
        self.newcomer()
        have_keeper(self.attacker, self.daemon)
        wait_until(lambda: len(self.daemon.pids()) == 3)
        self.baseline = Baseline(self.daemon)

    def newcomer(self):
        """One more container's worth of service: an interface comes and goes."""
        self.attacker.client('-s', self.daemon.socket, '-i', 'new0', 'vxvde://')
        self.attacker.ip('link del new0')

    def unharmed(self):
        """The ping goes on, a newcomer is served, and everything is as it was."""
        self.a.ping('10.0.0.2')
        self.b.ping('10.0.0.1')
        self.newcomer()
        self.baseline.check_same(7)
        assert self.attacker.interfaces() == {'lo'}


@pytest.fixture
def innocents(pair, new_container):
    """Innocents; at the end they are unharmed, whatever the test did."""
    found = Innocents(pair, new_container('attacker'))
    yield found
    found.unharmed()


def log_lines(daemon):
    """The daemon's log as lines of bytes; the last one is complete too."""
    with open(daemon.logfile, 'rb') as file:
        return file.read().split(b'\n')


# ---- the request's text -------------------------------------------------------------------------

def test_a_good_tap_is_taken_by_hand_too(innocents):
    assert by_hand(innocents.attacker, innocents.daemon, 'many', 1) == ['0\0']
    innocents.attacker.ip('link del many0')


def test_a_vnl_in_many_pieces_is_put_together(innocents):
    assert by_hand(innocents.attacker, innocents.daemon, 'bytewise', 'vxvde://239.9.9.9') == '0\0'
    wait_until(lambda: b'open interface: vxvde://239.9.9.9 (bit0' in b'\n'.join(
        log_lines(innocents.daemon)))
    innocents.attacker.ip('link del bit0')


def test_a_vnl_without_end_is_refused(innocents):
    assert by_hand(innocents.attacker, innocents.daemon, 'million') == answered(errno.EINVAL)


ODD_VNLS = {
    b'null://\x1b[31mred\x07': errno.EINVAL,
    b'null://a\nopen interface: vxvde:// (root0, pid 1 uid 0 gid 0)': errno.EINVAL,
    b'null://\xff\xfe\xc3(': errno.EINVAL,
    'null://\u202e\u2028'.encode(): errno.EINVAL,
    b'null://%0a%1b[2J': errno.EINVAL,
    b'null://%00': errno.EINVAL,
    b'\x7f\x80://': errno.EINVAL,
    b'no\\such://': errno.EPROTONOSUPPORT,
    b'://': errno.EPROTONOSUPPORT,
    b'vxvde://{{{{{{{{': errno.EINVAL,
    b'vxvde://\'': errno.EINVAL,
    b'null://' + b'\xf0\x9f\x92\xa9' * 1020: 0,
    b'x' * 4095: None,                  # a path: some errno
    b'x' * 4096: errno.EINVAL,
}


def test_odd_bytes_are_refused_and_reach_the_log_as_printable_ascii(innocents):
    daemon = innocents.daemon
    before = len(log_lines(daemon))
    requests = list(ODD_VNLS)
    answers = ask(innocents.attacker, daemon, [request + b'\0' for request in requests])
    for request, answer in zip(requests, answers):
        expected = ODD_VNLS[request]
        if expected is None:
            assert answer.endswith('\0') and int(answer[:-1]) > 0
        else:
            assert answer == answered(expected), request
    refused = [answer for answer in answers if answer != '0\0']
    wait_until(lambda: sum(b'open interface failed: ' in line for line in
                           log_lines(daemon)[before - 1:]) == len(refused))
    for line in log_lines(daemon):
        assert all(0x20 <= byte <= 0x7e for byte in line), line
        assert len(line) <= 1100
    assert not any(line.startswith(b'open interface: vxvde:// (root0') for line in
                   log_lines(daemon))


def test_what_follows_the_nul_is_not_part_of_the_vnl(innocents):
    request = b'null://one\0two\0three=3\0\0'
    assert ask(innocents.attacker, innocents.daemon, [request]) == ['0\0']
    wait_until(lambda: any(b'null://one (odd0' in line for line in log_lines(innocents.daemon)))


def test_a_refused_tap_is_let_go_before_the_answer(innocents):
    """Who is refused can try again under the same name, at once."""
    answers = by_hand(innocents.attacker, innocents.daemon, 'again', 50)
    assert answers == [answered(errno.EPROTONOSUPPORT)] * 50


# ---- clients that are slow, or die --------------------------------------------------------------

def test_silent_clients_are_cut_off_and_newcomers_served_meanwhile(innocents):
    daemon = innocents.daemon
    script = [PYTHON, BY_HAND, daemon.socket, 'silent', '70']
    child = innocents.attacker.popen(*script, stdout=-1, universal_newlines=True)
    assert child.stdout.readline() == 'ready\n'
    innocents.newcomer()
    innocents.a.ping('10.0.0.2')
    assert child.poll() is None         # the silent ones are still there
    found = json.loads(child.communicate(timeout=30)[0])
    assert len(found) == 70
    for answer, seconds in found:
        assert answer in (answered(errno.EAGAIN), answered(errno.ETIMEDOUT))
        assert seconds < 6.5
    assert [seconds < 4 for _, seconds in found[:6]] == [True] * 6      # more than 64: oldest first
    patient = [pair for pair in found if pair[0] == answered(errno.ETIMEDOUT)]
    assert len(patient) >= 60
    assert all(4.5 < seconds for _, seconds in patient)


def test_a_client_may_die_at_any_step(innocents):
    kept = by_hand(innocents.attacker, innocents.daemon, 'deaths', 6)
    assert kept <= 1                    # one whose success was on its way is nobody's fault


def test_a_client_killed_while_it_waits_leaves_nothing(innocents):
    daemon, attacker = innocents.daemon, innocents.attacker
    stopped = daemon.process.pid
    os.kill(stopped, signal.SIGSTOP)    # nobody accepts
    try:
        client = attacker.popen(PYTHON, os.path.join(os.path.dirname(BY_HAND), '..', '..',
                                                     'vdelxcc.py'),
                                '-s', daemon.socket, '-i', 'wait0', 'null://')
        wait_until(lambda: 'wait0' in attacker.interfaces())
        client.send_signal(signal.SIGKILL)
        client.wait(10)
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_until(lambda: 'wait0' not in attacker.interfaces())


def test_a_client_that_dies_before_the_answer_leaves_no_node(innocents, tmp_path):
    """The session opened a hub, and then nobody was there to be told."""
    node = str(tmp_path / 'node')
    by_hand(innocents.attacker, innocents.daemon, 'die', 'hub://' + node)
    innocents.baseline.check_same()
    assert not os.path.exists(node)


def test_two_dozen_clients_at_once_are_all_served(innocents):
    results = []
    attacker, daemon = innocents.attacker, innocents.daemon

    def client(index):
        results.append(attacker.client('-s', daemon.socket, '-i', 'par%d' % index, 'null://',
                                       check=False).returncode)
    threads = [threading.Thread(target=client, args=(index,)) for index in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 24
    for index in range(24):
        attacker.ip('link del par%d' % index)


# ---- rules, end to end --------------------------------------------------------------------------

def refusal(container, daemon, *argv):
    """The client's one line for a request that must fail; nothing is left behind."""
    done = container.client('-s', daemon.socket, *argv, check=False)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('vdelxcd: ')
    assert container.interfaces() == {'lo'}
    return done.stderr


def served(container, daemon, *argv):
    """A request that must succeed, silently; the interface is removed again."""
    done = container.client('-s', daemon.socket, *argv)
    assert (done.stdout, done.stderr) == ('', '')
    container.ip('link del vde0')


def test_the_permissive_model_allows_everything_it_knows(host, new_container, new_daemon):
    daemon, container = new_daemon(host), new_container()
    served(container, daemon, 'vxvde://')
    served(container, daemon, 'null://')
    assert os.strerror(errno.ENOENT) in refusal(container, daemon)
    assert os.strerror(errno.EPROTONOSUPPORT) in refusal(container, daemon, 'nonsense://')
    assert os.strerror(errno.EINVAL) in refusal(container, daemon, 'vxvde:///colour=red')
    assert os.strerror(errno.EINVAL) in refusal(container, daemon, 'vxvde:///vni=16777216')


def test_a_default_alone_is_the_one_network(host, new_container, new_daemon):
    daemon, container = new_daemon(host, '-v', vnl='vxvde://239.1.2.3'), new_container()
    served(container, daemon)
    served(container, daemon, 'vxvde://239.1.2.3')
    for vnl in 'vxvde://', 'vxvde://239.1.2.30', 'vxvde://239.1.2.3/vni=2', 'null://':
        assert os.strerror(errno.EACCES) in refusal(container, daemon, vnl)
        wait_until(lambda: 'open interface permission denied: %s (' % vnl in daemon.log())


def test_a_rules_file_decides_line_by_line(host, new_container, new_daemon, tmp_path):
    rules = tmp_path / 'rules'
    rules.write_text('# ours\ndefault null://home\nDeny vxvde://239.0.0.9\n'
                     'pfxallow vxvde://239.\n\n  allow null://\r\n')
    daemon, container = new_daemon(host, '-f', str(rules)), new_container()
    served(container, daemon)
    served(container, daemon, 'null://')
    served(container, daemon, 'vxvde://239.7.7.7')
    for vnl in 'vxvde://239.0.0.9', 'vxvde://', 'vxvde://239.0.0.9/ttl=3', 'null://else':
        text = refusal(container, daemon, vnl)
        assert os.strerror(errno.EACCES) in text and 'rules' in text
        wait_until(lambda: 'open interface permission denied: %s (' % vnl in daemon.log())
    assert '%s:3' % rules in daemon.log()       # the line that denied is named
    assert 'open interface: ' not in daemon.log() and 'close' not in daemon.log()   # no -v
