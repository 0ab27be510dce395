"""Registry rows that no sensible person writes: every one is claimed, recorded, and the worker's
next claim works.
"""

import math

import pytest

from tests.support.engine import (
    ROOMY,
    STANDARD,
    Engine,
    answered,
    attempts,
    delivery,
    engine,
    insert,
    lane,
    let_pass,
    register,
    statuses,
)
from tests.support.postgres import Database
from webhookd.config.kinds import LONGEST_S
from webhookd.core.model import Result
from webhookd.transport.client import Transport
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.circuits import LocalCircuits

SECONDS = [5e-324, 1e-14, 1e9, 1e13, 1e308]
WHOLE: list[float] = [1, 2**31 - 1]
COUNTS = ("max_in_flight", "rate_limit_burst", "circuit_failure_threshold")
EXTREMES: dict[str, list[float]] = {
    "timeout_seconds": [5e-324, 600.0],
    "rate_limit_per_second": [0.0, *SECONDS],
    "retry_base_seconds": SECONDS,
    "retry_max_seconds": SECONDS,
    "max_retries": [0, 1000],
    "retry_factor": [1.0, 100.0],
    "circuit_open_seconds": SECONDS,
    **{column: WHOLE for column in COUNTS},
}
# What no CHECK lets pass; but a CHECK can be dropped.
NONSENSE: list[float] = [0.0, -1.0, -1e308, math.nan, math.inf, -math.inf]
WHOLE_NONSENSE: list[float] = [0, -1, -(2**31)]

TOO_DEEP = '{"x-list": ' + 3000 * "[" + 3000 * "]" + "}"


def register_each(database: Database, column: str, values: list[float], *, first: int) -> None:
    for webhook_id, value in enumerate(values, start=first):
        register(
            database,
            webhook_id,
            **{"rate_limit_burst": 1, "circuit_failure_threshold": 1, column: value},
        )
        insert(database, webhook_id, 3)


def drop_checks(database: Database) -> None:
    named = (
        "SELECT conname FROM pg_constraint"
        " WHERE conrelid = 'pggit.webhooks'::regclass AND contype = 'c'"
    )
    for (name,) in database.execute(named):
        database.execute(f'ALTER TABLE pggit.webhooks DROP CONSTRAINT "{name}"')


@pytest.mark.every_postgres
@pytest.mark.parametrize("column", EXTREMES)
def test_no_value_of_a_limit_ends_a_worker_undoes_a_record_or_blocks_for_ever(
    database: Database, column: str
) -> None:
    possible = EXTREMES[column]
    nonsense = WHOLE_NONSENSE if column in (*COUNTS, "max_retries") else NONSENSE
    register_each(database, column, possible, first=1)
    drop_checks(database)
    register_each(database, column, nonsense, first=len(possible) + 1)
    with engine(database, defaults=STANDARD) as worker:
        for outcome in (answered(500), answered(429, retry_after="9" * 20), answered(200)):
            claimed = worker.take_all()
            assert len(worker.finish(claimed, outcome).accepted) == len(claimed)
            worker.claimer.next_look(worker.connection)
            worker.sweep()
            let_pass(database, LONGEST_S + 1)
        worker.take_all()
    tried = database.execute("SELECT count(DISTINCT webhook_id)::int FROM pggit.alert_delivery_log")
    # No exchange at a time is the one nonsense that can be had.
    assert tried == [(len(possible) + (0 if column == "max_in_flight" else len(nonsense)),)]


def test_a_rate_below_one_in_30_days_is_that(database: Database, worker: Engine) -> None:
    register(database, 1, rate_limit_per_second=1e-14, rate_limit_burst=1)
    insert(database, 1, 2)
    assert len(worker.take_all()) == 1
    state = lane(database, 1)
    assert (state["blocked_by"], state["runnable_in_s"]) == (
        "rate",
        pytest.approx(LONGEST_S, abs=60),
    )


def test_a_circuit_that_stays_open_for_ever_is_probed_after_30_days(
    database: Database, worker: Engine
) -> None:
    register(database, 1, circuit_open_seconds=1e15, circuit_failure_threshold=1)
    [due] = insert(database, 1)
    worker.finish(worker.take_all(), answered(500))
    assert delivery(database, due)["delivery_status"] == "retrying"
    assert lane(database, 1)["circuit_in_s"] == pytest.approx(LONGEST_S, abs=60)
    let_pass(database, LONGEST_S)
    assert len(worker.take_all()) == 1


def test_a_retry_comes_after_30_days_at_the_latest(database: Database, worker: Engine) -> None:
    register(database, 1, retry_base_seconds=1e15, retry_max_seconds=1e15)
    insert(database, 1)
    worker.finish(worker.take_all(), answered(500))
    [(wait_s,)] = database.execute(
        "SELECT extract(epoch FROM next_retry_at - now())::float8 FROM pggit.alert_delivery_queue"
    )
    assert 0.79 * LONGEST_S < wait_s <= LONGEST_S  # with the jitter


def test_the_configurations_word_is_bounded_like_a_rows(database: Database) -> None:
    register(database, 1)
    insert(database, 1, 2)
    far = STANDARD._replace(
        rate=1e-14,
        burst=1,
        retry_base_s=1e15,
        retry_max_s=1e15,
        circuit_threshold=1,
        circuit_open_s=1e15,
    )
    with engine(database, defaults=far) as worker:
        worker.finish(worker.take_all(), answered(500))
        assert worker.take_all() == []
    assert statuses(database) == {"retrying": 1, "pending": 1}


@pytest.mark.parametrize("headers", [TOO_DEEP, "[1]", "null"], ids=["too deep", "a list", "null"])
def test_headers_that_cannot_be_read_give_back_their_own_webhooks_deliveries_alone(
    database: Database, sender: Transport, headers: str
) -> None:
    drop_checks(database)
    register(database, 1, headers=headers)
    register(database, 2)
    [returned] = insert(database, 1)
    insert(database, 2)
    courier = AttemptRunner(sender, LocalCircuits(), installation="wh_test")
    with engine(database, defaults=ROOMY) as worker:
        claimed = {item.webhook_id: item for item in worker.take_all()}
        assert claimed.keys() == {1, 2}
        worker.record([Result(claimed[1], courier.deliver(claimed[1]))])
        worker.finish([claimed[2]], answered(200))
    assert attempts(database, returned) == []
    row = delivery(database, returned)
    assert (row["delivery_status"], row["retry_count"]) == ("pending", 0)
    assert statuses(database, 2) == {"delivered": 1}


def test_the_lost_leases_of_a_webhook_with_unreadable_headers_are_released(
    database: Database, worker: Engine
) -> None:
    register(database, 1, headers=TOO_DEEP)
    insert(database, 1)
    worker.take_all()
    let_pass(database, 600)
    assert len(worker.release().accepted) == 1
