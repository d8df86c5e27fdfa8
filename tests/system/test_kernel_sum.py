"""Checksums of super-segments: summed by the kernel where it does that, by us where it does not."""

import json
import textwrap

import pytest

from conftest import DAEMON, PYTHON
from test_bulk import hosts                                                      # noqa: F401
from test_bulk import MANY
from test_offload_mtu import csum_errors, join, received, transfer

# What a piece of code, which is argv[2], finds: as JSON. Sums with k, checks with same().
SCRIPT = """if True:
    import importlib.util, json, os, select, socket, subprocess, sys
    spec = importlib.util.spec_from_file_location('vdelxcd', sys.argv[1])
    v = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(v)

    def expected(data):
        total = sum(int.from_bytes(data[at:at + 2], 'big') for at in range(0, len(data) - 1, 2))
        return (total + (data[-1] << 8 if len(data) % 2 else 0)) % 65535

    def ip(*words):
        subprocess.check_call(('ip', 'link', 'set', 'lo') + words)

    def frame(size):
        burst = v.Burst(70000)
        burst.view[8:8 + size] = os.urandom(size)
        burst.view[24:26] = bytes(2)
        return burst

    def completed(k, size):
        '''Is a checksum right, wherever it was made? And where was that?'''
        burst = frame(size)
        total = expected(bytes(burst.view[8:8 + size]))
        before = k.number
        v.add_checksum(burst, 8, 8 + size, 16, k)
        return [int.from_bytes(burst.view[24:26], 'big') == (-total % 65535 or 65535),
                k.number != before]

    def found():
{}
    print(json.dumps(found()))
"""


@pytest.fixture
def found(host):
    """found(code) is what the code returns, run on a host as the body of a function."""
    def run(code):
        body = textwrap.indent(textwrap.dedent(code), '        ')
        return json.loads(host.run(PYTHON, '-I', '-c', SCRIPT.replace('{}', body), DAEMON).stdout)
    return run


def test_the_kernel_sums_as_we_do(found):
    wrong = found("""
        k, wrong = v.KernelSum(), []
        for size in list(range(70)) + [1459, 4096, 9001, 32767, 65000, k.MOST - 1, k.MOST]:
            for data in os.urandom(size), bytes(size), b'\\xff' * size:
                if k.add(data) != expected(data):
                    wrong.append(size)
        return wrong
    """)
    assert wrong == []


def test_more_than_a_packet_can_have_is_summed_by_us(found):
    assert found("""
        k = v.KernelSum()
        return [k.add(bytes(k.MOST + 1)), completed(k, k.MOST + 1), completed(k, k.MOST),
                completed(k, k.LEAST), completed(k, k.LEAST - 2), completed(k, 9001)]
    """) == [None, [True, False], [True, True], [True, True], [True, False], [True, True]]


def test_each_believes_its_own_answers_only(found):
    """Others sum at the same time, and somebody imitates our last packet and our next but one."""
    assert found("""
        k = v.KernelSum()
        alien = socket.socket(socket.AF_INET6, socket.SOCK_RAW, v.EXPERIMENT)
        real, wrong = k.asker, 0

        class Asker:
            def sendmsg(self, pieces, *more):
                alien.sendto(os.urandom(100), ('::1', 0))
                for ahead in 1, -1:
                    alien.sendto(k.HEAD.pack(7, k.number + ahead & 0xffff, k.mark), ('::1', 0))
                alien.sendto(k.HEAD.pack(7, k.number, os.urandom(4)), ('::1', 0))
                return real.sendmsg(pieces, *more)
        k.asker = Asker()
        for number in range(300):
            data = os.urandom(9000)
            wrong += k.add(data) != expected(data)
        return wrong
    """) == 0


def test_who_awaits_no_answer_is_given_none(found):
    """Else each packet would be looked at for each session of the host."""
    assert found("""
        ours, other = v.KernelSum(), v.KernelSum()
        for number in range(100):
            assert ours.add(os.urandom(60000)) is not None
        return [sock.getsockname()[0] for sock in (ours.asker, ours.hearer, other.hearer)] + [
            len(os.read(sock.fileno(), 100)) for sock in (ours.asker, ours.hearer, other.asker,
                                                         other.hearer)
            if select.select([sock], [], [], 0)[0]]
    """) == ['100::1'] * 3


def test_many_at_once_sum_rightly(found):
    assert found("""
        pids = []
        for _ in range(8):
            pids.append(os.fork())
            if not pids[-1]:
                k, wrong, given = v.KernelSum(), 0, 0
                for size in range(20000, 50000, 30):
                    data = os.urandom(size)
                    total = k.add(data)
                    given += total is not None
                    wrong += total not in (None, expected(data))
                os._exit(1 if wrong else 2 if given < 500 else 0)
        return [os.waitpid(pid, 0)[1] >> 8 for pid in pids]
    """) == [0] * 8


def test_while_the_loopback_interface_is_down_we_sum(found):
    """And some time after, for what does not answer is not asked each time."""
    assert found("""
        k, kept = v.KernelSum(), []
        ip('down')
        kept.append([completed(k, 40000)[0] for _ in range(20)] == [True] * 20)
        kept.append(sum(completed(k, 9000)[1] for _ in range(2000)) < 10)
        ip('up')
        for turn in range(k.REST + 1):
            if completed(k, 9000) == [True, True] and k.missed == 0:
                break
        kept.append(0 < turn <= k.REST)
        kept.append(all(completed(k, 40000) == [True, True] for _ in range(20)))
        return kept
    """) == [True] * 4


def test_a_small_loopback_interface_fragments_and_sums(found):
    assert found("""
        k = v.KernelSum()
        ip('mtu', '1500')
        return all(completed(k, size) == [True, True] for size in (9000, 9001, 40000, k.MOST))
    """)


@pytest.mark.parametrize('spoil', ["ip('down')", 'os.setuid(65534)'])
def test_where_it_can_not_be_had_there_is_none(found, spoil):
    assert found("""
        %s
        k = v.open_kernel_sum()
        burst = frame(40000)
        total = expected(bytes(burst.view[8:40008]))
        v.add_checksum(burst, 8, 40008, 16, k)
        return [k is None, int.from_bytes(burst.view[24:26], 'big') == (-total %% 65535 or 65535)]
    """ % spoil) == [True, True]


def raw_sockets(host):
    """How many raw sockets for experiments a host has."""
    return sum(':00FD ' in line for line in
               host.run('cat', '/proc/net/raw6').stdout.splitlines()[1:])


def sent(host):
    """Bytes that a host has sent through its loopback interface."""
    return int(host.run('cat', '/proc/net/dev').stdout.split('lo:')[1].split()[8])


@pytest.mark.parametrize('down', [False, True])
def test_super_segments_between_hosts_are_right_either_way(hosts, tmp_path, down):  # noqa: F811
    both, daemons, (a, b) = hosts
    if down:
        for each in both:
            each.ip('link set lo down')
    join(a, daemons[0], '10.0.0.1/24', '--offload', 'vxvde://')
    join(b, daemons[1], '10.0.0.2/24', '--offload', 'vxvde://')
    assert [raw_sockets(each) for each in both] == ([0, 0] if down else [2, 2])
    a.ping('10.0.0.2')
    transfer(a, b, '10.0.0.2', 1 << 20, tmp_path)
    for one, other, address, host in (a, b, '10.0.0.2', both[0]), (b, a, '10.0.0.1', both[1]):
        before, looped = received(other), sent(host)
        transfer(one, other, address, MANY, tmp_path)
        packets, size = (now - then for now, then in zip(received(other), before))
        assert MANY < size and size / packets > 8000
        assert csum_errors(other) == 0
        assert (sent(host) - looped > MANY / 2) != down


def test_only_who_needs_it_has_a_raw_socket(host, pair):
    daemon, a, b = pair
    join(a, daemon, '10.0.0.1/24', 'vxvde://')
    join(b, daemon, '10.0.0.2/24', '--offload', 'null://')
    assert raw_sockets(host) == 0
    a.client('-s', daemon.socket, '--offload', 'vxvde://')
    assert raw_sockets(host) == 2
    a.ip('link delete vde1')
