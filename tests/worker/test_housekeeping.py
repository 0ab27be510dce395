"""The chores: when lost leases are released, what counts as one, and that nothing is done all the
time.
"""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from psycopg_pool import ConnectionPool

from tests.support.engine import STANDARD, Engine, answered, insert, register, statuses
from tests.support.postgres import Database
from tests.support.waiting import eventually
from webhookd.core.model import Delivery, Result
from webhookd.metrics.counters import Metrics
from webhookd.postgres import session, statements
from webhookd.postgres.record import ResultWriter
from webhookd.postgres.retention import Keep, Retention
from webhookd.worker import housekeeping
from webhookd.worker import recorder as recording
from webhookd.worker.circuits import LocalCircuits
from webhookd.worker.housekeeping import Housekeeping
from webhookd.worker.recorder import Recorder
from webhookd.worker.results import ResultQueue
from webhookd.worker.wakeup import WakeupPipe


@pytest.fixture
def pool(database: Database) -> Iterator[ConnectionPool[session.Connection]]:
    with session.open_pool(database.dsn, application_name="test/pool", size=1) as pool:
        yield pool


def keeper(
    pool: ConnectionPool[session.Connection], recorder: ResultWriter, metrics: Metrics
) -> Housekeeping:
    return Housekeeping(
        pool,
        recorder,
        Retention(Keep(1.0, 1.0, 1.0), removed=metrics.removed),
        worker_id="test",
        incarnation=uuid4(),
        metrics=metrics,
        recorded=lambda: True,
        bell=WakeupPipe(),
    )


class Beaten(ResultWriter):
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


def test_a_lease_whose_owner_recorded_in_the_last_moment_is_not_a_lost_one(
    database: Database, worker: Engine, pool: ConnectionPool[session.Connection]
) -> None:
    register(database, 1)
    insert(database, 1, 3)
    claimed = worker.take_all()
    metrics = Metrics("test", max_webhooks=10)
    keeper(pool, Beaten(worker, claimed[:2]), metrics).release(worker.incarnation)
    assert statuses(database) == {"delivered": 2, "pending": 1}
    assert metrics.snapshot()[0].totals.lost_leases == 1


def test_nothing_is_released_while_a_result_waits_for_a_database_that_is_away(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own lease may have run out meanwhile: released before it is recorded, the delivery would
    be sent again.
    """
    monkeypatch.setattr(recording, "STUCK_S", 0.1)
    register(database, 1)
    insert(database, 1)
    [delivery] = worker.take_all()
    results = ResultQueue()
    with session.open_pool(
        "host=127.0.0.1 port=1", application_name="test/away", size=1, timeout_s=0.1
    ) as away:
        recorder = ResultWriter(worker_id="test", defaults=STANDARD)
        metrics = Metrics("test", max_webhooks=10)
        waiting = Recorder(
            away, recorder, results, hints=LocalCircuits(), metrics=metrics, bell=WakeupPipe()
        )
        waiting.start()
        assert waiting.settled()
        results.put(Result(delivery, answered(200)), last=True)
        eventually(lambda: not waiting.settled(), what="it is known that a result waits")
        assert not waiting.stop(timeout_s=0.1)


def test_a_chore_that_takes_long_rests_for_as_many_times_as_long(
    database: Database, pool: ConnectionPool[session.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "RESTS", 1e6)
    monkeypatch.setattr(housekeeping, "FIRST_S", 0.0)
    holds_duty = keeper(
        pool, ResultWriter(worker_id="test", defaults=STANDARD), Metrics("test", max_webhooks=10)
    )
    holds_duty.start()
    resting = (
        "SELECT array_agg(chore ORDER BY chore) FROM pggit.chores"
        " WHERE last_run_at BETWEEN now() + interval '5 s' AND now() + interval '30 s'"
    )
    eventually(lambda: database.execute(resting) == [(["measure", "reap"],)], what="both rest")
    holds_duty.stop()
    # For as long as that lasts nobody does them again, and everything else goes on.
    database.execute("UPDATE pggit.chores SET last_run_at = last_run_at - interval '5 s'")
    with session.connect(database.dsn, application_name="test/beat") as connection:
        row = connection.execute(statements.load("beat"), {"incarnation": uuid4()}).fetchone()
    assert row is not None
    assert sorted(row[2]) == ["fold", "retain"]


def test_a_count_that_fails_keeps_nothing_else_from_being_done_and_rests(
    database: Database, pool: ConnectionPool[session.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "FIRST_S", 0.0)
    database.execute("UPDATE pggit.chores SET last_run_at = '-infinity'")
    put_off = (
        "SELECT last_run_at > now() + interval '%s s' FROM pggit.chores WHERE chore = 'measure'"
    )
    holds_duty = keeper(
        pool, ResultWriter(worker_id="test", defaults=STANDARD), Metrics("test", max_webhooks=10)
    )
    holds_duty._count_rests_s = 20.0  # as the last one did
    with database.connect(autocommit=False) as operator:
        operator.execute("LOCK TABLE pggit.queue_depth IN SHARE MODE")  # may be read
        holds_duty.start()
        eventually(
            lambda: database.execute(put_off % 45) == [(True,)],
            what="nobody else begins a count under way",
        )
        assert holds_duty.targets is not None, "the turn has done everything else"
        eventually(
            lambda: database.execute(put_off % 45) == [(False,)], what="the database gave up"
        )
        assert database.execute(put_off % 5) == [(True,)], "it rests, like one that succeeded"
    holds_duty.stop()
