"""An idle fleet leaves the database alone, however much there is that cannot go out now."""

import threading

from tests.support.daemon import Daemon
from tests.support.postgres import Database
from tests.support.waiting import eventually

WINDOW_S = 8.0
# Signs of life and chores of three workers every 4.5 s come to some two a second. Polling would
# show as hundreds.
MAX_A_SECOND = 5.0


def transactions(database: Database) -> int:
    """Return how many transactions this database has seen; sessions report theirs once a second or
    when idle for ten.
    """
    rows = database.execute(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = "
        "current_database()"
    )
    return int(rows[0][0])


def transactions_a_second(database: Database) -> float:
    before = transactions(database)
    threading.Event().wait(WINDOW_S)
    return (transactions(database) - before) / WINDOW_S


def insert(database: Database, webhook_id: int, rows: int, *, due_in: str = "0 s") -> None:
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at)"
        " SELECT %s, '{}', now() + %s::interval FROM generate_series(1, %s)",
        [webhook_id, due_in, rows],
    )


def wait_until_settled(database: Database) -> None:
    """Wait until three workers have given their second sign of life: what their start cost has been
    counted by then.
    """
    second = (
        "SELECT count(*) = 3 AND min(seen_at - started_at) > interval '4 seconds' "
        "FROM pggit.workers"
    )
    eventually(lambda: database.execute(second) == [(True,)])


def test_three_workers_without_work_make_a_handful_of_transactions_a_second(
    database: Database,
) -> None:
    with Daemon(database.dsn) as daemon:
        wait_until_settled(database)
        assert transactions_a_second(database) < MAX_A_SECOND
        assert daemon.stop() == 0


def test_a_backlog_that_cannot_move_costs_no_more_than_an_empty_queue(database: Database) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, enabled) VALUES"
        " (1, 'http://127.0.0.1:1/', true), (2, 'http://127.0.0.1:1/', false), (3, "
        "'http://127.0.0.1:1/', true)"
    )
    database.execute(
        "UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', circuit_epoch = 1, "
        "consecutive_failures = 5,"
        " health_status = 'unavailable', circuit_until = now() + interval '1 hour' WHERE "
        "webhook_id = 1"
    )
    insert(database, 1, 1000)  # an open circuit
    insert(database, 2, 1000)  # paused
    insert(database, 3, 1000, due_in="1 hour")  # scheduled
    insert(database, 4, 1000)  # not registered
    with Daemon(database.dsn) as daemon:
        wait_until_settled(database)
        assert database.execute(
            "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE NOT routed"
        ) == [(0,)]
        assert transactions_a_second(database) < MAX_A_SECOND
        assert database.execute("SELECT count(*)::int FROM pggit.alert_delivery_log") == [(0,)]
        assert daemon.stop() == 0
