"""A lane: one webhook's backlog, and the rules that say how many of its rows may be claimed now.

The rules are the circuit, the tokens, the in-flight limit, the hold that a receiver asked for, and
whether a request can be sent at all. A worker locks a lane's row, loads it into this value, applies
`admit` or `settle_lane` and stores the result, all in one transaction; so the rules are here and
nowhere else. Times are the database's, in epoch seconds.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from webhookd.core.answer import CircuitVote
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lifecycle import Settlement
from webhookd.core.model import Attempted, GivenBack, Outcome, Result, Status, WebhookSettings
from webhookd.core.speed import UNMEASURED, Speed

# A lane at its in-flight limit is looked at this often, and its leases are counted again: a DELETE
# or TRUNCATE of claimed rows leaves the counter too high.
RECOUNT_AFTER_S = 5.0


class BlockedBy(StrEnum):
    """Why no row of a lane may be claimed now, although some may be due."""

    UNREGISTERED = "unregistered"
    PAUSED = "paused"
    CONFIGURATION = "configuration"  # the webhook's row or the options rule out every request
    CIRCUIT = "circuit"
    HOLD = "hold"
    RATE = "rate"
    IN_FLIGHT = "in_flight"


@dataclass(frozen=True, slots=True)
class Lane:
    """The locked state row. *runnable_at* is when workers look at the lane again; None: not before
    an INSERT or an operator asks for it.
    """

    webhook_id: int
    breaker: Breaker
    bucket: Bucket
    in_flight: int
    hold_until: float | None
    runnable_at: float | None
    blocked_by: BlockedBy | None
    health: str
    # Since when attempts have only failed; None after a success, and before the first failure.
    failing_since: float | None = None
    speed: Speed = UNMEASURED


@dataclass(frozen=True, slots=True)
class Admission:
    """*quota* rows may be claimed now. *blocked_by* and *runnable_at* say what the lane waits for,
    and until when, once these are claimed; with a quota of 0 they hold already. *refusal*: why no
    request can be sent, in one line; only where the configuration blocks the lane.
    """

    quota: int
    blocked_by: BlockedBy | None = None
    runnable_at: float | None = None
    probe: bool = False
    refusal: str | None = None

    @property
    def waits_for_slots(self) -> bool:
        """Whether nothing blocks the lane, and yet no row may be claimed by this worker."""
        return self.quota == 0 and self.blocked_by is None


class Budget(NamedTuple):
    """How many rows a claim may take: *slow* of slow lanes, *others* of the others. Without
    *takes_new*, none of lanes that are not measured yet.
    """

    others: int
    slow: int
    takes_new: bool = True


def admit(
    lane: Lane,
    settings: WebhookSettings | None,
    *,
    now: float,
    wish: int,
    refusal: str | None = None,
) -> Admission:
    """Return how many rows of *lane*, at most *wish* (>= 1), may be claimed at *now*. *settings*
    None: the webhook is not registered. *refusal*: why no request can be sent to it; None: one can.
    """
    if settings is None:
        return Admission(0, BlockedBy.UNREGISTERED)
    if (blocked := _blocked(lane, settings, now=now, refusal=refusal)) is not None:
        return blocked
    if lane.breaker.blocked_until is not None:
        # One probe for all workers. The caller sets runnable_at: it knows when the lease ends.
        return Admission(1, BlockedBy.CIRCUIT, probe=True)
    room = settings.max_in_flight - lane.in_flight
    level = lane.bucket.level(now, rate=settings.rate, burst=settings.burst)
    tokens = math.inf if math.isinf(level) else int(level)
    quota = int(min(wish, room, tokens))
    # Tokens before room: a claim that ends lifts IN_FLIGHT at once, and that look finds no token.
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
    budget: Budget,
    lease_s: float,
    refusals: Mapping[int, str],
) -> list[tuple[Lane, Admission]]:
    """Return lanes with an admission each, until *budget* is given away, in even shares; lanes
    behind that have none, and stay as they are. *settings* and *refusals* are by webhook id; a
    probe ends with its lease of *lease_s*.

    Measured lanes come before new ones: their exchanges are known to be short.

    A lane for which the budget has nothing from the start is admitted with a quota of 0: so its new
    rows have been seen, and it is runnable for a worker that has slots.
    """
    admitted: list[tuple[Lane, Admission]] = []
    left = {False: budget.others, True: budget.slow}
    behind = Counter(_is_slow(lane) for lane in lanes)
    for lane in sorted(lanes, key=lambda lane: lane.speed.slow is None):
        slow = _is_slow(lane)
        wish = -(-left[slow] // behind[slow])
        behind[slow] -= 1
        takes = budget.slow > 0 if slow else budget.takes_new or lane.speed.slow is not None
        if takes and wish == 0:
            continue
        webhook_id = lane.webhook_id
        admission = admit(
            lane,
            settings.get(webhook_id),
            now=now,
            wish=max(1, wish),
            refusal=refusals.get(webhook_id),
        )
        if admission.quota > 0 and not takes:
            # Not later than it was: a lane with ever new rows would never be the first in line.
            since = now if lane.runnable_at is None else min(now, lane.runnable_at)
            admission = Admission(0, None, since)
        if admission.probe:
            admission = replace(admission, runnable_at=now + lease_s)
        left[slow] -= admission.quota
        admitted.append((lane, admission))
    return admitted


def _is_slow(lane: Lane) -> bool:
    return lane.speed.slow is True


def exchange_s(outcome: Outcome) -> float | None:
    """Return how long the receiver took, as far as that says how fast it is; None where it was not
    asked.
    """
    return outcome.answer.elapsed_s if isinstance(outcome, Attempted) else None


def _blocked(
    lane: Lane, settings: WebhookSettings, *, now: float, refusal: str | None
) -> Admission | None:
    if not settings.enabled:
        return Admission(0, BlockedBy.PAUSED)
    if refusal is not None:
        # No timer ends this: the row or the options must change, and both make the lane runnable.
        return Admission(0, BlockedBy.CONFIGURATION, refusal=refusal)
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


def tokens_at(lane: Lane, settings: WebhookSettings | None, *, now: float) -> float | None:
    """Return the lane's tokens at *now*, before anything is taken; None stays a full bucket."""
    if settings is None or settings.rate == 0:
        return None
    return lane.bucket.level(now, rate=settings.rate, burst=settings.burst)


def breaker_at_claim(lane: Lane, admission: Admission, *, lease_until: float) -> Breaker:
    """Return the circuit that the claimed rows carry: where they are a probe, begun until then."""
    return lane.breaker.begin_probe(lease_until=lease_until) if admission.probe else lane.breaker


def settle_lane(
    lane: Lane, settlements: Sequence[tuple[Result, Settlement]], *, now: float
) -> Lane:
    """Return *lane* after these claims ended, in this order. All are of this lane, and the fence
    has accepted all of them.
    """
    breaker, bucket, hold_until = lane.breaker, lane.bucket, lane.hold_until
    wake_at = math.inf
    for result, settlement in settlements:
        delivery, settings = result.delivery, result.delivery.settings
        if isinstance(result.outcome, GivenBack):
            # No request went out: its token goes back. A lost lease may have sent one, so its token
            # does not.
            bucket = bucket.take(-1, now, rate=settings.rate, burst=settings.burst)
        # With the generation of the claim, not of the lane: see `breaker`.
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
            # The longest wins: a later answer that asks for less must not end an earlier hold.
            hold_until = max(hold_until or 0.0, now + settlement.hold_s)
        if settlement.status in (Status.PENDING, Status.RETRYING):
            wake_at = min(wake_at, now + (settlement.delay_s or 0.0))
    votes = [settlement.vote for _, settlement in settlements if settlement.vote is not None]
    took_s = [exchange_s(result.outcome) for result, _ in settlements]
    speed = lane.speed.after(*[seconds for seconds in took_s if seconds is not None])
    after = replace(
        lane,
        breaker=breaker,
        bucket=bucket,
        in_flight=max(0, lane.in_flight - len(settlements)),
        hold_until=hold_until,
        speed=speed,
        health=_health(lane, breaker, votes),
        failing_since=_failing_since(lane.failing_since, votes, now=now),
    )
    after = _reschedule(after, before=lane, wake_at=wake_at, now=now)
    if speed.slow is False and lane.speed.slow is not False and (after.runnable_at or now) < now:
        # It waited for slots among the slow or new lanes. Among the fast ones looks may begin later
        # than at its timer (see the low-water marks).
        return replace(after, runnable_at=now)
    return after


def _health(before: Lane, breaker: Breaker, votes: Sequence[CircuitVote]) -> str:
    """Return the health_status: what the breaker stands for, but `healthy` only after a success."""
    if breaker.health() != "healthy":
        return breaker.health()
    # A failure after which the breaker is healthy was claimed before a reset: it does not count.
    current = [vote for vote in votes if vote is not CircuitVote.FAILURE]
    if not current:
        return before.health
    return "degraded" if current[-1] is CircuitVote.NEUTRAL else "healthy"


def _failing_since(
    since: float | None, votes: Sequence[CircuitVote], *, now: float
) -> float | None:
    """Return since when attempts have only failed. A 429 starts anew: the receiver is there."""
    for vote in votes:
        if vote is not CircuitVote.FAILURE:
            since = None
        elif since is None:
            since = now
    return since


def _reschedule(lane: Lane, *, before: Lane, wake_at: float, now: float) -> Lane:
    """Return *lane* with the time of the next look at it. *before* is the lane before these claims
    ended; *wake_at* is when the first of their rows is due again (inf: none).

    A time that is too early costs one look; one that is too late leaves due rows unsent.
    """
    # Held: what ends earlier claims changes nothing. The next look at the lane, once the row or the
    # options have changed, finds circuit and hold as they are then.
    if lane.blocked_by is BlockedBy.CONFIGURATION:
        return lane
    # A new hold: no look before it ends. (An old one already is in runnable_at.)
    if (
        lane.hold_until is not None
        and lane.hold_until > now
        and lane.hold_until != before.hold_until
    ):
        return replace(lane, runnable_at=lane.hold_until, blocked_by=BlockedBy.HOLD)
    # The circuit opened, or its probe ended without a success: no look before the next probe.
    if lane.breaker.state is not CircuitState.CLOSED and lane.breaker != before.breaker:
        return replace(lane, runnable_at=lane.breaker.next_probe_at, blocked_by=BlockedBy.CIRCUIT)
    # What blocked the lane is over: the circuit closed, there is room, or a token came back. Look
    # at once, or the rows would wait for the end of a block that no longer exists.
    token_back = lane.blocked_by is BlockedBy.RATE and lane.bucket != before.bucket
    if (
        lane.breaker.generation != before.breaker.generation
        or lane.blocked_by is BlockedBy.IN_FLIGHT
        or token_back
    ):
        return replace(lane, runnable_at=now, blocked_by=None)
    # Still blocked, and a row that is due earlier changes nothing. runnable_at is the end of the
    # block; None where only an operator ends it (paused, not registered).
    if lane.blocked_by is not None:
        return lane
    # Not blocked: look when the first of the rows is due again, if that is before the planned look.
    if wake_at < (math.inf if lane.runnable_at is None else lane.runnable_at):
        return replace(lane, runnable_at=wake_at)
    return lane
