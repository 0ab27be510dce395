"""What `webhookd delivery explain` finds for a delivery, and workers and lanes in the states that
it tells.
"""

from typing import Any
from uuid import UUID

import psycopg

from tests.support.engine import STANDARD, unseen
from tests.support.postgres import Database
from webhookd.admin import database as database_of_admin
from webhookd.admin import facts as delivery_facts
from webhookd.admin.explain import reasons
from webhookd.admin.reason import Reason
from webhookd.core.model import WebhookDefaults

LANE = "UPDATE pggit.webhook_health_metrics SET {} WHERE webhook_id = 1"


def enlist(
    database: Database,
    worker_id: str,
    incarnation: UUID,
    *,
    seen_s_ago: float = 0.0,
    has_room: bool = True,
) -> None:
    """Enter a worker's row as the worker itself would."""
    database.execute(
        "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version, seen_at, has_room)"
        " VALUES (%s, %s, 'somehost', 4711, '0', now() - %s * interval '1 second', %s)",
        [incarnation, worker_id, seen_s_ago, has_room],
    )


def set_lane(database: Database, columns: str) -> None:
    """Put the lane of webhook 1 into a state that only workers write; no trigger sees it."""
    with unseen(database) as connection:
        connection.execute(LANE.format(columns).encode())


def explained(database: Database, delivery_id: int) -> list[Reason]:
    """Read the facts as the command does, and return what they mean."""
    with database.connect() as connection:
        return explained_by(connection, delivery_id, STANDARD)


def explained_by(
    connection: psycopg.Connection[tuple[Any, ...]], delivery_id: int, defaults: WebhookDefaults
) -> list[Reason]:
    with database_of_admin.snapshot(connection):
        facts = delivery_facts.read(connection, delivery_id, defaults)
    assert facts is not None
    return reasons(facts)


def names(found: list[Reason]) -> list[str]:
    return [reason.name for reason in found]


def only(found: list[Reason], name: str) -> Reason:
    """Return the one reason, which is *name*."""
    assert names(found) == [name]
    return found[0]


def left_s(database: Database, reason: Reason) -> float:
    """Return in how many seconds the reason ends, by the database's clock."""
    assert reason.until is not None
    return reason.until - float(database.execute("SELECT extract(epoch FROM now())::float8")[0][0])
