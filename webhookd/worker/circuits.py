"""Circuits as this worker knows them, before the database does."""

import math
import threading

from webhookd.core.answer import CircuitVote, Verdict
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.model import Delivery

MAX_WEBHOOKS = 10_000  # to remember: webhooks that fail all day must not fill the memory
FORGET_BLOCKED_S = 600.0  # no delivery is outstanding for so long


class LocalCircuits:
    """Webhooks whose circuit has just opened, that asked for a pause, or that are gone, as far as
    this worker's own exchanges show it.

    A claim brings twenty rows at once. Without this all twenty would be sent to a receiver that has
    failed the first five. It is only a hint: what is held back is given back without an attempt,
    and the database decides. Senders and the recorder write, senders read; no exchange happens
    under the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._breakers: dict[int, Breaker] = {}
        # By webhook_id: deliveries claimed before this instant (monotonic) are held back. Infinity
        # until the result that blocked the webhook is recorded.
        self._blocked: dict[int, float] = {}

    def holds_back(self, delivery: Delivery) -> bool:
        """Return whether *delivery* was claimed before this worker learned that nothing should be
        sent to its webhook now.
        """
        # Without the lock: a sender that just misses the entry sends one more request, as it would
        # have done a moment earlier.
        blocked = self._blocked.get(delivery.webhook_id)
        return blocked is not None and delivery.claimed <= blocked

    def observe(self, delivery: Delivery, verdict: Verdict) -> None:
        """Take the *verdict* of an exchange into account."""
        webhook_id, settings = delivery.webhook_id, delivery.settings
        with self._lock:
            if verdict.vote is CircuitVote.SUCCESS:
                self._breakers.pop(webhook_id, None)
                return
            breaker = self._breakers.get(webhook_id)
            if breaker is None or breaker.generation != delivery.breaker.generation:
                # The first result since the claim, or a claim made after a reset: count from the
                # failures that the database knew then.
                breaker = delivery.breaker
            after = breaker.vote(
                verdict.vote,
                generation=delivery.breaker.generation,
                now=0.0,  # any value: only whether it opens is used
                threshold=settings.circuit_threshold,
                open_s=settings.circuit_open_s,
            )
            tripped = after.state is CircuitState.OPEN and after.generation != breaker.generation
            if tripped or verdict.holds_webhook or verdict.disables_webhook:
                self._breakers.pop(webhook_id, None)
                self._blocked[webhook_id] = math.inf
                return
            self._breakers[webhook_id] = after
            if len(self._breakers) > MAX_WEBHOOKS:
                # Webhooks that are gone or paused would stay forever. For one that is forgotten the
                # database's count applies again.
                del self._breakers[next(iter(self._breakers))]

    def mark_recorded(self, webhook_ids: set[int], *, now: float) -> None:
        """Results of *webhook_ids* were recorded: claims made after *now* (monotonic) have seen
        what the database decided, and are no longer held back here.
        """
        with self._lock:
            for webhook_id in webhook_ids:
                if self._blocked.get(webhook_id) == math.inf:
                    self._blocked[webhook_id] = now
            if len(self._blocked) > MAX_WEBHOOKS:
                self._blocked = {
                    webhook_id: at
                    for webhook_id, at in self._blocked.items()
                    if at > now - FORGET_BLOCKED_S
                }
