#!/usr/bin/env python3
"""Speak the hand-over by hand, rightly and wrongly, from inside a container.

    by_hand.py SOCKET COMMAND [ARGUMENT...]

Prints one line of JSON. An answer is what the daemon sent until it closed: a str, '' for EOF
without an answer, 'reset' when the connection was torn down.
"""

import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time

TUNSETIFF = 0x400454ca
TUNSETQUEUE = 0x400454d9
TUN, TAP, NO_PI, VNET_HDR, MULTI_QUEUE, DETACH = 1, 2, 0x1000, 0x4000, 0x0100, 0x0400
PATIENCE = 10


def tun(name, flags):
    """A /dev/net/tun descriptor attached to a new interface."""
    fd = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', name.encode(), flags))
    return fd


def connect(path):
    conn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    conn.settimeout(PATIENCE)
    conn.connect(path)
    return conn


def rights(fds):
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('%di' % len(fds), *fds))]


def answer(conn):
    """Read until the daemon closes."""
    data = b''
    try:
        while True:
            chunk = conn.recv(4096)
            if not chunk:
                return data.decode('latin-1')
            data += chunk
    except ConnectionError:
        return data.decode('latin-1') or 'reset'


def ask(path, request, fds):
    """One request with these descriptors; the answer."""
    conn = connect(path)
    try:
        conn.sendmsg([request], rights(fds) if fds else [])
    except ConnectionError:
        pass
    return answer(conn)


# ---- descriptors --------------------------------------------------------------------------------

def detached_queue():
    fd = tun('bad0', TAP | NO_PI | MULTI_QUEUE)
    fcntl.ioctl(fd, TUNSETQUEUE, struct.pack('16sH22x', b'', DETACH))
    return [fd]


def deleted_tap():
    fd = tun('bad0', TAP | NO_PI)
    subprocess.check_call(['ip', 'link', 'del', 'bad0'])
    return [fd]


def eventfd():
    return [ctypes.CDLL(None, use_errno=True).eventfd(0, 0)]


def epoll():
    with select.epoll() as poller:
        return [os.dup(poller.fileno())]


def listener():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind('\0by_hand')
    sock.listen(1)
    return [sock.detach()]


def unlinked_file():
    with tempfile.TemporaryFile() as file:
        return [os.dup(file.fileno())]


DESCRIPTORS = {
    'none': lambda: [],
    'two TAPs': lambda: [tun('bad0', TAP | NO_PI), tun('bad1', TAP | NO_PI)],
    'a TAP twice': lambda: [tun('bad0', TAP | NO_PI)] * 2,
    '64': lambda: [tun('bad0', TAP | NO_PI)] + [0] * 63,
    '253': lambda: [tun('bad0', TAP | NO_PI)] + [0] * 252,
    'regular file': unlinked_file,
    'directory': lambda: [os.open('/', os.O_RDONLY)],
    'path only': lambda: [os.open('/dev/net/tun', os.O_PATH)],
    'pipe': lambda: list(os.pipe()[:1]),
    'pipe to write': lambda: list(os.pipe()[1:]),
    'UNIX socket': lambda: [socket.socket(socket.AF_UNIX).detach()],
    'UNIX listener': listener,
    'UDP socket': lambda: [socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()],
    'epoll': epoll,
    'eventfd': eventfd,
    '/dev/null': lambda: [os.open('/dev/null', os.O_RDWR)],
    '/dev/zero': lambda: [os.open('/dev/zero', os.O_RDWR)],
    '/proc file': lambda: [os.open('/proc/self/status', os.O_RDONLY)],
    'no interface': lambda: [os.open('/dev/net/tun', os.O_RDWR)],
    'TUN': lambda: [tun('bad0', TUN | NO_PI)],
    'packet-info header': lambda: [tun('bad0', TAP)],
    'offload header': lambda: [tun('bad0', TAP | NO_PI | VNET_HDR)],
    'multi-queue': lambda: [tun('bad0', TAP | NO_PI | MULTI_QUEUE)],
    'detached queue': detached_queue,
    'deleted': deleted_tap,
}


def descriptors(path):
    """The answer to every kind of wrong descriptor."""
    answers = {}
    for kind in sorted(DESCRIPTORS):
        fds = DESCRIPTORS[kind]()
        answers[kind] = ask(path, b'null://\0', fds)
        for fd in set(fds) - {0}:
            os.close(fd)
    conn = connect(path)                    # the connection carries itself
    conn.sendmsg([b'null://\0'], rights([conn.fileno()]))
    answers['its own connection'] = answer(conn)
    return answers


# ---- VNLs ---------------------------------------------------------------------------------------

def vnls(path):
    """The answer to each request, sent with a good TAP; stdin has a JSON list of latin-1 texts."""
    answers = []
    for index, request in enumerate(json.load(sys.stdin)):
        fd = tun('odd%d' % index, TAP | NO_PI)
        answers.append(ask(path, request.encode('latin-1'), [fd]))
        os.close(fd)
        if answers[-1] == '0\0':
            subprocess.check_call(['ip', 'link', 'del', 'odd%d' % index])
    return answers


def again(path, times):
    """One refusal after the other, always with a new TAP of the same name; the answers."""
    answers = []
    for _ in range(int(times)):
        fd = tun('again0', TAP | NO_PI)
        conn = connect(path)
        conn.sendmsg([b'nonsense://\0'], rights([fd]))
        os.close(fd)
        answers.append(conn.recv(100).decode())
        conn.close()
    return answers


def million(path):
    """A VNL of 1 MiB, which never ends."""
    fd = tun('odd0', TAP | NO_PI)
    conn = connect(path)
    try:
        conn.sendmsg([b'null://'], rights([fd]))
        conn.sendall(b'x' * (1 << 20))
    except ConnectionError:
        pass
    return answer(conn)


def bytewise(path, vnl):
    """The VNL byte by byte, each sent when the one before was read; the TAP comes with the last."""
    fd = tun('bit0', TAP | NO_PI)
    conn = connect(path)
    request = vnl.encode() + b'\0'
    for index in range(len(request)):
        piece = request[index:index + 1]
        conn.sendmsg([piece], rights([fd]) if index == len(request) - 1 else [])
        deadline = time.monotonic() + PATIENCE
        while struct.unpack('i', fcntl.ioctl(conn, 0x5411, bytes(4)))[0]:       # SIOCOUTQ
            if time.monotonic() > deadline:
                return 'nobody reads'
            time.sleep(0.001)
    return answer(conn)


# ---- time ---------------------------------------------------------------------------------------

def late(path, delay, vnl):
    """A request that comes whole, after so many seconds of silence."""
    fd, conn = tun('late0', TAP | NO_PI), connect(path)
    time.sleep(float(delay))
    try:
        conn.sendmsg([vnl.encode() + b'\0'], rights([fd]))
    except ConnectionError:
        pass
    return answer(conn)


def silent(path, count):
    """Many clients that say nothing, or half of it: [answer, seconds] of each, in order.

    A line "ready" comes first, when all are connected.
    """
    conns = []
    for index in range(int(count)):
        conn = connect(path)
        if index % 2:
            conn.send(b'vxvde:/')
        conns.append((conn, time.monotonic()))
    print('ready', flush=True)
    found = {}
    while len(found) < len(conns):
        waiting = [conn for conn, _ in conns if conn not in found]
        for conn in select.select(waiting, [], [], PATIENCE)[0] or waiting:
            since = dict(conns)[conn]
            found[conn] = [answer(conn), time.monotonic() - since]
    return [found[conn] for conn, _ in conns]


def deaths(path, times):
    """Clients that go away at every step; how many of their interfaces the daemon kept."""
    kept = 0
    for _ in range(int(times)):
        connect(path).close()
        conn = connect(path)
        conn.send(b'nul')
        conn.close()
        for request in b'n', b'null://', b'null://\0', b'nonsense://\0':
            fd = tun('dead0', TAP | NO_PI)
            conn = connect(path)
            conn.sendmsg([request], rights([fd]))
            os.close(fd)
            conn.close()
            deadline = time.monotonic() + 2
            while 'dead0' in [name for _, name in socket.if_nameindex()]:
                if time.monotonic() > deadline:
                    kept += 1
                    subprocess.check_call(['ip', 'link', 'del', 'dead0'])
                time.sleep(0.001)
        conn = connect(path)
        conn.shutdown(socket.SHUT_RDWR)
        conn.close()
    return kept


def die(path, vnl):
    """A good request of a client that is gone when its answer comes."""
    fd = tun('dead0', TAP | NO_PI)
    conn = connect(path)
    conn.sendmsg([vnl.encode() + b'\0'], rights([fd]))
    conn.close()


# ---- interfaces ---------------------------------------------------------------------------------

def many(path, count, vnl='null://'):
    """Interfaces by the dozen, many0 and so on; their answers."""
    answers = []
    for index in range(int(count)):
        fd = tun('many%d' % index, TAP | NO_PI)
        answers.append(ask(path, vnl.encode() + b'\0', [fd]))
        os.close(fd)
    return answers


def hold(path, vnl):
    """An interface hold0 whose TAP makes the session wait when it reads; until stdin ends."""
    fd = tun('hold0', TAP | NO_PI)
    answered = ask(path, vnl.encode() + b'\0', [fd])
    os.set_blocking(fd, True)
    print(json.dumps(answered), flush=True)
    sys.stdin.read()


if __name__ == '__main__':
    commands = {'descriptors': descriptors, 'vnls': vnls, 'million': million, 'again': again,
                'bytewise': bytewise, 'silent': silent, 'deaths': deaths, 'die': die,
                'many': many, 'hold': hold, 'late': late}
    print(json.dumps(commands[sys.argv[2]](sys.argv[1], *sys.argv[3:])))
