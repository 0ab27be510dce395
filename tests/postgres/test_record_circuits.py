"""What records do to a circuit, when it closes again, and the seed's reset of it."""

from tests.support.engine import (
    ROOMY,
    Engine,
    answered,
    assert_books_balance,
    claim_one,
    engine,
    ids,
    insert,
    lane,
    let_pass,
    register,
)
from tests.support.postgres import Database
from tests.support.seed_statements import RESET
from webhookd.core.model import Delivery


def test_the_circuit_opens_at_the_webhooks_own_threshold_once(
    database: Database, worker: Engine
) -> None:
    register(database, 1, circuit_failure_threshold=3, circuit_open_seconds=100)
    insert(database, 1, 6)
    claimed = worker.take()
    assert list(worker.finish(claimed[:2], answered(404)).tripped) == []
    assert lane(database, 1)["health_status"] == "degraded"
    assert list(worker.finish(claimed[2:4], answered(404)).tripped) == [1]
    assert list(worker.finish(claimed[4:], answered(404)).tripped) == []
    state = lane(database, 1)
    assert (state["health_status"], state["circuit_state"], state["blocked_by"]) == (
        "unavailable",
        "open",
        "circuit",
    )
    assert 90 < state["circuit_in_s"] <= 100
    assert state["consecutive_failures"] == 3
    assert_books_balance(database)


def tripped(database: Database, worker: Engine, *, in_flight: int = 0) -> list[Delivery]:
    """Open webhook 1's circuit; return claims from before it opened."""
    register(database, 1, max_retries=0)
    insert(database, 1, 5 + in_flight)
    claimed = worker.take()
    worker.finish(claimed[:5], answered(404))
    return claimed[5:]


def test_a_failed_probe_opens_the_circuit_again_and_counts_as_an_opening(
    database: Database, worker: Engine
) -> None:
    tripped(database, worker)
    insert(database, 1)
    let_pass(database, 61)
    assert list(worker.finish(worker.take_all(), answered(500)).tripped) == [1]
    assert lane(database, 1)["circuit_state"] == "open"


def test_a_successful_probe_closes_the_circuit_for_the_whole_backlog(
    database: Database, worker: Engine
) -> None:
    tripped(database, worker)
    insert(database, 1, 10)
    let_pass(database, 61)
    worker.finish(worker.take_all(), answered(200))
    state = lane(database, 1)
    assert (state["circuit_state"], state["health_status"], state["consecutive_failures"]) == (
        "closed",
        "healthy",
        0,
    )
    assert len(worker.take_all()) == 9


def test_the_seeds_update_closes_the_circuit_and_earlier_attempts_do_not_count(
    database: Database, worker: Engine
) -> None:
    late = tripped(database, worker, in_flight=6)
    waiting = insert(database, 1, 3)
    assert worker.take_all() == []
    database.execute(RESET, [1])
    state = lane(database, 1)
    assert (state["circuit_state"], state["blocked_by"], state["circuit_until"]) == (
        "closed",
        None,
        None,
    )
    worker.finish(late, answered(404))
    state = lane(database, 1)
    assert (state["circuit_state"], state["consecutive_failures"], state["total_deliveries"]) == (
        "closed",
        0,
        11,
    )
    assert ids(worker.take_all()) == waiting
    assert_books_balance(database)


def test_the_reset_of_a_lane_that_counts_failures_forgets_them_and_those_in_flight(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    insert(database, 1, 8)
    claimed = worker.take()
    worker.finish(claimed[:4], answered(404))
    database.execute(RESET, [1])
    worker.finish(claimed[4:], answered(404))
    assert lane(database, 1)["circuit_state"] == "closed"
    insert(database, 1, 5)
    worker.finish(worker.take(), answered(404))
    assert lane(database, 1)["circuit_state"] == "open"


def test_the_reset_ends_a_receivers_hold(database: Database, worker: Engine) -> None:
    claimed = claim_one(database, worker)
    worker.finish([claimed], answered(429, retry_after="1000"))
    fresh = insert(database, 1)
    assert worker.take_all() == []
    database.execute(RESET, [1])
    assert ids(worker.take_all()) == fresh


def test_a_record_frees_a_lane_at_its_cap_for_the_next_look(database: Database) -> None:
    register(database, 1, max_in_flight=2)
    insert(database, 1, 4)
    with engine(database, defaults=ROOMY) as worker:
        claimed = worker.take_all()
        assert lane(database, 1)["blocked_by"] == "in_flight"
        recorded = worker.finish(claimed[:1], answered(200))
        assert recorded.next_look_s <= 0
        assert len(worker.take_all()) == 1


def test_the_record_says_when_its_lanes_are_to_be_looked_at(
    database: Database, worker: Engine
) -> None:
    claimed = claim_one(database, worker)
    assert 3 < worker.finish([claimed], answered(500)).next_look_s <= 6
