"""The circuit breaker of one webhook, shared by every worker of every host.

closed -> open (after *threshold* failures in a row) -> half_open (one probe) -> closed, or open
again.

Each transition starts a new epoch, and an attempt carries the epoch that it was claimed under. Only
outcomes of the current epoch move the breaker: fifty exchanges under way when the fifth failure
trips it neither prolong nor shorten what follows, and an operator's reset is not undone by attempts
from before it. After Nygard, "Release It!" (2007), chapter 5.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from webhookd.core.answer import CircuitVote


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Breaker:
    """*failures* in a row; *until* (epoch seconds): in open the time of the next probe, in
    half_open the end of its lease.
    """

    state: CircuitState = CircuitState.CLOSED
    generation: int = 0
    failures: int = 0
    until: float | None = None

    @property
    def blocked_until(self) -> float | None:
        """When the next probe may go out; None while attempts flow freely."""
        return None if self.state is CircuitState.CLOSED else (self.until or 0.0)

    def begin_probe(self, *, lease_until: float) -> "Breaker":
        """Return the half-open breaker whose one probe ends, come what may, at *lease_until*."""
        return replace(
            self, state=CircuitState.HALF_OPEN, generation=self.generation + 1, until=lease_until
        )

    def vote(
        self, vote: CircuitVote, *, generation: int, now: float, threshold: int, open_s: float
    ) -> "Breaker":
        """Return the breaker after an attempt that was claimed under *generation* ended with *vote*."""
        if generation != self.generation:
            return self
        if vote is CircuitVote.NEUTRAL:
            return self.abandon_probe(generation=generation, now=now)
        if vote is CircuitVote.SUCCESS:
            if self.state is CircuitState.CLOSED:
                return self if self.failures == 0 else replace(self, failures=0)
            return Breaker(CircuitState.CLOSED, self.generation + 1)
        failures = self.failures + 1
        if self.state is CircuitState.HALF_OPEN or failures >= threshold:
            return Breaker(CircuitState.OPEN, self.generation + 1, failures, now + open_s)
        return replace(self, failures=failures)

    def abandon_probe(self, *, generation: int, now: float) -> "Breaker":
        """Return the breaker after an attempt ended without telling anything: a probe makes way for
        the next one at once.
        """
        if generation == self.generation and self.state is CircuitState.HALF_OPEN:
            return replace(self, until=now)
        return self

    def reset(self) -> "Breaker":
        """Return the breaker that an operator closed by hand; in the database a trigger does it."""
        return Breaker(CircuitState.CLOSED, self.generation + 1)

    def health(self) -> str:
        """Return the health_status that this breaker means, once there was an attempt."""
        if self.state is CircuitState.OPEN:
            return "unavailable"
        if self.state is CircuitState.HALF_OPEN or self.failures:
            return "degraded"
        return "healthy"
