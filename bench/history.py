"""What dashboards and `webhookd status` cost on a long history: time and pages of each statement,
and whether it scans the history.

    python -m bench.history [--rows 10000000] [--waiting 1000]

Fills a queue and its attempt log with finished deliveries of the last 30 days (one in 50 failed)
and with some that wait. Then runs each statement that a view, a dashboard or `status` repeats, five
times. Needs some 6 GB below the temporary directory.
"""

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import command
from bench.deliveries import Connection
from bench.postgres import running_postgres
from webhookd.postgres import statements as queries
from webhookd.schema.migrate import migrate

DASHBOARDS = Path(__file__).parents[1] / "monitoring" / "grafana" / "dashboards"
REPEATED = (
    "status_waiting",
    "status_minutes",
    "status_errors",
    "status_health",
    "status_unregistered",
    "measure_depth",
    "read_depth",
)
VIEWS = ("v_webhook_health_dashboard", "v_webhook_performance", "v_degraded_webhooks")
WEBHOOKS = 1000
ROUNDS = 5

# Rows as webhookd leaves them: routed, then finished. Without triggers, which would count each row
# separately.
FILL = """
SET session_replication_role = replica;
INSERT INTO pggit.webhooks (webhook_id, url)
SELECT n, 'https://receiver.example/' || n FROM generate_series(1, %(webhooks)s) n;
INSERT INTO pggit.webhook_health_metrics
       (webhook_id, health_status, total_deliveries, successful_deliveries, avg_response_time_ms)
SELECT n, (ARRAY['healthy', 'healthy', 'degraded', 'unavailable'])[1 + n %% 4], 100, 98, n %% 300
  FROM generate_series(1, %(webhooks)s) n;
INSERT INTO pggit.alert_delivery_queue
       (webhook_id, message_body, delivery_status, attempts, worker_id, created_at, attempted_at,
        delivered_at)
SELECT 1 + n %% %(webhooks)s, '{"type": "invoice.paid", "data": {"id": 42}}',
       CASE WHEN n %% 50 = 0 THEN 'failed' ELSE 'delivered' END, 1, 'worker-1', at, at, at
  FROM (SELECT n, now() - interval '30 days' * (1 - n::float8 / %(rows)s) AS at
          FROM generate_series(1, %(rows)s) n) made;
INSERT INTO pggit.alert_delivery_log
       (delivery_id, webhook_id, event_type, event_details, http_status, response_time_ms,
        worker_id, created_at)
SELECT delivery_id, webhook_id, delivery_status, '{}', 200, 12.5, worker_id, created_at
  FROM pggit.alert_delivery_queue;
INSERT INTO pggit.finished_counts (delivered, failed)
SELECT %(rows)s - %(rows)s / 50, %(rows)s / 50;
INSERT INTO pggit.worker_minutes
       (minute, worker_id, delivered, failed, timeouts, circuit_opens, rate_limit_hits, durations,
        slowest_seconds)
SELECT date_trunc('minute', now()) - m * interval '1 minute', 'worker-' || w, 5, 0, 0, 0, 0,
       array_fill(1, ARRAY[12]), 60
  FROM generate_series(0, 1499) m, generate_series(1, 3) w;
SET session_replication_role = origin;
INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)
SELECT 1 + n %% %(webhooks)s, '{}' FROM generate_series(1, %(waiting)s) n
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000, help="finished deliveries")
    parser.add_argument("--waiting", type=int, default=1000, help="deliveries that wait")
    options = parser.parse_args()
    with running_postgres("fsync=off") as postgres:
        migrate(postgres.create("history"))
        with postgres.connect("history") as connection:
            fill(connection, rows=options.rows, waiting=options.waiting)
            print(
                f"{options.rows:,} finished deliveries, {options.waiting:,} waiting; medians of "
                f"{ROUNDS}"
            )
            print(f"{'ms':>10} {'pages':>9}  history scanned?  statement")
            for name, statement in statements():
                print(measure(connection, name, statement), flush=True)


def fill(connection: Connection, *, rows: int, waiting: int) -> None:
    values = {"rows": rows, "waiting": waiting, "webhooks": WEBHOOKS}
    for statement in FILL.split(";\n"):
        connection.execute(
            (
                re.sub(r"%\((\w+)\)s", lambda match: str(values[match[1]]), statement).replace(
                    "%%", "%"
                )
            ).encode()
        )
    for table in (
        "alert_delivery_queue",
        "alert_delivery_log",
        "webhook_health_metrics",
        "worker_minutes",
    ):
        connection.execute(f"VACUUM ANALYZE pggit.{table}".encode())


def statements() -> Iterator[tuple[str, str]]:
    yield (
        "count(*) by status, for comparison",
        "SELECT delivery_status, count(*) FROM pggit.alert_delivery_queue GROUP BY 1",
    )
    yield "count_pending_by_status()", "SELECT * FROM pggit.count_pending_by_status()"
    for view in VIEWS:
        yield view, f"SELECT * FROM pggit.{view}"
    for name in REPEATED:
        yield name, queries.load(name).replace("%(limit)s", "10")
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                if "rawSql" in target:
                    yield f"{file.stem}: {panel['title']}", without_macros(target["rawSql"])


def without_macros(text: str) -> str:
    """Return a panel's SQL as Grafana would send it for the last hour, all webhooks and workers."""
    text = re.sub(r"\$\{(webhook|worker):sqlstring\}", "'%'", text)
    text = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 > now() - interval '1 hour'", text)
    return re.sub(
        r"\$__timeGroup(?:Alias)?\((\w+),[^)]*\)", r"date_trunc('minute', \1) AS time", text
    )


def measure(connection: Connection, name: str, statement: str) -> str:
    plans = []
    for _ in range(ROUNDS):
        row = connection.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}".encode()
        ).fetchone()
        assert row is not None
        plans.append(row[0][0])
    took = statistics.median(plan["Execution Time"] + plan["Planning Time"] for plan in plans)
    pages = statistics.median(
        plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] for plan in plans
    )
    scanned = "YES" if any(scans_history(plan["Plan"]) for plan in plans) else "no"
    return f"{took:10.1f} {pages:9.0f}  {scanned:16}  {name}"


def scans_history(plan: dict[str, Any]) -> bool:
    history = plan.get("Relation Name") in ("alert_delivery_queue", "alert_delivery_log")
    return (plan["Node Type"] == "Seq Scan" and history) or any(
        scans_history(part) for part in plan.get("Plans", [])
    )


if __name__ == "__main__":
    command.run(main)
