"""Everything that is no good TAP is refused with an errno, and costs the daemon nothing."""

import errno

import pytest

from aftermath import belonging
from attacks import one_scene
from conftest import wait_until
from hostile import DESCRIPTORS, FUSES


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """One daemon for the whole table; at its end everybody is unharmed."""
    with one_scene(tmp_path_factory.mktemp('vde')) as found:
        yield found
        found.prove()
        assert found.attacker.container.interfaces() == {'lo'}


def refused(answer):
    """Was it an errno for a wrong descriptor, and nothing else?"""
    return answer in ('%d\0' % errno.EBADF, '%d\0' % errno.EINVAL)


def costs(scene):
    """The daemon's processes, zombies too, and how many descriptors each has."""
    return sorted((each.pid, each.state == 'Z', each.fds) for each in belonging(scene.daemon))


def cost_nothing(scene, before):
    """A newcomer is served, the innocent's ping goes on, nothing is left behind."""
    answer, seconds = scene.attacker.newcomer()
    assert answer == '0\0' and seconds < 1
    scene.bystanders.ping(1)
    wait_until(lambda: costs(scene) == before, 5, 'processes and descriptors as before')


@pytest.mark.parametrize('kind', sorted(DESCRIPTORS))
def test_a_wrong_descriptor_is_refused_and_costs_nothing(scene, kind):
    before = costs(scene)
    assert refused(scene.attacker.descriptor(kind))
    cost_nothing(scene, before)


@pytest.mark.parametrize('order', [['itself'], ['in_two_messages', 'same'],
                                   ['in_two_messages', 'other']], ids=' '.join)
def test_a_descriptor_that_comes_in_another_way_is_refused_too(scene, order):
    before = costs(scene)
    assert refused(getattr(scene.attacker, order[0])(*order[1:]))
    cost_nothing(scene, before)


def test_an_offload_header_that_was_announced_and_is_missing_is_refused(scene):
    before = costs(scene)
    assert scene.attacker.hand('bad0', 'null://', 0x1002, 'offload=1\0').startswith('22\0')
    scene.attacker.let_go('bad0')
    cost_nothing(scene, before)


# ---- descriptors that make whoever touches them wait --------------------------------------------

def server_descriptors(scene):
    return [each.fds for each in belonging(scene.daemon) if each.pid == scene.daemon.process.pid]


def test_who_waits_for_a_descriptor_is_cut_off_and_everybody_else_is_served(scene):
    """Files of a file system that never answers, and a socket whose close() waits.

    The kernel lets nobody kill a process that waits for a file system, until that one goes.
    """
    before, mine = costs(scene), server_descriptors(scene)
    for kind in sorted(FUSES):
        scene.attacker.fuse(kind)
    scene.attacker.linger()
    with scene.bystanders.pinging():
        assert scene.bystanders.serve_newcomer() < 2
        assert len(belonging(scene.daemon)) > len(before)           # they do hang
        wait_until(lambda: server_descriptors(scene) == mine, 7, 'the server waits no more')
        assert scene.bystanders.serve_newcomer() < 2
        # These are many; nobody else has to wait for their end.
        assert scene.attacker.newcomer()[0] == '%d\0' % errno.EAGAIN
        assert 'of this container' in scene.daemon.log()
    answers = scene.attacker.hanging()
    assert len(answers) == len(FUSES) + 1
    for kind, answer in answers.items():
        if kind == 'fuse fstat of a TAP':           # it is one, whatever the file system says
            assert answer == '0\0'
        else:
            assert answer == '' or refused(answer), kind
    scene.attacker.ip('link del fuse0')
    scene.attacker.hanging_end()
    scene.attacker.silent_end()
    wait_until(lambda: costs(scene) == before, 5, 'processes and descriptors as before')
    cost_nothing(scene, before)
