"""Stores what this worker did, minute by minute."""

from typing import ClassVar

import psycopg

from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus
from webhookd.postgres import statements
from webhookd.postgres.arrays import number_array
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool


class ActivityWriter:
    """Adds what *metrics* counted since the last run to the row of this minute and *worker_id* in
    pggit.worker_minutes.
    """

    name: ClassVar[str] = "activity"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = False

    def __init__(self, metrics: Metrics, *, worker_id: str) -> None:
        self._metrics = metrics
        self._worker_id = worker_id

    def run(self, pool: Pool) -> None:
        """Store it; no statement where there is nothing to store. What could not be stored is
        counted again with the next run.
        """
        activity = self._metrics.take_activity()
        if not activity:
            return
        parameters = {
            "worker_id": self._worker_id,
            "delivered": activity.attempts[AttemptStatus.DELIVERED],
            "failed": activity.attempts[AttemptStatus.FAILED],
            "timeouts": activity.attempts[AttemptStatus.TIMEOUT],
            "circuit_opens": activity.circuit_opens,
            "rate_limit_hits": activity.rate_limit_hits,
            "durations": number_array(activity.durations.counts),
            "slowest_s": activity.slowest_s,
        }
        try:
            with pool.connection() as connection:
                connection.execute(statements.load("add_minute"), parameters)
        except psycopg.Error:
            self._metrics.put_back(activity)
            raise
