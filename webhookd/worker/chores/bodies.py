"""Measures the bodies of rows in quarantine that no claim could measure within half a second."""

import threading
import time
from typing import ClassVar

from webhookd.postgres import bodies
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool
from webhookd.worker.poison import report
from webhookd.worker.wakeup import WakeReason, WakeupPipe

AT_ONCE = 100
# No further row is begun after so long in one run: the same thread gives the worker's sign of life.
LONG_S = 2.0


class BodyMeasurer:
    """One worker of the fleet does this, with patience. A row that can be read and is not too large
    stays in quarantine, and is tried there; any other fails.
    """

    name: ClassVar[str] = "measure_bodies"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = True

    def __init__(self, wakeup: WakeupPipe, *, worker_id: str, stop: threading.Event) -> None:
        self._wakeup = wakeup
        self._worker_id = worker_id
        self._stop = stop

    def run(self, pool: Pool) -> None:
        with pool.connection() as connection:
            delivery_ids = bodies.unmeasured_in_quarantine(connection, limit=AT_ONCE)
        until = time.monotonic() + LONG_S
        for delivery_id in delivery_ids:
            if self._stop.is_set() or time.monotonic() >= until:
                break
            with pool.connection() as connection:
                ended = bodies.measure(
                    connection, [delivery_id], worker_id=self._worker_id, last=True
                )
            report(ended)
        if delivery_ids:
            # The dispatcher asks for rows in quarantine when it has looked.
            self._wakeup.wake(WakeReason.SWEEP)
