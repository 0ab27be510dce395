"""The one-shot commands' way to the database: a connection, named statements, and one line for
every fault.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors
from psycopg.rows import dict_row

from webhookd.config.load import Config
from webhookd.embedded import server
from webhookd.errors import UnusableError
from webhookd.postgres import session, statements
from webhookd.schema import migrate

Connection = psycopg.Connection[tuple[Any, ...]]


def dsn_of(config: Config) -> str:
    """Return the DSN in force, or that of an embedded PostgreSQL that a webhookd on this machine
    runs.

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

    Raise `UnusableError` where it does not, `WebhookdError` for a database that cannot be reached.
    """
    with session.connect_command(dsn_of(config), role="cli") as connection:
        row = connection.execute("SELECT to_regclass('pggit.installation') IS NOT NULL").fetchone()
        if row is None or not row[0]:
            raise UnusableError("the database has no schema of webhookd's: run `webhookd migrate`")
        try:
            yield connection
        except (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction):
            migrate.check(
                connection
            )  # of an old schema it says what workers say; else it is something else
            raise


def fetch(connection: Connection, statement: str, **parameters: object) -> list[dict[str, Any]]:
    """Run the statement in sql/queries/*statement*.sql and return its rows by column name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statements.load(statement).encode(), parameters).fetchall()


def fetch_one(
    connection: Connection, statement: str, **parameters: object
) -> dict[str, Any] | None:
    """Run a statement that returns one row or none."""
    return next(iter(fetch(connection, statement, **parameters)), None)
