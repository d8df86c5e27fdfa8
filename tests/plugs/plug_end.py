"""One plug in a process of its own, told what to do by lines of JSON on standard input.

Runs inside a network namespace that a test made, under the interpreter that is tested; see ends.py
for the other half. Between two commands it does what a relay does: it waits for the plug's
descriptors and takes what comes, until it is told to hold.

    python3 plug_end.py VDELXCD.PY
"""

import base64
import errno
import fcntl
import importlib.util
import json
import os
import select
import socket
import sys
import time

sys.dont_write_bytecode = True
SCRIBBLE = 0xa5


def load(path):
    """The daemon as a module."""
    spec = importlib.util.spec_from_file_location('vdelxcd', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.log.write = lambda line: os.write(2, line)
    return module


def frames_of(burst, gap):
    """The frames of a burst, read after a writer used the bytes that were left free for it."""
    for start in burst.starts:
        if start < gap:
            raise AssertionError('no room before the first frame: %d < %d' % (start, gap))
        burst.view[start - gap:start] = bytes([SCRIBBLE]) * gap
    return [bytes(burst.view[start:end]) for start, end in zip(burst.starts, burst.ends)]


class End:
    """The commands; each takes and returns what JSON can say, and frames in base64."""

    def __init__(self, module):
        self.module = module
        self.plug = None
        self.gap = 0
        self.held = False
        self.frames = []            # taken and not yet asked for
        self.ended = None           # the name of the exception that ended the plug

    # ---- life ----

    def open(self, vnl):
        """Open a VNL; [errno, sentence] when that failed. The gap is 0, that of a TAP."""
        try:
            self.plug = self.module.open_plug(self.module.read_vnl(vnl), 'a test')
        except self.module.Failure as failure:
            return [failure.errno, str(failure)]
        return None

    def tap(self, name, gap=0):
        """Make a TAP as the client does and wrap it as a session does."""
        fd = os.open('/dev/net/tun', os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, self.module.TUNSETIFF, self.module.IFREQ.pack(
            name.encode(), self.module.IFF_TAP | self.module.IFF_NO_PI))
        self.plug = self.module.Tap(fd, name)
        self.plug.gap = self.gap = gap

    def close(self):
        self.plug.close()

    def carrier(self, on):
        self.plug.set_carrier(on)

    def descriptors(self):
        """What this process has open, without the one that looks."""
        found = []
        for fd in os.listdir('/proc/self/fd'):
            try:
                found.append('%s %s' % (fd, os.readlink('/proc/self/fd/' + fd)))
            except OSError:
                pass
        return sorted(found)

    def old_kernel(self):
        """Be on a kernel without trains: the options are unknown, their ancillary data ignored."""
        trains = {(self.module.SOL_UDP, number)
                  for number in (self.module.UDP_SEGMENT, self.module.UDP_GRO)}
        plain = socket.socket

        class OldSocket(plain):
            def setsockopt(self, level, number, *value):
                if (level, number) in trains:
                    raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
                return plain.setsockopt(self, level, number, *value)

            def getsockopt(self, level, number, *length):
                if (level, number) in trains:
                    raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
                return plain.getsockopt(self, level, number, *length)

            def sendmsg(self, buffers, ancillary=(), *rest):
                left = [each for each in ancillary if tuple(each[:2]) not in trains]
                return plain.sendmsg(self, buffers, left, *rest)
        socket.socket = OldSocket

    # ---- frames ----

    def send(self, bursts, times=1):
        """Send bursts (lists of frames); [longest time that one took, drops]."""
        headroom, longest, before = self.plug.headroom, 0, self.plug.drops
        for frames in bursts * times:
            frames = [base64.b64decode(frame) for frame in frames]
            burst = self.module.Burst(sum(map(len, frames)) + headroom * len(frames))
            end = 0
            for frame in frames:
                burst.starts.append(end + headroom)
                end += headroom + len(frame)
                burst.ends.append(end)
                burst.buf[end - len(frame):end] = frame
            begin = time.monotonic()
            try:
                self.plug.send(burst)
            except (self.module.Ended, self.module.PlugGone) as error:
                self.ended = type(error).__name__
                break
            longest = max(longest, time.monotonic() - begin)
        return [longest, self.plug.drops - before]

    def take(self, count, seconds):
        """The frames that came since the last take; waits for count of them at most seconds."""
        deadline = time.monotonic() + seconds
        while len(self.frames) < count and not self.ended and time.monotonic() < deadline:
            self.serve(deadline - time.monotonic())
        taken, self.frames = self.frames, []
        return [base64.b64encode(frame).decode() for frame in taken]

    def hold(self):
        """Take nothing by itself from now on, and nothing is left to be taken."""
        self.held = True
        while self.readable(0):
            self.frames += [base64.b64decode(frame) for frame in self.recv()[0]]

    def go_on(self):
        """Take what comes again."""
        self.held = False

    def readable(self, seconds):
        """The descriptors of the plug that are readable within some seconds."""
        poller = select.poll()
        for fd in self.plug.fds():
            poller.register(fd, select.POLLIN)
        return [fd for fd, events in poller.poll(seconds * 1000) if events & select.POLLIN]

    def recv(self, fd=None):
        """One recv() of one descriptor (or of each): [frames, longest time that it took]."""
        frames, longest = [], 0
        for each in self.plug.fds() if fd is None else (fd,):
            begin = time.monotonic()
            burst = self.plug.recv(each)
            longest = max(longest, time.monotonic() - begin)
            frames += frames_of(burst, self.gap)
        return [[base64.b64encode(frame).decode() for frame in frames], longest]

    def fds(self):
        return list(self.plug.fds())

    def drops(self):
        return self.plug.drops

    def end(self, seconds):
        """The name of the exception that ended the plug, waited for at most seconds."""
        deadline = time.monotonic() + seconds
        while not self.ended and time.monotonic() < deadline:
            self.serve(deadline - time.monotonic())
        return self.ended

    # ---- the loop ----

    def serve(self, seconds, *others):
        """Wait for frames and take them; the others (files) only end the wait."""
        poller = select.poll()
        for file in others:
            poller.register(file.fileno(), select.POLLIN)
        mine = {}
        if self.plug and not self.held and not self.ended:
            mine = self.plug.fds()
        for fd, events in mine.items():         # poll() and epoll have the same numbers
            poller.register(fd, events)
        for fd, events in poller.poll(None if seconds is None else max(seconds, 0) * 1000):
            if fd in mine:
                try:
                    burst = self.plug.recv(fd)
                    self.frames += frames_of(burst, self.gap)
                    if not burst.starts and events & (select.POLLERR | select.POLLHUP):
                        self.plug.hung_up(fd)
                    if self.plug.changed:
                        self.plug.changed = False
                        break                   # a closed descriptor's number may be used again
                except (self.module.Ended, self.module.PlugGone) as error:
                    self.ended = type(error).__name__
                    return True
            elif others:
                return False
        return True


def main(path):
    """Obey until standard input ends."""
    end = End(load(path))
    with os.fdopen(0, 'rb', 0) as commands:
        while True:
            while end.serve(None, commands):
                pass
            line = b''
            while not line.endswith(b'\n'):
                part = commands.readline()
                if not part:
                    return
                line += part
            name, values = json.loads(line.decode())
            try:
                answer = ['done', getattr(end, name)(**values)]
            except Exception as error:              # the test shows it
                answer = ['failed', '%s: %s' % (type(error).__name__, error)]
            if name == 'close':
                end.ended = 'closed'
            data = json.dumps(answer).encode() + b'\n'
            while data:
                data = data[os.write(1, data):]


if __name__ == '__main__':
    main(sys.argv[1])
