"""POSTs a delivery's bytes to a URL and says what came back, as a value: nothing that a receiver
does raises.

urllib3 makes the connections, does TLS and checks certificates; each new connection passes `Egress`
(name, then the very address). The bytes of the exchange are `webhookd.exchange`'s: urllib3's own
request path costs four times the CPU.
"""

import socket
import ssl
import time
from functools import lru_cache

from urllib3.util.ssl_ import create_urllib3_context

from webhookd.core.answer import Answer, AnswerKind
from webhookd.errors import UnusableError
from webhookd.transport.connection import (
    Connection,
    Dialer,
    Origin,
    OutOfDescriptors,
    Pool,
    Pools,
    Route,
    Trace,
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

# A connection that was used a moment ago and dies is a receiver that hangs up; only one that lay
# idle may have been closed before the request.
_IDLE_BEFORE_RESEND_S = 1.0


class Transport:
    """Posts over kept connections. Safe to share between threads.

    At most *connections_per_origin* idle connections are kept to each of the *origins* receivers
    used last. *ca_bundle* (a PEM file) replaces the system's certificate authorities; *resolve*
    stands in for `socket.getaddrinfo`. Raise `UnusableError` if the bundle cannot be read.
    """

    def __init__(
        self,
        egress: Egress,
        *,
        connections_per_origin: int = 64,
        origins: int = 256,
        ca_bundle: str | None = None,
        resolve: Resolve = socket.getaddrinfo,
    ) -> None:
        self._egress = egress
        dialer = Dialer(egress, Resolver(resolve))
        self._pools = Pools(
            dialer,
            _tls_context(ca_bundle),
            origins=origins,
            connections_per_origin=connections_per_origin,
        )
        # Thousands of webhooks have a URL each, and often few receivers.
        self._route = lru_cache(maxsize=4096)(self._make_route)
        self._origin = lru_cache(maxsize=4096)(self._make_origin)

    def post(self, url: str, request: Request, *, timeout_s: float) -> Answer:
        """POST *request* to *url* and return the answer; block for at most *timeout_s* and 10 ms,
        from before DNS to the last byte.

        `Answer.first_byte_s` counts from the moment when the request began to be sent.
        """
        started_at = time.monotonic()
        trace = Trace()
        kind, error = AnswerKind.RESPONSE, None
        reader: AnswerReader | None = None
        try:
            route = self._route(url)
            data = request.to_bytes(route.start)
            reader = self._send(route, data, trace, deadline=started_at + timeout_s)
        except NotAllowed as reason:
            kind, error = AnswerKind.NOT_ALLOWED, str(reason)
        except DeadlinePassed as doing:
            kind, error = AnswerKind.TIMEOUT, f"timed out {doing}"
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
        )

    def close(self) -> None:
        """Close the idle connections; those in an exchange are closed when it ends."""
        self._pools.clear()

    def _make_route(self, url: str) -> Route:
        target = self._egress.target(url)
        origin = self._origin(target.scheme, target.host, target.port)
        return Route(start_lines(target.path, target.authority), origin)

    def _make_origin(self, scheme: str, host: str, port: int) -> Origin:
        if is_address(host):
            # Nothing need be connected to know this.
            self._egress.check_address(host)
        return self._pools.origin(scheme, host, port)

    def _send(self, route: Route, request: bytes, trace: Trace, *, deadline: float) -> AnswerReader:
        pool = self._pools.pool(route.origin)
        connection = pool.borrow()
        trace.reused = connection.sock is not None
        idle_s = time.monotonic() - connection.idle_since
        try:
            return _send_over(connection, pool, request, trace, deadline=deadline)
        except ConnectionDied:
            if not trace.reused or idle_s < _IDLE_BEFORE_RESEND_S:
                raise
        except OutOfDescriptors:
            # Idle connections to other receivers hold what this one needs; after this only those in
            # an exchange are left.
            self._pools.clear()
            pool = self._pools.pool(route.origin)
        trace.reused = False
        return _send_over(pool.fresh(), pool, request, trace, deadline=deadline)


def _send_over(
    connection: Connection, pool: Pool, request: bytes, trace: Trace, *, deadline: float
) -> AnswerReader:
    kept = False
    try:
        sock = connection.sock or connection.open(trace, deadline=deadline)
        began_at = time.monotonic()
        reader = exchange(sock, connection.readable, request, deadline=deadline)
        if reader.first_byte_at is not None:
            trace.first_byte_s = reader.first_byte_at - began_at
        # Bytes that TLS has decrypted already are invisible to the check for a readable socket.
        kept = reader.reusable and not (isinstance(sock, ssl.SSLSocket) and sock.pending())
    finally:
        if kept:
            pool.give_back(connection)
        else:
            connection.close()
    return reader


def _tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    context = create_urllib3_context()
    # A receiver could start a renegotiation and stall it while a large body is being sent.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if ca_bundle is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cafile=ca_bundle)
    except OSError as error:
        cause = error.strerror if error.errno else "no PEM certificates in it"
        raise UnusableError(f"the CA bundle {ca_bundle} cannot be read: {cause}") from None
    return context
