"""The command line as a user meets it: real processes, real exit codes, one line a mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import (
    LOOPBACK,
    Daemon,
    answer_ok,
    register,
    statuses,
    wait_until_delivered,
)
from tests.support.postgres import Database, Server
from tests.support.receivers import Receiver
from tests.support.waiting import eventually


def webhookd(
    *arguments: str,
    dsn: str | None = None,
    env: dict[str, str] | None = None,
    stdin: str | None = None,
) -> "subprocess.CompletedProcess[str]":
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WEBHOOKD_", "DATABASE_URL"))
    }
    if dsn is not None:
        clean["DATABASE_URL"] = dsn
    return subprocess.run(
        [sys.executable, "-m", "webhookd", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=clean | (env or {}),
        input=stdin or "",
    )


def assert_refused(done: "subprocess.CompletedProcess[str]", *words: str, code: int = 2) -> None:
    assert done.returncode == code, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("webhookd: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "abc"], ["--workers", "'abc'", "1 to 256"]),
        (["--workers", "0"], ["--workers", "1 to 256"]),
        (["--timeout", "-1"], ["--timeout", "-1"]),
        (["--allow-network", "10.0.0.1/8"], ["--allow-network", "10.0.0.1/8"]),
        (["--log-format", "xml"], ["--log-format", "xml", "json"]),
        (["--dsn", "=nonsense="], ["--dsn"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["webhook", "frob"], ["frob"]),
        (["delivery", "list", "--status", "lost"], ["--status", "lost", "pending"]),
        (["adopt"], ["--discard-pending", "--continue"]),
        (["delivery", "retry"], ["--failed"]),
        (["listen", "--secret", "abc"], ["--secret"]),
    ],
)
def test_a_bad_value_is_one_line_that_names_it_and_what_is_allowed(
    arguments: list[str], words: list[str]
) -> None:
    assert_refused(webhookd(*arguments, dsn="host=/nowhere"), *words)


def test_under_a_service_manager_a_missing_dsn_is_refused() -> None:
    for variable in ("INVOCATION_ID", "NOTIFY_SOCKET", "SUPERVISOR_ENABLED"):
        assert_refused(webhookd(env={variable: "1"}), "DATABASE_URL", "--embedded")


def test_a_database_without_the_schema_is_refused_and_migrate_helps(
    empty_database: Database,
) -> None:
    assert_refused(webhookd("--metrics-port", "0", dsn=empty_database.dsn), "webhookd migrate")
    assert_refused(webhookd("webhook", "list", dsn=empty_database.dsn), "webhookd migrate")
    first, second = (webhookd("migrate", dsn=empty_database.dsn) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert "0001_create_schema" in first.stdout
    assert "up to date" in second.stdout


def test_a_database_in_another_encoding_is_refused_by_migrate_and_by_the_fleet(
    server: Server,
) -> None:
    database = server.create(encoding="SQL_ASCII")
    for arguments in (["migrate"], ["--metrics-port", "0"]):
        assert_refused(
            webhookd(*arguments, dsn=database.dsn), "SQL_ASCII", "createdb -E UTF8 -T template0"
        )
    server.drop(database)


def test_an_unreachable_database_is_one_line_and_exit_1() -> None:
    assert_refused(webhookd("status", dsn="host=/nonexistent-directory"), code=1)


def test_every_option_is_shown_with_its_source_and_secrets_hidden(tmp_path: Path) -> None:
    file = tmp_path / "webhookd.toml"
    file.write_text("retry_base = 2.5\nthreads = 7\n")
    done = webhookd(
        "--print-config", "--config", str(file), "--workers", "2",
        env={"WEBHOOKD_THREADS": "9", "DATABASE_URL": "postgresql://u:hunter2@h/db"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "2" in rows["--workers"] and "command line" in rows["--workers"]
    assert "9" in rows["--threads"] and "WEBHOOKD_THREADS" in rows["--threads"]
    assert "2.5" in rows["--retry-base"] and "webhookd.toml" in rows["--retry-base"]
    assert "default" in rows["--timeout"]
    assert "hunter2" not in done.stdout


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://example.com/", "--allow-http"),
        ("https://127.0.0.1/", "--allow-network"),
        ("https://user:pw@example.com/", "credentials"),
        ("ftp://example.com/", "ftp"),
        ("nonsense", "URL"),
    ],
)
def test_webhook_add_refuses_what_could_not_be_delivered(
    database: Database, url: str, word: str
) -> None:
    assert_refused(webhookd("webhook", "add", url, dsn=database.dsn), word)
    assert database.execute("SELECT count(*)::int FROM pggit.webhooks") == [(0,)]


def test_a_webhook_is_added_shown_paused_resumed_rotated_and_removed(database: Database) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        done = webhookd("webhook", *arguments, dsn=database.dsn)
        assert done.returncode == code, done.stderr
        return done.stdout

    added = run("add", "https://1.1.1.1/hook?token=1", "--rate", "3", "--header", "X-Tenant: blue")
    assert "webhook 1 registered" in added
    secret = added.split("secret ")[1].strip()
    assert database.execute(
        "SELECT secret, rate_limit_per_second, headers FROM pggit.webhooks"
    ) == [(secret, 3.0, {"x-tenant": "blue"})]
    assert "webhook 7 registered" in run("add", "https://1.1.1.1/", "--id", "7", "--no-secret")
    assert_refused(
        webhookd("webhook", "add", "https://1.1.1.1/", "--id", "7", dsn=database.dsn), "7", "taken"
    )
    assert "webhook 8 registered" in run("add", "https://1.1.1.1/")
    shown = run("show", "1")
    assert secret not in shown and '{"x-tenant": "blue"}' in shown
    assert secret in run("show", "1", "--reveal-secret")
    run("pause", "1")
    assert database.execute(
        "SELECT enabled, disabled_reason FROM pggit.webhooks WHERE webhook_id = 1"
    ) == [(False, "paused by operator")]
    run("resume", "1")
    assert database.execute(
        "SELECT enabled, disabled_reason FROM pggit.webhooks WHERE webhook_id = 1"
    ) == [(True, None)]
    rotated = run("rotate-secret", "1").split("secret ")[1].strip()
    assert rotated != secret
    assert database.execute("SELECT secret FROM pggit.webhooks WHERE webhook_id = 1") == [
        (rotated,)
    ]
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
    )
    assert_refused(webhookd("webhook", "remove", "1", dsn=database.dsn), "1 deliveries", "--force")
    run("remove", "1", "--force")
    assert [row["webhook_id"] for row in json.loads(run("list", "--json"))] == [7, 8]
    # Rows still name webhook 1, so its number is never given to another.
    assert statuses(database) == {"pending": 1}


def test_deliveries_are_listed_shown_with_their_attempts_and_sent_again(database: Database) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn):
        register(database, receiver, count=1)
        database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (2000, "
            "'{\"a\": 1}')"
        )
        wait_until_delivered(database, 1)
        listed = json.loads(
            webhookd("delivery", "list", "--json", "--status", "delivered", dsn=database.dsn).stdout
        )
        number = str(listed[0]["delivery_id"])
        shown = json.loads(webhookd("delivery", "show", number, "--json", dsn=database.dsn).stdout)
        assert shown["message_body"] == {"a": 1}
        assert [(one["event_type"], one["http_status"]) for one in shown["log"]] == [
            ("delivered", 200)
        ]
        assert (
            "will be sent again" in webhookd("delivery", "retry", number, dsn=database.dsn).stdout
        )
        assert receiver.wait_for_requests(2)
    assert_refused(webhookd("delivery", "show", "999", dsn=database.dsn), "999", code=1)


def test_status_tells_of_a_fleet_that_runs_and_of_one_that_does_not(database: Database) -> None:
    down = webhookd("status", "--json", dsn=database.dsn)
    assert down.returncode == 1
    verdicts = {row["name"]: row["verdict"] for row in json.loads(down.stdout)["baselines"]}
    assert verdicts["worker health, longest silence"] == "critical"
    with Receiver(answer_ok) as receiver, Daemon(database.dsn):
        register(database, receiver, count=1)
        eventually(lambda: database.execute("SELECT count(*)::int FROM pggit.workers") == [(3,)])
        up = webhookd("status", dsn=database.dsn)
        assert up.returncode == 0, up.stdout
        assert "worker-3" in up.stdout


def test_a_test_request_goes_to_the_receiver_and_is_verified_by_listen(database: Database) -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    command = [sys.executable, "-m", "webhookd", "listen", "--port", "0", "--secret", secret]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        url = listener.stdout.readline().split()[-1]
        add = webhookd(
            "webhook", "add", url, "--id", "1", "--secret", secret, *LOOPBACK, dsn=database.dsn
        )
        assert add.returncode == 0, add.stderr
        sent = webhookd("webhook", "test", "1", *LOOPBACK, dsn=database.dsn)
        assert sent.returncode == 0, sent.stderr
        assert "HTTP 200" in sent.stdout
        assert "signature valid" in listener.stdout.readline()
        assert "webhookd.test" in listener.stdout.readline()
        database.execute(
            "UPDATE pggit.webhooks SET secret = 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD'"
        )
        webhookd("webhook", "test", "1", *LOOPBACK, dsn=database.dsn)
        assert "signature invalid" in listener.stdout.readline()
        listener.terminate()
