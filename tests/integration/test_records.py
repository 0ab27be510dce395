"""What a record leaves in the row, the attempt log, the health counters and the lane."""

import random
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import psycopg
import pytest

from tests.engine import (
    ROOMY,
    STANDARD,
    TEN_MINUTES_S,
    Engine,
    answered,
    assert_books_balance,
    attempts,
    delivery,
    engine,
    given_back,
    ids,
    insert,
    lane,
    lanes_of,
    let_pass,
    not_allowed,
    recorded_ids,
    register,
    statuses,
    timed_out,
)
from tests.postgres import Database
from webhookd.core.model import Delivery, Lost, Outcome, Result

RESET = """
UPDATE pggit.webhook_health_metrics
SET consecutive_failures = 0, health_status = 'healthy', last_check_at = CURRENT_TIMESTAMP
WHERE webhook_id = %s AND health_status != 'healthy'
"""


def one(database: Database, worker: Engine, **columns: Any) -> Delivery:
    """Register webhook 1, insert one delivery and claim it."""
    register(database, 1, **columns)
    insert(database, 1)
    [claimed] = worker.take()
    return claimed


# One outcome --------------------------------------------------------------------------------------------------------


def test_a_2xx_delivers(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    recorded = worker.finish([claimed], answered(204, seconds=0.25))
    assert recorded_ids(recorded.accepted) == [claimed.delivery_id]
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["status"], row["attempts"], row["retry_count"]) == ("delivered", "delivered", 1, 0)
    assert row["delivered_at"] > row["attempted_at"] == row["first_attempted_at"]
    assert (row["lease_token"], row["lease_until"], row["leased_by"], row["worker_id"]) == (None, None, None, "worker-1")
    assert attempts(database, claimed.delivery_id) == [("delivered", 204, {"reason": "HTTP 204", "attempt": 1})]
    state = lane(database, 1)
    assert (state["health_status"], state["circuit_state"], state["in_flight"]) == ("healthy", "closed", 0)
    assert (state["total_deliveries"], state["successful_deliveries"], state["failed_deliveries"]) == (1, 1, 0)
    assert (state["avg_response_time_ms"], state["min_response_time_ms"], state["max_response_time_ms"]) == (250, 250, 250)
    assert state["last_success_at"] == state["last_check_at"]
    assert state["last_failure_at"] is None
    assert_books_balance(database)


RETRIED = {
    "500": answered(500),
    "503": answered(503),
    "408": answered(408),
    "425": answered(425),
    "timeout": timed_out(),
}


@pytest.mark.parametrize("outcome", RETRIED.values(), ids=RETRIED.keys())
def test_what_may_get_better_is_retried_after_a_backoff_and_spends_a_retry(
    database: Database, worker: Engine, outcome: Outcome
) -> None:
    claimed = one(database, worker)
    worker.finish([claimed], outcome)
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["attempts"]) == ("retrying", 1, 1)
    [(event, _, details)] = attempts(database, claimed.delivery_id)
    assert event == "retrying"
    assert 4 <= details["retry_in_s"] <= 6
    state = lane(database, 1)
    assert (state["health_status"], state["consecutive_failures"], state["failed_deliveries"]) == ("degraded", 1, 1)
    assert 3 < state["runnable_in_s"] <= 6
    assert_books_balance(database)


FAILED = {"404": answered(404), "301": answered(301), "400": answered(400)}


@pytest.mark.parametrize("outcome", FAILED.values(), ids=FAILED.keys())
def test_what_cannot_get_better_fails_at_once_and_counts_for_the_circuit(
    database: Database, worker: Engine, outcome: Outcome
) -> None:
    claimed = one(database, worker)
    worker.finish([claimed], outcome)
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["attempts"], row["delivered_at"]) == ("failed", 0, 1, None)
    assert [event for event, _, _ in attempts(database, claimed.delivery_id)] == ["failed"]
    assert lane(database, 1)["consecutive_failures"] == 1
    assert_books_balance(database)


def test_a_target_that_is_not_allowed_fails_with_its_reason_and_says_nothing_about_the_circuit(
    database: Database, worker: Engine
) -> None:
    claimed = one(database, worker)
    worker.finish([claimed], not_allowed())
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "failed"
    assert attempts(database, claimed.delivery_id)[0][2]["reason"] == "not a public address"
    assert lane(database, 1)["consecutive_failures"] == 0


def test_a_410_fails_the_delivery_and_disables_the_webhook(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    [waiting] = insert(database, 1)
    worker.finish([claimed], answered(410))
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "failed"
    assert database.execute("SELECT enabled, disabled_reason FROM pggit.webhooks") == [(False, "410 Gone")]
    assert worker.take_all() == []
    assert delivery(database, waiting)["delivery_status"] == "pending"
    assert lane(database, 1)["blocked_by"] == "paused"


def test_a_410_does_not_wait_for_a_registry_row_that_an_operator_holds(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    worker.connection.execute("SET lock_timeout = '1s'")
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT 1 FROM pggit.webhooks FOR UPDATE")
        worker.finish([claimed], answered(410))
        operator.rollback()
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "failed"


def test_a_429_spends_no_retry_and_counts_neither_for_nor_against_the_circuit(database: Database, worker: Engine) -> None:
    claimed = one(database, worker, circuit_failure_threshold=1)
    worker.finish([claimed], answered(429))
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["attempts"]) == ("retrying", 0, 1)
    state = lane(database, 1)
    assert (state["circuit_state"], state["consecutive_failures"], state["failed_deliveries"]) == ("closed", 0, 1)
    assert state["health_status"] == "degraded"
    assert_books_balance(database)


def test_a_429_a_day_after_the_first_attempt_fails(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    worker.finish([claimed], answered(429))
    for _ in range(2):
        let_pass(database, 43_300)
        [claimed] = worker.take_all()
        worker.finish([claimed], answered(429))
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "failed"
    assert attempts(database, claimed.delivery_id)[-1][2]["reason"] == "HTTP 429 for a day"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_the_whole_webhook(database: Database, worker: Engine, status: int, form: str) -> None:
    claimed = one(database, worker)
    until = format_datetime(datetime.now(tz=UTC) + timedelta(seconds=100), usegmt=True)
    worker.finish([claimed], answered(status, retry_after="100" if form == "seconds" else until))
    insert(database, 1, 3)
    assert worker.take_all() == []
    state = lane(database, 1)
    assert state["blocked_by"] == "hold"
    assert 90 < state["hold_in_s"] <= 100
    assert 90 < state["runnable_in_s"] <= 100
    let_pass(database, 101)
    assert len(worker.take_all()) == 4


def test_retry_after_is_capped_and_a_shorter_one_does_not_shorten_the_hold(database: Database, worker: Engine) -> None:
    register(database, 1, retry_max_seconds=200)
    insert(database, 1, 2)
    first, second = worker.take()
    worker.finish([first], answered(429, retry_after="86400"))
    worker.finish([second], answered(429, retry_after="1"))
    assert 190 < lane(database, 1)["hold_in_s"] <= 200


def test_a_500_with_retry_after_delays_its_own_row_only(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    worker.finish([claimed], answered(500, retry_after="1000"))
    fresh = insert(database, 1, 2)
    assert ids(worker.take_all()) == fresh
    assert attempts(database, claimed.delivery_id)[0][2]["retry_in_s"] == 1000


def test_retries_are_spent_one_by_one_until_the_delivery_fails(database: Database, worker: Engine) -> None:
    claimed = one(database, worker, circuit_failure_threshold=100)
    for retry in range(4):
        assert claimed.retry_count == retry
        worker.finish([claimed], answered(500))
        let_pass(database, TEN_MINUTES_S)
        [claimed, *_] = [*worker.take_all(), claimed]
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["max_retries"], row["attempts"]) == ("failed", 3, 3, 4)
    events = attempts(database, claimed.delivery_id)
    assert [event for event, _, _ in events] == ["retrying", "retrying", "retrying", "failed"]
    assert [details["attempt"] for _, _, details in events] == [1, 2, 3, 4]
    assert events[-1][2]["reason"] == "HTTP 500; no retries left"
    assert_books_balance(database)


def test_a_row_given_back_is_as_it_was_and_its_token_is_refunded(database: Database) -> None:
    register(database, 1, rate_limit_per_second=0.001, rate_limit_burst=3)
    [delivery_id] = insert(database, 1)
    before = delivery(database, delivery_id)
    with engine(database, defaults=STANDARD) as worker:
        worker.finish(worker.take(), given_back())
        after = delivery(database, delivery_id)
        assert {name for name in after if after[name] != before[name]} == {"routed", "worker_id"}
        assert attempts(database, delivery_id) == []
        state = lane(database, 1)
        assert (state["in_flight"], state["total_deliveries"], state["health_status"]) == (0, 0, "unknown")
        assert 3 - state["tokens"] < 0.01
        assert ids(worker.take_all()) == [delivery_id]


def test_a_retried_row_given_back_stays_retrying(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    worker.finish([claimed], answered(500))
    let_pass(database, TEN_MINUTES_S)
    worker.finish(worker.take_all(), given_back())
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["attempts"]) == ("retrying", 1, 1)


def test_a_lost_lease_puts_the_row_back_without_an_attempt(database: Database, worker: Engine, other: Engine) -> None:
    claimed = one(database, worker)
    let_pass(database, TEN_MINUTES_S)
    other.release()
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["leases_lost"], row["retry_count"], row["attempts"]) == ("pending", 1, 0, 0)
    assert lane(database, 1)["in_flight"] == 0
    assert_books_balance(database)
    assert ids(other.take_all()) == [claimed.delivery_id]


HOSTILE = {
    "NUL": "before\x00after",
    "lone surrogate": "\ud800 and \udfff",
    "10 kB": "x" * 10_000,
    "quotes": "\"'\\ {}%(x)s \N{PILE OF POO}",
    "controls": "\x01\x1b[31m\r\n\u2028",
}


@pytest.mark.parametrize("excerpt", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_excerpt_keeps_a_result_from_being_recorded(database: Database, worker: Engine, excerpt: str) -> None:
    claimed = one(database, worker)
    worker.finish([claimed], answered(200, excerpt=excerpt))
    [(event, _, details)] = attempts(database, claimed.delivery_id)
    assert event == "delivered"
    assert len(details["excerpt"]) >= min(len(excerpt), 100)


# Many outcomes ------------------------------------------------------------------------------------------------------


def outcome_of(random_number: random.Random) -> Outcome:
    outcomes: list[Outcome] = [
        answered(200, seconds=random_number.random()),
        answered(500),
        answered(404),
        answered(429),
        answered(503, retry_after="2"),
        timed_out(),
        not_allowed(),
        given_back(),
        Lost(),
    ]
    return random_number.choice(outcomes)


def test_after_batches_of_mixed_outcomes_for_many_webhooks_the_books_balance(database: Database, worker: Engine) -> None:
    dice = random.Random(1)
    webhooks = range(1, 41)
    register(database, *webhooks)
    for webhook_id in webhooks:
        insert(database, webhook_id, 10)
    for _ in range(6):
        claimed = worker.take_all(200)
        dice.shuffle(claimed)
        for start in range(0, len(claimed), 70):
            worker.record([Result(item, outcome_of(dice)) for item in claimed[start : start + 70]])
        assert_books_balance(database)
        let_pass(database, TEN_MINUTES_S)
    assert statuses(database)["delivered"] > 40
    assert statuses(database)["failed"] > 40
    assert lane(database, 1)["in_flight"] == 0


def test_two_recorders_at_once_in_random_order_neither_deadlock_nor_lose_a_result(
    database: Database, worker: Engine, other: Engine
) -> None:
    webhooks = range(1, 16)
    register(database, *webhooks, circuit_failure_threshold=10_000)
    lanes_of(database, *webhooks)
    for webhook_id in webhooks:
        insert(database, webhook_id, 80)
    work = {recorder: recorder.take(600) for recorder in (worker, other)}
    assert [len(claimed) for claimed in work.values()] == [600, 600]
    faults: list[BaseException] = []
    start = threading.Barrier(2)

    def record(recorder: Engine, claimed: list[Delivery]) -> None:
        dice = random.Random(recorder.worker_id)
        try:
            dice.shuffle(claimed)
            start.wait(20)
            while claimed:
                batch, claimed = claimed[:30], claimed[30:]
                recorded = recorder.record([Result(item, dice.choice([answered(200), answered(500)])) for item in batch])
                claimed += [result.delivery for result in recorded.deferred]
                assert not recorded.refused
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=record, args=item) for item in work.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert_books_balance(database)
    assert database.execute("SELECT sum(total_deliveries) FROM pggit.webhook_health_metrics") == [(1200,)]


def test_results_of_a_lane_that_an_operator_holds_are_deferred_and_only_those(database: Database, worker: Engine) -> None:
    register(database, 1, 2, 3)
    for webhook_id in (1, 2, 3):
        insert(database, webhook_id, 2)
    claimed = worker.take_all()
    worker.connection.execute("SET lock_timeout = '1s'")
    with database.connect(autocommit=False) as operator:
        operator.execute("UPDATE pggit.webhook_health_metrics SET last_check_at = now() WHERE webhook_id = 2")
        recorded = worker.finish(claimed, answered(200))
        operator.rollback()
    assert {result.delivery.webhook_id for result in recorded.deferred} == {2}
    assert {result.delivery.webhook_id for result in recorded.accepted} == {1, 3}
    assert not worker.record(recorded.deferred).deferred
    assert statuses(database) == {"delivered": 6}
    assert_books_balance(database)


@pytest.mark.parametrize("statement", ["DELETE FROM", "TRUNCATE"])
def test_lanes_that_an_operator_removed_come_back_with_the_next_record(
    database: Database, worker: Engine, statement: str
) -> None:
    register(database, 1, 2)
    insert(database, 1, 3)
    insert(database, 2, 1)
    claimed = worker.take_all()
    database.execute(f"{statement} pggit.webhook_health_metrics")
    recorded = worker.finish(claimed, answered(200))
    assert len(recorded.deferred) == 4
    assert len(worker.record(recorded.deferred).accepted) == 4
    assert_books_balance(database)
    fresh = insert(database, 1, 2)
    assert ids(worker.take_all()) == fresh


def test_a_lane_that_an_open_transaction_is_making_keeps_no_other_result_waiting(database: Database, worker: Engine) -> None:
    register(database, 1, 2)
    insert(database, 1)
    insert(database, 2)
    claimed = worker.take_all()
    database.execute("DELETE FROM pggit.webhook_health_metrics WHERE webhook_id = 1")
    with database.connect(autocommit=False) as operator:
        operator.execute("INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (1)")
        recorded = worker.finish(claimed, answered(200))
        assert [result.delivery.webhook_id for result in recorded.accepted] == [2]
        operator.commit()
    assert len(worker.record(recorded.deferred).accepted) == 1


def test_recording_again_after_a_lost_commit_answer_is_refused_and_counts_nothing(database: Database, worker: Engine) -> None:
    register(database, 1)
    insert(database, 1, 5)
    claimed = worker.take()
    assert len(worker.finish(claimed, answered(500)).accepted) == 5
    again = worker.finish(claimed, answered(500))
    assert (len(again.accepted), len(again.refused)) == (0, 5)
    assert lane(database, 1)["total_deliveries"] == 5
    assert_books_balance(database)


def test_a_late_result_beside_that_of_a_later_claim_in_one_batch_is_refused(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    worker.finish([claimed], answered(500))
    let_pass(database, TEN_MINUTES_S)
    [second] = worker.take_all()
    recorded = worker.finish([claimed, second], answered(200))
    assert [result.delivery for result in recorded.refused] == [claimed]
    assert [result.delivery for result in recorded.accepted] == [second]
    assert_books_balance(database)


def test_a_record_that_fails_leaves_nothing_behind(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    database.execute("ALTER TABLE pggit.alert_delivery_log ADD CONSTRAINT no_more CHECK (http_status <> 200)")
    with pytest.raises(psycopg.errors.CheckViolation):
        worker.finish([claimed], answered(200))
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "sending"
    assert lane(database, 1)["total_deliveries"] == 0
    database.execute("ALTER TABLE pggit.alert_delivery_log DROP CONSTRAINT no_more")
    assert worker.finish([claimed], answered(200)).accepted


# The circuit and its reset ------------------------------------------------------------------------------------------


def test_the_circuit_opens_at_the_webhooks_own_threshold_once(database: Database, worker: Engine) -> None:
    register(database, 1, circuit_failure_threshold=3, circuit_open_seconds=100)
    insert(database, 1, 6)
    claimed = worker.take()
    assert list(worker.finish(claimed[:2], answered(404)).tripped) == []
    assert lane(database, 1)["health_status"] == "degraded"
    assert list(worker.finish(claimed[2:4], answered(404)).tripped) == [1]
    assert list(worker.finish(claimed[4:], answered(404)).tripped) == []
    state = lane(database, 1)
    assert (state["health_status"], state["circuit_state"], state["blocked_by"]) == ("unavailable", "open", "circuit")
    assert 90 < state["circuit_in_s"] <= 100
    assert state["consecutive_failures"] == 3
    assert_books_balance(database)


def tripped(database: Database, worker: Engine, *, in_flight: int = 0) -> list[Delivery]:
    """Open webhook 1's circuit; return claims from before it opened."""
    register(database, 1)
    insert(database, 1, 5 + in_flight)
    claimed = worker.take()
    worker.finish(claimed[:5], answered(404))
    return claimed[5:]


def test_a_failed_probe_opens_the_circuit_again_and_counts_as_an_opening(database: Database, worker: Engine) -> None:
    tripped(database, worker)
    insert(database, 1)
    let_pass(database, 61)
    assert list(worker.finish(worker.take_all(), answered(500)).tripped) == [1]
    assert lane(database, 1)["circuit_state"] == "open"


def test_a_successful_probe_closes_the_circuit_for_the_whole_backlog(database: Database, worker: Engine) -> None:
    tripped(database, worker)
    insert(database, 1, 10)
    let_pass(database, 61)
    worker.finish(worker.take_all(), answered(200))
    state = lane(database, 1)
    assert (state["circuit_state"], state["health_status"], state["consecutive_failures"]) == ("closed", "healthy", 0)
    assert len(worker.take_all()) == 9


def test_the_seeds_update_closes_the_circuit_and_earlier_attempts_do_not_count(database: Database, worker: Engine) -> None:
    late = tripped(database, worker, in_flight=6)
    waiting = insert(database, 1, 3)
    assert worker.take_all() == []
    database.execute(RESET, [1])
    state = lane(database, 1)
    assert (state["circuit_state"], state["blocked_by"], state["circuit_until"]) == ("closed", None, None)
    worker.finish(late, answered(404))
    state = lane(database, 1)
    assert (state["circuit_state"], state["consecutive_failures"], state["total_deliveries"]) == ("closed", 0, 11)
    assert ids(worker.take_all()) == waiting
    assert_books_balance(database)


def test_the_reset_of_a_lane_that_counts_failures_forgets_them_and_those_in_flight(database: Database, worker: Engine) -> None:
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
    claimed = one(database, worker)
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


def test_the_record_says_when_its_lanes_are_to_be_looked_at(database: Database, worker: Engine) -> None:
    claimed = one(database, worker)
    assert 3 < worker.finish([claimed], answered(500)).next_look_s <= 6
