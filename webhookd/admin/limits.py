"""The limits that a webhook may have of its own: the column that holds one, and the field of the
configuration that applies where the column is NULL.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from webhookd.config.kinds import Kind, Seconds, Whole, rate
from webhookd.config.load import Config
from webhookd.errors import UnusableError
from webhookd.postgres.rows import FASTEST_RATE, LONGEST_TIMEOUT_S

_LARGEST_INTEGER = 2**31 - 1  # of PostgreSQL's type integer


@dataclass(frozen=True, slots=True)
class Limit:
    """*column* of pggit.webhooks, *field* of `Config`, and the *kind* of value that both take."""

    column: str
    field: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class LimitInForce:
    """A limit as it applies to one webhook. *own*: it comes from the webhook's row, else from the
    configuration.
    """

    column: str
    value: float
    own: bool


LIMITS: tuple[Limit, ...] = (
    Limit("timeout_seconds", "timeout", Seconds(LONGEST_TIMEOUT_S)),
    Limit("max_in_flight", "max_in_flight", Whole(1, _LARGEST_INTEGER)),
    Limit("rate_limit_per_second", "rate_limit", rate(FASTEST_RATE)),
    Limit("rate_limit_burst", "rate_burst", Whole(1, _LARGEST_INTEGER)),
    Limit("retry_base_seconds", "retry_base", Seconds()),
    Limit("retry_max_seconds", "retry_max", Seconds()),
    Limit("circuit_failure_threshold", "circuit_threshold", Whole(1, _LARGEST_INTEGER)),
    Limit("circuit_open_seconds", "circuit_open", Seconds()),
)


def limits_of(row: Mapping[str, Any], config: Config) -> tuple[LimitInForce, ...]:
    """Return the limits of the webhook in *row*, in the order of `LIMITS`. A column that *row*
    lacks counts as NULL.
    """
    return tuple(
        LimitInForce(limit.column, getattr(config, limit.field), own=False)
        if row.get(limit.column) is None
        else LimitInForce(limit.column, row[limit.column], own=True)
        for limit in LIMITS
    )


def check(own: Mapping[str, float], config: Config) -> dict[str, float | None]:
    """Return a value for each column of `LIMITS`, None where *own* has none.

    Raise `UnusableError` for a value that no delivery could use.
    """
    if unknown := own.keys() - {limit.column for limit in LIMITS}:
        raise UnusableError(f"a webhook has no limit {', '.join(sorted(unknown))}")
    values: dict[str, float | None] = {}
    for limit in LIMITS:
        try:
            given = own.get(limit.column)
            values[limit.column] = None if given is None else limit.kind.parse(given)
        except ValueError:
            raise UnusableError(
                f"{limit.column}: {own[limit.column]!r} is not {limit.kind.allowed}"
            ) from None
    applied = {limit.column: limit.value for limit in limits_of(values, config)}
    first_s, longest_s = applied["retry_base_seconds"], applied["retry_max_seconds"]
    if first_s > longest_s:
        raise UnusableError(
            f"--retry-base and --retry-max: the first delay, {first_s:g} s, must not exceed the "
            f"longest, {longest_s:g} s"
        )
    return values
