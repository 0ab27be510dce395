"""The LISTEN connection: where wakeups arrive."""

import select
import time
from uuid import uuid4

from webhookd import store

WAKE_CHANNEL = "webhookd_wake"


class Listener:
    """One connection that listens. Used by the dispatcher's thread only; any method may raise `psycopg.OperationalError`."""

    def __init__(self, dsn: str, *, application_name: str) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._connection: store.Connection | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    def open(self) -> None:
        """Connect and LISTEN; whatever is committed after this returns is heard. Blocks for at most 10 s a host."""
        self.close()
        connection = store.connect(self._dsn, application_name=self._application_name)
        connection.execute(store.listen_statement(WAKE_CHANNEL))
        self._connection = connection

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def fileno(self) -> int:
        """Return the socket to wait on; -1 without a connection."""
        return -1 if self._connection is None or self._connection.closed else self._connection.fileno()

    def drain(self) -> list[str]:
        """Return the payloads that have arrived, without blocking."""
        if self._connection is None:
            return []
        pgconn = self._connection.pgconn
        pgconn.consume_input()
        payloads = []
        while (notification := pgconn.notifies()) is not None:
            payloads.append(notification.extra.decode())
        return payloads

    def hears(self, sender: store.Connection, *, timeout_s: float = 3.0) -> bool:
        """Return whether a NOTIFY sent through *sender* arrives here within *timeout_s*.

        It does not through a transaction-pooling pgbouncer, which accepts LISTEN and then delivers nothing. Payloads that
        arrive meanwhile are not kept: the caller looks at the queue afterwards in any case.
        """
        word = f"probe {uuid4()}"
        sender.execute("SELECT pg_notify(%s, %s)", [WAKE_CHANNEL, word])
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            select.select([self.fileno()], [], [], left)
            if word in self.drain():
                return True
        return False
