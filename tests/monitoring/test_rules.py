"""The shipped Prometheus and Alertmanager files, judged by Prometheus' and Alertmanager's own
programs.

What each alert must do is written in rules/*.yml, for promtool; here are those run, and it is shown
that they can fail.
"""

import json
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring.stack import (
    alertmanager,
    alertmanager_program,
    get_json,
    prometheus,
    prometheus_program,
    query,
)
from tests.support.waiting import eventually
from webhookd.metrics.counters import Metrics
from webhookd.metrics.discovery import target_groups
from webhookd.metrics.exposition import Exposition

MONITORING = Path(__file__).parents[2] / "monitoring"
RULE_TESTS = sorted((Path(__file__).parent / "rules").glob("*.yml"))
ALERTS = re.findall(r"(?m)^ +- alert: (\w+)$", (MONITORING / "webhook_alerts.yml").read_text())
_OURS = ("webhook_", "webhookd_", "webhookd:", "worker_health_", "rate_limit_", "circuit_breaker_")
FIRST_GUIDE_ALERTS = {
    "WorkerDown",
    "HighFailureRate",
    "CriticalFailureRate",
    "HighP99Latency",
    "CircuitBreakerOpen",
    "QueueBackpressure",
    "HighRateLimitHits",
}


def test_every_rule_test_passes() -> None:
    # All at once: promtool uses one processor.
    runs = [
        subprocess.Popen([promtool_program(), "test", "rules", str(path)]) for path in RULE_TESTS
    ]
    assert {path.name: run.wait(120) for path, run in zip(RULE_TESTS, runs, strict=True)} == {
        path.name: 0 for path in RULE_TESTS
    }


def test_for_each_alert_there_is_a_case_in_which_it_must_fire(tmp_path: Path) -> None:
    output = _test_rules_with(
        tmp_path, {alert: "vector(0) > 1" for alert in ALERTS}, cases="exp_annotations:", every="5m"
    )
    assert set(re.findall(r"alertname: (\w+), time", output)) == set(ALERTS)


def test_for_each_alert_there_is_a_fleet_in_which_it_must_be_silent(tmp_path: Path) -> None:
    output = _test_rules_with(
        tmp_path, {alert: "vector(1)" for alert in ALERTS}, cases="[70m]", every="5m"
    )
    fleets = re.findall(r"got: (.*)", output)
    assert [set(re.findall(r'alertname="(\w+)"', fleet)) for fleet in fleets] == [set(ALERTS)] * 3


# The expressions of the first monitoring guide, and the case that each of them misses.
FIRST_GUIDE = {
    "WorkerDown": ("worker_health_status == 0", "A process that died"),
    "CircuitBreakerOpen": ("increase(circuit_breaker_opens_total[1h]) > 0", "born at 1, since"),
    "HighFailureRate": (
        '(sum(rate(webhook_deliveries_total{status="failed"}[5m])) / '
        "sum(rate(webhook_deliveries_total[5m]))) > 0.05",
        "A tenth of all attempts times out",
    ),
    "CriticalFailureRate": (
        '(sum(rate(webhook_deliveries_total{status="failed"}[5m])) / '
        "sum(rate(webhook_deliveries_total[5m]))) > 0.20",
        "A tenth fails and a fifth times out",
    ),
    "HighP99Latency": (
        "histogram_quantile(0.99, rate(webhook_delivery_duration_seconds_bucket[5m])) > 5",
        "Every fiftieth attempt",
    ),
    "QueueBackpressure": ("webhook_queue_depth > 1000", "of a paused webhook page nobody"),
    "HighRateLimitHits": (
        "increase(rate_limit_hits_total[5m]) > 100",
        "A webhook's rate is exceeded",
    ),
}


@pytest.mark.parametrize("alert", FIRST_GUIDE)
def test_the_first_guides_expression_fails_the_case_that_it_misses(
    alert: str, tmp_path: Path
) -> None:
    expression, case = FIRST_GUIDE[alert]
    assert alert in _test_rules_with(tmp_path, {alert: expression}, cases=case)


MISTAKES = {
    "openings of before Prometheus' start are taken for new": (
        "webhookd:circuit_opens:born1h",
        "min_over_time(circuit_breaker_opens_total[1h]) unless circuit_breaker_opens_total "
        "offset 1h",
        "Prometheus starts when",
    ),
    "a series that ended is taken for one that was born": (
        "webhookd:circuit_opens:born1h",
        "min_over_time(circuit_breaker_opens_total[1h]) and "
        "(count_over_time(circuit_breaker_opens_total[1h])"
        " < on (job, instance) group_left () count_over_time(worker_health_status[1h]))",
        "A worker is restarted",
    ),
    "queues are added up over workers": (
        "webhookd:queue_waiting:max",
        "sum(webhook_queue_depth)",
        "see 900 are not 1,800",
    ),
    "a night without traffic is 0/0": (
        "webhookd:failure_ratio:rate5m",
        "webhookd:failed_attempts:rate5m / sum(rate(webhook_deliveries_total[5m]))",
        "A quiet night",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_what_is_recorded_fails(mistake: str, tmp_path: Path) -> None:
    record, expression, case = MISTAKES[mistake]
    _test_rules_with(tmp_path, {record: expression}, cases=case)


def test_rules_ask_only_for_metrics_that_are_exported_or_recorded() -> None:
    for path in MONITORING.glob("webhook_*.yml"):
        rules = re.sub(r"(?m)^ *(#|- name:|- record:).*", "", path.read_text())
        assert asked_for(rules) <= known_metrics()


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
    job = r'- job_name: (webhook-\S+)\n(?:    .*\n)*?      - targets: \["(\S+)"\]\n        labels:\n          worker_id: (\S+)'
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
            # The metric's own worker_id is what the target was labelled with, and nothing was
            # renamed.
            assert {row["metric"]["worker_id"] for row in query(url, "worker_health_status")} == {
                "a/worker-1",
                "b/worker-1",
            }
            assert query(url, '{exported_worker_id!=""}') == []


def test_amtool_accepts_the_routes_and_each_severity_reaches_its_receiver() -> None:
    amtool = shutil.which("amtool") or pytest.skip(
        "NO AMTOOL: install Debian's prometheus-alertmanager"
    )
    config = str(MONITORING / "alertmanager.yml")
    subprocess.run([amtool, "check-config", config], check=True, timeout=30)
    for label, receiver in (
        ("severity=critical", "pager"),
        ("severity=warning", "chat"),
        ("severity=info", "log"),
        ("alertname=NobodyGaveItASeverity", "chat"),
    ):
        command = [
            amtool,
            "config",
            "routes",
            "test",
            f"--config.file={config}",
            label,
            "service=webhook-delivery",
        ]
        assert subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=True
        ).stdout.split() == [receiver]


@pytest.mark.parametrize(
    ("firing", "silenced"),
    [
        (
            (
                "DatabaseUnreachable",
                "WorkerDown worker_id=worker-1",
                "QueueBackpressure",
                "CircuitBreakerOpen webhook_id=7",
            ),
            {"WorkerDown worker_id=worker-1", "QueueBackpressure"},
        ),
        (
            (
                "DatabaseUnreachable",
                "WorkerDatabaseUnreachable worker_id=worker-1",
                "DeliveriesOverdue",
                "QueueUnmeasured",
            ),
            {
                "WorkerDatabaseUnreachable worker_id=worker-1",
                "DeliveriesOverdue",
                "QueueUnmeasured",
            },
        ),
        (
            (
                "WorkerDown worker_id=worker-1",
                "ListenerDown worker_id=worker-1",
                "ListenerDown worker_id=worker-2",
                "QueueUnmeasured",
            ),
            {"ListenerDown worker_id=worker-1", "QueueUnmeasured"},
        ),
        (
            ("CriticalFailureRate", "HighFailureRate", "FailedDeliveries"),
            {"HighFailureRate", "FailedDeliveries"},
        ),
        (
            ("DeliveriesOverdue", "QueueBackpressure", "QueueGrowing"),
            {"QueueBackpressure", "QueueGrowing"},
        ),
        (
            (
                "CircuitBreakerFlapping webhook_id=7",
                "CircuitBreakerOpen webhook_id=7",
                "CircuitBreakerOpen webhook_id=8",
            ),
            {"CircuitBreakerOpen webhook_id=7"},
        ),
        (
            (
                "CriticalFailureRate",
                "HighFailureRate",
                "DatabaseUnreachable cluster=elsewhere",
                "WorkerDown",
            ),
            {"HighFailureRate"},
        ),
    ],
)
def test_the_cause_speaks_and_what_follows_from_it_is_silent(
    firing: tuple[str, ...],
    silenced: set[str],
    alertmanager_url: str,
    request: pytest.FixtureRequest,
) -> None:
    # One Alertmanager serves all cases: each has an environment, and by default a cluster, of its
    # own.
    case = request.node.callspec.id
    labels = {}
    for alert in firing:
        name, *pairs = alert.split()
        labels[alert] = {
            "cluster": case,
            **dict(pair.split("=") for pair in pairs),
            "alertname": name,
            "environment": case,
        }
    _post_alerts(
        alertmanager_url, [{**each, "service": "webhook-delivery"} for each in labels.values()]
    )

    def inhibited() -> set[str]:
        alerts = get_json(f"{alertmanager_url}/api/v2/alerts?filter=environment%3D%22{case}%22")
        assert len(alerts) == len(firing)
        silent = [alert["labels"] for alert in alerts if alert["status"]["inhibitedBy"]]
        return {
            alert
            for alert in firing
            if any(labels[alert].items() <= each.items() for each in silent)
        }

    eventually(lambda: inhibited() == silenced, what=f"{silenced} silenced")


@pytest.fixture(scope="module")
def alertmanager_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = tmp_path_factory.mktemp("alertmanager") / "alertmanager.yml"
    shutil.copy(MONITORING / "alertmanager.yml", config)
    with alertmanager(alertmanager_program(), config) as url:
        yield url


def _post_alerts(url: str, alerts: list[dict[str, str]]) -> None:
    now = datetime.now(UTC).isoformat()
    body = json.dumps([{"labels": labels, "startsAt": now} for labels in alerts]).encode()
    request = urllib.request.Request(
        f"{url}/api/v2/alerts", body, {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=20).close()


def known_metrics() -> set[str]:
    """Return the names of the series that workers export and that the shipped rules record."""
    names = {
        "up",
        *re.findall(
            r"(?m)- record: (.+)$",
            "".join(path.read_text() for path in MONITORING.glob("webhook_*.yml")),
        ),
    }
    _, exposition = Exposition(Metrics("worker-1", max_webhooks=1)).render("")
    for name, kind in re.findall(r"(?m)^# TYPE (\S+) (\S+)$", exposition.decode()):
        names |= (
            {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
        )
    return names


def asked_for(promql: str) -> set[str]:
    """Return the names in *promql* that look like webhookd's."""
    words = set(re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r'"[^"]*"', "", promql)))
    return {word for word in words if word.startswith(_OURS)} - {"webhook_id"}


def promtool_program() -> str:
    """Return promtool's path, or skip the test."""
    return shutil.which("promtool") or pytest.skip("NO PROMTOOL: install Debian's prometheus")


def promtool(*arguments: str) -> int:
    """Return promtool's exit code, or skip the test; what it prints shows where a test fails."""
    return subprocess.run([promtool_program(), *arguments], check=False, timeout=120).returncode


def _test_rules_with(
    folder: Path, expressions: dict[str, str], *, cases: str, every: str = ""
) -> str:
    """Run the cases that contain the text *cases* on rules in which *expressions* replace those of
    alerts and records.

    Returns what promtool says; fails if it is content. *every*: how often rules are evaluated,
    where less often will do.
    """
    (folder / "monitoring").mkdir()
    for path in MONITORING.glob("webhook_*.yml"):
        text = path.read_text()
        for name, expression in expressions.items():
            rule = re.compile(
                rf"(?s)(- (?:alert|record): {name}\n +)expr: .*?(?=\n+ +(?:- |#|for:|labels:))"
            )
            # As a function, so that a backslash of the expression stays one.
            replacement = f"expr: {json.dumps(expression)}".replace("\\", r"\\")
            text = rule.sub(rf"\g<1>{replacement}", text)
        (folder / "monitoring" / path.name).write_text(text)
    copies = folder / "tests" / "monitoring" / "rules"
    copies.mkdir(parents=True)
    for path in RULE_TESTS:
        head, *found = re.split(r"(?m)^(?=  - name: )", path.read_text())
        head = (
            re.sub(r"(?m)^evaluation_interval: .*", f"evaluation_interval: {every}", head)
            if every
            else head
        )
        if chosen := [case for case in found if cases in case]:
            (copies / path.name).write_text(head + "".join(chosen))
    command = [promtool_program(), "test", "rules", *map(str, copies.iterdir())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "FAILED:\n" in output, output
    return output


def _workers(prometheus_url: str) -> list[dict[str, Any]]:
    """Return the targets that are workers, as Prometheus sees them, by worker_id."""
    targets = get_json(f"{prometheus_url}/api/v1/targets?state=active")["data"]["activeTargets"]
    workers = [
        target for target in targets if target["labels"].get("service") == "webhook-delivery"
    ]
    return sorted(workers, key=lambda target: str(target["labels"]["worker_id"]))


class _FirstWorker(ThreadingHTTPServer):
    """Serves /metrics, and at /targets where *fleet* (pairs of worker_id and address) serves its
    metrics.
    """

    fleet: list[tuple[str, str]]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: _FirstWorker

    def do_GET(self) -> None:
        name = next(
            (name for name, address in self.server.fleet if address == self.server.address),
            "nobody",
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
