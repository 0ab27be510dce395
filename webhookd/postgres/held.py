"""Held lanes: the webhook's row, or the options in force, rule out every request to it.

A claim that looks at such a lane holds it: `blocked_by` is `configuration`, `blocked_reason` says
why, and no timer leads to the lane. A change of the row makes it runnable (the trigger
`unpark_lane`), and so does a worker whose options allow the request (the chore `HeldLanes`).
Neither ends the hold: the next claim judges again, and it alone stores that a lane is held or is
not. So each change is found once, by one worker, which logs it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import psycopg
from psycopg.rows import TupleRow

from webhookd.core.lane import Admission, BlockedBy, Lane
from webhookd.core.model import WebhookDefaults, WebhookSettings
from webhookd.postgres import session, statements
from webhookd.postgres.arrays import number_array, text_array
from webhookd.postgres.rows import settings_of

_SILENT = (BlockedBy.PAUSED, BlockedBy.UNREGISTERED)


class HeldChange(NamedTuple):
    """A lane is held from now on, or for another *reason*; None: it is held no longer."""

    webhook_id: int
    reason: str | None


def note_held(
    cursor: psycopg.Cursor[TupleRow], admitted: Sequence[tuple[Lane, Admission]]
) -> list[HeldChange]:
    """Store which of these locked lanes are held and why; return what is new to the database.

    No statement where none is held and none was. Of a lane that is paused or not registered any
    more nothing is returned: nothing is sent there either. Raises `psycopg.Error`.
    """
    concerned = {
        lane.webhook_id: admission
        for lane, admission in admitted
        if BlockedBy.CONFIGURATION in (lane.blocked_by, admission.blocked_by)
    }
    if not concerned:
        return []
    rows = cursor.execute(
        statements.load("mark_held"),
        {
            "webhook_ids": number_array(list(concerned)),
            "reasons": text_array([admission.refusal for admission in concerned.values()]),
        },
    ).fetchall()
    return [
        HeldChange(webhook_id, reason)
        for webhook_id, reason in rows
        if concerned[webhook_id].blocked_by not in _SILENT
    ]


def count_held(connection: session.Connection) -> int:
    """Return how many lanes are held. Blocks for one statement; raises `psycopg.Error`."""
    row = connection.execute(statements.load("count_held")).fetchone()
    assert row is not None
    return int(row[0])


def held_webhooks_after(
    connection: session.Connection, webhook_id: int, *, limit: int, defaults: WebhookDefaults
) -> list[WebhookSettings]:
    """Return the settings of the held webhooks after *webhook_id* in order, at most *limit*. One
    that is not registered any more is not enabled. Blocks for one statement; raises
    `psycopg.Error`.
    """
    rows = connection.execute(
        statements.load("read_held"), {"after": webhook_id, "limit": limit}
    ).fetchall()
    return [settings_of(tuple(row), defaults) for row in rows]


def look_at_held(connection: session.Connection, webhook_ids: Sequence[int]) -> int:
    """Make these held lanes runnable, so that a claim judges them again; return how many are.
    Blocks for one statement; raises `psycopg.Error`.
    """
    found = connection.execute(
        statements.load("look_at_held"), {"webhook_ids": number_array(webhook_ids)}
    )
    return len(found.fetchall())
