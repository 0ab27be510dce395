"""What keeps a claim from taking due rows: circuit, hold, rate, cap and pause, and what lets it go
on.
"""

import math
from collections import Counter

import pytest

from tests.support.blocks import block, unblock
from tests.support.engine import (
    STANDARD,
    Engine,
    answered,
    engine,
    given_back,
    ids,
    insert,
    lane,
    lanes_of,
    let_pass,
    new_rows,
    not_allowed,
    register,
)
from tests.support.postgres import Database
from tests.support.steps import run_at_once
from webhookd.core.breaker import CircuitState


def lanes(database: Database) -> list[tuple[int]]:
    return database.execute("SELECT webhook_id FROM pggit.webhook_health_metrics")


# Lanes that may not move


BLOCKED = ["unregistered", "paused", "circuit", "hold", "rate", "in_flight"]


@pytest.mark.parametrize("cause", BLOCKED)
def test_rows_of_a_blocked_webhook_leave_queue_new_and_go_out_once_it_is_free(
    database: Database, worker: Engine, cause: str
) -> None:
    in_flight = block(database, worker, cause)
    waiting = insert(database, 1, 3)
    assert worker.take_all() == []
    assert new_rows(database) == 0
    if cause == "unregistered":  # no lane is made for what nobody registered
        assert lanes(database) == []
    else:
        assert lane(database, 1)["blocked_by"] == cause
    look = worker.claimer.next_look(worker.connection)
    assert look.lane_s > 0
    assert not look.new_rows
    unblock(database, worker, cause, in_flight)
    assert worker.claimer.next_look(worker.connection).lane_s <= 0
    claimed = worker.take_all()
    assert ids(claimed) == waiting[: len(claimed)] != []


@pytest.mark.parametrize("cause", BLOCKED)
def test_a_blocked_webhook_does_not_keep_another_from_moving(
    database: Database, worker: Engine, cause: str
) -> None:
    block(database, worker, cause)
    insert(database, 1, 200)
    register(database, 2)
    free = insert(database, 2, 30)
    assert ids(worker.take_all()) == free


def test_the_timers_of_blocked_lanes_say_when_they_are_free(
    database: Database, worker: Engine
) -> None:
    expected = {
        "paused": None,
        "circuit": 60,
        "hold": 1000,
        "rate": 100,
        "in_flight": 5,
    }
    for cause, seconds in expected.items():
        block(database, worker, cause)
        insert(database, 1, 3)
        worker.take_all()
        runnable_in_s = lane(database, 1)["runnable_in_s"]
        if seconds is None:
            assert runnable_in_s is None, cause
        else:
            assert seconds - 20 < runnable_in_s <= seconds, cause
        for table in (
            "alert_delivery_queue",
            "webhooks",
            "webhook_health_metrics",
            "alert_delivery_log",
        ):
            database.execute(f"DELETE FROM pggit.{table}")


def test_a_backlog_of_new_rows_larger_than_one_turn_of_parking_leaves_queue_new_too(
    database: Database, worker: Engine
) -> None:
    register(database, 1, enabled=False)
    insert(database, 1, 1200)
    for _ in range(4):
        worker.claim()
    assert new_rows(database) == 0
    database.execute("UPDATE pggit.webhooks SET enabled = true WHERE webhook_id = 1")
    assert len(worker.take_all(200)) == 1200


def test_a_raised_limit_frees_the_lane_at_once(database: Database, worker: Engine) -> None:
    register(database, 1, max_in_flight=1)
    insert(database, 1, 3)
    assert len(worker.take_all()) == 1
    database.execute("UPDATE pggit.webhooks SET max_in_flight = 3 WHERE webhook_id = 1")
    assert len(worker.take_all()) == 2


def test_new_rows_of_a_webhook_without_any_lane_row_are_found_by_the_second_look(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    database.execute("DELETE FROM pggit.webhook_health_metrics")
    waiting = insert(database, 1, 3)
    assert list(worker.claim().deliveries) == []
    assert worker.claimer.next_look(worker.connection).new_rows
    assert ids(worker.claim().deliveries) == waiting


def test_routed_rows_whose_lane_row_was_deleted_come_up_with_the_sweep(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    waiting = insert(database, 1, 3)
    worker.finish(worker.take(), given_back())
    database.execute("DELETE FROM pggit.webhook_health_metrics")
    assert worker.take_all() == []
    worker.sweep()
    assert ids(worker.take_all()) == waiting


# The rate


def test_tokens_come_back_with_time_up_to_the_burst(database: Database) -> None:
    register(database, 1, rate_limit_per_second=2, rate_limit_burst=4)
    insert(database, 1, 100)
    with engine(database) as worker:
        assert len(worker.take_all()) == 4
        let_pass(database, 1.5)
        assert len(worker.take_all()) == 3
        let_pass(database, 3600)
        assert len(worker.take_all()) == 4


def test_only_a_lane_that_had_to_keep_due_rows_counts_as_rate_limited(database: Database) -> None:
    register(database, 1, 2, rate_limit_per_second=0.01, rate_limit_burst=2)
    insert(database, 1, 2)
    insert(database, 2, 3)
    lanes_of(database, 1, 2)
    with engine(database, defaults=STANDARD) as worker:
        assert list(worker.claim().rate_limited) == [2]
        assert list(worker.claim().rate_limited) == [
            2
        ]  # the row left over is still new, and is parked only now
        assert list(worker.claim().rate_limited) == []
        insert(database, 1)
        assert list(worker.claim().rate_limited) == [1]


def test_a_row_that_somebody_has_locked_is_not_kept_for_want_of_tokens(database: Database) -> None:
    register(database, 1, rate_limit_per_second=0.01, rate_limit_burst=2)
    [locked, _] = insert(database, 1, 2)
    with (
        engine(database, defaults=STANDARD) as worker,
        database.connect(autocommit=False) as operator,
    ):
        operator.execute(
            "SELECT FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", [locked]
        )
        claim = worker.claim()
    assert (len(claim.deliveries), list(claim.rate_limited)) == (1, [])


def test_the_default_rate_holds_where_the_registry_says_nothing(database: Database) -> None:
    register(database, 1)
    register(database, 2, rate_limit_per_second=0)
    insert(database, 1, 100)
    insert(database, 2, 100)
    with engine(database, defaults=STANDARD._replace(rate=0.001, max_in_flight=1000)) as worker:
        assert Counter(item.webhook_id for item in worker.take_all()) == {1: 20, 2: 100}


# The in-flight counter


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM pggit.alert_delivery_queue WHERE delivery_status = 'sending'",
        "TRUNCATE pggit.alert_delivery_queue",
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_status "
        "= 'sending'",
    ],
    ids=["deleted", "truncated", "cancelled"],
)
def test_claimed_rows_that_vanish_do_not_block_their_lane_for_ever(
    database: Database, worker: Engine, statement: str
) -> None:
    register(database, 1, max_in_flight=4)
    insert(database, 1, 4)
    assert len(worker.take_all()) == 4
    database.execute(statement)
    fresh = insert(database, 1, 6)
    assert ids(worker.take_all()) == fresh[:4]
    assert lane(database, 1)["in_flight"] == 4


def test_the_sweep_mends_a_counter_that_blocks_nothing_yet(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    insert(database, 1, 4)
    worker.take_all()
    database.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_id % 2 = 0")
    assert lane(database, 1)["in_flight"] == 4
    worker.sweep()
    assert lane(database, 1)["in_flight"] == 2


# The probe


def trip(database: Database, worker: Engine) -> None:
    """Have webhook 1 registered, its circuit open for another 60 s, and nothing of it waiting."""
    register(database, 1)
    insert(database, 1, 5)
    database.execute("UPDATE pggit.alert_delivery_queue SET max_retries = 0")
    worker.finish(worker.take_all(), answered(404))
    assert lane(database, 1)["circuit_state"] == "open"


def test_exactly_one_probe_goes_out_fleet_wide(
    database: Database, worker: Engine, other: Engine
) -> None:
    trip(database, worker)
    insert(database, 1, 50)
    assert run_at_once([worker, other], claims=3) == 0
    let_pass(database, 61)
    assert run_at_once([worker, other], claims=20) == 1
    state = lane(database, 1)
    assert (state["circuit_state"], state["health_status"], state["blocked_by"]) == (
        "half_open",
        "degraded",
        "circuit",
    )
    assert 20 < state["circuit_in_s"] < 60


def test_the_end_of_a_probes_lease_frees_the_next_probe(
    database: Database, worker: Engine, other: Engine
) -> None:
    trip(database, worker)
    insert(database, 1, 5)
    let_pass(database, 61)
    [lost] = worker.take_all()
    let_pass(database, 20)
    assert other.take_all() == []
    let_pass(database, 30)
    [probe] = other.take_all()
    assert probe.breaker.state is CircuitState.HALF_OPEN
    assert probe.breaker.generation == lost.breaker.generation + 1


def test_a_probe_that_is_given_back_makes_way_for_the_next_at_once(
    database: Database, worker: Engine
) -> None:
    trip(database, worker)
    insert(database, 1, 5)
    let_pass(database, 61)
    worker.finish(worker.take_all(), given_back())
    assert len(worker.take_all()) == 1


def test_a_probe_whose_worker_died_makes_way_for_the_next_at_once(
    database: Database, worker: Engine, other: Engine
) -> None:
    trip(database, worker)
    insert(database, 1, 5)
    let_pass(database, 61)
    assert len(worker.take_all()) == 1
    other.release(worker.incarnation)
    assert len(other.take_all()) == 1


def test_a_due_circuit_without_rows_waits_for_the_next_insert(
    database: Database, worker: Engine
) -> None:
    trip(database, worker)
    let_pass(database, 61)
    assert worker.take_all() == []
    assert math.isinf(worker.claimer.next_look(worker.connection).lane_s)
    insert(database, 1, 2)
    assert len(worker.take_all()) == 1


def test_a_probe_that_said_nothing_leaves_the_circuit_open_for_the_next(
    database: Database, worker: Engine
) -> None:
    trip(database, worker)
    insert(database, 1, 5)
    let_pass(database, 61)
    worker.finish(worker.take_all(), not_allowed())
    assert lane(database, 1)["circuit_state"] == "half_open"
    assert worker.take_all() == []
    let_pass(database, 2)
    assert len(worker.take_all()) == 1


def test_a_claim_says_whether_other_workers_hold_the_lanes_with_new_rows(
    database: Database, worker: Engine
) -> None:
    register(database, 1, 2)
    worker.take_all()
    insert(database, 1)
    insert(database, 2)
    with database.connect(autocommit=False) as operator:
        operator.execute(
            "SELECT 1 FROM pggit.webhook_health_metrics WHERE webhook_id = 2 FOR UPDATE"
        )
        assert worker.claim().contended
        operator.rollback()
    assert not worker.claim().contended
