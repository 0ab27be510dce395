"""Writes the dashboards' JSON. Change a panel in overview.py, workers.py or postgresql.py, then run
in the project's folder

    python -m monitoring.grafana.build

A test compares the committed files with what this writes.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from monitoring.grafana import overview, postgresql, workers

FOLDER = Path(__file__).parent / "dashboards"


def files() -> Iterator[tuple[Path, str]]:
    """Yield the path and the text of each dashboard."""
    for dashboard in (overview.DASHBOARD, workers.DASHBOARD, postgresql.DASHBOARD):
        yield FOLDER / f"{dashboard['uid']}.json", json.dumps(dashboard, indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in files():
        path.write_text(text)
