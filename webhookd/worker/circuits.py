"""What this worker knows of its webhooks' circuits before the database does."""

import math
import threading

from webhookd.core.answer import CircuitVote, Verdict
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.model import Delivery

MOST = 10_000  # webhooks to remember: a day of failing ones must not fill the memory


class LocalCircuits:
    """Webhooks that just tripped, asked to be left alone, or are gone, as seen by this worker's own
    exchanges.

    A claim brings twenty rows at once; without this, all twenty would run against a receiver that
    failed the first five. Only a hint: what it holds back is given back unspent, and the database
    decides. Written by senders and the recorder, read by senders, under one lock that is never held
    across an exchange.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._breakers: dict[int, Breaker] = {}
        self._blocked: dict[
            int, float
        ] = {}  # webhook_id -> deliveries claimed before this (monotonic) do not go out

    def holds_back(self, delivery: Delivery) -> bool:
        """Return whether *delivery* was claimed before this worker knew that its webhook should be
        left alone.
        """
        # A plain read: a sender that misses the hint by a moment sends one request more, as it
        # would have a moment ago.
        blocked = self._blocked.get(delivery.webhook_id)
        return blocked is not None and delivery.claimed <= blocked

    def attempted(self, delivery: Delivery, verdict: Verdict) -> None:
        """Take note of an exchange's verdict."""
        webhook_id, settings = delivery.webhook_id, delivery.settings
        with self._lock:
            if verdict.vote is CircuitVote.SUCCESS:
                self._breakers.pop(webhook_id, None)
                return
            breaker = self._breakers.get(webhook_id)
            if breaker is None or breaker.generation != delivery.breaker.generation:
                breaker = delivery.breaker
            after = breaker.vote(
                verdict.vote,
                generation=delivery.breaker.generation,
                now=0.0,  # does not matter: only whether it opens
                threshold=settings.circuit_threshold,
                open_s=settings.circuit_open_s,
            )
            tripped = after.state is CircuitState.OPEN and after.generation != breaker.generation
            if tripped or verdict.holds_webhook or verdict.disables_webhook:
                self._breakers.pop(webhook_id, None)
                self._blocked[webhook_id] = math.inf
                return
            self._breakers[webhook_id] = after
            if len(self._breakers) > MOST:
                # Webhooks that are gone or paused would stay for ever. Forgotten, one goes by the
                # database's count again.
                del self._breakers[next(iter(self._breakers))]

    def recorded(self, webhook_ids: set[int], *, now: float) -> None:
        """The database knows of everything about *webhook_ids* up to *now* (monotonic): claims from
        now on go by its word.
        """
        with self._lock:
            for webhook_id in webhook_ids:
                if self._blocked.get(webhook_id) == math.inf:
                    self._blocked[webhook_id] = now
            if len(self._blocked) > MOST:
                # Old entries hold nothing back any more.
                self._blocked = {key: at for key, at in self._blocked.items() if at > now - 600}
