"""POSTs a request to a URL and returns the answer as a value: no receiver can make it raise."""

import socket
import time
from functools import lru_cache
from sys import getsizeof
from typing import NamedTuple

from webhookd.cache import ByteCache
from webhookd.core.answer import Answer, AnswerKind, ShortageKind
from webhookd.transport.connection import (
    Connection,
    Dialer,
    Origin,
    Pool,
    Trace,
    tls_context,
)
from webhookd.transport.egress import Egress, NotAllowed, is_address
from webhookd.transport.exchange import (
    AnswerReader,
    ConnectionDied,
    DeadlinePassed,
    NoAnswer,
    exchange,
)
from webhookd.transport.request import Request, start_lines
from webhookd.transport.resolver import Resolve, Resolver
from webhookd.transport.shortage import Shortage

# If a connection that was used a moment ago dies, the receiver hung up on this request. Only an
# idle one may have been closed before the request, and the request may be sent again.
_IDLE_BEFORE_RESEND_S = 1.0
# What idle connections hold.
_HELD_BY_IDLE = (ShortageKind.DESCRIPTOR, ShortageKind.PORT, ShortageKind.MEMORY)


class _Route(NamedTuple):
    """What a URL says: the first lines of the request, and where it goes."""

    start: bytes
    origin: Origin


class Transport:
    """Posts over kept connections. Safe to share between threads.

    At most *connections_per_origin* idle connections are kept to each of the *origins* receivers
    used last; at most *patient_lookups* threads wait for slow DNS. *ca_bundle* (a PEM file)
    replaces the system's certificate authorities; *resolve* stands in for `socket.getaddrinfo`.
    Raise `UnusableError` if the bundle cannot be read.
    """

    def __init__(
        self,
        egress: Egress,
        *,
        connections_per_origin: int = 64,
        origins: int = 256,
        patient_lookups: int = 16,
        ca_bundle: str | None = None,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        self._egress = egress
        self._dialer = Dialer(
            egress, Resolver(resolve, max_patient=patient_lookups), tls_context(ca_bundle)
        )
        self._max_kept = connections_per_origin
        # The pools used last. One that falls out of the cache closes its connections, see `Pool`.
        self._pool = lru_cache(maxsize=origins)(self._make_pool)
        # Thousands of webhooks have a URL each, and often few receivers.
        self._routes: ByteCache[str, _Route] = ByteCache(8 << 20)

    def post(self, url: str, request: Request, *, timeout_s: float) -> Answer:
        """POST *request* to *url* and return the answer.

        Blocks for at most *timeout_s* and 10 ms, from before DNS to the last byte.
        `Answer.first_byte_s` counts from the moment when the request began to be sent.
        """
        started_at = time.monotonic()
        trace = Trace()
        kind, error, shortage = AnswerKind.RESPONSE, None, None
        reader: AnswerReader | None = None
        try:
            route = self._route(url)
            data = request.to_bytes(route.start)
            reader = self._send(route, data, trace, deadline=started_at + timeout_s)
        except NotAllowed as reason:
            kind, error = AnswerKind.NOT_ALLOWED, str(reason)
        except DeadlinePassed as doing:
            kind, error = AnswerKind.TIMEOUT, f"timed out {doing}"
        except Shortage as reason:
            kind, error, shortage = AnswerKind.SHORTAGE, str(reason), reason.kind
        except NoAnswer as reason:
            kind, error = AnswerKind.NO_ANSWER, str(reason)
        return Answer(
            kind,
            time.monotonic() - started_at,
            http_status=None if reader is None else reader.http_status,
            retry_after=None if reader is None else reader.retry_after,
            excerpt="" if reader is None else reader.excerpt,
            error=error,
            reused=trace.reused,
            dns_s=trace.dns_s,
            connect_s=trace.connect_s,
            tls_s=trace.tls_s,
            first_byte_s=trace.first_byte_s,
            shortage=shortage,
        )

    def close(self) -> None:
        """Close the idle connections; those in an exchange are closed when it ends."""
        self._pool.cache_clear()

    def _route(self, url: str) -> _Route:
        route = self._routes.get(url)
        if route is None:
            route = self._make_route(url)
            parts = (url, route, route.start, route.origin, *route.origin)
            self._routes.put(url, route, sum(map(getsizeof, parts)))
        return route

    def _make_route(self, url: str) -> _Route:
        target = self._egress.target(url)
        if is_address(target.host):
            # This is known before a connection, so that nothing is spent on a pool.
            self._egress.check_address(target.host)
        return _Route(
            start_lines(target.path, target.authority),
            Origin(target.scheme, target.host, target.port),
        )

    def _make_pool(self, origin: Origin) -> Pool:
        return Pool(self._dialer, origin, max_kept=self._max_kept)

    def _send(self, route: _Route, data: bytes, trace: Trace, *, deadline: float) -> AnswerReader:
        pool = self._pool(route.origin)
        connection = pool.borrow()
        if connection is not None:
            trace.reused = True
            idle_s = time.monotonic() - connection.idle_since
            try:
                return _send_over(connection, pool, data, trace, deadline=deadline)
            except ConnectionDied:
                if idle_s < _IDLE_BEFORE_RESEND_S:
                    raise
            trace.reused = False
        try:
            connection = _open(pool, trace, deadline=deadline)
        except Shortage as shortage:
            if shortage.kind not in _HELD_BY_IDLE:
                raise
            # Idle connections to other receivers hold what this one needs. After this only those
            # in an exchange are left.
            self._pool.cache_clear()
            pool = self._pool(route.origin)
            connection = _open(pool, trace, deadline=deadline)
        return _send_over(connection, pool, data, trace, deadline=deadline)


def _open(pool: Pool, trace: Trace, *, deadline: float) -> Connection:
    try:
        return pool.open(trace, deadline=deadline)
    except MemoryError:
        raise Shortage(ShortageKind.MEMORY) from None


def _send_over(
    connection: Connection, pool: Pool, data: bytes, trace: Trace, *, deadline: float
) -> AnswerReader:
    kept = False
    try:
        began_at = time.monotonic()
        reader = exchange(connection.sock, connection.readable, data, deadline=deadline)
        if reader.first_byte_at is not None:
            trace.first_byte_s = reader.first_byte_at - began_at
        kept = reader.reusable and not connection.has_unread()
    finally:
        if kept:
            pool.give_back(connection)
        else:
            connection.close()
    return reader
