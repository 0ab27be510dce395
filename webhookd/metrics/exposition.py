"""A worker's counts in the formats that Prometheus reads: its text format and OpenMetrics 1.0.

Names, labels and buckets are those that the project promises; what is of our own making is called
`webhookd_...`. There are no `_created` series: many more lines in every scrape, and nobody queries
them.

prometheus_client writes what does not grow. The lines of the webhooks are written here, straight
from the counts: through the library, which makes an object of each line, they took ten times as
long, more than a scrape may cost.
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
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import (
    DURATION_BUCKETS_S,
    Counts,
    Exchanges,
    Histogram,
    QueueCause,
    QueueCounts,
    Totals,
    WebhookSeries,
)

_DURATION_BOUNDS = (*map(floatToGoString, DURATION_BUCKETS_S), "+Inf")


class Exposition:
    """Renders *metrics* when asked; nothing that other code registers globally with
    prometheus_client shows here.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def render(self, accept: str, *, for_prometheus: bool = False) -> tuple[str, bytes]:
        """Return the content type that suits the header *accept* best, and the text, all from one
        snapshot.

        A matter of milliseconds. *for_prometheus*: see `Metrics.snapshot`.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:
            # The library compares versions piece by piece and stumbles over `version=latest`: such
            # a client gets text.
            encode, content_type = choose_encoder("")
        counts, is_healthy = self._metrics.snapshot(for_prometheus=for_prometheus)
        registry = CollectorRegistry()
        registry.register(_Fixed(counts, worker_id=self._metrics.worker_id, is_healthy=is_healthy))
        webhooks = "".join(
            _webhook_lines(counts.labelled(), openmetrics="openmetrics" in content_type)
        )
        return content_type, webhooks.encode() + encode(registry)


class _Fixed:
    """The families whose size does not depend on the webhooks; a registry calls `collect`."""

    def __init__(self, counts: Counts, *, worker_id: str, is_healthy: bool) -> None:
        self._counts = counts
        self._worker_id = worker_id
        self._is_healthy = is_healthy

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        health = Gauge(
            "worker_health_status", "1 while the worker can deliver, else 0.", labels=["worker_id"]
        )
        health.add_metric([self._worker_id], int(self._is_healthy))
        yield health
        yield from _queue_families(counts.queue)
        yield from _counter_families(counts)
        yield from _gauge_families(counts.totals)
        yield from _exchange_families(counts.exchanges)
        yield InfoMetricFamily(
            "webhookd_build", "The version that runs.", value={"version": __version__}
        )


def _webhook_lines(
    labelled: Sequence[tuple[str, WebhookSeries]], *, openmetrics: bool
) -> Iterator[str]:
    """Yield the webhooks' families. Their labels are numbers and our own words, so nothing needs to
    be escaped.
    """

    def head(name: str, kind: str, documentation: str) -> str:
        # The formats differ in this alone: OpenMetrics names a counter's family without its suffix.
        family = f"{name}_total" if kind == "counter" and not openmetrics else name
        return f"# HELP {family} {documentation}\n# TYPE {family} {kind}\n"

    yield head(
        "webhook_deliveries",
        "counter",
        "Attempts whose result was recorded; a timeout is counted as timeout only.",
    )
    for webhook_id, series in labelled:
        for status, count in series.attempts.items():
            yield f'webhook_deliveries_total{{status="{status}",webhook_id="{webhook_id}"}} {count}\n'
    name = "webhook_delivery_duration_seconds"
    yield head(name, "histogram", "Time of one attempt, from before DNS to the last byte.")
    for webhook_id, series in labelled:
        count = 0
        for bound, falling in zip(_DURATION_BOUNDS, series.duration.counts, strict=True):
            count += falling
            yield f'{name}_bucket{{le="{bound}",webhook_id="{webhook_id}"}} {count}\n'
        yield f'{name}_count{{webhook_id="{webhook_id}"}} {count}\n'
        yield f'{name}_sum{{webhook_id="{webhook_id}"}} {series.duration.total}\n'
    yield head(
        "rate_limit_hits",
        "counter",
        "Claims that left due rows for want of tokens, at most one a second a webhook.",
    )
    for webhook_id, series in labelled:
        yield f'rate_limit_hits_total{{webhook_id="{webhook_id}"}} {series.rate_limit_hits}\n'
    yield head("circuit_breaker_opens", "counter", "Entries into open, failed probes included.")
    for webhook_id, series in labelled:
        yield f'circuit_breaker_opens_total{{webhook_id="{webhook_id}"}} {series.circuit_opens}\n'


def _queue_families(queue: QueueCounts | None) -> Iterator[Metric]:
    depth = Gauge(
        "webhook_queue_depth",
        "Rows due or waiting to be retried; every worker sees the same queue, so take the max.",
        labels=[],
    )
    by_cause = Gauge(
        "webhookd_queue_depth_by_cause",
        "Rows not yet finished, by what they wait for.",
        labels=["cause"],
    )
    oldest = Gauge(
        "webhookd_oldest_due_seconds", "How long the oldest due row has been due.", labels=[]
    )
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
        (
            "webhookd_claimed_deliveries",
            "Deliveries that claims brought.",
            totals.claimed_deliveries,
        ),
        ("webhookd_records", "Record statements.", totals.records),
        ("webhookd_recorded_results", "Results that were written.", totals.recorded_results),
        (
            "webhookd_refused_results",
            "Results refused by the fence: another owner holds the delivery.",
            totals.refused_results,
        ),
        (
            "webhookd_lost_leases",
            "Leases that this worker released: they ended without a result.",
            totals.lost_leases,
        ),
        (
            "webhookd_given_back",
            "Claimed deliveries returned to the queue without an attempt.",
            totals.given_back,
        ),
    ):
        yield Counter(name, documentation, value=value)
    removed = Counter(
        "webhookd_removed_rows",
        "Rows that went since they had been kept for long enough.",
        labels=["table"],
    )
    for table_name, rows in counts.removed_rows.items():
        removed.add_metric([table_name], rows)
    yield removed
    wakeups = Counter(
        "webhookd_wakeups",
        "What woke the dispatcher, other than its own timers and senders.",
        labels=["reason"],
    )
    for reason, count in counts.wakeups.items():
        wakeups.add_metric([reason.value], count)
    yield wakeups
    batches = HistogramMetricFamily(
        "webhookd_record_batch_size", "Results a record statement carried.", labels=[]
    )
    _add_histogram(batches, [], counts.record_batch_size)
    yield batches


def _gauge_families(totals: Totals) -> Iterator[Metric]:
    for name, documentation, value in (
        ("webhookd_sender_threads", "Threads that send.", totals.sender_threads),
        (
            "webhookd_deliveries_outstanding",
            "Deliveries claimed and not yet recorded.",
            totals.outstanding,
        ),
        (
            "webhookd_listener_connected",
            "1 while notifications arrive, else 0.",
            int(totals.listener_connected),
        ),
        (
            "webhookd_database_up",
            "1 while statements reach the database, else 0.",
            int(totals.database_up),
        ),
    ):
        yield Gauge(name, documentation, value=value)


def _exchange_families(exchanges: Exchanges) -> Iterator[Metric]:
    connections = Counter(
        "webhookd_http_connections",
        "Connections to receivers, by how they were had.",
        labels=["kind"],
    )
    connections.add_metric(["opened"], exchanges.opened)
    connections.add_metric(["reused"], exchanges.reused)
    yield connections
    phases = HistogramMetricFamily(
        "webhookd_http_phase_seconds", "Time of one phase of an exchange.", labels=["phase"]
    )
    _add_histogram(phases, ["dns"], exchanges.dns)
    _add_histogram(phases, ["connect"], exchanges.connect)
    _add_histogram(phases, ["tls"], exchanges.tls)
    _add_histogram(phases, ["first_byte"], exchanges.first_byte)
    yield phases


def _add_histogram(
    family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram
) -> None:
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    family.add_metric(
        labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total
    )
