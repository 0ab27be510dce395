"""The life of one delivery: pending -> sending -> delivered | failed | retrying -> sending ...

`settle` is the one place that decides what a queue row becomes once its claim ends.
"""

from datetime import datetime
from typing import NamedTuple, assert_never

from webhookd.core.answer import CircuitVote, Decision, Verdict, classify
from webhookd.core.backoff import backoff_s
from webhookd.core.model import Attempted, Delivery, GivenBack, Lost, Outcome, Status

# Leases that a row has lost. From the first number on it may be what kills workers, so it is tried
# alone; at the second it fails. The partial indexes of the queue contain the first number, so it
# cannot change without a migration (a test compares them).
QUARANTINE_AFTER = 3
GIVE_UP_AFTER = 6
THROTTLED_FOR_AT_MOST_S = 86_400.0  # 429 spends no retry, so something else must end it


class Settlement(NamedTuple):
    """What the row becomes. *delay_s* None leaves next_retry_at; *event* None writes no attempt
    log.
    """

    status: Status
    event: str | None
    reason: str
    vote: CircuitVote | None  # None: no attempt took place
    delay_s: float | None = None
    spends_retry: bool = False
    loses_lease: bool = False
    disables_webhook: bool = False
    hold_s: float | None = None  # the whole webhook waits that long


def settle(delivery: Delivery, outcome: Outcome, *, now_at: datetime, u: float) -> Settlement:
    """Return what becomes of *delivery*. *now_at* reads Retry-After dates; *u*, uniform in [0, 1),
    spreads the backoff.
    """
    match outcome:
        case Attempted(answer=answer):
            return _settle_attempt(delivery, classify(answer, now_at=now_at), u=u)
        case GivenBack():
            return Settlement(_waiting(delivery), None, "given back", None)
        case Lost():
            return _settle_lost(delivery, u=u)
        case _:
            assert_never(outcome)


def _settle_attempt(delivery: Delivery, verdict: Verdict, *, u: float) -> Settlement:
    settings = delivery.settings
    match verdict.decision:
        case Decision.DELIVERED:
            return Settlement(Status.DELIVERED, "delivered", verdict.reason, verdict.vote)
        case Decision.FAIL | Decision.GONE:
            return Settlement(
                Status.FAILED,
                "failed",
                verdict.reason,
                verdict.vote,
                disables_webhook=verdict.disables_webhook,
            )
        case Decision.RETRY | Decision.THROTTLED:
            throttled = verdict.decision is Decision.THROTTLED
            wished_s = (
                None
                if verdict.retry_after_s is None
                else min(verdict.retry_after_s, settings.retry_max_s)
            )
            hold_s = wished_s if verdict.holds_webhook else None
            if throttled and delivery.age_s >= THROTTLED_FOR_AT_MOST_S:
                reason = f"{verdict.reason} for a day"
                return Settlement(Status.FAILED, "failed", reason, verdict.vote, hold_s=hold_s)
            if not throttled and delivery.retry_count >= delivery.max_retries:
                reason = f"{verdict.reason}; no retries left"
                return Settlement(Status.FAILED, "failed", reason, verdict.vote, hold_s=hold_s)
            # 429s do not move retry_count, so that their own backoff grows with the attempts
            # instead.
            tries = delivery.attempts if throttled else delivery.retry_count
            # An application may have inserted a retry_count below 0.
            own_s = backoff_s(
                max(0, tries), base_s=settings.retry_base_s, cap_s=settings.retry_max_s, u=u
            )
            return Settlement(
                Status.RETRYING,
                "retrying",
                verdict.reason,
                verdict.vote,
                delay_s=own_s if wished_s is None else wished_s,
                spends_retry=not throttled,
                hold_s=hold_s,
            )
        case _:
            assert_never(verdict.decision)


def _settle_lost(delivery: Delivery, *, u: float) -> Settlement:
    lost = delivery.leases_lost + 1
    if lost >= GIVE_UP_AFTER:
        return Settlement(Status.FAILED, "failed", f"lost {lost} leases", None, loses_lease=True)
    settings = delivery.settings
    alone = lost >= QUARANTINE_AFTER
    delay_s = (
        backoff_s(
            lost - QUARANTINE_AFTER, base_s=settings.retry_base_s, cap_s=settings.retry_max_s, u=u
        )
        if alone
        else None
    )
    return Settlement(
        _waiting(delivery), None, "lease lost", None, delay_s=delay_s, loses_lease=True
    )


def _waiting(delivery: Delivery) -> Status:
    return Status.RETRYING if delivery.attempts else Status.PENDING
