"""What stands at the other end in the tests of the schemes: raw ports, switches, members, plugs."""

import ctypes
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

import pytest

from conftest import DAEMON, PYTHON, Container, Daemon, missing, parent, require, wait_until

ETHERTYPE = b'\x88\xb5'                 # IEEE 802: local experiments; no stack answers it
EVERYONE = b'\xff' * 6
CLONE_NEWNET = 0x40000000
SOL_PACKET, PACKET_AUXDATA, PACKET_OUTGOING = 263, 8, 4
ETH_P_ALL = 3
TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID = 0x10, 0x40
AUXDATA = struct.Struct('=IIIHHHH')     # struct tpacket_auxdata
MAGIC = 0xfeedface
SOCKADDR_UN = struct.Struct('=H108s')
PLUGIN_DIRECTORIES = ('/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/usr/lib',
                      '/usr/local/lib', '/usr/lib64')
QUIET = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}


def require_plugin(scheme):
    """The test needs a plugin of libvdeplug that is packaged by itself."""
    require('vde_plug')
    if not any(os.path.exists('%s/vdeplug/libvdeplug_%s.so' % (place, scheme))
               for place in PLUGIN_DIRECTORIES):
        missing('libvdeplug_%s.so' % scheme, 'libvdeplug-' + scheme)


def mac(number):
    """The MAC address of a node (int), local and unicast."""
    return b'\x02\x00' + number.to_bytes(4, 'big')


def frame(length=64, source=1, target=EVERYONE, tags=(), seed=0):
    """A frame; tags are (type, priority and VLAN) ints, the outer one first; length without them.

    The payload is the same for the same arguments but the tags.
    """
    target = mac(target) if isinstance(target, int) else target
    head = target + mac(source)
    for kind, control in tags:
        head += struct.pack('>HH', kind, control)
    body = struct.pack('>II', source, seed) * (length // 8 + 1)
    return head + ETHERTYPE + body[:length - 14]


def is_test_frame(data):
    """Is it a frame(), not what the stacks say? (Random bytes may look like one further in.)"""
    place = 12
    while data[place:place + 2] in (b'\x81\x00', b'\x88\xa8'):
        place += 4
    return data[place:place + 2] == ETHERTYPE


def in_namespace(namespace, function):
    """Call a function in a thread that is inside of a network namespace; its value.

    A socket that it makes stays there.
    """
    result = []

    def work():
        fd = os.open('/proc/%d/ns/net' % namespace.holder.pid, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), 'setns')
            result.append(function())
        finally:
            os.close(fd)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result, 'the function failed'
    return result[0]


class RawPort:
    """An interface as frames: AF_PACKET, tags put back where the kernel took them off."""

    def __init__(self, namespace, interface, protocol=ETH_P_ALL):
        def make():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
            sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)     # SO_RCVBUFFORCE
            sock.bind((interface, protocol))
            return sock
        self.sock = in_namespace(namespace, make)

    def send(self, *frames):
        for each in frames:
            self.sock.send(each)

    def one(self, timeout):
        """The next frame that came in, or None."""
        deadline = time.monotonic() + timeout
        while select.select([self.sock], [], [], max(deadline - time.monotonic(), 0))[0]:
            data, ancillary, _, address = self.sock.recvmsg(20000, 200)
            if address[2] == PACKET_OUTGOING:
                continue
            for level, kind, content in ancillary:
                if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                    status, _, _, _, _, tci, tpid = AUXDATA.unpack(content[:AUXDATA.size])
                    if status & TP_STATUS_VLAN_VALID:
                        tpid = tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100
                        data = data[:12] + struct.pack('>HH', tpid, tci) + data[12:]
            return data
        return None

    def frames(self, count, timeout=5):
        """The next test frames that came in: count of them, or fewer after timeout seconds."""
        found, deadline = [], time.monotonic() + timeout
        while len(found) < count:
            data = self.one(max(deadline - time.monotonic(), 0))
            if data is None:
                break
            if is_test_frame(data):
                found.append(data)
        return found

    def close(self):
        self.sock.close()


def expect(port, *frames, timeout=5):
    """A port gets exactly these frames next."""
    found = port.frames(len(frames), timeout)
    if found != list(frames):
        pytest.fail('\n'.join(['expected:'] + [brief(each) for each in frames]
                              + ['found:'] + [brief(each) for each in found]))


def brief(data):
    """A frame for a reader."""
    return '%d bytes: %s ...' % (len(data), data[:40].hex())


def require_vlan_devices(namespace):
    """The test needs the kernel's VLAN devices."""
    done = namespace.ip('link add link lo name try0 type vlan id 2', check=False)
    if 'Unknown device type' in done.stderr or 'not supported' in done.stderr:
        pytest.skip('this kernel has no VLAN devices: it needs CONFIG_VLAN_8021Q')
    namespace.ip('link del try0', check=False)


class Switch:
    """A real vde_switch."""

    def __init__(self, path, management, *argv, before=()):
        require('vde_switch')
        self.path, self.management = str(path), str(management)
        self.argv = list(before) + ['vde_switch', '-s', self.path, '-M', self.management]
        self.argv += list(argv)
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.argv, stdin=subprocess.PIPE, **QUIET)
        wait_until(lambda: self.process.poll() is not None or os.path.exists(self.management),
                   what='vde_switch listens')
        assert self.process.poll() is None, 'vde_switch ended'

    def ask(self, command):
        """The answer to a command on the management socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(self.management)
            self.until(sock, b'vde$ ')
            sock.sendall(command.encode() + b'\n')
            return self.until(sock, b'1000 Success').decode()

    @staticmethod
    def until(sock, end):
        data = b''
        while end not in data:
            part = sock.recv(4096)
            assert part, data
            data += part
        return data

    def kill(self):
        self.process.kill()
        self.process.wait()

    def restart(self):
        """As after a crash: another one at the same place."""
        if os.path.exists(self.management):
            os.unlink(self.management)
        self.start()

    def close(self):
        self.process.stdin.close()
        self.kill()
        shutil.rmtree(self.path, ignore_errors=True)


class Member:
    """A VDE program at a switch or node, with nothing hidden: its two sockets."""

    def __init__(self, path, text=b'member', port=0):
        self.control = socket.socket(socket.AF_UNIX)
        self.control.settimeout(5)
        self.control.connect(os.path.join(path, 'ctl'))
        self.data = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.name = tempfile.mktemp(dir=path, prefix='.')
        self.data.bind(self.name)
        owner = os.stat(os.path.join(path, 'ctl'))
        if owner.st_uid not in (0, os.geteuid()):           # as libvdeplug has it
            os.chown(self.name, -1, owner.st_gid)
            os.chmod(self.name, 0o770)
        self.control.sendall(struct.pack('=III', MAGIC, 3, port << 8)
                             + SOCKADDR_UN.pack(1, os.fsencode(self.name)) + text)
        answer = self.control.recv(200)
        assert len(answer) == SOCKADDR_UN.size, answer
        self.peer = SOCKADDR_UN.unpack(answer)[1].partition(b'\0')[0].decode()
        self.data.connect(self.peer)
        os.unlink(self.name)

    def send(self, *frames):
        for each in frames:
            self.data.send(each)

    frames = RawPort.frames

    def one(self, timeout):
        if not select.select([self.data], [], [], timeout)[0]:
            return None
        return self.data.recv(20000)

    def gone(self):
        """Does the node say that it is gone?"""
        return bool(select.select([self.control], [], [], 0)[0]) and not self.control.recv(1)

    def close(self):
        self.control.close()
        self.data.close()


def plug_in(namespace, vnl, *addresses, name='peer0'):
    """A vde_plug of the machine between a VNL and a TAP in a namespace; the process."""
    require('vde_plug')
    child = namespace.popen('vde_plug', vnl, 'tap://' + name, **QUIET)
    wait_until(lambda: child.poll() is not None or name in namespace.interfaces())
    assert child.poll() is None, 'vde_plug ended: ' + vnl
    for address in addresses:
        namespace.ip('addr add %s dev %s%s' % (address, name, ' nodad' if ':' in address else ''))
    namespace.ip('link set %s up' % name)
    return child


def join(container, daemon, vnl, *addresses, name='vde0', mtu=None):
    """A container gets an interface; it is up afterwards."""
    container.client('-s', daemon.socket, '-i', name, vnl)
    if mtu:
        container.ip('link set %s mtu %d' % (name, mtu))
    container.up(name, *addresses)


def refused(container, daemon, vnl):
    """The line of a client that is refused, and what the daemon logged of it; nothing stays."""
    before = daemon.log()
    done = container.client('-s', daemon.socket, '--', vnl, check=False)
    assert done.returncode == 1, 'not refused: ' + vnl
    wait_until(lambda: container.interfaces() == {'lo'}, what='no interface stays')
    wait_until(lambda: len(daemon.log()) > len(before), what='a log line about ' + vnl)
    lines = daemon.log()[len(before):].splitlines()
    assert len(lines) == 1, lines
    wait_until(lambda: daemon.pids() == [daemon.process.pid], what='no session stays')
    return done.stderr, lines[0]


def carrier(namespace, name='vde0'):
    """Does an interface have its carrier?

    A container's /sys tells at once; a program takes its time on a busy machine.
    """
    if isinstance(namespace, Container):
        try:
            with open('/proc/%d/root/sys/class/net/%s/carrier' % (
                    namespace.holder.pid, name)) as file:
                return file.read() == '1\n'
        except OSError:                     # it is down, or the /sys is another's
            pass
    return 'NO-CARRIER' not in namespace.ip('-o link show ' + name).stdout


def group_of(pid):
    """The effective group of a process."""
    with open('/proc/%d/status' % pid) as file:
        return int(file.read().partition('Gid:')[2].split()[1])


def process_name(pid):
    """What ps shows of a process; '' when it is gone."""
    try:
        with open('/proc/%d/comm' % pid) as file:
            return file.read().strip()
    except OSError:
        return ''


def session_pids(daemon):
    """The pids of the sessions of a daemon; of relay and keeper it is the keeper's."""
    pids = [pid for pid in daemon.pids() if process_name(pid).startswith('vdelxcd:')]
    return [pid for pid in pids if parent(pid) not in pids]


def session_pid(daemon):
    """The pid of the one session of a daemon."""
    pids = session_pids(daemon)
    assert len(pids) == 1, pids
    return pids[0]


def another(daemon, pid):
    """The pid of its one session, when that is not this one, and there is no other; else None."""
    pids = session_pids(daemon)
    return pids[0] if len(pids) == 1 and pids[0] != pid else None


class Place:
    """A directory that every user can reach and write, with a copy of the daemon in it."""

    def __init__(self, parent=None):
        self.path = tempfile.mkdtemp(prefix='vdelxc', dir=parent)
        os.chmod(self.path, 0o777)
        self.daemon = os.path.join(self.path, 'vdelxcd.py')
        shutil.copy(DAEMON, self.daemon)
        os.chmod(self.daemon, 0o755)

    def join(self, *parts):
        return os.path.join(self.path, *parts)

    def close(self):
        shutil.rmtree(self.path, ignore_errors=True)


def start_daemon(host, directory, *argv, before=(), script=DAEMON, vnl=None):
    """A Daemon whose command line stands behind another one (env, setpriv, nsenter ...)."""
    daemon = Daemon(host, directory, *(argv or ('-v',)), vnl=vnl, start=False)
    daemon.argv = list(before) + [script if each == DAEMON else each for each in daemon.argv]
    daemon.start()
    return daemon


def transfer(source, target, address, size=4 << 20, bind=None):
    """Send random bytes by TCP from one namespace to another; all must arrive as they are.

    The target listens on address, or on bind.
    """
    data = os.urandom(size)
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    server = in_namespace(target, lambda: socket.socket(family))
    client = in_namespace(source, lambda: socket.socket(family))
    received = bytearray()
    with server, client:
        server.bind((bind or address, 0))
        server.listen(1)
        server.settimeout(20)
        client.settimeout(20)

        def take():
            conn = server.accept()[0]
            conn.settimeout(20)
            with conn:
                for part in iter(lambda: conn.recv(1 << 20), b''):
                    received.extend(part)
        thread = threading.Thread(target=take)
        thread.start()
        client.connect((address, server.getsockname()[1]))
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        thread.join(30)
    assert len(received) == size and bytes(received) == data


def alive(pid):
    """Does a process run (and is no zombie)?"""
    try:
        with open('/proc/%d/stat' % pid) as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def kill(pid, number=signal.SIGKILL):
    """Kill a process and wait until it is gone."""
    os.kill(pid, number)
    wait_until(lambda: not alive(pid), what='process %d ends' % pid)


@pytest.fixture
def place(closing):
    """A Place."""
    return closing(Place())


def python(*words):
    """A command line of the interpreter that the scripts run under."""
    return [PYTHON] + [str(each) for each in words]
