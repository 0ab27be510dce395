"""`make monitoring`: three workers under load with Prometheus and Alertmanager on this machine, and
what to look at.

Debian's prometheus and prometheus-alertmanager are installed if they are missing. The database, all
data and all logs are in a temporary folder that is removed at the end. Everything listens on
loopback only.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from webhookd.demo import local
from webhookd.errors import WebhookdError
from webhookd.schema.migrate import migrate

HERE = Path(__file__).resolve().parent
# Debian's packages, and the names of their programs: in Debian, then elsewhere.
PACKAGES = {
    "prometheus": ("prometheus",),
    "prometheus-alertmanager": ("prometheus-alertmanager", "alertmanager"),
}
READY_WITHIN_S = 60.0
LOAD_EVERY_S = 0.5
ENOUGH_WAITING = 200  # a webhook with so many waiting deliveries gets no more: a bounded queue

GRAPHS = {
    "attempts a second, by outcome": "sum by (status) (rate(webhook_deliveries_total[1m]))",
    "p99 of the answers, in seconds": (
        "histogram_quantile(0.99, sum by (le) (rate(webhook_delivery_duration_seconds_bucket[1m])))"
    ),
    "what waits, by cause": "max by (cause) (webhookd_queue_depth_by_cause)",
}


@dataclass(frozen=True, slots=True)
class Webhook:
    """Its receiver answers *status* after *delay_s*, but 500 in every other *sick_minutes*.
    *each_time* deliveries are inserted every half second.
    """

    what: str
    each_time: int = 1
    status: int = 200
    delay_s: float = 0.0
    sick_minutes: float = 0.0
    columns: Mapping[str, object] = field(default_factory=dict)

    def answer(self) -> int:
        time.sleep(self.delay_s)
        sick = self.sick_minutes and time.time() // (60 * self.sick_minutes) % 2 == 1
        return 500 if sick else self.status


WEBHOOKS = {
    **{webhook_id: Webhook("answers at once", each_time=3) for webhook_id in range(2001, 2005)},
    2005: Webhook("takes half a second", each_time=2, delay_s=0.5),
    2006: Webhook("answers 500", status=500),
    2007: Webhook("answers 500 every other minute", sick_minutes=1),
    2008: Webhook("answers after its timeout of 1 s", delay_s=3, columns={"timeout_seconds": 1}),
    2009: Webhook("answers 404", status=404),
    2010: Webhook(
        "is limited to 1 a second", columns={"rate_limit_per_second": 1, "rate_limit_burst": 1}
    ),
    2011: Webhook(
        "is paused", columns={"enabled": False, "disabled_reason": "paused to try it out"}
    ),
}
UNREGISTERED = 2012


def main(arguments: Sequence[str]) -> int:
    """Run until Ctrl-C, SIGTERM or --seconds; return the exit code."""
    options = _parse(arguments)
    local.leave_on_sigterm()
    try:
        with ExitStack() as stack:
            _refuse_taken_ports(options)
            _install_what_is_missing()
            TryOut(stack, options).run()
    except KeyboardInterrupt:
        print("everything is stopped")
    except WebhookdError as error:
        print(f"make monitoring: {error}", file=sys.stderr)
        return 1
    return 0


class TryOut:
    """Everything that runs; it ends with *stack*."""

    def __init__(self, stack: ExitStack, options: argparse.Namespace) -> None:
        self._stack = stack
        self._options = options
        self._home = stack.enter_context(local.folder("webhookd-monitoring-"))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._dsn = ""

    def run(self) -> None:
        """Start all programs, print what to open, then insert deliveries. Raise `WebhookdError` if
        a program does not start or ends early.
        """
        self._tell("starting PostgreSQL, three workers, Alertmanager and Prometheus ...")
        self._dsn = self._stack.enter_context(local.postgresql(self._home / "postgres"))
        migrate(self._dsn)
        port = self._stack.enter_context(
            local.receivers(lambda webhook_id, _: WEBHOOKS[webhook_id].answer())
        )
        try:
            with psycopg.connect(self._dsn, autocommit=True) as connection:
                register(connection, port)
                self._start()
                self._tell(self._what_to_open())
                self._feed(connection)
        except psycopg.Error as error:
            raise WebhookdError(f"the database failed: {error}") from error

    def _start(self) -> None:
        options = self._options
        configuration = self._copy_configuration()
        self._program(
            "webhookd", local.webhookd(self._dsn, "--metrics-port", str(options.metrics_port))
        )
        self._program(
            "alerts",
            [sys.executable, "-m", "webhookd", "listen", "--port", str(options.alerts_port)],
        )
        alertmanager = [
            _program_of("prometheus-alertmanager"),
            f"--config.file={configuration / 'alertmanager.yml'}",
            f"--storage.path={self._home / 'alertmanager'}",
            *_addresses(options.alertmanager_port),
            "--cluster.listen-address=",  # no cluster, and no further port for it
        ]
        self._program("alertmanager", alertmanager)
        prometheus = [
            _program_of("prometheus"),
            f"--config.file={configuration / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._home / 'prometheus'}",
            *_addresses(options.prometheus_port),
        ]
        self._program("prometheus", prometheus)
        ready = [f"{_loopback(options.metrics_port + i)}/readyz" for i in range(3)]
        ready += [
            f"{_loopback(port)}/-/ready"
            for port in (options.alertmanager_port, options.prometheus_port)
        ]
        deadline = time.monotonic() + READY_WITHIN_S
        while not all(_answers(url) for url in ready):
            self._check()
            if time.monotonic() > deadline:
                raise WebhookdError(
                    f"not everything was ready within {READY_WITHIN_S:g} s; the logs were in "
                    f"{self._home}"
                )
            time.sleep(0.1)

    def _copy_configuration(self) -> Path:
        """Copy monitoring/*.yml as shipped, but for other ports where options ask for them."""
        options = self._options
        ports = {8000 + number: options.metrics_port + number for number in range(3)}
        ports |= {
            9090: options.prometheus_port,
            9093: options.alertmanager_port,
            9000: options.alerts_port,
        }
        copy = self._home / "monitoring"
        copy.mkdir()
        for path in HERE.glob("*.yml"):
            text = re.sub(
                r"(?<=localhost:)\d+",
                lambda port: str(ports.get(int(port[0]), port[0])),
                path.read_text(),
            )
            (copy / path.name).write_text(text)
        return copy

    def _program(self, name: str, command: Sequence[str]) -> None:
        self._processes[name] = self._stack.enter_context(
            local.program(command, self._home / f"{name}.log")
        )

    def _feed(self, connection: psycopg.Connection[Any]) -> None:
        end = (
            time.monotonic() + self._options.seconds
            if self._options.seconds is not None
            else float("inf")
        )
        while time.monotonic() < end:
            self._check()
            insert(connection)
            time.sleep(LOAD_EVERY_S)

    def _check(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                lines = (self._home / f"{name}.log").read_text().strip().splitlines() or ["nothing"]
                raise WebhookdError(f"{name} ended; its last line of output: {lines[-1]}")

    def _what_to_open(self) -> str:
        options = self._options
        prometheus, alertmanager = (
            _loopback(options.prometheus_port),
            _loopback(options.alertmanager_port),
        )
        if not _answers(f"{prometheus}/targets"):
            prometheus += "/classic"  # Debian's has only the old pages, its Alertmanager has none
        webhookd = _shown(Path(sys.executable).with_name("webhookd"))
        pages = {
            "the workers, as Prometheus sees them": f"{prometheus}/targets",
            "the alerts; the first fire within a minute or two, others need ten": (
                f"{prometheus}/alerts"
            ),
            **{f"graph: {what}": graph_url(prometheus, promql) for what, promql in GRAPHS.items()},
            "the alerts that reached Alertmanager": f"{alertmanager}/api/v2/alerts",
            **{
                f"metrics of worker-{i + 1}": f"{_loopback(options.metrics_port + i)}/metrics"
                for i in range(3)
            },
        }
        ending = (
            f"Ctrl-C, or the end of {self._options.seconds:g} s, ends"
            if self._options.seconds
            else "Ctrl-C ends"
        )
        lines = [
            "Three workers deliver to these webhooks:",
            *(f"  {webhook_id}  {webhook.what}" for webhook_id, webhook in WEBHOOKS.items()),
            f"  {UNREGISTERED}  is not registered",
            "Open:",
            *(f"  {what}\n    {url}" for what, url in pages.items()),
            "Run:",
            f'  {webhookd} status --dsn "{self._dsn}"',
            f'  {webhookd} doctor --dsn "{self._dsn}" --allow-http --allow-network 127.0.0.0/8',
            f"  amtool alert --alertmanager.url={alertmanager}",
            f"  tail -f {self._home}/alerts.log  # the alerts, as their receiver gets them",
            f"Data and logs are in {self._home}. {ending} everything and removes it.",
        ]
        return "\n".join(lines)

    @staticmethod
    def _tell(text: str) -> None:
        print(text, flush=True)


def register(connection: psycopg.Connection[Any], port: int) -> None:
    """Register all of WEBHOOKS, their receivers on *port*."""
    for webhook_id, webhook in WEBHOOKS.items():
        row = {
            "webhook_id": webhook_id,
            "url": f"http://127.0.0.1:{port}/{webhook_id}",
            **webhook.columns,
        }
        columns, values = ", ".join(row), ", ".join(f"%({column})s" for column in row)
        connection.execute(
            f"INSERT INTO pggit.webhooks ({columns}) VALUES ({values})".encode(), row
        )


def insert(connection: psycopg.Connection[Any]) -> None:
    """Insert the deliveries of half a second."""
    load = {
        **{webhook_id: webhook.each_time for webhook_id, webhook in WEBHOOKS.items()},
        UNREGISTERED: 1,
    }
    connection.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
        " SELECT load.webhook_id, jsonb_build_object('number', number)"
        " FROM unnest(%s::bigint[], %s::int[]) AS load (webhook_id, each_time),"
        " generate_series(1, each_time) number"
        " WHERE (SELECT count(*) FROM pggit.v_waiting_deliveries w"
        " WHERE w.webhook_id = load.webhook_id) < %s",
        [list(load), list(load.values()), ENOUGH_WAITING],
    )


def graph_url(prometheus: str, promql: str) -> str:
    """Return the address of Prometheus' own graph of *promql* over a quarter of an hour."""
    shown = {"g0.expr": promql, "g0.tab": 0, "g0.range_input": "15m"}
    return f"{prometheus}/graph?{urllib.parse.urlencode(shown)}"


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="try_out.py", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so many seconds")
    for name, port, what in (
        ("metrics", 8000, "worker-1's; the next two ports are the others'"),
        ("prometheus", 9090, "Prometheus'"),
        ("alertmanager", 9093, "Alertmanager's"),
        ("alerts", 9000, "that of a `webhookd listen` which receives the alerts"),
    ):
        parser.add_argument(
            f"--{name}-port",
            type=int,
            default=port,
            metavar="PORT",
            help=f"{what} (default {port})",
        )
    return parser.parse_args(arguments)


def _refuse_taken_ports(options: argparse.Namespace) -> None:
    for option in ("metrics_port", "prometheus_port", "alertmanager_port", "alerts_port"):
        first = getattr(options, option)
        for port in local.ports_in_use(
            range(first, first + (3 if option == "metrics_port" else 1))
        ):
            raise WebhookdError(
                f"port {port} is taken: stop what listens there, or give "
                f"--{option.replace('_', '-')} "
                '(as in `make monitoring TRY_OUT_ARGS="--prometheus-port 9190"`)'
            )


def _install_what_is_missing() -> None:
    missing = [package for package, names in PACKAGES.items() if not any(map(shutil.which, names))]
    if not missing:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise WebhookdError(
            "Prometheus or Alertmanager is missing; run this and try again: sudo "
            f"{shlex.join(command)}"
        )
    print(f"installing {' and '.join(missing)} ...", flush=True)
    for step in (["apt-get", "update"], command):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(
            step,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise WebhookdError(
                f"{shlex.join(step)} failed: "
                f"{(done.stdout.strip().splitlines() or ['no reason given'])[-1]}"
            )
    if Path("/run/systemd/system").exists():
        # Debian starts services when it installs them, on all addresses. They are not wanted, and
        # their ports are needed here.
        subprocess.run(["systemctl", "--quiet", "disable", "--now", *missing], check=False)


def _program_of(package: str) -> str:
    return next(path for path in map(shutil.which, PACKAGES[package]) if path)


def _loopback(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _addresses(port: int) -> list[str]:
    """Return the options of Prometheus and Alertmanager for the address and the URL in links."""
    return [f"--web.listen-address=127.0.0.1:{port}", f"--web.external-url={_loopback(port)}"]


def _shown(path: Path) -> Path:
    """Return *path* relative to the current folder, if it is in it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
