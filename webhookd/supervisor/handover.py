"""The leases of dead workers: which living worker is told to release them.

Without that the leases of a dead worker would expire in the end. A living sibling that is told of
the death releases them at once.
"""

import math
from collections.abc import Iterable
from uuid import UUID

from webhookd.supervisor.child import Child

# A recipient that still beats this long after it was told has had the time to release the leases.
RELEASE_GRACE_S = 5.0


class Handover:
    """Remembers each dead worker until a recipient has been told of it and has then lived on.

    A recipient is a living worker. If it dies within `RELEASE_GRACE_S`, it may not have released
    the leases, so the next recipient is told of the same dead worker again. That is harmless: a
    lease is released only while its dead holder still has it. For the supervisor's loop only.
    """

    def __init__(self) -> None:
        self.pending: tuple[UUID, ...] = ()  # dead workers that no recipient has been told of
        # By recipient: (dead worker, when it was told of it).
        self._told: dict[UUID, tuple[tuple[UUID, float], ...]] = {}

    def on_exit(self, worker: UUID, *, clean: bool, heard: float) -> None:
        """Make *worker*'s leases pending, unless it drained (*clean*), and what it was told of.

        *heard* is the monotonic instant of its last beat: what it was told shortly before may be
        unreleased. Call this only once the process has been waited for. Before that it could still
        send, and a second worker would send the same deliveries.
        """
        unreleased = tuple(
            dead for dead, at in self._told.pop(worker, ()) if heard - at < RELEASE_GRACE_S
        )
        self.pending += unreleased if clean else (*unreleased, worker)

    def on_start(self, recipient: UUID) -> None:
        """Note that a new worker's lifeline names all that are pending.

        It can release nothing before its first beat; if it dies earlier, all are pending again.
        """
        self._told[recipient] = tuple((dead, math.inf) for dead in self.pending)
        self.pending = ()

    def on_first_beat(self, recipient: UUID, now: float) -> None:
        """Note that *recipient* works from now on."""
        self._told[recipient] = tuple((dead, now) for dead, _ in self._told.get(recipient, ()))

    def tell(self, recipients: Iterable[tuple[Child, float]], now: float) -> None:
        """Tell the first recipient whose lifeline takes it of all dead workers that are pending.

        *recipients* come with the instant of their last beat. Does not block.
        """
        for recipient, heard in recipients:
            while self.pending and recipient.tell_of_death(self.pending[0]):
                told = self._told.get(recipient.incarnation, ())
                recent = tuple((dead, at) for dead, at in told if heard - at < RELEASE_GRACE_S)
                self._told[recipient.incarnation] = (*recent, (self.pending[0], now))
                self.pending = self.pending[1:]
