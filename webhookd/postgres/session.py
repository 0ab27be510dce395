"""Connections to PostgreSQL: two pooled ones a worker, each with settings of its own, and explicit
transactions.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.abc import RV, Params, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import Row, TupleRow
from psycopg_pool import ConnectionPool

AnyConnection = psycopg.Connection[Any]

# Whatever a role's or database's defaults are, webhookd's sessions behave alike. Generic plans: the
# hot statements run thousands of times with parameters that must not change their plan, and a
# queue's statistics are stale by nature.
_SETTINGS = (
    *("default_transaction_isolation = 'read committed'", "default_transaction_read_only = off"),
    *(
        "default_transaction_deferrable = off",
        "TimeZone = 'UTC'",
        "DateStyle = 'ISO'",
        "IntervalStyle = 'postgres'",
    ),
    *("search_path = pg_catalog", "statement_timeout = '60s'", "lock_timeout = '5s'"),
    *(
        "idle_in_transaction_session_timeout = '60s'",
        "client_min_messages = 'warning'",
        "row_security = on",
    ),
    *(
        "plan_cache_mode = 'force_generic_plan'",
        "jit = off",
        "enable_seqscan = off",
        "enable_bitmapscan = off",
    ),
    "synchronous_commit = 'on'",
)

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
# A claim lost in a crash only sends again what nobody recorded; a record must never be lost.
_NOT_DURABLE = "; SET LOCAL synchronous_commit = off"
_IMPATIENT = "; SET LOCAL lock_timeout = '50ms'"
_BATCH = "; SET LOCAL enable_nestloop = off"


# A host or a network that vanishes without a word is noticed after half a minute; TCP by itself
# would take hours. (A DSN may say otherwise.)
_NOTICE_SILENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}


class UnansweredError(psycopg.OperationalError):
    """The database has not answered, and nobody wants to wait any longer."""


_attendants: list[Callable[[float], None]] = []  # one in a worker, none elsewhere


def attend_waits(attend: Callable[[float], None]) -> None:
    """Have the main thread call *attend*, in this process from now on, ten times a second while it
    waits for an answer.

    It is told how many seconds this wait has lasted, and may end it by raising `UnansweredError`. A
    database that hangs must not make its workers look hung: killed, they would send again what they
    could not record.
    """
    _attendants.append(attend)


# Read-only. (A standby says the second of BEGIN ... READ WRITE, and so does a session whose plans a
# migration has changed.)
_PASSING = (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.FeatureNotSupported)


class Connection(psycopg.Connection[TupleRow]):
    """A connection in autocommit mode that leaves nothing behind in a pooler's sessions:
    `configure` it before all else.
    """

    local_settings: str | None = None  # behind a pooler: what each transaction sets for itself

    @property
    def behind_pooler(self) -> bool:
        return self.local_settings is not None

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """psycopg's, with webhookd's settings."""
        begins = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if begins and self.local_settings:
                self.execute(self.local_settings.encode())
            yield transaction


class _PooledCursor(psycopg.Cursor[Row]):
    """Behind a pooler a statement by itself is a transaction, so that it has webhookd's settings,
    too.
    """

    def execute(
        self,
        query: Any,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        connection = self.connection
        assert isinstance(connection, Connection)
        if connection.info.transaction_status != TransactionStatus.IDLE:
            return super().execute(query, params, prepare=prepare, binary=binary)
        with transaction(connection):
            return super().execute(query, params, prepare=prepare, binary=binary)


class _WorkersConnection(Connection):
    """Tells the supervisor while the dispatcher (the main thread) waits on it; other threads' waits
    say nothing of that one.

    What passes with another connection raises `psycopg.OperationalError`, like a connection that
    was cut.
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
            # As if it were away: this address leads to a standby, and the next connection may lead
            # to the primary.
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

    Blocks for at most 10 s a host (*dsn* may say otherwise) and what looking it up takes; raises
    `psycopg.OperationalError`.
    """
    connection = _WorkersConnection.connect(dsn, **_parameters(dsn))
    with ExitStack() as unless_done:
        unless_done.callback(connection.close)
        configure(connection, application_name=application_name)
        unless_done.pop_all()
    return connection


def _parameters(dsn: str) -> dict[str, Any]:
    given = conninfo_to_dict(dsn)
    return {
        "autocommit": True,
        # A role or PGCLIENTENCODING may say otherwise, and then one body beyond that encoding ends
        # every worker that claims it.
        "client_encoding": "utf8",
        # From the second time on: the statements are few and always the same.
        "prepare_threshold": 2,
    } | {name: value for name, value in _NOTICE_SILENCE.items() if name not in given}


def lent_by_transaction(
    connection: AnyConnection, other: Callable[[], AbstractContextManager[AnyConnection]]
) -> bool:
    """Return whether *connection* leads through a pooler that lends sessions for a transaction
    only. Blocks for some statements.

    It does if it is answered by more than one, or by one that answers an *other* connection, too.
    That leaves nothing behind. False may be wrong where many others use the pooler or the other
    does not lead through it. Raises `psycopg.Error`.
    """
    for _ in range(3):
        answering = {_answering(connection), _answering(connection)}
        if len(answering) > 1:
            return True
        with other() as another:  # not for longer: *connection* may hang
            if _answering(another) in answering:
                return True
    return False


def _answering(connection: AnyConnection) -> int:
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def configure(
    connection: Connection, *, application_name: str, settings: Sequence[str] = _SETTINGS
) -> None:
    """Have what runs on *connection*, which is new, run with this name and *settings* (`name =
    value`); raises `psycopg.Error`.

    A pooler's sessions are shared: what one client sets or prepares there the next one meets, so
    nothing may outlive a transaction. (One that pools whole sessions is treated the same: nobody
    can tell.)
    """
    named = (
        sql.SQL("application_name = {}").format(sql.Literal(application_name)).as_string(connection)
    )
    if _answering(connection) == connection.info.backend_pid:
        connection.execute("; ".join(f"SET {setting}" for setting in (named, *settings)).encode())
        return
    connection.prepare_threshold = None
    connection.cursor_factory = _PooledCursor
    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.READ_COMMITTED, False
    connection.local_settings = "; ".join(f"SET LOCAL {setting}" for setting in (named, *settings))


def open_pool(
    dsn: str, *, application_name: str, size: int, timeout_s: float = 5.0
) -> ConnectionPool[Connection]:
    """Return a pool that connects in the background; taking one blocks for at most *timeout_s* and
    raises `PoolTimeout`.
    """
    return ConnectionPool(
        dsn,
        connection_class=_WorkersConnection,
        kwargs=_parameters(dsn),
        configure=partial(configure, application_name=application_name),
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
    connection: Connection, *, durable: bool = True, impatient: bool = False, batch: bool = False
) -> Iterator[psycopg.Cursor[TupleRow]]:
    """Run a READ COMMITTED transaction on an autocommit *connection*; roll back if the body raises.

    *durable* False commits without waiting for the disk. *impatient*: a lock that somebody holds
    for longer than a moment raises `psycopg.errors.LockNotAvailable`. *batch* is for statements
    that find their rows by an array of keys and join them with other arrays: those are hashed, for
    a planner that expects next to no rows would compare each with each.
    """
    begin = (
        _BEGIN if connection.local_settings is None else f"{_BEGIN}; {connection.local_settings}"
    )
    # psycopg's own cursor: behind a pooler the connection's would make this a transaction by
    # itself.
    settings = (
        ("" if durable else _NOT_DURABLE)
        + (_IMPATIENT if impatient else "")
        + (_BATCH if batch else "")
    )
    psycopg.Cursor(connection).execute((begin + settings).encode())
    with ExitStack() as unless_done:
        unless_done.callback(_roll_back, connection)
        with connection.cursor() as cursor:
            yield cursor
        unless_done.pop_all()
    connection.execute("COMMIT")


def _roll_back(connection: Connection) -> None:
    # On a broken connection there is nothing left to roll back, and the pool throws it away.
    if not connection.closed and not connection.broken:
        connection.rollback()


def number_array(values: Iterable[float | int | None]) -> str:
    """Return *values* as PostgreSQL's array literal: cheaper to send than a list, and one prepared
    statement for all widths.
    """
    # All at once: a record has nine arrays of two hundred.
    return "{" + repr(list(values))[1:-1].replace("None", "NULL") + "}"


def text_array(values: Iterable[str | None]) -> str:
    """Return *values* as PostgreSQL's array literal, for the same reason."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


@lru_cache(maxsize=1024)  # statuses, and what most attempts tell
def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def listen_statement(channel: str) -> sql.Composed:
    """Return LISTEN for *channel*, which cannot be a parameter."""
    return sql.SQL("LISTEN {}").format(sql.Identifier(channel))
