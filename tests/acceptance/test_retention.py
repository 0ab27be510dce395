"""The whole program keeps finished rows as long as it is told, while workers deliver and die."""

import os
import signal
import time

import pytest

from tests.support.daemon import Daemon, answer_ok, arrivals, register
from tests.support.postgres import Database
from tests.support.receivers import Receiver
from tests.support.waiting import eventually

SECONDS = 1 / 86_400  # of a day
FINISHED = (
    "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status, "
    "attempts, created_at, attempted_at,"
    " delivered_at) SELECT 1, to_jsonb(repeat('x', 300)), 'delivered', 1, at, at, at"
    " FROM generate_series(1, %s), LATERAL (SELECT now() - interval '1 hour' AS at) t"
)


def value(database: Database, statement: str) -> int:
    return int(database.execute(statement)[0][0])


@pytest.mark.every_postgres
def test_rows_are_removed_while_workers_deliver_and_are_killed(database: Database) -> None:
    with Receiver(answer_ok) as receiver:
        register(database, receiver, count=1, first=1)
        database.import_rows(FINISHED, [40_000])
        kept = (
            "--keep-delivered",
            str(6 * SECONDS),
            "--keep-log",
            str(20 * SECONDS),
            "--keep-failed",
            "0",
        )
        with Daemon(database.dsn, *kept) as daemon:
            eventually(lambda: len(daemon.workers()) == 3, 30.0)
            inserted, until = 0, time.monotonic() + 20
            while time.monotonic() < until:
                database.execute(
                    "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES "
                    "(1, '{}')"
                )
                inserted += 1
                if inserted % 20 == 0:
                    os.kill(daemon.workers()[0], signal.SIGKILL)
                time.sleep(0.1)
            eventually(
                lambda: value(database, "SELECT count(*) FROM pggit.alert_delivery_queue") == 0,
                60.0,
            )
            assert len(arrivals(receiver)) == inserted
            eventually(
                lambda: value(database, "SELECT count(*) FROM pggit.alert_delivery_log") == 0, 60.0
            )
            assert database.execute("SELECT * FROM pggit.count_pending_by_status()") == [
                (0, 0, 0, 0, 0)
            ]
            total = value(
                database,
                "SELECT removed FROM pggit.retention WHERE table_name = 'alert_delivery_queue'",
            )
            assert total == 40_000 + inserted
            assert daemon.stop() == 0
