"""Columns, defaults and checks that producers, dashboards and scripts may rely on."""

import psycopg
import pytest

from tests.support.engine import STANDARD, Engine, lane, register
from tests.support.postgres import Database

pytestmark = pytest.mark.every_postgres

COLUMNS = {
    "alert_delivery_queue": {
        "delivery_id": "bigint",
        "alert_id": "bigint",
        "webhook_id": "bigint",
        "message_body": "jsonb",
        "delivery_status": "text",
        "status": "text",
        "retry_count": "integer",
        "max_retries": "integer",
        "body_bytes": "bigint",
        "next_retry_at": "timestamp with time zone",
        "worker_id": "text",
        "created_at": "timestamp with time zone",
        "attempted_at": "timestamp with time zone",
        "delivered_at": "timestamp with time zone",
    },
    "webhook_health_metrics": {
        "webhook_id": "bigint",
        "health_status": "text",
        "total_deliveries": "bigint",
        "successful_deliveries": "bigint",
        "failed_deliveries": "bigint",
        "avg_response_time_ms": "numeric",
        "min_response_time_ms": "numeric",
        "max_response_time_ms": "numeric",
        "consecutive_failures": "integer",
        "last_check_at": "timestamp with time zone",
        "last_success_at": "timestamp with time zone",
        "last_failure_at": "timestamp with time zone",
    },
    "alert_delivery_log": {
        "delivery_id": "bigint",
        "webhook_id": "bigint",
        "event_type": "text",
        "event_details": "jsonb",
        "created_at": "timestamp with time zone",
    },
    "webhooks": {
        "webhook_id": "bigint",
        "url": "text",
        "enabled": "boolean",
        "disabled_reason": "text",
        "secret": "text",
        "headers": "jsonb",
        "timeout_seconds": "double precision",
        "max_in_flight": "integer",
        "rate_limit_per_second": "double precision",
        "rate_limit_burst": "integer",
        "max_retries": "integer",
        "retry_base_seconds": "double precision",
        "retry_factor": "double precision",
        "retry_max_seconds": "double precision",
        "circuit_failure_threshold": "integer",
        "circuit_open_seconds": "double precision",
        "old_secret": "text",
        "old_secret_until": "timestamp with time zone",
        "name": "text",
        "uid": "text",
        "tenant": "text",
        "labels": "jsonb",
    },
}
VIEWS = {
    "v_webhook_health_dashboard": [
        "health_status",
        "webhook_count",
        "avg_response_ms",
        "failures_1h",
        "failures_24h",
    ],
    "v_webhook_performance": [
        "webhook_id",
        "health_status",
        "total_deliveries",
        "success_rate_percent",
        "avg_response_time_ms",
        "consecutive_failures",
        "success_freshness",
    ],
    "v_degraded_webhooks": [
        "webhook_id",
        "health_status",
        "consecutive_failures",
        "minutes_since_check",
        "hours_since_success",
        "total_deliveries",
        "successful_deliveries",
        "failed_deliveries",
        "avg_response_time_ms",
    ],
}


def test_tables_and_views_have_the_columns_of_the_contract(database: Database) -> None:
    rows = database.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'pggit' ORDER BY table_name, ordinal_position"
    )
    for table, columns in COLUMNS.items():
        found = {column: kind for name, column, kind in rows if name == table}
        assert {column: found.get(column) for column in columns} == columns, table
    for view, names in VIEWS.items():
        assert [column for name, column, _ in rows if name == view] == names


def test_an_insert_needs_no_more_than_webhook_id_and_body(database: Database) -> None:
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
    )
    [(status, same, retries, most, due, created)] = database.execute(
        "SELECT delivery_status, status, retry_count, max_retries, next_retry_at <= now(), "
        "created_at <= now()"
        " FROM pggit.alert_delivery_queue"
    )
    assert (status, same, retries, most, due, created) == (
        "pending",
        "pending",
        0,
        None,
        True,
        True,
    )


def test_a_registration_needs_no_more_than_id_and_url_and_leaves_the_rest_to_the_configuration(
    database: Database,
) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (7, 'https://receiver.example/')"
    )
    [(row,)] = database.execute("SELECT to_jsonb(w) - 'created_at' FROM pggit.webhooks w")
    assert isinstance(row, dict)
    assert {name: value for name, value in row.items() if value is not None} == {
        "webhook_id": 7,
        "url": "https://receiver.example/",
        "enabled": True,
        "tenant": "default",
    }
    assert lane(database, 7)["health_status"] == "unknown"


def test_nulls_and_a_status_that_no_producer_can_mean_are_read_as_the_defaults(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue"
        " (webhook_id, message_body, delivery_status, retry_count, max_retries, next_retry_at, "
        "created_at)"
        " VALUES (1, '{}', NULL, NULL, NULL, NULL, NULL), (1, '{}', 'sending', 0, 3, now(), now())"
    )
    claimed = worker.take_all()
    assert sorted(delivery.max_retries for delivery in claimed) == [3, STANDARD.max_retries]


def test_an_unknown_status_is_refused_of_who_may_write_it(database: Database) -> None:
    unknown = (
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status) "
        "VALUES (1, '{}', 'sent')"
    )
    with pytest.raises(psycopg.errors.CheckViolation):
        database.import_rows(unknown)
    database.execute(unknown)  # a producer's status is ignored
    assert database.execute("SELECT delivery_status FROM pggit.alert_delivery_queue") == [
        ("pending",)
    ]


NONSENSE = [
    "timeout_seconds = 0",
    "timeout_seconds = 'NaN'",
    "max_in_flight = 0",
    "rate_limit_per_second = -1",
    "rate_limit_per_second = 'NaN'",
    "rate_limit_burst = 0",
    "retry_base_seconds = 'Infinity'",
    "max_retries = -1",
    "max_retries = 1001",
    "retry_factor = 0.9",
    "retry_factor = 'NaN'",
    "circuit_failure_threshold = 0",
    "circuit_open_seconds = 0",
    "headers = '[]'",
]


# What the registry bounds, with the name of its constraint, and what is just allowed.
BOUNDS = {
    "webhook_id_is_from_1_to_2_pow_53": ("webhook_id = 1 + (1::bigint << 53)", "webhook_id = 1"),
    "url_is_at_most_8_kib": ("url = repeat('x', 8193)", "url = repeat('x', 8192)"),
    "secret_is_whsec_and_base64_of_24_to_64_bytes": (
        "secret = 'whsec_' || encode(repeat('x', 23)::bytea, 'base64')",
        "secret = 'whsec_' || replace(encode(repeat('x', 64)::bytea, 'base64'), chr(10), '')",
    ),
    "old_secret_is_whsec_and_base64_of_24_to_64_bytes": (
        "old_secret = 'hunter2', old_secret_until = now()",
        "old_secret = 'whsec_' || encode(repeat('x', 24)::bytea, 'base64'),"
        " old_secret_until = now()",
    ),
    "headers_are_at_most_16_kib": (
        "headers = jsonb_build_object('a', repeat('x', 16376))",
        "headers = jsonb_build_object('a', repeat('x', 16375))",
    ),
    "headers_are_at_most_64_names": (
        "headers = (SELECT jsonb_object_agg(n, '') FROM generate_series(1, 65) n)",
        "headers = (SELECT jsonb_object_agg(n, '') FROM generate_series(1, 64) n)",
    ),
    "name_is_at_most_200_characters": ("name = repeat('ü', 201)", "name = repeat('ü', 200)"),
    "uid_is_at_most_255_characters": ("uid = repeat('ü', 256)", "uid = repeat('ü', 255)"),
    "tenant_is_1_to_100_characters": ("tenant = ''", "tenant = repeat('x', 100)"),
    "labels_are_an_object": ("labels = '[]'", "labels = '{}'"),
    "labels_are_at_most_4_kib": (
        "labels = jsonb_build_object('a', repeat('x', 4088))",
        "labels = jsonb_build_object('a', repeat('x', 4087))",
    ),
    "labels_are_at_most_64_names": (
        "labels = (SELECT jsonb_object_agg(n, '') FROM generate_series(1, 65) n)",
        "labels = (SELECT jsonb_object_agg(n, '') FROM generate_series(1, 64) n)",
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_what_the_registry_bounds_is_refused_by_the_name_of_the_bound(
    database: Database, name: str
) -> None:
    register(database, 1)
    refused, allowed = BOUNDS[name]
    database.execute(f"UPDATE pggit.webhooks SET {allowed}")
    with pytest.raises(psycopg.errors.CheckViolation) as violated:
        database.execute(f"UPDATE pggit.webhooks SET {refused}")
    assert violated.value.diag.constraint_name == name


def test_a_secret_is_refused_in_every_form_that_cannot_sign(database: Database) -> None:
    register(database, 1)
    base64 = "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4"
    for secret in (
        *("", "whsec_", base64, f"WHSEC_{base64}", f"whsec_ {base64}", f"whsec_{base64}\n"),
        *(f"whsec_{base64}=", f"whsec_{base64[:-1]}", f"whsec_{base64[:-1]}-"),
        *(f"whsec_{base64[:-4]}=eHh4", f"whsec_{base64[:-4]}===="),
    ):
        with pytest.raises(psycopg.errors.CheckViolation):
            database.execute("UPDATE pggit.webhooks SET secret = %s", [secret])
    database.execute("UPDATE pggit.webhooks SET secret = %s", [f"whsec_{base64}"])


def test_a_uid_is_unique_in_its_tenant(database: Database) -> None:
    add = "INSERT INTO pggit.webhooks (url, uid, tenant) VALUES ('https://a.example/', %s, %s)"
    for uid, tenant in (("a", "acme"), ("a", "globex"), (None, "acme"), (None, "acme")):
        database.execute(add, [uid, tenant])
    with pytest.raises(psycopg.errors.UniqueViolation, match="uid_is_unique_in_its_tenant"):
        database.execute(add, ["a", "acme"])


def test_a_setting_that_means_nothing_is_refused(database: Database) -> None:
    register(database, 1)
    for setting in NONSENSE:
        with pytest.raises(psycopg.errors.CheckViolation):
            database.execute(f"UPDATE pggit.webhooks SET {setting}")


def test_every_table_has_a_primary_key(database: Database) -> None:
    assert (
        database.execute(
            "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'pggit'::regnamespace AND "
            "c.relkind = 'r'"
            " AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)"
        )
        == []
    )
