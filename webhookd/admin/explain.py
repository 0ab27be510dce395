"""Why a delivery has not gone out, or what became of it, in words.

What a lane may do is asked of the core (`admit`), as workers ask it, so that the answer here cannot
differ from theirs.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from webhookd.admin.facts import LAST, MOST_AHEAD, Facts, Row
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lane import BlockedBy, Lane, admit
from webhookd.core.lifecycle import GIVE_UP_AFTER, QUARANTINE_AFTER
from webhookd.core.model import GONE_REASON, Status, WebhookSettings
from webhookd.text import duration, shown

LONG_DUE_S = 30.0  # by then the sweep has mended what no notification covers


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that holds a delivery back, or was its end.

    *until*: when that ends (inf: not by itself; None: it holds nothing back). *run*: commands of
    webhookd's that help; *sql*: statements that do.
    """

    name: str
    text: str
    until: float | None = None
    run: tuple[str, ...] = ()
    sql: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return it for programs; `until` is an instant, "never", or null where it holds nothing."""
        until = self.until if self.until is None or self.until < LAST else "never"
        if isinstance(until, float):
            return {
                "reason": self.name,
                "text": self.text,
                "until": datetime.fromtimestamp(until, UTC),
                "run": self.run,
            }
        return {"reason": self.name, "text": self.text, "until": until, "run": self.run}


def reasons(facts: Facts) -> list[Reason]:
    """Return why the delivery stands where it stands, what holds it longest first."""
    match facts.row.status:
        case Status.DELIVERED:
            return [_delivered(facts)]
        case Status.FAILED:
            return [
                _failed(facts),
                *(replace(reason, until=None) for reason in _webhook_off(facts) if not reason.sql),
            ]
        case Status.SENDING:
            found = [_leased(facts), *_no_worker(facts), *_lost_leases(facts)]
        case _:
            found = [
                *_no_worker(facts),
                *_locked(facts),
                *_lane(facts),
                *_own_time(facts),
                *_ahead(facts),
                *_lost_leases(facts),
            ]
            if not any(reason.until is not None for reason in found):
                found.insert(0, _free(facts))
    return sorted(
        found, key=lambda reason: -math.inf if reason.until is None else reason.until, reverse=True
    )


def _delivered(facts: Facts) -> Reason:
    row = facts.row
    when = "" if row.delivered_at is None else f" {_instant(row.delivered_at)}"
    if row.delivered_at is not None and row.delivered_at <= facts.now:
        when += f", {duration(facts.now - row.delivered_at)} ago"
    if row.attempts == 0:
        return Reason(
            "delivered", f"It was marked as delivered{when} without an attempt of webhookd's."
        )
    by = f" by {shown(row.worker_id)}" if row.worker_id else ""
    return Reason(
        "delivered", f"It was delivered{when}{by}, at the {_ordinal(row.attempts)} attempt."
    )


def _failed(facts: Facts) -> Reason:
    row = facts.row
    why = shown(facts.last_reason) if facts.last_reason else "the attempt log holds no reason"
    text = f"It failed after {_counted(row.attempts, 'attempt', 'attempts')} and is not tried again: {why}."
    if option := re.search(r"--allow-\w+", why):
        text += f" Nothing was sent. Start the service with {option[0]} first if it may: a retry fails alike without it."
    return Reason("failed", text, run=(f"webhookd delivery retry {row.delivery_id}",))


def _leased(facts: Facts) -> Reason:
    row, until = facts.row, facts.row.lease_until or 0.0
    holder = next((worker for worker in facts.workers if worker.incarnation == row.leased_by), None)
    if until <= facts.now:
        ago = duration(facts.now - until)
        text = f"The lease of {shown(row.worker_id)} ran out {ago} ago; a living worker takes the delivery back within 5 s."
        return Reason("lease_expired", text, facts.now)
    ends = f"its lease ends {_in(facts, until)}"
    if holder is not None and holder.alive:
        return Reason("leased", f"{holder} has it in hand and sends it; {ends}.", until)
    if holder is not None:
        gone = f"{holder} claimed it and was last seen {duration(holder.seen_s_ago)} ago"
    else:
        gone = f"{shown(row.worker_id)} claimed it and is no longer registered"
    return Reason("leased_by_dead", f"{gone}; {ends}, then another worker takes it.", until)


def _no_worker(facts: Facts) -> Iterator[Reason]:
    if any(worker.alive for worker in facts.workers):
        return
    if facts.workers:
        last = facts.workers[0]
        text = (
            f"No worker is alive: the last sign was from {last}, {duration(last.seen_s_ago)} ago."
        )
    else:
        text = (
            "No worker is registered: webhookd does not run on this database, or cannot reach it."
        )
    yield Reason("no_worker", text, math.inf, ("webhookd doctor",))


def _locked(facts: Facts) -> Iterator[Reason]:
    for locker in facts.lockers:
        what = (
            "row of this delivery"
            if locker.what == "delivery"
            else f"lane of webhook {facts.row.webhook_id}"
        )
        text = (
            f"The {what} is locked by {locker}: workers pass over it until that transaction ends."
        )
        yield Reason(
            "locked",
            f"{text} This ends it, and undoes what it did:",
            math.inf,
            sql=(locker.ending,),
        )


def _webhook_off(facts: Facts) -> Iterator[Reason]:
    webhook_id = facts.row.webhook_id
    if facts.settings is None and webhook_id < 1:
        text = f"Nobody can register webhook {webhook_id}, since ids begin at 1. Correct its webhook_id, or give it up:"
        give_up = f"UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id = {facts.row.delivery_id}"
        yield Reason("unregistered", text, math.inf, sql=(give_up,))
    elif facts.settings is None:
        text = (
            f"Nobody has registered webhook {webhook_id}: its deliveries wait until somebody does."
        )
        yield Reason(
            "unregistered", text, math.inf, (f"webhookd webhook add URL --id {webhook_id}",)
        )
    elif not facts.settings.enabled and facts.disabled_reason == GONE_REASON:
        text = f"The receiver answered 410 Gone, so webhook {webhook_id} was disabled. Once it takes deliveries again, enable it."
        yield Reason("gone", text, math.inf, (f"webhookd webhook resume {webhook_id}",))
    elif not facts.settings.enabled:
        text = (
            f"Webhook {webhook_id} is paused: {shown(facts.disabled_reason or 'no reason given')}."
        )
        yield Reason("paused", text, math.inf, (f"webhookd webhook resume {webhook_id}",))


def _lane(facts: Facts) -> Iterator[Reason]:
    """Yield all that holds the webhook, in the order in which workers meet it: ask, take away what
    blocks, ask again.
    """
    yield from _webhook_off(facts)
    if facts.settings is None:
        return
    settings = facts.settings._replace(enabled=True)
    lane = _as_admitted(facts, settings)
    blocked = not facts.settings.enabled
    while (admission := admit(lane, settings, now=facts.now, wish=1)).quota == 0:
        blocked, until = True, admission.runnable_at or math.inf
        match admission.blocked_by:
            case BlockedBy.HOLD:
                text = f"The receiver asked for a pause (Retry-After): webhook {lane.webhook_id} is held {_until(facts, until)}."
                yield Reason("hold", text, until)
                lane = replace(lane, hold_until=None)
            case BlockedBy.CIRCUIT:
                yield _circuit(facts, lane, until)
                lane = replace(lane, breaker=Breaker())
            case BlockedBy.IN_FLIGHT:
                text = f"Webhook {lane.webhook_id} is at its cap: {lane.in_flight} of {settings.max_in_flight} are in flight."
                yield Reason("in_flight", f"{text} Each that ends makes room for one.", until)
                lane = replace(lane, in_flight=0)
            case _:
                text = f"Webhook {lane.webhook_id} is out of tokens ({_rate(settings)}): the next one comes {_in(facts, until)}."
                yield Reason("rate", text, until)
                lane = replace(lane, bucket=Bucket(None, facts.now))
    if admission.probe:
        text = f"The circuit of webhook {lane.webhook_id} has waited long enough: the next claim takes one delivery as its probe."
        yield Reason("probe_due", text)
    if not blocked:
        yield from _parked(facts)


def _as_admitted(facts: Facts, settings: WebhookSettings) -> Lane:
    """Return the lane as a claim would see it: new where there is none, and its leases counted
    where it is at its cap.

    The claim of a suspect believes the counter; the sweep mends that within 30 s.
    """
    lane = facts.lane
    if lane is None:
        return Lane(
            facts.row.webhook_id, Breaker(), Bucket(None, facts.now), 0, None, None, None, "unknown"
        )
    counted = lane.in_flight >= settings.max_in_flight and facts.row.leases_lost < QUARANTINE_AFTER
    return replace(lane, in_flight=facts.in_flight) if counted else lane


def _circuit(facts: Facts, lane: Lane, until: float) -> Reason:
    webhook_id, failures = lane.webhook_id, lane.breaker.failures
    run = (f"webhookd webhook test {webhook_id}",)
    if lane.breaker.state is CircuitState.HALF_OPEN:
        text = f"The circuit of webhook {webhook_id} is half open: its probe is out, at most {_until(facts, until)}."
        return Reason(
            "circuit_half_open", f"{text} If that is delivered, the rest follows.", until, run
        )
    text = f"The circuit of webhook {webhook_id} is open {_until(facts, until)}, after {failures} failures in a row."
    return Reason("circuit_open", f"{text} Then one delivery goes out as a probe.", until, run)


def _parked(facts: Facts) -> Iterator[Reason]:
    """Yield the wait for the lane's timer, where a due row is known to it and only the timer brings
    the row up.
    """
    lane, row = facts.lane, facts.row
    if (
        lane is None
        or not row.routed
        or row.next_retry_at > facts.now
        or row.leases_lost >= QUARANTINE_AFTER
    ):
        return
    if lane.runnable_at is None:
        yield Reason(
            "parked",
            "No timer leads to it; the sweep that workers make every 30 s finds it.",
            facts.now + 30.0,
        )
    elif lane.runnable_at > facts.now:
        why = f", since it met: {lane.blocked_by}" if lane.blocked_by else ""
        text = (
            f"Workers look at webhook {lane.webhook_id} again {_in(facts, lane.runnable_at)}{why}."
        )
        yield Reason("parked", text, lane.runnable_at)


def _own_time(facts: Facts) -> Iterator[Reason]:
    row = facts.row
    if row.next_retry_at <= facts.now:
        return
    now = (f"webhookd delivery retry {row.delivery_id}",)
    if row.leases_lost >= QUARANTINE_AFTER:
        text = f"It waits {_until(facts, row.next_retry_at)}: {_suspect(row)}."
        yield Reason("suspect", text, row.next_retry_at, now)
    elif row.attempts:
        last = f"; the last one: {shown(facts.last_reason)}" if facts.last_reason else ""
        most = row.attempts + 1 + max(0, row.max_retries - row.retry_count)
        text = f"Attempt {row.attempts + 1} of {most} is due {_in(facts, row.next_retry_at)}{last}."
        yield Reason("backoff", text, row.next_retry_at, now)
    else:
        yield Reason(
            "scheduled",
            f"It is scheduled: it waits {_until(facts, row.next_retry_at)}.",
            row.next_retry_at,
            now,
        )


def _lost_leases(facts: Facts) -> Iterator[Reason]:
    row = facts.row
    if row.leases_lost >= QUARANTINE_AFTER and row.next_retry_at <= facts.now:
        yield Reason("suspect", f"It is due, alone: {_suspect(row)}.")
    elif 0 < row.leases_lost < QUARANTINE_AFTER:
        times = "once" if row.leases_lost == 1 else "twice"
        yield Reason(
            "leases_lost",
            f"A worker claimed it and was lost {times} before it could say what came of it.",
        )


def _suspect(row: Row) -> str:
    return (
        f"{row.leases_lost} claims of it were lost without an outcome, so it may be what kills "
        "workers;"
        f" it is tried by itself, with backoff, and given up after {GIVE_UP_AFTER}"
    )


def _free(facts: Facts) -> Reason:
    living = [worker for worker in facts.workers if worker.alive]
    if not any(worker.has_room for worker in living):
        text = f"It is due. None of the {len(living)} workers has said that it has room: the first to have some takes it."
        return Reason("busy", text)
    if facts.ahead:
        return Reason("free", "It is due, and only the deliveries that go first keep it waiting.")
    due_s = facts.now - facts.row.next_retry_at
    if due_s > LONG_DUE_S:
        text = f"It has been due for {duration(due_s)}, and nothing that shows in the database holds it."
        return Reason("free", text, run=("webhookd doctor",))
    return Reason("free", "It is due and nothing holds it: the next claim takes it.")


def _ahead(facts: Facts) -> Iterator[Reason]:
    row, settings, lane = facts.row, facts.settings, facts.lane
    if facts.ahead == 0 or row.next_retry_at > facts.now or row.leases_lost >= QUARANTINE_AFTER:
        return
    many = (
        f"{MOST_AHEAD:,} or more deliveries"
        if facts.ahead >= MOST_AHEAD
        else _counted(facts.ahead, "delivery", "deliveries")
    )
    text = f"{many} of webhook {row.webhook_id} {'goes' if facts.ahead == 1 else 'go'} first"
    turn = facts.now
    if settings is not None and lane is not None:
        emptied = lane.bucket.take(facts.ahead, facts.now, rate=settings.rate, burst=settings.burst)
        turn = emptied.next_token_at(facts.now, rate=settings.rate, burst=settings.burst)
    if settings is None or turn <= facts.now:
        yield Reason("behind", f"{text}.")
    else:
        text += f": at {_rate(settings)}, its turn comes {_in(facts, turn)} at the earliest."
        yield Reason("behind", text, turn)


def _rate(settings: WebhookSettings) -> str:
    return f"{settings.rate:g} a second, burst {settings.burst}"


def _in(facts: Facts, at: float) -> str:
    """Return *at* as "2026-11-24 03:50:00Z (in 12 s)"."""
    return f"{_instant(at)} (in {duration(at - facts.now)})" if at < LAST else "never"


def _until(facts: Facts, at: float) -> str:
    return f"until {_in(facts, at)}" if at < LAST else "for ever"


def _instant(at: float) -> str:
    return shown(datetime.fromtimestamp(at, UTC))


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _ordinal(number: int) -> str:
    ending = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{ending}"
