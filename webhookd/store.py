"""Connections to PostgreSQL: two pooled ones a worker, each with settings of its own, and explicit transactions."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
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


# A host or a network that vanishes without a word is noticed after half a minute; TCP by itself would take hours.
_NOTICE_SILENCE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}

class UnansweredError(psycopg.OperationalError):
    """The database has not answered, and nobody wants to wait any longer."""


_attendants: list[Callable[[float], None]] = []  # one in a worker, none elsewhere


def attend_waits(attend: Callable[[float], None]) -> None:
    """Have the main thread call *attend*, in this process from now on, ten times a second while it waits for an answer.

    It is told how many seconds this wait has lasted, and may end it by raising `UnansweredError`. A database that hangs must not
    make its workers look hung: killed, they would send again what they could not record.
    """
    _attendants.append(attend)


# Read-only. (A standby says the second of BEGIN ... READ WRITE, and so does a session whose plans a migration has changed.)
_PASSING = (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.FeatureNotSupported)


class _Connection(psycopg.Connection[TupleRow]):
    """Tells the supervisor while the dispatcher (the main thread) waits on it; other threads' waits say nothing of that one.

    What passes with another connection raises `psycopg.OperationalError`, like a connection that was cut.
    """

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        if _attendants and threading.current_thread() is threading.main_thread():
            gen = _attended(gen)
        try:
            return super().wait(gen, interval, timeout)
        except UnansweredError:
            self.close()
            raise
        except _PASSING as error:
            # As if it were away: this address leads to a standby, and the next connection may lead to the primary.
            self.close()
            raise psycopg.OperationalError(str(error)) from error


def _attended(gen: PQGen[RV]) -> PQGen[RV]:
    began = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready:  # nothing has come within the interval
                for attend in _attendants:
                    attend(time.monotonic() - began)
            wanted = gen.send(ready)
    except StopIteration as end:
        result: RV = end.value
        return result


def connect(dsn: str, *, application_name: str) -> Connection:
    """Open a connection in autocommit mode with webhookd's session settings.

    Blocks for at most 10 s a host; raises `psycopg.OperationalError`.
    """
    connection = _Connection.connect(dsn, **_parameters(dsn, application_name))
    configure(connection)
    return connection


def _parameters(dsn: str, application_name: str) -> dict[str, Any]:
    given = conninfo_to_dict(dsn)
    return {
        "autocommit": True,
        "application_name": application_name,
        "connect_timeout": 10,
        # From the second time on: the statements are few and always the same.
        "prepare_threshold": 2,
    } | {name: value for name, value in _NOTICE_SILENCE.items() if name not in given}


def configure(connection: Connection) -> None:
    """Apply webhookd's session settings to *connection*."""
    connection.execute(_SESSION)


def open_pool(dsn: str, *, application_name: str, size: int, timeout_s: float = 5.0) -> ConnectionPool[Connection]:
    """Return a pool that connects in the background; taking one blocks for at most *timeout_s* and raises `PoolTimeout`."""
    return ConnectionPool(
        dsn,
        connection_class=_Connection,
        kwargs=_parameters(dsn, application_name),
        configure=configure,
        min_size=size,
        max_size=size,
        timeout=timeout_s,
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
