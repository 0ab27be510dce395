"""The doctor's findings about the queue, its lanes and webhooks, and its history, each provoked and
fixed.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from tests.support.doctor import assert_found_and_fixed, findings, insert, register, run, wrong
from tests.support.engine import drop_checks
from tests.support.postgres import Database
from webhookd.admin.doctor import queue
from webhookd.admin.doctor.findings import Severity
from webhookd.config.options import Config
from webhookd.core.signing import format_secret
from webhookd.postgres import session
from webhookd.postgres.retention import Keep, Retention


def test_deliveries_for_a_webhook_that_is_not_registered(patient: Database) -> None:
    insert(patient, 7)
    insert(patient, 9)
    (finding,) = wrong(patient)
    assert (finding.name, finding.severity) == ("waiting", Severity.WARNING)
    assert "webhooks 7, 9" in finding.detail
    run(replace(finding, run=(finding.run or "").replace("URL", "https://receiver.example/")))
    (finding,) = wrong(patient)
    assert "webhook 9: not registered" in finding.detail


def test_deliveries_for_a_paused_webhook_are_a_note(patient: Database) -> None:
    register(patient, enabled=False)
    insert(patient)
    (note,) = (finding for finding in findings(patient) if finding.name == "waiting")
    assert note.severity is Severity.NOTE
    run(note)
    assert [finding for finding in findings(patient) if finding.severity is Severity.NOTE] == []


def test_deliveries_for_a_webhook_that_answered_410(patient: Database) -> None:
    register(patient, enabled=False, disabled_reason="410 Gone")
    insert(patient)
    (note,) = (finding for finding in findings(patient) if finding.name == "waiting")
    assert "410 Gone" in note.detail and "paused" not in note.detail
    run(note)
    assert [finding for finding in findings(patient) if finding.severity is Severity.NOTE] == []


def test_deliveries_for_an_id_that_cannot_be_registered(patient: Database) -> None:
    insert(patient, 0)
    assert_found_and_fixed(patient, "waiting", "webhook 0", "only ids from 1")


def test_circuits_that_are_open(patient: Database) -> None:
    patient.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) SELECT n, 'https://a.example' FROM "
        "generate_series(1, 8) n"
    )
    patient.execute(
        "UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', consecutive_failures = "
        "5, total_deliveries = 5,"
        " circuit_until = now() + interval '50 s', last_success_at = CASE WHEN webhook_id = 3 "
        "THEN now() - interval '90 s' END,"
        " health_status = 'unavailable' WHERE webhook_id IN (3, 4)"
    )
    # Past its time: the next delivery goes.
    patient.execute(
        "UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', circuit_until = now() "
        "WHERE webhook_id = 5"
    )
    assert_found_and_fixed(
        patient,
        "circuits",
        "circuit of webhooks 4, 3",
        "4 never succeeded",
        "3 last succeeded 9",
        "test 4",
    )
    patient.execute(
        "UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', circuit_until = now() + "
        "interval '9 s'"
    )
    (many,) = wrong(patient)
    assert "and 3 more" in many.detail


@pytest.mark.parametrize("blocked_by", ["NULL", "'paused'"])
def test_a_lane_that_no_worker_will_look_at(patient: Database, blocked_by: str) -> None:
    register(patient)
    insert(patient, due="now() - interval '2 minutes'", change="routed = true")
    patient.execute(f"UPDATE pggit.webhook_health_metrics SET blocked_by = {blocked_by}")
    assert_found_and_fixed(patient, "waiting", "webhook 1", "lost its timer")


@pytest.mark.parametrize(
    ("lane", "overdue"),
    [
        ("runnable_at = now()", True),
        ("runnable_at = now() + interval '1 minute', blocked_by = 'circuit'", False),
        ("runnable_at = now() - interval '1 hour', blocked_by = 'rate'", True),
    ],
)
def test_deliveries_that_have_been_due_for_long(
    patient: Database, lane: str, overdue: bool
) -> None:
    register(patient)
    insert(patient, due="now() - interval '10 minutes'")
    patient.execute(f"UPDATE pggit.webhook_health_metrics SET {lane}")
    found = wrong(patient)
    assert [(finding.name, finding.severity) for finding in found] == [
        ("waiting", Severity.ERROR)
    ] * overdue
    assert not overdue or "for up to 60" in found[0].detail


def test_leases_that_expired(patient: Database) -> None:
    register(patient)
    patient.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 1")
    insert(
        patient,
        change="delivery_status = 'sending', routed = true, lease_token = 4, lease_until = now() "
        "- interval '2 min'",
    )
    (expired,) = wrong(patient)
    assert expired.name == "leases"
    assert "expired over a minute ago" in expired.detail
    run(expired)
    # The row's counter is the sweep's business; without workers, the next finding's.
    assert_found_and_fixed(patient, "lanes", "webhook 1")


def test_a_claim_without_a_lease(patient: Database) -> None:
    register(patient)
    patient.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 1")
    insert(patient, change="delivery_status = 'sending', routed = true")
    (unleased,) = wrong(patient)
    assert (unleased.name, unleased.severity) == ("leases", Severity.ERROR)
    run(unleased)
    assert patient.execute("SELECT delivery_status, routed FROM pggit.alert_delivery_queue") == [
        ("pending", False)
    ]


def test_a_delivery_that_kills_workers(patient: Database) -> None:
    register(patient)
    insert(patient, change="leases_lost = 4, routed = true")
    assert_found_and_fixed(patient, "quarantine", "lost 4 leases")


def test_a_counter_that_lies(patient: Database) -> None:
    register(patient)
    patient.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 50")
    assert_found_and_fixed(patient, "lanes", "webhook 1")


def test_a_counter_that_was_only_moving(patient: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    register(patient)
    patient.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 50")
    settle = "UPDATE pggit.webhook_health_metrics SET in_flight = 0"
    monkeypatch.setattr("webhookd.admin.doctor.queue.time.sleep", lambda _: patient.execute(settle))
    assert wrong(patient) == []


@pytest.mark.parametrize(
    "change",
    [
        "delivery_status = 'delivered', attempts = 1",
        "delivery_status = 'failed', attempts = 1, lease_until = now()",
    ],
)
def test_a_finished_row_that_does_not_look_like_one(patient: Database, change: str) -> None:
    insert(patient, change=change)
    assert_found_and_fixed(patient, "rows", "1 of the newest deliveries")


def test_an_attempt_that_was_recorded_twice(patient: Database) -> None:
    once = (
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)"
        " VALUES (1, 1, 'retrying', '{\"attempt\": 1}'), (1, 1, 'failed', '{\"attempt\": 2}'), "
        "(2, 1, 'failed', '{}')"
    )
    patient.execute(once)
    assert wrong(patient) == []
    patient.execute(once)
    (finding,) = wrong(patient)
    assert (finding.name, finding.run and "delivery show 1" in finding.run) == ("attempts", True)
    assert (
        finding.detail.startswith("2 of the newest attempts")
        and "attempt 1 of delivery 1" in finding.detail
    )


def test_a_foreign_key_without_an_index_stops_retention(patient: Database) -> None:
    patient.execute(
        'CREATE TABLE public.invoice ("Delivery" bigint REFERENCES pggit.alert_delivery_queue)'
    )
    assert wrong(patient, keep_delivered=0.0, keep_failed=0.0) == []
    assert_found_and_fixed(
        patient, "retention", "invoice_Delivery_fkey of public.invoice has no index"
    )
    (kept,) = (finding for finding in findings(patient) if finding.name == "retention")
    assert (kept.severity, "keeps what it refers to" in kept.detail) == (Severity.NOTE, True)
    patient.execute("DROP TABLE public.invoice")


@pytest.mark.parametrize("table", ["alert_delivery_queue", "alert_delivery_log"])
def test_retention_that_does_not_keep_up(patient: Database, table: str) -> None:
    late = (
        "UPDATE pggit.retention SET turned_at = now() - interval '8 days', "
        "lap_started_at = turned_at WHERE table_name = %s"
    )
    patient.execute(late, [table])
    patient.execute("UPDATE pggit.retention SET lap_started_at = turned_at")
    (finding,) = wrong(patient)
    assert finding.name == "retention"
    assert f"old rows of pggit.{table} stay" in finding.detail
    assert (finding.run or "").startswith("webhookd --dsn")
    assert wrong(patient, keep_delivered=0.0, keep_failed=0.0, keep_log=0.0) == []
    with session.connect(patient.dsn, application_name="webhookd/worker-1/test") as connection:
        # What the service does.
        Retention(Keep.of(Config()), removed=lambda table, rows: None).turn(
            lambda: nullcontext(connection)
        )
    assert wrong(patient) == []


@pytest.mark.parametrize(
    ("url", "options", "run"),
    [
        ("http://receiver.example/", {"allow_http": True}, "webhookd doctor --allow-http --dsn"),
        (
            "https://10.1.2.3/",
            {"allow_network": ("10.0.0.0/8",)},
            "webhookd doctor --allow-network 10.1.2.3 --dsn",
        ),
        ("https://user:password@receiver.example/", None, "webhookd webhook pause 1 --dsn"),
    ],
)
def test_a_url_that_cannot_be_delivered_to(
    patient: Database, url: str, options: dict[str, Any] | None, run: str
) -> None:
    register(patient, url)
    (finding,) = wrong(patient)
    assert (finding.name, finding.severity) == ("targets", Severity.WARNING)
    assert (finding.run or "").startswith(run)
    assert "password" not in finding.detail
    assert options is None or wrong(patient, **options) == []


def test_a_port_that_is_not_allowed(patient: Database) -> None:
    register(patient, "http://receiver.example:9000/")
    (finding,) = wrong(patient, allow_http=True)
    # The usual ports besides: --allow-port replaces them, and would hold the other webhooks.
    usual = "--allow-port 80 --allow-port 443 --allow-port 8080"
    assert (finding.run or "").startswith(f"webhookd doctor {usual} --allow-port 9000 --dsn")
    assert wrong(patient, allow_http=True, allow_port=(9000,)) == []


@pytest.mark.parametrize(
    ("url", "fleet", "options", "run"),
    [
        (
            "http://receiver.example/",
            "http is not allowed, only https; --allow-http permits it",
            {},
            "webhookd --allow-http --dsn",
        ),
        # The doctor was given what the fleet lacks: the fleet's own verdict counts.
        (
            "http://receiver.example/",
            "http is not allowed, only https; --allow-http permits it",
            {"allow_http": True},
            "webhookd --allow-http --dsn",
        ),
        (
            "https://10.1.2.3/",
            "the address 10.1.2.3 is private; --allow-network permits such targets",
            {},
            "webhookd --allow-network 10.1.2.3 --dsn",
        ),
        (
            "http://receiver.example:9000/",
            "the port 9000 is not allowed for http; --allow-port permits it",
            {"allow_port": (80, 443)},
            "webhookd --allow-port 9000 --dsn",
        ),
        (
            "http://receiver.example:9000/",
            "the port 9000 is not allowed for http; --allow-port permits it",
            {},
            "webhookd --allow-port 80 --allow-port 443 --allow-port 8080 --allow-port 9000 --dsn",
        ),
        (
            "receiver",
            "the URL must start with https://",
            {},
            "webhookd webhook pause 1 --dsn",
        ),
    ],
)
def test_a_webhook_that_workers_hold(
    patient: Database, url: str, fleet: str, options: dict[str, Any], run: str
) -> None:
    register(patient, url)
    patient.execute(
        "UPDATE pggit.webhook_health_metrics SET blocked_by = 'configuration', runnable_at = NULL,"
        " blocked_reason = %s",
        [fleet],
    )
    (finding,) = wrong(patient, **options)
    assert (finding.name, finding.severity) == ("targets", Severity.ERROR)
    assert f"webhook 1 is held, nothing is sent there: {fleet}" in finding.detail
    assert (finding.run or "").startswith(run)


def test_a_secret_that_cannot_sign(patient: Database) -> None:
    register(patient, secret=format_secret(b"k" * 32))
    assert wrong(patient) == []
    drop_checks(patient)
    patient.execute("UPDATE pggit.webhooks SET secret = 'whsec_tooshort'")
    assert_found_and_fixed(patient, "secrets", "webhook 1")


def test_headers_that_cannot_be_sent(patient: Database) -> None:
    register(patient, headers='{"x-team": "billing", "Content-Type": "text/plain"}')
    assert wrong(patient) == []
    patient.execute("""UPDATE pggit.webhooks SET headers = '{"Webhook_Id": "hunter2"}'""")
    finding = assert_found_and_fixed(patient, "headers", "webhook 1", "'Webhook_Id'")
    assert finding.severity is Severity.ERROR
    assert "hunter2" not in finding.detail


def test_more_webhooks_than_are_examined(
    patient: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = format_secret(b"k" * 32)
    for webhook_id in (1, 2, 3):
        register(patient, webhook_id=webhook_id, secret=secret, headers='{"x-a": "1"}')
    monkeypatch.setattr(queue, "MOST_WEBHOOKS", 2)
    [note] = [found for found in findings(patient) if "only the newest 2 " in found.detail]
    assert note.name == "targets"
    monkeypatch.setattr(queue, "MOST_WEBHOOKS", 3)
    assert [finding for finding in findings(patient) if "only the newest" in finding.detail] == []


def test_a_thousand_faults_are_a_screen(patient: Database) -> None:
    insert(patient, change="leases_lost = 4, routed = true")
    patient.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) SELECT n, 'https://a.example' FROM "
        "generate_series(1, 300) n"
    )
    patient.execute(
        "SET session_replication_role = replica; INSERT INTO pggit.alert_delivery_queue"
        " (webhook_id, message_body, leases_lost, routed) SELECT n, '{}', 3, true FROM "
        "generate_series(2, 60) n"
    )
    found = wrong(patient)
    assert {finding.name for finding in found} == {"quarantine"}
    assert len(found) == 11
    assert "50 more" in found[-1].detail
