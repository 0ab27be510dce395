"""Disables webhooks that have only failed for too long."""

from typing import ClassVar

from webhookd import logs
from webhookd.metrics.counters import Metrics
from webhookd.postgres import statements
from webhookd.worker.chores.chore import Pool

log = logs.Logger("webhookd.chores.disable")


class Disabler:
    """Disables what has failed for *after_s* seconds without a success (`--disable-after`).

    The registry's trigger parks the lane. An operator who enables the webhook again, resets its
    circuit or changes its row starts the time anew.
    """

    name: ClassVar[str] = "disable"
    # A run reads all lanes, and the shortest sensible *after_s* is hours.
    interval_s: ClassVar[float] = 30.0
    shared: ClassVar[bool] = True

    def __init__(self, metrics: Metrics, *, after_s: float) -> None:
        self._metrics = metrics
        self._after_s = after_s

    def run(self, pool: Pool) -> None:
        """Disable what is due, up to 1,000 webhooks. Blocks; raises `psycopg.Error`."""
        with pool.connection() as connection:
            disabled = connection.execute(
                statements.load("disable_failing"), {"after_s": self._after_s}
            ).fetchall()
        for webhook_id, reason in disabled:
            self._metrics.webhook_disabled("failing")
            log.warning("webhook disabled", webhook_id=webhook_id, reason=reason)
