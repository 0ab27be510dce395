"""Producers write rows with times and limits of every kind, or leave columns out."""

import subprocess
import sys
import time

import pytest

from tests.storm.sink import ERROR, Sink
from tests.storm.storm import QUICK_RETRIES, Storm
from tests.support.daemon import Daemon, wait_until_ready
from tests.support.receivers import OK
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]
# Rows as SQL: what a producer may leave out, leave NULL or get wrong. The first group is sent at
# once, the second waits.
ROWS_THAT_GO = [
    "(webhook_id, message_body) VALUES (2001, '1')",
    "(webhook_id, message_body, alert_id, delivery_status, retry_count, max_retries,"
    " next_retry_at, worker_id, created_at, routed)"
    " VALUES (2002, '1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, true)",
    "(webhook_id, message_body, delivery_status) VALUES (2003, '1', 'sending')",
    "(webhook_id, message_body, delivery_status) VALUES (2004, '1', 'retrying')",
    "(webhook_id, message_body, alert_id, worker_id)"
    " VALUES (2005, '1', -9223372036854775808, repeat('x', 10000))",
    "(webhook_id, message_body, max_retries) VALUES (2006, '1', 0)",
    "(webhook_id, message_body, max_retries) VALUES (2007, '1', 2147483647)",
    "(webhook_id, message_body, max_retries) VALUES (2008, '1', -1)",
    "(webhook_id, message_body, retry_count, max_retries)"
    " VALUES (2009, '1', 2147483647, 2147483647)",
    *(
        f"(webhook_id, message_body, created_at) VALUES (2011, '1', '{when}')"
        for when in (
            "infinity",
            "-infinity",
            "1970-01-01",
            "294276-12-31",
            "4713-01-01 BC",
            "tomorrow",
        )
    ),
    *(
        f"(webhook_id, message_body, next_retry_at) VALUES (2012, '1', '{when}')"
        for when in ("1970-01-01", "4713-01-01 BC", "yesterday")
    ),
    "(webhook_id, message_body, next_retry_at) VALUES (2013, '1', now() + interval '2 seconds')",
    "(webhook_id, message_body, attempted_at, delivered_at, first_attempted_at)"
    " VALUES (2014, '1', 'infinity', '-infinity', '1970-01-01')",
    "(webhook_id, message_body, leases_lost) VALUES (2015, '1', 2)",
    "(webhook_id, message_body, lease_token, lease_until, leased_by)"
    " VALUES (2016, '1', 7, 'infinity', gen_random_uuid())",
    "(delivery_id, webhook_id, message_body) VALUES (9223372036854775806, 2017, '1')",
]
ROWS_THAT_WAIT = [
    f"(webhook_id, message_body, next_retry_at) VALUES (2020, '1', '{when}')"
    for when in ("294276-12-31", "tomorrow", "2100-01-01")
]


def test_rows_of_every_kind(storm: Storm) -> None:
    # The first request fails, so that these rows are retried, too.
    def answer(webhook_id: int, nth: int) -> bytes:
        return ERROR if nth == 1 and webhook_id in (*range(2006, 2010), 2011, 2014) else OK

    with Sink(answer) as sink, Daemon(storm.database.dsn, *QUICK_RETRIES) as daemon:
        storm.register(sink, settings="circuit_failure_threshold = 1000000")
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        for row in ROWS_THAT_WAIT + ROWS_THAT_GO:
            storm.database.execute(f"INSERT INTO pggit.alert_delivery_queue {row}")
        storm.inject("row of a special kind", len(ROWS_THAT_WAIT + ROWS_THAT_GO))
        for _ in range(2):  # the same INSERT of the same rows makes as many deliveries again
            storm.database.execute(
                "INSERT INTO pggit.alert_delivery_queue (webhook_id, alert_id, message_body)"
                " SELECT 2030, 1, '{}' FROM generate_series(1, 500)"
            )
        storm.inserted(len(ROWS_THAT_WAIT + ROWS_THAT_GO) + 1000)
        storm.insert(1000, webhooks=15)
        eventually(
            lambda: storm.unfinished() <= len(ROWS_THAT_WAIT),
            60.0,
            what="all but the rows of the future",
        )
        [(began,)] = storm.database.execute("SELECT now()")
        counted = "SELECT min(counted_at) > %s FROM pggit.queue_depth"  # with these rows in it
        eventually(
            lambda: storm.database.execute(counted, [began]) == [(True,)],
            60.0,
            what="the queue's depth is counted",
        )
        assert set(daemon.workers()) == workers
        assert_reads(storm)
        assert storm.unfinished() == len(ROWS_THAT_WAIT)
        storm.database.execute(
            "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() WHERE webhook_id = 2020"
        )
        storm.settle()
        assert daemon.stop() == 0
        assert "record" not in "".join(
            line for line in daemon.log().splitlines() if "level=error" in line
        )
        assert sum(1 for delivery_id in sink.arrivals) == len(ROWS_THAT_WAIT + ROWS_THAT_GO) + 2000
        storm.account(sink, may_fail=[2006, 2008, 2009])


@pytest.mark.every_postgres
def test_infinite_times(storm: Storm) -> None:
    waits = (
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at)"
        " VALUES (%s, '1', %s)"
    )
    with Sink() as sink, Daemon(storm.database.dsn, *QUICK_RETRIES) as daemon:
        storm.register(sink, count=3)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        # Nothing else is due: the workers sleep until this.
        storm.database.execute(waits, [2000, "infinity"])
        storm.inserted(1)
        storm.inject("next_retry_at is infinity")
        time.sleep(2.0)
        assert set(daemon.workers()) == workers
        storm.database.execute("UPDATE pggit.webhooks SET enabled = false WHERE webhook_id = 2001")
        for webhook_id in (2001, 2002):
            storm.database.execute(waits, [webhook_id, "-infinity"])
            storm.inserted(1)
            storm.inject("next_retry_at is -infinity")
        eventually(lambda: storm.unfinished() == 2)
        assert_reads(storm)
        storm.database.execute("UPDATE pggit.webhooks SET enabled = true")
        storm.database.execute(
            "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() WHERE webhook_id = 2000"
        )
        storm.settle()
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(sink)


def assert_reads(storm: Storm) -> None:
    """Assert that `status` and `doctor` can read these rows."""
    for command in ("status", "doctor"):
        arguments = [sys.executable, "-m", "webhookd", command, "--dsn", storm.database.dsn]
        shown = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        text = shown.stdout + shown.stderr
        assert shown.returncode in (0, 1), text
        assert "Traceback" not in text
        assert "not examined" not in text, text


def test_negative_retry_count(storm: Storm) -> None:
    with (
        Sink(lambda webhook_id, nth: ERROR if nth == 1 else OK) as sink,
        Daemon(storm.database.dsn, *QUICK_RETRIES) as daemon,
    ):
        storm.register(sink, count=1)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        row = "(webhook_id, message_body, retry_count) VALUES (2000, '1', -5)"
        storm.database.execute(f"INSERT INTO pggit.alert_delivery_queue {row}")
        storm.inserted(1)
        storm.inject("negative retry_count")
        storm.settle()
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(sink)
