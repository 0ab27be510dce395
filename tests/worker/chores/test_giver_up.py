"""What has waited for longer than --give-up-after fails, whatever holds it."""

import threading
from collections.abc import Iterator

import pytest

from tests.support.engine import insert, register
from tests.support.postgres import Database
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.giver_up import GiverUp

AFTER_S = 7200.0


@pytest.fixture
def chore() -> Iterator[GiverUp]:
    yield GiverUp(after_s=AFTER_S, worker_id="worker-1", stop=threading.Event())


def age(database: Database, delivery_id: int, **columns: str) -> None:
    """Write columns of a row as its claims and records would have left them."""
    values = ", ".join(f"{name} = {value}" for name, value in columns.items())
    with database.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            f"UPDATE pggit.alert_delivery_queue SET {values}"
            f" WHERE delivery_id = {delivery_id}".encode()
        )


def states(database: Database) -> dict[int, str]:
    return dict(
        database.execute("SELECT delivery_id, delivery_status FROM pggit.alert_delivery_queue")
    )


OLD = "now() - interval '3 hours'"
SOON = "now() + interval '1 hour'"
WAITING = [
    ("new", {"created_at": OLD, "next_retry_at": OLD}, "failed"),
    ("parked", {"created_at": OLD, "next_retry_at": OLD, "routed": "true"}, "failed"),
    ("young", {}, "pending"),
    (
        "between two retries",
        {
            "created_at": OLD,
            "first_attempted_at": OLD,
            "attempts": "1",
            "delivery_status": "'retrying'",
            "next_retry_at": SOON,
            "routed": "true",
        },
        "failed",
    ),
    ("scheduled", {"created_at": OLD, "next_retry_at": SOON, "routed": "true"}, "pending"),
    (
        "made to wait again",
        {"created_at": OLD, "attempts": "3", "next_retry_at": "now()"},
        "pending",
    ),
    (
        "made to wait again, and attempted",
        {
            "created_at": OLD,
            "first_attempted_at": "now() - interval '1 minute'",
            "attempts": "4",
            "delivery_status": "'retrying'",
            "next_retry_at": SOON,
            "routed": "true",
        },
        "retrying",
    ),
    (
        "quarantined",
        {"created_at": OLD, "next_retry_at": OLD, "leases_lost": "3", "routed": "true"},
        "failed",
    ),
    (
        "being sent",
        {
            "created_at": OLD,
            "next_retry_at": OLD,
            "delivery_status": "'sending'",
            "lease_token": "1",
            "lease_until": SOON,
        },
        "sending",
    ),
]


@pytest.mark.parametrize(
    ("columns", "status"), [case[1:] for case in WAITING], ids=[w[0] for w in WAITING]
)
def test_what_has_waited_too_long_fails(
    database: Database, pool: Pool, chore: GiverUp, columns: dict[str, str], status: str
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    if columns:
        age(database, delivery_id, **columns)
    chore.run(pool)
    assert states(database) == {delivery_id: status}
    logged = database.execute(
        "SELECT event_type, event_details ->> 'reason' FROM pggit.alert_delivery_log"
    )
    assert logged == ([("failed", "gave up after 2 h")] if status == "failed" else [])
    counted = database.execute("SELECT coalesce(sum(failed), 0) FROM pggit.finished_counts")
    assert counted == [(int(status == "failed"),)]


def test_every_lane_has_its_turn_in_batches(database: Database, pool: Pool, chore: GiverUp) -> None:
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, created_at,"
        " next_retry_at)"
        f" SELECT i % 1200 + 1, '1', {OLD}, {OLD} FROM generate_series(1, 3600) i"
    )
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (5, '1')"
    )
    for _ in range(20):
        chore.run(pool)
        if set(states(database).values()) == {"failed", "pending"}:
            break
    assert sorted(states(database).values()) == ["failed"] * 3600 + ["pending"]
