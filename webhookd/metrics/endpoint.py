"""A worker's own small HTTP server: `/metrics`, `/healthz`, `/readyz` and, for Prometheus to find
all workers, `/targets`.

One thread serves all connections without blocking: a client that connects and sends nothing must
not delay a scrape. It costs one descriptor until its time is up, and where there are too many
clients the oldest is dropped. One answer a connection, as RFC 9112 (9.6) allows.
"""

import gzip
import json
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
from webhookd.metrics.request import MAX_HEAD_BYTES, Request, RequestReader

log = logs.Logger("webhookd.http_endpoint")

_CLIENT_TIMEOUT_S = 5.0  # for the request, and again for the answer
_MAX_CLIENTS = 64
_BACKLOG = 128
_PAUSE_AFTER_FAULT_S = 0.2
_TEXT = "text/plain; charset=utf-8"


class Endpoint:
    """Serves *metrics* on *sock*, a bound socket that the parent process shares with this worker's
    successors.

    *alive* and *ready* return whether all is well, and the reason in words; *targets* returns the
    fleet's metrics endpoints, None while they are not known. The serving thread calls all three, so
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
        # While a predecessor accepts from the same socket, it may take the connection that select()
        # has announced here: accept() must not block then.
        self._sock.setblocking(False)
        self._selector.register(self._sock, selectors.EVENT_READ)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting, drop all connections and wait for the thread; call once, after start().

        Connections that were not accepted yet stay in the socket's backlog for the next worker.
        """
        self._stopping.set()
        self._wake_sender.send(b".")
        self._thread.join(_CLIENT_TIMEOUT_S)
        # Here and not in the thread: if something else woke it, it would close them before the
        # byte above is sent.
        self._wake_receiver.close()
        self._wake_sender.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception:
                # Without this thread the worker looks dead to every probe. The fault may come back
                # at once, for example if no descriptor is left: free some, and do not spin.
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
            data = client.sock.recv(MAX_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        request = client.reader.feed(data)
        if request is not None:
            if isinstance(request, Request):
                answer = _render(self._respond(request), head_only=request.method == "HEAD")
            else:
                answer = _render(_Response(request))
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

    def _respond(self, request: Request) -> "_Response":
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

    def _metrics(self, request: Request) -> "_Response":
        content_type, body = self._exposition.render(
            request.accept, for_prometheus=request.by_prometheus
        )
        headers: tuple[str, ...] = ("Vary: Accept, Accept-Encoding",)
        if request.takes_gzip:
            # Text as repetitive as this shrinks by nine tenths at any level; higher levels only
            # take longer.
            body = gzip.compress(body, compresslevel=3)
            headers = (*headers, "Content-Encoding: gzip")
        return _Response(HTTPStatus.OK, content_type, body, headers)

    def _discovery(self, request: Request) -> "_Response":
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
    """One connection: first its request is read, then *answer* is what is left to send."""

    sock: socket.socket
    deadline: float
    reader: RequestReader = field(default_factory=RequestReader)
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


@dataclass(frozen=True, slots=True)
class _Response:
    status: HTTPStatus
    content_type: str = _TEXT
    body: bytes = b""
    headers: tuple[str, ...] = ()


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
