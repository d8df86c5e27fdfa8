"""A socket that takes requests like a daemon, and answers as a test wants."""

import os
import select
import socket
import struct
import threading


class Listener:
    """Takes one request of each connection, and answers with the next of these answers.

    An answer is bytes, or a function of the connection. After the last one nobody is accepted.
    Descriptors are kept to the end, as a daemon would, or closed at once.
    """

    def __init__(self, path, answers, keep=True):
        self.path, self.answers, self.keep = path, answers, keep
        self.requests, self.fds = [], []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(5)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        """One request and one answer after the other."""
        for answer in self.answers:
            if not select.select([self.listener], [], [], 20)[0]:
                return
            conn = self.listener.accept()[0]
            with conn:
                request, ancillary, _, _ = conn.recvmsg(8192, socket.CMSG_SPACE(16))
                self.requests.append(request)
                for _, _, data in ancillary:
                    self.fds.extend(struct.unpack('%di' % (len(data) // 4), data))
                while self.fds and not self.keep:
                    os.close(self.fds.pop())
                try:
                    answer(conn) if callable(answer) else conn.sendall(answer)
                except OSError:             # nobody listens any more
                    pass

    def close(self):
        self.thread.join()
        self.listener.close()
        for fd in self.fds:
            os.close(fd)
