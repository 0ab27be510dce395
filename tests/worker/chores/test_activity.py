"""What a worker did, in the row of its minute."""

import psycopg
import pytest

from tests.support.postgres import Database
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus, ObservedAttempt
from webhookd.worker.chores.activity import ActivityWriter
from webhookd.worker.chores.chore import Pool

STORED = "SELECT sum(delivered)::int, sum(failed)::int FROM pggit.worker_minutes"


def observe(metrics: Metrics, *statuses: AttemptStatus) -> None:
    metrics.observe_attempts(ObservedAttempt(1, status, 0.25) for status in statuses)


def test_each_attempt_is_stored_once(database: Database, pool: Pool) -> None:
    metrics = Metrics("test", max_webhooks=10)
    writer = ActivityWriter(metrics, worker_id="worker-1")
    observe(metrics, AttemptStatus.DELIVERED, AttemptStatus.FAILED)
    writer.run(pool)
    observe(metrics, AttemptStatus.DELIVERED)
    for _ in range(2):
        writer.run(pool)
    assert database.execute(STORED) == [(2, 1)]


def test_what_could_not_be_stored_is_stored_with_the_next_run(
    database: Database, pool: Pool
) -> None:
    metrics = Metrics("test", max_webhooks=10)
    writer = ActivityWriter(metrics, worker_id="worker-1")
    observe(metrics, AttemptStatus.DELIVERED)
    database.execute("ALTER TABLE pggit.worker_minutes RENAME TO elsewhere")
    with pytest.raises(psycopg.Error):
        writer.run(pool)
    database.execute("ALTER TABLE pggit.elsewhere RENAME TO worker_minutes")
    writer.run(pool)
    assert database.execute(STORED) == [(1, 0)]
