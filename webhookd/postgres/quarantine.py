"""The turn to try rows in quarantine: one worker of the fleet has it at a time.

A worker that dies keeps it until the lease of the row has expired that it tried: the row may be
what killed it, and a second worker must not follow at once (sql/queries/claim_quarantined.sql).
"""

from typing import NamedTuple

from webhookd.postgres import session, statements


class Turn(NamedTuple):
    """*held* by this worker; otherwise it may be free in *free_in_s*."""

    held: bool
    free_in_s: float


def take(connection: session.Connection, *, for_s: float) -> Turn:
    """Take the turn for *for_s* at first. Blocks for one statement; raises `psycopg.Error`."""
    row = connection.execute(statements.load("take_quarantine"), {"seconds": for_s}).fetchone()
    return Turn(False, for_s) if row is None else Turn(*row)


def leave(connection: session.Connection, *, rest_s: float) -> None:
    """Give the turn back; no worker takes it within *rest_s*. Blocks and raises as `take` does."""
    connection.execute(statements.load("leave_quarantine"), {"seconds": rest_s})
