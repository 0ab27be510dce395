"""Looking for work while an old snapshot keeps the entries of delivered rows in the indexes."""

import math
import time
from collections.abc import Iterator

import pytest

from tests.engine import Engine, ids, insert, lanes_of, register
from tests.plans import counted
from tests.postgres import Database
from webhookd import floors

pytestmark = pytest.mark.every_postgres


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look counts as slow, and no transaction is given time to commit late."""
    monkeypatch.setattr(floors, "SLOW_LOOK_S", 0.0)
    monkeypatch.setattr(floors, "MARGIN_S", 0.0)


@pytest.fixture
def past(database: Database, worker: Engine) -> Iterator[None]:
    """6,000 rows of two webhooks that were delivered while somebody held a snapshot, which lasts."""
    register(database, 1, 2)
    lanes_of(database, 1, 2)
    with database.connect(autocommit=False) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM pggit.alert_delivery_queue")
        insert(database, 1, 3000)
        insert(database, 2, 3000)
        database.execute("UPDATE pggit.alert_delivery_queue SET routed = true, delivery_status = 'delivered'")
        yield


def pages_of_a_look(database: Database, worker: Engine) -> int:
    insert(database, 1)
    with counted(worker, "lock_lanes", "claim", "next_look") as pages:
        assert len(worker.claim().deliveries) == 1
        worker.claimer.next_look(worker.connection)
    return sum(sum(each) for each in pages.values())


def claimed_in_time(worker: Engine) -> list[int]:
    """Look whenever the last look said so, until something is claimed."""
    for _ in range(100):
        wait_s = worker.claimer.next_look(worker.connection).lane_s
        assert wait_s < 10, "nobody would look again"
        time.sleep(max(0.0, wait_s))
        if claimed := ids(worker.claim().deliveries):
            return claimed
    return []


@pytest.mark.usefixtures("past")
def test_a_look_that_was_slow_is_the_last_to_walk_through_what_was_delivered(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floors, "SLOW_LOOK_S", math.inf)
    monkeypatch.setattr(floors, "MARGIN_S", 0.0)
    monkeypatch.setattr(floors, "FULL_LOOKS_SHARE", 1e-6)
    before = pages_of_a_look(database, worker)
    monkeypatch.setattr(floors, "SLOW_LOOK_S", 0.0)
    worker.claim()
    worker.claim()
    assert pages_of_a_look(database, worker) < before / 4


@pytest.mark.usefixtures("slow")
def test_rows_above_the_floors_are_claimed_at_once(database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "FULL_LOOKS_SHARE", 1e-6)
    monkeypatch.setattr(floors, "RAISE_EVERY_S", 0.0)
    register(database, 1, 2)
    worker.take_all()
    for _ in range(5):
        inserted = insert(database, 1, 3) + insert(database, 2, 3)
        assert sorted(ids(worker.claim().deliveries)) == inserted


@pytest.mark.usefixtures("slow")
def test_a_row_below_the_floor_waits_for_the_next_full_look_only(database: Database, worker: Engine) -> None:
    register(database, 1)
    worker.take_all()
    worker.claim()
    [late] = insert(database, 1, due_in_s=-3600)
    assert claimed_in_time(worker) == [late]


@pytest.mark.usefixtures("slow")
def test_a_lane_whose_timer_lies_below_the_floor_waits_for_the_next_full_look_only(database: Database, worker: Engine) -> None:
    register(database, 1, enabled=False)
    [waiting] = insert(database, 1)
    worker.take_all()
    worker.claim()
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT now()")  # the instant that the lane is runnable from
        worker.claim()
        operator.execute("UPDATE pggit.webhooks SET enabled = true")
        operator.commit()
    assert claimed_in_time(worker) == [waiting]


def test_there_are_no_floors_while_looks_are_fast(database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "SLOW_LOOK_S", 0.0)
    register(database, 1)
    worker.take_all()
    assert worker.claimer.next_look(worker.connection).lane_s < math.inf
    monkeypatch.setattr(floors, "SLOW_LOOK_S", 60.0)
    time.sleep(worker.claimer.next_look(worker.connection).lane_s + 0.001)
    worker.claim()
    assert worker.claimer.next_look(worker.connection).lane_s == math.inf
