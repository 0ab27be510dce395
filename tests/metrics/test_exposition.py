"""A worker's metrics as text: formats, buckets, and the declared names, types and labels."""

import shutil
import subprocess

import pytest

from tests.support.scrape import OPENMETRICS, Scrape, attempt, busy_metrics
from webhookd.metrics.counters import Metrics
from webhookd.metrics.declarations import ALL

SEED_BUCKETS = {"0.01", "0.05", "0.1", "0.5", "1.0", "2.0", "5.0"}


def test_what_is_exported_is_what_is_declared_in_that_order_and_with_those_labels() -> None:
    families = Scrape(busy_metrics()).families.values()
    exported = [(family.type, family.documentation) for family in families]
    assert exported == [(metric.text_type, metric.help) for metric in ALL]
    labels = [
        {label for sample in family.samples for label in sample.labels} - {"le"}
        for family in families
    ]
    assert labels == [set(metric.labels) for metric in ALL]


def test_a_histogram_has_inclusive_cumulative_buckets_a_count_and_a_sum() -> None:
    metrics = Metrics("worker-1", max_webhooks=10)
    metrics.observe_attempts(
        [attempt(5, elapsed_s=elapsed_s) for elapsed_s in (0.0, 0.01, 0.011, 4.0, 7.0, 500.0)]
    )
    scrape = Scrape(metrics)
    name = "webhook_delivery_duration_seconds"
    buckets = {
        bound: scrape.value(f"{name}_bucket", le=bound, webhook_id="5")
        for bound in ("0.01", "0.05", "2.0")
    }
    assert buckets == {"0.01": 2, "0.05": 3, "2.0": 3}
    assert scrape.value(f"{name}_bucket", le="5.0", webhook_id="5") == 4
    assert scrape.value(f"{name}_bucket", le="10.0", webhook_id="5") == 5
    assert scrape.value(f"{name}_bucket", le="120.0", webhook_id="5") == 5
    assert scrape.value(f"{name}_bucket", le="+Inf", webhook_id="5") == 6
    assert scrape.value(f"{name}_count", webhook_id="5") == 6
    assert scrape.value(f"{name}_sum", webhook_id="5") == pytest.approx(511.021)


def test_the_duration_buckets_hold_those_of_the_first_dashboards_and_reach_beyond_5_s() -> None:
    metrics = Metrics("worker-1", max_webhooks=1)
    metrics.observe_attempts([attempt(5)])
    family = Scrape(metrics).families["webhook_delivery_duration_seconds"]
    bounds = {sample.labels["le"] for sample in family.samples if "le" in sample.labels}
    assert bounds == SEED_BUCKETS | {"10.0", "30.0", "60.0", "120.0", "+Inf"}


def test_openmetrics_says_the_same_as_the_text_format_and_neither_has_created_series() -> None:
    metrics = busy_metrics()
    text, openmetrics = Scrape(metrics), Scrape(metrics, OPENMETRICS)
    assert text.content_type.startswith("text/plain; version=0.0.4")
    assert openmetrics.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")
    assert openmetrics.samples == text.samples
    assert "_created" not in text.text + openmetrics.text


def test_an_accept_header_that_makes_no_sense_gets_the_text_format() -> None:
    for accept in (
        "application/openmetrics-text; version=latest",
        "text/plain;version=x.y",
        ";;,=",
        "image/png",
    ):
        assert Scrape(Metrics("worker-1", max_webhooks=1), accept).content_type.startswith(
            "text/plain"
        )


def test_promtool_finds_nothing_to_criticise() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    text = Scrape(busy_metrics()).text
    check = subprocess.run(
        [promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (check.returncode, check.stdout + check.stderr) == (0, "")
