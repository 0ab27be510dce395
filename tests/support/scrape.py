"""What a worker's metrics look like to Prometheus."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from webhookd.core.answer import Answer, AnswerKind
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import (
    AttemptStatus,
    ObservedAttempt,
    QueueCause,
    QueueCounts,
    WakeupCause,
)
from webhookd.metrics.declarations import HELD_WEBHOOKS
from webhookd.metrics.exposition import Exposition

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
ANSWER = Answer(
    AnswerKind.RESPONSE, 0.2, 200, dns_s=0.001, connect_s=0.01, tls_s=0.02, first_byte_s=0.15
)


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


def attempt(
    webhook_id: int, status: AttemptStatus = AttemptStatus.DELIVERED, elapsed_s: float = 0.02
) -> ObservedAttempt:
    return ObservedAttempt(webhook_id, status, elapsed_s)


def busy_metrics() -> Metrics:
    metrics = Metrics("worker-1", max_webhooks=2)
    metrics.observe_attempts(
        [ObservedAttempt(1001, AttemptStatus.DELIVERED, 0.2, ANSWER), attempt(7), attempt(8)]
    )
    metrics.recorded(3, refused=1)
    metrics.claimed(4)
    metrics.woken(WakeupCause.NOTIFY)
    metrics.rate_limited(1001, now=50.0)
    metrics.circuit_opened(7)
    metrics.set_queue(QueueCounts(4, {QueueCause.DUE: 1, QueueCause.PAUSED: 9}, oldest_due_s=1.5))
    metrics.set(HELD_WEBHOOKS, 1)
    metrics.set_health_check(lambda: True)
    return metrics
