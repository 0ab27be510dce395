"""The depth of the queue: one worker counts it for the fleet, and all show the last count."""

import time
from typing import ClassVar

import psycopg

from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import QueueCause, QueueCounts
from webhookd.postgres import statements
from webhookd.worker.chores.chore import EVERY_TURN_S, TURN_S, Pool
from webhookd.worker.chores.rest import put_off, rest

MAX_COUNT_S = 60.0  # the sessions' statement_timeout


class DepthCounter:
    """Counts the waiting rows by what they wait for.

    With many rows the count takes longer than its interval. Then the next count is put off before
    it starts, or other workers would start the same count meanwhile.
    """

    name: ClassVar[str] = "measure"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = True

    def __init__(self) -> None:
        self.rest_s = 0.0  # how long the last count had to rest: longer, the longer it took

    def run(self, pool: Pool) -> None:
        """Count. Blocks for up to a minute; then the server cancels the statement."""
        is_put_off = self.rest_s > TURN_S
        began = time.monotonic()
        if is_put_off:
            put_off(pool, self.name, MAX_COUNT_S)
        try:
            with pool.connection() as connection:
                connection.execute(statements.load("measure_depth"))
        finally:
            self.rest_s = rest(pool, self.name, began=began, is_put_off=is_put_off)


class DepthReader:
    """Publishes the last count in *metrics*; nothing where it is too old, since an old figure would
    look fresh.
    """

    name: ClassVar[str] = "read_depth"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = False

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def run(self, pool: Pool) -> None:
        """Read it. Blocks for one statement; where that fails, there is no figure."""
        try:
            with pool.connection() as connection:
                rows = connection.execute(statements.load("read_depth")).fetchall()
        except psycopg.Error:
            self._metrics.set_queue(None)
            raise
        if not rows:
            self._metrics.set_queue(None)
            return
        by_cause = {QueueCause(cause): deliveries for cause, deliveries, _ in rows}
        oldest_s = max((age_s for _, _, age_s in rows if age_s is not None), default=0.0)
        self._metrics.set_queue(QueueCounts(sum(by_cause.values()), by_cause, oldest_s))
