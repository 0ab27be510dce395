"""The doctor from settings to findings, without a command line."""

from pathlib import Path

import pytest

from tests.support.postgres import Database
from webhookd.admin.doctor import OF_ANY_DATABASE, OF_THE_SCHEMA, diagnose
from webhookd.admin.doctor.findings import Severity
from webhookd.config.load import load
from webhookd.errors import UnusableError


def test_every_check_says_something_of_the_database_in_the_settings(patient: Database) -> None:
    settings = load({"dsn": patient.dsn, "metrics_port": "0"})
    found = list(diagnose(settings))
    assert {finding.name for finding in found} == {*OF_ANY_DATABASE, *OF_THE_SCHEMA}
    assert {finding.severity for finding in found} <= {Severity.OK, Severity.NOTE}


def test_a_database_that_cannot_be_reached_is_a_finding() -> None:
    [finding] = diagnose(load({"dsn": "host=/nonexistent-directory"}))
    assert (finding.name, finding.severity) == ("server", Severity.ERROR)
    assert "cannot be reached" in finding.detail


def test_without_a_database_there_is_nothing_to_diagnose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    settings = load({"embedded": str(tmp_path)})
    with pytest.raises(UnusableError, match="no database is named"):
        list(diagnose(settings))
