"""Several workers' metrics as those of one fleet.

Counters and histograms are summed. Each gauge has a rule in its declaration (declarations.py); one
that is not declared (a newer worker's) is merged by `max`.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from webhookd.metrics import declarations as declared
from webhookd.metrics.declarations import Rule

RULES: dict[str, Rule] = {metric.text_name: metric.merge for metric in declared.ALL}


def parse(text: str) -> list[Metric]:
    """Return the families in an exposition in Prometheus' text format; raise `ValueError` for
    anything else.
    """
    try:
        return list(text_string_to_metric_families(text))
    except (ValueError, IndexError, KeyError, TypeError) as error:
        # The library's parser expects correct text, and fails in several ways for any other.
        raise ValueError("this is not Prometheus' text format") from error


def merge(expositions: Iterable[Iterable[Metric]]) -> list[Metric]:
    """Return one exposition's families for the *expositions* of several workers, in the order of
    their first appearance.
    """
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], tuple[Sample, list[float]]]] = {}
    for exposition in expositions:
        for family in exposition:
            families.setdefault(family.name, family)
            series = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                series.setdefault(key, (sample, []))[1].append(sample.value)
    merged = []
    for name, family in families.items():
        whole = Metric(name, family.documentation, family.type)
        rule = _rule_of(family)
        whole.samples = [
            Sample(sample.name, sample.labels, rule(found))
            for sample, found in values[name].values()
        ]
        merged.append(whole)
    return merged


def to_text(families: Iterable[Metric]) -> str:
    """Return *families* in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry).decode()


def to_json(families: Iterable[Metric]) -> list[dict[str, Any]]:
    """Return *families* as one object a series: name, type, labels, value (null for infinity and
    NaN, which JSON cannot write).
    """
    return [
        {
            "name": sample.name,
            "type": family.type,
            "labels": sample.labels,
            "value": _number(sample.value),
        }
        for family in families
        for sample in family.samples
    ]


class _Families:
    """A collector of families that exist already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _rule_of(family: Metric) -> Rule:
    if family.type in ("counter", "histogram"):
        return math.fsum
    return RULES.get(family.name, max)


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value
