"""--max-per-container and --max-sessions: who has enough gets no more, and nobody else suffers."""

import errno
import os
import signal
import time

from attacks import Attacker, new_scene                                 # noqa: F401
from conftest import wait_until

ENOUGH = '%d\0' % errno.EDQUOT


def remove(attacker):
    """The attacker deletes all that he has."""
    for name in attacker.container.interfaces() - {'lo'}:
        attacker.ip('link del ' + name)


def test_a_container_gets_so_many_interfaces_and_more_when_one_is_gone(new_scene, new_container):
    scene = new_scene('-v', '--max-per-container', '3')
    attacker = scene.attacker
    answers = attacker.storm(20, 'one')
    assert answers.count('0\0') == 3 and answers.count(ENOUGH) == 17
    done = attacker.container.client('-s', scene.daemon.socket, 'null://', check=False)
    assert done.returncode == 1 and os.strerror(errno.EDQUOT) in done.stderr
    other = Attacker(new_container('other'), scene.daemon)
    assert other.storm(4, 'two').count('0\0') == 3          # it has three of its own
    scene.bystanders.serve_newcomer()
    names = sorted(attacker.container.interfaces() - {'lo'})
    attacker.ip('link del ' + names[0])
    wait_until(lambda: attacker.newcomer()[0] == '0\0', 2)
    os.kill(scene.sessions(names[1])[0], signal.SIGKILL)
    wait_until(lambda: attacker.newcomer()[0] == '0\0', 2)
    remove(attacker)
    remove(other)
    other.stop()
    scene.prove()


def test_one_tap_counts_as_often_as_it_is_handed_over(new_scene):
    scene = new_scene('-v', '--max-per-container', '5')
    assert scene.attacker.hand('bad0') == '0\0'
    answers = [scene.attacker.hand_again('bad0') for _ in range(99)]
    assert answers == ['0\0'] * 4 + [ENOUGH] * 95
    scene.attacker.let_go('bad0')
    scene.attacker.ip('link del bad0')
    scene.prove()


def test_what_fails_does_not_count(new_scene):
    scene = new_scene('-v', '--max-per-container', '2')
    for vnl in 'vde:///nowhere', 'nonsense://', 'vxvde:///if=nowhere':
        for answer in scene.attacker.refusals(5, vnl):
            assert answer not in ('0\0', ENOUGH)
    wait_until(lambda: scene.attacker.newcomer()[0] == '0\0', 2)
    scene.prove()


def test_all_containers_together_get_so_many_interfaces(new_scene, new_container):
    scene = new_scene('-v', '--max-sessions', '6')          # two are the bystanders'
    other = Attacker(new_container('other'), scene.daemon)
    assert scene.attacker.storm(3, 'one') == ['0\0'] * 3
    assert sorted(other.storm(3, 'two')) == ['0\0'] + [ENOUGH] * 2
    scene.bystanders.ping()
    remove(scene.attacker)
    remove(other)
    other.stop()
    wait_until(lambda: scene.attacker.newcomer()[0] == '0\0', 2)
    scene.prove()


def test_what_goes_beyond_a_quota_is_logged_once_a_second(new_scene):
    scene = new_scene('-v', '--max-per-container', '1')
    assert scene.attacker.hand('bad0') == '0\0'
    since, count = time.monotonic(), len(scene.daemon.log().splitlines())
    assert set(scene.attacker.refusals(100, 'null://')) == {ENOUGH}
    seconds = time.monotonic() - since
    lines = scene.daemon.log().splitlines()[count:]
    assert 1 <= len(lines) <= 2 + seconds, lines
    scene.attacker.let_go('bad0')
    scene.attacker.ip('link del bad0')
    scene.prove()
