"""Connections to receivers, kept between exchanges.

Each is opened through the egress check, within the exchange's deadline. urllib3 makes the TLS
context and wraps the socket; no byte of an exchange passes it, since its own request path costs
four times the CPU.
"""

import random
import select
import socket
import ssl
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from urllib3.util.ssl_ import create_urllib3_context, ssl_wrap_socket

from webhookd.core.answer import ShortageKind
from webhookd.errors import UnusableError
from webhookd.transport.addresses import DeadAddresses, has_source
from webhookd.transport.egress import Egress, NotAllowed, is_address
from webhookd.transport.exchange import (
    DeadlinePassed,
    NoAnswer,
    describe_os_error,
    is_timeout,
    prepare,
    remaining_until,
)
from webhookd.transport.resolver import LookupFailed, Resolver
from webhookd.transport.shortage import Shortage, shortage_of

# A kept connection is given up after this time, a fifth more or less, so that a busy one follows
# the name's addresses too.
MAX_AGE_S = 300.0


class Origin(NamedTuple):
    """What a connection leads to. *scheme* is http or https, *host* as in `egress.Target`."""

    scheme: str
    host: str
    port: int


@dataclass(slots=True)
class Trace:
    """How one exchange went so far. Single-threaded."""

    reused: bool = False
    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    first_byte_s: float | None = None


class Connection:
    """An open connection, TLS included. One thread at a time uses it, borrowed from its pool."""

    def __init__(self, sock: socket.socket) -> None:
        prepare(sock)
        self.sock = sock
        self.idle_since = 0.0  # monotonic
        # Monotonic. Spread, so that connections opened together are not all opened anew together.
        self.give_up_at = time.monotonic() + MAX_AGE_S * random.uniform(0.8, 1.2)
        self.readable = select.poll()  # made once, since every exchange waits on it
        self.readable.register(sock, select.POLLIN)

    def is_alive(self) -> bool:
        """Return whether there is nothing to read: a closed connection has its end to read."""
        return not self.readable.poll(0)

    def has_unread(self) -> bool:
        """Return whether TLS holds decrypted bytes, which `is_alive` cannot see."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


class Dialer:
    """Opens connections to addresses that pass the egress check. Safe to share between threads."""

    def __init__(self, egress: Egress, resolver: Resolver, tls: ssl.SSLContext) -> None:
        self._egress = egress
        self._resolver = resolver
        self._tls = tls
        self._dead = DeadAddresses()

    def open(self, origin: Origin, trace: Trace, *, deadline: float) -> Connection:
        """Return a new connection. Blocks until the monotonic *deadline* at most.

        Raise `NotAllowed` for an address that the URL itself names, `DeadlinePassed`, `NoAnswer`,
        or `Shortage`.
        """
        addresses = self._addresses(origin.host, trace, deadline)
        try:
            # All of them: a name that mixes public and private addresses is an attempt to get at
            # the private one.
            for address in addresses:
                self._egress.check_connection(origin.scheme, address, origin.port)
        except NotAllowed as reason:
            if is_address(origin.host):
                raise
            # The name may have another address tomorrow, so that a retry can help.
            raise NoAnswer(f"{origin.host}: {reason}") from None
        began_at = time.monotonic()
        sock = self._connect_any(_interleaved(addresses), origin.port, deadline)
        connected_at = time.monotonic()
        trace.connect_s = connected_at - began_at
        if origin.scheme == "https":
            sock = self._handshake(sock, origin.host)
            trace.tls_s = time.monotonic() - connected_at
        try:
            return Connection(sock)
        except OSError as error:  # reset since it was connected
            sock.close()
            raise NoAnswer(describe_os_error(error)) from None

    def _addresses(self, host: str, trace: Trace, deadline: float) -> Sequence[str]:
        if is_address(host):
            return [host]
        began_at = time.monotonic()
        try:
            addresses = self._resolver.addresses(host, deadline=deadline)
        except TimeoutError:
            raise DeadlinePassed(f"while resolving {host}") from None
        except LookupFailed as reason:
            raise NoAnswer(str(reason)) from None
        trace.dns_s = time.monotonic() - began_at
        return addresses

    def _connect_any(self, addresses: Sequence[str], port: int, deadline: float) -> socket.socket:
        failure: OSError | None = None
        ordered = self._dead.last(addresses, port)
        for left, address in zip(range(len(ordered), 0, -1), ordered, strict=True):
            remaining_s = remaining_until(deadline, "while connecting")
            # A dead address must leave time for the others and for the exchange. The last one may
            # use all that is left.
            limit_s = (
                remaining_s
                if left == 1
                else max(remaining_s / (left + 1), min(1.0, remaining_s / 2))
            )
            try:
                sock = _connect(address, port, limit_s, deadline)
            except OSError as error:
                kind = shortage_of(error)
                if kind is not None and (kind is not ShortageKind.PORT or has_source(address)):
                    raise Shortage(kind) from None
                failure = error
                if len(ordered) > 1:
                    self._dead.mark(address, port)
            else:
                self._dead.unmark(address, port)
                return sock
        if failure is None or is_timeout(failure):
            raise DeadlinePassed("while connecting")
        raise NoAnswer(describe_os_error(failure))

    def _handshake(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        """Return *sock* with TLS, the certificate checked for *host*, a name or an address.

        Blocks for at most the socket's timeout.
        """
        try:
            # Certificates name hosts without the dot that ends a full name.
            return ssl_wrap_socket(sock, ssl_context=self._tls, server_hostname=host.rstrip("."))
        except OSError as error:
            sock.close()
            if is_timeout(error):
                raise DeadlinePassed("in the TLS handshake") from None
            kind = shortage_of(error)
            if kind is not None:
                raise Shortage(kind) from None
            raise NoAnswer(_describe_handshake(error)) from None


class Pool:
    """The kept connections to one origin; the one used last is used first. Threads may share it.

    No thread waits for a connection here, and a queue with locks would cost a tenth of an exchange.
    To close a pool, drop it: its connections are closed once nothing refers to it, not even an
    exchange in progress.
    """

    def __init__(self, dialer: Dialer, origin: Origin, *, max_kept: int) -> None:
        self._dialer = dialer
        self._origin = origin
        self._max_kept = max_kept
        self._kept: list[Connection] = []  # append and pop are atomic
        weakref.finalize(self, _close_all, self._kept)

    def borrow(self) -> Connection | None:
        """Return a kept connection that is still alive and not too old, None if there is none."""
        while True:
            try:
                connection = self._kept.pop()
            except IndexError:
                return None
            if connection.is_alive() and time.monotonic() < connection.give_up_at:
                return connection
            connection.close()

    def open(self, trace: Trace, *, deadline: float) -> Connection:
        """Return a new connection. Blocks and raises as `Dialer.open` does."""
        return self._dialer.open(self._origin, trace, deadline=deadline)

    def give_back(self, connection: Connection) -> None:
        """Keep *connection* for the next exchange. Close it if enough are kept or it is too old."""
        now = time.monotonic()
        if len(self._kept) < self._max_kept and now < connection.give_up_at:
            connection.idle_since = now
            self._kept.append(connection)
        else:
            connection.close()


def tls_context(ca_bundle: str | None) -> ssl.SSLContext:
    """Return what TLS connections share: TLS 1.2 or newer, certificate and host name checked.

    *ca_bundle* (a PEM file) replaces the system's certificate authorities. Raise `UnusableError` if
    it cannot be read.
    """
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


def _interleaved(addresses: Sequence[str]) -> list[str]:
    """Return *addresses* with IPv4 and IPv6 in turn (RFC 8305, 4).

    So a family without a route costs one try only.
    """
    first = [address for address in addresses if (":" in address) == (":" in addresses[0])]
    second = [address for address in addresses if (":" in address) != (":" in addresses[0])]
    return [
        address for pair in zip_longest(first, second) for address in pair if address is not None
    ]


def _connect(address: str, port: int, limit_s: float, deadline: float) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    with ExitStack() as unless_done:
        unless_done.callback(sock.close)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(limit_s)
        sock.connect((address, port))
        # For the TLS handshake, which keeps to this as a whole, however slowly the bytes come.
        sock.settimeout(remaining_until(deadline, "while connecting"))
        unless_done.pop_all()
    return sock


def _close_all(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


def _describe_handshake(error: OSError) -> str:
    text = describe_os_error(error)
    if isinstance(error, ssl.SSLError):
        return (
            f"{text} (does the port speak TLS?)" if error.reason == "WRONG_VERSION_NUMBER" else text
        )
    return f"TLS: {text} in the handshake"
