"""A fleet under mixed load with a real Prometheus and a real Alertmanager, shared by the monitoring
tests.

All programs listen on loopback, on free ports, and end with the context manager that started them.
"""

import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.daemon import Daemon
from tests.support.postgres import Database, Server
from tests.support.receivers import OK, Behaviour, Peer, Receiver, answering, silent
from tests.support.waiting import eventually
from webhookd.demo import local

MONITORING = Path(__file__).parents[2] / "monitoring"
RULE_FILES = ("webhook_recording.yml", "webhook_alerts.yml")

SLOW_ANSWER_S = 0.3
UNREGISTERED = 1099
AT_FIRST = 8  # deliveries for each webhook at once: enough to open a circuit and to exceed a rate
ADD_EVERY_S = 0.5
ENOUGH_WAITING = 30  # a webhook with so many waiting deliveries gets no more


def answering_slowly(peer: Peer) -> None:
    """Answer every request with 200, a while later."""
    while peer.read_request() is not None:
        time.sleep(SLOW_ANSWER_S)
        peer.send(OK)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of webhook: how its receiver behaves, the deliveries that are added every half second,
    and its own columns.
    """

    webhook_id: int
    behaviour: Behaviour
    each_time: int = 1
    settings: Mapping[str, object] | None = None


KINDS = {
    "healthy": Kind(1001, answering(), 5),
    "healthy_too": Kind(1002, answering(), 4),
    "slow": Kind(1003, answering_slowly, 2),
    "failing": Kind(
        1004, answering(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
    ),
    "timing_out": Kind(1005, silent),
    "rate_limited": Kind(1006, answering(), 2, {"rate_limit_per_second": 1, "rate_limit_burst": 2}),
    "not_found": Kind(1007, answering(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")),
    "paused": Kind(1008, answering(), 1, {"enabled": False, "disabled_reason": "paused by a test"}),
}
# Short, so that circuits open, close and open again while a test runs.
OPTIONS = ("--timeout", "1", "--retry-base", "0.5", "--circuit-open", "3")


@dataclass(slots=True)
class Stack:
    """The running fleet. *metrics_ports* are those of worker-1, worker-2, worker-3; *webhooks* maps
    names to ids: the names in KINDS and `unregistered`, which has deliveries but no row in
    pggit.webhooks.
    """

    database: Database
    daemon: Daemon
    metrics_ports: list[int]
    webhooks: dict[str, int]
    prometheus_url: str
    alertmanager_url: str

    @property
    def dsn(self) -> str:
        return self.database.dsn

    def query(self, promql: str) -> list[dict[str, Any]]:
        """Return the samples of an instant query, each with `metric` and `value`; raise
        `AssertionError` if it is refused.
        """
        return query(self.prometheus_url, promql)


@contextmanager
def busy_stack(server: Server, folder: Path) -> Iterator[Stack]:
    """Three workers under mixed load that goes on until the end, scraped every second; *folder*
    holds files and logs.

    Blocks until Prometheus has every kind of data. Skips the test where Prometheus or Alertmanager
    is not installed.
    """
    programs = prometheus_program(), alertmanager_program()
    with ExitStack() as stack:
        database = server.create_migrated()
        stack.callback(server.drop, database)
        receivers = {
            name: stack.enter_context(Receiver(kind.behaviour)) for name, kind in KINDS.items()
        }
        register(database, receivers)
        daemon = stack.enter_context(Daemon(database.dsn, *OPTIONS, "--log-level", "info"))
        ports = eventually(
            lambda: daemon.metrics_ports() if len(daemon.metrics_ports()) == 3 else [],
            what="three workers",
        )
        stack.enter_context(load(database))
        alertmanager_yml = folder / "alertmanager.yml"
        alertmanager_yml.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
        alertmanager_url = stack.enter_context(alertmanager(programs[1], alertmanager_yml))
        config = folder / "prometheus.yml"
        config.write_text(
            json.dumps(prometheus_config(ports, alertmanager_url, evaluated_each_second(folder)))
        )
        prometheus_url = stack.enter_context(prometheus(programs[0], config))
        webhooks = {
            **{name: kind.webhook_id for name, kind in KINDS.items()},
            "unregistered": UNREGISTERED,
        }
        busy = Stack(database, daemon, ports, webhooks, prometheus_url, alertmanager_url)
        for promql, series in (
            ("up == 1", 3),
            ("count by (status) (webhook_deliveries_total > 0)", 3),
            ("rate_limit_hits_total > 0", 1),
            ("circuit_breaker_opens_total > 0", 1),
            ("webhookd:attempts:rate5m > 0", 3),
            ("webhookd:circuit_opens:increase1h > 0", 1),
        ):
            await_series(busy, promql, series)
        yield busy


def await_series(busy: Stack, promql: str, count: int) -> None:
    eventually(lambda: len(busy.query(promql)) >= count, 60, what=promql)


def register(database: Database, receivers: Mapping[str, Receiver]) -> None:
    """Register a webhook for each of *receivers* (named as in KINDS)."""
    with database.connect() as connection:
        for name, receiver in receivers.items():
            row = {
                "webhook_id": KINDS[name].webhook_id,
                "url": receiver.url(f"/{name}"),
                **(KINDS[name].settings or {}),
            }
            columns, values = ", ".join(row), ", ".join(f"%({column})s" for column in row)
            connection.execute(
                f"INSERT INTO pggit.webhooks ({columns}) VALUES ({values})".encode(), row
            )


@contextmanager
def load(database: Database) -> Iterator[None]:
    """Insert deliveries from a thread until the end: some for each webhook at first, then a few
    every half second.
    """
    rows = [(kind.webhook_id, kind.each_time) for kind in KINDS.values()] + [(UNREGISTERED, 1)]
    statement = (
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
        " SELECT %(webhook_id)s, jsonb_build_object('n', n) FROM generate_series(1, %(count)s) n"
        " WHERE (SELECT count(*) FROM pggit.alert_delivery_queue q"
        "         WHERE q.webhook_id = %(webhook_id)s"
        "         AND q.delivery_status IN ('pending', 'retrying')) < %(enough)s"
    )
    stopping = threading.Event()

    def insert(connection: psycopg.Connection[Any]) -> None:
        with connection:
            at_least = AT_FIRST
            while True:
                for webhook_id, each_time in rows:
                    count = max(each_time, at_least)
                    connection.execute(
                        statement.encode(),
                        {"webhook_id": webhook_id, "count": count, "enough": ENOUGH_WAITING},
                    )
                at_least = 0
                if stopping.wait(ADD_EVERY_S):
                    return

    thread = threading.Thread(target=insert, args=(database.connect(),), name="load")
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(20)


def prometheus_config(
    ports: Sequence[int], alertmanager_url: str, rules: Sequence[Path]
) -> dict[str, Any]:
    """Return a configuration that scrapes and evaluates every second, in the jobs and labels of
    monitoring/prometheus.yml.
    """
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "alerting": {
            "alertmanagers": [
                {"static_configs": [{"targets": [alertmanager_url.removeprefix("http://")]}]}
            ]
        },
        "scrape_configs": [
            {
                "job_name": f"webhook-worker-{number}",
                "honor_labels": True,
                "static_configs": [
                    {
                        "targets": [f"127.0.0.1:{port}"],
                        "labels": {"worker_id": f"worker-{number}", "service": "webhook-delivery"},
                    }
                ],
            }
            for number, port in enumerate(ports, 1)
        ],
    }


def evaluated_each_second(folder: Path) -> list[Path]:
    """Copy the shipped rules into *folder*, with one change: every group is evaluated each
    second.
    """
    copies = []
    for name in RULE_FILES:
        copy = folder / name
        copy.write_text(
            re.sub(r"(?m)^( +)interval: .*$", r"\1interval: 1s", (MONITORING / name).read_text())
        )
        copies.append(copy)
    return copies


def prometheus_program() -> str:
    """Return Prometheus' path, or skip the test."""
    return shutil.which("prometheus") or pytest.skip("NO PROMETHEUS: install Debian's prometheus")


def alertmanager_program() -> str:
    """Return Alertmanager's path, or skip the test."""
    # Debian's name, and that of other packages.
    found = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    return found or pytest.skip("NO ALERTMANAGER: install Debian's prometheus-alertmanager")


@contextmanager
def prometheus(program: str, config: Path) -> Iterator[str]:
    """Run Prometheus with *config*, its data and its log beside that file; yield its URL when it is
    ready.
    """
    data = config.parent / "prometheus-data"
    with _running(
        [program, f"--config.file={config}", f"--storage.tsdb.path={data}"],
        config.with_suffix(".log"),
    ) as url:
        yield url


@contextmanager
def alertmanager(program: str, config: Path) -> Iterator[str]:
    """Run Alertmanager with *config*, its data and its log beside that file; yield its URL when it
    is ready.
    """
    data = config.parent / "alertmanager-data"
    # Without the last option it would listen for peers on another port.
    options = [f"--config.file={config}", f"--storage.path={data}", "--cluster.listen-address="]
    with _running([program, *options], config.with_suffix(".log")) as url:
        yield url


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[str]:
    with local.program([*command, "--web.listen-address=127.0.0.1:0"], log) as process:

        def url() -> str | None:
            assert process.poll() is None, f"{command[0]} ended:\n{log.read_text()}"
            found = re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', log.read_text())
            return f"http://{found[1]}" if found else None

        base = eventually(url, what=f"{command[0]} listens")
        assert base is not None
        eventually(lambda: _answers(f"{base}/-/ready"), what=f"{command[0]} is ready")
        yield base


def query(prometheus_url: str, promql: str) -> list[dict[str, Any]]:
    """Return the samples of an instant query; raise `AssertionError` with Prometheus' message if it
    is refused.
    """
    try:
        answer = get_json(
            f"{prometheus_url}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
        )
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{promql}: {error.read().decode()}") from error
    result = answer["data"]["result"]
    if answer["data"]["resultType"] in ("scalar", "string"):
        return [{"metric": {}, "value": result}]
    assert isinstance(result, list)
    return result


def get(url: str) -> bytes:
    """Return the body of *url*; raise `urllib.error.HTTPError` for an answer that is an error."""
    with urllib.request.urlopen(url, timeout=20) as response:
        body: bytes = response.read()
        return body


def get_json(url: str) -> Any:
    """Return what *url* serves as JSON."""
    return json.loads(get(url))


def _answers(url: str) -> bool:
    try:
        get(url)
    except urllib.error.URLError:
        return False
    return True
