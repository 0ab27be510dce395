"""The series of webhooks: who gets some, who loses them, and where they start."""

from tests.support.scrape import OPENMETRICS, Scrape, attempt
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus


class Clock:
    """Monotonic seconds that a test sets. Starts late: idleness must not depend on when the machine
    was started.
    """

    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now

    def pass_hours(self, hours: float) -> None:
        self.now += hours * 3600


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


def test_places_are_freed_for_new_webhooks_without_a_scrape() -> None:
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


def test_prometheus_sees_new_series_at_zero_once_and_all_others_see_what_was_counted() -> None:
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


def test_a_webhook_starts_with_all_its_counters_at_zero() -> None:
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
