"""A webhook that has only failed for longer than --disable-after is disabled."""

import pytest

from tests.support.engine import (
    Engine,
    answered,
    lane,
    let_pass,
    register,
)
from tests.support.postgres import Database
from webhookd.metrics.counters import Metrics
from webhookd.metrics.declarations import WEBHOOKS_DISABLED
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.disabler import Disabler

AFTER_S = 3600.0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("worker-1", max_webhooks=10)


@pytest.fixture
def chore(metrics: Metrics) -> Disabler:
    return Disabler(metrics, after_s=AFTER_S)


def attempt(database: Database, worker: Engine, status: int) -> None:
    """Have one new delivery attempted, without retries, and answered with *status*."""
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, max_retries)"
        " VALUES (1, '1', 0)"
    )
    [delivery] = worker.take()
    worker.finish([delivery], answered(status))


def fail_for(database: Database, worker: Engine, seconds: float) -> None:
    attempt(database, worker, 401)
    let_pass(database, seconds)
    attempt(database, worker, 500)


def enabled(database: Database) -> tuple[bool, str | None]:
    [row] = database.execute("SELECT enabled, disabled_reason FROM pggit.webhooks")
    return row


def test_it_is_disabled_with_the_time_and_the_last_error(
    database: Database, pool: Pool, worker: Engine, chore: Disabler, metrics: Metrics
) -> None:
    register(database, 1)
    fail_for(database, worker, AFTER_S - 60)
    chore.run(pool)
    assert enabled(database) == (True, None)
    fail_for(database, worker, 120)
    chore.run(pool)
    is_enabled, reason = enabled(database)
    assert not is_enabled
    assert reason is not None
    assert reason.startswith("only failures since 20")
    assert reason.endswith("UTC; the last one: HTTP 500; no retries left")
    assert metrics.snapshot()[0].values[WEBHOOKS_DISABLED.name]["failing"] == 1


def test_a_success_or_an_operator_starts_the_time_anew(
    database: Database, pool: Pool, worker: Engine, chore: Disabler
) -> None:
    register(database, 1)
    for statement in (
        None,
        "UPDATE pggit.webhooks SET name = 'other'",
        "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy',"
        " consecutive_failures = 0",
    ):
        fail_for(database, worker, AFTER_S - 60)
        if statement is None:
            attempt(database, worker, 204)
        else:
            database.execute(statement)
        assert lane(database, 1)["failing_since"] is None
        fail_for(database, worker, 120)
        chore.run(pool)
        assert enabled(database) == (True, None), statement
        attempt(database, worker, 200)


def test_a_failure_of_long_ago_alone_disables_nothing(
    database: Database, pool: Pool, worker: Engine, chore: Disabler
) -> None:
    register(database, 1)
    attempt(database, worker, 500)
    let_pass(database, 10 * AFTER_S)
    chore.run(pool)
    assert enabled(database) == (True, None)
    # 429 is no failure: the receiver is there.
    attempt(database, worker, 429)
    chore.run(pool)
    assert enabled(database) == (True, None)
