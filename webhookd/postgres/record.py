"""Recording: rows, attempt log, health, circuit and tokens change in one transaction, for many
results in one statement each.
"""

import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from webhookd.core.answer import CircuitVote
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.lane import Lane, settle_lane
from webhookd.core.lifecycle import Settlement, settle
from webhookd.core.model import Attempted, Delivery, Lost, Result
from webhookd.postgres import session, statements
from webhookd.postgres.claim import WebhookDefaults, lane_of, make_lanes, settings_of

GONE_REASON = "410 Gone"
RESTORE_EVERY_S = 0.25  # lanes are locked by somebody all the time, and gone hardly ever

_Settled = tuple[Result, Settlement]


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """What one record did. *deferred*: their lanes or rows were locked by somebody, try again soon.
    *refused*: no longer ours.

    *rows_held*: rows were, which a careful record finds out without waiting. *tripped*: webhooks
    whose circuit opened, once for each opening. *next_look_s*: when the earliest of these lanes is
    runnable.
    """

    accepted: Sequence[Result] = ()
    refused: Sequence[Result] = ()
    deferred: Sequence[Result] = ()
    tripped: Sequence[int] = ()
    next_look_s: float = math.inf
    rows_held: bool = False


class ResultWriter:
    """Records for one worker; any thread may use it with a connection of its own."""

    def __init__(self, *, worker_id: str, defaults: WebhookDefaults) -> None:
        self._worker_id = worker_id
        self._defaults = defaults
        self._lock = statements.load("lock_recorded_lanes")
        self._settle = statements.load("settle")
        self._held_claims = statements.load("held_claims")
        self._missing_lanes = statements.load("missing_lanes")
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

        (A COMMIT whose answer is lost may have been stored all the same; recording again is then
        refused by the fence.) *lock_rows_first* looks first which rows somebody has locked. That costs a
        statement more, so it is done where one proved to be.
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
            with suppress(psycopg.OperationalError):  # the rest is stored, and says so
                self._restore_lanes(
                    connection,
                    [webhook_id for webhook_id in webhook_ids if webhook_id not in locked],
                )
        return recorded

    def lost_leases(
        self, connection: session.Connection, *, incarnation: UUID | None = None, limit: int = 500
    ) -> list[Result]:
        """Return, as results to be recorded, claims whose lease ran out, or all those of a dead
        *incarnation*.

        Recording them releases the rows; the fence sees to it that an owner who records first wins.
        """
        if incarnation is None:
            rows = connection.execute(self._expired, {"limit": limit}).fetchall()
        else:
            rows = connection.execute(
                self._leased_by, {"incarnation": incarnation, "limit": limit}
            ).fetchall()
        return [Result(_lost_delivery(row, self._defaults), Lost()) for row in rows]

    def _record(
        self,
        connection: session.Connection,
        results: Sequence[Result],
        webhook_ids: Sequence[int],
        *,
        lock_rows_first: bool,
    ) -> tuple[RecordOutcome, Mapping[int, Lane]]:
        """Store those of *results* whose lanes and rows are free; return also the lanes that were."""
        with session.transaction(connection, impatient=not lock_rows_first, batch=True) as cursor:
            rows = cursor.execute(
                self._lock, {"webhook_ids": session.number_array(webhook_ids)}
            ).fetchall()
            lanes = {row[0]: lane_of(row) for row in rows}
            free = [result for result in results if result.delivery.webhook_id in lanes]
            held: set[tuple[int, int]] = set()
            if free and lock_rows_first:
                held = self._held(cursor, free)
                free = [result for result in free if _claim_of(result) not in held]
            recorded = (
                self._record_in(cursor, free, lanes, now=float(rows[0][12]))
                if free
                else RecordOutcome()
            )
        if len(free) < len(results):
            begun = set(map(_claim_of, free))
            deferred = [result for result in results if _claim_of(result) not in begun]
            recorded = replace(recorded, deferred=deferred, rows_held=bool(held))
        return recorded, lanes

    def _restore_lanes(self, connection: session.Connection, webhook_ids: Sequence[int]) -> None:
        """Make those lanes anew that are not locked by somebody but gone (an operator's DELETE or
        TRUNCATE).
        """
        rows = connection.execute(
            self._missing_lanes, {"webhook_ids": session.number_array(webhook_ids)}
        ).fetchall()
        if rows:
            make_lanes(connection, [row[0] for row in rows])

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
            cursor.execute(self._update, _lane_parameters(after, of_webhook))
        gone = [
            result.delivery.webhook_id
            for result, settlement in accepted
            if settlement.disables_webhook
        ]
        if gone:
            cursor.execute(
                self._disable, {"webhook_ids": session.number_array(gone), "reason": GONE_REASON}
            )
        runnable = [lane.runnable_at - now for lane in after if lane.runnable_at is not None]
        return RecordOutcome(
            accepted=[result for result, _ in accepted],
            refused=refused,
            tripped=[
                lane.webhook_id for lane in after if _tripped(lane, before=lanes[lane.webhook_id])
            ],
            next_look_s=min(runnable, default=math.inf),
        )

    def _held(
        self, cursor: psycopg.Cursor[TupleRow], results: Sequence[Result]
    ) -> set[tuple[int, int]]:
        """Return the claims whose rows somebody has locked; lock the others."""
        rows = cursor.execute(
            self._held_claims,
            {
                "delivery_ids": session.number_array(
                    [result.delivery.delivery_id for result in results]
                ),
                "tokens": session.number_array([result.delivery.token for result in results]),
            },
        ).fetchall()
        return {(row[0], row[1]) for row in rows}

    def _settle_rows(
        self, cursor: psycopg.Cursor[TupleRow], settled: Sequence[_Settled]
    ) -> set[tuple[int, int]]:
        """Return the claims (see `_claim_of`) that the fence let pass."""
        ended = time.monotonic()
        answers = [
            result.outcome.answer if isinstance(result.outcome, Attempted) else None
            for result, _ in settled
        ]
        rows = cursor.execute(
            self._settle,
            {
                "delivery_ids": session.number_array(
                    [result.delivery.delivery_id for result, _ in settled]
                ),
                "tokens": session.number_array([result.delivery.token for result, _ in settled]),
                "statuses": session.text_array([settlement.status for _, settlement in settled]),
                "delays": session.number_array([settlement.delay_s for _, settlement in settled]),
                "retries": session.number_array(
                    [int(settlement.spends_retry) for _, settlement in settled]
                ),
                "losses": session.number_array(
                    [int(settlement.loses_lease) for _, settlement in settled]
                ),
                "ages": session.number_array([_age_s(result, now=ended) for result, _ in settled]),
                "webhook_ids": session.number_array(
                    [result.delivery.webhook_id for result, _ in settled]
                ),
                "events": session.text_array([settlement.event for _, settlement in settled]),
                "details": session.text_array(
                    [_details(result, settlement) for result, settlement in settled]
                ),
                "http_statuses": session.number_array(
                    [None if answer is None else answer.http_status for answer in answers]
                ),
                "times_ms": session.number_array(
                    [None if answer is None else answer.elapsed_s * 1000 for answer in answers]
                ),
                "worker_id": self._worker_id,
            },
        ).fetchall()
        return {(row[0], row[1]) for row in rows}


def _claim_of(result: Result) -> tuple[int, int]:
    return result.delivery.delivery_id, result.delivery.token


def _by_webhook(settled: Sequence[_Settled]) -> dict[int, list[_Settled]]:
    of_webhook: dict[int, list[_Settled]] = defaultdict(list)
    for pair in settled:
        of_webhook[pair[0].delivery.webhook_id].append(pair)
    return of_webhook


def _tripped(lane: Lane, *, before: Lane) -> bool:
    return (
        lane.breaker.state is CircuitState.OPEN
        and lane.breaker.generation != before.breaker.generation
    )


def _lane_parameters(
    after: Sequence[Lane], of_webhook: Mapping[int, Sequence[_Settled]]
) -> dict[str, Any]:
    of_lanes = [of_webhook[lane.webhook_id] for lane in after]
    times = [
        [
            result.outcome.answer.elapsed_s * 1000
            for result, _ in its
            if isinstance(result.outcome, Attempted)
        ]
        for its in of_lanes
    ]
    successful = [
        sum(settlement.vote is CircuitVote.SUCCESS for _, settlement in its) for its in of_lanes
    ]
    return {
        "webhook_ids": session.number_array([lane.webhook_id for lane in after]),
        "totals": session.number_array([len(its) for its in times]),
        "successfuls": session.number_array(successful),
        "sums_ms": session.number_array([math.fsum(its) for its in times]),
        "mins_ms": session.number_array([min(its, default=None) for its in times]),
        "maxs_ms": session.number_array([max(its, default=None) for its in times]),
        "health_statuses": session.text_array([lane.health for lane in after]),
        "failures": session.number_array([lane.breaker.failures for lane in after]),
        "circuit_states": session.text_array([lane.breaker.state for lane in after]),
        "circuit_epochs": session.number_array([lane.breaker.generation for lane in after]),
        "circuit_untils": session.number_array([lane.breaker.next_probe_at for lane in after]),
        "hold_untils": session.number_array([lane.hold_until for lane in after]),
        "tokens": session.number_array([lane.bucket.tokens for lane in after]),
        "tokens_ats": session.number_array([lane.bucket.at for lane in after]),
        "in_flights": session.number_array([lane.in_flight for lane in after]),
        "runnable_ats": session.number_array([lane.runnable_at for lane in after]),
        "blocked_bys": session.text_array([lane.blocked_by for lane in after]),
    }


def _age_s(result: Result, *, now: float) -> float | None:
    """Return how long ago the attempt began, in seconds; None where there was none."""
    if not isinstance(result.outcome, Attempted):
        return None
    return max(0.0, now - result.outcome.ended) + result.outcome.answer.elapsed_s


def _details(result: Result, settlement: Settlement) -> str | None:
    if settlement.event is None:
        return None
    attempt, excerpt = None, ""
    if isinstance(result.outcome, Attempted):
        attempt, excerpt = result.delivery.attempts + 1, result.outcome.answer.excerpt
    return _event_details(settlement.reason, attempt, excerpt, settlement.delay_s)


@lru_cache(maxsize=1024)
def _event_details(reason: str, attempt: int | None, excerpt: str, delay_s: float | None) -> str:
    """Return event_details as JSON; most attempts have the same."""
    details: dict[str, Any] = {"reason": _storable(reason)}
    if attempt is not None:
        details["attempt"] = attempt
    if excerpt:
        details["excerpt"] = _storable(excerpt)
    if delay_s is not None:
        details["retry_in_s"] = round(delay_s, 3)
    return json.dumps(details)


def _storable(text: str) -> str:
    """Return *text* without what jsonb refuses (NUL, lone surrogates): no answer may keep its
    result from being recorded.
    """
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _lost_delivery(row: Sequence[Any], defaults: WebhookDefaults) -> Delivery:
    delivery_id, token, generation, retry_count, max_retries, attempts, leases_lost, *registry = row
    return Delivery(
        delivery_id=delivery_id,
        webhook_id=registry[0],
        token=token,
        breaker=Breaker(generation=generation),
        body=b"",
        retry_count=retry_count,
        max_retries=max_retries,
        attempts=attempts,
        leases_lost=leases_lost,
        age_s=0.0,
        settings=settings_of(tuple(registry), defaults),
        claimed=-math.inf,
        start_before=-math.inf,
    )
