"""Who handed a TAP over keeps a duplicate of its open file, and the interface itself.

Whatever he does with them changes his own interface and nothing else: not the daemon, not the
sessions of others; and the interface's end always ends the session.
"""

import errno
import os
import signal

import pytest

from attacks import scene                                               # noqa: F401
from conftest import wait_until

NAME = 'bad0'
VNET = 0x4000
NONBLOCK, APPEND, DIRECT = os.O_NONBLOCK, os.O_APPEND, os.O_DIRECT
REFUSED = errno.EINVAL, errno.EBUSY, errno.EPERM, errno.EEXIST, errno.EBADF, 524     # ENOTSUPP


class Game:
    """The attacker's interface on the network of the innocent; he pings them all the time."""

    def __init__(self, scene, offload=False):
        self.scene, self.attacker = scene, scene.attacker
        flags, keys = (0x1002 | VNET, 'offload=1\0') if offload else (0x1002, '')
        answer = self.attacker.hand(NAME, scene.bystanders.vnl, flags, keys)
        assert answer.startswith('0\0')
        self.attacker.container.up(NAME, scene.bystanders.net + '.66/24')
        assert self.reaches()
        self.pid, = scene.sessions(NAME)
        self.ping = self.attacker.container.popen(
            'ping', '-q', '-n', '-i', '0.002', '-s', '600', scene.bystanders.net + '.1',
            stdout=-3, stderr=-3)

    def reaches(self):
        """Is his own interface still on the network?"""
        return self.attacker.container.ping(self.scene.bystanders.net + '.1', 1,
                                            check=False).returncode == 0

    def over(self, delete=True):
        """The innocent are unharmed; with the interface the session goes, and all is as before."""
        self.scene.bystanders.ping(3)
        assert self.attacker.newcomer()[0] == '0\0'
        self.ping.kill()
        self.ping.wait()
        if delete:
            self.attacker.ip('link del ' + NAME, check=False)
        self.scene.costs_nothing()
        self.attacker.let_go(NAME)
        assert 'internal error' not in self.scene.daemon.log()
        assert 'Traceback' not in self.scene.daemon.log()


# ---- the shared open file -----------------------------------------------------------------------

# what the holder does, in orders for hostile.py; whether his interface may suffer from it
GAMES = {
    'reads wait': ([('status_flags', 0, NONBLOCK)], True),
    'reads wait, then not': ([('status_flags', 0, NONBLOCK), ('status_flags', NONBLOCK, 0)], False),
    'reads wait now and then': ([('flip', 0.5)], True),
    'appending': ([('status_flags', APPEND, 0)], False),
    'direct': ([('status_flags', DIRECT, 0)], False),
    'frames stolen': ([('steal', 0.5)], False),
    'reads wait, frames stolen': ([('status_flags', 0, NONBLOCK), ('steal', 0.5)], True),
    'giants': ([('control_by_value', 0x400454d0, 0x1f)], True),                 # TUNSETOFFLOAD
    'checksums left out': ([('control_by_value', 0x400454d0, 0x01)], True),
    'no checksums': ([('control_by_value', 0x400454c8, 1)], False),             # TUNSETNOCSUM
    'owner': ([('control_by_value', 0x400454cc, 64321)], False),                # TUNSETOWNER
    'group': ([('control_by_value', 0x400454ce, 64321)], False),                # TUNSETGROUP
    'header size': ([('control', 0x400454d8, 12)], False),                      # TUNSETVNETHDRSZ
    'header size of a page': ([('control', 0x400454d8, 4096)], False),
    'byte order': ([('control', 0x400454de, 1)], False),                        # TUNSETVNETBE
    'another queue': ([('control', 0x400454d9, 0x0200)], False),                # TUNSETQUEUE
    'no queue': ([('control', 0x400454d9, 0x0400)], False),
    'tiny send buffer': ([('control', 0x400454d4, 1)], True),                   # TUNSETSNDBUF
    'tiny send buffer, writes wait': ([('status_flags', 0, NONBLOCK),
                                       ('control', 0x400454d4, 1)], True),
    'no carrier': ([('control', 0x400454e2, 0)], True),                         # TUNSETCARRIER
    'multicast filter': ([('control', 0x400454d1, 0)], True),                   # TUNSETTXFILTER
    'nothing passes': ([('filter_frames', [6, 0, 0, 0])], True),                # TUNATTACHFILTER
    'one byte passes': ([('filter_frames', [6, 0, 0, 1])], True),
    'a program drops all': ([('extended_filter', 0x400454e1, 0)], True),        # TUNSETFILTEREBPF
    'a program cuts all': ([('extended_filter', 0x400454e1, 5)], True),
    'a program steers': ([('extended_filter', 0x400454e0, 7)], False),          # ...STEERINGEBPF
    'attached again': ([('attach_again', 0x1002)], False),
    'attached as TUN': ([('attach_again', 0x1001)], False),
    'attached with header': ([('attach_again', 0x5002)], False),
    'own frames': ([('put', 60, 200), ('put', 14, 200), ('put', 9000, 200)], False),
}

OFFLOAD = [kind for kind in GAMES if kind.startswith(('header', 'giants', 'byte', 'checksums'))]


@pytest.mark.parametrize('kind, offload', [(kind, False) for kind in GAMES] + [
    (kind, True) for kind in OFFLOAD], ids=lambda value: {True: 'offload', False: ''}.get(value))
def test_games_with_the_open_file_change_the_players_interface_only(scene, kind, offload):
    orders, harmful = GAMES[kind]
    game = Game(scene, offload)
    for name, *arguments in orders:
        found = getattr(scene.attacker, name)(NAME, *arguments)
        assert name in ('flip', 'steal', 'put') or found == 0 or found in REFUSED, found
    scene.bystanders.ping(2)
    if not harmful and not offload:
        wait_until(game.reaches, 3)
    game.over()


@pytest.mark.parametrize('number', [signal.SIGIO, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP,
                                    signal.SIGCHLD, signal.SIGPIPE], ids=lambda n: n.name)
def test_signals_sent_by_the_tap_hurt_its_own_session_at_most(scene, number):
    """F_SETOWN and O_ASYNC; only who shares the host's process numbers can name the session."""
    game = Game(scene)
    assert scene.attacker.signal_owner(NAME, game.pid, number) == 0
    scene.bystanders.ping(2)
    game.over()


def test_an_interface_made_to_stay_stays_when_its_session_is_killed_and_is_then_the_players(scene):
    game = Game(scene)
    assert scene.attacker.control_by_value(NAME, 0x400454cb, 1) == 0        # TUNSETPERSIST
    os.kill(game.pid, signal.SIGKILL)
    wait_until(lambda: not scene.sessions(NAME))
    assert NAME in scene.attacker.container.interfaces()
    game.over()


# ---- the interface ------------------------------------------------------------------------------

def renamed(scene, game):
    """Others have no use for the name: a newcomer may take the old one."""
    scene.attacker.ip('link set bad0 down')
    scene.attacker.ip('link set bad0 name worse0')
    scene.attacker.ip('link set worse0 up')
    assert scene.attacker.hand('other0')[:2] == '0\0'
    scene.attacker.ip('link del other0')
    scene.attacker.let_go('other0')
    wait_until(game.reaches, 3)
    scene.attacker.ip('link del worse0')


def moved(scene, game):
    """Into the namespace of another container, where it is deleted."""
    other = scene.bystanders.newcomer
    scene.attacker.ip('link set bad0 netns /proc/%d/ns/net' % other.holder.pid)
    other.up(NAME, scene.bystanders.net + '.67/24')
    other.ping(scene.bystanders.net + '.1', 1)
    other.ip('link del bad0')


def moved_to_a_namespace_that_ends(scene, game):
    """It is not the namespace where the TAP was made: nothing keeps it alive."""
    child = scene.attacker.container.popen('unshare', '--net', 'sleep', 'infinity')
    wait_until(lambda: os.readlink('/proc/%d/ns/net' % child.pid) not in (
        os.readlink('/proc/self/ns/net'), scene.attacker.container.inode()))
    scene.attacker.ip('link set bad0 netns /proc/%d/ns/net' % child.pid)
    child.kill()
    child.wait()
    wait_until(lambda: not scene.sessions(NAME), 5)


def small(scene, game):
    scene.attacker.ip('link set bad0 mtu 68')
    assert game.reaches()


def large(scene, game):
    scene.attacker.ip('link set bad0 mtu 65521')
    scene.attacker.container.run('ping', '-n', '-i', '0.1', '-w', 1, '-s', 65000,
                                 scene.bystanders.net + '.1', check=False)
    assert game.reaches()


def unsteady(scene, game):
    for _ in range(50):
        scene.attacker.ip('link set bad0 down')
        scene.attacker.ip('link set bad0 up')
    wait_until(game.reaches, 3)


def deleted(scene, game):
    scene.attacker.ip('link del bad0')
    wait_until(lambda: not scene.sessions(NAME), 5)


def no_queue(scene, game):
    scene.attacker.ip('link set bad0 txqueuelen 0')
    scene.attacker.ip('link set bad0 txqueuelen 100000')
    wait_until(game.reaches, 3)


def bridged(scene, game):
    """A loop: a bridge of two interfaces on one network."""
    assert scene.attacker.hand('bad1', scene.bystanders.vnl)[:2] == '0\0'
    scene.attacker.ip('link add loop0 type bridge')
    for name in NAME, 'bad1':
        scene.attacker.ip('link set %s master loop0' % name)
    scene.attacker.ip('link set bad1 up')
    scene.attacker.ip('link del bad1')
    scene.attacker.let_go('bad1')
    scene.attacker.ip('link del loop0')


def another_type(scene, game):
    """TUNSETLINK: no Ethernet any more, as far as the container's kernel is concerned."""
    scene.attacker.ip('link set bad0 down')
    assert scene.attacker.control_by_value(NAME, 0x400454cd, 65534) == 0
    scene.attacker.ip('link set bad0 up')


@pytest.mark.parametrize('play', [renamed, moved, moved_to_a_namespace_that_ends, small, large,
                                  unsteady, deleted, no_queue, bridged, another_type],
                         ids=lambda play: play.__name__)
def test_games_with_the_interface_change_that_interface_only(scene, play):
    game = Game(scene)
    play(scene, game)
    game.over()


def test_a_name_of_odd_bytes_is_escaped_in_the_log(scene):
    """The kernel forbids blanks, slashes and colons in a name, and nothing else."""
    assert scene.attacker.hand('\x1b[31m\xff\x07') == '0\0'
    wait_until(lambda: 'x1b[31m' in scene.daemon.log())
    try:
        with open(scene.daemon.logfile, 'rb') as file:
            assert all(0x20 <= byte <= 0x7e for byte in file.read().replace(b'\n', b''))
        for pid in scene.daemon.pids():
            with open('/proc/%d/comm' % pid, 'rb') as file:
                assert all(0x20 <= byte <= 0x7e for byte in file.read().rstrip(b'\n'))
    finally:
        scene.attacker.delete('\x1b[31m\xff\x07')
        scene.attacker.let_go('\x1b[31m\xff\x07')
    scene.costs_nothing()
