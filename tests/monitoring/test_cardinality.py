"""However many webhooks there are, a worker's series, its scrapes and its memory stay bounded, and
nothing goes uncounted.
"""

import gc
import http.client
import random
import shutil
import socket
import subprocess
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support.daemon import (
    Daemon,
    answer_ok,
    insert,
    register,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.postgres import Database
from tests.support.receivers import Receiver
from tests.support.waiting import eventually
from webhookd.config.options import Config
from webhookd.metrics import counters as metrics_module
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus, ObservedAttempt
from webhookd.metrics.endpoint import Endpoint

WEBHOOKS = 50_000
WAVES = 10
PLACES = Config().metrics_webhooks
SERIES_OF_A_WEBHOOK = 19  # docs/metrics.md, "What it costs"
SERIES_OF_A_WORKER = 150
BYTES_OF_A_SERIES = 90
WEBHOOK_COUNTERS = (
    "webhook_deliveries_total",
    "webhook_delivery_duration_seconds_count",
    "webhook_delivery_duration_seconds_bucket",
    "rate_limit_hits_total",
    "circuit_breaker_opens_total",
)


def test_a_scrape_of_fifty_thousand_webhooks_stays_small_and_all_are_counted() -> None:
    metrics = Metrics("worker-1", max_webhooks=PLACES)
    counted = count_everything(metrics, range(1, WEBHOOKS + 1))
    with served(metrics) as port:
        body = scrape(port)
    assert total_of(body) == counted
    assert webhook_ids(body) == {"other", *map(str, range(1, PLACES + 1))}
    series = [sample for family in parse_text(body) for sample in family.samples]
    assert len(series) <= (PLACES + 1) * SERIES_OF_A_WEBHOOK + SERIES_OF_A_WORKER
    assert len(body) <= len(series) * BYTES_OF_A_SERIES
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NO PROMTOOL: install Debian's prometheus")
    check = subprocess.run(
        [promtool, "check", "metrics"], input=body, text=True, capture_output=True, check=False
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")


def test_memory_does_not_grow_with_the_webhooks() -> None:
    metrics = Metrics("worker-1", max_webhooks=PLACES)
    count_everything(metrics, range(1, 5_001))
    tracemalloc.start()
    try:
        count_everything(metrics, range(5_001, 25_001))
        gc.collect()
        # Only of this module: fleets and receivers of other tests may run in this process.
        grown = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, metrics_module.__file__)]
        )
    finally:
        tracemalloc.stop()
    # 20,000 webhooks more; the series of one take about a thousand bytes.
    assert sum(trace.size for trace in grown.traces) < 200_000


def test_webhooks_that_come_and_go_never_take_more_places_and_no_counter_ever_falls() -> None:
    now = 0.0
    metrics = Metrics("worker-1", max_webhooks=PLACES, clock=lambda: now)
    named: set[str] = set()
    before: dict[tuple[str, ...], float] = {}
    with served(metrics) as port:
        for first in range(1, WEBHOOKS, WEBHOOKS // WAVES):
            count_everything(metrics, range(first, first + WEBHOOKS // WAVES))
            body = scrape(port)
            shown, after = webhook_ids(body), samples_of_webhooks(body)
            assert len(shown) == PLACES + 1
            assert all(value >= before[key] for key, value in after.items() if key in before)
            named |= shown
            before = after
            now += 4000.0
    # Each wave found the places of the one before free.
    assert len(named) == WAVES * PLACES + 1


def test_a_real_fleet_with_a_thousand_webhooks_shows_each_attempt_once(database: Database) -> None:
    webhooks = 1_000
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver, count=webhooks)
        wait_until_ready(database)
        insert(database, webhooks, webhooks=webhooks)
        wait_until_delivered(database, webhooks)
        ports = daemon.metrics_ports()
        assert len(ports) == 3

        def delivered() -> list[float]:
            return [
                total_of(scrape(port))["webhook_deliveries_total", "delivered"] for port in ports
            ]

        # An attempt is counted just after its result has become visible in the database.
        eventually(lambda: sum(delivered()) == webhooks, what=f"{webhooks} attempts counted")
        bodies = [scrape(port) for port in ports]
        assert all(len(webhook_ids(body)) <= PLACES + 1 for body in bodies)
        # There are more webhooks than the places of all three workers, so some went into `other`.
        assert any("other" in webhook_ids(body) for body in bodies)


def count_everything(metrics: Metrics, webhook_ids: range) -> Counter[tuple[str, str]]:
    """Count some attempts, rate limit hits and openings for each of *webhook_ids*; return their
    numbers.
    """
    dice = random.Random(webhook_ids.start)
    counted: Counter[tuple[str, str]] = Counter()
    for webhook_id in webhook_ids:
        statuses = dice.choices(list(AttemptStatus), k=dice.randint(1, 3))
        metrics.observe_attempts(
            ObservedAttempt(webhook_id, status, dice.uniform(0, 200)) for status in statuses
        )
        counted.update(("webhook_deliveries_total", str(status)) for status in statuses)
        counted["webhook_delivery_duration_seconds_count", ""] += len(statuses)
        counted["webhook_delivery_duration_seconds_bucket", "+Inf"] += len(statuses)
        if dice.random() < 0.5:
            metrics.rate_limited(webhook_id, now=webhook_id / 100)
            counted["rate_limit_hits_total", ""] += 1
        if dice.random() < 0.5:
            metrics.circuit_opened(webhook_id)
            counted["circuit_breaker_opens_total", ""] += 1
    return counted


@contextmanager
def served(metrics: Metrics) -> Iterator[int]:
    """Serve *metrics* as a worker does, and yield the port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint = Endpoint(
            sock, metrics, alive=lambda: (True, ""), ready=lambda: (True, ""), targets=lambda: None
        )
        endpoint.start()
        try:
            yield sock.getsockname()[1]
        finally:
            endpoint.stop()


def scrape(port: int) -> str:
    """Return the text of /metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def families_of_webhooks(body: str) -> Iterator[Metric]:
    for family in parse_text(body):
        if any("webhook_id" in sample.labels for sample in family.samples):
            yield family


def samples_of_webhooks(body: str) -> dict[tuple[str, ...], float]:
    """Return the value of each series with a webhook_id, by its name and labels."""
    return {
        (
            sample.name,
            *(f"{name}={value}" for name, value in sorted(sample.labels.items())),
        ): sample.value
        for family in families_of_webhooks(body)
        for sample in family.samples
    }


def webhook_ids(body: str) -> set[str]:
    return {
        sample.labels["webhook_id"]
        for family in families_of_webhooks(body)
        for sample in family.samples
    }


def total_of(body: str) -> Counter[tuple[str, str]]:
    """Return the sums over all webhook_ids: by status for attempts, the last bucket only for
    durations.
    """
    totals: Counter[tuple[str, str]] = Counter()
    for family in families_of_webhooks(body):
        for sample in family.samples:
            label = sample.labels.get("status") or sample.labels.get("le") or ""
            if sample.name in WEBHOOK_COUNTERS and label in ("", "+Inf", *AttemptStatus):
                totals[sample.name, label] += int(sample.value)
    return totals
