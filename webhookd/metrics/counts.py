"""The numbers that one worker counts, and their copies: plain values without a lock. `Metrics`
(counters.py) guards them.

The number of series is bounded. The first *max_webhooks* webhooks that this process meets get a
`webhook_id` of their own; all later ones share `webhook_id="other"`. So the first webhooks have a
name, not the busiest. A webhook without anything to count for an hour loses its series, and the
next new webhook takes its place. Its totals do not move to `other`: that would jump by a whole
history, and `rate()` would show deliveries that were not made then.

`increase()` sees only what comes after the first sample of a series. So Prometheus is shown a new
series at zero once, and what was counted from the next scrape on: it misses no first delivery, no
first opening of a circuit, and nothing between the start of a process and its first scrape.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from webhookd.core.answer import Answer

# Dashboards were built on the first seven. Without the others no quantile could be above 5 s.
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
    CONFIGURATION = "configuration"
    CIRCUIT = "circuit"
    HOLD = "hold"
    RATE = "rate"
    IN_FLIGHT = "in_flight"
    UNREGISTERED = "unregistered"


class ObservedAttempt(NamedTuple):
    """One attempt. *elapsed_s* is the whole exchange; *answer*, if any, adds its phases."""

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
    """What the worker did over all webhooks since the last call of `Metrics.take_activity`: it goes
    to pggit.worker_minutes.
    """

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
    """One webhook's series, which all start at zero together.

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


@dataclass(slots=True)
class Counts:
    """Everything that a scrape shows, except health.

    *values* holds the counters and gauges that do not depend on the webhooks: by metric name, then
    by the value of the metric's one label ("" where it has none). *histograms* holds histograms by
    the same keys. declarations.py says which there are.
    """

    max_webhooks: int
    values: dict[str, dict[str, float]]
    histograms: dict[str, dict[str, Histogram]]
    was_full: bool = False
    looked_for_idle: float = float("-inf")
    webhooks: dict[int, WebhookSeries] = field(default_factory=dict)
    other: WebhookSeries = field(default_factory=WebhookSeries)

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
        on always.
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
        """Return a copy that shares nothing; webhooks as in `WebhookSeries.copy`."""
        return replace(
            self,
            webhooks={
                key: series.copy(new_at_zero=new_at_zero) for key, series in self.webhooks.items()
            },
            other=self.other.copy(new_at_zero=new_at_zero and self.shows_other),
            values={name: series.copy() for name, series in self.values.items()},
            histograms={
                name: {label: histogram.copy() for label, histogram in series.items()}
                for name, series in self.histograms.items()
            },
        )
