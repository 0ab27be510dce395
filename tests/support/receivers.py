"""Receivers on raw sockets, well-behaved and hostile: each is a behaviour, run in a thread for each
connection.
"""

import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Self

import trustme

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Peer:
    """One accepted connection, as a behaviour sees it."""

    def __init__(self, sock: socket.socket, receiver: "Receiver", number: int) -> None:
        self.sock = sock
        self.number = number  # counts the receiver's connections from 1
        self._receiver = receiver
        self._buffer = b""

    def read_request(self) -> bytes | None:
        """Return the next whole request and record it with the receiver; None when the sender has
        closed.
        """
        head = self.read_head()
        if head is None:
            return None
        length = _CONTENT_LENGTH.search(head)
        missing = int(length[1]) if length else 0
        parts = [head]
        while missing:
            data = self._take(missing)
            if not data:
                return None
            parts.append(data)
            missing -= len(data)
        request = b"".join(parts)
        self._receiver.record(request)
        return request

    def read_head(self) -> bytes | None:
        """Return the head of the next request, with its empty line; None when the sender has
        closed.
        """
        while b"\r\n\r\n" not in self._buffer:
            data = self.sock.recv(65536)
            if not data:
                return None
            self._buffer += data
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def send(self, data: bytes) -> None:
        """Send all of *data*."""
        self.sock.sendall(data)

    def drip(self, data: bytes, *, interval_s: float = 0.02) -> None:
        """Send *data* byte by byte, until the receiver is stopped."""
        for index in range(len(data)):
            self.send(data[index : index + 1])
            if interval_s and self._receiver.stopping.wait(interval_s):
                return

    def hold(self) -> None:
        """Do nothing until the sender closes or the receiver is stopped."""
        while self.sock.recv(65536):
            pass

    def stall(self) -> None:
        """Do nothing, not even read, until the receiver is stopped."""
        self._receiver.stopping.wait()

    def reset(self) -> None:
        """Let the close that follows send a reset in place of an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _take(self, max_bytes: int) -> bytes:
        if not self._buffer:
            self._buffer = self.sock.recv(min(65536, max_bytes))
        data, self._buffer = self._buffer[:max_bytes], self._buffer[max_bytes:]
        return data


Behaviour = Callable[[Peer], None]


class Receiver:
    """Listens on *host* and runs *behaviour* in a thread for each connection, which is closed when
    it returns.

    `requests` holds what `Peer.read_request` returned, in order. *tls* may be exchanged while it
    runs; connections to come use the new one. Use as a context manager, or call `stop`.
    """

    def __init__(
        self, behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = 0
        self.stopping = threading.Event()
        self._behaviour = behaviour
        self.tls = tls
        self._changed = threading.Condition()  # guards the three counters above and _socks
        self._socks: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._host = host
        self._listener = socket.create_server((host, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="receiver", daemon=True)
        self._acceptor.start()

    def url(self, path: str = "/hook", *, host: str | None = None) -> str:
        """Return the URL of *path* on this receiver; *host* is another name for its address."""
        return f"{'https' if self.tls else 'http'}://{host or self._host}:{self.port}{path}"

    def record(self, request: bytes) -> None:
        """Add *request* to `requests`."""
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def wait_for_requests(self, count: int, *, timeout_s: float = 20.0) -> bool:
        """Return whether *count* requests came within *timeout_s*."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.requests) >= count, timeout_s)

    def wait_for_closed(self, count: int, *, timeout_s: float = 20.0) -> bool:
        """Return whether *count* connections ended within *timeout_s*."""
        with self._changed:
            return self._changed.wait_for(lambda: self.closed >= count, timeout_s)

    def hang_up(self) -> None:
        """Close all connections; further ones are accepted."""
        with self._changed:
            socks = list(self._socks)
        for sock in socks:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        self.stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._acceptor.join(20)
        for thread in self._threads:
            thread.join(20)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                self.connections += 1
                number = self.connections
                self._socks.add(sock)
            thread = threading.Thread(
                target=self._serve, args=(sock, number), name="receiver-peer", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        plain = sock
        # The sender may break the connection in any way; the test looks at the answer.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if (tls := self.tls) is not None:
                # Raises if the sender is gone already: wrap_socket would then leave its socket
                # open until the garbage collector finds it.
                sock.getpeername()
                sock = tls.wrap_socket(sock, server_side=True)
                with self._changed:
                    self._socks.add(sock)
            self._behaviour(Peer(sock, self, number))
        sock.close()
        plain.close()
        with self._changed:
            self._socks -= {plain, sock}
            self.closed += 1
            self._changed.notify_all()


def answering(answer: bytes = OK) -> Behaviour:
    """Answer every request on a connection with the bytes *answer*."""

    def behave(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(answer)

    return behave


def answering_once(answer: bytes = OK) -> Behaviour:
    """Answer the first request on a connection with *answer*, then close."""

    def behave(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(answer)

    return behave


def answering_then_holding(answer: bytes) -> Behaviour:
    """Answer the first request on a connection with *answer*, then leave the connection open and
    silent.
    """

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(answer)
        peer.hold()

    return behave


def silent(peer: Peer) -> None:
    """Read the request and never answer."""
    peer.read_request()
    peer.hold()


def never_reading(peer: Peer) -> None:
    """Accept and do nothing at all."""
    peer.stall()


def resetting(peer: Peer) -> None:
    """Read the request and reset the connection."""
    peer.read_request()
    peer.reset()


def hanging_up(peer: Peer) -> None:
    """Read the request and close."""
    peer.read_request()


def dripping(answer: bytes, *, at_once: bytes = b"", interval_s: float = 0.02) -> Behaviour:
    """Read the request, send *at_once*, then *answer* in bytes *interval_s* apart; then close."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(at_once)
        peer.drip(answer, interval_s=interval_s)

    return behave


def endless(start: bytes, unit: bytes) -> Behaviour:
    """Read the request, send *start* and then *unit* over and over, until the sender closes."""

    def behave(peer: Peer) -> None:
        peer.read_request()
        peer.send(start)
        while True:
            peer.send(unit * 1000)

    return behave


def answering_early(answer: bytes, *, then_close: bool) -> Behaviour:
    """Answer after the head without reading the body; then close, or stay without reading on."""

    def behave(peer: Peer) -> None:
        peer.read_head()
        peer.send(answer)
        if not then_close:
            peer.stall()

    return behave


def hanging_up_on_the_second(peer: Peer) -> None:
    """Answer the first request on each connection; read the second and close."""
    if peer.read_request() is not None:
        peer.send(OK)
        peer.read_request()


def speaking_first(garbage: bytes) -> Behaviour:
    """Send *garbage* without having read anything, then stay silent."""

    def behave(peer: Peer) -> None:
        peer.send(garbage)
        peer.hold()

    return behave


def closing_when_used_after(idle_s: float, serve: Callable[[Peer, bytes], None]) -> Behaviour:
    """Serve requests with *serve*; one that comes on a connection idle for *idle_s* is reset
    unread.

    This is what a sender sees of a receiver that closes idle connections, where its close and the
    request cross on the way.
    """

    def behave(peer: Peer) -> None:
        while (request := peer.read_request()) is not None:
            serve(peer, request)
            answered_at = time.monotonic()
            select.select([peer.sock], [], [])
            if time.monotonic() - answered_at >= idle_s:
                peer.reset()
                return

    return behave


@contextmanager
def refusing() -> Iterator[int]:
    """Yield a port on 127.0.0.1 that refuses connections."""
    with socket.socket() as bound:  # never listens
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


@contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Yield a port on *host* whose backlog is full: the kernel drops what else wants to connect."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield int(listener.getsockname()[1])


def server_tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Return what a receiver needs to show *certificate*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
