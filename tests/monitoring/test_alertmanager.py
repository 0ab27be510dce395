"""The shipped Alertmanager configuration, judged by Alertmanager's own programs."""

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.monitoring.stack import (
    MONITORING,
    alertmanager,
    alertmanager_program,
    get_json,
)
from tests.support.waiting import eventually


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
        ("alertname=WithoutASeverity", "chat"),
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
def test_the_cause_is_sent_and_its_consequences_are_silenced(
    firing: tuple[str, ...],
    silenced: set[str],
    alertmanager_url: str,
    request: pytest.FixtureRequest,
) -> None:
    # One Alertmanager serves all cases: each has its own environment, and by default its own
    # cluster.
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
