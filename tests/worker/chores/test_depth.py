"""The count of the queue: who counts, when a count rests, and when there is no figure."""

import threading
import time

import psycopg
import pytest

from tests.support.engine import insert, register
from tests.support.postgres import Database
from tests.support.waiting import eventually
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import QueueCause
from webhookd.metrics.declarations import OLDEST_DUE, QUEUE_DEPTH, QUEUE_DEPTH_BY_CAUSE
from webhookd.worker.chores import rest
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.depth import DepthCounter, DepthReader

PUT_OFF = "SELECT last_run_at > now() + interval '%s s' FROM pggit.chores WHERE chore = 'measure'"


def test_what_one_worker_counts_all_can_read(database: Database, pool: Pool) -> None:
    register(database, 1)
    insert(database, 1, 2)
    insert(database, 2, 1)
    DepthCounter().run(pool)
    metrics = Metrics("test", max_webhooks=10)
    DepthReader(metrics).run(pool)
    values = metrics.snapshot()[0].values
    assert values[QUEUE_DEPTH.name] == {"": 3}
    assert values[QUEUE_DEPTH_BY_CAUSE.name][QueueCause.DUE] == 2
    assert values[QUEUE_DEPTH_BY_CAUSE.name][QueueCause.UNREGISTERED] == 1
    assert 0 <= values[OLDEST_DUE.name][""] < 600
    database.execute("UPDATE pggit.queue_depth SET counted_at = now() - interval '2 minutes'")
    DepthReader(metrics).run(pool)
    assert metrics.snapshot()[0].values[QUEUE_DEPTH.name] == {}


def test_a_count_that_cannot_be_read_is_not_shown(database: Database, pool: Pool) -> None:
    DepthCounter().run(pool)
    metrics = Metrics("test", max_webhooks=10)
    DepthReader(metrics).run(pool)
    assert metrics.snapshot()[0].values[QUEUE_DEPTH.name] == {"": 0}
    database.execute("DROP TABLE pggit.queue_depth")
    with pytest.raises(psycopg.Error):
        DepthReader(metrics).run(pool)
    assert metrics.snapshot()[0].values[QUEUE_DEPTH.name] == {}


def test_a_count_that_takes_long_rests_for_several_times_as_long(
    database: Database, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = DepthCounter()
    counter.run(pool)
    assert database.execute(PUT_OFF % 0) == [(False,)]
    monkeypatch.setattr(rest, "REST_FACTOR", 1e6)
    counter.run(pool)
    assert database.execute(PUT_OFF % 5) == [(True,)]
    assert database.execute(PUT_OFF % 30) == [(False,)]


def test_a_long_count_is_put_off_before_it_starts_and_rests_although_it_fails(
    database: Database, pool: Pool
) -> None:
    counter = DepthCounter()
    counter.rest_s = 20.0  # so long did the last count take
    failed: list[Exception] = []

    def count() -> None:
        try:
            counter.run(pool)
        except psycopg.Error as error:
            failed.append(error)

    counting = threading.Thread(target=count)
    with database.connect(autocommit=False) as operator:
        operator.execute("LOCK TABLE pggit.queue_depth IN SHARE MODE")
        began = time.monotonic()
        counting.start()
        eventually(
            lambda: database.execute(PUT_OFF % 45) == [(True,)],
            what="no other worker starts this count",
        )
        counting.join(30)  # the sessions' lock_timeout ends it
    took_s = time.monotonic() - began
    assert len(failed) == 1
    assert database.execute(PUT_OFF % 45) == [(False,)]
    assert database.execute(PUT_OFF % 5) == [(True,)], f"rests for three times {took_s} s"
