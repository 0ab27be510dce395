"""The tables of an earlier pggit become webhookd's, or are refused and stay as they are."""

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.postgres import Database, Server
from webhookd.errors import UnusableError
from webhookd.schema.migrate import check, migrate

EARLIER = (Path(__file__).parents[1] / "support" / "earlier_pggit.sql").read_text("utf-8")

# All that the catalog says of the user's objects.
CATALOG = """
    SELECT format('%s %s %s %s', c.oid::regclass, c.relkind, c.relowner::regrole, c.relacl)
      FROM pg_class c
     WHERE c.relnamespace IN (to_regnamespace('pggit'), 'public'::regnamespace)
    UNION ALL
    SELECT format('%s.%s %s %s %s', a.attrelid::regclass, a.attname,
                  format_type(a.atttypid, a.atttypmod), a.attnotnull,
                  pg_get_expr(d.adbin, d.adrelid))
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
      LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
     WHERE c.relnamespace IN (to_regnamespace('pggit'), 'public'::regnamespace) AND a.attnum > 0
    UNION ALL
    SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
      FROM pg_constraint
     WHERE connamespace IN (to_regnamespace('pggit'), 'public'::regnamespace)
    UNION ALL
    SELECT oid::regprocedure::text || ' ' || coalesce(proacl::text, '') || ' ' || prosrc
      FROM pg_proc
     WHERE pronamespace IN (to_regnamespace('pggit'), 'public'::regnamespace)
     ORDER BY 1
"""
COLUMNS = """
    SELECT table_name, column_name, data_type, column_default IS NULL AND is_identity = 'NO',
           is_nullable
      FROM information_schema.columns
     WHERE table_schema = 'pggit'
       AND table_name IN ('alert_delivery_queue', 'alert_delivery_log', 'webhook_health_metrics',
                          'webhooks')
"""


@pytest.fixture
def earlier(empty_database: Database) -> Database:
    """A database with an earlier pggit's tables, in a time zone with summer time."""
    empty_database.execute(f"ALTER DATABASE {empty_database.name} SET TimeZone = 'Europe/Berlin'")
    empty_database.execute(EARLIER)
    return empty_database


def fingerprint(database: Database) -> list[list[tuple[Any, ...]]]:
    tables = database.execute(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'pggit'"
    )
    return [
        database.execute(CATALOG),
        *(database.execute(f"SELECT t::text FROM {name} t") for (name,) in sorted(tables)),
    ]


def refused(database: Database) -> str:
    """Migrate, expect a refusal of one line that changes nothing, and return the line."""
    before = fingerprint(database)
    with pytest.raises(UnusableError) as raised:
        migrate(database.dsn)
    assert fingerprint(database) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.every_postgres
def test_an_earlier_queue_is_adopted_with_its_rows_in_the_time_zone_of_the_database(
    earlier: Database,
) -> None:
    migrate(earlier.dsn)
    rows = earlier.execute(
        "SELECT delivery_id, alert_id, message_body ->> 'n', delivery_status, retry_count, "
        "max_retries, tenant,"
        "       to_char(next_retry_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), status"
        "  FROM pggit.alert_delivery_queue WHERE delivery_id <> 3 ORDER BY 1"
    )
    assert rows == [
        (1, 100, "1", "pending", 0, 3, "acme", "2026-07-01 10:00", "pending"),
        (2, 101, "2", "retrying", 2, 3, "acme", "2026-01-01 11:00", "retrying"),
        (4, 103, "4", "delivered", 0, 3, "acme", "2026-07-01 10:00", "delivered"),
        (5, 104, "5", "failed", 3, 3, "acme", "2026-07-01 10:00", "failed"),
    ]
    assert earlier.execute(
        "SELECT retry_count, max_retries, created_at <= now(), next_retry_at = created_at"
        "  FROM pggit.alert_delivery_queue WHERE delivery_id = 3"
    ) == [(0, 3, True, True)]
    assert earlier.execute("SELECT count(*) FROM pggit.alert_delivery_log") == [(3,)]
    with earlier.connect() as connection:
        check(connection)


@pytest.mark.every_postgres
def test_adopted_deliveries_are_ready_and_new_ones_need_two_columns_only(earlier: Database) -> None:
    migrate(earlier.dsn)
    ready = earlier.execute("SELECT delivery_id FROM pggit.get_ready_deliveries(10)")
    assert sorted(ready) == [(1,), (2,), (3,)]
    earlier.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
    )
    earlier.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'sending', lease_token = 1, "
        "routed = true"
    )
    earlier.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (70, 'https://example.com')"
    )
    earlier.execute(
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type) VALUES (1, "
        "1, 'retrying')"
    )
    assert earlier.execute(
        "SELECT health_status FROM pggit.webhook_health_metrics WHERE webhook_id = 70"
    ) == [("unknown",)]


@pytest.mark.every_postgres
def test_an_earlier_registry_and_health_are_adopted(earlier: Database) -> None:
    migrate(earlier.dsn)
    assert earlier.execute(
        "SELECT webhook_id, url, enabled, name, events FROM pggit.webhooks ORDER BY 1"
    ) == [
        (1, "https://example.com/orders", True, "orders", ["paid"]),
        (2, "https://example.com/stock", False, "stock", ["moved"]),
    ]
    assert earlier.execute(
        "SELECT webhook_id, total_deliveries, health_status, consecutive_failures FROM "
        "pggit.webhook_health_metrics ORDER BY 1"
    ) == [(1, 10, "healthy", 0), (2, 4, "unavailable", 4), (7, 0, "unknown", 0)]
    assert earlier.execute("SELECT webhook_id FROM pggit.get_ready_deliveries(1)") == [(1,)]
    assert earlier.execute("SELECT pggit.get_webhook_decrypted(1), pggit.commits()") == [
        ("https://example.com/orders", 1)
    ]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        earlier.execute("INSERT INTO public.subscriptions VALUES (12345, 'none')")


@pytest.mark.every_postgres
def test_adopted_columns_have_the_same_shape_as_fresh_ones(
    server: Server, earlier: Database
) -> None:
    """sql/adopt repeats what migration 0001 declares; this keeps the two together."""
    fresh = server.create()
    migrate(fresh.dsn)
    migrate(earlier.dsn)
    looser_in_the_log = {"delivery_id", "webhook_id"}
    wanted = {
        row
        for row in fresh.execute(COLUMNS)
        if row[1] not in looser_in_the_log or "log" not in row[0]
    }
    server.drop(fresh)
    assert wanted - set(earlier.execute(COLUMNS)) == set()


def test_the_shape_in_sql_adopt_names_every_column_of_the_first_migration(
    database: Database,
) -> None:
    text = (Path(__file__).parents[2] / "sql" / "adopt" / "legacy_tables.sql").read_text("utf-8")
    shape = text[: text.index("$json$;")]
    missing = [
        column
        for _, column, *_ in database.execute(COLUMNS)
        if f'"{column}":' not in re.sub(r"\s+:", ":", shape)
    ]
    assert missing == []


def test_grants_survive_on_tables_views_and_functions(server: Server, earlier: Database) -> None:
    reader, other = server.create_role(), server.create_role()
    earlier.execute(f"GRANT USAGE ON SCHEMA pggit TO {reader}, {other}")
    earlier.execute(
        f"GRANT SELECT ON pggit.alert_delivery_queue, pggit.v_webhook_performance TO {reader}"
    )
    earlier.execute(f"GRANT SELECT (webhook_id) ON pggit.v_degraded_webhooks TO {reader}")
    earlier.execute(
        f"REVOKE ALL ON FUNCTION pggit.count_pending_by_status() FROM PUBLIC;"
        f"GRANT EXECUTE ON FUNCTION pggit.count_pending_by_status() TO {reader}"
    )
    migrate(earlier.dsn)
    with earlier.connect(user=reader) as connection:
        connection.execute("SELECT * FROM pggit.alert_delivery_queue")
        connection.execute("SELECT success_freshness FROM pggit.v_webhook_performance")
        connection.execute("SELECT webhook_id FROM pggit.v_degraded_webhooks")
        connection.execute("SELECT * FROM pggit.count_pending_by_status()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT health_status FROM pggit.v_degraded_webhooks")
    with (
        earlier.connect(user=other) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT * FROM pggit.count_pending_by_status()")


@pytest.mark.every_postgres
def test_an_owner_without_special_rights_can_adopt(
    server: Server, empty_database: Database
) -> None:
    role = server.create_role()
    empty_database.execute(
        f"GRANT CREATE ON DATABASE {empty_database.name} TO {role};GRANT CREATE ON SCHEMA public "
        f"TO {role}"
    )
    with empty_database.connect(user=role) as connection:
        connection.execute(EARLIER.encode())
    migrate(make_conninfo(empty_database.dsn, user=role))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "ALTER TABLE pggit.alert_delivery_queue DROP CONSTRAINT "
            "alert_delivery_queue_delivery_status_check;"
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'parked' WHERE delivery_id "
            "IN (1, 2)",
            r"delivery_status is 'parked' in 2 rows, and may only be pending, retrying, "
            r"delivered, failed",
        ),
        (
            "UPDATE pggit.alert_delivery_queue SET delivery_status = NULL WHERE delivery_id = 1",
            r"null values",
        ),
        (
            "CREATE VIEW public.mine AS SELECT * FROM pggit.v_webhook_performance",
            r"view public.mine depends on view",
        ),
        (
            "CREATE VIEW public.mine AS SELECT created_at FROM pggit.alert_delivery_queue",
            r"depends on column",
        ),
        (
            "ALTER TABLE pggit.alert_delivery_queue ADD COLUMN attempts text",
            r"column attempts, which webhookd needs",
        ),
        (
            "ALTER TABLE pggit.alert_delivery_queue ADD COLUMN status text",
            r"column status, which webhookd needs",
        ),
        (
            "ALTER TABLE pggit.alert_delivery_queue ALTER COLUMN message_body TYPE text",
            r"message_body is of type text, which cannot become jsonb",
        ),
        (
            "ALTER TABLE pggit.webhooks RENAME COLUMN url TO address",
            r"pggit.webhooks has no column url",
        ),
        (
            "ALTER TABLE pggit.webhooks ADD COLUMN is_active boolean",
            r"several that could be it: active, is_active",
        ),
        ("CREATE TABLE pggit.workers (id int)", r"workers.* already exists"),
        (
            "ALTER TABLE pggit.webhook_health_metrics DROP CONSTRAINT "
            "webhook_health_metrics_webhook_id_key CASCADE;"
            "INSERT INTO pggit.webhook_health_metrics (webhook_id) VALUES (1)",
            r"webhook_id.*\(1\) is duplicated",
        ),
    ],
)
def test_what_cannot_be_adopted_is_refused_in_one_line_and_nothing_changes(
    earlier: Database, change: str, reason: str
) -> None:
    earlier.execute(change)
    assert re.search(reason, refused(earlier))


def test_tables_with_narrow_types_and_other_names_are_adopted_too(empty_database: Database) -> None:
    empty_database.execute("""
        CREATE SCHEMA pggit;
        CREATE TYPE public.state AS ENUM ('pending', 'delivered');
        CREATE TABLE pggit.alert_delivery_queue (
            delivery_id int PRIMARY KEY, webhook_id int NOT NULL, message_body json NOT NULL,
            delivery_status public.state DEFAULT 'pending', retry_count smallint,
            reason text NOT NULL);
        CREATE TABLE pggit.webhooks (id int, endpoint_url varchar(200), is_active boolean);
        INSERT INTO pggit.alert_delivery_queue VALUES (41, 5, '{"a": 1}', 'pending', 1, 'x');
        INSERT INTO pggit.webhooks VALUES (5, 'https://example.com', NULL);
    """)
    migrate(empty_database.dsn)
    new = empty_database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (5, '{}') "
        "RETURNING delivery_id"
    )
    assert new == [(42,)]
    assert empty_database.execute("SELECT webhook_id, url, enabled FROM pggit.webhooks") == [
        (5, "https://example.com", True)
    ]
    assert len(empty_database.execute("SELECT * FROM pggit.get_ready_deliveries()")) == 2
