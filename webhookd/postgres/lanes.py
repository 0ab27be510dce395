"""Lanes that are missing or wrong: made, and repaired.

A lane is a row of `pggit.webhook_health_metrics`, one a webhook. Claims and records lock lanes and
never wait for one; so nothing here may hold a lane's lock for long either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import psycopg
from psycopg.rows import TupleRow

from webhookd.core.lane import Lane
from webhookd.core.model import WebhookSettings
from webhookd.postgres import session, statements
from webhookd.postgres.arrays import number_array
from webhookd.postgres.rows import lane_of


def make_lanes(
    connection: session.Connection, webhook_ids: Sequence[int], *, registered_only: bool = False
) -> bool:
    """Make lanes for webhooks that have none, in a transaction of its own; the next look finds
    them. Blocks for 50 ms at most; raises `psycopg.Error`.

    False: another open transaction has inserted one of them (a registration, for example). To wait
    for its end would stop this worker for as long as an application keeps it open.
    """
    try:
        with session.transaction(
            connection, durable=False, lock_timeout_s=session.SHORT_LOCK_TIMEOUT_S
        ) as cursor:
            cursor.execute(
                statements.load("create_lanes"),
                {"webhook_ids": number_array(webhook_ids), "registered_only": registered_only},
            )
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def recounted(
    cursor: psycopg.Cursor[TupleRow], lanes: list[Lane], settings: Mapping[int, WebhookSettings]
) -> list[Lane]:
    """Return the locked *lanes*, with the leases counted again of those at their in-flight limit.
    *settings* are by webhook id. No statement where no lane is; raises `psycopg.Error`.

    A DELETE or TRUNCATE of a claimed row leaves the lane's counter too high. If it were trusted, it
    would block the lane for ever.
    """
    full = [
        lane.webhook_id
        for lane in lanes
        if lane.webhook_id in settings and lane.in_flight >= settings[lane.webhook_id].max_in_flight
    ]
    if not full:
        return lanes
    rows = cursor.execute(
        statements.load("count_leases"), {"webhook_ids": number_array(full)}
    ).fetchall()
    counts: dict[int, int] = dict.fromkeys(full, 0) | dict(rows)
    return [
        replace(lane, in_flight=counts[lane.webhook_id]) if lane.webhook_id in counts else lane
        for lane in lanes
    ]


def restore_lanes(connection: session.Connection, webhook_ids: Sequence[int]) -> None:
    """Make those lanes again that an operator's DELETE or TRUNCATE removed. Blocks for one
    statement, or as `make_lanes` does; raises `psycopg.Error`.
    """
    rows = connection.execute(
        statements.load("missing_lanes"), {"webhook_ids": number_array(webhook_ids)}
    ).fetchall()
    if rows:
        make_lanes(connection, [row[0] for row in rows])


def suspicious_lanes(connection: session.Connection) -> list[int]:
    """Return the webhooks whose lane may be missing or wrong, in order. Blocks for one statement;
    raises `psycopg.Error`.
    """
    return sorted(row[0] for row in connection.execute(statements.load("sweep_candidates")))


def repair_lanes(connection: session.Connection, webhook_ids: Sequence[int]) -> None:
    """Make those of these lanes that are missing, count the leases of the others again, and make
    parked ones runnable. Lanes that others have locked are left as they are.

    Blocks for two short transactions; raises `psycopg.Error`.
    """
    make_lanes(connection, webhook_ids)
    with session.transaction(connection) as cursor:
        rows = cursor.execute(
            statements.load("lock_recorded_lanes"), {"webhook_ids": number_array(webhook_ids)}
        ).fetchall()
        locked = [lane_of(row).webhook_id for row in rows]
        # Leases are counted by a statement that began after the locks. In one statement with them
        # the count would be older than the locks, and miss a claim or a record.
        cursor.execute(statements.load("sweep_lanes"), {"webhook_ids": number_array(locked)})
