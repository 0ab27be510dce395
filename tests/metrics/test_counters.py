"""What a worker counts, from many threads at once, and what a scrape then shows."""

import pickle
import threading
from collections.abc import Iterator

from tests.support.scrape import ANSWER, Scrape, attempt, busy_metrics
from webhookd import __version__
from webhookd.core.answer import Answer, AnswerKind
from webhookd.metrics import declarations as declared
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import (
    AttemptStatus,
    ObservedAttempt,
    QueueCause,
    QueueCounts,
    WakeupCause,
)


def test_any_declared_metric_can_be_counted_set_and_observed() -> None:
    metrics = Metrics("worker-1", max_webhooks=1)
    metrics.count(declared.CLAIMS)
    metrics.count(declared.REMOVED_ROWS, 5, label="alert_delivery_log")
    metrics.set(declared.SENDER_THREADS, 3)
    metrics.observe(declared.HTTP_PHASE, 0.5, label="tls")
    scrape = Scrape(metrics)
    assert scrape.value("webhookd_claims_total") == 1
    assert scrape.value("webhookd_removed_rows_total", table="alert_delivery_log") == 5
    assert scrape.value("webhookd_sender_threads") == 3
    assert scrape.value("webhookd_http_phase_seconds_sum", phase="tls") == 0.5


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


def test_health_is_asked_at_every_scrape_and_bad_before_there_is_an_answer() -> None:
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
            "deliveries_outstanding": 6,
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
    metrics.observe_attempts(
        ObservedAttempt(webhook_id, AttemptStatus.FAILED, 1.0, ANSWER) for webhook_id in range(10)
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
