"""Forker and keeper out of luck: no process for an order, no descriptor left, false calls."""

import array
import errno
import os
import socket
import subprocess
import sys

import pytest

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
        fds = array.array('i', [null] * 4 + [theirs.fileno(), null])
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
    session = Any()
    session.control = session
    forker, keeper = vdelxcd.Forker(), vdelxcd.Keeper()
    assert forker.take_over(session, b'', None) is None
    assert keeper.keep(b'', 0, 0) is None

    def no_child(_):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    for helper, makes in (forker, 'quiet relays'), (keeper, 'keeper of quiet relays'):
        helper.start(no_child)
        assert (helper.pid, helper.links) == (None, [])
        assert capsys.readouterr().err == 'fork: no %s: %s\n' % (
            makes, os.strerror(errno.EAGAIN))


# A keeper; it gets the socket for orders as a descriptor, and how many it may have.
KEEPER = """
import resource, socket, sys
sys.path.insert(0, sys.argv[1])
import vdelxcd
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_NOFILE, (10, int(sys.argv[3])))
vdelxcd.Keeper().work(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, int(sys.argv[2])),
                      vdelxcd.Forker())
"""


@pytest.fixture
def keeper_of(vdelxcd):
    """keeper_of(argument...) starts a keeper: the Keeper that leads to it, and its process."""
    started = []

    def start(*more):
        ours, far = socket.socketpair(*PAIR)
        ours.settimeout(10)
        process = subprocess.Popen(
            [sys.executable, '-c', KEEPER, ROOT, str(far.fileno())] + [str(each) for each in more],
            pass_fds=[far.fileno()], stderr=subprocess.PIPE)
        far.close()
        keeper = vdelxcd.Keeper()
        keeper.links = [ours]
        started.append((keeper, process))
        return keeper, process
    yield start
    for keeper, process in started:
        keeper.close()
        process.kill()
        process.wait()
        process.stderr.close()


def an_order(vdelxcd):
    """An order for a quiet relay."""
    order = vdelxcd.Order('vde0', False, 'vde0, pid 1 uid 2 gid 3', 'vde:///none', 'net:[1]', {},
                          vdelxcd.read_vnl('vde:///none'))
    facts = order.facts(0, '/nowhere')
    return vdelxcd.QUIET_ORDER.pack(b'vdelxcd:vde0', 0, vdelxcd.AF_UNIX, b'', 0, 0, 0.0,
                                    *[0] * 7, len(facts)) + facts + order.pack()


def test_false_calls_end_nothing_but_who_calls(vdelxcd, keeper_of):
    """As somebody could call who has taken over a quiet relay."""
    keeper, process = keeper_of()
    order, tallies = an_order(vdelxcd), vdelxcd.Control.TALLIES.pack(*[1] * 6)
    pair = socket.socketpair(*PAIR)

    def keep():
        """A quiet relay whose TAP and listener are no such things."""
        return keeper.keep(order, *[sock.fileno() for sock in pair])
    held = keep()
    for words in b'xy', tallies[1:]:
        lifeline = keep()
        lifeline.sendmsg([words], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0]))])
        lifeline.close()
    keep().close()                                  # it just ends
    lifeline = keep()
    lifeline.send(b'-')                             # it waits until it was let go
    with pytest.raises(ConnectionResetError):
        lifeline.recv(1)
    lifeline.close()
    keeper.close()
    held.settimeout(0.5)                            # it is kept as long as there is one
    with pytest.raises(socket.timeout):
        held.recv(1)
    held.close()
    errors = process.communicate(timeout=10)[1].decode().splitlines()
    assert process.returncode == 0
    assert [line.partition(':')[0] for line in errors] == ['lost interface'] * 2, errors
    assert all(line.endswith('(vde0, pid 1 uid 2 gid 3)') for line in errors)
    pair[0].close()
    assert pair[1].recv(1) == b''                   # nobody has it any more
    pair[1].close()


def test_a_keeper_without_descriptors_keeps_no_more(vdelxcd, keeper_of):
    keeper, process = keeper_of(30)                 # its soft limit of 10 is none
    null, lifelines = os.open(os.devnull, os.O_RDWR), []

    def keep():
        lifelines.append(keeper.keep(an_order(vdelxcd), null, null))
        return lifelines[-1] or lifelines.pop()
    while keep():
        assert len(lifelines) < 10
    assert len(lifelines) > 5
    lifelines.pop().close()
    assert any(keep() for _ in range(100))          # until it has noticed
    for each in lifelines:
        each.close()
    keeper.close()
    assert process.wait(10) == 0
    os.close(null)
