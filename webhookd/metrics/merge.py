"""Several workers' metrics as those of one fleet.

Counters and histograms are summed. What becomes of a gauge is said in `GAUGES`, one rule each; one
that is not there (a newer worker's) is merged by `max`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Rule = Callable[[Sequence[float]], float]

GAUGES: dict[str, Rule] = {
    # Every worker sees the same queue: some saw it a moment earlier.
    "webhook_queue_depth": max,
    "webhookd_queue_depth_by_cause": max,
    "webhookd_oldest_due_seconds": max,
    # Each its own share.
    "webhookd_sender_threads": math.fsum,
    "webhookd_deliveries_outstanding": math.fsum,
    # One that fails must show. worker_health_status has a series for each worker_id; two of one
    # name share it.
    "worker_health_status": min,
    "webhookd_listener_connected": min,
    "webhookd_database_up": min,
    # Always 1; a series for each version.
    "webhookd_build_info": max,
}


def parse(text: str) -> list[Metric]:
    """Return the families in an exposition in Prometheus' text format; raise `ValueError` for
    anything else.
    """
    try:
        return list(text_string_to_metric_families(text))
    except (ValueError, IndexError, KeyError, TypeError) as error:
        # The library's parser is made for what is right, and stumbles in several ways over what is
        # not.
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
    """Return *families* as one object a series: name, type, labels, value (null where JSON has no
    word for it).
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
    """A collector of what is there already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _rule_of(family: Metric) -> Rule:
    return math.fsum if family.type in ("counter", "histogram") else GAUGES.get(family.name, max)


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value
