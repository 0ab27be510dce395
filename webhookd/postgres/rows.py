"""Rows that become values: each conversion once, beside the columns that it reads.

`FRAGMENTS` holds column lists for the statements of sql/queries (see `statements.load`). A `@` in
them stands for the table's alias. A list and the function that reads it must keep the same order.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from webhookd.config.kinds import FASTEST_GROWTH, LONGEST_S, SLOWEST_RATE
from webhookd.config.options import Config
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
    "extract(epoch FROM @failing_since)::float8",
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
    "max_retries": Limit("max_retries", "max_retries"),
    "retry_base_seconds": Limit("retry_base_s", "retry_base"),
    "retry_factor": Limit("retry_factor", "retry_factor"),
    "retry_max_seconds": Limit("retry_max_s", "retry_max"),
    "circuit_failure_threshold": Limit("circuit_threshold", "circuit_threshold"),
    "circuit_open_seconds": Limit("circuit_open_s", "circuit_open"),
}
# What an INSERT gives, in the order of the fields of `WebhookSettings`.
_WEBHOOK = ("url", "enabled", "secret", "headers", *LIMITS)
_SETTINGS = (
    "@url",
    "@enabled",
    "@secret",
    # An old secret that has ended is not read, even before it is erased.
    "CASE WHEN @old_secret_until > now() THEN @old_secret END AS old_secret",
    "CASE WHEN @old_secret_until > now() THEN extract(epoch FROM @old_secret_until)::float8 END"
    " AS old_secret_until_at",
    "@headers::text",
    *(f"@{name}" for name in LIMITS),
)
_LIMITS_FROM = 1 + len(_SETTINGS) - len(LIMITS)  # with webhook_id in front
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
        failing_since,
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
        failing_since=failing_since,
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


def settings_of(row: tuple[Any, ...], defaults: WebhookDefaults) -> WebhookSettings:
    """Return the settings in *row* (webhook_id, {settings_columns}), with *defaults* for NULL.

    Of a webhook that is not registered all but webhook_id is NULL. No cache keeps settings: they
    hold secrets, and to make them takes no longer than to look for a whole row.
    """
    webhook_id, url, enabled, secret, old_secret, old_secret_until_at, headers = row[:_LIMITS_FROM]
    return WebhookSettings(
        webhook_id,
        url or "",
        bool(enabled),
        secret,
        old_secret,
        old_secret_until_at,
        headers,
        *_limits_in(row[_LIMITS_FROM:], defaults),
    )


@lru_cache(maxsize=1024)  # most webhooks have the same limits
def _limits_in(numbers: tuple[Any, ...], defaults: WebhookDefaults) -> WebhookDefaults:
    limits: list[Any] = [
        default if number is None else number
        for number, default in zip(numbers, defaults, strict=True)
    ]
    return clamp_limits(WebhookDefaults(*limits))


def clamp_limits(limits: WebhookDefaults) -> WebhookDefaults:
    """Return the limits within bounds.

    Applications write the registry with plain SQL. PostgreSQL rejects instants that are too far
    away: one such row would undo the whole claim or record that it takes part in.
    """
    return limits._replace(
        timeout_s=_clamp(limits.timeout_s, 0.0, LONGEST_TIMEOUT_S),
        rate=0.0 if limits.rate == 0 else _clamp(limits.rate, SLOWEST_RATE, FASTEST_RATE),
        burst=max(1, limits.burst),
        max_retries=max(0, limits.max_retries),
        retry_base_s=_clamp(limits.retry_base_s, 0.0, LONGEST_S),
        retry_factor=_clamp(limits.retry_factor, 1.0, FASTEST_GROWTH),
        retry_max_s=_clamp(limits.retry_max_s, 0.0, LONGEST_S),
        circuit_open_s=_clamp(limits.circuit_open_s, 0.0, LONGEST_S),
    )


def retries_of(max_retries: int | None, settings: WebhookSettings) -> int:
    """Return the retries that a delivery has: a number in its row wins, NULL is the webhook's."""
    return settings.max_retries if max_retries is None else max_retries


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

    @property
    def lease_until(self) -> float:
        """The end of the lease by the database's clock."""
        return self.now + self.lease_s


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
        max_retries=retries_of(max_retries, of_webhook),
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
        max_retries=retries_of(max_retries, settings),
        attempts=attempts,
        leases_lost=leases_lost,
        age_s=0.0,
        settings=settings,
        claimed=-math.inf,
        start_before=-math.inf,
    )
    return Result(delivery, Lost())
