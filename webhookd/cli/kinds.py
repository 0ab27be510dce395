"""The kinds of values of the configuration, as click's types."""

from typing import Any

import click

from webhookd.config.kinds import Kind, Whole


def click_type(kind: Kind) -> Any:
    """Return the type for an option of this *kind*."""
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
