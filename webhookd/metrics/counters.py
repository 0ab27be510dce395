"""What one worker counts.

Dispatcher and recorder count into plain numbers (counts.py) behind one lock, a batch at a time;
exposition.py makes text of a snapshot for each scrape. Counters start at zero with the process.

`count`, `set` and `observe` serve any metric of declarations.py. The other methods count one event
of a worker that several metrics show.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterable

from webhookd.core.answer import Answer
from webhookd.metrics import declarations as declared
from webhookd.metrics.counts import (
    Activity,
    Counts,
    ObservedAttempt,
    QueueCause,
    QueueCounts,
    WakeupCause,
)

_RATE_LIMIT_HIT_EVERY_S = 1.0


class Metrics:
    """One worker's counters. Every method is quick, may be called from any thread and does no input
    or output.

    *clock* returns monotonic seconds: it decides which series are idle.
    """

    def __init__(
        self, worker_id: str, *, max_webhooks: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.worker_id = worker_id
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = Counts(
            max_webhooks=max_webhooks,
            values=declared.initial_values(),
            histograms=declared.initial_histograms(),
        )
        self._activity = Activity()
        self._rate_limit_hits = OncePerPeriod(_RATE_LIMIT_HIT_EVERY_S)
        self._is_healthy: Callable[[], bool] = lambda: False

    def count(self, metric: declared.Metric, amount: int = 1, *, label: str = "") -> None:
        """Add *amount* to a counter; *label* is the value of its label, if it has one."""
        with self._lock:
            self._add(metric, amount, label)

    def set(self, metric: declared.Metric, value: float, *, label: str = "") -> None:
        """Set a gauge."""
        with self._lock:
            self._counts.values[metric.name][label] = value

    def observe(self, metric: declared.Metric, value: float, *, label: str = "") -> None:
        """Count *value* in a histogram."""
        with self._lock:
            self._counts.histograms[metric.name][label].observe(value)

    def observe_attempts(self, batch: Iterable[ObservedAttempt]) -> None:
        """Count attempts whose results were recorded."""
        with self._lock:
            counts, now = self._counts, self._clock()
            for attempt in batch:
                series = counts.series_of(attempt.webhook_id, now=now)
                series.attempts[attempt.status] += 1
                series.duration.observe(attempt.elapsed_s)
                self._activity.observe(attempt.status, attempt.elapsed_s)
                if attempt.answer is not None:
                    self._observe_exchange(attempt.answer)

    def rate_limited(self, webhook_id: int, *, now: float) -> None:
        """Count that a claim left due rows of *webhook_id* because it had no tokens, at most once a
        second for a webhook.
        """
        with self._lock:
            if self._rate_limit_hits.admits(webhook_id, now=now):
                self._counts.series_of(webhook_id, now=self._clock()).rate_limit_hits += 1
                self._activity.rate_limit_hits += 1

    def circuit_opened(self, webhook_id: int) -> None:
        """Count an entry into open, from closed or from a failed probe."""
        with self._lock:
            self._counts.series_of(webhook_id, now=self._clock()).circuit_opens += 1
            self._activity.circuit_opens += 1

    def claimed(self, deliveries: int) -> None:
        """Count one claim statement that brought *deliveries* rows (0 is a claim too)."""
        with self._lock:
            self._add(declared.CLAIMS, 1)
            self._add(declared.CLAIMED_DELIVERIES, deliveries)

    def recorded(self, results: int, *, refused: int) -> None:
        """Count one record statement: *results* were written, the fence refused *refused*."""
        with self._lock:
            self._add(declared.RECORDS, 1)
            self._add(declared.RECORDED_RESULTS, results)
            self._add(declared.REFUSED_RESULTS, refused)
            batch_size = self._counts.histograms[declared.RECORD_BATCH_SIZE.name][""]
            batch_size.observe(results + refused)

    def leases_lost(self, deliveries: int) -> None:
        """Count leases that this worker released: they ended without a result."""
        self.count(declared.LOST_LEASES, deliveries)

    def given_back(self, deliveries: int) -> None:
        """Count claimed deliveries that were returned to the queue without an attempt."""
        self.count(declared.GIVEN_BACK, deliveries)

    def webhook_disabled(self, reason: str) -> None:
        """Count a webhook that was disabled; *reason*: `gone` or `failing`."""
        self.count(declared.WEBHOOKS_DISABLED, label=reason)

    def removed(self, table_name: str, rows: int) -> None:
        """Count *rows* of a table that were removed because they had been kept for long enough."""
        self.count(declared.REMOVED_ROWS, rows, label=table_name)

    def woken(self, reason: WakeupCause) -> None:
        """Count one wakeup of the dispatcher."""
        self.count(declared.WAKEUPS, label=reason)

    def set_queue(self, counts: QueueCounts | None) -> None:
        """Publish the latest count of the queue.

        None withdraws it: while the database cannot be asked, no depth is better than an old one
        that looks fresh.
        """
        with self._lock:
            self._set_queue(counts)

    def set_senders(self, *, threads: int, outstanding: int) -> None:
        """Publish the size of the sender pool and the deliveries that this worker has claimed and
        not yet recorded.
        """
        with self._lock:
            values = self._counts.values
            values[declared.SENDER_THREADS.name][""] = threads
            values[declared.DELIVERIES_OUTSTANDING.name][""] = outstanding

    def set_listener_connected(self, connected: bool) -> None:
        """Publish whether notifications arrive at present."""
        self.set(declared.LISTENER_CONNECTED, connected)

    def set_database_up(self, up: bool) -> None:
        """Publish whether the last statement reached the database; if not, nothing is known of the
        queue.
        """
        with self._lock:
            self._counts.values[declared.DATABASE_UP.name][""] = up
            if not up:
                self._set_queue(None)

    def set_health_check(self, is_healthy: Callable[[], bool]) -> None:
        """Let every scrape ask *is_healthy*; until then `worker_health_status` is 0.

        It is asked because a stalled dispatcher could not report itself. It must neither block nor
        raise.
        """
        with self._lock:
            self._is_healthy = is_healthy

    def take_activity(self) -> Activity:
        """Return what was counted since this was last called."""
        with self._lock:
            taken, self._activity = self._activity, Activity()
        return taken

    def put_back(self, activity: Activity) -> None:
        """Take *activity* back: it could not be stored, and is part of what is taken next."""
        with self._lock:
            self._activity.add(activity)

    def snapshot(self, *, for_prometheus: bool = False) -> tuple[Counts, bool]:
        """Return a copy of all counts, consistent with one another, and whether the worker is
        healthy.

        In the first copy *for_prometheus* that a webhook's series are part of, they are at zero.
        """
        with self._lock:
            self._counts.drop_idle(now=self._clock())
            # Numbers only: text of thousands of series takes milliseconds, and senders wait for
            # this lock.
            counts, is_healthy = self._counts.copy(new_at_zero=for_prometheus), self._is_healthy
        return counts, is_healthy()

    # The methods below are called under the lock.

    def _add(self, metric: declared.Metric, amount: int, label: str = "") -> None:
        self._counts.values[metric.name][label] += amount

    def _set_queue(self, counts: QueueCounts | None) -> None:
        values = self._counts.values
        if counts is None:
            values.update((metric.name, {}) for metric in declared.QUEUE)
            return
        values[declared.QUEUE_DEPTH.name] = {"": counts.depth}
        values[declared.OLDEST_DUE.name] = {"": counts.oldest_due_s}
        values[declared.QUEUE_DEPTH_BY_CAUSE.name] = {
            cause: counts.by_cause.get(cause, 0) for cause in QueueCause
        }

    def _observe_exchange(self, answer: Answer) -> None:
        """Count how the connection came about (an answer without one counts nowhere) and the phases
        that took place.
        """
        if answer.reused:
            self._add(declared.HTTP_CONNECTIONS, 1, "reused")
        elif answer.connect_s is not None:
            self._add(declared.HTTP_CONNECTIONS, 1, "opened")
        phases = self._counts.histograms[declared.HTTP_PHASE.name]
        for phase, elapsed_s in (
            ("dns", answer.dns_s),
            ("connect", answer.connect_s),
            ("tls", answer.tls_s),
            ("first_byte", answer.first_byte_s),
        ):
            if elapsed_s is not None:
                phases[phase].observe(elapsed_s)


class OncePerPeriod:
    """Admits each key once a period. Holds no more keys than were admitted within two periods."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._admitted: dict[Hashable, float] = {}
        self._pruned = float("-inf")

    def admits(self, key: Hashable, *, now: float) -> bool:
        """Return whether *key* may pass at *now* (monotonic seconds); if so, remember it."""
        if now - self._pruned >= self._period_s:
            self._admitted = {
                old: when for old, when in self._admitted.items() if now - when < self._period_s
            }
            self._pruned = now
        if now - self._admitted.get(key, float("-inf")) < self._period_s:
            return False
        self._admitted[key] = now
        return True
