"""The receiver that waits: `python -m bench.receiver PORT DELAY` answers a POST with 204, DELAY
seconds after its last byte.

It has one thread and epoll, so that it costs little and hardly changes what is measured. `GET /`
returns the number of requests and connections. `GET /arrivals` returns when the last byte of each
POST came whose body has a number "n" (CLOCK_MONOTONIC, which all processes of a machine share), and
forgets these times.
"""

import json
import re
import select
import socket
import sys
import time
from collections import deque

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_NUMBER = re.compile(rb'"n": ?(\d+)')
_ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"


class Receiver:
    """Serves *listener* and never returns. Requests that come together on one connection are
    answered in turn.
    """

    def __init__(self, listener: socket.socket, delay_s: float) -> None:
        self._listener = listener
        self._delay_s = delay_s
        self._epoll = select.epoll()
        self._peers: dict[int, socket.socket] = {}
        self._parts: dict[int, bytes] = {}  # of a request that is not complete yet
        self._due: deque[tuple[float, socket.socket]] = deque()  # in order: each waits equally long
        self._arrivals: list[tuple[int, float]] = []
        self._requests = 0
        self._connections = 0

    def serve(self) -> None:
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else -1
            for fd, _ in self._epoll.poll(wait_s):
                if fd == self._listener.fileno():
                    self._accept()
                else:
                    self._read(fd)
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _send(self._due.popleft()[1], _ANSWER)

    def _accept(self) -> None:
        peer, _ = self._listener.accept()
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections += 1
        self._peers[peer.fileno()] = peer
        self._epoll.register(peer, select.EPOLLIN)

    def _read(self, fd: int) -> None:
        peer = self._peers[fd]
        try:
            data = peer.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._parts.pop(fd, None)
            del self._peers[fd]
            peer.close()
            return
        data = self._parts.pop(fd, b"") + data
        while data:
            end = data.find(_HEAD_END)
            length = _LENGTH.search(data, 0, end) if end >= 0 else None
            whole = end + len(_HEAD_END) + (int(length[1]) if length else 0)
            if end < 0 or len(data) < whole:
                self._parts[fd] = data
                return
            self._take(peer, data[:whole])
            data = data[whole:]

    def _take(self, peer: socket.socket, request: bytes) -> None:
        self._requests += 1
        if request.startswith(b"GET /arrivals "):
            arrivals, self._arrivals = self._arrivals, []
            _send(peer, _page(arrivals))
        elif request.startswith(b"GET "):
            _send(peer, _page({"requests": self._requests, "connections": self._connections}))
        else:
            now = time.monotonic()
            if number := _NUMBER.search(request):
                self._arrivals.append((int(number[1]), now))
            if self._delay_s:
                self._due.append((now + self._delay_s, peer))
            else:
                _send(peer, _ANSWER)


def _send(peer: socket.socket, data: bytes) -> None:
    """Send all. Only the answer to a GET is long, and its client is reading, so it may block."""
    try:
        peer.setblocking(len(data) > len(_ANSWER))
        peer.sendall(data)
        peer.setblocking(False)
    except OSError:
        pass  # the client has hung up; the next read returns that


def _page(value: object) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=512) as server:
        Receiver(server, float(sys.argv[2])).serve()
