"""`webhookd migrate` and the check at a worker's boot, on the real migrations and on small ones
made here.
"""

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.postgres import Database, Server
from tests.support.waiting import eventually
from webhookd.errors import UnusableError, WebhookdError
from webhookd.postgres import session
from webhookd.schema import migrate as migrate_module
from webhookd.schema.migrate import Migration, check, load, migrate, parse

pytestmark = pytest.mark.every_postgres


def next_migration(text: str, *, name: str = "0002_next", oldest: str = "0.1.0") -> list[Migration]:
    return [*load()[:1], parse(name, f"-- oldest webhookd: {oldest}\n{text}\n")]


def columns(database: Database) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE "
        "table_schema = 'pggit' ORDER BY 1, 2"
    )


def history(database: Database) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT version, name, applied_at FROM pggit.webhookd_migrations ORDER BY version"
    )


@contextmanager
def locked(database: Database, table: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with database.connect(autocommit=False) as connection:
        connection.execute(f"LOCK TABLE {table} IN ACCESS SHARE MODE".encode())
        yield connection
        connection.rollback()


def test_a_fresh_database_gets_every_migration_and_passes_the_check(
    empty_database: Database,
) -> None:
    assert migrate(empty_database.dsn) == [migration.name for migration in load()]
    with empty_database.connect() as connection:
        check(connection)


def test_migrating_again_changes_nothing(empty_database: Database) -> None:
    migrate(empty_database.dsn)
    before = history(empty_database), columns(empty_database)
    assert migrate(empty_database.dsn) == []
    assert (history(empty_database), columns(empty_database)) == before


def test_two_migrations_at_once_apply_each_file_once(empty_database: Database) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        applied = pool.map(migrate, [empty_database.dsn] * 2)
    assert sorted(applied, key=len) == [[], [migration.name for migration in load()]]


@pytest.mark.parametrize("rights", ["creates the schema", "owns the schema"])
def test_a_role_without_special_rights_can_migrate_and_work(
    server: Server, empty_database: Database, rights: str
) -> None:
    role = server.create_role()
    if rights == "owns the schema":
        empty_database.execute(f"CREATE SCHEMA pggit AUTHORIZATION {role}")
        empty_database.execute(f"REVOKE TEMPORARY ON DATABASE {empty_database.name} FROM PUBLIC")
    else:
        empty_database.execute(f"GRANT CREATE ON DATABASE {empty_database.name} TO {role}")
    migrate(make_conninfo(empty_database.dsn, user=role))
    with empty_database.connect(user=role) as connection:
        check(connection)
    identifier = empty_database.execute("SELECT system_identifier::text FROM pg_control_system()")
    assert empty_database.execute("SELECT system_identifier FROM pggit.installation") == identifier


def test_defaults_of_the_role_and_the_database_do_not_matter(
    server: Server, empty_database: Database
) -> None:
    role = server.create_role(options="LOGIN SUPERUSER")
    for setting in (
        "default_transaction_isolation = serializable",
        "default_transaction_read_only = on",
        "statement_timeout = '500ms'",
        "search_path = pg_temp, public",
        "standard_conforming_strings = on",
    ):
        empty_database.execute(f"ALTER ROLE {role} SET {setting}")
    dsn = make_conninfo(empty_database.dsn, user=role)
    assert migrate(dsn) != []
    slow = parse("0099_slow", "-- oldest webhookd: 0.1.0\nSELECT pg_sleep(1);\n")
    assert migrate(dsn, migrations=[*load(), slow]) == [slow.name]


def test_a_changed_migration_is_refused_by_migrate_and_by_workers(empty_database: Database) -> None:
    migrate(empty_database.dsn)
    changed = [parse(load()[0].name, load()[0].text + "-- edited later\n")]
    with pytest.raises(UnusableError, match=f"{load()[0].name}.*other content"):
        migrate(empty_database.dsn, migrations=changed)
    with (
        empty_database.connect() as connection,
        pytest.raises(UnusableError, match="other content"),
    ):
        check(connection, migrations=changed)


def test_an_unknown_migration_is_refused_by_migrate(empty_database: Database) -> None:
    newer = next_migration("SELECT 1;")
    migrate(empty_database.dsn, migrations=newer)
    with pytest.raises(UnusableError, match="0002_next"):
        migrate(empty_database.dsn, migrations=newer[:1])


def test_a_worker_tolerates_a_newer_schema_only_as_far_as_that_schema_tolerates_it(
    empty_database: Database,
) -> None:
    newer = next_migration("SELECT 1;", oldest="0.9.10")
    migrate(empty_database.dsn, migrations=newer)
    with empty_database.connect() as connection:
        check(connection, migrations=newer[:1], version="0.9.10")
        check(connection, migrations=newer[:1], version="0.10.0")
        with pytest.raises(UnusableError, match=r"0002_next needs webhookd 0\.9\.10"):
            check(connection, migrations=newer[:1], version="0.9.9")


def test_a_worker_refuses_a_missing_and_an_older_schema(empty_database: Database) -> None:
    with empty_database.connect() as connection:
        with pytest.raises(UnusableError, match="no schema of webhookd's: run `webhookd migrate`"):
            check(connection)
        migrate(empty_database.dsn, migrations=load()[:1])
        with pytest.raises(UnusableError, match=r"older.*0002_next.*run `webhookd migrate`"):
            check(connection, migrations=next_migration("SELECT 1;"))


def test_a_gap_in_the_history_is_refused(empty_database: Database) -> None:
    migrate(empty_database.dsn, migrations=next_migration("SELECT 1;"))
    empty_database.execute("DELETE FROM pggit.webhookd_migrations WHERE version = 1")
    with pytest.raises(UnusableError, match="later migrations but not 0001"):
        migrate(empty_database.dsn, migrations=next_migration("SELECT 1;"))


def test_a_failing_migration_leaves_the_schema_as_it_was_and_says_what_failed(
    empty_database: Database,
) -> None:
    migrate(empty_database.dsn, migrations=load()[:1])
    before = columns(empty_database)
    broken = next_migration(
        "ALTER TABLE pggit.webhooks ADD COLUMN note text;\nSELECT 1 FROM pggit.no_such_table;"
    )
    with pytest.raises(
        UnusableError, match=r"0002_next cannot be applied.*no_such_table"
    ) as refused:
        migrate(empty_database.dsn, migrations=broken)
    assert "\n" not in str(refused.value)
    assert columns(empty_database) == before
    assert len(history(empty_database)) == 1


def test_a_lock_that_is_held_is_tried_again_until_it_is_free(
    empty_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(empty_database.dsn, migrations=load()[:1])
    caplog.set_level("INFO", "webhookd.migrate")
    wanting = next_migration("ALTER TABLE pggit.webhooks ADD COLUMN note text;")
    with locked(empty_database, "pggit.webhooks") as holder:

        def release_after_the_first_refusal() -> None:
            eventually(lambda: "migration waits for a lock" in caplog.messages)
            holder.rollback()

        releasing = threading.Thread(target=release_after_the_first_refusal)
        releasing.start()
        assert migrate(empty_database.dsn, migrations=wanting) == ["0002_next"]
        releasing.join()


def test_a_lock_that_is_never_free_is_given_up_with_advice(empty_database: Database) -> None:
    migrate(empty_database.dsn, migrations=load()[:1])
    wanting = next_migration("ALTER TABLE pggit.webhooks ADD COLUMN note text;")
    with (
        locked(empty_database, "pggit.webhooks"),
        pytest.raises(WebhookdError, match="did not get its locks"),
    ):
        migrate(empty_database.dsn, migrations=wanting, patience_s=0.1)
    assert migrate(empty_database.dsn, migrations=wanting) == ["0002_next"]


def test_inserts_wait_two_seconds_at_most_for_a_migration_that_waits(
    empty_database: Database,
) -> None:
    """Without the lock timeout the INSERT would stand in line behind the migration for as long as
    the reader reads.
    """
    migrate(empty_database.dsn, migrations=load()[:1])
    wanting = next_migration("ALTER TABLE pggit.alert_delivery_queue ADD COLUMN note text;")
    with locked(empty_database, "pggit.alert_delivery_queue"):
        failed: list[WebhookdError] = []

        def upgrade() -> None:
            try:
                migrate(empty_database.dsn, migrations=wanting, patience_s=0.1)
            except WebhookdError as error:
                failed.append(error)

        upgrading = threading.Thread(target=upgrade)
        upgrading.start()
        eventually(lambda: empty_database.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
        empty_database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
        )
        upgrading.join()
    assert len(failed) == 1


def test_a_migration_without_transaction_may_create_an_index_concurrently_while_another_one_waits(
    empty_database: Database,
) -> None:
    migrate(empty_database.dsn, migrations=load()[:1])
    concurrent = next_migration(
        "-- without transaction\n"
        "DROP INDEX CONCURRENTLY IF EXISTS pggit.log_worker;  -- what an interrupted run left;\n"
        "CREATE INDEX CONCURRENTLY log_worker\n    ON pggit.alert_delivery_log (worker_id);\n"
    )
    names: list[str] = []

    def upgrade() -> None:
        names.extend(migrate(empty_database.dsn, migrations=concurrent))

    upgrading = [threading.Thread(target=upgrade) for _ in range(2)]
    for thread in upgrading:
        thread.start()
    for thread in upgrading:
        thread.join()
    assert names == ["0002_next"]
    assert empty_database.execute(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'pggit.log_worker'::regclass"
    ) == [(True,)]


def test_an_old_postgresql_is_refused(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No server that old is at hand: the limit is raised instead.
    monkeypatch.setattr(migrate_module, "OLDEST_POSTGRES", 990000)
    with pytest.raises(UnusableError, match="is too old"):
        migrate(empty_database.dsn)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_an_encoding_other_than_utf8_is_refused_by_migrate_and_by_workers_and_nothing_is_made(
    server: Server, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    database = server.create(encoding=encoding)
    with pytest.raises(
        UnusableError, match=rf"{encoding}.*UTF8.*createdb -E UTF8 -T template0"
    ) as refused:
        migrate(database.dsn)
    assert "\n" not in str(refused.value)
    assert database.execute("SELECT to_regnamespace('pggit') IS NULL") == [(True,)]
    with monkeypatch.context() as before:
        before.setattr(migrate_module, "_check_encoding", lambda connection: None)
        migrate(database.dsn)
    with (
        session.connect(database.dsn, application_name="test") as connection,
        pytest.raises(UnusableError, match=encoding),
    ):
        check(connection)
    server.drop(database)


def test_a_malformed_dsn_and_a_database_that_is_away_are_told_apart(
    empty_database: Database,
) -> None:
    with pytest.raises(UnusableError, match="DSN"):
        migrate("postgres//nonsense")
    with pytest.raises(WebhookdError, match="cannot be reached") as away:
        migrate(make_conninfo(empty_database.dsn, dbname="no_such_database"))
    assert not isinstance(away.value, UnusableError)
    assert "\n" not in str(away.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("1_short", "-- oldest webhookd: 0.1.0"),
        ("0001_no_header", "SELECT 1;"),
        ("0001_bad_release", "-- oldest webhookd: new"),
    ],
)
def test_a_malformed_migration_is_an_error_of_its_author(
    server: Server, name: str, text: str
) -> None:
    with pytest.raises(ValueError, match=r"migration|release"):
        parse(name, text)
