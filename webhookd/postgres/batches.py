"""Values that become rows: the arrays that claim, settle and update_lanes read as tables.

A statement contains the table as a fragment, `{admissions}` for example (see `statements.load`);
the function named beside the table fills its parameters.
"""

import json
import math
from collections.abc import Mapping, Sequence
from sys import getsizeof
from typing import Any

from webhookd.cache import ByteCache
from webhookd.core.answer import CircuitVote
from webhookd.core.lane import Admission, Lane
from webhookd.core.lifecycle import Settlement
from webhookd.core.model import Attempted, Result
from webhookd.postgres.arrays import flag_array, number_array, text_array

Settled = tuple[Result, Settlement]

# event_details by what they are made of; most attempts have the same.
_made_details: ByteCache[tuple[Any, ...], str] = ByteCache(1 << 20)

# Column -> parameter and type.
_ADMISSIONS = {  # admission_parameters
    "webhook_id": ("webhook_ids", "bigint"),
    "quota": ("quotas", "int"),
    "blocked_by": ("blocked_bys", "text"),
    "runnable_at": ("runnable_ats", "float8"),
    "tokens": ("tokens", "float8"),
    "in_flight": ("in_flights", "int"),
    "mark": ("marks", "float8"),
}
_SETTLED = {  # settle_parameters
    "delivery_id": ("delivery_ids", "bigint"),
    "token": ("tokens", "bigint"),
    "status": ("statuses", "text"),
    "delay_s": ("delays", "float8"),
    "retries": ("retries", "int"),
    "losses": ("losses", "int"),
    "age_s": ("ages", "float8"),
    "webhook_id": ("webhook_ids", "bigint"),
    "event": ("events", "text"),
    "details": ("details", "text"),
    "http_status": ("http_statuses", "int"),
    "time_ms": ("times_ms", "float8"),
}
_LANES = {  # lane_parameters
    "webhook_id": ("webhook_ids", "bigint"),
    "total": ("totals", "int"),
    "successful": ("successfuls", "int"),
    "sum_ms": ("sums_ms", "float8"),
    "min_ms": ("mins_ms", "float8"),
    "max_ms": ("maxs_ms", "float8"),
    "health_status": ("health_statuses", "text"),
    "failures": ("failures", "int"),
    "circuit_state": ("circuit_states", "text"),
    "circuit_epoch": ("circuit_epochs", "bigint"),
    "circuit_until": ("circuit_untils", "float8"),
    "hold_until": ("hold_untils", "float8"),
    "tokens": ("tokens", "float8"),
    "tokens_at": ("tokens_ats", "float8"),
    "in_flight": ("in_flights", "int"),
    "runnable_at": ("runnable_ats", "float8"),
    "blocked_by": ("blocked_bys", "text"),
    "failing_since": ("failing_sinces", "float8"),
    "exchange_seconds": ("exchange_seconds", "float8"),
    "slow": ("slows", "bool"),
}


def _table(alias: str, columns: Mapping[str, tuple[str, str]]) -> str:
    arrays = ", ".join(f"%({name})s::{type_}[]" for name, type_ in columns.values())
    return f"unnest({arrays}) AS {alias} ({', '.join(columns)})"


FRAGMENTS = {
    "admissions": _table("l", _ADMISSIONS),
    "settled_claims": _table("r", _SETTLED),
    "settled_lanes": _table("r", _LANES),
}

# Arrays are built column by column. One pass that appends to all columns of a row would be shorter,
# but it costs 8.9 us a result instead of 4.8.


def admission_parameters(
    lanes: Sequence[Lane],
    admissions: Sequence[Admission],
    tokens: Sequence[float | None],
    marks: Sequence[float],
) -> dict[str, str]:
    """Return the arrays of {admissions}, one element a lane. *tokens* are those in the bucket
    before the claim, *marks* the low-water marks.
    """
    return {
        "webhook_ids": number_array([lane.webhook_id for lane in lanes]),
        "quotas": number_array([admission.quota for admission in admissions]),
        "blocked_bys": text_array([admission.blocked_by for admission in admissions]),
        "runnable_ats": number_array([admission.runnable_at for admission in admissions]),
        "tokens": number_array(tokens),
        "in_flights": number_array([lane.in_flight for lane in lanes]),
        "marks": number_array(marks),
    }


def settle_parameters(settled: Sequence[Settled], *, now: float) -> dict[str, str]:
    """Return the arrays of {settled_claims}, one element a result. *now* is monotonic."""
    deliveries = [result.delivery for result, _ in settled]
    answers = [
        result.outcome.answer if isinstance(result.outcome, Attempted) else None
        for result, _ in settled
    ]
    return {
        "delivery_ids": number_array([delivery.delivery_id for delivery in deliveries]),
        "tokens": number_array([delivery.token for delivery in deliveries]),
        "statuses": text_array([settlement.status for _, settlement in settled]),
        "delays": number_array([settlement.delay_s for _, settlement in settled]),
        "retries": number_array([int(settlement.spends_retry) for _, settlement in settled]),
        "losses": number_array([int(settlement.loses_lease) for _, settlement in settled]),
        "ages": number_array([_age_s(result, now=now) for result, _ in settled]),
        "webhook_ids": number_array([delivery.webhook_id for delivery in deliveries]),
        "events": text_array([settlement.event for _, settlement in settled]),
        "details": text_array([_details(result, settlement) for result, settlement in settled]),
        "http_statuses": number_array(
            [None if answer is None else answer.http_status for answer in answers]
        ),
        "times_ms": number_array(
            [None if answer is None else answer.elapsed_s * 1000 for answer in answers]
        ),
    }


def lane_parameters(
    lanes: Sequence[Lane], settled: Mapping[int, Sequence[Settled]]
) -> dict[str, str]:
    """Return the arrays of {settled_lanes}, one element a lane. *settled*, by webhook id, are the
    results that *lanes* include.
    """
    of_lanes = [settled[lane.webhook_id] for lane in lanes]
    times = [
        [
            result.outcome.answer.elapsed_s * 1000
            for result, _ in of_lane
            if isinstance(result.outcome, Attempted)
        ]
        for of_lane in of_lanes
    ]
    successful = [
        sum(settlement.vote is CircuitVote.SUCCESS for _, settlement in of_lane)
        for of_lane in of_lanes
    ]
    return {
        "webhook_ids": number_array([lane.webhook_id for lane in lanes]),
        "totals": number_array([len(of_lane) for of_lane in times]),
        "successfuls": number_array(successful),
        "sums_ms": number_array([math.fsum(of_lane) for of_lane in times]),
        "mins_ms": number_array([min(of_lane, default=None) for of_lane in times]),
        "maxs_ms": number_array([max(of_lane, default=None) for of_lane in times]),
        "health_statuses": text_array([lane.health for lane in lanes]),
        "failures": number_array([lane.breaker.failures for lane in lanes]),
        "circuit_states": text_array([lane.breaker.state for lane in lanes]),
        "circuit_epochs": number_array([lane.breaker.generation for lane in lanes]),
        "circuit_untils": number_array([lane.breaker.next_probe_at for lane in lanes]),
        "hold_untils": number_array([lane.hold_until for lane in lanes]),
        "tokens": number_array([lane.bucket.tokens for lane in lanes]),
        "tokens_ats": number_array([lane.bucket.at for lane in lanes]),
        "in_flights": number_array([lane.in_flight for lane in lanes]),
        "runnable_ats": number_array([lane.runnable_at for lane in lanes]),
        "blocked_bys": text_array([lane.blocked_by for lane in lanes]),
        "failing_sinces": number_array([lane.failing_since for lane in lanes]),
        "exchange_seconds": number_array([lane.speed.exchange_s for lane in lanes]),
        "slows": flag_array([lane.speed.slow for lane in lanes]),
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
    key = settlement.reason, attempt, excerpt, settlement.delay_s
    details = _made_details.get(key)
    if details is None:
        details = _event_details(*key)
        size = getsizeof(key) + getsizeof(settlement.reason) + getsizeof(excerpt)
        _made_details.put(key, details, size + getsizeof(details))
    return details


def _event_details(reason: str, attempt: int | None, excerpt: str, delay_s: float | None) -> str:
    """Return event_details as JSON."""
    details: dict[str, Any] = {"reason": _storable(reason)}
    if attempt is not None:
        details["attempt"] = attempt
    if excerpt:
        details["excerpt"] = _storable(excerpt)
    if delay_s is not None:
        details["retry_in_s"] = round(delay_s, 3)
    return json.dumps(details)


def _storable(text: str) -> str:
    """Return *text* without what jsonb rejects (NUL, lone surrogates): no answer may prevent its
    result from being recorded.
    """
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
