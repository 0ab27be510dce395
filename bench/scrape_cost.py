"""What a scrape costs a worker: CPU milliseconds of the thread that answers, by the number of
webhooks.

    python -m bench.scrape_cost [--scrapes 51]

A real endpoint over HTTP, with every series filled. The cost is the CPU time of this process minus
that of the thread that sends the requests.
"""

import argparse
import http.client
import socket
import statistics
import time

from webhookd.core.answer import Answer, AnswerKind
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus, ObservedAttempt, QueueCounts
from webhookd.metrics.endpoint import Endpoint

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
FORMATS = {
    "text": {"Accept": "text/plain"},
    "OpenMetrics": {"Accept": OPENMETRICS},
    "OpenMetrics, gzip": {"Accept": OPENMETRICS, "Accept-Encoding": "gzip"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scrapes", type=int, default=51, help="of each kind")
    options = parser.parse_args()
    print(f"{'webhooks':>8}  {'format':18}{'kB':>7}{'median ms':>11}{'min ms':>8}{'max ms':>8}")
    for webhooks in (0, 200, 1000):
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            endpoint = Endpoint(
                sock,
                filled(webhooks),
                alive=lambda: (True, ""),
                ready=lambda: (True, ""),
                targets=lambda: None,
            )
            endpoint.start()
            for name, headers in FORMATS.items():
                answers = [scrape(sock.getsockname()[1], headers) for _ in range(options.scrapes)]
                costs = [cost_s * 1000 for cost_s, _ in answers]
                print(f"{webhooks:8}  {name:18}{answers[-1][1] / 1000:7.0f}", end="")
                print(f"{statistics.median(costs):11.1f}{min(costs):8.1f}{max(costs):8.1f}")
            endpoint.stop()


def filled(webhooks: int) -> Metrics:
    """Return the counts of a worker that gave *webhooks* series of their own and counted one more
    as `other`.
    """
    metrics = Metrics("worker-1", max_webhooks=webhooks)
    answer = Answer(
        AnswerKind.RESPONSE, 0.2, 200, dns_s=0.001, connect_s=0.01, tls_s=0.02, first_byte_s=0.15
    )
    for status in AttemptStatus:
        metrics.observe_attempts(
            ObservedAttempt(1000 + number, status, 0.123 * number % 9, answer)
            for number in range(webhooks + 1)
            for _ in range(100)
        )
    metrics.set_queue(QueueCounts(0, {}, 0.0))
    return metrics


def scrape(port: int, headers: dict[str, str]) -> tuple[float, int]:
    """Return the CPU seconds that one scrape cost the endpoint, and the bytes of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    began = time.process_time() - time.thread_time()
    connection.request("GET", "/metrics", headers=headers)
    size = len(connection.getresponse().read())
    connection.close()
    return time.process_time() - time.thread_time() - began, size


if __name__ == "__main__":
    main()
