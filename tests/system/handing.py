"""A TAP, and the hand-over of it, step by step: for programs that run inside of a container.

An answer of the daemon is what it sent until it closed, as a str: '' for EOF without an answer,
'reset' when the connection was torn down, 'silence' when nothing came.
"""

import fcntl
import os
import socket
import struct

TUNSETIFF, TUNSETQUEUE = 0x400454ca, 0x400454d9                 # <linux/if_tun.h>
TUN, TAP, NO_PI, VNET_HDR, MULTI_QUEUE, DETACH = 1, 2, 0x1000, 0x4000, 0x0100, 0x0400
GOOD = TAP | NO_PI
PATIENCE = 12                           # seconds


def tun(name, flags=GOOD, access=os.O_RDWR):
    """A /dev/net/tun descriptor attached to a new interface."""
    fd = os.open('/dev/net/tun', access)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack('16sH22x', os.fsencode(name), flags))
    return fd


def connect(path):
    """A connection to the daemon."""
    conn = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    conn.settimeout(PATIENCE)
    conn.connect(path)
    return conn


def rights(fds):
    """Descriptors as sendmsg() wants them."""
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
    except socket.timeout:
        return data.decode('latin-1') or 'silence'


def ask(path, request, fds):
    """One request with these descriptors; the answer."""
    conn = connect(path)
    try:
        conn.sendmsg([request], rights(fds) if fds else [])
    except ConnectionError:
        pass
    return answer(conn)
