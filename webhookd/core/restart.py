"""When a worker's place is filled again after a death: at once the first time, then ever later
while it keeps dying.

    WAITING --started--> STARTING --beat--> RUNNING --beat--> RUNNING
       ^                    |                  |
       +--------died--------+-------died-------+

A worker that cannot boot therefore does not spin, and one that ran well and then died is back at
once. Every instant is monotonic.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

BACKOFF_BASE_S = 0.5
BACKOFF_MAX_S = 30.0
HEALTHY_LIFE_S = 30.0


class Phase(StrEnum):
    """What holds the place."""

    WAITING = "waiting"  # no process; one is started at `since`
    STARTING = "starting"  # forked at `since`, no beat yet
    RUNNING = "running"  # first beat at `since`


@dataclass(frozen=True, slots=True)
class Restart:
    """One place's state. *failures* counts deaths in a row; *heard* is the last sign of life (start
    or beat).
    """

    phase: Phase
    since: float
    heard: float
    failures: int = 0

    @classmethod
    def fresh(cls, now: float) -> Self:
        """Return a place that nobody has held yet, to be filled at once. Also what an ordered drain
        leaves behind.
        """
        return cls(Phase.WAITING, since=now, heard=now)

    def started(self, now: float) -> Self:
        """Return the place with a process in it. Raise `ValueError` if it has one already."""
        if self.phase is not Phase.WAITING:
            raise ValueError(f"a {self.phase} place cannot be started")
        return replace(self, phase=Phase.STARTING, since=now, heard=now)

    def beat(self, now: float) -> Self:
        """Return the place after a heartbeat. Raise `ValueError` if it has no process."""
        if self.phase is Phase.WAITING:
            raise ValueError("a waiting place cannot beat")
        since = now if self.phase is Phase.STARTING else self.since
        return replace(self, phase=Phase.RUNNING, since=since, heard=now)

    def forget_silence(self, now: float) -> Self:
        """Return the place with its silence forgotten: whoever listens was away, not the worker."""
        return replace(self, heard=now)

    def died(self, now: float, *, u: float) -> Self:
        """Return the place waiting for its next start; *u* in [0, 1) is the jitter. Raise
        `ValueError` if it waits.
        """
        if self.phase is Phase.WAITING:
            raise ValueError("a waiting place cannot die")
        failures = 1 if self._lived_well() else self.failures + 1
        due = now + backoff_s(failures, u=u)
        return replace(self, phase=Phase.WAITING, since=due, heard=now, failures=failures)

    def silent_at(self, timeout_s: float) -> float:
        """Return when the process counts as hung; a new one has *timeout_s* to give its first beat."""
        return self.heard + timeout_s

    def _lived_well(self) -> bool:
        # Up to the last beat, not to the death: a worker that hangs at once is dead only a
        # heartbeat timeout later.
        return self.phase is Phase.RUNNING and self.heard - self.since >= HEALTHY_LIFE_S


def backoff_s(failures: int, *, u: float) -> float:
    """Return the seconds to wait after the *failures*-th death in a row: 0, then 0.5, 1, 2 ... 30,
    each times [0.5, 1) by the jitter *u*.

    Half of it always stands ("equal jitter" in the AWS Architecture Blog's "Exponential Backoff And
    Jitter"): the floor keeps a crash loop from spinning.
    """
    if failures <= 1:
        return 0.0
    # Clamped exponent: 2.0 ** 1024 raises OverflowError.
    ceiling_s = min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2.0 ** min(failures - 2, 60))
    return ceiling_s * (0.5 + 0.5 * u)
