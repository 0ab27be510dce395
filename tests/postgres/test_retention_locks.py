"""Retention while others work or hold locks, and when its worker is killed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import psycopg
import pytest

from tests.support.engine import answered, engine, insert, register
from tests.support.postgres import Database
from tests.support.retention import (
    LOG,
    QUEUE,
    assert_counts_are_true,
    count,
    finished,
    ids,
    logged,
    removed,
    retention,
    rounds_are_due,
    whole_round,
)
from webhookd.postgres import session, statements
from webhookd.postgres.retention import DAY_S

pytestmark = pytest.mark.every_postgres

SOME_PAGES = {"first": "(0,0)", "end": "(64,0)", "keep_delivered_s": DAY_S, "keep_failed_s": DAY_S}


def test_rows_that_an_open_transaction_holds_hold_nothing_up(
    database: Database, connection: session.Connection
) -> None:
    old = finished(database, 200, days=8)
    with database.connect(autocommit=False) as operator:
        operator.execute(
            "SELECT FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", [old[7]]
        )
        operator.execute(
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending' WHERE delivery_id "
            "= %s",
            [old[9]],
        )
        started = time.monotonic()
        whole_round(database, connection)
        assert time.monotonic() - started < 2.0
        assert ids(database) == {old[7], old[9]}
        operator.commit()
    whole_round(database, connection)
    assert ids(database) == {old[9]}
    assert_counts_are_true(database)


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_a_locked_table_is_waited_for_no_longer_than_a_moment(
    database: Database, connection: session.Connection, mode: str
) -> None:
    finished(database, 200, days=8)
    logged(database, 10, days=31)
    rounds_are_due(database)
    with database.connect(autocommit=False) as operator:
        operator.execute(f"LOCK TABLE pggit.alert_delivery_queue IN {mode} MODE".encode())
        started = time.monotonic()
        retention().turn(lambda: nullcontext(connection))
        assert time.monotonic() - started < 1.5
        assert count(database, LOG) == 0
    assert len(ids(database)) == 200
    whole_round(database, connection)
    assert ids(database) == set()


def test_attempts_that_somebody_holds_are_left_to_the_next_round(
    database: Database, connection: session.Connection
) -> None:
    logged(database, 20_000, days=31)
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT FROM pggit.alert_delivery_log ORDER BY log_id LIMIT 1 FOR UPDATE")
        started = time.monotonic()
        whole_round(database, connection)
        assert time.monotonic() - started < 2.0
        assert 1 <= count(database, LOG) < 5000
    whole_round(database, connection)
    assert count(database, LOG) == 0


def test_nobody_waits_for_a_removal(database: Database, connection: session.Connection) -> None:
    """Inserts, deliveries and changes of other rows go on while one is under way."""
    finished(database, 500, days=8)
    with session.transaction(connection) as cursor:
        assert (
            cursor.execute(statements.load("remove_deliveries").encode(), SOME_PAGES).rowcount > 0
        )
        register(database, 1)
        insert(database, 1, 5)
        with engine(database) as worker:
            assert len(worker.finish(worker.take(), answered(200)).accepted) == 5
        with database.connect() as other:
            other.execute("SET lock_timeout = '100ms'")
            other.execute("SELECT * FROM pggit.count_pending_by_status()")
            other.execute(
                "UPDATE pggit.alert_delivery_queue SET alert_id = 1 WHERE delivery_id > 500"
            )
            other.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_id > 500")


def test_two_workers_at_once_remove_each_row_once(database: Database) -> None:
    finished(database, 20_000, days=8)
    finished(database, 100, days=1)
    ended = threading.Event()

    def work() -> None:
        with session.connect(database.dsn, application_name="webhookd/worker-1/test") as mine:
            own = retention()
            while not ended.is_set():
                own.turn(lambda: nullcontext(mine))

    rounds_are_due(database)
    with ThreadPoolExecutor(2) as threads:
        try:
            workers = [threads.submit(work) for _ in range(2)]
            until = time.monotonic() + 30
            while count(database, QUEUE) > 100 and time.monotonic() < until:
                rounds_are_due(database)
        finally:
            ended.set()
    for worker in workers:
        worker.result()
    assert removed(database)[QUEUE] == 20_000
    assert count(database, QUEUE) == 100
    assert_counts_are_true(database)


def test_a_worker_that_is_killed_in_the_middle_leaves_the_counts_true(database: Database) -> None:
    finished(database, 6000, days=8)
    with (
        session.connect(database.dsn, application_name="webhookd/worker-1/test") as mine,
        pytest.raises(psycopg.OperationalError),
        session.transaction(mine) as cursor,
    ):
        cursor.execute(statements.load("retention_take"), {"table_name": QUEUE})
        assert (
            cursor.execute(statements.load("remove_deliveries").encode(), SOME_PAGES).rowcount > 0
        )
        database.execute("SELECT pg_terminate_backend(%s)", [mine.info.backend_pid])
        cursor.execute(
            statements.load("retention_advance"),
            {"table_name": QUEUE, "next_page": 64, "removed": 1},
        )
    assert count(database, QUEUE) == 6000
    assert_counts_are_true(database)
    with session.connect(database.dsn, application_name="webhookd/worker-2/test") as other:
        whole_round(database, other)
    assert count(database, QUEUE) == 0
    assert removed(database)[QUEUE] == 6000
    assert_counts_are_true(database)
