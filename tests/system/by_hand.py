#!/usr/bin/env python3
"""Speak the hand-over by hand, rightly and wrongly, from inside a container.

    by_hand.py SOCKET COMMAND [ARGUMENT...]

Prints one line of JSON; answers are as handing.py has them.
"""

import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time

from handing import PATIENCE, answer, ask, connect, rights, tun


# ---- VNLs ---------------------------------------------------------------------------------------

def vnls(path):
    """The answer to each request, sent with a good TAP; stdin has a JSON list of latin-1 texts."""
    answers = []
    for index, request in enumerate(json.load(sys.stdin)):
        fd = tun('odd%d' % index)
        answers.append(ask(path, request.encode('latin-1'), [fd]))
        os.close(fd)
        if answers[-1] == '0\0':
            subprocess.check_call(['ip', 'link', 'del', 'odd%d' % index])
    return answers


def again(path, times):
    """One refusal after the other, always with a new TAP of the same name; the answers."""
    answers = []
    for _ in range(int(times)):
        fd = tun('again0')
        conn = connect(path)
        conn.sendmsg([b'nonsense://\0'], rights([fd]))
        os.close(fd)
        answers.append(conn.recv(100).decode())
        conn.close()
    return answers


def million(path):
    """A VNL of 1 MiB, which never ends."""
    fd = tun('odd0')
    conn = connect(path)
    try:
        conn.sendmsg([b'null://'], rights([fd]))
        conn.sendall(b'x' * (1 << 20))
    except ConnectionError:
        pass
    return answer(conn)


def bytewise(path, vnl):
    """The VNL byte by byte, each sent when the one before was read; the TAP comes with the last."""
    fd = tun('bit0')
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
    fd, conn = tun('late0'), connect(path)
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
            fd = tun('dead0')
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
    fd = tun('dead0')
    conn = connect(path)
    conn.sendmsg([vnl.encode() + b'\0'], rights([fd]))
    conn.close()


# ---- interfaces ---------------------------------------------------------------------------------

def many(path, count, vnl='null://'):
    """Interfaces by the dozen, many0 and so on; their answers."""
    answers = []
    for index in range(int(count)):
        fd = tun('many%d' % index)
        answers.append(ask(path, vnl.encode() + b'\0', [fd]))
        os.close(fd)
    return answers


def hold(path, vnl):
    """An interface hold0 whose TAP makes the session wait when it reads; until stdin ends."""
    fd = tun('hold0')
    answered = ask(path, vnl.encode() + b'\0', [fd])
    os.set_blocking(fd, True)
    print(json.dumps(answered), flush=True)
    while not select.select([sys.stdin], [], [], 0.005)[0]:
        os.set_blocking(fd, True)           # the session may have set it back


if __name__ == '__main__':
    commands = {'vnls': vnls, 'million': million, 'again': again, 'bytewise': bytewise,
                'silent': silent, 'deaths': deaths, 'die': die, 'many': many, 'hold': hold,
                'late': late}
    print(json.dumps(commands[sys.argv[2]](sys.argv[1], *sys.argv[3:])))
