"""Which held webhooks a worker has looked at again, and how many it counts."""

from collections.abc import Iterator

import pytest

from tests.support.engine import STANDARD, Engine, engine, insert, lane, register
from tests.support.postgres import Database
from webhookd.metrics.counters import Metrics
from webhookd.metrics.declarations import HELD_WEBHOOKS
from webhookd.transport.egress import Egress
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.held import HeldLanes
from webhookd.worker.judge import Judge
from webhookd.worker.wakeup import WakeupPipe

STRICT, OPEN = Egress(allow_http=False), Egress(allow_http=True)


@pytest.fixture
def strict(database: Database) -> Iterator[Engine]:
    with engine(database, judge=Judge(STRICT)) as worker:
        yield worker


class Chore:
    def __init__(self, egress: Egress) -> None:
        self.metrics, self.wakeup = Metrics("worker-1", max_webhooks=10), WakeupPipe()
        self.chore = HeldLanes(Judge(egress), self.metrics, self.wakeup, defaults=STANDARD)

    def run(self, pool: Pool) -> bool:
        """Return whether the dispatcher is woken."""
        self.chore.run(pool)
        return self.wakeup.drain() == [0.0]

    def counted(self) -> dict[str, float]:
        counts, _ = self.metrics.snapshot()
        return counts.values[HELD_WEBHOOKS.name]


def runnable(database: Database) -> set[int]:
    rows = database.execute(
        "SELECT webhook_id FROM pggit.webhook_health_metrics WHERE runnable_at <= now()"
    )
    return {webhook_id for (webhook_id,) in rows}


def hold(
    database: Database, worker: Engine, *webhook_ids: int, url: str = "http://a.example"
) -> None:
    register(database, *webhook_ids)
    database.execute(
        "UPDATE pggit.webhooks SET url = %s WHERE webhook_id = ANY (%s)", [url, list(webhook_ids)]
    )
    for webhook_id in webhook_ids:
        insert(database, webhook_id)
    while worker.claim(1000).lanes:
        pass
    assert runnable(database) == set()


def test_nothing_is_done_where_nothing_is_held(database: Database, pool: Pool) -> None:
    register(database, 1)
    chore = Chore(OPEN)
    assert not chore.run(pool)
    assert chore.counted() == {"": 0}


def test_only_those_are_looked_at_again_that_this_worker_could_deliver_to(
    database: Database, strict: Engine, pool: Pool
) -> None:
    hold(database, strict, 1, 2)
    hold(database, strict, 3, url="https://10.0.0.1/")
    unable, able = Chore(STRICT), Chore(OPEN)
    for _ in range(3):
        assert not unable.run(pool)
    assert runnable(database) == set()
    assert able.run(pool)
    assert runnable(database) == {1, 2}
    assert able.counted() == unable.counted() == {"": 3}
    assert lane(database, 3)["blocked_by"] == "configuration"


def test_a_circle_of_more_than_a_page_is_completed(
    database: Database, strict: Engine, pool: Pool
) -> None:
    ids = range(1, 1202)
    hold(database, strict, *ids)
    chore = Chore(OPEN)
    for _ in range(10):  # a slow host may take some runs
        chore.run(pool)
        if len(runnable(database)) == len(ids):
            break
    assert runnable(database) == set(ids)
    assert chore.counted() == {"": len(ids)}


def test_a_lane_that_an_operator_has_locked_stops_no_other(
    database: Database, strict: Engine, pool: Pool
) -> None:
    hold(database, strict, 1, 2)
    with database.connect(autocommit=False) as connection:
        connection.execute(
            "SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = 1 FOR UPDATE"
        )
        assert Chore(OPEN).run(pool)
        assert runnable(database) == {2}
    assert Chore(OPEN).run(pool)
    assert runnable(database) == {1, 2}


def test_a_webhook_that_is_registered_no_more_is_looked_at_as_such(
    database: Database, strict: Engine, pool: Pool
) -> None:
    hold(database, strict, 1)
    database.execute("DELETE FROM pggit.webhooks")
    assert Chore(STRICT).run(pool)
    assert strict.claim().held == []
    assert lane(database, 1)["blocked_by"] == "unregistered"
    chore = Chore(STRICT)
    assert not chore.run(pool)
    assert chore.counted() == {"": 0}
