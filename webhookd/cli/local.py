"""`webhookd listen` and `webhookd demo`: for trying webhookd out on one machine."""

from pathlib import Path

import click


@click.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen on."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9000,
    show_default=True,
    help="0 takes any free port.",
)
@click.option("--secret", metavar="whsec_...", help="Verify signatures with this secret.")
@click.option(
    "--status",
    type=click.IntRange(200, 599),
    default=200,
    show_default=True,
    help="What to answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object an arrival.")
def listen(host: str, port: int, secret: str | None, status: int, as_json: bool) -> None:
    """Receive webhooks on this machine: print each and whether its signature is valid."""
    from webhookd.core.signing import parse_secret
    from webhookd.demo.receiver import Receiver, printer
    from webhookd.errors import UnusableError
    from webhookd.text import printable

    try:
        key = parse_secret(secret) if secret else None
    except ValueError as error:
        raise UnusableError(f"--secret: {error}") from error
    receiver = Receiver(
        host, port, key=key, status=status, show=printer(as_json=as_json, printable=printable)
    )
    click.echo(f"listening on {receiver.url}", err=as_json)
    receiver.serve()


@click.command()
@click.option(
    "--keep", is_flag=True, help="Leave everything running afterwards, and print what to look at."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the database. Default: a temporary one.",
)
@click.pass_context
def demo(ctx: click.Context, /, keep: bool, directory: Path | None) -> None:
    """See the whole system deliver 1,000 webhooks on this machine. Needs nothing but
    webhookd[embedded].
    """
    from webhookd.demo.demo import run

    ctx.exit(run(keep=keep, directory=directory))
