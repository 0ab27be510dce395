"""`webhookd doctor`: prints what `admin.doctor` finds."""

from typing import TYPE_CHECKING

import click

from webhookd.cli.options import (
    TARGET_OPTIONS,
    config_file_option,
    config_options,
    load_settings,
)
from webhookd.text import shown

if TYPE_CHECKING:
    from webhookd.admin.doctor.findings import Finding

_OPTIONS = (
    *("dsn", "listen_dsn", "embedded"),
    *("workers", "metrics_host", "metrics_port"),
    *TARGET_OPTIONS,
    *("keep_delivered", "keep_failed", "keep_log"),
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@config_file_option
@config_options(_OPTIONS)
@click.pass_context
def doctor(ctx: click.Context, /, as_json: bool, **_: object) -> None:
    """Check everything that can be wrong, and print what fixes it. Exit 1 if anything is wrong.

    It only reads. What may be delivered is judged by the options of the running workers. Give it
    the service's other options: they decide which ports are needed and for how long rows are kept.
    """
    from webhookd.admin.doctor import diagnose
    from webhookd.cli import output

    findings = []
    for finding in diagnose(load_settings(ctx)):
        findings.append(finding)
        if not as_json:
            _print(finding)
    wrong = sum(finding.severity.wrong for finding in findings)
    if as_json:
        rows = [
            {"name": f.name, "severity": f.severity, "detail": f.detail, "run": f.run}
            for f in findings
        ]
        output.print_json({"wrong": wrong, "findings": rows})
    ctx.exit(1 if wrong else 0)


def _print(finding: "Finding") -> None:
    click.echo(f"{finding.severity:<8} {finding.name:<14} {shown(finding.detail)}".rstrip())
    if finding.run is not None:
        click.echo(f"{'':<23} run: {shown(finding.run)}")
