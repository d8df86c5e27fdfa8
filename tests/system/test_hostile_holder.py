"""Who handed a TAP over keeps a duplicate of its open file, and the interface itself.

Whatever he does with them changes his own interface and nothing else: not the daemon, not the
sessions of others; and the interface's end always ends the session.
"""

import errno
import os
import signal

import pytest

from aftermath import belonging
from attacks import one_scene
from conftest import wait_until

NAME = 'bad0'
VNET = 0x4000
NONBLOCK, APPEND, DIRECT = os.O_NONBLOCK, os.O_APPEND, os.O_DIRECT
REFUSED = errno.EINVAL, errno.EBUSY, errno.EPERM, errno.EEXIST, errno.EBADF, 524     # ENOTSUPP


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """One daemon for all games; at the end everybody is unharmed."""
    with one_scene(tmp_path_factory.mktemp('vde')) as found:
        yield found
        found.prove()
        assert found.attacker.container.interfaces() == {'lo'}


def costs(scene):
    """The daemon's processes, zombies too, and how many descriptors each has."""
    return sorted((each.pid, each.state == 'Z', each.fds) for each in belonging(scene.daemon))


class Game:
    """The attacker's interface on the network of the innocent; he pings them all the time."""

    def __init__(self, scene, offload=False):
        self.scene, self.attacker = scene, scene.attacker
        flags, keys = (0x1002 | VNET, 'offload=1\0') if offload else (0x1002, '')
        self.before = costs(scene)
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
        self.scene.bystanders.ping(10)
        assert self.attacker.newcomer()[0] == '0\0'
        self.ping.kill()
        self.ping.wait()
        if delete:
            self.attacker.ip('link del ' + NAME, check=False)
        wait_until(lambda: costs(self.scene) == self.before, 5, 'as it was before the game')
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


@pytest.mark.parametrize('offload', [False, True], ids=['plain', 'offload'])
@pytest.mark.parametrize('kind', sorted(GAMES))
def test_games_with_the_open_file_change_the_players_interface_only(scene, kind, offload):
    orders, harmful = GAMES[kind]
    if offload and not kind.startswith(('header', 'giants', 'byte', 'checksums')):
        pytest.skip('the same as without')
    game = Game(scene, offload)
    for name, *arguments in orders:
        found = getattr(scene.attacker, name)(NAME, *arguments)
        assert name in ('flip', 'steal', 'put') or found == 0 or found in REFUSED, found
    scene.bystanders.ping(5)
    if not harmful and not offload:
        wait_until(game.reaches, 3)
    game.over()
