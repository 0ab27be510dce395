"""What the record of one outcome leaves in the row, the attempt log, the health counters and the
lane.
"""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.support.engine import (
    STANDARD,
    TEN_MINUTES_S,
    Engine,
    answered,
    assert_books_balance,
    attempts,
    claim_one,
    delivery,
    engine,
    given_back,
    ids,
    insert,
    lane,
    let_pass,
    not_allowed,
    recorded_ids,
    register,
    short_of_memory,
    statuses,
    timed_out,
)
from tests.support.postgres import Database
from webhookd.core.model import GivenBack, Outcome


def test_a_2xx_delivers(database: Database, worker: Engine) -> None:
    claimed = claim_one(database, worker)
    recorded = worker.finish([claimed], answered(204, seconds=0.25))
    assert recorded_ids(recorded.accepted) == [claimed.delivery_id]
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["status"], row["attempts"], row["retry_count"]) == (
        "delivered",
        "delivered",
        1,
        0,
    )
    assert row["delivered_at"] > row["attempted_at"] == row["first_attempted_at"]
    assert (row["lease_token"], row["lease_until"], row["leased_by"], row["worker_id"]) == (
        None,
        None,
        None,
        "worker-1",
    )
    assert attempts(database, claimed.delivery_id) == [
        ("delivered", 204, {"reason": "HTTP 204", "attempt": 1})
    ]
    state = lane(database, 1)
    assert (state["health_status"], state["circuit_state"], state["in_flight"]) == (
        "healthy",
        "closed",
        0,
    )
    assert (
        state["total_deliveries"],
        state["successful_deliveries"],
        state["failed_deliveries"],
    ) == (1, 1, 0)
    assert (
        state["avg_response_time_ms"],
        state["min_response_time_ms"],
        state["max_response_time_ms"],
    ) == (250, 250, 250)
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
    claimed = claim_one(database, worker)
    worker.finish([claimed], outcome)
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["attempts"]) == ("retrying", 1, 1)
    [(event, _, details)] = attempts(database, claimed.delivery_id)
    assert event == "retrying"
    assert 4 <= details["retry_in_s"] <= 6
    state = lane(database, 1)
    assert (state["health_status"], state["consecutive_failures"], state["failed_deliveries"]) == (
        "degraded",
        1,
        1,
    )
    assert 3 < state["runnable_in_s"] <= 6
    assert_books_balance(database)


REFUSED = {str(status): answered(status) for status in (301, 400, 401, 403, 404)}


@pytest.mark.parametrize("outcome", REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_is_retried_and_counts_for_the_circuit(
    database: Database, worker: Engine, outcome: Outcome
) -> None:
    claimed = claim_one(database, worker)
    worker.finish([claimed], outcome)
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["attempts"], row["delivered_at"]) == (
        "retrying",
        1,
        1,
        None,
    )
    assert [event for event, _, _ in attempts(database, claimed.delivery_id)] == ["retrying"]
    assert lane(database, 1)["consecutive_failures"] == 1
    # The receiver was deployed, or has its secret now.
    let_pass(database, TEN_MINUTES_S)
    worker.finish(worker.take_all(), answered(200))
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "delivered"
    assert_books_balance(database)


@pytest.mark.parametrize("outcome", [not_allowed(), short_of_memory()], ids=["rules", "shortage"])
def test_what_was_given_back_for_a_reason_is_no_attempt_and_its_webhook_waits_for_a_moment(
    database: Database, worker: Engine, outcome: GivenBack
) -> None:
    claimed = claim_one(database, worker, rate_limit_per_second=0.001, rate_limit_burst=3)
    insert(database, 1)
    tokens = lane(database, 1)["tokens"]
    worker.finish([claimed], outcome)
    row, after = delivery(database, claimed.delivery_id), lane(database, 1)
    assert (row["delivery_status"], row["retry_count"], row["attempts"]) == ("pending", 0, 0)
    assert attempts(database, claimed.delivery_id) == []
    assert (after["consecutive_failures"], after["circuit_state"]) == (0, "closed")
    assert after["tokens"] > tokens
    # Not only this row: the backlog behind it would be claimed and given back row by row.
    assert after["blocked_by"] == "hold"
    assert worker.take_all() == []
    let_pass(database, 2)
    assert len(worker.take_all()) == 2
    assert_books_balance(database)


def test_a_410_fails_the_delivery_and_disables_the_webhook(
    database: Database, worker: Engine
) -> None:
    claimed = claim_one(database, worker)
    [waiting] = insert(database, 1)
    worker.finish([claimed], answered(410))
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "failed"
    assert database.execute("SELECT enabled, disabled_reason FROM pggit.webhooks") == [
        (False, "410 Gone")
    ]
    assert worker.take_all() == []
    assert delivery(database, waiting)["delivery_status"] == "pending"
    assert lane(database, 1)["blocked_by"] == "paused"


def test_a_410_of_a_webhook_whose_row_breaks_a_later_check_is_recorded_all_the_same(
    database: Database, worker: Engine
) -> None:
    claimed = claim_one(database, worker)
    checks = "ADD CONSTRAINT broken CHECK (webhook_id > 1) NOT VALID"
    database.execute(f"ALTER TABLE pggit.webhooks {checks}")
    register(database, 2)
    insert(database, 2)
    [other] = worker.take_all()
    assert len(worker.finish([claimed, other], answered(410)).accepted) == 2
    assert statuses(database) == {"failed": 2}
    # None of the batch is disabled now; the other one is with its next 410.
    insert(database, 2)
    worker.finish(worker.take_all(), answered(410))
    assert database.execute("SELECT webhook_id, enabled FROM pggit.webhooks ORDER BY 1") == [
        (1, True),
        (2, False),
    ]


def test_a_410_does_not_wait_for_a_registry_row_that_an_operator_holds(
    database: Database, worker: Engine
) -> None:
    claimed = claim_one(database, worker)
    worker.connection.execute("SET lock_timeout = '1s'")
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT 1 FROM pggit.webhooks FOR UPDATE")
        worker.finish([claimed], answered(410))
        operator.rollback()
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "failed"


def test_a_429_spends_no_retry_and_counts_neither_for_nor_against_the_circuit(
    database: Database, worker: Engine
) -> None:
    claimed = claim_one(database, worker, circuit_failure_threshold=1)
    worker.finish([claimed], answered(429))
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["attempts"]) == ("retrying", 0, 1)
    state = lane(database, 1)
    assert (state["circuit_state"], state["consecutive_failures"], state["failed_deliveries"]) == (
        "closed",
        0,
        1,
    )
    assert state["health_status"] == "degraded"
    assert_books_balance(database)


def test_a_429_a_day_after_the_first_attempt_fails(database: Database, worker: Engine) -> None:
    claimed = claim_one(database, worker)
    worker.finish([claimed], answered(429))
    for _ in range(2):
        let_pass(database, 43_300)
        [claimed] = worker.take_all()
        worker.finish([claimed], answered(429))
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "failed"
    assert attempts(database, claimed.delivery_id)[-1][2]["reason"] == "HTTP 429 for a day"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_holds_the_whole_webhook(
    database: Database, worker: Engine, status: int, form: str
) -> None:
    claimed = claim_one(database, worker)
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


def test_retry_after_is_capped_and_a_shorter_one_does_not_shorten_the_hold(
    database: Database, worker: Engine
) -> None:
    register(database, 1, retry_max_seconds=200)
    insert(database, 1, 2)
    first, second = worker.take()
    worker.finish([first], answered(429, retry_after="86400"))
    worker.finish([second], answered(429, retry_after="1"))
    assert 190 < lane(database, 1)["hold_in_s"] <= 200


def test_a_500_with_retry_after_delays_its_own_row_only(database: Database, worker: Engine) -> None:
    claimed = claim_one(database, worker)
    worker.finish([claimed], answered(500, retry_after="1000"))
    fresh = insert(database, 1, 2)
    assert ids(worker.take_all()) == fresh
    assert attempts(database, claimed.delivery_id)[0][2]["retry_in_s"] == 1000


def test_retries_are_spent_one_by_one_until_the_delivery_fails(
    database: Database, worker: Engine
) -> None:
    claimed = claim_one(database, worker, circuit_failure_threshold=100, max_retries=3)
    for retry in range(4):
        assert claimed.retry_count == retry
        worker.finish([claimed], answered(500))
        let_pass(database, TEN_MINUTES_S)
        [claimed, *_] = [*worker.take_all(), claimed]
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["max_retries"], row["attempts"]) == (
        "failed",
        3,
        None,
        4,
    )
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
        assert (state["in_flight"], state["total_deliveries"], state["health_status"]) == (
            0,
            0,
            "unknown",
        )
        assert 3 - state["tokens"] < 0.01
        assert ids(worker.take_all()) == [delivery_id]


def test_a_retried_row_given_back_stays_retrying(database: Database, worker: Engine) -> None:
    claimed = claim_one(database, worker)
    worker.finish([claimed], answered(500))
    let_pass(database, TEN_MINUTES_S)
    worker.finish(worker.take_all(), given_back())
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["retry_count"], row["attempts"]) == ("retrying", 1, 1)


def test_a_lost_lease_puts_the_row_back_without_an_attempt(
    database: Database, worker: Engine, other: Engine
) -> None:
    claimed = claim_one(database, worker)
    let_pass(database, TEN_MINUTES_S)
    other.release()
    row = delivery(database, claimed.delivery_id)
    assert (row["delivery_status"], row["leases_lost"], row["retry_count"], row["attempts"]) == (
        "pending",
        1,
        0,
        0,
    )
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
def test_no_excerpt_keeps_a_result_from_being_recorded(
    database: Database, worker: Engine, excerpt: str
) -> None:
    claimed = claim_one(database, worker)
    worker.finish([claimed], answered(200, excerpt=excerpt))
    [(event, _, details)] = attempts(database, claimed.delivery_id)
    assert event == "delivered"
    assert len(details["excerpt"]) >= min(len(excerpt), 100)
