"""Chores run when they are due, in their order; one that fails keeps no other from running."""

import threading
import time
from collections.abc import Callable
from typing import ClassVar
from uuid import uuid4

import psycopg
import pytest

from tests.support.postgres import Database
from tests.support.waiting import eventually
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import QueueCounts
from webhookd.metrics.declarations import QUEUE_DEPTH
from webhookd.postgres import session
from webhookd.worker.chores import runner as runner_module
from webhookd.worker.chores.beat import Beat
from webhookd.worker.chores.chore import EVERY_TURN_S, Chore, Pool
from webhookd.worker.chores.runner import ChoreRunner
from webhookd.worker.wakeup import WakeupPipe


class Own:
    """A chore of each worker, that fails with *error*."""

    name: ClassVar[str] = "own"
    interval_s: ClassVar[float] = 0.0
    shared: ClassVar[bool] = False

    def __init__(self, error: Exception | None = None) -> None:
        self.runs = 0
        self.error = error

    def run(self, pool: Pool) -> None:
        self.runs += 1
        if self.error is not None:
            raise self.error


class Seldom(Own):
    name: ClassVar[str] = "seldom"
    interval_s: ClassVar[float] = 600.0


class Shared(Own):
    name: ClassVar[str] = "fold"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = True


class Cancelled(Own):
    """Its statement is cancelled, as by a time-out; PostgreSQL's own error."""

    name: ClassVar[str] = "cancelled"

    def run(self, pool: Pool) -> None:
        super().run(pool)
        with pool.connection() as connection:
            connection.execute("SET statement_timeout = '10ms'; SELECT pg_sleep(10)")


class EndsItsSession(Own):
    name: ClassVar[str] = "ends_its_session"

    def run(self, pool: Pool) -> None:
        super().run(pool)
        with pool.connection() as connection:
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def runner_of(
    pool: Pool,
    *chores: Chore,
    metrics: Metrics | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ChoreRunner:
    return ChoreRunner(
        pool,
        Beat(uuid4(), WakeupPipe()),
        chores,
        metrics or Metrics("test", max_webhooks=10),
        stop=threading.Event(),
        clock=clock,
    )


def failures(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return the chore and the error of each "chore failed"."""
    fields = [
        vars(record)["fields"] for record in caplog.records if record.message == "chore failed"
    ]
    return [(one["chore"], one["error"]) for one in fields]


@pytest.mark.parametrize(
    "failing",
    [Own(RuntimeError("a bug")), Own(psycopg.DataError("bad value")), Cancelled()],
    ids=["mistake in the code", "rejected statement", "statement time-out"],
)
def test_a_chore_that_fails_says_so_and_keeps_no_other_from_running(
    pool: Pool, failing: Own, caplog: pytest.LogCaptureFixture
) -> None:
    others = (Shared(), Seldom())
    runner_of(pool, failing, *others).turn()
    assert [failing.runs, *(other.runs for other in others)] == [1, 1, 1]
    [(chore, error)] = failures(caplog)
    assert chore == failing.name
    assert error == str(failing.error or "canceling statement due to statement timeout")


def test_a_chore_that_fails_again_and_again_is_logged_in_growing_pauses(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    failing = Own(RuntimeError("a bug"))
    runner = runner_of(pool, failing, clock=lambda: now)
    for _ in range(80):
        runner.turn()
        now += 4.5
    assert failing.runs == 80
    assert 5 <= len(failures(caplog)) <= 8
    failing.error = None
    runner.turn()
    failing.error = RuntimeError("another bug")
    runner.turn()
    assert failures(caplog)[-1] == ("own", "another bug")


def test_a_chore_that_ends_its_own_session_keeps_no_other_from_running(pool: Pool) -> None:
    ending, other = EndsItsSession(), Own()
    runner_of(pool, ending, other).turn()
    assert (ending.runs, other.runs) == (1, 1)


def test_without_a_database_there_are_no_figures_and_no_complaints(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics("test", max_webhooks=10)
    metrics.set_queue(QueueCounts(1, {}, 0.0))
    chore = Own()
    with session.open_pool(
        "host=127.0.0.1 port=1", application_name="test/away", size=1, timeout_s=0.1
    ) as away:
        runner_of(away, chore, metrics=metrics).turn()
    assert chore.runs == 0
    assert metrics.snapshot()[0].values[QUEUE_DEPTH.name] == {}
    assert failures(caplog) == []


def test_each_chore_has_its_own_interval_and_a_shared_one_is_left_to_the_worker_that_has_it(
    database: Database, pool: Pool
) -> None:
    own, seldom, shared = Own(), Seldom(), Shared()
    runner = runner_of(pool, own, seldom, shared)
    other = Shared()
    for _ in range(3):
        runner.turn()
        runner_of(pool, other).turn()
    assert (own.runs, seldom.runs, shared.runs, other.runs) == (3, 1, 1, 0)
    database.execute("UPDATE pggit.chores SET last_run_at = last_run_at - interval '5 s'")
    runner_of(pool, other).turn()
    assert (shared.runs, other.runs) == (1, 1)


def test_the_thread_runs_turns_until_it_is_stopped(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "FIRST_TURN_S", 0.0)
    monkeypatch.setattr(runner_module, "TURN_S", 0.01)
    chore = Own()
    runner = runner_of(pool, chore)
    runner.start()
    eventually(lambda: chore.runs >= 3)
    runner.stop()
    runs = chore.runs
    assert not runner._thread.is_alive()
    assert chore.runs == runs
