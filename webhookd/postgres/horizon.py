"""Where claims begin to look for work while an old snapshot keeps the past from being cleaned away."""

import math
import time
from contextlib import suppress
from typing import NamedTuple

import psycopg

from webhookd.postgres import session, statements

SLOW_LOOK_S = 0.01  # for so many lanes:
SLOW_LOOK_LANES = 20
FULL_LOOKS_SHARE = 0.05  # of the time
RAISE_EVERY_S = 1.0
FALSE_ALARM_S = (
    5.0  # a busy processor makes looks slow, too: the next is not looked into for so long
)
FORGET_AFTER_S = 30.0  # as often as the sweep mends what nothing else brings up
MARGIN_S = 2.0  # transactions that last for less are never late


class LowWaterMarks(NamedTuple):
    """Epochs by the database's clock. No new row is due before the first, no lane's timer comes
    before the second.
    """

    rows: float = -math.inf
    lanes: float = -math.inf

    def parameters(self) -> dict[str, float]:
        """Return what statements call them."""
        return {"rows_floor": self.rows, "lanes_floor": self.lanes}


class Horizon:
    """The *floors* that one worker's claims look from; used by the dispatcher's thread only.

    Ordinarily there are none. But while a transaction holds a snapshot for minutes (pg_dump, a
    report), vacuum may not remove what was delivered since from the indexes, and every look walks
    through all of it, further every second. Once that has become slow, a full look finds floors for
    those that follow, and they are raised every second. What is late (a past next_retry_at of its
    own, or a transaction longer than `MARGIN_S`) may lie below: the next full look finds it. There
    are as many of them as a twentieth of the time allows.

    A lane's waiting rows have a floor of their own: what was due before the first that its last
    claim found has gone. A row that is given back or was lost may come to lie below, and so may one
    that is late or was locked; it is found once the lane has no others, or the floor is forgotten.
    """

    def __init__(self) -> None:
        self._find = statements.load("find_floors")
        self.floors = LowWaterMarks()
        self._full_look_at = math.inf  # monotonic; inf while looks are fast
        self._raise_at = math.inf
        self._not_before = -math.inf  # monotonic
        self._lanes: dict[
            int, tuple[float, float]
        ] = {}  # floor, and until when (monotonic) it is believed

    @property
    def slow(self) -> bool:
        """Return whether looks have become slow."""
        return self._full_look_at < math.inf

    @property
    def full_look_in_s(self) -> float:
        """Return in how many seconds somebody has to call `keep`; inf for never."""
        return self._full_look_at - time.monotonic()

    def of_lane(self, webhook_id: int) -> float:
        """Return the epoch below which this lane's waiting rows have gone, as far as this worker
        knows.
        """
        at, known_until = self._lanes.get(webhook_id, (-math.inf, 0.0))
        return at if time.monotonic() < known_until else -math.inf

    def claimed(self, webhook_id: int, first_at: float | None, *, now_at: float) -> None:
        """Take note, while looks are slow, when a lane's first row was due; None: it gave less than
        it might have, so is looked through from the beginning. *now_at*: the claim's time by the
        database's clock.
        """
        if first_at is None:
            self._lanes.pop(webhook_id, None)
        else:
            now = time.monotonic()
            _, known_until = self._lanes.get(webhook_id, (0.0, 0.0))
            self._lanes[webhook_id] = (
                min(first_at, now_at - MARGIN_S),
                known_until if now < known_until else now + FORGET_AFTER_S,
            )

    def looked(self, seconds: float, *, lanes: int) -> None:
        """Take note of how long a look for the work of so many lanes took."""
        now = time.monotonic()
        if _slow(seconds, lanes) and not self.slow and now >= self._not_before:
            self._full_look_at = now

    def keep(self, connection: session.Connection) -> None:
        """Look below the floors or raise them, where it is time. Blocks for one statement at most;
        raises `psycopg.Error`.
        """
        now = time.monotonic()
        if now >= self._full_look_at:
            floors, webhooks = self.floors, 0
            # Where that takes a minute, what is known has to do, or nothing would be claimed.
            with suppress(psycopg.errors.QueryCanceled):
                floors, webhooks = self._found(connection, LowWaterMarks())
            seconds = time.monotonic() - now
            rest_s = seconds / FULL_LOOKS_SHARE
            if _slow(seconds, webhooks):
                self.floors, self._full_look_at = floors, now + rest_s
            else:
                self.floors, self._full_look_at, self._raise_at = (
                    LowWaterMarks(),
                    math.inf,
                    math.inf,
                )
                self._not_before = now + max(FALSE_ALARM_S, rest_s)
                self._lanes.clear()
        elif now >= self._raise_at:
            self.floors, _ = self._found(connection, self.floors)

    def _found(
        self, connection: session.Connection, above: LowWaterMarks
    ) -> tuple[LowWaterMarks, int]:
        """Return the floors, and how many webhooks were looked at for them."""
        began = time.monotonic()
        row = connection.execute(
            self._find, {**above.parameters(), "margin_s": MARGIN_S}
        ).fetchone()
        assert row is not None
        now = time.monotonic()
        self._raise_at = now + max(RAISE_EVERY_S, (now - began) / FULL_LOOKS_SHARE)
        return LowWaterMarks(*row[:2]), row[2]


def _slow(seconds: float, lanes: int) -> bool:
    """Return whether that is long for *lanes*: a hundred thousand webhooks take a second, without
    any past to walk through.
    """
    return seconds >= SLOW_LOOK_S * max(1.0, lanes / SLOW_LOOK_LANES)
