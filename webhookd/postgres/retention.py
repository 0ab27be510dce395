"""Removes what was kept for long enough: finished deliveries and old attempts, one worker at a time
across the fleet.

A worker goes through each table page by page, round after round. The pace is such that a round
takes a twentieth of the shortest time that the table's rows are kept. So the work is spread evenly
for a table of any size, a statement reads a bounded number of pages by their numbers, and there is
no index that each delivery would have to pay for. Locked rows are left to the next round.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import psycopg
from psycopg import Cursor, errors
from psycopg.rows import TupleRow

from webhookd import logs
from webhookd.config.options import Config
from webhookd.errors import first_line
from webhookd.postgres import session, statements

log = logs.Logger("webhookd.retention")

DAY_S = 86_400.0
ROUNDS = 20  # while a row is kept: it stays a twentieth longer at most
TURN_S = 1.0  # for a table at a time; workers take a turn every four seconds
# Of one statement: some 50 rows a page at most. Fewer where it takes long, as with large messages;
# more while it is quick.
MOST_PAGES, FIRST_PAGES = 64, 8
QUICK_S, SLOW_S = 0.02, 0.1

# Takes a connection for one stretch, as a pool does: a worker has two, and its claims and records
# need them.
Connect = Callable[[], AbstractContextManager[session.Connection]]

# An open transaction has locked what refers to a row, or something refers to it that this role may
# not read.
_HELD = (errors.LockNotAvailable, errors.DeadlockDetected, errors.ForeignKeyViolation)
_UNREFERENCED = "/* and nothing refers to it */"


@dataclass(frozen=True, slots=True)
class Keep:
    """For how many seconds rows are kept once they are finished (attempts: since they were made);
    None is for ever.
    """

    delivered_s: float | None
    failed_s: float | None
    log_s: float | None

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return what *config* says in days, where 0 is for ever."""
        days = (config.keep_delivered, config.keep_failed, config.keep_log)
        return cls(*(DAY_S * value if value else None for value in days))


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key onto one of the tables; sql/queries/retention_references.sql says what the
    fields mean.
    """

    name: str
    referrer: str
    keeps: bool
    readable: bool
    indexed: bool
    columns: str
    condition: str


@dataclass(frozen=True, slots=True)
class Removal:
    """How the rows of one table go. *keep_s* are the statement's parameters."""

    table_name: str
    statement: str
    keep_s: dict[str, float | None]

    @property
    def round_s(self) -> float | None:
        """How long a round through the table should take; None: nothing ever goes."""
        kept = [keep_s for keep_s in self.keep_s.values() if keep_s is not None]
        return min(kept) / ROUNDS if kept else None


def removals(keep: Keep) -> tuple[Removal, Removal]:
    """Return how deliveries and attempts go."""
    deliveries = {"keep_delivered_s": keep.delivered_s, "keep_failed_s": keep.failed_s}
    return (
        Removal("alert_delivery_queue", "remove_deliveries", deliveries),
        Removal("alert_delivery_log", "remove_attempts", {"keep_log_s": keep.log_s}),
    )


class Retention:
    """One worker's part of it; any number of workers may take turns, also at once. *removed* is
    called with a table's name and how many of its rows were removed.
    """

    def __init__(self, keep: Keep, *, removed: Callable[[str, int], None]) -> None:
        self._removals = removals(keep)
        self._removed = removed
        self._pages = {removal.table_name: FIRST_PAGES for removal in self._removals}
        self._told: set[str] = set()

    def turn(self, connect: Connect, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Go through the pages that are due, unless another worker is at it.

        Blocks for about a second a table, and for a lock 50 ms at most; raises `psycopg.Error`.
        """
        for removal in self._removals:
            try:
                self._advance(connect, removal, stopped)
            except errors.LockNotAvailable:
                log.debug("table is locked", table=removal.table_name)

    def _advance(self, connect: Connect, removal: Removal, stopped: Callable[[], bool]) -> None:
        if removal.round_s is None:
            return
        with (
            connect() as connection,
            session.transaction(connection, lock_timeout_s=session.SHORT_LOCK_TIMEOUT_S) as cursor,
        ):
            row = cursor.execute(
                statements.load("retention_take"), {"table_name": removal.table_name}
            ).fetchone()
            if row is None:
                return
            _, pages, elapsed_s = row
            due = math.ceil(max(pages, 1) * min(1.0, elapsed_s / removal.round_s))
            if elapsed_s < removal.round_s and due < self._pages[removal.table_name]:
                return  # not worth a statement yet
            statement = removing(cursor, removal)
        if statement is None:
            self._tell(
                f"nothing is removed from {removal.table_name}: a foreign key onto it has no "
                "index, see webhookd doctor"
            )
            return
        until = time.monotonic() + TURN_S
        while due > 0 and not stopped() and time.monotonic() < until:
            with connect() as connection:
                done = self._stretch(connection, removal, statement, most=due)
            if done is None:
                return
            due -= done

    def _stretch(
        self, connection: session.Connection, removal: Removal, statement: str, *, most: int
    ) -> int | None:
        """Remove what should go from the next pages and return how many pages they were, None
        where another worker is at it.
        """
        started, size = time.monotonic(), self._pages[removal.table_name]
        try:
            done = self._step(connection, removal, statement, min(size, most))
        except psycopg.DatabaseError as error:
            if connection.closed:
                raise
            reason = first_line(error)
            if not isinstance(error, _HELD):  # an application's trigger, for example
                self._tell(f"rows of {removal.table_name} cannot be removed: {reason}")
            log.debug("pages left out", table=removal.table_name, reason=reason)
            # All of these pages: the error does not say which row was held. The next round tries
            # again.
            return self._step(connection, removal, None, min(size, most))
        took_s = time.monotonic() - started
        if took_s > SLOW_S:
            self._pages[removal.table_name] = max(1, size // 2)
        elif took_s < QUICK_S:
            self._pages[removal.table_name] = min(MOST_PAGES, size * 2)
        return done

    def _step(
        self, connection: session.Connection, removal: Removal, statement: str | None, most: int
    ) -> int | None:
        """Go on by *most* pages or to the table's end, removing with *statement*, in one
        transaction.
        """
        removed = 0
        # Not durable: what a crash undoes is removed in the next round.
        with session.transaction(
            connection, durable=False, lock_timeout_s=session.SHORT_LOCK_TIMEOUT_S
        ) as cursor:
            table = {"table_name": removal.table_name}
            row = cursor.execute(statements.load("retention_take"), table).fetchone()
            if row is None:
                return None
            first, pages, _ = row
            end = first + most
            if statement is not None:
                stretch = {"first": f"({first},0)", "end": f"({end},0)"}
                removed = cursor.execute(statement.encode(), stretch | removal.keep_s).rowcount
            place = {"next_page": end if end < pages else 0, "removed": removed}
            cursor.execute(statements.load("retention_advance"), table | place)
        self._removed(removal.table_name, removed)
        return most

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning(what)


def removing(cursor: Cursor[TupleRow], removal: Removal) -> str | None:
    """Return the statement that removes what nothing refers to; None where the server would have
    to read a whole other table for each row.
    """
    conditions = ""
    for reference in references(cursor, removal.table_name):
        if not reference.indexed:
            return None
        if reference.keeps and reference.readable:
            # Not EXISTS: that becomes a join, and a planner may read the whole of an index for it.
            found = f"SELECT true FROM {reference.referrer} r WHERE {reference.condition} LIMIT 1"
            conditions += f" AND ({found}) IS NULL"
    return statements.load(removal.statement).replace(_UNREFERENCED, conditions.replace("%", "%%"))


def references(cursor: Cursor[TupleRow], table_name: str) -> list[Reference]:
    """Return the foreign keys onto *table_name*."""
    rows = cursor.execute(
        statements.load("retention_references"), {"table_name": table_name}
    ).fetchall()
    return [Reference(*row) for row in rows]
