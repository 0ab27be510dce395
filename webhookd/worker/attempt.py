"""One delivery, straight: admit, sign, POST, classify. No transaction, no row lock and no pooled
connection is held here.
"""

import time
from datetime import UTC, datetime

from webhookd import __version__
from webhookd.core.answer import Answer, AnswerKind, classify
from webhookd.core.model import Attempted, Delivery, GivenBack, Outcome
from webhookd.core.signing import parse_secret, sign
from webhookd.transport.client import Transport
from webhookd.worker.circuits import LocalCircuits

USER_AGENT = f"webhookd/{__version__}"
_HEADERS = (("content-type", "application/json"), ("user-agent", USER_AGENT))


class AttemptRunner:
    """Carries deliveries out. Used by all sender threads at once."""

    def __init__(self, transport: Transport, hints: LocalCircuits, *, installation: str) -> None:
        self._transport = transport
        self._hints = hints
        self._installation = installation

    def deliver(self, delivery: Delivery) -> Outcome:
        """Return what became of *delivery*. Blocks for at most its webhook's timeout."""
        now = time.monotonic()
        if now > delivery.start_before or self._hints.holds_back(delivery):
            return GivenBack()
        answer = self._exchange(delivery)
        self._hints.observe(delivery, classify(answer, now_at=datetime.now(UTC)))
        return Attempted(answer, time.monotonic())

    def webhook_id_header(self, delivery_id: int) -> str:
        """Return the `webhook-id`: this installation's and this delivery's own, the same on every
        retry, without a dot.
        """
        return f"{self._installation}_{delivery_id}"

    def _exchange(self, delivery: Delivery) -> Answer:
        settings = delivery.settings
        message_id = self.webhook_id_header(delivery.delivery_id)
        # By the database's clock, which all hosts share: receivers refuse a timestamp that is
        # minutes off.
        timestamp = int(delivery.claimed_at + time.monotonic() - delivery.claimed)
        stamp = f"webhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\n"
        if settings.secret is not None:
            try:
                key = parse_secret(settings.secret)
            except ValueError:
                # Unsigned would be worse than undelivered: the receiver relies on the signature.
                return Answer(
                    AnswerKind.NOT_ALLOWED,
                    0.0,
                    error="the webhook's secret is not whsec_ and base64",
                )
            signature = sign(key, webhook_id=message_id, timestamp=timestamp, body=delivery.body)
            stamp += f"webhook-signature: {signature}\r\n"
        if settings.headers is None:
            return Answer(AnswerKind.NOT_ALLOWED, 0.0, error="the webhook's headers cannot be read")
        return self._transport.post(
            settings.url,
            headers=_HEADERS + settings.headers,
            stamp=stamp.encode(),
            body=delivery.body,
            timeout_s=settings.timeout_s,
        )
