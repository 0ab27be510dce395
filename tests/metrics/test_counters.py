"""What a worker's counts look like to Prometheus."""

import pickle
import shutil
import subprocess
import threading
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from webhookd import __version__
from webhookd.core.answer import Answer, AnswerKind
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import (
    AttemptStatus,
    ObservedAttempt,
    QueueCause,
    QueueCounts,
    WakeupCause,
)
from webhookd.metrics.exposition import Exposition

SEED_BUCKETS = {"0.01", "0.05", "0.1", "0.5", "1.0", "2.0", "5.0"}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Scrape:
    """One rendering of *metrics*, parsed."""

    def __init__(self, metrics: Metrics, accept: str = "", *, for_prometheus: bool = False) -> None:
        self.content_type, body = Exposition(metrics).render(accept, for_prometheus=for_prometheus)
        self.text = body.decode()
        parse = parse_openmetrics if "openmetrics" in self.content_type else parse_text
        self.families = {family.name: family for family in parse(self.text)}
        self.samples = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((name, *sorted(labels.items())))

    def webhook_ids(self) -> set[str]:
        return {
            labels["webhook_id"]
            for _, *pairs in self.samples
            if "webhook_id" in (labels := dict(pairs))
        }


class Clock:
    """Monotonic seconds, at a test's will. Starts late: idleness must not depend on when the
    machine was started.
    """

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now

    def pass_hours(self, hours: float) -> None:
        self.now += hours * 3600


def attempt(
    webhook_id: int, status: AttemptStatus = AttemptStatus.DELIVERED, elapsed_s: float = 0.02
) -> ObservedAttempt:
    return ObservedAttempt(webhook_id, status, elapsed_s)


def busy_metrics() -> Metrics:
    metrics = Metrics("worker-1", max_webhooks=2)
    answer = Answer(
        AnswerKind.RESPONSE, 0.2, 200, dns_s=0.001, connect_s=0.01, tls_s=0.02, first_byte_s=0.15
    )
    metrics.observe_attempts(
        [ObservedAttempt(1001, AttemptStatus.DELIVERED, 0.2, answer), attempt(7), attempt(8)]
    )
    metrics.recorded(3, refused=1)
    metrics.claimed(4)
    metrics.woken(WakeupCause.NOTIFY)
    metrics.rate_limited(1001, now=50.0)
    metrics.circuit_opened(7)
    metrics.set_queue(QueueCounts(4, {QueueCause.DUE: 1, QueueCause.PAUSED: 9}, oldest_due_s=1.5))
    metrics.set_health_check(lambda: True)
    return metrics


def test_one_attempt_is_counted_once_under_its_status_and_webhook() -> None:
    metrics = Metrics("worker-1", max_webhooks=10)
    metrics.observe_attempts(
        [attempt(1001)] * 42 + [attempt(1001, AttemptStatus.TIMEOUT), attempt(2)]
    )
    scrape = Scrape(metrics)
    assert 'webhook_deliveries_total{status="delivered",webhook_id="1001"} 42' in scrape.text
    assert scrape.value("webhook_deliveries_total", status="timeout", webhook_id="1001") == 1
    assert scrape.value("webhook_deliveries_total", status="failed", webhook_id="1001") == 0
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="2") == 1


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


def test_the_duration_buckets_hold_those_of_the_first_dashboards_and_reach_beyond_five_seconds() -> (
    None
):
    metrics = Metrics("worker-1", max_webhooks=1)
    metrics.observe_attempts([attempt(5)])
    family = Scrape(metrics).families["webhook_delivery_duration_seconds"]
    bounds = {sample.labels["le"] for sample in family.samples if "le" in sample.labels}
    assert bounds == SEED_BUCKETS | {"10.0", "30.0", "60.0", "120.0", "+Inf"}


def test_a_named_webhook_stays_named_and_other_never_jumps() -> None:
    metrics = Metrics("worker-1", max_webhooks=1)
    assert Scrape(metrics).webhook_ids() == set()
    metrics.observe_attempts([attempt(1)] * 10)
    assert (
        Scrape(metrics).value("webhook_deliveries_total", status="delivered", webhook_id="other")
        == 0
    )
    metrics.observe_attempts([attempt(2), attempt(1)])
    scrape = Scrape(metrics)
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="other") == 1
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="1") == 11


def test_a_webhook_without_anything_to_count_for_an_hour_loses_its_series_and_its_place() -> None:
    clock = Clock()
    metrics = Metrics("worker-1", max_webhooks=2, clock=clock)
    metrics.observe_attempts([attempt(1), attempt(2), attempt(3)])
    clock.pass_hours(0.75)
    metrics.observe_attempts([attempt(2)])
    assert Scrape(metrics).webhook_ids() == {"1", "2", "other"}
    clock.pass_hours(0.5)
    scrape = Scrape(metrics)
    # Nothing of 1 moves to `other`, and `other` stays although there is a free place.
    assert scrape.webhook_ids() == {"2", "other"}
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="other") == 1
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="2") == 2
    metrics.observe_attempts([attempt(3)])
    scrape = Scrape(metrics)
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="3") == 1
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="other") == 1


def test_places_are_freed_for_newcomers_though_nobody_scrapes() -> None:
    clock = Clock()
    metrics = Metrics("worker-1", max_webhooks=1, clock=clock)
    metrics.observe_attempts([attempt(1)])
    clock.pass_hours(1)
    metrics.observe_attempts([attempt(2), attempt(2), attempt(3)])
    scrape = Scrape(metrics)
    assert scrape.webhook_ids() == {"2", "other"}
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="2") == 2
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="other") == 1


def test_a_webhook_that_is_only_held_back_or_whose_circuit_opens_is_not_idle() -> None:
    clock = Clock()
    metrics = Metrics("worker-1", max_webhooks=10, clock=clock)
    metrics.observe_attempts([attempt(1), attempt(2), attempt(3)])
    for _ in range(3):
        clock.pass_hours(0.75)
        metrics.rate_limited(1, now=clock())
        metrics.circuit_opened(2)
        scrape = Scrape(metrics)
    assert scrape.webhook_ids() == {"1", "2"}
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="1") == 1
    assert scrape.value("circuit_breaker_opens_total", webhook_id="2") == 3


def test_prometheus_sees_new_series_at_zero_once_and_everybody_else_sees_what_was_counted() -> None:
    metrics = Metrics("worker-1", max_webhooks=1)
    metrics.observe_attempts([attempt(1), attempt(2)])
    metrics.circuit_opened(1)
    name, labels = "webhook_deliveries_total", {"status": "delivered"}
    assert Scrape(metrics).value(name, webhook_id="1", **labels) == 1
    first = Scrape(metrics, OPENMETRICS, for_prometheus=True)
    assert first.webhook_ids() == {"1", "other"}
    assert {
        value for (_, *pairs), value in first.samples.items() if "webhook_id" in dict(pairs)
    } == {0}
    metrics.observe_attempts([attempt(1)])
    assert Scrape(metrics).value(name, webhook_id="1", **labels) == 2
    second = Scrape(metrics, OPENMETRICS, for_prometheus=True)
    assert second.samples == Scrape(metrics).samples
    assert second.value(name, webhook_id="1", **labels) == 2
    assert second.value(name, webhook_id="other", **labels) == 1
    assert second.value("circuit_breaker_opens_total", webhook_id="1") == 1


def test_a_webhook_that_comes_back_starts_at_zero_again() -> None:
    clock = Clock()
    metrics = Metrics("worker-1", max_webhooks=10, clock=clock)
    metrics.observe_attempts([attempt(1)] * 3)
    name, labels = "webhook_deliveries_total", {"status": "delivered", "webhook_id": "1"}

    def seen() -> float | None:
        return Scrape(metrics, for_prometheus=True).value(name, **labels)

    assert [seen(), seen()] == [0, 3]
    clock.pass_hours(2)
    assert seen() is None
    metrics.observe_attempts([attempt(1)] * 4)
    # From 3 to 4 would read as an increase of 1.
    assert [seen(), seen()] == [0, 4]


def test_a_webhook_is_born_with_all_its_counters_at_zero() -> None:
    metrics = Metrics("worker-1", max_webhooks=10)
    metrics.observe_attempts([attempt(3)])
    assert Scrape(metrics).value("circuit_breaker_opens_total", webhook_id="3") == 0
    assert Scrape(metrics).value("rate_limit_hits_total", webhook_id="3") == 0
    metrics.circuit_opened(3)
    assert Scrape(metrics).value("circuit_breaker_opens_total", webhook_id="3") == 1


def test_a_rate_limit_hit_counts_at_most_once_a_second_a_webhook() -> None:
    metrics = Metrics("worker-1", max_webhooks=10)
    for hundredth in range(250):
        metrics.rate_limited(1, now=1000 + hundredth / 100)
    metrics.rate_limited(2, now=1000.5)
    metrics.rate_limited(2, now=1001.4)
    metrics.rate_limited(2, now=1001.5)
    scrape = Scrape(metrics)
    assert scrape.value("rate_limit_hits_total", webhook_id="1") == 3
    assert scrape.value("rate_limit_hits_total", webhook_id="2") == 2


def test_the_queue_is_absent_until_it_was_counted_and_again_once_it_cannot_be() -> None:
    metrics = Metrics("worker-1", max_webhooks=10)
    assert Scrape(metrics).value("webhook_queue_depth") is None
    metrics.set_queue(
        QueueCounts(12, {QueueCause.DUE: 3, QueueCause.UNREGISTERED: 2}, oldest_due_s=4.5)
    )
    scrape = Scrape(metrics)
    assert scrape.value("webhook_queue_depth") == 12
    assert scrape.value("webhookd_oldest_due_seconds") == 4.5
    by_cause = {
        cause: scrape.value("webhookd_queue_depth_by_cause", cause=cause.value)
        for cause in QueueCause
    }
    assert by_cause == {
        **dict.fromkeys(QueueCause, 0),
        QueueCause.DUE: 3,
        QueueCause.UNREGISTERED: 2,
    }
    metrics.set_queue(None)
    assert Scrape(metrics).value("webhook_queue_depth") is None


def test_health_is_asked_at_every_scrape_and_bad_before_anybody_can_answer() -> None:
    metrics = Metrics("node-a/worker-2", max_webhooks=10)
    name, labels = "worker_health_status", {"worker_id": "node-a/worker-2"}
    assert Scrape(metrics).value(name, **labels) == 0
    answers = iter([True, False])
    metrics.set_health_check(lambda: next(answers))
    assert Scrape(metrics).value(name, **labels) == 1
    assert Scrape(metrics).value(name, **labels) == 0


def test_removed_rows_are_counted_by_table() -> None:
    metrics = Metrics("worker-1", max_webhooks=10)
    assert Scrape(metrics).value("webhookd_removed_rows_total", table="alert_delivery_queue") == 0
    metrics.removed("alert_delivery_queue", 3)
    metrics.removed("alert_delivery_queue", 4)
    metrics.removed("alert_delivery_log", 1)
    assert Scrape(metrics).value("webhookd_removed_rows_total", table="alert_delivery_queue") == 7
    assert Scrape(metrics).value("webhookd_removed_rows_total", table="alert_delivery_log") == 1


def test_claims_records_and_gauges_show_what_was_reported() -> None:
    metrics = Metrics("worker-1", max_webhooks=10)
    metrics.claimed(0)
    metrics.claimed(7)
    metrics.recorded(5, refused=2)
    metrics.leases_lost(3)
    metrics.given_back(4)
    metrics.woken(WakeupCause.NOTIFY)
    metrics.set_senders(threads=8, outstanding=6)
    metrics.set_listener_connected(True)
    metrics.set_database_up(True)
    scrape = Scrape(metrics)
    shown = {
        name.removeprefix("webhookd_"): value
        for (name, *labels), value in scrape.samples.items()
        if not labels
    }
    assert (
        shown.items()
        >= {
            "claims_total": 2,
            "claimed_deliveries_total": 7,
            "records_total": 1,
            "recorded_results_total": 5,
            "refused_results_total": 2,
            "lost_leases_total": 3,
            "given_back_total": 4,
            "sender_threads": 8,
            "deliveries_in_hand": 6,
            "listener_connected": 1,
            "database_up": 1,
            "record_batch_size_count": 1,
            "record_batch_size_sum": 7,
        }.items()
    )
    assert {
        reason: scrape.value("webhookd_wakeups_total", reason=reason) for reason in WakeupCause
    } == {
        **dict.fromkeys(WakeupCause, 0),
        WakeupCause.NOTIFY: 1,
    }
    assert scrape.value("webhookd_build_info", version=__version__) == 1


def test_connections_count_as_opened_or_reused_and_phases_only_where_they_took_place() -> None:
    metrics = Metrics("worker-1", max_webhooks=10)
    opened = Answer(
        AnswerKind.RESPONSE, 1.0, 200, dns_s=0.25, connect_s=0.5, tls_s=0.125, first_byte_s=0.125
    )
    reused = Answer(AnswerKind.RESPONSE, 1.0, 200, reused=True, first_byte_s=0.5)
    refused = Answer(AnswerKind.NO_ANSWER, 1.0, error="refused", dns_s=0.25)
    status = AttemptStatus.FAILED
    metrics.observe_attempts(
        ObservedAttempt(1, status, 1.0, answer) for answer in (opened, reused, reused, refused)
    )
    scrape = Scrape(metrics)
    assert scrape.value("webhookd_http_connections_total", kind="opened") == 1
    assert scrape.value("webhookd_http_connections_total", kind="reused") == 2
    seconds = {
        phase: (
            scrape.value("webhookd_http_phase_seconds_count", phase=phase),
            scrape.value("webhookd_http_phase_seconds_sum", phase=phase),
        )
        for phase in ("dns", "connect", "tls", "first_byte")
    }
    assert seconds == {
        "dns": (2, 0.5),
        "connect": (1, 0.5),
        "tls": (1, 0.125),
        "first_byte": (3, 1.125),
    }


def test_a_snapshot_does_not_change_when_counting_goes_on() -> None:
    metrics = busy_metrics()
    snapshot, _ = metrics.snapshot()
    before = pickle.dumps(snapshot)
    answer = Answer(
        AnswerKind.RESPONSE, 0.2, 200, dns_s=0.001, connect_s=0.01, tls_s=0.02, first_byte_s=0.15
    )
    metrics.observe_attempts(
        ObservedAttempt(webhook_id, AttemptStatus.FAILED, 1.0, answer) for webhook_id in range(10)
    )
    metrics.recorded(3, refused=1)
    metrics.claimed(4)
    metrics.woken(WakeupCause.SWEEP)
    metrics.rate_limited(1001, now=90.0)
    metrics.circuit_opened(8)
    metrics.set_queue(None)
    assert pickle.dumps(snapshot) == before
    assert pickle.dumps(metrics.snapshot()[0]) != before


def test_a_batch_is_counted_whole_or_not_at_all() -> None:
    metrics = Metrics("worker-1", max_webhooks=3)
    seen: list[float | None] = []
    scraper = threading.Thread(
        target=lambda: seen.append(
            Scrape(metrics).value("webhook_deliveries_total", status="delivered", webhook_id="1")
        )
    )

    def batch() -> Iterator[ObservedAttempt]:
        yield attempt(1)
        scraper.start()
        # The scrape has every chance to see half a batch, but has to wait for the rest.
        scraper.join(0.3)
        yield attempt(1)

    metrics.observe_attempts(batch())
    scraper.join(20)
    assert seen == [2]


def test_counts_from_many_threads_are_exact_while_others_scrape() -> None:
    metrics = Metrics("worker-1", max_webhooks=3)
    batch = [attempt(1), attempt(2, AttemptStatus.FAILED), attempt(9), attempt(10)]
    barrier = threading.Barrier(9)

    def count() -> None:
        barrier.wait(20)
        for _ in range(500):
            metrics.observe_attempts(batch)
            metrics.claimed(2)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait(20)
    while any(thread.is_alive() for thread in threads):
        Scrape(metrics)
    scrape = Scrape(metrics)
    assert scrape.value("webhook_deliveries_total", status="delivered", webhook_id="1") == 4000
    assert scrape.value("webhook_delivery_duration_seconds_count", webhook_id="other") == 4000
    assert scrape.value("webhookd_claimed_deliveries_total") == 8000


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
