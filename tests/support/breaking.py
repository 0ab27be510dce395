"""Transactions that fail at a statement or at COMMIT, and COMMITs whose answer is lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from webhookd.postgres import session

_transaction = session.transaction


class Broken(psycopg.OperationalError):
    """The connection is lost, as the worker sees it."""


@dataclass(slots=True)
class Breaking:
    """What happens to the next transaction: it fails before statement number *fails_at* (from 0),
    or at COMMIT, or its COMMIT fails although it is stored.
    """

    fails_at: int | None = None
    commit: str = "succeeds"  # fails, is stored

    @contextmanager
    def transaction(self, connection: session.Connection, **options: Any) -> Iterator[Any]:
        fails_at, commit, self.fails_at, self.commit = self.fails_at, self.commit, None, "succeeds"
        with _transaction(connection, **options) as cursor:
            yield cursor if fails_at is None else _BreakingCursor(cursor, fails_at)
            if commit == "fails":
                raise Broken("before COMMIT")
        if commit == "is stored":
            raise Broken("after COMMIT")


class _BreakingCursor:
    def __init__(self, cursor: psycopg.Cursor[Any], fails_at: int) -> None:
        self._cursor = cursor
        self._left = fails_at

    def execute(self, *arguments: Any) -> psycopg.Cursor[Any]:
        if self._left == 0:
            raise Broken("between two statements")
        self._left -= 1
        return self._cursor.execute(*arguments)


@contextmanager
def statement_by_statement(
    connection: session.Connection, **_: Any
) -> Iterator[psycopg.Cursor[Any]]:
    with connection.cursor() as cursor:
        yield cursor
