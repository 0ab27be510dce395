"""`webhookd migrate` and `webhookd adopt`."""

import click

from webhookd.cli.options import connection_options, load_settings


@click.command()
@connection_options
@click.pass_context
def migrate(ctx: click.Context, /, **_: object) -> None:
    """Create or upgrade the schema. Safe to run twice, also at once; needs no superuser."""
    from webhookd.admin.database import dsn_of
    from webhookd.schema.migrate import migrate as apply

    applied = apply(dsn_of(load_settings(ctx).config))
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("the schema is up to date")


@click.command()
@click.option(
    "--discard-pending",
    is_flag=True,
    help="This is a copy: fail the deliveries that wait in it, and make it a new installation.",
)
@click.option(
    "--continue",
    "moved",
    is_flag=True,
    help="The database moved here: continue where the original stopped.",
)
@connection_options
@click.pass_context
def adopt(ctx: click.Context, /, discard_pending: bool, moved: bool, **_: object) -> None:
    """Let workers use a database that was copied or moved.

    Until then they refuse: a dump of production restored for staging must not send what
    production sends.
    """
    from webhookd.admin.database import dsn_of
    from webhookd.schema.identity import adopt as take

    if discard_pending == moved:
        raise click.UsageError(
            "give exactly one of --discard-pending (a copy) and --continue (the database moved)",
            ctx,
        )
    discarded = take(dsn_of(load_settings(ctx).config), discard_pending=discard_pending)
    click.echo(
        f"adopted; {discarded} waiting deliveries discarded"
        if discard_pending
        else "adopted; workers may continue"
    )
