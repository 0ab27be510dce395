"""The doctor's findings that need a server of their own, a pooler, or a long history."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.support.doctor import SCHEMA, add_worker, findings, run, wrong
from tests.support.pgbouncer import pgbouncer, through
from tests.support.postgres import SETTINGS, Database, Server, running_server
from tests.support.waiting import eventually
from webhookd.admin.doctor import server as server_checks
from webhookd.admin.doctor.commands import Commands
from webhookd.admin.doctor.findings import Finding, Severity
from webhookd.admin.doctor.installation import Installation, open_installation
from webhookd.config.options import Config
from webhookd.embedded import programs
from webhookd.errors import WebhookdError
from webhookd.postgres import statements as queries

OWN_SETTINGS = (
    "wal_level=logical",
    "max_notify_queue_pages=64",
)  # a queue of 512 KiB instead of 8 GiB


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    with running_server(settings=OWN_SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def own_database(own_server: Server) -> Database:
    """A database with a living worker, on a server whose settings may be changed."""
    database = own_server.create_migrated()
    add_worker(database)
    return database


def test_autovacuum_off_for_all(own_database: Database) -> None:
    with own_database.connect() as connection:
        connection.execute("ALTER SYSTEM SET autovacuum = off")
        connection.execute("SELECT pg_reload_conf()")
    (finding,) = eventually(lambda: wrong(own_database), what="autovacuum is off")
    assert (finding.name, finding.severity) == ("vacuum", Severity.ERROR)
    run(finding)
    eventually(lambda: wrong(own_database) == [], what="autovacuum is on again")


def test_a_replication_slot_that_is_not_used(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_database.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
    assert wrong(own_database) == []
    monkeypatch.setattr(server_checks, "OLD_SNAPSHOT_XIDS", 0)
    (finding,) = wrong(own_database)
    assert finding.name == "snapshots"
    assert "left_behind (nobody uses it)" in finding.detail
    run(finding)
    assert wrong(own_database) == []


def test_a_queue_of_notifications_that_fills_up(own_database: Database) -> None:
    with own_database.connect(application_name="a slow listener") as listener:
        listener.execute("LISTEN news")
        listener.execute("BEGIN")
        listener.execute("SELECT 1")
        own_database.execute(
            "SELECT pg_notify('news', n || repeat('x', 7000)) FROM generate_series(1, 40) n"
        )
        (finding,) = wrong(own_database)
        assert (finding.name, finding.severity) == ("notifications", Severity.ERROR)
        assert "a slow listener" in finding.detail
        run(finding)
        assert wrong(own_database) == []
        listener.close()


def test_a_standby(own_server: Server, own_database: Database) -> None:
    """Last: the server does not become a primary again."""
    home = own_server.process.directory
    own_server.halt()
    (home / "data" / "standby.signal").touch()
    binaries = programs.runnable(programs.package_binaries(), home, programs.server_account())
    sockets = str(conninfo_to_dict(own_database.dsn)["host"])
    settings = [
        word
        for setting in ("listen_addresses=", *SETTINGS, *OWN_SETTINGS)
        for word in ("-c", setting)
    ]
    with as_account(str(binaries / "postgres"), "-D", str(home / "data"), "-k", sockets, *settings):
        found = eventually(lambda: examined(own_database), what="the standby answers")
    assert "a standby" in found["server"].detail
    assert found["server"].severity is Severity.ERROR
    assert found["triggers"].severity is Severity.OK


def examined(database: Database) -> dict[str, Finding]:
    """Return each check's last finding, nothing while the database is away."""
    try:
        return {finding.name: finding for finding in findings(database)}
    except WebhookdError:
        return {}


@contextmanager
def as_account(*command: str) -> Iterator[None]:
    """Run *command* as the account that servers run as, and interrupt it in the end."""
    process = subprocess.Popen(
        command,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=programs.environment(),
        **programs.server_account().popen_arguments(),
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_listen_through_a_pooler(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "NOTIFY_S", 0.3)
    add_worker(database)
    with pgbouncer(database, "transaction", sessions=1) as folder:
        dsn = through(database, folder)
        (finding,) = wrong(database, dsn=dsn)
        assert (finding.name, finding.severity) == ("listen", Severity.ERROR)
        assert "--listen-dsn" in (finding.run or "")
        (finding,) = wrong(database, listen_dsn=dsn)
        assert (finding.name, finding.severity) == ("listen", Severity.ERROR)
        assert wrong(database, dsn=dsn, listen_dsn=database.dsn) == []
        with psycopg.connect(
            dsn, prepare_threshold=None
        ) as connection:  # the sessions behind the pooler are left as they were
            assert connection.execute("SHOW transaction_read_only").fetchone() == ("off",)
            assert connection.execute("SHOW enable_seqscan").fetchone() == ("on",)
            assert connection.execute("SELECT pg_listening_channels()").fetchall() == []


HISTORY, WAITING, LANES = 30_000, 6_000, 50
# Pages that a check reads at most; the history alone has some 800. `rows` reads the newest 10,000
# rows.
MOST_PAGES = 400
PARAMETERS = {
    "old_s": 1.0,
    "old_xids": 1,
    "overdue_s": 300.0,
    "limit": 20_000,
    "tables": SCHEMA.tables,
}


@pytest.mark.every_postgres
def test_no_check_reads_the_history(database: Database) -> None:
    database.execute(
        "SET session_replication_role = replica; ALTER TABLE pggit.alert_delivery_queue SET "
        "(autovacuum_enabled = off);"
        "INSERT INTO pggit.webhooks (webhook_id, url) SELECT n, 'https://receiver.example/' "
        f"FROM generate_series(1, {LANES}) n;"
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status, "
        "attempts, delivered_at)"
        f" SELECT 1 + n % {LANES}, '{{\"some\": \"message\"}}', 'delivered', 1, now() FROM "
        f"generate_series(1, {HISTORY}) n;"
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, routed)"
        f" SELECT 1 + n % {LANES}, '{{}}', n % 2 = 0 FROM generate_series(1, {WAITING}) n"
    )
    with open_installation(database.dsn, Config(dsn=database.dsn), Commands("")) as installation:
        for statistics in ("SELECT", "VACUUM ANALYZE"):  # none at all, then fresh ones
            database.execute(statistics)
            pages = {name: pages_of(installation, queries.load(name)) for name in statements()}
            assert {name: count for name, count in pages.items() if count > MOST_PAGES} == {}


def statements() -> list[str]:
    folder = resources.files("webhookd.sql") / "queries"
    return sorted(
        file.name.removesuffix(".sql")
        for file in folder.iterdir()
        if file.name.startswith("doctor_")
    )


def pages_of(installation: Installation, statement: str) -> int:
    with installation.reading() as connection:
        row = connection.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode(),
            PARAMETERS if "%(" in statement else None,
        ).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
