"""`webhookd demo`: PostgreSQL, receivers, three workers and a thousand deliveries on one machine,
shown live.
"""

import subprocess
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from webhookd.demo import local
from webhookd.errors import WebhookdError
from webhookd.postgres import statements
from webhookd.schema.migrate import migrate

DELIVERIES = 1000
FIRST, WEBHOOKS = 2000, 50
SLOW = {FIRST + 40 + i: 0.05 * (i + 1) for i in range(6)}  # seconds before the answer
FAILING, FAILING_FOR_S = FIRST + 49, 7.0
TIMEOUT_S = 55.0
REFRESH_S = 0.25


def run(*, keep: bool = False, directory: Path | None = None) -> int:
    """Run the demo. Return 0 once all is delivered, 130 if interrupted. With *keep* everything
    keeps running afterwards, until Ctrl-C. *directory* keeps the database.

    Raise `WebhookdError` if not all is delivered in time.
    """
    console = Console(highlight=False)
    try:
        with ExitStack() as stack:
            return _run(console, stack, keep=keep, directory=directory)
    except KeyboardInterrupt:
        console.print("interrupted; everything is stopped")
        return 130


def _run(console: Console, stack: ExitStack, *, keep: bool, directory: Path | None) -> int:
    local.leave_on_sigterm()
    console.print("starting a PostgreSQL ...")
    home = directory or stack.enter_context(local.folder("webhookd-demo-")) / "postgres"
    dsn = stack.enter_context(local.postgresql(home))
    migrate(dsn)
    receivers = Receivers()
    port = stack.enter_context(local.receivers(receivers.answer))
    connection = stack.enter_context(psycopg.connect(dsn, autocommit=True, row_factory=dict_row))
    _register(connection, port)
    # Any free ports, since the demo ends soon; with *keep* the ports that the documentation names.
    metrics_port = 8000 if keep and not local.ports_in_use(range(8000, 8003)) else 0
    options = ("--metrics-port", str(metrics_port), "--log-level", "error")
    daemon = stack.enter_context(local.program(local.webhookd(dsn, *options)))
    console.print(
        f"{WEBHOOKS} webhooks registered: {len(SLOW)} answer slowly, {FAILING} fails for "
        f"{FAILING_FOR_S:g} s and recovers"
    )
    demo = Demo(connection, receivers, daemon)
    demo.await_workers()
    receivers.failing_until = time.monotonic() + FAILING_FOR_S
    connection.execute(statements.load("demo_load").encode())
    console.print(f"{DELIVERIES:,} deliveries inserted with SQL\n")
    demo.watch(console)
    console.print(demo.summary())
    if not demo.succeeded():
        raise WebhookdError(
            f"only {demo.progress['delivered']} of {DELIVERIES:,} were delivered in {TIMEOUT_S:g} s"
        )
    console.print(f"{DELIVERIES:,} delivered")
    if keep:
        _keep_running(console, dsn, metrics_port)
    return 0


@dataclass(slots=True)
class Receivers:
    """What fifty receivers answer, and what arrived at them. Their threads write it."""

    failing_until: float = 0.0
    arrivals: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, webhook_id: int, message_id: str) -> int:
        """Return the status of webhook *webhook_id*'s answer. Blocks for its delay."""
        time.sleep(SLOW.get(webhook_id, 0.0))
        if webhook_id == FAILING and time.monotonic() < self.failing_until:
            return 500
        with self.lock:
            self.arrivals[message_id] += 1
        return 200


class Demo:
    """Shows the deliveries until all are done."""

    def __init__(
        self,
        connection: psycopg.Connection[dict[str, Any]],
        receivers: Receivers,
        daemon: "subprocess.Popen[bytes]",
    ) -> None:
        self._connection = connection
        self._receivers = receivers
        self._daemon = daemon
        self._begun = time.monotonic()
        self._before = (self._begun, 0)
        self._rate = 0.0
        self.progress: dict[str, Any] = {}
        self.events: list[str] = []

    def await_workers(self) -> None:
        """Block until three workers wait for work; raise `WebhookdError` if webhookd ends
        instead.
        """
        ready = "SELECT count(*) AS workers FROM pggit.workers WHERE has_room"
        while (row := self._connection.execute(ready).fetchone()) is None or row["workers"] < 3:
            if self._daemon.poll() is not None or time.monotonic() - self._begun > TIMEOUT_S:
                raise WebhookdError("the workers did not start: see their log lines above")
            time.sleep(0.05)

    def watch(self, console: Console) -> None:
        """Show the progress until all is delivered or `TIMEOUT_S` is over: live on a terminal, else
        as lines.
        """
        self._begun = time.monotonic()
        self._before = (self._begun, 0)
        if console.is_terminal:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                while self._refresh():
                    live.update(self._view(), refresh=True)
                    time.sleep(REFRESH_S)
            for event in self.events:
                console.print(event)
            return
        printed, printed_at = 0, 0.0
        while self._refresh():
            for event in self.events[printed:]:
                console.print(event)
            printed = len(self.events)
            if time.monotonic() - printed_at >= 1.0:
                printed_at = time.monotonic()
                console.print(self._line())
            time.sleep(REFRESH_S)
        for event in self.events[printed:]:
            console.print(event)

    def succeeded(self) -> bool:
        return bool(self.progress["delivered"] == DELIVERIES)

    def summary(self) -> Table:
        """Return the results as a table."""
        p50, p99 = self.progress["answer_ms"] or (0.0, 0.0)
        arrivals = self._receivers.arrivals
        table = Table(box=None, show_header=False, pad_edge=False)
        shares = ", ".join(f"{name} {count}" for name, count in self.progress["workers"].items())
        for name, value in (
            (
                "time",
                f"{time.monotonic() - self._begun:.1f} s, of which {FAILING_FOR_S:g} s one "
                "receiver was failing",
            ),
            ("answers", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"),
            ("circuit openings", f"{self.progress['openings']}, failed probes included"),
            (
                "arrived",
                f"{len(arrivals):,} at the receivers, {arrivals.total() - len(arrivals)} repeated",
            ),
            ("by worker", shares),
        ):
            table.add_row(name, value)
        return table

    def _refresh(self) -> bool:
        """Read the progress; return whether the demo goes on."""
        before = self.progress.get("circuits", {})
        row = self._connection.execute(statements.load("demo_progress").encode()).fetchone()
        assert row is not None
        self.progress = row
        now, delivered = time.monotonic(), row["delivered"]
        then, delivered_then = self._before
        if now - then >= 0.5:
            self._rate, self._before = (delivered - delivered_then) / (now - then), (now, delivered)
        for webhook_id in sorted(before.keys() | row["circuits"].keys()):
            self._add_event(
                webhook_id,
                before.get(webhook_id, "closed"),
                row["circuits"].get(webhook_id, "closed"),
            )
        return bool(delivered + row["failed"] < DELIVERIES and now - self._begun < TIMEOUT_S)

    def _add_event(self, webhook_id: str, before: str, state: str) -> None:
        # Probes, and the openings after those that failed, are not shown.
        if state in (before, "half_open") or (before, state) == ("half_open", "open"):
            return
        at = f"{time.monotonic() - self._begun:5.1f} s"
        if state == "open":
            self.events.append(f"{at}  circuit of webhook {webhook_id} opened: only probes go out")
        elif state == "closed":
            self.events.append(
                f"{at}  circuit of webhook {webhook_id} closed: its deliveries go out"
            )

    def _line(self) -> str:
        row = self.progress
        return (
            f"{time.monotonic() - self._begun:5.1f} s  {row['delivered']:,} delivered, "
            f"{row['pending']} pending, "
            f"{row['retrying']} retrying, {self._rate:.0f}/s"
        )

    def _view(self) -> Group:
        row = self.progress
        p50, p99 = row["answer_ms"] or (0.0, 0.0)
        figures = Table(box=None, pad_edge=False)
        for name in (
            "pending",
            "retrying",
            "delivered",
            "failed",
            "rate",
            "p50",
            "p99",
            "circuits open",
        ):
            figures.add_column(name, justify="right")
        figures.add_row(
            *(f"{row[name]:,}" for name in ("pending", "retrying", "delivered", "failed")),
            f"{self._rate:.0f}/s",
            f"{p50:.1f} ms",
            f"{p99:.1f} ms",
            ", ".join(row["circuits"]) or "none",
        )
        workers = Table(box=None, pad_edge=False)
        for name in row["workers"]:
            workers.add_column(name, justify="right")
        workers.add_row(*(f"{count}" for count in row["workers"].values()))
        bar = ProgressBar(total=DELIVERIES, completed=row["delivered"], width=60)
        return Group(
            bar,
            Text(),
            figures,
            Text(),
            workers,
            Text(),
            *(Text(event) for event in self.events[-4:]),
        )


def _register(connection: psycopg.Connection[dict[str, Any]], port: int) -> None:
    connection.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url)"
        " SELECT id, 'http://127.0.0.1:' || %s::int || '/' || id FROM generate_series(%s::int, "
        "%s::int) id",
        [port, FIRST, FIRST + WEBHOOKS - 1],
    )
    connection.execute(
        "UPDATE pggit.webhooks SET circuit_open_seconds = 3, retry_base_seconds = 1,"
        " retry_factor = 2 WHERE webhook_id = %s",
        [FAILING],
    )


def _keep_running(console: Console, dsn: str, metrics_port: int) -> None:
    console.print("\nEverything goes on running; Ctrl-C ends it. Look at:")
    if metrics_port:
        for number in range(3):
            console.print(f"  http://127.0.0.1:{metrics_port + number}/metrics  /healthz  /readyz")
    for command in (
        f'webhookd status --dsn "{dsn}"',
        f'webhookd delivery list --dsn "{dsn}"',
        f'psql "{dsn}" -c "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) '
        f"VALUES ({FIRST}, '{{}}')\"",
    ):
        # Without line breaks, so that it can be copied.
        console.print(f"  {command}", soft_wrap=True)
    threading.Event().wait()
