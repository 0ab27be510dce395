"""What one worker counts.

Dispatcher and recorder count into plain integers (`webhookd.counts`) behind one lock, a batch at a
time; exposition.py makes text of a snapshot when somebody scrapes. Counters start at zero with the
process.
"""

import threading
import time
from collections.abc import Callable, Iterable

from webhookd.metrics.counts import Activity, Counts, ObservedAttempt, QueueCounts, WakeupCause

_RATE_LIMIT_HIT_EVERY_S = 1.0


class Metrics:
    """One worker's counters. Every method is quick, may be called from any thread and does no input
    or output.

    *clock* returns monotonic seconds; by it series are idle.
    """

    def __init__(
        self, worker_id: str, *, max_webhooks: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.worker_id = worker_id
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = Counts(max_webhooks=max_webhooks)
        self._activity = Activity()
        self._rate_limit_hits = OncePerPeriod(_RATE_LIMIT_HIT_EVERY_S)
        self._is_healthy: Callable[[], bool] = lambda: False

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
                    counts.exchanges.observe(attempt.answer)

    def rate_limited(self, webhook_id: int, *, now: float) -> None:
        """Count that a claim left due rows of *webhook_id* for want of tokens, at most once a
        second a webhook.
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
            self._counts.totals.claims += 1
            self._counts.totals.claimed_deliveries += deliveries

    def recorded(self, results: int, *, refused: int) -> None:
        """Count one record statement: *results* were written, *refused* met another owner's fence."""
        with self._lock:
            totals = self._counts.totals
            totals.records += 1
            totals.recorded_results += results
            totals.refused_results += refused
            self._counts.record_batch_size.observe(results + refused)

    def leases_lost(self, deliveries: int) -> None:
        """Count leases that this worker released: they ended without a result."""
        with self._lock:
            self._counts.totals.lost_leases += deliveries

    def given_back(self, deliveries: int) -> None:
        """Count claimed deliveries that were returned to the queue without an attempt."""
        with self._lock:
            self._counts.totals.given_back += deliveries

    def removed(self, table_name: str, rows: int) -> None:
        """Count *rows* of a table that went because they had been kept for long enough."""
        with self._lock:
            self._counts.removed_rows[table_name] += rows

    def woken(self, reason: WakeupCause) -> None:
        """Count one wakeup of the dispatcher."""
        with self._lock:
            self._counts.wakeups[reason] += 1

    def set_queue(self, counts: QueueCounts | None) -> None:
        """Publish the latest look at the queue.

        None withdraws it: where the database cannot be asked, no depth is better than a stale one
        that looks fresh.
        """
        with self._lock:
            self._counts.queue = counts

    def set_senders(self, *, threads: int, outstanding: int) -> None:
        """Publish the size of the sender pool and the deliveries that this worker has claimed and
        not yet recorded.
        """
        with self._lock:
            self._counts.totals.sender_threads = threads
            self._counts.totals.outstanding = outstanding

    def set_listener_connected(self, connected: bool) -> None:
        """Publish whether notifications arrive at present."""
        with self._lock:
            self._counts.totals.listener_connected = connected

    def set_database_up(self, up: bool) -> None:
        """Publish whether the last statement reached the database; where it did not, nothing is
        known of the queue.
        """
        with self._lock:
            self._counts.totals.database_up = up
            if not up:
                self._counts.queue = None

    def set_health_check(self, is_healthy: Callable[[], bool]) -> None:
        """Let every scrape ask *is_healthy*; until then `worker_health_status` is 0.

        It is asked and not told, for a stalled dispatcher can tell nobody. It must neither block
        nor raise.
        """
        with self._lock:
            self._is_healthy = is_healthy

    def take_activity(self) -> Activity:
        """Return what was counted since this was last called."""
        with self._lock:
            taken, self._activity = self._activity, Activity()
        return taken

    def put_back(self, activity: Activity) -> None:
        """Count *activity*, which was taken and could not be stored, with what is taken next."""
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


class OncePerPeriod:
    """Admits each key once a period. Holds no more keys than were admitted within two periods."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._admitted: dict[int, float] = {}
        self._pruned = float("-inf")

    def admits(self, key: int, *, now: float) -> bool:
        """Return whether *key* may pass at *now* (monotonic seconds), and remember it where it may."""
        if now - self._pruned >= self._period_s:
            self._admitted = {
                old: when for old, when in self._admitted.items() if now - when < self._period_s
            }
            self._pruned = now
        if now - self._admitted.get(key, float("-inf")) < self._period_s:
            return False
        self._admitted[key] = now
        return True
