"""A worker's counts in the formats that Prometheus reads: its text format and OpenMetrics 1.0.

Names, labels and buckets are those that the project promises (declarations.py); names of our own
start with `webhookd_`. There are no `_created` series: they would add many lines to every scrape,
and no query uses them.

prometheus_client writes the metrics whose number of series is fixed. The lines of the webhooks are
written here, straight from the counts. The library makes an object of each line: through it they
took ten times as long, more than a scrape may cost.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from webhookd import __version__
from webhookd.metrics import declarations as declared
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import Counts, Histogram, WebhookSeries
from webhookd.metrics.declarations import Kind

_DURATION_BOUNDS = (*map(floatToGoString, declared.DELIVERY_DURATION.buckets), "+Inf")


class Exposition:
    """Renders *metrics* when asked; nothing that other code registers globally with
    prometheus_client shows here.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def render(self, accept: str, *, for_prometheus: bool = False) -> tuple[str, bytes]:
        """Return the content type that suits the header *accept* best, and the text, all from one
        snapshot.

        A matter of milliseconds. *for_prometheus*: see `Metrics.snapshot`.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:
            # The library compares versions part by part, and fails for `version=latest`: such a
            # client gets text.
            encode, content_type = choose_encoder("")
        counts, is_healthy = self._metrics.snapshot(for_prometheus=for_prometheus)
        registry = CollectorRegistry()
        registry.register(_Fixed(counts, worker_id=self._metrics.worker_id, is_healthy=is_healthy))
        webhooks = "".join(
            _webhook_lines(counts.labelled(), openmetrics="openmetrics" in content_type)
        )
        return content_type, webhooks.encode() + encode(registry)


class _Fixed:
    """The families whose size does not depend on the webhooks; a registry calls `collect`."""

    def __init__(self, counts: Counts, *, worker_id: str, is_healthy: bool) -> None:
        self._histograms = counts.histograms
        self._values = counts.values | {
            declared.WORKER_HEALTH.name: {worker_id: int(is_healthy)},
            declared.BUILD.name: {__version__: 1},
        }

    def collect(self) -> Iterator[Metric]:
        for metric in declared.FIXED:
            if metric.kind is Kind.HISTOGRAM:
                yield _histogram_family(metric, self._histograms[metric.name])
            elif metric.kind is Kind.INFO:
                [label] = metric.labels
                [value] = self._values[metric.name]
                yield InfoMetricFamily(metric.name, metric.help, value={label: value})
            else:
                yield _number_family(metric, self._values[metric.name])


def _number_family(metric: declared.Metric, series: Mapping[str, float]) -> Metric:
    make = Counter if metric.kind is Kind.COUNTER else Gauge
    family = make(metric.name, metric.help, labels=metric.labels)
    for label, value in series.items():
        family.add_metric([label] if metric.labels else [], value)
    return family


def _histogram_family(metric: declared.Metric, series: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
    for label, histogram in series.items():
        buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
        family.add_metric([label] if metric.labels else [], buckets, histogram.total)
    return family


def _webhook_lines(
    labelled: Sequence[tuple[str, WebhookSeries]], *, openmetrics: bool
) -> Iterator[str]:
    """Yield the webhooks' families. Their labels are numbers and our own words, so nothing needs to
    be escaped.
    """

    def head(metric: declared.Metric) -> str:
        # The formats differ only here: OpenMetrics names a counter's family without its suffix.
        family = metric.name if openmetrics else metric.text_name
        return f"# HELP {family} {metric.help}\n# TYPE {family} {metric.kind}\n"

    yield head(declared.DELIVERIES)
    name = declared.DELIVERIES.text_name
    for webhook_id, series in labelled:
        for status, count in series.attempts.items():
            yield f'{name}{{status="{status}",webhook_id="{webhook_id}"}} {count}\n'
    yield head(declared.DELIVERY_DURATION)
    name = declared.DELIVERY_DURATION.text_name
    for webhook_id, series in labelled:
        count = 0
        for bound, falling in zip(_DURATION_BOUNDS, series.duration.counts, strict=True):
            count += falling
            yield f'{name}_bucket{{le="{bound}",webhook_id="{webhook_id}"}} {count}\n'
        yield f'{name}_count{{webhook_id="{webhook_id}"}} {count}\n'
        yield f'{name}_sum{{webhook_id="{webhook_id}"}} {series.duration.total}\n'
    yield head(declared.RATE_LIMIT_HITS)
    name = declared.RATE_LIMIT_HITS.text_name
    for webhook_id, series in labelled:
        yield f'{name}{{webhook_id="{webhook_id}"}} {series.rate_limit_hits}\n'
    yield head(declared.CIRCUIT_OPENS)
    name = declared.CIRCUIT_OPENS.text_name
    for webhook_id, series in labelled:
        yield f'{name}{{webhook_id="{webhook_id}"}} {series.circuit_opens}\n'
