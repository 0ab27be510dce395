"""One HTTP/1.1 exchange on a connected socket (RFC 9112): send the request, read the answer.

llhttp (httptools) parses the answer. Nothing is decompressed, redirects are not followed, and every
wait ends at one deadline.
"""

import errno
import math
import os
import select
import socket
import ssl
import struct
import time

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024
# Includes the framing: sizes and extensions of tiny chunks, trailers.
_MAX_ANSWER_BYTES = MAX_HEAD_BYTES + 4 * MAX_BODY_BYTES
_EXCERPT_BYTES = 256
_READ_BYTES = 16 * 1024
_PIECE_BYTES = 64 * 1024
_RECV_WAITS_S = 0.01

_ERRORS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ECONNABORTED: "connection reset",
    errno.ETIMEDOUT: "connection lost: the network gave up",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network unreachable",
}

_SWITCHED = "the receiver switched protocols instead of answering"


class NoAnswer(Exception):
    """The exchange ended without a complete answer; the message names the cause in one line."""


class ConnectionDied(NoAnswer):
    """The connection ended before the first byte of an answer.

    On a kept connection the receiver may not have seen the request.
    """


class DeadlinePassed(Exception):
    """The deadline passed; the message says in which phase."""


def prepare(sock: socket.socket) -> None:
    """Prepare the connected *sock* for `exchange`, once.

    Afterwards nothing on it blocks, except recv without TLS, which waits for 10 ms. So the answer
    of a fast receiver costs one system call instead of a poll and a recv, and the interpreter's
    lock is released once instead of twice.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.setblocking(False)
    else:
        sock.setblocking(True)
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(_RECV_WAITS_S * 1e6))
        )


def exchange(
    sock: socket.socket, readable: select.poll, request: bytes, *, deadline: float
) -> "AnswerReader":
    """Send *request* over *sock* (see `prepare`) and read its answer.

    Blocks until the monotonic *deadline* at most, or 10 ms longer. *readable* polls *sock* for
    POLLIN. Raise `DeadlinePassed`, `ConnectionDied` or `NoAnswer`. The reader that is returned is
    done; the connection can be kept if `reader.reusable`.
    """
    reader = AnswerReader()
    failure: OSError | None = None
    try:
        _send(sock, request, reader, deadline=deadline)
    except OSError as error:
        # The receiver stopped reading, but it may have sent an answer before.
        failure = error
    while not reader.done:
        doing = "while reading the answer" if reader.started else "while waiting for the answer"
        remaining_until(deadline, doing)
        if not _receive_some(sock, reader, failure):
            _wait(readable, deadline, doing)
    return reader


class AnswerReader:
    """Collects one answer from the bytes fed to it. Single-threaded.

    Bytes may come in any portions; informational answers (1xx) are skipped. Once `done` is true the
    fields are final. `feed` and `end` raise `NoAnswer` if the bytes are not an answer.
    """

    def __init__(self) -> None:
        self.http_status: int | None = None
        self.retry_after: str | None = None
        self.first_byte_at: float | None = None
        self.request_sent = False
        self.done = False
        self._keep_alive = False
        self._overrun = False
        self._head_done = False
        self._framed = False
        self._received = 0
        self._body_bytes = 0
        self._body_head = b""
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    @property
    def reusable(self) -> bool:
        """Return whether the connection can carry another exchange.

        The whole request was sent, the whole answer was read, and no byte came after it.
        """
        return self.request_sent and self._keep_alive and not self._overrun

    @property
    def started(self) -> bool:
        """Return whether any byte of an answer came."""
        return self._received > 0

    @property
    def excerpt(self) -> str:
        """Return the head of the body as one printable line."""
        if not self._body_head:
            return ""
        text = self._body_head[:_EXCERPT_BYTES].decode("utf-8", "replace")
        if not text.isprintable():
            text = "".join([character if character.isprintable() else " " for character in text])
        return text.strip()

    @property
    def wanted_bytes(self) -> int:
        """Return how many bytes to read next: never past the head's limit, so that it is exact."""
        return _READ_BYTES if self._head_done else min(_READ_BYTES, MAX_HEAD_BYTES - self._received)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the answer."""
        parser = self._parser
        if parser is None:
            return
        if not self._received:
            self.first_byte_at = time.monotonic()
            # llhttp takes RTSP and ICE for HTTP too.
            if data[0] not in b"H\r\n":
                raise NoAnswer("the answer is not HTTP")
        self._received += len(data)
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            raise NoAnswer(_SWITCHED) from None
        except HttpParserError as error:
            if not self.done:
                if parser.get_status_code() == 101:
                    raise NoAnswer(_SWITCHED) from None
                raise NoAnswer(_describe_garbage(error, self._head_done)) from None
            self._overrun = True
        if not self.done:
            self._check_limits()
        if self.done:
            # The parser refers to this object's methods. Without this each exchange would leave a
            # reference cycle to the garbage collector.
            self._parser = None

    def end(self) -> None:
        """Take the end of the stream.

        It completes an answer that has neither a length nor chunks (RFC 9112, 6.3).
        """
        if self.done:
            return
        if not self._head_done or self._framed:
            raise NoAnswer("the connection was closed in the middle of the answer")
        self.done = True
        self._parser = None

    # The parser's callbacks; httptools prescribes their names.

    def on_message_begin(self) -> None:
        if self.done:
            self._overrun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer
        name = name.lower()
        if name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            self._framed = value.rstrip().lower().endswith(b"chunked")
        elif name == b"retry-after" and self.retry_after is None:
            self.retry_after = value[:128].decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        if self.done or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._framed, self.retry_after = False, None
            return
        self.http_status = status
        self._head_done = True

    def on_body(self, data: bytes) -> None:
        if self.done:
            return
        self._body_bytes += len(data)
        if len(self._body_head) < _EXCERPT_BYTES:
            self._body_head += data

    def on_message_complete(self) -> None:
        if self._head_done and not self.done and self._parser is not None:
            self.done = True
            self._keep_alive = self._parser.should_keep_alive()

    def _check_limits(self) -> None:
        if not self._head_done:
            if self._received >= MAX_HEAD_BYTES:
                raise NoAnswer("the answer's headers are longer than 64 KiB")
        elif self._body_bytes >= MAX_BODY_BYTES or self._received >= _MAX_ANSWER_BYTES:
            # The status counts. The rest of the body is not worth keeping the connection.
            self.done = True


def _send(sock: socket.socket, request: bytes, reader: AnswerReader, *, deadline: float) -> None:
    """Send *request*: at once if it fits, else piece by piece while an answer may come already.

    Stops early if a final status or the end of the stream comes.
    """
    rest = memoryview(request)
    if len(rest) <= _PIECE_BYTES:
        rest = rest[_send_some(sock, rest) :]
    if rest:
        poller = select.poll()
        poller.register(sock, select.POLLIN | select.POLLOUT)
    while rest:
        ready = _wait(poller, deadline, "while sending")
        if ready & ~select.POLLOUT and not _answer_may_follow(sock, reader):
            return
        if ready & select.POLLOUT:
            rest = rest[_send_some(sock, rest[:_PIECE_BYTES]) :]
    reader.request_sent = True


def _send_some(sock: socket.socket, data: memoryview) -> int:
    try:
        return (
            sock.send(data)
            if isinstance(sock, ssl.SSLSocket)
            else sock.send(data, socket.MSG_DONTWAIT)
        )
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return 0  # TLS may have to wait even if the socket does not


def _receive_some(sock: socket.socket, reader: AnswerReader, failure: OSError | None) -> bool:
    """Feed *reader* the bytes that are there or come within 10 ms; return False if none do."""
    try:
        data = sock.recv(reader.wanted_bytes)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return False  # with TLS also for an incomplete record or a session ticket
    except OSError as error:
        if reader.started:
            raise NoAnswer(f"{describe_os_error(error)} while reading the answer") from None
        raise ConnectionDied(describe_os_error(failure or error)) from None
    if data:
        reader.feed(data)
    elif reader.started:
        reader.end()
    else:
        raise ConnectionDied(
            "closed without an answer" if failure is None else describe_os_error(failure)
        )
    return True


def _wait(poller: select.poll, deadline: float, doing: str) -> int:
    """Block until *poller* is ready and return its events. Raise `DeadlinePassed` with *doing*."""
    while True:
        events = poller.poll(math.ceil(1000 * remaining_until(deadline, doing)))
        if events:
            return events[0][1]


def _answer_may_follow(sock: socket.socket, reader: AnswerReader) -> bool:
    """Read what came while sending. Return False once it is a final status or the end."""
    try:
        data = sock.recv(reader.wanted_bytes)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return True
    if not data:
        return False
    reader.feed(data)
    return reader.http_status is None


def remaining_until(deadline: float, doing: str) -> float:
    """Return the seconds left until the monotonic *deadline*.

    Raise `DeadlinePassed` with *doing* if there are none.
    """
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise DeadlinePassed(doing)
    return remaining_s


def is_timeout(error: OSError) -> bool:
    """Return whether *error* is the socket's own timeout.

    The kernel's ETIMEDOUT has the same class, but also an errno.
    """
    return isinstance(error, TimeoutError) and error.errno is None


def describe_os_error(error: OSError) -> str:
    """Return one constant line that says what failed; it contains nothing of a URL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "TLS: the connection was closed"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').replace('_', ' ').lower()}"
    if error.errno in _ERRORS:
        return _ERRORS[error.errno]
    return "connection failed" if error.errno is None else os.strerror(error.errno).lower()


def _describe_garbage(error: HttpParserError, head_done: bool) -> str:
    where = "the answer's body is malformed" if head_done else "the answer is not HTTP"
    return f"{where}: {error}"
