"""What an operator does with deliveries: list, show, explain, send again.

Each function takes an open connection of `admin.database`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from psycopg import DatabaseError, errors

from webhookd.admin import database, facts
from webhookd.admin.database import Connection, Instant
from webhookd.admin.doctor.commands import Commands
from webhookd.admin.explain import reasons
from webhookd.admin.facts import LoggedAttempt, OpenTransaction
from webhookd.admin.reason import Reason
from webhookd.config.options import Config
from webhookd.core.model import Status
from webhookd.errors import WebhookdError
from webhookd.postgres import bodies
from webhookd.postgres.rows import defaults_of

BATCH = 1000  # failed deliveries that one statement sends again
MOST_WAITS = 5  # webhooks of which `waits` tells


@dataclass(frozen=True, slots=True)
class DeliverySummary:
    """A line of the list."""

    delivery_id: int
    alert_id: int | None
    webhook_id: int
    delivery_status: str
    retry_count: int
    max_retries: int | None
    attempts: int
    next_retry_at: Instant
    created_at: Instant
    attempted_at: Instant | None
    delivered_at: Instant | None
    worker_id: str | None


@dataclass(frozen=True, slots=True)
class DeliveryDetail:
    """One delivery. *message_body*: the JSON as it is sent, None if it is too large or cannot be
    read; *body_bytes*: its size, None if that was not measured; *log*: its attempts, the oldest
    first, as far as the attempt log still holds them.
    """

    delivery_id: int
    alert_id: int | None
    webhook_id: int
    delivery_status: str
    retry_count: int
    max_retries: int | None
    attempts: int
    leases_lost: int
    next_retry_at: Instant
    created_at: Instant
    first_attempted_at: Instant | None
    attempted_at: Instant | None
    delivered_at: Instant | None
    worker_id: str | None
    lease_until: Instant | None
    body_bytes: int | None
    message_body: str | None
    log: Sequence[LoggedAttempt]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a delivery is in its present state. *url* None: its webhook is not registered."""

    delivery_id: int
    webhook_id: int
    url: str | None
    status: Status
    attempts: int
    reasons: Sequence[Reason]
    log: Sequence[LoggedAttempt]


@dataclass(frozen=True, slots=True)
class Absence:
    """What is known of a delivery that cannot be seen: the newest id there is (None: the queue is
    empty), and the open transactions that may have inserted it.
    """

    delivery_id: int
    newest_id: int | None
    producers: Sequence[OpenTransaction]


@dataclass(frozen=True, slots=True)
class Retry:
    """*count* deliveries will be sent again. *missing*: ids that do not exist or are being sent.

    *samples*: for each webhook the first of its deliveries.
    """

    count: int
    missing: Sequence[int]
    samples: Sequence[int]


@dataclass(frozen=True, slots=True)
class Wait:
    """What keeps a delivery from being sent now, and the command that explains it in full."""

    delivery_id: int
    text: str
    run: str


def list_deliveries(
    connection: Connection,
    *,
    status: str | None = None,
    webhook_id: int | None = None,
    limit: int = 20,
) -> list[DeliverySummary]:
    """Return the newest deliveries, the newest first; of one *status* or webhook where given."""
    rows = database.fetch(
        connection, "delivery_list", status=status, webhook_id=webhook_id, limit=limit
    )
    return [DeliverySummary(**row) for row in rows]


def show(connection: Connection, delivery_id: int) -> DeliveryDetail:
    """Return one delivery with its body and attempts; raise `WebhookdError` if there is none."""
    row = database.fetch_one(connection, "delivery_show", delivery_id=delivery_id)
    if row is None:
        raise WebhookdError(
            f"no delivery has the id {delivery_id}: `webhookd delivery list` shows those there are"
        )
    log = facts.attempts(connection, delivery_id)
    return DeliveryDetail(**row, message_body=_body(connection, delivery_id), log=log)


def _body(connection: Connection, delivery_id: int) -> str | None:
    try:
        row = database.fetch_one(connection, "delivery_body", delivery_id=delivery_id)
    except DatabaseError as error:
        if bodies.may_be_row(error):
            return None
        raise
    return None if row is None else row["body"]


def explain(
    connection: Connection, delivery_id: int, config: Config, commands: Commands
) -> Explanation | Absence:
    """Return why a delivery has not been sent yet, or what is known of one that cannot be seen.

    A limit that the webhook leaves open is read from *config*: it should be the workers' own.
    *commands* writes those that help, so that they reach this database when they are pasted.
    """
    with database.snapshot(connection):
        found = facts.read(connection, delivery_id, defaults_of(config))
        if found is None:
            newest = database.fetch_one(connection, "delivery_explain_newest")
            return Absence(
                delivery_id, newest["delivery_id"] if newest else None, facts.producers(connection)
            )
    row = found.row
    return Explanation(
        delivery_id=row.delivery_id,
        webhook_id=row.webhook_id,
        url=found.settings.url if found.settings else None,
        status=row.status,
        attempts=row.attempts,
        reasons=[_with_commands(reason, commands) for reason in reasons(found)],
        log=found.log,
    )


def _with_commands(reason: Reason, commands: Commands) -> Reason:
    """Return *reason* with everything that helps written as a shell command in *run*."""
    words = (commands.webhookd(line.removeprefix("webhookd ")) for line in reason.run)
    return replace(reason, run=(*words, *(commands.sql(statement) for statement in reason.sql)))


def retry(connection: Connection, delivery_ids: Sequence[int]) -> Retry:
    """Send these deliveries again, delivered ones included, unless they are being sent now."""
    wanted = sorted(set(delivery_ids))
    rows = database.fetch(connection, "delivery_retry", delivery_ids=wanted)
    found = {row["delivery_id"] for row in rows}
    missing = [delivery_id for delivery_id in wanted if delivery_id not in found]
    samples: dict[int, int] = {}
    _sample(rows, samples)
    return Retry(len(found), missing, list(samples.values()))


def retry_failed(
    connection: Connection, *, webhook_id: int | None = None, since_s: float | None = None
) -> Retry:
    """Send again what failed: all of it, or of one webhook, or in the last *since_s*.

    It works in batches, each a transaction of its own, so that no lock is held for long. Where it
    is interrupted, the batches before stay done.
    """
    count, after = 0, -1
    samples: dict[int, int] = {}
    while True:
        rows = database.fetch(
            connection,
            "delivery_retry_failed",
            after=after,
            webhook_id=webhook_id,
            since_s=since_s,
            limit=BATCH,
        )
        count += len(rows)
        _sample(rows, samples)
        if len(rows) < BATCH:
            return Retry(count, (), list(samples.values()))
        after = max(row["delivery_id"] for row in rows)


def _sample(rows: Sequence[dict[str, Any]], samples: dict[int, int]) -> None:
    """Add to *samples*, by webhook, the first delivery of each webhook that is not in it yet."""
    for row in rows:
        samples.setdefault(row["webhook_id"], row["delivery_id"])


def waits(
    connection: Connection, delivery_ids: Sequence[int], config: Config, commands: Commands
) -> Iterator[Wait]:
    """Yield what keeps the first `MOST_WAITS` of these deliveries from being sent now.

    It yields nothing for one that can be sent, and nothing at all to a role that may not read what
    decides: a role that may write the queue need not have the right to read the registry.
    """
    for delivery_id in delivery_ids[:MOST_WAITS]:
        try:
            with database.snapshot(connection):
                found = facts.read(connection, delivery_id, defaults_of(config))
        except errors.InsufficientPrivilege:
            return
        if found is None or found.row.status not in (Status.PENDING, Status.RETRYING):
            continue  # a worker was quicker
        for reason in reasons(found):
            if reason.until is not None and reason.until > found.now:
                explain_it = commands.webhookd(f"delivery explain {delivery_id}")
                yield Wait(delivery_id, reason.text, explain_it)
                break
