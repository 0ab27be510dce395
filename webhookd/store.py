"""Connections to PostgreSQL: two pooled ones a worker, each with settings of its own, and explicit transactions."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

Connection = psycopg.Connection[TupleRow]

# Whatever a role's or database's defaults are, webhookd's sessions behave alike. Generic plans: the hot statements run
# thousands of times with parameters that must not change their plan, and a queue's statistics are stale by nature.
_SESSION = """
SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off;
SET default_transaction_deferrable = off; SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';
SET search_path = pg_catalog; SET statement_timeout = '60s'; SET lock_timeout = '5s';
SET idle_in_transaction_session_timeout = '60s'; SET client_min_messages = 'warning'; SET row_security = on;
SET plan_cache_mode = 'force_generic_plan'; SET jit = off; SET enable_seqscan = off; SET enable_bitmapscan = off;
SET synchronous_commit = 'on'
"""

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
# A claim lost in a crash only sends again what nobody recorded; a record must never be lost.
_NOT_DURABLE = "; SET LOCAL synchronous_commit = off"
_IMPATIENT = "; SET LOCAL lock_timeout = '50ms'"


def connect(dsn: str, *, application_name: str) -> Connection:
    """Open a connection in autocommit mode with webhookd's session settings.

    Blocks for at most 10 s a host; raises `psycopg.OperationalError`.
    """
    connection = psycopg.connect(
        dsn, autocommit=True, application_name=application_name, connect_timeout=10, prepare_threshold=2
    )
    configure(connection)
    return connection


def configure(connection: Connection) -> None:
    """Apply webhookd's session settings to *connection*."""
    connection.execute(_SESSION)


def open_pool(dsn: str, *, application_name: str, size: int) -> ConnectionPool[Connection]:
    """Return a pool that connects in the background; taking a connection blocks for at most 5 s and raises `PoolTimeout`."""
    return ConnectionPool(
        dsn,
        kwargs={
            "autocommit": True,
            "application_name": application_name,
            "connect_timeout": 10,
            # From the second time on: the statements are few and always the same.
            "prepare_threshold": 2,
        },
        configure=configure,
        min_size=size,
        max_size=size,
        timeout=5.0,
        reconnect_timeout=3.0,  # then asks again only when somebody wants a connection: no growing pauses
        num_workers=1,
        name=application_name,
        open=True,
    )


@contextmanager
def transaction(
    connection: Connection, *, durable: bool = True, impatient: bool = False
) -> Iterator[psycopg.Cursor[TupleRow]]:
    """Run a READ COMMITTED transaction on an autocommit *connection*; roll back if the body raises.

    *durable* False commits without waiting for the disk. *impatient*: a lock that somebody holds for longer than a moment raises
    `psycopg.errors.LockNotAvailable`.
    """
    connection.execute(_BEGIN + ("" if durable else _NOT_DURABLE) + (_IMPATIENT if impatient else ""))
    try:
        with connection.cursor() as cursor:
            yield cursor
    except BaseException:
        # On a broken connection there is nothing left to roll back, and the pool throws it away.
        if not connection.closed and not connection.broken:
            connection.rollback()
        raise
    connection.execute("COMMIT")


def number_array(values: Iterable[float | int | None]) -> str:
    """Return *values* as PostgreSQL's array literal: cheaper to send than a list, and one prepared statement for all widths."""
    return "{" + ",".join(["NULL" if value is None else repr(value) for value in values]) + "}"


def listen_statement(channel: str) -> sql.Composed:
    """Return LISTEN for *channel*, which cannot be a parameter."""
    return sql.SQL("LISTEN {}").format(sql.Identifier(channel))
