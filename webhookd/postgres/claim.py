"""Claiming: lock lanes that have work, decide in Python how many rows each may give, take the rows.

One short transaction, READ COMMITTED. The rows are taken by a statement that begins after the locks
are held: its snapshot is younger, so it sees what the last owner of the lane committed. In one
statement with the locks it would use a snapshot from before them, miss those rows, and park a lane
that has work.
"""

import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from webhookd.core.lane import (
    Admission,
    BlockedBy,
    Budget,
    Lane,
    admit,
    admit_all,
    breaker_at_claim,
    tokens_at,
)
from webhookd.core.model import Delivery, WebhookDefaults, WebhookSettings
from webhookd.core.sizing import ROWS_PER_LANE, Reach
from webhookd.postgres import session, statements
from webhookd.postgres.arrays import number_array
from webhookd.postgres.batches import admission_parameters
from webhookd.postgres.claimed import Claim, ClaimInDoubtError, NextLook
from webhookd.postgres.held import HeldChange, note_held
from webhookd.postgres.horizon import Horizon
from webhookd.postgres.lanes import recounted
from webhookd.postgres.rows import (
    ClaimContext,
    before_lane,
    delivery_of,
    has_lane,
    lane_of,
    settings_of,
)
from webhookd.postgres.unknown import BEFORE_ALL, UnknownWebhooks

BODY_BYTES = 32 << 20  # bodies that one worker holds; one more may begin below it
SLOW_ROWS_PER_LANE = 100  # while the cost of a lane dominates (see horizon)
# Where most lanes have to wait, a look meets the new rows of so many, however little room there is.
# One by one, a hundred such lanes would be parked before the lane behind them is reached.
LEAST_FRESH_LANES = 16
LEASE_MARGIN_S = 30.0  # a lease outlives the exchange by so much local waiting
RETRY_BLOCKED_S = 60.0  # a quarantined row of a lane that no timer unblocks is tried again then

_STATEMENTS = (
    "lock_lanes",
    "lock_quarantined_lane",
    "read_settings",
    "claim",
    "begin_probes",
    "claim_quarantined",
    "due_lanes",
    "next_look",
)


class _Wanted(NamedTuple):
    """At how many lanes to look, at most: whose timer has come, that have new rows, that are not
    measured yet, that are slow.
    """

    timed: int
    fresh: int
    new: int
    slow: int


class _Taken(NamedTuple):
    """As in `Claim`. *left*: some lanes kept rows, as bytes were the limit, or there were no slots
    for such lanes.
    """

    deliveries: list[Delivery]
    rate_limited: list[int]
    left: bool
    unmeasured: list[int]
    held: list[HeldChange]


class Claimer:
    """Claims for one worker incarnation; used by the dispatcher's thread only. *judge* returns why
    no request can be sent to a webhook, in one line; None: one can.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        incarnation: UUID,
        defaults: WebhookDefaults,
        judge: Callable[[WebhookSettings], str | None],
    ) -> None:
        self.worker_id = worker_id
        self._incarnation = incarnation
        self._defaults = defaults
        self._judge = judge
        self.looked_at: list[int] = []  # the webhooks of the lanes that the last claim locked
        # So many claims look at one lane of each kind: see worker/poison.py.
        self.single = 0
        # New rows are looked for from the next webhook on, in a circle. If each look began with the
        # lowest id, a hundred busy lanes would starve those behind them.
        self._cursor = BEFORE_ALL
        self._barred = False  # most lanes that the last claim looked at gave nothing
        self._unknown = UnknownWebhooks()
        self._reach = Reach()
        self._horizon = Horizon()
        self._statements = {name: statements.load(name) for name in _STATEMENTS}

    def claim(
        self, connection: session.Connection, budget: Budget, *, body_bytes: int = BODY_BYTES
    ) -> Claim:
        """Claim due rows within *budget*, and stop once their bodies come to *body_bytes* (>= 1).

        Blocks for one transaction; raises `psycopg.Error`, `ClaimInDoubtError` among them.
        """
        self._horizon.refresh(connection)
        started = time.monotonic()
        wanted = self._wanted(budget)
        self.single, self.looked_at = max(0, self.single - 1), []
        taken = _Taken([], [], False, [], [])
        with _transaction(connection, batch=True) as (cursor, deliveries):
            rows = self._lock_lanes(cursor, wanted, started=started)
            now, last_new, new_lanes, without_lane = before_lane(rows[0])
            self._cursor = last_new if new_lanes == wanted.fresh else BEFORE_ALL
            lanes = [lane_of(row) for row in rows if has_lane(row)]
            self.looked_at = [lane.webhook_id for lane in lanes]
            if lanes:
                settings = self._settings_of(cursor, lanes)
                lanes = recounted(cursor, lanes, settings)
                context = self._context(lanes, settings, started=started, now=now)
                taken = self._take(cursor, lanes, settings, context, budget, body_bytes)
                deliveries.extend(taken.deliveries)
        # The claim is committed: if this raised, its deliveries would wait for their leases to end.
        parked = self._unknown.met(connection, without_lane, wanted.fresh, now=started)
        if parked is not None:
            self._cursor = parked
        slow_lanes = sum(lane.speed.slow is True for lane in lanes)
        slow_rows = sum(delivery.speed.slow is True for delivery in taken.deliveries)
        rows_taken, lanes_found = len(taken.deliveries) - slow_rows, len(lanes) - slow_lanes
        claim = Claim(
            taken.deliveries,
            taken.rate_limited,
            lanes=len(lanes),
            full=taken.left or rows_taken >= budget.others or 0 < budget.slow <= slow_rows,
            exhausted=(
                parked is None and lanes_found < wanted.timed and not 0 < budget.slow <= slow_lanes
            ),
            contended=len(lanes) < new_lanes - len(without_lane),
            unmeasured=taken.unmeasured,
            held=taken.held,
        )
        self._reach = self._reach.after(
            rows=rows_taken,
            lanes=lanes_found,
            enough=claim.full or claim.exhausted,
            most=SLOW_ROWS_PER_LANE if self._horizon.slow else ROWS_PER_LANE,
        )
        return claim

    def _wanted(self, budget: Budget) -> _Wanted:
        if self.single > 0:
            return _Wanted(1, 1, int(budget.takes_new), min(1, budget.slow))
        timed = self._reach.lanes(budget.others)
        fresh = max(timed, LEAST_FRESH_LANES) if self._barred else timed
        # All slow ones that wait share the slots: not twenty rows of a few.
        return _Wanted(timed, fresh, timed if budget.takes_new else 0, budget.slow)

    def _lock_lanes(
        self, cursor: psycopg.Cursor[TupleRow], wanted: _Wanted, *, started: float
    ) -> list[TupleRow]:
        known = self._unknown.stepped_over(
            cursor, wanted.fresh, now=started, rows_from=self._horizon.marks.rows
        )
        rows = cursor.execute(
            self._statements["lock_lanes"],
            {
                "cursor": self._cursor,
                "known": number_array(known),
                "lanes": wanted.timed,
                "fresh_lanes": wanted.fresh,
                "new_lanes": wanted.new,
                "slow_lanes": wanted.slow,
                **self._horizon.marks.parameters(),
            },
        ).fetchall()
        self._horizon.note_look(time.monotonic() - started, lanes=wanted.timed)
        return rows

    def claim_quarantined(self, connection: session.Connection) -> Claim:
        """Claim the earliest due row in quarantine, if its lane allows that. Blocks and raises as
        `claim` does.
        """
        started = time.monotonic()
        with _transaction(connection) as (cursor, deliveries):
            row = cursor.execute(self._statements["lock_quarantined_lane"]).fetchone()
            if row is None:
                return Claim()
            now, delivery_id = before_lane(row)
            lanes = [lane_of(row)]
            of_webhook = self._settings_of(cursor, lanes)
            [lane] = recounted(cursor, lanes, of_webhook)
            settings = of_webhook.get(lane.webhook_id)
            refusal = None if settings is None else self._judge(settings)
            admission = admit(lane, settings, now=now, wish=1, refusal=refusal)
            context = self._context([lane], of_webhook, started=started, now=now)
            claimed = cursor.execute(
                self._statements["claim_quarantined"],
                {
                    "delivery_id": delivery_id,
                    "admitted": admission.quota > 0,
                    "probe": admission.probe,
                    "again_at": admission.runnable_at or now + RETRY_BLOCKED_S,
                    "tokens": tokens_at(lane, settings, now=now),
                    "in_flight": lane.in_flight,
                    **self._lease(context),
                },
            ).fetchone()
            # What ends a hold makes the lane runnable, too: the look at the lane stores that.
            changes = note_held(cursor, [(lane, admission)]) if refusal is not None else []
            breaker = breaker_at_claim(lane, admission, lease_until=context.lease_until)
            if claimed is not None and (
                delivery := delivery_of(claimed, of_webhook, {lane.webhook_id: breaker}, context)
            ):
                deliveries.append(delivery)
        return Claim(deliveries, lanes=1, held=changes)

    def next_look(
        self, connection: session.Connection, *, new: bool = True, slow: bool = True
    ) -> NextLook:
        """Return when this worker must look again although nothing wakes it. *new*, *slow*: it
        takes rows of such lanes. Blocks for one statement; raises `psycopg.Error`.
        """
        parameters = {"new": new, "slow": slow, **self._horizon.marks.parameters()}
        row = connection.execute(self._statements["next_look"], parameters).fetchone()
        assert row is not None
        lane_s, new_rows, quarantined_s = row
        return NextLook(
            min(math.inf if lane_s is None else lane_s, self._horizon.full_look_in_s),
            math.inf if quarantined_s is None else quarantined_s,
            new_rows,
        )

    def _settings_of(
        self, cursor: psycopg.Cursor[TupleRow], lanes: Sequence[Lane]
    ) -> dict[int, WebhookSettings]:
        """Return the settings of these lanes' webhooks by id, where they are registered."""
        webhook_ids = number_array([lane.webhook_id for lane in lanes])
        rows = cursor.execute(
            self._statements["read_settings"], {"webhook_ids": webhook_ids}
        ).fetchall()
        found = [settings_of(tuple(row), self._defaults) for row in rows]
        return {settings.webhook_id: settings for settings in found}

    def _context(
        self,
        lanes: Sequence[Lane],
        settings: Mapping[int, WebhookSettings],
        *,
        started: float,
        now: float,
    ) -> ClaimContext:
        # The token is random: a counter could repeat after a crash, because claims are committed
        # asynchronously, and a repeated token would let a late record through the fence.
        timeout_s = max((item.timeout_s for item in settings.values()), default=0.0)
        speeds = {lane.webhook_id: lane.speed for lane in lanes}
        return ClaimContext(secrets.randbits(63), started, now, timeout_s + LEASE_MARGIN_S, speeds)

    def _lease(self, context: ClaimContext) -> dict[str, object]:
        return {
            "worker_id": self.worker_id,
            "incarnation": self._incarnation,
            "token": context.token,
            "lease_s": context.lease_s,
        }

    def _take(
        self,
        cursor: psycopg.Cursor[TupleRow],
        lanes: Sequence[Lane],
        settings: Mapping[int, WebhookSettings],
        context: ClaimContext,
        budget: Budget,
        body_bytes: int,
    ) -> _Taken:
        """Take rows of the locked *lanes*."""
        now, lease_s = context.now, context.lease_s
        judged = {webhook_id: self._judge(of_one) for webhook_id, of_one in settings.items()}
        refusals = {webhook_id: why for webhook_id, why in judged.items() if why is not None}
        admitted = admit_all(
            lanes, settings, now=now, budget=budget, lease_s=lease_s, refusals=refusals
        )
        lanes = [lane for lane, _ in admitted]
        rows = cursor.execute(
            self._statements["claim"],
            {
                **admission_parameters(
                    lanes,
                    [admission for _, admission in admitted],
                    [tokens_at(lane, settings.get(lane.webhook_id), now=now) for lane in lanes],
                    [self._horizon.lane_mark(lane.webhook_id) for lane in lanes],
                ),
                **self._lease(context),
                "body_bytes": body_bytes,
                "rows_from": self._horizon.marks.rows,
            },
        ).fetchall()
        changes = note_held(cursor, admitted)
        breakers = {
            lane.webhook_id: breaker_at_claim(lane, admission, lease_until=context.lease_until)
            for lane, admission in admitted
        }
        claimed = [delivery_of(row, settings, breakers, context) for row in rows]
        deliveries = [delivery for delivery in claimed if delivery]
        taken = Counter(delivery.webhook_id for delivery in deliveries)
        probed = [
            lane.webhook_id for lane, item in admitted if item.probe and lane.webhook_id in taken
        ]
        if probed:
            cursor.execute(
                self._statements["begin_probes"],
                {"webhook_ids": number_array(probed), "lease_s": lease_s},
            )
        if self._horizon.slow:
            self._horizon.note_claims(admitted, rows, claimed, now_at=now)
        rate_limited = self._rate_limited(cursor, admitted, taken)
        self._barred = sum(item.quota == 0 for _, item in admitted) * 2 > len(admitted)
        left = any(row[0] for row in rows) or any(item.waits_for_slots for _, item in admitted)
        unmeasured = rows[0][2] if rows else []
        return _Taken(deliveries, rate_limited, left, unmeasured, changes)

    def _rate_limited(
        self,
        cursor: psycopg.Cursor[TupleRow],
        admitted: Sequence[tuple[Lane, Admission]],
        taken: Mapping[int, int],
    ) -> list[int]:
        """Return which of these webhooks still have due rows, and no token for them. *taken* are
        the rows that each gave.
        """
        webhook_ids = [
            lane.webhook_id
            for lane, admission in admitted
            # A lane that gave less than its quota does not lack tokens: others have its due rows
            # locked.
            if admission.blocked_by is BlockedBy.RATE and taken[lane.webhook_id] == admission.quota
        ]
        if not webhook_ids:
            return []
        parameters = {
            "webhook_ids": number_array(webhook_ids),
            "marks": number_array([self._horizon.lane_mark(item) for item in webhook_ids]),
            "rows_from": self._horizon.marks.rows,
        }
        return [row[0] for row in cursor.execute(self._statements["due_lanes"], parameters)]


@contextmanager
def _transaction(
    connection: session.Connection, *, batch: bool = False
) -> Iterator[tuple[psycopg.Cursor[TupleRow], list[Delivery]]]:
    """Run a claim's transaction. The body puts what it takes into the list, last of all: so an
    error came from the COMMIT if the list is not empty.
    """
    taken: list[Delivery] = []
    try:
        with session.transaction(connection, durable=False, batch=batch) as cursor:
            yield cursor, taken
    except psycopg.OperationalError as error:
        if taken:
            raise ClaimInDoubtError(taken) from error
        raise
