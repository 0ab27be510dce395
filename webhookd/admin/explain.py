"""Why a delivery has not been sent yet, or what became of it, in words. holds.py says what holds
its webhook.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from webhookd.admin import held, holds
from webhookd.admin.facts import LAST, MOST_AHEAD, Facts, Row
from webhookd.admin.reason import Reason, counted, in_, instant, ordinal, rate, until
from webhookd.core.backoff import backoff_s
from webhookd.core.lifecycle import GIVE_UP_AFTER, QUARANTINE_AFTER
from webhookd.core.model import Status
from webhookd.postgres.rows import retries_of
from webhookd.text import duration, shown

MOST_SHOWN = 12  # further attempts that are listed
LONG_DUE_S = 30.0  # by then the sweep has found what no notification announced


def reasons(facts: Facts) -> list[Reason]:
    """Return why the delivery is in its present state. What holds it longest comes first."""
    match facts.row.status:
        case Status.DELIVERED:
            return [_delivered(facts)]
        case Status.FAILED:
            off = [
                *(reason for reason in holds.of_registry(facts) if not reason.sql),
                *_held(facts),
            ]
            return [_failed(facts), *(replace(reason, until=None) for reason in off)]
        case Status.SENDING:
            found = [_leased(facts), *_no_worker(facts), *_lost_leases(facts)]
        case _:
            found = [
                *_no_worker(facts),
                *_locked(facts),
                *holds.of_lane(facts),
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
    when = "" if row.delivered_at is None else f" {instant(row.delivered_at)}"
    if row.delivered_at is not None and row.delivered_at <= facts.now:
        when += f", {duration(facts.now - row.delivered_at)} ago"
    if row.attempts == 0:
        text = f"It was marked as delivered{when} without an attempt of webhookd's."
        return Reason("delivered", text)
    by = f" by {shown(row.worker_id)}" if row.worker_id else ""
    return Reason(
        "delivered", f"It was delivered{when}{by}, at the {ordinal(row.attempts)} attempt."
    )


def _failed(facts: Facts) -> Reason:
    row = facts.row
    why = shown(facts.last_reason) if facts.last_reason else "the attempt log holds no reason"
    attempts = counted(row.attempts, "attempt", "attempts")
    text = f"It failed after {attempts} and is not tried again: {why}."
    return Reason("failed", text, run=(f"webhookd delivery retry {row.delivery_id}",))


def _held(facts: Facts) -> Iterator[Reason]:
    """Yield why a delivery that is tried again would wait."""
    settings = facts.settings
    if settings is not None and (refusal := held.reason_of(settings, facts.refusal)) is not None:
        yield holds.of_configuration(settings, refusal)


def _leased(facts: Facts) -> Reason:
    row, until_at = facts.row, facts.row.lease_until or 0.0
    holder = next((worker for worker in facts.workers if worker.incarnation == row.leased_by), None)
    if until_at <= facts.now:
        text = (
            f"The lease of {shown(row.worker_id)} expired {duration(facts.now - until_at)} ago; a "
            "live worker takes the delivery back within 5 s."
        )
        return Reason("lease_expired", text, facts.now)
    ends = f"its lease ends {in_(facts, until_at)}"
    if holder is not None and holder.alive:
        return Reason("leased", f"{holder} is sending it; {ends}.", until_at)
    if holder is not None:
        gone = f"{holder} claimed it and was last seen {duration(holder.seen_s_ago)} ago"
    else:
        gone = f"{shown(row.worker_id)} claimed it and is no longer registered"
    return Reason("leased_by_dead", f"{gone}; {ends}, then another worker takes it.", until_at)


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
    lane = f"lane of webhook {facts.row.webhook_id}"
    for locker in facts.lockers:
        what = "row of this delivery" if locker.what == "delivery" else lane
        text = (
            f"The {what} is locked by {locker}: workers skip it until that transaction ends. This "
            "ends it, and rolls back what it did:"
        )
        yield Reason("locked", text, math.inf, sql=(locker.ending,))


def _own_time(facts: Facts) -> Iterator[Reason]:
    row = facts.row
    if row.next_retry_at <= facts.now:
        return
    now = (f"webhookd delivery retry {row.delivery_id}",)
    if row.leases_lost >= QUARANTINE_AFTER:
        text = f"It waits {until(facts, row.next_retry_at)}: {_quarantined(row)}."
        yield Reason("quarantine", text, row.next_retry_at, now)
    elif row.attempts:
        text = _schedule(facts)
        if facts.last_reason:
            text += f" The last one: {shown(facts.last_reason)}."
        yield Reason("backoff", text, row.next_retry_at, now)
    else:
        text = f"It is scheduled: it waits {until(facts, row.next_retry_at)}."
        yield Reason("scheduled", text, row.next_retry_at, now)


def _schedule(facts: Facts) -> str:
    """Return when this attempt and each one after it would be, should all of them fail.

    Attempts count from the first one; those that a 429 answered spent no retry and do not count.
    """
    row, settings = facts.row, facts.settings
    due = f"is due {in_(facts, row.next_retry_at)}"
    if settings is None:
        return f"The next attempt {due}."
    retries = retries_of(row.max_retries, settings)
    spent = max(0, row.retry_count)
    if spent > retries:
        return f"The last attempt {due}; if it fails, the delivery fails."
    # A row that waits after an attempt has spent the retry that it waits for, unless by a 429.
    this = f"Attempt {min(spent, retries) + 1} of {retries + 1}"
    at = row.next_retry_at
    if at >= LAST:
        return f"{this} waits for ever."
    then: list[str] = []
    for tries in range(spent, retries):
        at += backoff_s(
            tries,
            base_s=settings.retry_base_s,
            factor=settings.retry_factor,
            cap_s=settings.retry_max_s,
            u=0.5,
        )
        if len(then) == MOST_SHOWN or at >= LAST:
            break
        then.append(instant(at))
    text = f"{this} {due}"
    if then:
        more = retries - spent - len(then)
        text += f", then {', '.join(then)}" + (f" and {more} more" if more else "")
        return f"{text}, a fifth sooner or later each. If all fail, it fails with the last one."
    return f"{text}. If it fails, the delivery fails."


def _lost_leases(facts: Facts) -> Iterator[Reason]:
    row = facts.row
    if row.leases_lost >= QUARANTINE_AFTER and row.next_retry_at <= facts.now:
        yield Reason("quarantine", f"It is due, alone: {_quarantined(row)}.")
    elif 0 < row.leases_lost < QUARANTINE_AFTER:
        times = "once" if row.leases_lost == 1 else "twice"
        text = f"It was claimed and its lease was lost {times}: the worker recorded no outcome."
        yield Reason("leases_lost", text)


def _quarantined(row: Row) -> str:
    return (
        f"{row.leases_lost} claims of it were lost without an outcome, so it may be what kills "
        f"workers; it is tried alone, with backoff, and fails after {GIVE_UP_AFTER}"
    )


def _free(facts: Facts) -> Reason:
    live = [worker for worker in facts.workers if worker.alive]
    if not any(worker.has_room for worker in live):
        text = (
            f"It is due. None of the {len(live)} workers has reported that it has room: the first "
            "to have some takes it."
        )
        return Reason("busy", text)
    if facts.ahead:
        return Reason("free", "It is due, and only the deliveries that go first keep it waiting.")
    if facts.lane is not None and facts.lane.speed.slow:
        text = (
            "It is due; its webhook is slow, and slow webhooks leave some slots to others. The "
            "next slot that is its webhook's turn takes it."
        )
        return Reason("slow", text)
    due_s = facts.now - facts.row.next_retry_at
    if due_s > LONG_DUE_S:
        text = f"It has been due for {duration(due_s)}, and nothing in the database holds it."
        return Reason("free", text, run=("webhookd doctor",))
    return Reason("free", "It is due and nothing holds it: the next claim takes it.")


def _ahead(facts: Facts) -> Iterator[Reason]:
    row, settings, lane = facts.row, facts.settings, facts.lane
    if facts.ahead == 0 or row.next_retry_at > facts.now or row.leases_lost >= QUARANTINE_AFTER:
        return
    many = (
        f"{MOST_AHEAD:,} or more deliveries"
        if facts.ahead >= MOST_AHEAD
        else counted(facts.ahead, "delivery", "deliveries")
    )
    text = f"{many} of webhook {row.webhook_id} {'goes' if facts.ahead == 1 else 'go'} first"
    turn = facts.now
    if settings is not None and lane is not None:
        emptied = lane.bucket.take(facts.ahead, facts.now, rate=settings.rate, burst=settings.burst)
        turn = emptied.next_token_at(facts.now, rate=settings.rate, burst=settings.burst)
    if settings is None or turn <= facts.now:
        yield Reason("behind", f"{text}.")
    else:
        text += f": at {rate(settings)}, its turn comes {in_(facts, turn)} at the earliest."
        yield Reason("behind", text, turn)
