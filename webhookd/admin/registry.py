"""What an operator does with the registry: add, list, show, pause, remove, test.

Each function takes an open connection of `admin.database` and raises `UnusableError` for what
cannot be used as it is, `WebhookdError` for an id that no webhook has.
"""

import json
import re
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any

from webhookd.admin import database, limits
from webhookd.admin.database import Connection, Instant
from webhookd.config.options import Config
from webhookd.core.answer import Answer, AnswerKind, Decision, classify
from webhookd.core.model import WebhookSettings
from webhookd.core.signing import format_secret, parse_secret
from webhookd.errors import UnusableError, WebhookdError
from webhookd.postgres.arrays import number_array
from webhookd.postgres.rows import defaults_of, settings_of
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress, NotAllowed, Target, is_address
from webhookd.transport.request import Request, build_request, checked_target, parse_headers
from webhookd.transport.resolver import LookupFailed, Resolver
from webhookd.transport.shortage import Shortage

PAUSED_REASON = "paused by operator"
HIDDEN_SECRET = "whsec_(hidden)"

_LOCALHOST = re.compile(r"(.*\.)?localhost\.?")  # these names are loopback anywhere (RFC 6761, 6.3)
_HIGHEST_FOLLOWED = 2**52  # of the ids given by hand; the sequence has as many left
_IDS_SKIPPED = 100_000  # at most, since deliveries name them; a second
_SECRET_BYTES = 32
_LOOKUP_S = 3.0


@dataclass(frozen=True, slots=True)
class NewWebhook:
    """A webhook to register. *webhook_id* None: the next free one. *secret* None: unsigned.

    *headers* are its own, *limits* its own values by column (`postgres.rows.LIMITS`).
    """

    url: str
    webhook_id: int | None = None
    secret: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WebhookSummary:
    """A line of the list. *waiting*: deliveries that are not finished. *blocked_reason*: why the
    webhook is held; None: it is not.
    """

    webhook_id: int
    url: str
    enabled: bool
    disabled_reason: str | None
    health_status: str
    circuit_state: str
    consecutive_failures: int
    waiting: int
    blocked_reason: str | None


@dataclass(frozen=True, slots=True)
class WebhookList:
    """*more*: the registry holds more webhooks than the limit let through."""

    webhooks: Sequence[WebhookSummary]
    more: bool


@dataclass(frozen=True, slots=True)
class Health:
    """How deliveries to a webhook went, and its lane. None where no worker has looked at it yet."""

    health_status: str
    total_deliveries: int | None
    successful_deliveries: int | None
    failed_deliveries: int | None
    avg_response_time_ms: float | None
    consecutive_failures: int | None
    last_check_at: Instant | None
    last_success_at: Instant | None
    last_failure_at: Instant | None
    circuit_state: str
    circuit_until: Instant | None
    hold_until: Instant | None
    blocked_by: str | None
    blocked_reason: str | None
    in_flight: int | None
    waiting: int


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook. *registered* False: only deliveries or health name it, and its row's values are
    None.

    *old_secret_until*: until then its old secret signs too; None: it has one at most.
    *headers*: those in its row, or why they are never sent.
    *limits*: those in force, in the order of `postgres.rows.LIMITS`.
    """

    webhook_id: int
    registered: bool
    url: str | None
    enabled: bool | None
    disabled_reason: str | None
    secret: str | None = field(repr=False)
    old_secret_until: Instant | None
    headers: Mapping[str, str] | str | None
    created_at: Instant | None
    limits: Sequence[limits.LimitInForce]
    health: Health


@dataclass(frozen=True, slots=True)
class Change:
    """Which of the ids that were given exist, and so were changed, and which do not."""

    found: Sequence[int]
    missing: Sequence[int]


def new_secret() -> str:
    """Return a new signing secret in the form `whsec_...`."""
    return format_secret(secrets.token_bytes(_SECRET_BYTES))


def check(new: NewWebhook, config: Config) -> dict[str, Any]:
    """Return the row for *new* by column, without its id. Needs no database.

    Raise `UnusableError` where it could not be delivered to under *config*.
    """
    _target(new.url, Egress.of(config))
    return {
        "url": new.url,
        "enabled": True,
        **limits.check(new.limits, config),
        "secret": None if new.secret is None else _checked_secret(new.secret),
        "headers": _checked_headers(new.headers) if new.headers else None,
    }


def check_form(new: NewWebhook, config: Config) -> None:
    """Raise `UnusableError` for what `check` refuses whatever the options are that decide about
    targets. Needs no database.
    """
    check(new, replace(config, allow_http=True, allow_network=("0.0.0.0/0", "::/0")))


def add(connection: Connection, new: NewWebhook, config: Config) -> int:
    """Register *new*; return its id. Raise `UnusableError` as `check` does, or for a taken id."""
    row = check(new, config)
    if new.webhook_id is None:
        webhook_id = _insert_with_next_id(connection, row)
    elif _insert(connection, new.webhook_id, row):
        webhook_id = new.webhook_id
    else:
        raise UnusableError(
            f"--id {new.webhook_id} is taken: `webhookd webhook show {new.webhook_id}` shows by "
            "whom"
        )
    database.fetch(
        connection, "webhook_advance_identity", webhook_id=webhook_id, highest=_HIGHEST_FOLLOWED
    )
    return webhook_id


def resolution_warning(url: str, config: Config) -> str | None:
    """Return what is wrong with the addresses that the name in *url* has here; None if nothing is.

    It is only a warning: what the name resolves to on the workers' hosts decides. Blocks for at
    most 3 s.
    """
    egress = Egress.of(config)
    target = _target(url, egress)
    host = target.host
    if is_address(host):
        return None
    deadline = time.monotonic() + _LOOKUP_S
    try:
        for address in Resolver(socket.getaddrinfo).addresses(host, deadline=deadline):
            egress.check_connection(target.scheme, address, target.port)
    except (TimeoutError, LookupFailed, Shortage):
        return f"{host} does not resolve from here"
    except NotAllowed as error:
        return f"{host}: {error}"
    return None


def list_webhooks(connection: Connection, *, limit: int | None = None) -> WebhookList:
    """Return the registered webhooks by id, at most *limit* of them."""
    wanted = None if limit is None else limit + 1  # the one beyond tells whether there are more
    rows = database.fetch(connection, "webhook_list", limit=wanted)
    webhooks = [WebhookSummary(**row) for row in rows[:limit]]
    return WebhookList(webhooks, more=len(rows) > len(webhooks))


def show(
    connection: Connection, webhook_id: int, config: Config, *, reveal_secret: bool = False
) -> Webhook:
    """Return one webhook, its secret hidden unless *reveal_secret*."""
    row = database.fetch_one(connection, "webhook_show", webhook_id=webhook_id)
    if row is None:
        raise WebhookdError(
            f"no webhook has the id {webhook_id}: `webhookd webhook list` shows those there are"
        )
    secret = row["secret"]
    return Webhook(
        webhook_id=webhook_id,
        registered=row["registered"],
        url=row["url"],
        enabled=row["enabled"],
        disabled_reason=row["disabled_reason"],
        secret=HIDDEN_SECRET if secret and not reveal_secret else secret,
        old_secret_until=row["old_secret_until"],
        headers=_headers_in(row["headers"]),
        created_at=row["created_at"],
        limits=limits.limits_of(row, config),
        health=Health(**{item.name: row[item.name] for item in fields(Health)}),
    )


def set_enabled(connection: Connection, webhook_ids: Sequence[int], *, enabled: bool) -> Change:
    """Pause webhooks, or resume those that were paused or disabled.

    Their deliveries wait meanwhile and spend no retry. Workers notice at once.
    """
    rows = database.fetch(
        connection,
        "webhook_set_enabled",
        webhook_ids=list(webhook_ids),
        enabled=enabled,
        reason=None if enabled else PAUSED_REASON,
    )
    found = {row["webhook_id"] for row in rows}
    return Change(sorted(found), [one for one in webhook_ids if one not in found])


def remove(connection: Connection, webhook_id: int, *, force: bool = False) -> int:
    """Remove a webhook from the registry, and return how many deliveries wait for it unsent.

    Raise `UnusableError` if there are any and it is not *forced*. Its deliveries, attempts and
    health stay.
    """
    row = database.fetch_one(connection, "webhook_waiting", webhook_id=webhook_id)
    waiting = int(row["waiting"]) if row else 0
    if waiting and not force:
        raise UnusableError(
            f"{waiting} deliveries wait for webhook {webhook_id}: with --force they stay "
            "unsent until it is registered again"
        )
    if database.fetch_one(connection, "webhook_delete", webhook_id=webhook_id) is None:
        raise _no_such(webhook_id)
    return waiting


def send_test(connection: Connection, webhook_id: int, config: Config) -> Answer:
    """Send one signed test request from this host, bypassing the queue. Return the answer.

    Blocks for at most the webhook's timeout. Raise `UnusableError` where workers would send nothing
    either: a secret or headers that cannot be used, a target that *config* does not allow.
    """
    row = database.fetch_one(connection, "read_settings", webhook_ids=number_array([webhook_id]))
    if row is None:
        raise _no_such(webhook_id)
    settings = settings_of(tuple(row.values()), defaults_of(config))
    transport = Transport(Egress.of(config))
    try:
        answer = transport.post(settings.url, _test_request(settings), timeout_s=settings.timeout_s)
    finally:
        transport.close()
    if answer.kind is AnswerKind.NOT_ALLOWED:
        raise UnusableError(f"nothing was sent to webhook {webhook_id}: {answer.error}")
    return answer


def is_success(answer: Answer) -> bool:
    """Return whether a delivery with this answer would count as delivered."""
    return classify(answer, now_at=datetime.now(UTC)).decision is Decision.DELIVERED


def _no_such(webhook_id: int) -> WebhookdError:
    return WebhookdError(f"no webhook has the id {webhook_id}")


def _target(url: str, egress: Egress) -> Target:
    """Return the parts of *url*; raise `UnusableError` for a URL that cannot be delivered to."""
    try:
        target = checked_target(url, egress)
        if _LOCALHOST.fullmatch(target.host) and not _allows(egress, "::1"):
            egress.check_address("127.0.0.1")
    except NotAllowed as error:
        raise UnusableError(f"URL cannot be delivered to: {error}") from error
    return target


def _allows(egress: Egress, address: str) -> bool:
    try:
        egress.check_address(address)
    except NotAllowed:
        return False
    return True


def _insert(connection: Connection, webhook_id: int, row: Mapping[str, Any]) -> bool:
    """Insert *row*; return False if the id is taken."""
    return (
        database.fetch_one(connection, "webhook_insert", webhook_id=webhook_id, **row) is not None
    )


def _insert_with_next_id(connection: Connection, row: Mapping[str, Any]) -> int:
    while True:
        following = database.fetch_one(connection, "webhook_next_id", skipped=_IDS_SKIPPED)
        assert following is not None
        # Another session may take the same id between the two statements; then the insert finds it
        # taken, and the next round asks again.
        if _insert(connection, following["webhook_id"], row):
            return int(following["webhook_id"])


def _checked_secret(secret: str) -> str:
    try:
        parse_secret(secret)
    except ValueError as error:
        raise UnusableError(f"--secret: {error}") from error
    return secret


def _checked_headers(headers: Mapping[str, str]) -> str:
    """Return the JSON for a webhook's row, names in lower case; raise `UnusableError` for headers
    that no request may carry.
    """
    try:
        # As given: in lower case two names could become one, and a value would be lost.
        parse_headers(json.dumps(dict(headers)))
    except NotAllowed as error:
        raise UnusableError(f"--header: {error}") from error
    return json.dumps({name.lower(): value for name, value in headers.items()})


def _headers_in(text: str | None) -> Mapping[str, str] | str | None:
    """Return the headers in the JSON of a row, or why they are never sent."""
    if text is None:
        return None
    try:
        return parse_headers(text)
    except NotAllowed as reason:
        return f"never sent: {reason}"


def _test_request(settings: WebhookSettings) -> Request:
    """Return the request that a worker would send for a delivery."""
    now = int(time.time())
    try:
        return build_request(
            settings,
            message_id=f"test_{secrets.token_hex(8)}",
            timestamp=now,
            body=json.dumps({"type": "webhookd.test", "timestamp": now}).encode(),
        )
    except NotAllowed as reason:
        raise UnusableError(
            f"nothing was sent to webhook {settings.webhook_id}: {reason}"
        ) from reason
