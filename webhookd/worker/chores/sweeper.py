"""Repairs what no notification reports."""

from collections.abc import Sequence
from typing import ClassVar

from webhookd.postgres import session, statements
from webhookd.postgres.claim import make_lanes
from webhookd.worker.chores.chore import Pool
from webhookd.worker.wakeup import WakeReason, WakeupPipe

LANES_AT_ONCE = 1000  # lanes that one transaction locks


class Sweeper:
    """Removes the rows of dead workers and old minutes, repairs lanes, and wakes the dispatcher.

    Lanes need it where webhookd was not told: a lane is parked although rows wait (a trigger was
    off), its row was deleted, or a DELETE of deliveries left its count of leases too high.
    """

    name: ClassVar[str] = "sweep"
    interval_s: ClassVar[float] = 30.0
    shared: ClassVar[bool] = True

    def __init__(self, wakeup: WakeupPipe) -> None:
        self._wakeup = wakeup
        self._sweep_lanes = statements.load("sweep_lanes")

    def run(self, pool: Pool) -> None:
        """Sweep once. Blocks for some statements on one connection."""
        try:
            with pool.connection() as connection:
                connection.execute(statements.load("sweep_workers"))
                connection.execute(statements.load("sweep_minutes"))
                self.repair_lanes(connection)
        finally:
            # Also after a failure: the dispatcher then looks for rows that it was not notified of.
            self._wakeup.ring(WakeReason.SWEEP)

    def repair_lanes(self, connection: session.Connection) -> None:
        """Correct the lanes whose state may be wrong. A lane that is locked waits for the next
        sweep.
        """
        rows = connection.execute(statements.load("sweep_candidates")).fetchall()
        for start in range(0, len(rows), LANES_AT_ONCE):
            webhook_ids = sorted(row[0] for row in rows[start : start + LANES_AT_ONCE])
            self._repair(connection, webhook_ids)

    def _repair(self, connection: session.Connection, webhook_ids: Sequence[int]) -> None:
        make_lanes(connection, webhook_ids)
        with session.transaction(connection) as cursor:
            parameters = {"webhook_ids": session.number_array(webhook_ids)}
            rows = cursor.execute(statements.load("lock_recorded_lanes"), parameters).fetchall()
            # Two statements, and the second one counts the leases: its snapshot is newer than the
            # locks. In one statement it could count half of a claim or record that committed while
            # the lock was waited for.
            locked = session.number_array(row[0] for row in rows)
            cursor.execute(self._sweep_lanes, {"webhook_ids": locked})
