"""Repairs what no notification reports."""

import time
from typing import ClassVar

from webhookd.postgres import lanes, statements
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.rest import rest
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

    def run(self, pool: Pool) -> None:
        """Sweep once. Blocks for some statements on one connection; the longer they took, the
        longer all workers rest.
        """
        began = time.monotonic()
        try:
            with pool.connection() as connection:
                connection.execute(statements.load("sweep_workers"))
                connection.execute(statements.load("sweep_minutes"))
                webhook_ids = lanes.suspicious_lanes(connection)
                for start in range(0, len(webhook_ids), LANES_AT_ONCE):
                    lanes.repair_lanes(connection, webhook_ids[start : start + LANES_AT_ONCE])
        finally:
            # Also after a failure: the dispatcher then looks for rows that it was not notified of.
            self._wakeup.wake(WakeReason.SWEEP)
            rest(pool, self.name, began=began)
