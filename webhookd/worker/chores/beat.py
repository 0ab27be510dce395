"""A worker's sign of life."""

from collections.abc import Mapping
from typing import ClassVar
from uuid import UUID

from psycopg.types.json import Jsonb

from webhookd.postgres import statements
from webhookd.worker.chores.chore import Pool
from webhookd.worker.wakeup import WakeReason, WakeupPipe


class Beat:
    """Says that *incarnation* lives, and learns which shared chores this worker is to run now.

    Wakes the dispatcher where it has to act: the worker's row is gone, so that it must register
    again, or no worker is notified of new rows, so that it must look by itself.
    """

    name: ClassVar[str] = "beat"

    def __init__(self, incarnation: UUID, wakeup: WakeupPipe) -> None:
        self._incarnation = incarnation
        self._wakeup = wakeup

    def run(self, pool: Pool, intervals_s: Mapping[str, float]) -> frozenset[str]:
        """Return those chores of *intervals_s* (seconds by name) that fall to this worker. They
        count as run from now on: no other worker starts them before their interval has passed.

        Blocks for one statement; raises `psycopg.Error`.
        """
        parameters = {"incarnation": self._incarnation, "intervals_s": Jsonb(dict(intervals_s))}
        with pool.connection() as connection:
            row = connection.execute(statements.load("beat"), parameters).fetchone()
        assert row is not None
        registered, watched, due = row
        if not registered:
            self._wakeup.wake(WakeReason.UNREGISTERED)
        elif not watched and "sweep" not in due:  # that chore wakes the dispatcher, too
            self._wakeup.wake(WakeReason.SWEEP)
        return frozenset(due)
