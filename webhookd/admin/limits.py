"""The limits that a webhook may have of its own: what each may be, and which value applies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from webhookd.config.kinds import MOST_RETRIES, Kind, Seconds, Whole, growth, rate
from webhookd.config.options import Config
from webhookd.errors import UnusableError
from webhookd.postgres.rows import FASTEST_RATE, LIMITS, LONGEST_TIMEOUT_S

_LARGEST_INTEGER = 2**31 - 1  # of PostgreSQL's type integer


@dataclass(frozen=True, slots=True)
class LimitInForce:
    """A limit as it applies to one webhook. *own*: it comes from the webhook's row, else from the
    configuration.
    """

    column: str
    value: float
    own: bool


# By column: what it may hold.
KINDS: dict[str, Kind] = {
    "timeout_seconds": Seconds(LONGEST_TIMEOUT_S),
    "max_in_flight": Whole(1, _LARGEST_INTEGER),
    "rate_limit_per_second": rate(FASTEST_RATE),
    "rate_limit_burst": Whole(1, _LARGEST_INTEGER),
    "max_retries": Whole(0, MOST_RETRIES),
    "retry_base_seconds": Seconds(),
    "retry_factor": growth(),
    "retry_max_seconds": Seconds(),
    "circuit_failure_threshold": Whole(1, _LARGEST_INTEGER),
    "circuit_open_seconds": Seconds(),
}


def limits_of(row: Mapping[str, Any], config: Config) -> tuple[LimitInForce, ...]:
    """Return the limits of the webhook in *row*, in the order of `LIMITS`. A column that *row*
    lacks counts as NULL.
    """
    return tuple(
        LimitInForce(column, getattr(config, limit.option), own=False)
        if row.get(column) is None
        else LimitInForce(column, row[column], own=True)
        for column, limit in LIMITS.items()
    )


def check(own: Mapping[str, float], config: Config) -> dict[str, float | None]:
    """Return a value for each column of `LIMITS`, None where *own* has none.

    Raise `UnusableError` for a value that no delivery could use.
    """
    if unknown := own.keys() - LIMITS.keys():
        raise UnusableError(f"a webhook has no limit {', '.join(sorted(unknown))}")
    values: dict[str, float | None] = {}
    for column, kind in KINDS.items():
        try:
            given = own.get(column)
            values[column] = None if given is None else kind.parse(given)
        except ValueError:
            raise UnusableError(f"{column}: {own[column]!r} is not {kind.allowed}") from None
    applied = {limit.column: limit.value for limit in limits_of(values, config)}
    first_s, longest_s = applied["retry_base_seconds"], applied["retry_max_seconds"]
    if first_s > longest_s:
        raise UnusableError(
            f"--retry-base and --retry-max: the first delay, {first_s:g} s, must not exceed the "
            f"longest, {longest_s:g} s"
        )
    return values
