"""Finds the rows that no claim can take, ends them, and says so in the log.

Nearly all of them are found when their bodies are measured (`BodyMeasurer`). A body can also become
unreadable later, when a disk corrupts it. Then the claim's statement fails, and does not say which
row it read. `isolate` narrows it down:

    claim from one lane of each kind -> those that fail wait, all others go on
                                  -> its rows are read again, each by itself: the bad one fails
"""

import threading
from collections.abc import Iterable

import psycopg
from psycopg_pool import ConnectionPool

from webhookd import logs
from webhookd.errors import first_line
from webhookd.postgres import bodies
from webhookd.postgres.claim import Claimer
from webhookd.postgres.session import Connection
from webhookd.worker.wakeup import WakeReason, WakeupPipe

log = logs.Logger("webhookd.poison")

ROWS_AT_ONCE = 100  # of each lane, where rows are read again
LANE_WAITS_S = 10.0
# A claim that is to look at single lanes finds one with a timer, one with new rows, and one each of
# those that are slow or not measured yet.
LANES_ALONE = 4
MAX_WAITING = 2000  # what is dropped here is met by a claim again
PAUSE_S = 1.0  # after a failure


class BodyMeasurer:
    """Measures bodies on a thread of its own, which ends when there is nothing to measure: one body
    may take half a minute, and nothing interrupts the server meanwhile.
    """

    def __init__(
        self, pool: ConnectionPool[Connection], wakeup: WakeupPipe, *, worker_id: str
    ) -> None:
        self._pool = pool
        self._wakeup = wakeup
        self._worker_id = worker_id
        self._lock = threading.Lock()  # guards what follows
        self._waiting: dict[int, bool] = {}  # in order; whether to read it again
        self._running = False

    def add(self, delivery_ids: Iterable[int], *, again: bool = False) -> None:
        """Have the bodies of these deliveries measured soon. Any thread may call it."""
        with self._lock:
            for delivery_id in delivery_ids:
                if len(self._waiting) < MAX_WAITING:
                    self._waiting[delivery_id] = again
            if self._running or not self._waiting:
                return
            self._running = True
        threading.Thread(target=self._run, name="webhookd-measure", daemon=True).start()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            delivery_ids, again = batch
            try:
                with self._pool.connection() as connection:
                    failed = bodies.measure(
                        connection, delivery_ids, worker_id=self._worker_id, again=again
                    )
            except psycopg.DatabaseError as error:
                # Claims meet these rows again, once the database answers.
                log.warning("bodies not measured", error=first_line(error))
                threading.Event().wait(PAUSE_S)
                continue
            for delivery_id, webhook_id, reason in failed:
                log.warning(
                    "delivery failed: its body cannot be sent",
                    delivery_id=delivery_id,
                    webhook_id=webhook_id,
                    reason=reason,
                )
            self._wakeup.wake(WakeReason.LOST)

    def _next(self) -> tuple[list[int], bool] | None:
        """Return what to measure now, and whether again; None when this thread is to end."""
        with self._lock:
            if not self._waiting:
                self._running = False
                return None
            again = any(self._waiting.values())
            delivery_ids = [key for key, value in self._waiting.items() if value == again]
            for delivery_id in delivery_ids:
                del self._waiting[delivery_id]
            return delivery_ids, again


def isolate(
    claimer: Claimer, connection: Connection, measurer: BodyMeasurer, error: psycopg.Error
) -> None:
    """A claim failed with *error*, which a row may have caused: see the module's text. Blocks for
    two statements; raises `psycopg.Error`.
    """
    webhook_ids = claimer.looked_at
    if not webhook_ids:
        return
    log.warning("claim failed", error=first_line(error), sqlstate=error.sqlstate)
    if len(webhook_ids) > LANES_ALONE:
        claimer.single = len(webhook_ids) + 1
        return
    due = bodies.due_in_lanes(connection, webhook_ids, limit=ROWS_AT_ONCE)
    bodies.put_lanes_off(connection, webhook_ids, seconds=LANE_WAITS_S)
    measurer.add(due, again=True)
    for webhook_id in webhook_ids:
        log.warning(
            "webhook waits: its deliveries cannot be claimed",
            webhook_id=webhook_id,
            seconds=LANE_WAITS_S,
        )
