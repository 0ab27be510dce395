"""The options of `webhookd webhook add` for the limits that a webhook may have of its own."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from webhookd.admin.limits import KINDS

# The option and its meaning, by column.
_OPTIONS: Mapping[str, tuple[str, str]] = {
    "timeout_seconds": ("--timeout", "For one exchange."),
    "max_in_flight": ("--max-in-flight", "Exchanges at a time."),
    "rate_limit_per_second": ("--rate", "Attempts a second; 0 is unlimited."),
    "rate_limit_burst": ("--rate-burst", "Attempts at once after a pause."),
    "max_retries": ("--max-retries", "Attempts after the first one."),
    "retry_base_seconds": ("--retry-base", "The first retry's delay."),
    "retry_factor": ("--retry-factor", "How many times as long each further delay is."),
    "retry_max_seconds": ("--retry-max", "The longest delay."),
    "circuit_failure_threshold": (
        "--circuit-threshold",
        "Consecutive failures that open the circuit.",
    ),
    "circuit_open_seconds": (
        "--circuit-open",
        "How long the circuit stays open before a probe.",
    ),
}

F = TypeVar("F", bound=Callable[..., Any])


def limit_options(command: F) -> F:
    """Give a command an option for each of `admin.limits.KINDS`."""
    for column, kind in reversed(KINDS.items()):
        option, meaning = _OPTIONS[column]
        text = f"{meaning} [default: the daemon's]"
        command = click.option(option, f"own_{column}", type=kind, metavar=kind.metavar, help=text)(
            command
        )
    return command


def own_limits(options: Mapping[str, Any]) -> dict[str, float]:
    """Return, by column, those that were given among a command's *options*."""
    given = {column: options[f"own_{column}"] for column in KINDS}
    return {column: value for column, value in given.items() if value is not None}
