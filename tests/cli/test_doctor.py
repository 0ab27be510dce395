"""`webhookd doctor` as an operator meets it: a healthy fleet, one fault, the printed command in a
real shell, health again.
"""

import json
import os
import subprocess
import sys

from psycopg.conninfo import conninfo_to_dict

from tests.support.daemon import (
    LOOPBACK,
    Daemon,
    answer_ok,
    insert,
    register,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.postgres import Database, Server
from tests.support.receivers import Receiver
from webhookd.embedded.programs import package_binaries


def doctor(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WEBHOOKD_", "DATABASE_URL"))
    }
    return subprocess.run(
        [sys.executable, "-m", "webhookd", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean | environment,
        stdin=subprocess.DEVNULL,
    )


def test_a_healthy_fleet_then_a_fault_and_its_fix(database: Database) -> None:
    environment = {"DATABASE_URL": database.dsn}
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        insert(database, 200)
        wait_until_delivered(database, 200)

        healthy = doctor("--json", *LOOPBACK, **environment)
        report = json.loads(healthy.stdout)
        assert (healthy.returncode, report["wrong"]) == (0, 0)
        assert {finding["severity"] for finding in report["findings"]} == {"ok"}
        assert {"server", "workers", "endpoints", "lanes"} < {
            finding["name"] for finding in report["findings"]
        }

        database.execute("ALTER TABLE pggit.alert_delivery_queue DISABLE TRIGGER wake_after_insert")
        ill = doctor(*LOOPBACK, **environment)
        assert ill.returncode == 1
        lines = ill.stdout.splitlines()
        (at,) = (number for number, line in enumerate(lines) if line.startswith("error"))
        assert "wake_after_insert" in lines[at]
        indent, colon, command = lines[at + 1].partition("run: ")
        assert (indent.strip(), colon) == ("", "run: ")
        assert command.startswith('psql "$DATABASE_URL" -c ')
        path = f"{package_binaries()}:{os.environ['PATH']}"
        subprocess.run(
            ["/bin/sh", "-c", command],
            check=True,
            capture_output=True,
            env=environment | {"PATH": path},
        )
        assert doctor(*LOOPBACK, **environment).returncode == 0
        assert daemon.stop() == 0
        insert(database, 1)
        # Whoever pastes it must not end the backlog by refusing its targets.
        assert (
            "run: webhookd --allow-http --allow-network 127.0.0.0/8"
            in doctor(*LOOPBACK, **environment).stdout
        )


def test_a_database_that_is_away_is_one_line() -> None:
    away = doctor("--dsn", "host=/nonexistent-directory password=hush")
    assert (away.returncode, away.stderr) == (1, "")
    (line,) = away.stdout.splitlines()
    assert line.startswith("error")
    assert "cannot be reached" in line
    report = json.loads(doctor("--json", "--dsn", "host=/nonexistent-directory").stdout)
    assert (report["wrong"], report["findings"][0]["name"]) == (1, "server")


def test_arguments_that_cannot_be_used_are_refused() -> None:
    for arguments in (["--no-such-option"], ["--dsn", "=nonsense="]):
        refused = doctor(*arguments)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert len(refused.stderr.splitlines()) == 1


def test_the_embedded_postgresql_is_for_trying_out(embedded_server: Server) -> None:
    """That of the tests is one, and its first database has no schema. No password is printed with
    the commands.
    """
    folder = str(embedded_server.process.directory)
    embedded = doctor("--embedded", folder)
    assert embedded.returncode == 1
    assert "warning  embedded" in embedded.stdout
    assert f"run: webhookd migrate --embedded {folder}" in embedded.stdout
    dsn = f"{embedded_server.process.dsn} password=hush"
    found = doctor("--dsn", dsn).stdout
    assert "hush" not in found
    assert f"host={conninfo_to_dict(dsn)['host']}" in found
