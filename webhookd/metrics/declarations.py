"""Every metric of a worker, declared once: exposition, merge, and the test of docs/metrics.md read
this table.

A new metric without labels or with one: declare it here, add it to `FIXED`, and count it where it
happens with `Metrics.count`, `set` or `observe`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from webhookd.core.answer import ShortageKind
from webhookd.metrics.counts import (
    BATCH_BUCKETS,
    DURATION_BUCKETS_S,
    PHASE_BUCKETS_S,
    AttemptStatus,
    Histogram,
    QueueCause,
    WakeupCause,
)

# What several workers' values of one series become.
Rule = Callable[[Sequence[float]], float]


class Kind(StrEnum):
    """The types of Prometheus' data model."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """*name* is the family's, without the `_total` of a counter or the `_info` of an info.

    *label_values* are the values of its one label whose series exist from the start, at zero. A
    series that is *absent_at_first* exists only once something sets it.
    """

    name: str
    kind: Kind
    help: str
    merge: Rule = math.fsum
    labels: tuple[str, ...] = ()
    label_values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    absent_at_first: bool = False

    @property
    def text_name(self) -> str:
        """The family's name in Prometheus' text format."""
        suffixes = {Kind.COUNTER: "_total", Kind.INFO: "_info"}
        return self.name + suffixes.get(self.kind, "")

    @property
    def text_type(self) -> str:
        """The family's type in Prometheus' text format, which has no info."""
        return Kind.GAUGE if self.kind is Kind.INFO else self.kind


# One series for each webhook (and each status). WebhookSeries counts them, for all four at once.

DELIVERIES = Metric(
    "webhook_deliveries",
    Kind.COUNTER,
    "Attempts whose result was recorded; a timeout is counted as timeout only.",
    labels=("status", "webhook_id"),
    label_values=tuple(AttemptStatus),
)
DELIVERY_DURATION = Metric(
    "webhook_delivery_duration_seconds",
    Kind.HISTOGRAM,
    "Time of one attempt, from before DNS to the last byte.",
    labels=("webhook_id",),
    buckets=DURATION_BUCKETS_S,
)
RATE_LIMIT_HITS = Metric(
    "rate_limit_hits",
    Kind.COUNTER,
    "Claims that left due rows because the webhook had no tokens, at most one a second a webhook.",
    labels=("webhook_id",),
)
CIRCUIT_OPENS = Metric(
    "circuit_breaker_opens",
    Kind.COUNTER,
    "Times the circuit opened, including after a failed probe.",
    labels=("webhook_id",),
)

# The queue. Every worker sees the same one, some a moment earlier: hence max.

QUEUE_DEPTH = Metric(
    "webhook_queue_depth",
    Kind.GAUGE,
    "Rows due or waiting to be retried; every worker sees the same queue, so take the max.",
    merge=max,
    absent_at_first=True,
)
QUEUE_DEPTH_BY_CAUSE = Metric(
    "webhookd_queue_depth_by_cause",
    Kind.GAUGE,
    "Rows not yet finished, by what they wait for.",
    merge=max,
    labels=("cause",),
    label_values=tuple(QueueCause),
    absent_at_first=True,
)
OLDEST_DUE = Metric(
    "webhookd_oldest_due_seconds",
    Kind.GAUGE,
    "How long the oldest delivery that nothing holds back has been due.",
    merge=max,
    absent_at_first=True,
)

HELD_WEBHOOKS = Metric(
    "webhookd_held_webhooks",
    Kind.GAUGE,
    "Webhooks that get nothing because their row or the options in force rule out every request.",
    merge=max,
    absent_at_first=True,
)

# The worker. Its gauges that are 0 or 1 merge by min: one worker that fails must show.

WORKER_HEALTH = Metric(
    "worker_health_status",
    Kind.GAUGE,
    "1 while the worker can deliver, else 0.",
    merge=min,  # of workers that share a name: the others have a series each
    labels=("worker_id",),
    absent_at_first=True,
)
CLAIMS = Metric("webhookd_claims", Kind.COUNTER, "Claim statements, empty ones included.")
CLAIMED_DELIVERIES = Metric(
    "webhookd_claimed_deliveries", Kind.COUNTER, "Deliveries that claims brought."
)
RECORDS = Metric("webhookd_records", Kind.COUNTER, "Record statements.")
RECORDED_RESULTS = Metric("webhookd_recorded_results", Kind.COUNTER, "Results that were written.")
REFUSED_RESULTS = Metric(
    "webhookd_refused_results",
    Kind.COUNTER,
    "Results refused by the fence: another owner holds the delivery.",
)
LOST_LEASES = Metric(
    "webhookd_lost_leases",
    Kind.COUNTER,
    "Leases that this worker released: they ended without a result.",
)
WEBHOOKS_DISABLED = Metric(
    "webhookd_webhooks_disabled",
    Kind.COUNTER,
    "Webhooks that webhookd disabled: the receiver answered 410, or only failed for too long.",
    labels=("reason",),
    label_values=("gone", "failing"),
)
GIVEN_BACK = Metric(
    "webhookd_given_back",
    Kind.COUNTER,
    "Claimed deliveries returned to the queue without an attempt.",
)
SHORTAGES = Metric(
    "webhookd_shortages",
    Kind.COUNTER,
    "Deliveries given back since this worker lacked something of its own.",
    labels=("kind",),
    label_values=tuple(ShortageKind),
)
REMOVED_ROWS = Metric(
    "webhookd_removed_rows",
    Kind.COUNTER,
    "Rows removed because they had been kept for long enough.",
    labels=("table",),
    label_values=("alert_delivery_queue", "alert_delivery_log"),
)
WAKEUPS = Metric(
    "webhookd_wakeups",
    Kind.COUNTER,
    "What woke the dispatcher, other than its own timers and senders.",
    labels=("reason",),
    label_values=tuple(WakeupCause),
)
RECORD_BATCH_SIZE = Metric(
    "webhookd_record_batch_size",
    Kind.HISTOGRAM,
    "Results that a record statement carried.",
    buckets=BATCH_BUCKETS,
)
SENDER_THREADS = Metric("webhookd_sender_threads", Kind.GAUGE, "Threads that send.")
DELIVERIES_OUTSTANDING = Metric(
    "webhookd_deliveries_outstanding", Kind.GAUGE, "Deliveries claimed and not yet recorded."
)
LISTENER_CONNECTED = Metric(
    "webhookd_listener_connected",
    Kind.GAUGE,
    "1 while notifications arrive, else 0.",
    merge=min,
)
DATABASE_UP = Metric(
    "webhookd_database_up",
    Kind.GAUGE,
    "1 while statements reach the database, else 0.",
    merge=min,
)

# HTTP to the receivers.

HTTP_CONNECTIONS = Metric(
    "webhookd_http_connections",
    Kind.COUNTER,
    "Exchanges by their connection: opened for it, or reused.",
    labels=("kind",),
    label_values=("opened", "reused"),
)
HTTP_PHASE = Metric(
    "webhookd_http_phase_seconds",
    Kind.HISTOGRAM,
    "Time of one phase of an exchange.",
    labels=("phase",),
    label_values=("dns", "connect", "tls", "first_byte"),
    buckets=PHASE_BUCKETS_S,
)

BUILD = Metric(
    "webhookd_build",
    Kind.INFO,
    "The version that runs.",
    merge=max,  # always 1; a series for each version
    labels=("version",),
    absent_at_first=True,
)

WEBHOOKS = (DELIVERIES, DELIVERY_DURATION, RATE_LIMIT_HITS, CIRCUIT_OPENS)
QUEUE = (QUEUE_DEPTH, QUEUE_DEPTH_BY_CAUSE, OLDEST_DUE, HELD_WEBHOOKS)
# Those whose number of series does not depend on the webhooks, in the order of the exposition.
FIXED = (
    WORKER_HEALTH,
    *QUEUE,
    CLAIMS,
    CLAIMED_DELIVERIES,
    RECORDS,
    RECORDED_RESULTS,
    REFUSED_RESULTS,
    LOST_LEASES,
    GIVEN_BACK,
    WEBHOOKS_DISABLED,
    SHORTAGES,
    REMOVED_ROWS,
    WAKEUPS,
    RECORD_BATCH_SIZE,
    SENDER_THREADS,
    DELIVERIES_OUTSTANDING,
    LISTENER_CONNECTED,
    DATABASE_UP,
    HTTP_CONNECTIONS,
    HTTP_PHASE,
    BUILD,
)
ALL = (*WEBHOOKS, *FIXED)


def initial_values() -> dict[str, dict[str, float]]:
    """Return the series of counters and gauges in `FIXED` at the start: by metric name, and then by
    the value of the label ("" without one).
    """
    return {
        metric.name: {}
        if metric.absent_at_first
        else dict.fromkeys(metric.label_values or ("",), 0)
        for metric in FIXED
        if metric.kind is not Kind.HISTOGRAM
    }


def initial_histograms() -> dict[str, dict[str, Histogram]]:
    """Return the empty histograms of `FIXED`, by the same keys."""
    return {
        metric.name: {label: Histogram(metric.buckets) for label in metric.label_values or ("",)}
        for metric in FIXED
        if metric.kind is Kind.HISTOGRAM
    }
