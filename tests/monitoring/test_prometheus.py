"""The shipped Prometheus configurations, judged by Prometheus' own programs."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.shipped import ALERTS, promtool
from tests.monitoring.stack import (
    MONITORING,
    get_json,
    prometheus,
    prometheus_program,
    query,
)
from tests.support.waiting import eventually
from webhookd.metrics.discovery import target_groups

FIRST_GUIDE_ALERTS = {
    "WorkerDown",
    "HighFailureRate",
    "CriticalFailureRate",
    "HighP99Latency",
    "CircuitBreakerOpen",
    "QueueBackpressure",
    "HighRateLimitHits",
}


def test_prometheus_loads_the_shipped_configuration_and_each_alert_says_what_a_reader_needs(
    tmp_path: Path,
) -> None:
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    with prometheus(prometheus_program(), tmp_path / "monitoring" / "prometheus.yml") as url:
        groups = get_json(f"{url}/api/v1/rules")["data"]["groups"]
    rules = {
        rule["name"]: rule
        for group in groups
        for rule in group["rules"]
        if rule["type"] == "alerting"
    }
    assert set(rules) == set(ALERTS) >= FIRST_GUIDE_ALERTS
    for name, rule in rules.items():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["labels"]["service"] == "webhook-delivery"
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbook.md#{name.lower()}")


def test_the_static_targets_are_the_first_three_workers() -> None:
    job = (
        r'- job_name: (webhook-\S+)\n(?:    .*\n)*?      - targets: \["(\S+)"\]\n'
        r"        labels:\n          worker_id: (\S+)"
    )
    found = re.findall(job, (MONITORING / "prometheus.yml").read_text())
    assert found == [
        (f"webhook-worker-{n}", f"localhost:{7999 + n}", f"worker-{n}") for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.discovery.yml"])
def test_promtool_accepts_the_configuration_with_and_without_the_postgres_job(
    name: str, tmp_path: Path
) -> None:
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    config = tmp_path / "monitoring" / name
    assert promtool("check", "config", str(config)) == 0
    text, commented, job = config.read_text().partition("  #- job_name: postgres\n")
    config.write_text(text + (commented + job).replace("  #", "  "))
    assert "\n  - job_name: postgres\n    static_configs:\n" in config.read_text()
    assert promtool("check", "config", str(config)) == 0


def test_discovered_workers_are_scraped_once_however_many_hosts_list_them(tmp_path: Path) -> None:
    shutil.copytree(MONITORING, tmp_path / "monitoring")
    config = tmp_path / "monitoring" / "prometheus.discovery.yml"
    with _first_worker() as one, _first_worker() as other:
        one.fleet = other.fleet = [("a/worker-1", one.address), ("b/worker-1", other.address)]
        text = (
            config.read_text()
            .replace("localhost:8000", one.address)
            .replace("other-host:8000", other.address)
        )
        text = text.replace("      # - url", "      - url").replace(
            "      #   refresh", "        refresh"
        )
        config.write_text(text.replace("30s", "1s").replace("10s", "1s").replace("5s", "1s"))
        with prometheus(prometheus_program(), config) as url:
            eventually(
                lambda: len(query(url, 'up{service="webhook-delivery"} == 1')) == 2,
                what="two workers scraped",
            )
            assert [target["labels"]["worker_id"] for target in _workers(url)] == [
                "a/worker-1",
                "b/worker-1",
            ]
            # The metric's own worker_id is the target's, and no label was renamed.
            assert {row["metric"]["worker_id"] for row in query(url, "worker_health_status")} == {
                "a/worker-1",
                "b/worker-1",
            }
            assert query(url, '{exported_worker_id!=""}') == []


def _workers(prometheus_url: str) -> list[dict[str, Any]]:
    """Return Prometheus' targets that are workers, in the order of worker_id."""
    targets = get_json(f"{prometheus_url}/api/v1/targets?state=active")["data"]["activeTargets"]
    workers = [
        target for target in targets if target["labels"].get("service") == "webhook-delivery"
    ]
    return sorted(workers, key=lambda target: str(target["labels"]["worker_id"]))


class _FirstWorker(ThreadingHTTPServer):
    """Serves /metrics, and at /targets the addresses of *fleet*: pairs of worker_id and address."""

    fleet: list[tuple[str, str]]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: _FirstWorker

    def do_GET(self) -> None:
        name = next(
            (name for name, address in self.server.fleet if address == self.server.address),
            "unknown",
        )
        is_list = self.path == "/targets"
        body = (
            json.dumps(target_groups(self.server.fleet))
            if is_list
            else f'worker_health_status{{worker_id="{name}"}} 1\n'
        )
        self.send_response(200)
        self.send_header(
            "content-type", "application/json" if is_list else "text/plain; version=0.0.4"
        )
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def _first_worker() -> Iterator[_FirstWorker]:
    with _FirstWorker(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(20)
