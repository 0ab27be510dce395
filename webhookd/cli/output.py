"""Prints results: tables for people, JSON for programs. Foreign text is escaped, so that it cannot steer a terminal."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from webhookd.logs import printable

_WIDE = 10_000  # a pipe has no width: nothing is wrapped or cut for it


def console() -> Console:
    """Return a console on stdout that takes text as it is: no markup, no emoji, no guessed colours."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, highlight=False, markup=False, emoji=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> Table:
    """Return a borderless table; numbers stand to the right."""
    cells = list(rows)
    made = Table(title=title, box=None, pad_edge=False, title_justify="left", header_style="bold", title_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[index], int | float | None) for row in cells)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(shown(value)) for value in row))
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a borderless table."""
    console().print(table(columns, rows))


def print_json(value: object) -> None:
    """Print *value* as indented JSON; instants are ISO 8601 in UTC."""
    print(json.dumps(value, indent=2, default=_json, ensure_ascii=False))


def shown(value: object) -> str:
    """Return *value* as a table cell shows it."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case _:
            return printable(str(value))


def duration(seconds: float | None) -> str:
    """Return a duration as people read it, with two digits or so: `0.8 s`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds is None:
        return "-"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if abs(seconds) >= 10 else f"{seconds:.1f} s"


def _json(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value)
