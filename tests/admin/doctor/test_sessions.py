"""The doctor's findings about the way to the server and the sessions there, each provoked and
fixed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.support.doctor import assert_found_and_fixed, findings, worker_role, wrong
from tests.support.postgres import Database, Server
from webhookd.admin.doctor import queue, server
from webhookd.admin.doctor.findings import Severity


def test_a_clock_that_is_off(patient: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for offset_s, severity, test_fails in (
        (0.2, Severity.OK, False),
        (-5.0, Severity.WARNING, False),
        (120.0, Severity.WARNING, False),
        (900.0, Severity.WARNING, True),
    ):
        monkeypatch.setattr(
            "webhookd.admin.doctor.server.time.time", lambda offset_s=offset_s: real() + offset_s
        )
        (found,) = (finding for finding in findings(patient) if finding.name == "clock")
        assert found.severity is severity
        assert severity is Severity.OK or ("behind" if offset_s < 0 else "ahead of") in found.detail
        assert ("`webhookd webhook test`" in found.detail) is test_fails


def test_a_listen_dsn_to_another_database(embedded_server: Server, patient: Database) -> None:
    (finding,) = wrong(patient, listen_dsn=embedded_server.dsn("postgres"))
    assert (finding.name, finding.severity) == ("listen", Severity.ERROR)
    assert "another database" in finding.detail


def test_a_listen_dsn_that_leads_nowhere(patient: Database) -> None:
    (finding,) = wrong(patient, listen_dsn="host=/nonexistent-directory")
    assert finding.name == "listen"
    assert "No such file" in finding.detail


def test_a_limit_on_connections(embedded_server: Server, patient: Database) -> None:
    with worker_role(embedded_server, patient) as role:
        dsn = embedded_server.dsn(patient.name, user=role)
        patient.execute(f"ALTER ROLE {role} CONNECTION LIMIT 3")
        finding = assert_found_and_fixed(
            patient, "connections", f"limit of role {role}", "of 3", dsn=dsn
        )
        assert finding.severity is Severity.WARNING


@contextmanager
def transaction(
    database: Database, statement: str, *, name: str = ""
) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Another session, idle in a transaction after *statement*; what becomes of it is the test's
    business.
    """
    connection = database.connect(autocommit=False, application_name=name)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.execute(statement.encode())
    try:
        yield connection
    finally:
        connection.close()


def test_more_workers_than_the_server_has_connections_for(patient: Database) -> None:
    assert wrong(patient, workers=256) == []  # they run already, all but one that is replaced
    patient.execute("DELETE FROM pggit.workers")
    (finding,) = wrong(patient, workers=256)
    assert (finding.name, "max_connections" in finding.detail) == ("connections", True)
    assert "needs 768" in finding.detail


def test_what_keeps_dead_rows(patient: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OLD_SNAPSHOT_S", 0.0)
    with transaction(
        patient, "SELECT count(*) FROM pggit.webhooks", name="nightly report"
    ) as connection:
        assert_found_and_fixed(
            patient, "snapshots", "nightly report", f"session {connection.info.backend_pid}"
        )
    with transaction(patient, "CREATE TABLE for_a_transaction_id ()") as connection:
        connection.execute("PREPARE TRANSACTION 'another''s own'")
    assert_found_and_fixed(patient, "snapshots", "another", "prepared")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')",
        "SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = 1 FOR UPDATE",
    ],
)
def test_a_transaction_that_stands_in_the_way(
    patient: Database, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.setattr(queue, "HELD_S", 0.0)
    with transaction(patient, statement, name="shop"):
        assert_found_and_fixed(patient, "locks", "shop", "idle in transaction")


def test_a_check_that_cannot_run_does_not_stop_the_others(
    patient: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhookd.postgres.session._READER_SETTINGS", ("lock_timeout = '20ms'",))
    with transaction(patient, "LOCK TABLE pggit.alert_delivery_queue IN ACCESS EXCLUSIVE MODE"):
        found = {finding.name: finding for finding in findings(patient)}
    assert "not examined" in found["leases"].detail
    assert found["leases"].severity is Severity.WARNING
    assert found["secrets"].severity is Severity.OK
