"""Commands judge by the options of the running workers, unless they are given their own."""

import json
from typing import Any

from tests.support.doctor import ALIVE, DEAD, add_worker, findings
from tests.support.postgres import Database
from webhookd.admin import database as admin_database
from webhookd.admin import fleet
from webhookd.admin.doctor import diagnose
from webhookd.admin.doctor.findings import Finding
from webhookd.config import load
from webhookd.config.delivery import DELIVERY_OPTIONS, delivery_options
from webhookd.config.options import Config


def start(database: Database, name: str, *, seen_s: int = ALIVE, **options: Any) -> None:
    add_worker(database, name, seen_s=seen_s)
    database.execute(
        "UPDATE pggit.workers SET options = %s, started_at = clock_timestamp()"
        " WHERE worker_id = %s",
        [json.dumps(delivery_options(Config(**options))), name],
    )


def in_force(database: Database, **given: object) -> Config:
    settings = load.load({"dsn": database.dsn, **given})
    with admin_database.connect(settings.config) as connection:
        return fleet.options_in_force(connection, settings).config


def test_the_options_of_the_two_sections_are_stored() -> None:
    assert {"allow_http", "allow_network", "timeout", "retry_max", "circuit_open"} <= set(
        DELIVERY_OPTIONS
    )
    assert not {"dsn", "threads", "keep_log", "log_level"} & set(DELIVERY_OPTIONS)


def test_the_newest_living_worker_decides_unless_the_command_is_told_otherwise(
    database: Database,
) -> None:
    assert not in_force(database).allow_http
    start(database, "old", timeout=7.0)
    start(database, "new", allow_http=True, allow_network=("10.0.0.0/8",), timeout=9.0)
    start(database, "dead", seen_s=DEAD, timeout=11.0)
    found = in_force(database)
    assert (found.allow_http, found.allow_network, found.timeout) == (True, ("10.0.0.0/8",), 9.0)
    found = in_force(database, timeout="3")
    assert (found.allow_http, found.timeout) == (True, 3.0)


def test_doctor_judges_urls_as_the_running_fleet_does(database: Database) -> None:
    def said() -> tuple[str, str]:
        [found] = [one for one in diagnose(load.load({"dsn": database.dsn})) if is_about_url(one)]
        return found.detail, found.run or ""

    def is_about_url(finding: Finding) -> bool:
        return finding.name == "targets"

    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, 'http://8.8.8.8:9000/')"
    )
    detail, command = said()  # no fleet: the doctor has to be told
    assert "would be held under the options in force here" in detail
    assert command.startswith("webhookd doctor --allow-http ")
    start(database, "strict")
    detail, command = said()
    assert "will be held by the running workers: http is not allowed" in detail
    assert command.startswith("webhookd --allow-http ")
    start(database, "http", allow_http=True, allow_port=(80,))
    detail, command = said()
    assert "will be held by the running workers: the port 9000 is not allowed" in detail
    assert command.startswith("webhookd --allow-port 9000 ") and "--allow-port 80" in command
    start(database, "right", allow_http=True, allow_port=(80, 9000))
    assert said() == ("", "")


def test_what_another_version_stored_is_left_out(database: Database) -> None:
    start(database, "other")
    database.execute(
        """UPDATE pggit.workers SET options = '{"timeout": "soon", "new": 1, "rate_limit": 3}'"""
    )
    found = in_force(database)
    assert (found.timeout, found.rate_limit) == (Config().timeout, 3.0)


def test_workers_that_disagree_are_a_warning_of_the_doctor(database: Database) -> None:
    def warnings() -> list[str]:
        return [one.detail for one in findings(database) if one.name == "options"]

    start(database, "worker-1", timeout=7.0)
    start(database, "worker-2", timeout=7.0)
    assert warnings() == [""]
    start(database, "worker-3", timeout=9.0)
    [said] = warnings()
    assert "--timeout: 9.0 at worker-3" in said and "7.0 at worker-1" in said and "\n" not in said
