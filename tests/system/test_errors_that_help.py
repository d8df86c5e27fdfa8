"""Every line of DIAGNOSTICS in vdelxcc(1), provoked: what is missing, and what to do about it."""

import os
import re
import socket
import subprocess
import tempfile

import pytest

from answers import Listener
from conftest import (CLIENT, PYTHON, ROOT, Container, Daemon, Host, require, require_namespaces)

NO_CAPABILITY = ['setpriv', '--bounding-set=-net_admin', '--inh-caps=-net_admin']
NO_OVERRIDE = ['setpriv', '--bounding-set=-dac_override,-dac_read_search',
               '--inh-caps=-dac_override,-dac_read_search']

# Runs its arguments in a control group in which no device may be opened.
DENIED = """if True:
    import ctypes, os, struct, subprocess, sys
    numbers = {'x86_64': 321, 'aarch64': 280, 'riscv64': 280, 'loongarch64': 280}
    machine, libc = os.uname().machine, ctypes.CDLL(None, use_errno=True)

    def bpf(command, data):
        result = libc.syscall(numbers[machine], command, data, len(data))
        if result < 0:
            sys.exit('no-bpf: ' + os.strerror(ctypes.get_errno()))
        return result
    if machine not in numbers:
        sys.exit('no-bpf: its number is unknown on ' + machine)
    code = ctypes.create_string_buffer(bytes([0xb7] + 7 * [0] + [0x95] + 7 * [0]))     # return 0
    license = ctypes.create_string_buffer(b'GPL')
    program = bpf(5, struct.pack('=IIQQ96x', 15, 2, ctypes.addressof(code),
                                 ctypes.addressof(license)))
    with open('/proc/self/cgroup') as file:
        home = [line.split('::')[1].strip() for line in file if line.startswith('0::')][0]
    top = sys.argv[1]
    subprocess.check_call(['mount', '-t', 'cgroup2', 'none', top])
    group = '%s/vdelxc-test-%d' % (top, os.getpid())
    os.mkdir(group)

    def move(place):
        with open(place + '/cgroup.procs', 'w') as file:
            file.write(str(os.getpid()))
    try:
        directory = os.open(group, os.O_RDONLY)
        bpf(8, struct.pack('=IIII', directory, program, 6, 0))
        move(group)
        status = subprocess.call(sys.argv[2:])
    finally:
        move(top + home)
        os.rmdir(group)
    sys.exit(status)
"""


class Scene:
    """A host with a daemon, and a container in which clients fail: it stays as it is."""

    def __init__(self, directory):
        self.things, self.directory = [], directory
        self.host = self.keep(Host('host'))
        self.container = self.keep(Container('container'))
        self.daemon = self.keep(Daemon(self.host, directory, '-v'))
        self.container.client('-s', self.daemon.socket, '-i', 'ours0', '-a', '10.0.0.1/24',
                              'null://')
        self.container.ip('link add veth0 type veth peer name veth1')
        self.container.ip('route add default dev veth0', check=False)

    def keep(self, thing):
        """Close a thing at the end."""
        self.things.append(thing)
        return thing

    def close(self):
        for thing in reversed(self.things):
            thing.close()

    def path(self, name):
        """A path of this scene."""
        return os.path.join(self.directory, name)

    def client(self, *argv, before=(), socket=None, **more):
        """Run the client, before it the words of before; it must fail as every error does."""
        there = self.container.interfaces()
        done = self.container.run(*(list(before) + [PYTHON, CLIENT, '-s', socket or
                                                    self.daemon.socket] + list(argv)),
                                  check=False, **more)
        assert (done.returncode, done.stdout) == (1, ''), done
        assert done.stderr.count('\n') == 1 and done.stderr[:-1].isprintable(), done.stderr
        assert self.container.interfaces() == there
        return done.stderr[:-1]

    def delete(self, name, before=()):
        """Run the client to delete an interface; it must fail."""
        done = self.container.run(*(list(before) + [PYTHON, CLIENT, '-D', name]), check=False)
        assert done.returncode == 1 and done.stderr.count('\n') == 1
        return done.stderr[:-1]

    def device(self, commands, before=()):
        """Run the client with a /dev/net of its own, which commands fill."""
        script = 'mount -t tmpfs none /dev/net && { %s; } && exec "$@"' % commands
        return self.client('null://', before=['unshare', '--mount', 'sh', '-c', script, 'sh']
                           + list(before))

    def answered(self, *answers, argv=()):
        """Run the client against a socket that gives these answers."""
        listener = Listener(self.path('answers'), list(answers))
        try:
            return self.client(*(list(argv) + ['null://']), socket=listener.path)
        finally:
            listener.close()
            os.unlink(listener.path)


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    require_namespaces()
    scene = Scene(str(tmp_path_factory.mktemp('vde')))
    yield scene
    scene.close()


def require_device_nodes():
    """The test makes device nodes, which is for the real root."""
    if subprocess.call(['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none /dev/net && '
                        'mknod /dev/net/x c 10 200 && : <> /dev/net/x'],
                       stderr=subprocess.DEVNULL):
        pytest.skip('making device nodes needs root')


# ---- what provokes each line --------------------------------------------------------------------

def dead_socket(scene):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(scene.path('dead'))
    return scene.client('null://', socket=scene.path('dead'))


def closed_socket(scene):
    require('setpriv')
    daemon = Daemon(scene.host, scene.path(''), start=False)
    daemon.socket = daemon.argv[-1] = scene.path('closed')
    daemon.start()
    try:
        os.chmod(daemon.socket, 0)
        return scene.client('null://', before=NO_OVERRIDE, socket=daemon.socket)
    finally:
        daemon.close()


def full_socket(scene):
    waiting = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(scene.path('full'))
        listener.listen(0)
        try:
            while len(waiting) < 10:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting[-1].setblocking(False)
                waiting[-1].connect(scene.path('full'))
        except BlockingIOError:
            return scene.client('-t', '0.1', 'null://', socket=scene.path('full'))
        finally:
            for each in waiting:
                each.close()


def usage(scene, *argv):
    """The fault of a command line that makes no sense; the usage comes after it."""
    done = scene.container.client('-s', '/nowhere/s', *argv, check=False)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 2)
    assert '\nUsage: vdelxcc ' in done.stderr
    return done.stderr.split('\n')[0]


def denied_device(scene):
    require_device_nodes()
    place = scene.path('cgroup')
    os.makedirs(place, exist_ok=True)
    done = scene.container.run('unshare', '--mount', PYTHON, '-c', DENIED, place, PYTHON, CLIENT,
                               '-s', scene.daemon.socket, 'null://', check=False)
    if 'no-bpf' in done.stderr or 'mount:' in done.stderr:
        pytest.skip('no control group can be made here: ' + done.stderr)
    assert (done.returncode, done.stdout, done.stderr.count('\n')) == (1, '', 1), done.stderr
    return done.stderr[:-1]


def device_node(scene, *numbers, mode='666', before=()):
    require_device_nodes()
    return scene.device('mknod -m %s /dev/net/tun c %d %d' % ((mode,) + numbers), before)


def no_capability(scene):
    require('setpriv')
    return scene.client('null://', before=NO_CAPABILITY)


def no_ipv6(scene):
    for name in 'all', 'default':
        scene.container.run('sh', '-c', 'echo 1 > /proc/sys/net/ipv6/conf/%s/disable_ipv6' % name)
    try:
        return scene.client('-a', 'fd00::1/64', 'null://')
    finally:
        for name in 'all', 'default':
            scene.container.run('sh', '-c',
                                'echo 0 > /proc/sys/net/ipv6/conf/%s/disable_ipv6' % name)


def second_default_route(scene):
    scene.container.client('-s', scene.daemon.socket, '-i', 'way0', '-a', '10.2.0.1/24', '-g',
                           '10.2.0.2', 'null://')
    try:
        return scene.client('-a', '10.1.0.1/24', '-g', '10.1.0.2', 'null://')
    finally:
        scene.container.client('-D', 'way0')


def no_rule(scene):
    rules = scene.path('rules')
    with open(rules, 'w') as file:
        file.write('pfxallow vxvde://239.1\n')
    os.makedirs(scene.path('ruled'), exist_ok=True)
    daemon = Daemon(scene.host, scene.path('ruled'), '-f', rules)
    try:
        return scene.client('vxvde://', socket=daemon.socket)
    finally:
        daemon.close()


def no_multicast_route(scene, argv=()):
    host = Host('lonely')
    try:
        host.ip('route del 239.0.0.0/8')
        host.ip('link set lo down')
        os.makedirs(scene.path('lonely'), exist_ok=True)
        daemon = Daemon(host, scene.path('lonely'))
        try:
            return scene.client(*(list(argv) + ['vxvde://']), socket=daemon.socket)
        finally:
            daemon.close()
    finally:
        host.close()


def stopped_switch(scene):
    os.makedirs(scene.path('switch'), exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        if not os.path.exists(scene.path('switch/ctl')):
            dead.bind(scene.path('switch/ctl'))
    return scene.client('vde://' + scene.path('switch'))


def full_daemon(scene):
    with tempfile.TemporaryDirectory() as directory:
        daemon = Daemon(scene.host, directory, '--max-sessions=0')
        try:
            return scene.client('null://', socket=daemon.socket)
        finally:
            daemon.close()


def busy_tap(scene):
    scene.host.ip('tuntap add dev busy0 mode tap')
    holder = scene.host.popen(PYTHON, '-c', "import fcntl, os, struct, sys\n"
                              "tap = os.open('/dev/net/tun', os.O_RDWR)\n"
                              "fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'busy0', "
                              "0x1002))\nprint(flush=True)\nsys.stdin.read()",
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        return scene.client('tap://busy0')
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
        scene.host.ip('link del busy0')


def silent_daemon(scene):
    path = scene.path('silent')
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(1)
        return scene.client('-t', '0.1', 'null://', socket=path)


# (line of the manual, what its advice says, what provokes it); a line may come more than once
CASES = [
    ('vdelxcc: -a 10.0.0.1: its prefix length is missing', 'for example 10.0.0.1/24',
     lambda scene: usage(scene, '-a', '10.0.0.1')),
    ('vdelxcc: -a 10.0.0/24: not an IPv4 or IPv6 address', '',
     lambda scene: usage(scene, '-a', '10.0.0/24')),
    ('vdelxcc: -a 10.0.0.0/24: no address of a host, but of the whole network', '',
     lambda scene: usage(scene, '-a', '10.0.0.0/24')),
    ('vdelxcc: --mtu 99999: auto, or 68 to 65521 bytes', '',
     lambda scene: usage(scene, '--mtu', '99999')),
    ('connect: No such file or directory', 'start vdelxcd on the host',
     lambda scene: scene.client('null://', socket='/nowhere/vdelxcs')),
    ('connect: Connection refused', 'start vdelxcd on the host', dead_socket),
    ('connect: Permission denied', 'vdelxcd -m', closed_socket),
    ('connect: Resource temporarily unavailable', 'does not accept', full_socket),
    ('connect: File name too long', '107',
     lambda scene: scene.client('null://', socket='/' + 'x' * 107)),
    ('interface definition: No such file or directory', 'dev/net/tun none bind,create=file',
     lambda scene: scene.device(':')),
    ('interface definition: Operation not permitted',
     '/dev/net/tun: let the container use the device; LXC: "lxc.mount.entry', denied_device),
    ('interface definition: Operation not permitted', 'vde0: root with CAP_NET_ADMIN',
     no_capability),
    ('interface definition: Permission denied', 'on the host: chmod 666 /dev/net/tun',
     lambda scene: device_node(scene, 10, 200, mode='0', before=NO_OVERRIDE)),
    ('interface definition: No such device', 'modprobe tun',
     lambda scene: device_node(scene, 10, 254)),
    ('interface definition: No such device or address', 'modprobe tun',
     lambda scene: device_node(scene, 240, 77)),
    ('interface definition: Device or resource busy', 'ours0: this interface exists already; '
     'remove it with -D', lambda scene: scene.client('-i', 'ours0', 'null://')),
    ('interface definition: Invalid argument', 'veth0: this name is held by a device that is no',
     lambda scene: scene.client('-i', 'veth0', 'null://')),
    ('interface definition: Invalid argument', 'not an interface name',
     lambda scene: scene.client('-i', 'a/0', 'null://')),
    ('interface definition: File name too long', '15 characters at most',
     lambda scene: scene.client('-i', 'x' * 15 + '0', 'null://')),
    ('interface settings: File exists', '10.0.0.1/16: another interface, ours0, has this address',
     lambda scene: scene.client('-a', '10.0.0.1/16', 'null://')),
    ('interface settings: File exists', 'a default route already', second_default_route),
    ('interface settings: Network is unreachable', '10.2.0.2: the gateway is in none of the',
     lambda scene: scene.client('-a', '10.1.0.1/24', '-g', '10.2.0.2', 'null://')),
    ('interface settings: No route to host', 'fd02::2: the gateway is in none of the',
     lambda scene: scene.client('-a', 'fd01::1/64', '-g', 'fd02::2', 'null://')),
    ('interface settings: Permission denied', 'IPv6 is switched off', no_ipv6),
    ('interface settings: Invalid argument', 'default route through 10.1.0.255',
     lambda scene: scene.client('-a', '10.1.0.1/24', '-g', '10.1.0.255', 'null://')),
    ('interface settings: Invalid argument', 'too small for the IPv6 addresses',
     lambda scene: scene.answered(b'0\0mtu=1\0', b'0\0mtu=1000\0',
                                  argv=['-a', 'fd00::1/64', '--mtu', 'auto'])),
    ('interface removal: No such device', 'none0', lambda scene: scene.delete('none0')),
    ('interface removal: Invalid argument', 'left alone', lambda scene: scene.delete('veth0')),
    ('interface removal: Operation not permitted', 'CAP_NET_ADMIN',
     lambda scene: scene.delete('ours0', NO_CAPABILITY)),
    ('vdelxcd: Permission denied', "vdelxcd's log on the host names the rule", no_rule),
    ('vdelxcd: Protocol not supported', 'does not know this scheme',
     lambda scene: scene.client('nonsense://')),
    ('vdelxcd: No such file or directory', 'no such switch',
     lambda scene: scene.client('vde:///nowhere')),
    ('vdelxcd: No such file or directory', 'no default network', lambda scene: scene.client()),
    ('vdelxcd: Connection refused', 'no switch', stopped_switch),
    ('vdelxcd: No route to host', 'the host that the VNL names',
     lambda scene: scene.client('udp://5000->no.such.host.invalid:5000')),
    ('vdelxcd: Invalid argument', 'vnl(7)', lambda scene: scene.client('vxvde:///colour=red')),
    ('vdelxcd: Device or resource busy', 'in use on the host', busy_tap),
    ('vdelxcd: No such device', 'no such interface',
     lambda scene: scene.client('vxvde:///if=none0')),
    ('vdelxcd: (No such device|Network is unreachable)', 'no route', no_multicast_route),
    ('vdelxcd: (No such device|Network is unreachable)', 'use if=, or "ip route add 239.0.0.1',
     lambda scene: no_multicast_route(scene, ['-u'])),
    ('vdelxcd: Network is unreachable', 'no route to this network',
     lambda scene: scene.client('udp://5000->198.51.100.1:5000')),
    ('vdelxcd: Resource temporarily unavailable', 'try again',
     lambda scene: scene.answered(b'11\0')),
    ('vdelxcd: Disk quota exceeded', 'as many interfaces as there may be', full_daemon),
    ('vdelxcd: Connection timed out', 'no answer within 0.1 s', silent_daemon),
    ('vdelxcd: Connection reset by peer', 'hung up before it answered',
     lambda scene: scene.answered(b'')),
    ('vdelxcd: Protocol error', 'not an answer', lambda scene: scene.answered(b'220 hello\r\n')),
]


@pytest.mark.parametrize('line, advice, provoke', CASES,
                         ids=['%s, %s' % case[:2] for case in CASES])
def test_the_line_of_the_manual_comes_with_its_advice(scene, line, advice, provoke):
    text = provoke(scene)
    assert re.match(line + '(: |; |$)', text), text
    assert advice in text


def test_every_line_of_the_manual_is_provoked_here():
    with open(os.path.join(ROOT, 'man', 'vdelxcc.1')) as file:
        part = file.read().split('\n.Sh DIAGNOSTICS\n')[1].split('\n.Sh ')[0]
    lines = {line.replace('\\&', '') for item in re.findall(r'^\.It (.*: .*)', part, re.M)
             for line in item.split(' , ')}
    assert lines == {line for line, _, _ in CASES if '|' not in line}
