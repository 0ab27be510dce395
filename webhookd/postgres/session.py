"""Connections to PostgreSQL, each kind with settings of its own, and explicit transactions.

Three profiles: a worker (`connect`, `open_pool`), one command (`connect_command`), and one that
only reads (`connect_unset` with `read_only`).
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Self

import psycopg
from psycopg import errors, sql
from psycopg.abc import RV, Params, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import Row, TupleRow
from psycopg_pool import ConnectionPool

from webhookd.errors import UnusableError, WebhookdError

AnyConnection = psycopg.Connection[Any]

# No default of a role or a database may change what statements mean.
_COMMON_SETTINGS = (
    "default_transaction_isolation = 'read committed'",
    "default_transaction_read_only = off",
    "TimeZone = 'UTC'",
    "DateStyle = 'ISO'",
    "IntervalStyle = 'postgres'",
)
# Generic plans: the hot statements run thousands of times with parameters that must not change
# their plan, and the statistics of a queue are stale by nature.
_WORKER_SETTINGS = (
    *_COMMON_SETTINGS,
    "default_transaction_deferrable = off",
    "search_path = pg_catalog",
    "statement_timeout = '60s'",
    "lock_timeout = '5s'",
    "idle_in_transaction_session_timeout = '60s'",
    "client_min_messages = 'warning'",
    "row_security = on",
    "plan_cache_mode = 'force_generic_plan'",
    "jit = off",
    "enable_seqscan = off",
    "enable_bitmapscan = off",
    "synchronous_commit = 'on'",
)
# A migration may take as long as it needs.
_COMMAND_SETTINGS = (
    *_COMMON_SETTINGS,
    "search_path = ''",
    "statement_timeout = 0",
    "idle_in_transaction_session_timeout = 0",
    "lock_timeout = 0",
    "standard_conforming_strings = on",
    "client_min_messages = warning",
)
# For one transaction, never for the session: behind a pooler the session's next transaction belongs
# to another client. The planner is held to the indexes like a worker's, since the history is long
# and the statistics of a queue are old.
_READER_SETTINGS = (
    "search_path = pg_catalog",
    "TimeZone = 'UTC'",
    "lock_timeout = '1s'",
    "enable_seqscan = off",
    "enable_bitmapscan = off",
    "jit = off",
)

_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_BEGIN_READING = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY"
# A claim that a crash loses only sends again what was not recorded. A record must never be lost.
_NOT_DURABLE = "; SET LOCAL synchronous_commit = off"
_BATCH = "; SET LOCAL enable_nestloop = off"

SHORT_LOCK_TIMEOUT_S = 0.05  # long enough for another worker's transaction to end

# A host or a network that vanishes without a reset is noticed after half a minute; TCP by itself
# would take hours. (A DSN may say otherwise.)
_NOTICE_SILENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}


class UnansweredError(psycopg.OperationalError):
    """The database has not answered, and the worker may not wait any longer."""


_while_waiting: list[Callable[[float], None]] = []  # one in a worker, none elsewhere


def call_while_waiting(callback: Callable[[float], None]) -> None:
    """Have the main thread call *callback*, in this process from now on, ten times a second while
    it waits for an answer.

    Its argument is how many seconds this wait has lasted. It may end the wait by raising
    `UnansweredError`. Without it a database that hangs would make its workers look as if they hung:
    killed, they would send again what they could not record.
    """
    _while_waiting.append(callback)


# Errors that another connection does not have: a standby rejects BEGIN ... READ WRITE, and a
# session whose plans a migration has changed rejects those.
_RECONNECT_ERRORS = (errors.ReadOnlySqlTransaction, errors.FeatureNotSupported)


class Connection(psycopg.Connection[TupleRow]):
    """A connection in autocommit mode that leaves nothing behind in the sessions of a pooler.
    `_configure` it before its first use.
    """

    local_settings: str | None = None  # behind a pooler: what each transaction sets for itself

    @property
    def behind_pooler(self) -> bool:
        return self.local_settings is not None

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """Begin psycopg's transaction, with webhookd's settings."""
        begins = self.info.transaction_status == TransactionStatus.IDLE
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if begins and self.local_settings:
                self.execute(self.local_settings.encode())
            yield transaction


class _PooledCursor(psycopg.Cursor[Row]):
    """Runs each single statement in a transaction: behind a pooler it would otherwise not have
    webhookd's settings.
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
    """Calls the callback of `call_while_waiting` while the main thread, the dispatcher, waits on
    it. How long other threads wait says nothing about the dispatcher.

    An error that another connection would not have raises `psycopg.OperationalError`, like a
    connection that was cut.
    """

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        if _while_waiting and threading.current_thread() is threading.main_thread():
            gen = _with_callbacks(gen)
        try:
            return super().wait(gen, interval, timeout)
        except UnansweredError:
            self.close()
            raise
        except _RECONNECT_ERRORS as error:
            # As if the database were away: this address leads to a standby, and the next connection
            # may lead to the primary.
            self.close()
            raise psycopg.OperationalError(str(error)) from error


def _with_callbacks(gen: PQGen[RV]) -> PQGen[RV]:
    began = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready:  # nothing has come within the interval
                for callback in _while_waiting:
                    callback(time.monotonic() - began)
            wanted = gen.send(ready)
    except StopIteration as end:
        result: RV = end.value
        return result


def connect(dsn: str, *, application_name: str) -> Connection:
    """Open a connection in autocommit mode with a worker's settings.

    Blocks for at most 10 s a host (*dsn* may say otherwise) and what looking it up takes; raises
    `psycopg.OperationalError`.
    """
    connection = _WorkersConnection.connect(dsn, **_parameters(dsn))
    with ExitStack() as unless_done:
        unless_done.callback(connection.close)
        _configure(connection, application_name, _WORKER_SETTINGS)
        unless_done.pop_all()
    return connection


def _parameters(dsn: str) -> dict[str, Any]:
    given = conninfo_to_dict(dsn)
    return {
        "autocommit": True,
        # A role or PGCLIENTENCODING may say otherwise. Then one body that the encoding cannot
        # express would end every worker that claims it.
        "client_encoding": "utf8",
        # From the second time on: the statements are few and always the same.
        "prepare_threshold": 2,
    } | {name: value for name, value in _NOTICE_SILENCE.items() if name not in given}


@contextmanager
def connect_command(dsn: str, *, role: str) -> Iterator[Connection]:
    """Open a connection in autocommit mode for one command, named after its *role*.

    Blocks for at most 10 s a host. Raises `UnusableError` for a malformed *dsn*, `WebhookdError`
    for a database that cannot be reached or goes away while the body runs.
    """
    try:
        connection = Connection.connect(
            dsn,
            autocommit=True,
            prepare_threshold=None,
            client_encoding="utf8",
            connect_timeout=10,
        )
    except psycopg.ProgrammingError as error:
        raise UnusableError(f"the DSN cannot be read: {message_of(error)}") from error
    except psycopg.OperationalError as error:
        raise WebhookdError(f"the database cannot be reached: {message_of(error)}") from error
    with connection:
        try:
            _configure(connection, f"webhookd/{role}", _COMMAND_SETTINGS)
            yield connection
        except psycopg.OperationalError as error:
            raise WebhookdError(f"the database failed: {message_of(error)}") from error
        except psycopg.Error as error:
            raise UnusableError(f"the database refused: {message_of(error)}") from error


def connect_unset(dsn: str, *, timeout_s: int) -> AnyConnection:
    """Open a connection in autocommit mode whose session keeps all its own settings; use it with
    `read_only`. Blocks for at most *timeout_s* a host; raises `psycopg.OperationalError`.
    """
    return psycopg.connect(
        dsn,
        autocommit=True,
        prepare_threshold=None,
        client_encoding="utf8",
        connect_timeout=timeout_s,
    )


@contextmanager
def read_only(
    connection: AnyConnection, *, application_name: str, statement_timeout_s: float
) -> Iterator[AnyConnection]:
    """Run the body in a read-only transaction on an autocommit *connection*; raises
    `psycopg.Error`.
    """
    settings = (
        _named(connection, application_name),
        f"statement_timeout = '{statement_timeout_s:g}s'",
        *_READER_SETTINGS,
    )
    begin = "; SET LOCAL ".join([_BEGIN_READING, *settings])
    connection.execute(begin.encode())
    try:
        yield connection
    finally:
        if not connection.broken:
            connection.rollback()


def message_of(error: psycopg.Error) -> str:
    """Return what the server (or libpq) says as one line, with the detail where there is one."""
    message = error.diag.message_primary or str(error).strip().partition("\n")[0]
    detail = (error.diag.message_detail or "").partition("\n")[0]
    return f"{message} ({detail})" if detail else message


def is_transaction_pooled(
    connection: AnyConnection, other: Callable[[], AbstractContextManager[AnyConnection]]
) -> bool:
    """Return whether *connection* leads through a pooler in transaction mode, which lends a session
    for one transaction only. Blocks for some statements; raises `psycopg.Error`.

    It does if more than one session answers it, or one that also answers an *other* connection.
    The check leaves nothing behind. False may be wrong where many others use the pooler, or where
    the other connection does not lead through it.
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


def _configure(connection: Connection, application_name: str, settings: Sequence[str]) -> None:
    """Have everything that runs on *connection*, which is new, run with this name and *settings*
    (`name = value`); raises `psycopg.Error`.

    The sessions of a pooler are shared: what one client sets or prepares, the next one gets. So
    behind a pooler nothing may outlive a transaction. (One that pools whole sessions is treated the
    same: a client cannot tell.)
    """
    settings = (_named(connection, application_name), *settings)
    if _answering(connection) == connection.info.backend_pid:
        connection.execute("; ".join(f"SET {setting}" for setting in settings).encode())
        return
    connection.prepare_threshold = None
    connection.cursor_factory = _PooledCursor
    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.READ_COMMITTED, False
    connection.local_settings = "; ".join(f"SET LOCAL {setting}" for setting in settings)


def _named(connection: AnyConnection, application_name: str) -> str:
    name = sql.Literal(application_name).as_string(connection)
    return f"application_name = {name}"


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
        configure=lambda connection: _configure(connection, application_name, _WORKER_SETTINGS),
        min_size=size,
        max_size=size,
        timeout=timeout_s,
        reconnect_timeout=3.0,  # after that only when a thread wants a connection: no long pauses
        num_workers=1,
        name=application_name,
        open=True,
    )


@contextmanager
def transaction(
    connection: Connection,
    *,
    durable: bool = True,
    lock_timeout_s: float | None = None,
    batch: bool = False,
) -> Iterator[psycopg.Cursor[TupleRow]]:
    """Run a READ COMMITTED transaction on an autocommit *connection*; roll back if the body raises.

    *durable* False commits without waiting for the disk. With *lock_timeout_s*, a lock that others
    hold for longer raises `psycopg.errors.LockNotAvailable`. *batch* is for statements that find
    their rows by an array of keys and join them with other arrays: it has them hashed. A planner
    that expects next to no rows would compare each with each.
    """
    begin = (
        _BEGIN if connection.local_settings is None else f"{_BEGIN}; {connection.local_settings}"
    )
    if not durable:
        begin += _NOT_DURABLE
    if lock_timeout_s is not None:
        begin += f"; SET LOCAL lock_timeout = '{lock_timeout_s * 1000:.0f}ms'"
    if batch:
        begin += _BATCH
    # psycopg's own cursor: behind a pooler the connection's cursor would make this statement a
    # transaction of its own.
    psycopg.Cursor(connection).execute(begin.encode())
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
