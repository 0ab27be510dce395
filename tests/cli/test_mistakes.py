"""Mistakes a user makes at the command line, each answered by one line; and what SIGHUP makes of a
changed file.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_commands import assert_refused, webhookd
from tests.support.engine import drop_checks
from tests.support.postgres import Database, Server
from tests.support.waiting import eventually

NO_SUCH_SERVER = "host=/nonexistent-directory"


@pytest.mark.parametrize("group", ["webhook", "delivery"])
def test_a_group_without_a_command_is_one_line_that_points_to_its_help(group: str) -> None:
    assert_refused(webhookd(group), f"webhookd {group} --help")


def test_a_command_is_not_taken_for_the_embedded_databases_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "webhookd", "--embedded", "status"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert_refused(done, "--embedded", "./status")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--dsn", "--listen-dsn"])
def test_the_daemon_refuses_a_dsn_that_libpq_cannot_parse_before_any_worker_starts(
    option: str,
) -> None:
    done = webhookd(
        option, "host=h sslmoed=require password=hunter2", "--metrics-port", "0", dsn=NO_SUCH_SERVER
    )
    assert_refused(done, option)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--header", "no colon"], ["--header", "NAME: VALUE"]),
        (["--header", "Webhook-Id: x"], ["--header", "Webhook-Id"]),
        (["--header", "Host: x"], ["--header", "Host"]),
        (["--header", "Content_Length: x"], ["--header", "Content_Length"]),
        (["--header", "a: 1", "--header", "A: 2"], ["--header", "twice"]),
        (["--header", "a: 1\r\nb: 2"], ["--header", "not allowed"]),
        (["--secret", ""], ["--secret"]),
        (["--secret", "whsec_c2hvcnQ="], ["--secret", "24 to 64"]),
        (["--retry-base", "30000"], ["--retry-base", "28800"]),
        (["--id", "0"], ["--id", "0"]),
        (["--rate", "1e-14"], ["--rate", "1e-14", "one in 30 days"]),
        (["--retry-max", "1e13"], ["--retry-max", "1e13", "2592000 s"]),
        (["--circuit-open", "31d"], ["--circuit-open", "31d", "2592000 s"]),
        (["--timeout", "nan"], ["--timeout", "nan", "600 s"]),
    ],
)
def test_webhook_add_refuses_settings_that_no_delivery_could_use(
    database: Database, arguments: list[str], words: list[str]
) -> None:
    target = ("https://127.0.0.1:1/", "--allow-network", "127.0.0.0/8")
    assert_refused(webhookd("webhook", "add", *target, *arguments, dsn=database.dsn), *words)
    assert database.execute("SELECT count(*)::int FROM pggit.webhooks") == [(0,)]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["ftp://a.example/"], "only https"),
        (["https://a.example/", "--header", "host: x"], "set by webhookd"),
        (["https://a.example/", "--header", "Trailers: x"], "set by webhookd"),
        (["https://a.example/", "--secret", "x"], "whsec_"),
        (["https://a.example/", "--retry-base", "10", "--retry-max", "1"], "must not exceed"),
    ],
)
def test_what_cannot_be_registered_is_refused_where_no_database_answers(
    options: list[str], fault: str
) -> None:
    refused = webhookd("webhook", "add", *options, "--dsn", "host=/nonexistent")
    assert refused.returncode == 2 and fault in refused.stderr, refused.stderr


def test_a_limit_of_a_webhook_may_be_larger_than_the_services(database: Database) -> None:
    added = webhookd(
        *("webhook", "add", "https://1.1.1.1/", "--max-in-flight", "2000000"),
        *("--dsn", database.dsn),
    )
    assert added.returncode == 0, added.stderr


def test_a_secret_that_was_written_wrongly_with_sql_is_one_line_and_nothing_is_sent(
    database: Database,
) -> None:
    drop_checks(database)  # a row from before them
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, secret) VALUES (5, 'https://127.0.0.1:1/', "
        "'hunter2')"
    )
    done = webhookd("webhook", "test", "5", "--allow-network", "127.0.0.0/8", dsn=database.dsn)
    assert_refused(done, "webhook 5", "rotate-secret")
    assert "hunter2" not in done.stderr


def test_headers_that_cannot_be_sent_are_one_line_and_nothing_is_sent(database: Database) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, headers)"
        """ VALUES (5, 'https://127.0.0.1:1/', '{"Webhook-Id": "forged"}')"""
    )
    done = webhookd("webhook", "test", "5", "--allow-network", "127.0.0.0/8", dsn=database.dsn)
    assert_refused(done, "nothing was sent to webhook 5", "the header 'Webhook-Id'")
    assert "forged" not in done.stderr
    shown = webhookd("webhook", "show", "5", "--json", dsn=database.dsn)
    assert "never sent: the header 'Webhook-Id'" in json.loads(shown.stdout)["headers"]


def test_a_long_list_of_webhooks_is_cut_off_and_says_so(database: Database) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) SELECT n, 'https://a.test/' FROM "
        "generate_series(1, 1001) n"
    )
    cut = webhookd("webhook", "list", dsn=database.dsn)
    assert (cut.returncode, len(cut.stdout.splitlines())) == (0, 1001)  # with the heading
    assert "more than 1000: give --limit" in cut.stderr
    assert webhookd("webhook", "list", "--limit", "1001", dsn=database.dsn).stderr == ""
    assert len(json.loads(webhookd("webhook", "list", "--json", dsn=database.dsn).stdout)) == 1001


def test_a_target_that_is_not_allowed_is_one_line_and_says_what_allows_it(
    database: Database,
) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (5, 'https://127.0.0.1:1/'), (6, "
        "'http://example.org/')"
    )
    assert_refused(
        webhookd("webhook", "test", "5", dsn=database.dsn),
        "nothing was sent",
        "loopback",
        "--allow-network",
    )
    assert_refused(
        webhookd("webhook", "test", "6", dsn=database.dsn), "nothing was sent", "--allow-http"
    )


def test_a_name_that_resolves_to_what_is_not_allowed_is_registered_with_a_warning(
    database: Database,
) -> None:
    done = webhookd("webhook", "add", "https://127.1:1/", dsn=database.dsn)
    assert done.returncode == 0
    assert "warning: 127.1: the address" in done.stderr
    assert "--allow-network" in done.stderr


def test_localhost_is_refused_unless_its_network_is_allowed(database: Database) -> None:
    for host in ("localhost", "LOCALHOST.", "api.localhost"):
        done = webhookd("webhook", "add", f"https://{host}:1/", dsn=database.dsn)
        assert_refused(done, "loopback", "--allow-network")
    assert database.execute("SELECT count(*)::int FROM pggit.webhooks") == [(0,)]
    allowed = webhookd(
        "webhook",
        "add",
        "https://localhost:1/",
        "--allow-network",
        "127.0.0.0/8,::1",
        dsn=database.dsn,
    )
    assert (allowed.returncode, allowed.stderr) == (0, "")


def test_sighup_takes_a_changed_dsn_and_refuses_a_broken_one(
    database: Database, server: Server, tmp_path: Path
) -> None:
    def registered(where: Database) -> bool:
        return where.execute("SELECT count(*)::int FROM pggit.workers") == [(1,)]

    other = server.create_migrated()
    file, log_file = tmp_path / "webhookd.toml", tmp_path / "log"
    file.write_text(f'dsn = """{database.dsn}"""\nworkers = 1\nmetrics_port = 0\n')
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WEBHOOKD_", "DATABASE_URL"))
    }
    with log_file.open("wb") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "webhookd", "--config", str(file)], stderr=log, env=clean
        )
    try:
        eventually(lambda: registered(database))
        good = file.read_text()
        file.write_text('dsn = "host=h sslmoed=require"\nworkers = 1\nmetrics_port = 0\n')
        daemon.send_signal(signal.SIGHUP)
        eventually(
            lambda: "reload refused" in log_file.read_text(), what="a refused reload in the log"
        )
        assert registered(database), "a refused reload changes nothing"
        file.write_text(good.replace(database.name, other.name))
        daemon.send_signal(signal.SIGHUP)
        eventually(lambda: registered(other), what="a worker on the other database")
        daemon.terminate()
        assert daemon.wait(60) == 0, log_file.read_text()
    finally:
        daemon.kill()
        daemon.wait()
        server.drop(other)
