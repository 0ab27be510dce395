"""Rows of any age in the queue and the attempt log, and rounds of retention through both."""

from contextlib import nullcontext
from datetime import datetime

from tests.support.postgres import Database
from webhookd.config.options import Config
from webhookd.postgres import session
from webhookd.postgres.retention import Keep, Retention

KEEP = Keep.of(Config())
QUEUE, LOG = "alert_delivery_queue", "alert_delivery_log"


def retention(keep: Keep = KEEP) -> Retention:
    return Retention(keep, removed=lambda table, rows: None)


def rounds_are_due(database: Database) -> None:
    database.execute("UPDATE pggit.retention SET turned_at = now() - interval '1000 days'")


def whole_round(database: Database, connection: session.Connection, keep: Keep = KEEP) -> None:
    """Go through both tables once."""
    rounds_are_due(database)
    before = laps(database)
    retention(keep).turn(lambda: nullcontext(connection))
    assert all(after > earlier for after, earlier in zip(laps(database), before, strict=True))


def laps(database: Database) -> list[datetime]:
    return [
        row[0]
        for row in database.execute(
            "SELECT lap_started_at FROM pggit.retention ORDER BY table_name"
        )
    ]


def finished(
    database: Database, count: int, *, days: float, status: str = "delivered"
) -> list[int]:
    """Insert deliveries that were finished so many days ago."""
    rows = database.import_rows(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status, "
        "attempts, created_at, attempted_at,"
        " delivered_at) SELECT 1, '{\"n\": 1}', %(status)s, 1, at, at, CASE WHEN %(status)s = "
        "'delivered' THEN at END"
        " FROM generate_series(1, %(count)s), LATERAL (SELECT now() - %(days)s * interval '1 "
        "day' AS at) t RETURNING delivery_id",
        {"status": status, "count": count, "days": days},
    )
    return [row[0] for row in rows]


def logged(database: Database, count: int, *, days: float) -> None:
    database.execute(
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, created_at)"
        " SELECT n, 1, 'delivered', now() - %s * interval '1 day' FROM generate_series(1, %s) n",
        [days, count],
    )


def ids(database: Database) -> set[int]:
    return {
        row[0] for row in database.execute("SELECT delivery_id FROM pggit.alert_delivery_queue")
    }


def count(database: Database, table: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM pggit.{table}")[0][0])


def removed(database: Database) -> dict[str, int]:
    return dict(database.execute("SELECT table_name, removed::int FROM pggit.retention"))


def assert_counts_are_true(database: Database) -> None:
    assert database.execute(
        "SELECT delivered_count, failed_count, total_count FROM pggit.count_pending_by_status()"
    ) == (
        database.execute(
            "SELECT count(*) FILTER (WHERE delivery_status = 'delivered'), count(*) FILTER "
            "(WHERE delivery_status = 'failed'),"
            " count(*) FROM pggit.alert_delivery_queue"
        )
    )
