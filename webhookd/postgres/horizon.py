"""Low-water marks: where claims begin to look for work while an old snapshot keeps dead rows alive.

The danger: as long as a transaction holds a snapshot (pg_dump, a report), vacuum may not remove
the index entries of what was delivered since. Every look for work starts at the beginning of an
index and walks through all of them, and there are more every second. After some minutes claims
spend their time on dead entries.

A low-water mark says below which instant nothing is left to find, so that a look begins there.
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import psycopg
from psycopg.rows import TupleRow

from webhookd.core.lane import Admission, Lane
from webhookd.core.model import Delivery
from webhookd.postgres import session, statements

SLOW_LOOK_S = 0.01  # for so many lanes:
SLOW_LOOK_LANES = 20
FULL_LOOKS_SHARE = 0.05  # of the time
RAISE_EVERY_S = 1.0
# A busy processor makes looks slow, too. After such a false alarm the next one is ignored for so
# long.
FALSE_ALARM_S = 5.0
FORGET_AFTER_S = 30.0  # as often as the sweep repairs what no timer brings up
MARGIN_S = 2.0  # transactions that last for less are never late


class LowWaterMarks(NamedTuple):
    """Epochs by the database's clock: no new row is due before *rows*, no fast lane's timer comes
    before *lanes*.
    """

    rows: float = -math.inf
    lanes: float = -math.inf

    def parameters(self) -> dict[str, float]:
        """Return the parameters of the statements that look from there on."""
        return {"rows_from": self.rows, "lanes_from": self.lanes}


class Horizon:
    """The low-water marks of one worker's claims; used by the dispatcher's thread only.

    Ordinarily there are none. Once a look was slow, `refresh` makes a full look, from the beginning
    of the indexes. If that is slow, too, the marks that it found hold for the looks that follow,
    and are raised every second. The marks can hide work: a row with a past next_retry_at of its
    own, or one of a transaction that was open for longer than `MARGIN_S`, may lie below them. So
    full looks are repeated, as often as a twentieth of the time allows; the next one finds it.

    Each lane also has its own mark, for its routed rows: the due time of the first row that its
    last claim took. Rows that were given back, lost, late or locked can lie below it. They are
    found when the lane runs out of other rows, or when the mark expires after `FORGET_AFTER_S`.
    """

    def __init__(self) -> None:
        self._find = statements.load("find_low_water_marks")
        self.marks = LowWaterMarks()
        self._full_look_at = math.inf  # monotonic; inf while looks are fast
        self._raise_at = math.inf
        self._not_before = -math.inf  # monotonic
        self._lanes: dict[int, tuple[float, float]] = {}  # mark, and when it expires (monotonic)

    @property
    def slow(self) -> bool:
        """Return whether looks have become slow."""
        return self._full_look_at < math.inf

    @property
    def full_look_in_s(self) -> float:
        """Return in how many seconds `refresh` must be called; inf for never."""
        return self._full_look_at - time.monotonic()

    def lane_mark(self, webhook_id: int) -> float:
        """Return the epoch below which this lane has no routed row, as far as this worker knows."""
        mark, expires = self._lanes.get(webhook_id, (-math.inf, 0.0))
        return mark if time.monotonic() < expires else -math.inf

    def note_claims(
        self,
        admitted: Sequence[tuple[Lane, Admission]],
        rows: Sequence[TupleRow],
        claimed: Sequence[Delivery | None],
        *,
        now_at: float,
    ) -> None:
        """Take note of where the claim began in each lane, and which ran out of rows. The second
        field of *rows* is when each was due; *claimed* are the deliveries in them.
        """
        due: dict[int, list[float]] = defaultdict(list)  # in order, as the rows are
        for (_, due_at, *_), delivery in zip(rows, claimed, strict=True):
            if delivery is not None:
                due[delivery.webhook_id].append(due_at)
        for lane, admission in admitted:
            if admission.quota:
                of_lane = due[lane.webhook_id]
                first_at = of_lane[0] if len(of_lane) == admission.quota else None
                self.note_claim(lane.webhook_id, first_at, now_at=now_at)

    def note_claim(self, webhook_id: int, first_at: float | None, *, now_at: float) -> None:
        """Take note, while looks are slow, of when the first row was due that a lane gave; None: it
        gave less than it might have. *now_at* is the claim's time by the database's clock.
        """
        if first_at is None:
            # The lane may have rows below its mark: the next claim begins without one.
            self._lanes.pop(webhook_id, None)
            return
        now = time.monotonic()
        _, expires = self._lanes.get(webhook_id, (0.0, 0.0))
        # A later claim moves the mark but not the time at which it expires. In a lane that never
        # runs out of rows the mark would otherwise never expire, and hide a row for ever.
        self._lanes[webhook_id] = (
            min(first_at, now_at - MARGIN_S),
            expires if now < expires else now + FORGET_AFTER_S,
        )

    def note_look(self, seconds: float, *, lanes: int) -> None:
        """Take note of how long a look for the work of so many lanes took."""
        now = time.monotonic()
        if _slow(seconds, lanes) and not self.slow and now >= self._not_before:
            self._full_look_at = now

    def refresh(self, connection: session.Connection) -> None:
        """Make a full look or raise the marks, where it is time. Blocks for one statement at most;
        raises `psycopg.Error`.
        """
        now = time.monotonic()
        if now >= self._full_look_at:
            self._look_below(connection, now)
        elif now >= self._raise_at:
            self.marks, _ = self._found(connection, self.marks)

    def _look_below(self, connection: session.Connection, now: float) -> None:
        marks, webhooks = self.marks, 0
        # If the statement runs into its time-out, the old marks stay in force. If that raised,
        # nothing would be claimed for as long as the snapshot is held.
        with suppress(psycopg.errors.QueryCanceled):
            marks, webhooks = self._found(connection, LowWaterMarks())
        seconds = time.monotonic() - now
        rest_s = seconds / FULL_LOOKS_SHARE
        if _slow(seconds, webhooks):
            self.marks, self._full_look_at = marks, now + rest_s
        else:
            self.marks = LowWaterMarks()
            self._full_look_at = self._raise_at = math.inf
            self._not_before = now + max(FALSE_ALARM_S, rest_s)
            self._lanes.clear()

    def _found(
        self, connection: session.Connection, above: LowWaterMarks
    ) -> tuple[LowWaterMarks, int]:
        """Return the marks found, and how many webhooks were looked at for them."""
        began = time.monotonic()
        row = connection.execute(
            self._find, {**above.parameters(), "margin_s": MARGIN_S}
        ).fetchone()
        assert row is not None
        rows_from, lanes_from, webhooks = row
        now = time.monotonic()
        self._raise_at = now + max(RAISE_EVERY_S, (now - began) / FULL_LOOKS_SHARE)
        return LowWaterMarks(rows_from, lanes_from), webhooks


def _slow(seconds: float, lanes: int) -> bool:
    """Return whether that is long for *lanes*: a hundred thousand webhooks take a second, without
    any dead entries to walk through.
    """
    return seconds >= SLOW_LOOK_S * max(1.0, lanes / SLOW_LOOK_LANES)
