#!/usr/bin/env python3
"""A container's root who wants to do harm: makes descriptors, hands them over, plays with them.

Each line of stdin is an order, a JSON list ["name", argument...]; each is answered by one line of
JSON. The first is ["aim", SOCKET] (with that in its command line it would pass for the daemon). It
has mounts of its own, which end with it. What it holds stays open until it is told to drop it.
Answers of the daemon are as handing.py has them.
"""

import array
import ctypes
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import handing
from handing import (DETACH, GOOD, MULTI_QUEUE, NO_PI, TAP, TUN, TUNSETIFF, TUNSETQUEUE, VNET_HDR,
                     answer, rights, tun)

CLONE_NEWNS, MS_REC_PRIVATE = 0x20000, 0x44000
PIDFD_OPEN, BPF = 434, {'x86_64': 321, 'aarch64': 280}.get(os.uname().machine, -1)

libc = ctypes.CDLL(None, use_errno=True)
path = ''                   # of the daemon's socket
held = {}                   # name -> descriptors that are kept
connections = []


def checked(result):
    """The result of a C function that did not fail."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# ---- the hand-over ------------------------------------------------------------------------------

def aim(target):
    """Whom to attack."""
    globals()['path'] = target


def connect():
    return handing.connect(path)


def ask(request, fds):
    return handing.ask(path, request, fds)


# ---- wrong descriptors --------------------------------------------------------------------------

def system_call(number, *arguments):
    """A descriptor from a system call that this Python has no name for."""
    return [checked(libc.syscall(number, *arguments))]


def temporary(text=b'', flags=os.O_RDWR):
    """A file that has no name any more."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        return [os.open(file.name, flags)]


def fifo(flags):
    """One end of a FIFO whose other end is closed."""
    with tempfile.TemporaryDirectory() as directory:
        name = os.path.join(directory, 'fifo')
        os.mkfifo(name)
        other = os.open(name, os.O_RDWR)
        fd = os.open(name, flags)
        os.close(other)
        return [fd]


def pipe(end, data=b'', hang_up=True):
    """One end of a pipe."""
    ends = os.pipe()
    os.write(ends[1], data)
    if hang_up:
        os.close(ends[1 - end])
    else:
        held.setdefault('others', []).append(ends[1 - end])
    return [ends[end]]


def paired(kind, data=b'', cargo=0):
    """One of two connected sockets; the other may have sent something, descriptors too."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    if data:
        other.sendmsg([data], rights([one.fileno()] * cargo) if cargo else [])
    other.detach() if not data else other.close()
    return [one.detach()]


def listening(family, address):
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(address)
    sock.listen(1)
    return [sock.detach()]


def lingering():
    """A TCP socket whose close() waits for what nobody takes."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    listener.bind(('127.0.0.1', 0))
    listener.listen(1)
    sock = socket.create_connection(listener.getsockname())
    held.setdefault('others', []).append(listener.accept()[0].detach())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 60))
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        return [sock.detach()]


def raw_interface(kind, *address):
    sock = socket.socket(*kind)
    if address:
        sock.bind(*address)
    return [sock.detach()]


def terminal(end):
    ends = pty.openpty()
    held.setdefault('others', []).append(ends[1 - end])
    return [ends[end]]


def epoll():
    """An epoll that watches itself through another one."""
    poller, other = select.epoll(), select.epoll()
    other.register(poller.fileno())
    fds = [os.dup(other.fileno())]
    poller.close(), other.close()
    return fds


def detached_queue():
    fd = tun('bad0', GOOD | MULTI_QUEUE)
    fcntl.ioctl(fd, TUNSETQUEUE, struct.pack('16sH22x', b'', DETACH))
    return [fd]


def second_queue():
    first = tun('bad0', GOOD | MULTI_QUEUE)
    held.setdefault('others', []).append(first)
    return [tun('bad0', GOOD | MULTI_QUEUE)]


def deleted_tap():
    fd = tun('bad0')
    subprocess.check_call(['ip', 'link', 'del', 'bad0'])
    return [fd]


def connection():
    conn = connect()
    return [conn.detach()]


def many(count):
    return [tun('bad0')] + [os.open('/dev/null', os.O_RDWR)] * (count - 1)


REQUEST = b'null://\0'
DESCRIPTORS = {
    'none': lambda: [],
    'two TAPs': lambda: [tun('bad0'), tun('bad1')],
    'a TAP twice': lambda: [tun('bad0')] * 2,
    'a TAP and a pipe': lambda: [tun('bad0')] + pipe(0),
    '64': lambda: many(64),
    '253': lambda: many(253),
    'regular file': lambda: temporary(b'text'),
    'empty file': temporary,
    'file to write': lambda: temporary(flags=os.O_WRONLY | os.O_APPEND),
    'directory': lambda: [os.open('/', os.O_RDONLY)],
    'path of the device': lambda: [os.open('/dev/net/tun', os.O_PATH)],
    'path of a directory': lambda: [os.open('/', os.O_PATH)],
    'path of the socket': lambda: [os.open(path, os.O_PATH)],
    'FIFO to read': lambda: fifo(os.O_RDONLY),
    'FIFO to write': lambda: fifo(os.O_WRONLY),
    'pipe': lambda: pipe(0, hang_up=False),
    'pipe with data': lambda: pipe(0, b'data', hang_up=False),
    'pipe hung up': lambda: pipe(0),
    'pipe hung up with data': lambda: pipe(0, b'data'),
    'pipe to write': lambda: pipe(1, hang_up=False),
    'pipe to nobody': lambda: pipe(1),
    'stream pair': lambda: paired(socket.SOCK_STREAM),
    'packet pair with data': lambda: paired(socket.SOCK_SEQPACKET, b'data'),
    'datagram pair with descriptors': lambda: paired(socket.SOCK_DGRAM, b'data', 250),
    'UNIX socket': lambda: raw_interface((socket.AF_UNIX,)),
    'UNIX listener': lambda: listening(socket.AF_UNIX, '\0hostile'),
    'TCP listener': lambda: listening(socket.AF_INET, ('127.0.0.1', 0)),
    'UDP socket': lambda: raw_interface((socket.AF_INET, socket.SOCK_DGRAM), ('127.0.0.1', 0)),
    'packet socket': lambda: raw_interface((socket.AF_PACKET, socket.SOCK_RAW), ('lo', 3)),
    'netlink socket': lambda: raw_interface((socket.AF_NETLINK, socket.SOCK_RAW, 0)),
    'epoll': epoll,
    'eventfd': lambda: [checked(libc.eventfd(1, 0))],
    'timerfd': lambda: [checked(libc.timerfd_create(1, 0))],
    'inotify': lambda: [checked(libc.inotify_init1(0))],
    'signalfd': lambda: [checked(libc.signalfd(-1, bytes(128), 0))],
    'pidfd': lambda: system_call(PIDFD_OPEN, os.getpid(), 0),
    'memory file': lambda: [checked(libc.memfd_create(b'memory', 0))],
    'pty master': lambda: terminal(0),
    'pty slave': lambda: terminal(1),
    '/dev/null': lambda: [os.open('/dev/null', os.O_RDWR)],
    '/dev/zero': lambda: [os.open('/dev/zero', os.O_RDWR)],
    '/dev/full': lambda: [os.open('/dev/full', os.O_RDWR)],
    '/proc file': lambda: [os.open('/proc/self/status', os.O_RDONLY)],
    'memory of a process': lambda: [os.open('/proc/self/mem', os.O_RDWR)],
    'namespace': lambda: [os.open('/proc/self/ns/net', os.O_RDONLY)],
    'a connection to the daemon': connection,
    'no interface': lambda: [os.open('/dev/net/tun', os.O_RDWR)],
    'TUN': lambda: [tun('bad0', TUN | NO_PI)],
    'TUN with packet-info header': lambda: [tun('bad0', TUN)],
    'packet-info header': lambda: [tun('bad0', TAP)],
    'packet-info and offload header': lambda: [tun('bad0', TAP | VNET_HDR)],
    'offload header': lambda: [tun('bad0', GOOD | VNET_HDR)],
    'multi-queue': lambda: [tun('bad0', GOOD | MULTI_QUEUE)],
    'second queue': second_queue,
    'detached queue': detached_queue,
    'deleted': deleted_tap,
    'TAP to read only': lambda: [tun('bad0', access=os.O_RDONLY)],
    'TAP to write only': lambda: [tun('bad0', access=os.O_WRONLY)],
}


def drop(fds):
    for fd in set(fds):
        os.close(fd)


def descriptor(kind, request='null://\0'):
    """The answer to a wrong descriptor."""
    fds = DESCRIPTORS[kind]()
    try:
        conn = connect()
        conn.sendmsg([request.encode('latin-1')], rights(fds) if fds else [])
    finally:
        drop(fds)                           # from now on only the daemon has it
    found = answer(conn)
    drop(held.pop('others', []))
    if found == '0\0':                      # the next one must not fail because of this one
        subprocess.call(['ip', 'link', 'del', 'bad0'])
    return found


def itself():
    """The answer to a connection that carries itself."""
    conn = connect()
    conn.sendmsg([REQUEST], rights([conn.fileno()]))
    return answer(conn)


def in_two_messages(second):
    """The answer to a TAP in the middle of the request and another descriptor at its end."""
    fds = [tun('bad0'), os.open('/dev/null', os.O_RDWR)]
    conn = connect()
    try:
        for request, fd in ((b'null:', fds[0]), (b'//\0', fds[0 if second == 'same' else 1])):
            conn.sendmsg([request], rights([fd]))
    except ConnectionError:
        pass
    drop(fds)
    return answer(conn)


# ---- a file system that does not answer ---------------------------------------------------------

class Fuse:
    """A FUSE file system, <linux/fuse.h> 7.31, with one file.

    silent is the set of requests of others that are read and never answered.
    """

    IN, OUT = struct.Struct('=IIQQIIII'), struct.Struct('=IiQ')
    LOOKUP, FORGET, GETATTR, OPEN, RELEASE, FLUSH, INIT, INTERRUPT = 1, 2, 3, 14, 18, 25, 26, 36
    IOCTL, POLL = 39, 40

    def __init__(self, mode, rdev=0, silent=()):
        self.mode, self.rdev, self.silent = mode, rdev, set(silent)
        self.device = os.open('/dev/fuse', os.O_RDWR)
        self.place = tempfile.mkdtemp()
        options = 'fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other' % self.device
        checked(libc.mount(b'hostile', self.place.encode(), b'fuse', 0, options.encode()))
        threading.Thread(target=self.serve, daemon=True).start()

    def attributes(self, mode, rdev=0):
        return struct.pack('=QQQQQQIIIIIIIIII', 2, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, rdev,
                           4096, 0)

    def serve(self):
        """Answer, until the file system is unmounted."""
        while True:
            try:
                request = os.read(self.device, 1 << 18)
            except OSError:
                return
            _, what, unique, node, _, _, pid, _ = self.IN.unpack_from(request)
            if what in (self.FORGET, self.INTERRUPT) or what in self.silent and pid != os.getpid():
                continue
            error, reply = 0, b''
            if what == self.INIT:
                reply = struct.pack('=IIIIHHIIHHI28x', 7, 31, 0, 0, 16, 8, 65536, 1, 0, 0, 0)
            elif what == self.LOOKUP:
                reply = struct.pack('=QQQQII', 2, 1, 0, 0, 0, 0) + self.attributes(
                    self.mode, self.rdev)
            elif what == self.GETATTR:
                reply = struct.pack('=QII', 0, 0, 0) + (
                    self.attributes(0o040755) if node == 1 else
                    self.attributes(self.mode, self.rdev))
            elif what == self.OPEN:
                reply = struct.pack('=QII', 1, 1, 0)            # direct I/O
            elif what in (self.IOCTL, self.POLL):
                error = -25
            try:
                os.write(self.device, self.OUT.pack(16 + len(reply), error, unique) + reply)
            except OSError:
                pass

    def open(self):
        return os.open(os.path.join(self.place, 'file'), os.O_RDWR)

    def close(self):
        """Unmount; whoever waits for an answer gets an error."""
        checked(libc.umount2(self.place.encode(), 3))           # MNT_FORCE | MNT_DETACH
        os.close(self.device)
        os.rmdir(self.place)


FILE, TUN_NODE = (0o100666, 0), (0o020666, 10 << 8 | 200)
FUSES = {                   # where who gets the descriptor waits
    'fstat': (FILE, [Fuse.GETATTR]),
    'ioctl': (FILE, [Fuse.IOCTL]),
    'close': (FILE, [Fuse.FLUSH]),
    'poll': (FILE, [Fuse.POLL]),
    'everything': (FILE, [Fuse.GETATTR, Fuse.IOCTL, Fuse.FLUSH, Fuse.POLL]),
    'fstat of a TAP': (TUN_NODE, [Fuse.GETATTR]),
}
mounted = {}


def fuse(kind):
    """Send a file whose file system stays silent."""
    node, silent = FUSES[kind]
    mounted[kind] = Fuse(*node, silent=silent)
    fd = mounted[kind].open()
    if node == TUN_NODE:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', b'fuse0', GOOD))
    conn = connect()
    conn.sendmsg([REQUEST], rights([fd]))
    os.close(fd)
    held['fuse ' + kind] = conn
    for _ in range(12 if kind == 'close' else 0):       # a whole lot
        fd = mounted[kind].open()
        connections.append(connect())
        connections[-1].sendmsg([REQUEST], rights([fd]))
        os.close(fd)


def linger():
    """Send a TCP socket whose close() waits."""
    fds = lingering()
    conn = connect()
    conn.sendmsg([REQUEST], rights(fds))
    drop(fds)                               # from now on the last close() is the daemon's
    held['linger'] = conn


def hanging():
    """What became of those requests so far: kind -> answer, '' for none yet."""
    found = {}
    for name in sorted(name for name in held if name.startswith('fuse ') or name == 'linger'):
        try:
            held[name].setblocking(False)
            found[name] = held[name].recv(100).decode('latin-1')
        except BlockingIOError:
            found[name] = ''
    return found


def hanging_end():
    """Unmount all; who waits for an answer has an error."""
    for kind in list(mounted):
        mounted.pop(kind).close()
        held.pop('fuse ' + kind).close()
    held.pop('linger').close()


# ---- the holder of a duplicate ------------------------------------------------------------------

def hand(name, vnl='null://', flags=GOOD, keys=''):
    """Hand a new interface over and keep a duplicate; the answer."""
    fd = tun(name, flags)
    held[name] = fd
    return ask((vnl + '\0' + keys).encode('latin-1'), [fd])


def hand_again(name, vnl='null://'):
    """Hand the same TAP over once more; the answer."""
    return ask((vnl + '\0').encode(), [held[name]])


def delete(name):
    """Delete an interface, whatever its name is."""
    subprocess.check_call(['ip', 'link', 'del', 'dev', os.fsencode(name)])


def let_go(name):
    """Close the duplicate."""
    os.close(held.pop(name))


def control(name, request, value):
    """An ioctl with an int as a pointer's target; 0 or the errno."""
    try:
        fcntl.ioctl(held[name], request, struct.pack('i12x', value))
        return 0
    except OSError as error:
        return error.errno


def control_by_value(name, request, value):
    """An ioctl with an int; 0 or the errno."""
    result = libc.ioctl(held[name], ctypes.c_ulong(request), ctypes.c_ulong(value))
    return 0 if result >= 0 else ctypes.get_errno()


def filter_frames(name, *instructions):
    """Attach a classic BPF program: [code, jt, jf, k], ... ; 0 or the errno."""
    code = array.array('B', b''.join(struct.pack('=HBBI', *each) for each in instructions))
    program = struct.pack('HL', len(instructions), code.buffer_info()[0])
    try:
        fcntl.ioctl(held[name], 0x401054d5, program)
        return 0
    except OSError as error:
        return error.errno


def extended_filter(name, request, verdict):
    """Have an eBPF program that returns verdict steer or filter frames; 0 or the errno."""
    code = struct.pack('=BBhiBBhi', 0xb7, 0, 0, verdict, 0x95, 0, 0, 0)     # r0 = verdict; exit
    code, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b'GPL')
    attributes = ctypes.create_string_buffer(struct.pack(
        '=IIQQIIQ80x', 1, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0))
    fd = libc.syscall(BPF, 5, attributes, len(attributes) - 1)              # BPF_PROG_LOAD
    return control(name, request, fd) if fd >= 0 else ctypes.get_errno()


def attach_again(name, flags):
    """TUNSETIFF once more; 0 or the errno."""
    try:
        fcntl.ioctl(held[name], TUNSETIFF, struct.pack('16sH22x', b'', flags))
        return 0
    except OSError as error:
        return error.errno


def status_flags(name, on=0, off=0):
    """Set and clear flags of the open file description; 0 or the errno."""
    try:
        flags = fcntl.fcntl(held[name], fcntl.F_GETFL)
        fcntl.fcntl(held[name], fcntl.F_SETFL, flags & ~off | on)
        return 0
    except OSError as error:
        return error.errno


def flip(name, seconds):
    """Switch O_NONBLOCK off and on as fast as we can; how often."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        status_flags(name, off=os.O_NONBLOCK)
        status_flags(name, on=os.O_NONBLOCK)
        count += 1
    return count


def signal_owner(name, pid, number):
    """Have signals sent to a process whenever a frame can be read; 0 or the errno."""
    try:
        status_flags(name, on=0x2000)                       # FASYNC
        fcntl.fcntl(held[name], fcntl.F_SETOWN, pid)
        fcntl.fcntl(held[name], 10, number)                 # F_SETSIG
        return 0
    except OSError as error:
        return error.errno


def steal(name, seconds):
    """Read all frames that we can get; how many."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([held[name]], [], [], 0.01)[0]:
            try:
                count += bool(os.read(held[name], 65536))
            except OSError:
                pass
    return count


def put(name, length, count=1, prefix=0):
    """Write frames as the daemon does: they arrive at our own interface; how many were taken."""
    taken = 0
    for _ in range(count):
        try:
            os.write(held[name], bytes(prefix) + b'\xff' * 6 + b'\x02\0\0\0\0\x07\x88\xb5' + bytes(
                length - 14))
            taken += 1
        except OSError:
            pass
    return taken


# ---- many at once, and clients that die ---------------------------------------------------------

def silent(count, request=''):
    """So many more clients that say nothing, or half of it."""
    for _ in range(count):
        conn = connect()
        if request:
            conn.send(request.encode('latin-1'))
        connections.append(conn)


def silent_over():
    """How many of the silent ones have been answered or cut off."""
    poller = select.poll()
    for conn in connections:
        poller.register(conn, select.POLLIN)
    return len(poller.poll(0))


def silent_end():
    """The silent ones go; how many had been answered or cut off."""
    over = silent_over()
    for conn in connections:
        conn.close()
    del connections[:]
    return over


def storm(count, name, vnl='null://'):
    """Good requests one after the other, without waiting; then the answers of all."""
    conns = []
    for index in range(count):
        fd = tun('%s%d' % (name, index))
        conn = connect()
        try:
            conn.sendmsg([vnl.encode() + b'\0'], rights([fd]))
        except ConnectionError:             # the answer came before the request
            pass
        os.close(fd)
        conns.append(conn)
    return [answer(conn) for conn in conns]


def refusals(count, request):
    """The answers to so many requests with a good TAP, one after the other."""
    answers = []
    for _ in range(count):
        fd = tun('odd0')
        answers.append(ask(request.encode('utf-8', 'surrogateescape') + b'\0', [fd]))
        os.close(fd)
    return answers


def in_pieces(vnl):
    """The answer to a request that comes byte by byte; the TAP comes with the last."""
    fd = tun('bit0')
    conn = connect()
    request = vnl.encode() + b'\0'
    for index in range(len(request) - 1):
        conn.send(request[index:index + 1])
    conn.sendmsg([request[-1:]], rights([fd]))
    os.close(fd)
    return answer(conn)


def half_close(step):
    """A peer that shuts one direction down at a step; the answer."""
    conn = connect()
    fd = tun('half0')
    if step == 'reading, before':
        conn.shutdown(socket.SHUT_RD)
    conn.sendmsg([b'null://' if step == 'writing, half' else REQUEST], rights([fd]))
    os.close(fd)
    if step == 'reading, after':
        conn.shutdown(socket.SHUT_RD)
    if step.startswith('writing'):
        conn.shutdown(socket.SHUT_WR)
    return answer(conn)


def newcomer():
    """A new interface is served and removed again: the answer and the seconds it took."""
    since = time.monotonic()
    fd = tun('new0')
    found = ask(b'vxvde://\0', [fd])
    seconds = time.monotonic() - since
    os.close(fd)
    if found == '0\0':
        subprocess.check_call(['ip', 'link', 'del', 'new0'])
    return found, seconds


def main():
    """Take orders."""
    checked(libc.unshare(CLONE_NEWNS))
    checked(libc.mount(b'none', b'/', None, MS_REC_PRIVATE, None))
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    for line in iter(sys.stdin.readline, ''):
        name, *arguments = json.loads(line)
        try:
            found = globals()[name](*arguments)
        except Exception:
            found = {'failed': traceback.format_exc()}
        print(json.dumps(found), flush=True)


if __name__ == '__main__':
    main()
