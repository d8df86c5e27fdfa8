#!/usr/bin/env python3
"""vdelxcd: give containers Ethernet interfaces on VDE networks.

Listens on a UNIX socket that is shared with containers. The client, vdelxcc, hands over a TAP's
descriptor and the name (VNL) of a network; the daemon judges the name by its rules, opens the
network, and one process per interface then relays frames until the interface goes.

    container | TAP vde0 <--- frames ---> session process <--- datagrams ---> VDE network | host

The rooms of this file, in order (each uses only those above it): numbers from outside; errors and
log; VNLs; rules; frames and the MAC table; plugs; relay; hand-over; sessions; server; daemon;
command line.

Exit status: 0 ended by SIGTERM or SIGINT, or (with -d) the daemon is up; 1 an error, told in one
line on stderr (one line per fault for a configuration file).
"""

import errno
import fcntl
import gc
import getopt
import grp
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from array import array

VERSION = '0.1.0'
SOCKET_NAME = 'vdelxcs'

BURST = 64                  # frames handled in one wakeup, each way
FRAME_MAX = 9216 + 14 + 4   # bytes of the longest frame: jumbo payload, Ethernet header, one tag
RECEIVE_BUFFER = 4 << 20    # bytes asked of the kernel for what a network socket receives
RECEIVE_BUFFER_MAX = 64 << 20   # bytes; more than a VNL gets with rcvbuf=
SEND_BUFFER = 1 << 20       # bytes asked of the kernel for what it sends
MACS_MAX = 4096             # entries of a MAC table
HAND_OVER_TIME = 5.0        # seconds a client has to hand over its TAP
HAND_OVERS_MAX = 64         # unfinished hand-overs; one more and the oldest goes
PAUSE = 0.2                 # seconds without accept() when processes or descriptors run out
START_TIME = 2.0            # seconds to wait for other daemons that start in the same directory
NESTING_MAX = 32            # levels of a nested VNL

USAGE = 'Usage: vdelxcd [OPTION]... SOCKET [VNL]'
HELP = USAGE + """
Give containers that reach SOCKET Ethernet interfaces on VDE networks; VNL is their default
network and, without -f, the only one. Without VNL and -f every network is allowed.

  -f, --rcfile FILE     read rules (default, allow, deny, pfxallow, pfxdeny) from FILE
  -d, --daemon          detach; return when the socket listens
  -p, --pidfile FILE    write the daemon's process id to FILE
  -m, --mode MODE       octal permissions of SOCKET (default: as the umask says)
  -v, --verbose         log every interface that opens and closes
  -h, --help            print this text and exit
      --version         print the version and exit

SIGHUP reads FILE again. Interfaces outlive the daemon; see vdelxcd(1) and vnl(7).
"""


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
TUNSETCARRIER = IOC_WRITE | 0x000454e2
TUN_DEVICE = '/dev/net/tun'
TUN_RDEV = os.makedev(10, 200)
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_DETACH_QUEUE = 0x0400
IFF_NO_PI = 0x1000                          # TUNSETIFF: frames without packet-info header
IFF_NOFILTER = 0x1000                       # TUNGETIFF: no filter is attached; the same bit
IFF_VNET_HDR = 0x4000
IFREQ = struct.Struct('16sH22x')            # struct ifreq: name[16], flags, padding to 40 bytes
IFNAMSIZ = 16                               # with the closing NUL

# <sys/un.h>, <linux/socket.h>
SUN_PATH_MAX = 107                          # bytes of a socket path without the closing NUL
UCRED = struct.Struct('3i')                 # struct ucred: pid, uid, gid

# <linux/in.h>, <linux/in6.h>, <linux/udp.h>, <asm-generic/socket.h>: not named by socket
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
IP_MULTICAST_ALL = 49
IPV6_MULTICAST_ALL = 29
IP_MREQN = struct.Struct('4s4si')           # struct ip_mreqn: group, address, interface index
IPV6_MREQ = struct.Struct('@16sI')          # struct ipv6_mreq: group, interface index
SOL_UDP = 17
UDP_SEGMENT = 103                           # bytes per datagram of a sent train (Linux 4.18)
UDP_GRO = 104                               # trains are received whole (Linux 5.0)
INT = struct.Struct('i')

# vxvde and vxlan (RFC 7348, section 5): flags (0x08: VNI is valid), reserved[3], VNI[3], reserved
VXLAN_HEADER = struct.Struct('>B3xI')       # the VNI shifted left by 8
VXLAN_FLAGS = 0x08
ETHERNET_HEADER = 14
VXVDE_GROUPS = {4: '239.0.0.1', 6: 'ff05:56de::1'}

# The hand-over (one message, one answer)
VNL_MAX = 4095                              # bytes, without the closing NUL

# <syslog.h>; facility daemon
LOG_DAEMON = 3 << 3
LOG_ERR, LOG_WARNING, LOG_NOTICE, LOG_INFO = 3, 4, 5, 6
LOG_SOCKET = '/dev/log'
LOG_LINE_MAX = 1000                         # characters


# ==================================================================================================
# Errors and log
# ==================================================================================================

class Failure(Exception):
    """What went wrong: an errno (int) for the client and a sentence for people."""

    def __init__(self, number, sentence):
        super().__init__(sentence)
        self.errno = number


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


class Log:
    """Where lines go: to stderr, or to syslog once the daemon is detached.

    A line never waits: where it would (a pipe that nobody reads, a stopped terminal, a full disk,
    a stalled syslog) it is lost. Texts from containers must be made printable() by the caller.
    """

    def __init__(self):
        self.verbose = False
        self.write = None           # sends bytes to stderr
        self.close_stderr = lambda: None
        self.syslog = None          # the socket to LOG_SOCKET

    def open_stderr(self):
        """Get a non-blocking way to what stderr is; its own open file would block others too."""
        try:
            if stat.S_ISSOCK(os.fstat(2).st_mode):
                copy = socket.socket(fileno=os.dup(2))
                self.write = lambda line: copy.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                self.close_stderr = copy.close
            else:
                if fcntl.fcntl(2, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                copy = os.open('/proc/self/fd/2', os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK
                               | os.O_NOCTTY | os.O_CLOEXEC)
                self.write = lambda line: os.write(copy, line)
                self.close_stderr = lambda: os.close(copy)
        except OSError:
            self.write = lambda line: os.write(2, line)

    def open_syslog(self):
        """Send lines to syslog from now on; who waits for the end of our stderr has it."""
        self.close_stderr()
        self.syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.syslog.setblocking(False)

    def line(self, level, text):
        """Write one line; level is LOG_ERR ... LOG_INFO."""
        if len(text) > LOG_LINE_MAX:
            text = text[:LOG_LINE_MAX] + '...'
        data = text.encode('ascii', 'backslashreplace').replace(b'\n', b'\\n')
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
# VNLs
# ==================================================================================================
#
# A VNL is scheme://rest, a bare path (scheme vde), or nested: scheme://rest{VNL}. The rest is an
# address and options: /name=value/... or [name=value/...], as the scheme has it. Quotes,
# backslashes and %XX are resolved, short option names completed and paths made absolute and plain
# before a rule sees the VNL; what a rule judged is what is opened.

HEX_DIGITS = b'0123456789abcdefABCDEF'
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
    spellings   frozenset of texts of this level that name the same network, whatever the options
                that do not name it: what a denial means
    """

    def __init__(self, scheme, address, options, nested, head, exact=None, spellings=()):
        self.scheme, self.address, self.options, self.nested = scheme, address, options, nested
        self.head = head
        self.exact = exact or head
        self.text = '%s{%s}' % (head, nested.text) if nested else head
        self.spellings = frozenset(spellings) | {self.head, self.exact}

    def levels(self):
        """This VNL and its nested ones, from the outside in."""
        level = self
        while level:
            yield level
            level = level.nested


def bad(sentence, *values):
    """A Failure with EINVAL for a VNL."""
    return Failure(errno.EINVAL, sentence % values)


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
    """Split what follows scheme:// into (address, fields, nested text or None).

    rest is bytes; address is str; a field is a (name, value) of str, value None without '='.
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
    if nested is not None and b'}' in nested:       # the last one closes; it may be missing
        nested, _, tail = nested.rpartition(b'}')
        if tail.strip(b'}'):
            raise bad('text after }')
    decoded = [[os.fsdecode(bytes(part)) for part in piece] for piece in pieces]
    fields = [(piece[0], piece[1] if len(piece) > 1 else None) for piece in decoded[1:]]
    return decoded[0][0], [field for field in fields if field != ('', None)], nested


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
    if not scheme or set(scheme) - SCHEME_LETTERS:
        raise Failure(errno.EPROTONOSUPPORT, '%s: not a scheme' % printable(scheme))
    plug = schemes.get(scheme)
    raw = os.fsencode(rest)
    style, nests = (plug.STYLE, plug.NESTS) if plug else ('', True)
    address, fields, nested = split_rest(raw, style, nests)
    if not address.isprintable() or not all((name + (value or '')).isprintable()
                                            for name, value in fields):
        raise bad('characters that cannot be printed')
    inner = None if nested is None else parse_vnl(os.fsdecode(nested), schemes, depth + 1)
    if plug is None:
        return Vnl(scheme, address, {}, inner, scheme + '://' + quote(address, '{}'))
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
    identity = {name: changed[name] for name in plug.IDENTITY if name in changed}
    texts = [head_text(plug, scheme, full_address, identity)]
    if plug.fill_in('', identity)[0] == full_address:
        texts.append(head_text(plug, scheme, '', identity))
    return Vnl(scheme, address, options, inner, head_text(plug, scheme, address, options),
               head_text(plug, scheme, full_address, changed), texts)


def head_text(plug, scheme, address, options):
    """The canonical text of one level; options is a dict, value None for a flag."""
    text = scheme + '://' + quote(address, plug.STYLE + ('{}' if plug.NESTS else ''))
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
    """A number of bytes; the suffixes k, m, g and t multiply by 1024 each."""
    digits, power = value or '', 0
    if digits[-1:].lower() in tuple('kmgt'):
        digits, power = digits[:-1], 'kmgt'.index(digits[-1].lower()) + 1
    return str(int(number(1, 1 << 20 if power == 0 else 1 << 40)(digits)) << 10 * power)


def group_number(value):
    """A group's number, from a number or a name; the daemon's own group without a value."""
    if not value:
        return str(os.getegid())
    if not set(value) - set('0123456789'):
        return str(int(value))
    try:
        return str(grp.getgrnam(value).gr_gid)
    except (KeyError, OSError):
        raise ValueError('%s is not a group' % printable(value))


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


class Rule:
    """One line of a rules file, or the default of the command line.

    origin      str, where the rule stands, for the log: 'FILE:LINE' or 'command line'
    tag         one of TAGS
    vnl         Vnl; None for the two prefix tags
    prefix      str; None for the others
    """

    def __init__(self, origin, tag, vnl=None, prefix=None):
        self.origin, self.tag, self.vnl, self.prefix = origin, tag, vnl, prefix
        self.allows = 'deny' not in tag

    def __str__(self):
        return '%s %s, %s' % (self.tag, self.vnl.text if self.vnl else self.prefix, self.origin)

    def matches_level(self, level):
        """Does the rule decide about this level alone?"""
        if self.vnl is None:
            texts = [level.head] if self.allows else level.spellings
            return any(text.startswith(self.prefix) for text in texts)
        if self.vnl.nested:
            return False
        if self.allows:
            return self.vnl.exact == level.exact
        return not self.vnl.spellings.isdisjoint(level.spellings)

    def matches_whole(self, level):
        """Does the rule decide about this level together with all that it contains?"""
        if self.vnl is None:
            return '{' in self.prefix and level.text.startswith(self.prefix)
        if self.vnl.nested is None:
            return self.tag == 'default' and level.nested is None and self.vnl.exact == level.exact
        ours, theirs = list(self.vnl.levels()), list(level.levels())
        return len(ours) == len(theirs) and all(
            mine.exact == other.exact if self.allows
            else not mine.spellings.isdisjoint(other.spellings)
            for mine, other in zip(ours, theirs))


class Rules:
    """Which networks containers may have.

    default     Vnl or None, the network of a request without a VNL
    model       'permissive' (no file and no default), 'one network' (a default only) or 'file'
    """

    def __init__(self, rules, configured):
        defaults = [rule for rule in rules if rule.tag == 'default']
        self.rules = defaults + [rule for rule in rules if rule.tag != 'default']
        self.default = defaults[0].vnl if defaults else None
        self.model = 'file' if configured else 'one network' if defaults else 'permissive'

    def judge(self, vnl):
        """The reason (str) for which a VNL is allowed. Raises Failure EACCES when it is not."""
        if self.model == 'permissive':
            return 'everything is allowed'
        waiting = list(vnl.levels())
        for rule in self.rules:
            for level in list(waiting):
                if rule.matches_whole(level):
                    decided = list(level.levels())
                elif rule.matches_level(level) and rule.tag != 'default':
                    decided = [level]
                else:
                    continue
                if not rule.allows:
                    raise Failure(errno.EACCES, printable(str(rule)))
                waiting = [each for each in waiting if each not in decided]
            if not waiting:
                return printable(str(rule))
        raise Failure(errno.EACCES, 'no rule allows ' + printable(waiting[0].head))


def follow_alias(text):
    """A default's VNL: a file named by a VNL without scheme holds the VNL in its first line."""
    if text and '://' not in text and os.path.isfile(text):
        with open(text, errors='surrogateescape') as file:
            return file.readline(VNL_MAX + 2).strip()
    return text


def read_rules(path, default, parse):
    """Read the rules file and the default VNL of the command line; either may be None.

    parse makes a Vnl of a text. Returns (Rules, warnings); a warning is a str 'FILE:LINE: text'.
    Raises Failure with all faults of the file, one a line.
    """
    first, last, rules, faults, warnings = [], [], [], [], []
    if default is not None:
        try:
            first.append(Rule('command line', 'default', parse(follow_alias(default))))
        except (Failure, OSError) as error:
            raise Failure(errno.EINVAL, '%s: %s' % (printable(default), why(error)))
    for origin, tag, text in [] if path is None else read_lines(path):
        try:
            if tag not in TAGS:
                raise bad('%s: not a directive (%s)', printable(tag), ', '.join(TAGS))
            if tag.startswith('pfx'):
                if text[-1:].isdigit():
                    warnings.append('%s: the prefix ends inside a number: it also matches %s0'
                                    % (origin, printable(text)))
                rules.append(Rule(origin, tag, prefix=text))
            elif not text:
                raise bad('%s: needs a VNL', tag)
            elif tag == 'default':
                last.insert(0, Rule(origin, tag, parse(follow_alias(text))))
            else:
                rules.append(Rule(origin, tag, parse(text)))
        except (Failure, OSError) as error:
            faults.append('%s: %s' % (origin, why(error)))
    if faults:
        raise Failure(errno.EINVAL, '\n'.join(faults))
    return Rules(first + last + rules, path is not None), warnings


def read_lines(path):
    """The directives of a rules file: a list of ('FILE:LINE', tag in lower case, rest).

    Raises Failure when the file can't be read.
    """
    try:
        with open(path, encoding='utf-8', errors='surrogateescape', newline='\n') as file:
            lines = file.read().split('\n')
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
    """

    __slots__ = 'buf', 'view', 'starts', 'ends'

    def __init__(self, size):
        self.buf = bytearray(size)
        self.view = memoryview(self.buf)
        self.starts, self.ends = [], []


class MacTable:
    """Which peer has a MAC address: at most MACS_MAX, the least recently learned goes first.

    A key is an int (a MAC address, or whatever a plug makes of it); a peer is anything; times are
    seconds of time.monotonic().
    """

    def __init__(self, expire):
        self.expire = expire
        self.entries = {}

    def learn(self, mac, peer, now):
        """Note that a frame from this MAC came from this peer."""
        self.entries.pop(mac, None)
        if len(self.entries) >= MACS_MAX:
            del self.entries[next(iter(self.entries))]
        self.entries[mac] = peer, now

    def find(self, mac, now):
        """The peer of a MAC, or None when it is unknown or too old."""
        entry = self.entries.get(mac)
        return entry[0] if entry and now - entry[1] < self.expire else None

    def forget(self, peer):
        """Forget every MAC of a peer."""
        for mac in [mac for mac, entry in self.entries.items() if entry[0] == peer]:
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
    'local socket': {errno.EAGAIN: DROP, errno.ENOBUFS: DROP, errno.EMSGSIZE: DROP,
                     errno.EPIPE: GONE, errno.ENOTCONN: GONE, errno.ECONNREFUSED: GONE,
                     errno.ECONNRESET: GONE, errno.EBADF: END, None: DROP},
}


class Plug:
    """One end of a network of frames. For the relay:

    fds()           the descriptors to poll for reading
    recv(fd)        a Burst of the frames that wait there; an empty one when nothing is for us
    send(burst)     send frames; never waits; frames that can't be sent are counted in drops
    close()         leave the network; may be called twice
    hung_up(fd)     a descriptor reports an error or a hang-up, and recv() found nothing
    headroom        bytes that send() wants free before each frame
    gap             bytes that recv() leaves free before each frame; the relay sets it

    recv() and send() raise Ended or PlugGone. What the VNL of a scheme may say, on the class:

    STYLE           where options stand in the VNL: '/', '[', '/[' (either) or '' (no options)
    OPTIONS         dict: option name -> check, in the order in which short names are completed
    DEFAULTS        dict: option name -> the value that is the same as leaving it out
    IDENTITY        the options that, with the address, name the network
    NESTS           does a VNL in braces follow?
    bare_option()   the option that a word without '=' is the value of, or None
    normal_address()  the address in its one canonical form; raises ValueError
    fill_in()       address and options with what is left out filled in
    __init__(vnl)   open the network; raises Failure with the errno for the client
    """

    STYLE = ''
    OPTIONS = {}
    DEFAULTS = {}
    IDENTITY = ()
    NESTS = False

    headroom = 0
    gap = 0
    drops = 0

    @staticmethod
    def bare_option(text):
        return None

    @staticmethod
    def normal_address(address, options):
        return address

    @staticmethod
    def fill_in(address, options):
        return address, dict(options)

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

    def lost(self, place, error, frames=1):
        """Look up what an OSError means at a place: raise Ended or PlugGone, or count frames."""
        fates = FATES[place]
        fate = fates.get(error.errno, fates[None])
        if fate is END:
            raise Ended(why(error))
        if fate is GONE:
            raise PlugGone(error.errno, why(error))
        self.drops += frames


# A buffer is small until a burst fills it: an idle interface then costs little memory, and a busy
# one gets what the longest trains need.
SLOT = FRAME_MAX + 1                        # one byte more: shows that a frame is too long
SMALL_BUFFER = 2 * SLOT
LARGE_BUFFER = (65536 + SLOT, 2 * 65536)    # of frames from a TAP; of trains from a socket


class Tap(Plug):
    """A TAP interface, given its descriptor, which others may hold as well.

    Whoever shares the open file can make reads wait, steal frames or change its flags; that hurts
    this interface only, since nothing else is done by this process.
    """

    def __init__(self, fd, name):
        self.fd, self.name = fd, name
        self.burst = None
        os.set_blocking(fd, False)

    def fds(self):
        return (self.fd,)

    def recv(self, fd):
        burst = self.burst = self.burst or Burst(SMALL_BUFFER)
        starts, ends, view = burst.starts, burst.ends, burst.view
        del starts[:], ends[:]
        gap = self.gap
        start, last = gap, len(view) - SLOT
        try:
            while start <= last and len(starts) < BURST:
                end = start + os.readv(fd, (view[start:start + SLOT],))
                if end - start == SLOT:
                    self.drops += 1
                    continue
                starts.append(start)
                ends.append(end)
                start = end + gap
            if len(view) == SMALL_BUFFER:
                self.burst = Burst(LARGE_BUFFER[0])
        except OSError as error:
            if error.errno != errno.EAGAIN:
                self.lost('TAP read', error)
        return burst

    def send(self, burst):
        write, fd, view = os.write, self.fd, burst.view
        for start, end in zip(burst.starts, burst.ends):
            try:
                write(fd, view[start:end])
            except OSError as error:
                self.lost('TAP write', error)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def set_carrier(self, on):
        """Show or hide the carrier, as when a cable is pulled (Linux 5.0; nothing before)."""
        try:
            fcntl.ioctl(self.fd, TUNSETCARRIER, INT.pack(on))
        except OSError:
            pass


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
    """null://: nothing comes, and what is sent vanishes."""

    def __init__(self, vnl):
        pass

    def fds(self):
        return ()

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
        self.refused = {}       # peer -> the smallest size that it took no trains of
        self.retry = 0.0

    def send(self, burst, first, last, peer, plug):
        """Send frames first to last - 1 of a burst, all but the last of one size, to one peer."""
        view, starts, ends, header = burst.view, burst.starts, burst.ends, self.header
        begin = starts[first] - header
        size = ends[first] - begin
        if last - first > 1 and size < self.refused.get(peer, 65536):
            step = min(self.TRAIN_FRAMES, self.TRAIN_BYTES // size)
            while step > 1 and last - first > 1:
                stop = min(first + step, last)
                if not self.send_train(burst, first, stop, peer, plug):
                    break
                first = stop
        for index in range(first, last):
            datagram = view[starts[index] - header:ends[index]]
            try:
                self.sock.sendto(datagram, socket.MSG_DONTWAIT, peer)
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
        try:
            self.sock.sendmsg(pieces, ((SOL_UDP, UDP_SEGMENT, struct.pack('H', size)),),
                              socket.MSG_DONTWAIT, peer)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP):
                plug.lost('datagram', error, last - first)
                return True
            now = time.monotonic()
            if now > self.retry or len(self.refused) >= self.REFUSALS_MAX:
                self.refused.clear()
                self.retry = now + self.RETRY
            self.refused[peer] = size
            return False
        return True

    def trains(self, view, plug):
        """Receive until nothing waits, or the buffer or the burst is full.

        Yields (start, end, size of one datagram, peer): datagrams of that size, the last of which
        may be shorter, side by side in view[start:end].
        """
        recvmsg_into = self.sock.recvmsg_into
        room = len(view) - (SLOT + self.header if len(view) <= SMALL_BUFFER else 65535)
        start = 0
        for _ in range(BURST):
            if start > room:
                return
            try:
                length, ancillary, flags, peer = recvmsg_into(
                    (view[start:],), 32, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                plug.lost('datagram', error)
                continue
            if flags & socket.MSG_TRUNC:
                plug.drops += 1
                continue
            size = INT.unpack(ancillary[0][2])[0] if ancillary else length
            yield start, start + length, size, peer
            start += length

    def grow(self):
        """Take trains from now on, where the kernel has them."""
        try:
            self.sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        except OSError:
            pass


class IPv4:
    """What the plugs over UDP need to know of IPv4."""

    FAMILY, LEVEL, ANY = socket.AF_INET, socket.IPPROTO_IP, '0.0.0.0'
    TTL, MULTICAST_TTL = socket.IP_TTL, socket.IP_MULTICAST_TTL
    MULTICAST_IF, MULTICAST_ALL = socket.IP_MULTICAST_IF, IP_MULTICAST_ALL
    JOIN = socket.IP_ADD_MEMBERSHIP

    @staticmethod
    def membership(group, index):
        return IP_MREQN.pack(socket.inet_pton(socket.AF_INET, group), bytes(4), index)

    @staticmethod
    def outgoing(index):
        return IP_MREQN.pack(bytes(4), bytes(4), index)

    @staticmethod
    def socket_address(address, port, index):
        return address, port


class IPv6:
    """What the plugs over UDP need to know of IPv6."""

    FAMILY, LEVEL, ANY = socket.AF_INET6, socket.IPPROTO_IPV6, '::'
    TTL, MULTICAST_TTL = socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS
    MULTICAST_IF, MULTICAST_ALL = socket.IPV6_MULTICAST_IF, IPV6_MULTICAST_ALL
    JOIN = socket.IPV6_JOIN_GROUP

    @staticmethod
    def membership(group, index):
        return IPV6_MREQ.pack(socket.inet_pton(socket.AF_INET6, group), index)

    @staticmethod
    def outgoing(index):
        return INT.pack(index)

    @staticmethod
    def socket_address(address, port, index):
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
        raise ValueError('%s is not an IP address' % printable(text))


def is_multicast(address):
    """Is a canonical IP address a multicast group?"""
    family = ip_family(address).FAMILY
    first = socket.inet_pton(family, address)[0]
    return first == 0xff if family == socket.AF_INET6 else 0xe0 <= first <= 0xef


def interface_option(value):
    """The check of an option that names a network interface."""
    return interface_name(value or '')


def interface_index(name):
    """The number of a network interface, 0 without a name. Raises Failure ENODEV."""
    try:
        return socket.if_nametoindex(name) if name else 0
    except OSError:
        raise Failure(errno.ENODEV, 'no interface %s on this host' % name)


def open_udp(family, address, port, index, receive_buffer, reuse=False):
    """A bound UDP socket with large buffers. Raises OSError."""
    sock = socket.socket(family.FAMILY, socket.SOCK_DGRAM)
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


def set_buffer(sock, forced, polite, size):
    """Ask for a buffer of size bytes; beyond the system's limit where we may (CAP_NET_ADMIN)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, polite, size)


def join_group(sock, family, group, index):
    """Hear a multicast group, on one interface or (0) where the routing says. Raises OSError."""
    try:
        # Otherwise the socket hears what any other socket of this host joined, on any interface.
        sock.setsockopt(family.LEVEL, family.MULTICAST_ALL, 0)
    except OSError:
        pass
    sock.setsockopt(family.LEVEL, family.JOIN, family.membership(group, index))


class Vxvde(Plug):
    """vxvde://GROUP: frames over UDP, multicast until a MAC's place is learned.

    Two sockets. The group socket hears the group. The own socket sends everything, and hears what
    others send to us alone: a peer is known by the address and port of its own socket. A frame's
    source MAC is learned with the peer it came from; a frame to a known MAC goes to its peer, and
    every other frame to the group. What we send to the group comes back to us (other nodes may
    live on this host) and is recognised by our own port and a local address. A header without a
    frame says that its sender leaves.
    """

    STYLE = '/'
    OPTIONS = {'port': number(1, 65535), 'vni': vni, 'grp': group_number, 'ttl': number(1, 255),
               'v4': flag, 'v6': flag, 'rcvbuf': size, 'hashsize': number(1, 1 << 24),
               'expiretime': number(1, 1 << 31), 'if': interface_option, 'bind': ip_text}
    DEFAULTS = {'port': '14789', 'vni': '1', 'ttl': '1', 'hashsize': '1024', 'expiretime': '128'}
    IDENTITY = ('port', 'vni')
    headroom = VXLAN_HEADER.size

    SAME = headroom + 12        # bytes that are alike in all frames of a train: header and MACs
    LEARN_AGAIN = 1.0           # seconds; the same MAC and peer are learned this often
    BELIEVE = 10.0              # seconds; as long an address is believed to be ours, or not

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
        return address

    @staticmethod
    def fill_in(address, options):
        filled = {name: value for name, value in options.items() if name not in ('v4', 'v6', 'grp')}
        address = address or VXVDE_GROUPS[6 if 'v6' in options else 4]
        if 'grp' in options:
            family, last = ip_family(address).FAMILY, int(options['grp']) & 0xffffff
            binary = socket.inet_pton(family, address)[:-3] + last.to_bytes(3, 'big')
            address = socket.inet_ntop(family, binary)
            filled.setdefault('vni', str(last))
        return address, filled

    def __init__(self, vnl):
        group, given = self.fill_in(vnl.address, vnl.options)
        options = dict(self.DEFAULTS, **given)
        family, index = ip_family(group), interface_index(options.get('if'))
        self.own = self.group = None
        self.header = VXLAN_HEADER.pack(VXLAN_FLAGS, int(options['vni']) << 8)
        self.everyone = family.socket_address(group, int(options['port']), index)
        try:
            sock = open_udp(family, options.get('bind', family.ANY), 0, 0,
                            options.get('rcvbuf', RECEIVE_BUFFER))
            self.own = UdpPort(sock, self.headroom)
            sock.setsockopt(family.LEVEL, family.TTL, int(options['ttl']))
            sock.setsockopt(family.LEVEL, family.MULTICAST_TTL, int(options['ttl']))
            if index:
                sock.setsockopt(family.LEVEL, family.MULTICAST_IF, family.outgoing(index))
            sock = open_udp(family, *self.everyone[:2], index=index, reuse=True,
                            receive_buffer=options.get('rcvbuf', RECEIVE_BUFFER))
            self.group = UdpPort(sock, self.headroom)
            join_group(sock, family, group, index)
        except OSError as error:
            self.close()
            raise Failure(error.errno, 'group %s: %s' % (group, why(error)) + (
                ' (no route to it; name an interface with if=, or: ip route add %s dev IFACE)'
                % group if error.errno in (errno.ENODEV, errno.ENETUNREACH) else ''))
        self.ports = {port.sock.fileno(): port for port in (self.own, self.group)}
        self.own_port = self.own.sock.getsockname()[1]
        self.macs = MacTable(float(options['expiretime']))
        self.burst = None
        self.seen = self.seen_peer = None   # the SAME bytes and the peer of the last good frame
        self.seen_time = 0.0
        self.local = {}                     # address -> (is it ours, until when we believe it)

    def fds(self):
        return tuple(self.ports)

    def recv(self, fd):
        burst = self.burst = self.burst or Burst(SMALL_BUFFER)
        starts, ends, startswith = burst.starts, burst.ends, burst.buf.startswith
        del starts[:], ends[:]
        now = time.monotonic()
        if now - self.seen_time > self.LEARN_AGAIN:
            self.seen_peer, self.seen_time = None, now
        for start, end, size, peer in self.ports[fd].trains(burst.view, self):
            if peer[1] == self.own_port and self.is_local(peer, now):
                continue
            same = peer == self.seen_peer
            while start < end:
                stop = min(start + size, end)
                if not (same and stop - start > self.SAME and startswith(self.seen, start)):
                    same = self.look(burst.buf, start, stop, peer, now)
                if same:
                    starts.append(start + self.headroom)
                    ends.append(stop)
                start = stop
        if len(burst.buf) == SMALL_BUFFER and ends and ends[-1] + SLOT > SMALL_BUFFER:
            self.burst = Burst(LARGE_BUFFER[1])
            self.own.grow()
            self.group.grow()
        return burst

    def look(self, buf, start, stop, peer, now):
        """Is this datagram a frame for us? Learns from it, or from a peer's leaving."""
        if not buf.startswith(self.header, start) or stop - start < self.headroom:
            self.drops += 1
            return False
        if stop - start == self.headroom:
            self.macs.forget(peer)
            self.seen_peer = None
            return False
        if not ETHERNET_HEADER <= stop - start - self.headroom <= FRAME_MAX:
            self.drops += 1
            return False
        source = buf[start + 14:start + 20]
        if not source[0] & 1:
            self.macs.learn(int.from_bytes(source, 'big'), peer, now)
        self.seen, self.seen_peer = bytes(buf[start:start + self.SAME]), peer
        return True

    def is_local(self, peer, now):
        """Is a peer on this host? The kernel tells by the address that it would answer from."""
        known, until = self.local.get(peer[0], (False, 0.0))
        if now > until:
            with socket.socket(self.own.sock.family, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect(peer)
                    known = probe.getsockname()[0] == peer[0]
                except OSError:
                    known = False
            if len(self.local) >= MACS_MAX:
                self.local.clear()
            self.local[peer[0]] = known, now + self.BELIEVE
        return known

    def send(self, burst):
        buf, starts, ends, header = burst.buf, burst.starts, burst.ends, self.header
        startswith, now = buf.startswith, time.monotonic()
        for start in starts:                # each one: a reader may have left anything there
            buf[start - 8:start] = header
        first, count = 0, len(starts)
        while first < count:
            start = starts[first]
            length, target = ends[first] - start, buf[start:start + 6]
            last = first + 1
            while (last < count and ends[last] - starts[last] == length
                   and startswith(target, starts[last])):
                last += 1
            if (last < count and ends[last] - starts[last] < length
                    and startswith(target, starts[last])):
                last += 1
            peer = None if target[0] & 1 else self.macs.find(int.from_bytes(target, 'big'), now)
            self.own.send(burst, first, last, peer or self.everyone, self)
            first = last

    def close(self):
        if self.own and self.group:         # open as a whole: tell the others
            try:
                self.own.sock.sendto(self.header, socket.MSG_DONTWAIT, self.everyone)
            except OSError:
                pass
        for port in self.own, self.group:
            if port:
                port.sock.close()
        self.own = self.group = None

    def hung_up(self, fd):
        self.ports[fd].sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)      # reading clears it


# Every scheme; the keys are what a VNL may begin with.
PLUGS = {
    'null': Null,
    'tap': HostTap,
    'vxvde': Vxvde,
}


def read_vnl(text):
    """Parse a VNL by the grammar of the registered plugs. Raises Failure."""
    return parse_vnl(text, PLUGS)


def open_plug(vnl):
    """Open the network that a VNL names. Raises Failure; EPROTONOSUPPORT without a plug for it."""
    if vnl.scheme not in PLUGS:
        raise Failure(errno.EPROTONOSUPPORT, 'no such scheme: ' + printable(vnl.scheme))
    return PLUGS[vnl.scheme](vnl)


# ==================================================================================================
# Relay
# ==================================================================================================

def relay(tap, plug):
    """Carry bursts between two plugs, both ways, until one of them raises Ended or PlugGone."""
    routes = {}
    with select.epoll() as poller:
        for source, sink in (tap, plug), (plug, tap):
            source.gap = sink.headroom
            for fd in source.fds():
                poller.register(fd, select.EPOLLIN)
                routes[fd] = source, source.recv, sink.send
        while True:
            for fd, events in poller.poll():
                source, recv, send = routes[fd]
                burst = recv(fd)
                if burst.starts:
                    send(burst)
                elif events != select.EPOLLIN:
                    source.hung_up(fd)


# ==================================================================================================
# Hand-over
# ==================================================================================================
#
# The client sends its VNL, NUL, and one descriptor; the answer is an errno in decimal and NUL. Who
# sends is not trusted: the message is read in the session's own process, nothing of it is believed
# before it was looked at, and a client that takes too long is cut off (by the server, with SIGKILL:
# even fstat() of a foreign descriptor can wait forever).

def receive_request(conn, deadline):
    """Read a request: (VNL as str, descriptor). Raises Failure."""
    data, found = b'', []
    try:
        while b'\0' not in data:
            if len(data) > VNL_MAX:
                raise bad('the VNL is longer than %d bytes', VNL_MAX)
            conn.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk, ancillary, flags, _ = conn.recvmsg(
                VNL_MAX + 1 - len(data), socket.CMSG_SPACE(2 * INT.size), socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array('i')
                    fds.frombytes(content[:len(content) - len(content) % fds.itemsize])
                    found.extend(fds)
            if len(found) > 1 or flags & socket.MSG_CTRUNC:
                raise bad('more than one descriptor')
            if not chunk:
                raise Failure(errno.EPIPE, 'the client hung up before its request was complete')
            data += chunk
        if not found:
            raise Failure(errno.EBADF, 'no descriptor came with the request')
        return os.fsdecode(data.partition(b'\0')[0]), found.pop()
    except socket.timeout:
        raise Failure(errno.ETIMEDOUT, 'no complete request within %g s' % HAND_OVER_TIME)
    except OSError as error:
        raise Failure(error.errno or errno.EIO, 'reading the request: ' + why(error))
    finally:
        for fd in found:
            os.close(fd)


def check_tap(fd):
    """The name (str) of the TAP that a descriptor is. Raises Failure for whatever else it is.

    TUNGETIFF reports IFF_NOFILTER in the bit of IFF_NO_PI, so a filter that accepts everything is
    attached for the moment of looking.
    """
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != TUN_RDEV:
        raise Failure(errno.EBADF, 'the descriptor is no TAP')
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
    if flags & (IFF_MULTI_QUEUE | IFF_DETACH_QUEUE | IFF_VNET_HDR):
        raise bad('the TAP has more than one queue, a detached queue or an offload header')
    return os.fsdecode(name.rstrip(b'\0'))


def choose_network(text, rules):
    """The Vnl for a request's text, allowed by the rules. Raises Failure."""
    if not text:
        if rules.default is None:
            raise Failure(errno.ENOENT, 'no VNL, and there is no default')
        return rules.default
    vnl = read_vnl(text)
    for level in vnl.levels():
        if level.scheme not in PLUGS:
            raise Failure(errno.EPROTONOSUPPORT, 'no such scheme: ' + printable(level.scheme))
    rules.judge(vnl)
    return vnl


def reply(conn, number):
    """Answer a request with an errno, 0 for success; False when nobody hears it."""
    try:
        conn.settimeout(0)
        conn.send(b'%d\0' % number, socket.MSG_NOSIGNAL)
        return True
    except OSError:
        return False


# ==================================================================================================
# Sessions
# ==================================================================================================

def end_session(*_):
    """The signal handler of a session."""
    raise Ended('ended by a signal')


def session(conn, link, rules):
    """One interface from the request to its end, in a process of its own.

    One byte on link tells the server that the hand-over is over.
    """
    try:
        asked = 'an unread request'
        who = 'pid %d uid %d gid %d' % UCRED.unpack(
            conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
        tap = plug = None
        text, fd = receive_request(conn, time.monotonic() + HAND_OVER_TIME)
        asked = printable(text)
        tap = Tap(fd, check_tap(fd))
        who = '%s, %s' % (printable(tap.name), who)
        vnl = choose_network(text, rules)
        plug = open_plug(vnl)
    except Failure as error:
        what = 'permission denied' if error.errno == errno.EACCES else 'failed'
        log.line(LOG_NOTICE, 'open interface %s: %s (%s): %s' % (what, asked, who, error))
        reply(conn, error.errno)
        return
    name_process('vdelxcd:' + tap.name)
    if reply(conn, 0):
        conn.close()
        link.send(b'+')
        link.close()
        log.detail('open interface: %s (%s)' % (printable(vnl.text), who))
        try:
            relay(tap, plug)
        except Ended as error:
            log.detail('close interface: %s (%s: %s)' % (printable(vnl.text), who, error))
    plug.close()
    tap.close()


def name_process(name):
    """Show a name in ps and top."""
    try:
        with open('/proc/self/comm', 'wb') as comm:
            comm.write(os.fsencode(name)[:15])
    except OSError:
        pass


# ==================================================================================================
# Server
# ==================================================================================================

SERVER_SIGNALS = signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP


class Server:
    """Accepts connections and gives each a session process."""

    def __init__(self, listener, rules, read_rules_again):
        self.listener, self.rules, self.read_rules_again = listener, rules, read_rules_again
        self.hand_overs = {}                # link socket's number -> (link, pid, deadline)
        self.paused_until = None            # accepting is paused
        self.poller = select.epoll()
        self.signals = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in SERVER_SIGNALS:
            signal.signal(number, lambda *_: None)      # the number arrives in the pipe
        signal.set_wakeup_fd(self.signals[1])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SERVER_SIGNALS)
        self.poller.register(self.signals[0], select.EPOLLIN)
        self.poller.register(listener.fileno(), select.EPOLLIN)

    def serve(self):
        """Work until SIGTERM or SIGINT."""
        gc.collect()
        if hasattr(gc, 'freeze'):
            gc.freeze()                     # a session's collector leaves shared pages alone
        while True:
            for fd, _ in self.poller.poll(self.time_left()):
                if fd == self.listener.fileno():
                    self.accept()
                elif fd == self.signals[0]:
                    if not self.handle_signals():
                        return
                elif fd in self.hand_overs:
                    self.forget(fd)
            self.watch_time()

    def time_left(self):
        """Seconds until watch_time() has something to do, -1 for never."""
        times = [deadline for _, _, deadline in self.hand_overs.values()]
        if self.paused_until:
            times.append(self.paused_until)
        return max(min(times) - time.monotonic(), 0.001) if times else -1

    def watch_time(self):
        """Cut off hand-overs that take too long; accept again after a pause."""
        now = time.monotonic()
        for fd, (_, pid, deadline) in list(self.hand_overs.items()):
            if now >= deadline:
                self.cut_off(fd, pid)
        if self.paused_until and now >= self.paused_until:
            self.paused_until = None
            self.poller.register(self.listener.fileno(), select.EPOLLIN)

    def handle_signals(self):
        """Act on the signals that arrived; False when it is time to go."""
        arrived = os.read(self.signals[0], 4096)
        if signal.SIGTERM in arrived or signal.SIGINT in arrived:
            return False
        if signal.SIGHUP in arrived:
            self.rules = self.read_rules_again(self.rules)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        return True

    def pause(self):
        """Stop accepting for a moment: processes, descriptors or memory ran out."""
        if not self.paused_until:
            self.poller.unregister(self.listener.fileno())
        self.paused_until = time.monotonic() + PAUSE

    def accept(self):
        """Accept one connection and fork its session."""
        try:
            conn = self.listener.accept()[0]
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                log.line(LOG_ERR, 'accept: ' + why(error))
                self.pause()
            return
        with conn:
            try:
                link, far_end = socket.socketpair()
            except OSError as error:
                self.turn_away(conn, 'socketpair', error)
                return
            with far_end:
                try:
                    pid = os.fork()
                except OSError as error:
                    link.close()
                    self.turn_away(conn, 'fork', error)
                    return
                if pid == 0:
                    link.close()
                    self.run_session(conn, far_end)
        if len(self.hand_overs) >= HAND_OVERS_MAX:
            oldest = min(self.hand_overs, key=lambda fd: self.hand_overs[fd][2])
            self.cut_off(oldest, self.hand_overs[oldest][1])
        # The session itself gives up at HAND_OVER_TIME, with an answer; this is for one that hangs.
        self.hand_overs[link.fileno()] = link, pid, time.monotonic() + HAND_OVER_TIME + PAUSE
        self.poller.register(link.fileno(), select.EPOLLIN)

    def turn_away(self, conn, doing, error):
        """No resources for this client: tell it to try again."""
        log.line(LOG_ERR, '%s: %s' % (doing, why(error)))
        reply(conn, errno.EAGAIN)
        self.pause()

    def forget(self, fd):
        """A hand-over is over, or its process is."""
        self.poller.unregister(fd)
        self.hand_overs.pop(fd)[0].close()

    def cut_off(self, fd, pid):
        """End the child that did not finish its hand-over; only if it really did not."""
        try:
            if not self.hand_overs[fd][0].recv(1, socket.MSG_DONTWAIT):
                raise ConnectionError
        except BlockingIOError:
            log.line(LOG_NOTICE, 'hand-over of process %d cut off' % pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        except OSError:
            pass
        self.forget(fd)

    def run_session(self, conn, link):
        """The forked child: leave everything of the server behind; never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in signal.SIGTERM, signal.SIGINT:
                signal.signal(number, end_session)
            for number in signal.SIGCHLD, signal.SIGHUP:
                signal.signal(number, signal.SIG_DFL)
            os.setsid()                     # the terminal's signals are for the server
            self.poller.close()
            self.listener.close()
            for fd in self.signals:
                os.close(fd)
            for other, _, _ in self.hand_overs.values():
                other.close()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in 0, 1:
                os.dup2(null, fd)
            os.close(null)
            session(conn, link, self.rules)
            status = 0
        except Ended:
            status = 0
        except Exception as error:          # a defect; the client must not take it for success
            log.line(LOG_ERR, 'session: internal error: ' + printable(repr(error)))
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

def open_listener(path, mode):
    """Listen on a UNIX socket at an absolute path. Raises Failure.

    A socket that nobody listens on any more is replaced; one that answers is respected.
    mode is the permissions (int) or None for what the umask says.
    """
    doing = 'socket ' + printable(path)
    if len(os.fsencode(path)) > SUN_PATH_MAX:
        raise Failure(errno.ENAMETOOLONG, '%s: longer than %d bytes' % (doing, SUN_PATH_MAX))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    starting = None
    try:
        starting = wait_for_others(os.path.dirname(path))
        if os.path.lexists(path):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise Failure(errno.EEXIST, doing + ': exists and is not a socket; left alone')
            if somebody_listens(path):
                raise Failure(errno.EADDRINUSE, doing + ': already running: a daemon answers there')
            os.unlink(path)
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


def somebody_listens(path):
    """Does a connection to a socket's path find a listener, if only a busy one? Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:
            pass
        return True


def write_pidfile(path):
    """Write our pid to a file at an absolute path, whole or not at all. Raises Failure.

    A stale file is replaced; one that names a running vdelxcd is respected.
    """
    doing = 'pidfile ' + printable(path)
    temporary = '%s.%d' % (path, os.getpid())
    try:
        if os.path.lexists(path):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                raise Failure(errno.EEXIST, doing + ': exists and is no regular file; left alone')
            other = running_daemon(path)
            if other:
                raise Failure(errno.EEXIST, '%s: already running: process %d' % (doing, other))
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
            pid = int(file.read(20))
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


def identity_of(path):
    """The (device, inode) of a file."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino


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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SERVER_SIGNALS)
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
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)


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
        super().__init__(errno.EINVAL, sentence)


def parse_arguments(arguments):
    """The command line as a dictionary; of a repeated option the first counts, of -f the last.

    Raises Usage.
    """
    names = {'-f': 'rcfile', '-p': 'pidfile', '-m': 'mode', '-d': 'daemon', '-v': 'verbose',
             '-h': 'help'}
    try:
        pairs, rest = getopt.gnu_getopt(arguments, 'f:p:m:dvh', [
            'rcfile=', 'pidfile=', 'mode=', 'daemon', 'verbose', 'help', 'version'])
    except getopt.GetoptError as error:
        raise Usage(str(error))
    options = {}
    for name, value in pairs:
        name = names.get(name, name[2:])
        if name == 'rcfile' or name not in options:
            options[name] = value
    if 'help' in options or 'version' in options:
        return options
    if not 1 <= len(rest) <= 2:
        raise Usage('which socket?' if not rest else '%s: one socket and one VNL at most' % rest[2])
    options['socket'] = rest[0]
    options['vnl'] = rest[1] if len(rest) > 1 else None
    if 'mode' in options:
        if not options['mode'] or set(options['mode']) - set('01234567') or int(
                options['mode'], 8) > 0o777:
            raise Usage('-m %s: not an octal mode from 0 to 777' % options['mode'])
        options['mode'] = int(options['mode'], 8)
    for name in 'socket', 'pidfile', 'rcfile':
        if options.get(name) == '':
            raise Usage('%s: an empty path' % name)
        if options.get(name):
            options[name] = os.path.abspath(options[name])      # before -d changes the directory
    return options


def load_rules(options):
    """The Rules that the command line asks for; warnings are logged. Raises Failure."""
    rules, warnings = read_rules(options.get('rcfile'), options['vnl'], read_vnl)
    for warning in warnings:
        log.line(LOG_WARNING, 'warning: ' + warning)
    return rules


def load_rules_again(options, old):
    """The Rules after SIGHUP: all of the new ones, or the old ones."""
    try:
        rules = load_rules(options)
        log.line(LOG_NOTICE, 'rules read again')
        return rules
    except Failure as error:
        for fault in str(error).split('\n'):
            log.line(LOG_ERR, 'rules not read again, the old ones stay: ' + fault)
        return old


def run(options):
    """Rules, socket, detach, pidfile, ready, serve, clean up. Raises Failure."""
    rules = load_rules(options)
    # From now on there is something to remove: signals wait until the server handles them.
    signal.pthread_sigmask(signal.SIG_BLOCK, SERVER_SIGNALS)
    listener = open_listener(options['socket'], options.get('mode'))
    remove = [(options['socket'], identity_of(options['socket']))]
    owner, ready = os.getpid(), None
    try:
        if 'daemon' in options:
            ready = detach()                # the first process leaves in here
            owner = os.getpid()
        name_process('vdelxcd')
        if 'pidfile' in options:
            write_pidfile(options['pidfile'])
            remove.append((options['pidfile'], identity_of(options['pidfile'])))
        server = Server(listener, rules, lambda old: load_rules_again(options, old))
        if ready is not None:
            log.open_syslog()
            leave_terminal()
            os.write(ready, b'+')
            os.close(ready)
            ready = None
        server.serve()
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
        log.open_stderr()
        options = parse_arguments(arguments)
        if 'help' in options or 'version' in options:
            say(HELP if 'help' in options else 'vdelxcd %s\n' % VERSION)
            return 0
        log.verbose = 'verbose' in options
        run(options)
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
