"""Sessions that are stopped, killed, or made many of one TAP: an interface's own affair."""

import os
import signal

import pytest

from aftermath import belonging
from attacks import scene                                               # noqa: F401
from conftest import wait_until


def ours(scene, name='bad0'):
    """An interface of the attacker's on the network of the innocent; its session's processes."""
    assert scene.attacker.hand(name, scene.bystanders.vnl) == '0\0'
    scene.attacker.let_go(name)
    scene.attacker.container.up(name, scene.bystanders.net + '.66/24')
    reaches(scene)
    return scene.sessions(name)


def reaches(scene):
    wait_until(lambda: scene.attacker.container.ping(
        scene.bystanders.net + '.1', 1, check=False).returncode == 0, 5)


def test_a_stopped_session_stops_its_own_interface_only(scene):
    pids = ours(scene)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    with scene.bystanders.pinging():
        scene.bystanders.serve_newcomer()
        scene.attacker.container.run('ping', '-n', '-c', 1, '-W', 1,
                                     scene.bystanders.net + '.1', check=False)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    reaches(scene)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    scene.attacker.ip('link del bad0')
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    scene.prove()


def test_a_session_killed_in_any_of_its_processes_takes_its_own_interface_only(scene):
    for which in range(len(ours(scene))):
        if 'bad0' not in scene.attacker.container.interfaces():
            ours(scene)
        os.kill(scene.sessions('bad0')[which], signal.SIGKILL)
        with scene.bystanders.pinging():
            wait_until(lambda: 'bad0' not in scene.attacker.container.interfaces(), 5)
            wait_until(lambda: not scene.sessions('bad0'), 5)
    scene.prove()


def test_every_process_says_what_it_is_for(scene):
    ours(scene)
    names = sorted(each.name for each in belonging(scene.daemon))
    assert names.count('vdelxcd') == 1
    assert 'vdelxcd:bad0' in names and 'vdelxcd:vde0' in names
    assert all(name.startswith('vdelxcd') for name in names)
    scene.attacker.ip('link del bad0')
    scene.prove()


@pytest.mark.parametrize('count', [5, 100])
def test_one_tap_handed_over_many_times_is_one_containers_affair(scene, count):
    """Each is a session, or refused; all go with the interface."""
    assert scene.attacker.hand('bad0') == '0\0'
    answers = [scene.attacker.hand_again('bad0') for _ in range(count - 1)]
    assert all(answer.rstrip('\0').isdigit() for answer in answers), answers
    assert len(scene.sessions('bad0')) >= 1 + answers.count('0\0')
    scene.bystanders.ping()
    scene.bystanders.serve_newcomer()
    scene.attacker.let_go('bad0')
    scene.attacker.ip('link del bad0')
    scene.prove()


def test_many_sessions_of_one_tap_on_one_network_do_not_harm_the_others(scene):
    """They feed each other; what they do to the network any container could do by itself."""
    assert scene.attacker.hand('bad0', scene.bystanders.vnl) == '0\0'
    for _ in range(4):
        scene.attacker.hand_again('bad0', scene.bystanders.vnl)
    scene.attacker.container.up('bad0', scene.bystanders.net + '.66/24')
    with scene.bystanders.pinging(0.5):
        scene.bystanders.serve_newcomer()
    scene.attacker.let_go('bad0')
    scene.attacker.ip('link del bad0')
    scene.prove()


def test_interfaces_of_several_containers_survive_the_daemon_that_is_killed_in_the_storm(scene):
    """SIGKILL while clients wait: they hear the end; a new daemon serves."""
    scene.attacker.silent(40)
    with scene.bystanders.pinging():
        scene.daemon.stop(signal.SIGKILL)
        scene.daemon.start()
        scene.bystanders.serve_newcomer()
    scene.attacker.silent_end()
    scene.bystanders.note()             # the new one asks the sessions, which takes a descriptor
    scene.prove()
