"""The tables and entries of docs/metrics.md, which tests compare with the product."""

import re
from pathlib import Path

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
_CELL = re.compile(r"(?<!\\)\|")


def rows(heading: str) -> list[dict[str, str]]:
    """Return the rows of all tables below *heading* (a line of docs/metrics.md), up to the next one
    of its level, by column.
    """
    level = heading.partition(" ")[0]
    _, found, rest = METRICS.read_text().partition(f"\n{heading}\n")
    assert found, heading
    found_rows, columns = [], list[str]()
    for line in rest.splitlines():
        if re.match(rf"#{{1,{len(level)}}} ", line):
            break
        cells = [cell.strip() for cell in _CELL.split(line)[1:-1]]
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif not set(cells[0]) <= {"-", ":"}:
            found_rows.append(dict(zip(columns, cells, strict=True)))
    return found_rows


def code(cell: str) -> list[str]:
    """Return what *cell* sets in backticks."""
    return re.findall(r"`([^`]+)`", cell)
