"""What the checks look at: a database, the configuration in force, and how to write commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from webhookd.admin.doctor.commands import Commands
from webhookd.config.load import Config
from webhookd.errors import WebhookdError
from webhookd.postgres import statements
from webhookd.schema import identity

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 5.0
APPLICATION_NAME = "webhookd/doctor"

# Set for a transaction and never for the session: behind a pooler the session's next transaction
# may be another client's. The planner must use indexes, as in a worker's session: the history is
# long, and the statistics of a queue are old.
_BEGIN = f"""
BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL application_name = '{APPLICATION_NAME}';
SET LOCAL search_path = pg_catalog; SET LOCAL TimeZone = 'UTC';
SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S:g}s'; SET LOCAL lock_timeout = '1s';
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off
"""

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Installation:
    """*dsn* is the one in force, the embedded PostgreSQL's where *config* names none."""

    connection: Connection
    dsn: str
    config: Config
    commands: Commands

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Run the body in a read-only transaction in which a statement takes `STATEMENT_TIMEOUT_S`
        at most.
        """
        self.connection.execute(_BEGIN.encode())
        try:
            yield self.connection
        finally:
            if not self.connection.broken:
                self.connection.rollback()

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
        connection = psycopg.connect(
            dsn,
            autocommit=True,
            prepare_threshold=None,
            client_encoding="utf8",
            connect_timeout=CONNECT_TIMEOUT_S,
        )
    except psycopg.OperationalError as failure:
        raise WebhookdError(
            f"the database cannot be reached: {identity.first_line(failure)}"
        ) from failure
    with connection:
        yield Installation(connection, dsn, config, commands)
