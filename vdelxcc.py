#!/usr/bin/env python3
"""vdelxcc: give this container an Ethernet interface on a VDE network.

Makes a TAP interface, hands its descriptor to the vdelxcd daemon through a UNIX socket that
is shared with the host, waits for the daemon's answer and exits; the daemon keeps the interface.
On request it also gives the interface addresses and a default route and brings it up. When a step
fails, no interface is left.

    container                                    host
    TAP vde0 -- descriptor, VNL --> /vde/vdelxcs --> vdelxcd --> VDE network

It opens /dev/net/tun, the daemon's socket, a setting of its interface in sysfs and, for other
settings, the kernel's rtnetlink, and nothing else: it starts no program, and needs only a Python
interpreter (3.6 or later, python3-minimal is enough). It runs from standard input too:
python3 - vxvde:// < vdelxcc.py

The rooms of this file, in order (each uses only those above it): numbers from outside, errors,
rtnetlink, the TAP, interface settings, hand-over, command line.

Exit status: 0 the interface is there; 1 it is not, and one line on stderr says why.
"""

import sys

if __name__ == '__main__' and not (sys.flags.isolated or getattr(sys.flags, 'safe_path', False)):
    del sys.path[0]         # where this file is, where others may put a socket.py: see python -P

import errno
import fcntl
import os
import struct
import time


class Absent:
    """Stands in for three modules while a fourth is imported, which needs them to make enumerations
    with and for what is not used here. They take longer than all our other imports together: for
    signal alone 6 of the 38 ms until there is an interface.

    A Python that does not like that imports the module as ever, afterwards.
    """

    def __enter__(self):
        """Stand in for those that are not there yet."""
        self.IntEnum = self.IntFlag = self
        self.names = {'enum', 'selectors', 'array'} - set(sys.modules)
        sys.modules.update(dict.fromkeys(self.names, self))

    def __exit__(self, kind, *_):
        """Go, and take any exception along."""
        for name in self.names:
            del sys.modules[name]
        return kind is not None and issubclass(kind, Exception)

    def _convert_(self, name, module, *_, **__):
        """What makes an enumeration: this one gives a number as it is."""
        setattr(sys.modules[module], name, lambda number: number)

    _convert = _convert_                    # its name until Python 3.7


with Absent():
    import socket
import socket

VERSION = '0.1.0'
SOCKET_NAME = 'vdelxcs'
SEARCH_PATH = '/vde:/var/vde'
INTERFACE = 'vde'
TIMEOUT = 10.0
MTU = 1500                                  # bytes, of a new TAP

USAGE = 'Usage: vdelxcc [OPTION]... [VNL]'
HELP = USAGE + """
Make an Ethernet interface on the VDE network VNL (the daemon's default network without VNL).

  -s, --socket SOCKET   the daemon's socket: a path, or a name without / that is looked up
                        in each directory of $VDELXC_PATH (default %s)
                        (default name %s)
  -i, --iface IFACE     interface name; a name that does not end in a digit is a prefix and
                        gets the first free number (default %s)
  -t, --timeout SECONDS longest wait for the daemon (default %g)
  -u, --up              bring the interface up
  -a, --address ADDR/LEN
                        an address, IPv4 or IPv6, with its prefix length; may be repeated;
                        brings the interface up
  -g, --gateway ADDR    the default route's router, one for IPv4 and one for IPv6; brings the
                        interface up
      --mac ADDR        the MAC address; auto:TEXT: always the same one for the same TEXT
      --mtu N           MTU of the interface; auto: the largest that the network carries in
                        one piece (default 1500)
      --offload         take TCP segments merged: faster, but not for a container that forwards
                        them (a bridge, a router); see vdelxcc(1)
  -v, --verbose         print the name of the new interface, and on stderr each step
  -D, --delete IFACE    remove a TAP interface of this container, and do nothing else
      --completion SHELL
                        print what lets a shell (bash) complete command lines and exit
  -h, --help            print this text and exit
      --version         print the version and exit

Example: vdelxcc -a 10.0.0.1/24 vxvde://
VNLs: vxvde:// vxvde://239.1.2.3/vni=7 vde:///run/switch ...; see vdelxcc(1) and vnl(7).
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
IFF_NAPI = 0x0010                           # its frames come through NAPI, and so through GRO
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000                       # frames with a virtio_net_hdr
IFF_TUN_EXCL = 0x8000                       # a new interface, or EBUSY
IFREQ = struct.Struct('16sH22x')            # struct ifreq: name[16], flags, padding to 40 bytes
TAP_MTU_MAX = 65521                         # bytes, of a TAP
IFNAMSIZ = 16                               # with the closing NUL

# sysfs of a network namespace (Documentation/ABI/testing/sysfs-class-net)
INTERFACES = '/sys/class/net'
GRO_HOLD = INTERFACES + '/%s/gro_flush_timeout'
# ns. A timer that comes before the kernel's own tick is costly on a virtual machine: 1, 2, 4 and
# 10 ms gave 1012, 1174, 1513 and 1477 Mbit/s (medians of 3), 1136 without.
HOLD = 4000000

# rtnetlink(7), numbers in the host's order: <linux/netlink.h>, <linux/rtnetlink.h>,
# <linux/if_link.h>, <linux/if_addr.h>. A message is a header, the body of its kind, attributes.
NETLINK_ROUTE = 0
NETLINK_MAX = 65536                         # bytes read at once; the kernel sends 32 kB at most
NLMSGHDR = struct.Struct('=IHHII')          # length with this header, kind, flags, sequence, port
RTATTR = struct.Struct('=HH')               # length with this header, kind; padded to 4 bytes
IFINFOMSG = struct.Struct('=BxHiII')        # family, type, index, flags, which flags to change
IFADDRMSG = struct.Struct('=BBBBi')         # family, prefix length, flags, scope, index
RTMSG = struct.Struct('=8BI')               # family, lengths of destination and source, TOS, table,
                                            # protocol, scope, type, flags
NLMSGERR = struct.Struct('=i')              # minus an errno, 0 for success
NUMBER = struct.Struct('=I')                # of an attribute
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_NEW = 0x1, 0x4, 0x300, 0x600     # NEW: EXCL | CREATE
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE = 20, 22, 24
IFLA_ADDRESS, IFLA_MTU, IFLA_LINKINFO, IFLA_INFO_KIND = 1, 4, 18, 1
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_F_NODAD = 1, 2, 4, 0x02
RTA_OIF, RTA_GATEWAY = 4, 5
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST, IFF_UP = 254, 3, 1, 0x1
IPV6_MIN_MTU = 1280                         # bytes (RFC 8200, section 5)

# FNV-1a with 64 bits (draft-eastlake-fnv, section 5)
FNV_BASIS, FNV_PRIME = 0xcbf29ce484222325, 0x100000001b3

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
    errno.EACCES: "the device's mode or owner keeps you out; on the host: chmod 666 " + TUN_DEVICE,
    errno.EPERM: 'let the container use the device; ' + DEVICE_ADVICE,
    errno.ENODEV: MODULE_ADVICE,
    errno.ENXIO: MODULE_ADVICE,
}
CAPABILITY_ADVICE = ('root with CAP_NET_ADMIN is needed; LXC: no net_admin in lxc.cap.drop; '
                     'podman: --cap-add NET_ADMIN')
SETIFF_ADVICE = {errno.EPERM: CAPABILITY_ADVICE}
TAKEN_ADVICE = {
    errno.EBUSY: 'this interface exists already; remove it with -D, or choose another name with -i',
    errno.EINVAL: 'this name is held by a device that is no TAP; choose another name with -i',
}
DELETE_ADVICE = {
    errno.EPERM: CAPABILITY_ADVICE,
    errno.EINVAL: 'no TAP interface; left alone',
    errno.ENODEV: 'this container has no such interface',
}
NO_WAY = 'the gateway is in none of the networks of the addresses given with -a'
SETTING_ADVICE = {
    errno.EACCES: 'IPv6 is switched off; sysctl net.ipv6.conf.all.disable_ipv6=0',
    errno.ENETUNREACH: NO_WAY,
    errno.EHOSTUNREACH: NO_WAY,
    errno.EEXIST: 'this container has a default route already',
}
CONNECT_ADVICE = {
    errno.ECONNREFUSED: 'no daemon listens there; start vdelxcd on the host',
    errno.EACCES: "the socket's mode or owner keeps you out; see vdelxcd -m",
    errno.EAGAIN: 'the daemon does not accept connections',
    errno.ENAMETOOLONG: '%d bytes at most' % SUN_PATH_MAX,
}
REFUSAL_ADVICE = {
    errno.EACCES: "refused by the daemon's rules; vdelxcd's log on the host names the rule",
    errno.ENOENT: 'no such switch or path, or no VNL and the daemon has no default network',
    errno.EINVAL: 'malformed VNL, unknown option or bad value; -v tells which; see vnl(7)',
    errno.EPROTONOSUPPORT: 'the daemon does not know this scheme; see vnl(7)',
    errno.ENODEV: 'no such interface, or no route to the multicast group, on the host',
    errno.ENETUNREACH: 'no route to this network on the host',
    errno.EHOSTUNREACH: 'the host that the VNL names is unknown or cannot be reached',
    errno.ECONNREFUSED: 'no switch or other program runs there on the host',
    errno.EBUSY: 'in use on the host',
    errno.EAGAIN: 'the daemon is short of processes or descriptors; try again',
    errno.EDQUOT: 'there are as many interfaces as there may be; remove one with -D',
    errno.ETIMEDOUT: 'the daemon waited too long for the request',
}


class Failure(Exception):
    """What ends the program: one line for stderr, exit status 1."""


def failure(doing, number, detail=None, advice=None):
    """A Failure: "doing: the errno's text: detail: advice". Advice may be a dict of errno -> it."""
    if isinstance(advice, dict):
        advice = advice.get(number)
    return Failure(': '.join(filter(None, (doing, os.strerror(number), detail, advice))))


def one_line(text):
    """The text with everything that is no printable character escaped."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


# ==================================================================================================
# rtnetlink
# ==================================================================================================

def attribute(kind, data):
    """One attribute of a message: header, data, padding."""
    return RTATTR.pack(RTATTR.size + len(data), kind) + data + bytes(-len(data) % 4)


def parts(header, data):
    """Split messages or attributes: yields (the header's fields, what comes after it) of each."""
    while len(data) >= header.size:
        fields = header.unpack_from(data)
        yield fields, data[header.size:fields[0]]
        data = data[max(fields[0] + 3 & ~3, header.size):]


def attributes(data):
    """The attributes in data: a dict of kind -> bytes."""
    return {kind: content for (_, kind), content in parts(RTATTR, data)}


def ask_kernel(kind, flags, body):
    """Send one request; return the bodies of the messages that answer it.

    Raises OSError with what the kernel says.
    """
    found = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as kernel:
        kernel.send(NLMSGHDR.pack(NLMSGHDR.size + len(body), kind,
                                  NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0) + body)
        while True:
            for (_, kind, _, _, _), content in parts(NLMSGHDR, kernel.recv(NETLINK_MAX)):
                number = -NLMSGERR.unpack_from(content)[0] if kind == NLMSG_ERROR else 0
                if number:
                    raise OSError(number, os.strerror(number))
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    return found
                found.append(content)


def link_body(index, flags=0):
    """What a request about an interface begins with; flags are those to be set."""
    return IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def link_attributes(index):
    """What the kernel says about an interface: a dict. Raises OSError."""
    return attributes(ask_kernel(RTM_GETLINK, 0, link_body(index))[0][IFINFOMSG.size:])


def is_tap(index):
    """Is the interface one of the TUN/TAP driver? Raises OSError."""
    info = attributes(link_attributes(index).get(IFLA_LINKINFO, b''))
    return info.get(IFLA_INFO_KIND, b'').rstrip(b'\0') == b'tun'


def delete_link(index):
    """Remove an interface. Raises OSError."""
    ask_kernel(RTM_DELLINK, 0, link_body(index))


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

    flags are IFF_TAP and what else it shall be. An interface that exists answers EBUSY, a TAP that
    nobody holds too (IFF_TUN_EXCL): "try the next number". Raises Failure.
    """
    try:
        tap = os.open(TUN_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise failure('interface definition', error.errno, TUN_DEVICE, OPEN_ADVICE)
    for name in names:
        try:
            fcntl.ioctl(tap, TUNSETIFF, IFREQ.pack(os.fsencode(name), flags | IFF_TUN_EXCL))
            return tap, name
        except OSError as error:
            number = error.errno
            if number not in TAKEN_ADVICE:
                raise failure('interface definition', number, name, SETIFF_ADVICE)
    if len(names) > 1:
        raise failure('interface definition', number, '%s to %s: all taken' % (names[0], name))
    try:
        number = number if is_tap(socket.if_nametoindex(name)) else errno.EINVAL
    except OSError:
        pass                                # it went, or rtnetlink may not be used here
    raise failure('interface definition', number, name, TAKEN_ADVICE[number])


def may_merge():
    """Can we have GRO merge? Then sysfs can be written, and shows the interfaces of this namespace.

    Those of another one are none of our business.
    """
    try:
        shown = set(os.listdir(INTERFACES)) - {'bonding_masters'}
        return shown == set(dict(socket.if_nameindex()).values()) and os.access(
            GRO_HOLD % 'lo', os.W_OK)
    except OSError:
        return False


def merge_segments(name):
    """Have GRO keep a TCP segment that comes in until the rest of a burst is there.

    The daemon writes frame by frame, and GRO would see each alone. What TCP has to handle, and to
    acknowledge, is one segment of up to 64 kB now, not 45: 1158 to 1398 Mbit/s on vxvde:// (medians
    of 7), 612 to 715 through a vde_switch. The last of a burst does not wait: the daemon sees to
    that. Returns what to tell.
    """
    try:
        with open(GRO_HOLD % name, 'wb', 0) as file:
            file.write(b'%d' % HOLD)
        return 'merged (GRO)'
    except OSError as error:
        return 'not merged: %s' % error


def delete_tap(name):
    """Remove a TAP (or TUN) interface, whoever made it. Raises Failure, for any other too."""
    try:
        index = socket.if_nametoindex(name)
        if not is_tap(index):
            raise OSError(errno.EINVAL, '')
        delete_link(index)
    except OSError as error:
        number = error.errno or errno.ENODEV        # if_nametoindex() tells none
        raise failure('interface removal', number, name, DELETE_ADVICE)


# ==================================================================================================
# Interface settings
# ==================================================================================================

def refuse_taken(addresses):
    """Raise Failure when an interface has one of these addresses already.

    Link-local IPv6 addresses (fe80::/10) may be on any number of interfaces.
    """
    wanted = {packed: text for _, packed, _, text in addresses
              if int.from_bytes(packed[:2], 'big') & 0xffc0 != 0xfe80}
    try:
        known = ask_kernel(RTM_GETADDR, NLM_F_DUMP, IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    except OSError as error:
        raise failure('interface settings', error.errno, 'looking for addresses')
    for each in known:
        index, found = IFADDRMSG.unpack_from(each)[4], attributes(each[IFADDRMSG.size:])
        text = wanted.get(found.get(IFA_LOCAL, found.get(IFA_ADDRESS)))
        if text:
            raise failure('interface settings', errno.EEXIST, text, 'another interface, %s, has '
                          'this address' % socket.if_indextoname(index))


class Interface:
    """A new interface and its settings; tell(text) hears of each that was made.

    The methods raise Failure, which names the setting.
    """

    def __init__(self, name, tell):
        self.name, self.tell, self.index = name, tell, socket.if_nametoindex(name)

    def change(self, what, kind, flags, body):
        """Send one request to the kernel; what it is about, for people."""
        try:
            ask_kernel(kind, flags, body)
        except OSError as error:
            raise failure('interface settings', error.errno, '%s: %s' % (self.name, what),
                          SETTING_ADVICE)
        self.tell('%s: %s' % (self.name, what))

    def change_link(self, what, data=b'', flags=0):
        """Change what is no address: attributes, or flags to be set."""
        self.change(what, RTM_NEWLINK, 0, link_body(self.index, flags) + data)

    def set_mtu(self, mtu):
        """Set the MTU in bytes."""
        self.change_link('MTU %d' % mtu, attribute(IFLA_MTU, NUMBER.pack(mtu)))

    def mtu(self):
        """The MTU in bytes. Raises OSError."""
        return NUMBER.unpack(link_attributes(self.index)[IFLA_MTU])[0]

    def add_address(self, family, packed, length, text):
        """Add an address; IPv6 without looking for duplicates first, so that it counts at once."""
        body = IFADDRMSG.pack(family, length, IFA_F_NODAD if family == socket.AF_INET6 else 0,
                              0, self.index)
        body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
        if family == socket.AF_INET and length <= 30:
            last = int.from_bytes(packed, 'big') | (1 << 32 - length) - 1
            body += attribute(IFA_BROADCAST, last.to_bytes(4, 'big'))
        self.change('address ' + text, RTM_NEWADDR, NLM_F_NEW, body)

    def add_gateway(self, family, packed, text):
        """Add a default route through a router."""
        body = RTMSG.pack(family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0)
        body += attribute(RTA_GATEWAY, packed) + attribute(RTA_OIF, NUMBER.pack(self.index))
        self.change('default route through ' + text, RTM_NEWROUTE, NLM_F_NEW, body)

    def remove(self):
        """Remove the interface, if it is still there; a TAP also goes with its last descriptor."""
        try:
            delete_link(self.index)
        except OSError:
            pass


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
    paths, found = socket_paths(socket_name), None
    for path in paths:
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
            number = error.errno or errno.ENAMETOOLONG      # found by the library, without errno
            if number not in (errno.ENOENT, errno.ENOTDIR):
                found = found or failure('connect', number, path, CONNECT_ADVICE)
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
    pairs = rest.decode('ascii', 'replace').split('\0')[:-1]
    return int(number), dict(pair.partition('=')[::2] for pair in pairs)


def abilities(daemon, timeout):
    """What the daemon can beyond the plain protocol: a dict, empty for the C daemon.

    A greeting without VNL and descriptor; whoever does not know it answers a bare errno.
    Raises Failure.
    """
    number, answer = exchange(daemon, b'\0hello=1\0', [], timeout)
    if number == errno.EAGAIN:              # one of ours that has no time to say what it can
        raise failure('vdelxcd', number, REFUSAL_ADVICE.get(number))
    return answer


def hand_over(daemon, tap, vnl, keys, timeout):
    """Send the VNL, the keys and the TAP's descriptor in one message; the keys of the answer.

    The request is VNL NUL, then key=value NUL for each key, with one SCM_RIGHTS descriptor.
    Raises Failure.
    """
    request = os.fsencode('\0'.join([vnl] + list(map('='.join, keys.items())))) + b'\0'
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', tap))]
    number, answer = exchange(daemon, request, rights, timeout)
    if number:
        raise failure('vdelxcd', number, answer.get('reason') or REFUSAL_ADVICE.get(number))
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


FLAGS = {'verbose': 'v', 'help': 'h', 'version': '', 'offload': '', 'up': 'u'}
VALUED = {'socket': 's', 'iface': 'i', 'timeout': 't', 'address': 'a', 'gateway': 'g', 'mac': '',
          'mtu': '', 'delete': 'D', 'completion': ''}
REPEATED = {'address', 'gateway'}
PLAIN = {'socket', 'iface', 'timeout'}      # what needs no more than the plain protocol


def between(low, text, high):
    """Is the text a decimal number from low to high?"""
    return text.isdecimal() and len(text) < 10 and low <= int(text) <= high


def read_ip(text, given):
    """(family, packed address) of an IPv4 or IPv6 address that a host can have.

    Raises Usage, which names what was given.
    """
    family = socket.AF_INET6 if ':' in text else socket.AF_INET
    try:
        packed = socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise Usage(given + ': not an IPv4 or IPv6 address')
    first, others = packed[0], (0xff,) if len(packed) == 16 else (127,) + tuple(range(0xe0, 0x100))
    if first in others or not any(packed[:-1]):             # loopback, groups, unspecified
        raise Usage(given + ': no address of a host on a network')
    return family, packed


def read_address(text):
    """(family, packed address, prefix length, text) of ADDR/LEN. Raises Usage."""
    address, slash, length = text.partition('/')
    family, packed = read_ip(address, '-a ' + text)
    bits = 8 * len(packed)
    if not slash:
        raise Usage('-a %s: its prefix length is missing; for example %s/%d' % (
            text, text, 24 if bits == 32 else 64))
    if not between(1, length, bits):
        raise Usage('-a %s: a prefix length is 1 to %d' % (text, bits))
    hosts = (1 << bits - int(length)) - 1
    if bits == 32 and hosts > 1 and int.from_bytes(packed, 'big') & hosts in (0, hosts):
        raise Usage('-a %s: no address of a host, but of the whole network' % text)
    return family, packed, int(length), text


def fnv1a(data):
    """The 64-bit FNV-1a hash of bytes."""
    value = FNV_BASIS
    for byte in data:
        value = (value ^ byte) * FNV_PRIME % (1 << 64)
    return value


def read_mac(text):
    """The 6 bytes of a MAC address, or those that are made of a text (auto:TEXT). Raises Usage.

    The latter: the 64-bit FNV-1a hash of the text's bytes, big-endian; its first two bytes are
    XORed into its last two and left out; then the first byte gets the bit of locally administered
    addresses and loses the bit of groups.
    """
    if text.startswith('auto:') and text != 'auto:':
        value = fnv1a(os.fsencode(text[len('auto:'):]))
        mac = ((value ^ value >> 48) % (1 << 48)).to_bytes(6, 'big')
        return bytes([mac[0] & 0xfc | 2]) + mac[1:]
    pairs = text.split(':')
    if (len(pairs) != 6 or set(map(len, pairs)) - {1, 2}
            or set(text) - set(':0123456789abcdefABCDEF')):
        raise Usage('--mac %s: neither a MAC address (02:00:00:00:00:01) nor auto:TEXT' % text)
    mac = bytes(int(pair, 16) for pair in pairs)
    if mac[0] & 1 or not any(mac):
        raise Usage('--mac %s: no address of a single interface' % text)
    return mac


def check_settings(options):
    """Replace the words of the settings by what they mean. Raises Usage."""
    mtu = options.get('mtu', 'auto')
    if mtu != 'auto' and not between(68, mtu, TAP_MTU_MAX):
        raise Usage('--mtu %s: auto, or 68 to %d bytes' % (mtu, TAP_MTU_MAX))
    if 'mac' in options:
        options['mac'] = read_mac(options['mac'])
    addresses = options['address'] = list(map(read_address, options['address']))
    gateways = options['gateway'] = [read_ip(text, '-g ' + text) + (text,)
                                     for text in options['gateway']]
    hosts, families = [], []
    for _, packed, _, text in addresses:
        if packed in hosts:
            raise Usage('-a %s: twice' % text)
        if mtu != 'auto' and len(packed) == 16 and int(mtu) < IPV6_MIN_MTU:
            raise Usage('--mtu %s: IPv6 needs %d bytes' % (mtu, IPV6_MIN_MTU))
        hosts.append(packed)
    for family, packed, text in gateways:
        if family in families:
            raise Usage('-g %s: one for IPv4 and one for IPv6 at most' % text)
        if packed in hosts:
            raise Usage('-g %s: the address of this interface itself' % text)
        families.append(family)


def parse_arguments(arguments):
    """The command line as a dictionary; of a repeated option the first counts. Raises Usage.

    Options that may be repeated have lists. Everything that can be judged here is.
    """
    given = {}
    pairs, rest = split_options(arguments, FLAGS, VALUED)
    for name, value in pairs:
        given.setdefault(name, []).append(value)
    if len(rest) > 1:
        raise Usage('%s: one VNL at most' % rest[1])
    options = {'socket': SOCKET_NAME, 'iface': INTERFACE, 'timeout': TIMEOUT, 'address': [],
               'gateway': [], 'vnl': ''.join(rest), 'plain': not set(given) - PLAIN}
    for name, values in given.items():
        options[name] = values if name in REPEATED else values[0]
    if 'delete' in given and (rest or set(given) - {'delete', 'verbose'}):
        raise Usage('-D %s: only -v goes with it' % options['delete'])
    if options.get('completion', 'bash') != 'bash':
        raise Usage('--completion %s: bash is the only one' % options['completion'])
    try:
        options['timeout'] = float(options['timeout'])
    except ValueError:
        raise Usage('-t %s: not a number of seconds' % options['timeout'])
    if not 0 < options['timeout'] <= 86400:
        raise Usage('-t %g: more than 0 and at most 86400 seconds' % options['timeout'])
    check_settings(options)
    return options


COMPLETION = r"""# Completion of vdelxcc's command line in bash; made by: vdelxcc --completion bash
_vdelxcc() {
    local word=${COMP_WORDS[COMP_CWORD]} words= path
    COMPREPLY=()
    case ${COMP_WORDS[COMP_CWORD-1]} in
        -D|--delete)
            for path in /sys/class/net/*/tun_flags; do
                path=${path%/*} path=${path##*/}        # anybody chose it: is it safe in a shell?
                [[ $path == "$word"* && $path == [0-9A-Za-z]* &&
                    $path != *[!0-9A-Za-z_.-]* ]] && COMPREPLY+=("$path")
            done
            return ;;
        -s|--socket)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            compopt -o filenames
            return ;;
        --mtu) words=auto ;;
        --mac) words=auto: ;;
        --completion) words=bash ;;
        -a|--address|-g|--gateway|-i|--iface|-t|--timeout) ;;
        *)
            case $word in
                -*) words='-D --delete -a --address -g --gateway -h --help -i --iface -s --socket
                        -t --timeout -u --up -v --verbose --completion --mac --mtu --offload
                        --version' ;;
                *)  words='bonding:// cmd:// hub:// macvtap:// multi:// null:// ptp:// seqpacket://
                        switch:// tap:// udp:// vde:// vlan:// vxlan:// vxvde://'
                    compopt -o nospace ;;
            esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -F _vdelxcc vdelxcc vdelxcc.py
"""


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
    """Connect, make the TAP, set it up, hand it over and bring it up: all of it, or nothing.

    Raises Failure; then no interface is left.
    """
    def tell(text):
        """Tell the user who wants to know; stdout has the interface's name alone."""
        if 'verbose' in options:
            say('vdelxcc: %s\n' % one_line(text), sys.stderr)

    if 'delete' in options:
        delete_tap(options['delete'])
        return tell(options['delete'] + ': removed')
    names, timeout = interface_names(options['iface']), options['timeout']
    if options['address']:
        refuse_taken(options['address'])
    daemon = connect(options['socket'], timeout)
    tell('connected to ' + daemon.getpeername())
    flags, keys = IFF_TAP | IFF_NO_PI, {}
    if not options['plain']:
        known = abilities(daemon, timeout)
        daemon.close()
        daemon = connect(options['socket'], timeout)
        if 'mtu' in known:
            keys['mtu'] = options.get('mtu', str(MTU))
        if 'reason' in known:
            keys['reason'] = '1'
        if 'offload' in options and 'offload' in known:
            flags, keys['offload'] = flags | IFF_VNET_HDR, '1'
        elif 'offload' in options:
            tell('this daemon has no offload; going on without')
    if not flags & IFF_VNET_HDR and may_merge():
        flags |= IFF_NAPI
    with Absent():
        import signal
    import signal
    # From now on there is something to remove: who ends us does so as an interrupt would.
    for number in signal.SIGTERM, signal.SIGHUP:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    tap, name = make_tap(names, flags)
    interface = Interface(name, tell)
    tell(name + ': made')
    try:
        if not flags & IFF_VNET_HDR:
            tell('%s: TCP segments that come in are %s' % (
                name, merge_segments(name) if flags & IFF_NAPI else
                'not merged: /sys is not writable, or not of this namespace'))
        set_before(interface, options)
        answer = hand_over(daemon, tap, options['vnl'], keys, timeout)
        tell('%s: handed over, %s' % (name, options['vnl'] or 'the default network'))
        set_after(interface, options, answer if 'mtu' in keys else {})
        if 'verbose' in options:
            say(name + '\n', sys.stdout)
        os.close(tap)
    except BaseException:                   # an interrupt too
        interface.remove()
        raise


def set_before(interface, options):
    """The settings that need no network: when one fails, the daemon hears nothing."""
    if 'mac' in options:
        interface.change_link('MAC address ' + ':'.join(['%02x'] * 6) % tuple(options['mac']),
                              attribute(IFLA_ADDRESS, options['mac']))
    if options.get('mtu', 'auto') != 'auto':
        interface.set_mtu(int(options['mtu']))
    for address in options['address']:
        interface.add_address(*address)


def set_after(interface, options, answer):
    """The settings that wait for the network; the daemon's answer may tell the MTU that fits it."""
    advice = answer.get('mtu', '')
    if options.get('mtu') == 'auto' and between(0, advice, 999999999):
        if int(advice) < IPV6_MIN_MTU and any(
                len(each[1]) == 16 for each in options['address']):
            raise failure('interface settings', errno.EINVAL, '%s: MTU %s' % (
                interface.name, advice), 'too small for the IPv6 addresses')
        interface.set_mtu(int(advice))
    elif options.get('mtu') == 'auto':
        interface.tell('this daemon gives no advice; the MTU stays %d' % interface.mtu())
    elif 'verbose' in options and 'fragmented' in answer:
        interface.tell('the MTU of %d does not fit the network, whose datagrams will be '
                       'fragmented; --mtu auto would take %s' % (interface.mtu(), advice))
    if 'up' in options or options['address'] or options['gateway']:
        interface.change_link('up', flags=IFF_UP)
    for gateway in options['gateway']:
        interface.add_gateway(*gateway)


def main(arguments):
    """Parse the command line and run; return the exit status."""
    try:
        options = parse_arguments(arguments)
        if {'help', 'version', 'completion'} & set(options):
            say(HELP if 'help' in options else 'vdelxcc %s\n' % VERSION if 'version' in options
                else COMPLETION, sys.stdout)
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
    os._exit(main(sys.argv[1:]))            # all is written; to tidy up takes as long as to start
