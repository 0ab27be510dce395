"""The numbers that one worker counts, and their copies: plain values without a lock.
`webhookd.metrics` guards them.

Series stay bounded: the first *max_webhooks* webhooks that this process meets get a `webhook_id` of
their own, all later ones share `webhook_id="other"`. The price is that who came first is named, not
who is busiest. A webhook without anything to count for an hour loses its series, and its place goes
to the next one that comes. Its totals are not moved to `other`: that would jump by a whole history,
and `rate()` would report deliveries that were not made then.

`increase()` sees only what comes after the first sample of a series. So Prometheus is shown a new
series at zero once, with what it has counted from the next scrape on: no first delivery, no first
trip, and nothing between the start of a process and its first scrape is missed.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from webhookd.core.answer import Answer

# Dashboards were built on the first seven; without the others no quantile could ever be read as
# above 5 s.
DURATION_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
PHASE_BUCKETS_S = (0.001, 0.005, *DURATION_BUCKETS_S)
BATCH_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
OTHER_WEBHOOKS = "other"
_IDLE_S = 3600.0  # no shorter than the longest range that an alert looks back over
_LOOK_FOR_IDLE_EVERY_S = 60.0


class AttemptStatus(StrEnum):
    """The `status` label of one attempt."""

    DELIVERED = "delivered"
    FAILED = "failed"
    TIMEOUT = "timeout"


class WakeupCause(StrEnum):
    """What woke the dispatcher, other than its own timers and its own senders."""

    NOTIFY = "notify"
    HANDOVER = "handover"
    SWEEP = "sweep"
    LOST = "lost"


class QueueCause(StrEnum):
    """Why rows of the queue are still there."""

    DUE = "due"
    SCHEDULED = "scheduled"
    PAUSED = "paused"
    CIRCUIT = "circuit"
    HOLD = "hold"
    RATE = "rate"
    IN_FLIGHT = "in_flight"
    UNREGISTERED = "unregistered"


class ObservedAttempt(NamedTuple):
    """One attempt that was made. *elapsed_s* is the whole exchange; *answer*, where there was one,
    adds its phases.
    """

    webhook_id: int
    status: AttemptStatus
    elapsed_s: float
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """One look at the whole queue. *depth* counts rows due or waiting to be retried; a cause left
    out counts as 0.
    """

    depth: int
    by_cause: Mapping[QueueCause, int]
    oldest_due_s: float


class Histogram:
    """How many values fell into each bucket (not cumulative, the last one is +Inf), and the sum of
    the values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count *value*."""
        # `le` includes its bound, hence bisect_left.
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: "Histogram") -> None:
        """Count what *other*, of the same bounds, has counted."""
        self.counts = [
            mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.total += other.total

    def copy(self) -> "Histogram":
        """Return a copy that shares nothing."""
        twin = Histogram(self.bounds)
        twin.counts, twin.total = self.counts.copy(), self.total
        return twin


@dataclass(slots=True)
class Activity:
    """What the worker did over all webhooks since it was last asked: goes to pggit.worker_minutes."""

    attempts: dict[AttemptStatus, int] = field(
        default_factory=lambda: dict.fromkeys(AttemptStatus, 0)
    )
    durations: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS_S))
    slowest_s: float = 0.0
    rate_limit_hits: int = 0
    circuit_opens: int = 0

    def observe(self, status: AttemptStatus, elapsed_s: float) -> None:
        """Count one attempt."""
        self.attempts[status] += 1
        self.durations.observe(elapsed_s)
        self.slowest_s = max(self.slowest_s, elapsed_s)

    def __bool__(self) -> bool:
        return bool(self.rate_limit_hits or self.circuit_opens or any(self.attempts.values()))

    def add(self, other: "Activity") -> None:
        """Count what *other* has counted."""
        for status, count in other.attempts.items():
            self.attempts[status] += count
        self.durations.add(other.durations)
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.rate_limit_hits += other.rate_limit_hits
        self.circuit_opens += other.circuit_opens


@dataclass(slots=True)
class WebhookSeries:
    """One webhook's series, all born together at zero.

    *last_used* is when something was last counted, in monotonic seconds; *shown*: Prometheus has
    seen them at zero.
    """

    attempts: dict[AttemptStatus, int] = field(
        default_factory=lambda: dict.fromkeys(AttemptStatus, 0)
    )
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_BUCKETS_S))
    rate_limit_hits: int = 0
    circuit_opens: int = 0
    last_used: float = 0.0
    shown: bool = False

    def copy(self, *, new_at_zero: bool) -> "WebhookSeries":
        """Return a copy that shares nothing; with *new_at_zero* the first one is at zero."""
        if new_at_zero and not self.shown:
            self.shown = True
            return WebhookSeries()
        return replace(self, attempts=self.attempts.copy(), duration=self.duration.copy())


class Exchanges:
    """Connections and phases over all webhooks."""

    __slots__ = ("connect", "dns", "first_byte", "opened", "reused", "tls")

    def __init__(self) -> None:
        self.opened = self.reused = 0
        self.dns, self.connect, self.tls, self.first_byte = (
            Histogram(PHASE_BUCKETS_S) for _ in range(4)
        )

    def observe(self, answer: Answer) -> None:
        """Count how the connection was had (an answer without one counts nowhere) and the phases
        that took place.
        """
        if answer.reused:
            self.reused += 1
        elif answer.connect_s is not None:
            self.opened += 1
        if answer.dns_s is not None:
            self.dns.observe(answer.dns_s)
        if answer.connect_s is not None:
            self.connect.observe(answer.connect_s)
        if answer.tls_s is not None:
            self.tls.observe(answer.tls_s)
        if answer.first_byte_s is not None:
            self.first_byte.observe(answer.first_byte_s)

    def copy(self) -> "Exchanges":
        """Return a copy that shares nothing."""
        twin = Exchanges()
        twin.opened, twin.reused = self.opened, self.reused
        twin.dns, twin.connect, twin.tls, twin.first_byte = (
            phase.copy() for phase in (self.dns, self.connect, self.tls, self.first_byte)
        )
        return twin


@dataclass(slots=True)
class Totals:
    """The worker's own counters and gauges without a label."""

    claims: int = 0
    claimed_deliveries: int = 0
    records: int = 0
    recorded_results: int = 0
    refused_results: int = 0
    lost_leases: int = 0
    given_back: int = 0
    sender_threads: int = 0
    outstanding: int = 0
    listener_connected: bool = False
    database_up: bool = False


@dataclass(slots=True)
class Counts:
    """Everything that a scrape shows, except health."""

    max_webhooks: int
    was_full: bool = False
    looked_for_idle: float = float("-inf")
    webhooks: dict[int, WebhookSeries] = field(default_factory=dict)
    other: WebhookSeries = field(default_factory=WebhookSeries)
    totals: Totals = field(default_factory=Totals)
    wakeups: dict[WakeupCause, int] = field(default_factory=lambda: dict.fromkeys(WakeupCause, 0))
    removed_rows: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("alert_delivery_queue", "alert_delivery_log"), 0)
    )
    record_batch_size: Histogram = field(default_factory=lambda: Histogram(BATCH_BUCKETS))
    exchanges: Exchanges = field(default_factory=Exchanges)
    queue: QueueCounts | None = None

    def series_of(self, webhook_id: int, *, now: float) -> WebhookSeries:
        """Return the series that count for *webhook_id* at *now* (monotonic seconds)."""
        series = self.webhooks.get(webhook_id)
        if series is None:
            if self.is_full:
                self.drop_idle(now=now)
            if self.is_full:
                return self.other
            series = self.webhooks[webhook_id] = WebhookSeries()
        series.last_used = now
        return series

    @property
    def is_full(self) -> bool:
        """Whether the next new webhook falls into `other`."""
        return len(self.webhooks) >= self.max_webhooks

    @property
    def shows_other(self) -> bool:
        """Whether `other` is shown: at zero before the first webhook falls into it, and from then
        on for good.
        """
        return self.was_full or self.is_full

    def drop_idle(self, *, now: float) -> None:
        """Forget the webhooks that nothing was counted for in the hour before *now*; looks at most
        once a minute.
        """
        if now - self.looked_for_idle < _LOOK_FOR_IDLE_EVERY_S:
            return
        self.looked_for_idle = now
        self.was_full = self.shows_other
        self.webhooks = {
            key: series for key, series in self.webhooks.items() if now - series.last_used < _IDLE_S
        }

    def labelled(self) -> list[tuple[str, WebhookSeries]]:
        """Return all series with their `webhook_id` labels."""
        named = [(str(webhook_id), series) for webhook_id, series in self.webhooks.items()]
        return [*named, (OTHER_WEBHOOKS, self.other)] if self.shows_other else named

    def copy(self, *, new_at_zero: bool) -> "Counts":
        """Return a copy that shares nothing, webhooks as in `WebhookSeries.copy`; *queue* is
        immutable.
        """
        return replace(
            self,
            webhooks={
                key: series.copy(new_at_zero=new_at_zero) for key, series in self.webhooks.items()
            },
            other=self.other.copy(new_at_zero=new_at_zero and self.shows_other),
            totals=replace(self.totals),
            wakeups=self.wakeups.copy(),
            removed_rows=self.removed_rows.copy(),
            record_batch_size=self.record_batch_size.copy(),
            exchanges=self.exchanges.copy(),
        )
