"""The original shape of pggit's webhook worker, with asyncio, aiohttp and asyncpg: it polls, and
updates row by row.

`python original.py URL PAUSE`: it sleeps PAUSE seconds after a poll that found work. The original
sleeps 1 s, as after a poll that found none. It counts and times each delivery for Prometheus and
updates the health table, as the original's document describes.
"""

import asyncio
import sys
import time
from typing import Any

import aiohttp
import asyncpg
from prometheus_client import Counter, Gauge, Histogram

BATCH = 100
POLL_S = 1.0

DELIVERIES = Counter("webhook_deliveries_total", "Deliveries attempted", ["status", "webhook_id"])
DURATION = Histogram(
    "webhook_delivery_duration_seconds",
    "Of a request",
    ["webhook_id"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0),
)
DEPTH = Gauge("webhook_queue_depth", "Pending deliveries found by a poll")
HEALTHY = Gauge("worker_health_status", "1: healthy", ["worker_id"])

POLL = """
SELECT delivery_id, webhook_id, message_body FROM pggit.alert_delivery_queue
 WHERE delivery_status = 'pending' ORDER BY delivery_id LIMIT $1
"""
DELIVERED = """
UPDATE pggit.alert_delivery_queue
   SET delivery_status = 'delivered', delivered_at = now(), attempted_at = now()
 WHERE delivery_id = $1
"""
FAILED = """
UPDATE pggit.alert_delivery_queue
   SET retry_count = retry_count + 1, attempted_at = now()
 WHERE delivery_id = $1
"""
HEALTH = """
UPDATE pggit.webhook_health_metrics
   SET total_deliveries = total_deliveries + 1,
       successful_deliveries = successful_deliveries + $2,
       failed_deliveries = failed_deliveries + 1 - $2,
       consecutive_failures = CASE WHEN $2 = 1 THEN 0 ELSE consecutive_failures + 1 END,
       avg_response_time_ms =
           (avg_response_time_ms * total_deliveries + $3) / (total_deliveries + 1),
       last_check_at = now()
 WHERE webhook_id = $1
"""


async def deliver(pool: asyncpg.Pool, session: aiohttp.ClientSession, url: str, row: Any) -> None:
    """POST one row and store the result."""
    webhook_id = row["webhook_id"]
    began = time.perf_counter()
    headers = {"content-type": "application/json"}
    async with session.post(
        f"{url}/{webhook_id}", data=row["message_body"], headers=headers
    ) as answer:
        await answer.read()
        success = answer.status < 300
    took_s = time.perf_counter() - began
    DELIVERIES.labels("delivered" if success else "failed", webhook_id).inc()
    DURATION.labels(webhook_id).observe(took_s)
    await pool.execute(DELIVERED if success else FAILED, row["delivery_id"])
    await pool.execute(HEALTH, webhook_id, int(success), took_s * 1000)


async def main(url: str, pause_s: float) -> None:
    async with (
        asyncpg.create_pool(min_size=10, max_size=10) as pool,
        aiohttp.ClientSession() as session,
    ):
        print("ready", flush=True)
        while True:
            rows = await pool.fetch(POLL, BATCH)
            DEPTH.set(len(rows))
            HEALTHY.labels("worker-1").set(1)
            await asyncio.gather(*(deliver(pool, session, url, row) for row in rows))
            await asyncio.sleep(pause_s if rows else POLL_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
