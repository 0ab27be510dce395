"""Prints results: tables for people, JSON for programs. Foreign text is escaped, so that it cannot
steer a terminal.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from webhookd.text import shown

_WIDE = 10_000  # a pipe has no width: nothing is wrapped or cut for it


def console() -> Console:
    """Return a console on stdout that prints text unchanged: no markup, no emoji, no highlights."""
    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, highlight=False, markup=False, emoji=False)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> Table:
    """Return a table without borders; columns of numbers are right-aligned."""
    cells = list(rows)
    made = Table(
        title=title,
        box=None,
        pad_edge=False,
        title_justify="left",
        header_style="bold",
        title_style="bold",
    )
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(isinstance(row[index], int | float | None) for row in cells)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(shown(value)) for value in row))
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table without borders."""
    console().print(table(columns, rows))


def print_json(value: object) -> None:
    """Print *value* as indented JSON; instants are ISO 8601 in UTC."""
    print(json.dumps(value, indent=2, default=_json, ensure_ascii=False))


def _json(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(value)
