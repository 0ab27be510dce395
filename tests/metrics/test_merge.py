"""Several workers' expositions as one: sums for what is counted, a rule for each gauge, and nothing
lost or invented.
"""

import math
from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhookd.core.answer import Answer, AnswerKind
from webhookd.metrics import merge as merged
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import (
    AttemptStatus,
    ObservedAttempt,
    QueueCause,
    QueueCounts,
    WakeupCause,
)
from webhookd.metrics.declarations import ALL
from webhookd.metrics.exposition import Exposition

CHECK = settings(max_examples=25, deadline=None, database=None, derandomize=True)

Series = dict[str, float]  # a line's name and labels, and its value


def exposition(metrics: Metrics) -> str:
    return Exposition(metrics).render("")[1].decode()


def lines(text: str) -> Series:
    """Read an exposition by itself: what stands before the last space is the series."""
    return {
        series: float(value)
        for series, _, value in (
            line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")
        )
    }


def merge(*texts: str) -> str:
    return merged.to_text(merged.merge(merged.parse(text) for text in texts))


def agree(one: Series, other: Series) -> bool:
    """Whether two expositions say the same, but for the last bit of a sum of seconds."""
    return one.keys() == other.keys() and all(
        math.isclose(one[name], other[name], rel_tol=1e-12) for name in one
    )


@st.composite
def workers(draw: st.DrawFn, name: str = "worker-1") -> str:
    """The exposition of a worker that did this and that."""
    metrics = Metrics(draw(st.sampled_from([name, "worker-2", "host/worker-3"])), max_webhooks=2)
    seconds = st.floats(0.0, 200.0)
    for _ in range(draw(st.integers(0, 4))):
        answer = Answer(
            AnswerKind.RESPONSE, 0.1, 200, dns_s=draw(seconds), first_byte_s=draw(seconds)
        )
        metrics.observe_attempts(
            [
                ObservedAttempt(
                    draw(st.integers(1, 4)),
                    draw(st.sampled_from(AttemptStatus)),
                    draw(seconds),
                    answer,
                )
            ]
        )
    metrics.claimed(draw(st.integers(0, 10)))
    metrics.recorded(draw(st.integers(0, 10)), refused=draw(st.integers(0, 2)))
    metrics.circuit_opened(draw(st.integers(1, 4)))
    metrics.woken(draw(st.sampled_from(WakeupCause)))
    metrics.set_senders(threads=draw(st.integers(0, 64)), outstanding=draw(st.integers(0, 500)))
    metrics.set_listener_connected(draw(st.booleans()))
    metrics.set_database_up(draw(st.booleans()))
    healthy = draw(st.booleans())
    metrics.set_health_check(lambda: healthy)
    if draw(st.booleans()):
        depth = draw(st.integers(0, 10**6))
        metrics.set_queue(
            QueueCounts(depth, {draw(st.sampled_from(QueueCause)): depth}, draw(seconds))
        )
    return exposition(metrics)


@CHECK
@given(workers())
def test_the_merger_of_one_worker_is_what_it_says(text: str) -> None:
    assert agree(lines(merge(text)), lines(text))
    assert sorted(line for line in merge(text).splitlines() if line.startswith("#")) == sorted(
        line for line in text.splitlines() if line.startswith("#")
    )


@CHECK
@given(st.lists(workers(), min_size=1, max_size=4))
def test_counters_and_histograms_are_the_sums_over_the_workers_and_gauges_follow_their_rule(
    texts: list[str],
) -> None:
    counted = {
        family.name
        for text in texts
        for family in merged.parse(text)
        if family.type in ("counter", "histogram")
    }
    found: dict[str, list[float]] = defaultdict(list)
    for text in texts:
        for series, value in lines(text).items():
            found[series].append(value)

    def expected(series: str, values: list[float]) -> float:
        name = series.partition("{")[0]
        if any(name.startswith(family) for family in counted):
            return sum(values)
        return merged.RULES[name](values)

    assert agree(
        lines(merge(*texts)), {series: expected(series, values) for series, values in found.items()}
    )


@settings(CHECK, max_examples=10)
@given(workers(), workers(), workers())
def test_neither_the_order_nor_the_grouping_matters(one: str, two: str, three: str) -> None:
    whole = lines(merge(one, two, three))
    assert agree(lines(merge(three, one, two)), whole)
    assert agree(lines(merge(merge(one, two), three)), whole)


def test_every_gauge_of_a_worker_is_declared_and_every_declared_gauge_is_exported() -> None:
    metrics = Metrics("worker-1", max_webhooks=2)
    metrics.set_queue(QueueCounts(0, {}, 0.0))
    gauges = {family.name for family in merged.parse(exposition(metrics)) if family.type == "gauge"}
    assert gauges == {metric.text_name for metric in ALL if metric.text_type == "gauge"}


@pytest.mark.parametrize(
    ("series", "do", "expected"),
    [
        ("webhook_queue_depth", lambda metrics, n: metrics.set_queue(QueueCounts(n, {}, 0.0)), 7),
        (
            "webhookd_oldest_due_seconds",
            lambda metrics, n: metrics.set_queue(QueueCounts(0, {}, float(n))),
            7,
        ),
        (
            'webhookd_queue_depth_by_cause{cause="due"}',
            lambda metrics, n: metrics.set_queue(QueueCounts(0, {QueueCause.DUE: n}, 0.0)),
            7,
        ),
        (
            "webhookd_sender_threads",
            lambda metrics, n: metrics.set_senders(threads=n, outstanding=0),
            10,
        ),
        (
            "webhookd_deliveries_outstanding",
            lambda metrics, n: metrics.set_senders(threads=0, outstanding=n),
            10,
        ),
        ("webhookd_database_up", lambda metrics, n: metrics.set_database_up(n == 3), 0),
        (
            "webhookd_listener_connected",
            lambda metrics, n: metrics.set_listener_connected(n == 3),
            0,
        ),
        ("webhookd_claims_total", lambda metrics, n: [metrics.claimed(0) for _ in range(n)], 10),
    ],
)
def test_what_a_fleet_of_two_reads(
    series: str, do: Callable[[Metrics, int], object], expected: float
) -> None:
    both = []
    for n in (3, 7):
        metrics = Metrics(f"worker-{n}", max_webhooks=2)
        do(metrics, n)
        both.append(exposition(metrics))
    fleet = lines(merge(*both))
    assert fleet[series] == expected
    assert {name for name in fleet if name.startswith("worker_health")} == {
        'worker_health_status{worker_id="worker-3"}',
        'worker_health_status{worker_id="worker-7"}',
    }


def test_a_queue_depth_is_there_as_long_as_one_worker_can_say_it() -> None:
    silent, telling = Metrics("worker-1", max_webhooks=2), Metrics("worker-2", max_webhooks=2)
    telling.set_queue(QueueCounts(5, {}, 0.0))
    assert lines(merge(exposition(silent), exposition(telling)))["webhook_queue_depth"] == 5
    assert "webhook_queue_depth" not in lines(merge(exposition(silent), exposition(silent)))


def test_as_json_each_series_is_an_object() -> None:
    metrics = Metrics("worker-1", max_webhooks=2)
    metrics.observe_attempts([ObservedAttempt(7, AttemptStatus.FAILED, 0.25)] * 2)
    found = merged.to_json(merged.merge([merged.parse(exposition(metrics))]))
    assert len(found) == len(lines(exposition(metrics)))
    assert {
        "name": "webhook_deliveries_total",
        "type": "counter",
        "labels": {"webhook_id": "7", "status": "failed"},
        "value": 2,
    } in found
    bucket = {"le": "0.5", "webhook_id": "7"}
    assert {
        "name": "webhook_delivery_duration_seconds_bucket",
        "type": "histogram",
        "labels": bucket,
        "value": 2,
    } in found


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.one_of(st.text(), st.text(alphabet='{}="\\,# \n\tabTYPEHL:01.e+-<>')))
def test_what_is_no_exposition_is_a_value_error_and_nothing_else(text: str) -> None:
    try:
        families = merged.parse(text)
    except ValueError:
        return
    merged.to_json(merged.merge([families, families]))
