"""The LISTEN connection: where notifications arrive."""

import math
import select
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from uuid import uuid4

import psycopg
from psycopg_pool import ConnectionPool

from webhookd import logs
from webhookd.errors import first_line
from webhookd.postgres import session
from webhookd.transport.background import in_background

log = logs.Logger("webhookd.listener")

WAKE_CHANNEL = "webhookd_wake"
HEARS_WITHIN_S = 3.0


class DeafError(psycopg.OperationalError):
    """Notifications do not arrive: the connection goes through a pooler, or to another database."""


class Listener:
    """One connection that listens. A thread of its own opens it: a host that does not answer must
    not block the dispatcher.

    Used by the dispatcher's thread only.
    """

    def __init__(self, dsn: str, *, application_name: str) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._opening: Future[session.Connection] | None = None
        self._connection: session.Connection | None = None
        self._reported = ""  # why the last attempt to open one failed

    @property
    def connected(self) -> bool:
        """What is notified while this is true arrives."""
        return self._connection is not None and not self._connection.closed

    @property
    def opening(self) -> bool:
        return self._opening is not None

    def open(self, pool: ConnectionPool[session.Connection], done: Callable[[], None]) -> None:
        """Begin to connect, to LISTEN and to see whether a NOTIFY sent through *pool* arrives;
        returns at once.

        At the end *done* is called, in another thread, and `opened` returns the outcome.
        """
        self.close()
        self._opening = in_background(lambda: self._connect(pool), name="webhookd-listener")
        self._opening.add_done_callback(lambda _: done())

    def opened(self) -> bool:
        """Return whether the connection that `open` began is open; False while that lasts.

        Raises what it failed with: `DeafError` or another `psycopg.Error`. What was notified before
        this is lost.
        """
        if self._opening is None or not self._opening.done():
            return False
        ended, self._opening = self._opening, None
        try:
            self._connection = ended.result()
        except psycopg.Error as error:
            self._report(error)
            raise
        self._reported = ""
        return True

    def _report(self, error: psycopg.Error) -> None:
        """Say once why nothing is heard."""
        deaf = isinstance(error, DeafError)
        event = "LISTEN is deaf" if deaf else "LISTEN connection could not be opened"
        if event != self._reported:
            self._reported = event
            hint = "a transaction-pooling pgbouncer? give --listen-dsn; " if deaf else ""
            log.warning(event, error=first_line(error), hint=f"{hint}until then looking every 2 s")

    def close(self) -> None:
        """Close the connection, if there is one, and give up opening one."""
        if self._opening is not None:
            self._opening.add_done_callback(_close_unwanted)
            self._opening = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def fileno(self) -> int:
        """Return the socket to wait on; -1 without a connection."""
        return (
            -1 if self._connection is None or self._connection.closed else self._connection.fileno()
        )

    def drain(self) -> list[str]:
        """Return the payloads that have arrived, without blocking. Raises
        `psycopg.OperationalError`.
        """
        return [] if self._connection is None else _payloads(self._connection)

    def _connect(self, pool: ConnectionPool[session.Connection]) -> session.Connection:
        connection = session.connect(self._dsn, application_name=self._application_name)
        with ExitStack() as unless_done:
            unless_done.callback(connection.close)
            if connection.behind_pooler and session.is_transaction_pooled(
                connection, pool.connection
            ):
                # LISTEN would stay in a session that another client gets next.
                raise DeafError("a pooler in transaction mode")
            connection.execute(f"LISTEN {WAKE_CHANNEL}".encode())
            if not _hears(connection, pool):
                if connection.behind_pooler:
                    # Perhaps in the session that listens.
                    connection.execute(f"UNLISTEN {WAKE_CHANNEL}".encode())
                raise DeafError(f"a NOTIFY did not arrive within {HEARS_WITHIN_S:g} s")
            unless_done.pop_all()
        return connection


def readable(descriptors: Iterable[int], *, within_s: float) -> set[int]:
    """Return those *descriptors* that have something to read, the end or an error included. Blocks
    for at most *within_s* until the first has.

    Negative ones are left out. It uses poll because select refuses descriptors from 1024 on, and a
    worker has one open for each receiver.
    """
    poller = select.poll()
    for descriptor in descriptors:
        if descriptor >= 0:
            poller.register(descriptor, select.POLLIN)
    # Rounded up: a wait that ends a moment too early is begun again, over and over. A negative
    # time-out would wait without end.
    return {descriptor for descriptor, _ in poller.poll(max(0, math.ceil(1000 * within_s)))}


def _close_unwanted(future: Future[session.Connection]) -> None:
    if future.exception() is None:
        future.result().close()


def _payloads(connection: session.Connection) -> list[str]:
    connection.pgconn.consume_input()
    payloads = []
    while (notification := connection.pgconn.notifies()) is not None:
        payloads.append(notification.extra.decode())
    return payloads


def _hears(connection: session.Connection, pool: ConnectionPool[session.Connection]) -> bool:
    """Return whether a NOTIFY sent through *pool* arrives; what arrives before it is lost."""
    word = f"probe {uuid4()}"
    with pool.connection() as sender:
        sender.execute("SELECT pg_notify(%s, %s)", [WAKE_CHANNEL, word])
    deadline = time.monotonic() + HEARS_WITHIN_S
    while (left := deadline - time.monotonic()) > 0:
        readable([connection.fileno()], within_s=left)
        if word in _payloads(connection):
            return True
    return False
