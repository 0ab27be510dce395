"""What the log says of held webhooks."""

import time
from collections.abc import Sequence

from webhookd import logs
from webhookd.metrics.counters import OncePerPeriod
from webhookd.postgres.held import HeldChange

log = logs.Logger("webhookd.held")

SAID_ONCE_IN_S = 60.0


class HeldLog:
    """Says when the configuration begins or ceases to hold a webhook.

    The database finds each change once in the fleet. While workers with other options take turns at
    a lane (a rolling restart), a line is not repeated within a minute.
    """

    def __init__(self) -> None:
        self._said = OncePerPeriod(SAID_ONCE_IN_S)

    def note(self, changes: Sequence[HeldChange]) -> None:
        """Log what a claim has changed."""
        for change in changes:
            if not self._said.admits(hash(change), now=time.monotonic()):
                continue
            if change.reason is None:
                log.info("webhook released", webhook_id=change.webhook_id)
            else:
                log.warning("webhook held", webhook_id=change.webhook_id, reason=change.reason)
