#!/usr/bin/env python3
"""Run a program that may set no limits, as under a service manager's filter of system calls.

    no_limits.py PROGRAM [ARGUMENT...]

setrlimit() fails with EPERM from then on; to read a limit is allowed. Exits 77 where that can't be.
"""

import ctypes
import errno
import os
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2         # <linux/prctl.h>, <linux/seccomp.h>
ALLOW, REFUSE = 0x7fff0000, 0x50000 | errno.EPERM
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06                          # <linux/bpf_common.h>
NUMBER, ARCHITECTURE, NEW_LIMIT = 0, 4, 32                      # in struct seccomp_data
# AUDIT_ARCH_*, and the numbers of prlimit64 and setrlimit
KINDS = {'x86_64': (0xc000003e, 302, 160), 'aarch64': (0xc00000b7, 261, 164)}
NO_SUCH_THING = 77


def main():
    """Attach the filter and become the program."""
    if os.uname().machine not in KINDS or sys.byteorder != 'little':
        return NO_SUCH_THING
    architecture, prlimit, setrlimit = KINDS[os.uname().machine]
    program = [                     # code, jumps if true and if false, operand
        (LOAD, 0, 0, ARCHITECTURE), (EQUAL, 0, 7, architecture),
        (LOAD, 0, 0, NUMBER), (EQUAL, 6, 0, setrlimit), (EQUAL, 0, 4, prlimit),
        (LOAD, 0, 0, NEW_LIMIT), (EQUAL, 0, 3, 0),              # a null pointer only reads
        (LOAD, 0, 0, NEW_LIMIT + 4), (EQUAL, 0, 1, 0),
        (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = ctypes.create_string_buffer(b''.join(struct.pack('=HBBI', *each) for each in program))
    whole = ctypes.create_string_buffer(struct.pack('HP', len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, FILTER, whole):
        return NO_SUCH_THING
    return os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == '__main__':
    sys.exit(main())
