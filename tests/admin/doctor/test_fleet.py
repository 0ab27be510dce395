"""The doctor's findings about the workers and their hosts, each provoked and fixed."""

import socket

from tests.support.doctor import (
    DEAD,
    ELSEWHERE,
    add_worker,
    assert_found_and_fixed,
    findings,
    insert,
    wrong,
)
from tests.support.postgres import Database
from webhookd.admin.doctor.findings import Severity


def test_no_worker_delivers(patient: Database) -> None:
    patient.execute("DELETE FROM pggit.workers")
    assert [finding.name for finding in findings(patient) if finding.severity is Severity.NOTE] == [
        "workers"
    ]
    patient.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, 'https://receiver.example/')"
    )
    insert(patient)
    (finding,) = wrong(patient)
    assert "no worker is alive and deliveries are due" in finding.detail


def test_a_worker_that_died(patient: Database) -> None:
    add_worker(patient, "worker-2", seen_s=DEAD)
    assert_found_and_fixed(patient, "workers", "worker-2", ELSEWHERE, "has been silent for 12")


def test_a_worker_that_is_silent(patient: Database) -> None:
    add_worker(patient, "worker-2", seen_s=-30)
    (finding,) = wrong(patient)
    assert (finding.name, finding.severity) == ("workers", Severity.WARNING)
    assert "worker-2" in finding.detail and "silent for 30 s" in finding.detail


def test_workers_of_another_release(patient: Database) -> None:
    add_worker(patient, "worker-2", version="0.0.1")
    (finding,) = wrong(patient)
    assert "worker-2 on another-host run webhookd 0.0.1" in finding.detail


def test_two_hosts_with_one_name_for_a_worker(patient: Database) -> None:
    add_worker(patient, "worker-1", "a-third-host")
    (finding,) = wrong(patient)
    assert "a-third-host and another-host both call a worker worker-1" in finding.detail
    assert "--node a-third-host" in (finding.run or "")


def test_a_worker_that_does_not_answer(patient: Database) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        add_worker(patient, "worker-1", socket.gethostname(), address=address)
        patient.execute(f"DELETE FROM pggit.workers WHERE host = '{ELSEWHERE}'")
        (finding,) = wrong(patient)
    assert finding.name == "endpoints"
    assert address in finding.detail


def test_workers_of_other_hosts_are_not_asked(patient: Database) -> None:
    add_worker(patient, "worker-2", address="192.0.2.1:8000")
    (note,) = (finding for finding in findings(patient) if finding.name == "endpoints")
    assert (note.severity, ELSEWHERE in note.detail) == (Severity.NOTE, True)


def test_a_port_that_is_taken(patient: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (finding,) = wrong(patient, metrics_port=port, workers=1)
        assert finding.name == "ports"
        assert f"port {port}" in finding.detail
    assert wrong(patient, metrics_port=port, workers=1) == []
    (finding,) = wrong(patient, metrics_port=port, workers=1, metrics_host="192.0.2.1")
    assert (finding.name, finding.severity) == ("ports", Severity.ERROR)
