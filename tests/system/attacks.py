"""A daemon, bystanders and an attacker: what the tests of the hostile container begin with."""

import contextlib
import json
import os
import select
import subprocess

import pytest

from aftermath import Bystanders
from conftest import PYTHON, Container, Daemon, Host, require_namespaces

HOSTILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'hostile.py')


class Attacker:
    """A container in which hostile.py waits for orders: attacker.hand('bad0', 'null://')."""

    def __init__(self, container, daemon, wrap=()):
        self.container = container
        argv = list(wrap) + [PYTHON, HOSTILE]
        self.child = container.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.aim(daemon.socket)

    def begin(self, name, *arguments):
        """Give an order, and do not wait for what it finds."""
        self.child.stdin.write(json.dumps([name] + list(arguments)).encode() + b'\n')
        self.child.stdin.flush()

    def end(self, patience=30):
        """What the order found."""
        if not select.select([self.child.stdout], [], [], patience)[0]:
            pytest.fail('the attacker does not come back')
        line = self.child.stdout.readline()
        assert line, 'the attacker failed'
        found = json.loads(line.decode())
        if isinstance(found, dict) and 'failed' in found:
            pytest.fail('the attacker failed: ' + found['failed'])
        return found

    def __getattr__(self, name):
        def order(*arguments):
            self.begin(name, *arguments)
            return self.end()
        return order

    def ip(self, text, check=True):
        return self.container.ip(text, check=check)

    def stop(self):
        """Kill it: everything that it held is closed, and its mounts go."""
        self.child.kill()
        self.child.wait()
        self.child.stdin.close()
        self.child.stdout.close()


class Scene:
    """A host, its daemon, bystanders and an attacker."""

    def __init__(self, host, daemon, new_container, wrap=()):
        self.host, self.daemon = host, daemon
        self.bystanders = Bystanders(daemon, new_container)
        self.attacker = Attacker(new_container('attacker'), daemon, wrap)
        assert self.attacker.newcomer()[0] == '0\0'     # it has said all that it loads
        self.bystanders.serve_newcomer()
        self.prove = self.bystanders.prove
        self.prove()

    def costs_nothing(self):
        """Nothing but what was there at the beginning, or it goes at once."""
        self.bystanders.baseline.check_same()

    def sessions(self, name):
        """The processes that carry an interface's name."""
        found = []
        for pid in self.daemon.pids():
            try:
                with open('/proc/%d/comm' % pid) as file:
                    if file.read() == ('vdelxcd:' + name)[:15] + '\n':
                        found.append(pid)
            except OSError:
                pass
        return found


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """One Scene for all tests of a module; at its end everybody is unharmed."""
    require_namespaces()
    with contextlib.ExitStack() as stack:
        def new(made):
            stack.callback(made.close)
            return made
        host = new(Host('host'))
        daemon = new(Daemon(host, tmp_path_factory.mktemp('vde'), '-v'))
        found = Scene(host, daemon, lambda name: new(Container(name)))
        stack.callback(found.attacker.stop)
        yield found
        found.prove()
        assert found.attacker.container.interfaces() == {'lo'}


@pytest.fixture
def new_scene(host, new_container, new_daemon):
    """new_scene(*options) starts a daemon and brings everybody."""
    scenes = []

    def new(*argv, daemon=None, wrap=()):
        scenes.append(Scene(host, daemon or new_daemon(host, *argv), new_container, wrap))
        return scenes[-1]
    yield new
    for scene in scenes:
        scene.attacker.stop()
