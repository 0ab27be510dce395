"""docs/metrics.md describes exactly the metrics that are declared and exported, with their types,
labels and number of series.
"""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.monitoring.doc_tables import METRICS, MetricEntry, code, metrics
from webhookd.config.options import Config
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus, ObservedAttempt, QueueCounts
from webhookd.metrics.declarations import ALL, HELD_WEBHOOKS
from webhookd.metrics.exposition import Exposition

# As many webhooks as a worker shows at the defaults: all places taken, and `other`.
SHOWN = Config().metrics_webhooks + 1


@pytest.fixture(scope="module")
def exposition() -> str:
    counts = Metrics("worker-1", max_webhooks=SHOWN - 1)
    counts.observe_attempts(
        ObservedAttempt(webhook_id, AttemptStatus.DELIVERED, 0.1) for webhook_id in range(SHOWN)
    )
    counts.set_queue(QueueCounts(0, {}, 0.0))
    counts.set(HELD_WEBHOOKS, 0)
    return Exposition(counts).render("")[1].decode()


@pytest.fixture(scope="module")
def documented() -> dict[str, MetricEntry]:
    return {entry.name: entry for entry in metrics()}


def test_the_metrics_of_the_document_are_the_declared_ones_with_their_types(
    exposition: str, documented: dict[str, MetricEntry]
) -> None:
    declared = {metric.text_name: metric.text_type for metric in ALL}
    assert {name: entry.kind for name, entry in documented.items()} == declared
    assert dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", exposition)) == declared


def test_labels_and_numbers_of_series_are_those_of_a_worker(
    exposition: str, documented: dict[str, MetricEntry]
) -> None:
    for family in parse_text(exposition):
        entry = documented[family.name if family.name in documented else f"{family.name}_total"]
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert entry.labels == labels, family.name
        series = entry.series * (SHOWN if entry.of_each_webhook else 1)
        assert series == len(family.samples), family.name


def test_every_value_of_a_label_is_explained(
    exposition: str, documented: dict[str, MetricEntry]
) -> None:
    for family in parse_text(exposition):
        entry = documented[family.name if family.name in documented else f"{family.name}_total"]
        for sample in family.samples:
            for label in sample.labels.keys() & {"status", "cause", "reason", "kind", "phase"}:
                assert sample.labels[label] in code(entry.meaning), (family.name, label)


def test_the_cost_in_series_is_the_real_one(exposition: str) -> None:
    series = sum(len(family.samples) for family in parse_text(exposition))
    figures = (
        r"exports ([\d,]+) W \+ ([\d,]+) series: ([\d,]+) at the defaults.*?"
        r"and\s([\d,]+)\sfor\sthree"
    )
    found = re.search(figures, METRICS.read_text(), re.DOTALL)
    assert found is not None
    each, fixed, one, three = (int(number.replace(",", "")) for number in found.groups())
    assert (each * SHOWN + fixed, one, three) == (series, series, 3 * series)


def test_every_metric_says_how_to_combine_workers(
    documented: dict[str, MetricEntry],
) -> None:
    gauges = {"max", "min", "sum", "count"}
    for name, entry in documented.items():
        words = entry.over_workers
        assert (
            words.startswith("sum of ")
            if entry.kind != "gauge"
            else re.split(r"\W", words)[0] in gauges
        ), name
