"""Everything that is no good TAP is refused with an errno, and costs the daemon nothing."""

import errno

import pytest

from aftermath import belonging, costs
from attacks import scene                                               # noqa: F401
from conftest import wait_until
from hostile import DESCRIPTORS, FUSES

NO_TAP, WRONG_TAP = '%d\0' % errno.EBADF, '%d\0' % errno.EINVAL
# TAPs of a kind that can't be used, or more than one descriptor. The others are no TAP.
WRONG = {'two TAPs', 'a TAP twice', 'a TAP and a pipe', '64', '253', 'packet-info header',
         'packet-info and offload header', 'offload header', 'multi-queue', 'second queue'}


def cost_nothing(scene):
    """A newcomer is served, the innocent's ping goes on, nothing is left behind."""
    answer, seconds = scene.attacker.newcomer()
    assert answer == '0\0' and seconds < 1
    scene.bystanders.ping(1)
    scene.costs_nothing()


@pytest.mark.parametrize('kind', sorted(DESCRIPTORS))
def test_a_wrong_descriptor_is_refused_and_costs_nothing(scene, kind):
    answers = [WRONG_TAP if kind in WRONG else NO_TAP]
    if kind == 'detached queue':        # the kernel shows it as attached or not, by its version
        answers.append(WRONG_TAP)
    assert scene.attacker.descriptor(kind) in answers
    cost_nothing(scene)


@pytest.mark.parametrize('order, answer', [
    ('itself', NO_TAP), ('in_two_messages same', WRONG_TAP), ('in_two_messages other', WRONG_TAP)])
def test_a_descriptor_that_comes_in_another_way_is_refused_too(scene, order, answer):
    name, *arguments = order.split()
    assert getattr(scene.attacker, name)(*arguments) == answer
    cost_nothing(scene)


def test_an_offload_header_that_was_announced_and_is_missing_is_refused(scene):
    assert scene.attacker.hand('bad0', 'null://', 0x1002, 'offload=1\0').startswith('22\0')
    scene.attacker.let_go('bad0')
    cost_nothing(scene)


# ---- descriptors that make whoever touches them wait --------------------------------------------

def of_server(scene, processes):
    """What the server alone costs."""
    return costs(each for each in processes if each.pid == scene.daemon.process.pid)


def test_who_waits_for_a_descriptor_is_cut_off_and_everybody_else_is_served(scene):
    """Files of a file system that never answers, and a socket whose close() waits.

    The kernel lets nobody kill a process that waits for a file system, until that one goes.
    """
    before = scene.bystanders.baseline.before
    for kind in sorted(FUSES):
        scene.attacker.fuse(kind)
    scene.attacker.linger()
    with scene.bystanders.pinging():
        assert scene.bystanders.serve_newcomer() < 2
        assert len(belonging(scene.daemon)) > len(before)           # they do hang
        wait_until(lambda: of_server(scene, belonging(scene.daemon)) == of_server(scene, before),
                   7, 'the server waits no more')
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
            assert answer in ('', NO_TAP), kind
    scene.attacker.ip('link del fuse0')
    scene.attacker.hanging_end()
    scene.attacker.silent_end()
    scene.costs_nothing()
    cost_nothing(scene)
