"""Rows that become values: each conversion once, beside the columns that it reads.

`FRAGMENTS` holds column lists for the statements of sql/queries (see `statements.load`). A `@` in
them stands for the table's alias. A list and the function that reads it must keep the same order.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from webhookd.config.kinds import LONGEST_S, SLOWEST_RATE
from webhookd.config.load import Config
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lane import BlockedBy, Lane
from webhookd.core.model import (
    Delivery,
    Lost,
    Result,
    WebhookDefaults,
    WebhookSettings,
)
from webhookd.core.speed import Speed

LONGEST_TIMEOUT_S = 600.0
FASTEST_RATE = 1e9
SAFETY_S = 1.0  # an exchange whose lease is that close to its end does not start

_LANE = (
    "@webhook_id",
    "@circuit_state",
    "@circuit_epoch",
    "@consecutive_failures",
    "extract(epoch FROM @circuit_until)::float8",
    "extract(epoch FROM @hold_until)::float8",
    "@tokens",
    "extract(epoch FROM @tokens_at)::float8",
    "@in_flight",
    "extract(epoch FROM @runnable_at)::float8",
    "@blocked_by",
    "@health_status",
    "@exchange_seconds",
    "@slow",
)


class Limit(NamedTuple):
    """A limit of a webhook: its field in `WebhookSettings` and `WebhookDefaults`, and the field of
    `Config` that applies where the column is NULL.
    """

    setting: str
    option: str


# By column of the registry, in the order of the fields of `WebhookSettings` and `WebhookDefaults`.
LIMITS = {
    "timeout_seconds": Limit("timeout_s", "timeout"),
    "max_in_flight": Limit("max_in_flight", "max_in_flight"),
    "rate_limit_per_second": Limit("rate", "rate_limit"),
    "rate_limit_burst": Limit("burst", "rate_burst"),
    "retry_base_seconds": Limit("retry_base_s", "retry_base"),
    "retry_max_seconds": Limit("retry_max_s", "retry_max"),
    "circuit_failure_threshold": Limit("circuit_threshold", "circuit_threshold"),
    "circuit_open_seconds": Limit("circuit_open_s", "circuit_open"),
}
_SETTINGS = ("@url", "@enabled", "@secret", "@headers::text", *(f"@{name}" for name in LIMITS))
# The same as an INSERT names them.
_WEBHOOK = [text.removeprefix("@").removesuffix("::text") for text in _SETTINGS]
_COUNTS = ("@retry_count", "@max_retries", "@attempts", "@leases_lost")
_DELIVERY = {  # name -> expression of the queue's columns
    "webhook_id": "@webhook_id",
    "delivery_id": "@delivery_id",
    "body": "@message_body::text",
    **{name.removeprefix("@"): name for name in _COUNTS},
    "first_at": "extract(epoch FROM @first_attempted_at)::float8",
}

FRAGMENTS = {
    "lane_columns": ", ".join(_LANE),
    "settings_columns": ", ".join(_SETTINGS),
    "webhook_columns": ", ".join(_WEBHOOK),
    "webhook_parameters": ", ".join(f"%({name})s" for name in _WEBHOOK),
    "count_columns": ", ".join(_COUNTS),
    "delivery_expressions": ", ".join(
        text if text == f"@{name}" else f"{text} AS {name}" for name, text in _DELIVERY.items()
    ),
    "delivery_columns": ", ".join(f"@{name}" for name in _DELIVERY),
}


def lane_of(row: Sequence[Any]) -> Lane:
    """Return the lane in *row*, which ends with {lane_columns}."""
    (
        webhook_id,
        state,
        generation,
        failures,
        until,
        hold_until,
        tokens,
        tokens_at,
        in_flight,
        runnable_at,
        blocked_by,
        health,
        exchange_s,
        slow,
    ) = row[-len(_LANE) :]
    return Lane(
        webhook_id=webhook_id,
        breaker=Breaker(CircuitState(state), generation, failures, until),
        bucket=Bucket(tokens, tokens_at),
        in_flight=in_flight,
        hold_until=hold_until,
        runnable_at=runnable_at,
        blocked_by=None if blocked_by is None else BlockedBy(blocked_by),
        health=health,
        speed=Speed(exchange_s, slow),
    )


def before_lane(row: Sequence[Any]) -> Sequence[Any]:
    """Return what *row* holds in front of {lane_columns}."""
    return row[: -len(_LANE)]


def has_lane(row: Sequence[Any]) -> bool:
    """Return whether *row* holds a lane: an outer join may have found none."""
    return row[-len(_LANE)] is not None


def defaults_of(config: Config) -> WebhookDefaults:
    """Return the limits that *config* gives webhooks whose rows leave them NULL."""
    return WebhookDefaults(*(getattr(config, limit.option) for limit in LIMITS.values()))


@lru_cache(maxsize=4096)
def settings_of(row: tuple[Any, ...], defaults: WebhookDefaults) -> WebhookSettings:
    """Return the settings in *row* (webhook_id, {settings_columns}), with *defaults* for NULL.

    Of a webhook that is not registered all but webhook_id is NULL.
    """
    webhook_id, url, enabled, secret, headers, *numbers = row
    limits: list[Any] = [
        default if number is None else number
        for number, default in zip(numbers, defaults, strict=True)
    ]
    return WebhookSettings(
        webhook_id, url or "", bool(enabled), secret, headers, *clamp_limits(*limits)
    )


@lru_cache(maxsize=1024)  # most webhooks have the same limits
def clamp_limits(
    timeout_s: float,
    max_in_flight: int,
    rate: float,
    burst: int,
    retry_base_s: float,
    retry_max_s: float,
    circuit_threshold: int,
    circuit_open_s: float,
) -> tuple[float, int, float, int, float, float, int, float]:
    """Return the limits within bounds.

    Applications write the registry with plain SQL. PostgreSQL rejects instants that are too far
    away: one such row would undo the whole claim or record that it takes part in.
    """
    return (
        _clamp(timeout_s, 0.0, LONGEST_TIMEOUT_S),
        max_in_flight,
        0.0 if rate == 0 else _clamp(rate, SLOWEST_RATE, FASTEST_RATE),
        max(1, burst),
        _clamp(retry_base_s, 0.0, LONGEST_S),
        _clamp(retry_max_s, 0.0, LONGEST_S),
        circuit_threshold,
        _clamp(circuit_open_s, 0.0, LONGEST_S),
    )


def _clamp(value: float, low: float, high: float) -> float:
    # In this order NaN becomes the highest value, which is where PostgreSQL sorts it.
    return max(low, min(high, value))


class ClaimContext(NamedTuple):
    """What all deliveries of one claim share. *started* is monotonic; *now* is the same instant by
    the database's clock. *speeds* are by webhook id.
    """

    token: int
    started: float
    now: float
    lease_s: float
    speeds: Mapping[int, Speed]


def delivery_of(
    row: Sequence[Any],
    settings: Mapping[int, WebhookSettings],
    breakers: Mapping[int, Breaker],
    context: ClaimContext,
) -> Delivery | None:
    """Return the claimed delivery in *row*, which ends with {delivery_columns}; None where those
    are NULL. *settings* and *breakers* are by webhook id.
    """
    webhook_id, delivery_id, body, retry_count, max_retries, attempts, leases_lost, first_at = row[
        -len(_DELIVERY) :
    ]
    if delivery_id is None:
        return None
    of_webhook = settings[webhook_id]
    return Delivery(
        delivery_id=delivery_id,
        webhook_id=webhook_id,
        token=context.token,
        breaker=breakers[webhook_id],
        body=body.encode(),
        retry_count=retry_count,
        max_retries=max_retries,
        attempts=attempts,
        leases_lost=leases_lost,
        age_s=0.0 if first_at is None else context.now - first_at,
        settings=of_webhook,
        claimed=context.started,
        start_before=context.started + context.lease_s - of_webhook.timeout_s - SAFETY_S,
        claimed_at=context.now,
        speed=context.speeds[webhook_id],
    )


def lost_lease_of(row: Sequence[Any], defaults: WebhookDefaults) -> Result:
    """Return the lost lease in a row of expired_leases or leases_of, as a result to be recorded."""
    delivery_id, token, generation, retry_count, max_retries, attempts, leases_lost, *registry = row
    settings = settings_of(tuple(registry), defaults)
    delivery = Delivery(
        delivery_id=delivery_id,
        webhook_id=settings.webhook_id,
        token=token,
        breaker=Breaker(generation=generation),
        body=b"",
        retry_count=retry_count,
        max_retries=max_retries,
        attempts=attempts,
        leases_lost=leases_lost,
        age_s=0.0,
        settings=settings,
        claimed=-math.inf,
        start_before=-math.inf,
    )
    return Result(delivery, Lost())
