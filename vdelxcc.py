#!/usr/bin/env python3
"""vdelxcc: give this container an Ethernet interface on a VDE network.

Makes a TAP interface, hands its descriptor to the vdelxcd daemon through a UNIX socket that
is shared with the host, waits for the daemon's answer and exits; the daemon keeps the interface.

    container                                    host
    TAP vde0 -- descriptor, VNL --> /vde/vdelxcs --> vdelxcd --> VDE network

It opens /dev/net/tun and the daemon's socket, and nothing else: it writes no file, starts no
program, and needs only a Python interpreter (3.6 or later, python3-minimal is enough). It runs
from standard input too: python3 - vxvde:// < vdelxcc.py

The rooms of this file, in order (each uses only those above it): numbers from outside, errors,
the TAP, interface settings, hand-over, command line.

Exit status: 0 the interface is there; 1 it is not, and one line on stderr says why.
"""

import errno
import fcntl
import os
import socket
import struct
import sys
import time

VERSION = '0.1.0'
SOCKET_NAME = 'vdelxcs'
SEARCH_PATH = '/vde:/var/vde'
INTERFACE = 'vde'
TIMEOUT = 10.0

USAGE = 'Usage: vdelxcc [OPTION]... [VNL]'
HELP = USAGE + """
Make an Ethernet interface on the VDE network VNL (the daemon's default network without VNL).

  -s, --socket SOCKET   the daemon's socket: a path, or a name without / that is looked up
                        in each directory of $VDELXC_PATH (default %s)
                        (default name %s)
  -i, --iface IFACE     interface name; a name that does not end in a digit is a prefix and
                        gets the first free number (default %s)
  -t, --timeout SECONDS longest wait for the daemon (default %g)
      --mtu N           MTU of the interface; auto: the largest that the network carries in
                        one piece (default 1500)
      --offload         take TCP segments merged: faster, but not for a container that forwards
                        them (a bridge, a router); see vdelxcc(1)
  -v, --verbose         print the name of the new interface
  -h, --help            print this text and exit
      --version         print the version and exit

VNLs: vxvde:// vxvde://239.1.2.3/vni=7 vde:///run/switch ...; see vnl(7).
""" % (SEARCH_PATH, SOCKET_NAME, INTERFACE, TIMEOUT)


# ==================================================================================================
# Numbers from outside
# ==================================================================================================

# <linux/if_tun.h>. The bit that says "user space writes" differs on a few architectures
# (<asm/ioctl.h>).
TUN_DEVICE = '/dev/net/tun'
SWAPPED_IOCTL = ('mips', 'ppc', 'sparc', 'alpha', 'parisc')
TUNSETIFF = 0x800454ca if os.uname().machine.startswith(SWAPPED_IOCTL) else 0x400454ca
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000                       # frames with a virtio_net_hdr
IFREQ = struct.Struct('16sH22x')            # struct ifreq: name[16], flags, padding to 40 bytes
IFREQ_INT = struct.Struct('16si20x')        # the same with ifr_mtu
TAP_MTU_MAX = 65521                         # bytes, of a TAP
SIOCGIFMTU, SIOCSIFMTU = 0x8921, 0x8922     # <linux/sockios.h>
IFNAMSIZ = 16                               # with the closing NUL

# <sys/un.h> and <asm-generic/socket.h>
SUN_PATH_MAX = 107                          # bytes of a socket path without the closing NUL
TIMEVAL = struct.Struct('ll')               # struct timeval: seconds, microseconds

# The hand-over (one message, one answer)
VNL_MAX = 4095                              # bytes, without the closing NUL
NUMBERS = 256                               # a prefix is tried with 0 to 255
REPLY_MAX = 4096                            # bytes of an answer that are read


# ==================================================================================================
# Errors
# ==================================================================================================

DEVICE_ADVICE = ('LXC: "lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file" and '
                 '"lxc.cgroup2.devices.allow = c 10:200 rwm"; podman: --device /dev/net/tun')
MODULE_ADVICE = 'the host has no tun driver; on the host: modprobe tun'
OPEN_ADVICE = {
    errno.ENOENT: 'bring the device into the container; ' + DEVICE_ADVICE,
    errno.EACCES: 'let the container use the device; ' + DEVICE_ADVICE,
    errno.EPERM: 'let the container use the device; ' + DEVICE_ADVICE,
    errno.ENODEV: MODULE_ADVICE,
    errno.ENXIO: MODULE_ADVICE,
}
SETIFF_ADVICE = {
    errno.EPERM: 'root with CAP_NET_ADMIN is needed; LXC: no net_admin in lxc.cap.drop; '
                 'podman: --cap-add NET_ADMIN',
}
TAKEN_ADVICE = {
    errno.EBUSY: 'another program holds this interface; choose another name with -i',
    errno.EINVAL: 'this name is held by a device that is no TAP; choose another name with -i',
}
CONNECT_ADVICE = {
    errno.ECONNREFUSED: 'no daemon listens there; start vdelxcd on the host',
    errno.EACCES: "the socket's mode or owner keeps you out; see vdelxcd -m",
    errno.EAGAIN: 'the daemon does not accept connections',
}
REFUSAL_ADVICE = {
    errno.EACCES: "refused by the daemon's rules; vdelxcd's log on the host names the rule",
    errno.ENOENT: 'no such switch or path, or no VNL and the daemon has no default network',
    errno.EINVAL: 'malformed VNL, unknown option or bad value; see vnl(7)',
    errno.EPROTONOSUPPORT: 'the daemon does not know this scheme; see vnl(7)',
    errno.ENODEV: 'no such interface, or no route to the multicast group, on the host',
    errno.ENETUNREACH: 'no route to this network on the host',
    errno.EBUSY: 'in use on the host',
    errno.EAGAIN: 'the daemon is short of processes or descriptors; try again',
    errno.ETIMEDOUT: 'the daemon waited too long for the request',
}


class Failure(Exception):
    """What ends the program: one line for stderr, exit status 1."""


def failure(doing, number, *details):
    """A Failure that reads "doing: the system's text for the errno: details"; None is no detail."""
    return Failure(': '.join(filter(None, (doing, os.strerror(number)) + details)))


def one_line(text):
    """The text with everything that is no printable character escaped."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


# ==================================================================================================
# The TAP
# ==================================================================================================

def interface_names(name):
    """The names to try, in order: the name itself, or the prefix with 0 to 255.

    Raises Failure for a name that no interface can have (dev_valid_name() in the kernel).
    """
    if (not name or name in ('.', '..') or set(name) & set('/:%') or name.split() != [name]
            or not name.isprintable()):
        raise failure('interface definition', errno.EINVAL, '%r: not an interface name' % name)
    numbered = [name] if name[-1] in '0123456789' else [name + str(n) for n in range(NUMBERS)]
    names = [each for each in numbered if len(os.fsencode(each)) < IFNAMSIZ]
    if not names:
        raise failure('interface definition', errno.ENAMETOOLONG,
                      '%s: %d characters at most' % (numbered[0], IFNAMSIZ - 1))
    return names


def make_tap(names, flags):
    """Make a TAP under the first free name; return its descriptor and its name.

    flags are IFF_TAP and what else it shall be. A busy TAP answers EBUSY, a name held by another
    kind of device EINVAL: both mean "try the next number". Raises Failure.
    """
    try:
        tap = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise failure('interface definition', error.errno, TUN_DEVICE,
                      OPEN_ADVICE.get(error.errno))
    for name in names:
        try:
            fcntl.ioctl(tap, TUNSETIFF, IFREQ.pack(os.fsencode(name), flags))
            return tap, name
        except OSError as error:
            number = error.errno
            if number not in TAKEN_ADVICE:
                raise failure('interface definition', number, name, SETIFF_ADVICE.get(number))
    if len(names) > 1:
        raise failure('interface definition', number, '%s to %s: all taken' % (names[0], name))
    raise failure('interface definition', number, name, TAKEN_ADVICE[number])


# ==================================================================================================
# Interface settings
# ==================================================================================================

def get_mtu(name):
    """The MTU of an interface in bytes. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFMTU, IFREQ_INT.pack(os.fsencode(name), 0))
    return IFREQ_INT.unpack(answer)[1]


def set_mtu(name, mtu):
    """Set the MTU of an interface in bytes. Raises Failure."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCSIFMTU, IFREQ_INT.pack(os.fsencode(name), mtu))
    except OSError as error:
        raise failure('interface settings', error.errno, '%s: MTU %d' % (name, mtu))


# ==================================================================================================
# Hand-over
# ==================================================================================================

def socket_paths(socket_name):
    """Where the daemon's socket may be: the path itself, or the name in each search directory."""
    if '/' in socket_name:
        return [socket_name]
    directories = os.environ.get('VDELXC_PATH') or SEARCH_PATH
    return [os.path.join(each, socket_name) for each in directories.split(':') if each]


def connect(socket_name, timeout):
    """Connect to the daemon; return the socket, whose waits end after timeout seconds each.

    Of the paths to try, the first that answers is the one. Raises Failure.
    """
    paths = socket_paths(socket_name)
    found = None
    for path in paths:
        if len(os.fsencode(path)) > SUN_PATH_MAX:
            raise failure('connect', errno.ENAMETOOLONG, path, '%d bytes at most' % SUN_PATH_MAX)
        daemon = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # These bound connect() as well; settimeout() would make a full backlog fail at once.
        for option in socket.SO_SNDTIMEO, socket.SO_RCVTIMEO:
            daemon.setsockopt(socket.SOL_SOCKET, option,
                              TIMEVAL.pack(int(timeout), int(timeout % 1 * 999999) + 1))
        try:
            daemon.connect(path)
            return daemon
        except OSError as error:
            daemon.close()
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                found = found or failure('connect', error.errno, path,
                                         CONNECT_ADVICE.get(error.errno))
    raise found or failure(
        'connect', errno.ENOENT, 'tried ' + ', '.join(paths),
        "start vdelxcd on the host and share its socket's directory with this container")


def exchange(daemon, request, rights, timeout):
    """Send a request and read the answer: (errno, dict of the daemon's keys).

    The answer is an errno in ASCII decimal, then NUL or the end of the stream; key=value and NUL
    may follow when the request had keys. Only a complete number is an answer. Raises Failure.
    """
    deadline = time.monotonic() + timeout
    end = b'\0' if request.count(b'\0') == 1 else None      # keys come until the stream ends
    reply, chunk, sent = b'', b'?', True
    try:
        try:
            daemon.sendmsg([request], rights, socket.MSG_NOSIGNAL)
        except BrokenPipeError:
            sent = False                    # a daemon short of processes answers before it reads
        while chunk and (end is None or end not in reply) and len(reply) < REPLY_MAX:
            if time.monotonic() > deadline:
                raise BlockingIOError
            chunk = daemon.recv(REPLY_MAX)
            reply += chunk
    except BlockingIOError:
        raise failure('vdelxcd', errno.ETIMEDOUT, 'no answer within %g s' % timeout)
    except OSError as error:
        raise failure('vdelxcd', error.errno, 'the daemon hung up before it answered')
    number, _, rest = reply.partition(b'\0')
    if not reply or (not sent and number.strip(b'0') == b''):
        raise failure('vdelxcd', errno.ECONNRESET, 'the daemon hung up before it answered')
    if not number.isdigit() or len(number) > 9:
        raise failure('vdelxcd', errno.EPROTO, 'not an answer: %s' % ascii(reply[:40])[1:])
    pairs = [pair.partition('=') for pair in rest.decode('ascii', 'replace').split('\0')[:-1]]
    return int(number), {key: value for key, _, value in pairs}


def abilities(daemon, timeout):
    """What the daemon can beyond the plain protocol: a dict, empty for the C daemon.

    A greeting without VNL and descriptor; whoever does not know it answers a bare errno.
    Raises Failure.
    """
    return exchange(daemon, b'\0hello=1\0', [], timeout)[1]


def hand_over(daemon, tap, vnl, keys, timeout):
    """Send the VNL, the keys and the TAP's descriptor in one message; the keys of the answer.

    The request is VNL NUL, then key=value NUL for each key, with one SCM_RIGHTS descriptor.
    Raises Failure.
    """
    request = os.fsencode('\0'.join([vnl] + ['%s=%s' % pair for pair in keys.items()])) + b'\0'
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', tap))]
    number, answer = exchange(daemon, request, rights, timeout)
    if number:
        raise failure('vdelxcd', number, REFUSAL_ADVICE.get(number))
    return answer


# ==================================================================================================
# Command line
# ==================================================================================================

class Usage(Failure):
    """A command line that makes no sense."""

    def __init__(self, sentence):
        super().__init__('vdelxcc: ' + sentence)


def split_options(arguments, flags, valued):
    """Split a command line as GNU getopt does: ([(long name, value)], other arguments).

    flags and valued are the options without and with a value: dicts of long name -> letter, '' for
    none. Options may be shortened, clustered and mixed with arguments; -- ends them. Raises Usage.
    (The library's getopt costs a third of the start-up time: it imports gettext and re.)
    """
    pairs, rest, words = [], [], list(arguments)
    letters = {letter: name for names in (flags, valued) for name, letter in names.items()}
    while words:
        word = words.pop(0)
        if word == '--':
            return pairs, rest + words
        if not word.startswith('-') or word == '-':
            rest.append(word)
        elif word.startswith('--'):
            name, equals, value = word[2:].partition('=')
            names = [each for each in list(flags) + list(valued) if each.startswith(name)]
            if len(names) != 1 and name not in names:
                raise Usage('%s: %s' % (word, 'which of --%s?' % ', --'.join(names) if names
                                        else 'no such option'))
            name = name if name in names else names[0]
            if name in flags and equals:
                raise Usage('%s: takes no value' % word)
            if name in valued and not equals:
                value = next_value(words, word)
            pairs.append((name, value))
        else:
            for place, letter in enumerate(word[1:], 2):
                name = letters.get(letter)
                if not name:
                    raise Usage('-%s: no such option' % letter)
                if name in valued:
                    pairs.append((name, word[place:] or next_value(words, '-' + letter)))
                    break
                pairs.append((name, ''))
    return pairs, rest


def next_value(words, option):
    """The word after an option. Raises Usage when there is none."""
    if not words:
        raise Usage('%s: needs a value' % option)
    return words.pop(0)


FLAGS = {'verbose': 'v', 'help': 'h', 'version': '', 'offload': ''}
VALUED = {'socket': 's', 'iface': 'i', 'timeout': 't', 'mtu': ''}


def parse_arguments(arguments):
    """The command line as a dictionary; of a repeated option the first counts. Raises Usage."""
    options = {}
    pairs, rest = split_options(arguments, FLAGS, VALUED)
    for name, value in pairs:
        options.setdefault(name, value)
    if len(rest) > 1:
        raise Usage('%s: one VNL at most' % rest[1])
    options['vnl'] = rest[0] if rest else ''
    try:
        options['timeout'] = float(options.get('timeout', TIMEOUT))
    except ValueError:
        raise Usage('-t %s: not a number of seconds' % options['timeout'])
    if not 0 < options['timeout'] <= 86400:
        raise Usage('-t %g: more than 0 and at most 86400 seconds' % options['timeout'])
    mtu = options.get('mtu', 'auto')
    if mtu != 'auto' and (not mtu.isdigit() or not 68 <= int(mtu) <= TAP_MTU_MAX):
        raise Usage('--mtu %s: auto, or 68 to %d bytes' % (mtu, TAP_MTU_MAX))
    return options


def say(text, stream):
    """Write to sys.stdout or sys.stderr at once; print() alone would fail when Python ends.

    Raises Failure.
    """
    try:
        if stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, end='', file=stream, flush=True)
    except OSError as error:
        try:
            if stream:
                stream.close()              # forgets what it could not write
        except OSError:
            pass
        raise failure('vdelxcc: output', error.errno)


def run(options):
    """Connect, make the TAP, hand it over, settle its MTU. Raises Failure."""
    def detail(text):
        """Tell the user who wants to know; stdout has the interface's name alone."""
        if 'verbose' in options:
            say('vdelxcc: %s\n' % text, sys.stderr)

    names = interface_names(options.get('iface', INTERFACE))
    timeout, mtu = options['timeout'], options.get('mtu')
    daemon = connect(options.get('socket', SOCKET_NAME), timeout)
    flags, keys = IFF_TAP | IFF_NO_PI, {}
    if 'offload' in options or mtu == 'auto' or (mtu and 'verbose' in options):
        known = abilities(daemon, timeout)
        daemon.close()
        daemon = connect(options.get('socket', SOCKET_NAME), timeout)
        if 'mtu' in known:
            keys['mtu'] = 'auto'
        if 'offload' in options and 'offload' in known:
            flags, keys['offload'] = flags | IFF_VNET_HDR, '1'
        elif 'offload' in options:
            detail('this daemon has no offload; going on without')
    tap, name = make_tap(names, flags)
    if mtu and mtu != 'auto':
        set_mtu(name, int(mtu))
    answer = hand_over(daemon, tap, options['vnl'], keys, timeout)
    advice = answer.get('mtu', '') if 'mtu' in keys else ''
    if mtu == 'auto' and advice.isdigit():
        set_mtu(name, int(advice))
    elif mtu == 'auto':
        detail('this daemon gives no advice; the MTU stays %d' % get_mtu(name))
    elif advice.isdigit() and get_mtu(name) > int(advice):
        detail('the MTU of %d does not fit the network, whose datagrams will be fragmented; '
               '--mtu auto would take %s' % (get_mtu(name), advice))
    if 'verbose' in options:
        say(name + '\n', sys.stdout)


def main(arguments):
    """Parse the command line and run; return the exit status."""
    try:
        options = parse_arguments(arguments)
        if 'help' in options or 'version' in options:
            say(HELP if 'help' in options else 'vdelxcc %s\n' % VERSION, sys.stdout)
            return 0
        if len(os.fsencode(options['vnl'])) > VNL_MAX:
            raise Failure('vdelxcc: the VNL is longer than %d bytes' % VNL_MAX)
        run(options)
        return 0
    except (Failure, OSError) as error:
        line = error if isinstance(error, Failure) else 'vdelxcc: %s' % error
        text = one_line(str(line)) + '\n' + (USAGE + '\n' if isinstance(error, Usage) else '')
        try:
            say(text, sys.stderr)
        except Failure:
            pass
        return 1
    except KeyboardInterrupt:
        return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
