"""One delivery from start to end: check the circuit, build the request, POST, classify the answer.

No transaction, no row lock and no pooled connection is held here.
"""

import time
from datetime import UTC, datetime

from webhookd.core.answer import Answer, AnswerKind, Decision, classify
from webhookd.core.model import Attempted, Delivery, GivenBack, Outcome
from webhookd.transport.client import Transport
from webhookd.transport.egress import NotAllowed
from webhookd.transport.request import build_request
from webhookd.worker.circuits import LocalCircuits


class AttemptRunner:
    """Attempts deliveries. All sender threads use it at once."""

    def __init__(self, transport: Transport, circuits: LocalCircuits, *, installation: str) -> None:
        self._transport = transport
        self._circuits = circuits
        self._installation = installation

    def deliver(self, delivery: Delivery) -> Outcome:
        """Return the outcome of one attempt. Blocks for at most the webhook's timeout.

        What this worker lacked, or what is not allowed, is no attempt: the delivery is given back.
        """
        now = time.monotonic()
        if now > delivery.start_before or self._circuits.holds_back(delivery):
            return GivenBack()
        answer = self._exchange(delivery)
        verdict = classify(answer, now_at=datetime.now(UTC))
        self._circuits.observe(delivery, verdict)
        if verdict.decision is Decision.GIVE_BACK:
            return GivenBack(verdict.reason, answer.shortage)
        return Attempted(answer, time.monotonic())

    def message_id(self, delivery_id: int) -> str:
        """Return the value of the webhook-id header.

        It is unique to this installation and delivery, the same on every retry, and has no dot.
        """
        return f"{self._installation}_{delivery_id}"

    def _exchange(self, delivery: Delivery) -> Answer:
        settings = delivery.settings
        # By the database's clock, which all hosts share: receivers refuse a timestamp that is
        # minutes off.
        timestamp = int(delivery.claimed_at + time.monotonic() - delivery.claimed)
        try:
            request = build_request(
                settings,
                message_id=self.message_id(delivery.delivery_id),
                timestamp=timestamp,
                body=delivery.body,
            )
        except NotAllowed as reason:
            return Answer(AnswerKind.NOT_ALLOWED, 0.0, error=str(reason))
        return self._transport.post(settings.url, request, timeout_s=settings.timeout_s)
