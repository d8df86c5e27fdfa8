"""Fuzzers of what is read as text: VNLs, rules files, requests. See fuzzing.py for longer runs."""

import errno
import os
import socket
import struct
import time

import pytest

from fuzzing import fuzz                                                        # noqa: F401

NUMBERS = errno.EINVAL, errno.EPROTONOSUPPORT
ADDRESSES = {                           # scheme -> good addresses
    'bonding': ['/tmp/b'], 'cmd': ['ls', "sh -c 'a b' \\\\ \"c\""], 'hub': ['/tmp/h', ''],
    'macvtap': ['m0'], 'multi': ['/tmp/m'], 'null': ['', 'x'], 'ptp': ['/tmp/p'],
    'seqpacket': ['5'], 'switch': ['/tmp/s'], 'tap': ['tap0'],
    'udp': ['5->h:6', '[::1]:5->[::2]:6', '192.0.2.1:9->192.0.2.2:9'], 'vde': ['/run/vde.ctl', ''],
    'vlan': ['3', '', '4094'], 'vxlan': ['', '239.1.2.3', 'ff05::9'],
    'vxvde': ['', '239.1.2.3', 'FF05:0::9'], 'slirp': ['', '/a=b'], 'agno': ['/etc/key', '']}
VALUES = {                              # option -> good values
    'port': ['1', '7', '014'], 'vni': ['0', '77'], 'grp': ['', '5'], 'ttl': ['1', '9'],
    'rcvbuf': ['4m', '1000'], 'hashsize': ['9'], 'expiretime': ['3'], 'if': ['lo'],
    'bind': ['192.0.2.1'], 'portgroup': ['blue'], 'group': ['12', ''], 'mode': ['700', '0640'],
    'dirmode': ['2700'], 'hashseed': ['x'], 'untag': ['5'], 'tag': ['6', '7:8-9', '10.11']}
SEPARATORS = ['{', '}', '[', ']', '/', '=', '%', '\\', "'", '"', '://', '%2f', '%7B', '..', '//']


def some_vnl(vdelxcd, chance, depth=0):
    """A VNL of any scheme, mostly a good one."""
    scheme = chance.choice(sorted(ADDRESSES))
    plug = vdelxcd.PLUGS.get(scheme)
    text = scheme + '://' + chance.choice(ADDRESSES[scheme])
    if plug and plug.OPTIONS:
        names = chance.sample(list(plug.OPTIONS), min(chance.randrange(4), len(plug.OPTIONS)))
        fields = [name + '=' + chance.choice(VALUES[name]) if name in VALUES else name
                  for name in names]
        style = chance.choice(plug.STYLE)
        if fields:
            text += '/' + '/'.join(fields) if style == '/' else '[%s]' % '/'.join(fields)
    if scheme in ('vlan', 'agno', 'slirp') and depth < 5 and chance.random() < 0.7:
        text += '{' + some_vnl(vdelxcd, chance, depth + 1) + chance.choice(['}', '}', ''])
    return text


def spoilt(fuzz, text):
    """The text with a few characters changed, put in, left out or moved."""
    chance = fuzz.chance
    if chance.random() < 0.5:
        return os.fsdecode(fuzz.spoil(os.fsencode(text)))
    for _ in range(chance.randint(1, 4)):
        place, length = chance.randrange(len(text) + 1), chance.randrange(3)
        text = text[:place] + chance.choice(SEPARATORS + [text[place:place + 5]]) \
            + text[place + length:]
    return text


def facts(vnl):
    """All that rules and plugs look at, of all levels."""
    return [(level.scheme, level.address, level.options, level.head, level.text, level.exact,
             level.network, level.networks, level.named, level.spellings, level.command, level.ours)
            for level in vnl.levels()]


def test_what_was_judged_is_what_is_opened(vdelxcd, fuzz):
    read, schemes = 0, set()
    for _ in fuzz.rounds(3000):
        text = some_vnl(vdelxcd, fuzz.chance)
        text = spoilt(fuzz, text) if fuzz.chance.random() < 0.7 else text
        try:
            vnl = vdelxcd.read_vnl(text)
        except vdelxcd.Failure as failure:
            assert failure.errno in NUMBERS and str(failure).isprintable(), repr(text)
            continue
        read += 1
        schemes |= {level.scheme for level in vnl.levels()}
        assert vnl.text.isprintable() and 1 <= len(list(vnl.levels())) <= 32
        again = vdelxcd.read_vnl(vnl.text)
        assert facts(again) == facts(vnl), repr(text)
        for level in vnl.levels():
            assert facts(vdelxcd.read_vnl(level.text)) == facts(level), repr(text)
            exact = vdelxcd.read_vnl(level.exact)
            assert (exact.exact, exact.network) == (level.exact, level.network), repr(text)
            for spelling in level.spellings:
                assert vdelxcd.read_vnl(spelling).network in level.networks, repr(text)
    assert read > 600 and schemes >= set(vdelxcd.PLUGS)


def test_a_rules_file_full_of_faults_is_read_or_refused_line_by_line(vdelxcd, fuzz, tmp_path):
    chance, path, good = fuzz.chance, str(tmp_path / 'rules'), 0
    vnls = [vdelxcd.read_vnl(text) for text in ('vxvde://', 'vlan://3{cmd://ls}', 'nosuch://x')]
    for _ in fuzz.rounds(400):
        lines = []
        for _ in range(chance.randrange(8)):
            line = chance.choice(vdelxcd.TAGS + ('#', 'ALLOW')) + chance.choice([' ', '\t', '  '])
            line += some_vnl(vdelxcd, chance)
            line = line[:chance.randrange(len(line) + 1)] if chance.random() < 0.2 else line
            lines.append(fuzz.spoil(os.fsencode(line)) if chance.random() < 0.3
                         else os.fsencode(line))
        with open(path, 'wb') as file:
            file.write(chance.choice([b'\n', b'\r\n', b'\n\n']).join(lines))
        try:
            rules, warnings = vdelxcd.read_rules(path, None, vdelxcd.read_vnl)
        except vdelxcd.Failure as failure:
            faults = str(failure).split('\n')
            assert all(fault.startswith(path + ':') for fault in faults), lines
            continue
        good += 1
        assert all(warning.startswith(path + ':') for warning in warnings)
        for vnl in vnls:
            try:
                assert rules.judge(vnl).isprintable()
            except vdelxcd.Failure as failure:
                assert failure.errno in (errno.EACCES, errno.EPROTONOSUPPORT)
                assert str(failure).isprintable()
    assert good > 30


# ---- requests -----------------------------------------------------------------------------------

def open_files():
    return len(os.listdir('/proc/self/fd'))


def test_any_request_in_any_pieces_with_any_descriptors_is_read_or_refused(vdelxcd, fuzz):
    chance, null = fuzz.chance, os.open(os.devnull, os.O_RDWR)
    before, answers = open_files(), {}
    for _ in fuzz.rounds(1500):
        text = some_vnl(vdelxcd, chance) if chance.random() < 0.8 else 'x' * chance.randint(
            4000, 4200)
        keys = [chance.choice(['hello=1', 'offload=1', 'mtu=auto', 'x', '=', '', 'a=b=c', '\xff'])
                for _ in range(chance.choice([0, 0, 1, 2, 5]))]
        request = os.fsencode('\0'.join([text] + keys)) + chance.choice([b'\0', b'\0', b''])
        if chance.random() < 0.3:
            request = fuzz.spoil(request)
        pieces = fuzz.pieces(request)
        given = [chance.choice([0, 0, 0, 1, 2, 3]) for _ in pieces[1:]] + [1]
        chance.shuffle(given)
        if chance.random() < 0.1:
            given = [0] * len(pieces)
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with ours, theirs:
            for piece, count in zip(pieces, given):
                ours.sendmsg([piece], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                                        struct.pack('%di' % count, *[null] * count))]
                             if count else [])
            ours.shutdown(socket.SHUT_WR)
            try:
                found = vdelxcd.receive_request(theirs, time.monotonic() + 5)
            except vdelxcd.Failure as failure:
                assert failure.errno in (errno.EINVAL, errno.EPIPE, errno.EBADF), request
                assert str(failure).isprintable()
                answers[failure.errno] = answers.get(failure.errno, 0) + 1
            else:
                answers[0] = answers.get(0, 0) + 1
                assert os.fsencode(found[0]) == request.split(b'\0')[0] and len(found[0]) <= 4095
                assert sum(given) >= 1 or 'hello' in found[2]
                if found[1] is not None:
                    os.close(found[1])
        assert open_files() == before, request
    os.close(null)
    assert min(answers.get(each, 0) for each in (0, errno.EINVAL, errno.EPIPE)) > 20, answers
