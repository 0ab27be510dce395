"""How much one worker claims, and how many sender threads it runs.

Three values. `Throughput`: how fast deliveries end, and so how many to claim. `Reach`: at how many
lanes a claim looks for them. `Growth`: when to start more threads, and when one leaves. The pool
(worker/senders.py) measures, and does what they say.
Times are monotonic seconds.

Threads that compete for the interpreter lock cost a lot; threads that wait for receivers are all
the throughput there is. So the pool starts with one, and grows only while deliveries wait and every
thread has been blocked in an exchange for a while. If threads wait for the processor, more of them
make it worse: then the pool shrinks.
"""

import math
from typing import NamedTuple, Self

# A claim is sized to so much work, and made when no more than so much of it waits: a few large
# claims cost less than many small ones, and any worker may take what stays in the queue.
WORK_AHEAD_S, WORK_LEFT_S = 0.1, 0.02
MEASURE_EVERY_S = 0.025
MIN_CAPACITY, MAX_CAPACITY = 16, 400
FORGOTTEN_IN_S = 0.25  # for how long a higher throughput is remembered

# Fewer lanes with more rows each cost fewer state writes; but more than so many rows would let one
# webhook fill the claim.
ROWS_PER_LANE = 20
NARROWER = 1.25  # by this factor fewer lanes are looked at once they were more than enough

BLOCKED_AFTER_S = 0.003  # an exchange that lasts longer than this is waiting, not computing
# One is not enough: a fast receiver's hiccup must not leave sixteen threads behind.
BLOCKED_TICKS = 2
# For which share of their time threads were ready to run and had no processor. Above the first
# share no thread is started, above the second one leaves.
WEIGH_EVERY_S = 0.1
STARVED, CROWDED = 0.2, 0.5


class Throughput(NamedTuple):
    """Exchanges a second as of *measured_at*; it rises at once and falls slowly."""

    measured_at: float
    per_s: float = 0.0

    def due(self, now: float) -> bool:
        """Return whether to measure again."""
        return now - self.measured_at >= MEASURE_EVERY_S

    def measured(self, finished: int, now: float) -> Self:
        """Note that *finished* exchanges ended since the last time; *now* is later than that."""
        elapsed_s = now - self.measured_at
        per_s = finished / elapsed_s
        if per_s < self.per_s:
            # Slowly down. Up at once: small claims are expensive when there is much to do.
            per_s = self.per_s + (per_s - self.per_s) * min(1.0, elapsed_s / FORGOTTEN_IN_S)
        return self._replace(measured_at=now, per_s=per_s)

    def capacity(self, *, threads: int, max_threads: int) -> int:
        """Return how many deliveries this worker should hold."""
        wanted = max(MIN_CAPACITY, int(self.per_s * WORK_AHEAD_S) + threads, threads * 2)
        return min(wanted, max(MAX_CAPACITY, max_threads * 2))

    def room(self, *, waiting: int, busy: int, threads: int, max_threads: int) -> int:
        """Return how many deliveries to claim: 0 or less while enough of them are *waiting* to keep
        all threads busy. *busy* threads are in an exchange.
        """
        if waiting > self.per_s * WORK_LEFT_S:
            return 0
        return self.capacity(threads=threads, max_threads=max_threads) - waiting - busy


class Reach(NamedTuple):
    """How many rows a lane gives, as the last claims found them. A claim looks at as many lanes as
    it takes to be full: few deep ones, or hundreds of one row each.
    """

    rows_per_lane: float = ROWS_PER_LANE

    def lanes(self, rows: int) -> int:
        """Return at how many lanes to look for *rows*."""
        return math.ceil(rows / self.rows_per_lane)

    def after(self, *, rows: int, lanes: int, enough: bool, most: int) -> Self:
        """Note that a claim took *rows* of *lanes*; *enough*: there were no more, or it was full.
        *most* rows are to come from one lane.
        """
        found = self.rows_per_lane * NARROWER if enough else max(1.0, rows / max(1, lanes))
        return self._replace(rows_per_lane=min(most, found))


class Growth(NamedTuple):
    """*starved*: the share of their time that threads wait for a processor, as of *weighed_at*."""

    blocked_ticks: int = 0  # in a row: deliveries wait, and every thread is blocked
    starved: float = 0.0
    weighed_at: float = -math.inf

    def due(self, now: float) -> bool:
        """Return whether to weigh again."""
        return now - self.weighed_at >= WEIGH_EVERY_S

    def weighed(self, starved_s: float, *, threads: int, now: float) -> Self:
        """Note that *threads* waited *starved_s* in all for a processor since the last time."""
        elapsed_s = now - self.weighed_at
        # After a pause it says nothing about the threads that run now.
        known = threads > 0 and elapsed_s < 10 * WEIGH_EVERY_S
        starved = starved_s / (elapsed_s * threads) if known else 0.0
        return self._replace(starved=starved, weighed_at=now)

    def ticked(self, *, blocked: bool) -> Self:
        """Note at a tick whether deliveries wait while every thread is *blocked*."""
        ticks = self.blocked_ticks + 1 if blocked and self.starved < STARVED else 0
        return self if ticks == self.blocked_ticks else self._replace(blocked_ticks=ticks)

    def more(self, *, waiting: int, threads: int, max_threads: int) -> int:
        """Return how many threads to start."""
        if self.blocked_ticks < BLOCKED_TICKS:
            return 0
        # By half at a time: 64 threads for slow receivers within a fifth of a second.
        return max(0, min(waiting, max_threads - threads, 1 + threads // 2))

    def crowded(self, *, threads: int) -> bool:
        """Return whether one thread should leave. The last one stays."""
        return self.starved > CROWDED and threads > 1


def all_blocked(exchanging_since: list[float | None], now: float) -> bool:
    """Return whether every thread waits for a receiver: *exchanging_since* has the begin of each
    one's exchange, None between two.
    """
    return all(since is not None and now - since > BLOCKED_AFTER_S for since in exchanging_since)
