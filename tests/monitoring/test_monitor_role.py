"""monitoring/webhookd_monitor.sql: a role that can read what dashboards and `webhookd status` need,
and nothing else.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from monitoring.grafana import postgresql
from monitoring.grafana.asking import Window
from tests.monitoring.stack import MONITORING
from tests.support.postgres import Database, Server
from webhookd.embedded.programs import package_binaries
from webhookd.schema.migrate import migrate

ROLE = "webhookd_monitor"
SEED = [
    path
    for path in (Path(__file__).parents[1] / "seed").glob("*.sql")
    if path.stem.split("_")[2] not in ("load", "reset")
]
# All other columns of these tables, and all columns of other tables and views, may be read.
HIDDEN = {
    ("webhooks", "url"),
    ("webhooks", "secret"),
    ("webhooks", "old_secret"),
    ("webhooks", "headers"),
    ("alert_delivery_queue", "message_body"),
    ("alert_delivery_queue", "lease_token"),
    ("alert_delivery_log", "event_details"),
}

COLUMNS = (
    "SELECT c.relname::text, a.attname::text"
    " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
    " WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind IN ('r', 'v', 'p')"
    " AND a.attnum > 0 AND NOT a.attisdropped"
)
FORBIDDEN = (
    "SELECT url FROM pggit.webhooks",
    "SELECT secret FROM pggit.webhooks",
    "SELECT * FROM pggit.webhooks",
    "SELECT message_body FROM pggit.alert_delivery_queue",
    "SELECT q FROM pggit.alert_delivery_queue q",
    "SELECT event_details FROM pggit.alert_delivery_log",
    "SELECT pggit.get_webhook_decrypted(1)",
    "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')",
    "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (2, 'https://example.com')",
    "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy', consecutive_failures = 0",
    "UPDATE pggit.webhooks SET enabled = false",
    "DELETE FROM pggit.alert_delivery_queue",
    "TRUNCATE pggit.worker_minutes",
    "SELECT setval('pggit.wake_flag', 1)",
    "CREATE TABLE pggit.mine ()",
)


def run_script(dsn: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script with psql, as *dsn*'s user; *options* are psql's."""
    psql = [
        str(package_binaries() / "psql"),
        dsn,
        "--no-psqlrc",
        "--quiet",
        f"--file={MONITORING / 'webhookd_monitor.sql'}",
    ]
    return subprocess.run(
        [*psql, *options], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def monitored(database: Database) -> Database:
    """A database with one webhook and one delivery of each status, and the role."""
    database.import_rows(
        "INSERT INTO pggit.webhooks (webhook_id, url, secret, headers)"
        " VALUES (1, 'https://example.com/token', 'whsec_' || encode(repeat('x', 24)::bytea,"
        " 'base64'), '{}');"
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status)"
        " SELECT 1, '{}', unnest(ARRAY['pending', 'retrying', 'delivered', 'failed']);"
    )
    done = run_script(database.dsn)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return database


@pytest.mark.every_postgres
def test_the_role_reads_what_dashboards_and_the_daily_check_ask(monitored: Database) -> None:
    asked = [path.read_text() for path in SEED]
    window = Window(0, 86400)
    for panel in postgresql.DASHBOARD["panels"]:
        asked += [window.fill_in(target["rawSql"]) for target in panel["targets"]]
    assert len(asked) > 20
    with monitored.connect(user=ROLE) as connection:
        for statement in asked:
            connection.execute(statement.encode())
        assert connection.execute("SELECT * FROM pggit.count_pending_by_status()").fetchall() == [
            (1, 1, 1, 1, 4)
        ]
        assert connection.execute("SHOW default_transaction_read_only").fetchall() == [("on",)]
        assert connection.execute("SHOW statement_timeout").fetchall() == [("10s",)]


def test_the_role_suffices_for_status(monitored: Database) -> None:
    command = [
        sys.executable,
        "-m",
        "webhookd",
        "status",
        "--json",
        "--dsn",
        f"{monitored.dsn} user={ROLE}",
    ]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WEBHOOKD_", "DATABASE_URL"))
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode in (0, 1), done.stderr  # 1: no worker runs, which is critical
    assert json.loads(done.stdout)["queue"]["failed_count"] == 1


@pytest.mark.parametrize("read_only", ["on", "off"])
def test_what_the_role_must_not_see_or_change_is_refused(
    monitored: Database, read_only: str
) -> None:
    """The role's read-only setting is a guard against accidents: its rights alone must suffice."""
    refusals = (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)
    with monitored.connect(user=ROLE) as connection:
        connection.execute(f"SET default_transaction_read_only = {read_only}".encode())
        for statement in FORBIDDEN:
            with pytest.raises(refusals[0] if read_only == "off" else refusals):
                connection.execute(statement.encode())
                pytest.fail(f"not refused: {statement}")


def readable(database: Database) -> set[tuple[str, str]]:
    """Return the columns of the schema, as (table, column), that the role may read."""
    return set(
        database.execute(
            f"{COLUMNS} AND has_column_privilege(%s, c.oid, a.attnum, 'SELECT')", [ROLE]
        )
    )


def test_every_column_is_either_readable_or_hidden_on_purpose(monitored: Database) -> None:
    """A new column or table must be decided upon: in the script, or here."""
    assert set(monitored.execute(COLUMNS)) - readable(monitored) == HIDDEN


def test_running_it_again_takes_back_what_was_granted_beside_it(monitored: Database) -> None:
    before = readable(monitored)
    monitored.execute(f"GRANT SELECT (secret), UPDATE (enabled) ON pggit.webhooks TO {ROLE}")
    monitored.execute(f"GRANT INSERT ON pggit.alert_delivery_queue TO {ROLE}")
    assert ("webhooks", "secret") in readable(monitored)
    assert run_script(monitored.dsn).returncode == 0
    assert readable(monitored) == before
    rights = (
        "SELECT has_any_column_privilege(%s, 'pggit.webhooks', 'UPDATE'),"
        " has_table_privilege(%s, %s, 'INSERT')"
    )
    assert monitored.execute(rights, [ROLE, ROLE, "pggit.alert_delivery_queue"]) == [(False, False)]


def test_a_password_is_set_only_where_one_is_given_and_kept(monitored: Database) -> None:
    stored = f"SELECT rolpassword FROM pg_authid WHERE rolname = '{ROLE}'"
    (before,) = monitored.execute(stored)
    try:
        assert run_script(monitored.dsn, "--set=password=it's $secret").returncode == 0
        (given,) = monitored.execute(stored)
        assert given[0].startswith("SCRAM-SHA-256$") and given != before
        assert run_script(monitored.dsn).returncode == 0
        assert monitored.execute(stored) == [given]
    finally:
        monitored.execute(f"ALTER ROLE {ROLE} PASSWORD NULL")


def test_the_owner_of_the_schema_needs_no_superuser_and_others_change_nothing(
    private_server: Server,
) -> None:
    owner, stranger = (private_server.create_role(options="LOGIN CREATEROLE") for _ in range(2))
    database = private_server.create(owner=owner)
    migrate(private_server.dsn(database.name, owner))
    database.execute(
        f"GRANT USAGE ON SCHEMA pggit TO {stranger};"
        f" GRANT SELECT ON ALL TABLES IN SCHEMA pggit TO {stranger}"
    )
    refused = run_script(private_server.dsn(database.name, stranger))
    assert refused.returncode == 3 and "ERROR" in refused.stderr
    assert database.execute("SELECT count(*) FROM pg_roles WHERE rolname = %s", [ROLE]) == [(0,)]
    for _ in range(2):  # as after an upgrade
        assert run_script(private_server.dsn(database.name, owner)).stderr == ""
    assert ("queue_depth", "cause") in readable(database)


def test_without_the_schema_it_says_what_to_run_first(empty_database: Database) -> None:
    refused = run_script(empty_database.dsn)
    assert refused.returncode == 3 and "run webhookd migrate first" in refused.stderr
