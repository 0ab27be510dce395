"""An operator's mistake through the command line: nothing is attempted or fails, everybody is told,
and all is delivered once the mistake is corrected.
"""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.daemon import (
    Daemon,
    arrivals,
    insert,
    register,
    statuses,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.postgres import Database
from tests.support.receivers import Receiver, answering
from tests.support.waiting import eventually

BACKLOG, WEBHOOKS = 1000, 5


def webhookd(database: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "webhookd", *arguments, "--dsn", database.dsn],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def held(database: Database) -> list[tuple[int, str]]:
    return database.execute(
        "SELECT webhook_id, blocked_reason FROM pggit.webhook_health_metrics"
        " WHERE blocked_by = 'configuration' ORDER BY 1"
    )


def nothing_was_spent(database: Database) -> bool:
    return (
        database.execute(
            "SELECT count(*)::int FROM pggit.alert_delivery_queue"
            " WHERE delivery_status <> 'pending' OR retry_count <> 0 OR attempts <> 0"
        )
        == database.execute("SELECT count(*)::int FROM pggit.alert_delivery_log")
        == [(0,)]
    )


def wait_until_parked(database: Database) -> None:
    """Wait until a worker has looked at each row."""
    new = "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE NOT routed"
    eventually(lambda: database.execute(new) == [(0,)], what="all rows looked at")


def lines(daemon: Daemon, event: str) -> list[str]:
    return re.findall(rf'event="{event}".*', daemon.log())


def test_a_fleet_started_without_its_options_fails_nothing_and_delivers_once_it_has_them(
    database: Database,
) -> None:
    with Receiver(answering()) as receiver:
        register(database, receiver, count=WEBHOOKS)
        insert(database, BACKLOG, webhooks=WEBHOOKS)
        with Daemon(database.dsn, reach=()) as daemon:
            wait_until_ready(database)
            eventually(lambda: len(held(database)) == WEBHOOKS, what="all webhooks held")
            wait_until_parked(database)
            assert nothing_was_spent(database)
            assert {reason for _, reason in held(database)} == {
                "http is not allowed, only https; --allow-http permits it"
            }
            said = lines(daemon, "webhook held")
            assert len(said) == WEBHOOKS
            assert all("http is not allowed" in line for line in said)

            status = webhookd(database, "status", "--json")
            report = json.loads(status.stdout)
            waiting = {one["cause"]: one["deliveries"] for one in report["waiting"]}
            assert waiting == {"configuration": BACKLOG}
            assert [one["webhook_id"] for one in report["held"]] == list(range(2000, 2005))
            assert "http is not allowed" in report["held"][0]["reason"]
            doctor = webhookd(database, "doctor")
            assert doctor.returncode == 1
            assert re.search(r"webhooks 200\d.* are held.*http is not allowed", doctor.stdout)
            assert "--allow-http" in doctor.stdout
            [(delivery_id,)] = database.execute(
                "SELECT min(delivery_id) FROM pggit.alert_delivery_queue"
            )
            explained = webhookd(database, "delivery", "explain", str(delivery_id))
            assert "held: http is not allowed" in explained.stdout
            listed = webhookd(database, "webhook", "list")
            assert "held" in listed.stdout
            shown = webhookd(database, "webhook", "show", "2000")
            assert "http is not allowed" in shown.stdout
            assert daemon.stop() == 0
        assert nothing_was_spent(database)
        with Daemon(database.dsn) as daemon:
            wait_until_delivered(database, BACKLOG)
            eventually(
                lambda: len(lines(daemon, "webhook released")) == WEBHOOKS,
                what="all webhooks released",
            )
            assert daemon.stop() == 0
    assert set(arrivals(receiver).values()) == {1}
    assert held(database) == []


def test_a_reload_with_a_corrected_file_delivers_what_was_held(
    database: Database, tmp_path: Path
) -> None:
    config = tmp_path / "webhookd.toml"
    config.write_text('allow_network = ["127.0.0.0/8"]\n')
    with (
        Receiver(answering()) as receiver,
        Daemon(database.dsn, "--config", str(config), reach=()) as daemon,
    ):
        register(database, receiver, count=WEBHOOKS)
        insert(database, 100, webhooks=WEBHOOKS)
        wait_until_ready(database)
        eventually(lambda: len(held(database)) == WEBHOOKS, what="all webhooks held")
        config.write_text('allow_network = ["127.0.0.0/8"]\nallow_http = true\n')
        daemon.signal(signal.SIGHUP)
        wait_until_delivered(database, 100)
        assert daemon.stop() == 0
    assert held(database) == []


def test_a_row_corrected_in_sql_goes_out_at_once(database: Database) -> None:
    with Receiver(answering()) as receiver, Daemon(database.dsn) as daemon:
        wait_until_ready(database)
        register(database, receiver, count=1)
        database.execute("UPDATE pggit.webhooks SET url = 'htp://127.0.0.1/'")
        insert(database, 10, webhooks=1)
        eventually(lambda: len(held(database)) == 1, what="the webhook held")
        wait_until_parked(database)
        database.execute("UPDATE pggit.webhooks SET url = %s", [receiver.url()])
        wait_until_delivered(database, 10)
        assert statuses(database) == {"delivered": 10}
        assert daemon.stop() == 0
        assert len(lines(daemon, "webhook held")) == len(lines(daemon, "webhook released")) == 1


def test_of_two_fleets_the_one_with_the_options_delivers(database: Database) -> None:
    """During a rolling restart, for example. It is slow while the other one goes on holding the
    lanes, and every delivery arrives.
    """
    with (
        Receiver(answering()) as receiver,
        Daemon(database.dsn, "--node", "a", reach=(), workers=2) as strict,
        Daemon(database.dsn, "--node", "b", workers=1) as able,
    ):
        wait_until_ready(database, workers=3)
        register(database, receiver, count=WEBHOOKS)
        insert(database, 50, webhooks=WEBHOOKS)
        wait_until_delivered(database, 50)
        assert able.stop() == 0 and strict.stop() == 0
        # Not a line for each turn that the two fleets take.
        assert len(lines(strict, "webhook held")) <= 2 * WEBHOOKS
    assert set(arrivals(receiver).values()) == {1}
