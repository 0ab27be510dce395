"""Fails deliveries that have waited for too long."""

import threading
import time
from typing import ClassVar

from webhookd import logs
from webhookd.postgres import statements
from webhookd.text import duration
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool

log = logs.Logger("webhookd.chores.give_up")

BATCH = 500
LANES = 1000  # looked at by one statement: a few buffers each
RUN_S = 1.0


class GiverUp:
    """Fails what has waited for longer than *after_s* seconds (`--give-up-after`), whatever holds
    it: a pause, an open circuit, a hold.

    Lanes come round in the order of their webhooks; a run continues where the one before ended.
    """

    name: ClassVar[str] = "give_up"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = True

    def __init__(self, *, after_s: float, worker_id: str, stop: threading.Event) -> None:
        self._worker_id = worker_id
        self._after_s = after_s
        self._stop = stop
        self._behind: int | None = None  # the last webhook looked at

    def run(self, pool: Pool) -> None:
        """Fail what is due, in batches of 500, until all lanes were looked at or a second has
        passed. Blocks; raises `psycopg.Error`.
        """
        statement = statements.load("give_up")
        until, given_up = time.monotonic() + RUN_S, 0
        while not self._stop.is_set():
            behind = -(2**63) if self._behind is None else self._behind
            with pool.connection() as connection:
                row = connection.execute(
                    statement,
                    {
                        "after_s": self._after_s,
                        "behind": behind,
                        "lanes": LANES,
                        "limit": BATCH,
                        "reason": f"gave up after {duration(self._after_s)}",
                        "worker_id": self._worker_id,
                    },
                ).fetchone()
            assert row is not None
            last, failed = row
            given_up += failed
            # A full batch may have left rows of the same lanes.
            if failed < BATCH:
                self._behind = last
            if time.monotonic() >= until or (failed < BATCH and last is None):
                break
        if given_up:
            log.warning("deliveries given up", deliveries=given_up, after=duration(self._after_s))
