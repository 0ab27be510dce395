"""The entries of docs/metrics.md, which tests compare with the product."""

import re
from dataclasses import dataclass
from pathlib import Path

METRICS = Path(__file__).parents[2] / "docs" / "metrics.md"
_METRIC = re.compile(
    r"`(\w+)` \((\w+), ([^;]+); (?:no labels|labels? ([^;]+)); (\d+)( W)? series;"
    r" over workers: ([^)]+)\)\. (.+)"
)
_QUERY = re.compile(
    r"\*\*Sections? ([\d, ]+): ([a-z ]+)\.\*\* ([^\n]+(?:\n[^\n]+)*)\n\n"
    r"```promql\n# guide\n(.*?)\n(?:# use alert (\w+)\n|# use\n(.*?)\n)?```",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """What the document says about a metric. *series* is multiplied by the number of webhooks if
    *of_each_webhook*.
    """

    name: str
    kind: str
    unit: str
    labels: frozenset[str]
    series: int
    of_each_webhook: bool
    over_workers: str
    meaning: str


@dataclass(frozen=True, slots=True)
class QueryEntry:
    """What the document says about a query of the guide. *use* is a query and *alert* the name of
    an alert to use instead; both are empty where the guide's query is the one to use.
    """

    sections: tuple[str, ...]
    verdict: str
    why: str
    query: str
    alert: str
    use: str


def section(heading: str) -> str:
    """Return the text below *heading* (a line of docs/metrics.md), up to the next one of its
    level. A line with a single # is a comment in a query.
    """
    level = heading.partition(" ")[0]
    _, found, rest = METRICS.read_text().partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"(?m)^#{{2,{len(level)}}} ", rest)[0]


def items(text: str) -> list[str]:
    """Return the list items of *text*, each on one line."""
    found = re.findall(r"(?m)^- (.+(?:\n  .+)*)$", text)
    return [" ".join(item.split()) for item in found]


def code(text: str) -> list[str]:
    """Return what *text* sets in backticks."""
    return re.findall(r"`([^`]+)`", text)


def metrics() -> list[MetricEntry]:
    """Return the entries of all metrics."""
    entries = []
    for item in items(section("## Every metric")):
        found = _METRIC.fullmatch(item)
        assert found, item
        name, kind, unit, labels, series, of_each_webhook, over_workers, meaning = found.groups()
        entries.append(
            MetricEntry(
                name,
                kind,
                unit,
                frozenset(code(labels or "")),
                int(series),
                of_each_webhook is not None,
                over_workers,
                meaning,
            )
        )
    return entries


def queries() -> list[QueryEntry]:
    """Return the entries of the guide's PromQL queries; each query is on one line."""
    text = section("### PromQL")
    entries = [
        QueryEntry(
            tuple(found[1].split(", ")),
            found[2],
            found[3],
            one_line(found[4]),
            found[5] or "",
            one_line(found[6] or ""),
        )
        for found in _QUERY.finditer(text)
    ]
    assert len(entries) == text.count("```promql")
    return entries


def one_line(query: str) -> str:
    return " ".join(query.split())
