"""A socket that answers like a daemon, in the words that a test wants."""

import os
import select
import socket
import struct
import threading


class Listener:
    """Answers each connection with the next of these bytes, and keeps the descriptors it gets.

    After the last answer nobody is accepted.
    """

    def __init__(self, path, answers):
        self.path, self.answers, self.requests, self.fds = path, answers, [], []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(5)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        """One request and one answer after the other."""
        for answer in self.answers:
            if not select.select([self.listener], [], [], 10)[0]:
                return
            conn = self.listener.accept()[0]
            with conn:
                request, ancillary, _, _ = conn.recvmsg(8192, socket.CMSG_SPACE(16))
                self.requests.append(request)
                for _, _, data in ancillary:
                    self.fds.extend(struct.unpack('%di' % (len(data) // 4), data))
                conn.sendall(answer)

    def close(self):
        self.thread.join()
        self.listener.close()
        for fd in self.fds:
            os.close(fd)
