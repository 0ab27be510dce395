"""`webhookd status`: the queue, health, workers, and the baselines that say whether all is well."""

import time
from dataclasses import dataclass
from typing import Any

import click

from webhookd.cli.options import connection_options, load_settings
from webhookd.config import Config

_SHOWN = 10
_SILENT_S = 20.0


@dataclass(frozen=True, slots=True)
class Baseline:
    """One measure against its target; *critical* is where it becomes a page. None: nothing to measure."""

    name: str
    value: float | None
    target: float
    critical: float
    unit: str

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "-"
        # A success rate is the better the higher, everything else the lower.
        sign = -1 if self.critical < self.target else 1
        if sign * self.value > sign * self.critical:
            return "critical"
        return "ok" if sign * self.value <= sign * self.target else "warning"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Redraw every second until interrupted.")
@connection_options
@click.pass_context
def status(ctx: click.Context, /, as_json: bool, watch: bool, **_: object) -> None:
    """Show the queue, health, workers and baselines. Exit 1 if a baseline is critical."""
    from webhookd.cli import output

    if as_json and watch:
        raise click.UsageError("give --json or --watch, not both", ctx)
    config = load_settings(ctx).config
    if watch:
        _watch(config)
    report = _read(config)
    if as_json:
        output.print_json(report)
    else:
        output.console().print(_render(report))
    ctx.exit(1 if any(row["verdict"] == "critical" for row in report["baselines"]) else 0)


def _watch(config: Config) -> None:
    from rich.live import Live

    from webhookd.cli import output

    with Live(_render(_read(config)), console=output.console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(1.0)
            live.update(_render(_read(config)), refresh=True)


def _read(config: Config) -> dict[str, Any]:
    from webhookd.cli import database

    with database.connect(config) as connection:
        queue = database.fetch(connection, "status_queue")[0]
        report: dict[str, Any] = {
            "queue": queue,
            "waiting": database.fetch(connection, "status_waiting"),
            "health": database.fetch(connection, "status_health"),
            "circuits": database.fetch(connection, "status_circuits", limit=_SHOWN),
            "unregistered": database.fetch(connection, "status_unregistered", limit=_SHOWN),
            "workers": database.fetch(connection, "status_workers"),
        }
        attempts = database.fetch(connection, "status_attempts")[0]
    report["baselines"] = [
        {
            "name": line.name,
            "value": line.value,
            "target": line.target,
            "critical": line.critical,
            "unit": line.unit,
            "verdict": line.verdict,
        }
        for line in _baselines(report, attempts)
    ]
    return report


def _baselines(report: dict[str, Any], attempts: dict[str, Any]) -> list[Baseline]:
    p99_ms, made = attempts["p99_ms"], attempts["attempts"]
    # What is paused or unregistered waits on purpose, and pages nobody.
    depth = sum(row["deliveries"] for row in report["waiting"] if row["cause"] not in ("paused", "unregistered"))
    silent = sum(row["seen_s_ago"] > _SILENT_S for row in report["workers"])
    alive = len(report["workers"]) - silent
    return [
        Baseline("delivery latency p99, last hour", None if p99_ms is None else p99_ms / 1000, 2.0, 5.0, "s"),
        Baseline("success rate, last hour", 100.0 * attempts["delivered"] / made if made else None, 99.0, 95.0, "%"),
        Baseline("queue depth", float(depth), 100.0, 1000.0, ""),
        Baseline("workers silent", float(silent) if alive else float(max(1, silent)), 0.0, 0.0, ""),
        Baseline("circuits open", float(len(report["circuits"])), 0.0, 2.0, ""),
    ]


def _render(report: dict[str, Any]) -> Any:
    from rich.console import Group

    from webhookd.cli import output

    queue = report["queue"]
    parts: list[Any] = [
        output.table(
            ("pending", "retrying", "delivered", "failed", "total"),
            [[queue[f"{name}_count"] for name in ("pending", "retrying", "delivered", "failed", "total")]],
            title="queue",
        ),
        output.table(
            ("baseline", "value", "target", "critical", "verdict"),
            [
                (
                    row["name"],
                    "-" if row["value"] is None else f"{row['value']:.4g} {row['unit']}".strip(),
                    f"{row['target']:g}",
                    f"{row['critical']:g}",
                    row["verdict"],
                )
                for row in report["baselines"]
            ],
            title="\nbaselines",
        ),
    ]
    sections = (
        ("waiting", ("cause", "deliveries", "oldest_due_s")),
        ("health", ("health_status", "webhooks")),
        ("circuits", ("webhook_id", "circuit_state", "consecutive_failures", "probe_in_s")),
        ("unregistered", ("webhook_id", "waiting")),
        ("workers", ("worker_id", "host", "pid", "version", "up_s", "seen_s_ago")),
    )
    for name, columns in sections:
        if report[name]:
            rows = [[row[column] for column in columns] for row in report[name]]
            parts.append(output.table(columns, rows, title=f"\n{name}"))
        elif name == "workers":
            parts.append("\nno worker is registered: `webhookd` is not running, or cannot reach this database")
    return Group(*parts)
