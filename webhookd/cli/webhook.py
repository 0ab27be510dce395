"""`webhookd webhook`: reads options for `webhookd.admin.registry`, and prints what it returns."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from webhookd.cli.limits import limit_options, own_limits
from webhookd.cli.options import connection_options, egress_options, load_settings
from webhookd.config.kinds import Seconds
from webhookd.core.model import MAX_WEBHOOK_ID
from webhookd.errors import UnusableError, WebhookdError
from webhookd.text import shown

if TYPE_CHECKING:
    from webhookd.admin.registry import WebhookSummary

_LISTED = 1000


@click.group(no_args_is_help=False)
def webhook() -> None:
    """Register webhooks and look after them."""


@webhook.command()
@click.argument("url")
@click.option(
    "--id",
    "webhook_id",
    type=click.IntRange(1, MAX_WEBHOOK_ID),
    metavar="N",
    help="Its id. Default: the next free id.",
)
@click.option(
    "--secret",
    metavar="whsec_...",
    help="Its signing secret. Default: a new secret, which is printed.",
)
@click.option("--no-secret", is_flag=True, help="Send unsigned.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A header of its own; repeatable.",
)
@limit_options
@egress_options
@connection_options
@click.pass_context
def add(
    ctx: click.Context,
    /,
    url: str,
    webhook_id: int | None,
    secret: str | None,
    no_secret: bool,
    headers: tuple[str, ...],
    **options: Any,
) -> None:
    """Register URL. Refused if it could not be delivered to under the options in force."""
    from webhookd.admin import database, fleet, registry

    settings = load_settings(ctx)
    if secret is not None and no_secret:
        raise click.UsageError("give --secret or --no-secret, not both", ctx)
    made = None if secret is not None or no_secret else registry.new_secret()
    new = registry.NewWebhook(
        url,
        webhook_id,
        secret=made if secret is None else secret,
        headers=_headers(headers),
        limits=own_limits(options),
    )
    # Before the database is asked: bad input is exit 2 also where none answers.
    registry.check_form(new, settings.config)
    with database.connect(settings.config) as connection:
        config = fleet.options_in_force(connection, settings).config
        added = registry.add(connection, new, config)
    click.echo(f"webhook {added} registered")
    if made is not None:
        click.echo(f"secret {made}")
    if warning := registry.resolution_warning(url, config):
        click.echo(f"webhookd: warning: {warning}", err=True)


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    """Return the headers in 'NAME: VALUE' lines; names that differ only in case are one name."""
    headers: dict[str, str] = {}
    names: set[str] = set()
    for one in given:
        name, colon, value = (part.strip() for part in one.partition(":"))
        if not colon or not name:
            raise UnusableError(f"--header {one.partition(':')[0]!r} is not 'NAME: VALUE'")
        if name.lower() in names:
            raise UnusableError(f"--header {name} is given twice: keep one")
        names.add(name.lower())
        headers[name] = value
    return headers


@webhook.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help=f"How many. [default: {_LISTED:,}; all with --json]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection_options
@click.pass_context
def list_(ctx: click.Context, /, limit: int | None, as_json: bool, **_: object) -> None:
    """List the registered webhooks with their health and what waits for them."""
    from webhookd.admin import database, registry
    from webhookd.cli import output

    with database.connect(load_settings(ctx).config) as connection:
        # Drawing a table of 100,000 takes minutes.
        limit = limit if as_json else limit or _LISTED
        found = registry.list_webhooks(connection, limit=limit)
    if as_json:
        output.print_json([asdict(one) for one in found.webhooks])
        return
    output.print_table(
        ("id", "url", "state", "health", "circuit", "failures", "waiting"),
        [
            (
                one.webhook_id,
                one.url,
                _state(one),
                one.health_status,
                one.circuit_state,
                one.consecutive_failures,
                one.waiting,
            )
            for one in found.webhooks
        ],
    )
    if found.more:
        click.echo(
            f"webhookd: there are more than {limit}: give --limit, or --json for all", err=True
        )


def _state(one: "WebhookSummary") -> str:
    if not one.enabled:
        return f"disabled: {one.disabled_reason or '-'}"
    return f"held: {one.blocked_reason}" if one.blocked_reason else "enabled"


@webhook.command()
@click.argument("webhook_id", type=int, metavar="ID")
@click.option("--reveal-secret", is_flag=True, help="Print the secret too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection_options
@click.pass_context
def show(
    ctx: click.Context, /, webhook_id: int, reveal_secret: bool, as_json: bool, **_: object
) -> None:
    """Show one webhook: settings in force and where they come from, health, circuit."""
    from webhookd.admin import database, fleet, registry
    from webhookd.cli import output

    settings = load_settings(ctx)
    with database.connect(settings.config) as connection:
        config = fleet.options_in_force(connection, settings).config
        found = registry.show(connection, webhook_id, config, reveal_secret=reveal_secret)
    row = asdict(found)
    limits, health = row.pop("limits"), row.pop("health")
    if as_json:
        own = {one["column"]: one["value"] if one["own"] else None for one in limits}
        output.print_json({**row, **own, **health})
        return
    del row["webhook_id"]
    if isinstance(row["headers"], dict):
        row["headers"] = json.dumps(row["headers"], ensure_ascii=False)
    if row["old_secret_until"] is not None:
        row["old_secret_until"] = f"{shown(row['old_secret_until'])} (both secrets sign until then)"
    lines = [(name, value, "") for name, value in {**row, **health}.items()]
    lines += [
        (one["column"], one["value"], "its own" if one["own"] else "configuration")
        for one in limits
    ]
    output.print_table((f"webhook {webhook_id}", "", "from"), lines)


@webhook.command()
@click.argument("webhook_ids", type=int, nargs=-1, required=True, metavar="ID...")
@connection_options
@click.pass_context
def pause(ctx: click.Context, /, webhook_ids: tuple[int, ...], **_: object) -> None:
    """Stop sending to webhooks; their deliveries wait and spend no retry."""
    _set_enabled(ctx, webhook_ids, enabled=False, done="paused")


@webhook.command()
@click.argument("webhook_ids", type=int, nargs=-1, required=True, metavar="ID...")
@connection_options
@click.pass_context
def resume(ctx: click.Context, /, webhook_ids: tuple[int, ...], **_: object) -> None:
    """Resume deliveries to webhooks that were paused or disabled."""
    _set_enabled(ctx, webhook_ids, enabled=True, done="resumed")


def _set_enabled(
    ctx: click.Context, webhook_ids: tuple[int, ...], *, enabled: bool, done: str
) -> None:
    from webhookd.admin import database, registry

    with database.connect(load_settings(ctx).config) as connection:
        change = registry.set_enabled(connection, webhook_ids, enabled=enabled)
    for webhook_id in change.found:
        click.echo(f"webhook {webhook_id} {done}")
    if change.missing:
        raise WebhookdError(f"no webhook has the id {', '.join(map(str, change.missing))}")


class _Overlap(Seconds):
    """A duration, or 0."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = f"0, or {self.allowed}"

    def parse(self, raw: object) -> float:
        return 0.0 if raw in ("0", "0s", 0) else super().parse(raw)


@webhook.command("rotate-secret")
@click.argument("webhook_id", type=int, metavar="ID")
@click.option(
    "--overlap",
    "overlap_s",
    type=_Overlap(),
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="For so long the old secret signs too; 0 ends it at once.",
)
@click.option(
    "--secret-stdin", is_flag=True, help="Read the new secret from stdin. Default: a new one."
)
@click.option("--abort", is_flag=True, help="Take the rotation under way back.")
@connection_options
@click.pass_context
def rotate_secret(
    ctx: click.Context,
    /,
    webhook_id: int,
    overlap_s: float,
    secret_stdin: bool,
    abort: bool,
    **_: object,
) -> None:
    """Give a webhook a new signing secret and print it.

    Until the overlap ends, each request carries a signature of both secrets: a receiver with either
    of them verifies it.
    """
    from webhookd.admin import database, rotation

    config = load_settings(ctx).config
    if abort:
        given = ctx.get_parameter_source("overlap_s") is not ParameterSource.DEFAULT
        if secret_stdin or given:
            raise click.UsageError("give --abort alone: it brings no new secret", ctx)
        with database.connect(config) as connection:
            rotation.abort(connection, webhook_id)
        click.echo(f"webhook {webhook_id} signs with its old secret alone again")
        return
    secret = _secret_from_stdin() if secret_stdin else None
    with database.connect(config) as connection:
        done = rotation.rotate(connection, webhook_id, overlap_s=overlap_s, secret=secret)
    if secret is None:
        click.echo(f"secret {done.secret}")
    signs = "with the new secret alone"
    if done.old_secret_until is not None:
        signs = f"with the old secret too until {shown(done.old_secret_until)}"
    # Not on stdout, where scripts read the secret.
    click.echo(f"webhookd: webhook {webhook_id} signs {signs}", err=True)


def _secret_from_stdin() -> str:
    """Return the line on stdin; a person at a terminal is asked for it, and it is not shown."""
    if sys.stdin.isatty():
        return str(click.prompt("new secret", hide_input=True, err=True)).strip()
    return sys.stdin.readline().strip()


@webhook.command()
@click.argument("webhook_id", type=int, metavar="ID")
@click.option("--force", is_flag=True, help="Also while deliveries wait for it.")
@connection_options
@click.pass_context
def remove(ctx: click.Context, /, webhook_id: int, force: bool, **_: object) -> None:
    """Take a webhook out of the registry. Its deliveries, attempts and health stay."""
    from webhookd.admin import database, registry

    with database.connect(load_settings(ctx).config) as connection:
        waiting = registry.remove(connection, webhook_id, force=force)
    rest = f"; {waiting} deliveries wait for it unsent" if waiting else ""
    click.echo(f"webhook {webhook_id} removed{rest}")


@webhook.command()
@click.argument("webhook_id", type=int, metavar="ID")
@egress_options
@connection_options
@click.pass_context
def test(ctx: click.Context, /, webhook_id: int, **_: object) -> None:
    """Send one signed test request from this host, bypassing the queue, and print the answer. Exit
    1 unless it is 2xx.
    """
    from webhookd.admin import database, fleet, registry

    settings = load_settings(ctx)
    with database.connect(settings.config) as connection:
        config = fleet.options_in_force(connection, settings).config
        answer = registry.send_test(connection, webhook_id, config)
    status = answer.error or f"HTTP {answer.http_status}"
    click.echo(f"{status} after {answer.elapsed_s * 1000:.0f} ms")
    if answer.excerpt:
        click.echo(shown(answer.excerpt))
    ctx.exit(0 if registry.is_success(answer) else 1)
