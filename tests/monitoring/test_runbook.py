"""docs/runbook.md: every alert has its entry, and every command and query in it runs."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from click.testing import CliRunner

from tests.monitoring.shipped import ALERTS, asked_for, known_metrics, promtool
from tests.monitoring.stack import MONITORING
from tests.support.postgres import Database, Server
from webhookd.cli.main import cli

RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
HEADINGS = re.findall(r"(?m)^#+ (.+)$", RUNBOOK)
WEBHOOK, DELIVERY = 7, 4711
# It never ends, so only its help is tried.
WATCHING = ["status", "--watch"]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", RUNBOOK)


def _commands() -> list[list[str]]:
    """Return the arguments of each `webhookd` command, in blocks and in sentences."""
    lines = [line for block in _blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"`(webhookd [^`]+)`", re.sub(r"(?ms)^```.*?^```$", "", RUNBOOK))
    commands = [shlex.split(line, comments=True) for line in lines]
    return [words for program, *words in commands if program == "webhookd"]


def test_each_alert_has_an_entry_and_links_to_it() -> None:
    groups = yaml.safe_load((MONITORING / "webhook_alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    assert [rule["annotations"]["runbook_url"] for rule in rules] == [
        f"https://github.com/webhookd/webhookd/blob/main/docs/runbook.md#{alert.lower()}"
        for alert in ALERTS
    ]
    assert set(ALERTS) <= set(HEADINGS)


def test_links_within_lead_to_a_heading() -> None:
    # GitHub's way of making an anchor of a heading.
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    links = set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK))
    assert links
    assert links <= anchors


def test_prometheus_understands_each_expression(tmp_path: Path) -> None:
    expressions = [line for block in _blocks("promql") for line in block.splitlines()]
    assert expressions
    assert {name for expression in expressions for name in asked_for(expression)} <= known_metrics()
    rules = [
        {"record": f"runbook:{number}", "expr": expression}
        for number, expression in enumerate(expressions)
    ]
    # JSON is YAML too.
    (tmp_path / "rules.yml").write_text(
        json.dumps({"groups": [{"name": "runbook", "rules": rules}]})
    )
    assert promtool("check", "rules", str(tmp_path / "rules.yml")) == 0


@pytest.fixture(scope="module")
def filled(embedded_server: Server) -> Iterator[Database]:
    """A database with the webhook and the delivery of the runbook's examples, and one delivery
    whose webhook is not registered.
    """
    database = embedded_server.create_migrated()
    database.execute(
        f"INSERT INTO pggit.webhooks (webhook_id, url) VALUES ({WEBHOOK}, 'https://127.0.0.1:1/')"
    )
    database.import_rows(
        "INSERT INTO pggit.alert_delivery_queue (delivery_id, webhook_id, message_body)"
        f" VALUES ({DELIVERY}, {WEBHOOK}, '{{\"type\": \"invoice.paid\"}}'), (1, 9, '{{}}')"
    )
    yield database
    embedded_server.drop(database)


@pytest.mark.parametrize("statements", _blocks("sql"))
def test_sql_runs(statements: str, filled: Database) -> None:
    text, count = re.subn(r"(?<!:):webhook_id\b", str(WEBHOOK), statements)
    assert count == len(re.findall(r"(?<!:):[a-z]", statements)), (
        "another variable than :webhook_id"
    )
    with filled.connect(autocommit=False) as connection:
        for statement in filter(str.strip, text.split(";\n")):
            connection.execute(statement.encode())
        connection.rollback()


def test_the_playbooks_update_finds_what_it_is_for(filled: Database) -> None:
    """The two statements that change many rows change the right ones."""
    closes = next(block for block in _blocks("sql") if "consecutive_failures = 0" in block)
    gives_up = next(block for block in _blocks("sql") if "delivery_status = 'failed'" in block)
    with filled.connect(autocommit=False) as connection:
        connection.execute(
            "UPDATE pggit.webhook_health_metrics"
            " SET health_status = 'unavailable', circuit_state = 'open',"
            " consecutive_failures = 5, circuit_until = now() + interval '1 minute'"
        )
        connection.execute(closes.replace(":webhook_id", str(WEBHOOK)).encode())
        assert (
            _one(
                connection,
                "SELECT circuit_state FROM pggit.webhook_health_metrics WHERE webhook_id = 7",
            )
            == "closed"
        )
        # Deliveries of a registered webhook stay.
        for webhook_id in (WEBHOOK, 9):
            connection.execute(gives_up.replace(":webhook_id", str(webhook_id)).encode())
        assert _one(
            connection,
            "SELECT array_agg(delivery_id) FROM pggit.alert_delivery_queue WHERE status = 'failed'",
        ) == [1]
        connection.rollback()


def _one(connection: psycopg.Connection[tuple[object, ...]], statement: str) -> object:
    row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("arguments", list(dict.fromkeys(map(tuple, _commands()))), ids=" ".join)
def test_webhookd_knows_each_command(arguments: tuple[str, ...], filled: Database) -> None:
    words = [*arguments, "--help"] if list(arguments) == WATCHING else list(arguments)
    environment = {"DATABASE_URL": filled.dsn, "WEBHOOKD_ALLOW_NETWORK": "127.0.0.0/8"}
    done = CliRunner().invoke(cli, words, env=environment, standalone_mode=False)
    # A command may find something wrong and exit with 1, but it must neither refuse its arguments
    # nor fail.
    assert done.exception is None, (done.exception, done.output)
    assert done.output
