"""`webhookd demo`: PostgreSQL, receivers, three workers and a thousand deliveries on one machine,
watched live.
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
SICK, SICK_FOR_S = FIRST + 49, 7.0
GIVE_UP_AFTER_S = 55.0
LOOK_EVERY_S = 0.25


def run(*, keep: bool = False, directory: Path | None = None) -> int:
    """Run the demo; return 0 once all was delivered, 130 if interrupted. *keep* leaves everything
    running afterwards.

    Raise `WebhookdError` if it was not delivered in time.
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
    # Any free ports where it ends by itself; where the documentation looks for metrics if somebody
    # has the time to look.
    metrics_port = 8000 if keep and not local.taken(range(8000, 8003)) else 0
    options = ("--metrics-port", str(metrics_port), "--log-level", "error")
    daemon = stack.enter_context(local.program(local.webhookd(dsn, *options)))
    console.print(
        f"{WEBHOOKS} webhooks registered: {len(SLOW)} answer slowly, {SICK} fails for "
        f"{SICK_FOR_S:g} s and recovers"
    )
    demo = Demo(connection, receivers, daemon)
    demo.await_workers()
    receivers.sick_until = time.monotonic() + SICK_FOR_S
    connection.execute(statements.load("demo_load").encode())
    console.print(f"{DELIVERIES:,} deliveries inserted with SQL\n")
    demo.watch(console)
    console.print(demo.summary())
    if not demo.succeeded():
        raise WebhookdError(
            f"only {demo.progress['delivered']} of {DELIVERIES:,} were delivered in "
            f"{GIVE_UP_AFTER_S:g} s"
        )
    console.print(f"{DELIVERIES:,} delivered")
    if keep:
        _stay(console, dsn, metrics_port)
    return 0


@dataclass(slots=True)
class Receivers:
    """What fifty receivers answer and have got. Written by their threads."""

    sick_until: float = 0.0
    arrivals: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, webhook_id: int, message_id: str) -> int:
        """Return the status with which webhook *webhook_id* answers, after its delay."""
        time.sleep(SLOW.get(webhook_id, 0.0))
        if webhook_id == SICK and time.monotonic() < self.sick_until:
            return 500
        with self.lock:
            self.arrivals[message_id] += 1
        return 200


class Demo:
    """Watches the deliveries until all are done."""

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
        """Block until three workers sleep; raise `WebhookdError` if webhookd ends instead."""
        ready = "SELECT count(*) AS workers FROM pggit.workers WHERE has_room"
        while (row := self._connection.execute(ready).fetchone()) is None or row["workers"] < 3:
            if self._daemon.poll() is not None or time.monotonic() - self._begun > GIVE_UP_AFTER_S:
                raise WebhookdError("the workers did not start; what they said stands above")
            time.sleep(0.05)

    def watch(self, console: Console) -> None:
        """Show the progress, live on a terminal, else as lines, until all is delivered or time is
        up.
        """
        self._begun = time.monotonic()
        self._before = (self._begun, 0)
        if console.is_terminal:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                while self._look():
                    live.update(self._view(), refresh=True)
                    time.sleep(LOOK_EVERY_S)
            for event in self.events:
                console.print(event)
            return
        told, shown_at = 0, 0.0
        while self._look():
            for event in self.events[told:]:
                console.print(event)
            told = len(self.events)
            if time.monotonic() - shown_at >= 1.0:
                shown_at = time.monotonic()
                console.print(self._line())
            time.sleep(LOOK_EVERY_S)
        for event in self.events[told:]:
            console.print(event)

    def succeeded(self) -> bool:
        return bool(self.progress["delivered"] == DELIVERIES)

    def summary(self) -> Table:
        """Return what came of it."""
        p50, p99 = self.progress["answer_ms"] or (0.0, 0.0)
        arrivals = self._receivers.arrivals
        table = Table(box=None, show_header=False, pad_edge=False)
        shares = ", ".join(f"{name} {count}" for name, count in self.progress["workers"].items())
        for name, value in (
            (
                "time",
                f"{time.monotonic() - self._begun:.1f} s, of which {SICK_FOR_S:g} s one receiver "
                "was failing",
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

    def _look(self) -> bool:
        """Read the progress; return whether to go on."""
        before = self.progress.get("circuits", {})
        row = self._connection.execute(statements.load("demo_progress").encode()).fetchone()
        assert row is not None
        self.progress = row
        now, delivered = time.monotonic(), row["delivered"]
        then, had = self._before
        if now - then >= 0.5:
            self._rate, self._before = (delivered - had) / (now - then), (now, delivered)
        for webhook_id in sorted(before.keys() | row["circuits"].keys()):
            self._note(
                webhook_id,
                before.get(webhook_id, "closed"),
                row["circuits"].get(webhook_id, "closed"),
            )
        return bool(delivered + row["failed"] < DELIVERIES and now - self._begun < GIVE_UP_AFTER_S)

    def _note(self, webhook_id: str, was: str, state: str) -> None:
        if state in (was, "half_open") or (state, was) == ("open", "half_open"):
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
        "UPDATE pggit.webhooks SET circuit_open_seconds = 3, retry_base_seconds = 1 WHERE "
        "webhook_id = %s",
        [SICK],
    )


def _stay(console: Console, dsn: str, metrics_port: int) -> None:
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
        console.print(
            f"  {command}", soft_wrap=True
        )  # never broken into lines: they are for copying
    threading.Event().wait()
