"""The life of one delivery: pending -> sending -> delivered | failed | retrying -> sending ...

`settle` is the one place that decides what a queue row becomes once its claim ends.
"""

from datetime import datetime
from typing import NamedTuple, assert_never

from webhookd.core.answer import CircuitVote, Decision, Verdict, classify
from webhookd.core.backoff import backoff_s
from webhookd.core.model import (
    Attempted,
    Delivery,
    GivenBack,
    Lost,
    Outcome,
    Status,
    WebhookSettings,
)

# Lost leases after which a row is in quarantine: it may kill the workers that send it, so it is
# tried alone. The partial indexes of the queue contain the same number,
# so it cannot change without a migration (a test compares them).
QUARANTINE_AFTER = 3
# Lost leases after which a row fails.
GIVE_UP_AFTER = 6
# How long a webhook waits after one of its deliveries was given back for a reason.
GIVEN_BACK_S = 1.0
# A 429 spends no retry, so without this limit a receiver could throttle a delivery forever.
MAX_THROTTLED_S = 86_400.0


class Settlement(NamedTuple):
    """What the row becomes. *delay_s* None leaves next_retry_at as it is; *event* None writes no
    row to the attempt log.
    """

    status: Status
    event: str | None
    reason: str
    vote: CircuitVote | None  # None: no attempt took place
    delay_s: float | None = None
    spends_retry: bool = False
    loses_lease: bool = False
    disables_webhook: bool = False
    hold_s: float | None = None  # all deliveries of the webhook wait that long


def settle(delivery: Delivery, outcome: Outcome, *, now_at: datetime, u: float) -> Settlement:
    """Return what becomes of *delivery*. *now_at* turns Retry-After dates into seconds; *u*,
    uniform in [0, 1), spreads the backoff.
    """
    match outcome:
        case Attempted(answer=answer):
            return _settle_attempt(delivery, classify(answer, now_at=now_at), u=u)
        case GivenBack(reason=reason):
            if reason is not None:
                return _settle_returned(delivery, reason, u=u)
            return Settlement(_waiting(delivery), None, "given back", None)
        case Lost():
            return _settle_lost(delivery, u=u)
        case _:
            assert_never(outcome)


def _settle_attempt(delivery: Delivery, verdict: Verdict, *, u: float) -> Settlement:
    match verdict.decision:
        case Decision.DELIVERED:
            return Settlement(Status.DELIVERED, "delivered", verdict.reason, verdict.vote)
        case Decision.GONE:
            return Settlement(
                Status.FAILED,
                "failed",
                verdict.reason,
                verdict.vote,
                disables_webhook=verdict.disables_webhook,
            )
        case Decision.RETRY | Decision.THROTTLED:
            return _settle_retry(delivery, verdict, u=u)
        case Decision.GIVE_BACK:
            return _settle_returned(delivery, verdict.reason, u=u)
        case _:
            assert_never(verdict.decision)


def _settle_returned(delivery: Delivery, reason: str, *, u: float) -> Settlement:
    # The whole webhook waits: with a delay of this row alone, a worker in want would claim and
    # return the backlog row by row.
    delay_s = GIVEN_BACK_S * (0.5 + u)
    return Settlement(_waiting(delivery), None, reason, None, delay_s=delay_s, hold_s=delay_s)


def _settle_retry(delivery: Delivery, verdict: Verdict, *, u: float) -> Settlement:
    settings = delivery.settings
    throttled = verdict.decision is Decision.THROTTLED
    asked_s = verdict.retry_after_s
    if asked_s is not None:
        # A receiver may ask for a year; the webhook's own maximum limits that.
        asked_s = min(asked_s, settings.retry_max_s)
    # The hold is set also when this row fails: the receiver would tell the other rows the same.
    hold_s = asked_s if verdict.holds_webhook else None
    failure = None
    if throttled and delivery.age_s >= MAX_THROTTLED_S:
        failure = f"{verdict.reason} for a day"
    elif not throttled and delivery.retry_count >= delivery.max_retries:
        failure = f"{verdict.reason}; no retries left"
    if failure is not None:
        return Settlement(Status.FAILED, "failed", failure, verdict.vote, hold_s=hold_s)
    # A 429 does not change retry_count, so its backoff grows with the attempts instead.
    tries = delivery.attempts if throttled else delivery.retry_count
    # An application may have inserted a retry_count below 0.
    own_s = _backoff_s(settings, max(0, tries), u=u)
    return Settlement(
        Status.RETRYING,
        "retrying",
        verdict.reason,
        verdict.vote,
        delay_s=own_s if asked_s is None else asked_s,
        spends_retry=not throttled,
        hold_s=hold_s,
    )


def _settle_lost(delivery: Delivery, *, u: float) -> Settlement:
    # No vote and no retry spent: the worker died or the lease expired, which says nothing about the
    # receiver. Only the count of lost leases ends a row that kills every worker that sends it.
    lost = delivery.leases_lost + 1
    if lost >= GIVE_UP_AFTER:
        return Settlement(Status.FAILED, "failed", f"lost {lost} leases", None, loses_lease=True)
    delay_s = None  # due at once: most lost leases are the worker's fault, not the row's
    if lost >= QUARANTINE_AFTER:
        delay_s = _backoff_s(delivery.settings, lost - QUARANTINE_AFTER, u=u)
    return Settlement(
        _waiting(delivery), None, "lease lost", None, delay_s=delay_s, loses_lease=True
    )


def _backoff_s(settings: WebhookSettings, tries: int, *, u: float) -> float:
    return backoff_s(
        tries,
        base_s=settings.retry_base_s,
        factor=settings.retry_factor,
        cap_s=settings.retry_max_s,
        u=u,
    )


def _waiting(delivery: Delivery) -> Status:
    return Status.RETRYING if delivery.attempts else Status.PENDING
