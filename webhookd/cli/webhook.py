"""`webhookd webhook`: the registry."""

import json
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from webhookd.cli.options import connection_options, egress_options, load_settings
from webhookd.config.kinds import Kind, Seconds, rate
from webhookd.config.load import Config
from webhookd.errors import UnusableError, WebhookdError
from webhookd.postgres.rows import FASTEST_RATE, LONGEST_TIMEOUT_S, headers_of
from webhookd.text import shown


def _of_kind(kind: Kind) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not {kind.allowed}") from None

    parse.__name__ = kind.metavar  # which is what the help shows
    return parse


# Column, option, type and meaning of what a webhook may have of its own; and the configuration's
# field behind it. (Any, since click's ParamType is generic in the newest releases only.)
_LIMITS: tuple[tuple[str, str, Any, str, str], ...] = (
    (
        "timeout_seconds",
        "--timeout",
        _of_kind(Seconds(LONGEST_TIMEOUT_S)),
        "For one exchange.",
        "timeout",
    ),
    (
        "max_in_flight",
        "--max-in-flight",
        click.IntRange(1),
        "Exchanges at a time.",
        "max_in_flight",
    ),
    (
        "rate_limit_per_second",
        "--rate",
        _of_kind(rate(FASTEST_RATE)),
        "Attempts a second; 0 is unlimited.",
        "rate_limit",
    ),
    (
        "rate_limit_burst",
        "--rate-burst",
        click.IntRange(1),
        "Attempts at once after a pause.",
        "rate_burst",
    ),
    (
        "retry_base_seconds",
        "--retry-base",
        _of_kind(Seconds()),
        "The first retry's delay.",
        "retry_base",
    ),
    ("retry_max_seconds", "--retry-max", _of_kind(Seconds()), "The longest delay.", "retry_max"),
    (
        "circuit_failure_threshold",
        "--circuit-threshold",
        click.IntRange(1),
        "Failures that open it.",
        "circuit_threshold",
    ),
    (
        "circuit_open_seconds",
        "--circuit-open",
        _of_kind(Seconds()),
        "Wait for its probe.",
        "circuit_open",
    ),
)
_SECRET_BYTES = 32
_LOOKUP_S = 3.0
_LISTED = 1000
_OUR_HEADERS = frozenset(
    {"content-type", "user-agent", "webhook-id", "webhook-timestamp", "webhook-signature"}
)

F = TypeVar("F", bound=Callable[..., Any])


def _limit_options(command: F) -> F:
    for column, option, kind, text, _ in reversed(_LIMITS):
        command = click.option(option, column, type=kind, help=f"{text} [default: the daemon's]")(
            command
        )
    return command


@click.group(no_args_is_help=False)
def webhook() -> None:
    """Register webhooks and look after them."""


@webhook.command()
@click.argument("url")
@click.option(
    "--id",
    "webhook_id",
    type=click.IntRange(1, 2**63 - 1),
    metavar="N",
    help="Its id; else the next free one.",
)
@click.option(
    "--secret", metavar="whsec_...", help="Its signing secret; else a new one is made and printed."
)
@click.option("--no-secret", is_flag=True, help="Send unsigned.")
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A header of its own; repeatable.",
)
@_limit_options
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
    from webhookd.admin import database

    config = load_settings(ctx).config
    host, egress = _deliverable(url, config)
    if secret is not None and no_secret:
        raise click.UsageError("give --secret or --no-secret, not both", ctx)
    _refuse_crossed_delays(options, config)
    made = None if secret is not None or no_secret else _new_secret()
    row = {
        "url": url,
        "secret": made if secret is None else _checked_secret(secret),
        "headers": json.dumps(_headers(headers)) if headers else None,
        **{column: options[column] for column, *_ in _LIMITS},
    }
    with database.connect(config) as connection:
        if webhook_id is not None:
            if (
                database.fetch_one(connection, "webhook_insert", webhook_id=webhook_id, **row)
                is None
            ):
                raise UnusableError(
                    f"--id {webhook_id} is taken: `webhookd webhook show {webhook_id}` shows by "
                    "whom"
                )
        else:
            webhook_id = _insert_with_next_id(connection, row)
        database.fetch(connection, "webhook_advance_identity", webhook_id=webhook_id)
    click.echo(f"webhook {webhook_id} registered")
    if made is not None:
        click.echo(f"secret {made}")
    _warn_of_name(host, egress)


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
    from webhookd.admin import database
    from webhookd.cli import output

    with database.connect(load_settings(ctx).config) as connection:
        # Drawing a table of 100,000 takes minutes.
        most = limit if as_json else limit or _LISTED
        rows = database.fetch(connection, "webhook_list", limit=most and most + 1)
    more = most is not None and len(rows) > most
    rows = rows[:most]
    if as_json:
        output.print_json(rows)
        return
    output.print_table(
        ("id", "url", "state", "health", "circuit", "failures", "waiting"),
        [
            (
                row["webhook_id"],
                row["url"],
                "enabled" if row["enabled"] else f"disabled: {row['disabled_reason'] or '-'}",
                row["health_status"],
                row["circuit_state"],
                row["consecutive_failures"],
                row["waiting"],
            )
            for row in rows
        ],
    )
    if more:
        click.echo(
            f"webhookd: there are more than {most}: give --limit, or --json for all", err=True
        )


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
    from webhookd.admin import database
    from webhookd.cli import output

    config = load_settings(ctx).config
    with database.connect(config) as connection:
        row = database.fetch_one(connection, "webhook_show", webhook_id=webhook_id)
    if row is None:
        raise WebhookdError(
            f"no webhook has the id {webhook_id}: `webhookd webhook list` shows those there are"
        )
    if row["secret"] and not reveal_secret:
        row["secret"] = "whsec_(hidden)"
    if row["headers"] is not None:
        headers = headers_of(row["headers"])
        row["headers"] = "cannot be read" if headers is None else dict(headers)
    if as_json:
        output.print_json({"webhook_id": webhook_id, **row})
        return
    own = {column for column, *_ in _LIMITS}
    lines: list[tuple[object, object, object]] = [
        (name, value, "") for name, value in row.items() if name not in own
    ]
    for column, *_rest, field in _LIMITS:
        mine = row[column]
        inherited = mine is None
        value = getattr(config, str(field)) if inherited else mine
        lines.append((column, value, "configuration" if inherited else "its own"))
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
    """Send again to webhooks that were paused or disabled."""
    _set_enabled(ctx, webhook_ids, enabled=True, done="resumed")


@webhook.command("rotate-secret")
@click.argument("webhook_id", type=int, metavar="ID")
@connection_options
@click.pass_context
def rotate_secret(ctx: click.Context, /, webhook_id: int, **_: object) -> None:
    """Give a webhook a new signing secret and print it."""
    from webhookd.admin import database

    secret = _new_secret()
    with database.connect(load_settings(ctx).config) as connection:
        if (
            database.fetch_one(
                connection, "webhook_set_secret", webhook_id=webhook_id, secret=secret
            )
            is None
        ):
            raise WebhookdError(f"no webhook has the id {webhook_id}")
    click.echo(f"secret {secret}")


@webhook.command()
@click.argument("webhook_id", type=int, metavar="ID")
@click.option("--force", is_flag=True, help="Also while deliveries wait for it.")
@connection_options
@click.pass_context
def remove(ctx: click.Context, /, webhook_id: int, force: bool, **_: object) -> None:
    """Take a webhook out of the registry. Its deliveries, attempts and health stay."""
    from webhookd.admin import database

    with database.connect(load_settings(ctx).config) as connection:
        row = database.fetch_one(connection, "webhook_waiting", webhook_id=webhook_id)
        waiting = row["waiting"] if row else 0
        if waiting and not force:
            raise UnusableError(
                f"{waiting} deliveries wait for webhook {webhook_id}: with --force they stay "
                "unsent until it is registered again"
            )
        if database.fetch_one(connection, "webhook_delete", webhook_id=webhook_id) is None:
            raise WebhookdError(f"no webhook has the id {webhook_id}")
    click.echo(
        f"webhook {webhook_id} removed"
        + (f"; {waiting} deliveries wait for it unsent" if waiting else "")
    )


@webhook.command()
@click.argument("webhook_id", type=int, metavar="ID")
@egress_options
@connection_options
@click.pass_context
def test(ctx: click.Context, /, webhook_id: int, **_: object) -> None:
    """Send one signed test request from here, past the queue, and print the answer. Exit 1 unless
    it is 2xx.
    """
    from webhookd.admin import database
    from webhookd.core.answer import AnswerKind, is_success

    config = load_settings(ctx).config
    with database.connect(config) as connection:
        row = database.fetch_one(connection, "webhook_show", webhook_id=webhook_id)
    if row is None or not row["registered"]:
        raise WebhookdError(f"no webhook has the id {webhook_id}")
    try:
        answer = _send_test({"webhook_id": webhook_id, **row}, config)
    except ValueError as error:
        # An application may have written it with plain SQL. Workers send nothing then, so neither
        # does this.
        raise UnusableError(
            f"the secret of webhook {webhook_id} cannot be used ({error}): run `webhookd webhook "
            f"rotate-secret {webhook_id}`"
        ) from error
    if answer.kind is AnswerKind.NOT_ALLOWED:
        raise UnusableError(f"nothing was sent to webhook {webhook_id}: {answer.error}")
    status = answer.error or f"HTTP {answer.http_status}"
    click.echo(f"{status} after {answer.elapsed_s * 1000:.0f} ms")
    if answer.excerpt:
        click.echo(shown(answer.excerpt))
    ctx.exit(0 if is_success(answer.http_status) else 1)


def _send_test(row: dict[str, Any], config: Config) -> Any:
    from webhookd.core.signing import parse_secret, sign
    from webhookd.transport.client import Transport
    from webhookd.transport.egress import Egress
    from webhookd.worker.attempt import USER_AGENT

    now = int(time.time())
    message_id = f"test_{secrets.token_hex(8)}"
    body = json.dumps({"type": "webhookd.test", "timestamp": now}).encode()
    headers = [
        ("content-type", "application/json"),
        ("user-agent", USER_AGENT),
        ("webhook-id", message_id),
        ("webhook-timestamp", str(now)),
    ]
    if row["secret"]:
        key = parse_secret(row["secret"])
        headers.append(
            ("webhook-signature", sign(key, webhook_id=message_id, timestamp=now, body=body))
        )
    own = headers_of(row["headers"])
    if own is None:
        raise UnusableError(
            f"the headers of webhook {row['webhook_id']} cannot be read: write them anew in "
            "pggit.webhooks"
        )
    headers.extend(own)
    transport = Transport(Egress(config.allow_http, config.allow_network))
    try:
        return transport.post(
            row["url"],
            headers=headers,
            body=body,
            timeout_s=row["timeout_seconds"] or config.timeout,
        )
    finally:
        transport.close()


def _set_enabled(
    ctx: click.Context, webhook_ids: tuple[int, ...], *, enabled: bool, done: str
) -> None:
    from webhookd.admin import database

    with database.connect(load_settings(ctx).config) as connection:
        reason = None if enabled else "paused by operator"
        rows = database.fetch(
            connection,
            "webhook_set_enabled",
            webhook_ids=list(webhook_ids),
            enabled=enabled,
            reason=reason,
        )
    found = {row["webhook_id"] for row in rows}
    for webhook_id in sorted(found):
        click.echo(f"webhook {webhook_id} {done}")
    if missing := [str(one) for one in webhook_ids if one not in found]:
        raise WebhookdError(f"no webhook has the id {', '.join(missing)}")


def _deliverable(url: str, config: Config) -> tuple[str, Any]:
    """Return the host in *url* and the rule that let it pass; raise `UnusableError` for a URL that
    cannot be delivered to.
    """
    from webhookd.transport.egress import Egress, NotAllowed, is_address

    egress = Egress(config.allow_http, config.allow_network)
    try:
        target = egress.target(url)
        if is_address(target.host):
            egress.check_address(target.host)
    except NotAllowed as error:
        raise UnusableError(f"URL cannot be delivered to: {error}") from error
    return target.host, egress


def _warn_of_name(host: str, egress: Any) -> None:
    """Say what a name resolves to from here where that would not be delivered. The workers' own
    look decides.
    """
    import socket

    from webhookd.transport.egress import NotAllowed, is_address
    from webhookd.transport.resolver import LookupFailed, Resolver

    if is_address(host):
        return
    try:
        for address in Resolver(socket.getaddrinfo).addresses(
            host, deadline=time.monotonic() + _LOOKUP_S
        ):
            egress.check_address(address)
    except (TimeoutError, LookupFailed):
        click.echo(f"webhookd: warning: {host} does not resolve from here", err=True)
    except NotAllowed as error:
        click.echo(f"webhookd: warning: {host}: {error}", err=True)


def _refuse_crossed_delays(options: dict[str, Any], config: Config) -> None:
    base = (
        config.retry_base
        if options["retry_base_seconds"] is None
        else options["retry_base_seconds"]
    )
    most = (
        config.retry_max if options["retry_max_seconds"] is None else options["retry_max_seconds"]
    )
    if base > most:
        raise UnusableError(
            f"--retry-base and --retry-max: the first delay, {base:g} s, must not exceed the "
            f"longest, {most:g} s"
        )


def _insert_with_next_id(connection: Any, row: dict[str, Any]) -> int:
    from webhookd.admin import database

    while True:
        following = database.fetch_one(connection, "webhook_next_id")
        assert following is not None
        # Somebody else may take the same id at the same moment.
        if (
            database.fetch_one(
                connection, "webhook_insert", webhook_id=following["webhook_id"], **row
            )
            is not None
        ):
            return int(following["webhook_id"])


def _new_secret() -> str:
    from webhookd.core.signing import format_secret

    return format_secret(secrets.token_bytes(_SECRET_BYTES))


def _checked_secret(secret: str) -> str:
    from webhookd.core.signing import parse_secret

    try:
        parse_secret(secret)
    except ValueError as error:
        raise UnusableError(f"--secret: {error}") from error
    return secret


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    from webhookd.transport.egress import NotAllowed
    from webhookd.transport.exchange import header_block

    headers: dict[str, str] = {}
    for one in given:
        name, colon, value = (part.strip() for part in one.partition(":"))
        if not colon or not name:
            raise UnusableError(f"--header {one.partition(':')[0]!r} is not 'NAME: VALUE'")
        # A second one of these would leave the receiver to choose which it believes.
        if name.lower() in _OUR_HEADERS:
            raise UnusableError(f"--header {name}: webhookd sets it itself")
        if name.lower() in headers:
            raise UnusableError(f"--header {name} is given twice: keep one")
        headers[name.lower()] = value
    try:
        header_block(list(headers.items()))
    except NotAllowed as error:
        raise UnusableError(f"--header: {error}") from error
    return headers
