#!/usr/bin/env python3
"""vdelxcd: give containers Ethernet interfaces on VDE networks.

Listens on a UNIX socket that is shared with containers. The client, vdelxcc, hands over a TAP's
descriptor and the name (VNL) of a network; the daemon judges the name by its rules, opens the
network, and one process per interface then relays frames until the interface goes.

    container | TAP vde0 <--- frames ---> session process <--- datagrams ---> VDE network | host

The rooms of this file, in order (each uses only those above it): numbers from outside; errors and
log; rights; VNLs; rules; frames and the MAC table; plugs; relay; hand-over; sessions; quiet
relays; asking sessions; server; daemon; command line.

Exit status: 0 ended by SIGTERM or SIGINT, or (with -d) the daemon is up, or (with --test) the VNL
is allowed; 1 an error, told in one line on stderr (one line per fault for a configuration file).
"""

import sys

if __name__ == '__main__' and not (sys.flags.isolated or getattr(sys.flags, 'safe_path', False)):
    del sys.path[0]         # where this file is, where others may put a socket.py: see python -P

import errno
import fcntl
import gc
import grp
import os
import pwd
import select
import signal
import socket
import stat
import struct
import time
from array import array

try:
    import resource
except ImportError:                         # python3-minimal has none
    resource = None

VERSION = '0.1.0'
SOCKET_NAME = 'vdelxcs'

BURST = 64                  # frames handled in one wakeup, each way
MTU, MTU_MAX = 1500, 9216   # bytes of payload: of an interface by default, and at most
FRAME_MAX = MTU_MAX + 14 + 4    # bytes of the longest frame: with Ethernet header and one tag
RECEIVE_BUFFER = 4 << 20    # bytes asked of the kernel for what a network socket receives
RECEIVE_BUFFER_MAX = 64 << 20   # bytes; more than a VNL gets with rcvbuf=
SEND_BUFFER = 1 << 20       # bytes asked of the kernel for what it sends
MACS_MAX = 4096             # entries of a MAC table
HAND_OVER_TIME = 5.0        # seconds a client has to hand over its TAP
RESOLVER = 'timeout:1 attempts:2'       # resolv.conf(5): a name is found, or not, within that
HAND_OVERS_MAX = 64         # clients with nothing to hear yet; and processes that hear one
ACCEPTS = 64                # connections accepted in one turn
STUCK_MAX = 8               # processes of one container that did not end when they were killed
SESSIONS_MAX = 2048         # interfaces
CONTAINER_MAX = 256         # interfaces of one network namespace
LOOK_AGAIN = 0.1            # seconds until the end of sessions that are no children is looked for
PAUSE = 0.2                 # seconds without accept() when processes or descriptors run out
DESCRIPTORS_MAX = 64        # descriptors of a relay
DATA_MAX = 256 << 20        # bytes of memory of a relay
NOBODY = 65534              # user and group where there is no user of that name
PIDFILE_MAX = 20            # bytes that are looked at of a pidfile
START_TIME = 2.0            # seconds to wait for other daemons that start in the same directory
NESTING_MAX = 32            # levels of a nested VNL
FIRST_WAIT, LONGEST_WAIT = 0.25, 2.0    # seconds until a lost network is tried again
try:
    START_DIRECTORY = os.getcwd()       # relative paths in VNLs start here
except OSError:
    START_DIRECTORY = '/'               # it was deleted

USAGE = 'Usage: vdelxcd [OPTION]... SOCKET [VNL]'
HELP = USAGE + """
Give containers that reach SOCKET Ethernet interfaces on VDE networks; VNL is their default
network and, without -f, the only one. Without VNL and -f every network is allowed.

  -f, --rcfile FILE     read rules (default, allow, deny, pfxallow, pfxdeny) from FILE
  -d, --daemon          detach; return when the socket listens
  -p, --pidfile FILE    write the daemon's process id to FILE
  -m, --mode MODE       octal permissions of SOCKET (default: as the umask says)
      --user USER[:GROUP]
                        who relays are once their network is open; names or numbers
                        (default nobody when started as root; root: no change)
      --max-sessions N  interfaces at most (default %d)
      --max-per-container N
                        interfaces of one network namespace at most (default %d)
  -v, --verbose         log every interface that opens and closes
      --allow-commands  without VNL and -f: allow networks that run a program on this host
                        (cmd:// and all schemes that need vde_plug)
      --ready-fd N      when the socket listens, write a newline to descriptor N and close it
      --check-config    read the rules as a start would, tell every fault, and exit
      --test VNL        tell whether and by which rule a client may have VNL, and exit;
                        '' is the default network
      --list            show the interfaces of this host, also those of other daemons, and exit
      --json            with --list: as JSON
      --close SESSION   end an interface, named by its session's process id or its own name
      --capture SESSION copy its frames to stdout, as pcap, until it ends
  -w, --write FILE      with --capture: to FILE
      --completion SHELL
                        print completions for SHELL, which is bash, and exit
  -h, --help            print this text and exit
      --version         print the version and exit

Without SOCKET (--check-config, --test, a socket from systemd), one argument with :// is VNL.
Example: vdelxcd -v /tmp/vde/vdelxcs vxvde://
SIGHUP reads FILE again. Interfaces outlive the daemon; see vdelxcd(1) and vnl(7).
""" % (SESSIONS_MAX, CONTAINER_MAX)


# ==================================================================================================
# Numbers from outside
# ==================================================================================================

# <linux/if_tun.h>. The direction bits of ioctl numbers differ on a few architectures
# (<asm/ioctl.h>); bits 16 to 29 are the size of the argument.
SWAPPED_IOCTL = os.uname().machine.startswith(('mips', 'ppc', 'sparc', 'alpha', 'parisc'))
IOC_READ, IOC_WRITE = (0x4 << 28, 0x8 << 28) if SWAPPED_IOCTL else (0x8 << 28, 0x4 << 28)
SOCK_FPROG = struct.Struct('@HP')           # struct sock_fprog: number of instructions, address
SOCK_FILTER = struct.Struct('=HBBI')        # struct sock_filter: code, jt, jf, k
ACCEPT_ALL = SOCK_FILTER.pack(0x06, 0, 0, 0xffffffff)                  # BPF_RET | BPF_K
TUNSETIFF = IOC_WRITE | 0x000454ca
TUNGETIFF = IOC_READ | 0x000454d2
TUNATTACHFILTER = IOC_WRITE | SOCK_FPROG.size << 16 | 0x54d5
TUNDETACHFILTER = IOC_WRITE | SOCK_FPROG.size << 16 | 0x54d6
TUNSETOFFLOAD = IOC_WRITE | 0x000454d0
TUNSETVNETHDRSZ = IOC_WRITE | 0x000454d8
TUNSETCARRIER = IOC_WRITE | 0x000454e2
TUNGETDEVNETNS = (0x2 << 28 if SWAPPED_IOCTL else 0) | 0x000054e3
TUN_DEVICE = '/dev/net/tun'
TUN_RDEV = os.makedev(10, 200)
IFF_TAP = 0x0002
IFF_NAPI = 0x0010
IFF_MULTI_QUEUE = 0x0100
IFF_DETACH_QUEUE = 0x0400
IFF_NO_PI = 0x1000                          # TUNSETIFF: frames without packet-info header
IFF_NOFILTER = 0x1000                       # TUNGETIFF: no filter is attached; the same bit
IFF_VNET_HDR = 0x4000
IFREQ = struct.Struct('16sH22x')            # struct ifreq: name[16], flags, padding to 40 bytes
IFNAMSIZ = 16                               # with the closing NUL

# <linux/netlink.h>, <linux/rtnetlink.h>
NETLINK_ROUTE = 0
RTMGRP_LINK = 1                             # links come, change and go

# <linux/virtio_net.h>: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, host byte order
VNET_HEADER = struct.Struct('=BBHHHH')
NEEDS_CSUM = 1
GSO_TCPV4, GSO_TCPV6 = 1, 4
TUN_F_GIANTS = 0x01 | 0x02 | 0x04           # TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6
IPV4_CHECKSUM = 24                          # offset in an Ethernet frame
TCP_CHECKSUM = 16                           # offset in a TCP header
TCP, TCP_ACK = 6, 0x10                      # the protocol; the flags of a segment with nothing else
TCP_FLUSHED = 0x01 | 0x02 | 0x04 | 0x08 | 0x20      # FIN, SYN, RST, PSH, URG: not kept by GRO
TCP_LAST, TCP_FIRST = 0x01 | 0x08, 0x80     # FIN and PSH, CWR: on one segment of a super-segment
MERGED_MAX = 65535 - 100                    # bytes of a super-segment that we make
PARTIAL = 0x8000                            # see Burst
SEGMENT_MIN = 8                             # bytes of payload of its segments, whatever options
GIANT_MAX = 65535 + 14 + 2 * 4              # bytes of one that a kernel makes, behind two tags

# <pcap/pcap.h>, host byte order: magic, version, zone, accuracy, longest frame, LINKTYPE_ETHERNET;
# of each frame: seconds, microseconds, bytes here, bytes on the wire
PCAP_HEADER = struct.Struct('=IHHiIII')
PCAP_FILE = PCAP_HEADER.pack(0xa1b2c3d4, 2, 4, 0, 0, 1 << 18, 1)
PCAP_RECORD = struct.Struct('=IIII')

# <sys/un.h>, <linux/socket.h>
SUN_PATH_MAX = 107                          # bytes of a socket path without the closing NUL
UCRED = struct.Struct('3i')                 # struct ucred: pid, uid, gid
GROUP_MAX = 0xfffffffe                      # gid_t; the number above it means no group

# <sys/socket.h>, as plain numbers: with the library's enumerations every & of flags runs Python
# code, and dirties memory of each session
AF_UNIX, AF_INET, AF_INET6 = map(int, (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6))
SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET = map(int, (
    socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET))
MSG_PEEK, MSG_CTRUNC, MSG_TRUNC, MSG_DONTWAIT, MSG_NOSIGNAL, MSG_CMSG_CLOEXEC = map(int, (
    socket.MSG_PEEK, socket.MSG_CTRUNC, socket.MSG_TRUNC, socket.MSG_DONTWAIT,
    socket.MSG_NOSIGNAL, socket.MSG_CMSG_CLOEXEC))

# <signal.h>
SIGNALS = SIGCHLD, SIGTERM, SIGINT, SIGHUP = tuple(map(int, (
    signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
SIG_BLOCK, SIG_UNBLOCK = int(signal.SIG_BLOCK), int(signal.SIG_UNBLOCK)
# pthread_sigmask() as it is before the library has it return enumerations
set_mask = getattr(signal, '_signal', signal).pthread_sigmask

# <linux/in.h>, <linux/in6.h>, <linux/udp.h>, <asm-generic/socket.h>: not named by socket
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
IP_MTU, IPV6_MTU = 14, 24                   # of the path of a connected socket
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER = 10, 23
PMTUDISC_OMIT = 5                           # only the interface's own MTU counts (Linux 3.15)
IP_MULTICAST_ALL = 49
IPV6_MULTICAST_ALL = 29
IP_MREQN = struct.Struct('4s4si')           # struct ip_mreqn: group, address, interface index
IPV6_MREQ = struct.Struct('@16sI')          # struct ipv6_mreq: group, interface index
SOL_UDP = 17
UDP_SEGMENT = 103                           # bytes per datagram of a sent train (Linux 4.18)
UDP_GRO = 104                               # trains are received whole (Linux 5.0)
IPV6_CHECKSUM = 7                           # RFC 3542, section 3.1
IPV6_FREEBIND = 78                          # addresses that we do not have (Linux 4.15)
IPV6_HEADER, LOOPBACK_MTU = 40, 65536       # bytes
EXPERIMENT = 253                            # a next header for experiments (RFC 3692, section 2.1)
DATAGRAM_MAX = 65507                        # bytes, over IPv4
INT = struct.Struct('i')
TIMEVAL = struct.Struct('ll')               # struct timeval: seconds, microseconds

# vxvde and vxlan (RFC 7348, section 5): flags (0x08: VNI is valid), reserved[3], VNI[3], reserved
VXLAN_HEADER = struct.Struct('>B3xI')       # the VNI shifted left by 8
VXLAN_FLAGS = 0x08
BULK_FLAGS = 0x88                           # ours, see Bulk; no program takes it for a frame
ETHERNET_HEADER = 14
OVERLAY_GROUPS = {4: '239.0.0.1', 6: 'ff05:56de::1'}

# IEEE 802.1Q: a tag is its type, then priority (3 bits), DEI (1 bit) and VLAN (12 bits)
TAG, TAG_QINQ = b'\x81\x00', b'\x88\xa8'
TAG_SIZE = 4
SHORTEST_TAGGED = ETHERNET_HEADER + TAG_SIZE
VLANS = 2, 4094                             # the first and the last that a network can use

# vde_plug's stream: a length, a frame
STREAM_LENGTH = struct.Struct('>H')
STREAM_BUFFER = 2 * (65535 + STREAM_LENGTH.size)

# vde_switch: a request is magic, version, type (port << 8), sockaddr_un, text, in host byte order
SWITCH_REQUEST = struct.Struct('=III')
SWITCH_MAGIC, SWITCH_VERSION = 0xfeedface, 3
SWITCH_TEXT_MAX = 128                       # bytes of the description
SOCKADDR_UN = struct.Struct('=H108s')       # struct sockaddr_un: family, path padded with zeros

# The hand-over (one message, one answer)
VNL_MAX = 4095                              # bytes, without the closing NUL

# <systemd/sd-daemon.h>
LISTENER = 3                                # SD_LISTEN_FDS_START: the first socket passed on

# <syslog.h>; facility daemon
LOG_DAEMON = 3 << 3
LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_INFO = 3, 4, 5, 6
LOG_SOCKET = '/dev/log'
LOG_LINE_MAX = 1000                         # characters
LOG_VNL_MAX = 600                           # characters of a VNL; who and why must follow


# ==================================================================================================
# Errors and log
# ==================================================================================================

class Failure(Exception):
    """What went wrong: an errno (int) for the client and a sentence for people of this host.

    told is what a client may read that asks for a reason: nothing of this host but what its own
    VNL names.
    """

    def __init__(self, number, sentence, told=''):
        super().__init__(sentence)
        self.errno, self.told = number, told


class Ended(Exception):
    """The interface is gone, or the session was told to end."""


class PlugGone(Failure):
    """The network is gone and may come back."""


def why(error):
    """The system's own text for an OSError, or the sentence of anything else."""
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def printable(text):
    """The text in one line of printable ASCII; everything else and the backslash is escaped."""
    return text.encode('unicode_escape').decode('ascii')


def excerpt(text):
    """The text printable(), and cut off so that a log line has room for what follows it."""
    text = printable(text)
    return text if len(text) <= LOG_VNL_MAX else text[:LOG_VNL_MAX] + '...'


class Log:
    """Where lines go: to stderr, or to syslog once the daemon is detached.

    A line never waits: where it would (a pipe that nobody reads, a stopped terminal, a full disk,
    a stalled syslog) it is lost. Texts from containers must be made printable() by the caller.
    """

    def __init__(self):
        self.verbose = False
        self.crowded = False        # refusals are not logged (see Throttle)
        self.write = lambda line: os.write(2, line)     # bytes, to stderr
        self.close_stderr = lambda: None
        self.syslog = None          # the socket to LOG_SOCKET

    def open_stderr(self):
        """Get a non-blocking way to what stderr is; its own open file would block others too.

        A regular file never blocks. Its open file is kept: a new one would have a position of its
        own, and what others write through the old one would land on our lines.
        """
        try:
            mode = os.fstat(2).st_mode
            if stat.S_ISSOCK(mode):
                copy = socket.socket(fileno=os.dup(2))
                self.write = lambda line: copy.send(line, MSG_DONTWAIT | MSG_NOSIGNAL)
                self.close_stderr = copy.close
            else:
                if fcntl.fcntl(2, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                copy = os.dup(2) if stat.S_ISREG(mode) else os.open(
                    '/proc/self/fd/2', os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
                    | os.O_CLOEXEC)
                self.write = lambda line: os.write(copy, line)
                self.close_stderr = lambda: os.close(copy)
        except OSError:
            self.write = lambda line: os.write(2, line)

    def open_syslog(self):
        """Send lines to syslog from now on; who waits for the end of our stderr has it."""
        self.close_stderr()
        self.syslog = socket.socket(AF_UNIX, SOCK_DGRAM)
        self.syslog.setblocking(False)

    def line(self, level, text):
        """Write one line of printable ASCII; level is LOG_ERR ... LOG_INFO."""
        text = ''.join(c if ' ' <= c <= '~' else printable(c) for c in text)
        if len(text) > LOG_LINE_MAX:
            text = text[:LOG_LINE_MAX] + '...'
        data = text.encode('ascii')
        try:
            if self.syslog:
                head = '<%d>vdelxcd[%d]: ' % (LOG_DAEMON | level, os.getpid())
                self.syslog.sendto(head.encode() + data, LOG_SOCKET)
            else:
                self.write(data + b'\n')
        except OSError:
            pass

    def detail(self, text):
        """Write one line if the user asked for details (-v)."""
        if self.verbose:
            self.line(LOG_INFO, text)


log = Log()


# ==================================================================================================
# Rights
# ==================================================================================================
#
# What needs rights is done before the first frame: the network is opened, then the process that
# relays becomes another user, without capabilities, and takes limits upon itself. It never gets
# back what it gave up.

class Rights:
    """Who relays are.

    uid, gid    the user and group that they become; None when they stay who the daemon is
    owner       the user that the daemon runs as
    """

    def __init__(self):
        self.uid = self.gid = None
        self.owner = os.geteuid()

    def own(self, path, group=None):
        """Give that user a file (path or descriptor), with its group or another (str)."""
        if self.uid is not None or group is not None:
            os.chown(path, -1 if self.uid is None else self.uid,
                     self.gid if group is None else int(group))

    def choose(self, name):
        """Settle who relays will be, by the name of --user or None. Raises Failure."""
        if os.geteuid() != 0:
            if name is not None:
                raise Failure(errno.EPERM, '--user %s: only root can become somebody else'
                              % printable(name))
            return
        uid, gid = find_user('nobody' if name is None else name)
        if uid == 0:
            return
        if can_become(uid, gid):
            self.uid, self.gid = uid, gid
        elif name is not None:
            raise Failure(errno.EPERM, '--user %s: we cannot become that user here'
                          % printable(name))
        else:
            log.detail('relays keep our rights: this user namespace has no user nobody')

    def give_up(self, descriptors, groups):
        """Become that user, with so many descriptors and these groups. Raises OSError."""
        if self.uid is not None:
            become(self.uid, self.gid, groups)
        self.limit(descriptors)

    @staticmethod
    def limit(descriptors, forks=False):
        """Take the limits of a relay; forks: but the one on processes. Raises OSError."""
        if not resource:
            return
        limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, descriptors),
                  (resource.RLIMIT_DATA, DATA_MAX)]
        if not forks:
            limits.append((resource.RLIMIT_NPROC, 0))
        if not stat.S_ISREG(os.fstat(2).st_mode):       # the log may be a file
            limits.append((resource.RLIMIT_FSIZE, 0))
        for kind, limit in limits:
            hard = resource.getrlimit(kind)[1]
            if hard == resource.RLIM_INFINITY or hard > limit:
                try:
                    resource.setrlimit(kind, (limit, limit))
                except ValueError:      # so Python has EPERM, as from a filter of system calls
                    raise OSError(errno.EPERM, os.strerror(errno.EPERM))



def become(uid, gid, groups=()):
    """Become a user, for good; capabilities go with root. Raises OSError."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def can_become(uid, gid):
    """Can we become this user? In a user namespace there may be no such user."""
    try:
        pid = os.fork()
    except OSError as error:
        raise Failure(error.errno, 'fork: ' + why(error))
    if pid == 0:
        try:
            become(uid, gid)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def find_user(text):
    """The (uid, gid) of USER or USER:GROUP, names or numbers. Raises Failure."""
    user, colon, group = text.partition(':')
    try:
        entry = pwd.getpwuid(int(user)) if is_id(user) else pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    except KeyError:
        if not is_id(user) and user != 'nobody':
            raise Failure(errno.EINVAL, '--user %s: no such user' % printable(text))
        uid = gid = int(user) if is_id(user) else NOBODY
    if colon:
        try:
            gid = int(group) if is_id(group) else grp.getgrnam(group).gr_gid
        except KeyError:
            raise Failure(errno.EINVAL, '--user %s: no such group' % printable(text))
    return uid, gid


def is_id(text):
    """Is this the number of a user or group? 2 ** 32 - 1 is none: it means "no change"."""
    return not set(text) - set('0123456789') and 0 < len(text) <= 10 and int(text) < 2 ** 32 - 1


rights = Rights()


# ==================================================================================================
# VNLs
# ==================================================================================================
#
# A VNL is scheme://rest, a bare path (scheme vde), or nested: scheme://rest{VNL}. The rest is an
# address and options: /name=value/... or [name=value/...], as the scheme has it. Quotes,
# backslashes and %XX are resolved, short option names completed and paths made absolute and plain
# before a rule sees the VNL; what a rule judged is what is opened.

HEX_DIGITS = b'0123456789abcdefABCDEF'
HEX_LETTERS = frozenset('0123456789abcdef')     # as in the canonical form of an IPv6 address
SCHEME_LETTERS = frozenset('abcdefghijklmnopqrstuvwxyz0123456789_-')


class Vnl:
    """A Virtual Network Locator, parsed and canonical.

    scheme      str
    address     str, unquoted, as the scheme's plug normalises it
    options     dict: full option name -> value, a str as the option's check gives it
    nested      Vnl or None
    head        canonical text of this level alone, options in the order they came in
    text        canonical text with all nested levels; parsing it gives an equal Vnl
    exact       head with every default filled in and the options sorted: what a permission means
    network     frozenset of (what, value): the scheme, the address and the options that name the
                network of this level, defaults filled in: what a denial means
    networks    set of the networks (such sets) of which it opens one: that one, or one that the
                plug falls back to
    places      the addresses of these, frozenset of str: where on this host it may be opened
    named       the part of network that the text states; of the address it always is the whole
    spellings   frozenset of texts of this level that name the same network, whatever the options
                that do not name it: what a denied prefix is compared with
    command     bool, does the host run a program for it?
    ours        bool, is there a plug for its scheme? Others are left to vde_plug
    """

    def __init__(self, scheme, address, options, nested, head, exact=None, network=None, named=None,
                 spellings=(), command=False, ours=True, fallbacks=(), places=None):
        self.scheme, self.address, self.options, self.nested = scheme, address, options, nested
        self.head, self.command, self.ours = head, command, ours
        self.exact = exact or head
        self.text = '%s{%s}' % (head, nested.text) if nested else head
        self.network = frozenset(network or [('scheme', scheme), ('address', address)])
        self.networks = {self.network} | set(map(frozenset, fallbacks))
        self.places = frozenset(places or (dict(each)['address'] for each in self.networks))
        self.named = frozenset(named or self.network)
        self.spellings = frozenset(spellings) | {self.head, self.exact}

    def levels(self):
        """This VNL and its nested ones, from the outside in."""
        level = self
        while level:
            yield level
            level = level.nested


def bad(sentence, *values):
    """A Failure with EINVAL for a VNL."""
    return Failure(errno.EINVAL, sentence % values, sentence % values)


def resolve_quotes(data):
    """Resolve quotes, backslashes and %XX in data (bytes).

    Yields (byte value, is it plain, its index in data); only plain bytes can be separators.
    Raises Failure for an unfinished quote or escape.
    """
    quote, index = None, 0
    while index < len(data):
        byte, start = data[index:index + 1], index
        index += 1
        if quote and byte == quote:
            quote = None
        elif quote == b"'" or (quote and byte != b'\\'):
            yield byte, False, start
        elif byte == b'\\':
            if index == len(data):
                raise bad('backslash at the end')
            yield data[index:index + 1], False, start
            index += 1
        elif byte in (b'"', b"'"):
            quote = byte
        elif byte == b'%':
            digits = data[index:index + 2]
            if len(digits) < 2 or digits.strip(HEX_DIGITS):
                raise bad('%% without two hexadecimal digits')
            yield bytes([int(digits, 16)]), False, start
            index += 2
        else:
            yield byte, True, start
    if quote:
        raise bad('unfinished quote %s', quote.decode())


def quote(text, separators):
    """The text with a backslash before every character that resolve_quotes() or a parser minds."""
    return ''.join('\\' + c if c in separators or c in '\\\'"%' else c for c in text)


def split_rest(rest, style, nests):
    """Split what follows scheme:// into (address, fields, what follows a { or None).

    rest is bytes; the others are str; a field is a (name, value), value None without '='.
    style says where options stand: '/' after a slash, '[' in brackets, '/[' either, '' nowhere.
    """
    pieces = [[bytearray()]]            # the address, then fields; each split at its first '='
    bracket, nested, done = False, None, False
    for byte, plain, index in resolve_quotes(rest):
        if plain and nests and byte == b'{':
            if bracket:
                raise bad('[ without ]')
            nested = rest[index + 1:]
            break
        if done:
            raise bad('text after ]')
        if plain and not bracket and byte == b'[' and '[' in style:
            bracket = True
            pieces.append([bytearray()])
        elif plain and bracket and byte == b']':
            bracket, done = False, True
        elif plain and byte == b'/' and (bracket or '/' in style):
            pieces.append([bytearray()])
        elif plain and byte == b'=' and len(pieces) > 1 and len(pieces[-1]) == 1:
            pieces[-1].append(bytearray())
        else:
            pieces[-1][-1].extend(byte)
    if bracket:
        raise bad('[ without ]')
    decoded = [[os.fsdecode(bytes(part)) for part in piece] for piece in pieces]
    fields = [(piece[0], piece[1] if len(piece) > 1 else None) for piece in decoded[1:]]
    nested = None if nested is None else os.fsdecode(nested)
    return decoded[0][0], [field for field in fields if field != ('', None)], nested


def inside_braces(text):
    """What follows a {, up to the last }, which may be missing. Raises Failure for more."""
    inside, brace, tail = text.rpartition('}')
    if brace and tail:
        raise bad('text after }')
    return inside if brace else text


def parse_vnl(text, schemes, depth=1):
    """Parse a VNL; schemes maps a scheme to its plug class (see Plug for the grammar there).

    A scheme that is not in schemes gives a Vnl with the raw rest as its address. Raises Failure:
    EPROTONOSUPPORT for what can't be a scheme, EINVAL for everything else.
    """
    if not text.isprintable():
        raise bad('characters that cannot be printed')
    if depth > NESTING_MAX:
        raise bad('more than %d nested levels', NESTING_MAX)
    scheme, separator, rest = text.partition('://')
    if not separator:
        scheme, rest = 'vde', text
    if not scheme or set(scheme) - SCHEME_LETTERS or scheme[0] in '-_':     # no option of vde_plug
        text = '%s: not a scheme' % printable(scheme)
        raise Failure(errno.EPROTONOSUPPORT, text, text)
    plug = schemes.get(scheme)
    if plug is None:                        # for vde_plug: not a quote is touched
        address, brace, nested = rest.partition('{')
        fields, nested = [], nested if brace else None
    elif plug.RAW:
        address, fields, nested = rest, [], None
    else:
        address, fields, nested = split_rest(os.fsencode(rest), plug.STYLE, plug.NESTS)
    if not all(map(str.isprintable, [address] + [name + (value or '') for name, value in fields])):
        raise bad('characters that cannot be printed')
    inner = None if nested is None else parse_vnl(inside_braces(nested), schemes, depth + 1)
    if plug is None:
        return Vnl(scheme, address, {}, inner, scheme + '://' + address, command=True, ours=False)
    options = {}
    for name, value in fields:
        if value is None and plug.bare_option(name):
            name, value = plug.bare_option(name), name
        known = next((each for each in plug.OPTIONS if name and each.startswith(name)), None)
        if known is None:
            raise bad('%s:// has no option %s', scheme, printable(name))
        if known in options:
            raise bad('option %s given twice', known)
        try:
            options[known] = plug.OPTIONS[known](value)
        except ValueError as error:
            raise bad('option %s: %s', known, error)
    try:
        address = plug.normal_address(address, options)
        full_address, full = plug.fill_in(address, options)
    except ValueError as error:
        raise bad('%s', error)
    changed = {name: full[name] for name in sorted(full)
               if full[name] != plug.DEFAULTS.get(name, '')}
    named = [(name, full[name]) for name in plug.IDENTITY if name in full]
    networks, texts = [], []
    for other, given in [(full_address, full)] + plug.fallbacks(full_address, full):
        whole, place = dict(plug.DEFAULTS, **given), plug.real_address(other)
        networks.append([('scheme', scheme), ('address', place)]
                        + [(name, whole.get(name, '')) for name in plug.IDENTITY])
        identity = {name: given[name] for name in plug.IDENTITY if name in given
                    and given[name] != plug.DEFAULTS.get(name, '')}
        texts += [head_text(plug, scheme, name, identity) for name in (other, place)]
        if plug.fill_in('', identity)[0] == other:
            texts.append(head_text(plug, scheme, '', identity))
    return Vnl(scheme, address, options, inner, head_text(plug, scheme, address, options),
               head_text(plug, scheme, full_address, changed), networks[0], networks[0][:2] + named,
               texts, plug.COMMAND, fallbacks=networks[1:])


def head_text(plug, scheme, address, options):
    """The canonical text of one level; options is a dict, value None for a flag."""
    text = scheme + '://'
    text += address if plug.RAW else quote(address, plug.STYLE + ('{}' if plug.NESTS else ''))
    fields = '/'.join(name if value is None else '%s=%s' % (name, quote(value, '/[]{}'))
                      for name, value in options.items())
    if not fields:
        return text
    return '%s/%s' % (text, fields) if plug.STYLE[0] == '/' else '%s[%s]' % (text, fields)


# Checks of option values: each takes the value (str, None without '=') and returns the canonical
# value (str, None for a flag), or raises ValueError with the reason.

def flag(value):
    """An option without a value."""
    if value is not None:
        raise ValueError('takes no value')


def word(value):
    """Any text that is not empty."""
    if not value:
        raise ValueError('needs a value')
    return value


def number(low, high):
    """A check for a decimal number from low to high."""
    def check(value):
        if not value or set(value) - set('0123456789'):
            raise ValueError('%s is not a decimal number' % printable(value or 'nothing'))
        if not low <= int(value) <= high:
            raise ValueError('%d is not within %d to %d' % (int(value), low, high))
        return str(int(value))
    return check


def size(value):
    """A number of bytes up to 1t; the suffixes k, m, g and t multiply by 1024 each."""
    digits, power = value or '', 0
    if digits[-1:].lower() in tuple('kmgt'):
        digits, power = digits[:-1], 'kmgt'.index(digits[-1].lower()) + 1
    check = number(1, 1 << 40)
    return check(str(int(check(digits)) << 10 * power))


def group_number(value):
    """A group's number, from a number or a name; the daemon's own group without a value."""
    if not value:
        return str(os.getegid())
    if not set(value) - set('0123456789'):
        return number(0, GROUP_MAX)(value)
    try:
        return str(grp.getgrnam(value).gr_gid)
    except (KeyError, OSError):
        raise ValueError('%s is not a group' % printable(value))


def mode_option(value):
    """Octal permissions."""
    if not value or set(value) - set('01234567') or int(value, 8) > 0o7777:
        raise ValueError('%s is not an octal mode' % printable(value or 'nothing'))
    return '%o' % int(value, 8)


def vni(value):
    """A VXLAN network identifier (24 bits), or the name of a group whose number it is."""
    word(value)
    return number(0, (1 << 24) - 1)(group_number(value))


# ==================================================================================================
# Rules
# ==================================================================================================
#
# A rules file has one directive a line, "tag VNL". A default is the network of those who name none,
# and allowed. The other lines are tried in order; the first that matches decides, and what nothing
# matches is refused. Each level of a nested VNL must be allowed: by itself, or by a line that names
# it together with all that it contains.

TAGS = ('default', 'allow', 'deny', 'pfxallow', 'pfxdeny')
COMMAND_LINE = 'command line'


class Rule:
    """One line of a rules file, or the default of the command line.

    origin      str, where the rule stands, for the log: 'FILE:LINE' or COMMAND_LINE
    tag         one of TAGS
    vnl         Vnl; of pfxdeny what the prefix would name if it were a VNL; else None
    prefix      str for the two prefix tags, else None

    A denied prefix is text as well as a VNL: it denies what begins like it in any of its spellings,
    and the network that it names however that is spelled.
    """

    def __init__(self, origin, tag, vnl=None, prefix=None):
        self.origin, self.tag, self.vnl, self.prefix = origin, tag, vnl, prefix
        self.allows = 'deny' not in tag
        self.nests = bool(vnl.nested if prefix is None else '{' in prefix)

    def __str__(self):
        """The line and where it stands."""
        text = self.vnl.text if self.prefix is None else self.prefix
        return '%s %s, %s' % (self.tag, text, self.origin)

    def may_allow(self, level):
        """Can the rule allow this level? To run a program it must name the scheme."""
        return self.prefix is None or not level.command or level.scheme + '://' in self.prefix

    def matches_level(self, level):
        """Does the rule decide about this level alone?"""
        if self.prefix is not None:
            return self.allows and level.head.startswith(self.prefix)
        if self.vnl.nested:
            return False
        return self.vnl.exact == level.exact if self.allows else self.vnl.network in level.networks

    def matches_whole(self, level):
        """Does the rule decide about this level together with all that it contains?"""
        if self.prefix is not None and self.allows:
            return '{' in self.prefix and level.text.startswith(self.prefix)
        if self.prefix is not None and begins(level, self.prefix):
            return True
        if self.vnl is None:
            return False
        ours, theirs = list(self.vnl.levels()), list(level.levels())
        if self.prefix is not None:
            return len(ours) <= len(theirs) and all(
                any(mine.named <= network for network in other.networks)
                for mine, other in zip(ours, theirs))
        if len(ours) != len(theirs) or (len(ours) == 1 and self.tag != 'default'):
            return False
        return all(mine.exact == other.exact if self.allows else mine.network in other.networks
                   for mine, other in zip(ours, theirs))


def begins(level, prefix):
    """Does a level with all that it contains, in one of its spellings, begin with a prefix?"""
    return level.text.startswith(prefix) or any(
        text.startswith(prefix) or (level.nested and prefix.startswith(text + '{')
                                    and begins(level.nested, prefix[len(text) + 1:]))
        for text in level.spellings)


class Rules:
    """Which networks containers may have.

    default     Vnl or None, the network of a request without a VNL
    model       'permissive' (no file and no default), 'one network' (a default only) or 'file'
    summary     str, how many rules there are, for people
    """

    def __init__(self, rules, configured, commands=False):
        self.commands = commands            # may every VNL run programs, in the permissive model?
        defaults = [rule for rule in rules if rule.tag == 'default']
        self.rules = defaults + [rule for rule in rules if rule.tag != 'default']
        self.default = defaults[0].vnl if defaults else None
        self.model = 'file' if configured else 'one network' if defaults else 'permissive'
        if self.model == 'permissive':
            self.summary = 'no rules: everything %sis allowed' % (
                '' if commands else 'that runs no program ')
        elif self.model == 'one network':
            self.summary = 'one network: ' + excerpt(self.default.text)
        else:
            self.summary = counted(sum(rule.origin != COMMAND_LINE for rule in rules), 'rule')

    def judge(self, vnl, told=None):
        """The reason (str) for which a VNL is allowed. Raises Failure EACCES when it is not.

        told, a dict, gets the verdict (str) on each level (Vnl) that was judged until then.
        """
        waiting, told = list(vnl.levels()), {} if told is None else told
        if self.model == 'permissive':
            for level in waiting:
                if level.command and not self.commands:
                    raise no_permission(
                        [level], 'the option --allow-commands, or a rule for %s://', told)
                told[level] = 'allowed: there are no rules'
            return 'everything is allowed'
        for rule in self.rules:
            for level in vnl.levels():
                # A line about a whole decides while any part of it waits, others about the level.
                undecided = list(level.levels()) if rule.nests else [level]
                if set(undecided) & set(waiting) and rule.matches_whole(level):
                    decided = list(level.levels())
                elif level in waiting and rule.matches_level(level) and rule.tag != 'default':
                    decided = [level]
                else:
                    continue
                if not rule.allows:
                    for each in decided:
                        told.setdefault(each, 'refused by ' + printable(str(rule)))
                    raise Failure(errno.EACCES, printable(str(rule)), REFUSED)
                decided = [each for each in decided if each in waiting and rule.may_allow(each)]
                told.update((each, 'allowed by ' + printable(str(rule))) for each in decided)
                waiting = [each for each in waiting if each not in decided]
            if not waiting:
                return printable(str(rule))
        raise no_permission(waiting, 'a rule that names it, such as "pfxallow %s://"', told)


# All that a client may know of them.
REFUSED = "refused by the rules; vdelxcd's log on the host names the rule"


def no_permission(levels, remedy, told):
    """The Failure for the first of the levels that nothing allows; told gets what is said of each.

    remedy says what a program needs, with %s for the scheme.
    """
    for level in reversed(levels):
        text = 'no rule allows ' + printable(level.head)
        if level.command:
            text = '%s:// runs a program on this host; it needs %s' % (
                level.scheme, remedy % level.scheme)
        told[level] = 'refused: ' + text
    return Failure(errno.EACCES if level.ours else errno.EPROTONOSUPPORT, text, REFUSED)


def counted(number, what):
    """A number and what there is of it: '1 rule', '2 rules'."""
    return '%d %s%s' % (number, what, '' if number == 1 else 's')


def follow_alias(text, parse):
    """A default's Vnl: a file named by a VNL without scheme holds the VNL in its first line."""
    path = os.path.join(START_DIRECTORY, text)          # also when a detached daemon reads again
    if text.isprintable() and '://' not in text and os.path.isfile(path):
        with open(path, errors='surrogateescape') as file:
            vnl = parse(file.readline(VNL_MAX + 2).strip())
        if any(level.command for level in vnl.levels()):
            raise bad('%s: a VNL that runs a program has to stand here, not there', printable(text))
        return vnl
    return parse(text)


def read_rules(path, default, parse, commands=False, warnings=None):
    """Read the rules file and the default VNL of the command line; either may be None.

    parse makes a Vnl of a text. Returns (Rules, warnings); a warning is a str 'FILE:LINE: text'.
    Raises Failure with all faults, one a line; who gives the list of warnings has them then, too.
    """
    first, last, rules, faults, lines, number = [], [], [], [], [], errno.EINVAL
    warnings = [] if warnings is None else warnings
    if default is not None:
        try:
            first.append(Rule(COMMAND_LINE, 'default', follow_alias(default, parse)))
        except (Failure, OSError) as error:
            faults.append('%s: %s' % (printable(default), why(error)))
    try:
        lines = read_lines(path) if path is not None else []
    except Failure as error:
        faults.append(str(error))
        number = error.errno
    for origin, tag, text in lines:
        try:
            if tag not in TAGS:
                raise bad('%s: not a directive (%s)', printable(tag), ', '.join(TAGS))
            if tag.startswith('pfx'):
                text = 'vde://' * text.startswith('/') + text
                scheme, _, rest = text.partition(':')
                if set(scheme) - SCHEME_LETTERS or rest[:2] not in '//' or not text.isprintable():
                    raise bad('no VNL begins with %s', printable(text))
                if text[-1:].isdigit() or set(text.rpartition(':')[2] or 'x') <= HEX_LETTERS:
                    warnings.append('%s: the prefix ends inside a number: it also matches %s0'
                                    % (origin, printable(text)))
                rules.append(Rule(origin, tag, prefix=text))
                if tag == 'pfxdeny':
                    rules[-1].vnl = parse_or_none(parse, text)
            elif not text:
                raise bad('%s: needs a VNL', tag)
            elif tag == 'default':
                last.insert(0, Rule(origin, tag, follow_alias(text, parse)))
            else:
                rules.append(Rule(origin, tag, parse(text)))
        except (Failure, OSError) as error:
            faults.append('%s: %s' % (origin, why(error)))
    if faults:
        raise Failure(number, '\n'.join(faults))
    return Rules(first + last + rules, path is not None, commands), warnings


def parse_or_none(parse, text):
    """What a prefix names as a VNL, or None when it is none."""
    try:
        return parse(text)
    except Failure:
        return None


def read_lines(path):
    """The directives of a rules file: a list of ('FILE:LINE', tag in lower case, rest).

    Raises Failure when the file can't be read.
    """
    try:
        with open(path, 'rb') as file:
            lines = os.fsdecode(file.read()).split('\n')
    except OSError as error:
        raise Failure(error.errno, '%s: %s' % (printable(path), why(error)))
    found = []
    for index, line in enumerate(lines, 1):
        parts = line.split(None, 1)
        if parts and not parts[0].startswith('#'):
            rest = parts[1].strip() if len(parts) > 1 else ''
            found.append(('%s:%d' % (printable(path), index), parts[0].lower(), rest))
    return found


# ==================================================================================================
# Frames and the MAC table
# ==================================================================================================

class Burst:
    """Frames that are handled together, side by side in one buffer.

    Frame i is buf[starts[i]:ends[i]]; a reader leaves as many free bytes before each frame as the
    writer wants for its header. Valid until the reader's next recv().

    giants: start -> (bytes of payload a segment, offset of the TCP header from the frame's start),
    for the frames that are super-segments. Their TCP checksum is that of one large segment; or,
    with PARTIAL added to the offset, that of the pseudo header, and the rest is not done yet.
    """

    __slots__ = 'buf', 'view', 'starts', 'ends', 'giants'

    def __init__(self, size):
        self.buf = bytearray(size)
        self.view = memoryview(self.buf)
        self.starts, self.ends, self.giants = [], [], {}

    def part(self, starts, ends):
        """Some of the frames, in the same buffer."""
        other = Burst.__new__(Burst)
        other.buf, other.view, other.starts, other.ends = self.buf, self.view, starts, ends
        other.giants = self.giants
        return other


class MacTable:
    """Which peer has a MAC address: at most MACS_MAX, the least recently learned goes first.

    A key is an int (a MAC address, or whatever a plug makes of it); a peer is anything; times are
    seconds of time.monotonic().
    """

    def __init__(self, expire):
        self.expire = expire
        self.entries = {}
        # Peer -> set of its MACs. 64 trains of goodbyes take 2 ms; with a look through the whole
        # table at each it was 0.8 s, in which the interface stood still.
        self.peers = {}

    def learn(self, mac, peer, now):
        """Note that a frame from this MAC came from this peer."""
        entries = self.entries
        old = entries.pop(mac, None)
        if not old or old[0] != peer:
            if old:
                self.disown(mac, old[0])
            elif len(entries) >= MACS_MAX:
                oldest = next(iter(entries))
                self.disown(oldest, entries.pop(oldest)[0])
            self.peers.setdefault(peer, set()).add(mac)
        entries[mac] = peer, now

    def disown(self, mac, peer):
        """The MAC is no longer this peer's."""
        self.peers[peer].remove(mac)
        if not self.peers[peer]:
            del self.peers[peer]

    def find(self, mac, now):
        """The peer of a MAC, or None when it is unknown or too old."""
        entry = self.entries.get(mac)
        return entry[0] if entry and now - entry[1] < self.expire else None

    def forget(self, peer):
        """Forget every MAC of a peer."""
        for mac in self.peers.pop(peer, ()):
            del self.entries[mac]


# ==================================================================================================
# Plugs
# ==================================================================================================

# What an errno means, for each place where it can turn up: the frame is dropped and counted, the
# interface has ended, or the network is gone and may come back. Unknown errnos end a TAP's reading
# (nothing would ever clear them) and drop a frame elsewhere.
DROP, END, GONE = 'drop', 'end', 'gone'
FATES = {
    'TAP read': {errno.EAGAIN: DROP, errno.EINTR: DROP, errno.EIO: DROP, errno.EBADFD: END,
                 errno.EBADF: END, None: END},
    'TAP write': {errno.EIO: DROP, errno.ENOBUFS: DROP, errno.EAGAIN: DROP, errno.EINVAL: DROP,
                  errno.ENOMEM: DROP, errno.EBADFD: END, errno.EBADF: END, None: DROP},
    'datagram': {errno.EAGAIN: DROP, errno.ENOBUFS: DROP, errno.ECONNREFUSED: DROP,
                 errno.EHOSTUNREACH: DROP, errno.ENETUNREACH: DROP, errno.ENETDOWN: DROP,
                 errno.EPERM: DROP, errno.EMSGSIZE: DROP, errno.EBADF: END, None: DROP},
    'local socket': {errno.EAGAIN: DROP, errno.ENOBUFS: DROP, errno.ENOMEM: DROP,
                     errno.EMSGSIZE: DROP, errno.EPIPE: GONE, errno.ENOTCONN: GONE,
                     errno.ECONNREFUSED: GONE, errno.ECONNRESET: GONE, errno.EBADF: END,
                     None: DROP},
}


class Plug:
    """One end of a network of frames. For the relay:

    fds()           dict: descriptor -> epoll events to wait for (control sockets too)
    changed         set by a plug whose fds() changed; cleared by the relay, which asks again
    recv(fd)        a Burst of the frames that wait there, each a whole Ethernet header at least;
                    an empty one when nothing is for us
    send(burst)     send frames; never waits; frames that can't be sent are counted in drops
    close()         leave the network; may be called twice
    hung_up(fd)     a descriptor reports an error or a hang-up, and recv() found nothing
    drops           frames that were dropped, by send() and recv()
    unfit           those of them that recv() dropped
    headroom        bytes that send() wants free before each frame
    gap             bytes that recv() of a TAP leaves free before each frame; the relay sets it
    turns           frames or datagrams that recv() reads at most; the relay sets it
    other           the plug at the relay's other side; the relay sets it
    held            a frame that send() has not sent yet, or None; when no other follows it at once,
                    the relay calls send_held()
    mtu()           the largest MTU of the interface that the network carries in one piece
    fragments(mtu)  would the network's datagrams be fragmented at this MTU of the interface?
    tend()          called beside the relay by its keeper: do what takes rights; the seconds until
                    it is called again, or None. Raises PlugGone

    recv() and send() raise Ended or PlugGone. What the VNL of a scheme may say, on the class:

    STYLE           where options stand in the VNL: '/', '[', '/[' (either) or '' (no options)
    OPTIONS         dict: option name -> check, in the order in which short names are completed
    DEFAULTS        dict: option name -> the value that is the same as leaving it out
    IDENTITY        the options that, with the address, name the network
    NESTS           does a VNL in braces follow?
    RAW             is everything after :// the address, quotes and all?
    COMMAND         does the host run a program for it? Then a rule must name the scheme
    KEPT            may the network go and come back, or is there something to tidy up? Then a
                    process that kept its rights waits beside the relay (see Session.carry())
    QUIET           can a QuietRelay carry its frames? Then there are
                    quiet(), what that needs; resume(relay), to go on where that stopped;
                    take_no_trains(), takes_trains(), known(): see Overlay
    GIANTS          does it take a container's super-segments, and so complete their checksums?
    DESCRIPTORS     descriptors that the relay may have open at most
    groups          what the relay has to be a member of (int) besides the group of its user
    again           set by carry() when the network was there and went
    bare_option()   the option that a word without '=' is the value of, or None
    normal_address()  the address in its one canonical form; raises ValueError
    fill_in()       address and options with what is left out filled in
    real_address()  what an address, filled in, stands for on this host: what a denial means
    fallbacks()     [(address, options)] that open() tries when there is no such network
    open(vnl, who)  the plug, its network open; who (str) is told to a switch that asks for it.
                    Raises Failure with the errno for the client
    """

    STYLE = ''
    OPTIONS = {}
    DEFAULTS = {}
    IDENTITY = ()
    NESTS = False
    RAW = False
    COMMAND = False
    KEPT = False
    QUIET = False
    GIANTS = False
    DESCRIPTORS = DESCRIPTORS_MAX
    groups = ()
    again = False

    headroom = 0
    gap = 0
    drops = 0
    unfit = 0
    changed = False
    turns = BURST
    other = None
    held = None

    @staticmethod
    def bare_option(text):
        return None

    @staticmethod
    def normal_address(address, options):
        return address

    @staticmethod
    def fill_in(address, options):
        return address, dict(options)

    @staticmethod
    def real_address(address):
        return address

    @staticmethod
    def fallbacks(address, options):
        return []

    @classmethod
    def open(cls, vnl, who):
        return cls(vnl)

    def fds(self):
        raise NotImplementedError

    def recv(self, fd):
        raise NotImplementedError

    def send(self, burst):
        raise NotImplementedError

    def close(self):
        raise NotImplementedError

    def hung_up(self, fd):
        raise Ended('hung up')

    def mtu(self):
        return MTU

    def fragments(self, mtu):
        return False

    def tend(self):
        return None

    def lost(self, place, error, frames=1):
        """Look up what an OSError means at a place: raise Ended or PlugGone, or count frames."""
        fates = FATES[place]
        fate = fates.get(error.errno, fates[None])
        if fate is END:                     # of a TAP, EBADFD is the end that is nobody's fault
            gone = error.errno == errno.EBADFD
            raise Ended('the interface was deleted' if gone else why(error))
        if fate is GONE:
            raise PlugGone(error.errno, why(error))
        self.drops += frames

    def reject(self, frames=1):
        """Count frames that recv() dropped."""
        self.drops += frames
        self.unfit += frames


EMPTY = Burst(0)


# A buffer is small until a burst fills it: an idle interface then costs little memory, and a busy
# one gets what the longest trains need.
SLOT = FRAME_MAX + 1                        # one byte more: shows that a frame is too long
SMALL_BUFFER = 2 * SLOT
LARGE_BUFFER = (65536 + SLOT, 3 * 65536 + SLOT)     # of a TAP's frames; of a socket's trains
# No train begins behind these bytes: with a third one in a burst TCP on one host lost 12 %. What is
# behind two is for a bulk that began before.
TRAINS_ROOM = 65536
# Datagrams in a burst that are worth taking in trains from then on, however short: of a TCP
# transfer's acknowledgements, 16 then come with one recvmsg().
BUSY = 8


class Packets(Plug):
    """A descriptor of which one read() or write() is one frame: a TAP, a local socket."""

    READING, WRITING = 'local socket', 'local socket'       # places in FATES
    slot = SLOT                 # bytes to read at most; so many is too long
    finish = None               # what is called with each frame that was read

    def __init__(self, fd):
        self.fd = fd
        self.burst = None
        self.read = self.reader(fd)
        os.set_blocking(fd, False)

    @staticmethod
    def reader(fd):
        """What reads into a buffer: a quarter faster than os.readv(), and None for EAGAIN."""
        return open(fd, 'rb', 0, closefd=False).readinto

    def fds(self):
        return {self.fd: select.EPOLLIN}

    def recv(self, fd):
        burst = self.burst = self.burst or Burst(SMALL_BUFFER)
        starts, ends, view, read = burst.starts, burst.ends, burst.view, self.read
        del starts[:], ends[:]
        burst.giants.clear()
        gap, slot, shortest = self.gap, self.slot, ETHERNET_HEADER
        finish, start, last = self.finish, gap, len(view) - slot
        try:
            for _ in range(self.turns):
                length = read(view[start:start + slot])
                if length is None:
                    break
                if shortest <= length < slot:
                    if finish and not finish(burst, start, start + length):
                        self.reject()
                        continue
                    starts.append(start)
                    start += length
                    ends.append(start)
                    start += gap
                    if start > last:
                        if len(view) == SMALL_BUFFER:
                            self.burst = Burst(LARGE_BUFFER[0])
                        break
                elif length:
                    self.reject()
                else:
                    self.empty_packet()
        except OSError as error:
            self.lost(self.READING, error)
        return burst

    def empty_packet(self):
        """A read gave nothing: from a datagram socket an empty datagram, and nothing it is."""

    def send(self, burst):
        write, fd, view = os.write, self.fd, burst.view
        for start, end in zip(burst.starts, burst.ends):
            try:
                write(fd, view[start:end])
            except OSError as error:
                self.lost(self.WRITING, error)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Tap(Packets):
    """A TAP interface, given its descriptor, which others may hold as well.

    Whoever shares the open file can make reads wait, steal frames or change its flags; that hurts
    this interface only, since nothing else is done by this process.
    """

    READING, WRITING = 'TAP read', 'TAP write'
    PREFIX = 0                  # bytes that come before each frame

    def __init__(self, fd, name):
        super().__init__(fd)
        self.name = name

    @staticmethod
    def reader(fd):
        """As of others, but open() has /dev/null to look at, not the TAP.

        A container's may lie in a file system that never answers fstat().
        """
        tap, null = os.dup(fd), os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(null, fd, False)
            return Packets.reader(fd)
        finally:
            os.dup2(tap, fd, False)
            os.close(tap)
            os.close(null)

    def prepare(self):
        """Set what a TAP has to be set to, once. Raises Failure."""

    def set_carrier(self, on):
        """Show or hide the carrier, as when a cable is pulled (Linux 5.0; nothing before)."""
        try:
            fcntl.ioctl(self.fd, TUNSETCARRIER, INT.pack(on))
        except OSError:
            pass


class MergingTap(Tap):
    """A TAP whose kernel merges the TCP segments that are written to it (IFF_NAPI).

    Its GRO keeps a segment for the next, some milliseconds at most: the client has seen to that.
    What Linux sends at a time ends with a segment that is marked (PSH, since 5.4), and with such a
    one GRO passes on what it kept. Others may not mark it, and would wait for the acknowledgement
    of what lies in GRO. So the last frame of a burst, if it is not marked, is held while there may
    be more. If there is nothing, it is written with a byte behind the end of its IP packet, where
    Ethernet has its padding: GRO passes on what it kept of the flow, and that frame by itself, and
    IP cuts the byte off. (To hold it, not to write it so at once: 583 to 741 Mbit/s of TCP through
    a vde_switch, medians of 10 with CUBIC; the other way 577 to 605.)
    """

    SHORTEST = 200              # bytes of a frame that is worth keeping
    PADDING = b'\0'

    def send(self, burst):
        if self.held:
            self.write(self.held)
            self.held = None
        starts, ends = burst.starts, burst.ends
        start, end = starts[-1], ends[-1]
        if end - start >= self.SHORTEST and is_kept(burst.buf, start):
            self.held = bytes(burst.view[start:end])
            burst = burst.part(starts[:-1], ends[:-1])
        super().send(burst)

    def send_held(self):
        """Write the frame that is held, so that GRO keeps nothing of its flow."""
        self.write(self.held + self.PADDING)
        self.held = None

    def write(self, frame):
        """Write one frame."""
        try:
            os.write(self.fd, frame)
        except OSError as error:
            self.lost(self.WRITING, error)


class KernelSum:
    """Sums of 16-bit words that the kernel makes, for the Internet's checksum (RFC 1071).

    A raw socket sends what is to be summed to another of ours, through the loopback interface: the
    kernel sums while it copies (IPV6_CHECKSUM), and of what comes only the beginning is read. 64 kB
    take 16 us; in Python 65. Each raw socket with that address is given each such packet (50 of
    them made it 104 us). So they have one that is nobody's, but while an answer is awaited.

    Raises OSError when it can't be had: it takes CAP_NET_RAW, Linux 4.15 and ::1.
    """

    HEAD = struct.Struct('>HH4s')           # checksum, number of the packet, whose it is
    OURS, NOBODY = ('::1', 0), ('100::1', 0)            # the latter is for nothing (RFC 6666)
    LEAST = 8192                            # bytes; fewer are summed as soon by ourselves
    MOST = LOOPBACK_MTU - IPV6_HEADER - HEAD.size
    REST = 1023                             # sums that are not tried after many that failed

    def __init__(self):
        self.mark, self.number, self.missed, self.rest = os.urandom(4), 0, 0, 0
        self.asker, self.hearer = [
            socket.socket(AF_INET6, socket.SOCK_RAW, EXPERIMENT) for _ in range(2)]
        for sock in self.asker, self.hearer:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            sock.bind(self.NOBODY)
        self.asker.setsockopt(socket.IPPROTO_IPV6, IPV6_CHECKSUM, 0)
        # of the pseudo header: two addresses and the protocol; of ours: the mark
        self.constant = 0x100 + 1 + 1 + EXPERIMENT + int.from_bytes(self.mark, 'big')
        if not any(self.add(b'\1\2') == 0x102 for _ in range(8)):     # one may be late
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))

    def add(self, data):
        """The sum, modulo 65535, of the words in data; None when the kernel does not tell."""
        if self.rest:
            self.rest -= 1
            return None
        if len(data) > self.MOST:
            return None
        self.number = self.number + 1 & 0xffff
        head, hearer = self.HEAD.pack(0, self.number, self.mark), self.hearer
        answer = b''
        try:
            hearer.bind(self.OURS)
            try:
                self.asker.sendmsg((head, data), (), MSG_DONTWAIT, self.OURS)
                while answer[2:] != head[2:]:       # others may be awaiting one, too
                    answer = hearer.recv(self.HEAD.size, MSG_DONTWAIT)
            finally:
                hearer.bind(self.NOBODY)
        except OSError:                     # the loopback interface is down, or a firewall drops it
            self.missed = self.rest = min(2 * self.missed + 1, self.REST)
            return None
        self.missed = 0
        return -(int.from_bytes(answer[:2], 'big') + self.number + self.constant
                 + self.HEAD.size + len(data)) % 65535


def open_kernel_sum():
    """A KernelSum, or None where it can't be had."""
    try:
        return KernelSum()
    except OSError as error:
        log.detail('offload: sums are made here, not by the kernel: ' + why(error))
        return None


class OffloadTap(Tap):
    """A TAP with an offload header (IFF_VNET_HDR): TCP segments in a row go in as one.

    Consecutive segments of a flow, alike but for sequence number, checksum and IP identification,
    are written as one super-segment with the segment size in a virtio_net_hdr. The kernel is not
    told that the checksum is good (NEEDS_CSUM): the super-segment's TCP checksum is composed from
    the segments' own by one's-complement arithmetic on header fields, and the kernel verifies the
    payload itself: damage in one segment is found in the whole, as in one large segment (in which
    two errors can cancel out, as in every TCP segment). To verify each segment here would cost 3 us
    a segment. The IPv4 header checksum is adjusted for the changed length (RFC 1624), not computed
    anew, for the same reason.
    """

    PREFIX = VNET_HEADER.size
    PLAIN = bytes(PREFIX)
    kernel_sum = None           # a KernelSum, for who sends super-segments
    SHORTEST = 200              # bytes of a segment that is worth merging

    def __init__(self, fd, name):
        super().__init__(fd, name)
        self.prefix, self.read = bytearray(self.PREFIX), self.read_both

    def read_both(self, view):
        """Read a header, and a frame behind it; the bytes of the frame, or None."""
        try:
            return os.readv(self.fd, (self.prefix, view)) - self.PREFIX
        except BlockingIOError:
            return None

    def prepare(self):
        try:
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, INT.pack(VNET_HEADER.size))
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, 0)  # what comes out is whole: checksums, no giants
        except OSError as error:
            raise Failure(error.errno, 'offload of %s: %s' % (printable(self.name), why(error)))

    def take_giants(self, really):
        """Take super-segments from now on, as the container's kernel makes them; or no more.

        Some may still come after that, and frames without a checksum.
        """
        if really == (self.slot > SLOT):
            return
        try:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, TUN_F_GIANTS if really else 0)
        except OSError:
            return
        self.finish = self.complete
        self.slot = GIANT_MAX + 1 if really else SLOT
        self.burst = Burst(2 * self.slot + LARGE_BUFFER[0]) if really else None

    def complete(self, burst, start, end):
        """Do what the kernel left to the device; False when that can't be.

        Of a super-segment it is left to who sends it, who may be able to do without.
        """
        flags, kind, _, size, head, offset = VNET_HEADER.unpack(self.prefix)
        if not flags & NEEDS_CSUM:
            return not kind
        if not ETHERNET_HEADER <= head <= head + offset <= end - start - 2:
            return False
        if not kind:
            add_checksum(burst, start + head, end, offset, self.kernel_sum)
        elif kind in (GSO_TCPV4, GSO_TCPV6) and is_giant(burst.buf, start, end, size, head):
            burst.giants[start] = size, head | PARTIAL
        else:
            return False
        return True

    def send(self, burst):
        view, starts, ends = burst.view, burst.starts, burst.ends
        first, count, giants = 0, len(starts), burst.giants
        while first < count:
            last, pieces = first + 1, None
            if giants and starts[first] in giants:
                pieces = self.giant(burst, first)
            elif last < count and ends[first] - starts[first] >= self.SHORTEST:
                last, pieces = self.merge(burst, first)
            try:
                os.writev(self.fd, pieces or (self.PLAIN, view[starts[first]:ends[first]]))
            except OSError as error:
                self.lost(self.WRITING, error, last - first)
            first = last

    def giant(self, burst, first):
        """What to write for a super-segment; it is one: Bulk has seen to that."""
        start, end = burst.starts[first], burst.ends[first]
        size, tcp = burst.giants[start]
        partial, tcp = tcp & PARTIAL, tcp & ~PARTIAL
        is_v4 = burst.buf[start + network_offset(burst.buf, start)] >> 4 == 4
        head = tcp + (burst.buf[start + tcp + 12] >> 4 << 2)
        return VNET_HEADER.pack(
            NEEDS_CSUM if partial else 0, GSO_TCPV4 if is_v4 else GSO_TCPV6, head, size,
            tcp if partial else 0, TCP_CHECKSUM if partial else 0), burst.view[start:end]

    def merge(self, burst, first):
        """Find the segments that follow frame first; (index after the last, pieces to write).

        The pieces are None when there is nothing to merge.
        """
        buf, starts, ends = burst.buf, burst.starts, burst.ends
        start = starts[first]
        layout = MERGEABLE.get(bytes(buf[start + 12:start + 15]))
        if layout is None or buf[start + layout.protocol] != TCP or (
                layout.gso_type == GSO_TCPV4 and (buf[start + 20] & 0xbf or buf[start + 21])):
            return first + 1, None                          # no TCP, or a fragment
        tcp = start + layout.tcp
        head = layout.tcp + (buf[tcp + 12] >> 4 << 2)       # bytes of all headers
        size = ends[first] - start - head                   # bytes of payload
        if size <= 0 or size & 1 or head < layout.tcp + 20 or buf[tcp + 13] != TCP_ACK:
            return first + 1, None
        if int.from_bytes(buf[start + layout.length:start + layout.length + 2], 'big') != (
                ends[first] - start - layout.counted):
            return first + 1, None                          # padded, or not what it says
        sequence = int.from_bytes(buf[tcp + 4:tcp + 8], 'big')
        alike = [(offset, buf[start + offset:start + end])
                 for offset, end in layout.alike + ((layout.tcp + 18, head),)]
        startswith, check = buf.startswith, layout.tcp + 16
        sums = 65535 - (buf[tcp + 16] << 8 | buf[tcp + 17])     # of the checksums' complements
        later = 0                                           # sum of the other sequence numbers
        last, count, total, expected = first + 1, len(starts), size, sequence
        room = MERGED_MAX - head
        while last < count and total + size <= room and starts[last] not in burst.giants:
            place = starts[last]
            length = ends[last] - place - head
            expected = expected + size & 0xffffffff
            if not 0 < length <= size or buf[place + layout.tcp + 4:place + layout.tcp + 8] != (
                    expected.to_bytes(4, 'big')) or buf[place + layout.length:place + layout.length
                                                        + 2] != (length + head - layout.counted
                                                                 ).to_bytes(2, 'big'):
                break
            for offset, text in alike:
                if not startswith(text, place + offset):
                    break
            else:
                sums += 65535 - (buf[place + check] << 8 | buf[place + check + 1])
                later += expected
                total += length
                last += 1
                if length < size:
                    break
                continue
            break
        if last == first + 1:
            return last, None
        # ~checksum of a segment = addresses + protocol + TCP length + header + payload (mod 65535).
        # Of the super-segment: the sum of all, less what is counted more than once.
        fields = (buf[start + layout.addresses:start + layout.tcp + 4] + buf[tcp + 8:tcp + 16]
                  + buf[tcp + 18:start + head])
        common = int.from_bytes(fields, 'big') % 65535 + TCP
        more = last - first - 1
        sums -= more * (common + head - layout.tcp) + later
        buf[tcp + 16:tcp + 18] = (-sums % 65535).to_bytes(2, 'big')
        layout.set_length(buf, start, head + total - layout.counted)
        view = burst.view
        header = VNET_HEADER.pack(0, layout.gso_type, head, size, 0, 0)
        return last, [header, view[start:ends[first]]] + [
            view[starts[index] + head:ends[index]] for index in range(first + 1, last)]


class Layout:
    """Where the fields of a TCP segment in an Ethernet frame are, offsets in bytes from its start.

    length, counted     the IP length field, and the bytes before what it counts
    alike               ranges that are the same in all segments of a flow that can be merged
    """

    def __init__(self, protocol, length, counted, addresses, tcp, alike, gso_type):
        self.protocol, self.length, self.counted = protocol, length, counted
        self.addresses, self.tcp, self.gso_type = addresses, tcp, gso_type
        # all but length, identification and checksums: ports; then acknowledgement to window
        self.alike = alike + ((addresses, tcp + 4), (tcp + 8, tcp + 16))

    def set_length(self, buf, start, value):
        """Set the IP length, and adjust the checksum of an IPv4 header (RFC 1624, equation 3)."""
        place = start + self.length
        old = buf[place] << 8 | buf[place + 1]
        buf[place:place + 2] = value.to_bytes(2, 'big')
        if self.gso_type == GSO_TCPV4:
            place = start + IPV4_CHECKSUM
            check = 65535 - (buf[place] << 8 | buf[place + 1]) - old + value
            buf[place:place + 2] = (-check % 65535).to_bytes(2, 'big')


# By EtherType and the first byte of the IP header: IPv4 without options, IPv6 without class
MERGEABLE = {
    b'\x08\x00\x45': Layout(23, 16, 14, 26, 34, ((0, 16), (20, 24)), GSO_TCPV4),
    b'\x86\xdd\x60': Layout(20, 18, 54, 22, 54, ((0, 18), (20, 22)), GSO_TCPV6),
}


def sum_words(view):
    """The sum of the 16-bit words in view. 64 kB: 65 us in pieces of 2 kB, in one 160."""
    return sum(int.from_bytes(view[at:at + 2048], 'big') for at in range(0, len(view), 2048))


def add_checksum(burst, start, end, offset, kernel_sum=None):
    """Complete the Internet checksum, at start + offset, of what burst.view[start:end] has.

    With a KernelSum if there is one. The byte at the end is overwritten.
    """
    view, total = burst.view, None
    if (end - start) % 2:                   # an odd byte counts as if a zero followed
        view[end] = 0
        end += 1
    if kernel_sum and end - start >= kernel_sum.LEAST:
        total = kernel_sum.add(view[start:end])
    if total is None:
        total = sum_words(view[start:end])
    place = start + offset
    view[place:place + 2] = (-total % 65535 or 65535).to_bytes(2, 'big')


def network_offset(buf, start):
    """Bytes of the Ethernet header, with its tags (two at most), of the frame at start."""
    at = start + 12
    while buf[at:at + 2] in (TAG, TAG_QINQ) and at < start + 12 + 2 * TAG_SIZE:
        at += TAG_SIZE
    return at + 2 - start


def is_kept(buf, start):
    """Does GRO keep this frame for the next? It has MergingTap.SHORTEST bytes at least."""
    at = start + network_offset(buf, start)
    if buf[at - 2:at] == b'\x08\x00':
        tcp = at + ((buf[at] & 15) << 2)
        return buf[at + 9] == TCP and not buf[tcp + 13] & TCP_FLUSHED
    return buf[at - 2:at] == b'\x86\xdd' and buf[at + 6] == TCP and not buf[at + 53] & TCP_FLUSHED


def is_giant(buf, start, end, size, tcp):
    """Is this frame, whose TCP header is at start + tcp, a super-segment of segments of size?"""
    network = network_offset(buf, start)
    if not network + 20 <= tcp <= tcp + 20 <= end - start or size < SEGMENT_MIN:
        return False
    is_v4, head = buf[start + network] >> 4 == 4, tcp + (buf[start + tcp + 12] >> 4 << 2)
    return tcp + 20 <= head < end - start <= network + 65535 and (
        buf[start + network + 9] == TCP and tcp == network + ((buf[start + network] & 15) << 2)
        if is_v4 else buf[start + network] >> 4 == 6 and tcp >= network + 40)


def cut_giant(burst, start, end):
    """The segments of a super-segment as the kernel made it, a Burst, as a device would cut it.

    For who does not take it whole; 4 us each.
    """
    buf, (size, tcp) = burst.buf, burst.giants[start]
    tcp &= ~PARTIAL
    network, check = network_offset(buf, start), tcp + TCP_CHECKSUM
    header = bytearray(buf[start:start + tcp + (buf[start + tcp + 12] >> 4 << 2)])
    head, is_v4, flags = len(header), header[network] >> 4 == 4, header[tcp + 13]
    sequence, number = (int.from_bytes(header[at:at + width], 'big')
                        for at, width in ((tcp + 4, 4), (network + 4, 2)))
    # what is there is the sum of the pseudo header, of which the length is another one now
    pseudo = int.from_bytes(header[check:check + 2], 'big') - (end - start - tcp)
    header[check:check + 2] = b'\0\0'
    count = -(-(end - start - head) // size)
    cut = Burst(end - start + count * (head + VXLAN_HEADER.size))
    place = 0
    for index in range(count):
        at = start + head + index * size
        payload = buf[at:min(at + size, end)]
        length = head + len(payload)
        header[tcp + 4:tcp + 8] = (sequence + index * size & 0xffffffff).to_bytes(4, 'big')
        header[tcp + 13] = flags & ~((TCP_LAST if index < count - 1 else 0)
                                     | (TCP_FIRST if index else 0))
        if is_v4:
            header[network + 2:network + 6] = struct.pack(
                '>HH', length - network, number + index & 0xffff)
            header[network + 10:network + 12] = b'\0\0'
            total = int.from_bytes(header[network:tcp], 'big')
            header[network + 10:network + 12] = (-total % 65535).to_bytes(2, 'big')
        else:
            header[network + 4:network + 6] = (length - network - 40).to_bytes(2, 'big')
        total = pseudo + length - tcp + int.from_bytes(
            header[tcp:] + payload + bytes(length - tcp & 1), 'big')
        place += VXLAN_HEADER.size
        cut.starts.append(place)
        cut.view[place:place + length] = header + payload
        cut.view[place + check:place + check + 2] = (-total % 65535).to_bytes(2, 'big')
        place += length
        cut.ends.append(place)
    return cut


class HostTap(Tap):
    """tap://NAME: a TAP interface of the daemon's own network namespace."""

    @staticmethod
    def normal_address(address, options):
        return interface_name(address)

    def __init__(self, vnl):
        try:
            fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise Failure(error.errno, '%s: %s' % (TUN_DEVICE, why(error)))
        try:
            fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(os.fsencode(vnl.address), IFF_TAP | IFF_NO_PI))
        except OSError as error:
            os.close(fd)
            raise Failure(error.errno, 'interface %s: %s' % (vnl.address, why(error)))
        super().__init__(fd, vnl.address)


def interface_name(text):
    """The name of a network interface. Raises ValueError when it can't be one."""
    if (not text or text in ('.', '..') or set(text) & set('/:%') or text.split() != [text]
            or len(os.fsencode(text)) >= IFNAMSIZ):
        raise ValueError('%s is not an interface name' % (printable(text) or 'nothing'))
    return text


class Null(Plug):
    """null://: nothing comes, and what is sent vanishes; the address means nothing."""

    def __init__(self, vnl):
        pass

    def fds(self):
        return {}

    def send(self, burst):
        pass

    def close(self):
        pass


class UdpPort:
    """A UDP socket for bursts: the sending and receiving of every plug over UDP.

    Trains: a run of datagrams of one size (the last may be shorter) to one peer goes out in one
    sendmsg() with UDP_SEGMENT, and comes in as one with UDP_GRO. The kernel refuses a train whose
    datagrams would have to be fragmented, or a device that can't; that run then goes out datagram
    by datagram, and for a while so do all runs of this size or more to this peer.
    """

    TRAIN_BYTES = 65000
    TRAIN_FRAMES = 64
    RETRY = 60.0                # seconds until a peer that took no trains is tried again
    REFUSALS_MAX = 4096

    def __init__(self, sock, header):
        self.sock, self.header = sock, header
        self.train = self.TRAIN_FRAMES
        try:
            sock.getsockopt(SOL_UDP, UDP_SEGMENT)
        except OSError:         # a kernel before 4.18 would send a train as one giant datagram
            self.train = 1
        self.end = 0            # of what was received last, in the buffer
        self.refused = {}       # peer -> the smallest size that it took no trains of
        self.retry = 0.0

    def send(self, burst, first, last, peer, plug):
        """Send frames first to last - 1 of a burst, all but the last of one size, to one peer."""
        view, starts, ends, header = burst.view, burst.starts, burst.ends, self.header
        begin = starts[first] - header
        size = ends[first] - begin
        if self.refused and time.monotonic() > self.retry:
            self.refused.clear()
        if last - first > 1 and size < self.refused.get(peer, 65536):
            step = min(self.train, self.TRAIN_BYTES // size)
            while step > 1 and last - first > 1:
                stop = min(first + step, last)
                if not self.send_train(burst, first, stop, peer, plug):
                    break
                first = stop
        for index in range(first, last):
            datagram = view[starts[index] - header:ends[index]]
            try:
                self.sock.sendto(datagram, MSG_DONTWAIT, peer)
            except OSError as error:
                plug.lost('datagram', error)

    def send_pieces(self, pieces, size, peer, plug):
        """Send datagrams, each a header and what is behind it, two of pieces; size: the longest."""
        if self.refused and time.monotonic() > self.retry:
            self.refused.clear()
        step = 2 * min(self.train, DATAGRAM_MAX // size)
        for at in range(0, len(pieces), step):
            part = pieces[at:at + step]
            if len(part) > 2 and size < self.refused.get(peer, 65536) and (
                    self.send_as_train(part, size, len(part) // 2, peer, plug)):
                continue
            for index in range(0, len(part), 2):
                try:
                    self.sock.sendmsg(part[index:index + 2], (), MSG_DONTWAIT, peer)
                except OSError as error:
                    plug.lost('datagram', error)

    def send_train(self, burst, first, last, peer, plug):
        """Send a train; False when the kernel does not take it as one."""
        view, starts, ends, header = burst.view, burst.starts, burst.ends, self.header
        begin, end = starts[first] - header, ends[last - 1]
        size = ends[first] - begin
        if end - begin == (last - first - 1) * size + end - starts[last - 1] + header:
            pieces = (view[begin:end],)
        else:
            pieces = [view[starts[index] - header:ends[index]] for index in range(first, last)]
        return self.send_as_train(pieces, size, last - first, peer, plug)

    def send_as_train(self, pieces, size, count, peer, plug):
        """As send_train(): count datagrams of size bytes, the last of which may be shorter."""
        try:
            self.sock.sendmsg(pieces, ((SOL_UDP, UDP_SEGMENT, struct.pack('H', size)),),
                              MSG_DONTWAIT, peer)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP):
                plug.lost('datagram', error, count)
                return True
            if len(self.refused) >= self.REFUSALS_MAX:
                self.refused.clear()
            if not self.refused:
                self.retry = time.monotonic() + self.RETRY
            self.refused[peer] = size
            return False
        return True

    def trains(self, view, plug):
        """Receive until nothing waits, or the buffer or the burst is full.

        Yields (start, end, size of one datagram, peer): datagrams of that size, the last of which
        may be shorter, side by side in view[start:end]. Who made something else of them there sets
        self.end.
        """
        recvmsg_into = self.sock.recvmsg_into
        room = SMALL_BUFFER - SLOT - self.header if len(view) <= SMALL_BUFFER else TRAINS_ROOM
        start = 0
        for _ in range(plug.turns):
            if start > room:
                return
            try:
                length, ancillary, flags, peer = recvmsg_into(
                    (view[start:],), 32, MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                plug.lost('datagram', error)
                continue
            if flags & MSG_TRUNC:
                plug.reject()
                continue
            size = INT.unpack(ancillary[0][2])[0] if ancillary else length
            self.end = start + length
            yield start, self.end, size, peer
            start = self.end

    def take_trains(self, really):
        """Take trains from now on, where the kernel has them; or no more."""
        try:
            self.sock.setsockopt(SOL_UDP, UDP_GRO, really)
        except OSError:
            pass


class IPv4:
    """What the plugs over UDP need to know of IPv4."""

    FAMILY, LEVEL, ANY = AF_INET, socket.IPPROTO_IP, '0.0.0.0'
    TTL, MULTICAST_TTL = socket.IP_TTL, socket.IP_MULTICAST_TTL
    MULTICAST_IF, MULTICAST_ALL = socket.IP_MULTICAST_IF, IP_MULTICAST_ALL
    MULTICAST_LOOP = socket.IP_MULTICAST_LOOP
    JOIN, LEAVE = socket.IP_ADD_MEMBERSHIP, socket.IP_DROP_MEMBERSHIP
    MTU, MTU_DISCOVER, HEADERS = IP_MTU, IP_MTU_DISCOVER, 20 + 8    # bytes: IP and UDP headers

    @staticmethod
    def membership(group, index):
        """What JOIN takes: the group, on an interface."""
        return IP_MREQN.pack(socket.inet_pton(AF_INET, group), bytes(4), index)

    @staticmethod
    def outgoing(index):
        """What MULTICAST_IF takes: the interface that multicast goes out on."""
        return IP_MREQN.pack(bytes(4), bytes(4), index)

    @staticmethod
    def socket_address(address, port, index):
        """The address as bind() and sendto() want it."""
        return address, port


class IPv6:
    """What the plugs over UDP need to know of IPv6."""

    FAMILY, LEVEL, ANY = AF_INET6, socket.IPPROTO_IPV6, '::'
    TTL, MULTICAST_TTL = socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS
    MULTICAST_IF, MULTICAST_ALL = socket.IPV6_MULTICAST_IF, IPV6_MULTICAST_ALL
    MULTICAST_LOOP = socket.IPV6_MULTICAST_LOOP
    JOIN, LEAVE = socket.IPV6_JOIN_GROUP, socket.IPV6_LEAVE_GROUP
    MTU, MTU_DISCOVER, HEADERS = IPV6_MTU, IPV6_MTU_DISCOVER, 40 + 8

    @staticmethod
    def membership(group, index):
        """What JOIN takes: the group, on an interface."""
        return IPV6_MREQ.pack(socket.inet_pton(AF_INET6, group), index)

    @staticmethod
    def outgoing(index):
        """What MULTICAST_IF takes: the interface that multicast goes out on."""
        return INT.pack(index)

    @staticmethod
    def socket_address(address, port, index):
        """The address as bind() and sendto() want it."""
        return address, port, 0, index


def ip_family(address):
    """IPv4 or IPv6, by the look of an address."""
    return IPv6 if ':' in address else IPv4


def ip_text(text):
    """An IP address (str) in its one canonical form. Raises ValueError."""
    family = ip_family(text).FAMILY
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):
        raise ValueError('%s is not an IP address' % (printable(text) or 'nothing'))


def is_multicast(address):
    """Is a canonical IP address a multicast group?"""
    family = ip_family(address).FAMILY
    first = socket.inet_pton(family, address)[0]
    return first == 0xff if family == AF_INET6 else 0xe0 <= first <= 0xef


def address_option(value):
    """The check of an option that is an IP address."""
    return ip_text(value or '')


def interface_option(value):
    """The check of an option that names a network interface."""
    return interface_name(value or '')


def interface_index(name):
    """The number of a network interface, 0 without a name. Raises Failure ENODEV."""
    try:
        return socket.if_nametoindex(name) if name else 0
    except OSError:
        text = 'no interface %s on this host' % name
        raise Failure(errno.ENODEV, text, text)


def open_udp(family, address, port, index, receive_buffer, reuse=False):
    """A bound UDP socket with large buffers. Raises OSError."""
    sock = socket.socket(family.FAMILY, SOCK_DGRAM)
    try:
        if family is IPv6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        received = min(int(receive_buffer), RECEIVE_BUFFER_MAX)
        set_buffer(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, received)
        set_buffer(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)
        sock.bind(family.socket_address(address, port, index))
    except OSError:
        sock.close()
        raise
    return sock


def path_mtu(address, index=0, most=MTU_MAX + VXLAN_HEADER.size + ETHERNET_HEADER):
    """Bytes that one UDP datagram carries to a socket address without being fragmented; or most.

    index is the interface for a multicast group, 0 for where the routing says.
    """
    family = ip_family(address[0])
    try:
        with socket.socket(family.FAMILY, SOCK_DGRAM) as probe:
            if index:
                probe.setsockopt(family.LEVEL, family.MULTICAST_IF, family.outgoing(index))
            probe.connect(address)
            whole = probe.getsockopt(family.LEVEL, family.MTU)
    except OSError:
        whole = MTU
    return min(whole - family.HEADERS, most)


def set_buffer(sock, forced, polite, size):
    """Ask for a buffer of size bytes; beyond the system's limit where we may (CAP_NET_ADMIN)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, polite, size)


def set_reach(sock, family, ttl):
    """Say how many routers a datagram may pass, plus one. Raises OSError.

    With 1 there is no router that could complain of a datagram's size, and no such complaint is
    believed: one forged ICMP error would have the kernel cut all datagrams to 552 bytes, for ten
    minutes.
    """
    sock.setsockopt(family.LEVEL, family.TTL, ttl)
    sock.setsockopt(family.LEVEL, family.MULTICAST_TTL, ttl)
    if ttl == 1:
        try:
            sock.setsockopt(family.LEVEL, family.MTU_DISCOVER, PMTUDISC_OMIT)
        except OSError:                     # an older kernel
            pass


def open_way(family, address, index=0):
    """A UDP socket (of AF_INET or AF_INET6) that tells an address by what it is connected to.

    index is that of the interface to a group, if one was given. Nobody reads what comes: it has no
    room. Raises OSError.
    """
    way = socket.socket(family, SOCK_DGRAM)
    try:
        way.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        if index:
            ip = IPv6 if family == AF_INET6 else IPv4
            way.setsockopt(ip.LEVEL, ip.MULTICAST_IF, ip.outgoing(index))
        way.connect(address)
    except OSError:
        way.close()
        raise
    return way


def join_group(sock, family, group, index):
    """Hear a multicast group, on one interface or (0) where the routing says. Raises OSError."""
    try:
        # Otherwise the socket hears what any other socket of this host joined, on any interface.
        sock.setsockopt(family.LEVEL, family.MULTICAST_ALL, 0)
    except OSError:
        pass
    sock.setsockopt(family.LEVEL, family.JOIN, family.membership(group, index))


class Datagrams(Plug):
    """What the plugs over UDP have in common.

    ports       descriptor -> UdpPort
    burst       what recv() fills; a large one for trains; or None
    """

    def __init__(self):
        self.ports, self.burst = {}, None

    def add_socket(self, sock):
        """Make an open socket one of the ports."""
        port = self.ports[sock.fileno()] = UdpPort(sock, self.headroom)
        return port

    def fds(self):
        return dict.fromkeys(self.ports, select.EPOLLIN)

    def take_trains(self):
        """Take trains from now on."""
        if not self.takes_trains():
            self.burst = Burst(LARGE_BUFFER[1])
            for port in self.ports.values():
                port.take_trains(True)

    def takes_trains(self):
        """Does it take trains now?"""
        return self.burst is not None and len(self.burst.buf) > SMALL_BUFFER

    def take_no_trains(self):
        """Take no trains until there is a burst again; False while something waits to be received.

        It may be a train, and from then on the kernel would not tell of how many frames.
        """
        for port in self.ports.values():
            try:
                port.sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
                return False
            except OSError:
                pass
        self.burst = None
        for port in self.ports.values():
            port.take_trains(False)
        return True

    def quiet(self):
        """What QuietRelay.relay_overlay() needs.

        Kind of socket, header, port, index of the interface, seconds until a MAC is forgotten, two
        sockets. The port is that of all peers, or 0. Where they have one, or where there is one
        peer and no header, the second socket is a way: see open_way().
        """
        raise NotImplementedError

    def known(self):
        """The MACs that were learned: {int: (peer, when)}."""
        return {}

    def resume(self, relay):
        """Know and have noticed what a QuietRelay does and has, and no other MACs."""

    def close(self):
        for port in self.ports.values():
            port.sock.close()
        self.ports = {}

    def hung_up(self, fd):
        self.ports[fd].sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)      # reading clears it


class Overlay(Datagrams):
    """Frames in UDP behind a VXLAN header, to a multicast group until a MAC's place is learned.

    A frame's source MAC is learned with the peer it came from; a frame to a known MAC goes to its
    peer, and every other frame to the group. The two schemes differ in their sockets, and in what
    a peer is.
    """

    STYLE = '/'
    OPTIONS = {'port': number(1, 65535), 'vni': vni, 'grp': group_number, 'ttl': number(1, 255),
               'v4': flag, 'v6': flag, 'rcvbuf': size, 'hashsize': number(1, 1 << 24),
               'expiretime': number(1, 1 << 31), 'if': interface_option, 'bind': address_option}
    DEFAULTS = {'port': '14789', 'vni': '1', 'ttl': '1', 'hashsize': '1024', 'expiretime': '128'}
    IDENTITY = ('port', 'vni')
    headroom = VXLAN_HEADER.size

    SHORTEST, LONGEST = headroom + ETHERNET_HEADER, headroom + FRAME_MAX    # bytes of a datagram
    SAME = headroom + 12        # bytes that are alike in all frames of a train: header and MACs
    bulk = None                 # a Bulk, for plugs that have one
    failed = 0                  # errno of the last run of frames, 0 when all went out
    astray = False              # the group could not be reached, and we have not joined again
    LEARN_AGAIN = 1.0           # seconds; the same MAC and peer are learned this often

    @staticmethod
    def normal_address(address, options):
        if address:
            address = ip_text(address)
            if not is_multicast(address):
                raise ValueError('%s is not a multicast group' % address)
        families = {IPv6 if name == 'v6' else IPv4 for name in ('v4', 'v6') if name in options}
        families |= {ip_family(text) for text in (address, options.get('bind')) if text}
        if len(families) > 1 or (not address and 'v6' not in options and families == {IPv6}):
            raise ValueError('IPv4 and IPv6 mixed')
        # grp= moves a given group: a permitted prefix must see where it goes.
        return Overlay.fill_in(address, options)[0] if address else ''

    @staticmethod
    def fill_in(address, options):
        filled = {name: value for name, value in options.items() if name not in ('v4', 'v6', 'grp')}
        address = address or OVERLAY_GROUPS[6 if 'v6' in options else 4]
        if 'grp' in options:
            family, last = ip_family(address).FAMILY, int(options['grp']) & 0xffffff
            binary = socket.inet_pton(family, address)[:-3] + last.to_bytes(3, 'big')
            address = socket.inet_ntop(family, binary)
            filled.setdefault('vni', str(last))
        return address, filled

    def __init__(self, vnl, index=None, sockets=()):
        """With the index of the interface, and with sockets that are open already, if there are."""
        super().__init__()
        group, given = self.fill_in(vnl.address, vnl.options)
        options, family = dict(self.DEFAULTS, **given), ip_family(group)
        if index is None:
            index = interface_index(options.get('if'))
        self.header = VXLAN_HEADER.pack(VXLAN_FLAGS, int(options['vni']) << 8)
        self.everyone = family.socket_address(group, int(options['port']), index)
        self.group, self.interface = group, options.get('if')
        self.index = index                  # of the interface, 0 for the routing's choice
        self.sender = None                  # the UdpPort that sends
        try:
            self.open_sockets(family, group, index, options, *sockets)
        except OSError as error:
            self.close()
            sentence = 'group %s: %s' % (group, why(error))
            if error.errno in (errno.ENODEV, errno.ENETUNREACH):
                sentence += ' (no route to it: use if=, or "ip route add %s dev IFACE")' % group
            raise Failure(error.errno, sentence, sentence)
        self.macs = MacTable(float(options['expiretime']))
        self.learn_again = min(self.LEARN_AGAIN, self.macs.expire / 2)
        self.seen = self.seen_peer = None   # the SAME bytes and the peer of the last good frame
        self.seen_time = 0.0

    def open_sockets(self, family, group, index, options):
        """Fill in sender and ports. Raises OSError."""
        raise NotImplementedError

    def is_echo(self, peer, now):
        """Did we send what came from this peer?"""
        return False

    def peer_of(self, address):
        """Whom to send to, for a frame that came from a socket address."""
        return address

    def recv(self, fd):
        burst = self.burst = self.burst or Burst(SMALL_BUFFER)
        starts, ends, startswith = burst.starts, burst.ends, burst.buf.startswith
        del starts[:], ends[:]
        burst.giants.clear()
        bulk = self.bulk
        now, shortest, longest = time.monotonic(), self.SHORTEST, self.LONGEST
        headroom = self.headroom
        if now - self.seen_time > self.learn_again:
            self.seen_peer, self.seen_time = None, now
        for start, end, size, peer in self.ports[fd].trains(burst.view, self):
            if self.is_echo(peer, now):
                continue
            if peer == self.seen_peer and shortest <= size <= longest:
                # The usual train, whose datagrams begin alike: a quarter faster than one by one.
                seen = self.seen
                found = [at + headroom for at in range(start, end - shortest + 1, size)
                         if startswith(seen, at)]
                if len(found) * size >= end - start:
                    starts += found
                    ends += range(start + size, end, size)
                    ends.append(end)
                    continue
            for at in range(start, end, size or 1):
                if bulk and startswith(bulk.header, at):
                    self.ports[fd].end = bulk.take(burst, at, end, size, peer, now)
                    break
                stop = min(at + size, end)
                if self.look(burst.buf, at, stop, peer, now):
                    starts.append(at + headroom)
                    ends.append(stop)
        if bulk and bulk.questions or len(burst.buf) == SMALL_BUFFER and ends and (
                len(ends) >= BUSY or ends[-1] + SLOT > SMALL_BUFFER):
            self.take_trains()
            if bulk:
                bulk.answer()
        return burst

    def known(self):
        return dict(self.macs.entries)

    def resume(self, relay):
        self.macs, self.seen_peer = MacTable(self.macs.expire), None
        for mac, (peer, when) in sorted(relay.macs.items(), key=lambda item: item[1][1]):
            self.macs.learn(mac, peer, when)
        if relay.failed:
            self.failed = relay.failed
            self.look_for_group()

    def look(self, buf, start, stop, peer, now):
        """Is this datagram a frame for us? Learns from it, or from a peer's leaving."""
        if not buf.startswith(self.header, start) or stop - start < self.headroom:
            self.reject()
            return False
        if stop - start == self.headroom:
            self.macs.forget(self.peer_of(peer))
            self.seen_peer = None
            if self.bulk:
                self.bulk.forget(peer)
            return False
        if not self.SHORTEST <= stop - start <= self.LONGEST:
            self.reject()
            return False
        source = buf[start + 14:start + 20]
        if not source[0] & 1:
            self.macs.learn(int.from_bytes(source, 'big'), self.peer_of(peer), now)
        self.seen, self.seen_peer = bytes(buf[start:start + self.SAME]), peer
        return True

    def send(self, burst):
        buf, starts, ends, header = burst.buf, burst.starts, burst.ends, self.header
        startswith, now = buf.startswith, time.monotonic()
        for start in starts:                # each one: a reader may have left anything there
            buf[start - 8:start] = header
        first, count = 0, len(starts)
        if count == 1:                      # the short way of a lone frame to a known peer
            start = starts[0]
            peer = self.macs.find(int.from_bytes(buf[start:start + 6], 'big'), now)
            if peer:
                try:
                    self.sender.sock.sendto(burst.view[start - 8:ends[0]], MSG_DONTWAIT, peer)
                except OSError as error:
                    self.lost('datagram', error)
                return
        while first < count:
            start = starts[first]
            length, target, last = ends[first] - start, buf[start:start + 6], count
            for index in range(first + 1, count):
                start = starts[index]
                if ends[index] - start != length or not startswith(target, start):
                    last = index            # the first of another size may end the run
                    last += ends[index] - start < length and startswith(target, start)
                    break
            peer = None if target[0] & 1 else self.macs.find(int.from_bytes(target, 'big'), now)
            self.failed = 0
            self.sender.send(burst, first, last, peer or self.everyone, self)
            if not peer and (self.failed or self.astray):
                self.look_for_group()
            first = last

    def lost(self, place, error, frames=1):
        """As for every plug; the errno is kept."""
        self.failed = error.errno
        super().lost(place, error, frames)

    def look_for_group(self):
        """Frames to the group were the first that failed, or not the first, or no longer do.

        An interface or a route that comes back may be another one, where we have not joined. (What
        peers say can't bring us here: an address of theirs without a route is no error of ours.)
        """
        self.astray |= self.failed in (errno.ENODEV, errno.ENETUNREACH)
        if not self.astray or self.failed == errno.ENETUNREACH:
            return
        family, old = ip_family(self.group), self.index
        try:
            self.index = interface_index(self.interface)
            if self.index:
                outgoing = family.outgoing(self.index)
                self.sender.sock.setsockopt(family.LEVEL, family.MULTICAST_IF, outgoing)
            try:
                membership = family.membership(self.group, old)
                self.heard.setsockopt(family.LEVEL, family.LEAVE, membership)
            except OSError:                 # with the interface went the membership
                pass
            join_group(self.heard, family, self.group, self.index)
            self.astray = False
        except (OSError, Failure):          # not yet
            pass

    def mtu(self):
        return path_mtu(self.everyone, self.index) - self.headroom - ETHERNET_HEADER

    def fragments(self, mtu):
        return mtu > self.mtu()


def is_ours(address, kind):
    """Is a socket address one of ours? By the address that the kernel would answer it from."""
    probe = socket.SocketType(kind, SOCK_DGRAM)     # of C alone: 40 kB that a quiet relay shares
    try:
        probe.connect(address)
        return address[0] in (probe.getsockname()[0], IPv4.ANY, IPv6.ANY)
    except OSError:
        return False
    finally:
        probe.close()


class Vxvde(Overlay):
    """vxvde://GROUP: a network without a switch; a peer is an address and a port.

    Two sockets. The group socket hears the group. The own socket sends everything, and hears what
    others send to us alone. What we send to the group comes back to us (other nodes may live on
    this host) and is recognised by our own port and a local address. A header without a frame says
    that its sender leaves.
    """

    QUIET = GIANTS = True
    BELIEVE = 10.0              # seconds; as long an address is believed to be ours, or not

    def quiet(self):
        return (self.kind, self.header, 0, self.index, self.macs.expire, self.sender.sock,
                self.heard)

    def open_sockets(self, family, group, index, options, own=None, heard=None):
        if not own:
            receive_buffer = options.get('rcvbuf', RECEIVE_BUFFER)
            own = open_udp(family, options.get('bind', family.ANY), 0, 0, receive_buffer)
            set_reach(own, family, int(options['ttl']))
            if index:
                own.setsockopt(family.LEVEL, family.MULTICAST_IF, family.outgoing(index))
            heard = open_udp(family, group, int(options['port']), index, receive_buffer, reuse=True)
            join_group(heard, family, group, index)
        self.sender = self.add_socket(own)
        self.add_socket(heard)
        self.own_port, self.heard, self.kind = own.getsockname()[1], heard, family.FAMILY
        self.local = {}                     # address -> (is it ours, until when we believe it)
        self.bulk = Bulk(self)

    def send(self, burst):
        send = super().send
        if len(burst.starts) < 2 and not burst.giants:
            send(burst)
        else:
            for part in self.bulk.send(burst):
                send(part)

    def take_no_trains(self):
        done = super().take_no_trains()
        if done:
            self.bulk.end()
        return done

    def is_echo(self, peer, now):
        return peer[1] == self.own_port and self.is_ours(peer, now)

    def is_ours(self, peer, now):
        """The kernel tells whether an address is ours by the address that it would answer from."""
        known, until = self.local.get(peer[0], (False, 0.0))
        if now > until:
            known = is_ours(peer, self.kind)
            if len(self.local) >= MACS_MAX:
                self.local.clear()
            self.local[peer[0]] = known, now + self.BELIEVE
        return known

    def close(self):
        if self.ports:                      # tell the others
            try:
                self.sender.sock.sendto(self.header, MSG_DONTWAIT, self.everyone)
            except (OSError, AttributeError):
                pass
        super().close()


class Fellow:
    """A peer that we asked whether it takes bulk. Times are of time.monotonic().

    number      bytes, of the last question
    again       when we may ask again
    delay       seconds that we wait then for an answer; twice as many each time
    until       until when it takes bulk
    giants      does it take super-segments?
    size        bytes of a datagram
    most        bytes of a bulk that goes out as one train
    is_near     is it on this host?
    """

    __slots__ = 'number', 'again', 'delay', 'until', 'giants', 'size', 'most', 'is_near'

    def __init__(self):
        self.number, self.again, self.until, self.giants = b'', 0.0, 0.0, False
        self.is_near, self.delay = False, Bulk.DELAY

    def measure(self, peer):
        """Find out what the path takes."""
        self.size = path_mtu(peer, most=DATAGRAM_MAX)
        self.most = (self.size - Bulk.HEADERS) * min(UdpPort.TRAIN_FRAMES,
                                                     DATAGRAM_MAX // self.size)


class Bulk:
    """What passes between two nodes of vxvde:// that are both vdelxcd, when there is much of it.

    Frames side by side, each behind a record of its length; the whole is cut into datagrams as long
    as the path takes them. So frames that don't fit the path need no fragments, and a container's
    super-segment of 64 kB (--offload) is read, sent, received and written as one. Worth, in times
    what vde_plug carries of TCP: MTU 1500 on 1500 1.9, before 1.1; with --offload 4.7, before 1.1,
    at 1450 4.1, before 2.5, on one host 7, before 2.5.

    A datagram begins with 16 bytes: BULK_FLAGS, as the VXLAN header has it; the number of the bulk;
    its length, 4 bytes; the index of this datagram, from 0. What others take for a header with
    wrong flags they drop.

    Who has much to send to a peer asks first, with the number 0, the length 0, and as index ASK, a
    random number of 8 bytes behind it; who takes bulk answers with YES, the same number, and a byte
    (1: super-segments, too); or, later, with NO when that ends. That is believed for KEEP seconds.
    The one that asked is as trusted as who sends frames: whoever is on the LAN can do both.

    plug        the Vxvde
    fellows     peer -> Fellow
    askers      peer -> [number of its question, bulks begun, bulks that came whole, when we say
                yes again]
    questions   [(peer, number)], not answered yet
    coming      peer -> [the header of a bulk but for the index, next index, bytes so far]
    """

    HEADER = struct.Struct('>B3xIHI')       # flags, the VNI as in VXLAN_HEADER, number, length
    INDEX = struct.Struct('>H')
    RECORD = struct.Struct('>IHH')          # length; of a super-segment: see Burst.giants
    ASK, YES, NO = 0xffff, 0xfffe, 0xfffd
    NUMBER = 8                  # bytes
    HEADERS = HEADER.size + INDEX.size
    LONGEST = GIANT_MAX + RECORD.size       # bytes of a bulk
    SHORTEST = RECORD.size + ETHERNET_HEADER
    INDICES = list(map(INDEX.pack, range(512)))
    PEERS_MAX = 64
    DELAY, DELAY_MAX = 0.05, 60.0           # seconds
    KEEP = 20.0
    SOME = 64                   # bulks of which some may lack a datagram: one of TOLERATED
    TOLERATED = 8
    CUTS, PAUSE = 16, 1.0       # after so many cut in a row no super-segments are taken, seconds

    def __init__(self, plug):
        self.plug = plug
        self.vni = int.from_bytes(plug.header[4:], 'big')
        self.header = VXLAN_HEADER.pack(BULK_FLAGS, self.vni)
        self.fellows, self.askers, self.coming, self.questions = {}, {}, {}, []
        self.number = self.cuts = 0
        self.cut_until = 0.0    # until when no super-segments are taken

    def send(self, burst):
        """Send what is better sent as bulk; yields the Bursts that are not, in order.

        Frames that fit the path go as fast in trains.
        """
        buf, starts, ends, giants = burst.buf, burst.starts, burst.ends, burst.giants
        startswith, macs, now = buf.startswith, self.plug.macs, time.monotonic()
        takes_giants, first, count = self.takes_giants(), 0, len(starts)
        if not takes_giants and not giants:
            # The usual burst, as its first frame goes; TCP lost 6 % when all were looked through.
            peer = macs.find(int.from_bytes(buf[starts[0]:starts[0] + 6], 'big'), now)
            fellow = self.fellows.get(peer)
            if fellow and self.plug.headroom + (FRAME_MAX if fellow.size > FRAME_MAX else max(
                    map(int.__sub__, ends, starts))) <= fellow.size:
                yield burst
                return
        while first < count:
            target, last = buf[starts[first]:starts[first] + 6], first + 1
            while last < count and startswith(target, starts[last]):
                last += 1
            peer = None if target[0] & 1 else macs.find(int.from_bytes(target, 'big'), now)
            has_giants = giants and starts[first] in giants
            is_much = last - first >= BUSY or has_giants
            fellow = self.fellows.get(peer) or peer and is_much and self.meet(peer)
            if fellow and (takes_giants or self.plug.headroom + max(
                    map(int.__sub__, ends[first:last], starts[first:last])) > fellow.size):
                if is_much and now >= fellow.again:
                    self.ask(peer, fellow, now)
                if now < fellow.until and (last - first > 1 or has_giants) and (
                        fellow.giants or not giants):
                    self.send_bulks(burst, first, last, peer, fellow)
                    self.cuts, first = 0, last
                    if fellow.giants and now > self.cut_until:
                        self.plug.other.take_giants(True)
                    continue
            if not giants:
                yield burst.part(starts[first:last], ends[first:last])
            else:
                for start, end in zip(starts[first:last], ends[first:last]):
                    if start in giants:
                        yield cut_giant(burst, start, end)
                        self.count_cut(now)
                    else:
                        yield burst.part([start], [end])
            first = last

    def takes_giants(self):
        """Does our interface take super-segments?"""
        return isinstance(self.plug.other, OffloadTap)

    def count_cut(self, now):
        """A super-segment was cut; take no more when there were many."""
        self.cuts += 1
        if self.cuts >= self.CUTS:
            self.cuts, self.cut_until = 0, now + self.PAUSE
            self.plug.other.take_giants(False)

    def send_bulks(self, burst, first, last, peer, fellow):
        """Send frames first to last - 1 to a peer, in bulks that are one train each if they can."""
        buf, starts, ends, giants = burst.buf, burst.starts, burst.ends, burst.giants
        pack_into, head = self.RECORD.pack_into, self.RECORD.size
        begin, total = first, 0
        for index in range(first, last):
            start = starts[index]
            length = ends[index] - start
            if giants and start in giants:
                size, tcp = giants[start]
                if tcp & PARTIAL and not fellow.is_near:
                    tcp &= ~PARTIAL
                    add_checksum(burst, start + tcp, ends[index], TCP_CHECKSUM,
                                 self.plug.other.kernel_sum)
                pack_into(buf, start - head, length, size, tcp)
            else:
                pack_into(buf, start - head, length, 0, 0)
            total += head + length
            if total > fellow.most and index > begin:
                self.send_bulk(burst, begin, index, peer, fellow)
                begin, total = index, head + length
        self.send_bulk(burst, begin, last, peer, fellow)

    def send_bulk(self, burst, first, last, peer, fellow):
        """Send frames first to last - 1, each behind its record, as one bulk."""
        view, starts, ends, head = burst.view, burst.starts, burst.ends, self.RECORD.size
        total = sum(ends[first:last]) - sum(starts[first:last]) + (last - first) * head
        stream = view[starts[first] - head:ends[last - 1]]
        if len(stream) != total:            # they are not side by side
            stream = memoryview(b''.join([view[starts[index] - head:ends[index]]
                                          for index in range(first, last)]))
        self.number = (self.number + 1) & 0xffff
        header, pieces = self.HEADER.pack(BULK_FLAGS, self.vni, self.number, total), []
        step = fellow.size - self.HEADERS
        for index, at in zip(self.INDICES, range(0, total, step)):
            pieces += header + index, stream[at:at + step]
        self.plug.sender.send_pieces(pieces, fellow.size, peer, self.plug)

    def say(self, word, peer, text):
        """Send a peer a word about bulk."""
        message = self.HEADER.pack(BULK_FLAGS, self.vni, 0, 0) + self.INDEX.pack(word) + text
        try:
            self.plug.sender.sock.sendto(message, MSG_DONTWAIT, peer)
        except OSError:
            pass

    def meet(self, peer):
        """Begin to know a peer; its Fellow."""
        if len(self.fellows) >= self.PEERS_MAX:
            del self.fellows[next(iter(self.fellows))]
        fellow = self.fellows[peer] = Fellow()
        fellow.measure(peer)
        return fellow

    def ask(self, peer, fellow, now):
        """Ask a peer whether it takes bulk."""
        fellow.number, fellow.again = os.urandom(self.NUMBER), now + fellow.delay
        fellow.delay = min(2 * fellow.delay, self.DELAY_MAX)
        self.say(self.ASK, peer, fellow.number)

    def answer(self):
        """Say yes to who asked, once we take trains."""
        for peer, number in self.questions:
            self.say(self.YES, peer, number + bytes([self.takes_giants()]))
        self.questions = []

    def hear(self, word, text, peer, now):
        """A peer said a word about bulk."""
        number, rest = text[:self.NUMBER], text[self.NUMBER:]
        if word == self.ASK and len(text) == self.NUMBER:
            asker = self.askers.pop(peer, None) or [number, 0, 0, 0.0]
            if len(self.askers) >= self.PEERS_MAX:
                del self.askers[next(iter(self.askers))]
            self.askers[peer] = asker
            asker[0] = number
            if now >= asker[3]:
                self.questions.append((peer, number))
            return
        # Known by the number: the address may be another one (a host without has 0.0.0.0 as well).
        asked = [peer for peer in self.fellows if self.fellows[peer].number == number]
        if not asked or len(rest) != 1:
            self.plug.reject()
            return
        peer, = asked
        fellow = self.fellows[peer]
        if word == self.YES:
            fellow.is_near = self.plug.is_ours(peer, now)
            fellow.measure(peer)
            if fellow.size * len(self.INDICES) >= 2 * self.LONGEST:
                fellow.until, fellow.again = now + self.KEEP, now + self.KEEP / 2
                fellow.delay, fellow.giants = self.DELAY, bool(rest[0]) and self.takes_giants()
        else:
            fellow.until, fellow.again = 0.0, now + (self.DELAY_MAX if rest[0] else self.DELAY)

    def forget(self, peer):
        """The peer has left."""
        for known in self.fellows, self.askers, self.coming:
            known.pop(peer, None)

    def end(self):
        """Take no bulk for a while, and no super-segments from our interface."""
        for peer, asker in self.askers.items():
            self.say(self.NO, peer, asker[0] + b'\0')
        self.askers, self.coming = {}, {}
        if self.takes_giants():
            self.plug.other.take_giants(False)

    def take(self, burst, start, end, size, peer, now):
        """Add what came from a peer, in burst.view[start:end], to the burst; where that ends there.

        It is datagrams of size bytes, the last of which may be shorter.
        """
        buf, view, place, at, beyond = burst.buf, burst.view, start, start, start
        while at < end:
            stop = min(at + size, end)
            if not buf.startswith(self.header, at) or stop - at < self.HEADERS:
                if self.plug.look(buf, at, stop, peer, now):    # a frame as long as the datagrams
                    burst.starts.append(at + self.plug.headroom)
                    burst.ends.append(stop)
                    place = stop
                at = stop
                continue
            header, body = bytes(buf[at:at + self.HEADER.size]), at + self.HEADERS
            index = int.from_bytes(buf[body - 2:body], 'big')
            if index >= self.NO:
                self.hear(index, bytes(view[body:stop]), peer, now)
                at = stop
                continue
            if stop < end:                  # 12 us of 45 datagrams; one by one 25 us
                heads = map(header.__add__, self.INDICES[index:])
                places = range(at, end, size)
                if index + len(places) <= len(self.INDICES) and (
                        all(map(buf.startswith, heads, places))):
                    stop = end
            text = view[body:stop] if stop - at <= size else b''.join(
                [view[near:min(near + size - self.HEADERS, end)]
                 for near in range(body, stop, size)])
            count, at = -(-(stop - at) // size), stop
            whole = self.collect(header, index, count, text, peer, now)
            if whole is text and count == 1:        # it is where it may stay
                place = stop
                self.unpack(burst, body, stop, peer, now)
            elif whole:
                # One that began in a train before may be longer than what is free before the rest.
                goal = place if at == end or place + len(whole) <= at else end
                stop = goal + len(whole)
                if stop > len(view):        # the buffer may be a small one: nobody asked us
                    self.plug.take_trains()
                    self.plug.reject()
                    continue
                view[goal:stop] = whole
                self.unpack(burst, goal, stop, peer, now)
                if goal == place:
                    place = stop
                else:
                    beyond = stop
        return max(place, beyond)

    def collect(self, header, index, count, text, peer, now):
        """Put together what was sent; the bulk when it is whole, else None.

        text is what count datagrams had, the first of which has this index.
        """
        total, asker = int.from_bytes(header[-4:], 'big'), self.askers.get(peer)
        known = self.coming.pop(peer, None)
        if index == 0:
            known = [header, 0, b'']
            if asker:
                self.judge(asker, peer, now)
        if not known or known[:2] != [header, index] or not (
                self.SHORTEST <= total <= self.LONGEST) or len(known[2]) + len(text) > total:
            self.plug.reject(count)
            return None
        if known[2]:
            text = known[2] + bytes(text)
        if len(text) == total:
            if asker:
                asker[2] += 1
            return text
        if len(self.coming) >= self.PEERS_MAX:
            del self.coming[next(iter(self.coming))]
        self.coming[peer] = [header, index + count, bytes(text)]
        return None

    def judge(self, asker, peer, now):
        """A bulk begins; say no to who sent it if too many did not come whole."""
        _, begun, whole, _ = asker
        if begun == self.SOME:
            asker[1:3] = 0, 0
            if begun - whole > begun // self.TOLERATED:
                asker[3] = now + self.DELAY_MAX
                self.say(self.NO, peer, asker[0] + b'\1')
        asker[1] += 1

    def unpack(self, burst, start, end, peer, now):
        """Add the frames of a bulk, which is in burst.view[start:end]."""
        buf, starts, ends, startswith = burst.buf, burst.starts, burst.ends, burst.buf.startswith
        head, at = self.RECORD.size, start
        while at < end:
            stop = at + head
            length, size, tcp = self.RECORD.unpack_from(buf, at) if stop <= end else (0, 0, 0)
            if not ETHERNET_HEADER <= length <= (GIANT_MAX if size else FRAME_MAX) or (
                    stop + length > end) or size and not (
                        self.takes_giants()
                        and is_giant(buf, stop, stop + length, size, tcp & ~PARTIAL)
                        and (not tcp & PARTIAL or self.plug.is_ours(peer, now))):
                self.plug.reject()
                return
            if not buf[stop + 6] & 1:
                self.plug.macs.learn(int.from_bytes(buf[stop + 6:stop + 12], 'big'), peer, now)
            if size:
                burst.giants[stop] = size, tcp
            same, step = bytes(buf[at:stop + 12]), head + length
            while True:                     # frames that begin alike: length and MACs
                starts.append(stop)
                at += step
                ends.append(at)
                stop += step
                if size or at + step > end or not startswith(same, at):
                    break


class Vxlan(Overlay):
    """vxlan://GROUP (RFC 7348): what the kernel's vxlan device speaks; a peer is an address.

    One socket on the group's port hears and sends everything, and everybody is sent to on that
    port, so a host has room for one. The group does not come back to us.
    """

    QUIET = True

    OPTIONS = {name: Overlay.OPTIONS[name] for name in Overlay.OPTIONS
               if name not in ('grp', 'bind')}
    DEFAULTS = dict(Overlay.DEFAULTS, port='4789')

    def quiet(self):
        return (self.kind, self.header, self.everyone[1], self.index, self.macs.expire, self.heard,
                open_way(self.kind, self.everyone, self.index))

    def open_sockets(self, family, group, index, options, sock=None, _=None):
        if not sock:
            sock = open_udp(family, family.ANY, int(options['port']), 0,
                            options.get('rcvbuf', RECEIVE_BUFFER))
            set_reach(sock, family, int(options['ttl']))
            sock.setsockopt(family.LEVEL, family.MULTICAST_LOOP, 0)
            if index:
                sock.setsockopt(family.LEVEL, family.MULTICAST_IF, family.outgoing(index))
            join_group(sock, family, group, index)
        self.kind, self.heard, self.sender = family.FAMILY, sock, self.add_socket(sock)

    def peer_of(self, address):
        return (address[0], self.everyone[1]) + address[2:]


class Udp(Datagrams):
    """udp://[[ADDRESS:]PORT]->HOST:PORT: frames in UDP to one peer, without a header."""

    QUIET = True

    @staticmethod
    def normal_address(address, options):
        source, arrow, target = address.partition('->')
        host, port = split_host(target) if ':' in target else ('', '')
        if not arrow or not host or not port:
            raise ValueError('no destination; udp://[[ADDRESS:]PORT]->HOST:PORT')
        mine, my_port = split_host(source if ':' in source else ':' + source)
        if mine:
            mine = ip_text(mine)
        return '%s->%s' % (join_host(mine, my_port) if mine else my_port, join_host(host, port))

    def __init__(self, vnl, _=None, sockets=()):
        super().__init__()
        if sockets:                         # of a Udp that was, in another process
            sock, way = sockets
            self.peer = way.getpeername()
        else:
            sock = self.find_peer(vnl)
        self.kind, self.port = int(sock.family), self.add_socket(sock)

    def find_peer(self, vnl):
        """A socket that reaches the peer, which is looked up. Raises Failure."""
        source, _, target = vnl.address.partition('->')
        mine, my_port = split_host(source if ':' in source else ':' + source)
        host, port = split_host(target)
        wanted = ip_family(mine).FAMILY if mine else 0
        os.environ.setdefault('RES_OPTIONS', RESOLVER)
        # Of a str Python makes an international name, with tables that take 1.7 MB.
        name = host if max(host) > '~' else host.encode()
        try:
            number, _, _, _, self.peer = socket.getaddrinfo(name, int(port), wanted,
                                                            SOCK_DGRAM)[0]
        except (OSError, UnicodeError) as error:
            text = 'host %s: %s' % (printable(host), error)
            raise Failure(errno.EHOSTUNREACH, text, text)
        family = IPv6 if number == AF_INET6 else IPv4
        try:
            open_way(number, self.peer).close()     # is there a route?
            return open_udp(family, mine or family.ANY, int(my_port or 0), 0, RECEIVE_BUFFER)
        except OSError as error:
            raise Failure(error.errno, 'udp %s: %s' % (printable(vnl.address), why(error)))

    def quiet(self):
        way = open_way(self.kind, self.peer)
        return self.kind, b'', 0, 0, float('inf'), self.port.sock, way

    def recv(self, fd):
        burst = self.burst = self.burst or Burst(SMALL_BUFFER)
        starts, ends = burst.starts, burst.ends
        del starts[:], ends[:]
        for start, end, size, peer in self.port.trains(burst.view, self):
            if peer[:2] != self.peer[:2]:
                self.reject()
                continue
            while start < end:
                stop = min(start + size, end)
                if ETHERNET_HEADER <= stop - start <= FRAME_MAX:
                    starts.append(start)
                    ends.append(stop)
                else:
                    self.reject()
                start = stop
        if len(burst.buf) == SMALL_BUFFER and ends and (
                len(ends) >= BUSY or ends[-1] + SLOT > SMALL_BUFFER):
            self.take_trains()
        return burst

    def send(self, burst):
        starts, ends = burst.starts, burst.ends
        first, count = 0, len(starts)
        while first < count:
            length, last = ends[first] - starts[first], first + 1
            while last < count and ends[last] - starts[last] == length:
                last += 1
            if last < count and ends[last] - starts[last] < length:
                last += 1
            self.port.send(burst, first, last, self.peer, self)
            first = last

    def mtu(self):
        return path_mtu(self.peer) - ETHERNET_HEADER

    def fragments(self, mtu):
        return mtu > self.mtu()


def split_host(text):
    """('host', 'port') of host:port, [IPv6]:port or :port. Raises ValueError."""
    host, _, port = text.rpartition(':')
    if host.startswith('[') and host.endswith(']'):
        host = ip_text(host[1:-1])
    elif ':' in host or '[' in host:
        raise ValueError('%s: an IPv6 address goes in brackets' % printable(text))
    return host, number(1, 65535)(port) if port else ''


def join_host(host, port):
    """host:port, with an IPv6 address in brackets."""
    return '%s:%s' % ('[%s]' % host if ':' in host else host, port)


class MacVtap(Tap):
    """macvtap://NAME: a macvtap interface of the daemon's own network namespace.

    Its descriptor does not tell when the interface is deleted, so we hear what happens to links.
    """

    @staticmethod
    def normal_address(address, options):
        return interface_name(address)

    def __init__(self, vnl):
        path = '/dev/tap%d' % interface_index(vnl.address)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise Failure(error.errno, '%s (%s): %s' % (path, vnl.address, why(error)))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.ioctl(fd, TUNSETIFF, IFREQ.pack(os.fsencode(vnl.address), IFF_TAP | IFF_NO_PI))
        except BlockingIOError:             # the kernel would give each of us a part of the frames
            os.close(fd)
            raise Failure(errno.EBUSY, 'macvtap %s: in use' % vnl.address)
        except OSError as error:
            os.close(fd)
            raise Failure(error.errno, 'macvtap %s: %s' % (vnl.address, why(error)))
        super().__init__(fd, vnl.address)
        self.links = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        self.links.setblocking(False)
        self.links.bind((0, RTMGRP_LINK))

    def fds(self):
        return {self.fd: select.EPOLLIN, self.links.fileno(): select.EPOLLIN}

    def recv(self, fd):
        if fd == self.fd:
            return super().recv(fd)
        try:
            while self.links.recv(65536):
                pass
        except OSError:                     # nothing more, or more than it could hold
            pass
        try:
            fcntl.ioctl(self.fd, TUNGETIFF, bytes(IFREQ.size))
        except OSError as error:
            raise Ended('macvtap %s is gone: %s' % (self.name, why(error)))
        return EMPTY

    def close(self):
        self.links.close()
        super().close()


class LocalSocket(Packets):
    """A connected UNIX socket that keeps packets whole."""

    WAIT = 0.005                # seconds that a full receiver is waited for, a burst
    buffer = SEND_BUFFER        # bytes asked of the kernel for what it sends; None when they were

    def __init__(self, sock):
        self.sock, self.put = sock, os.write    # Ptp puts otherwise
        self.stalled = False    # the receiver did not read within WAIT; it is not waited for again
        if self.buffer:
            set_buffer(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, self.buffer)
        sock.setblocking(False)             # a timeout would have Python wait for each frame
        super().__init__(sock.fileno())

    def send(self, burst):
        """A full socket takes more when its receiver has read: wait a moment for that.

        Frames wait in the TAP's own queue meanwhile, and are not lost.
        """
        put, fd, view, until = self.put, self.fd, burst.view, None
        for start, end in zip(burst.starts, burst.ends):
            while True:
                try:
                    put(fd, view[start:end])
                    self.stalled = False
                except BlockingIOError as error:
                    now = time.monotonic()
                    until = until or now + (0.0 if self.stalled else self.WAIT)
                    if now < until:
                        self.wait(until - now)
                        continue
                    self.stalled = True
                    self.lost(self.WRITING, error)
                except OSError as error:
                    self.lost(self.WRITING, error)
                break

    def wait(self, seconds):
        """Wait until the socket takes a frame, so long at most."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        poller.poll(seconds * 1000)

    def close(self):
        self.sock.close()
        self.fd = -1


class SeqPacket(LocalSocket):
    """seqpacket://FD: a SOCK_SEQPACKET socket that the daemon inherited."""

    @staticmethod
    def normal_address(address, options):
        return number(3, 1 << 20)(address)

    def __init__(self, vnl):
        try:
            fd, sock = int(vnl.address), None
            if stat.S_ISSOCK(os.fstat(fd).st_mode) and os.get_inheritable(fd):  # as ours are not
                sock = socket.socket(AF_UNIX, SOCK_SEQPACKET, 0, os.dup(fd))
        except OSError as error:
            raise Failure(error.errno, 'descriptor %s: %s' % (vnl.address, why(error)))
        if not sock or [AF_UNIX, SOCK_SEQPACKET] != [
                sock.getsockopt(socket.SOL_SOCKET, each)
                for each in (socket.SO_DOMAIN, socket.SO_TYPE)]:
            if sock:
                sock.close()
            raise Failure(errno.EBADF, 'descriptor %s: no SOCK_SEQPACKET socket' % vnl.address)
        super().__init__(sock)

    def empty_packet(self):
        raise Ended('the other end of the socket was closed')


def normal_path(path):
    """An absolute path without . and .. and double slashes; '' stays ''. Raises ValueError."""
    path = path and '/' + os.path.normpath(os.path.join(START_DIRECTORY, path)).lstrip('/')
    if path.startswith('/proc/'):           # /proc/PID/root is no link that realpath() can follow
        raise ValueError('%s leads out of the files of this host' % printable(path))
    return path


class PathPlug:
    """What the schemes have in common whose address is a path and whose options are in brackets."""

    STYLE = '['

    @staticmethod
    def normal_address(address, options):
        """The path, absolute and plain."""
        return normal_path(address)

    @staticmethod
    def real_address(address):
        """The path without symbolic links."""
        return os.path.realpath(address) if address else ''


def pack_path(path):
    """A struct sockaddr_un (110 bytes). Raises Failure for a path that is too long."""
    binary = os.fsencode(path)
    if len(binary) > SUN_PATH_MAX:
        raise Failure(errno.ENAMETOOLONG,
                      '%s: longer than %d bytes' % (printable(path), SUN_PATH_MAX))
    return SOCKADDR_UN.pack(AF_UNIX, binary)


def unpack_path(data):
    """The path (bytes) of a struct sockaddr_un, b'' when there is none. Raises ValueError."""
    if len(data) < SOCKADDR_UN.size:
        raise ValueError('short sockaddr_un')
    family, path = SOCKADDR_UN.unpack(data[:SOCKADDR_UN.size])
    if family != AF_UNIX:
        raise ValueError('not a sockaddr_un')
    return path.partition(b'\0')[0]


class Vde(PathPlug, LocalSocket):
    """vde://PATH[PORT]: a port of a vde_switch, or of a hub:// or switch:// node.

    We bind a datagram socket and tell its name to the switch, on a stream connection to its control
    socket; the switch answers with the name of its own datagram socket. Frames are datagrams. The
    end of the stream means that the switch is gone.
    """

    OPTIONS = {'port': number(1, 0xffffff), 'portgroup': word, 'group': group_number,
               'mode': mode_option}
    DEFAULTS = {'mode': '700'}
    IDENTITY = ('port', 'portgroup')
    KEPT = True
    QUIET = True
    ANSWER_TIME = 3.0           # seconds that a switch has to let us in and to answer
    WAIT = 0.02                 # a switch never waits for us; it may for a processor: 8 % of TCP
    SWITCH_BUFFER = 45000       # bytes; the kernel doubles them: 40 frames of 1514

    @staticmethod
    def bare_option(text):
        return 'portgroup' if set(text) - set('0123456789') else 'port'

    @staticmethod
    def fallbacks(address, options):
        plain = {name: value for name, value in options.items() if name != 'portgroup'}
        return [(place, given) for place in Vde.places(address)
                for given in ([options, plain] if plain != options else [options])
                if (place, given) != (address, options)]

    @classmethod
    def open(cls, vnl, who):
        return cls(vnl, who)

    @staticmethod
    def places(path):
        """Where a switch is looked for, in this order."""
        if path:
            return [path]
        try:
            home = os.environ.get('HOME') or pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:                    # a user without a name has no home
            home = '/'
        return [os.path.join(home, '.vdeplug/default'), os.path.join(home, '.vde2/default.switch'),
                '/var/run/vde.ctl', '/tmp/vde.ctl']

    def __init__(self, vnl, who, sockets=()):
        if sockets:                         # of a Vde that was, in another process
            data, self.control = sockets
            self.buffer = None
        else:
            data = self.enter(vnl, who)
        super().__init__(data)

    def enter(self, vnl, who):
        """Become a port of the switch: the data socket, connected. Raises Failure."""
        data = socket.socket(AF_UNIX, SOCK_DGRAM)
        self.control = socket.socket(AF_UNIX, SOCK_STREAM)
        self.deadline = time.monotonic() + self.ANSWER_TIME
        name = None
        doing = 'switch ' + (printable(vnl.address) or '(default)')
        try:
            directory = self.connect_control(vnl.address, vnl.options.get('portgroup'))
            doing = 'switch ' + printable(directory)
            name = self.bind_data(data, directory, vnl.options)
            answer = self.introduce(name, vnl.options.get('port'), who, doing)
            # A switch names a socket beside its own; a false one could name any of this host, and
            # a link on the way may lead elsewhere since the rules had a look.
            place = os.path.realpath(os.path.dirname(os.fsdecode(answer)))
            if place not in vnl.places:
                raise Failure(errno.EPROTO, '%s: it names a socket elsewhere: %s' % (
                    doing, printable(os.fsdecode(answer))))
            data.connect(answer)
        except OSError as error:
            self.control.close()
            data.close()
            if isinstance(error, BlockingIOError):
                raise self.no_answer(doing, vnl.options.get('port'))
            raise Failure(error.errno or errno.EIO, '%s: %s' % (doing, why(error)))
        except Failure:
            self.control.close()
            data.close()
            raise
        finally:
            if name:
                remove_name(name)
        self.control.setblocking(False)
        # A vde_switch has room for 93 frames on the way to a port, whatever we queue for it, and
        # drops the rest: 4 % of a TCP stream, not 14, and 12 % more arrive. The node of a hub:// or
        # switch:// has room for all; waiting for it costs a tenth.
        if not os.path.basename(answer).startswith(b'fd'):
            self.buffer = self.SWITCH_BUFFER
        return data

    def quiet(self):
        """What QuietRelay.relay_local() needs; see Datagrams.quiet()."""
        return AF_UNIX, b'', 0, 0, 0.0, self.sock, self.control

    def resume(self, relay):
        """Send the frame for which a QuietRelay found no room. Raises PlugGone."""
        if relay.unsent:
            burst = Burst(0)
            burst.view = relay.views[0]
            burst.starts.append(relay.START)
            burst.ends.append(relay.START + relay.unsent)
            self.send(burst)

    @staticmethod
    def take_no_trains():
        """There are none."""
        return True

    @staticmethod
    def takes_trains():
        """There are none."""
        return False

    @staticmethod
    def known():
        """Nothing is learned."""
        return {}

    def limit_waiting(self):
        """Let the next call wait until the deadline at most. Raises OSError when that is over.

        These bound connect() as well; settimeout() would make a full backlog fail at once.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        for option in socket.SO_SNDTIMEO, socket.SO_RCVTIMEO:
            self.control.setsockopt(socket.SOL_SOCKET, option,
                                    TIMEVAL.pack(int(left), int(left % 1 * 1e6) or 1))

    def connect_control(self, path, portgroup):
        """Connect to a switch's control socket; return the switch's directory."""
        first = None
        for place in self.places(path):
            for name in filter(None, (portgroup, 'ctl')):
                if '/' in name:
                    raise Failure(errno.EINVAL, 'portgroup %s: not a name' % printable(name))
                try:
                    pack_path(os.path.join(place, name))
                    self.limit_waiting()
                    self.control.connect(os.path.join(place, name))
                    return place
                except OSError as error:
                    first = first or error
        raise first

    @staticmethod
    def bind_data(data, directory, options):
        """Bind the data socket to a free name that the switch can reach; return the name."""
        owner = os.stat(os.path.join(directory, 'ctl')).st_uid
        mode = int(options['mode'], 8) if 'mode' in options else (
            0o700 if owner in (0, os.geteuid()) else 0o777)
        umask = os.umask(0o777 & ~mode)
        try:
            for place in directory + '/.', '/var/run/vde.', '/var/tmp/vde.', '/tmp/vde.':
                for count in range(100):
                    name = '%s%05d-%05d' % (place, os.getpid(), count)
                    try:
                        data.bind(name)
                    except OSError as error:
                        if error.errno == errno.EADDRINUSE:
                            continue
                        if place.startswith('/tmp'):
                            raise
                        break
                    if 'group' in options:
                        try:
                            os.chown(name, -1, int(options['group']))
                        except OSError:
                            remove_name(name)
                            raise
                    return name
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        finally:
            os.umask(umask)

    def introduce(self, name, port, who, doing):
        """Tell the switch who we are; return the path (bytes) of its data socket."""
        request = SWITCH_REQUEST.pack(SWITCH_MAGIC, SWITCH_VERSION, int(port or 0) << 8)
        self.control.sendall(request + pack_path(name) + os.fsencode(who)[:SWITCH_TEXT_MAX])
        answer = b''
        while len(answer) < SOCKADDR_UN.size:
            self.limit_waiting()
            part = self.control.recv(SOCKADDR_UN.size - len(answer))
            if not part:
                raise Failure(errno.EBUSY if port else errno.ECONNREFUSED,
                              doing + (': port %s is taken or does not exist' % port if port
                                       else ': it let us not in'))
            answer += part
        try:
            return unpack_path(answer)
        except ValueError as error:
            raise Failure(errno.EPROTO, '%s: %s' % (doing, error))

    @staticmethod
    def no_answer(doing, port):
        """The Failure for a switch that says nothing, as vde_switch does for a bad port."""
        if port:
            return Failure(errno.EBUSY, '%s: no answer: port %s is taken or does not exist'
                           % (doing, port))
        return Failure(errno.ETIMEDOUT, doing + ': no answer')

    def fds(self):
        return {self.fd: select.EPOLLIN, self.control.fileno(): select.EPOLLIN}

    def recv(self, fd):
        if fd == self.fd:
            return super().recv(fd)
        try:
            if not self.control.recv(4096):
                self.hung_up(fd)
        except BlockingIOError:
            pass
        except OSError as error:
            raise PlugGone(error.errno, 'the switch is gone: ' + why(error))
        return EMPTY

    def close(self):
        self.control.close()
        super().close()

    def hung_up(self, fd):
        raise PlugGone(errno.ECONNRESET, 'the switch is gone')


class Ptp(PathPlug, LocalSocket):
    """ptp://PATH: one other program at the same path.

    Who comes first binds PATH and sends to PATH+, who comes second the other way round, both with
    datagrams. Newer programs wait at PATH with a SOCK_SEQPACKET socket instead: we connect to it.
    That nobody is there yet is no error: datagrams are connected when the other comes, by tend(),
    for the relay may lack the rights. When it goes we leave the names to the next one, and join
    when that is there.
    """

    WRITING = 'datagram'
    OPTIONS = {'group': group_number, 'mode': mode_option}
    DEFAULTS = {'mode': '700'}
    KEPT = True
    ANSWER_TIME = 2.0           # seconds for the byte that says that we are accepted
    NAP = 0.0003                # seconds until a full receiver is tried again
    packets = False             # the other end spoke packets before it went (see carry())

    @staticmethod
    def normal_address(address, options):
        if not address:
            raise ValueError('ptp:// needs a path')
        return normal_path(address)

    @staticmethod
    def fallbacks(address, options):
        return [(each, options) for each in (address + '+', address.rstrip('+'))]  # both names

    def __init__(self, vnl):
        path, self.name = vnl.address, None
        doing = 'ptp ' + printable(path)
        pack_path(path + '+')
        try:
            sock = self.packets and self.connect_packets(path) \
                or self.bind_first(vnl.options, (path, path + '+'), (path + '+', path)) \
                or self.connect_packets(path)
        except OSError as error:
            raise Failure(error.errno or errno.ETIMEDOUT, '%s: %s' % (doing, why(error)))
        super().__init__(sock)
        if self.name:
            self.put, self.heard = self.put_datagram, False
        else:
            self.WRITING = 'local socket'

    def bind_first(self, options, *names):
        """A datagram socket with the first free name; None when packets are spoken there."""
        sock = socket.socket(AF_UNIX, SOCK_DGRAM)
        umask = os.umask(0o777 & ~int(options.get('mode', self.DEFAULTS['mode']), 8))
        try:
            for name, peer in names:
                if self.again and remove_stale(peer, SOCK_DGRAM):
                    continue                # we wait for the next one, and do not come first
                if remove_stale(name, SOCK_DGRAM):
                    sock.bind(name)
                    self.name, self.peer = name, peer
                    rights.own(name, options.get('group'))
                    return sock
            number = errno.ENOENT if self.again else errno.EADDRINUSE
            raise OSError(number, os.strerror(number))
        except OSError as error:
            sock.close()
            if error.errno != errno.EPROTOTYPE:
                raise
            return None
        finally:
            os.umask(umask)

    def put_datagram(self, fd, frame):
        """Send a frame to the other end. Raises OSError, or PlugGone once it was there."""
        try:
            os.write(fd, frame)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNREFUSED):
                raise
            if self.heard:
                raise PlugGone(error.errno, 'the other end is gone')
            self.sock.connect(self.peer)
            os.write(fd, frame)
        self.heard = True

    def connect_packets(self, path):
        """The other dialect: connect, and wait for one byte, 0 or an errno.

        None when the other end came back with datagrams. Raises OSError, also when it is not back:
        our own datagram socket at its path would keep it away.
        """
        sock = socket.socket(AF_UNIX, SOCK_SEQPACKET)
        try:
            sock.settimeout(self.ANSWER_TIME)
            sock.connect(path)
            answer = sock.recv(1)
            if answer != b'\0':
                number = answer[0] if answer else errno.ECONNREFUSED
                raise OSError(number, os.strerror(number))
        except OSError as error:
            sock.close()
            if self.packets and error.errno == errno.EPROTOTYPE:
                return None
            raise
        Ptp.packets = True
        return sock

    def wait(self, seconds):
        if self.name:
            time.sleep(self.NAP)            # poll() does not know whom we send to
        else:
            super().wait(seconds)

    def empty_packet(self):
        if not self.name:
            self.hung_up(self.fd)

    def close(self):
        if self.fd >= 0 and self.name:
            remove_name(self.name)
        super().close()

    def hung_up(self, fd):
        raise PlugGone(errno.ECONNRESET, 'the other end is gone')

    def tend(self):
        if not self.name:
            return None
        number = self.sock.connect_ex(self.peer)
        if number == 0:
            self.heard = True
        elif self.heard and number in (errno.ENOENT, errno.ECONNREFUSED):
            raise PlugGone(number, 'the other end is gone')
        return 1.0 if self.heard else 0.2


def remove_name(path):
    """Remove a socket's name, which somebody else may have done already."""
    try:
        os.unlink(path)
    except OSError:
        pass


def identity_of(path):
    """The (device, inode) of a file."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def remove_stale(path, kind):
    """Make a path free for a socket of this kind; False when somebody listens there.

    Only a socket that nobody has open is removed. Raises OSError.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    except FileNotFoundError:
        return True
    with socket.socket(AF_UNIX, kind) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
            return False
        except BlockingIOError:             # a full backlog: alive
            return False
        except PermissionError as error:
            if error.errno == errno.EPERM:  # connected to somebody else: alive
                return False
            raise
        except FileNotFoundError:
            return True
        except ConnectionRefusedError:
            os.unlink(path)
            return True


class Living(Exception):
    """A node lives at the path already."""


class Port(Packets):
    """One member of a node: its stream connection and, once it introduced itself, its datagrams.

    A member that reads slowly gets a backlog of its own and holds up nobody; when that is full,
    its frames are dropped.
    """

    BACKLOG_MAX = 256           # frames
    BACKLOG_BYTES = 400 << 10   # of PORTS_MAX members: less than half of DATA_MAX

    def __init__(self, conn):
        self.conn, self.request = conn, b''
        self.fd, self.data, self.name, self.burst = -1, None, None, None
        self.backlog, self.waiting = [], 0      # frames, and their bytes

    def attach(self, directory, handle, mode, group):
        """Answer the request when it is complete. Raises OSError, ValueError for a bad one.

        handle is another path of the directory, which needs no rights to the directories above it.
        """
        if len(self.request) < SWITCH_REQUEST.size + SOCKADDR_UN.size:
            return
        magic, version, _ = SWITCH_REQUEST.unpack(self.request[:SWITCH_REQUEST.size])
        if (magic, version) != (SWITCH_MAGIC, SWITCH_VERSION):
            raise ValueError('not a request')
        theirs = os.fsdecode(unpack_path(self.request[SWITCH_REQUEST.size:]))
        # The names that members use; any other socket of this host is not for a member to name.
        place, base = os.path.split(theirs)
        if os.path.realpath(place) == os.path.realpath(directory):
            theirs = os.path.join(handle, base)
        elif not base.startswith('vde.'):
            raise ValueError('a socket elsewhere')
        if not stat.S_ISSOCK(os.lstat(theirs).st_mode):
            raise ValueError('not a socket')
        self.data = socket.socket(AF_UNIX, SOCK_DGRAM)
        self.data.connect(theirs)
        name = 'fd%d' % self.conn.fileno()
        bind_with_mode(self.data, os.path.join(handle, name), mode, group)
        self.name = os.path.join(handle, name)
        set_buffer(self.data, SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)
        super().__init__(self.data.fileno())
        self.conn.send(pack_path(os.path.join(directory, name)), MSG_NOSIGNAL)

    def send(self, burst):
        view, backlog = burst.view, self.backlog
        for start, end in zip(burst.starts, burst.ends):
            if not backlog:
                try:
                    os.write(self.fd, view[start:end])
                    continue
                except BlockingIOError:
                    self.changed = True
                except OSError as error:
                    self.lost('local socket', error)
                    continue
            if len(backlog) < self.BACKLOG_MAX and self.waiting < self.BACKLOG_BYTES:
                backlog.append(bytes(view[start:end]))
                self.waiting += end - start
            else:
                self.drops += 1

    def flush(self):
        """Send what waits in the backlog, as far as the member takes it."""
        done = 0
        try:
            for frame in self.backlog:
                try:
                    os.write(self.fd, frame)
                except BlockingIOError:
                    return
                except OSError as error:
                    self.lost('local socket', error)
                done += 1
        finally:
            del self.backlog[:done]
            self.waiting = sum(map(len, self.backlog))
            self.changed = not self.backlog

    def close(self):
        self.conn.close()
        if self.data:
            self.data.close()
            self.fd = -1
        if self.name:
            remove_name(self.name)


def bind_with_mode(sock, path, mode, group=None):
    """Bind a UNIX socket to a path with these permissions (int) and group (str). Raises OSError."""
    umask = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    finally:
        os.umask(umask)
    if group is not None:
        os.chown(path, -1, int(group))


class Node(PathPlug, Plug):
    """What hub://, switch://, multi:// and bonding:// have in common.

    The first to ask for a path is the node: it makes the directory, listens at PATH/ctl and serves
    the protocol of Vde, so that every VDE program joins with vde://PATH. Whoever asks for the same
    path later joins with Vde as well, and when the node goes, one of them is the next. The node
    holds a lock (flock) on the directory; that settles who. The directory belongs to the user that
    relays become.
    """

    OPTIONS = {'mode': mode_option, 'dirmode': mode_option, 'grp': group_number,
               'hashsize': number(1, 1 << 24), 'hashseed': word, 'expiretime': number(1, 1 << 31)}
    DEFAULTS = {'mode': '600', 'hashsize': '256', 'expiretime': '120'}
    KEPT = True
    PORTS_MAX = 250
    DESCRIPTORS = DESCRIPTORS_MAX + 2 * PORTS_MAX
    TRIES = 20

    @staticmethod
    def fill_in(address, options):
        return address or '/tmp/vdenode_' + user_name(), dict(options)

    @classmethod
    def open(cls, vnl, who):
        path = cls.fill_in(vnl.address, {})[0]
        for attempt in range(cls.TRIES):
            try:
                return cls(path, dict(cls.DEFAULTS, **vnl.options))
            except Living:
                try:
                    return Vde(Vnl('vde', path, {}, None, 'vde://' + path, places=vnl.places), who)
                except Failure as error:
                    if error.errno == errno.ETIMEDOUT:
                        raise
                    failure = error         # just going, or just coming
                    time.sleep(0.05)
            except OSError as error:
                raise Failure(error.errno, 'node %s: %s' % (printable(path), why(error)))
        raise failure

    def __init__(self, path, options):
        self.mode, self.group = int(options['mode'], 8), options.get('grp')
        self.groups = () if self.group is None else (int(self.group),)
        directory_mode = int(options['dirmode'], 8) if 'dirmode' in options else (
            0o2000 | self.mode | (self.mode & 0o444) >> 2)
        pack_path(path + '/fd99999')
        self.path, self.listener = path, None
        self.conns, self.ports = {}, {}     # descriptor of the connection, of the data -> Port
        self.directory = self.lock_directory(path, directory_mode)
        self.handle = '/proc/self/fd/%d' % self.directory
        self.listener = socket.socket(AF_UNIX, SOCK_STREAM)
        try:
            bind_with_mode(self.listener, path + '/ctl', self.mode)
            rights.own(path + '/ctl', self.group)       # programs let who has it reach them
            self.listener.listen(socket.SOMAXCONN)
            self.listener.setblocking(False)
        except OSError:
            self.close()
            raise
        self.macs = MacTable(float(options['expiretime']))

    def lock_directory(self, path, mode):
        """Make the directory or take over an abandoned one; its locked descriptor. Raises OSError.

        Raises Living when it belongs to a node that lives.
        """
        umask = os.umask(0)
        try:
            os.mkdir(path, mode & 0o777)
            made = True
        except FileExistsError:
            made = False
        finally:
            os.umask(umask)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if identity_of(path) != (os.fstat(fd).st_dev, os.fstat(fd).st_ino):
                raise Living                # the last node removed it meanwhile: try again
            names = os.listdir(fd)
            if not made and (os.fstat(fd).st_uid not in (os.geteuid(), rights.uid) or not all(
                    name == 'ctl' or name.startswith(('fd', '.')) for name in names)):
                raise OSError(errno.EEXIST, 'exists and is not a node\'s directory')
            for name in sorted(names):
                if not remove_stale('%s/%s' % (path, name), SOCK_STREAM if name == 'ctl'
                                    else SOCK_DGRAM) and name == 'ctl':
                    raise Living
            rights.own(fd, self.group)
            if made:
                os.fchmod(fd, mode)
            return fd
        except BlockingIOError:
            os.close(fd)
            raise Living
        except (OSError, Living):
            os.close(fd)
            raise

    def fds(self):
        wanted = {self.listener.fileno(): select.EPOLLIN}
        wanted.update(dict.fromkeys(self.conns, select.EPOLLIN))
        for fd, port in self.ports.items():
            wanted[fd] = select.EPOLLIN | (select.EPOLLOUT if port.backlog else 0)
        return wanted

    def recv(self, fd):
        if fd == self.listener.fileno():
            self.accept()
        elif fd in self.conns:
            self.listen_to(self.conns[fd])
        elif fd in self.ports:
            port = self.ports[fd]
            try:
                if port.backlog:
                    port.flush()
                    self.changed |= port.changed
                burst = port.recv(fd)
                self.settle(port)
                return self.from_port(port, burst) if burst.starts else EMPTY
            except PlugGone:
                self.remove(port)
        return EMPTY

    def accept(self):
        """A program joins."""
        try:
            conn = self.listener.accept()[0]
        except OSError:
            return
        if len(self.conns) >= self.PORTS_MAX:
            conn.close()
            return
        conn.setblocking(False)
        self.conns[conn.fileno()] = Port(conn)
        self.changed = True

    def listen_to(self, port):
        """A member introduces itself, or leaves."""
        try:
            data = port.conn.recv(4096)
            if not data:
                self.remove(port)
            elif port.data is None:
                port.request += data
                port.attach(self.path, self.handle, self.mode, self.group)
                if port.data:
                    self.ports[port.fd] = port
                    self.changed = True
        except BlockingIOError:
            pass
        except (OSError, ValueError, Failure):
            self.remove(port)

    def remove(self, port):
        """A member is gone."""
        self.conns.pop(port.conn.fileno(), None)
        self.ports.pop(port.fd, None)
        self.macs.forget(port)
        self.settle(port)
        port.close()
        self.changed = True

    def settle(self, port):
        """What a member's port dropped, the node did."""
        self.drops += port.drops
        self.unfit += port.unfit
        port.drops = port.unfit = 0

    def give(self, port, burst):
        """Send frames to one member."""
        if port.fd < 0:                     # an earlier part of the burst found it gone
            return
        try:
            port.send(burst)
            self.settle(port)
            self.changed |= port.changed
            port.changed = False
        except PlugGone:
            self.remove(port)

    def give_all(self, burst, source=None):
        """Send frames to every member but one."""
        for port in list(self.ports.values()):
            if port is not source:
                self.give(port, burst)

    def send(self, burst):
        """Frames from our own interface."""
        raise NotImplementedError

    def from_port(self, port, burst):
        """Frames from a member; returns those for our own interface."""
        return burst

    def close(self):
        if not self.listener:
            return
        for port in list(self.conns.values()):
            self.remove(port)
        self.listener.close()
        self.listener = None
        try:
            for name in os.listdir(self.directory):     # also the relay's ports
                if name == 'ctl' or name.startswith('fd'):
                    os.unlink(name, dir_fd=self.directory)
            os.rmdir(self.path)
        except OSError:
            pass
        os.close(self.directory)

    def hung_up(self, fd):
        if fd in self.conns:
            self.remove(self.conns[fd])
        elif fd in self.ports:
            self.remove(self.ports[fd])


def user_name():
    """The name of the user that we are, or the number when there is none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


class Hub(Node):
    """hub://PATH: every frame goes to everyone else."""

    def send(self, burst):
        self.give_all(burst)

    def from_port(self, port, burst):
        self.give_all(burst, port)
        return burst


class Multi(Node):
    """multi://PATH: our frames go to all members, theirs to us alone."""

    def send(self, burst):
        self.give_all(burst)


class Bonding(Node):
    """bonding://PATH: our frames go to the members in turn, theirs to us."""

    turn = 0

    def send(self, burst):
        ports = list(self.ports.values())
        if not ports:
            return
        for index, port in enumerate(ports):
            first = (index - self.turn) % len(ports)
            starts, ends = burst.starts[first::len(ports)], burst.ends[first::len(ports)]
            if starts:
                self.give(port, burst.part(starts, ends))
        self.turn = (self.turn + len(burst.starts)) % len(ports)


class Switch(Node):
    """switch://PATH: a frame goes where its (VLAN, MAC) was last seen, or to everyone else."""

    OURSELVES = 'ourselves'     # in the MAC table, for our own interface

    def send(self, burst):
        self.forward(self.OURSELVES, burst)

    def from_port(self, port, burst):
        return self.forward(port, burst)

    def forward(self, source, burst):
        """Learn and send on; returns the frames for our own interface."""
        buf, now = burst.buf, time.monotonic()
        lots = {}                           # target -> (starts, ends); None is everyone else
        last = target = None
        for start, end in zip(burst.starts, burst.ends):
            head = buf[start:start + 16]
            if head != last:
                last, target = head, self.target(source, head, now)
            lot = lots.get(target)
            if lot is None:
                lot = lots[target] = [], []
            lot[0].append(start)
            lot[1].append(end)
        ours = EMPTY
        for target, (starts, ends) in lots.items():
            part = burst if len(starts) == len(burst.starts) else burst.part(starts, ends)
            if target is None:
                self.give_all(part, source)
            if target is None or target is self.OURSELVES:
                ours = part if ours is EMPTY else merge(ours, part)
            elif target is not source:
                self.give(target, part)
        return ours

    def target(self, source, head, now):
        """Learn from a frame's first 16 bytes where it came from; return where it goes."""
        vlan = (head[14] << 8 | head[15]) & 0xfff if head[12:14] == TAG else 0
        if not head[6] & 1:
            self.macs.learn(vlan << 48 | int.from_bytes(head[6:12], 'big'), source, now)
        if head[0] & 1:
            return None
        return self.macs.find(vlan << 48 | int.from_bytes(head[:6], 'big'), now)


def merge(one, other):
    """Two parts of one burst, in the order of their places."""
    places = sorted(list(zip(one.starts, one.ends)) + list(zip(other.starts, other.ends)))
    return one.part([start for start, _ in places], [end for _, end in places])


def tag_list(value):
    """A list of VLANs A and mappings A-B, separated by : or dots; their order means nothing."""
    pairs = []
    for token in word(value).replace(':', '.').split('.'):
        here, dash, there = token.partition('-')
        check = number(*VLANS)
        pairs.append((check(here), check(there if dash else here)))
    if len(dict(pairs)) < len(pairs) or len({there for _, there in pairs}) < len(pairs):
        raise ValueError('a VLAN is named twice')
    return ':'.join(here if here == there else '%s-%s' % (here, there)
                    for here, there in sorted(pairs, key=lambda pair: int(pair[0])))


class Vlan(Plug):
    """vlan://UNTAGGED/untag=N/tag=A:B-C/trunk/qinq{VNL}: tags between the interface and a network.

    The VLAN UNTAGGED of the network is untagged at the interface; what is untagged on the network
    has the tag N at the interface (without either: untagged is untagged on both sides). VLAN A is
    A on both sides; B at the interface is C on the network. With trunk all others pass as they
    are. Everything else is dropped. qinq uses the tag of 802.1ad. Priority bits are kept.
    """

    STYLE = '/['
    OPTIONS = {'untag': number(*VLANS), 'tag': tag_list, 'trunk': flag, 'x': flag, 'qinq': flag,
               'ad': flag}
    ALIASES = {'x': 'trunk', 'ad': 'qinq'}
    IDENTITY = ('untag', 'tag', 'trunk', 'qinq')
    NESTS = True

    @staticmethod
    def normal_address(address, options):
        for alias, name in Vlan.ALIASES.items():
            if alias in options:
                options[name] = options.pop(alias)
        return number(*VLANS)(address) if address.strip('0') else ''

    @classmethod
    def open(cls, vnl, who):
        if vnl.nested is None:
            raise bad('vlan:// needs a VNL in braces')
        return cls(vnl, open_plug(vnl.nested, who))

    def __init__(self, vnl, inner):
        self.inner, self.groups = inner, inner.groups
        self.headroom = inner.headroom + TAG_SIZE
        self.tag = TAG_QINQ if 'qinq' in vnl.options else TAG
        self.trunk = 'trunk' in vnl.options
        untagged, untag = int(vnl.address or 0), int(vnl.options.get('untag', 0))
        pairs = [(0, untagged)] if untagged else []         # (VLAN here, VLAN there), 0 untagged
        pairs += [(untag, 0)] if untag else []
        for token in filter(None, vnl.options.get('tag', '').split(':')):
            here, _, there = token.partition('-')
            pairs.append((int(here), int(there or here)))
        self.outward = dict(pairs if untagged or untag else [(0, 0)] + pairs)
        self.inward = {there: here for here, there in self.outward.items()}

    @property
    def changed(self):
        """Did the descriptors change? Only the inner plug's can."""
        return self.inner.changed

    @changed.setter
    def changed(self, value):
        """The relay clears it."""
        self.inner.changed = value

    def fds(self):
        return self.inner.fds()

    def recv(self, fd):
        burst = self.inner.recv(fd)
        if burst.starts and self.inward.get(0):
            burst = spread(burst, TAG_SIZE)
        part = self.translate(burst, self.inward)
        self.unfit += len(burst.starts) - len(part.starts)
        return part

    def send(self, burst):
        self.inner.send(self.translate(burst, self.outward))

    def translate(self, burst, table):
        """Change the tags of a burst in place, by a dict of VLANs; returns the frames that pass."""
        buf, starts, ends = burst.buf, [], []
        first, last = VLANS
        for start, end in zip(burst.starts, burst.ends):
            tagged = buf.startswith(self.tag, start + 12) and end - start >= SHORTEST_TAGGED
            control = buf[start + 14] << 8 | buf[start + 15] if tagged else 0
            vlan = control & 0xfff
            new = table.get(vlan, vlan if self.trunk and first <= vlan <= last else None)
            if new is None:
                self.drops += 1
                continue
            if tagged and (new or not vlan):
                buf[start + 14:start + 16] = (control & 0xf000 | new).to_bytes(2, 'big')
            elif tagged:
                buf[start + 4:start + 16] = buf[start:start + 12]
                start += TAG_SIZE
            elif new:
                start -= TAG_SIZE
                buf[start:start + 12] = buf[start + 4:start + 16]
                buf[start + 12:start + 16] = self.tag + new.to_bytes(2, 'big')
            starts.append(start)
            ends.append(end)
        return burst.part(starts, ends)

    def close(self):
        self.inner.close()

    def hung_up(self, fd):
        self.inner.hung_up(fd)

    def mtu(self):
        return self.inner.mtu() - TAG_SIZE

    def fragments(self, mtu):
        return self.inner.fragments(mtu + TAG_SIZE)

    def tend(self):
        return self.inner.tend()


def spread(burst, gap):
    """A copy of a burst with gap free bytes before each frame."""
    copy = Burst(sum(burst.ends) - sum(burst.starts) + gap * len(burst.starts))
    place = 0
    for start, end in zip(burst.starts, burst.ends):
        place += gap
        copy.starts.append(place)
        copy.view[place:place + end - start] = burst.view[start:end]
        place += end - start
        copy.ends.append(place)
    return copy


def split_words(text):
    """The words of a command line, with a shell's quotes and backslashes and nothing else of it.

    Raises ValueError.
    """
    words, word, quote, escaped = [], None, '', False
    for c in text:
        if escaped:
            word += c if not quote or c in '"\\' else '\\' + c
            escaped = False
        elif c == '\\' and quote != "'":
            word, escaped = word or '', True
        elif quote:
            if c == quote:
                quote = ''
            else:
                word += c
        elif c in '\'"':
            word, quote = word or '', c
        elif c == ' ':
            if word is not None:
                words.append(word)
            word = None
        else:
            word = (word or '') + c
    if quote or escaped:
        raise ValueError('unfinished quote or backslash')
    if word is not None:
        words.append(word)
    if not words:
        raise ValueError('no command')
    return words


def join_words(words):
    """The one command line of which split_words() makes these words."""
    return ' '.join(word if word and not set(word) & set(' \'"\\')
                    else "'%s'" % word.replace("'", "'\\''") for word in words)


class Command(Plug):
    """cmd://COMMAND LINE: a program whose standard input and output carry the frames.

    The stream: a length (16 bits, big endian), a frame; length 0 means nothing. The program runs in
    a process group of its own, which ends with the interface, and the interface with the program.
    """

    RAW = COMMAND = KEPT = True
    headroom = STREAM_LENGTH.size
    START_TIME = 0.25           # seconds in which a program that can't start has usually ended
    END_TIME = 0.5              # seconds that its process group has to end by itself
    TEXT_MAX = 400              # bytes of its last words on stderr that are kept

    @staticmethod
    def normal_address(address, options):
        return join_words(split_words(address))

    def __init__(self, vnl):
        self.start(split_words(vnl.address))

    def start(self, words):
        """Start the program. Raises Failure when it ends at once."""
        self.text, self.pending, self.sock = b'', b'', None
        self.burst, self.fill, self.parsed = None, 0, 0
        try:
            self.sock, theirs = socket.socketpair()
            self.errors, their_errors = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self.pid = os.fork()
        except OSError as error:
            raise Failure(error.errno, '%s: %s' % (printable(words[0]), why(error)))
        if self.pid == 0:
            run_program(words, theirs.fileno(), their_errors)
        theirs.close()
        os.close(their_errors)
        set_buffer(self.sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)
        self.sock.setblocking(False)
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        try:
            if poller.poll(self.START_TIME * 1000) and not self.sock.recv(1, MSG_PEEK):
                raise ConnectionResetError
        except OSError:
            self.read_errors()
            self.close()
            text = self.last_words()
            raise Failure(errno_of(text), '%s: %s' % (printable(words[0]), text or 'ended at once'))

    def read_errors(self):
        """Keep the last of what the program says on stderr; False at its end."""
        try:
            data = os.read(self.errors, 65536)
            self.text = (self.text + data)[-self.TEXT_MAX:]
            return bool(data)
        except OSError:
            return True

    def last_words(self):
        """The last line of that, fit for a log."""
        lines = self.text.decode('utf-8', 'replace').strip().split('\n')
        return printable(lines[-1].strip())

    def fds(self):
        wanted = {self.sock.fileno(): select.EPOLLIN | (select.EPOLLOUT if self.pending else 0)}
        if self.errors >= 0:
            wanted[self.errors] = select.EPOLLIN
        return wanted

    def recv(self, fd):
        if fd == self.errors:
            if not self.read_errors():
                os.close(self.errors)
                self.errors, self.changed = -1, True
            return EMPTY
        if self.pending:
            self.flush()
        burst = self.burst = self.burst or Burst(STREAM_BUFFER)
        buf, starts, ends = burst.buf, burst.starts, burst.ends
        del starts[:], ends[:]
        self.fill -= self.parsed
        buf[:self.fill] = buf[self.parsed:self.parsed + self.fill]
        self.parsed = 0
        try:
            length = self.sock.recv_into(burst.view[self.fill:])
        except BlockingIOError:
            return EMPTY
        except OSError:
            length = 0
        if not length:
            self.hung_up(fd)
        self.fill += length
        place, fill = 0, self.fill
        while fill - place >= 2:
            start = place + 2
            end = start + (buf[place] << 8 | buf[place + 1])
            if end > fill:
                break
            if ETHERNET_HEADER <= end - start <= FRAME_MAX:
                starts.append(start)
                ends.append(end)
            else:
                self.reject(end > start)
            place = end
        self.parsed = place
        return burst

    def send(self, burst):
        if self.pending:                    # a frame that went out in part comes first
            self.drops += len(burst.starts)
            return
        buf, view, pieces = burst.buf, burst.view, []
        for start, end in zip(burst.starts, burst.ends):
            buf[start - 2:start] = STREAM_LENGTH.pack(end - start)
            pieces.append(view[start - 2:end])
        try:
            sent = self.sock.sendmsg(pieces, (), MSG_NOSIGNAL)
        except BlockingIOError:
            self.drops += len(pieces)
            return
        except OSError:
            self.hung_up(None)
        for piece in pieces:
            if sent <= 0:
                self.drops += 1             # nothing of this frame went out: drop it whole
            elif sent < len(piece):
                self.pending, self.changed = bytes(piece[sent:]), True
            sent -= len(piece)

    def flush(self):
        """Send the rest of a frame that went out in part."""
        try:
            self.pending = self.pending[self.sock.send(self.pending, MSG_NOSIGNAL):]
            self.changed = not self.pending
        except BlockingIOError:
            pass
        except OSError:
            self.hung_up(None)

    def close(self):
        if self.sock is None:
            return
        self.sock.close()
        self.sock = None
        if self.errors >= 0:
            os.close(self.errors)
        signal_group(self.pid, signal.SIGTERM)
        deadline, ended = time.monotonic() + self.END_TIME, 0
        while not ended and time.monotonic() < deadline:
            time.sleep(0.005)
            ended = os.waitpid(self.pid, os.WNOHANG)[0]
        signal_group(self.pid, signal.SIGKILL)      # also for the rest of the group
        if not ended:
            os.waitpid(self.pid, 0)

    def hung_up(self, fd):
        if self.errors >= 0:
            self.read_errors()
        raise Ended('the program ended' + ': ' * bool(self.text) + self.last_words())


class Bridge(Command):
    """Any scheme that is not ours, through an installed vde_plug, which speaks the same stream."""

    PROGRAM = 'vde_plug'

    def __init__(self, vnl):
        if not any(os.access(os.path.join(place, self.PROGRAM), os.X_OK)
                   for place in os.get_exec_path()):
            raise Failure(errno.EPROTONOSUPPORT, 'no such scheme: %s:// (other schemes need %s, '
                          'which is not installed)' % (vnl.scheme, self.PROGRAM))
        self.start([self.PROGRAM, vnl.text])


def run_program(words, stream, errors):
    """In a forked child: become a program; never returns."""
    try:
        os.setsid()
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ:
            signal.signal(number, signal.SIG_DFL)
        set_mask(SIG_UNBLOCK, SIGNALS)
        for fd, source in (0, stream), (1, stream), (2, errors):
            os.dup2(source, fd)
        os.set_blocking(2, True)
        # Not up to SC_OPEN_MAX: where that is 2 ** 30, Python before 3.10 takes minutes.
        os.closerange(3, 1 + max(map(int, os.listdir('/proc/self/fd'))))
        os.execvp(words[0], words)
    except OSError as error:
        os.write(2, os.fsencode(why(error)))
    finally:
        os._exit(127)


def signal_group(pid, number):
    """Send a signal to a process group, if it still is there."""
    try:
        os.killpg(pid, number)
    except OSError:
        pass


def errno_of(text):
    """The errno whose text a program's last words end with; EIO for others."""
    for number in errno.errorcode:
        if text.endswith(os.strerror(number)):
            return number
    return errno.EIO


# Every scheme; the keys are what a VNL may begin with.
PLUGS = {
    'bonding': Bonding,
    'cmd': Command,
    'hub': Hub,
    'macvtap': MacVtap,
    'multi': Multi,
    'null': Null,
    'ptp': Ptp,
    'seqpacket': SeqPacket,
    'switch': Switch,
    'tap': HostTap,
    'udp': Udp,
    'vde': Vde,
    'vlan': Vlan,
    'vxlan': Vxlan,
    'vxvde': Vxvde,
}


def read_vnl(text):
    """Parse a VNL by the grammar of the registered plugs. Raises Failure."""
    return parse_vnl(text, PLUGS)


def open_plug(vnl, who='vdelxcd'):
    """Open the network that a VNL names; who is told to a switch. Raises Failure."""
    return PLUGS.get(vnl.scheme, Bridge).open(vnl, who)


# ==================================================================================================
# Relay
# ==================================================================================================

HANG_UP = select.EPOLLERR | select.EPOLLHUP
READABLE = select.POLLIN


def watch(poller, watched, wanted):
    """Make epoll watch the descriptors and events of wanted, not of watched; return wanted."""
    for fd in watched.keys() - wanted.keys():
        try:
            poller.unregister(fd)
        except OSError:
            pass                            # closed: the kernel has forgotten it already
    for fd, events in wanted.items():
        if fd not in watched:
            poller.register(fd, events)
        elif watched[fd] != events:
            poller.modify(fd, events)
    return wanted


def relay(tap, plug, control=None, calm=float('inf')):
    """Carry bursts between two plugs, both ways, until one of them raises Ended or PlugGone.

    What is asked of the session meanwhile is answered by its Control. Returns when calm times in a
    row there was no more than one frame, and nobody asks.
    """
    control = control or Control(tap)
    control.plug = plug
    tap.gap, plug.gap = plug.headroom, tap.headroom
    tap.other, plug.other = plug, tap
    plug.changed = True
    routes, watched, turn, lone = {}, {}, 0, 0
    ways = (tap, plug, control.outward), (plug, tap, control.inward), (control, control, [0, 0, 0])
    with select.epoll() as poller:
        poll = poller.poll
        while True:
            if plug.changed or control.changed:
                plug.changed = control.changed = False
                routes = {fd: (source, source.recv, sink.send, tally)
                          for source, sink, tally in ways for fd in source.fds()}
                watched = watch(poller, watched, {**tap.fds(), **plug.fds(), **control.fds()})
            held = tap.held
            if lone > calm and not (control.conns or held):
                return
            ready = poll(0 if held else -1)
            lone += 1
            if turn and len(ready) > 1:     # who was left out has a turn, too
                turn %= len(ready)
                ready = ready[turn:] + ready[:turn]
            for fd, events in ready:
                if fd not in routes:
                    continue
                source, recv, send, tally = routes[fd]
                burst = recv(fd)
                if burst.starts:
                    # The next time, as many frames are read as there were, or twice as many while
                    # there may be more. So a lone frame goes out before a second look finds
                    # nothing, and nobody has to ask whether more are waiting (a pass of ping takes
                    # a sixth less CPU time than with a poll(0) before each).
                    count = len(burst.starts)
                    if count > 1 or burst.giants:
                        lone = 0
                    more = count >= source.turns
                    source.turns = min(2 * count, BURST) if more else count
                    tally[0] += count       # this and the next line: 0.3 us, 1.1 us for 64 frames
                    tally[1] += sum(burst.ends) - sum(burst.starts)
                    if control.captures:
                        control.capture(burst)
                    send(burst)
                    # Where processors are scarce the receiver was woken but does not run, and its
                    # socket overflows (277 packets of 64 bytes): so it gets 82 of 130 thousand a
                    # second, not 68, and TCP 1217 Mbit/s, not 1109; after half as many, 1031.
                    if count >= BURST:
                        os.sched_yield()
                elif events & HANG_UP:
                    source.hung_up(fd)
                if plug.changed or control.changed:
                    turn += 1
                    break                   # a closed descriptor's number may be used again
            if held and tap.held is held:
                tap.send_held()


class Control:
    """What can be asked of a session: an abstract UNIX socket, @vdelxcd/RANDOM, with packets.

    Root may ask, and the user that the daemon runs as.

    'status'    is answered with key=value texts and NULs between them
    'close'     ends the session
    'capture'   comes with a socket that keeps packets whole: frames follow there as records of
                pcap, several in a packet. Where it is full they are left out, and the relay goes
                on; how many they were is the last that is said on the connection (COUNT)
    'stop'      ends a capture

    Who holds TAP and network answers: the relay, and while there is none its keeper.

    tap, plug           what is relayed; plug is None while the network is gone
    facts               bytes, what the session knows of itself; see Order.facts()
    inward, outward     [frames, bytes, frames dropped] from the network, and from the interface;
                        of drops only those that the plugs do not count
    conns               descriptor -> socket of who asks
    captures            descriptor -> [socket for the frames, frames left out]
    lifeline            the socket whose end is ours (see Session), or None
    listener            the socket, which may be there already; None when nothing can be asked
    """

    NAME = '\0vdelxcd/'
    CONNECTIONS_MAX = 16
    BACKLOG = 128               # who may not ask waits there, too, until we turn him away
    PACKET_MAX = 64 << 10       # bytes of frames; half of what a socket takes by default
    PIECES_MAX = 1024           # for one sendmsg(): IOV_MAX; two for each frame
    TALLIES = struct.Struct('=6Q')
    COUNT = struct.Struct('=Q')

    def __init__(self, tap, facts=None, listener=None):
        self.tap, self.plug, self.facts, self.pid = tap, None, facts, os.getpid()
        self.inward, self.outward = [0, 0, 0], [0, 0, 0]
        self.conns, self.captures = {}, {}
        self.lifeline, self.listener = None, listener
        self.changed = False
        if facts is not None and not listener:
            self.listener = socket.socket(AF_UNIX, SOCK_SEQPACKET)
            # Random, which keeps others from taking the name before us.
            self.listener.bind(self.NAME + os.urandom(8).hex())
            self.listener.listen(self.BACKLOG)
            self.listener.setblocking(False)

    def fds(self):
        """Dict: descriptor -> epoll events to wait for."""
        wanted = dict.fromkeys(self.conns, select.EPOLLIN)
        for sock in self.listener, self.lifeline:
            if sock:
                wanted[sock.fileno()] = select.EPOLLIN
        return wanted

    def recv(self, fd):
        """Accept, or answer; never a frame. Raises Ended."""
        if fd in self.conns:
            self.hear(fd)
        elif self.listener and fd == self.listener.fileno():
            self.accept()
        elif take_packet(self.lifeline):    # the keeper wants to know before it ends us
            self.tell_keeper()
        return EMPTY

    def send(self, burst):
        """There is never a frame to send."""

    def hung_up(self, fd):
        """Somebody left; the keeper, or who asked."""
        if self.lifeline and fd == self.lifeline.fileno():
            raise Ended('its keeper is gone')
        if fd in self.conns:                # else recv() was done with it already
            self.hang_up(fd)

    def accept(self):
        """Somebody wants to ask; let him in if he may."""
        conn = let_in(self.listener)
        if conn and len(self.conns) >= self.CONNECTIONS_MAX:
            say_packet(conn, b'state=busy\0pid=%d' % self.pid)
            conn.close()
        elif conn:
            self.take(conn)

    def take(self, conn):
        """Hear what comes on a connection from now on."""
        self.conns[conn.fileno()] = conn
        self.changed = True

    def hang_up(self, fd):
        """Be done with a connection."""
        if fd in self.captures:
            sock, left_out = self.captures.pop(fd)
            sock.close()
            say_packet(self.conns[fd], self.COUNT.pack(left_out))
        self.conns.pop(fd).close()
        self.changed = True

    def let_go(self):
        """Be done with all connections."""
        for fd in list(self.conns):
            self.hang_up(fd)

    def hear(self, fd):
        """Do what one packet asks for; hang up when that can't be. Raises Ended."""
        conn, fds = self.conns[fd], array('i')
        try:
            request, ancillary, _, _ = conn.recvmsg(
                100, socket.CMSG_SPACE(INT.size), MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            request, ancillary = b'', ()
        for _, _, content in ancillary:
            fds.frombytes(content)
        if request == b'close':
            raise Ended('closed by request')
        done = request == b'status' and say_packet(conn, self.status())
        if request == b'capture' and fds and self.plug and fd not in self.captures:
            self.captures[fd] = [socket.socket(AF_UNIX, SOCK_SEQPACKET, 0, fds.pop()), 0]
            done = True
        for each in fds:
            os.close(each)
        if not done:
            self.hang_up(fd)

    def status(self):
        """The answer to 'status', bytes."""
        return status_text(self.facts, self.pid, self.tap.fd, b'up' if self.plug else b'waiting',
                           self.tallies())

    def tallies(self):
        """Frames, bytes and drops from the network, then those from the interface."""
        drops, unfit = drops_of(self.plug) if self.plug else (0, 0)
        mine = self.tap.unfit
        return (self.inward[:2] + [self.inward[2] + self.tap.drops - mine + unfit]
                + self.outward[:2] + [self.outward[2] + mine + drops - unfit])

    def tell_keeper(self):
        """What was counted goes on to count in the next relay."""
        say_packet(self.lifeline, self.TALLIES.pack(*self.tallies()))

    def hear_relay(self, seconds):
        """Take over what a relay counted; if it says so within this time."""
        try:
            self.lifeline.settimeout(seconds)
            self.set_tallies(self.lifeline.recv(self.TALLIES.size))
        except (OSError, struct.error):     # it was killed, or hangs
            return
        self.tap.drops = self.tap.unfit = 0     # they are in there

    def set_tallies(self, packed):
        """Go on to count from where another stopped. Raises struct.error."""
        numbers = list(self.TALLIES.unpack(packed))
        self.inward, self.outward = numbers[:3], numbers[3:]

    def capture(self, burst):
        """Give frames to those who want to see them; those of a burst came at one time."""
        now = time.time()
        seconds, micros = int(now), int(now % 1 * 1000000)
        view, packets, size = burst.view, [[]], 0
        for start, end in zip(burst.starts, burst.ends):
            length = end - start
            if size and size + length > self.PACKET_MAX or len(packets[-1]) >= self.PIECES_MAX:
                packets.append([])
                size = 0
            size += length
            packets[-1] += PCAP_RECORD.pack(seconds, micros, length, length), view[start:end]
        for fd, capture in list(self.captures.items()):
            for pieces in packets:
                try:
                    capture[0].sendmsg(pieces, (), MSG_DONTWAIT | MSG_NOSIGNAL)
                except BlockingIOError:
                    capture[1] += len(pieces) // 2
                except OSError:             # nobody reads any more
                    self.hang_up(fd)
                    break


def let_in(listener):
    """The connection of the next who wants to ask, if there is one who may; or None."""
    try:
        conn = listener.accept()[0]
    except OSError:
        return None
    if peer_of(conn)[1] in (0, rights.owner):
        return conn
    conn.close()
    return None


STATUS = (b'%s\0pid=%d\0interface=%s\0state=%s\0in_frames=%d\0in_bytes=%d\0in_drops=%d\0'
          b'out_frames=%d\0out_bytes=%d\0out_drops=%d')


def status_text(facts, pid, tap, state, tallies):
    """What a session says of itself, bytes; tap is a descriptor, state bytes.

    With few objects, for a quiet relay that is asked: dicts and texts cost it 0.2 MB.
    """
    ifreq = bytearray(IFREQ.size)
    try:
        fcntl.ioctl(tap, TUNGETIFF, ifreq)
    except OSError:
        pass                                # it is about to end
    name = IFREQ.unpack(ifreq)[0].rstrip(b'\0')
    if not name.isalnum():
        name = printable(os.fsdecode(name)).encode()
    return STATUS % (facts, pid, name, state, *tallies)


def peer_of(conn):
    """The (pid, uid, gid) of who connected, or of who listens. Raises OSError."""
    return UCRED.unpack(conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))


PACKET_TEXT_MAX = 8192      # bytes of a packet that is no capture's


def say_packet(conn, data):
    """Send a packet without waiting; False when that can't be."""
    try:
        conn.send(data, MSG_DONTWAIT | MSG_NOSIGNAL)
        return True
    except OSError:
        return False


def take_packet(sock):
    """What the other end said, b'' when that is nothing; never waits."""
    for _ in range(2):
        try:
            return sock.recv(PACKET_TEXT_MAX, MSG_DONTWAIT)
        except ConnectionResetError:        # it left without reading all, but may have spoken
            continue
        except OSError:
            break
    return b''


def drops_of(plug):
    """The frames that a plug, and those inside it, dropped: (all, those that recv() dropped)."""
    drops, unfit = drops_of(plug.inner) if hasattr(plug, 'inner') else (0, 0)
    return drops + plug.drops, unfit + plug.unfit


# ==================================================================================================
# Hand-over
# ==================================================================================================
#
# The client sends its VNL, NUL, and one descriptor; the answer is an errno in decimal and NUL. Who
# sends is not trusted: the message is read in a process of its own, nothing of it is believed
# before it was looked at, and a client that takes too long is cut off (by the server, with SIGKILL:
# even close() of a foreign descriptor can wait forever).

def receive_request(conn, deadline, data=b''):
    """Read a request that begins with data: (VNL as str, descriptor, keys as a dict of str).

    The descriptor is None for the greeting of a client that asks what we can. Raises Failure.
    """
    found = []
    try:
        while b'\0' not in data:
            if len(data) > VNL_MAX:
                raise bad('the VNL is longer than %d bytes', VNL_MAX)
            conn.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk, ancillary, flags, _ = conn.recvmsg(
                VNL_MAX + 1 - len(data), socket.CMSG_SPACE(2 * INT.size), MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array('i')
                    fds.frombytes(content[:len(content) - len(content) % fds.itemsize])
                    found.extend(fds)
            if len(found) > 1 or flags & MSG_CTRUNC:
                raise bad('more than one descriptor')
            if not chunk:
                raise Failure(errno.EPIPE, 'the client hung up before its request was complete')
            data += chunk
        text, *pairs = os.fsdecode(data).split('\0')
        keys = dict(pair.partition('=')[::2] for pair in pairs[:-1])
        if not found and 'hello' not in keys:
            raise Failure(errno.EBADF, 'no descriptor came with the request')
        return text, found.pop() if found else None, keys
    except socket.timeout:
        raise Failure(errno.ETIMEDOUT, 'no complete request within %g s' % HAND_OVER_TIME)
    except OSError as error:
        raise Failure(error.errno or errno.EIO, 'reading the request: ' + why(error))
    finally:
        for fd in found:
            os.close(fd)


def is_tun(fd):
    """Is a descriptor one of /dev/net/tun?

    /proc tells without asking the file (Linux 3.18). fstat() and ioctl() ask whoever it belongs to,
    and that may be a file system (FUSE) that never answers; then not even SIGKILL ends this
    process. They have to do where there is no /proc.
    """
    try:
        with open('/proc/self/fdinfo/%d' % fd, 'rb') as file:
            return any(line.startswith(b'iff:') for line in file)   # what only its driver says
    except OSError:
        status = os.fstat(fd)
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == TUN_RDEV


def check_tap(fd, offload):
    """The name (str) of the TAP that a descriptor is, and whether it has IFF_NAPI.

    Raises Failure for whatever else it is.

    offload says whether the client asked for an offload header; the TAP must have one then.

    TUNGETIFF reports IFF_NOFILTER in the bit of IFF_NO_PI, so a filter that accepts everything is
    attached for the moment of looking.
    """
    if not is_tun(fd):
        raise Failure(errno.EBADF, 'the descriptor is no TAP')
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise Failure(errno.EBADF, 'the TAP is not open for both reading and writing')
    instructions = array('B', ACCEPT_ALL)
    program = SOCK_FPROG.pack(1, instructions.buffer_info()[0])
    try:
        name, flags = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))
        if not flags & IFF_TAP:
            raise Failure(errno.EBADF, 'the descriptor is a TUN, not a TAP')
        fcntl.ioctl(fd, TUNATTACHFILTER, program)
        flags = IFREQ.unpack(fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size)))[1]
        fcntl.ioctl(fd, TUNDETACHFILTER, program)
    except OSError as error:
        raise Failure(errno.EBADF, 'the descriptor is no attached TAP: ' + why(error))
    if not flags & IFF_NO_PI:
        raise bad('the TAP has a packet-info header')
    if flags & (IFF_MULTI_QUEUE | IFF_DETACH_QUEUE):
        raise bad('the TAP has more than one queue, or a detached queue')
    if bool(flags & IFF_VNET_HDR) != offload:
        raise bad('the TAP has an offload header, or lacks it, against the request')
    return os.fsdecode(name.rstrip(b'\0')), bool(flags & IFF_NAPI)


def choose_network(text, rules):
    """The Vnl for a request's text, allowed by the rules. Raises Failure."""
    if not text:
        if rules.default is None:
            raise Failure(errno.ENOENT, 'no VNL, and there is no default')
        return read_vnl(rules.default.text)     # links may lead elsewhere than at the start
    vnl = read_vnl(text)
    rules.judge(vnl)
    return vnl


ABILITIES = {'version': VERSION, 'offload': 1, 'mtu': 1, 'reason': 1}  # the answer to a greeting


def reply(conn, number, **keys):
    """Answer a request with an errno, 0 for success; False when nobody hears it.

    keys are for clients that sent some themselves.
    """
    try:
        conn.settimeout(0)
        answer = [str(number)] + ['%s=%s' % pair for pair in keys.items()]
        conn.send(''.join(text + '\0' for text in answer).encode(), MSG_NOSIGNAL)
        return True
    except OSError:
        return False


def reason_for(error, asked):
    """What the client that asked for this VNL may read about a Failure; '' when that is nothing.

    Without a VNL of its own, the failure is about a network that it need not know.
    """
    told = error.told or (error.errno == errno.EACCES and 'the daemon may not open it') or ''
    return told[:LOG_VNL_MAX].encode('ascii', 'replace').decode() if asked else ''


# ==================================================================================================
# Sessions
# ==================================================================================================
#
# Two processes, one after the other. The first reads what the client asks for and judges it, and
# ends there: hear_client(). The second is forked from the untouched server, opens the network,
# gives up its rights and relays: serve_interface(); it never sees what the client wrote, and costs
# 200 kB less memory than one that did all of it. The server stands between them: it grants or
# refuses the second one by its quotas, and never holds a descriptor that came from a container.

class Order:
    """What a relay needs to know of a request that was granted.

    name        str, of the TAP
    merges      has the TAP IFF_NAPI? see MergingTap
    who         str, name and peer's pid, uid and gid, printable
    asked       str, the VNL as the client gave it, fit for the log
    container   str, what quotas count it by; see container_of()
    keys        those of the client's keys that ask for something, as a dict of str
    vnl         Vnl, allowed by the rules; of a Vnl that was packed only what plugs need is there
    """

    def __init__(self, name, merges, who, asked, container, keys, vnl):
        self.name, self.merges, self.who, self.asked = name, merges, who, asked
        self.container, self.keys, self.vnl = container, keys, vnl

    def pack(self):
        """All of it as bytes: texts with NULs between them; each level of the VNL has five."""
        keys = ['%s=%s' % (key, self.keys[key]) for key in ABILITIES
                if self.keys.get(key, '').isalnum()]
        texts = [self.name, '1' if self.merges else '', self.who, self.asked, self.container,
                 ' '.join(keys)]
        for level in self.vnl.levels():
            texts += [level.scheme, level.address, level.head, '\n'.join(
                name if value is None else '%s=%s' % (name, value)
                for name, value in level.options.items()), '\n'.join(level.places)]
        return os.fsencode('\0'.join(texts))

    @classmethod
    def unpack(cls, data):
        """The Order that was packed."""
        name, merges, who, asked, container, keys, *levels = os.fsdecode(data).split('\0')
        vnl = None
        while levels:
            scheme, address, head, fields, places = levels[-5:]
            del levels[-5:]
            options = {}
            for field in filter(None, fields.split('\n')):
                option, equals, value = field.partition('=')
                options[option] = value if equals else None
            vnl = Vnl(scheme, address, options, vnl, head, places=places.split('\n'))
        keys = dict(pair.partition('=')[::2] for pair in keys.split())
        return cls(name, merges == '1', who, asked, container, keys, vnl)

    def open_tap(self, fd):
        """The plug for a TAP's descriptor."""
        kind = OffloadTap if 'offload' in self.keys else MergingTap if self.merges else Tap
        return kind(fd, self.name)

    def facts(self, since, place):
        """What a session knows of itself, as STATUS begins; place is the daemon's socket."""
        client, uid, gid = self.who.split(', ')[-1].split()[1::2]
        return ('client=%s\0uid=%s\0gid=%s\0vnl=%s\0container=%s\0since=%d\0daemon=%s' % (
            client, uid, gid, excerpt(self.vnl.text), self.container, since, printable(place)
        )).encode()


def hear_client(conn, link, rules, deadline, data):
    """Read and judge a request, and pass it on to a relay process if the server grants one.

    data is what was read of it already, without a descriptor.

    link leads to the server, then to the relay; packets of: the container, and what relay it may
    be (to the server, see QUIET_WORD); the verdict, b'+' or a refusal (from either); the Order with
    TAP and connection (to the relay).
    """
    fd, keys, asked, who = None, {}, 'an unread request', 'somebody'
    try:
        pid, uid, gid = peer_of(conn)
        who = 'pid %d uid %d gid %d' % (pid, uid, gid)
        text, fd, keys = receive_request(conn, deadline, data)
        if fd is None:
            reply(conn, 0, **ABILITIES)
            return
        asked = excerpt(text)
        if keys.get('offload') != '1':
            keys.pop('offload', None)
        name, merges = check_tap(fd, 'offload' in keys)
        who = '%s, %s' % (printable(name), who)
        vnl = choose_network(text, rules)
        try:
            container = container_of(fd, uid)
            plug = PLUGS.get(vnl.scheme, Bridge)
            link.send(container.encode() + (
                b'' if not plug.QUIET else KEPT_WORD if plug.KEPT else QUIET_WORD))
            verdict = link.recv(LOG_LINE_MAX)
            if verdict == b'+':
                descriptors = array('i', [fd, conn.fileno()])
                link.sendmsg([Order(name, merges, who, asked, container, keys, vnl).pack()],
                             [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        except OSError as error:
            raise Failure(errno.EAGAIN, 'the daemon ended meanwhile: ' + why(error))
        if verdict != b'+':
            number, _, reason = (verdict or b'11 the daemon ended meanwhile').partition(b' ')
            raise Failure(int(number), reason.decode())
    except Failure as error:
        if fd is not None:
            os.close(fd)                # the client's next try may want the same name
        refuse(conn, error, asked, who, keys)
        say_packet(link, UNLOGGED_WORD if log.crowded else REFUSED_WORD)
        return
    os.close(fd)
    conn.close()
    link.close()    # last: it says that the relay alone has both; our own end is 0.7 ms later


# What the server hears of a part of a hand-over. A refusal was logged, or not (see Throttle).
DONE_WORD, REFUSED_WORD, UNLOGGED_WORD = b'+', b'!', b'?'
# Behind a container: the relay can be a quiet one; and its network may go and come back.
QUIET_WORD, KEPT_WORD = b'\0quiet', b'\0kept'


def container_of(fd, uid):
    """What quotas count by: the network namespace of a TAP, as /proc shows it, or the peer's uid.

    To learn the namespace takes CAP_NET_ADMIN over it (and Linux 5.5).
    """
    try:
        namespace = fcntl.ioctl(fd, TUNGETDEVNETNS, 0)
    except OSError:
        return 'uid %d' % uid
    try:
        return 'net:[%d]' % os.fstat(namespace).st_ino
    finally:
        os.close(namespace)


def refuse(conn, error, asked, who, keys):
    """Log and answer a request that failed with a Failure; without a sentence it was logged."""
    what = 'permission denied' if error.errno == errno.EACCES else 'failed'
    line = 'open interface %s: %s (%s): %s' % (what, asked, who, error)
    if error.errno == errno.EPIPE:      # a client that found no TAP says nothing: no trouble
        log.detail(line)
    elif str(error) and not log.crowded:
        log.line(LOG_NOTICE, line)
    reply(conn, error.errno, **({'reason': reason_for(error, asked)} if 'reason' in keys else {}))


def serve_interface(link, done, place, forker, keeper):
    """One interface from its opening to its end, or until a quiet relay has it.

    On done is said that it is open, and if it is another process that relays, which one and where
    that can be asked. place is the path of the daemon's socket.
    """
    link.send(b'+')
    data, ancillary, _, _ = link.recvmsg(1 << 16, socket.CMSG_SPACE(2 * INT.size),
                                         MSG_CMSG_CLOEXEC)
    if not ancillary:
        return
    fds = array('i')
    fds.frombytes(ancillary[0][2])
    conn = socket.socket(AF_UNIX, SOCK_STREAM, 0, fds[1])
    link.recv(1)                        # waits for the end of hear_client()
    link.close()
    order = Order.unpack(data)
    vnl, who = order.vnl, order.who
    plug, levels = None, [PLUGS.get(level.scheme, Bridge) for level in vnl.levels()]
    try:
        tap = order.open_tap(fds[0])
        tap.prepare()
        plug = open_plug(vnl, 'vdelxcd ' + who)
        session = Session(tap, plug, vnl, who, max(level.DESCRIPTORS for level in levels))
        session.control = make_control(tap, order.facts(int(time.time()), place))
        quiet = forker.take_over(session, data, keeper.keep)
        if not quiet:
            forker.close()
            keeper.close()
            name_process(process_name(order.name))
            if plug.GIANTS and tap.PREFIX:
                tap.kernel_sum = open_kernel_sum()
            if any(level.KEPT for level in levels):
                session.fork(conn, done)    # the client waits until nobody has conn any more
            else:
                session.give_up_rights()
    except Failure as error:
        if plug:
            plug.close()
        os.close(fds[0])
        refuse(conn, error, order.asked, who, order.keys)
        say_packet(done, UNLOGGED_WORD if log.crowded else REFUSED_WORD)
        return
    mtu, answer = order.keys.get('mtu', str(MTU)), {}
    too_big = mtu.isdecimal() and len(mtu) < 6 and plug.fragments(int(mtu))
    if 'mtu' in order.keys:
        answer['mtu'] = plug.mtu()
    if answer and too_big:
        answer['fragmented'] = 1
    if reply(conn, 0, **answer):
        conn.close()
        say_packet(done, DONE_WORD + (b'%d\0%s%s' % (
            quiet, order.container.encode(), session.control.listener.getsockname())
            if quiet else b''))
        done.close()
        log.detail('open interface: %s (%s)' % (excerpt(vnl.text), who))
        if too_big:
            log.detail('the MTU of %s does not fit: datagrams will be fragmented; it may be %d: '
                       '%s (%s)' % (mtu, plug.mtu(), excerpt(vnl.text), who))
        if not quiet:
            session.carry()
    elif quiet:
        try:
            os.kill(quiet, SIGTERM)
        except OSError:
            pass
    else:
        session.close()


def make_control(tap, facts):
    """The Control of a session; one that can't be asked anything where a socket can't be had."""
    try:
        return Control(tap, facts)
    except OSError as error:
        log.line(LOG_WARNING, 'session %d can not be asked: %s' % (os.getpid(), why(error)))
        return Control(tap)


class Session:
    """A TAP and the plug of its network, relayed until either goes.

    Where the network may come back, or something must be tidied up at the end, the relay is a child
    without rights, and this process its keeper: it waits for the child's end, and opens the network
    again when that is why. A relay that began as a quiet one has its keeper elsewhere (see Keeper).

    descriptors     how many the relay may have
    child           pid of the relay, or None when we are it
    control         what may be asked; its lifeline is a socket that hangs up when the other of
                    relay and keeper has ended
    quiet           the QuietRelay that it began as, or None
    hand_on         what has a quiet relay carry it again, its network open; False when that can't
                    be. Or None
    """

    GONE = 3                            # exit status of a relay whose network went
    LAST_WORD = 0.2                     # seconds for a relay to tell what it counted
    STEADY = 10.0                       # seconds after which a network is not one that flaps

    def __init__(self, tap, plug, vnl, who, descriptors):
        self.tap, self.plug, self.vnl, self.who = tap, plug, vnl, who
        self.descriptors = descriptors
        self.child, self.control, self.quiet, self.hand_on = None, Control(tap), None, None
        self.pause = FIRST_WAIT         # until a lost network is tried again

    def give_up_rights(self):
        """Become the user that relays are. Raises Failure."""
        try:
            rights.give_up(self.descriptors, self.plug.groups)
        except OSError as error:
            raise Failure(error.errno, 'giving up rights: ' + why(error))

    def fork(self, *others):
        """Start the relay in a child, which leaves these other sockets to us. Raises Failure.

        When we return it has given up its rights.
        """
        try:
            ours, theirs = socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
            self.child = os.fork()
        except OSError as error:
            raise Failure(error.errno, 'fork: ' + why(error))
        if self.child:
            theirs.close()
            self.control.lifeline = ours
            self.control.let_go()           # the relay has them, too
            if not ours.recv(1):
                self.end_relay()
                raise Failure(errno.EPERM, '')      # the relay logged why
            return
        status = 1
        try:
            for sock in (ours,) + others:
                sock.close()
            set_mask(SIG_UNBLOCK, SIGNALS)
            self.give_up_rights()
            theirs.send(b'+')
            self.control.lifeline = theirs
            status = self.relay()
            self.control.tell_keeper()
        except Ended:
            status = 0
        except Failure as error:
            log.line(LOG_ERR, '%s (%s)' % (error, self.who))
        except Exception as error:
            log.line(LOG_ERR, 'relay: internal error: ' + printable(repr(error)))
        finally:
            os._exit(status)

    def relay(self):
        """Relay to the end; the exit status that tells why."""
        text = '%s (%s' % (excerpt(self.vnl.text), self.who)
        try:
            if self.quiet:
                self.quiet.alternate(self)
            else:
                relay(self.tap, self.plug, self.control)
        except Ended as error:
            log.detail('close interface: %s: %s)' % (text, error))
            return 0
        except PlugGone as error:
            log.line(LOG_WARNING, 'network gone: %s: %s)' % (text, printable(str(error))))
            return self.GONE
        finally:
            self.control.let_go()

    def carry(self, ended=None, lost=False):
        """Until the interface ends: relay, or keep the relay, and open the network again.

        ended is an Ended that came already, if one did; lost: the network went already.
        """
        try:
            if ended:
                raise ended
            set_mask(SIG_UNBLOCK, SIGNALS)
            if not (self.child or lost):
                if self.relay() == self.GONE and self.quiet:
                    self.quiet.call_keeper(self)
                return
            while True:
                if not lost:
                    opened = time.monotonic()
                    if self.child_status() != self.GONE:
                        break
                    if time.monotonic() - opened > self.STEADY:
                        self.pause = FIRST_WAIT
                    self.plug.close()
                lost, Plug.again = False, True
                self.tap.set_carrier(False)
                handed_on = self.come_back()
                self.tap.set_carrier(True)
                log.line(LOG_NOTICE, 'network back: %s (%s)' % (excerpt(self.vnl.text), self.who))
                if handed_on:
                    break
        except Ended as error:
            log.detail('close interface: %s (%s: %s)' % (excerpt(self.vnl.text), self.who, error))
        finally:
            self.close()

    def child_status(self):
        """Wait for the relay's end, and tend the plug; the exit status.

        Raises Ended when a signal ended it.
        """
        lifeline, poller = self.control.lifeline, select.poll()
        poller.register(lifeline, select.POLLIN)
        try:
            wait = self.plug.tend()
            while not poller.poll(None if wait is None else wait * 1000):
                wait = self.plug.tend()
        except PlugGone as error:
            log.line(LOG_WARNING, 'network gone: %s (%s: %s)' % (
                excerpt(self.vnl.text), self.who, error))
            say_packet(lifeline, b'?')
            self.control.hear_relay(self.LAST_WORD)
            self.end_relay()
            return self.GONE
        self.control.hear_relay(0)
        status = os.waitpid(self.child, 0)[1]
        self.end_relay()
        if os.WIFSIGNALED(status):
            raise Ended('the relay was ended by signal %d' % os.WTERMSIG(status))
        return os.WEXITSTATUS(status)

    def come_back(self):
        """Open a network that went away as soon as that is possible; Ended when the TAP goes first.

        True when a quiet relay carries the session then.

        The longest wait keeps the promise that traffic is back within 6 s of the network's return,
        even when one attempt met a switch that said nothing (Vde.ANSWER_TIME); the random part
        keeps many sessions from coming back at the same moment.
        """
        while True:
            self.wait(time.monotonic() + self.pause * (0.75 + os.urandom(1)[0] / 512))
            self.pause = min(self.pause * 2, LONGEST_WAIT)
            try:
                self.plug = open_plug(self.vnl, 'vdelxcd ' + self.who)
                if self.hand_on and self.hand_on():
                    return True
                self.fork()
                return False
            except Failure:
                self.plug.close()

    def wait(self, deadline):
        """Throw away what comes from the interface, and answer who asks. Raises Ended."""
        sources, poller = (self.tap, self.control), select.poll()
        self.control.changed, watched = True, []
        while time.monotonic() < deadline:
            if self.control.changed:
                self.control.changed = False
                for fd in watched:
                    poller.unregister(fd)
                routes = {fd: each for each in sources for fd in each.fds()}
                watched = list(routes)
                for fd in routes:
                    poller.register(fd, select.POLLIN)
            for fd, events in poller.poll(max(deadline - time.monotonic(), 0) * 1000):
                burst = routes[fd].recv(fd)
                if burst.starts:
                    frames, lost = len(burst.starts), self.control.outward
                    lost[:] = lost[0] + frames, lost[1] + sum(burst.ends) - sum(
                        burst.starts), lost[2] + frames
                elif events & ~select.POLLIN:
                    routes[fd].hung_up(fd)
                if self.control.changed:
                    break

    def close(self):
        """End the relay, leave the network, and let the interface go."""
        self.end_relay()
        self.plug.close()
        if self.quiet:
            self.quiet.leave_keeper()
        self.tap.close()

    def end_relay(self):
        """End the relay, if there is one: it has nothing to tidy up."""
        try:
            # Only a child that was not waited for still has its pid for sure.
            if self.child and os.waitpid(self.child, os.WNOHANG)[0] == 0:
                os.kill(self.child, signal.SIGKILL)
                os.waitpid(self.child, 0)
        except ChildProcessError:
            pass
        self.child = None
        if self.control.lifeline:
            self.control.lifeline.close()
            self.control.lifeline = None


def name_process(name):
    """Show a name (bytes) in ps and top, which the kernel cuts after 15."""
    try:
        comm = os.open('/proc/self/comm', os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(comm, name)
        finally:
            os.close(comm)
    except OSError:
        pass


RELAY = b'vdelxcd:'                     # before the name of the interface


def process_name(interface):
    """The name (bytes) of the process that relays an interface."""
    return RELAY + os.fsencode(printable(interface))


# ==================================================================================================
# Quiet relays
# ==================================================================================================
#
# Most interfaces are idle most of the time, and what an idle one costs is memory that its process
# shares with no other: every page that Python writes to, if only to count references. That is
# 1.7 MB for serve_interface(), and 1.8 MB when it has to keep a relay. So where a network needs no
# more than its sockets, the relay begins as a quiet one, with 0.27 MB: one method carries a frame
# at a time, in a process forked from one (the forker) that did nothing before but fork, and, once,
# all that a quiet relay does: what the interpreter keeps about code that runs is there then, and
# shared. It answers sooner, too: a ping takes a third less time than through relay(). When frames
# come in bursts it becomes a relay as all others are, until they come one by one again.
#
# Where the network may go and come back, one process (the keeper) waits for all quiet relays at
# once. It has a socket to each, and its TAP, which it does nothing with. A relay that lost its
# network says so and ends. A child of the keeper then opens the network again, has the forker make
# another quiet relay, and ends as well. (The relay could send its TAP only then; but who sends
# descriptors as its user, anywhere on this host, can keep it from that: unix(7), ETOOMANYREFS.)

FORKER, KEEPER = b'vdelxcd-forker', b'vdelxcd-keeper'
# An order for a quiet relay: name of the process; bytes of the TAP's offload header; kind of
# socket, VXLAN header, port of all peers, index of the interface, seconds until a MAC is forgotten
# (see Datagrams.quiet()); what was counted so far (see Control.tallies()); is the TAP a MergingTap;
# size of the facts. Then come facts and Order. With them come TAP, two sockets of the plug,
# Control's, one for the answer, and the way to the keeper, which without one is that again.
QUIET_ORDER = struct.Struct('=15sBB9pHId6QBH')
QUIET_DESCRIPTORS, KEPT_DESCRIPTORS = struct.Struct('6i'), struct.Struct('3i')
QUIET_ORDER_MAX = 2048          # bytes; what needs more is relayed as usual
LEAVING_WORD = b'-'             # from a relay to the keeper: it ends; else what was counted
POOL_SIZE, POOL_HEADER, POOLED_MAX = 16384, 48, 512     # bytes, of CPython 3.10
BYTES_SIZE, TUPLE_SIZE, TUPLE_MAX = 33, 40, 200         # without contents; of those that are kept
GAPS_MAX = 50000                # ten times what there are


class Helper:
    """A process beside the server, which starts it when it is first needed.

    pid         of it, or None
    links       sockets that lead to it; none when there is no such process
    """

    LINKS = 1
    MAKES = 'nothing'           # what there is not when it can't be started
    PATIENCE = 1.0              # seconds for it to do its part

    def __init__(self):
        self.pid, self.links = None, []

    def start(self, run_child, *more):
        """Start it if that can be; run_child is that of Server, more what work() is given."""
        theirs = []

        def begin():
            self.close()                    # our ends, that were forked with it
            self.work(*theirs, *more)
        try:
            for _ in range(self.LINKS):
                ours, far = socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
                ours.settimeout(self.PATIENCE)
                self.links.append(ours)
                theirs.append(far)
            self.pid = run_child(begin)
        except OSError as error:
            log.line(LOG_WARNING, 'fork: no %s: %s' % (self.MAKES, why(error)))
            self.close()
        for sock in theirs:
            sock.close()

    def close(self):
        """Have no more to do with it: it ends when that is true of all."""
        for sock in self.links:
            sock.close()
        self.pid, self.links = None, []


class Forker(Helper):
    """The process that quiet relays are forked from, for others.

    A byte on the first of links has it fork; on the second lies the order for the process that it
    forks.
    """

    LINKS, MAKES = 2, 'quiet relays'
    ANSWER_MAX = 20             # bytes: digits of a relay's pid

    def take_over(self, session, packed, keep):
        """Have a quiet relay carry a session; its pid, or None when that can't be.

        packed is the packed Order of the session. For one that has to be kept, keep is called: see
        Keeper.keep().
        """
        tap, plug, control, lifeline = session.tap, session.plug, session.control, None
        if not self.links or not control.listener or not plug.QUIET:
            return None
        wake, orders = self.links
        try:
            *head, own, heard = plug.quiet()
            order = QUIET_ORDER.pack(
                process_name(tap.name), tap.PREFIX, *head, *control.tallies(),
                isinstance(tap, MergingTap), len(control.facts)) + control.facts + packed
            if len(order) > QUIET_ORDER_MAX:
                return None
            answer, theirs = socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
            with answer:
                with theirs:
                    lifeline = theirs
                    if plug.KEPT:
                        lifeline = keep(order, tap.fd, control.listener.fileno())
                    if not lifeline:
                        return None
                    fds = array('i', [tap.fd] + [sock.fileno() for sock in (
                        own, heard, control.listener, theirs, lifeline)])
                    orders.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                wake.send(b'+')
                return self.hear(answer)
        except (OSError, ValueError):
            return None
        finally:
            if lifeline:
                lifeline.close()

    def hear(self, answer):
        """Hear b'+' and then the pid of a relay that begins. Raises OSError, ValueError."""
        answer.settimeout(self.PATIENCE)
        word = heard = b'+'
        try:
            while heard == b'+':
                word = heard = answer.recv(self.ANSWER_MAX)
        except socket.timeout:
            answer.shutdown(socket.SHUT_RD)         # it can't begin any more
            while heard:
                word, heard = heard, answer.recv(self.ANSWER_MAX)
        return int(word)

    def work(self, wake, orders):
        """What it does."""
        fork_relays(wake, orders)


class Keeper(Helper):
    """The process that opens networks again which quiet relays lost.

    It keeps its rights. A packet on links is an order for a quiet relay, with the sockets of a Kept
    and its TAP.
    """

    MAKES = 'keeper of quiet relays'

    def keep(self, order, tap, listener):
        """The end of a socket with which a quiet relay calls; None when that can't be.

        tap and listener (Control's) are descriptors that the next one needs.
        """
        if not self.links:
            return None
        lifeline, theirs = socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
        try:
            with theirs:
                fds = array('i', [theirs.fileno(), tap, listener])
                self.links[0].sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            lifeline.settimeout(self.PATIENCE)
            if lifeline.recv(1):
                return lifeline
        except OSError:
            pass
        lifeline.close()
        return None

    def work(self, orders, forker):
        """What it does, until nobody sends orders any more and no relay is left."""
        set_mask(SIG_BLOCK, SIGNALS)
        signal.signal(SIGCHLD, signal.SIG_IGN)      # nobody waits for the children
        name_process(KEEPER)
        if resource:                        # three descriptors for each relay
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        poller, kept = select.poll(), {}    # descriptor of its socket -> Kept
        poller.register(orders, READABLE)
        while kept or orders.fileno() >= 0:
            for fd, _ in poller.poll():
                if fd == orders.fileno():
                    one = self.take(orders)
                    if orders.fileno() < 0:
                        poller.unregister(fd)
                else:
                    poller.unregister(fd)
                    one = kept.pop(fd).hear([orders] + list(kept.values()), forker)
                if one:
                    kept[one.sock.fileno()] = one
                    poller.register(one.sock, READABLE)

    @staticmethod
    def take(orders):
        """Whom the next order is for: a Kept, or None when there are no descriptors left for it.

        Closes orders when nobody sends any.
        """
        order, ancillary, _, _ = orders.recvmsg(
            QUIET_ORDER_MAX, socket.CMSG_SPACE(KEPT_DESCRIPTORS.size), MSG_CMSG_CLOEXEC)
        if not order:
            orders.close()
        fds = array('i', ancillary[0][2] if ancillary else b'')
        if len(fds) == 3:
            one = Kept(order, *fds)
            if say_packet(one.sock, b'+'):
                return one
            one.close()
        else:
            for fd in fds:
                os.close(fd)
        return None


class Kept:
    """A quiet relay as its keeper knows it.

    order       what it was ordered, bytes
    sock        what it calls with
    tap         descriptor
    listener    that of Control's socket
    pause       seconds until its network is tried again, should that flap
    since       when we knew it first
    """

    def __init__(self, order, lifeline, tap, listener, pause=FIRST_WAIT):
        self.order, self.tap, self.listener, self.pause = order, tap, listener, pause
        self.sock = socket.socket(AF_UNIX, SOCK_SEQPACKET, 0, lifeline)
        self.since = time.monotonic()

    def close(self):
        """Let go of everything; the interface vanishes before the session's name."""
        os.close(self.tap)
        os.close(self.listener)
        self.sock.close()

    def hear(self, others, forker):
        """It calls, or has ended: what is kept from now on, or None.

        others are all that the keeper has besides.
        """
        try:
            word = self.sock.recv(2, MSG_PEEK | MSG_DONTWAIT)
        except OSError:
            word = b''
        if word in (b'', LEAVING_WORD):
            self.close()
            return None
        return self.bring_back(others, forker)

    def bring_back(self, others, forker):
        """Fork who opens the network again; what is kept then."""
        pause = FIRST_WAIT if time.monotonic() - self.since > Session.STEADY else self.pause
        try:
            ours, theirs = socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
            with theirs:
                if not os.fork():
                    for other in others + [ours]:
                        other.close()
                    self.come_back(theirs, pause, forker)
        except OSError as error:
            log.line(LOG_ERR, 'fork: ' + why(error))
            time.sleep(PAUSE)               # it still calls
            return self
        self.sock.close()
        return Kept(self.order, ours.detach(), self.tap, self.listener,
                    min(2 * pause, LONGEST_WAIT))

    def come_back(self, lifeline, pause, forker):
        """Open the network again, in a process of its own, for a quiet relay or for ourselves."""
        who = 'an interface'
        try:
            signal.signal(SIGCHLD, signal.SIG_DFL)
            facts, packed = split_order(self.order)
            order = Order.unpack(packed)
            who = order.who
            name_process(process_name(order.name))
            tallies = self.sock.recv(Control.TALLIES.size)
            self.sock.close()
            session = Session(order.open_tap(self.tap), Null(order.vnl), order.vnl, who,
                              DESCRIPTORS_MAX)
            control = session.control = Control(
                session.tap, facts, socket.socket(AF_UNIX, SOCK_SEQPACKET, 0, self.listener))
            control.set_tallies(tallies)

            def hand_on():
                quiet = forker.take_over(session, packed, lambda *_: lifeline)
                lifeline.close()
                if quiet:
                    control.let_go()
                else:
                    forker.close()
                return quiet
            session.pause, session.hand_on = pause, hand_on
            session.carry(lost=True)
        except Exception as error:
            log.line(LOG_ERR, 'lost interface: %s (%s)' % (printable(repr(error)), who))
        finally:
            os._exit(0)


def split_order(order):
    """The facts and the packed Order in an order for a quiet relay."""
    end = QUIET_ORDER.size + QUIET_ORDER.unpack_from(order)[-1]
    return order[QUIET_ORDER.size:end], order[end:]


def fork_relays(wake, orders):
    """What the forker does; and in its children, what a quiet relay does.

    What it writes to while it waits and forks is no longer shared with its children: next to
    nothing.
    """
    set_mask(SIG_BLOCK, SIGNALS)            # until there is a relay that can tidy up
    signal.signal(SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    name_process(FORKER)
    rights.limit(DESCRIPTORS_MAX, forks=True)
    rehearse()
    gaps = fill_gaps()                      # full as long as it is there: 70 kB
    relay = QuietRelay(orders, rights.uid, rights.gid, (), resource and resource.RLIMIT_NPROC)
    if hasattr(gc, 'freeze'):               # Python 3.7
        gc.freeze()                         # no list that goes on where a child writes: 12 kB
    # These are looked up before, too; close() of a socket would be 28 kB.
    begin, carry, read, fork, close = relay.begin, relay.carry, os.read, os.fork, os.close
    wake, orders_fd = wake.detach(), orders.fileno()
    while read(wake, 1):
        try:
            if not fork():
                break
        except OSError:                     # who waits for an answer hears that there is none
            for fd in relay.take_order():
                close(fd)
    else:
        return
    close(wake)
    way = begin()
    if way:
        close(orders_fd)
        carry(way)


def fill_gaps():
    """Fill the memory that is free here and there; a list of what fills it.

    What is made from then on lies side by side, on few pages: each size begins a new pool.
    """
    gaps = []
    for _ in range(256):            # each has a lock, of libc's memory, as fork() makes them: 32 kB
        gaps.append(open(os.devnull, 'rb'))
        gaps[-1].close()
    del gaps[-16:]
    for _ in range(100):            # of these, and of tuples, some are kept when they end: 20 kB
        gaps += [], {}
    size = 16
    while size < POOLED_MAX:        # the end of a range() would leave a gap
        size += 8                   # every other is a pool's; there are tuples for each
        while len(gaps) < GAPS_MAX:
            if size < TUPLE_SIZE:
                gaps.append(float(size))
            elif TUPLE_SIZE < size <= TUPLE_MAX:
                gaps.append((size,) * ((size - TUPLE_SIZE) // 8))
            else:
                gaps.append(bytes(size - BYTES_SIZE))
            if id(gaps[-1]) % POOL_SIZE < POOL_HEADER + size:
                break
    return gaps


class QuietRelay:
    """The relay of Datagrams or a Vde while frames come one by one: at most FRAMES in WINDOW.

    With few objects: each that is used is written to, and the page that it lies in is no longer
    shared. So here are three long methods where ten would read better: they made 0.8 MB of 0.45. A
    method that is called takes two pages; so what writes to the TAP stands here twice. And what
    they use they find in tuples that are made before the fork: to look it up writes to names,
    types and modules as well (85 kB), and to constants, of which there are new ones (number * 1).

    kits        kind of socket -> two such sockets, made before the fork, whose places those of the
                plug take; the method that relays; its tools
    own, heard  the sockets; of a Vde, where frames come and go, and what is connected to the switch
    tools       of relay_overlay() or relay_local()
    order       bytearray with the order, of size bytes
    head        what QUIET_ORDER finds in it
    order_tools, begin_tools, calls     what take_order() and begin() use; what begin() calls
    lifeline    descriptor that leads to the keeper, or None
    unsent      bytes of the frame from the TAP for which there was no room, or 0
    failed      errno of the frame to the group that could not be sent, or 0
    listener    a template, too: Control's socket takes its place
    asker       another, for the connection of who asks; asker_tools has what is done with both
    tap, control    descriptors; that of the listener
    macs        MAC (int) -> (peer, when it was learned)
    tallies     as Control.tallies() has them
    asking      the connection of who asks for more than the status
    kernel_sum  a KernelSum for the Session, or None
    is_grown    is there a Session, which relays in turns with us?
    """

    FRAMES, WINDOW = 64, 0.004          # seconds: 16,000 frames a second, or a burst, are more
    MACS = 256                  # of peers; more is not quiet
    START = 16                  # bytes before a frame: room for a VXLAN or an offload header
    ASK_TIME = 0.05             # seconds for who connects to say what he wants
    CALM = 100                  # frames in a row that came one by one: twice so many are calm

    def __init__(self, orders, uid, gid, groups, limit):
        """For an order from a socket, by this user, without what is limited.

        uid is None when we stay who we are; limit is a number for setrlimit(), or None.
        """
        # From the TAP, from the network; a byte more than the longest frame, to know longer ones.
        self.buffers = [bytearray(self.START + FRAME_MAX + 1) for _ in range(2)]
        self.views = [memoryview(each) for each in self.buffers]
        self.listener, self.asker = listener, asker = [
            socket.socket(AF_UNIX, SOCK_SEQPACKET) for _ in range(2)]
        asker.settimeout(self.ASK_TIME)
        self.asker_tools = (
            listener._accept, asker.fileno(), asker.getsockopt,
            (socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size),
            bytes(4), rights.owner.to_bytes(4, sys.byteorder), asker.recv, asker.send,
            os.dup2, os.close, os.getpid, QUIET_ORDER.size)
        pairs = [[socket.socket(kind, SOCK_DGRAM), socket.socket(kind, other)] for kind, other in (
            (AF_INET, SOCK_DGRAM), (AF_INET6, SOCK_DGRAM), (AF_UNIX, SOCK_STREAM))]
        for sock in sum(pairs, [listener, asker]):
            os.dup2(0, sock.fileno(), False)            # no socket that all would share
        self.spare = os.dup(0)  # the place of relay()'s epoll
        self.tap = os.dup(0)    # the TAP takes its place
        self.macs, self.tallies, self.is_grown = {}, [0] * 6, False
        self.control = listener.fileno()
        self.own = self.heard = self.tools = self.head = self.asking = self.lifeline = None
        self.kernel_sum, self.failed, self.unsent = None, 0, 0
        self.order, self.size = bytearray(QUIET_ORDER_MAX), 0
        self.order_tools = (
            orders.recvmsg_into, ([self.order], 64, MSG_DONTWAIT | MSG_CMSG_CLOEXEC),
            QUIET_DESCRIPTORS.unpack)
        self.begin_tools = (
            QUIET_ORDER.unpack_from, os.write, os.dup2, os.close, os.open,
            (os.fsencode('/proc/self/comm'), os.O_WRONLY | os.O_CLOEXEC), os.getpid)
        self.calls = []
        if uid is not None:
            uid, gid = uid * 1, gid * 1
            self.calls += [(os.setgroups, (groups,)), (os.setresgid, (gid, gid, gid)),
                           (os.setresuid, (uid, uid, uid))]
        if limit is not None:
            self.calls.append((resource.setrlimit, (limit, tuple([0, 0]))))
        poller, (out_buf, buf), (out, view) = select.poll(), self.buffers, self.views
        # What reads these tells EAGAIN by None.
        read, take = [open(fd, 'rb', 0, closefd=False).readinto
                      for fd in (self.tap, pairs[-1][0].fileno())]
        tools = (poller.poll, poller.register, time.monotonic, read, os.write, buf, out, view,
                 FRAME_MAX * 1, MergingTap.SHORTEST, self.START, self.FRAMES, self.WINDOW * 1)
        self.kits = {kind: (own, heard, QuietRelay.relay_overlay, tools + (
            own.fileno(), heard.fileno(), own.recvfrom_into, heard.recvfrom_into, own.sendto,
            own.getsockname, heard.getsockname, heard.getpeername, int.from_bytes, out_buf,
            out_buf.startswith, buf.startswith, self.MACS, Vxvde.LEARN_AGAIN * 1))
                     for kind, (own, heard) in zip((AF_INET, AF_INET6), pairs)}
        own, heard = pairs[-1]
        self.kits[AF_UNIX] = (own, heard, QuietRelay.relay_local, tools + (
            own.fileno(), heard.fileno(), take, view[self.START:]))

    def take_order(self):
        """Take the next order; the descriptors that came with it. Raises BlockingIOError."""
        receive, where, unpack = self.order_tools
        self.size, ancillary, _, _ = receive(*where)
        return unpack(ancillary[0][2])

    def begin(self):
        """Take an order, become a process of its own, and say that we begin.

        Returns the method that relays; None when that can't be: who sent the order relays by itself
        then.
        """
        unpack, write, dup2, close, open_, comm, getpid = self.begin_tools
        try:
            while True:
                fds = tap, own, heard, control, answer, lifeline = self.take_order()
                try:
                    write(answer, b'+')
                    break
                except OSError:             # nobody waits for us: it took too long
                    for fd in fds:
                        close(fd)
            self.head = head = unpack(self.order)
            name, offload, kind, header, port = head[:5]
            self.own, self.heard, way, self.tools = self.kits[kind]
            if kind == AF_UNIX:
                self.lifeline = lifeline
                self.tallies[:] = head[7:13]
            else:
                close(lifeline)
            dup2(tap, self.tap, False)
            dup2(own, self.own.fileno(), False)
            dup2(heard, self.heard.fileno(), False)
            dup2(control, self.control, False)
            for fd in tap, own, heard, control:
                close(fd)
            try:                            # as name_process(), with 12 kB less
                fd = open_(*comm)
                write(fd, name)
                close(fd)
            except OSError:
                pass
            if offload and header and not port:
                self.kernel_sum = open_kernel_sum()
            for call, arguments in self.calls:
                call(*arguments)
            write(answer, b'%d' % getpid())
            close(answer)
            return way
        except (OSError, ValueError):       # ValueError as in Rights.limit()
            return None

    def relay_overlay(self, wait=None):
        """Carry Datagrams' frames until there is more to do, or none for wait ms. Raises Ended."""
        (poll, register, monotonic, read, write, buf, out, view, longest, kept, start, frames,
         window, own_fd, heard_fd, take_own, take_heard, send, own_name, heard_name, way_name,
         from_bytes, out_buf, goes_to, begins, peers, again) = self.tools
        control, macs, tallies, tap = self.control, self.macs, self.tallies, self.tap
        _, prefix, kind, header, port, _, expire = self.head[:7]
        over, merges = len(header), self.head[13]
        before, first, kept = start - prefix, start - over, kept + over
        least, most = over + ETHERNET_HEADER, over + longest
        into, place = out[before:], view[first:]
        if again > expire / 2:
            again = expire / 2
        # The frames of a conversation begin alike; what is known of them is believed until then.
        # A ping takes 10 % less time.
        seen_peer = target_peer = seen = target = None
        until = 0
        out_buf[first:start] = header
        if port or not over:
            own_port, everyone, fds = None, way_name(), (own_fd, tap, control)
        else:                               # an echo before the next frame
            own_port, everyone, fds = own_name()[1], heard_name(), (heard_fd, own_fd, tap, control)
        for fd in fds:
            register(fd, READABLE)
        since = count = sent = ours = 0
        while True:
            ready = poll(wait)
            if not ready:
                return
            for fd, events in ready:
                now = monotonic()
                if now - since > window:
                    since, count = now, 0
                count += 1
                if count > frames or events != READABLE:
                    return
                if now > until:
                    seen_peer = target_peer = None
                    until = now + again
                if fd == control:
                    if not self.answer():
                        return
                    continue
                if fd != tap:
                    try:
                        length, peer = (take_own if fd == own_fd else take_heard)(
                            place, 0, MSG_DONTWAIT)
                    except BlockingIOError:
                        continue
                    except OSError:
                        tallies[2] += 1
                        return
                    if peer != seen_peer or not begins(seen, first) or (
                            not least <= length <= most):
                        # An echo is known by the MAC that sent what went out last, or by where one
                        # came from; else as Vxvde does, with a socket, and 28 kB less is shared.
                        if peer[1] == own_port and (peer == ours or sent and length >= least and (
                                buf[start + 6:start + 12] == out_buf[start + 6:start + 12]) or (
                                    is_ours(peer, kind))):
                            ours = peer
                            continue
                        if own_port and buf[first] == BULK_FLAGS:       # it will be asked again
                            return
                        seen_peer = target_peer = None
                        if not least <= length <= most and (length != over or not over) or (
                                not begins(header, first) if over else peer[:2] != everyone[:2]):
                            tallies[2] += 1
                            continue
                        source = (peer[0], port) + peer[2:] if port else peer
                        if length < least:          # it leaves
                            for mac in [mac for mac in macs if macs[mac][0] == source]:
                                del macs[mac]
                            continue
                        if over and not buf[start + 6] & 1:
                            macs[from_bytes(buf[start + 6:start + 12], 'big')] = source, now
                        seen, seen_peer = bytes(buf[first:start + 12]), peer
                    if prefix:
                        buf[before:start] = bytes(prefix)
                    end = first + length
                    if merges and length >= kept and is_kept(buf, start):
                        buf[end] = 0
                        end += 1
                    try:
                        write(tap, view[before:end])
                    except OSError as error:
                        tallies[2] += 1
                        if FATES['TAP write'].get(error.errno) is END:
                            return
                    finally:
                        tallies[0] += 1
                        tallies[1] += length - over
                    if len(macs) > peers:
                        return
                    continue
                try:
                    length = read(into)
                except OSError:             # the next relay has it again
                    return
                if length is None:
                    continue
                length -= prefix
                if length < ETHERNET_HEADER or length > longest:
                    tallies[5] += length > 0
                    continue
                if prefix:
                    out_buf[first:start] = header
                if not target_peer or not goes_to(target, start):
                    target = bytes(out_buf[start:start + 6])
                    entry = macs.get(from_bytes(target, 'big'))
                    target_peer = entry[0] if entry and now - entry[1] < expire else everyone
                sent = over + length
                try:
                    send(out[first:start + length], MSG_DONTWAIT, target_peer)
                except OSError as error:
                    tallies[5] += 1
                    self.failed = error.errno if target_peer is everyone else 0
                    return
                finally:
                    tallies[3] += 1
                    tallies[4] += length

    def relay_local(self, wait=None):
        """Carry a Vde's frames, in the same way."""
        (poll, register, monotonic, read, write, buf, out, view, longest, kept, start, frames,
         window, data, stream, take, place) = self.tools
        control, tap, tallies = self.control, self.tap, self.tallies
        prefix, merges = self.head[1], self.head[13]
        before = start - prefix
        into = out[before:]
        for fd in data, tap, control, stream:
            register(fd, READABLE)
        since = count = 0
        while True:
            ready = poll(wait)
            if not ready:
                return
            for fd, events in ready:
                now = monotonic()
                if now - since > window:
                    since, count = now, 0
                count += 1
                if count > frames or events != READABLE or fd == stream:
                    return
                if fd == control:
                    if not self.answer():
                        return
                    continue
                try:
                    length = take(place) if fd == data else read(into)
                except OSError:             # the next relay has it again
                    return
                if length is None:
                    continue
                if fd == data:
                    if not ETHERNET_HEADER <= length <= longest:
                        tallies[2] += length > 0
                        continue
                    if prefix:
                        buf[before:start] = bytes(prefix)
                    end = start + length
                    if merges and length >= kept and is_kept(buf, start):
                        buf[end] = 0
                        end += 1
                    try:
                        write(tap, view[before:end])
                    except OSError as error:
                        tallies[2] += 1
                        if FATES['TAP write'].get(error.errno) is END:
                            return
                    finally:
                        tallies[0] += 1
                        tallies[1] += length
                    continue
                length -= prefix
                if not ETHERNET_HEADER <= length <= longest:
                    tallies[5] += length > 0
                    continue
                try:
                    write(data, out[start:start + length])
                except BlockingIOError:
                    self.unsent = length
                    return
                except OSError:
                    tallies[5] += 1
                    return
                finally:
                    tallies[3] += 1
                    tallies[4] += length

    def answer(self):
        """Answer who wants to know the status; False when somebody else should.

        As let_in() and Control do, but in one piece, with tools at hand: 76 kB, not 250.
        """
        if self.is_grown:
            return False
        (accept, fd, getsockopt, peer, root, owner, recv, send, dup2, close, getpid,
         start) = self.asker_tools
        try:
            conn = accept()[0]
            dup2(conn, fd, False)
            close(conn)
            if getsockopt(*peer)[4:8] in (root, owner):         # the uid of struct ucred
                request = recv(7, MSG_PEEK | MSG_DONTWAIT)      # a byte more than 'status'
                if request == b'status':
                    facts = self.order[start:start + self.head[-1]]
                    send(status_text(facts, getpid(), self.tap, b'up', self.tallies),
                         MSG_DONTWAIT | MSG_NOSIGNAL)
                elif request:
                    self.asking = self.asker
        except socket.timeout:
            self.asking = self.asker
        except OSError:
            pass
        if not self.asking:
            dup2(0, fd, False)
        return not self.asking

    def carry(self, relay):
        """Relay until the interface ends; relay is that of the two methods that fits."""
        ended = None
        try:
            set_mask(SIG_UNBLOCK, SIGNALS)
            relay(self)
        except Ended as error:
            ended = error
        set_mask(SIG_BLOCK, SIGNALS)
        self.grow().carry(ended)

    def grow(self):
        """A Session that goes on where we stop."""
        self.is_grown = True
        facts, packed = split_order(bytes(self.order[:self.size]))
        order, sockets = Order.unpack(packed), (self.own, self.heard)
        tap = order.open_tap(self.tap)
        tap.kernel_sum = self.kernel_sum
        plug = PLUGS[order.vnl.scheme](order.vnl, self.head[5], sockets)
        session = Session(tap, plug, order.vnl, order.who, DESCRIPTORS_MAX)
        session.control = Control(tap, facts, self.listener)
        session.quiet = self
        return session

    def hand_over(self, session):
        """Tell a session what we learned and counted, and who asks."""
        control = session.control
        os.close(self.spare)
        for tally, more in (control.inward, self.tallies[:3]), (control.outward, self.tallies[3:]):
            tally[:] = map(sum, zip(tally, more))
        self.tallies[:] = [0] * 6
        if self.asking:
            control.take(self.asking)
            self.asking = None
        session.plug.resume(self)
        self.failed = self.unsent = 0

    def alternate(self, session):
        """Relay for a session: when frames come one by one again, we do.

        Between is a time without trains, so that no socket still has one when we take frames.
        """
        tap, plug, control = session.tap, session.plug, session.control
        self.hand_over(session)
        while True:
            relay(tap, plug, control, self.CALM)
            if not plug.take_no_trains():
                continue
            relay(tap, plug, control, self.CALM)
            # In that time, too, trains or the TAP's super-segments may have been switched on.
            known = plug.known()
            if not plug.takes_trains() and tap.slot == SLOT and len(known) <= self.MACS / 2:
                self.macs, self.spare = known, os.dup(0)
                (self.relay_local if self.head[2] == AF_UNIX else self.relay_overlay)()
                self.hand_over(session)

    def say_to_keeper(self, word):
        """Say the only word to the keeper; a socket that shows when it has heard it, or None."""
        lifeline = socket.socket(AF_UNIX, SOCK_SEQPACKET, 0, self.lifeline)
        lifeline.settimeout(Helper.PATIENCE)
        self.lifeline = None
        return lifeline if say_packet(lifeline, word) else None

    def call_keeper(self, session):
        """Our session lost its network: say so to the keeper, if there is one, before we end."""
        control = session.control
        if self.lifeline is not None and not self.say_to_keeper(
                control.TALLIES.pack(*control.tallies())):
            log.line(LOG_ERR, 'its keeper is gone: %s (%s)' % (
                excerpt(session.vnl.text), session.who))

    def leave_keeper(self):
        """Before we end, have the keeper let go of the TAP.

        Who is the last to close it waits 20 ms for the kernel: one relay, not those of all others.
        """
        lifeline = self.lifeline is not None and self.say_to_keeper(LEAVING_WORD)
        if lifeline:
            try:
                lifeline.recv(1)
            except OSError:
                pass


def rehearse():
    """Have quiet relays do, among sockets that lead nowhere, all that others will do.

    As often as it takes until the interpreter has adapted the code (CPython 3.11: at the eighth
    time).
    """
    pairs = []
    try:
        for kind in SOCK_SEQPACKET, SOCK_SEQPACKET, SOCK_DGRAM, SOCK_DGRAM, SOCK_STREAM:
            pairs += socket.socketpair(AF_UNIX, kind)
        sender, orders, answer, _, tap, far_tap, data, far_data, stream, _ = pairs
        pairs.append(socket.socket(AF_UNIX, SOCK_SEQPACKET))
        listener = pairs[-1]
        listener.bind(b'')                  # the kernel finds a name; it is not one of a session
        listener.listen(Control.BACKLOG)
        listener.setblocking(False)
        own, heard, peer = [open_udp(IPv4, '127.0.0.1', 0, 0, SMALL_BUFFER) for _ in range(3)]
        pairs += own, heard, peer
        tap.setblocking(False)
        data.setblocking(False)
        frames = [bytes([target] * 6 + [source] * 46) for target in (2, 4) for source in (4, 6)]
        for kind, ours, far, head in (
                [(AF_UNIX, (data, stream), far_data.send, b'')] * 16 + [
                    (AF_INET, (own, heard), lambda frame: peer.sendto(frame, heard.getsockname()),
                     bytes(8))] * 16):
            relay = QuietRelay(orders, None if rights.uid is None else 0, 0, os.getgroups(),
                               resource and resource.RLIMIT_CORE)
            sender.sendmsg([QUIET_ORDER.pack(FORKER, 0, kind, head, 0, 0, 1e9, *[0] * 8)], [(
                socket.SOL_SOCKET, socket.SCM_RIGHTS, array('i', [
                    each.fileno() for each in (tap,) + ours + (listener, answer, answer)]))])
            for frame in frames:
                far(head + frame)
                far_tap.send(frame)
            asker = socket.socket(AF_UNIX, SOCK_SEQPACKET)
            asker.setblocking(False)
            asker.connect(listener.getsockname())
            asker.send(b'status')
            way = relay.begin()
            if not way:
                break
            way(relay, 1)
            asker.close()
            for fd in relay.tap, relay.spare, relay.lifeline:
                if fd is not None:
                    os.close(fd)
            for _ in frames:
                for sock in (far_tap, far_data) if kind == AF_UNIX else (far_tap,):
                    sock.recv(100, MSG_DONTWAIT)
    except OSError:
        pass                                # without, a relay costs more memory
    finally:
        for sock in pairs:
            sock.close()


# ==================================================================================================
# Asking sessions
# ==================================================================================================
#
# No file says which sessions there are: each listens on a socket of its own (see Control), and the
# kernel lists the names of those. Anybody may listen at such a name. So what a session says of
# itself is worth as much as its owner, the user that the kernel tells of who listens there; and
# nobody who says nothing, or too much, keeps us.

ASK_TIME = 1.0                  # seconds that all sessions together have to answer
ASK_AGAIN = 0.02                # seconds until a session is asked again whose queue was full
ASKED_MAX = 200                 # sessions that are asked at the same time
NUMBER_MAX = 20                 # digits; those of 2 ** 64 - 1
NUMERIC = ('since', 'client', 'uid', 'gid', 'in_frames', 'in_bytes', 'in_drops', 'out_frames',
           'out_bytes', 'out_drops', 'pid')
FACTS = NUMERIC + ('interface', 'state', 'vnl', 'container', 'daemon')


class Asked:
    """A session of this host, in our network namespace, and what it answered.

    name        bytes, of its socket
    inode       str, the number of that socket
    pid         of the process that answers, or holds the socket; who is known to the kernel for
                listening there may have ended
    owner       the user that listens there, as the kernel has it
    facts       dict of str (see Control.status()); None when it did not answer in time
    sock        connected to it
    """

    def __init__(self, name, inode):
        self.name, self.inode, self.facts = name, inode, None
        self.pid = self.owner = self.sock = None

    def ask(self):
        """Connect to it, and ask for its status. Raises OSError."""
        self.sock = connect_session(self.name)
        self.pid, self.owner, _ = peer_of(self.sock)
        say_packet(self.sock, b'status')

    def hear(self):
        """Take the answer; False when there is none: the session is gone, or not for us."""
        data = take_packet(self.sock)
        text = ''.join(c if ' ' <= c <= '~' or c == '\0' else '?' for c in data.decode('latin-1'))
        fields = dict(field.partition('=')[::2] for field in text.split('\0'))
        self.facts = {key: fields[key] for key in FACTS if key in fields and (
            key not in NUMERIC or fields[key].isdigit() and len(fields[key]) <= NUMBER_MAX)}
        pid = int(self.facts.pop('pid', self.pid))
        if pid != self.pid and holds_socket(pid, self.inode):
            self.pid = pid
        return bool(data)

    def look_up(self, holders):
        """Take the pid from what find_holders() found, and the owner if we were not let in.

        False when it is not there.
        """
        self.pid, owner = holders.get(self.inode, (self.pid, None))
        if self.owner is None:
            self.owner = owner
        return self.inode in holders


def connect_session(name):
    """A connection to a session; never waits. Raises OSError."""
    sock = socket.socket(AF_UNIX, SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        sock.connect(name)
        return sock
    except OSError:
        sock.close()
        raise


def read_link(path):
    """What a symbolic link says, None when it is not there (any more). Raises OSError."""
    try:
        return os.readlink(path)
    except (FileNotFoundError, ProcessLookupError):
        return None


def sockets_of(pid):
    """What a process has open: a set of str, of which 'socket:[INODE]' are sockets. Raises OSError.

    A number may be another process's by now.
    """
    directory = '/proc/%d/fd/' % pid
    return {read_link(directory + each) for each in os.listdir(directory)}


def find_holders(inodes, wanted):
    """Who holds sockets, by /proc: {inode: (pid, uid)}, of the first process of each.

    Only processes are looked at whose user wanted() says, or that are named like relays, which have
    another user; and no longer than for ASK_TIME. The keeper only keeps sockets of others.
    """
    found, deadline = {}, time.monotonic() + ASK_TIME
    for pid in sorted(map(int, filter(str.isdigit, os.listdir('/proc')))) if inodes else ():
        try:
            owner = os.stat('/proc/%d' % pid).st_uid
            with open('/proc/%d/comm' % pid, 'rb') as file:
                name = file.read()[:-1]
            if time.monotonic() < deadline and name != KEEPER and (
                    wanted(owner) or name.startswith(RELAY)):
                for link in sockets_of(pid):
                    inode = link and link[len('socket:['):-1]
                    if inode in inodes:
                        found.setdefault(inode, (pid, owner))
        except OSError:
            continue                        # gone, or not for us
    return found


def holds_socket(pid, inode):
    """Does a process have a socket? False when that can't be told."""
    try:
        return pid > 0 and 'socket:[%s]' % inode in sockets_of(pid)
    except OSError:
        return False


def end_session(pid, inode):
    """Send SIGTERM to the process that listens at a socket. Raises OSError."""
    if not holds_socket(pid, inode):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    os.kill(pid, SIGTERM)


def end_by_name(name, pid):
    """Have a session end whose process was pid; since its network came back it is another one.

    Raises OSError.
    """
    inode = find_sessions().get(name)
    if inode is None or holds_socket(pid, inode):
        end_session(pid, inode)
    else:
        with connect_session(name) as conn:
            say_packet(conn, b'close')


def find_sessions():
    """The sockets of sessions in our network namespace: {name (bytes): inode}. Raises OSError."""
    found, head = {}, os.fsencode('@' + Control.NAME[1:])
    with open('/proc/net/unix', 'rb') as table:
        for line in table:
            words = line.split()
            # __SO_ACCEPTCON: who listens, not who is connected
            if len(words) == 8 and words[3] == b'00010000' and words[7].startswith(head):
                found[b'\0' + words[7][1:]] = words[6].decode('latin-1')
    return found


def ask_sessions(own=False):
    """Ask sessions for their status; own: only those of our user. Raises OSError.

    Returns those that may be asked, or might if they answered: a list of Asked, by pid. Others,
    however many they are, have no part in the time that those of our user have.
    """
    to_ask, me = [Asked(name, inode) for name, inode in find_sessions().items()], os.geteuid()
    found, others = ask_some(to_ask, lambda owner: owner == me, True)
    if me == 0 and not own:
        found += ask_some(others, lambda owner: owner != me, False)[0]
    return sorted(found, key=lambda session: session.pid)


def ask_some(to_ask, wanted, trusted):
    """Ask those sessions of a list that wanted() says: (those, the others), by their owners.

    All have ASK_TIME together; who is trusted may be many, and has that for each.
    """
    found, others, waiting, poller = [], [], {}, select.poll()
    deadline = time.monotonic() + ASK_TIME
    while (to_ask or waiting) and time.monotonic() < deadline:
        full = []
        while to_ask and len(waiting) < ASKED_MAX:
            session = to_ask.pop()
            try:
                session.ask()
            except BlockingIOError:
                full.append(session)
                continue
            except OSError:
                continue                    # gone meanwhile
            if wanted(session.owner):
                waiting[session.sock.fileno()] = session
                poller.register(session.sock, select.POLLIN)
            else:
                session.sock.close()
                others.append(session)
        to_ask += full
        left = max(deadline - time.monotonic(), 0)
        for fd, _ in poller.poll((min(left, ASK_AGAIN) if full else left) * 1000):
            session = waiting.pop(fd)
            poller.unregister(fd)
            if session.hear():
                found.append(session)
            if trusted:
                deadline = time.monotonic() + ASK_TIME
            session.sock.close()
    for session in waiting.values():
        session.sock.close()
    silent = list(waiting.values())
    holders = find_holders({session.inode for session in silent + to_ask}, wanted)
    for session in silent:
        session.look_up(holders)
    for session in to_ask:
        known = session.look_up(holders) and wanted(session.owner)
        (silent if known else others).append(session)
    return found + silent, others


# ==================================================================================================
# Server
# ==================================================================================================

class Reaper:
    """Ends the sessions of containers that are gone.

    A session's TAP keeps its network namespace, and so the interface, after the container's end.
    Who may look into every process (root, in the initial pid namespace) can tell that nobody else
    is there: no task, no mount and no open descriptor of that namespace. For each namespace one
    such witness is remembered; only when that is gone, a child looks through /proc. Two looks that
    find nobody end the session.

    sessions    those of Server
    fd          where the child that looks reports, or None
    """

    INTERVAL = 4.0                          # seconds between two looks
    LATER = 60.0                            # the same, when we could not look everywhere
    LOOKS_MAX = 500                         # namespaces in one look: the report fits into the pipe
    INITIAL_PIDS = 'pid:[4026531836]'       # <linux/proc_ns.h>: PROC_PID_INIT_INO

    def __init__(self, sessions):
        self.sessions = sessions
        self.fd, self.next = None, time.monotonic() + self.INTERVAL
        self.witnesses, self.missed = {}, {}        # namespace -> link in /proc; looks in vain
        try:
            self.able = os.geteuid() == 0 and os.readlink('/proc/self/ns/pid') == self.INITIAL_PIDS
        except OSError:
            self.able = False

    def due(self):
        """When look() has something to do next, or None."""
        return self.next if self.able and self.sessions and self.fd is None else None

    def look(self, now, run_child, poller):
        """Ask the witnesses, and where there is none start a look through /proc."""
        if self.due() is None or now < self.next:
            return
        self.next = now + self.INTERVAL
        wanted = {each for each in self.sessions.values() if each.startswith('net:')}
        for known in self.witnesses, self.missed:
            for each in set(known) - wanted:
                del known[each]
        wanted = [each for each in wanted if not is_witness(self.witnesses.get(each), each)]
        if not wanted:
            return
        try:
            report, ours = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return
        try:
            run_child(lambda: os.write(ours, find_witnesses(wanted[:self.LOOKS_MAX],
                                                            self.witnesses)))
            self.fd = report
            poller.register(report, select.EPOLLIN)
        except OSError:
            os.close(report)
        finally:
            os.close(ours)

    def hear(self, poller):
        """What the child found. It says nothing when it could not look everywhere."""
        try:
            words = os.read(self.fd, 65536).decode().split('\n')
        except OSError:
            words = []
        poller.unregister(self.fd)
        os.close(self.fd)
        self.fd = None
        if len(words) < 2:
            self.next += self.LATER
        for word in words[:-1]:
            namespace, _, witness = word.partition(' ')
            if witness:
                self.witnesses[namespace] = witness
                self.missed.pop(namespace, None)
                continue
            self.missed[namespace] = self.missed.get(namespace, 0) + 1
            if self.missed[namespace] >= 2:
                self.end(namespace)

    def end(self, namespace):
        """End the sessions of a namespace."""
        for key, each in list(self.sessions.items()):
            if each == namespace:
                name, pid = key if isinstance(key, tuple) else (None, key)
                try:
                    if name:
                        end_by_name(name, pid)
                    else:
                        os.kill(pid, SIGTERM)
                    log.line(LOG_NOTICE, 'container gone: %s: session %d ended' % (each, pid))
                except ProcessLookupError:
                    if name:
                        del self.sessions[key]      # it was gone already
                except OSError:
                    pass                            # the next time


def is_witness(link, namespace):
    """Does a link in /proc still name a namespace? (A list of mounts is no link: see below.)"""
    try:
        return link is not None and os.readlink(link) == namespace
    except OSError:
        return False


def note_mounts(path, found):
    """Note which network namespaces a list of mounts in /proc keeps. Raises OSError.

    A container makes it as long as it likes, with names that have any byte but those that the
    kernel escapes: blank, tab, newline and backslash.
    """
    with open(path, 'rb') as file:
        for line in file:
            root = line.split(b' ')[3]
            if root.startswith(b'net:['):
                found.setdefault(root.decode('latin-1'), path)


def find_witnesses(wanted, known):
    """Look through /proc for who uses these network namespaces ('net:[INODE]').

    known is the witnesses that there were. Returns lines (bytes) "NAMESPACE PATH", without the path
    where there is nobody; nothing at all when a process that still is there would not let us look.
    """
    found, mounts_seen = {}, set()
    for path in {known.get(each, '') for each in wanted}:
        try:
            if path.endswith('/mountinfo'):
                note_mounts(path, found)
        except OSError:
            pass                            # ended meanwhile
    for pid in filter(str.isdigit, os.listdir('/proc') if set(wanted) - set(found) else ()):
        try:
            for link in links_of(pid):
                namespace = read_link(link)
                if namespace in wanted:
                    found.setdefault(namespace, link)
            mounts = read_link('/proc/%s/ns/mnt' % pid)
            if mounts and mounts not in mounts_seen:
                mounts_seen.add(mounts)
                note_mounts('/proc/%s/mountinfo' % pid, found)
        except (FileNotFoundError, ProcessLookupError):
            pass                            # ended meanwhile
        except OSError:
            if pid != '1':                  # init is no container's, and some hide it
                return b''
    return ''.join('%s %s\n' % (each, found.get(each, '')) for each in wanted).encode()


def links_of(pid):
    """The links in /proc that may name a network namespace that a process uses. Raises OSError."""
    for directory, form in ('task', '/proc/%s/task/%s/ns/net'), ('fd', '/proc/%s/fd/%s'):
        for each in os.listdir('/proc/%s/%s' % (pid, directory)):
            yield form % (pid, each)


class Client:
    """Who connected, and was not heard yet. Raises OSError.

    A process is made for it only when there is something to hear; until then it costs next to
    nothing, and while many wait the containers take turns.

    deadline    until when its request must be here
    container   whose turn it is: the network namespace of who connected, or the user
    ready       is there something to hear?
    data        what came before that; no descriptor came with it
    """

    def __init__(self, conn):
        self.conn, self.ready, self.data = conn, False, b''
        self.deadline = time.monotonic() + HAND_OVER_TIME
        pid, uid, gid = peer_of(conn)
        self.who = 'pid %d uid %d gid %d' % (pid, uid, gid)
        try:
            self.container = os.readlink('/proc/%d/ns/net' % pid)
        except OSError:
            self.container = 'uid %d' % uid

    def look(self):
        """Ready when there is a NUL, a descriptor (which stays there), too much, or the end."""
        try:
            while not self.ready:
                data, _, flags, _ = self.conn.recvmsg(VNL_MAX + 1, 0, MSG_PEEK | MSG_DONTWAIT)
                if (b'\0' in data or not data or flags & MSG_CTRUNC
                        or len(self.data) + len(data) > VNL_MAX):
                    self.ready = True
                else:
                    self.data += self.conn.recv(len(data))
        except BlockingIOError:
            pass
        except OSError:
            self.ready = True


class Throttle:
    """Keeps a container from filling the log with refusals.

    Of each container LINES are logged at once, and one a second after that; how many were not is
    told in a line of its own. Containers are known by a str.
    """

    LINES, REPORT = 20, 10.0                # refusals; seconds between two reports
    CONTAINERS_MAX = 1000

    def __init__(self):
        self.lines = {}                     # container -> (lines that are left, at that time)
        self.left_out = {}                  # container -> refusals that were not logged
        self.due = None                     # when they are to be reported

    def left(self, container):
        """How many lines a container may fill now (float)."""
        lines, then = self.lines.get(container, (self.LINES, 0.0))
        return min(lines + time.monotonic() - then, self.LINES)

    def note(self, container, logged):
        """A container was refused something, and that was logged or not."""
        if not logged:
            self.left_out[container] = self.left_out.get(container, 0) + 1
            self.due = self.due or time.monotonic() + self.REPORT
            return
        if len(self.lines) >= self.CONTAINERS_MAX:
            self.lines.clear()
        self.lines[container] = self.left(container) - 1, time.monotonic()

    def report(self, now):
        """Log what was left out, when that is due."""
        if self.due and now >= self.due:
            for container, number in self.left_out.items():
                log.line(LOG_NOTICE, '%d more requests of the container (%s) were refused'
                         % (number, container))
            self.left_out, self.due = {}, None


class Server:
    """Accepts connections, gives each a process that hears it, and each interface a relay.

    clients     who connected and was not heard yet, in order: descriptor -> Client
    heard       container -> when it had its turn; forgotten when nobody waits
    hearing     which of hand_overs are processes that hear a client: number -> its container
    granted     which of them open a network: number -> the container of who asked
    stuck       those that were killed and did not end yet: pid -> container. Who hangs in a file
                system that does not answer ends with that.
    hand_overs  what is not finished: socket's number -> (socket, pid of the process, deadline);
                the socket leads to it
    sessions    the interfaces: pid -> what quotas count it by (see container_of()); those of quiet
                relays, and of earlier daemons at the same place, have (name of Control's socket,
                pid) instead of the pid: they are no children of ours
    forker, keeper      where quiet relays come from, and who opens their networks again
    """

    def __init__(self, listener, rules, read_rules_again, limits=(SESSIONS_MAX, CONTAINER_MAX)):
        self.listener, self.rules, self.read_rules_again = listener, rules, read_rules_again
        self.place = os.fsdecode(listener.getsockname())
        self.sessions_max, self.container_max = limits
        self.clients, self.heard, self.hearing, self.granted, self.stuck = {}, {}, {}, {}, {}
        self.throttle = Throttle()
        self.hand_overs, self.sessions = {}, {}
        # A quarter of the descriptors that there may be: each client, and each process that hears
        # one, takes one of ours, and some are left for others.
        self.hand_overs_max = min(HAND_OVERS_MAX, os.sysconf('SC_OPEN_MAX') // 4)
        self.refused, self.told = 0, 0.0    # by quotas, since it was logged; when that was
        self.looked = 0.0                   # when we looked which sessions there are
        self.reaper = Reaper(self.sessions)
        self.forker, self.keeper = Forker(), Keeper()
        self.paused_until = None            # accepting is paused
        self.poller = select.epoll()
        self.signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.in_session = False
        for number in SIGNALS:
            signal.signal(number, self.on_signal)
        signal.set_wakeup_fd(self.signals[1])
        self.poller.register(self.signals[0], select.EPOLLIN)
        self.poller.register(listener.fileno(), select.EPOLLIN)

    def adopt(self):
        """Take over what earlier daemons at our place left: they count, and are reaped.

        Those that do not answer are not known to be of our place.
        """
        try:
            for asked in ask_sessions(own=True):
                if asked.facts and asked.facts.get('daemon') == printable(self.place):
                    self.sessions[asked.name, asked.pid] = asked.facts.get('container', '')
        except OSError as error:
            log.line(LOG_WARNING, 'sessions of an earlier daemon: ' + why(error))

    def forget_ended(self):
        """Of sessions that are no children of ours nobody tells that they ended: look."""
        keys = [key for key in self.sessions if isinstance(key, tuple)]
        try:
            there = find_sessions() if keys else {}
        except OSError:
            return
        for key in keys:
            if key[0] not in there:
                del self.sessions[key]

    def on_signal(self, number, _):
        """The handler of server and sessions (one for both: signal.signal() costs a child 350 kB).

        The server learns the number from the pipe of set_wakeup_fd(); a session ends.
        """
        if self.in_session and number in (SIGTERM, SIGINT):
            raise Ended('ended by signal %d' % number)

    def serve(self):
        """Work until SIGTERM or SIGINT."""
        self.adopt()
        gc.collect()
        while True:
            for fd, events in self.poll():
                if fd == self.listener.fileno():
                    self.accept()
                elif fd in self.clients:
                    client = self.clients[fd]
                    client.look()
                    client.ready = client.ready or bool(events & ~select.EPOLLIN)
                elif fd == self.signals[0]:
                    if not self.handle_signals():
                        return
                elif fd in self.hand_overs:
                    self.hear(fd)
                elif fd == self.reaper.fd:
                    self.reaper.hear(self.poller)
            self.hear_next_client()
            self.watch_time()

    def poll(self):
        """Wait for what happens: [(descriptor, events)].

        Signals are let in only meanwhile: a flood of them would keep all else from going on, and
        fork() most, which starts again at each.
        """
        wait = self.time_left()
        set_mask(SIG_UNBLOCK, SIGNALS)
        try:
            return self.poller.poll(wait)
        finally:
            set_mask(SIG_BLOCK, SIGNALS)

    def time_left(self):
        """Seconds until watch_time() has something to do, -1 for never."""
        times = [deadline for _, _, deadline in self.hand_overs.values()]
        times += [client.deadline for client in self.clients.values()]
        times += filter(None, (self.paused_until, self.throttle.due, self.reaper.due()))
        if not self.paused_until and any(client.ready for client in self.clients.values()):
            return 0
        return max(min(times) - time.monotonic(), 0.001) if times else -1

    def watch_time(self):
        """Cut off hand-overs that take too long; accept again after a pause."""
        now = time.monotonic()
        for fd, (_, _, deadline) in list(self.hand_overs.items()):
            if now >= deadline:
                self.cut_off(fd)
        for fd, client in list(self.clients.items()):
            if now >= client.deadline:
                self.dismiss(fd, errno.ETIMEDOUT, 'no complete request within %g s'
                             % HAND_OVER_TIME)
        if self.paused_until and now >= self.paused_until:
            self.paused_until = None
            self.poller.register(self.listener.fileno(), select.EPOLLIN)
        self.throttle.report(now)
        self.reaper.look(now, self.run_child, self.poller)

    def handle_signals(self):
        """Act on the signals that arrived; False when it is time to go."""
        arrived = os.read(self.signals[0], 65536)       # all that a pipe holds
        if SIGTERM in arrived or SIGINT in arrived:
            return False
        if SIGHUP in arrived:
            self.rules = self.read_rules_again(self.rules)
        try:
            while True:
                pid = os.waitpid(-1, os.WNOHANG)[0]
                if not pid:
                    break
                self.sessions.pop(pid, None)
                self.stuck.pop(pid, None)
                for helper in self.forker, self.keeper:
                    if pid == helper.pid:
                        helper.close()
        except ChildProcessError:
            pass
        return True

    def pause(self):
        """Stop accepting for a moment: processes, descriptors or memory ran out."""
        if not self.paused_until:
            self.poller.unregister(self.listener.fileno())
        self.paused_until = time.monotonic() + PAUSE

    def accept(self):
        """Accept who waits."""
        for _ in range(ACCEPTS):
            conn = None
            try:
                conn = self.listener.accept()[0]
                client = Client(conn)
                self.poller.register(conn.fileno(), select.EPOLLIN | select.EPOLLRDHUP
                                     | select.EPOLLET)
            except OSError as error:
                if conn:
                    conn.close()
                if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                    log.line(LOG_ERR, 'accept: ' + why(error))
                    self.pause()
                return
            client.look()
            self.clients[conn.fileno()] = client
            if len(self.clients) > self.hand_overs_max:
                self.make_room()

    def make_room(self):
        """Too many wait: of the container that most are from, one has to try again.

        It is the oldest that was silent so far, or else the last.
        """
        numbers = {}
        for fd, client in self.clients.items():
            numbers.setdefault(client.container, []).append(fd)
        crowd = max(numbers.values(), key=len)
        silent = [fd for fd in crowd if not self.clients[fd].ready]
        self.dismiss(silent[0] if silent else crowd[-1], errno.EAGAIN, '')

    def dismiss(self, fd, number, sentence):
        """A client goes unheard: answer with an errno, and log the sentence if there is one."""
        client = self.clients.pop(fd)
        self.poller.unregister(fd)
        log.crowded = self.throttle.left(client.container) < 1
        self.throttle.note(client.container, not log.crowded)
        with client.conn:
            refuse(client.conn, Failure(number, sentence), 'an unread request', client.who, ())

    def hear_next_client(self):
        """Fork a process that hears a client, if there is something to hear.

        Its container is the one whose turn is longest ago.
        """
        ready = [client for client in self.clients.values() if client.ready]
        if not ready:
            self.heard.clear()
        if not ready or self.paused_until:
            return
        client = min(ready, key=lambda client: self.heard.get(client.container, 0))
        self.heard[client.container] = time.monotonic()
        conn, theirs = client.conn, list(self.stuck.values()).count(client.container)
        if theirs >= STUCK_MAX:
            self.dismiss(conn.fileno(), errno.EAGAIN, '%d earlier ones of this container (%s) hang'
                         % (theirs, client.container))
            return
        self.poller.unregister(conn.fileno())
        del self.clients[conn.fileno()]
        with conn:
            # It gives up at the client's deadline, with an answer; the rest is for one that hangs.
            try:
                self.start(lambda link: hear_client(conn, link, self.rules, client.deadline,
                                                    client.data),
                           client.deadline + PAUSE, client.container, conn=conn)
            except OSError as error:
                self.turn_away(conn, 'fork', error)
        if len(self.hearing) > self.hand_overs_max:
            self.cut_off(min(self.hearing, key=lambda fd: self.hand_overs[fd][2]))

    def start(self, work, deadline, container, keep=None, conn=None):
        """Fork a process for work(link), a part of a hand-over; return its pid. Raises OSError.

        keep and conn as run_child() has them; keep is for who opens a network. container is that
        of the client.
        """
        link, far_end = socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
        log.crowded = self.throttle.left(container) < 1
        with far_end:
            try:
                self.hand_overs[link.fileno()] = link, 0, deadline
                pid = self.run_child(lambda: work(far_end), keep, conn)
            except OSError:
                self.hand_overs.pop(link.fileno())[0].close()
                raise
        self.hand_overs[link.fileno()] = link, pid, deadline
        self.poller.register(link.fileno(), select.EPOLLIN)
        (self.granted if keep else self.hearing)[link.fileno()] = container
        return pid

    def hear(self, fd):
        """A part of a hand-over is done, or a request was judged: grant it a relay, or refuse."""
        link = self.hand_overs[fd][0]
        try:
            word = link.recv(LOG_LINE_MAX, MSG_DONTWAIT)
        except BlockingIOError:
            return                          # the number was used again meanwhile
        except OSError:
            word = b''
        if word.endswith((QUIET_WORD, KEPT_WORD)):
            self.start_helpers(word.endswith(KEPT_WORD))
        self.poller.unregister(fd)
        del self.hand_overs[fd]
        client = self.hearing.pop(fd, None) or self.granted.pop(fd)
        with link:
            if word in (REFUSED_WORD, UNLOGGED_WORD):
                self.throttle.note(client, word == REFUSED_WORD)
            if self.is_last(word):
                return
            container = word.partition(b'\0')[0].decode('ascii', 'replace')
            refusal = self.over_quota(container)
            if not refusal:
                try:
                    # It has its time for itself: killed, it could not end a program of cmd://,
                    # and the client chose when the request was complete.
                    pid = self.start(
                        lambda done: serve_interface(link, done, self.place, self.forker,
                                                     self.keeper),
                        time.monotonic() + HAND_OVER_TIME, client, link)
                    self.sessions[pid] = container
                    return
                except OSError as error:
                    log.line(LOG_ERR, 'fork: ' + why(error))
                    self.pause()
                    refusal = errno.EAGAIN, ''
            try:
                link.send(b'%d %s' % (refusal[0], refusal[1].encode()), MSG_DONTWAIT)
            except OSError:
                pass                        # it was cut off

    def start_helpers(self, keeps):
        """Have a forker, and if it is to keep relays, a keeper, who needs it as well.

        They leave all hand-overs to us.
        """
        if not self.forker.pid:
            self.keeper.close()             # the old one still has its relays, and the old forker
            self.forker.start(self.run_child)
        if keeps and not self.keeper.pid:
            self.keeper.start(lambda work: self.run_child(work, True), self.forker)

    def is_last(self, word):
        """Is this the end, or how a part of a hand-over went? Notes which quiet relay has it."""
        if word[:1] == DONE_WORD and len(word) > 1:
            pid, container, name = word[1:].split(b'\0', 2)
            self.sessions[b'\0' + name, int(pid)] = container.decode()
        return word[:1] in (b'', DONE_WORD, REFUSED_WORD, UNLOGGED_WORD)

    def count(self, container):
        """How many interfaces a container has."""
        return sum(each == container for each in self.sessions.values())

    def over_quota(self, container):
        """Why a container can't have one more interface: (errno, sentence), or None when it can.

        The sentence is for the log, and empty when there was one within the last second.
        """
        theirs, now = self.count(container), time.monotonic()
        if (theirs >= self.container_max or len(self.sessions) >= self.sessions_max) and (
                now - self.looked >= LOOK_AGAIN):
            self.looked = now
            self.forget_ended()
            theirs = self.count(container)
        if theirs >= self.container_max:
            text = 'the container (%s) has %d interfaces, and may have no more' % (
                container, theirs)
        elif len(self.sessions) >= self.sessions_max:
            text = 'there are %d interfaces, and may be no more' % len(self.sessions)
        else:
            return None
        self.refused += 1
        if now - self.told < 1:
            return errno.EDQUOT, ''
        if self.refused > 1:
            text += '; %d requests since the last such line' % self.refused
        self.refused, self.told = 0, now
        return errno.EDQUOT, text

    def turn_away(self, conn, doing, error):
        """No resources for this client: tell it to try again."""
        log.line(LOG_ERR, '%s: %s' % (doing, why(error)))
        reply(conn, errno.EAGAIN)
        self.pause()

    def cut_off(self, fd):
        """End the process that did not finish its part of a hand-over; only if it did not."""
        link, pid, _ = self.hand_overs.pop(fd)
        container = self.hearing.pop(fd, None) or self.granted.pop(fd)
        self.poller.unregister(fd)
        with link:
            try:
                if self.is_last(link.recv(LOG_LINE_MAX, MSG_DONTWAIT)):
                    return
            except BlockingIOError:
                pass
            except OSError:
                return
            log.line(LOG_NOTICE, 'hand-over of process %d cut off' % pid)
            try:
                os.kill(pid, signal.SIGKILL)
                self.stuck[pid] = container
            except OSError:
                pass

    def run_child(self, work, keep=None, conn=None):
        """Fork a process that does work() and ends; return its pid. Raises OSError.

        It leaves everything of the server behind, but for the socket keep, and the ways to forker
        and keeper if there is a keep, which may be True. conn is that of a client that must not
        take a defect of ours for success.
        """
        # Signals are blocked (see poll()): one for the child would still go into the server's pipe.
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            self.in_session = True
            if not keep:                    # a relay lets them in when it can tidy up
                set_mask(SIG_UNBLOCK, SIGNALS)
                self.forker.close()         # who opens a network may have it relayed
                self.keeper.close()
            os.setsid()                     # the terminal's signals are for the server
            self.poller.close()
            self.listener.close()
            for fd in self.signals + (self.reaper.fd,) * (self.reaper.fd is not None):
                os.close(fd)
            for other, _, _ in self.hand_overs.values():
                if other is not keep:
                    other.close()
            for client in self.clients.values():
                client.conn.close()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in 0, 1:
                os.dup2(null, fd)
            os.close(null)
            work()
            status = 0
        except Ended:
            status = 0
        except Exception as error:
            log.line(LOG_ERR, 'internal error: ' + printable(repr(error)))
            if conn:
                reply(conn, errno.EIO)
        finally:
            os._exit(status)


# ==================================================================================================
# Daemon
# ==================================================================================================
#
# Everything that can go wrong goes wrong before the caller gets its prompt back: with -d the first
# process waits for one byte that says that the socket listens and the pidfile is written; a text
# instead is the error, and it exits with 1.

class Manager:
    """The service manager that started us, as systemd does it: sd_notify(3), sd_listen_fds(3).

    sockets     str, how many sockets it passed on to us; '' for none
    listener    the one that we took over, or None
    """

    def __init__(self, environment):
        """Take out of the environment what is for us alone: programs of sessions inherit it."""
        names = ('NOTIFY_SOCKET', 'LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES', 'LISTEN_PIDFDID')
        address, pid, self.sockets = [environment.pop(name, '') for name in names][:3]
        if pid != str(os.getpid()) or self.sockets == '0':
            self.sockets = ''
        self.listener = None
        self.address = '\0' + address[1:] if address.startswith('@') else address

    def tell(self, *fields):
        """Send the fields (str, NAME=value) if it wants to know; never waits, never fails."""
        if not self.address.startswith(('/', '\0')):
            return
        try:
            with socket.socket(AF_UNIX, SOCK_DGRAM) as sock:
                sock.sendto('\n'.join(fields).encode(), MSG_DONTWAIT | MSG_NOSIGNAL, self.address)
        except OSError:
            pass

    def take_listener(self, path):
        """Take over the listening socket that was passed on. Raises Failure.

        path is where it has to be, absolute, or None for anywhere.
        """
        if self.sockets != '1':
            raise bad('LISTEN_FDS=%s: only one socket can be taken over', printable(self.sockets))
        doing = 'descriptor %d, the socket of LISTEN_FDS' % LISTENER
        try:
            if not stat.S_ISSOCK(os.fstat(LISTENER).st_mode):
                raise bad('%s: is no socket', doing)
            os.set_inheritable(LISTENER, False)
            sock = socket.socket(AF_UNIX, SOCK_STREAM, fileno=LISTENER)
            domain, kind, listens = (sock.getsockopt(socket.SOL_SOCKET, option) for option in (
                socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_ACCEPTCONN))
            if (domain, kind) != (AF_UNIX, SOCK_STREAM):
                raise bad('%s: is no UNIX stream socket', doing)
            if not listens:
                raise bad('%s: does not listen', doing)
            place = os.fsdecode(sock.getsockname())
            if path and not is_same_file(path, place):
                raise bad('socket %s: %s is %s', printable(path), doing, printable(place))
            sock.setblocking(False)
        except OSError as error:
            raise Failure(error.errno, '%s: %s' % (doing, why(error)))
        self.listener = sock


def is_same_file(path, other):
    """Are two paths one file?"""
    try:
        return identity_of(path) == identity_of(other)
    except (OSError, ValueError):           # an abstract name has a NUL
        return False


def check_ready_fd(fd):
    """Raises Failure when a descriptor is not there, or not to be written to."""
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    except OSError as error:
        raise Failure(error.errno, '--ready-fd %d: %s' % (fd, why(error)))


def report_ready(fd):
    """Write a newline to a descriptor and close it; nobody has to read it."""
    try:
        os.write(fd, b'\n')
    except OSError:
        pass
    os.close(fd)
    open_standard_streams()                 # it may have been one of them


def open_listener(path, mode):
    """Listen on a UNIX socket at an absolute path. Raises Failure.

    A socket that nobody listens on any more is replaced; one that answers is respected.
    mode is the permissions (int) or None for what the umask says.
    """
    doing = 'socket ' + printable(path)
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise Failure(errno.ENAMETOOLONG, '%s: longer than %d bytes' % (doing, SUN_PATH_MAX))
    listener = socket.socket(AF_UNIX, SOCK_STREAM)
    starting = None
    try:
        starting = wait_for_others(os.path.dirname(path))
        try:
            free = remove_stale(path, SOCK_STREAM)
        except FileExistsError:
            raise Failure(errno.EEXIST, doing + ': exists and is not a socket; left alone')
        if not free:
            raise Failure(errno.EADDRINUSE, doing + ': already running: a daemon answers there')
        umask = os.umask(0o777 & ~mode) if mode is not None else None
        try:
            listener.bind(path)
        finally:
            if umask is not None:
                os.umask(umask)
        listener.listen(socket.SOMAXCONN)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise Failure(error.errno, '%s: %s' % (doing, why(error)))
    except Failure:
        listener.close()
        raise
    finally:
        if starting is not None:
            os.close(starting)
    return listener


def wait_for_others(directory):
    """Let daemons that start in this directory do so one by one, until the descriptor is closed.

    Otherwise two of them could find the same stale socket, and one remove the other's new one. Who
    shares the directory can hold the lock: nobody waits longer than START_TIME. Raises OSError.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + START_TIME
    while time.monotonic() < deadline:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:                     # a file system without locks
            break
    return fd


def write_pidfile(path):
    """Write our pid to a file at an absolute path, whole or not at all. Raises Failure.

    A stale file is replaced; one that names a running vdelxcd is respected, and so is what no
    pidfile is: with -p and the name of the rules file they would be gone.
    """
    doing = 'pidfile ' + printable(path)
    temporary = '%s.%d' % (path, os.getpid())
    try:
        if os.path.lexists(path):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise Failure(errno.EEXIST, doing + ': exists and is no regular file; left alone')
            with open(path, 'rb') as file:
                if file.read(PIDFILE_MAX + 1).strip(b'\0 \n0123456789'):
                    raise Failure(errno.EEXIST, doing + ': exists and is no pidfile; left alone')
            other = running_daemon(path)
            if other:
                raise Failure(errno.EEXIST, '%s: already running: process %d' % (doing, other))
        if os.path.lexists(temporary):      # of one that was killed, and had our number
            os.unlink(temporary)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, b'%d\n' % os.getpid())
            os.fsync(fd)
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        raise Failure(error.errno, '%s: %s' % (doing, why(error)))


def running_daemon(path):
    """The pid in a pidfile when it is that of a vdelxcd that runs, else None."""
    try:
        with open(path, 'rb') as file:
            pid = int(file.read(PIDFILE_MAX))
        with open('/proc/%d/comm' % pid, 'rb') as comm:
            return pid if comm.read() == b'vdelxcd\n' and pid != os.getpid() else None
    except (OSError, ValueError):
        return None


def remove_own(path, identity):
    """Remove a file if it still is the one with this (device, inode)."""
    try:
        status = os.lstat(path)
        if (status.st_dev, status.st_ino) == identity:
            os.unlink(path)
    except OSError:
        pass


def detach():
    """Go on in a daemon process; return the descriptor on which it reports.

    The calling process waits for the report and exits with 0 on the byte '+'; any other report is
    an error, raised there as a Failure.
    """
    try:
        report, ready = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
    except OSError as error:
        raise Failure(error.errno, 'detaching: ' + why(error))
    if child:
        set_mask(SIG_UNBLOCK, SIGNALS)
        os.close(ready)
        text = b''
        for part in iter(lambda: os.read(report, 4096), b''):
            text += part
        if text == b'+':
            os._exit(0)
        raise Failure(errno.EIO, os.fsdecode(text) or 'the daemon ended before it was ready')
    try:
        os.close(report)
        os.setsid()
        if os.fork():                       # not a session leader: no terminal will ever be ours
            os._exit(0)
        os.chdir('/')
    except OSError as error:
        os.write(ready, os.fsencode('detaching: ' + why(error)))
        os._exit(1)
    return ready


def open_standard_streams():
    """Take 0, 1 and 2 where they are closed; else what is opened next would pass for stderr."""
    for fd in 0, 1, 2:
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)      # gets the lowest free number: fd


def leave_terminal():
    """Put /dev/null in the place of the standard streams."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in 0, 1, 2:
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


# ==================================================================================================
# Command line
# ==================================================================================================

class Usage(Failure):
    """A command line that makes no sense."""

    def __init__(self, sentence):
        super().__init__(errno.EINVAL, printable(sentence))


def split_options(arguments, flags, valued):
    """Split a command line as GNU getopt does: ([(long name, value)], other arguments).

    flags and valued are the options without and with a value: dicts of long name -> letter, '' for
    none. Options may be shortened, clustered and mixed with arguments; -- ends them. Raises Usage.
    (The library's getopt imports gettext and re, which takes a third of the client's start-up.)
    """
    pairs, rest, words = [], [], list(arguments)
    known = [*flags, *valued]
    letters = dict(zip([*flags.values(), *valued.values()], known))
    while words:
        word = words.pop(0)
        if word == '--':
            return pairs, rest + words
        if not word.startswith('-') or word == '-':
            rest.append(word)
            continue
        if word.startswith('--'):
            option, given, value = word.partition('=')
            names = ([option[2:]] if option[2:] in known else
                     [name for name in known if name.startswith(option[2:])])
        else:
            option, given, value = word[:2], word[2:], word[2:]
            names = [letters[word[1]]] if word[1] in letters else []
        if len(names) != 1:
            raise Usage('%s: %s' % (option, 'which of --%s?' % ', --'.join(names) if names
                                    else 'no such option'))
        if names[0] in valued and not given:
            if not words:
                raise Usage('%s: needs a value' % option)
            value = words.pop(0)
        elif names[0] in flags and given:
            if '-' in (word[1], value[:1]):
                raise Usage('%s: takes no value' % word)
            words.insert(0, '-' + value)    # the rest of a cluster
            value = ''
        pairs.append((names[0], value))
    return pairs, rest


FLAGS = {'daemon': 'd', 'verbose': 'v', 'help': 'h', 'version': '', 'allow-commands': '',
         'check-config': '', 'list': '', 'json': ''}
VALUED = {'rcfile': 'f', 'pidfile': 'p', 'mode': 'm', 'user': '', 'max-sessions': '',
          'max-per-container': '', 'ready-fd': '', 'test': '', 'completion': '', 'close': '',
          'capture': '', 'write': 'w'}
COMPLETED = {'rcfile': 'files', 'pidfile': 'files', 'write': 'files', 'user': 'users',
             'test': 'networks', 'completion': 'shells', 'close': 'sessions',
             'capture': 'sessions'}
PRINTED = {'help', 'version', 'completion'}     # options that only print a text
EXAMINING = {'check-config', 'test'}            # options that start nothing
ASKING = {'list', 'close', 'capture'}           # options about sessions that there are


def parse_arguments(arguments, inherited=False):
    """The command line as a dictionary; of a repeated option the first counts, of -f the last.

    Where no SOCKET is needed, since one is inherited or nothing is started, a single argument is
    the VNL when it has a scheme, and else SOCKET. Raises Usage.
    """
    pairs, rest = split_options(arguments, FLAGS, VALUED)
    options = {}
    for name, value in pairs:
        if name == 'rcfile' or name not in options:
            options[name] = value
    if options.get('completion', 'bash') != 'bash':
        raise Usage('--completion %s: only for bash' % options['completion'])
    if PRINTED & set(options):
        return options
    for name, other in ('json', 'list'), ('write', 'capture'):
        if name in options and other not in options:
            raise Usage('--%s: only with --%s' % (name, other))
    asked = [name for name in options if name in ASKING]
    if asked:
        others = rest + ['--' + name for name in options
                         if name not in (asked[0], 'json', 'write')]
        if others:
            raise Usage('%s: one of --list, --close and --capture, and nothing else' % others[0])
        return options
    examined = EXAMINING & set(options)
    if (examined or inherited) and (not rest or len(rest) == 1 and '://' in rest[0]):
        rest.insert(0, None)
    if not 1 <= len(rest) <= 2:
        raise Usage('which socket?' if not rest else '%s: one socket and one VNL at most' % rest[2])
    options['socket'] = rest[0]
    options['vnl'] = rest[1] if len(rest) > 1 else None
    if 'mode' in options:
        if not options['mode'] or set(options['mode']) - set('01234567') or int(
                options['mode'], 8) > 0o777:
            raise Usage('-m %s: not an octal mode from 0 to 777' % options['mode'])
        if inherited:
            raise Usage('-m: the mode of an inherited socket is the affair of who made it')
        options['mode'] = int(options['mode'], 8)
    for name, default in (('max-sessions', SESSIONS_MAX), ('max-per-container', CONTAINER_MAX),
                          ('ready-fd', None)):
        if default is not None or name in options:
            text = options.get(name, str(default))
            if set(text) - set('0123456789') or not 0 < len(text) < 10:
                raise Usage('--%s %s: not a number' % (name, text))
            options[name] = int(text)
    if inherited and options.get('ready-fd') == LISTENER:
        raise Usage('--ready-fd %d: is the inherited socket' % LISTENER)
    for name in 'socket', 'pidfile', 'rcfile':
        if options.get(name) == '':
            raise Usage('%s: an empty path' % name)
        if options.get(name) and not examined:
            options[name] = os.path.abspath(options[name])      # before -d changes the directory
    return options


def load_rules(options):
    """The Rules that the command line asks for, and a summary; warnings are logged.

    Raises Failure with all faults, one a line.
    """
    warnings = []
    try:
        rules = read_rules(options.get('rcfile'), options['vnl'], read_vnl,
                           'allow-commands' in options, warnings)[0]
    finally:
        for warning in warnings if 'test' not in options else []:
            log.line(LOG_WARNING, 'warning: ' + warning)
    return rules, ', '.join([rules.summary] + [counted(len(warnings), 'warning')] * bool(warnings))


def load_rules_again(options, old, manager):
    """The Rules after SIGHUP: all of the new ones, or the old ones."""
    manager.tell('RELOADING=1', 'MONOTONIC_USEC=%d' % (time.monotonic() * 1000000))
    try:
        rules, summary = load_rules(options)
        log.line(LOG_NOTICE, 'rules read again: ' + summary)
    except Failure as error:
        rules, faults = old, str(error).split('\n')
        for fault in faults:
            log.line(LOG_ERR, 'rules not read again, the old ones stay: ' + fault)
        summary = 'rules not read again, the old ones stay: ' + counted(len(faults), 'fault')
    manager.tell('READY=1', 'STATUS=' + summary)
    return rules


def examine(options):
    """--check-config and --test: tell what a start would find; return the exit status."""
    try:
        rules, summary = load_rules(options)
    except Failure as error:
        for fault in str(error).split('\n'):
            log.line(LOG_ERR, fault)
        return 1
    if 'check-config' in options:
        say('%s: %s\n' % (printable(options.get('rcfile', COMMAND_LINE)), summary))
    return test_vnl(options['test'], rules) if 'test' in options else 0


def test_vnl(text, rules):
    """Print what a client that asks for a VNL gets, level by level; return the exit status.

    Raises Failure for what is no VNL.
    """
    if len(os.fsencode(text)) > VNL_MAX:
        raise bad('the VNL is longer than %d bytes', VNL_MAX)
    try:
        vnl = read_vnl(text) if text else choose_network(text, rules)
    except Failure as error:
        raise bad('%s: %s', excerpt(text) or 'the default network', error)
    verdicts, status = {}, 0
    try:
        rules.judge(vnl, verdicts)
    except Failure:
        status = 1
    plug = Plug
    for level in vnl.levels():
        if level in verdicts:               # after a refusal the others are not looked at
            say('%s: %s\n' % (printable(level.head), verdicts[level]))
        if not status and plug:             # a level inside one of vde_plug's is opened by that
            plug = PLUGS.get(level.scheme)
            say('    %s\n' % printable('opens ' + written_out(level, plug) if plug
                                       else 'runs %s %s' % (Bridge.PROGRAM, level.text)))
    return status


def written_out(level, plug):
    """The text of one level of a VNL with every default that has a value written out."""
    address, given = plug.fill_in(level.address, level.options)
    whole = dict(plug.DEFAULTS, **given)
    return head_text(plug, level.scheme, address,
                     {name: whole[name] for name in plug.OPTIONS if name in whole})


def ask(options):
    """--list, --close and --capture. Raises Failure, OSError."""
    found = ask_sessions()
    if 'list' in options:
        list_sessions(found, 'json' in options)
    elif 'close' in options:
        close_session(pick_session(options['close'], found))
    else:
        Capture(pick_session(options['capture'], found)).run(options.get('write', '-'))


# The columns of --list: title, key of Control.status(); numbers are aligned at the right.
COLUMNS = (
    ('PID', 'pid'), ('OWNER', 'owner'), ('INTERFACE', 'interface'), ('STATE', 'state'),
    ('SINCE', 'since'), ('CLIENT', 'client'), ('UID', 'uid'), ('GID', 'gid'),
    ('CONTAINER', 'container'), ('IN-FRAMES', 'in_frames'), ('IN-BYTES', 'in_bytes'),
    ('IN-DROPS', 'in_drops'), ('OUT-FRAMES', 'out_frames'), ('OUT-BYTES', 'out_bytes'),
    ('OUT-DROPS', 'out_drops'), ('NETWORK', 'vnl'))
RIGHT = NUMERIC[1:] + ('owner',)


def list_sessions(found, as_json):
    """Print what sessions answered; found is a list of Asked. Raises Failure."""
    rows = [dict([('pid', asked.pid), ('owner', asked.owner)],
                 **asked.facts or {'state': 'no answer'}) for asked in found]
    if as_json:
        import json
        say(json.dumps([{key: int(value) if key in NUMERIC else value
                         for key, value in row.items()} for row in rows], indent=1) + '\n')
        return
    for row in rows:
        if 'since' in row:
            try:
                row['since'] = time.strftime('%Y-%m-%d %H:%M:%S',
                                             time.localtime(int(row['since'])))
            except (OverflowError, ValueError, OSError):
                pass                        # no session of ours says such a number
    table = [[title for title, _ in COLUMNS]]
    table += [[str(row.get(key, '')) or '-' for _, key in COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    say(''.join('  '.join(
        text.rjust(width) if key in RIGHT else text.ljust(width)
        for text, width, (_, key) in zip(line, widths, COLUMNS)).rstrip() + '\n'
        for line in table))


def pick_session(text, found):
    """The one Asked that a process id or the name of an interface means. Raises Failure.

    Names of other users' sessions count for nothing: they could say what they like.
    """
    own = [asked for asked in found if asked.owner == os.geteuid()]
    named = [asked for asked in own if asked.facts and asked.facts.get('interface') == text]
    picked = ([asked for asked in own if str(asked.pid) == text] or named
              or [asked for asked in found if str(asked.pid) == text])
    if len(picked) == 1:
        return picked[0]
    if picked:
        raise Failure(errno.EINVAL, '%s: more than one session has this interface; name one by its '
                      'process id: %s' % (printable(text),
                                          ', '.join(str(asked.pid) for asked in picked)))
    silent = [str(asked.pid) for asked in own if not asked.facts]
    raise Failure(errno.ESRCH, '%s: no session has this process id or interface; see --list%s' % (
        printable(text), silent and '; without answer, and to be named by process id: '
        + ', '.join(silent) or ''))


def close_session(asked):
    """End a session and wait until it is gone. Raises Failure, OSError."""
    def is_gone(seconds):
        """Is it gone within this time?"""
        deadline = time.monotonic() + seconds
        while asked.name in find_sessions():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    try:
        if asked.facts:
            try:
                with connect_session(asked.name) as sock:
                    if say_packet(sock, b'close') and is_gone(3):
                        return
            except BlockingIOError:
                pass                            # too many ask
        end_session(asked.pid, asked.inode)     # its container keeps it from answering
    except (ConnectionRefusedError, ProcessLookupError, FileNotFoundError):
        pass                                    # perhaps it is gone
    if not is_gone(3):
        raise Failure(errno.ETIMEDOUT, 'session %d does not end' % asked.pid)


class Capture:
    """Writes the frames of a session, an Asked, as pcap, until the session ends or a signal comes.

    When the network goes, another process of the session will have the frames after a while.
    """

    QUEUE = 8 << 20             # bytes that may wait for us, asked of the kernel
    PATIENCE = 1.0              # seconds for the last words, and for a reader that takes nothing

    def __init__(self, asked):
        self.asked, self.left_out, self.frames, self.control = asked, 0, None, None
        self.stopping = False
        if not asked.facts:
            raise Failure(errno.ETIMEDOUT, 'session %d does not answer' % asked.pid)

    def run(self, path):
        """Write to a file, '-' for stdout. Raises Failure."""
        output = self.open(path)
        for number in SIGINT, SIGTERM, signal.SIGALRM:
            signal.signal(number, self.on_signal)
        try:
            write_all(output, PCAP_FILE)
            while self.copy(output) and not self.stopping:
                time.sleep(0.1)
        except (BrokenPipeError, KeyboardInterrupt):
            pass                            # the reader has seen enough, or takes nothing
        except OSError as error:
            raise Failure(error.errno, '%s: %s' % (printable(path), why(error)))
        finally:
            for number in SIGINT, SIGTERM, signal.SIGALRM:
                signal.signal(number, signal.SIG_IGN)
            self.finish()
        if self.left_out:
            log.line(LOG_WARNING, 'vdelxcd: the reader was too slow: %s left out' % counted(
                self.left_out, 'frame'))

    @staticmethod
    def open(path):
        """A descriptor to write to. Raises Failure."""
        try:
            if path != '-':
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            if sys.stdout is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        except OSError as error:
            raise Failure(error.errno, '%s: %s' % ('output' if path == '-' else printable(path),
                                                   why(error)))
        if os.isatty(1):
            raise Failure(errno.EINVAL, '--capture: not to a terminal: name a file with -w, or '
                          'pipe it to tcpdump -r -')
        return 1

    def on_signal(self, number, _):
        """The first one ends the capture in order, the next one, or time, without."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        signal.setitimer(signal.ITIMER_REAL, self.PATIENCE)
        if self.control:
            say_packet(self.control, b'stop')

    def copy(self, output):
        """Copy records until nobody sends any more; is the session still there? Raises OSError."""
        try:
            self.control = connect_session(self.asked.name)
            self.frames, theirs = socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
            with theirs:
                set_buffer(theirs, SO_SNDBUFFORCE, socket.SO_SNDBUF, self.QUEUE)
                self.control.sendmsg([b'capture'], [(
                    socket.SOL_SOCKET, socket.SCM_RIGHTS, INT.pack(theirs.fileno()))])
        except ConnectionRefusedError:
            return False
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return True                     # it is busy, or about to end
        while True:
            data = self.frames.recv(2 * Control.PACKET_MAX)
            if not data:
                break
            write_all(output, data)
        self.finish()
        return self.asked.name in find_sessions()

    def finish(self):
        """Hear how many frames were left out, and hang up."""
        if self.control:
            poller = select.poll()
            poller.register(self.control, select.POLLIN)
            say_packet(self.control, b'stop')
            poller.poll(self.PATIENCE * 1000)
            data = take_packet(self.control)
            if len(data) == Control.COUNT.size:
                self.left_out += Control.COUNT.unpack(data)[0]
            self.control.close()
        if self.frames:
            self.frames.close()
        self.frames = self.control = None


def write_all(fd, data):
    """Write all of data to a descriptor. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


BASH_COMPLETION = r"""# bash completion for vdelxcd
_vdelxcd() {
    local piece=${COMP_WORDS[COMP_CWORD]} value= head= option= places=0 joined= word strip pid name
    local -a words=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do     # bash splits words at : and =, too
        if [[ $joined || $word == [:=] ]]; then
            value+=$word
        else
            words+=("$value")
            value=$word
        fi
        [[ $word == [:=] ]] && joined=1 || joined=
    done
    for word in "${words[@]:1}"; do
        if [[ $option ]]; then
            option=
        else
            case $word in
                %(valued)s) option=$word ;;&
                --test*|--check-config) places=1 ;;     # no socket is needed
                -*) ;;
                *) places=$((places + 1)) ;;
            esac
        fi
    done
    strip=${value%%"${piece#[:=]}"}
    if [[ ! $option && $value == --*=* ]]; then
        option=${value%%%%=*} head=${value%%%%=*}= value=${value#*=}
    elif [[ ! $option && $value == -* ]]; then
        option=options
    elif [[ ! $option ]]; then
        [[ $places -gt 0 ]] && option=--test || option=--rcfile
    fi
    COMPREPLY=()
    case $option in
        options) mapfile -t COMPREPLY < <(compgen -W '%(options)s' -- "$value") ;;
        %(users)s) mapfile -t COMPREPLY < <(compgen -u -- "$value") ;;
        %(shells)s) mapfile -t COMPREPLY < <(compgen -W bash -- "$value") ;;
        %(files)s)
            mapfile -t COMPREPLY < <(compgen -f -- "$value")
            compopt -o filenames 2> /dev/null ;;
        %(sessions)s)
            while read -r pid _ name _; do  # a container chose the name: is it safe in a shell?
                for word in "$pid" "$name"; do
                    [[ $word == "$value"* && $word == [0-9A-Za-z]* &&
                        $word != *[!0-9A-Za-z_.-]* ]] && COMPREPLY+=("$word")
                done
            done < <("${COMP_WORDS[0]}" --list 2> /dev/null | tail -n +2) ;;
        %(networks)s)
            mapfile -t COMPREPLY < <(
                compgen -W '%(schemes)s' -- "$value"
                [[ $value == */* ]] && compgen -f -- "$value")
            compopt -o nospace 2> /dev/null ;;
    esac
    for word in "${!COMPREPLY[@]}"; do      # only what follows the last : or = is replaced
        value=$head${COMPREPLY[word]}
        COMPREPLY[word]=${value#"$strip"}
    done
}
complete -F _vdelxcd vdelxcd vdelxcd.py
"""


def complete_in_bash():
    """The text of --completion bash: made of the tables of options and schemes."""
    names = ['--' + name for name in list(FLAGS) + list(VALUED)]
    names += ['-' + letter for table in (FLAGS, VALUED) for letter in table.values() if letter]
    fields = {'options': ' '.join(sorted(names)),
              'schemes': ' '.join(scheme + '://' for scheme in sorted(PLUGS)),
              'valued': option_pattern(VALUED)}
    for kind in set(COMPLETED.values()):
        fields[kind] = option_pattern(name for name in VALUED if COMPLETED.get(name) == kind)
    return BASH_COMPLETION % fields


def option_pattern(names):
    """The pattern of a shell for options with a value: -f|--rcfile."""
    return '|'.join('-%s|--%s' % (VALUED[name], name) if VALUED[name] else '--' + name
                    for name in names)


def run(options, manager):
    """Rules, socket, detach, pidfile, ready, serve, clean up. Raises Failure."""
    rules, summary = load_rules(options)
    rights.choose(options.get('user'))
    # From now on there is something to remove: signals wait until the server handles them.
    set_mask(SIG_BLOCK, SIGNALS)
    listener, remove = manager.listener, []
    if listener is None:
        listener = open_listener(options['socket'], options.get('mode'))
        remove.append((options['socket'], identity_of(options['socket'])))
    owner, ready = os.getpid(), None
    try:
        if 'daemon' in options:
            ready = detach()                # the first process leaves in here
            owner = os.getpid()
        name_process(b'vdelxcd')
        if 'pidfile' in options:
            write_pidfile(options['pidfile'])
            remove.append((options['pidfile'], identity_of(options['pidfile'])))
        server = Server(listener, rules, lambda old: load_rules_again(options, old, manager),
                        (options['max-sessions'], options['max-per-container']))
        manager.tell('READY=1', 'STATUS=' + summary,
                     *['MAINPID=%d' % owner] * ('daemon' in options))
        if 'ready-fd' in options:
            report_ready(options['ready-fd'])
        if ready is not None:
            log.open_syslog()
            leave_terminal()
            os.write(ready, b'+')
            os.close(ready)
            ready = None
        server.serve()
        manager.tell('STOPPING=1')
    except (Failure, OSError) as error:
        if ready is None:
            raise
        os.write(ready, os.fsencode(why(error)))
        raise SystemExit(1)
    finally:
        if os.getpid() == owner:
            for path, identity in remove:
                remove_own(path, identity)


def say(text):
    """Write to stdout at once. Raises Failure: print() alone would fail when Python ends."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print(text, end='', flush=True)
    except OSError as error:
        try:
            if sys.stdout:
                sys.stdout.close()          # forgets what it could not write
        except OSError:
            pass
        raise Failure(error.errno, 'output: ' + why(error))


def main(arguments):
    """Parse the command line and run; return the exit status."""
    try:
        open_standard_streams()
        manager = Manager(os.environ)
        options = parse_arguments(arguments, bool(manager.sockets))
        if PRINTED & set(options):
            say(HELP if 'help' in options else 'vdelxcd %s\n' % VERSION if 'version' in options
                else complete_in_bash())
            return 0
        if EXAMINING & set(options):
            return examine(options)
        if ASKING & set(options):
            ask(options)
            return 0
        if 'ready-fd' in options:       # both before the log opens something of the same number
            check_ready_fd(options['ready-fd'])
        if manager.sockets:
            manager.take_listener(options['socket'])
        log.open_stderr()
        log.verbose = 'verbose' in options
        run(options, manager)
        return 0
    except (Failure, OSError) as error:
        for line in (str(error) if isinstance(error, Failure) else why(error)).split('\n'):
            log.line(LOG_ERR, 'vdelxcd: ' + line)
        if isinstance(error, Usage):
            log.line(LOG_ERR, USAGE)
        return 1
    except KeyboardInterrupt:
        return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
