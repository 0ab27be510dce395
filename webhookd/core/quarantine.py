"""When a worker tries a row from quarantine, that is a row that may kill the worker that sends it.

It tries such a row alone, with nothing else outstanding, so that the row kills nothing else. One
worker of the fleet does so at a time, and for a tenth of its time at most:

    due -> take the turn -> alone: claim nothing, wait until nothing is outstanding -> try one
                |             ^                                                         |
       another has it         +--------------------- sent: the next one ----------------+
                v                                                                       v
              wait <----------- rest for nine times as long <----- none found, or 10 s are over

Times are monotonic.
"""

import math
from typing import NamedTuple, Self

from webhookd.core.backoff import GrowingPause

# Twice an exchange's default timeout. Without a bound, one lane that an operator has locked (and a
# result that waits for it) would keep this worker from claiming anything for any webhook.
ALONE_WITHIN_S = 10.0
# For each second alone a worker claims other rows for nine.
REST_FACTOR = 9.0
# A turn that is not given back ends by itself after so long (and not before the row's lease).
TURN_S = 2 * ALONE_WITHIN_S
# How often to ask for such a row while there is always something else to claim.
ASK_EVERY_S = 10.0
TRY_EVERY_S = 0.01  # while alone: how often to check that nothing is outstanding any more
# Due, and not found: another worker has it locked for a moment, an operator for an hour, the sweep
# has not made its lane yet, or a delivery stays outstanding. To be alone costs all other webhooks
# throughput, so the pauses grow.
MISSED_FIRST_S, MISSED_MAX_S = 10.0, 60.0


class Quarantine(NamedTuple):
    """A value; each event returns the next one.

    *alone*: claim nothing else, since *alone_since*. *due_at*: take the turn. *try_at*: try one,
    once nothing is outstanding. *ask_at*: ask the database again when the earliest is due.
    *rest_until*: no turn before that.
    """

    alone: bool = False
    due_at: float = math.inf
    try_at: float = math.inf
    ask_at: float = -math.inf
    alone_until: float = math.inf
    alone_since: float = math.inf
    rest_until: float = -math.inf
    missed_at: float = -math.inf
    not_before: float = -math.inf
    misses: int = 0

    @property
    def changes_at(self) -> float:
        """When `turned` changes something."""
        return self.alone_until if self.alone else math.inf

    def turned(self, now: float) -> Self:
        """End being alone when it takes too long."""
        if self.alone and now >= self.alone_until:
            missed = self.missed(now)
            return missed._replace(due_at=missed.not_before)
        return self

    def taken(self, now: float, *, held: bool, free_in_s: float) -> Self:
        """The turn is this worker's, or another worker has it for *free_in_s* yet."""
        if not held:
            return self._replace(due_at=now + max(TRY_EVERY_S, free_in_s))
        return self._replace(
            alone=True,
            due_at=math.inf,
            try_at=now,
            alone_since=now,
            alone_until=now + ALONE_WITHIN_S,
        )

    def is_over(self, now: float) -> bool:
        """Return whether this turn has lasted so long that no further row is tried in it."""
        return now >= self.alone_since + ALONE_WITHIN_S

    def asked(self, due_s: float, *, answered_at: float) -> Self:
        """Note that the earliest row is due *due_s* after *answered_at* (inf: there is none).

        A row that was due when none was found has to wait. *answered_at* must not be earlier than
        the database's answer: a row that comes due during the question would have to wait, too.
        """
        due_at = answered_at + due_s
        if due_at <= self.missed_at:
            due_at = max(due_at, self.not_before)
        return self._replace(
            due_at=math.inf if self.alone else max(due_at, self.rest_until),
            ask_at=answered_at + ASK_EVERY_S,
        )

    def delayed(self, try_at: float) -> Self:
        """Do not try one before *try_at*: deliveries are outstanding, or the database is away."""
        return self._replace(try_at=max(self.try_at, try_at), due_at=max(self.due_at, try_at))

    def sent(self, now: float, *, timeout_s: float) -> Self:
        """One is outstanding now: stay alone for as long as its exchange may last."""
        return self._replace(
            try_at=now + TRY_EVERY_S, alone_until=now + timeout_s + ALONE_WITHIN_S, misses=0
        )

    def put_off(self, now: float) -> Self:
        """One was found, and its lane does not admit it yet; or this turn is over. There may be
        others.
        """
        return self._ended(now)._replace(misses=0)

    def missed(self, now: float) -> Self:
        """None was found; one that is due nonetheless has to wait for a while."""
        pause = GrowingPause(MISSED_FIRST_S, MISSED_MAX_S, self.misses)
        ended = self._ended(now)
        return ended._replace(
            missed_at=now,
            not_before=max(ended.rest_until, now + pause.seconds),
            misses=self.misses + 1,
        )

    def _ended(self, now: float) -> Self:
        """This worker claims other rows again, for nine times as long as it was alone."""
        alone_s = max(0.0, now - self.alone_since) if self.alone else 0.0
        return self._replace(
            alone=False,
            try_at=math.inf,
            alone_since=math.inf,
            rest_until=max(self.rest_until, now + REST_FACTOR * alone_s),
        )
