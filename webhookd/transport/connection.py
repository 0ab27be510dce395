"""Connections to receivers, kept between exchanges: each is dialled through the egress check,
within the exchange's deadline.
"""

import errno
import select
import socket
import ssl
import time
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.poolmanager import PoolKey

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


class Origin(NamedTuple):
    """How urllib3 knows a receiver: by scheme, host and port."""

    pool_key: PoolKey
    pool_context: dict[str, Any]


class Route(NamedTuple):
    """What a URL comes to."""

    start: bytes
    origin: Origin


@dataclass(slots=True)
class Trace:
    """How one exchange went so far; single-threaded."""

    reused: bool = False
    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    first_byte_s: float | None = None


class OutOfDescriptors(NoAnswer):
    """The process has no file descriptor left for a socket."""


class Dialer:
    """Opens TCP connections that have passed the egress check."""

    def __init__(self, egress: Egress, resolver: Resolver) -> None:
        self._egress = egress
        self._resolver = resolver

    def dial(self, host: str, port: int, trace: Trace, *, deadline: float) -> socket.socket:
        """Return a connected socket whose timeout is what is left until *deadline*."""
        addresses = self._addresses(host, trace, deadline)
        try:
            # All of them: a name that mixes public and private addresses is an attempt to get at
            # the private one.
            for address in addresses:
                self._egress.check_address(address)
        except NotAllowed as reason:
            raise NotAllowed(f"{host}: {reason}") from None
        began_at = time.monotonic()
        sock = _connect_any(_interleaved(addresses), port, deadline)
        trace.connect_s = time.monotonic() - began_at
        return sock

    def _addresses(self, host: str, trace: Trace, deadline: float) -> list[str]:
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


def _interleaved(addresses: list[str]) -> list[str]:
    """Return *addresses* with the families taking turns: one without a route costs one try (RFC
    8305, 4).
    """
    first = [address for address in addresses if (":" in address) == (":" in addresses[0])]
    second = [address for address in addresses if (":" in address) != (":" in addresses[0])]
    return [
        address for pair in zip_longest(first, second) for address in pair if address is not None
    ]


def _connect_any(addresses: list[str], port: int, deadline: float) -> socket.socket:
    failure: OSError | None = None
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        remaining_s = remaining_until(deadline, "while connecting")
        # A dead address must leave time for the others and for the exchange; the last may use it
        # up.
        limit_s = (
            remaining_s if left == 1 else max(remaining_s / (left + 1), min(1.0, remaining_s / 2))
        )
        try:
            return _connect(address, port, limit_s, deadline)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise OutOfDescriptors("no file descriptor left; raise LimitNOFILE") from None
            failure = error
    if failure is None or is_timeout(failure):
        raise DeadlinePassed("while connecting")
    raise NoAnswer(describe_os_error(failure))


def _connect(address: str, port: int, limit_s: float, deadline: float) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    with ExitStack() as unless_done:
        unless_done.callback(sock.close)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(limit_s)
        sock.connect((address, port))
        # urllib3's TLS handshake comes next and keeps to this as a whole, however slowly the bytes
        # come.
        sock.settimeout(remaining_until(deadline, "while connecting"))
        unless_done.pop_all()
    return sock


class Connection(HTTPConnection):
    """urllib3's connection, dialled through the egress check. One thread at a time: borrowed from
    its pool.
    """

    def __init__(self, *args: Any, dialer: Dialer, **options: Any) -> None:
        super().__init__(*args, **options)
        self.idle_since = 0.0
        self.readable = select.poll()  # of the open socket; made once, since every exchange waits
        self._dialer = dialer
        self._trace = Trace()
        self._deadline = 0.0

    def open(self, trace: Trace, *, deadline: float) -> socket.socket:
        """Connect, TLS included, and return the socket, ready for exchanges.

        Raise `NotAllowed`, `DeadlinePassed` or `NoAnswer`.
        """
        self._trace, self._deadline = trace, deadline
        began_at = time.monotonic()
        try:
            self.connect()
        except OSError as error:
            # Dialling raises the exchange's own exceptions, so this was the handshake.
            if is_timeout(error):
                raise DeadlinePassed("in the TLS handshake") from None
            raise NoAnswer(_describe_handshake(error)) from None
        if isinstance(self.sock, ssl.SSLSocket):
            trace.tls_s = (
                time.monotonic() - began_at - (trace.dns_s or 0.0) - (trace.connect_s or 0.0)
            )
        sock: socket.socket = self.sock
        prepare(sock)
        self.readable = select.poll()
        self.readable.register(sock, select.POLLIN)
        return sock

    @property
    def is_connected(self) -> bool:
        """Return whether it is open and has nothing to read, not even the end."""
        return self.sock is not None and not self.readable.poll(0)

    def _new_conn(self) -> socket.socket:
        return self._dialer.dial(self._dns_host, self.port, self._trace, deadline=self._deadline)


class _TlsConnection(Connection, HTTPSConnection):
    pass


class Pool(urllib3.HTTPConnectionPool):
    """The kept connections to one origin, the one used last first. Threads may share it.

    urllib3 makes the connections. Lending them is done here: nobody ever waits for one, and a queue
    with locks would cost a tenth of an exchange. To close it, forget it.
    """

    ConnectionCls = Connection

    def __init__(self, *args: Any, maxsize: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self._most = maxsize
        self._kept: list[Connection] = []  # append and pop are atomic
        # Once nobody refers to the pool any more, an exchange under way included: so urllib3 ends
        # its own.
        weakref.finalize(self, _close_all, self._kept)

    def borrow(self) -> Connection:
        """Return a kept connection that is still alive, or a new one that is not open yet (its
        *sock* is None).
        """
        while True:
            try:
                connection = self._kept.pop()
            except IndexError:
                return self.fresh()
            if connection.is_connected:
                return connection
            connection.close()

    def fresh(self) -> Connection:
        """Return a new connection that is not open yet."""
        return cast(Connection, self._new_conn())

    def give_back(self, connection: Connection) -> None:
        """Keep *connection* for the next exchange, or close it where enough are kept."""
        if len(self._kept) < self._most:
            connection.idle_since = time.monotonic()
            self._kept.append(connection)
        else:
            connection.close()


class _TlsPool(Pool, urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class Pools(urllib3.PoolManager):
    """The pools of the origins used last; those of others are closed."""

    def __init__(
        self, dialer: Dialer, tls: ssl.SSLContext, *, origins: int, connections_per_origin: int
    ) -> None:
        super().__init__(num_pools=origins, maxsize=connections_per_origin, ssl_context=tls)
        self.pool_classes_by_scheme = {"http": Pool, "https": _TlsPool}
        self._dialer = dialer

    def origin(self, scheme: str, host: str, port: int) -> Origin:
        """Return what `pool` needs; depends on nothing that changes."""
        context = {**self.connection_pool_kw, "scheme": scheme, "host": host, "port": port}
        return Origin(self.key_fn_by_scheme[scheme](context), context)

    def pool(self, origin: Origin) -> Pool:
        """Return the pool for *origin*, made if need be."""
        try:
            pool = self.pools[origin.pool_key]
        except KeyError:
            # A copy, since urllib3 empties the context that it makes a pool from.
            pool = self.connection_from_pool_key(origin.pool_key, dict(origin.pool_context))
        return cast(Pool, pool)

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> urllib3.HTTPConnectionPool:
        return super()._new_pool(
            scheme, host, port, {**(request_context or {}), "dialer": self._dialer}
        )


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
