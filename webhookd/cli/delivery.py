"""`webhookd delivery`: look at deliveries and send them again."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from webhookd.cli.options import connection_options, load_settings
from webhookd.config.kinds import Seconds
from webhookd.config.load import LoadedConfig
from webhookd.errors import WebhookdError
from webhookd.text import shown

_STATUSES = ("pending", "retrying", "sending", "delivered", "failed")
_BATCH = 1000
_WAITS_SHOWN = 5  # webhooks
_SINCE = Seconds(longest_s=3650 * 86400.0)


def _duration(text: str) -> float:
    # A function, not a ParamType of click's: that one is generic in the newest releases only.
    try:
        return _SINCE.parse(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not {_SINCE.allowed}") from None


@click.group(no_args_is_help=False)
def delivery() -> None:
    """Look at deliveries and send them again."""


@delivery.command("list")
@click.option("--status", type=click.Choice(_STATUSES), help="Only deliveries in this status.")
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
    from webhookd.admin import database
    from webhookd.admin import facts as delivery_facts
    from webhookd.cli import output

    with database.connect(load_settings(ctx).config) as connection:
        connection.adapters.register_loader("timestamptz", delivery_facts.LenientInstant)
        rows = database.fetch(
            connection, "delivery_list", status=status, webhook_id=webhook_id, limit=limit
        )
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
    from webhookd.admin import database
    from webhookd.admin import facts as delivery_facts
    from webhookd.cli import output

    with database.connect(load_settings(ctx).config) as connection:
        connection.adapters.register_loader("timestamptz", delivery_facts.LenientInstant)
        row = database.fetch_one(connection, "delivery_show", delivery_id=delivery_id)
        if row is None:
            raise WebhookdError(
                f"no delivery has the id {delivery_id}: `webhookd delivery list` shows those "
                "there are"
            )
        attempts = database.fetch(connection, "delivery_attempts", delivery_id=delivery_id)
    if as_json:
        output.print_json({**row, "message_body": json.loads(row["message_body"]), "log": attempts})
        return
    output.print_table(
        ("", ""), [(name, value) for name, value in row.items() if name != "message_body"]
    )
    click.echo(f"\nbody  {shown(row['message_body'][:2000])}\n")
    _print_attempts(attempts, made=row["attempts"])


@delivery.command()
@click.argument("delivery_id", type=int, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection_options
@click.pass_context
def explain(ctx: click.Context, /, delivery_id: int, as_json: bool, **_: object) -> None:
    """Say why a delivery has not gone out yet, what to run, and what happened so far.

    What holds it longest comes first. A limit that the webhook leaves open is read from this
    command's configuration: give it the one that the workers have.
    """
    from psycopg import IsolationLevel

    from webhookd.admin import database
    from webhookd.admin import facts as delivery_facts
    from webhookd.admin.doctor.commands import commands_for
    from webhookd.admin.explain import reasons
    from webhookd.cli import output
    from webhookd.postgres.rows import defaults_of

    settings = load_settings(ctx)
    config = settings.config
    commands = commands_for(settings, database.dsn_of(config))
    with database.connect(config) as connection:
        connection.adapters.register_loader("timestamptz", delivery_facts.LenientInstant)
        connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
        with connection.transaction():
            facts = delivery_facts.read(connection, delivery_id, defaults_of(config))
            if facts is None:
                _explain_absence(connection, delivery_id, as_json=as_json)
                missing = "it is not committed yet, was rolled back, or has been deleted"
                raise WebhookdError(f"no delivery {delivery_id} can be seen: {missing}")
    # Pasted as it is, a command must reach the database that was asked here.
    found = [
        replace(
            reason,
            run=(
                *(commands.webhookd(words.removeprefix("webhookd ")) for words in reason.run),
                *(commands.sql(statement) for statement in reason.sql),
            ),
        )
        for reason in reasons(facts)
    ]
    row = facts.row
    if as_json:
        report = {
            "delivery_id": row.delivery_id,
            "webhook_id": row.webhook_id,
            "delivery_status": row.status,
        }
        output.print_json(
            {**report, "reasons": [reason.as_json() for reason in found], "log": facts.log}
        )
        return
    url = f" ({shown(facts.settings.url)})" if facts.settings else ""
    click.echo(f"delivery {row.delivery_id} for webhook {row.webhook_id}{url}: {row.status}\n")
    for reason in found:
        click.echo(f"- {reason.text}")
        for command in reason.run:
            click.echo(f"    {command}")
    click.echo()
    _print_attempts(facts.log, made=row.attempts)


def _explain_absence(connection: Any, delivery_id: int, *, as_json: bool) -> None:
    """Print what is known of a delivery that cannot be seen: the newest id there is, and who may
    just be inserting it.
    """
    from webhookd.admin import database
    from webhookd.admin import facts as delivery_facts
    from webhookd.cli import output

    newest = database.fetch_one(connection, "delivery_explain_newest")
    open_ones = delivery_facts.producers(connection)
    if as_json:
        newest_id = newest and newest["delivery_id"]
        output.print_json(
            {
                "delivery_id": delivery_id,
                "newest_id": newest_id,
                "producers": [asdict(one) for one in open_ones],
            }
        )
        return
    click.echo(
        f"the newest delivery is {newest['delivery_id']}" if newest else "the queue is empty"
    )
    for one in open_ones:
        click.echo(
            f"{one} has the queue open for writing: what it inserted cannot be seen, nor sent, "
            "before it commits"
        )
    if not open_ones:
        click.echo("no transaction that could have inserted it is open")


def _print_attempts(attempts: Sequence[dict[str, Any]], *, made: int) -> None:
    from webhookd.cli import output

    if not attempts:
        click.echo(
            "its attempts are no longer in the attempt log (--keep-log)"
            if made
            else "no attempt yet"
        )
        return
    # Plain SQL, or an earlier pggit, may have logged anything.
    details = [
        found if isinstance(found := attempt["event_details"], dict) else {} for attempt in attempts
    ]
    output.print_table(
        ("at", "event", "http", "ms", "worker", "reason", "answer"),
        [
            (
                attempt["created_at"],
                attempt["event_type"],
                attempt["http_status"],
                attempt["response_time_ms"],
                attempt["worker_id"],
                detail.get("reason"),
                detail.get("excerpt"),
            )
            for attempt, detail in zip(attempts, details, strict=True)
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
    type=_duration,
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
    """Send deliveries again: those given by id (whatever became of them), or all that failed."""
    from webhookd.admin import database

    if bool(delivery_ids) == failed or (
        not failed and (webhook_id is not None or since is not None)
    ):
        raise click.UsageError(
            "give either ids, or --failed with --webhook and --since where wanted", ctx
        )
    settings = load_settings(ctx)
    first: dict[int, int] = {}  # of each webhook, the first delivery
    with database.connect(settings.config) as connection:
        if delivery_ids:
            ids = sorted(set(delivery_ids))
            rows = database.fetch(connection, "delivery_retry", delivery_ids=ids)
            for row in rows:
                first.setdefault(row["webhook_id"], row["delivery_id"])
            found = {row["delivery_id"] for row in rows}
            missing, count = [str(one) for one in ids if one not in found], len(found)
        else:
            missing, count, after = [], 0, -1
            while True:
                rows = database.fetch(
                    connection,
                    "delivery_retry_failed",
                    after=after,
                    webhook_id=webhook_id,
                    since_s=since,
                    limit=_BATCH,
                )
                count += len(rows)
                for row in rows:
                    first.setdefault(row["webhook_id"], row["delivery_id"])
                if len(rows) < _BATCH:
                    break
                after = max(row["delivery_id"] for row in rows)
        click.echo(f"{count} will be sent again")
        _print_waits(connection, settings, list(first.values()))
    if missing:
        raise WebhookdError(f"not there, or being sent just now: {', '.join(missing)}")


def _print_waits(connection: Any, settings: LoadedConfig, delivery_ids: Sequence[int]) -> None:
    """Say of some of these deliveries, one a webhook, what keeps them from being sent now."""
    from psycopg import IsolationLevel, errors

    from webhookd.admin import database
    from webhookd.admin import facts as delivery_facts
    from webhookd.admin.doctor.commands import commands_for
    from webhookd.admin.explain import reasons
    from webhookd.postgres.rows import defaults_of

    commands = commands_for(settings, database.dsn_of(settings.config))
    connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
    for delivery_id in delivery_ids[:_WAITS_SHOWN]:
        try:
            with connection.transaction():
                facts = delivery_facts.read(connection, delivery_id, defaults_of(settings.config))
        except errors.InsufficientPrivilege:
            return  # whoever may write the queue need not read the registry
        if facts is None or facts.row.status not in ("pending", "retrying"):
            continue  # a worker was quicker
        held = [
            reason.text
            for reason in reasons(facts)
            if reason.until is not None and reason.until > facts.now
        ]
        if held:
            click.echo(f"delivery {delivery_id} waits. {held[0]}")
            click.echo(f"    {commands.webhookd(f'delivery explain {delivery_id}')}")
