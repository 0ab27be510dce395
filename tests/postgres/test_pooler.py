"""Through a transaction-pooling pgbouncer everything works, and nothing of it is left in the
sessions that others get next.
"""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.support.daemon import (
    Daemon,
    arrivals,
    insert,
    register,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.pgbouncer import pgbouncer, through
from tests.support.postgres import Database
from tests.support.receivers import Receiver, answering
from tests.support.waiting import eventually
from webhookd.postgres import session

Application = psycopg.Connection[tuple[Any, ...]]

# What a session carries from one transaction to the next. (pgbouncer itself carries some of a
# client's settings along.)
SESSION = """
SELECT name || ' = ' || setting FROM pg_catalog.pg_settings
 WHERE source = 'session' AND name NOT IN
       ('application_name', 'client_encoding', 'DateStyle', 'TimeZone')
UNION ALL SELECT name || ' = ' || setting FROM pg_catalog.pg_settings
           WHERE (name, setting) IN (('TimeZone', 'UTC'), ('DateStyle', 'ISO, MDY'))
               OR setting LIKE 'webhookd/%'
UNION ALL SELECT 'prepared: ' || statement FROM pg_catalog.pg_prepared_statements
UNION ALL SELECT 'listens: ' || c FROM pg_catalog.pg_listening_channels() AS c
UNION ALL SELECT 'locks: ' || objid FROM pg_catalog.pg_locks
           WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
"""


@pytest.fixture
def dsn(database: Database) -> Iterator[str]:
    """The test's database behind a pooler with a single session, which all clients get in turn."""
    name = database.name
    database.execute(
        f"ALTER DATABASE {name} SET TimeZone = 'Asia/Tokyo'; ALTER DATABASE {name} SET DateStyle "
        "= 'SQL, DMY'"
    )
    with pgbouncer(database, "transaction", sessions=1) as folder:
        yield through(database, folder)


@pytest.fixture
def application(dsn: str) -> Iterator[Application]:
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection:
        yield connection


def left_behind(application: Application) -> list[object]:
    return [row[0] for row in application.execute(SESSION)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "webhookd", *arguments], capture_output=True, text=True, check=False
    )


def test_a_transaction_has_webhookds_settings_and_leaves_none(
    dsn: str, application: Application
) -> None:
    with session.connect(dsn, application_name="test") as connection:
        assert connection.behind_pooler
        for _ in range(3):
            with session.transaction(connection, durable=False, lock_timeout_s=0.05) as cursor:
                names = (
                    "search_path",
                    "statement_timeout",
                    "lock_timeout",
                    "synchronous_commit",
                    "transaction_isolation",
                )
                shown = [cursor.execute(f"SHOW {name}".encode()).fetchall()[0][0] for name in names]
                assert shown == ["pg_catalog", "1min", "50ms", "off", "read committed"]
            assert left_behind(application) == []
            with (
                pytest.raises(psycopg.errors.DivisionByZero),
                session.transaction(connection) as cursor,
            ):
                cursor.execute("SELECT 1 / 0")
            assert left_behind(application) == []


def test_a_single_statement_has_webhookds_settings_and_leaves_none(
    dsn: str, application: Application
) -> None:
    with session.connect(dsn, application_name="test") as connection:
        for _ in range(3):
            assert connection.execute("SHOW search_path").fetchall() == [("pg_catalog",)]
            assert connection.execute("SELECT %s::int", [7]).fetchone() == (7,)
            with connection.transaction(), connection.transaction():
                assert connection.execute("SHOW enable_seqscan").fetchall() == [("off",)]
            with pytest.raises(psycopg.errors.DivisionByZero):
                connection.execute("SELECT 1 / 0")
            assert left_behind(application) == []


def test_a_direct_connection_has_its_settings_once_and_for_all(database: Database) -> None:
    with session.connect(database.dsn, application_name="test") as connection:
        assert not connection.behind_pooler
        assert connection.execute("SHOW search_path").fetchall() == [("pg_catalog",)]
        assert connection.cursor_factory is psycopg.Cursor


def test_workers_deliver_and_the_application_meets_nothing_of_theirs(
    database: Database, dsn: str, application: Application
) -> None:
    with Receiver(answering()) as receiver, Daemon(dsn) as daemon:
        register(database, receiver)
        eventually(lambda: daemon.log().count("LISTEN is deaf") == 3, what="said by each worker")
        for round_ in range(1, 6):
            insert(database, 100)
            wait_until_delivered(database, 100 * round_)
            assert left_behind(application) == []
        assert daemon.log().count("LISTEN is deaf") == 3, "said once"
        assert "unreachable" not in daemon.log()
        assert daemon.stop() == 0
        assert left_behind(application) == []
    assert set(arrivals(receiver).values()) == {1}


def test_listen_dsn_mends_it(database: Database, dsn: str) -> None:
    with Receiver(answering()) as receiver, Daemon(dsn, "--listen-dsn", database.dsn) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        insert(database, 100)
        wait_until_delivered(database, 100)
        assert "deaf" not in daemon.log()
        assert daemon.stop() == 0


def test_commands_work_and_leave_nothing(dsn: str, application: Application) -> None:
    insert = "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
    commands = (
        *(
            "webhook add https://example.com/hooks",
            "webhook pause 1",
            "webhook rotate-secret 1",
            "webhook list",
        ),
        *(
            "webhook show 1",
            "delivery list",
            "delivery show 1",
            "delivery explain 1",
            "adopt --continue",
        ),
    )
    for command in commands:
        application.execute(insert if command == "webhook pause 1" else "SELECT 1")
        done = run(*command.split(), "--dsn", dsn)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert left_behind(application) == []
    assert '"queue"' in run("status", "--json", "--dsn", dsn).stdout
    found = run("doctor", "--dsn", dsn)
    assert "--listen-dsn postgresql://" in found.stdout
    assert left_behind(application) == []


def test_migrate_says_that_it_needs_a_way_of_its_own(dsn: str, application: Application) -> None:
    done = run("migrate", "--dsn", dsn)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot go through a pooler" in done.stderr
    assert left_behind(application) == []
