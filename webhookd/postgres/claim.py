"""Claiming: lock lanes that have work, decide in Python what each may give, take the rows. One
short transaction.
"""

import math
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from webhookd.config.load import Config
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lane import Admission, BlockedBy, Lane, admit
from webhookd.core.model import Delivery, WebhookSettings
from webhookd.postgres import session, statements
from webhookd.postgres.horizon import Horizon
from webhookd.postgres.registry import bounded

BODY_BYTES = 32 << 20  # bodies that one worker holds; one more may begin below it
ROWS_PER_LANE = 20  # fewer lanes with more rows each cost fewer state writes; more would let one webhook crowd a claim
SLOW_ROWS_PER_LANE = 100  # while what a lane costs is what counts (floors.py)
BEFORE_ALL = -(2**63)  # an application may number its webhooks from 0, or below
NARROWER = 1.25  # by how much fewer lanes are looked at once they were more than enough
LEASE_MARGIN_S = 30.0  # a lease outlives the exchange by so much local waiting
SAFETY_S = 1.0  # an exchange whose lease is that close to its end does not start


class WebhookDefaults(NamedTuple):
    """The configuration's word on what a registry row leaves NULL (see `WebhookSettings`)."""

    timeout_s: float
    max_in_flight: int
    rate: float
    burst: int
    retry_base_s: float
    retry_max_s: float
    circuit_threshold: int
    circuit_open_s: float


def defaults_of(config: Config) -> WebhookDefaults:
    """Return *config*'s word."""
    return WebhookDefaults(
        timeout_s=config.timeout,
        max_in_flight=config.max_in_flight,
        rate=config.rate_limit,
        burst=config.rate_burst,
        retry_base_s=config.retry_base,
        retry_max_s=config.retry_max,
        circuit_threshold=config.circuit_threshold,
        circuit_open_s=config.circuit_open,
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """What one claim brought.

    *lanes* were looked at; *rate_limited* of them (webhook ids) had to keep due rows for want of
    tokens. *full*: as many rows as were asked for, or as many bytes. *exhausted*: there were no
    further lanes with work. *contended*: others held lanes with new rows just then.
    """

    deliveries: Sequence[Delivery] = ()
    rate_limited: Sequence[int] = ()
    lanes: int = 0
    full: bool = False
    exhausted: bool = True
    contended: bool = False


class ClaimInDoubtError(psycopg.OperationalError):
    """The answer to a claim's COMMIT was lost: *deliveries* are this worker's or they are not.

    Recorded as given back they wait for no lease's end. If the claim was rolled back the fence
    refuses that; if the server is still about to commit, it holds their lanes' locks, and the
    record is put off.
    """

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        super().__init__("the answer to a claim's COMMIT was lost")
        self.deliveries = deliveries


class NextLook(NamedTuple):
    """When to look again unasked, in seconds (<= 0: now; inf: not at all). *new_rows*: some that
    nobody has looked at.
    """

    lane_s: float
    suspect_s: float
    new_rows: bool


class Claimer:
    """Claims for one worker incarnation; used by the dispatcher's thread only."""

    def __init__(self, *, worker_id: str, incarnation: UUID, defaults: WebhookDefaults) -> None:
        self._worker_id = worker_id
        self._incarnation = incarnation
        self._defaults = defaults
        self._make_lanes_at = -math.inf  # monotonic
        self._cursor = BEFORE_ALL  # new rows of webhooks after this one come first: no lane starves behind a hundred others
        self._rows_per_lane = float(ROWS_PER_LANE)  # as the last claims found them
        self._floor = Horizon()
        self._lock_lanes = statements.load("lock_lanes")
        self._lock_suspect = statements.load("lock_suspect_lane")
        self._read_settings = statements.load("read_settings")
        self._count_leases = statements.load("count_leases")
        self._claim = statements.load("claim")
        self._due_lanes = statements.load("due_lanes")
        self._claim_suspect = statements.load("claim_suspect")
        self._next_look = statements.load("next_look")

    def claim(
        self, connection: session.Connection, *, limit: int, body_bytes: int = BODY_BYTES
    ) -> Claim:
        """Claim at most *limit* (>= 1) due rows, and no more once their bodies come to *body_bytes*
        (>= 1).

        Blocks for one transaction; raises `psycopg.Error`, `ClaimInDoubtError` among them.
        """
        self._floor.keep(connection)
        started = time.monotonic()
        lanes_wanted = math.ceil(limit / self._rows_per_lane)
        with _transaction(connection, batch=True) as (cursor, deliveries):
            wanted = {
                "cursor": self._cursor,
                "lanes": lanes_wanted,
                **self._floor.floors.parameters(),
            }
            rows = cursor.execute(self._lock_lanes, wanted).fetchall()
            self._floor.looked(time.monotonic() - started, lanes=lanes_wanted)
            now, last_fresh, fresh, without_lane = rows[0][12:16]
            self._cursor = last_fresh if fresh == lanes_wanted else BEFORE_ALL
            lanes = [lane_of(row) for row in rows if row[0] is not None]
            rate_limited: list[int] = []
            heavy = False
            if lanes:
                settings = self._settings_of(cursor, [lane.webhook_id for lane in lanes])
                lanes = self._recounted(cursor, lanes, settings)
                taken, rate_limited, heavy = self._take(
                    cursor,
                    lanes,
                    settings,
                    limit=limit,
                    body_bytes=body_bytes,
                    now=now,
                    started=started,
                )
                deliveries.extend(taken)
        if without_lane and started >= self._make_lanes_at:
            self._make_lanes_at = started + 1.0
            with suppress(
                psycopg.OperationalError
            ):  # what was claimed is committed and must be handed out
                if make_lanes(connection, without_lane):
                    self._make_lanes_at = -math.inf
        claim = Claim(
            deliveries,
            rate_limited,
            lanes=len(lanes),
            full=heavy or len(deliveries) >= limit,
            exhausted=len(lanes) < lanes_wanted,
            contended=len(lanes) < fresh,
        )
        self._widen_or_narrow(claim)
        return claim

    def _widen_or_narrow(self, claim: Claim) -> None:
        """Have the next claim look at as many lanes as it takes to be full: few deep ones, hundreds
        of one row each.
        """
        most = SLOW_ROWS_PER_LANE if self._floor.slow else ROWS_PER_LANE
        if claim.full or claim.exhausted:
            self._rows_per_lane = min(most, self._rows_per_lane * NARROWER)
        else:
            self._rows_per_lane = min(most, max(1.0, len(claim.deliveries) / claim.lanes))

    def next_look(self, connection: session.Connection) -> NextLook:
        """Return when this worker must look again although nobody wakes it. One statement; raises
        `psycopg.Error`.
        """
        row = connection.execute(self._next_look, self._floor.floors.parameters()).fetchone()
        assert row is not None
        lane_s, new_rows, suspect_s = row
        lane_s = min(math.inf if lane_s is None else lane_s, self._floor.full_look_in_s)
        return NextLook(lane_s, math.inf if suspect_s is None else suspect_s, new_rows)

    def claim_suspect(self, connection: session.Connection) -> Claim:
        """Claim one due row that lost three leases or more, if its lane lets it go. Blocks and
        raises as `claim` does.
        """
        started = time.monotonic()
        with _transaction(connection) as (cursor, deliveries):
            row = cursor.execute(self._lock_suspect).fetchone()
            if row is None:
                return Claim()
            now, delivery_id = float(row[12]), int(row[13])
            of_webhook = self._settings_of(cursor, [row[0]])
            [lane] = self._recounted(cursor, [lane_of(row)], of_webhook)
            settings = of_webhook.get(lane.webhook_id)
            admission = admit(lane, settings, now=now, wish=1)
            lease_s = (settings.timeout_s if settings else 0.0) + LEASE_MARGIN_S
            token = secrets.randbits(63)
            claimed = cursor.execute(
                self._claim_suspect,
                {
                    "delivery_id": delivery_id,
                    "admitted": admission.quota > 0,
                    "probe": admission.probe,
                    # A lane that nothing will unblock by itself is asked again in a minute.
                    "again_at": admission.runnable_at or now + 60.0,
                    "tokens": self._tokens(lane, settings, now=now),
                    "in_flight": lane.in_flight,
                    "worker_id": self._worker_id,
                    "incarnation": self._incarnation,
                    "token": token,
                    "lease_s": lease_s,
                },
            ).fetchone()
            if claimed is not None and settings is not None:
                breaker = _breaker_at_claim(lane, admission, lease_until=now + lease_s)
                deliveries.append(
                    _delivery_of(
                        claimed, settings, breaker, ClaimContext(token, started, now, lease_s)
                    )
                )
        return Claim(deliveries, lanes=1)

    def _settings_of(
        self, cursor: psycopg.Cursor[TupleRow], webhook_ids: Sequence[int]
    ) -> dict[int, WebhookSettings]:
        rows = cursor.execute(
            self._read_settings, {"webhook_ids": session.number_array(webhook_ids)}
        ).fetchall()
        return {row[0]: settings_of(tuple(row), self._defaults) for row in rows}

    def _recounted(
        self,
        cursor: psycopg.Cursor[TupleRow],
        lanes: list[Lane],
        settings: Mapping[int, WebhookSettings],
    ) -> list[Lane]:
        """Return *lanes* with the in-flight counters of those at their cap counted afresh.

        A DELETE or TRUNCATE of a claimed row strands the counter; trusted blindly it would block
        the lane for ever.
        """
        full = [
            lane.webhook_id
            for lane in lanes
            if lane.webhook_id in settings
            and lane.in_flight >= settings[lane.webhook_id].max_in_flight
        ]
        if not full:
            return lanes
        rows = cursor.execute(
            self._count_leases, {"webhook_ids": session.number_array(full)}
        ).fetchall()
        counts: dict[int, int] = {row[0]: row[1] for row in rows}
        return [
            replace(lane, in_flight=counts.get(lane.webhook_id, 0))
            if lane.webhook_id in full
            else lane
            for lane in lanes
        ]

    def _take(
        self,
        cursor: psycopg.Cursor[TupleRow],
        lanes: Sequence[Lane],
        settings: Mapping[int, WebhookSettings],
        *,
        limit: int,
        body_bytes: int,
        now: float,
        started: float,
    ) -> tuple[list[Delivery], list[int], bool]:
        """Return what was taken, the lanes that kept due rows for want of tokens, and whether
        *body_bytes* kept some.
        """
        lease_s = max((item.timeout_s for item in settings.values()), default=0.0) + LEASE_MARGIN_S
        admissions = self._admit(lanes, settings, limit=limit, now=now, lease_s=lease_s)
        lanes = lanes[: len(admissions)]
        token = secrets.randbits(63)
        rows = cursor.execute(
            self._claim,
            {
                "webhook_ids": session.number_array([lane.webhook_id for lane in lanes]),
                "quotas": session.number_array([admission.quota for admission in admissions]),
                "blocked_bys": session.text_array(
                    [admission.blocked_by for admission in admissions]
                ),
                "runnable_ats": session.number_array(
                    [admission.runnable_at for admission in admissions]
                ),
                "tokens": session.number_array(
                    [self._tokens(lane, settings.get(lane.webhook_id), now=now) for lane in lanes]
                ),
                "in_flights": session.number_array([lane.in_flight for lane in lanes]),
                "probes": "{"
                + ",".join("t" if admission.probe else "f" for admission in admissions)
                + "}",
                "worker_id": self._worker_id,
                "incarnation": self._incarnation,
                "token": token,
                "lease_s": lease_s,
                "body_bytes": body_bytes,
                "rows_floor": self._floor.floors.rows,
                "floors": session.number_array(
                    [self._floor.of_lane(lane.webhook_id) for lane in lanes]
                ),
            },
        ).fetchall()
        breakers = {
            lane.webhook_id: _breaker_at_claim(lane, admission, lease_until=now + lease_s)
            for lane, admission in zip(lanes, admissions, strict=True)
        }
        stub = ClaimContext(token, started, now, lease_s)
        deliveries = [
            _delivery_of((row[0], *row[2:9]), settings[row[0]], breakers[row[0]], stub)
            for row in rows
            if row[2] is not None
        ]
        taken = Counter(delivery.webhook_id for delivery in deliveries)
        if self._floor.slow:
            first_at = {row[0]: row[9] for row in reversed(rows)}  # rows: the longest due first
            for lane, admission in zip(lanes, admissions, strict=True):
                if admission.quota:
                    emptied = taken[lane.webhook_id] < admission.quota
                    self._floor.claimed(
                        lane.webhook_id, None if emptied else first_at[lane.webhook_id], now_at=now
                    )
        out_of_tokens = [
            lane.webhook_id
            for lane, admission in zip(lanes, admissions, strict=True)
            # Due rows of a lane that gave less than it might are not kept for want of tokens:
            # somebody has them locked.
            if admission.blocked_by is BlockedBy.RATE and taken[lane.webhook_id] == admission.quota
        ]
        rate_limited = self._due_among(cursor, out_of_tokens) if out_of_tokens else []
        return deliveries, rate_limited, any(row[1] for row in rows)

    def _due_among(self, cursor: psycopg.Cursor[TupleRow], webhook_ids: Sequence[int]) -> list[int]:
        """Return which of these webhooks still have due rows."""
        floors = session.number_array(
            [self._floor.of_lane(webhook_id) for webhook_id in webhook_ids]
        )
        parameters = {
            "webhook_ids": session.number_array(webhook_ids),
            "floors": floors,
            "rows_floor": self._floor.floors.rows,
        }
        return [row[0] for row in cursor.execute(self._due_lanes, parameters)]

    def _admit(
        self,
        lanes: Sequence[Lane],
        settings: Mapping[int, WebhookSettings],
        *,
        limit: int,
        now: float,
        lease_s: float,
    ) -> list[Admission]:
        """Return an admission for each lane until *limit* is given away, in even shares; lanes
        behind that stay as they are.
        """
        admissions: list[Admission] = []
        left = limit
        for lane in lanes:
            if left == 0:
                break
            share = -(-left // (len(lanes) - len(admissions)))
            admission = admit(lane, settings.get(lane.webhook_id), now=now, wish=share)
            if admission.probe:
                admission = Admission(1, BlockedBy.CIRCUIT, now + lease_s, probe=True)
            left -= admission.quota
            admissions.append(admission)
        return admissions

    @staticmethod
    def _tokens(lane: Lane, settings: WebhookSettings | None, *, now: float) -> float | None:
        """Return the lane's tokens at *now*, before anything is taken; None stays a full bucket."""
        if settings is None or settings.rate == 0:
            return None
        return lane.bucket.level(now, rate=settings.rate, burst=settings.burst)


@contextmanager
def _transaction(
    connection: session.Connection, *, batch: bool = False
) -> Iterator[tuple[psycopg.Cursor[TupleRow], list[Delivery]]]:
    """Run a claim's transaction; the body puts what it takes into the list, last of all."""
    taken: list[Delivery] = []
    try:
        with session.transaction(connection, durable=False, batch=batch) as cursor:
            yield cursor, taken
    except psycopg.OperationalError as error:
        if taken:
            raise ClaimInDoubtError(taken) from error
        raise


def make_lanes(connection: session.Connection, webhook_ids: Sequence[int]) -> bool:
    """Make lanes for webhooks that have none, in a transaction of its own; the next look finds
    them. Blocks for 50 ms at most.

    False: an open transaction is just making one of them (a registration, say). It must keep nobody
    else waiting.
    """
    try:
        with session.transaction(connection, durable=False, impatient=True) as cursor:
            cursor.execute(
                statements.load("create_lanes"), {"webhook_ids": session.number_array(webhook_ids)}
            )
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def lane_of(row: Sequence[Any]) -> Lane:
    """Return the lane that a row of lock_lanes or lock_recorded_lanes describes."""
    return Lane(
        webhook_id=row[0],
        breaker=Breaker(CircuitState(row[1]), row[2], row[3], row[4]),
        hold_until=row[5],
        bucket=Bucket(row[6], row[7]),
        in_flight=row[8],
        runnable_at=row[9],
        blocked_by=None if row[10] is None else BlockedBy(row[10]),
        health=row[11],
    )


@lru_cache(maxsize=4096)
def settings_of(row: tuple[Any, ...], defaults: WebhookDefaults) -> WebhookSettings:
    """Return the settings in a row of read_settings, *defaults* filling what it leaves NULL."""
    webhook_id, url, enabled, secret, headers, *numbers = row
    filled: list[Any] = [
        default if number is None else number
        for number, default in zip(numbers, defaults, strict=True)
    ]
    return WebhookSettings(webhook_id, url, enabled, secret, headers, *bounded(*filled))


class ClaimContext(NamedTuple):
    """What all deliveries of one claim share. *started* is monotonic, *now* the database's clock
    then.
    """

    token: int
    started: float
    now: float
    lease_s: float


def _breaker_at_claim(lane: Lane, admission: Admission, *, lease_until: float) -> Breaker:
    return lane.breaker.begin_probe(lease_until=lease_until) if admission.probe else lane.breaker


def _delivery_of(
    row: Sequence[Any], settings: WebhookSettings, breaker: Breaker, stub: ClaimContext
) -> Delivery:
    webhook_id, delivery_id, body, retry_count, max_retries, attempts, leases_lost, first_at = row
    return Delivery(
        delivery_id=delivery_id,
        webhook_id=webhook_id,
        token=stub.token,
        breaker=breaker,
        body=body.encode(),
        retry_count=retry_count,
        max_retries=max_retries,
        attempts=attempts,
        leases_lost=leases_lost,
        age_s=0.0 if first_at is None else stub.now - first_at,
        settings=settings,
        claimed=stub.started,
        start_before=stub.started + stub.lease_s - settings.timeout_s - SAFETY_S,
        claimed_at=stub.now,
    )
