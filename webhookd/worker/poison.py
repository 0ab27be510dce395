"""Finds the rows that no claim can take, ends them, and says so in the log.

Nearly all of them are found by measuring (`measure`). A body can also become unreadable later, when
a disk corrupts it. Then the claim's statement fails, and does not say which row it read. `isolate`
narrows it down:

    read the rows again that the claim may have met, each by itself -> one ended: claim again
        | none
        v
    claim from one lane at a time -> it fails again: that lane waits, all others go on
"""

from collections.abc import Sequence

import psycopg

from webhookd import logs
from webhookd.errors import first_line
from webhookd.postgres import bodies
from webhookd.postgres.claim import Claimer
from webhookd.postgres.session import Connection

log = logs.Logger("webhookd.poison")

ROWS_AT_ONCE = 100  # of each lane, where rows are read again
LANE_WAITS_S = 10.0


class PoisonFinder:
    """For one worker; used by the dispatcher's thread only."""

    def __init__(self, claimer: Claimer) -> None:
        self._claimer = claimer

    def measure(self, connection: Connection, delivery_ids: Sequence[int]) -> None:
        """Measure the bodies of these deliveries: as many as half a second allows, one at least.
        Raises `psycopg.Error`.
        """
        report(bodies.measure(connection, delivery_ids, worker_id=self._claimer.worker_id))

    def isolate(self, connection: Connection, error: psycopg.Error) -> None:
        """Find out which row or lane a claim failed of with *error*. Blocks for half a second for
        each row that cannot be read; raises `psycopg.Error`.
        """
        webhook_ids = self._claimer.looked_at
        if not webhook_ids:
            return
        log.warning("claim failed", error=first_line(error), sqlstate=error.sqlstate)
        found = False
        for delivery_id in bodies.due_in_lanes(connection, webhook_ids, limit=ROWS_AT_ONCE):
            ended = bodies.measure(
                connection, [delivery_id], worker_id=self._claimer.worker_id, again=True
            )
            report(ended)
            found = found or bool(ended)
        if found:
            return
        if len(webhook_ids) > 1:
            self._claimer.single = len(webhook_ids) + 1
            return
        bodies.put_lanes_off(connection, webhook_ids, seconds=LANE_WAITS_S)
        log.warning(
            "webhook waits: its deliveries cannot be claimed",
            webhook_id=webhook_ids[0],
            seconds=LANE_WAITS_S,
        )


def report(unsendable: Sequence[bodies.Unsendable]) -> None:
    """Log which deliveries failed, or went into quarantine, because of their bodies."""
    for delivery_id, webhook_id, reason in unsendable:
        if reason is None:
            log.warning(
                "delivery quarantined: its body takes too long to read",
                delivery_id=delivery_id,
                webhook_id=webhook_id,
            )
        else:
            log.warning(
                "delivery failed: its body cannot be sent",
                delivery_id=delivery_id,
                webhook_id=webhook_id,
                reason=reason,
            )
