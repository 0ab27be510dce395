"""docs/metrics.md describes exactly the metrics that a worker exports, with their types, labels and
number of series.
"""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.monitoring.doc_tables import METRICS, code, rows
from webhookd.config.load import Config
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus, ObservedAttempt, QueueCounts
from webhookd.metrics.exposition import Exposition

# As many webhooks as a worker shows at the defaults: all places taken, and `other`.
SHOWN = Config().metrics_webhooks + 1


@pytest.fixture(scope="module")
def exposition() -> str:
    metrics = Metrics("worker-1", max_webhooks=SHOWN - 1)
    metrics.observe_attempts(
        ObservedAttempt(webhook_id, AttemptStatus.DELIVERED, 0.1) for webhook_id in range(SHOWN)
    )
    metrics.set_queue(QueueCounts(0, {}, 0.0))
    return Exposition(metrics).render("")[1].decode()


@pytest.fixture(scope="module")
def documented() -> dict[str, dict[str, str]]:
    return {name: row for row in rows("## Every metric") for name in code(row["Metric"])}


def test_the_metrics_of_the_document_are_those_of_a_worker_with_their_types(
    exposition: str, documented: dict[str, dict[str, str]]
) -> None:
    exported = dict(re.findall(r"(?m)^# TYPE (\S+) (\S+)$", exposition))
    assert {name: row["Type"] for name, row in documented.items()} == exported


def test_labels_and_numbers_of_series_are_those_of_a_worker(
    exposition: str, documented: dict[str, dict[str, str]]
) -> None:
    for family in parse_text(exposition):
        row = documented[family.name if family.name in documented else f"{family.name}_total"]
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert set(code(row["Labels"])) == labels, family.name
        number, _, of_each_webhook = row["Series"].partition(" ")
        assert int(number) * (SHOWN if of_each_webhook == "W" else 1) == len(family.samples), (
            family.name
        )


def test_every_value_of_a_label_is_explained(
    exposition: str, documented: dict[str, dict[str, str]]
) -> None:
    for family in parse_text(exposition):
        row = documented[family.name if family.name in documented else f"{family.name}_total"]
        for sample in family.samples:
            for label in sample.labels.keys() & {"status", "cause", "reason", "kind", "phase"}:
                assert sample.labels[label] in code(row["Meaning"]), (family.name, label)


def test_the_cost_in_series_is_the_real_one(exposition: str) -> None:
    series = sum(len(family.samples) for family in parse_text(exposition))
    figures = (
        r"exports ([\d,]+) W \+ ([\d,]+) series: ([\d,]+) at the defaults.* and ([\d,]+) for\sthree"
    )
    found = re.search(figures, METRICS.read_text())
    assert found is not None
    each, fixed, one, three = (int(number.replace(",", "")) for number in found.groups())
    assert (each * SHOWN + fixed, one, three) == (series, series, 3 * series)


def test_how_to_add_workers_up_is_said_of_every_metric(
    documented: dict[str, dict[str, str]],
) -> None:
    gauges = {"max", "min", "sum", "count"}
    for name, row in documented.items():
        assert row["Unit"], name
        words = row["Over workers"]
        assert (
            words.startswith("sum of ")
            if row["Type"] != "gauge"
            else re.split(r"\W", words)[0] in gauges
        ), name
