"""A worker's counts in the formats that Prometheus reads: its text format and OpenMetrics 1.0.

Names, labels and buckets are those that the project promises; what is of our own making is called `webhookd_...`.
There are no `_created` series: many more lines in every scrape, and nobody queries them.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from webhookd import __version__
from webhookd.metrics import Counts, Exchanges, Histogram, Metrics, QueueCause, QueueCounts, Totals


class Exposition:
    """Renders *metrics* when asked, in a registry of its own: nothing that other code registers globally shows here."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self, accept: str) -> tuple[str, bytes]:
        """Return the content type that suits the header *accept* best, and the text; a matter of milliseconds."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:
            # The library compares versions piece by piece and stumbles over `version=latest`: such a client gets text.
            encode, content_type = choose_encoder("")
        return content_type, encode(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every family, all from one snapshot; prometheus_client calls this."""
        counts, is_healthy = self._metrics.snapshot()
        health = Gauge("worker_health_status", "1 while the worker can deliver, else 0.", labels=["worker_id"])
        health.add_metric([self._metrics.worker_id], int(is_healthy))
        yield health
        yield from _webhook_families(counts)
        yield from _queue_families(counts.queue)
        yield from _counter_families(counts)
        yield from _gauge_families(counts.totals)
        yield from _exchange_families(counts.exchanges)
        yield InfoMetricFamily("webhookd_build", "The version that runs.", value={"version": __version__})


def _webhook_families(counts: Counts) -> Iterator[Metric]:
    attempts = Counter(
        "webhook_deliveries",
        "Attempts whose result was recorded; a timeout is counted as timeout only.",
        labels=["status", "webhook_id"],
    )
    duration = HistogramMetricFamily(
        "webhook_delivery_duration_seconds",
        "Time of one attempt, from before DNS to the last byte.",
        labels=["webhook_id"],
    )
    hits = Counter(
        "rate_limit_hits",
        "Claims that left due rows for want of tokens, at most one a second a webhook.",
        labels=["webhook_id"],
    )
    opens = Counter("circuit_breaker_opens", "Entries into open, failed probes included.", labels=["webhook_id"])
    for webhook_id, series in counts.labelled():
        for status, count in series.attempts.items():
            attempts.add_metric([status.value, webhook_id], count)
        _add_histogram(duration, [webhook_id], series.duration)
        hits.add_metric([webhook_id], series.rate_limit_hits)
        opens.add_metric([webhook_id], series.circuit_opens)
    yield from (attempts, duration, hits, opens)


def _queue_families(queue: QueueCounts | None) -> Iterator[Metric]:
    depth = Gauge(
        "webhook_queue_depth",
        "Rows due or waiting to be retried; every worker sees the same queue, so take the max.",
        labels=[],
    )
    by_cause = Gauge("webhookd_queue_depth_by_cause", "Rows not yet finished, by what they wait for.", labels=["cause"])
    oldest = Gauge("webhookd_oldest_due_seconds", "How long the oldest due row has been due.", labels=[])
    if queue is not None:
        depth.add_metric([], queue.depth)
        oldest.add_metric([], queue.oldest_due_s)
        for cause in QueueCause:
            by_cause.add_metric([cause.value], queue.by_cause.get(cause, 0))
    yield from (depth, by_cause, oldest)


def _counter_families(counts: Counts) -> Iterator[Metric]:
    totals = counts.totals
    for name, documentation, value in (
        ("webhookd_claims", "Claim statements, empty ones included.", totals.claims),
        ("webhookd_claimed_deliveries", "Deliveries that claims brought.", totals.claimed_deliveries),
        ("webhookd_records", "Record statements.", totals.records),
        ("webhookd_recorded_results", "Results that were written.", totals.recorded_results),
        (
            "webhookd_refused_results",
            "Results refused by the fence: another owner holds the delivery.",
            totals.refused_results,
        ),
        ("webhookd_lost_leases", "Deliveries in hand that turned out to belong to another owner.", totals.lost_leases),
        ("webhookd_given_back", "Claimed deliveries returned to the queue without an attempt.", totals.given_back),
    ):
        yield Counter(name, documentation, value=value)
    wakeups = Counter("webhookd_wakeups", "What ended the dispatcher's waits.", labels=["reason"])
    for reason, count in counts.wakeups.items():
        wakeups.add_metric([reason.value], count)
    yield wakeups
    batches = HistogramMetricFamily("webhookd_record_batch_size", "Results a record statement carried.", labels=[])
    _add_histogram(batches, [], counts.record_batch_size)
    yield batches


def _gauge_families(totals: Totals) -> Iterator[Metric]:
    for name, documentation, value in (
        ("webhookd_sender_threads", "Threads that send.", totals.sender_threads),
        ("webhookd_deliveries_in_hand", "Deliveries claimed and not yet recorded.", totals.in_hand),
        ("webhookd_listener_connected", "1 while notifications arrive, else 0.", int(totals.listener_connected)),
        ("webhookd_database_up", "1 while statements reach the database, else 0.", int(totals.database_up)),
    ):
        yield Gauge(name, documentation, value=value)


def _exchange_families(exchanges: Exchanges) -> Iterator[Metric]:
    connections = Counter(
        "webhookd_http_connections", "Connections to receivers, by how they were had.", labels=["kind"]
    )
    connections.add_metric(["opened"], exchanges.opened)
    connections.add_metric(["reused"], exchanges.reused)
    yield connections
    phases = HistogramMetricFamily("webhookd_http_phase_seconds", "Time of one phase of an exchange.", labels=["phase"])
    _add_histogram(phases, ["dns"], exchanges.dns)
    _add_histogram(phases, ["connect"], exchanges.connect)
    _add_histogram(phases, ["tls"], exchanges.tls)
    _add_histogram(phases, ["first_byte"], exchanges.first_byte)
    yield phases


def _add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total)
