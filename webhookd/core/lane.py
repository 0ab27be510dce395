"""A lane: one webhook's backlog, and what decides whether it may move. Circuit, tokens, in-flight
cap, a receiver's hold.

Workers lock a lane's row, load it into this value, apply `admit` or `settle_lane`, and store what
comes out, all in one transaction; so the rules live here and nowhere else. Times are the
database's, in epoch seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from webhookd.core.answer import CircuitVote
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lifecycle import Settlement
from webhookd.core.model import GivenBack, Result, Status, WebhookSettings

RECOUNT_AFTER_S = (
    5.0  # a lane at its cap is looked at this often, and its leases are counted afresh
)


class BlockedBy(StrEnum):
    """Why a lane that may hold due rows does not move."""

    UNREGISTERED = "unregistered"
    PAUSED = "paused"
    CIRCUIT = "circuit"
    HOLD = "hold"
    RATE = "rate"
    IN_FLIGHT = "in_flight"


@dataclass(frozen=True, slots=True)
class Lane:
    """The locked state row. *runnable_at* None: no timer; a change makes it runnable."""

    webhook_id: int
    breaker: Breaker
    bucket: Bucket
    in_flight: int
    hold_until: float | None
    runnable_at: float | None
    blocked_by: BlockedBy | None
    health: str


@dataclass(frozen=True, slots=True)
class Admission:
    """How many rows the lane may give now, and what it waits for once those are taken (or if
    *quota* is 0, at once).
    """

    quota: int
    blocked_by: BlockedBy | None = None
    runnable_at: float | None = None
    probe: bool = False


def admit(lane: Lane, settings: WebhookSettings | None, *, now: float, wish: int) -> Admission:
    """Return how many of at most *wish* (>= 1) rows *lane* may give at *now*. *settings* None: the
    webhook is not registered.
    """
    if settings is None:
        return Admission(0, BlockedBy.UNREGISTERED)
    if (blocked := _blocked(lane, settings, now=now)) is not None:
        return blocked
    if lane.breaker.blocked_until is not None:
        return Admission(1, BlockedBy.CIRCUIT, probe=True)  # until its lease ends: see `admit_all`
    room = settings.max_in_flight - lane.in_flight
    level = lane.bucket.level(now, rate=settings.rate, burst=settings.burst)
    tokens = math.inf if math.isinf(level) else int(level)
    quota = int(min(wish, room, tokens))
    if quota == tokens:
        rest = lane.bucket.take(quota, now, rate=settings.rate, burst=settings.burst)
        return Admission(
            quota, BlockedBy.RATE, rest.next_token_at(now, rate=settings.rate, burst=settings.burst)
        )
    if quota == room:
        return Admission(quota, BlockedBy.IN_FLIGHT, now + RECOUNT_AFTER_S)
    return Admission(quota, None, now)


def admit_all(
    lanes: Sequence[Lane],
    settings: Mapping[int, WebhookSettings],
    *,
    now: float,
    limit: int,
    lease_s: float,
) -> list[Admission]:
    """Return an admission for each lane until *limit* rows are given away, in even shares; lanes
    behind that have none, and stay as they are. *settings* are by webhook id; a probe ends with its
    lease of *lease_s*.
    """
    admissions: list[Admission] = []
    left = limit
    for lane in lanes:
        if left == 0:
            break
        share = -(-left // (len(lanes) - len(admissions)))
        admission = admit(lane, settings.get(lane.webhook_id), now=now, wish=share)
        if admission.probe:
            admission = replace(admission, runnable_at=now + lease_s)
        left -= admission.quota
        admissions.append(admission)
    return admissions


def _blocked(lane: Lane, settings: WebhookSettings, *, now: float) -> Admission | None:
    if not settings.enabled:
        return Admission(0, BlockedBy.PAUSED)
    if lane.hold_until is not None and lane.hold_until > now:
        return Admission(0, BlockedBy.HOLD, lane.hold_until)
    if lane.breaker.blocked_until is not None and lane.breaker.blocked_until > now:
        return Admission(0, BlockedBy.CIRCUIT, lane.breaker.blocked_until)
    if lane.in_flight >= settings.max_in_flight:
        return Admission(0, BlockedBy.IN_FLIGHT, now + RECOUNT_AFTER_S)
    if lane.bucket.level(now, rate=settings.rate, burst=settings.burst) < 1:
        return Admission(
            0,
            BlockedBy.RATE,
            lane.bucket.next_token_at(now, rate=settings.rate, burst=settings.burst),
        )
    return None


def settle_lane(lane: Lane, settled: Sequence[tuple[Result, Settlement]], *, now: float) -> Lane:
    """Return *lane* after the claims in *settled* (all its own, all accepted by the fence) ended,
    in that order.
    """
    breaker, bucket, hold_until = lane.breaker, lane.bucket, lane.hold_until
    wake_at = math.inf
    for result, settlement in settled:
        delivery, settings = result.delivery, result.delivery.settings
        if isinstance(result.outcome, GivenBack):
            bucket = bucket.take(-1, now, rate=settings.rate, burst=settings.burst)
        if settlement.vote is None:
            breaker = breaker.abandon_probe(generation=delivery.breaker.generation, now=now)
        else:
            breaker = breaker.vote(
                settlement.vote,
                generation=delivery.breaker.generation,
                now=now,
                threshold=settings.circuit_threshold,
                open_s=settings.circuit_open_s,
            )
        if settlement.hold_s is not None:
            hold_until = max(hold_until or 0.0, now + settlement.hold_s)
        if settlement.status in (Status.PENDING, Status.RETRYING):
            wake_at = min(wake_at, now + (settlement.delay_s or 0.0))
    after = replace(
        lane,
        breaker=breaker,
        bucket=bucket,
        in_flight=max(0, lane.in_flight - len(settled)),
        hold_until=hold_until,
        health=_health(
            lane,
            breaker,
            [settlement.vote for _, settlement in settled if settlement.vote is not None],
        ),
    )
    return _rescheduled(after, before=lane, wake_at=wake_at, now=now)


def _health(before: Lane, breaker: Breaker, votes: Sequence[CircuitVote]) -> str:
    """Return the health_status: what the circuit means, but never healthy on the strength of
    attempts that said nothing.
    """
    if breaker.health() != "healthy":
        return breaker.health()
    # A failure that left a healthy breaker was claimed before a reset.
    telling = [vote for vote in votes if vote is not CircuitVote.FAILURE]
    if not telling:
        return before.health
    return "degraded" if telling[-1] is CircuitVote.NEUTRAL else "healthy"


def _rescheduled(lane: Lane, *, before: Lane, wake_at: float, now: float) -> Lane:
    """Return *lane* with the time at which it should be looked at next, now that rows come back at
    *wake_at* (inf: none).
    """
    if (
        lane.hold_until is not None
        and lane.hold_until > now
        and lane.hold_until != before.hold_until
    ):
        return replace(lane, runnable_at=lane.hold_until, blocked_by=BlockedBy.HOLD)
    if lane.breaker.state is not CircuitState.CLOSED and lane.breaker != before.breaker:
        return replace(lane, runnable_at=lane.breaker.until, blocked_by=BlockedBy.CIRCUIT)
    token_back = lane.blocked_by is BlockedBy.RATE and lane.bucket != before.bucket
    if (
        lane.breaker.generation != before.breaker.generation
        or lane.blocked_by is BlockedBy.IN_FLIGHT
        or token_back
    ):
        return replace(
            lane, runnable_at=now, blocked_by=None
        )  # closed again, or there is room or a token again
    if lane.blocked_by is not None:
        return lane  # its timer or another change ends the block
    if wake_at < (math.inf if lane.runnable_at is None else lane.runnable_at):
        return replace(lane, runnable_at=wake_at)
    return lane
