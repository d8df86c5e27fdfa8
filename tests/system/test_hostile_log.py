"""A log that takes no more lines, while refusals pour in: nobody waits for it."""

import os
import pty
import re
import subprocess
import termios
import time

import pytest

from attacks import new_scene                                           # noqa: F401
from conftest import require, wait_until


class Nowhere:
    """What a daemon's stderr is connected to: takes some lines, and then none."""

    def __init__(self, kind, daemon):
        self.kind, self.fds, self.wrap = kind, [], []
        if kind == 'full disk':
            self.wrap = ['unshare', '--mount', 'sh', '-ec', 'mkdir "$0"; mount -t tmpfs -o size=8k '
                         'none "$0"; exec "$@" 2>>"$0/log"', daemon.directory + '/full']
            self.stderr = subprocess.DEVNULL
        elif kind == 'file of limited size':
            require('prlimit')
            self.wrap = ['prlimit', '--fsize=8192']
            self.stderr = open(daemon.logfile, 'ab')
            self.fds.append(self.stderr.fileno())
        else:
            self.fds += pty.openpty()
            self.stderr = self.fds[1]
            os.set_blocking(self.stderr, False)
            try:
                while True:
                    os.write(self.stderr, b'x' * 1024)
            except BlockingIOError:
                os.set_blocking(self.stderr, True)
            if kind == 'terminal stopped':
                termios.tcflow(self.stderr, termios.TCOOFF)

    def close(self):
        if self.kind == 'terminal stopped':
            termios.tcflow(self.stderr, termios.TCOON)
        if self.kind == 'file of limited size':
            self.stderr.close()
        else:
            for fd in self.fds:
                os.close(fd)


@pytest.mark.parametrize('kind', ['full disk', 'file of limited size',
                                  'terminal not read', 'terminal stopped'])
def test_a_log_that_takes_no_more_hurts_nobody(host, closing, new_daemon, new_scene, kind):
    daemon = new_daemon(host, start=False)
    nowhere = closing(Nowhere(kind, daemon))
    daemon.process = host.popen(*(nowhere.wrap + daemon.argv), stderr=nowhere.stderr)
    wait_until(daemon.accepts)
    scene = new_scene(daemon=daemon)
    answers = scene.attacker.refusals(20, 'nonsense://' + 'x' * 900)
    assert set(answers) == {'93\0'}
    assert scene.attacker.hand('bad0') == '0\0'
    scene.attacker.let_go('bad0')
    scene.attacker.ip('link del bad0')
    scene.prove()
    assert daemon.stop() == 0
    scene.bystanders.ping()             # the sessions go on, and log their end
    scene.bystanders.pinger.ip('link del vde0')
    scene.bystanders.other.ip('link del vde0')
    wait_until(lambda: not daemon.pids(), 5)


def test_the_log_of_an_attack_is_one_printable_line_each(new_scene):
    """Texts that look like other lines, control the terminal, or are endless."""
    scene = new_scene()
    texts = ['null://\n<0>vdelxcd: rules read again', 'null://\r\x1b]0;title\x07',
             'null://\x85\u2028', 'null://' + '\x00\x7f' * 3, 'null://%0aopen interface: null://',
             'hub://\x1b[2J', 'vxvde:///if=\x1b[31m', 'vde:///\x9b31m', '\x1b' * 4000,
             'null://[' * 500, 'vlan://1{' * 400, 'null://' + '\\' * 4000]
    for text in texts:
        answer, = scene.attacker.refusals(1, text)
        assert answer.rstrip('\0').isdigit(), (text, answer)
        for name in scene.attacker.container.interfaces() - {'lo'}:
            scene.attacker.ip('link del ' + name)
    scene.prove()
    with open(scene.daemon.logfile, 'rb') as file:
        lines = file.read().split(b'\n')
    known = b'open interface', b'close interface', b'hand-over'
    for line in lines[:-1]:
        assert line.startswith(known), line
        assert len(line) <= 1100 and all(0x20 <= byte <= 0x7e for byte in line), line


def test_a_container_cannot_fill_the_log_with_refusals(new_scene):
    """Twenty lines at once, one a second later; the rest is counted, and others are logged."""
    scene = new_scene()
    started = time.monotonic()
    scene.attacker.refusals(200, 'nonsense://')
    line = 'open interface failed: nonsense://'
    logged = scene.daemon.log().count(line)
    assert 20 <= logged <= 21 + time.monotonic() - started, scene.daemon.log()
    other = scene.bystanders.other
    assert other.client('-s', scene.daemon.socket, 'stranger://', check=False).returncode == 1
    assert 'open interface failed: stranger://' in scene.daemon.log()
    left_out = re.compile(r'^(\d+) more requests of the container \(net:\[\d+\]\) were refused$',
                          re.M)
    wait_until(lambda: left_out.search(scene.daemon.log()), 15)
    number = sum(map(int, left_out.findall(scene.daemon.log())))
    assert number + scene.daemon.log().count(line) == 200
