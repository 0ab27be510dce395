"""Retention beside what an application adds (foreign keys, triggers, scripts), and in tables that
were upgraded or adopted.
"""

from contextlib import nullcontext
from pathlib import Path

import psycopg
import pytest

from tests.support.engine import register
from tests.support.postgres import Database
from tests.support.retention import (
    assert_counts_are_true,
    finished,
    ids,
    logged,
    retention,
    rounds_are_due,
    whole_round,
)
from webhookd.postgres import session
from webhookd.schema.migrate import load, migrate

pytestmark = pytest.mark.every_postgres

EARLIER = (Path(__file__).parents[1] / "support" / "earlier_pggit.sql").read_text("utf-8")
SEED = sorted((Path(__file__).parents[1] / "seed").glob("*.sql"))


def test_what_foreign_keys_refer_to_stays_and_holds_nothing_up(
    database: Database, connection: session.Connection
) -> None:
    old = finished(database, 1000, days=8)
    database.execute(
        'CREATE TABLE public.invoice ("100% sure" bigint REFERENCES pggit.alert_delivery_queue, '
        "note text);"
        'CREATE INDEX ON public.invoice ("100% sure");'
        "CREATE TABLE public.opened (delivery_id bigint REFERENCES pggit.alert_delivery_queue ON "
        "DELETE CASCADE);"
        "CREATE INDEX ON public.opened (delivery_id);"
    )
    database.execute("INSERT INTO public.invoice SELECT unnest(%s::bigint[])", [old[:500:2]])
    database.execute("INSERT INTO public.opened SELECT unnest(%s::bigint[])", [old])
    whole_round(database, connection)
    assert ids(database) == set(old[:500:2])
    assert database.execute("SELECT count(*) FROM public.opened") == [(250,)]
    assert_counts_are_true(database)


def test_nothing_is_removed_where_each_row_would_cost_a_whole_table(
    database: Database, connection: session.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    finished(database, 10, days=8)
    database.execute(
        "CREATE TABLE public.invoice (delivery_id bigint REFERENCES pggit.alert_delivery_queue)"
    )
    rounds_are_due(database)
    retention().turn(lambda: nullcontext(connection))
    assert len(ids(database)) == 10
    assert "a foreign key onto it has no index" in caplog.text
    database.execute("CREATE INDEX ON public.invoice (delivery_id)")
    whole_round(database, connection)
    assert ids(database) == set()


def test_a_row_that_cannot_be_looked_for_holds_up_its_own_pages_only(database: Database) -> None:
    """The worker's role may not read what refers to the queue."""
    old = finished(database, 3000, days=8)
    database.execute(
        "CREATE TABLE public.invoice (delivery_id bigint REFERENCES pggit.alert_delivery_queue);"
        "CREATE INDEX ON public.invoice (delivery_id);"
        "CREATE ROLE worker_of_retention LOGIN; GRANT USAGE ON SCHEMA pggit TO worker_of_retention;"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pggit TO worker_of_retention"
    )
    try:
        database.execute("INSERT INTO public.invoice VALUES (%s)", [old[0]])
        dsn = psycopg.conninfo.make_conninfo(database.dsn, user="worker_of_retention")
        with session.connect(dsn, application_name="webhookd/worker-1/test") as theirs:
            whole_round(database, theirs)
        assert old[0] in ids(database)
        assert 1 <= len(ids(database)) < 2000
        assert_counts_are_true(database)
    finally:
        database.execute("DROP OWNED BY worker_of_retention; DROP ROLE worker_of_retention")


def test_a_trigger_that_forbids_it_holds_up_its_own_pages_only(
    database: Database, connection: session.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    old = finished(database, 3000, days=8)
    database.execute(
        "CREATE FUNCTION public.forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE "
        "'this one stays'; END $$;"
        "CREATE TRIGGER forbid BEFORE DELETE ON pggit.alert_delivery_queue FOR EACH ROW WHEN "
        f"(OLD.delivery_id = {old[0]})"
        " EXECUTE FUNCTION public.forbid()"
    )
    whole_round(database, connection)
    assert old[0] in ids(database)
    assert len(ids(database)) < 2000
    assert caplog.text.count("this one stays") == 1
    assert_counts_are_true(database)


def test_an_installation_is_upgraded_with_its_rows(empty_database: Database) -> None:
    migrate(empty_database.dsn, migrations=load()[:3])
    empty_database.execute(
        "ALTER TABLE pggit.alert_delivery_log ADD COLUMN trace text DEFAULT 'none'"
    )
    finished(empty_database, 50, days=8)
    kept = finished(empty_database, 50, days=1)
    logged(empty_database, 50, days=31)
    logged(empty_database, 50, days=1)
    role = f"reader_{empty_database.name}"
    empty_database.execute(
        f"CREATE ROLE {role}; GRANT SELECT (trace) ON pggit.alert_delivery_log TO {role}"
    )
    try:
        assert migrate(empty_database.dsn) == [migration.name for migration in load()[3:]]
        with session.connect(
            empty_database.dsn, application_name="webhookd/worker-1/test"
        ) as connection:
            whole_round(empty_database, connection)
        assert ids(empty_database) == set(kept)
        assert empty_database.execute(
            "SELECT trace, count(*) FROM pggit.alert_delivery_log GROUP BY 1"
        ) == [("none", 50)]
        may_read = (
            f"SELECT has_column_privilege('{role}', 'pggit.alert_delivery_log', 'trace', 'SELECT')"
        )
        assert empty_database.execute(may_read) == [(True,)]
        assert_counts_are_true(empty_database)
    finally:
        empty_database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_an_adopted_queue_loses_what_is_old_and_the_log_of_it_as_its_foreign_key_says(
    empty_database: Database,
) -> None:
    empty_database.execute(EARLIER)
    migrate(empty_database.dsn)
    empty_database.execute(
        "UPDATE pggit.alert_delivery_log SET created_at = now() WHERE delivery_id = 4"
    )
    with session.connect(
        empty_database.dsn, application_name="webhookd/worker-1/test"
    ) as connection:
        whole_round(empty_database, connection)
    assert ids(empty_database) == {1, 2, 3}
    assert empty_database.execute("SELECT log_id FROM pggit.alert_delivery_log ORDER BY 1") == [
        (3,)
    ]
    assert_counts_are_true(empty_database)


@pytest.mark.parametrize("path", SEED, ids=lambda path: path.stem)
def test_the_first_guides_statements_go_on_working(
    database: Database, connection: session.Connection, path: Path
) -> None:
    register(database, 1)
    finished(database, 30, days=8)
    finished(database, 30, days=1, status="failed")
    logged(database, 30, days=31)
    whole_round(database, connection)
    with database.connect() as reader:
        reader.execute(path.read_text().replace("?", "1").encode())
