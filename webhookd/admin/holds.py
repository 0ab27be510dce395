"""What holds back all deliveries of a webhook: the registry, and its lane.

What a lane may do is asked of the core (`admit`), as workers ask it. So the answer here cannot
differ from theirs.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

from webhookd.admin import held
from webhookd.admin.facts import Facts
from webhookd.admin.reason import Reason, in_, rate, until
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lane import Admission, BlockedBy, Lane, admit
from webhookd.core.lifecycle import QUARANTINE_AFTER
from webhookd.core.model import GONE_REASON, MAX_WEBHOOK_ID, WebhookSettings
from webhookd.text import shown

SWEEP_S = 30.0  # workers look this often for rows that no timer leads to


def of_registry(facts: Facts) -> Iterator[Reason]:
    """Yield why the registry lets nothing be sent to the webhook."""
    webhook_id = facts.row.webhook_id
    resume = (f"webhookd webhook resume {webhook_id}",)
    if facts.settings is None and not 1 <= webhook_id <= MAX_WEBHOOK_ID:
        text = (
            f"Webhook {webhook_id} cannot be registered, since ids are 1 to {MAX_WEBHOOK_ID}. "
            "Correct its webhook_id, or give it up:"
        )
        give_up = (
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id = "
            f"{facts.row.delivery_id}"
        )
        yield Reason("unregistered", text, math.inf, sql=(give_up,))
    elif facts.settings is None:
        text = f"Webhook {webhook_id} is not registered: its deliveries wait until it is."
        add = f"webhookd webhook add URL --id {webhook_id}"
        yield Reason("unregistered", text, math.inf, (add,))
    elif not facts.settings.enabled and facts.disabled_reason == GONE_REASON:
        text = (
            f"The receiver answered 410 Gone, so webhook {webhook_id} was disabled. Once it takes "
            "deliveries again, enable it."
        )
        yield Reason("gone", text, math.inf, resume)
    elif not facts.settings.enabled:
        why = shown(facts.disabled_reason or "no reason given")
        yield Reason("paused", f"Webhook {webhook_id} is paused: {why}.", math.inf, resume)


def of_lane(facts: Facts) -> Iterator[Reason]:
    """Yield everything that holds the webhook, in the order in which workers meet it.

    The core names one obstacle at a time: ask, take that obstacle away, and ask again.
    """
    yield from of_registry(facts)
    if facts.settings is None:
        return
    settings = facts.settings._replace(enabled=True)
    lane = _as_admitted(facts, settings)
    blocked = not facts.settings.enabled
    refusal = held.reason_of(facts.settings, facts.refusal)
    if refusal is not None:
        blocked = True
        yield of_configuration(facts.settings, refusal)
    while (admission := admit(lane, settings, now=facts.now, wish=1)).quota == 0:
        blocked = True
        reason, lane = _obstacle(facts, lane, settings, admission)
        yield reason
    if admission.probe:
        text = (
            f"The circuit of webhook {lane.webhook_id} has waited long enough: the next claim "
            "takes one delivery as its probe."
        )
        yield Reason("probe_due", text)
    if not blocked:
        yield from _parked(facts)


def of_configuration(settings: WebhookSettings, refusal: str) -> Reason:
    """Return the reason that no request can be sent to the webhook, and what ends it."""
    webhook_id = settings.webhook_id
    text = (
        f"Webhook {webhook_id} is held: {refusal}. Nothing is attempted, spent or failed; its "
        "deliveries go out once "
    )
    column = held.column_of(settings, refusal)
    if column == "secret":
        text += "it has a new secret. Give that to the receiver:"
        run = (f"webhookd webhook rotate-secret {webhook_id}",)
        return Reason("held", text, math.inf, run)
    if option := held.missing_option(refusal):
        text += f"the service runs with {held.in_words(option)}, or once its url is corrected:"
    else:
        text += f"its {column} {'are' if column == 'headers' else 'is'} corrected:"
    return Reason("held", text, math.inf, sql=(held.showing(settings, refusal),))


def _obstacle(
    facts: Facts, lane: Lane, settings: WebhookSettings, admission: Admission
) -> tuple[Reason, Lane]:
    """Return the reason for a quota of 0, and the lane without that obstacle."""
    webhook_id, until_at = lane.webhook_id, admission.runnable_at or math.inf
    match admission.blocked_by:
        case BlockedBy.HOLD:
            text = (
                "The receiver asked for a pause (Retry-After), or a worker lacked something: "
                f"webhook {webhook_id} is held {until(facts, until_at)}."
            )
            return Reason("hold", text, until_at), replace(lane, hold_until=None)
        case BlockedBy.CIRCUIT:
            return _circuit(facts, lane, until_at), replace(lane, breaker=Breaker())
        case BlockedBy.IN_FLIGHT:
            text = (
                f"Webhook {webhook_id} is at its cap: {lane.in_flight} of "
                f"{settings.max_in_flight} are in flight. Each that ends makes room for one."
            )
            return Reason("in_flight", text, until_at), replace(lane, in_flight=0)
        case _:
            text = (
                f"Webhook {webhook_id} is out of tokens ({rate(settings)}): the next one comes "
                f"{in_(facts, until_at)}."
            )
            return Reason("rate", text, until_at), replace(lane, bucket=Bucket(None, facts.now))


def _as_admitted(facts: Facts, settings: WebhookSettings) -> Lane:
    """Return the lane as a claim would see it: new where there is none, and its leases counted
    where it is at its cap.

    The claim of a row in quarantine trusts the counter; the sweep corrects that within 30 s.
    """
    lane = facts.lane
    if lane is None:
        return Lane(
            facts.row.webhook_id, Breaker(), Bucket(None, facts.now), 0, None, None, None, "unknown"
        )
    counted = lane.in_flight >= settings.max_in_flight and facts.row.leases_lost < QUARANTINE_AFTER
    return replace(lane, in_flight=facts.in_flight) if counted else lane


def _circuit(facts: Facts, lane: Lane, until_at: float) -> Reason:
    webhook_id, failures = lane.webhook_id, lane.breaker.failures
    run = (f"webhookd webhook test {webhook_id}",)
    if lane.breaker.state is CircuitState.HALF_OPEN:
        text = (
            f"The circuit of webhook {webhook_id} is half open: its probe is out, at most "
            f"{until(facts, until_at)}. If that is delivered, the rest follows."
        )
        return Reason("circuit_half_open", text, until_at, run)
    text = (
        f"The circuit of webhook {webhook_id} is open {until(facts, until_at)}, after {failures} "
        "failures in a row. Then one delivery goes out as a probe."
    )
    return Reason("circuit_open", text, until_at, run)


def _parked(facts: Facts) -> Iterator[Reason]:
    """Yield the wait for the lane's timer, where the lane knows of a due row and only the timer
    leads to it.
    """
    lane, row = facts.lane, facts.row
    quarantined = row.leases_lost >= QUARANTINE_AFTER
    if lane is None or not row.routed or row.next_retry_at > facts.now or quarantined:
        return
    if lane.runnable_at is None:
        text = "No timer leads to it; the sweep that workers make every 30 s finds it."
        yield Reason("parked", text, facts.now + SWEEP_S)
    elif lane.runnable_at > facts.now:
        why = f", since it met: {lane.blocked_by}" if lane.blocked_by else ""
        text = (
            f"Workers look at webhook {lane.webhook_id} again {in_(facts, lane.runnable_at)}{why}."
        )
        yield Reason("parked", text, lane.runnable_at)
