"""Recording: rows, attempt log, health, circuit and tokens change in one transaction, for many
results in one statement each.

Three things keep records of several workers from harming each other. The fence: a row changes only
if it still has the token of this claim, so a late worker overwrites nothing that a later owner did.
The order: lanes are locked by webhook_id, or two records could deadlock. And nothing waits for a
lock: the results of a lane or a row that is locked are put off, and delay no others.
"""

import math
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from webhookd.core.breaker import CircuitState
from webhookd.core.lane import Lane, settle_lane
from webhookd.core.lifecycle import settle
from webhookd.core.model import GONE_REASON, Result, WebhookDefaults
from webhookd.postgres import session, statements
from webhookd.postgres.arrays import number_array
from webhookd.postgres.batches import Settled, lane_parameters, settle_parameters
from webhookd.postgres.lanes import restore_lanes
from webhookd.postgres.rows import before_lane, lane_of, lost_lease_of

# A lane that is not returned is nearly always locked by a claim, hardly ever deleted: so it is only
# sometimes worth a statement to find out.
RESTORE_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """What one record did. *refused*: results of claims that this worker no longer owns.
    *deferred*: results whose lanes or rows were locked; try again soon.

    *rows_held*: rows were locked, not only lanes; a record with *lock_rows_first* finds that out
    without waiting. *tripped*: webhooks whose circuit opened, once for each opening. *next_look_s*:
    in how many seconds the earliest of these lanes is runnable. *disabled*: webhooks that this
    record disabled, because of a 410.
    """

    accepted: Sequence[Result] = ()
    refused: Sequence[Result] = ()
    deferred: Sequence[Result] = ()
    tripped: Sequence[int] = ()
    next_look_s: float = math.inf
    rows_held: bool = False
    disabled: Sequence[int] = ()


class ResultWriter:
    """Records for one worker; any thread may use it with a connection of its own."""

    def __init__(self, *, worker_id: str, defaults: WebhookDefaults) -> None:
        self._worker_id = worker_id
        self._defaults = defaults
        self._lock = statements.load("lock_recorded_lanes")
        self._settle = statements.load("settle")
        self._held_claims = statements.load("held_claims")
        self._update = statements.load("update_lanes")
        self._disable = statements.load("disable_webhooks")
        self._expired = statements.load("expired_leases")
        self._leased_by = statements.load("leases_of")
        self._restore_at = -math.inf  # monotonic

    def record(
        self,
        connection: session.Connection,
        results: Sequence[Result],
        *,
        lock_rows_first: bool = False,
    ) -> RecordOutcome:
        """Store *results*. Blocks for one durable transaction; raises `psycopg.Error`, and then
        nothing was stored.

        If the answer to COMMIT is lost, the results may be stored all the same. Record them again:
        the fence then refuses them. *lock_rows_first* finds out beforehand which rows others have
        locked. That costs one more statement, so do it only after such a row was met.
        """
        webhook_ids = sorted({result.delivery.webhook_id for result in results})
        try:
            recorded, locked = self._record(
                connection, results, webhook_ids, lock_rows_first=lock_rows_first
            )
        except psycopg.errors.LockNotAvailable:
            if lock_rows_first:
                raise
            recorded, locked = self._record(connection, results, webhook_ids, lock_rows_first=True)
        if len(locked) < len(webhook_ids) and (now := time.monotonic()) >= self._restore_at:
            self._restore_at = now + RESTORE_EVERY_S
            # What could be stored is committed: its outcome must be returned in any case.
            with suppress(psycopg.OperationalError):
                restore_lanes(
                    connection,
                    [webhook_id for webhook_id in webhook_ids if webhook_id not in locked],
                )
        return recorded

    def lost_leases(
        self, connection: session.Connection, *, incarnation: UUID | None = None, limit: int = 500
    ) -> list[Result]:
        """Return, as results to be recorded, claims whose lease ran out, or all those of a dead
        *incarnation*.

        Recording them releases the rows. An owner that is still alive may record first: then the
        fence refuses these.
        """
        if incarnation is None:
            rows = connection.execute(self._expired, {"limit": limit}).fetchall()
        else:
            rows = connection.execute(
                self._leased_by, {"incarnation": incarnation, "limit": limit}
            ).fetchall()
        return [lost_lease_of(row, self._defaults) for row in rows]

    def _record(
        self,
        connection: session.Connection,
        results: Sequence[Result],
        webhook_ids: Sequence[int],
        *,
        lock_rows_first: bool,
    ) -> tuple[RecordOutcome, Mapping[int, Lane]]:
        """Store those of *results* whose lanes and rows are free; return also the lanes that were
        free, by webhook id.
        """
        # Without *lock_rows_first* the settle statement waits for a locked row, while this
        # transaction holds the locks of all its lanes. The short time-out ends that.
        lock_timeout_s = None if lock_rows_first else session.SHORT_LOCK_TIMEOUT_S
        with session.transaction(connection, lock_timeout_s=lock_timeout_s, batch=True) as cursor:
            rows = cursor.execute(self._lock, {"webhook_ids": number_array(webhook_ids)}).fetchall()
            lanes = {lane.webhook_id: lane for lane in map(lane_of, rows)}
            free = [result for result in results if result.delivery.webhook_id in lanes]
            held: set[tuple[int, int]] = set()
            if free and lock_rows_first:
                held = self._held(cursor, free)
                free = [result for result in free if _claim_of(result) not in held]
            recorded = RecordOutcome()
            if free:
                (now,) = before_lane(rows[0])
                recorded = self._record_in(cursor, free, lanes, now=now)
        if len(free) < len(results):
            begun = set(map(_claim_of, free))
            deferred = [result for result in results if _claim_of(result) not in begun]
            recorded = replace(recorded, deferred=deferred, rows_held=bool(held))
        return recorded, lanes

    def _record_in(
        self,
        cursor: psycopg.Cursor[TupleRow],
        results: Sequence[Result],
        lanes: Mapping[int, Lane],
        *,
        now: float,
    ) -> RecordOutcome:
        now_at = datetime.fromtimestamp(now, tz=UTC)
        settled = [
            (result, settle(result.delivery, result.outcome, now_at=now_at, u=random.random()))
            for result in results
        ]
        ours = self._settle_rows(cursor, settled)
        accepted, refused = settled, []
        if len(ours) < len(settled):
            accepted = [pair for pair in settled if _claim_of(pair[0]) in ours]
            refused = [result for result, _ in settled if _claim_of(result) not in ours]
        of_webhook = _by_webhook(accepted)
        after = [
            settle_lane(lanes[webhook_id], pairs, now=now)
            for webhook_id, pairs in of_webhook.items()
        ]
        if after:
            cursor.execute(self._update, lane_parameters(after, of_webhook))
        gone = [
            result.delivery.webhook_id
            for result, settlement in accepted
            if settlement.disables_webhook
        ]
        disabled: Sequence[TupleRow] = []
        if gone:
            disabled = self._disable_gone(cursor, gone)
        runnable = [lane.runnable_at - now for lane in after if lane.runnable_at is not None]
        return RecordOutcome(
            accepted=[result for result, _ in accepted],
            refused=refused,
            tripped=[
                lane.webhook_id for lane in after if _tripped(lane, before=lanes[lane.webhook_id])
            ],
            next_look_s=min(runnable, default=math.inf),
            disabled=[webhook_id for (webhook_id,) in disabled],
        )

    def _disable_gone(
        self, cursor: psycopg.Cursor[TupleRow], webhook_ids: Sequence[int]
    ) -> Sequence[TupleRow]:
        """Return the webhooks that are disabled now and were not before."""
        # A row that is older than a CHECK which it breaks cannot be changed. The results stand all
        # the same: its webhook stays enabled, and `webhookd doctor` names it.
        with suppress(psycopg.errors.CheckViolation), cursor.connection.transaction():
            return cursor.execute(
                self._disable, {"webhook_ids": number_array(webhook_ids), "reason": GONE_REASON}
            ).fetchall()
        return []

    def _held(
        self, cursor: psycopg.Cursor[TupleRow], results: Sequence[Result]
    ) -> set[tuple[int, int]]:
        """Lock the rows of these claims; return the claims whose rows others have locked."""
        rows = cursor.execute(
            self._held_claims,
            {
                "delivery_ids": number_array([item.delivery.delivery_id for item in results]),
                "tokens": number_array([item.delivery.token for item in results]),
            },
        ).fetchall()
        return set(rows)

    def _settle_rows(
        self, cursor: psycopg.Cursor[TupleRow], settled: Sequence[Settled]
    ) -> set[tuple[int, int]]:
        """Return the claims (see `_claim_of`) that the fence let pass."""
        rows = cursor.execute(
            self._settle,
            settle_parameters(settled, now=time.monotonic()) | {"worker_id": self._worker_id},
        ).fetchall()
        return set(rows)


def _claim_of(result: Result) -> tuple[int, int]:
    # The delivery's id alone is not enough: one batch may hold a late result of an earlier claim
    # beside that of a later one.
    return result.delivery.delivery_id, result.delivery.token


def _by_webhook(settled: Sequence[Settled]) -> dict[int, list[Settled]]:
    of_webhook: dict[int, list[Settled]] = defaultdict(list)
    for pair in settled:
        of_webhook[pair[0].delivery.webhook_id].append(pair)
    return of_webhook


def _tripped(lane: Lane, *, before: Lane) -> bool:
    return (
        lane.breaker.state is CircuitState.OPEN
        and lane.breaker.generation != before.breaker.generation
    )
