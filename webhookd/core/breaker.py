"""The circuit breaker of one webhook, shared by all workers on all hosts.

    closed --(threshold failures in a row)--> open --(one probe)--> half_open --> closed, or open

Each transition starts a new generation, and each attempt carries the generation that it was claimed
under. Only outcomes of the current generation change the breaker. Without generations

- fifty exchanges are under way when the fifth failure opens the circuit; each of their failures
  would open it again and so prolong the wait;
- one late success among them would close a circuit that has just opened;
- attempts claimed before an operator's reset would open the circuit again.

After Nygard, "Release It!" (2007), chapter 5.
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
    """*failures* are those in a row. *next_probe_at* (epoch seconds) is when the next probe may go
    out: in half_open this is the end of the present probe's lease. In the database it is the column
    circuit_until.
    """

    state: CircuitState = CircuitState.CLOSED
    generation: int = 0
    failures: int = 0
    next_probe_at: float | None = None

    @property
    def blocked_until(self) -> float | None:
        """When the next probe may go out; None while the circuit is closed and blocks nothing."""
        return None if self.state is CircuitState.CLOSED else (self.next_probe_at or 0.0)

    def begin_probe(self, *, lease_until: float) -> "Breaker":
        """Return the half-open breaker. Its one probe ends at *lease_until* at the latest."""
        # A probe is a generation of its own: attempts from before the circuit opened cannot decide
        # it, and neither can an earlier probe whose lease expired.
        return replace(
            self,
            state=CircuitState.HALF_OPEN,
            generation=self.generation + 1,
            next_probe_at=lease_until,
        )

    def vote(
        self, vote: CircuitVote, *, generation: int, now: float, threshold: int, open_s: float
    ) -> "Breaker":
        """Return the breaker after an attempt of *generation* ended with *vote*."""
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
        """Return the breaker after an attempt that says nothing about the receiver. If it was the
        probe, the next probe may go out at once: otherwise the webhook would wait for the lease of
        a probe that has ended.
        """
        if generation == self.generation and self.state is CircuitState.HALF_OPEN:
            return replace(self, next_probe_at=now)
        return self

    def reset(self) -> "Breaker":
        """Return the breaker after an operator closed it; in the database a trigger does this."""
        # Also where it is closed already: failures under way would count after the reset.
        return Breaker(CircuitState.CLOSED, self.generation + 1)

    def health(self) -> str:
        """Return the health_status that this breaker stands for, once there was an attempt."""
        if self.state is CircuitState.OPEN:
            return "unavailable"
        if self.state is CircuitState.HALF_OPEN or self.failures:
            return "degraded"
        return "healthy"
