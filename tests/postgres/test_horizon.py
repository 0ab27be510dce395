"""Looking for work while an old snapshot keeps the entries of delivered rows in the indexes."""

import math
import time
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine, given_back, ids, insert, lanes_of, register, unseen
from tests.support.plans import counted
from tests.support.postgres import Database
from tests.support.waiting import eventually
from webhookd.postgres import horizon

pytestmark = pytest.mark.every_postgres


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look counts as slow, and no transaction is given time to commit late."""
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", 0.0)
    monkeypatch.setattr(horizon, "MARGIN_S", 0.0)


@pytest.fixture
def past(database: Database, worker: Engine) -> Iterator[None]:
    """6,000 rows of two webhooks that were delivered while a snapshot was held, which lasts."""
    register(database, 1, 2)
    lanes_of(database, 1, 2)
    with database.connect(autocommit=False) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM pggit.alert_delivery_queue")
        insert(database, 1, 3000)
        insert(database, 2, 3000)
        database.execute(
            "UPDATE pggit.alert_delivery_queue SET routed = true, delivery_status = 'delivered'"
        )
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
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", math.inf)
    monkeypatch.setattr(horizon, "MARGIN_S", 0.0)
    monkeypatch.setattr(horizon, "FULL_LOOKS_SHARE", 1e-6)
    before = pages_of_a_look(database, worker)
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", 0.0)
    worker.claim()
    worker.claim()
    assert pages_of_a_look(database, worker) < before / 4


@pytest.mark.usefixtures("slow")
def test_rows_above_the_marks_are_claimed_at_once(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "FULL_LOOKS_SHARE", 1e-6)
    monkeypatch.setattr(horizon, "RAISE_EVERY_S", 0.0)
    register(database, 1, 2)
    worker.take_all()
    for _ in range(5):
        inserted = insert(database, 1, 3) + insert(database, 2, 3)
        assert sorted(ids(worker.take_all())) == inserted


def parked(database: Database, count: int) -> list[int]:
    """Insert rows of webhook 1 as if it had been at its cap when they were new."""
    inserted = insert(database, 1, count)
    with unseen(database) as connection:
        connection.execute("UPDATE pggit.alert_delivery_queue SET routed = true WHERE NOT routed")
        connection.execute("UPDATE pggit.webhook_health_metrics SET runnable_at = now()")
    return inserted


@pytest.mark.usefixtures("slow")
def test_a_claim_begins_where_the_last_one_of_that_lane_did(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    lanes_of(database, 1)
    with database.connect(autocommit=False) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM pggit.alert_delivery_queue")
        parked(database, 3000)
        database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered'")
        waiting = parked(database, 9)
        with counted(worker, "claim") as pages:
            claimed = [ids(worker.claim(2).deliveries) for _ in range(4)]
    assert [*claimed[0], *claimed[1], *claimed[2], *claimed[3]] == waiting[:8]
    assert max(pages["claim"][1:]) < pages["claim"][0] / 2


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("others", [0, 100], ids=["nothing else waits", "the lane is never empty"])
def test_a_row_that_is_given_back_is_found_below_its_lanes_mark(
    database: Database, worker: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    monkeypatch.setattr(horizon, "FORGET_AFTER_S", 0.5 if others else math.inf)
    register(database, 1)
    lanes_of(database, 1)
    [first, *_] = parked(database, 40)
    claimed = other.claim(20).deliveries
    worker.claim(20)
    parked(database, others)
    other.finish(claimed, given_back())
    found: list[int] = []

    def took_the_first() -> bool:
        found.extend(ids(worker.claim(1).deliveries))
        if others:
            parked(database, 1)
        return first in found

    eventually(took_the_first, what="the row that was given back is claimed")


@pytest.mark.usefixtures("slow")
def test_a_row_below_the_mark_waits_for_the_next_full_look_only(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    worker.take_all()
    worker.claim()
    [late] = insert(database, 1, due_in_s=-3600)
    assert claimed_in_time(worker) == [late]


@pytest.mark.usefixtures("slow")
def test_a_lane_whose_timer_lies_below_the_mark_waits_for_the_next_full_look_only(
    database: Database, worker: Engine
) -> None:
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


def test_there_are_no_marks_while_looks_are_fast(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", 0.0)
    register(database, 1)
    worker.take_all()
    assert worker.claimer.next_look(worker.connection).lane_s < math.inf
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", 60.0)
    time.sleep(worker.claimer.next_look(worker.connection).lane_s + 0.001)
    worker.claim()
    assert worker.claimer.next_look(worker.connection).lane_s == math.inf


def alarmed(limits: horizon.Horizon, seconds: float, *, lanes: int) -> bool:
    limits.note_look(seconds, lanes=lanes)
    return limits.slow


def test_a_false_alarm_costs_one_full_look_and_then_none_for_a_while(
    worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", 30.0)
    monkeypatch.setattr(horizon, "FALSE_ALARM_S", 2.0)
    limits = horizon.Horizon()
    assert alarmed(limits, 60.0, lanes=1)
    limits.refresh(worker.connection)
    assert not limits.slow
    assert not alarmed(limits, 60.0, lanes=1)
    eventually(lambda: alarmed(limits, 60.0, lanes=1), what="the next alarm is looked into")


@pytest.mark.usefixtures("slow")
def test_a_full_look_that_the_database_gives_up_leaves_the_marks_as_they_are(
    database: Database, worker: Engine
) -> None:
    limits = horizon.Horizon()
    assert alarmed(limits, 60.0, lanes=1)
    limits.refresh(worker.connection)
    found = limits.marks
    with database.connect(autocommit=False) as operator:
        operator.execute("LOCK TABLE pggit.alert_delivery_queue IN ACCESS EXCLUSIVE MODE")
        worker.connection.execute("SET lock_timeout = 0; SET statement_timeout = '100ms'")
        eventually(lambda: limits.full_look_in_s <= 0)
        limits.refresh(worker.connection)
    assert limits.marks == found
    assert limits.slow
    assert limits.full_look_in_s > 0


def test_a_lanes_mark_leaves_room_for_what_commits_late(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", 0.0)
    register(database, 1)
    lanes_of(database, 1)
    [first, *_] = parked(database, 3)
    for _ in range(2):
        claimed = worker.claim(1).deliveries
        worker.finish(claimed, given_back())
    assert ids(claimed) == [first]
    assert worker.claimer._horizon.lane_mark(1) > -math.inf
    [late] = insert(database, 1, due_in_s=-1)
    with unseen(database) as connection:
        connection.execute("UPDATE pggit.alert_delivery_queue SET routed = true WHERE NOT routed")
        connection.execute("UPDATE pggit.webhook_health_metrics SET runnable_at = now()")
    assert ids(worker.claim(1).deliveries) == [late]


def test_many_lanes_take_their_time_without_any_past(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = horizon.Horizon()
    assert not alarmed(limits, 0.02, lanes=100)
    # Nor do marks stay because it takes long to find them for many webhooks.
    register(database, *range(1, 2001))
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) SELECT n, '{}' FROM "
        "generate_series(1, 2000) n"
    )
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", 0.001)
    assert alarmed(limits, 0.02, lanes=1)
    began = time.monotonic()
    limits.refresh(worker.connection)
    assert time.monotonic() - began > horizon.SLOW_LOOK_S
    assert not limits.slow
