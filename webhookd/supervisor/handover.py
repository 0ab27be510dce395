"""Dead workers whose leases somebody has to release, and who was asked to.

A dead worker's leases would run out by themselves in the end; a living sibling that is told of the
death releases them at once.
"""

import math
from collections.abc import Iterable
from uuid import UUID

from webhookd.supervisor.child import Child

# A keeper that still beats this long after it was told has had the time to release the leases.
RELEASE_GRACE_S = 5.0


class Handover:
    """Incarnations are remembered here until one keeper, a living worker, has been told and has
    lived on for a while.

    To be told twice is harmless: a lease is released only while its dead holder still has it. For
    the supervisor's loop only.
    """

    def __init__(self) -> None:
        self.waiting: tuple[UUID, ...] = ()  # nobody lives who could be told
        self._told: dict[
            UUID, tuple[tuple[UUID, float], ...]
        ] = {}  # keeper: (dead, when it was told)

    def died(self, worker: UUID, *, clean: bool, heard: float) -> None:
        """Take back what *worker* may not have released by its last beat, at *heard*, and its own
        leases unless it drained.

        Call it only once the process has been waited for: while it could still send, nobody else
        may have its deliveries.
        """
        unreleased = tuple(
            dead for dead, at in self._told.pop(worker, ()) if heard - at < RELEASE_GRACE_S
        )
        self.waiting += unreleased if clean else (*unreleased, worker)

    def started(self, keeper: UUID) -> None:
        """Note that all who wait were named in a new worker's seat. Before its first beat it can
        release nothing.
        """
        self._told[keeper] = tuple((dead, math.inf) for dead in self.waiting)
        self.waiting = ()

    def first_beat(self, keeper: UUID, now: float) -> None:
        """Note that *keeper* works from now on."""
        self._told[keeper] = tuple((dead, now) for dead, _ in self._told.get(keeper, ()))

    def hand_over(self, keepers: Iterable[tuple[Child, float]], now: float) -> None:
        """Tell the first of *keepers* (each with its last beat) that can be told, of all who wait.
        Does not block.
        """
        for keeper, heard in keepers:
            while self.waiting and keeper.entrust(self.waiting[0]):
                told = self._told.get(keeper.incarnation, ())
                recent = tuple((dead, at) for dead, at in told if heard - at < RELEASE_GRACE_S)
                self._told[keeper.incarnation] = (*recent, (self.waiting[0], now))
                self.waiting = self.waiting[1:]
