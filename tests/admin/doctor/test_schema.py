"""The doctor's findings about the schema and the rights there, each provoked and fixed."""

import psycopg
import pytest

from tests.support.doctor import (
    SCHEMA,
    assert_found_and_fixed,
    findings,
    fix_all,
    register,
    run,
    worker_role,
    wrong,
)
from tests.support.postgres import Database, Server
from webhookd.admin.doctor.findings import Severity
from webhookd.schema import migrate

# The schema


@pytest.mark.parametrize(
    "fault",
    ["ALTER TABLE pggit.{table} DISABLE TRIGGER {name}", "DROP TRIGGER {name} ON pggit.{table}"],
)
def test_triggers_that_are_disabled_or_missing(patient: Database, fault: str) -> None:
    before = definitions(patient)
    patient.execute(
        "; ".join(fault.format(table=table, name=name) for table, name in SCHEMA.triggers)
    )
    said = fix_all(patient, "triggers")
    for table, name in SCHEMA.triggers:
        assert (
            f"{name} on pggit.{table} is {'disabled' if 'DISABLE' in fault else 'missing'}: "
            in said
        )
    assert definitions(patient) == before


def definitions(database: Database) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal UNION ALL"
        " SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid::regclass::text LIKE "
        "'pggit.%' ORDER BY 1"
    )


def test_indexes_that_are_missing(patient: Database) -> None:
    before = definitions(patient)
    patient.execute("DROP INDEX " + ", ".join(f"pggit.{name}" for name in SCHEMA.indexes))
    said = fix_all(patient, "indexes")
    assert all(f"the index {name} is missing" in said for name in SCHEMA.indexes)
    assert definitions(patient) == before


def test_an_index_that_is_invalid(patient: Database) -> None:
    register(patient)
    register(patient, webhook_id=2)
    with pytest.raises(psycopg.errors.UniqueViolation):
        patient.execute("CREATE UNIQUE INDEX CONCURRENTLY queue_new_2 ON pggit.webhooks (url)")
    patient.execute("DROP INDEX pggit.queue_new; ALTER INDEX pggit.queue_new_2 RENAME TO queue_new")
    patient.execute("DELETE FROM pggit.webhooks WHERE webhook_id = 2")
    assert_found_and_fixed(patient, "indexes", "queue_new", "invalid")
    patient.execute("DROP INDEX pggit.queue_new")
    fix_all(patient, "indexes")


def test_every_trigger_index_and_table_of_the_schema_is_expected(patient: Database) -> None:
    found = patient.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'pggit'::regnamespace AND relkind IN "
        "('r', 'v')"
    )
    assert {name for (name,) in found} == set(SCHEMA.tables)
    found = patient.execute(
        "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal"
    )
    assert set(found) == {(f"pggit.{table}", name) for table, name in SCHEMA.triggers}
    found = patient.execute(
        "SELECT indexrelid::regclass::text FROM pg_index i WHERE indrelid::regclass::text LIKE "
        "'pggit.%'"
        " AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)"
    )
    assert {name for (name,) in found} == {f"pggit.{name}" for name in SCHEMA.indexes}


def test_sessions_without_triggers(embedded_server: Server, patient: Database) -> None:
    role = f"ROLE {embedded_server.create_role()}"
    who = {role, f"{role} IN DATABASE {patient.name}", f"DATABASE {patient.name}"}
    patient.execute("; ".join(f"ALTER {one} SET session_replication_role = replica" for one in who))
    said = fix_all(patient, "triggers")
    assert {line.partition(" has ")[0] for line in said.splitlines()} == who


def test_a_table_that_was_renamed(patient: Database) -> None:
    patient.execute("ALTER TABLE pggit.alert_delivery_log RENAME TO old_log")
    missing = [finding.detail for finding in wrong(patient) if finding.name == "tables"]
    assert len(missing) == 1
    assert "pggit.alert_delivery_log is missing" in missing[0]
    patient.execute("ALTER TABLE pggit.old_log RENAME TO alert_delivery_log")


def test_a_table_of_another_owner(embedded_server: Server, patient: Database) -> None:
    patient.execute(f"ALTER TABLE pggit.chores OWNER TO {embedded_server.create_role()}")
    assert_found_and_fixed(patient, "tables", "pggit.chores", "belongs to")


def test_autovacuum_off_for_a_table(patient: Database) -> None:
    patient.execute("ALTER TABLE pggit.alert_delivery_queue SET (autovacuum_enabled = off)")
    assert_found_and_fixed(patient, "vacuum", "autovacuum is off for pggit.alert_delivery_queue")


def test_autovacuum_that_does_not_keep_up(patient: Database) -> None:
    # Statistics say what autovacuum has not done; that it is switched off as well is another
    # finding.
    patient.execute(
        "ALTER TABLE pggit.chores SET (autovacuum_enabled = off, autovacuum_vacuum_threshold = 5)"
    )
    with patient.connect() as connection:
        for _ in range(
            30
        ):  # each in a transaction of its own, with a reader that keeps the rows from being pruned
            connection.execute("UPDATE pggit.chores SET last_run_at = now()")
        connection.execute("SELECT pg_stat_force_next_flush()")
    off, starved = wrong(patient)
    assert "pggit.chores has" in starved.detail
    assert "not run ever" in starved.detail
    run(off)
    patient.execute("ALTER TABLE pggit.chores RESET (autovacuum_vacuum_threshold)")
    run(starved)
    assert wrong(patient) == []


def test_a_schema_that_is_not_there(empty_database: Database) -> None:
    finding = wrong(empty_database)[-1]
    assert finding.name == "schema"
    run(finding)
    assert wrong(empty_database) == []


def test_a_schema_that_is_old(empty_database: Database) -> None:
    migrate.migrate(empty_database.dsn, migrations=migrate.load()[:1])
    found = {finding.name: finding for finding in wrong(empty_database)}
    assert "0002_monitoring is missing" in found["schema"].detail
    assert not {"tables", "triggers", "indexes", "rights"} & set(
        found
    )  # what a later migration makes is not missing yet
    run(found["schema"])
    assert wrong(empty_database) == []


def test_a_copied_database(patient: Database) -> None:
    patient.execute("UPDATE pggit.installation SET database_oid = 1; DELETE FROM pggit.workers")
    assert_found_and_fixed(patient, "schema", "copy of another one")


# Rights


def test_rights_that_a_worker_lacks(embedded_server: Server, patient: Database) -> None:
    lacking = {
        "UPDATE on pggit.workers",
        "INSERT, DELETE on pggit.finished_counts, pggit.worker_minutes",
        "SELECT on pggit.installation, pggit.v_waiting_deliveries",
        "USAGE on the schema pggit",
        "SELECT and UPDATE on pggit.wake_flag",
        "EXECUTE on pggit.measure_bodies",
    }
    with worker_role(embedded_server, patient) as role:
        dsn = embedded_server.dsn(patient.name, user=role)
        assert wrong(patient, dsn=dsn) == []
        for what in sorted(lacking):
            privileges, _, objects = (
                what.replace(" and ", ", ").replace("the schema", "SCHEMA").partition(" on ")
            )
            kinds = {"pggit.wake_flag": "SEQUENCE ", "pggit.measure_bodies": "FUNCTION "}
            kind = kinds.get(objects, "")
            patient.execute(f"REVOKE {privileges} ON {kind}{objects} FROM {role}")
        # All at once, and one command fixes it.
        found = assert_found_and_fixed(patient, "rights", role, dsn=dsn)
        assert set(found.detail.partition(" lacks ")[2].partition(": ")[0].split("; ")) == lacking


def test_rights_are_judged_for_the_role_that_workers_connect_as(
    embedded_server: Server, patient: Database
) -> None:
    with worker_role(embedded_server, patient) as role:
        patient.execute(f"REVOKE DELETE ON pggit.workers FROM {role}")
        assert wrong(patient) == []
        with psycopg.connect(
            embedded_server.dsn(patient.name, user=role),
            application_name="webhookd/a-node/worker-1/work",
            autocommit=True,
        ):
            assert_found_and_fixed(patient, "rights", role, "DELETE on pggit.workers")


@pytest.mark.parametrize(
    "grant", ["SELECT ON SEQUENCE pggit.wake_flag", "EXECUTE ON FUNCTION pggit.wake()"]
)
def test_rights_that_producers_lack(patient: Database, grant: str) -> None:
    patient.execute(f"REVOKE {grant} FROM PUBLIC")
    assert_found_and_fixed(patient, "rights", "PUBLIC: roles that insert lack")


def test_a_role_without_any_right_gets_notes_and_no_fault(
    embedded_server: Server, patient: Database
) -> None:
    dsn = embedded_server.dsn(patient.name, user=embedded_server.create_role())
    found = findings(patient, dsn=dsn)
    assert {finding.name for finding in found if finding.severity.wrong} == {"rights"}
    notes = {finding.name: finding for finding in found if finding.severity is Severity.NOTE}
    assert "permission denied" in notes["waiting"].detail
    patient.execute(notes["insight"].detail.partition("a superuser may ")[2])
    assert "insight" not in {
        finding.name for finding in findings(patient, dsn=dsn) if finding.severity is Severity.NOTE
    }
