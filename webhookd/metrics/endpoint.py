"""A worker's own small HTTP server: `/metrics`, `/healthz`, `/readyz` and, for Prometheus to find
all workers, `/targets`.

One thread serves all connections without blocking, since whoever connects and says nothing must not
keep a scrape waiting: a silent client costs one descriptor until its time is up, and where there
are too many the oldest goes. One answer a connection, as RFC 9112 (9.6) allows.
"""

import gzip
import json
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus

from webhookd import __version__, logs
from webhookd.metrics.counters import Metrics
from webhookd.metrics.discovery import TargetGroups
from webhookd.metrics.exposition import Exposition

log = logs.Logger("webhookd.http_endpoint")

_CLIENT_TIMEOUT_S = 5.0  # to say what it wants, and again to take the answer
_MAX_CLIENTS = 64
_MAX_HEAD_BYTES = 16 * 1024
_BACKLOG = 128
_PAUSE_AFTER_FAULT_S = 0.2
_TEXT = "text/plain; charset=utf-8"
_ABSOLUTE = re.compile(r"\Ahttps?://[^/?]*", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Endpoint:
    """Serves *metrics* on *sock*, a bound socket that the parent process shares with this worker's
    successors.

    *alive* and *ready* return whether all is well, and a reason for people; *targets* returns the
    fleet's metrics endpoints, None while nobody knows them. The serving thread calls all three, so
    they must not block.

    The socket starts to listen and becomes non-blocking, but is never shut down nor closed here:
    the next worker accepts from the same one.
    """

    def __init__(
        self,
        sock: socket.socket,
        metrics: Metrics,
        *,
        alive: Callable[[], tuple[bool, str]],
        ready: Callable[[], tuple[bool, str]],
        targets: Callable[[], TargetGroups | None],
    ) -> None:
        self._sock = sock
        self._exposition = Exposition(metrics)
        self._checks = {"/healthz": alive, "/readyz": ready}
        self._pages = {"/metrics": self._metrics, "/targets": self._discovery}
        self._targets = targets
        self._clients: dict[socket.socket, _Client] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhookd-http", daemon=True)

    def start(self) -> None:
        """Listen and serve from now on in a daemon thread."""
        self._sock.listen(_BACKLOG)
        # Where a predecessor still accepts from the same socket, it may take what select() promised
        # to us.
        self._sock.setblocking(False)
        self._selector.register(self._sock, selectors.EVENT_READ)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, drop the connections in hand and wait for the thread; call once, after
        start().

        Connections that nobody accepted yet stay in the socket's backlog for the next worker.
        """
        self._stopping.set()
        self._wake_sender.send(b".")
        self._thread.join(_CLIENT_TIMEOUT_S)
        # Not by the thread: woken by something else it might close them before they are written to.
        self._wake_receiver.close()
        self._wake_sender.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:
                # Without this thread the worker looks dead to every probe. The fault may be back at
                # once, as where no descriptor is left: free some, and don't spin.
                log.exception("metrics endpoint fault, connections dropped")
                self._drop_all()
                self._stopping.wait(_PAUSE_AFTER_FAULT_S)
        self._drop_all()
        self._selector.close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._wait_s()):
            if key.fileobj is self._sock:
                self._accept()
            elif isinstance(key.data, _Client) and key.data.sock in self._clients:
                self._serve(key.data)
        now = time.monotonic()
        for client in [client for client in self._clients.values() if client.deadline <= now]:
            self._drop(client)

    def _wait_s(self) -> float | None:
        if not self._clients:
            return None
        return max(
            0.0, min(client.deadline for client in self._clients.values()) - time.monotonic()
        )

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        if len(self._clients) >= _MAX_CLIENTS:
            self._drop(next(iter(self._clients.values())))
        sock.setblocking(False)
        client = self._clients[sock] = _Client(sock, time.monotonic() + _CLIENT_TIMEOUT_S)
        self._selector.register(sock, selectors.EVENT_READ, client)

    def _serve(self, client: "_Client") -> None:
        if client.answer:
            self._send(client)
        else:
            self._receive(client)

    def _receive(self, client: "_Client") -> None:
        try:
            data = client.sock.recv(_MAX_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.received += data
        answer = self._answer(bytes(client.received))
        if answer:
            client.answer = memoryview(answer)
            client.deadline = time.monotonic() + _CLIENT_TIMEOUT_S
            self._selector.modify(client.sock, selectors.EVENT_WRITE, client)

    def _send(self, client: "_Client") -> None:
        try:
            sent = client.sock.send(client.answer)
        except BlockingIOError:
            return
        except OSError:
            sent = len(client.answer)
        client.answer = client.answer[sent:]
        if not client.answer:
            self._drop(client)

    def _answer(self, received: bytes) -> bytes | None:
        """Return the bytes to send, or None while the request's head is incomplete."""
        head, end, _ = received.replace(b"\r\n", b"\n").partition(b"\n\n")
        if len(received) > _MAX_HEAD_BYTES:
            return _render(_Response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
        if not end:
            return None
        request = _parse(head.decode("latin-1"))
        if request is None:
            return _render(_Response(HTTPStatus.BAD_REQUEST))
        return _render(self._respond(request), head_only=request.method == "HEAD")

    def _respond(self, request: "_Request") -> "_Response":
        check, page = self._checks.get(request.path), self._pages.get(request.path)
        if check is None and page is None:
            return _Response(
                HTTPStatus.NOT_FOUND,
                body=b"not found; try /metrics, /healthz, /readyz or /targets\n",
            )
        if request.method not in ("GET", "HEAD"):
            return _Response(HTTPStatus.METHOD_NOT_ALLOWED, headers=("Allow: GET, HEAD",))
        if page is not None:
            return page(request)
        assert check is not None
        passed, reason = check()
        line = " ".join(reason.split()) + "\n"
        return _Response(
            HTTPStatus.OK if passed else HTTPStatus.SERVICE_UNAVAILABLE, body=line.encode()
        )

    def _metrics(self, request: "_Request") -> "_Response":
        content_type, body = self._exposition.render(
            request.accept, for_prometheus=request.by_prometheus
        )
        headers: tuple[str, ...] = ("Vary: Accept, Accept-Encoding",)
        if _takes_gzip(request.accept_encoding):
            # Text this repetitive shrinks by nine tenths at any level; higher ones only take
            # longer.
            body = gzip.compress(body, compresslevel=3)
            headers = (*headers, "Content-Encoding: gzip")
        return _Response(HTTPStatus.OK, content_type, body, headers)

    def _discovery(self, request: "_Request") -> "_Response":
        targets = self._targets()
        if targets is None:
            # An error, not an empty list: Prometheus keeps the targets that it has.
            return _Response(
                HTTPStatus.SERVICE_UNAVAILABLE, body=b"the database has not been asked yet\n"
            )
        return _Response(HTTPStatus.OK, "application/json", json.dumps(targets).encode())

    def _drop(self, client: "_Client") -> None:
        del self._clients[client.sock]
        self._selector.unregister(client.sock)
        client.sock.close()

    def _drop_all(self) -> None:
        for client in list(self._clients.values()):
            self._drop(client)


@dataclass(slots=True, eq=False)
class _Client:
    """One connection: first it is read until the head is complete, then *answer* is what is left to
    send.
    """

    sock: socket.socket
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    accept: str
    accept_encoding: str
    by_prometheus: bool


@dataclass(frozen=True, slots=True)
class _Response:
    status: HTTPStatus
    content_type: str = _TEXT
    body: bytes = b""
    headers: tuple[str, ...] = ()


def _parse(head: str) -> _Request | None:
    """Return the request of *head* (lines ended by a line feed), or None where it is none that RFC
    9112 allows.
    """
    start, *lines = head.split("\n")
    parts = start.split(" ")
    # A bare carriage return or another control character is how one answer is made to look like
    # two.
    if _CONTROL.search(head) or len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return None
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            return None
        known = fields.get(name.lower())
        fields[name.lower()] = value.strip() if known is None else f"{known}, {value.strip()}"
    # A client that believes in a proxy names the whole URL, which servers must take too (RFC 9112,
    # 3.2.2).
    path, _, _ = _ABSOLUTE.sub("", parts[1], count=1).partition("?")
    # Prometheus says with each scrape how long it will wait; so do those that scrape in its stead.
    by_prometheus = "x-prometheus-scrape-timeout-seconds" in fields
    return _Request(
        parts[0], path, fields.get("accept", ""), fields.get("accept-encoding", ""), by_prometheus
    )


def _takes_gzip(accept_encoding: str) -> bool:
    """Return whether gzip is named with a weight above 0 (RFC 9110, 12.5.3); what cannot be read is
    no.
    """
    for one in accept_encoding.lower().split(","):
        coding, *parameters = (part.strip() for part in one.split(";"))
        if coding in ("gzip", "x-gzip"):
            weight = next((part[2:].strip() for part in parameters if part.startswith("q=")), "1")
            return re.fullmatch(r"0\.\d*[1-9]\d*|1(\.0*)?", weight) is not None
    return False


def _render(response: _Response, *, head_only: bool = False) -> bytes:
    status = response.status
    body = response.body or f"{status.phrase.lower()}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Server: webhookd/{__version__}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *response.headers,
        "\r\n",
    )
    return "\r\n".join(head).encode("latin-1") + (b"" if head_only else body)
