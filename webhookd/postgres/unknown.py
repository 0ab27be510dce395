"""New rows of webhooks that have no lane: nobody registered them, or their lane was deleted.

Looks for new rows step from webhook to webhook. A million rows of ids that nobody registered would
stand before all others there, so they are parked in bulk, after the claim of the rows that can be
sent; and while there are many, claims also ask registered webhooks for theirs, one by one.
"""

import math
import time
from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow

from webhookd.postgres import session, statements
from webhookd.postgres.arrays import number_array
from webhookd.postgres.lanes import make_lanes

BEFORE_ALL = -(2**63)  # an application may number its webhooks from 0, or below
PARKED_AT_ONCE = 500  # rows; some 5 ms, between two claims
PROBES = 1000  # registered webhooks that one look asks
CROWDED_S = 1.0  # for so long after a look met mostly such rows
AGAIN_S = 1.0  # where another transaction was in the way
# A worker that parked some rests for so many times as long as it took: a million rows would keep
# all of the server's processors busy otherwise, and they are in no hurry.
REST_FACTOR = 3.0


class UnknownWebhooks:
    """What one worker does about them; used by the dispatcher's thread only. Times are monotonic
    seconds.
    """

    def __init__(self) -> None:
        self._crowded_until = self._again_at = -math.inf
        self._probed_to = BEFORE_ALL  # in a circle: the next look asks the webhooks behind this one

    def stepped_over(
        self, cursor: psycopg.Cursor[TupleRow], lanes: int, *, now: float, rows_from: float
    ) -> list[int]:
        """Return registered webhooks that have new rows (since the epoch *rows_from*, see
        `Horizon`), so many *lanes* at most. No statement while few rows have no lane; raises
        `psycopg.Error`.
        """
        if now >= self._crowded_until:
            return []
        row = cursor.execute(
            statements.load("new_of_registered"),
            {"after": self._probed_to, "probes": PROBES, "rows_from": rows_from},
        ).fetchone()
        assert row is not None
        last, probed, with_new = row
        self._probed_to = last if probed == PROBES else BEFORE_ALL
        if len(with_new) > lanes:
            self._probed_to = with_new[lanes - 1]
        found: list[int] = with_new[:lanes]
        return found

    def met(
        self,
        connection: session.Connection,
        webhook_ids: Sequence[int],
        lanes: int,
        *,
        now: float,
    ) -> int | None:
        """A look at so many *lanes* met new rows of these webhooks, which have none. Make those of
        registered ones, and park rows of the others. Return the last webhook whose rows were
        parked, None if none were. The next look should begin behind it: to walk through what was
        parked costs as much as it did to find it, until the table is vacuumed.

        Blocks for three short statements; never raises `psycopg.OperationalError`: a look finds
        them again.
        """
        if len(webhook_ids) * 2 > lanes:
            self._crowded_until = now + CROWDED_S
        if not webhook_ids or now < self._again_at:
            return None
        self._again_at = now + AGAIN_S
        try:
            is_made = make_lanes(connection, webhook_ids, registered_only=True)
            began = time.monotonic()
            parked = _park(connection, min(webhook_ids))
            if is_made:
                ended = time.monotonic()
                self._again_at = ended + (ended - began) * REST_FACTOR
            return parked
        except psycopg.OperationalError:
            return None


def _park(connection: session.Connection, first: int) -> int | None:
    parked = connection.execute(
        statements.load("park_unregistered"), {"first": first, "rows": PARKED_AT_ONCE}
    ).fetchall()
    webhook_ids = {row[0] for row in parked}
    if webhook_ids:
        # A registration that committed meanwhile has made its lane runnable, and the look at it may
        # have come before these rows were parked.
        parameters = {"webhook_ids": number_array(webhook_ids)}
        connection.execute(statements.load("wake_registered"), parameters)
    return max(webhook_ids, default=None)
