"""Bodies that are huge as text, or cannot be read: measured row by row, ended, and passed by."""

import math

import psycopg
import pytest

from tests.support import poison
from tests.support.engine import Engine, insert, register
from tests.support.postgres import Database
from webhookd.core.model import LARGEST_BODY_BYTES
from webhookd.postgres import bodies

REASONS = {
    "control characters": (
        poison.CONTROL_CHARACTERS,
        f"the body is 72000002 bytes as text, more than {LARGEST_BODY_BYTES}",
    ),
    "long numbers": (
        poison.LONG_NUMBERS,
        f"the body is 78644400 bytes as text, more than {LARGEST_BODY_BYTES}",
    ),
}


def measure(worker: Engine, *ids: int, again: bool = False) -> list[bodies.Unsendable]:
    return bodies.measure(worker.connection, ids, worker_id=worker.worker_id, again=again)


def size_of(database: Database, delivery_id: int) -> int | None:
    [(size,)] = database.execute(
        "SELECT body_bytes FROM pggit.alert_delivery_queue WHERE delivery_id = %s", [delivery_id]
    )
    return None if size is None else int(size)


def state_of(database: Database, delivery_id: int) -> tuple[object, ...]:
    [row] = database.execute(
        "SELECT q.delivery_status, l.event_type, l.event_details ->> 'reason', l.worker_id"
        "  FROM pggit.alert_delivery_queue q LEFT JOIN pggit.alert_delivery_log l"
        " USING (delivery_id) WHERE q.delivery_id = %s",
        [delivery_id],
    )
    return row


@pytest.mark.parametrize("kind", REASONS)
def test_a_row_whose_body_is_too_large_fails_by_itself(
    database: Database, worker: Engine, kind: str
) -> None:
    body, reason = REASONS[kind]
    register(database, 1)
    [huge] = poison.insert_unmeasured(database, 1, body)
    [small] = poison.insert_unmeasured(database, 1, "'{\"n\": 1}'")
    lane = database.execute("SELECT * FROM pggit.webhook_health_metrics")
    assert measure(worker, huge) == [(huge, 1, reason)]
    assert state_of(database, huge) == ("failed", "failed", reason, "worker-1")
    assert measure(worker, huge, small) == []
    assert size_of(database, small) == len('{"n": 1}')
    assert database.execute("SELECT * FROM pggit.webhook_health_metrics") == lane
    assert database.execute("SELECT sum(failed) FROM pggit.finished_counts") == [(1,)]
    assert [delivery.delivery_id for delivery in worker.take()] == [small]


def test_a_row_that_an_operator_retries_fails_again(database: Database, worker: Engine) -> None:
    register(database, 1)
    [huge] = poison.insert_unmeasured(database, 1, poison.LONG_NUMBERS)
    for _ in range(2):
        assert len(measure(worker, huge)) == 1
        database.execute(
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending',"
            " next_retry_at = now() WHERE delivery_id = %s",
            [huge],
        )
        assert worker.claim().unmeasured == [huge]
    assert database.execute("SELECT sum(failed) FROM pggit.finished_counts") == [(0,)]


def test_a_corrupted_body_fails_its_own_row_only(database: Database, worker: Engine) -> None:
    register(database, 1)
    corrupted = poison.insert_corrupted(database, 1)
    [small] = poison.insert_unmeasured(database, 1, "'{}'")
    [found] = measure(worker, corrupted, small)
    assert found.delivery_id == corrupted
    assert found.reason.startswith("the body cannot be read: ") and "chunk" in found.reason
    assert state_of(database, corrupted)[:2] == ("failed", "failed")
    assert [delivery.delivery_id for delivery in worker.take()] == [small]


def test_a_body_that_postgresql_cannot_hold_as_text_fails_its_own_row_only(
    database: Database, worker: Engine
) -> None:
    """More than 1 GB. On a busy machine the statement's time is over before that."""
    [huge] = poison.insert_unmeasured(database, 1, poison.TOO_LONG_NUMBERS)
    [found] = measure(worker, huge)
    assert found.reason.startswith("the body cannot be read: ")
    assert state_of(database, huge)[:2] == ("failed", "failed")


def test_a_body_that_takes_too_long_to_read_fails(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhookd.postgres.bodies.READ_WITHIN_S", 0.05)
    register(database, 1)
    [slow] = poison.insert_unmeasured(database, 1, poison.CONTROL_CHARACTERS)
    [other] = insert(database, 1)
    [found] = measure(worker, slow)
    assert "statement timeout" in found.reason
    assert state_of(database, slow)[0] == "failed"
    assert [item.delivery_id for item in worker.take()] == [other]


def test_a_row_in_quarantine_is_measured_before_it_is_tried(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    [row] = poison.insert_unmeasured(database, 1, "'{}'")
    worker.claim()
    database.execute("UPDATE pggit.alert_delivery_queue SET routed = true, leases_lost = 3")
    assert worker.claimer.next_look(worker.connection).quarantined_s == math.inf
    assert not worker.claimer.claim_quarantined(worker.connection).deliveries
    assert bodies.unmeasured_in_quarantine(worker.connection, limit=10) == [row]
    assert measure(worker, row) == []
    [delivery] = worker.claimer.claim_quarantined(worker.connection).deliveries
    assert delivery.delivery_id == row


def test_a_claim_takes_what_was_measured_and_reports_the_rest(
    database: Database, worker: Engine
) -> None:
    register(database, 1, 2)
    unmeasured = poison.insert_unmeasured(database, 1, "'{\"n\": 1}'", count=3)
    measured = insert(database, 1, 2) + insert(database, 2, 2)
    worker.claim(1)  # makes the lanes
    claimed: list[int] = []
    seen: set[int] = set()
    for _ in range(3):
        claim = worker.claim()
        claimed += [delivery.delivery_id for delivery in claim.deliveries]
        seen |= set(claim.unmeasured)
    assert sorted(claimed) == sorted(measured) and seen == set(unmeasured)
    assert worker.claimer.next_look(worker.connection).lane_s > 0, "it would spin"
    before = places(database)
    assert measure(worker, *unmeasured) == []
    assert places(database) == before
    assert sorted(item.delivery_id for item in worker.take()) == unmeasured


def places(database: Database) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT delivery_id, next_retry_at, routed, leases_lost, delivery_status, lease_token"
        " FROM pggit.alert_delivery_queue ORDER BY 1"
    )


def test_one_worker_of_the_fleet_measures_at_a_time(
    database: Database, worker: Engine, other: Engine
) -> None:
    register(database, 1)
    [row] = poison.insert_unmeasured(database, 1, "'{}'")
    worker.claim()
    with database.connect(autocommit=False) as measuring:
        measuring.execute("SELECT FROM pggit.chores WHERE chore = 'measure_bodies' FOR UPDATE")
        assert measure(other, row) == []
        assert size_of(database, row) is None
    assert measure(worker, row) == []
    assert size_of(database, row) == 2


def test_a_lane_that_was_parked_while_its_rows_were_locked_is_found_again(
    database: Database, worker: Engine, other: Engine
) -> None:
    register(database, 1)
    [row] = poison.insert_unmeasured(database, 1, "'{}'")
    with database.connect(autocommit=False) as measuring:
        measuring.execute("SELECT FROM pggit.alert_delivery_queue FOR NO KEY UPDATE")
        assert other.take() == []
    database.execute("UPDATE pggit.alert_delivery_queue SET routed = true")
    assert worker.take() == []
    assert measure(worker, row) == []
    assert [item.delivery_id for item in worker.take()] == [row]


def test_rows_are_read_again_where_they_may_have_become_unreadable(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    corrupted = poison.insert_corrupted(database, 1)
    database.execute("UPDATE pggit.alert_delivery_queue SET body_bytes = 1000")
    [small] = insert(database, 1)
    worker.sweep()
    with pytest.raises(psycopg.DatabaseError) as raised:
        worker.claim()
    assert bodies.may_be_row(raised.value) and not bodies.is_outage(raised.value)
    assert worker.claimer.looked_at == [1]
    due = bodies.due_in_lanes(worker.connection, [1], limit=10)
    assert sorted(due) == sorted([corrupted, small])
    assert measure(worker, *due) == []
    assert [found.delivery_id for found in measure(worker, *due, again=True)] == [corrupted]
    assert [item.delivery_id for item in worker.take()] == [small]
