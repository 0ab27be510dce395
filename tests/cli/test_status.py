"""`webhookd status`: the screen, the JSON, the exit code, and what an old schema answers."""

import json

import pytest
from click.testing import CliRunner

from tests.support.engine import answered, engine, insert, register
from tests.support.postgres import Database
from webhookd.cli.main import cli
from webhookd.errors import WebhookdError
from webhookd.schema import migrate


@pytest.mark.parametrize(
    "command", [["status"], ["metrics"], ["webhook", "list"], ["delivery", "list"]]
)
def test_an_old_schema_is_one_line_that_says_migrate_or_no_matter(
    empty_database: Database, command: list[str]
) -> None:
    migrate.migrate(empty_database.dsn, migrations=migrate.load()[:1])
    done = CliRunner().invoke(cli, [*command, "--dsn", empty_database.dsn])
    refused = isinstance(done.exception, WebhookdError) and str(done.exception)
    expected = "0002_monitoring is missing: run `webhookd migrate`"
    assert expected in str(refused) if command[0] != "delivery" else done.exit_code == 0


def test_the_screen_shows_queue_attention_and_the_hours_failures(database: Database) -> None:
    with engine(database) as worker:
        register(database, 1)
        insert(database, 1, 2)
        database.execute("UPDATE pggit.alert_delivery_queue SET max_retries = 0")
        good, bad = worker.take()
        worker.finish([good], answered(200))
        worker.finish([bad], answered(404))
    done = CliRunner().invoke(cli, ["status", "--dsn", database.dsn])
    assert done.exit_code == 1  # no worker is registered
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["0", "0", "1", "1", "2", "1"] in lines, done.stdout
    assert ["1", "degraded", "1", "50"] in [line[:4] for line in lines]
    assert "at least 99 %" in done.stdout


def test_the_json_has_each_baseline_with_its_verdict_and_every_part_of_the_report(
    database: Database,
) -> None:
    done = CliRunner().invoke(cli, ["status", "--json", "--dsn", database.dsn])
    report = json.loads(done.stdout)
    assert [*report] == [
        *("baselines", "queue", "waiting", "health", "attention", "errors_1h", "circuits"),
        *("held", "unregistered", "workers", "disagreement"),
    ]
    by_name = {one["name"]: one for one in report["baselines"]}
    assert by_name["worker health, longest silence"]["verdict"] == "critical"
    assert [*by_name["queue depth"]] == [
        *("name", "value", "unit", "target", "critical", "missing", "verdict")
    ]
    assert done.exit_code == 1
    database.execute(
        "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version)"
        " VALUES (gen_random_uuid(), 'worker-1', 'here', 1, '0')"
    )
    assert CliRunner().invoke(cli, ["status", "--dsn", database.dsn]).exit_code == 0
