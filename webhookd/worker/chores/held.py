"""Finds held webhooks that this worker could deliver to."""

import time
from collections.abc import Callable
from typing import ClassVar

from webhookd.core.model import WebhookDefaults, WebhookSettings
from webhookd.metrics.counters import Metrics
from webhookd.metrics.declarations import HELD_WEBHOOKS
from webhookd.postgres.held import count_held, held_webhooks_after, look_at_held
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool
from webhookd.worker.wakeup import WakeupPipe

PAGE = 500
MOST_S = 0.5  # of one run: a hundred thousand held webhooks take some runs
BEFORE_ALL = -(2**63)


class HeldLanes:
    """Has those held lanes looked at again whose webhooks *judge* allows, and counts the others.

    Their rows have not changed: a trigger finds that. But this worker's options may differ from
    those of the worker that held them, after a restart, a reload, or on another host. Hence every
    worker does it for itself: a turn that is shared could always fall to one with the old options.
    """

    name: ClassVar[str] = "held"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = False

    def __init__(
        self,
        judge: Callable[[WebhookSettings], str | None],
        metrics: Metrics,
        wakeup: WakeupPipe,
        *,
        defaults: WebhookDefaults,
    ) -> None:
        self._judge = judge
        self._metrics = metrics
        self._wakeup = wakeup
        self._defaults = defaults
        self._after = BEFORE_ALL  # the circle goes on behind this webhook

    def run(self, pool: Pool) -> None:
        """Go on in the circle until it is complete, or for half a second. Blocks for some short
        statements; one where nothing is held.
        """
        with pool.connection() as connection:
            count = count_held(connection)
        self._metrics.set(HELD_WEBHOOKS, count)
        left, until = count, time.monotonic() + MOST_S
        while left > 0 and time.monotonic() < until:
            left -= PAGE
            self._look_at_page(pool)

    def _look_at_page(self, pool: Pool) -> None:
        with pool.connection() as connection:
            webhooks = held_webhooks_after(
                connection, self._after, limit=PAGE, defaults=self._defaults
            )
            self._after = webhooks[-1].webhook_id if len(webhooks) == PAGE else BEFORE_ALL
            # A claim takes one that is paused or not registered for what it is.
            free = [
                settings.webhook_id
                for settings in webhooks
                if not settings.enabled or self._judge(settings) is None
            ]
            if free and look_at_held(connection, free):
                self._wakeup.wake(0.0)  # these lanes are runnable now
