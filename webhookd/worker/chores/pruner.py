"""Removes what was kept for long enough."""

import threading
from typing import ClassVar

from webhookd.postgres.retention import Retention
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool


class Pruner:
    """Gives *retention* its turns: some pages of each table at a time."""

    name: ClassVar[str] = "retain"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = True

    def __init__(self, retention: Retention, *, stop: threading.Event) -> None:
        self._retention = retention
        self._stop = stop

    def run(self, pool: Pool) -> None:
        """Remove the rows of the pages that are due. Blocks for about a second a table, and ends
        early once *stop* is set.
        """
        self._retention.turn(pool.connection, stopped=self._stop.is_set)
