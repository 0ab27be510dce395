"""`webhookd delivery explain` and its siblings: what they print about a delivery, and about one
that cannot be seen.
"""

import json
import shlex

import pytest
from click.testing import CliRunner

from tests.cli.test_commands import webhookd
from tests.support.engine import Engine, answered, insert, register
from tests.support.explained import explained
from tests.support.postgres import Database
from webhookd.cli.main import cli


def test_the_command_prints_causes_what_to_run_and_the_attempts(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    enlisted.finish(enlisted.take(), answered(503, excerpt="down for maintenance"))
    database.execute("UPDATE pggit.webhooks SET enabled = false, disabled_reason = 'by ops'")
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() + interval '1 h'"
    )  # however slow this machine is
    done = webhookd("delivery", "explain", str(delivery_id), dsn=database.dsn)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        lines[0] == f"delivery {delivery_id} for webhook 1 (https://receiver.example/1): retrying"
    )
    assert lines[2:4] == ["- Webhook 1 is paused: by ops.", "    webhookd webhook resume 1"]
    assert lines[4].startswith("- Attempt 2 of 11 is due ")
    assert "down for maintenance" in lines[-1]
    report = json.loads(
        webhookd("delivery", "explain", str(delivery_id), "--json", dsn=database.dsn).stdout
    )
    paused, backoff = report["reasons"]
    assert (paused["reason"], paused["until"]) == ("paused", "never")
    assert backoff["until"].endswith("Z")
    assert report["log"][0]["http_status"] == 503
    # Pasted, a command must reach the same database.
    elsewhere = webhookd(
        "delivery", "explain", str(delivery_id), "--dsn", database.dsn, dsn="host=/nowhere"
    )
    command = next(line for line in elsewhere.stdout.splitlines() if "webhook resume 1" in line)
    assert webhookd(*shlex.split(command)[1:], dsn="host=/nowhere").returncode == 0
    assert database.execute("SELECT enabled FROM pggit.webhooks") == [(True,)]


def test_a_retry_says_what_the_delivery_then_waits_for(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1, enabled=False, disabled_reason="410 Gone")
    register(database, 2)
    insert(database, 2, 5)
    enlisted.finish(enlisted.take(), answered(500))
    ids = [str(one) for webhook_id in (1, 2, 3) for one in insert(database, webhook_id)]
    retry = ["delivery", "retry", "--dsn", database.dsn]
    lines = CliRunner().invoke(cli, [*retry, *ids], catch_exceptions=False).output.splitlines()
    assert lines[0] == "3 deliveries will be sent again"
    for number, words in zip(
        ids,
        ("410 gone", "circuit of webhook 2 is open", "webhook 3 is not registered"),
        strict=True,
    ):
        told = next(
            at for at, line in enumerate(lines) if line.startswith(f"delivery {number} waits.")
        )
        assert words in lines[told].lower()
        assert f"delivery explain {number}" in lines[told + 1]
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE webhook_id <> 2"
    )
    failed = CliRunner().invoke(cli, [*retry, "--failed"], catch_exceptions=False).output
    assert failed.startswith("2 deliveries will be sent again\n") and failed.count("waits.") == 2
    register(database, 4)
    [free] = insert(database, 4)
    assert (
        CliRunner().invoke(cli, [*retry, str(free)], catch_exceptions=False).output
        == "1 delivery will be sent again\n"
    )


@pytest.mark.parametrize("instant", ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"])
def test_instants_that_no_calendar_has_are_shown_all_the_same(
    database: Database, enlisted: Engine, instant: str
) -> None:
    register(database, 1, 2)
    [waiting], [done] = insert(database, 1), insert(database, 2)
    enlisted.finish(enlisted.take(), answered(200))
    instants = ("created_at", "next_retry_at", "attempted_at", "delivered_at", "lease_until")
    columns = ", ".join(f"{name} = %(at)s" for name in instants)
    for status, number in (("pending", waiting), ("sending", waiting), ("delivered", done)):
        database.execute(
            f"UPDATE pggit.alert_delivery_queue SET {columns}, delivery_status = %(status)s "
            "WHERE delivery_id = %(number)s",
            {"at": instant, "status": status, "number": number},
        )
        assert explained(database, number)
    database.execute("UPDATE pggit.alert_delivery_log SET created_at = %s", [instant])
    for command in (
        ["list"],
        ["list", "--json"],
        ["show", str(done)],
        ["show", str(done), "--json"],
    ):
        shown = CliRunner().invoke(
            cli, ["delivery", *command, "--dsn", database.dsn], catch_exceptions=False
        )
        assert (shown.exit_code, instant[:5] in shown.output) == (0, True)
    assert (
        CliRunner().invoke(cli, ["delivery", "explain", str(done), "--dsn", database.dsn]).exit_code
        == 0
    )


def test_a_delivery_that_is_not_committed_yet_points_to_the_producers_open_transaction(
    database: Database,
) -> None:
    insert(database, 1)
    with database.connect(autocommit=False, application_name="shop") as producer:
        row = producer.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}') "
            "RETURNING delivery_id"
        ).fetchone()
        assert row is not None
        done = webhookd("delivery", "explain", str(row[0]), dsn=database.dsn)
        as_json = webhookd("delivery", "explain", str(row[0]), "--json", dsn=database.dsn)
        pid = producer.info.backend_pid
    assert done.returncode == as_json.returncode == 1
    assert done.stderr.count("\n") == 1 and f"no delivery {row[0]} can be seen" in done.stderr
    assert f"the newest delivery is {row[0] - 1}" in done.stdout
    assert f"pid {pid} (shop, " in done.stdout and "idle in transaction" in done.stdout
    assert [one["pid"] for one in json.loads(as_json.stdout)["producers"]] == [pid]


def test_a_prepared_transaction_is_named_too(database: Database) -> None:
    with database.connect(autocommit=False) as producer:
        producer.execute("SET LOCAL webhookd.notify = off")
        producer.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
        )
        producer.execute("PREPARE TRANSACTION 'order-9'")
        producer.rollback()
    try:
        done = webhookd("delivery", "explain", "999", dsn=database.dsn)
    finally:
        database.execute("ROLLBACK PREPARED 'order-9'")
    assert "the prepared transaction 'order-9', open for" in done.stdout
    assert "no transaction" in webhookd("delivery", "explain", "999", dsn=database.dsn).stdout
