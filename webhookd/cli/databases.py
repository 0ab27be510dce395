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
    help="This is a copy: fail what waits in it, and be an installation of its own.",
)
@click.option(
    "--continue",
    "go_on",
    is_flag=True,
    help="The database moved here: go on where the original stopped.",
)
@connection_options
@click.pass_context
def adopt(ctx: click.Context, /, discard_pending: bool, go_on: bool, **_: object) -> None:
    """Let workers work on a database that was copied or moved.

    They refuse to until then: a dump of production restored for staging must not send what
    production sends.
    """
    from webhookd.admin.database import dsn_of
    from webhookd.schema.identity import adopt as take

    if discard_pending == go_on:
        raise click.UsageError(
            "give exactly one of --discard-pending (a copy) and --continue (the database moved)",
            ctx,
        )
    discarded = take(dsn_of(load_settings(ctx).config), discard_pending=discard_pending)
    click.echo(
        f"adopted; {discarded} waiting deliveries discarded"
        if discard_pending
        else "adopted; everything goes on"
    )
