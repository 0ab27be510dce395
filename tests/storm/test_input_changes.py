"""Operators change webhooks and deliveries in the middle of a delivery."""

import random
import time
from collections.abc import Iterator

import pytest

from tests.storm.sink import ERROR, Answer, Sink
from tests.storm.storm import QUICK_RETRIES, Storm
from tests.support.daemon import Daemon, refused, wait_until_ready
from tests.support.receivers import OK
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]
# The status is checked twice: a row that is recorded while the statement waits stays as it is.
QUEUE = "pggit.alert_delivery_queue"
SENDING = (
    "delivery_status = 'sending' AND delivery_id IN"
    f" (SELECT delivery_id FROM {QUEUE}"
    " WHERE delivery_status = 'sending' AND webhook_id = {id} LIMIT 3)"
)
# Each is run while the webhook's deliveries are in flight.
EDITS = {
    "secret changed": "UPDATE pggit.webhooks"
    " SET secret = 'whsec_' || encode(sha256(random()::text::bytea), 'base64')"
    " WHERE webhook_id = {id}",
    "headers changed": "UPDATE pggit.webhooks"
    " SET headers = jsonb_build_object('x-n', random()::text) WHERE webhook_id = {id}",
    "limits changed": "UPDATE pggit.webhooks"
    " SET max_in_flight = 1 + (random() * 20)::int, timeout_seconds = 5 + random(),"
    " rate_limit_per_second = 100 + 100 * random(),"
    " circuit_failure_threshold = 1 + (random() * 3)::int WHERE webhook_id = {id}",
    "URL changed": "UPDATE pggit.webhooks"
    " SET url = '{other}/' || webhook_id WHERE webhook_id = {id}",
    "paused or resumed": "UPDATE pggit.webhooks SET enabled = NOT enabled WHERE webhook_id = {id}",
    "webhook deleted": "DELETE FROM pggit.webhooks WHERE webhook_id = {id}",
    "webhook re-created": "INSERT INTO pggit.webhooks"
    " (webhook_id, url, rate_limit_per_second, retry_base_seconds)"
    " VALUES ({id}, '{url}/{id}', 0, 0.2) ON CONFLICT DO NOTHING",
    "circuit reset": "UPDATE pggit.webhook_health_metrics"
    " SET health_status = 'healthy', consecutive_failures = 0"
    " WHERE webhook_id = {id}",
    "queued again in flight": f"UPDATE {QUEUE} SET delivery_status = 'retrying' WHERE {SENDING}",
    "postponed in flight": f"UPDATE {QUEUE}"
    " SET delivery_status = 'pending', next_retry_at = now() + interval '1 second'"
    f" WHERE {SENDING}",
    "body changed in flight": f"UPDATE {QUEUE} SET message_body = '\"changed\"' WHERE {SENDING}",
    "moved to another webhook": f"UPDATE {QUEUE}"
    f" SET webhook_id = {{id}} + 1, delivery_status = 'pending' WHERE {SENDING}",
}
CANCEL = f"DELETE FROM {QUEUE} WHERE {SENDING} RETURNING 1"
GIVE_UP = f"UPDATE {QUEUE} SET delivery_status = 'failed' WHERE {SENDING} RETURNING 1"


def slowly(rng: random.Random) -> Answer:
    """Return a function that answers after a while, sometimes with a failure."""

    def answer(webhook_id: int, nth: int) -> bytes:
        time.sleep(0.05)
        return ERROR if rng.random() < 0.1 else OK

    return answer


def changes(storm: Storm, seconds: float) -> Iterator[str]:
    """Yield the names of random edits, for so many *seconds*."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield storm.random.choice([*EDITS, "cancelled by DELETE", "failed by hand"])


def test_changed_in_flight(storm: Storm) -> None:
    webhooks, given_up = range(2000, 2030), 2100
    answer = slowly(storm.random)
    with (
        Sink(answer) as sink,
        Sink(answer) as other,
        Daemon(storm.database.dsn, *QUICK_RETRIES) as daemon,
    ):
        storm.register(sink, count=len(webhooks) + 1)  # the last one receives what is moved
        storm.register(sink, count=1, first=given_up)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        storm.insert(6000, webhooks=len(webhooks), max_retries=50)
        storm.insert(1000, webhooks=1, first=given_up, max_retries=50)
        for change in changes(storm, 20.0):
            webhook_id = storm.random.choice(webhooks)
            if change == "cancelled by DELETE":
                gone = len(storm.database.execute(CANCEL.format(id=webhook_id)))
                storm.inserted(-gone)
                storm.inject(change, gone)
            elif change == "failed by hand":
                storm.inject(change, len(storm.database.execute(GIVE_UP.format(id=given_up))))
            else:
                storm.database.execute(
                    EDITS[change].format(id=webhook_id, url=sink.url(""), other=other.url(""))
                )
                storm.inject(change)
            time.sleep(storm.random.uniform(0, 0.02))
        for webhook_id in webhooks:
            storm.database.execute(
                EDITS["webhook re-created"].format(id=webhook_id, url=sink.url(""))
            )
        storm.database.execute(
            "UPDATE pggit.webhooks"
            " SET enabled = true, rate_limit_per_second = 0, max_in_flight = NULL"
        )
        with storm.recovering():
            storm.settle(timeout_s=120.0)
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        turned_away = refused(daemon)
        assert turned_away > 0, "the fence refuses what was changed in flight"
        storm.account(sink, other, may_fail=[given_up], refused=turned_away)


def await_more_arrivals(sink: Sink, count: int) -> None:
    eventually(lambda: len(sink.arrivals) > count)


def test_truncated_in_flight(storm: Storm) -> None:
    with Sink(slowly(storm.random)) as sink, Daemon(storm.database.dsn, *QUICK_RETRIES) as daemon:
        storm.register(sink, settings="max_in_flight = 3")
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        for _ in range(5):
            storm.insert(1000, max_retries=50)
            await_more_arrivals(sink, len(sink.arrivals) + 50)
            storm.database.execute("TRUNCATE pggit.alert_delivery_queue")
            storm.inserted(-1000)
            storm.inject("TRUNCATE in flight")
            # Until the next batch is delivered, although the lanes' counters are wrong now.
            with storm.recovering():
                storm.insert(50)
                eventually(lambda: storm.unfinished() == 0, 60.0)
            storm.database.execute("TRUNCATE pggit.alert_delivery_queue")
            storm.inserted(-50)
        storm.insert(1000, max_retries=50)
        storm.settle()
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))
