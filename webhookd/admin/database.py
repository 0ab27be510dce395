"""How admin functions reach the database: a connection, named statements, one line a fault."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import IsolationLevel, errors
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzLoader

from webhookd.config.options import Config
from webhookd.embedded import server
from webhookd.errors import UnusableError
from webhookd.postgres import session, statements
from webhookd.schema import migrate

Connection = psycopg.Connection[tuple[Any, ...]]
# Text where no datetime can hold it: a column may also hold infinity, or the year 20000.
Instant = datetime | str


class LenientInstant(TimestamptzLoader):
    """Loads an instant that no datetime can hold as the text that PostgreSQL writes. One such row
    must not hide the others.
    """

    def load(self, data: Any) -> Any:
        try:
            return super().load(data)
        except psycopg.DataError:
            return bytes(data).decode()


def dsn_of(config: Config) -> str:
    """Return the DSN in *config*, else that of an embedded PostgreSQL that runs on this machine.

    Raise `UnusableError` where there is neither.
    """
    if config.dsn is not None:
        return config.dsn
    folder = Path(config.embedded) if config.embedded else None
    found = server.running_dsn(folder)
    if found is None:
        where = f" in {folder}" if folder else ""
        raise UnusableError(
            f"no database is named and no embedded PostgreSQL runs{where}: "
            "give --dsn, set WEBHOOKD_DSN or DATABASE_URL, or start `webhookd`"
        )
    return found


@contextmanager
def connect(config: Config) -> Iterator[Connection]:
    """Open a connection in autocommit mode to a database that holds webhookd's schema.

    Raise `UnusableError` where it does not, `WebhookdError` for a database that cannot be reached
    or goes away. Instants are read as `Instant`.
    """
    with session.connect_command(dsn_of(config), role="cli") as connection:
        connection.adapters.register_loader("timestamptz", LenientInstant)
        row = connection.execute("SELECT to_regclass('pggit.installation') IS NOT NULL").fetchone()
        if row is None or not row[0]:
            raise UnusableError("the database has no schema of webhookd's: run `webhookd migrate`")
        try:
            yield connection
        except (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction):
            # The schema may be too old, and then this raises the error that workers raise.
            migrate.check(connection)
            raise
        except (errors.CheckViolation, errors.UniqueViolation) as error:
            # The name says what may be there. The error's detail holds the row with its secret.
            name = error.diag.constraint_name or "constraint"
            raise UnusableError(f"refused: the {name.replace('_', ' ')}") from error


@contextmanager
def snapshot(connection: Connection) -> Iterator[None]:
    """Run the body in a read-only transaction in which all statements see the same moment."""
    before = connection.isolation_level, connection.read_only
    connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
    try:
        with connection.transaction():
            yield
    finally:
        if not connection.closed:
            connection.isolation_level, connection.read_only = before


def fetch(connection: Connection, statement: str, **parameters: object) -> list[dict[str, Any]]:
    """Run the statement in sql/queries/*statement*.sql and return its rows by column name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statements.load(statement).encode(), parameters).fetchall()


def fetch_one(
    connection: Connection, statement: str, **parameters: object
) -> dict[str, Any] | None:
    """Run a statement that returns one row or none."""
    return next(iter(fetch(connection, statement, **parameters)), None)
