"""The housekeeping thread: this worker's sign of life every few seconds, and the fleet's chores
that fall to it.

reap     claims whose lease ran out are released (the fence lets their owner win if it records first)
measure  the queue's depth by cause is counted, once for the whole fleet
fold     finished_counts is summed up
retain   what was kept for long enough is removed, a stretch of pages at a time
sweep    every 30 s what no notification covers is mended: lanes parked by mistake, counters stranded by a DELETE, dead rows

Besides, this worker adds what it did to pggit.worker_minutes, and learns where the fleet serves its
metrics.
"""

import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import psycopg
from psycopg_pool import ConnectionPool

from webhookd import logs
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus, QueueCause, QueueCounts
from webhookd.metrics.discovery import TargetGroups, target_groups
from webhookd.postgres import session, statements
from webhookd.postgres.claim import make_lanes
from webhookd.postgres.record import ResultWriter
from webhookd.postgres.retention import Retention
from webhookd.worker.wakeup import WakeReason, WakeupPipe

log = logs.Logger("webhookd.housekeeping")

EVERY_S = 4.5
FIRST_S = 0.5  # the dispatcher registers this worker first
LOST_AT_ONCE = 500
# A chore that takes long rests for so many times as long: with ten million rows waiting, or under
# an old snapshot, one would keep a processor busy. Not for longer than the second, or the depth
# would be too old to be shown before it is counted again.
RESTS, REST_MOST_S = 3.0, 30.0
COUNT_MOST_S = 60.0  # the sessions' statement_timeout


class Housekeeping:
    """*bell* rings when the dispatcher should look: rows were released, or nobody keeps the watch.

    *recorded* says whether no result of this worker's own waits to be recorded: after an outage the
    record comes before the reap.
    """

    def __init__(
        self,
        pool: ConnectionPool[session.Connection],
        recorder: ResultWriter,
        retention: Retention,
        *,
        worker_id: str,
        incarnation: UUID,
        metrics: Metrics,
        recorded: Callable[[], bool],
        bell: WakeupPipe,
    ) -> None:
        self._pool = pool
        self._recorder = recorder
        self._retention = retention
        self._worker_id = worker_id
        self._incarnation = incarnation
        self._metrics = metrics
        self._recorded = recorded
        self._bell = bell
        self._count_rests_s = 0.0
        self.targets: TargetGroups | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhookd-housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for half a second, and no longer for a statement under way."""
        self._stop.set()
        self._thread.join(0.5)

    def release(self, incarnation: UUID) -> None:
        """Release the leases of a dead *incarnation* now, and strike it from the workers. Blocks;
        raises `psycopg.Error`.
        """
        released = self._release(incarnation)
        with self._pool.connection() as connection:
            connection.execute(statements.load("leave"), {"incarnation": incarnation})
        # It may have kept the watch, or been the only one to know of a lane's timer.
        self._bell.wake(WakeReason.LOST)
        if released:
            log.info(
                "leases of a dead worker released",
                incarnation=str(incarnation),
                deliveries=released,
            )

    def _run(self) -> None:
        pause_s = FIRST_S
        while not self._stop.wait(pause_s):
            pause_s = EVERY_S
            try:
                self._turn()
            except psycopg.OperationalError as error:
                # The dispatcher and the recorder report an outage; without figures, no figures.
                self._metrics.set_queue(None)
                log.debug("housekeeping waits for the database", error=str(error))
            except Exception:
                log.exception("housekeeping fault")

    def _turn(self) -> None:
        with self._pool.connection() as connection:
            row = connection.execute(
                statements.load("beat"), {"incarnation": self._incarnation}
            ).fetchone()
        assert row is not None
        registered, watched, chores = row
        if "reap" in chores and self._recorded():
            began, released = time.monotonic(), 0
            try:
                released = self._release(None)
            finally:
                if not released:
                    self._rest("reap", began=began)
        if "fold" in chores:
            with self._pool.connection() as connection:
                connection.execute(statements.load("fold_finished"))
        if "sweep" in chores:
            self._sweep()
        if not registered:
            self._bell.wake(WakeReason.UNREGISTERED)
        elif not watched or "sweep" in chores:
            self._bell.wake(WakeReason.SWEEP)
        self.publish_activity()
        self._read_fleet()
        if (
            "measure" in chores
        ):  # after what must go on although this takes so long that the database gives up
            self._measure()
        if "retain" in chores:
            self._retention.turn(self._pool.connection, stopped=self._stop.is_set)

    def _measure(self) -> None:
        alone = self._count_rests_s > EVERY_S  # it takes long, so others would begin meanwhile
        began = time.monotonic()
        if alone:
            self._put_off("measure", COUNT_MOST_S)
        try:
            with self._pool.connection() as connection:
                connection.execute(statements.load("measure_depth"))
        finally:
            self._count_rests_s = self._rest("measure", began=began, put_off=alone)

    def _rest(self, chore: str, *, began: float, put_off: bool = False) -> float:
        """Have nobody do *chore* again too soon: it began at *began* (monotonic) and has just
        ended. Return for how long.

        *put_off*: it was already, for longer perhaps.
        """
        rest_s = min(REST_MOST_S, (time.monotonic() - began) * RESTS)
        if put_off or rest_s > EVERY_S:
            self._put_off(chore, max(0.0, rest_s - EVERY_S))
        return rest_s

    def _put_off(self, chore: str, seconds: float) -> None:
        with self._pool.connection() as connection:
            connection.execute(statements.load("rest_chore"), {"chore": chore, "seconds": seconds})

    def publish_activity(self) -> None:
        """Store what this worker did since it last said so. Blocks for one statement; raises
        `psycopg.Error`, and tries again with the next turn.
        """
        activity = self._metrics.take_activity()
        if not activity:
            return
        try:
            with self._pool.connection() as connection:
                parameters = {
                    "worker_id": self._worker_id,
                    "delivered": activity.attempts[AttemptStatus.DELIVERED],
                    "failed": activity.attempts[AttemptStatus.FAILED],
                    "timeouts": activity.attempts[AttemptStatus.TIMEOUT],
                    "circuit_opens": activity.circuit_opens,
                    "rate_limit_hits": activity.rate_limit_hits,
                    "durations": session.number_array(activity.durations.counts),
                    "slowest_s": activity.slowest_s,
                }
                connection.execute(statements.load("add_minute"), parameters)
        except psycopg.Error:
            self._metrics.put_back(activity)
            raise

    def _release(self, incarnation: UUID | None) -> int:
        """Record as lost what *incarnation* held (None: whatever has run out); return how many rows
        were released.

        Those that their owner recorded in the last moment are not among them.
        """
        released, patience = 0, 40
        while True:
            with self._pool.connection() as connection:
                lost = self._recorder.lost_leases(
                    connection, incarnation=incarnation, limit=LOST_AT_ONCE
                )
                if not lost:
                    break
                recorded = self._recorder.record(connection, lost)
            released += len(recorded.accepted)
            ended = len(recorded.accepted) + len(recorded.refused)
            if len(lost) < LOST_AT_ONCE and ended == len(lost):
                break
            if ended == 0:
                # Their lanes are locked: by a claim for a moment, or by an operator for longer.
                # Leases run out anyway.
                patience -= 1
                if incarnation is None or patience == 0 or self._stop.wait(0.05):
                    break
        if released:
            self._metrics.leases_lost(released)
            self._bell.wake(WakeReason.LOST)
        return released

    def _sweep(self) -> None:
        with self._pool.connection() as connection:
            connection.execute(statements.load("sweep_workers"))
            connection.execute(statements.load("sweep_minutes"))
            rows = connection.execute(statements.load("sweep_candidates")).fetchall()
            for start in range(0, len(rows), 1000):
                webhook_ids = sorted(row[0] for row in rows[start : start + 1000])
                self._mend(connection, webhook_ids)

    @staticmethod
    def _mend(connection: session.Connection, webhook_ids: Sequence[int]) -> None:
        make_lanes(connection, webhook_ids)
        with session.transaction(connection) as cursor:
            parameters = {"webhook_ids": session.number_array(webhook_ids)}
            locked = [
                row[0]
                for row in cursor.execute(
                    statements.load("lock_recorded_lanes"), parameters
                ).fetchall()
            ]
            # Leases are counted by a statement that began after the locks: no claim or record is
            # half seen.
            cursor.execute(
                statements.load("sweep_lanes"), {"webhook_ids": session.number_array(locked)}
            )

    def _read_fleet(self) -> None:
        with self._pool.connection() as connection:
            rows = connection.execute(statements.load("read_depth")).fetchall()
            self.targets = target_groups(connection.execute(statements.load("worker_targets")))
        if not rows:
            self._metrics.set_queue(None)
            return
        by_cause = {QueueCause(cause): deliveries for cause, deliveries, _ in rows}
        oldest = max((age for _, _, age in rows if age is not None), default=0.0)
        self._metrics.set_queue(QueueCounts(sum(by_cause.values()), by_cause, oldest))
