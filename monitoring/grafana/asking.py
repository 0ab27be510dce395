"""Sends a panel's queries to the data sources, as Grafana would, for the preview and the tests."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import psycopg

from monitoring.grafana.panels import Json


@dataclass(frozen=True)
class Window:
    """The time that a dashboard shows, in Unix seconds, and Grafana's step for it."""

    start: float
    end: float

    @property
    def step(self) -> int:
        return max(10, round((self.end - self.start) / 600))

    def fill_in(self, query: str, **chosen: str) -> str:
        """Return *query* as Grafana would send it, with "All" for each variable that is not in
        *chosen* (name=value).
        """
        start, end = (
            datetime.fromtimestamp(when, UTC).isoformat() for when in (self.start, self.end)
        )
        query = query.replace("$__rate_interval", f"{max(4 * 10, self.step + 10)}s")
        query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{start}' AND '{end}'", query)
        quoted = {name: "'" + value.replace("'", "''") + "'" for name, value in chosen.items()}
        query = re.sub(
            r"\$\{(worker|webhook):sqlstring\}", lambda m: quoted.get(m[1], "'%'"), query
        )
        return re.sub(r"\$(worker|webhook)\b", lambda m: chosen.get(m[1], ".*"), query)


@dataclass(frozen=True)
class Frame:
    """An answer: columns, rows, and whether the first column is a time in Unix seconds."""

    columns: list[str]
    rows: list[list[Any]]


def ask_prometheus(url: str, target: Json, window: Window) -> list[Frame]:
    """Return one frame for each series (columns `time` and the legend), or a single one where the
    target asks for a table.
    """
    query = {"query": window.fill_in(target["expr"])}
    when = (
        {"time": window.end}
        if target["instant"]
        else {"start": window.start, "end": window.end, "step": window.step}
    )
    kind = "query" if target["instant"] else "query_range"
    with urlopen(f"{url}/api/v1/{kind}?{urlencode({**query, **when})}", timeout=20) as answer:
        result = json.load(answer)["data"]["result"]
    if target["format"] == "table":
        labels = sorted({label for series in result for label in series["metric"]})
        rows = [
            [series["metric"].get(label, "") for label in labels] + [float(series["value"][1])]
            for series in result
        ]
        return [Frame([*labels, "Value"], rows)]
    frames = []
    for series in result:
        labels = series["metric"]
        legend = target["legendFormat"]
        for named in set(re.findall(r"\{\{(\w+)\}\}", legend)):
            legend = legend.replace(f"{{{{{named}}}}}", labels.get(named, ""))
        points = series.get("values") or [series["value"]]
        frames.append(Frame(["time", legend], [[when, float(value)] for when, value in points]))
    return frames


def ask_postgresql(dsn: str, target: Json, window: Window) -> list[Frame]:
    """Return the answer's rows as one frame."""
    with psycopg.connect(dsn) as connection:
        cursor = connection.execute(window.fill_in(target["rawSql"]).encode())
        return [
            Frame(
                [column.name for column in cursor.description or ()],
                [list(row) for row in cursor.fetchall()],
            )
        ]
