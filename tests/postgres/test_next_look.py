"""When a worker must look again although nothing wakes it."""

import math

from tests.support.engine import (
    Engine,
    insert,
    register,
)
from tests.support.postgres import Database


def test_an_empty_queue_asks_for_no_look_at_all(database: Database, worker: Engine) -> None:
    register(database, 1)
    worker.take_all()
    look = worker.claimer.next_look(worker.connection)
    assert (look.lane_s, look.quarantined_s, look.new_rows) == (math.inf, math.inf, False)


def test_the_next_look_is_the_earliest_of_the_retries_due(
    database: Database, worker: Engine
) -> None:
    register(database, 1, 2)
    insert(database, 1, due_in_s=500)
    insert(database, 2, due_in_s=300)
    assert worker.claimer.next_look(worker.connection).new_rows
    worker.take_all()
    assert 290 < worker.claimer.next_look(worker.connection).lane_s <= 300


def test_a_lane_with_more_due_rows_asks_to_be_looked_at_at_once(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    insert(database, 1, 30)
    claim = worker.claim(10)
    assert claim.full
    assert worker.claimer.next_look(worker.connection).lane_s <= 0
