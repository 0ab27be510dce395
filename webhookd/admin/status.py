"""The daily health check: baselines with a verdict, and what stands behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from webhookd.admin import database, fleet
from webhookd.admin.database import Connection
from webhookd.metrics.counts import DURATION_BUCKETS_S

MOST_ROWS = 10  # of webhooks in one part of the report
BEAT_S = 20.0  # a live worker reports every few seconds
DOWN_S = 120.0  # a worker that has been silent for longer is down, not busy
# These deliveries wait on purpose, and are no backlog.
_ON_PURPOSE = ("paused", "scheduled", "unregistered")


@dataclass(frozen=True, slots=True)
class Baseline:
    """One measure against its target. *critical* is the last value that raises no alarm; without a
    value *missing* is the verdict.
    """

    name: str
    value: float | None
    unit: str
    target: float
    critical: float
    missing: str = "-"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return self.missing
        # A success rate is the better the higher, the others the lower.
        sign = -1 if self.critical < self.target else 1
        if sign * self.value > sign * self.critical:
            return "critical"
        return "ok" if sign * self.value <= sign * self.target else "warning"


@dataclass(frozen=True, slots=True)
class Queue:
    """Deliveries by status."""

    pending_count: int
    retrying_count: int
    delivered_count: int
    failed_count: int
    total_count: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Deliveries by what they wait for. *oldest_due_s*: how long ago the first of them was due."""

    cause: str
    deliveries: int
    oldest_due_s: float | None


@dataclass(frozen=True, slots=True)
class HealthCount:
    """Registered webhooks by health."""

    health_status: str
    webhooks: int


@dataclass(frozen=True, slots=True)
class Degraded:
    """A webhook that needs attention."""

    webhook_id: int
    health_status: str
    consecutive_failures: int
    success_rate_percent: float | None
    avg_response_time_ms: float | None
    hours_since_success: float | None


@dataclass(frozen=True, slots=True)
class OpenCircuit:
    """A circuit that is not closed. *probe_in_s* None: its probe is out, or may go out now."""

    webhook_id: int
    circuit_state: str
    consecutive_failures: int
    probe_in_s: float | None


@dataclass(frozen=True, slots=True)
class Unregistered:
    """A webhook that deliveries wait for although it is not registered."""

    webhook_id: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Held:
    """A webhook that gets nothing: its row or the workers' options rule out every request."""

    webhook_id: int
    reason: str
    waiting: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A registered worker, how long it has run, and when it reported last."""

    worker_id: str
    host: str
    pid: int
    version: str
    up_s: float
    seen_s_ago: float


@dataclass(frozen=True, slots=True)
class LastHour:
    """What all workers did in the last hour. *durations*: attempts by bucket of
    `DURATION_BUCKETS_S`, and those beyond the last.
    """

    attempts: int
    delivered: int
    circuit_opens: int
    slowest_s: float | None
    rate_limit_hits_a_minute: float
    durations: Sequence[int]


@dataclass(frozen=True, slots=True)
class Report:
    """*errors_1h*: deliveries that failed, with no retry left, in the last hour. *disagreement*:
    how the options of the living workers differ, in one line.
    """

    baselines: Sequence[Baseline]
    queue: Queue
    waiting: Sequence[Waiting]
    health: Sequence[HealthCount]
    attention: Sequence[Degraded]
    errors_1h: int
    circuits: Sequence[OpenCircuit]
    held: Sequence[Held]
    unregistered: Sequence[Unregistered]
    workers: Sequence[Worker]
    disagreement: str | None

    @property
    def critical(self) -> bool:
        """Whether any baseline is."""
        return any(baseline.verdict == "critical" for baseline in self.baselines)


def read(connection: Connection) -> Report:
    """Return the report. It takes several statements, each of which sees a moment of its own."""
    [queue] = database.fetch(connection, "status_queue")
    waiting = [Waiting(**row) for row in database.fetch(connection, "status_waiting")]
    health = [HealthCount(**row) for row in database.fetch(connection, "status_health")]
    degraded = database.fetch(connection, "status_attention", limit=MOST_ROWS)
    [errors] = database.fetch(connection, "status_errors")
    circuits = database.fetch(connection, "status_circuits", limit=MOST_ROWS)
    held = database.fetch(connection, "status_held", limit=MOST_ROWS)
    unregistered = database.fetch(connection, "status_unregistered", limit=MOST_ROWS)
    workers = [Worker(**row) for row in database.fetch(connection, "status_workers")]
    [last_hour] = database.fetch(connection, "status_minutes")
    return Report(
        baselines=_baselines(waiting, workers, LastHour(**last_hour)),
        queue=Queue(**queue),
        waiting=waiting,
        health=health,
        attention=[Degraded(**row) for row in degraded],
        errors_1h=errors["errors_1h"],
        circuits=[OpenCircuit(**row) for row in circuits],
        held=[Held(**row) for row in held],
        unregistered=[Unregistered(**row) for row in unregistered],
        workers=workers,
        disagreement=fleet.disagreement(fleet.read(connection)),
    )


def _baselines(
    waiting: Sequence[Waiting], workers: Sequence[Worker], hour: LastHour
) -> list[Baseline]:
    depth = sum(one.deliveries for one in waiting if one.cause not in _ON_PURPOSE)
    silence_s = max((worker.seen_s_ago for worker in workers), default=None)
    success = 100.0 * hour.delivered / hour.attempts if hour.attempts else None
    p99_s = quantile(0.99, hour.durations, hour.slowest_s)
    hits = hour.rate_limit_hits_a_minute
    return [
        Baseline("delivery latency p99, last hour", p99_s, " s", 2.0, 5.0),
        Baseline("success rate, last hour", success, " %", 99.0, 95.0),
        Baseline("queue depth", float(depth), "", 100.0, 1000.0),
        Baseline(
            "worker health, longest silence", silence_s, " s", BEAT_S, DOWN_S, missing="critical"
        ),
        Baseline("circuit openings, last hour", float(hour.circuit_opens), "", 0.0, 2.0),
        Baseline("rate limit hits a minute, last 5", hits, "", 10.0, 100.0),
    ]


def quantile(share: float, counts: Sequence[int], slowest_s: float | None) -> float | None:
    """Return the duration in seconds that *share* of all attempts did not exceed, None without an
    attempt. *counts* are attempts by bucket.

    It is estimated as `histogram_quantile` of PromQL does, but never above the slowest attempt.
    """
    cumulative = list(accumulate(counts))
    if slowest_s is None or not cumulative or not cumulative[-1]:
        return None
    rank = share * cumulative[-1]
    bucket = next(index for index, count in enumerate(cumulative) if count >= rank)
    if bucket == len(DURATION_BUCKETS_S):
        return slowest_s
    lower = DURATION_BUCKETS_S[bucket - 1] if bucket else 0.0
    before = cumulative[bucket - 1] if bucket else 0
    width = DURATION_BUCKETS_S[bucket] - lower
    return min(slowest_s, lower + width * (rank - before) / counts[bucket])
