"""What the checks look at: a database, the configuration in force, and how to write commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from webhookd.admin.doctor.commands import Commands
from webhookd.config.options import Config
from webhookd.errors import WebhookdError
from webhookd.postgres import session, statements

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 5.0
APPLICATION_NAME = "webhookd/doctor"

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Installation:
    """*dsn* is the one in force, the embedded PostgreSQL's where *config* names none. *is_fleet*:
    *config* has the options by which running workers deliver.
    """

    connection: Connection
    dsn: str
    config: Config
    commands: Commands
    is_fleet: bool = False

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Run the body in a read-only transaction in which a statement takes `STATEMENT_TIMEOUT_S`
        at most.
        """
        with session.read_only(
            self.connection,
            application_name=APPLICATION_NAME,
            statement_timeout_s=STATEMENT_TIMEOUT_S,
        ) as connection:
            yield connection

    def rows(self, statement: str, **parameters: object) -> list[dict[str, Any]]:
        """Run the statement in sql/queries/*statement*.sql and return its rows by column name.
        Raise `psycopg.Error`.

        Without parameters a % in it is just a %.
        """
        with self.reading() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(
                statements.load(statement).encode(), parameters or None
            ).fetchall()

    def row(self, statement: str, **parameters: object) -> dict[str, Any]:
        """Run a statement that returns one row."""
        return self.rows(statement, **parameters)[0]


@contextmanager
def open_installation(dsn: str, config: Config, commands: Commands) -> Iterator[Installation]:
    """Connect to *dsn*. Blocks for at most `CONNECT_TIMEOUT_S` a host; raise `WebhookdError` where
    no server answers.
    """
    try:
        connection = session.connect_unset(dsn, timeout_s=CONNECT_TIMEOUT_S)
    except psycopg.OperationalError as failure:
        raise WebhookdError(
            f"the database cannot be reached: {session.message_of(failure)}"
        ) from failure
    with connection:
        yield Installation(connection, dsn, config, commands)
