"""Releases the leases of workers that died or stopped answering."""

import threading
import time
from collections.abc import Callable
from typing import ClassVar
from uuid import UUID

from webhookd import logs
from webhookd.metrics.counters import Metrics
from webhookd.postgres import statements
from webhookd.postgres.record import ResultWriter
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool
from webhookd.worker.chores.rest import rest
from webhookd.worker.wakeup import WakeReason, WakeupPipe

log = logs.Logger("webhookd.chores.reap")

BATCH = 500
LOCKED_TRIES, LOCKED_PAUSE_S = 40, 0.05


class Reaper:
    """Releases expired leases, and on request all leases of one dead worker.

    *is_caught_up* says whether no result of this worker waits to be recorded. After an outage its
    own leases may have expired while their results wait: the results are recorded first. Released
    before, those deliveries would be sent again.
    """

    name: ClassVar[str] = "reap"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = True

    def __init__(
        self,
        writer: ResultWriter,
        metrics: Metrics,
        wakeup: WakeupPipe,
        *,
        is_caught_up: Callable[[], bool],
        stop: threading.Event,
    ) -> None:
        self._writer = writer
        self._metrics = metrics
        self._wakeup = wakeup
        self._is_caught_up = is_caught_up
        self._stop = stop

    def run(self, pool: Pool) -> None:
        """Release the leases that have expired."""
        if not self._is_caught_up():
            return
        began, released = time.monotonic(), 0
        try:
            released = self._release(pool, None)
        finally:
            if not released:
                rest(pool, self.name, began=began)

    def release(self, pool: Pool, incarnation: UUID) -> None:
        """Release the leases of a dead *incarnation* now, and delete its row from the workers.
        Blocks; raises `psycopg.Error`. Any thread may call it.
        """
        released = self._release(pool, incarnation)
        with pool.connection() as connection:
            connection.execute(statements.load("leave"), {"incarnation": incarnation})
        # Wake the dispatcher even if nothing was released: the dead worker may have had the duty to
        # be notified, or been the only one that knew a lane's timer.
        self._wakeup.wake(WakeReason.LOST)
        if released:
            log.info(
                "leases of a dead worker released",
                incarnation=str(incarnation),
                deliveries=released,
            )

    def _release(self, pool: Pool, incarnation: UUID | None) -> int:
        """Record the leases of *incarnation* (None: all expired ones) as lost. Return how many rows
        were released: not those that their owner recorded just before.
        """
        released, tries_left = 0, LOCKED_TRIES
        while True:
            with pool.connection() as connection:
                lost = self._writer.lost_leases(connection, incarnation=incarnation, limit=BATCH)
                if not lost:
                    break
                recorded = self._writer.record(connection, lost)
            released += len(recorded.accepted)
            ended = len(recorded.accepted) + len(recorded.refused)
            if len(lost) < BATCH and ended == len(lost):
                break
            if ended == 0:
                # Their lanes are locked: by a claim for a moment, or by an operator for longer. Do
                # not wait for the operator: these leases expire, and the next run finds them.
                tries_left -= 1
                if incarnation is None or tries_left == 0 or self._stop.wait(LOCKED_PAUSE_S):
                    break
        if released:
            self._metrics.leases_lost(released)
            self._wakeup.wake(WakeReason.LOST)
        return released
