"""Queues as they look after a year or an accident: millions of rows made in a minute, and kept at
their level while a fleet delivers.

Rows are made without triggers, and the server does not wait for its disk meanwhile. Where there are
many, the queue's secondary indexes are dropped first and built afterwards. The server is durable
again before anything is measured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from bench.deliveries import QUEUE
from bench.sink import Sink

Connection = psycopg.Connection[tuple[Any, ...]]

MANY = 500_000  # rows; from here on it is faster to make them without indexes
_BODY = (
    '{"type": "invoice.paid", "data": {"id": 42, "amount": 1999, "currency": "EUR",'
    ' "customer": "cus_4711"}}'
)
# Rows n = 1, 2, ... became due a millisecond after one another, the last one now.
_MADE = """
INSERT INTO pggit.alert_delivery_queue
       (webhook_id, message_body, created_at, next_retry_at {columns})
SELECT {webhook}, '{body}', at, {due} {values}
  FROM (SELECT n, now() - ({rows} - n) * interval '1 ms' AS at
          FROM generate_series(1, {rows}) n) made
"""
_LOGGED = """
INSERT INTO pggit.alert_delivery_log
       (delivery_id, webhook_id, event_type, event_details, http_status, response_time_ms,
        worker_id, created_at)
SELECT delivery_id, webhook_id, 'delivered', '{"attempt": 1}', 204, 1.5, worker_id, delivered_at
  FROM pggit.alert_delivery_queue WHERE delivery_status = 'delivered' AND delivery_id > %s
"""

_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
 WHERE schemaname = 'pggit' AND tablename IN ('alert_delivery_queue', 'alert_delivery_log')
   AND indexname !~ '_pkey$'
"""


def due(connection: Connection, rows: int, *, webhook: str) -> None:
    """Make *rows* that are due and that no worker has seen. *webhook* is a SQL expression over the
    row's number n.
    """
    with _loading(connection, rows):
        _make(connection, rows, webhook=webhook)


def scheduled(connection: Connection, rows: int, *, webhook: str) -> None:
    """Make *rows* that failed once and wait for a retry in an hour or later; their lanes have
    counted them.
    """
    later = "now() + interval '1 hour' + n * interval '1 ms'"
    columns = {
        "delivery_status": "'retrying'",
        "routed": "true",
        "attempts": "1",
        "retry_count": "1",
    }
    with _loading(connection, rows):
        _make(connection, rows, webhook=webhook, due=later, **columns)


def delivered(connection: Connection, rows: int, *, webhook: str) -> None:
    """Make *rows* of history, with their attempt log."""
    columns = {
        "delivery_status": "'delivered'",
        "routed": "true",
        "attempts": "1",
        "worker_id": "'worker-1'",
        "attempted_at": "at",
        "first_attempted_at": "at",
        "delivered_at": "at",
    }
    with _loading(connection, rows):
        newest = connection.execute(
            f"SELECT coalesce(max(delivery_id), 0) FROM {QUEUE}".encode()
        ).fetchone()
        _make(connection, rows, webhook=webhook, **columns)
        connection.execute(_LOGGED.encode(), newest)
        connection.execute(
            "INSERT INTO pggit.finished_counts (delivered, failed) VALUES (%s, 0)", [rows]
        )


def opened(connection: Connection, rows: int, *, first: int, webhooks: int) -> None:
    """Open the circuits of *webhooks* from id *first* on, for an hour, with *rows* behind them that
    a worker has routed.
    """
    with _loading(connection, rows):
        connection.execute(
            "UPDATE pggit.webhook_health_metrics"
            " SET circuit_state = 'open', circuit_epoch = 1, consecutive_failures = 5,"
            " health_status = 'unavailable', blocked_by = 'circuit',"
            " circuit_until = now() + interval '1 h', runnable_at = now() + interval '1 h'"
            " WHERE webhook_id BETWEEN %s AND %s",
            [first, first + webhooks - 1],
        )
        if rows:
            _make(connection, rows, webhook=f"{first} + n % {webhooks}", routed="true")


class Level:
    """Keeps a backlog at its level: inserts as many due rows as requests have arrived at *sink*.
    *webhook* is a SQL expression over the row's number n.
    """

    def __init__(self, connection: Connection, sink: Sink, *, webhook: str) -> None:
        self._connection = connection
        self._sink = sink
        self._arrived = sink.requests()
        self._number = 0
        self._statement = (
            f"INSERT INTO {QUEUE} (webhook_id, message_body)"
            f" SELECT {webhook}, '{_BODY}'"
            " FROM generate_series(%(first)s::bigint, %(last)s::bigint) n"
        ).replace(" % ", " %% ")

    def hold(self) -> int:
        """Insert as many rows as have arrived since the last call, and return that number. Blocks
        for one transaction.
        """
        arrived = self._sink.requests()
        count, self._arrived = arrived - self._arrived, arrived
        self.put(count)
        return count

    def put(self, count: int) -> None:
        """Insert *count* rows in one transaction."""
        if count:
            self._connection.execute(
                self._statement.encode(), {"first": self._number + 1, "last": self._number + count}
            )
            self._number += count


def waiting(connection: Connection) -> int:
    """Return how many waiting deliveries no worker has seen."""
    row = connection.execute(
        f"SELECT count(*) FROM {QUEUE}"
        " WHERE NOT routed AND delivery_status IN ('pending', 'retrying')".encode()
    ).fetchone()
    assert row is not None
    return int(row[0])


def _make(
    connection: Connection, rows: int, *, webhook: str, due: str = "at", **columns: str
) -> None:
    names, values = (
        "".join(f", {part}" for part in parts) for parts in (columns.keys(), columns.values())
    )
    statement = _MADE.format(
        webhook=webhook, body=_BODY, due=due, rows=rows, columns=names, values=values
    )
    connection.execute(statement.encode())


@contextmanager
def _loading(connection: Connection, rows: int) -> Iterator[None]:
    """Make rows fast. Afterwards the server is durable and analysed, and has written everything."""
    indexes: dict[str, str] = {}
    _set_fsync(connection, "off")
    connection.execute("SET session_replication_role = replica")
    connection.execute("SET synchronous_commit = off")
    if rows >= MANY:
        indexes = dict(connection.execute(_INDEXES.encode()).fetchall())
        for name in indexes:
            connection.execute(f"DROP INDEX pggit.{name}".encode())
    yield
    connection.execute("SET maintenance_work_mem = '1GB'")
    for definition in indexes.values():
        connection.execute(definition.encode())
    connection.execute("RESET ALL")
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")
    _set_fsync(connection, "on")


def _set_fsync(connection: Connection, value: str) -> None:
    connection.execute(f"ALTER SYSTEM SET fsync = {value}".encode())
    connection.execute("SELECT pg_reload_conf()")
