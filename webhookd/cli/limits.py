"""The options of `webhookd webhook add` for the limits that a webhook may have of its own."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from webhookd.admin.limits import LIMITS
from webhookd.config.kinds import Kind, Whole

# The option and its meaning, by column.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "timeout_seconds": ("--timeout", "For one exchange."),
    "max_in_flight": ("--max-in-flight", "Exchanges at a time."),
    "rate_limit_per_second": ("--rate", "Attempts a second; 0 is unlimited."),
    "rate_limit_burst": ("--rate-burst", "Attempts at once after a pause."),
    "retry_base_seconds": ("--retry-base", "The first retry's delay."),
    "retry_max_seconds": ("--retry-max", "The longest delay."),
    "circuit_failure_threshold": ("--circuit-threshold", "Failures that open it."),
    "circuit_open_seconds": ("--circuit-open", "Wait for its probe."),
}

F = TypeVar("F", bound=Callable[..., Any])


def _click_type(kind: Kind) -> Any:
    # A function, not a ParamType of click's: that one is generic in the newest releases only.
    if isinstance(kind, Whole):
        return click.IntRange(kind.low)

    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not {kind.allowed}") from None

    parse.__name__ = kind.metavar  # which is what the help shows
    return parse


def limit_options(command: F) -> F:
    """Give a command an option for each of `admin.limits.LIMITS`."""
    for limit in reversed(LIMITS):
        option, meaning = _OPTIONS[limit.column]
        text = f"{meaning} [default: the daemon's]"
        command = click.option(option, limit.column, type=_click_type(limit.kind), help=text)(
            command
        )
    return command


def own_limits(options: Mapping[str, Any]) -> dict[str, float]:
    """Return, by column, those that were given among a command's *options*."""
    given = {limit.column: options[limit.column] for limit in LIMITS}
    return {column: value for column, value in given.items() if value is not None}
