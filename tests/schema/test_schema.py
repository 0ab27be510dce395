"""The SQL that dashboards and scripts may rely on: the seed's statements, functions and views."""

import pytest

from tests.support.engine import Engine, answered, insert, lane, lanes_of, let_pass, register
from tests.support.postgres import Database
from tests.support.seed_statements import LOAD, RESET, SELECTS

pytestmark = pytest.mark.every_postgres


# The seed's statements


def some_life(database: Database, worker: Engine) -> None:
    """Three of the seed's webhooks registered and tried: one healthy, one degraded, one
    unavailable.
    """
    register(database, 2001, 2002)
    register(database, 2003, max_retries=0)
    database.execute("UPDATE pggit.alert_delivery_queue SET max_retries = NULL")
    for item in worker.take_all():
        failed = {2001: 200, 2002: 500, 2003: 404}[item.webhook_id]
        worker.finish([item], answered(failed if item.delivery_id % 3 or failed == 404 else 200))


def test_every_statement_of_the_seed_runs_verbatim(database: Database, worker: Engine) -> None:
    database.execute(LOAD)
    some_life(database, worker)
    answers = {name: database.execute(text) for name, text in SELECTS.items()}
    assert len(answers) == 16
    assert {name for name, rows in answers.items() if not rows} == set()
    assert answers["section_8_count"] == [(1000,)]
    [(pending, retrying, delivered, failed, total)] = answers["section_7_queue"]
    assert (pending + retrying + delivered + failed, total) == (1000, 1000)
    assert min(pending, retrying, delivered, failed) > 0
    assert dict(answers["section_4_status_distribution"])["unavailable"] == 1
    assert {row[0] for row in answers["section_5_worker_throughput"]} == {"worker-1", None}
    with database.connect() as connection:
        assert connection.execute(RESET.encode(), [2003]).rowcount == 1
    assert lane(database, 2003)["circuit_state"] == "closed"


def test_the_load_of_the_seed_is_taken_as_it_is(database: Database) -> None:
    database.execute(LOAD)
    [(count, webhooks, due)] = database.execute(
        "SELECT count(*), count(DISTINCT webhook_id), bool_and(next_retry_at <= now()) FROM "
        "pggit.alert_delivery_queue"
    )
    assert (count, webhooks, due) == (1000, 50, True)


# Functions


def test_functions_keep_the_names_and_types_of_their_parameters(database: Database) -> None:
    rows = database.execute(
        "SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid) FROM pg_proc"
        " WHERE pronamespace = 'pggit'::regnamespace"
    )
    signatures = {name: (arguments, result) for name, arguments, result in rows}
    assert signatures["get_ready_deliveries"] == (
        "p_limit integer DEFAULT 10",
        "TABLE(delivery_id bigint, alert_id bigint, webhook_id bigint, message_body jsonb, "
        "retry_count integer,"
        " max_retries integer)",
    )
    assert signatures["update_webhook_health"] == (
        "p_webhook_id bigint, p_http_status integer, p_response_time_ms integer, p_error_message "
        "text DEFAULT NULL::text",
        "boolean",
    )
    assert signatures["get_webhook_decrypted"] == ("p_webhook_id bigint", "text")
    assert signatures["count_pending_by_status"][1] == (
        "TABLE(pending_count bigint, retrying_count bigint, delivered_count bigint, failed_count "
        "bigint, total_count bigint)"
    )


def test_get_ready_deliveries_returns_what_is_due_the_oldest_first(database: Database) -> None:
    database.import_rows(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, alert_id, created_at, "
        "next_retry_at, delivery_status)"
        " SELECT 1, '{}', n, now() - n * interval '1 min', now() + CASE WHEN n = 5 THEN interval "
        "'1 h' ELSE '-1 s' END,"
        " CASE WHEN n % 2 = 0 THEN 'retrying' WHEN n = 7 THEN 'delivered' ELSE 'pending' END "
        "FROM generate_series(1, 14) n"
    )
    ready = database.execute("SELECT * FROM pggit.get_ready_deliveries()")
    assert [row[1] for row in ready] == [14, 13, 12, 11, 10, 9, 8, 6, 4, 3]
    ready = database.execute("SELECT * FROM pggit.get_ready_deliveries(p_limit => 2)")
    assert [row[1] for row in ready] == [14, 13]


def test_get_webhook_decrypted_returns_the_url_or_null(database: Database) -> None:
    register(database, 5)
    assert database.execute(
        "SELECT pggit.get_webhook_decrypted(5), pggit.get_webhook_decrypted(p_webhook_id => 6)"
    ) == [("https://receiver.example/5", None)]


def test_count_pending_by_status_counts_what_is_being_sent_as_what_it_was(
    database: Database, worker: Engine
) -> None:
    assert database.execute("SELECT * FROM pggit.count_pending_by_status()") == [(0, 0, 0, 0, 0)]
    register(database, 1)
    ids = insert(database, 1, 6)
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET max_retries = 0 WHERE delivery_id = %s", [ids[1]]
    )
    first, second, third, *_ = worker.take(4)
    worker.finish([first], answered(200))
    worker.finish([second], answered(404))
    worker.finish([third], answered(500))
    assert database.execute("SELECT * FROM pggit.count_pending_by_status()") == [(3, 1, 1, 1, 6)]
    let_pass(database, 10)
    worker.take_all()
    assert database.execute("SELECT * FROM pggit.count_pending_by_status()") == [(3, 1, 1, 1, 6)]


def health(database: Database, *answers: tuple[int, int]) -> None:
    """Report (HTTP status, milliseconds) for webhook 9, as the earlier pggit's senders did."""
    for status, took_ms in answers:
        assert database.execute(
            "SELECT pggit.update_webhook_health(9, %s, %s)", [status, took_ms]
        ) == [(True,)]


def test_update_webhook_health_counts_and_averages_all_attempts(database: Database) -> None:
    health(database, (200, 100), (0, 5000), (201, 50))
    state = lane(database, 9)
    assert (
        state["total_deliveries"],
        state["successful_deliveries"],
        state["failed_deliveries"],
    ) == (3, 2, 1)
    assert (
        state["avg_response_time_ms"],
        state["min_response_time_ms"],
        state["max_response_time_ms"],
    ) == (1716.67, 50, 5000)
    assert (state["health_status"], state["consecutive_failures"]) == ("healthy", 0)


def test_update_webhook_health_opens_the_circuit_at_five_failures_or_the_webhooks_own_number(
    database: Database,
) -> None:
    health(database, *[(500, 10)] * 4)
    assert lane(database, 9)["health_status"] == "degraded"
    health(database, (404, 10))
    state = lane(database, 9)
    assert (state["health_status"], state["circuit_state"], state["consecutive_failures"]) == (
        "unavailable",
        "open",
        5,
    )
    assert 50 < state["circuit_in_s"] <= 60
    health(database, (200, 10))
    assert (lane(database, 9)["health_status"], lane(database, 9)["circuit_state"]) == (
        "healthy",
        "closed",
    )
    register(database, 9, circuit_failure_threshold=2, circuit_open_seconds=500)
    health(database, (500, 10), (500, 10))
    assert 490 < lane(database, 9)["circuit_in_s"] <= 500


def test_what_update_webhook_health_opened_holds_the_workers_back(
    database: Database, worker: Engine
) -> None:
    register(database, 9)
    health(database, *[(500, 10)] * 5)
    insert(database, 9, 3)
    assert worker.take_all() == []
    health(database, (200, 10))
    assert len(worker.take_all()) == 3


# Views


def test_the_views_say_what_was_computed_by_hand(database: Database) -> None:
    database.execute(
        "INSERT INTO pggit.webhook_health_metrics (webhook_id, health_status, total_deliveries, "
        "successful_deliveries,"
        " failed_deliveries, avg_response_time_ms, consecutive_failures, last_check_at, "
        "last_success_at) VALUES"
        " (1, 'healthy', 10, 9, 1, 100, 0, now() - interval '1 min', now() - interval '90 s'),"
        " (2, 'healthy', 3, 3, 0, 200.5, 0, now(), now()),"
        " (3, 'degraded', 8, 1, 7, 50, 2, now() - interval '3 min', now() - interval '6 h'),"
        " (4, 'unavailable', 5, 0, 5, 5000, 5, now() - interval '30 s', NULL),"
        " (5, 'unknown', 0, 0, 0, NULL, 0, NULL, NULL)"
    )
    database.execute(
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, created_at) "
        "VALUES"
        " (1, 3, 'retrying', now()), (1, 3, 'failed', now() - interval '30 min'), (1, 3, "
        "'failed', now() - interval '2 h'),"
        " (1, 3, 'failed', now() - interval '25 h'), (2, 3, 'delivered', now()), (3, 4, "
        "'failed', now()),"
        " (4, 1, 'retrying', now() - interval '23 h')"
    )
    columns = "health_status, webhook_count, avg_response_ms::float8, failures_1h, failures_24h"
    assert database.execute(
        f"SELECT {columns} FROM pggit.v_webhook_health_dashboard ORDER BY 1"
    ) == [
        ("degraded", 1, 50.0, 2, 3),
        ("healthy", 2, 150.25, 0, 1),
        ("unavailable", 1, 5000.0, 1, 1),
        ("unknown", 1, None, 0, 0),
    ]
    columns = (
        "webhook_id, health_status, total_deliveries, success_rate_percent::float8, "
        "consecutive_failures,"
        " round(success_freshness, 1)::float8"
    )
    assert database.execute(f"SELECT {columns} FROM pggit.v_webhook_performance ORDER BY 1") == [
        (1, "healthy", 10, 90.0, 0, 1.5),
        (2, "healthy", 3, 100.0, 0, 0.0),
        (3, "degraded", 8, 12.5, 2, 360.0),
        (4, "unavailable", 5, 0.0, 5, None),
        (5, "unknown", 0, None, 0, None),
    ]
    columns = (
        "webhook_id, health_status, consecutive_failures, round(minutes_since_check, 1)::float8,"
        " round(hours_since_success, 1)::float8, total_deliveries, successful_deliveries, "
        "failed_deliveries"
    )
    assert database.execute(f"SELECT {columns} FROM pggit.v_degraded_webhooks ORDER BY 1") == [
        (3, "degraded", 2, 3.0, 6.0, 8, 1, 7),
        (4, "unavailable", 5, 0.5, None, 5, 0, 5),
    ]


def test_the_dashboard_counts_each_failed_attempt_of_a_worker(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    insert(database, 1, 2)
    for status in (500, 500, 200):
        worker.finish(worker.take_all(), answered(status))
        let_pass(database, 600)
    assert database.execute(
        "SELECT failures_1h, failures_24h FROM pggit.v_webhook_health_dashboard"
    ) == [(4, 4)]


def test_health_rows_of_webhooks_that_are_not_registered_are_allowed(database: Database) -> None:
    lanes_of(database, 404)
    assert database.execute("SELECT webhook_id FROM pggit.v_webhook_performance") == [(404,)]
