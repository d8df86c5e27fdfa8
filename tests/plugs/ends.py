"""Plugs as a test holds them: each in a process of its own, inside a namespace of the test.

An End is one plug; a Bench is a host (a namespace) in which ends are opened.
"""

import base64
import json
import os
import random
import select
import subprocess
import time

import pytest

from conftest import DAEMON, PYTHON, Host, require_namespaces

PLUG_END = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'plug_end.py')
ETHERTYPE = b'\x88\xb5'                 # IEEE 802: local experiments; no stack answers it
EVERYONE = b'\xff' * 6
PATIENCE = 10                           # seconds for what must happen


def mac(number):
    """The MAC address of a node (int), local and unicast."""
    return b'\x02\x00' + number.to_bytes(4, 'big')


def frame(length, source=1, target=EVERYONE, seed=0):
    """A frame of length bytes whose payload depends on everything; the same for the same."""
    target = mac(target) if isinstance(target, int) else target
    head = (target + mac(source) + ETHERTYPE)[:length]
    noise = random.Random('%d %d %s %d' % (length, source, target.hex(), seed))
    size = length - len(head)
    return head + (noise.getrandbits(8 * size).to_bytes(size, 'big') if size else b'')


class Refused(Exception):
    """open() of a VNL failed: the errno and the sentence."""

    def __init__(self, number, sentence):
        super().__init__(sentence)
        self.errno = number


class End:
    """One plug in a process of its own; it takes frames at all times unless it is told to hold."""

    def __init__(self, namespace, inherited=(), before=()):
        argv = list(before) + [PYTHON, PLUG_END, DAEMON]
        self.process = namespace.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       bufsize=0, pass_fds=inherited)
        self.rest = b''

    def do(self, command, **values):
        """Give a command and return its answer."""
        self.process.stdin.write(json.dumps([command, values]).encode() + b'\n')
        deadline = time.monotonic() + 3 * PATIENCE
        while b'\n' not in self.rest:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.process.stdout], [], [], left)[0]:
                pytest.fail('no answer to %s within %d s' % (command, 3 * PATIENCE))
            part = self.process.stdout.read(1 << 20)
            if not part:
                pytest.fail('the process of a plug died at %s' % command)
            self.rest += part
        line, _, self.rest = self.rest.partition(b'\n')
        kind, value = json.loads(line.decode())
        if kind == 'failed':
            pytest.fail('%s: %s' % (command, value))
        return value

    def open(self, vnl):
        """Open a network. Raises Refused."""
        refused = self.do('open', vnl=vnl)
        if refused:
            raise Refused(*refused)
        return self

    def send(self, *bursts, times=1):
        """Send bursts, each a list of frames: (longest time that one took, drops)."""
        texts = [[base64.b64encode(each).decode() for each in burst] for burst in bursts]
        return tuple(self.do('send', bursts=texts, times=times))

    def take(self, count, seconds=PATIENCE):
        """What came since the last take(); waits until it is count frames."""
        return [base64.b64decode(text) for text in self.do('take', count=count, seconds=seconds)]

    def recv(self, fd=None):
        """One recv() of one descriptor, or of each: (frames, longest time that it took)."""
        texts, longest = self.do('recv', fd=fd)
        return [base64.b64decode(text) for text in texts], longest

    def close(self):
        """End the process, and the plug with it, as a crash would."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Bench:
    """A host, a directory, and the ends that were opened there."""

    def __init__(self, directory, host=None):
        self.directory, self.hosts = str(directory), []
        self.host = host or self.new_host('bench')
        self.ends = []
        self.set('unix/max_dgram_qlen', 512)    # as many as may wait elsewhere

    def set(self, name, value):
        """Set a variable of the host's kernel, below /proc/sys/net."""
        self.host.run('sh', '-c', 'echo %s > /proc/sys/net/%s' % (value, name), check=False)

    def new_host(self, name):
        """A host that ends with the bench."""
        self.hosts.append(Host(name))
        return self.hosts[-1]

    def end(self, host=None, **more):
        """A process for a plug, here or on another host."""
        self.ends.append(End(host or self.host, **more))
        return self.ends[-1]

    def open(self, vnl, **more):
        """An End with an open network. Raises Refused."""
        return self.end(**more).open(vnl)

    def wired(self):
        """Another host, at the other end of a cable: we are 192.0.2.1, it is 192.0.2.2."""
        far = self.new_host('far')
        self.host.wire(far)
        return far

    def tap(self, name, gap=0):
        """An End with a new TAP."""
        end = self.end()
        end.do('tap', name=name, gap=gap)
        return end

    def bridge(self, *interfaces):
        """A Linux bridge of interfaces, all switched on and taking the longest frames.

        The host itself stays silent there.
        """
        self.host.ip('link add bridge type bridge mcast_snooping 0')
        for name in ('bridge',) + interfaces:
            self.set('ipv6/conf/%s/disable_ipv6' % name, 1)
        for name in interfaces:
            self.host.ip('link set %s mtu 10000 master bridge up' % name)
        self.host.ip('link set bridge mtu 10000 up')

    def close(self):
        for thing in self.ends + self.hosts:
            thing.close()


@pytest.fixture
def new_bench(closing, tmp_path):
    """new_bench() makes a bench on a host of its own, or on the host that it is given."""
    require_namespaces()
    return lambda host=None: closing(Bench(tmp_path, host))


@pytest.fixture
def bench(new_bench):
    """One bench."""
    return new_bench()
