"""`webhookd status`: the daily health check on one screen. Baselines with a verdict first, then
what stands behind them.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import click

from webhookd.cli.options import connection_options, load_settings
from webhookd.config.load import Config
from webhookd.core.model import WORKER_SILENT_AFTER_S
from webhookd.errors import WebhookdError
from webhookd.text import duration

_SHOWN = 10
_DOWN_S = 120.0  # a worker that has been silent for so long is down, not busy


@dataclass(frozen=True, slots=True)
class Baseline:
    """One measure against its target. *critical* is the last value that is no page; without a value
    *missing* is the verdict.
    """

    name: str
    value: float | None
    unit: str
    target: float
    critical: float
    missing: str = "-"

    @property
    def verdict(self) -> str:
        if self.value is None:
            return self.missing
        # A success rate is the better the higher, most else the lower.
        sign = -1 if self.critical < self.target else 1
        if sign * self.value > sign * self.critical:
            return "critical"
        return "ok" if sign * self.value <= sign * self.target else "warning"

    @property
    def allowed(self) -> tuple[str, str]:
        """The target and the critical value in words."""
        at_target, beyond = (
            ("at least", "below") if self.critical < self.target else ("at most", "above")
        )
        return f"{at_target} {self.target:g}{self.unit}", f"{beyond} {self.critical:g}{self.unit}"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Redraw every second until interrupted.")
@connection_options
@click.pass_context
def status(ctx: click.Context, /, as_json: bool, watch: bool, **_: object) -> None:
    """Show baselines, queue, health and workers. Exit 1 if a baseline is critical, so that cron can
    run it.
    """
    from webhookd.cli import output

    if as_json and watch:
        raise click.UsageError("give --json or --watch, not both", ctx)
    config = load_settings(ctx).config
    if watch:
        if not sys.stdout.isatty():
            raise click.UsageError(
                "--watch needs a terminal: run `webhookd status` again and again instead", ctx
            )
        _watch(config)
    report = _read(config)
    if as_json:
        output.print_json(report)
    else:
        output.console().print(_render(report))
    ctx.exit(1 if any(row["verdict"] == "critical" for row in report["baselines"]) else 0)


def _watch(config: Config) -> None:
    from rich.console import Group
    from rich.live import Live

    from webhookd.cli import output

    shown = _render(_read(config))
    away_since: float | None = None
    with Live(shown, console=output.console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(1.0)
            try:
                shown, away_since = _render(_read(config)), None
                live.update(shown, refresh=True)
            except WebhookdError as error:
                # Somebody watches because it is away: the last screen stays, and it goes on once
                # the database is back.
                away_since = away_since or time.monotonic()
                silence = duration(time.monotonic() - away_since)
                live.update(
                    Group(f"{error}\nfor {silence}; what follows was before\n", shown), refresh=True
                )


def _read(config: Config) -> dict[str, Any]:
    from webhookd.admin import database

    with database.connect(config) as connection:
        report: dict[str, Any] = {
            "queue": database.fetch(connection, "status_queue")[0],
            "waiting": database.fetch(connection, "status_waiting"),
            "health": database.fetch(connection, "status_health"),
            "attention": database.fetch(connection, "status_attention", limit=_SHOWN),
            **database.fetch(connection, "status_errors")[0],
            "circuits": database.fetch(connection, "status_circuits", limit=_SHOWN),
            "unregistered": database.fetch(connection, "status_unregistered", limit=_SHOWN),
            "workers": database.fetch(connection, "status_workers"),
        }
        last_hour = database.fetch(connection, "status_minutes")[0]
    lines = _baselines(report, last_hour)
    return {"baselines": [{**asdict(line), "verdict": line.verdict} for line in lines], **report}


def _baselines(report: dict[str, Any], last_hour: dict[str, Any]) -> list[Baseline]:
    attempts = last_hour["attempts"]
    # What is paused, scheduled or unregistered waits on purpose, and pages nobody.
    depth = sum(
        row["deliveries"]
        for row in report["waiting"]
        if row["cause"] not in ("paused", "scheduled", "unregistered")
    )
    silence_s = max((row["seen_s_ago"] for row in report["workers"]), default=None)
    return [
        Baseline(
            "delivery latency p99, last hour",
            _p99(last_hour["durations"], last_hour["slowest_s"]),
            " s",
            2.0,
            5.0,
        ),
        Baseline(
            "success rate, last hour",
            100.0 * last_hour["delivered"] / attempts if attempts else None,
            " %",
            99.0,
            95.0,
        ),
        Baseline("queue depth", float(depth), "", 100.0, 1000.0),
        Baseline(
            "worker health, longest silence",
            silence_s,
            " s",
            WORKER_SILENT_AFTER_S,
            _DOWN_S,
            missing="critical",
        ),
        Baseline("circuit openings, last hour", float(last_hour["circuit_opens"]), "", 0.0, 2.0),
        Baseline(
            "rate limit hits a minute, last 5",
            last_hour["rate_limit_hits_a_minute"],
            "",
            10.0,
            100.0,
        ),
    ]


def _p99(counts: Sequence[int], slowest_s: float | None) -> float | None:
    """Return the 99th percentile in seconds as `histogram_quantile` of PromQL estimates it from the
    buckets, but never above the slowest attempt; None without an attempt.
    """
    from webhookd.metrics.counts import DURATION_BUCKETS_S

    cumulative = list(accumulate(counts))
    if slowest_s is None or not cumulative or not cumulative[-1]:
        return None
    rank = 0.99 * cumulative[-1]
    bucket = next(index for index, count in enumerate(cumulative) if count >= rank)
    if bucket == len(DURATION_BUCKETS_S):
        return slowest_s
    lower = DURATION_BUCKETS_S[bucket - 1] if bucket else 0.0
    before = cumulative[bucket - 1] if bucket else 0
    return min(
        slowest_s, lower + (DURATION_BUCKETS_S[bucket] - lower) * (rank - before) / counts[bucket]
    )


def _render(report: dict[str, Any]) -> Any:
    from rich.console import Group

    from webhookd.cli import output

    queue = report["queue"]
    baselines = [
        (
            line.name,
            "-" if line.value is None else f"{line.value:.4g}{line.unit}",
            *line.allowed,
            line.verdict,
        )
        for line in (
            Baseline(**{key: value for key, value in row.items() if key != "verdict"})
            for row in report["baselines"]
        )
    ]
    states = ("pending", "retrying", "delivered", "failed", "total")
    parts: list[Any] = [
        output.table(("baseline", "value", "target", "critical", "verdict"), baselines),
        output.table(
            (*states, "failed for good, last hour"),
            [[*(queue[f"{name}_count"] for name in states), report["errors_1h"]]],
            title="\nqueue",
        ),
    ]
    sections = (
        ("waiting", ("cause", "deliveries", "oldest_due_s")),
        ("health", ("health_status", "webhooks")),
        ("attention", ("webhook_id", "health_status", "consecutive_failures", "success_rate_percent", "avg_response_time_ms",
                       "hours_since_success")),
        ("circuits", ("webhook_id", "circuit_state", "consecutive_failures", "probe_in_s")),
        ("unregistered", ("webhook_id", "waiting")),
        ("workers", ("worker_id", "host", "pid", "version", "up_s", "seen_s_ago")),
    )  # fmt: skip
    for name, columns in sections:
        if report[name]:
            rows = [[row[column] for column in columns] for row in report[name]]
            parts.append(output.table(columns, rows, title=f"\n{name}"))
        elif name == "workers":
            parts.append(
                "\nno worker is registered: `webhookd` is not running, or cannot reach this "
                "database"
            )
    return Group(*parts)
