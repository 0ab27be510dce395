"""Which grants a producer and an operator need in SQL."""

import psycopg
import pytest

from tests.support.engine import Engine, insert, register
from tests.support.listening import heard, watched
from tests.support.postgres import Database, Server
from tests.support.roles import acting
from tests.support.seed_statements import LOAD, RESET

pytestmark = pytest.mark.every_postgres


def test_a_producer_needs_usage_of_the_schema_and_insert_on_the_queue(
    database: Database, server: Server, worker: Engine
) -> None:
    register(database, 2001)
    with (
        watched(database) as listener,
        acting(database, server, "INSERT ON pggit.alert_delivery_queue") as producer,
    ):
        producer.execute(LOAD.encode())
        with_null = (
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at)"
            " VALUES (1, '{}', NULL)"
        )
        producer.execute(with_null.encode())
        assert heard(listener) == ["42", "42"]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            producer.execute("SELECT 1 FROM pggit.alert_delivery_queue")
    assert len(worker.take_all()) == 20


GRANTS = {
    "INSERT ... RETURNING delivery_id": (
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}') "
        "RETURNING delivery_id",
        [
            "INSERT ON pggit.alert_delivery_queue",
            "SELECT (delivery_id) ON pggit.alert_delivery_queue",
        ],
    ),
    "putting a delivery back": (
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending' WHERE delivery_id = 1",
        [
            "UPDATE (delivery_status) ON pggit.alert_delivery_queue",
            "SELECT (delivery_id) ON pggit.alert_delivery_queue",
        ],
    ),
    "resetting a circuit": (
        RESET.replace("%s", "1"),
        [
            "UPDATE (consecutive_failures, health_status, last_check_at) ON "
            "pggit.webhook_health_metrics",
            "SELECT (webhook_id, health_status) ON pggit.webhook_health_metrics",
        ],
    ),
    "registering": (
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (2, 'https://receiver.example/')",
        ["INSERT ON pggit.webhooks"],
    ),
    "pausing": (
        "UPDATE pggit.webhooks SET enabled = false WHERE webhook_id = 1",
        ["UPDATE (enabled) ON pggit.webhooks", "SELECT (webhook_id) ON pggit.webhooks"],
    ),
    "reading": (
        "SELECT count(*) FROM pggit.v_webhook_health_dashboard, pggit.v_webhook_performance, "
        "pggit.v_degraded_webhooks",
        [
            "SELECT ON pggit.v_webhook_health_dashboard",
            "SELECT ON pggit.v_webhook_performance",
            "SELECT ON pggit.v_degraded_webhooks",
        ],
    ),
}


@pytest.mark.parametrize("name", GRANTS)
def test_an_operator_needs_the_documented_grants_and_no_others(
    database: Database, server: Server, name: str
) -> None:
    statement, grants = GRANTS[name]
    register(database, 1)
    insert(database, 1)
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed'; UPDATE "
        "pggit.webhook_health_metrics"
        " SET health_status = 'unavailable', circuit_state = 'open', consecutive_failures = 5, "
        "circuit_epoch = 1"
    )
    with acting(database, server, *grants) as operator:
        operator.execute(statement.encode())
    for left_out in grants:
        with (
            acting(database, server, *[grant for grant in grants if grant != left_out]) as operator,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            operator.execute(statement.encode())
