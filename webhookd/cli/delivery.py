"""`webhookd delivery`: reads options for `admin.deliveries`, and prints what it returns."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from webhookd.cli.options import connection_options, load_settings
from webhookd.config.kinds import Seconds
from webhookd.core.model import Status
from webhookd.errors import WebhookdError
from webhookd.text import shown

if TYPE_CHECKING:
    from webhookd.admin.deliveries import Absence, Explanation
    from webhookd.admin.facts import LoggedAttempt

_STATUSES = [one.value for one in Status]
_BODY_SHOWN = 2000  # characters
_SINCE = Seconds(longest_s=3650 * 86400.0)


@click.group(no_args_is_help=False)
def delivery() -> None:
    """Look at deliveries and send them again."""


@delivery.command("list")
@click.option(
    "--status",
    type=click.Choice(_STATUSES),
    help="Only deliveries in this status.",
)
@click.option(
    "--webhook", "webhook_id", type=int, metavar="ID", help="Only deliveries of this webhook."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    metavar="N",
    help="How many.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection_options
@click.pass_context
def list_(
    ctx: click.Context,
    /,
    status: str | None,
    webhook_id: int | None,
    limit: int,
    as_json: bool,
    **_: object,
) -> None:
    """List deliveries, newest first."""
    from webhookd.admin import database, deliveries
    from webhookd.cli import output

    with database.connect(load_settings(ctx).config) as connection:
        found = deliveries.list_deliveries(
            connection, status=status, webhook_id=webhook_id, limit=limit
        )
    rows = [asdict(one) for one in found]
    if as_json:
        output.print_json(rows)
        return
    columns = (
        "delivery_id",
        "webhook_id",
        "delivery_status",
        "attempts",
        "created_at",
        "next_retry_at",
        "worker_id",
    )
    output.print_table(columns, [[row[column] for column in columns] for row in rows])


@delivery.command()
@click.argument("delivery_id", type=int, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection_options
@click.pass_context
def show(ctx: click.Context, /, delivery_id: int, as_json: bool, **_: object) -> None:
    """Show one delivery, its body and every attempt."""
    from webhookd.admin import database, deliveries
    from webhookd.cli import output

    with database.connect(load_settings(ctx).config) as connection:
        found = deliveries.show(connection, delivery_id)
    row = asdict(found)
    if as_json:
        body = None if found.message_body is None else json.loads(found.message_body)
        output.print_json({**row, "message_body": body})
        return
    del row["message_body"], row["log"]
    output.print_table(("", ""), list(row.items()))
    if found.message_body is None:
        click.echo("\nbody  too large to be shown, or it cannot be read: see the attempts\n")
    else:
        click.echo(f"\nbody  {shown(found.message_body[:_BODY_SHOWN])}\n")
    _print_attempts(found.log, made=found.attempts)


@delivery.command()
@click.argument("delivery_id", type=int, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection_options
@click.pass_context
def explain(ctx: click.Context, /, delivery_id: int, as_json: bool, **_: object) -> None:
    """Say why a delivery has not been sent yet, what to run, and what happened so far.

    What holds it longest comes first. A limit that the webhook leaves open is the one of the
    running workers; without any, of this command's configuration.
    """
    from webhookd.admin import database, deliveries, fleet
    from webhookd.admin.doctor.commands import commands_for

    settings = load_settings(ctx)
    commands = commands_for(settings, database.dsn_of(settings.config))
    with database.connect(settings.config) as connection:
        config = fleet.options_in_force(connection, settings).config
        found = deliveries.explain(connection, delivery_id, config, commands)
    if isinstance(found, deliveries.Absence):
        _print_absence(found, as_json=as_json)
        missing = "it is not committed yet, was rolled back, or has been deleted"
        raise WebhookdError(f"no delivery {delivery_id} can be seen: {missing}")
    _print_explanation(found, as_json=as_json)


def _print_explanation(found: "Explanation", *, as_json: bool) -> None:
    from webhookd.cli import output

    if as_json:
        reasons = [
            {"reason": one.name, "text": one.text, "until": one.until_at, "run": one.run}
            for one in found.reasons
        ]
        output.print_json(
            {
                "delivery_id": found.delivery_id,
                "webhook_id": found.webhook_id,
                "delivery_status": found.status,
                "reasons": reasons,
                "log": [asdict(attempt) for attempt in found.log],
            }
        )
        return
    url = "" if found.url is None else f" ({shown(found.url)})"
    click.echo(
        f"delivery {found.delivery_id} for webhook {found.webhook_id}{url}: {found.status}\n"
    )
    for reason in found.reasons:
        click.echo(f"- {reason.text}")
        for command in reason.run:
            click.echo(f"    {command}")
    click.echo()
    _print_attempts(found.log, made=found.attempts)


def _print_absence(found: "Absence", *, as_json: bool) -> None:
    from webhookd.cli import output

    if as_json:
        output.print_json(asdict(found))
        return
    newest = f"the newest delivery is {found.newest_id}"
    click.echo("the queue is empty" if found.newest_id is None else newest)
    for producer in found.producers:
        click.echo(
            f"{producer} has the queue open for writing: what it inserted cannot be seen, nor "
            "sent, before it commits"
        )
    if not found.producers:
        click.echo("no transaction that could have inserted it is open")


def _print_attempts(attempts: "Sequence[LoggedAttempt]", *, made: int) -> None:
    from webhookd.cli import output

    if not attempts:
        gone = "its attempts are no longer in the attempt log (--keep-log)"
        click.echo(gone if made else "no attempt yet")
        return
    output.print_table(
        ("at", "event", "http", "ms", "worker", "reason", "answer"),
        [
            (
                one.created_at,
                one.event_type,
                one.http_status,
                one.response_time_ms,
                one.worker_id,
                one.details.get("reason"),
                one.details.get("excerpt"),
            )
            for one in attempts
        ],
    )


@delivery.command()
@click.argument("delivery_ids", type=int, nargs=-1, metavar="[ID]...")
@click.option("--failed", is_flag=True, help="All failed deliveries, or those of --webhook.")
@click.option(
    "--webhook", "webhook_id", type=int, metavar="ID", help="With --failed: only this webhook's."
)
@click.option(
    "--since",
    type=_SINCE,
    metavar="DURATION",
    help="With --failed: only what failed within 15m, 2h, 7d, ...",
)
@connection_options
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    delivery_ids: tuple[int, ...],
    failed: bool,
    webhook_id: int | None,
    since: float | None,
    **_: object,
) -> None:
    """Send deliveries again: those given by id (in any status), or all that failed."""
    from webhookd.admin import database, deliveries, fleet
    from webhookd.admin.doctor.commands import commands_for
    from webhookd.admin.reason import counted

    narrowed = webhook_id is not None or since is not None
    if bool(delivery_ids) == failed or (narrowed and not failed):
        raise click.UsageError(
            "give either ids, or --failed with --webhook and --since where wanted", ctx
        )
    settings = load_settings(ctx)
    with database.connect(settings.config) as connection:
        if failed:
            done = deliveries.retry_failed(connection, webhook_id=webhook_id, since_s=since)
        else:
            done = deliveries.retry(connection, delivery_ids)
        click.echo(f"{counted(done.count, 'delivery', 'deliveries')} will be sent again")
        commands = commands_for(settings, database.dsn_of(settings.config))
        config = fleet.options_in_force(connection, settings).config
        for wait in deliveries.waits(connection, done.samples, config, commands):
            click.echo(f"delivery {wait.delivery_id} waits. {wait.text}")
            click.echo(f"    {wait.run}")
    if done.missing:
        missing = ", ".join(map(str, done.missing))
        raise WebhookdError(f"not there, or being sent just now: {missing}")
