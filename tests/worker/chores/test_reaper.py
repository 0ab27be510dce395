"""When leases are released, and what counts as a lost one."""

import threading
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from tests.support.engine import STANDARD, Engine, answered, insert, let_pass, register, statuses
from tests.support.postgres import Database
from webhookd.core.model import Delivery, Result
from webhookd.metrics.counters import Metrics
from webhookd.metrics.declarations import LOST_LEASES
from webhookd.postgres import session
from webhookd.postgres.record import ResultWriter
from webhookd.worker.chores import rest
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.reaper import Reaper
from webhookd.worker.wakeup import WakeReason, WakeupPipe

WRITER = ResultWriter(worker_id="test", defaults=STANDARD)


class Reaping:
    """A reaper, and what it tells others."""

    def __init__(
        self, writer: ResultWriter = WRITER, *, is_caught_up: Callable[[], bool] = lambda: True
    ) -> None:
        self.metrics = Metrics("test", max_webhooks=10)
        self.wakeup = WakeupPipe()
        self.reaper = Reaper(
            writer,
            self.metrics,
            self.wakeup,
            is_caught_up=is_caught_up,
            stop=threading.Event(),
        )

    def lost_leases(self) -> float:
        return self.metrics.snapshot()[0].values[LOST_LEASES.name][""]


class Overtaken(ResultWriter):
    """The owner of *claimed* records just before their leases are released."""

    def __init__(self, owner: Engine, claimed: list[Delivery]) -> None:
        super().__init__(worker_id="test", defaults=STANDARD)
        self._owner, self._claimed = owner, claimed

    def lost_leases(
        self, connection: session.Connection, *, incarnation: UUID | None = None, limit: int = 500
    ) -> list[Result]:
        lost = super().lost_leases(connection, incarnation=incarnation, limit=limit)
        self._owner.finish(self._claimed, answered(200))
        self._claimed = []
        return lost


def claimed_three(database: Database, worker: Engine) -> list[Delivery]:
    register(database, 1)
    insert(database, 1, 3)
    return worker.take_all()


def test_expired_leases_are_released_and_the_dispatcher_looks(
    database: Database, worker: Engine, pool: Pool
) -> None:
    claimed_three(database, worker)
    reaping = Reaping()
    reaping.reaper.run(pool)
    assert statuses(database) == {"sending": 3}
    let_pass(database, 600)
    reaping.reaper.run(pool)
    assert statuses(database) == {"pending": 3}
    assert reaping.lost_leases() == 3
    assert reaping.wakeup.drain() == [WakeReason.LOST]


def test_nothing_is_released_before_this_workers_results_are_recorded(
    database: Database, worker: Engine, pool: Pool
) -> None:
    claimed_three(database, worker)
    let_pass(database, 600)
    Reaping(is_caught_up=lambda: False).reaper.run(pool)
    assert statuses(database) == {"sending": 3}


def test_the_leases_of_a_dead_worker_are_released_with_its_row(
    database: Database, enlisted: Engine, pool: Pool
) -> None:
    claimed_three(database, enlisted)
    reaping = Reaping()
    reaping.reaper.release(pool, uuid4())
    assert statuses(database) == {"sending": 3}
    reaping.reaper.release(pool, enlisted.incarnation)
    assert statuses(database) == {"pending": 3}
    assert database.execute("SELECT count(*) FROM pggit.workers") == [(0,)]
    # The first wake-up is for a dead worker without leases: it may have had the duty to be
    # notified.
    assert reaping.wakeup.drain() == [WakeReason.LOST] * 3


def test_a_lease_whose_owner_recorded_in_the_last_moment_is_not_a_lost_one(
    database: Database, worker: Engine, pool: Pool
) -> None:
    claimed = claimed_three(database, worker)
    reaping = Reaping(Overtaken(worker, claimed[:2]))
    reaping.reaper.release(pool, worker.incarnation)
    assert statuses(database) == {"delivered": 2, "pending": 1}
    assert reaping.lost_leases() == 1


def test_a_search_that_took_long_and_found_nothing_rests(
    database: Database, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "REST_FACTOR", 1e6)
    Reaping().reaper.run(pool)
    resting = "SELECT last_run_at > now() + interval '5 s' FROM pggit.chores WHERE chore = 'reap'"
    assert database.execute(resting) == [(True,)]
