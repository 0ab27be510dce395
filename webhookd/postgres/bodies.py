"""Bodies that are huge as text, or that cannot be read: measured row by row, and ended.

A claim takes only rows whose `body_bytes` it knows. An INSERT measures its body; rows of an earlier
release, of a restored dump or of logical replication are measured here.
"""

from collections.abc import Sequence
from typing import NamedTuple

import psycopg

from webhookd.core.model import LARGEST_BODY_BYTES
from webhookd.postgres import session, statements
from webhookd.postgres.arrays import number_array

# Text of LARGEST_BODY_BYTES takes a second or two. The server notices the end of the time late.
READ_WITHIN_S = 10.0
LOCK_WITHIN_S = 0.25  # for a lane that another worker claims from just now

# The classes of SQLSTATE that may be a row's fault: a character or a value, a limit of the server,
# corruption. And: no memory for it, or no end of it within the statement's time.
_ROW_CLASSES = ("22", "54", "XX")
_ROW_STATES = ("53200", "57014")
# The connection is lost, the server is short of something or shuts down.
_OUTAGE_CLASSES = ("08", "53", "57P")


class Unsendable(NamedTuple):
    """A delivery that failed, because its body is too large or cannot be read."""

    delivery_id: int
    webhook_id: int
    reason: str


def may_be_row(error: psycopg.Error) -> bool:
    """Return whether a row that a statement read may have caused *error*."""
    state = error.sqlstate or ""
    return state.startswith(_ROW_CLASSES) or state in _ROW_STATES


def is_outage(error: psycopg.Error) -> bool:
    """Return whether *error* says that the database cannot be reached, or cannot work now."""
    state = error.sqlstate
    return state is None or (state.startswith(_OUTAGE_CLASSES) and not may_be_row(error))


def measure(
    connection: session.Connection,
    delivery_ids: Sequence[int],
    *,
    worker_id: str,
    again: bool = False,
) -> list[Unsendable]:
    """Measure the bodies of those of *delivery_ids* that wait, as many as a tenth of a second
    allows; none while another worker measures. Return those that turned out to be unsendable, and
    have failed.

    *again*: also read bodies that were measured before. Blocks for as long as the largest body
    takes, which may be half a minute; raises `psycopg.Error`.
    """
    with session.transaction(connection, lock_timeout_s=LOCK_WITHIN_S) as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = '{READ_WITHIN_S * 1000:.0f}ms'".encode())
        rows = cursor.execute(
            statements.load("measure_bodies"),
            {
                "delivery_ids": number_array(delivery_ids),
                "largest": LARGEST_BODY_BYTES,
                "worker_id": worker_id,
                "again": again,
            },
        ).fetchall()
    return [Unsendable(*row) for row in rows]


def unmeasured_in_quarantine(connection: session.Connection, *, limit: int) -> list[int]:
    """Return deliveries in quarantine whose bodies must be measured before they are tried."""
    rows = connection.execute(statements.load("unmeasured_in_quarantine"), {"limit": limit})
    return [delivery_id for (delivery_id,) in rows]


def due_in_lanes(
    connection: session.Connection, webhook_ids: Sequence[int], *, limit: int
) -> list[int]:
    """Return the first due deliveries of these lanes, *limit* of each kind and lane at most."""
    parameters = {"webhook_ids": number_array(webhook_ids), "limit": limit}
    return [
        delivery_id
        for (delivery_id,) in connection.execute(statements.load("due_in_lanes"), parameters)
    ]


def put_lanes_off(
    connection: session.Connection, webhook_ids: Sequence[int], *, seconds: float
) -> None:
    """Have no worker claim from these lanes for so long."""
    parameters = {"webhook_ids": number_array(webhook_ids), "seconds": seconds}
    connection.execute(statements.load("put_lanes_off"), parameters)
