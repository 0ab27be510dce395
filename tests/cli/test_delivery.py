"""The main job, through the real program: rows inserted with SQL arrive as signed POSTs."""

import signal
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tests.support.daemon import (
    Daemon,
    answer_ok,
    arrivals,
    headers_of,
    insert,
    register,
    statuses,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver
from tests.support.waiting import eventually

SEED_LOAD = Path(__file__).parent.parent / "seed" / "section_8_load.sql"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.every_postgres
def test_the_load_of_the_seed_is_delivered_exactly_once_by_three_workers(
    database: Database,
) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        database.execute(SEED_LOAD.read_text())
        wait_until_delivered(database, 1000)
        assert set(arrivals(receiver).values()) == {1}
        assert len(receiver.requests) == 1000
        workers = {
            row[0]
            for row in database.execute("SELECT DISTINCT worker_id FROM pggit.alert_delivery_queue")
        }
        assert workers == {"worker-1", "worker-2", "worker-3"}
        log = database.execute(
            "SELECT count(*)::int, count(DISTINCT delivery_id)::int FROM pggit.alert_delivery_log"
        )
        assert log == [(1000, 1000)]
        health = database.execute(
            "SELECT sum(total_deliveries)::int, sum(in_flight)::int FROM "
            "pggit.webhook_health_metrics"
        )
        assert health == [(1000, 0)]
        assert daemon.stop() == 0


def test_what_arrives_is_signed_and_is_the_body_byte_for_byte(database: Database) -> None:
    body = (
        '{"greeting": "grüß Gott", "big": 123456789012345678901234567890, '
        '"nested": {"a": [1, 2.50, null]}}'
    )
    with Receiver(answer_ok) as receiver, Daemon(database.dsn):
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, secret, headers) VALUES (1, %s, %s, %s)",
            [receiver.url("/path?q=1"), SECRET, '{"x-tenant": "blue"}'],
        )
        database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, %s)",
            [body],
        )
        assert receiver.wait_for_requests(1)
        request = receiver.requests[0]
        stored = database.execute("SELECT message_body::text FROM pggit.alert_delivery_queue")[0][0]
        headers, sent = headers_of(request), request.partition(b"\r\n\r\n")[2]
        assert request.startswith(b"POST /path?q=1 HTTP/1.1\r\n")
        assert sent == stored.encode()
        assert headers["content-type"] == "application/json"
        assert headers["user-agent"].startswith("webhookd/")
        assert headers["x-tenant"] == "blue"
        assert "." not in headers["webhook-id"]
        Webhook(SECRET).verify(sent, headers)


def test_nothing_is_sent_unless_the_inserting_transaction_commits(database: Database) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn):
        register(database, receiver, count=1)
        with database.connect(autocommit=False) as connection:
            connection.execute(
                "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (2000, "
                "'1')"
            )
            connection.rollback()
            connection.execute(
                "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (2000, "
                "'2')"
            )
            insert(database, 5, webhooks=1)
            assert receiver.wait_for_requests(5)
            connection.commit()
        assert receiver.wait_for_requests(6)
        bodies = sorted(request.partition(b"\r\n\r\n")[2] for request in receiver.requests)
        assert b"1" not in bodies
        assert b"2" in bodies


def test_a_delivery_for_an_unregistered_webhook_waits_for_its_registration(
    database: Database,
) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn):
        database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (9, '{}')"
        )
        # The worker parks it, and never looks at it again.
        routed = "SELECT routed FROM pggit.alert_delivery_queue"
        eventually(lambda: database.execute(routed) == [(True,)])
        assert statuses(database) == {"pending": 1}
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (9, %s)", [receiver.url()]
        )
        wait_until_delivered(database, 1)


def test_pausing_resuming_and_moving_a_webhook_take_effect_in_running_workers(
    database: Database,
) -> None:
    with Receiver(answer_ok) as old, Receiver(answer_ok) as new, Daemon(database.dsn):
        register(database, old, count=1)
        insert(database, 1, webhooks=1)
        wait_until_delivered(database, 1)
        database.execute("UPDATE pggit.webhooks SET enabled = false")
        insert(database, 3, webhooks=1)
        lane = "SELECT blocked_by FROM pggit.webhook_health_metrics WHERE webhook_id = 2000"
        eventually(lambda: database.execute(lane) == [("paused",)])
        database.execute("UPDATE pggit.webhooks SET url = %s", [new.url()])
        database.execute("UPDATE pggit.webhooks SET enabled = true")
        wait_until_delivered(database, 4)
        assert (len(old.requests), len(new.requests)) == (1, 3)


def test_the_playbooks_update_closes_an_open_circuit_in_running_workers(database: Database) -> None:
    healthy = False

    def sick(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(
                OK if healthy else b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
            )

    with (
        Receiver(sick) as receiver,
        Daemon(database.dsn, "--retry-base", "0.2", "--circuit-open", "3600"),
    ):
        register(database, receiver, count=1)
        insert(database, 30, webhooks=1)
        state = (
            "SELECT circuit_state, health_status FROM pggit.webhook_health_metrics "
            "WHERE webhook_id = 2000"
        )
        eventually(lambda: database.execute(state) == [("open", "unavailable")])
        eventually(lambda: "sending" not in statuses(database))
        # Each worker stops at its own fifth failure at the latest: a batch does not run on against
        # a circuit that tripped.
        assert len(receiver.requests) <= 15
        healthy = True
        database.execute(
            "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = "
            "'healthy',"
            " last_check_at = CURRENT_TIMESTAMP WHERE webhook_id = 2000 AND health_status != "
            "'healthy'"
        )
        wait_until_delivered(database, 30)
        assert database.execute(state) == [("closed", "healthy")]


def test_a_reload_replaces_the_workers_without_a_failed_or_repeated_delivery(
    database: Database,
) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        before = set(daemon.workers())
        insert(database, 2000)
        daemon.signal(signal.SIGHUP)
        for _ in range(5):
            insert(database, 400)
        eventually(lambda: len(set(daemon.workers()) - before) == 3, 60.0, what="three new workers")
        wait_until_delivered(database, 4000)
        assert set(arrivals(receiver).values()) == {1}


def test_each_worker_serves_metrics_and_says_when_it_is_ready(database: Database) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver)
        eventually(lambda: len(daemon.metrics_ports()) == 3)
        ports = daemon.metrics_ports()
        for port in ports:
            eventually(partial(is_ready, port))
        insert(database, 200)
        wait_until_delivered(database, 200)

        def counted() -> float:
            lines = [line for port in ports for line in _get(port, "/metrics").splitlines()]
            its = 'webhook_deliveries_total{status="delivered"'
            return sum(float(line.split()[-1]) for line in lines if line.startswith(its))

        eventually(lambda: counted() == 200)
        assert 'worker_health_status{worker_id="worker-2"} 1' in _get(ports[1], "/metrics")
        assert _get(ports[0], "/healthz").startswith("200")


def is_ready(port: int) -> bool:
    return _get(port, "/readyz").startswith("200")


def _get(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return f"{response.status}\n{response.read().decode()}"
    except OSError as error:
        return str(error)
