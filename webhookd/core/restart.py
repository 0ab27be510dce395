"""When a worker's slot is filled again after a death: at once the first time, then later and later
while the slot's workers keep dying.

    WAITING --started--> STARTING --beat--> RUNNING --beat--> RUNNING
       ^                    |                  |
       +--------died--------+-------died-------+

So a worker that cannot boot does not spin, and one that ran well before it died is back at once.
Every instant is monotonic.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from webhookd.core.backoff import GrowingPause

# From the second death in a row on: 0.5 s, 1, 2 ... 30.
PAUSE = GrowingPause(first_s=0.5, max_s=30.0)
HEALTHY_LIFE_S = 30.0


class Phase(StrEnum):
    """What a slot has in it."""

    WAITING = "waiting"  # no process; one is started at `since`
    STARTING = "starting"  # forked at `since`, no beat yet
    RUNNING = "running"  # first beat at `since`


@dataclass(frozen=True, slots=True)
class Restart:
    """The state of one slot. *failures* counts deaths in a row; *heard* is the last sign of life
    (start or beat).
    """

    phase: Phase
    since: float
    heard: float
    failures: int = 0

    @classmethod
    def fresh(cls, now: float) -> Self:
        """Return a slot that is to be filled at once: a new one, or one whose worker was told to
        drain.
        """
        return cls(Phase.WAITING, since=now, heard=now)

    def started(self, now: float) -> Self:
        """Return the slot with a new process. Raise `ValueError` if it has one already."""
        if self.phase is not Phase.WAITING:
            raise ValueError(f"a {self.phase} slot cannot be started")
        return replace(self, phase=Phase.STARTING, since=now, heard=now)

    def beat(self, now: float) -> Self:
        """Return the slot after a heartbeat. Raise `ValueError` if it has no process."""
        if self.phase is Phase.WAITING:
            raise ValueError("a waiting slot cannot beat")
        since = now if self.phase is Phase.STARTING else self.since
        return replace(self, phase=Phase.RUNNING, since=since, heard=now)

    def forget_silence(self, now: float) -> Self:
        """Return the slot with the whole timeout ahead again. For when the supervisor itself could
        not listen: the worker must not be killed for that.
        """
        return replace(self, heard=now)

    def died(self, now: float, *, u: float) -> Self:
        """Return the slot as it waits for its next start; *u* in [0, 1) is the jitter. Raise
        `ValueError` if it has no process.
        """
        if self.phase is Phase.WAITING:
            raise ValueError("a waiting slot cannot die")
        failures = 1 if self._lived_well() else self.failures + 1
        due = now + pause_s(failures, u=u)
        return replace(self, phase=Phase.WAITING, since=due, heard=now, failures=failures)

    def silent_at(self, timeout_s: float) -> float:
        """Return when the process counts as hung; a new one has *timeout_s* for its first beat."""
        return self.heard + timeout_s

    def _lived_well(self) -> bool:
        # Up to the last beat, not to the death: a worker that hangs at once is killed one heartbeat
        # timeout later, which may be longer than a healthy life.
        return self.phase is Phase.RUNNING and self.heard - self.since >= HEALTHY_LIFE_S


def pause_s(failures: int, *, u: float) -> float:
    """Return the seconds to wait after the *failures*-th death in a row: 0 after the first, then
    `PAUSE`, spread by the jitter *u*. At least half of it stays, so that a crash loop cannot spin.
    """
    return replace(PAUSE, tries=failures - 2).jittered(u) if failures > 1 else 0.0
