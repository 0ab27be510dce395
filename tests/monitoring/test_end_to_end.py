"""From a receiver that fails to an alert that arrives, and back: real Prometheus, real
Alertmanager, the shipped files.

Only durations and ports differ, or it would take a quarter of an hour: each range, `for`, interval
and wait of the shipped files is a few seconds here. promtool tests the rules with their real times.
"""

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.monitoring.stack import (
    MONITORING,
    alertmanager,
    alertmanager_program,
    prometheus,
    prometheus_program,
)
from tests.support.daemon import Daemon, register, wait_until_delivered
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver
from tests.support.waiting import eventually
from webhookd.demo import local

SICK = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
DELIVERIES = 20


def shipped(name: str, folder: Path, *substitutions: tuple[str, str]) -> Path:
    """Copy a shipped file into *folder* with substitutions (pattern and replacement). Each pattern
    must be found.
    """
    text = (MONITORING / name).read_text()
    for pattern, replacement in substitutions:
        text, count = re.subn(pattern, replacement, text)
        assert count, f"{name} does not contain {pattern}"
    (folder / name).write_text(text)
    return folder / name


class Arrivals:
    """What a real `webhookd listen` printed."""

    def __init__(self, log: Path) -> None:
        self._log = log

    @property
    def port(self) -> int:
        found = eventually(
            lambda: re.search(r"listening on http://127\.0\.0\.1:(\d+)", self._log.read_text())
        )
        assert found is not None
        return int(found[1])

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts so far, as Alertmanager posted them, each with its `path`."""
        lines = [
            line
            for line in self._log.read_text().splitlines(keepends=True)
            if line.startswith("{") and line.endswith("\n")
        ]
        return [
            {"path": got["path"], **alert}
            for got in map(json.loads, lines)
            for alert in got["body"]["alerts"]
        ]

    def await_alert(self, name: str, status: str, *, after: int = 0) -> dict[str, Any]:
        """Wait for alert *name* in *status*, and return it as it first came after the first *after*
        alerts.
        """

        def arrived() -> list[dict[str, Any]]:
            alerts = self.alerts()[after:]
            return [
                alert
                for alert in alerts
                if (alert["labels"]["alertname"], alert["status"]) == (name, status)
            ]

        return eventually(arrived, 60, what=f"{name} {status}")[0]


@contextmanager
def listening(folder: Path) -> Iterator[Arrivals]:
    """Run `webhookd listen` on a free port."""
    log = folder / "listen.log"
    with local.program([sys.executable, "-m", "webhookd", "listen", "--port", "0", "--json"], log):
        yield Arrivals(log)


def shorten(folder: Path, *, ports: list[int], alerts_port: int) -> tuple[Path, Path]:
    """Copy the shipped files into *folder* with short durations; return Alertmanager's
    configuration and Prometheus', the latter without Alertmanager's address.
    """
    alertmanager_yml = shipped(
        "alertmanager.yml",
        folder,
        (r"(group_wait|group_interval): .*", r"\1: 1s"),
        (":9000/", f":{alerts_port}/"),
    )
    for name in ("webhook_recording.yml", "webhook_alerts.yml"):
        path = shipped(name, folder, (r"\[\w+\]", "[5s]"), (r"(?m)^( +interval): .*", r"\1: 1s"))
        path.write_text(re.sub(r"(?m)^( +for): .*", r"\1: 1s", path.read_text()))
    prometheus_yml = shipped(
        "prometheus.yml",
        folder,
        (r"(\w+_interval|scrape_timeout): .*", r"\1: 1s"),
        *((f"localhost:800{number}", f"localhost:{port}") for number, port in enumerate(ports)),
    )
    return alertmanager_yml, prometheus_yml


def test_a_failing_receiver_raises_alerts_and_its_recovery_resolves_them(
    database: Database, tmp_path: Path
) -> None:
    programs = prometheus_program(), alertmanager_program()
    recovered = threading.Event()

    def answer(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(OK if recovered.is_set() else SICK)

    with ExitStack() as stack:
        receiver = stack.enter_context(Receiver(answer))
        register(database, receiver, count=1)
        # Two probes a second, so that the receiver keeps failing and its circuit keeps opening.
        daemon = stack.enter_context(
            Daemon(database.dsn, "--circuit-open", "0.5", "--retry-base", "0.2")
        )
        ports = eventually(
            lambda: daemon.metrics_ports() if len(daemon.metrics_ports()) == 3 else [],
            what="three workers",
        )
        arrivals = stack.enter_context(listening(tmp_path))
        alertmanager_yml, prometheus_yml = shorten(tmp_path, ports=ports, alerts_port=arrivals.port)
        alertmanager_url = stack.enter_context(alertmanager(programs[1], alertmanager_yml))
        address = alertmanager_url.removeprefix("http://")
        prometheus_yml.write_text(prometheus_yml.read_text().replace("localhost:9093", address))
        stack.enter_context(prometheus(programs[0], prometheus_yml))
        database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, max_retries)"
            f" SELECT 2000, '{{}}', 1000 FROM generate_series(1, {DELIVERIES})"
        )
        flapping = arrivals.await_alert("CircuitBreakerFlapping", "firing")
        failing = arrivals.await_alert("CriticalFailureRate", "firing")
        assert flapping["labels"]["webhook_id"] == "2000"
        assert (flapping["path"], failing["path"]) == ("/warning", "/critical")
        assert failing["labels"]["cluster"] == "local-dev"

        before = len(arrivals.alerts())
        recovered.set()
        wait_until_delivered(database, DELIVERIES)
        assert (
            arrivals.await_alert("CriticalFailureRate", "resolved", after=before)["labels"]
            == failing["labels"]
        )
        assert (
            arrivals.await_alert("CircuitBreakerFlapping", "resolved", after=before)["labels"]
            == flapping["labels"]
        )
