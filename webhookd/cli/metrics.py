"""`webhookd metrics`: what `admin.scrape` collects, for people, scripts and other monitoring."""

import click

from webhookd.cli.options import connection_options, load_settings
from webhookd.errors import WebhookdError
from webhookd.text import shown


@click.command()
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print JSON: at, workers [url, error], metrics [name, type, labels, value]",
)
@click.option("--post", "post_url", metavar="URL", help="Send that JSON to URL by POST.")
@click.option(
    "--url",
    "urls",
    multiple=True,
    metavar="URL",
    help="Ask this worker, and no database; repeatable.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 600, min_open=True),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="For a worker's answer.",
)
@click.option(
    "--targets",
    is_flag=True,
    help="Print where all workers are, for Prometheus' file or HTTP service discovery.",
)
@connection_options
@click.pass_context
def metrics(
    ctx: click.Context,
    /,
    as_json: bool,
    post_url: str | None,
    urls: tuple[str, ...],
    timeout_s: float,
    targets: bool,
    **_: object,
) -> None:
    """Print the metrics of all workers as one.

    Counters and histograms are summed, the queue's depth is the largest that a worker saw, and a
    worker that fails shows. Exit 1 if a worker does not answer; the others' metrics are printed, or
    sent, all the same.
    """
    if targets:
        if as_json or post_url or urls:
            raise click.UsageError("--targets goes with none of --json, --post and --url", ctx)
        _print_targets(ctx)
        return
    from webhookd.admin import database, scrape
    from webhookd.cli import output

    checked_post_url = None if post_url is None else scrape.checked_url("--post", post_url)
    asked = [
        scrape.Endpoint(scrape.checked_url("--url", url, default_path="/metrics"))
        for url in dict.fromkeys(urls)
    ]
    if not asked:
        with database.connect(load_settings(ctx).config) as connection:
            asked = scrape.endpoints(connection)
    fleet = scrape.scrape(asked, timeout_s)
    failed = [one for one in fleet.scrapes if one.error is not None]
    for one in failed:
        click.echo(f"webhookd: {shown(one.url)}: {shown(one.error)}", err=True)
    if len(failed) == len(asked):
        raise WebhookdError("no worker answered")
    if as_json:
        output.print_json(fleet.as_json())
    elif post_url is None:
        click.echo(fleet.as_text(), nl=False)
    if checked_post_url is not None:
        answer = scrape.post(checked_post_url, fleet)
        click.echo(f"{len(fleet.as_json()['metrics'])} series sent: {answer}", err=as_json)
    ctx.exit(1 if failed else 0)


def _print_targets(ctx: click.Context) -> None:
    from webhookd.admin import database, scrape
    from webhookd.cli import output

    with database.connect(load_settings(ctx).config) as connection:
        found = scrape.targets(connection)
    output.print_json(found)
