"""The forker out of luck: what becomes of an order that no process can be forked for."""

import array
import errno
import os
import socket
import subprocess
import sys

from conftest import ROOT

PAIR = socket.AF_UNIX, socket.SOCK_SEQPACKET
# A forker whose fork() fails as a kernel's does; it gets wake and orders as descriptors.
POOR = """
import errno, os, socket, sys
sys.path.insert(0, sys.argv[1])
import vdelxcd

def fork():
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = fork
vdelxcd.fork_relays(*[socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, int(fd))
                      for fd in sys.argv[2:4]])
"""


def start(*descriptors):
    """A poor forker with these descriptors."""
    return subprocess.Popen([sys.executable, '-c', POOR, ROOT] + [str(fd) for fd in descriptors],
                            pass_fds=descriptors)


def test_who_waits_for_a_process_that_can_not_be_forked_hears_so():
    (wake, far_wake), (orders, far_orders) = socket.socketpair(*PAIR), socket.socketpair(*PAIR)
    forker = start(far_wake.fileno(), far_orders.fileno())
    far_wake.close()
    far_orders.close()
    for _ in range(3):
        answer, theirs = socket.socketpair(*PAIR)
        null = os.open(os.devnull, os.O_RDWR)
        fds = array.array('i', [null] * 4 + [theirs.fileno()])
        orders.sendmsg([b'an order'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        theirs.close()
        os.close(null)
        wake.send(b'+')
        answer.settimeout(10)
        assert answer.recv(100) == b''
        answer.close()
    wake.close()
    assert forker.wait(10) == 0
    orders.close()


def test_without_a_forker_nothing_is_handed_over(vdelxcd, capsys):
    class Any:
        listener = vnl = tap = plug = None
        scheme = 'vxvde'
    session = Any()
    session.control = session.vnl = session
    forker = vdelxcd.Forker()
    assert forker.take_over(session, b'') is None
    def no_child(_):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    forker.start(no_child)
    assert (forker.pid, forker.wake, forker.orders) == (None, None, None)
    assert capsys.readouterr().err == 'fork: no quiet relays: %s\n' % os.strerror(errno.EAGAIN)
