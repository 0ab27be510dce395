"""Results as Markdown: printed at once, and written to bench/results/NAME.md together with a
description of the machine.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Report:
    """One file of results. Each of *notes* is a paragraph on what was measured, and how."""

    def __init__(self, name: str, title: str, *, postgres: str, notes: Iterable[str] = ()) -> None:
        self.path = RESULTS / f"{name}.md"
        self._parts: list[str] = []
        command = " ".join(["python -m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        self._add(f"# {title}")
        self._add(
            f"`{command}` on {datetime.now(UTC):%Y-%m-%d}: {machine()}; PostgreSQL {postgres}."
        )
        for note in notes:
            self.note(note)

    def note(self, text: str) -> None:
        self._add(text)

    def table(
        self, heads: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = ""
    ) -> None:
        """Add a table; all columns but the first are aligned to the right."""
        cells = [list(heads), *map(list, rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
        lines = ["| " + " | ".join(_fitted(row, widths)) + " |" for row in cells]
        rule = (
            "|"
            + "|".join(
                "-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
                for i, width in enumerate(widths)
            )
            + "|"
        )
        self._add("\n".join(([f"## {title}\n"] if title else []) + [lines[0], rule, *lines[1:]]))

    def write(self) -> None:
        """Write the file, replacing the last one."""
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text("\n\n".join(self._parts) + "\n")
        print(f"written to bench/results/{self.path.name}")

    def _add(self, text: str) -> None:
        self._parts.append(text)
        print(text, end="\n\n", flush=True)


def machine() -> str:
    """Describe the machine and what runs the benchmark in one line."""
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal: +(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    parts = [
        f"{os.cpu_count()} x {cpu[1] if cpu else platform.machine()}",
        f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        _said("nginx", "-v").replace("nginx version: ", "").replace("/", " "),
    ]
    return ", ".join(part for part in parts if part)


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return (done.stdout + done.stderr).strip()


def _fitted(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
