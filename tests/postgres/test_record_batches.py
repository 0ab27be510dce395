"""Many results in one record: mixed, at once, of lanes locked or gone, or recorded again."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.support.engine import (
    TEN_MINUTES_S,
    Engine,
    answered,
    assert_books_balance,
    claim_one,
    delivery,
    given_back,
    ids,
    insert,
    lane,
    lanes_of,
    let_pass,
    not_allowed,
    register,
    short_of_memory,
    statuses,
    timed_out,
)
from tests.support.postgres import Database
from webhookd.core.model import Delivery, Lost, Outcome, Result


def outcome_of(random_number: random.Random) -> Outcome:
    outcomes: list[Outcome] = [
        answered(200, seconds=random_number.random()),
        answered(500),
        answered(404),
        answered(429),
        answered(503, retry_after="2"),
        timed_out(),
        not_allowed(),
        short_of_memory(),
        given_back(),
        Lost(),
    ]
    return random_number.choice(outcomes)


def test_after_batches_of_mixed_outcomes_for_many_webhooks_the_books_balance(
    database: Database, worker: Engine
) -> None:
    dice = random.Random(1)
    webhooks = range(1, 41)
    register(database, *webhooks)
    for webhook_id in webhooks:
        insert(database, webhook_id, 10)
    database.execute("UPDATE pggit.alert_delivery_queue SET max_retries = 1")
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
    start = threading.Barrier(2)

    def record(recorder: Engine, claimed: list[Delivery]) -> None:
        dice = random.Random(recorder.worker_id)
        dice.shuffle(claimed)
        start.wait(20)
        while claimed:
            batch, claimed = claimed[:30], claimed[30:]
            recorded = recorder.record(
                [Result(item, dice.choice([answered(200), answered(500)])) for item in batch]
            )
            claimed += [result.delivery for result in recorded.deferred]
            assert not recorded.refused

    with ThreadPoolExecutor(2) as threads:
        recorders = [threads.submit(record, *item) for item in work.items()]
        for recorder in recorders:
            recorder.result(60)
    assert_books_balance(database)
    assert database.execute("SELECT sum(total_deliveries) FROM pggit.webhook_health_metrics") == [
        (1200,)
    ]


def test_results_of_a_lane_that_an_operator_holds_are_deferred_and_only_those(
    database: Database, worker: Engine
) -> None:
    register(database, 1, 2, 3)
    for webhook_id in (1, 2, 3):
        insert(database, webhook_id, 2)
    claimed = worker.take_all()
    worker.connection.execute("SET lock_timeout = '1s'")
    with database.connect(autocommit=False) as operator:
        operator.execute(
            "UPDATE pggit.webhook_health_metrics SET last_check_at = now() WHERE webhook_id = 2"
        )
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


def test_a_lane_that_an_open_transaction_is_making_keeps_no_other_result_waiting(
    database: Database, worker: Engine
) -> None:
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


def test_recording_again_after_a_lost_commit_answer_is_refused_and_counts_nothing(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    insert(database, 1, 5)
    claimed = worker.take()
    assert len(worker.finish(claimed, answered(500)).accepted) == 5
    again = worker.finish(claimed, answered(500))
    assert (len(again.accepted), len(again.refused)) == (0, 5)
    assert lane(database, 1)["total_deliveries"] == 5
    assert_books_balance(database)


def test_a_late_result_beside_that_of_a_later_claim_in_one_batch_is_refused(
    database: Database, worker: Engine
) -> None:
    claimed = claim_one(database, worker)
    worker.finish([claimed], answered(500))
    let_pass(database, TEN_MINUTES_S)
    [second] = worker.take_all()
    recorded = worker.finish([claimed, second], answered(200))
    assert [result.delivery for result in recorded.refused] == [claimed]
    assert [result.delivery for result in recorded.accepted] == [second]
    assert_books_balance(database)


def test_a_record_that_fails_leaves_nothing_behind(database: Database, worker: Engine) -> None:
    claimed = claim_one(database, worker)
    database.execute(
        "ALTER TABLE pggit.alert_delivery_log ADD CONSTRAINT no_more CHECK (http_status <> 200)"
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        worker.finish([claimed], answered(200))
    assert delivery(database, claimed.delivery_id)["delivery_status"] == "sending"
    assert lane(database, 1)["total_deliveries"] == 0
    database.execute("ALTER TABLE pggit.alert_delivery_log DROP CONSTRAINT no_more")
    assert worker.finish([claimed], answered(200)).accepted
