"""What a worker's statements cost in pages."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.support.engine import Engine

Pages = dict[str, list[int]]  # by statement, one entry an execution


@contextmanager
def counted(worker: Engine, *names: str) -> Iterator[Pages]:
    """Have the server explain each statement that *worker* runs, with the very plan it used, and
    add up its pages.
    """
    pages: Pages = defaultdict(list)

    def explained(notice: psycopg.errors.Diagnostic) -> None:
        _, found, document = (notice.message_primary or "").partition("plan:\n")
        if found:
            report = json.loads(document)
            named = re.search(r"/\* webhookd:(\w+) \*/", report["Query Text"])
            if named is not None and named[1] in names:
                pages[named[1]].append(_pages(report["Plan"]))

    connection = worker.connection
    connection.add_notice_handler(explained)
    connection.execute("LOAD 'auto_explain'")
    for setting, value in {
        "client_min_messages": "notice",
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_analyze": "on",
        "auto_explain.log_buffers": "on",
        "auto_explain.log_timing": "off",
        "auto_explain.log_format": "json",
        "auto_explain.log_level": "notice",
    }.items():
        connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
    yield pages
    connection.remove_notice_handler(explained)


def _pages(plan: dict[str, Any]) -> int:
    """Return the pages that a statement touched.

    Changes in WITH that nothing else reads run after the main query, and are not in its own sum.
    """
    read = {node.get("CTE Name") for node in nodes(plan)}
    apart = [
        part
        for part in plan.get("Plans", [])
        if part["Node Type"] == "ModifyTable"
        and part.get("Subplan Name", "").removeprefix("CTE ") not in {"", *read}
    ]
    return sum(part["Shared Hit Blocks"] + part["Shared Read Blocks"] for part in [plan, *apart])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the nodes of a plan in JSON, from the top."""
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)
