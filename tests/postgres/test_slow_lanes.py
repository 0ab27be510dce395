"""Slow lanes in the database: measured by records, found only by workers that have slots for them,
and never in the way of others.
"""

import math

import pytest

from tests.support.engine import Engine, answered, ids, insert, lane, new_rows, register
from tests.support.plans import counted
from tests.support.postgres import Database
from webhookd.core.lane import Budget
from webhookd.core.model import GivenBack
from webhookd.postgres.claimed import Claim

NO_SLOW = Budget(100, 0)
NO_NEW = Budget(100, 100, takes_new=False)


def claim(worker: Engine, budget: Budget) -> Claim:
    return worker.claimer.claim(worker.connection, budget)


def measured(database: Database, worker: Engine, webhook_id: int, seconds: float) -> None:
    """Register a webhook and have one exchange with it recorded."""
    register(database, webhook_id)
    insert(database, webhook_id)
    worker.finish(worker.take(), answered(200, seconds=seconds))


def test_a_record_measures_its_lane_and_a_claim_knows_it(
    database: Database, worker: Engine
) -> None:
    measured(database, worker, 1, 4.8)
    stored = lane(database, 1)
    assert (stored["exchange_seconds"], stored["slow"]) == (1.0, True)
    insert(database, 1)
    [slow] = worker.take()
    assert slow.speed == (1.0, True)
    worker.finish([slow], answered(200, seconds=0.0))
    assert lane(database, 1)["exchange_seconds"] == pytest.approx(0.8)


def test_what_says_nothing_about_the_receiver_measures_nothing(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    insert(database, 1, 2)
    one, other = worker.take()
    assert one.speed == (None, None)
    worker.finish([one, other], GivenBack())
    assert lane(database, 1)["slow"] is None


def test_without_slots_for_slow_lanes_their_rows_are_seen_once_and_left_to_others(
    database: Database, worker: Engine
) -> None:
    measured(database, worker, 1, 4.8)
    measured(database, worker, 2, 0.01)
    waiting = insert(database, 1, 3)
    first = claim(worker, NO_SLOW)
    assert (list(first.deliveries), first.full) == ([], True), "other workers are called"
    assert new_rows(database) == 0
    assert (lane(database, 1)["blocked_by"], lane(database, 1)["runnable_in_s"] <= 0) == (
        None,
        True,
    )
    second = claim(worker, NO_SLOW)
    assert (second.lanes, second.full, second.exhausted) == (0, False, True), "and not met again"
    look = worker.claimer.next_look(worker.connection, slow=False)
    assert (look.lane_s > 0, look.new_rows) == (True, False)
    assert worker.claimer.next_look(worker.connection).lane_s <= 0
    insert(database, 2)
    assert [item.webhook_id for item in claim(worker, NO_SLOW).deliveries] == [2]
    with_slots = claim(worker, Budget(100, 2))
    assert (ids(with_slots.deliveries), with_slots.full) == (waiting[:2], True)


def test_lanes_that_are_not_measured_are_left_to_workers_that_take_them(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    [waiting] = insert(database, 1)
    worker.claimer.claim(worker.connection, NO_NEW)  # makes the lane
    assert list(claim(worker, NO_NEW).deliveries) == []
    assert new_rows(database) == 0
    assert claim(worker, NO_NEW).lanes == 0
    assert worker.claimer.next_look(worker.connection, new=False).lane_s == math.inf
    assert ids(claim(worker, NO_SLOW).deliveries) == [waiting]


def test_the_slots_are_shared_by_the_slow_lanes_that_wait(
    database: Database, worker: Engine
) -> None:
    for webhook_id in range(1, 5):
        measured(database, worker, webhook_id, 4.8)
    for webhook_id in range(1, 5):
        insert(database, webhook_id, 10)
    claimed = claim(worker, Budget(100, 6)).deliveries
    assert sorted(item.webhook_id for item in claimed) == [1, 1, 2, 2, 3, 4]


def test_a_thousand_slow_lanes_that_wait_cost_a_look_nothing(
    database: Database, worker: Engine
) -> None:
    measured(database, worker, 1, 0.01)
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) SELECT n, 'https://receiver.example/'"
        " FROM generate_series(1001, 2000) n"
    )
    database.execute("UPDATE pggit.webhook_health_metrics SET slow = true WHERE webhook_id > 1000")
    database.execute("VACUUM ANALYZE pggit.webhook_health_metrics")
    insert(database, 1)
    with counted(worker, "lock_lanes") as pages:
        assert [item.webhook_id for item in claim(worker, NO_SLOW).deliveries] == [1]
    assert max(pages["lock_lanes"]) < 50, pages
