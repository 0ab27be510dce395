"""Whether anything can be sent to a webhook under this worker's options, asked at each claim."""

from webhookd.core.model import WebhookSettings
from webhookd.transport.egress import Egress
from webhookd.transport.request import refusal

MAX_WEBHOOKS = 10_000  # to remember


class Judge:
    """Returns why no request can be sent to a webhook, as `transport.request.refusal` says it, and
    remembers that. Threads may share it.

    A webhook costs some 400 bytes, whatever is in its row: of its settings only a hash is kept, so
    that a secret that was replaced does not stay here either. The hash is of all settings; when one
    of them changes, it misses the change once in 2^64 times.
    """

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._known: dict[int, tuple[int, str | None]] = {}

    def __call__(self, settings: WebhookSettings) -> str | None:
        """Return why nothing can be sent, in one line; None: a request can be sent."""
        asked = hash(settings)
        known = self._known.get(settings.webhook_id)
        if known is not None and known[0] == asked:
            return known[1]
        reason = refusal(settings, self._egress)
        if len(self._known) >= MAX_WEBHOOKS:
            self._known.clear()
        self._known[settings.webhook_id] = asked, reason
        return reason
