"""The doctor on a test's database: what it finds, and whether the command that it prints helps."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.support.postgres import Database, Server
from webhookd import __version__
from webhookd.admin.doctor import examine
from webhookd.admin.doctor.commands import Commands
from webhookd.admin.doctor.findings import Finding
from webhookd.admin.doctor.installation import Installation, open_installation
from webhookd.cli.main import cli
from webhookd.config.options import Config
from webhookd.schema import migrate
from webhookd.schema.expected import expected_schema

SCHEMA = expected_schema(migrate.load())
ELSEWHERE = "another-host"
WORKER = (
    "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version, metrics_address, "
    "seen_at)"
    " VALUES (gen_random_uuid(), %s, %s, 1, %s, %s, now() + %s * interval '1 s')"
)
ALIVE, DEAD = 3600, -120  # seconds from now


def add_worker(
    database: Database,
    name: str = "worker-1",
    host: str = ELSEWHERE,
    *,
    version: str = __version__,
    address: str | None = None,
    seen_s: int = ALIVE,
) -> None:
    database.execute(WORKER, [name, host, version, address, seen_s])


@contextmanager
def installed(database: Database, **options: Any) -> Iterator[Installation]:
    """*database* as the doctor sees it with these options; commands are for its owner, whatever the
    DSN in force is.
    """
    config = Config(**{"dsn": database.dsn, "metrics_port": 0, **options})
    assert config.dsn is not None
    place = shlex.quote(database.dsn)
    with open_installation(config.dsn, config, Commands(place, f"--dsn {place}")) as installation:
        yield installation


def findings(database: Database, **options: Any) -> list[Finding]:
    with installed(database, **options) as installation:
        return list(examine(installation))


def wrong(database: Database, **options: Any) -> list[Finding]:
    return [finding for finding in findings(database, **options) if finding.severity.wrong]


def run(finding: Finding) -> None:
    """Run the command of a finding as it is printed: as psql takes -c, or as webhookd takes it."""
    assert finding.run is not None
    words = shlex.split(finding.run)
    if words[0] == "webhookd":
        cli.main(words[1:], standalone_mode=False)
        return
    assert (words[0], words[2]) == ("psql", "-c")
    with psycopg.connect(words[1], autocommit=True) as connection:
        for statement in words[3::2]:
            connection.execute(statement.encode())


def assert_found_and_fixed(database: Database, name: str, *words: str, **options: Any) -> Finding:
    """The doctor finds one thing wrong, says so in these *words*, and finds nothing once its
    command was run.
    """
    with installed(database, **options) as installation:
        (finding,) = (finding for finding in examine(installation) if finding.severity.wrong)
        assert finding.name == name
        for word in words:
            assert word in finding.detail
        run(finding)
        assert [finding for finding in examine(installation) if finding.severity.wrong] == []
    return finding


def fix_all(database: Database, name: str, **options: Any) -> str:
    """Run what the doctor prints until it finds nothing, and return what it said; every finding is
    of the check *name*.
    """
    said = ""
    for _ in range(10):
        found = wrong(database, **options)
        if not found:
            return said
        assert {finding.name for finding in found} == {name}
        for finding in found:
            said += finding.detail + "\n"
            if finding.run:
                run(finding)
    raise AssertionError(f"not fixed: {found}")


# What the installation is like


@contextmanager
def worker_role(server: Server, database: Database) -> Iterator[str]:
    """A role with the rights that README gives to workers."""
    role = server.create_role()
    database.execute(
        f"GRANT USAGE ON SCHEMA pggit TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL "
        f"TABLES IN SCHEMA pggit TO {role};"
        f"GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA pggit TO {role};"
        f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pggit TO {role}"
    )
    yield role
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def insert(
    database: Database, webhook_id: int = 1, *, due: str = "now()", change: str = ""
) -> None:
    """Insert a delivery and *change* it without any trigger."""
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at) "
        f"VALUES ({webhook_id}, '{{}}', {due})"
    )
    if change:
        database.execute(
            "SET session_replication_role = replica; UPDATE pggit.alert_delivery_queue SET "
            f"{change}"
        )


def register(database: Database, url: str = "https://receiver.example/", **columns: object) -> None:
    row = {"webhook_id": 1, "url": url, **columns}
    names, places = ", ".join(row), ", ".join(["%s"] * len(row))
    database.execute(f"INSERT INTO pggit.webhooks ({names}) VALUES ({places})", list(row.values()))
    database.execute("UPDATE pggit.webhook_health_metrics SET runnable_at = NULL")
