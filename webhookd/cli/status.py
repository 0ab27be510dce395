"""`webhookd status`: the report of `admin.status` on one screen, baselines first."""

import sys
import time
from dataclasses import asdict, astuple, fields
from typing import TYPE_CHECKING, Any

import click

from webhookd.cli.options import connection_options, load_settings
from webhookd.config.options import Config
from webhookd.errors import WebhookdError
from webhookd.text import duration

if TYPE_CHECKING:
    from webhookd.admin.status import Baseline, Report

_SECTIONS = ("waiting", "health", "attention", "circuits", "held", "unregistered", "workers")
_NO_WORKER = "\nno worker is registered: `webhookd` is not running, or cannot reach this database"


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
        output.print_json(_as_json(report))
    else:
        output.console().print(_render(report))
    ctx.exit(1 if report.critical else 0)


def _read(config: Config) -> "Report":
    from webhookd.admin import database, status

    with database.connect(config) as connection:
        return status.read(connection)


def _watch(config: Config) -> None:
    """Redraw until interrupted."""
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
                # An operator may watch just because the database is away: the last report stays
                # on the screen, and it is updated once the database is back.
                away_since = away_since or time.monotonic()
                silence = duration(time.monotonic() - away_since)
                live.update(
                    Group(f"{error}\nfor {silence}; what follows was before\n", shown), refresh=True
                )


def _as_json(report: "Report") -> dict[str, Any]:
    baselines = [{**asdict(one), "verdict": one.verdict} for one in report.baselines]
    return {**asdict(report), "baselines": baselines}


def _render(report: "Report") -> Any:
    from rich.console import Group

    from webhookd.cli import output

    baselines = [
        (
            one.name,
            "-" if one.value is None else f"{one.value:.4g}{one.unit}",
            *_allowed(one),
            one.verdict,
        )
        for one in report.baselines
    ]
    states = [item.name.removesuffix("_count") for item in fields(report.queue)]
    parts: list[Any] = [
        output.table(("baseline", "value", "target", "critical", "verdict"), baselines),
        output.table(
            (*states, "failed, last hour"),
            [[*astuple(report.queue), report.errors_1h]],
            title="\nqueue",
        ),
    ]
    for name in _SECTIONS:
        if rows := getattr(report, name):
            columns = [item.name for item in fields(rows[0])]
            parts.append(output.table(columns, [astuple(row) for row in rows], title=f"\n{name}"))
        elif name == "workers":
            parts.append(_NO_WORKER)
    if report.disagreement is not None:
        parts.append(f"\nwarning: {report.disagreement}")
    return Group(*parts)


def _allowed(baseline: "Baseline") -> tuple[str, str]:
    """Return the target and the critical value in words."""
    at_target, beyond = (
        ("at least", "below") if baseline.critical < baseline.target else ("at most", "above")
    )
    return (
        f"{at_target} {baseline.target:g}{baseline.unit}",
        f"{beyond} {baseline.critical:g}{baseline.unit}",
    )
