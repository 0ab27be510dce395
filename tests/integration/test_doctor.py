"""Every fault that the doctor knows, provoked for real: it is found, and the command that is printed mends it."""

import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.postgres import Database, Server
from webhookd import __version__, migrate, store
from webhookd.cli.main import cli
from webhookd.config import Config
from webhookd.core.signing import format_secret
from webhookd.doctor import examine, queue, server
from webhookd.doctor.commands import Commands
from webhookd.doctor.expected import expected_schema
from webhookd.doctor.findings import Finding, Severity
from webhookd.doctor.installation import Installation, open_installation
from webhookd.metrics import Metrics
from webhookd.retention import Keep, Retention

SCHEMA = expected_schema(migrate.load())
ELSEWHERE = "another-host"
WORKER = (
    "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version, metrics_address, seen_at)"
    " VALUES (gen_random_uuid(), %s, %s, 1, %s, %s, now() + %s * interval '1 s')"
)
ALIVE, DEAD = 3600, -120  # seconds from now


@pytest.fixture(scope="module")
def database(embedded_server: Server) -> Iterator[Database]:
    """One database for the module; every test mends what it breaks."""
    database = embedded_server.create_migrated()
    yield database
    embedded_server.drop(database)


@pytest.fixture(autouse=True)
def healthy(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the queue, and one living worker; nothing moves, so nothing needs to be waited for."""
    monkeypatch.setattr(server, "NOTIFY_S", 0.3)
    monkeypatch.setattr(queue, "SETTLE_S", 0.0)
    tables = ("alert_delivery_queue", "alert_delivery_log", "webhooks", "webhook_health_metrics", "workers")
    database.execute("SET session_replication_role = replica;" + ";".join(f"DELETE FROM pggit.{table}" for table in tables))
    add_worker(database)


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
    """*database* as the doctor sees it with these options; commands are for its owner, whatever the DSN in force is."""
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
    """Run a finding's command as it is printed: with psql's meaning of -c, or as webhookd takes it."""
    assert finding.run is not None
    words = shlex.split(finding.run)
    if words[0] == "webhookd":
        cli.main(words[1:], standalone_mode=False)
        return
    assert (words[0], words[2]) == ("psql", "-c")
    with psycopg.connect(words[1], autocommit=True) as connection:
        for statement in words[3::2]:
            connection.execute(statement.encode())


def assert_found_and_mended(database: Database, name: str, *words: str, **options: Any) -> Finding:
    """The doctor finds one thing wrong, says so in these *words*, and is content once its command has been run."""
    with installed(database, **options) as installation:
        (finding,) = (finding for finding in examine(installation) if finding.severity.wrong)
        assert finding.name == name
        for word in words:
            assert word in finding.detail
        run(finding)
        assert [finding for finding in examine(installation) if finding.severity.wrong] == []
    return finding


# The schema


def mend_all(database: Database, name: str, **options: Any) -> str:
    """Run what the doctor prints until it is content, and return what it said; everything is of the check *name*."""
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
    raise AssertionError(f"not mended: {found}")


@pytest.mark.parametrize("fault", ["ALTER TABLE pggit.{table} DISABLE TRIGGER {name}", "DROP TRIGGER {name} ON pggit.{table}"])
def test_triggers_that_are_disabled_or_missing(database: Database, fault: str) -> None:
    before = definitions(database)
    database.execute("; ".join(fault.format(table=table, name=name) for table, name in SCHEMA.triggers))
    said = mend_all(database, "triggers")
    for table, name in SCHEMA.triggers:
        assert f"{name} on pggit.{table} is {'disabled' if 'DISABLE' in fault else 'missing'}: " in said
    assert definitions(database) == before


def definitions(database: Database) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal UNION ALL"
        " SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid::regclass::text LIKE 'pggit.%' ORDER BY 1"
    )


def test_indexes_that_are_missing(database: Database) -> None:
    before = definitions(database)
    database.execute("DROP INDEX " + ", ".join(f"pggit.{name}" for name in SCHEMA.indexes))
    said = mend_all(database, "indexes")
    assert all(f"the index {name} is missing" in said for name in SCHEMA.indexes)
    assert definitions(database) == before


def test_an_index_that_is_invalid(database: Database) -> None:
    register(database)
    register(database, webhook_id=2)
    with pytest.raises(psycopg.errors.UniqueViolation):
        database.execute("CREATE UNIQUE INDEX CONCURRENTLY queue_new_2 ON pggit.webhooks (url)")
    database.execute("DROP INDEX pggit.queue_new; ALTER INDEX pggit.queue_new_2 RENAME TO queue_new")
    database.execute("DELETE FROM pggit.webhooks WHERE webhook_id = 2")
    assert_found_and_mended(database, "indexes", "queue_new", "invalid")
    database.execute("DROP INDEX pggit.queue_new")
    mend_all(database, "indexes")


def test_every_trigger_index_and_table_of_the_schema_is_expected(database: Database) -> None:
    found = database.execute("SELECT relname FROM pg_class WHERE relnamespace = 'pggit'::regnamespace AND relkind IN ('r', 'v')")
    assert {name for (name,) in found} == set(SCHEMA.tables)
    found = database.execute("SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal")
    assert set(found) == {(f"pggit.{table}", name) for table, name in SCHEMA.triggers}
    found = database.execute(
        "SELECT indexrelid::regclass::text FROM pg_index i WHERE indrelid::regclass::text LIKE 'pggit.%'"
        " AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)"
    )
    assert {name for (name,) in found} == {f"pggit.{name}" for name in SCHEMA.indexes}


def test_sessions_without_triggers(embedded_server: Server, database: Database) -> None:
    role = f"ROLE {embedded_server.create_role()}"
    who = {role, f"{role} IN DATABASE {database.name}", f"DATABASE {database.name}"}
    database.execute("; ".join(f"ALTER {one} SET session_replication_role = replica" for one in who))
    said = mend_all(database, "triggers")
    assert {line.partition(" has ")[0] for line in said.splitlines()} == who


def test_a_table_that_was_renamed(database: Database) -> None:
    database.execute("ALTER TABLE pggit.alert_delivery_log RENAME TO old_log")
    missing = [finding.detail for finding in wrong(database) if finding.name == "tables"]
    assert len(missing) == 1
    assert "pggit.alert_delivery_log is missing" in missing[0]
    database.execute("ALTER TABLE pggit.old_log RENAME TO alert_delivery_log")


def test_a_table_of_another_owner(embedded_server: Server, database: Database) -> None:
    database.execute(f"ALTER TABLE pggit.chores OWNER TO {embedded_server.create_role()}")
    assert_found_and_mended(database, "tables", "pggit.chores", "belongs to")


def test_autovacuum_off_for_a_table(database: Database) -> None:
    database.execute("ALTER TABLE pggit.alert_delivery_queue SET (autovacuum_enabled = off)")
    assert_found_and_mended(database, "vacuum", "autovacuum is off for pggit.alert_delivery_queue")


def test_autovacuum_that_does_not_keep_up(database: Database) -> None:
    # Statistics say what autovacuum has not done; that it is switched off as well is another finding.
    database.execute("ALTER TABLE pggit.chores SET (autovacuum_enabled = off, autovacuum_vacuum_threshold = 5)")
    with database.connect() as connection:
        for _ in range(30):  # each in a transaction of its own, with a reader that keeps the rows from being pruned
            connection.execute("UPDATE pggit.chores SET last_run_at = now()")
        connection.execute("SELECT pg_stat_force_next_flush()")
    off, starved = wrong(database)
    assert "pggit.chores has" in starved.detail
    assert "not run ever" in starved.detail
    run(off)
    database.execute("ALTER TABLE pggit.chores RESET (autovacuum_vacuum_threshold)")
    run(starved)
    assert wrong(database) == []


def test_a_schema_that_is_not_there(empty_database: Database) -> None:
    finding = wrong(empty_database)[-1]
    assert finding.name == "schema"
    run(finding)
    assert wrong(empty_database) == []


def test_a_schema_that_is_old(empty_database: Database) -> None:
    migrate.migrate(empty_database.dsn, migrations=migrate.load()[:1])
    found = {finding.name: finding for finding in wrong(empty_database)}
    assert "0002_monitoring is missing" in found["schema"].detail
    assert not {"tables", "triggers", "indexes", "rights"} & set(found)  # what a later migration makes is not missing yet
    run(found["schema"])
    assert wrong(empty_database) == []


def test_a_copied_database(database: Database) -> None:
    database.execute("UPDATE pggit.installation SET database_oid = 1; DELETE FROM pggit.workers")
    assert_found_and_mended(database, "schema", "copy of another one")


# Rights


@contextmanager
def worker_role(server: Server, database: Database) -> Iterator[str]:
    """A role with the rights that README gives to workers."""
    role = server.create_role()
    database.execute(
        f"GRANT USAGE ON SCHEMA pggit TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pggit TO {role};"
        f"GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA pggit TO {role}"
    )
    yield role
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_rights_that_a_worker_lacks(embedded_server: Server, database: Database) -> None:
    lacking = {
        "UPDATE on pggit.workers",
        "INSERT, DELETE on pggit.finished_counts, pggit.worker_minutes",
        "SELECT on pggit.installation, pggit.v_waiting_deliveries",
        "USAGE on the schema pggit",
        "SELECT and UPDATE on pggit.wake_flag",
    }
    with worker_role(embedded_server, database) as role:
        dsn = embedded_server.dsn(database.name, user=role)
        assert wrong(database, dsn=dsn) == []
        for what in sorted(lacking):
            privileges, _, objects = what.replace(" and ", ", ").replace("the schema", "SCHEMA").partition(" on ")
            kind = "SEQUENCE " if "wake_flag" in objects else ""
            database.execute(f"REVOKE {privileges} ON {kind}{objects} FROM {role}")
        # All at once, and one command mends it.
        found = assert_found_and_mended(database, "rights", role, dsn=dsn)
        assert set(found.detail.partition(" lacks ")[2].partition(": ")[0].split("; ")) == lacking


def test_rights_are_judged_for_the_role_that_workers_connect_as(embedded_server: Server, database: Database) -> None:
    with worker_role(embedded_server, database) as role:
        database.execute(f"REVOKE DELETE ON pggit.workers FROM {role}")
        assert wrong(database) == []
        with psycopg.connect(
            embedded_server.dsn(database.name, user=role), application_name="webhookd/a-node/worker-1/work", autocommit=True
        ):
            assert_found_and_mended(database, "rights", role, "DELETE on pggit.workers")


@pytest.mark.parametrize("grant", ["SELECT ON SEQUENCE pggit.wake_flag", "EXECUTE ON FUNCTION pggit.wake()"])
def test_rights_that_producers_lack(database: Database, grant: str) -> None:
    database.execute(f"REVOKE {grant} FROM PUBLIC")
    assert_found_and_mended(database, "rights", "PUBLIC lacks")


def test_a_role_without_any_right_gets_notes_and_no_fault(embedded_server: Server, database: Database) -> None:
    dsn = embedded_server.dsn(database.name, user=embedded_server.create_role())
    found = findings(database, dsn=dsn)
    assert {finding.name for finding in found if finding.severity.wrong} == {"rights"}
    notes = {finding.name: finding for finding in found if finding.severity is Severity.NOTE}
    assert "permission denied" in notes["waiting"].detail
    database.execute(notes["insight"].detail.partition("a superuser may ")[2])
    assert "insight" not in {finding.name for finding in findings(database, dsn=dsn) if finding.severity is Severity.NOTE}


# The server and the way to it


def test_a_clock_that_is_off(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for offset_s, severity in ((0.2, Severity.OK), (-5.0, Severity.WARNING), (120.0, Severity.ERROR)):
        monkeypatch.setattr("webhookd.doctor.server.time.time", lambda offset_s=offset_s: real() + offset_s)
        (found,) = (finding for finding in findings(database) if finding.name == "clock")
        assert found.severity is severity
        assert severity is Severity.OK or ("behind" if offset_s < 0 else "ahead of") in found.detail


def test_a_listen_dsn_to_another_database(embedded_server: Server, database: Database) -> None:
    (finding,) = wrong(database, listen_dsn=embedded_server.dsn("postgres"))
    assert (finding.name, finding.severity) == ("listen", Severity.ERROR)
    assert "another database" in finding.detail


def test_a_listen_dsn_that_leads_nowhere(database: Database) -> None:
    (finding,) = wrong(database, listen_dsn="host=/nonexistent-directory")
    assert finding.name == "listen"
    assert "No such file" in finding.detail


def test_a_limit_on_connections(embedded_server: Server, database: Database) -> None:
    with worker_role(embedded_server, database) as role:
        dsn = embedded_server.dsn(database.name, user=role)
        database.execute(f"ALTER ROLE {role} CONNECTION LIMIT 3")
        finding = assert_found_and_mended(database, "connections", f"limit of role {role}", "of 3", dsn=dsn)
        assert finding.severity is Severity.WARNING


@contextmanager
def transaction(database: Database, statement: str, *, name: str = "") -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """Another session, idle in a transaction after *statement*; what becomes of it is the test's business."""
    connection = database.connect(autocommit=False, application_name=name)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.execute(statement.encode())
    try:
        yield connection
    finally:
        connection.close()


def test_more_workers_than_the_server_has_connections_for(database: Database) -> None:
    assert wrong(database, workers=256) == []  # they run already, all but one that is replaced
    database.execute("DELETE FROM pggit.workers")
    (finding,) = wrong(database, workers=256)
    assert (finding.name, "max_connections" in finding.detail) == ("connections", True)
    assert "needs 768" in finding.detail


def test_what_keeps_dead_rows(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OLD_SNAPSHOT_S", 0.0)
    with transaction(database, "SELECT count(*) FROM pggit.webhooks", name="nightly report") as connection:
        assert_found_and_mended(database, "snapshots", "nightly report", f"session {connection.info.backend_pid}")
    with transaction(database, "CREATE TABLE for_a_transaction_id ()") as connection:
        connection.execute("PREPARE TRANSACTION 'somebody''s own'")
    assert_found_and_mended(database, "snapshots", "somebody", "prepared")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')",
        "SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = 1 FOR UPDATE",
    ],
)
def test_a_transaction_that_stands_in_the_way(database: Database, monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    monkeypatch.setattr(queue, "HELD_S", 0.0)
    with transaction(database, statement, name="shop"):
        assert_found_and_mended(database, "locks", "shop", "idle in transaction")


def test_a_check_that_cannot_run_does_not_stop_the_others(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhookd.doctor.installation._BEGIN", "BEGIN READ ONLY; SET LOCAL lock_timeout = '20ms'")
    with transaction(database, "LOCK TABLE pggit.alert_delivery_queue IN ACCESS EXCLUSIVE MODE"):
        found = {finding.name: finding for finding in findings(database)}
    assert "not examined" in found["leases"].detail
    assert found["leases"].severity is Severity.WARNING
    assert found["secrets"].severity is Severity.OK


# The fleet


def test_nobody_delivers(database: Database) -> None:
    database.execute("DELETE FROM pggit.workers")
    assert [finding.name for finding in findings(database) if finding.severity is Severity.NOTE] == ["workers"]
    database.execute("INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, 'https://receiver.example/')")
    insert(database)
    (finding,) = wrong(database)
    assert "no worker lives and deliveries are due" in finding.detail


def test_a_worker_that_died(database: Database) -> None:
    add_worker(database, "worker-2", seen_s=DEAD)
    assert_found_and_mended(database, "workers", "worker-2", ELSEWHERE, "has been silent for 12")


def test_a_worker_that_is_silent(database: Database) -> None:
    add_worker(database, "worker-2", seen_s=-30)
    (finding,) = wrong(database)
    assert (finding.name, finding.severity) == ("workers", Severity.WARNING)
    assert "worker-2" in finding.detail and "silent for 30 s" in finding.detail


def test_workers_of_another_release(database: Database) -> None:
    add_worker(database, "worker-2", version="0.0.1")
    (finding,) = wrong(database)
    assert "worker-2 on another-host run webhookd 0.0.1" in finding.detail


def test_two_hosts_with_one_name_for_a_worker(database: Database) -> None:
    add_worker(database, "worker-1", "a-third-host")
    (finding,) = wrong(database)
    assert "a-third-host and another-host both call a worker worker-1" in finding.detail
    assert "--node a-third-host" in (finding.run or "")


def test_a_worker_that_does_not_answer(database: Database) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        add_worker(database, "worker-1", socket.gethostname(), address=address)
        database.execute(f"DELETE FROM pggit.workers WHERE host = '{ELSEWHERE}'")
        (finding,) = wrong(database)
    assert finding.name == "endpoints"
    assert address in finding.detail


def test_workers_of_other_hosts_are_not_asked(database: Database) -> None:
    add_worker(database, "worker-2", address="192.0.2.1:8000")
    (note,) = (finding for finding in findings(database) if finding.name == "endpoints")
    assert (note.severity, ELSEWHERE in note.detail) == (Severity.NOTE, True)


def test_a_port_that_is_taken(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (finding,) = wrong(database, metrics_port=port, workers=1)
        assert finding.name == "ports"
        assert f"port {port}" in finding.detail
    assert wrong(database, metrics_port=port, workers=1) == []
    (finding,) = wrong(database, metrics_port=port, workers=1, metrics_host="192.0.2.1")
    assert (finding.name, finding.severity) == ("ports", Severity.ERROR)


# The queue


def insert(database: Database, webhook_id: int = 1, *, due: str = "now()", change: str = "") -> None:
    """Insert a delivery and *change* it as no trigger would let anybody."""
    database.execute(
        f"INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at) VALUES ({webhook_id}, '{{}}', {due})"
    )
    if change:
        database.execute(f"SET session_replication_role = replica; UPDATE pggit.alert_delivery_queue SET {change}")


def register(database: Database, url: str = "https://receiver.example/", **columns: object) -> None:
    row = {"webhook_id": 1, "url": url, **columns}
    names, places = ", ".join(row), ", ".join(["%s"] * len(row))
    database.execute(f"INSERT INTO pggit.webhooks ({names}) VALUES ({places})", list(row.values()))
    database.execute("UPDATE pggit.webhook_health_metrics SET runnable_at = NULL")


def test_deliveries_for_a_webhook_that_nobody_registered(database: Database) -> None:
    insert(database, 7)
    insert(database, 9)
    (finding,) = wrong(database)
    assert (finding.name, finding.severity) == ("waiting", Severity.WARNING)
    assert "webhooks 7, 9" in finding.detail
    run(replace(finding, run=(finding.run or "").replace("URL", "https://receiver.example/")))
    (finding,) = wrong(database)
    assert "webhook 9, which nobody registered" in finding.detail


def test_deliveries_for_a_paused_webhook_are_a_note(database: Database) -> None:
    register(database, enabled=False)
    insert(database)
    (note,) = (finding for finding in findings(database) if finding.name == "waiting")
    assert note.severity is Severity.NOTE
    run(note)
    assert [finding for finding in findings(database) if finding.severity is Severity.NOTE] == []


def test_deliveries_for_a_webhook_that_answered_410(database: Database) -> None:
    register(database, enabled=False, disabled_reason="410 Gone")
    insert(database)
    (note,) = (finding for finding in findings(database) if finding.name == "waiting")
    assert "410 Gone" in note.detail and "paused" not in note.detail
    run(note)
    assert [finding for finding in findings(database) if finding.severity is Severity.NOTE] == []


def test_deliveries_for_an_id_that_nobody_can_register(database: Database) -> None:
    insert(database, 0)
    assert_found_and_mended(database, "waiting", "webhook 0", "below 1")


def test_circuits_that_are_open(database: Database) -> None:
    database.execute("INSERT INTO pggit.webhooks (webhook_id, url) SELECT n, 'https://a.example' FROM generate_series(1, 8) n")
    database.execute(
        "UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', consecutive_failures = 5, total_deliveries = 5,"
        " circuit_until = now() + interval '50 s', last_success_at = CASE WHEN webhook_id = 3 THEN now() - interval '90 s' END,"
        " health_status = 'unavailable' WHERE webhook_id IN (3, 4)"
    )
    # Past its time: the next delivery goes.
    database.execute("UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', circuit_until = now() WHERE webhook_id = 5")
    assert_found_and_mended(database, "circuits", "circuit of webhooks 4, 3", "4 never succeeded", "3 last succeeded 9", "test 4")
    database.execute("UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', circuit_until = now() + interval '9 s'")
    (many,) = wrong(database)
    assert "and 3 more" in many.detail


@pytest.mark.parametrize("blocked_by", ["NULL", "'paused'"])
def test_a_lane_that_nobody_will_look_at(database: Database, blocked_by: str) -> None:
    register(database)
    insert(database, due="now() - interval '2 minutes'", change="routed = true")
    database.execute(f"UPDATE pggit.webhook_health_metrics SET blocked_by = {blocked_by}")
    assert_found_and_mended(database, "waiting", "webhook 1", "lost its timer")


@pytest.mark.parametrize(
    ("lane", "overdue"),
    [
        ("runnable_at = now()", True),
        ("runnable_at = now() + interval '1 minute', blocked_by = 'circuit'", False),
        ("runnable_at = now() - interval '1 hour', blocked_by = 'rate'", True),
    ],
)
def test_deliveries_that_have_been_due_for_long(database: Database, lane: str, overdue: bool) -> None:
    register(database)
    insert(database, due="now() - interval '10 minutes'")
    database.execute(f"UPDATE pggit.webhook_health_metrics SET {lane}")
    found = wrong(database)
    assert [(finding.name, finding.severity) for finding in found] == [("waiting", Severity.ERROR)] * overdue
    assert not overdue or "for up to 60" in found[0].detail


def test_leases_that_ran_out(database: Database) -> None:
    register(database)
    database.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 1")
    insert(database, change="delivery_status = 'sending', routed = true, lease_token = 4, lease_until = now() - interval '2 min'")
    (expired,) = wrong(database)
    assert expired.name == "leases"
    assert "ran out" in expired.detail
    run(expired)
    # The row's counter is the sweep's business; without workers, the next finding's.
    assert_found_and_mended(database, "lanes", "webhook 1")


def test_a_claim_without_a_lease(database: Database) -> None:
    register(database)
    database.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 1")
    insert(database, change="delivery_status = 'sending', routed = true")
    (unleased,) = wrong(database)
    assert (unleased.name, unleased.severity) == ("leases", Severity.ERROR)
    run(unleased)
    assert database.execute("SELECT delivery_status, routed FROM pggit.alert_delivery_queue") == [("pending", False)]


def test_a_delivery_that_kills_workers(database: Database) -> None:
    register(database)
    insert(database, change="leases_lost = 4, routed = true")
    assert_found_and_mended(database, "suspects", "lost 4 leases")


def test_a_counter_that_lies(database: Database) -> None:
    register(database)
    database.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 50")
    assert_found_and_mended(database, "lanes", "webhook 1")


def test_a_counter_that_was_only_moving(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    register(database)
    database.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 50")
    settle = "UPDATE pggit.webhook_health_metrics SET in_flight = 0"
    monkeypatch.setattr("webhookd.doctor.queue.time.sleep", lambda _: database.execute(settle))
    assert wrong(database) == []


@pytest.mark.parametrize(
    "change",
    ["delivery_status = 'delivered', attempts = 1", "delivery_status = 'failed', attempts = 1, lease_until = now()"],
)
def test_a_finished_row_that_does_not_look_like_one(database: Database, change: str) -> None:
    insert(database, change=change)
    assert_found_and_mended(database, "rows", "1 of the newest deliveries")


def test_an_attempt_that_was_recorded_twice(database: Database) -> None:
    once = (
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details)"
        " VALUES (1, 1, 'retrying', '{\"attempt\": 1}'), (1, 1, 'failed', '{\"attempt\": 2}'), (2, 1, 'failed', '{}')"
    )
    database.execute(once)
    assert wrong(database) == []
    database.execute(once)
    (finding,) = wrong(database)
    assert (finding.name, finding.run and "delivery show 1" in finding.run) == ("attempts", True)
    assert finding.detail.startswith("2 of the newest attempts") and "attempt 1 of delivery 1" in finding.detail


def test_a_foreign_key_without_an_index_stops_retention(database: Database) -> None:
    database.execute("CREATE TABLE public.invoice (\"Delivery\" bigint REFERENCES pggit.alert_delivery_queue)")
    assert wrong(database, keep_delivered=0.0, keep_failed=0.0) == []
    assert_found_and_mended(database, "retention", "invoice_Delivery_fkey of public.invoice has no index")
    (kept,) = (finding for finding in findings(database) if finding.name == "retention")
    assert (kept.severity, "keeps what it refers to" in kept.detail) == (Severity.NOTE, True)
    database.execute("DROP TABLE public.invoice")


@pytest.mark.parametrize("table", ["alert_delivery_queue", "alert_delivery_log"])
def test_retention_that_does_not_keep_up(database: Database, table: str) -> None:
    late = "UPDATE pggit.retention SET turned_at = now() - interval '8 days', lap_started_at = turned_at WHERE table_name = %s"
    database.execute(late, [table])
    database.execute("UPDATE pggit.retention SET lap_started_at = turned_at")
    (finding,) = wrong(database)
    assert finding.name == "retention"
    assert f"old rows of pggit.{table} stay" in finding.detail
    assert (finding.run or "").startswith("webhookd --dsn")
    assert wrong(database, keep_delivered=0.0, keep_failed=0.0, keep_log=0.0) == []
    with store.connect(database.dsn, application_name="webhookd/worker-1/test") as connection:
        # What the service does.
        Retention(Keep.of(Config()), metrics=Metrics("worker-1", max_webhooks=1)).turn(lambda: nullcontext(connection))
    assert wrong(database) == []


@pytest.mark.parametrize(
    ("url", "options", "run"),
    [
        ("http://receiver.example/", {"allow_http": True}, "webhookd doctor --allow-http --dsn"),
        ("https://10.1.2.3/", {"allow_network": ("10.0.0.0/8",)}, "webhookd doctor --allow-network 10.1.2.3 --dsn"),
        ("https://user:password@receiver.example/", None, "webhookd webhook pause 1 --dsn"),
    ],
)
def test_a_url_that_cannot_be_delivered_to(database: Database, url: str, options: dict[str, Any] | None, run: str) -> None:
    register(database, url)
    (finding,) = wrong(database)
    assert (finding.name, finding.severity) == ("targets", Severity.WARNING)
    assert (finding.run or "").startswith(run)
    assert "password" not in finding.detail
    assert options is None or wrong(database, **options) == []


def test_a_secret_that_cannot_sign(database: Database) -> None:
    register(database, secret=format_secret(b"k" * 32))
    assert wrong(database) == []
    database.execute("UPDATE pggit.webhooks SET secret = 'whsec_tooshort'")
    assert_found_and_mended(database, "secrets", "webhook 1")


def test_more_webhooks_than_are_examined(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = format_secret(b"k" * 32)
    for webhook_id in (1, 2, 3):
        register(database, webhook_id=webhook_id, secret=secret)
    monkeypatch.setattr(queue, "MOST_WEBHOOKS", 2)
    notes = [finding.name for finding in findings(database) if "only the newest 2 " in finding.detail]
    assert notes == ["targets", "secrets"]
    monkeypatch.setattr(queue, "MOST_WEBHOOKS", 3)
    assert [finding for finding in findings(database) if "only the newest" in finding.detail] == []


def test_a_thousand_faults_are_a_screen(database: Database) -> None:
    insert(database, change="leases_lost = 4, routed = true")
    database.execute("INSERT INTO pggit.webhooks (webhook_id, url) SELECT n, 'https://a.example' FROM generate_series(1, 300) n")
    database.execute(
        "SET session_replication_role = replica; INSERT INTO pggit.alert_delivery_queue"
        " (webhook_id, message_body, leases_lost, routed) SELECT n, '{}', 3, true FROM generate_series(2, 60) n"
    )
    found = wrong(database)
    assert {finding.name for finding in found} == {"suspects"}
    assert len(found) == 11
    assert "50 more" in found[-1].detail
