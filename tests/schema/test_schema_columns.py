"""Columns, defaults and checks that producers, dashboards and scripts may rely on."""

import psycopg
import pytest

from tests.support.engine import Engine, lane, register
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
        "retry_base_seconds": "double precision",
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
    assert len(worker.take_all()) == 2


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
    "circuit_failure_threshold = 0",
    "circuit_open_seconds = 0",
    "headers = '[]'",
]


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
