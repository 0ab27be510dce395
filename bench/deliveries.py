"""webhookd's queue in a benchmark: registers webhooks, inserts deliveries with a body of some 330
bytes, and checks that all are complete.
"""

from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

WEBHOOKS = 50
QUEUE = "pggit.alert_delivery_queue"
# Emptied, so that no round pays for the rows of the last one; configuration stays. TRUNCATE of the
# queue also empties finished_counts.
_EMPTIED = f"{QUEUE}, pggit.alert_delivery_log, pggit.webhook_health_metrics, pggit.worker_minutes"

_FILLING = (
    '"type": "invoice.paid", "data": {"customer": "cus_9s6XKzkNRiz8i3", "currency": "eur",'
    ' "amount_due": 12900, "amount_paid": 12900, "description": "Monthly subscription, 3 seats",'
    ' "lines": [{"sku": "seat-month", "quantity": 3, "unit_amount": 4300}],'
    ' "hosted_invoice_url": "https://billing.example/i/9s6XKzkNRiz8i3", "status": "paid"}}'
)


def body(number: int | str) -> str:
    """Return the JSON that all systems send; *number* tells the deliveries of a run apart."""
    return f'{{"n": {number}, {_FILLING}'


def body_sql(number: str) -> str:
    """Return SQL for `body` as text, of the SQL expression *number*."""
    before, after = body("|").split("|")
    return f"'{before}' || {number} || '{after}'"


def register(connection: Connection, url: str, *, webhooks: int = WEBHOOKS) -> None:
    """Register webhooks 1 to *webhooks* with *url* plus their id as a path: no rate limit,
    otherwise defaults.
    """
    connection.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second)"
        " SELECT i, %s || '/' || i, 0 FROM generate_series(1, %s) i"
        " ON CONFLICT (webhook_id) DO UPDATE SET url = EXCLUDED.url",
        [url, webhooks],
    )


def insert(connection: Connection, count: int, *, webhooks: int = WEBHOOKS) -> None:
    """Insert *count* deliveries, numbered from 0, over the webhooks 1 to *webhooks* in turn."""
    statement = (
        f"INSERT INTO {QUEUE} (webhook_id, message_body)"
        f" SELECT 1 + i %% %s, ({body_sql('i')})::jsonb FROM generate_series(0, %s - 1) i"
    )
    connection.execute(statement.encode(), [webhooks, count])


def incomplete(connection: Connection) -> int:
    """Return how many deliveries are not delivered."""
    row = connection.execute(
        f"SELECT count(*) FROM {QUEUE} WHERE delivery_status <> 'delivered'".encode()
    ).fetchone()
    assert row is not None
    return int(row[0])


def empty(connection: Connection) -> None:
    """Remove all deliveries, attempts and health; stop the fleet first."""
    connection.execute(f"TRUNCATE {_EMPTIED}".encode())
