"""What decides when one delivery is sent, read in one snapshot. explain.py says what it means.

All instants are epoch seconds of the database's clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from webhookd.admin import database
from webhookd.admin.database import Connection, Instant
from webhookd.core.lane import Lane
from webhookd.core.model import WORKER_SILENT_AFTER_S, Status, WebhookDefaults, WebhookSettings
from webhookd.postgres import statements
from webhookd.postgres.arrays import number_array
from webhookd.postgres.rows import lane_of, settings_of
from webhookd.text import duration, shown

MOST_AHEAD = 10_000
# What a datetime can hold; a column may also hold infinity, or the year 20000.
FIRST, LAST = (
    datetime(1, 1, 1, tzinfo=UTC).timestamp(),
    datetime(9999, 12, 31, tzinfo=UTC).timestamp(),
)


@dataclass(frozen=True, slots=True)
class Row:
    """The queue row."""

    delivery_id: int
    webhook_id: int
    status: Status
    attempts: int
    retry_count: int
    max_retries: int | None
    leases_lost: int
    routed: bool
    next_retry_at: float
    delivered_at: float | None
    worker_id: str | None
    leased_by: UUID | None
    lease_until: float | None


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker's row in pggit.workers."""

    incarnation: UUID
    worker_id: str
    host: str
    pid: int
    has_room: bool
    seen_s_ago: float

    @property
    def alive(self) -> bool:
        return self.seen_s_ago <= WORKER_SILENT_AFTER_S

    def __str__(self) -> str:
        return f"{self.worker_id} ({self.host}, pid {self.pid})"


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction of another session. *what* it holds: delivery, lane or queue; *open_s* None:
    this role may not see since when it is open.
    """

    what: str
    pid: int | None
    application_name: str | None
    role: str | None
    state: str | None
    gid: str | None
    open_s: float | None

    @property
    def ending(self) -> str:
        """The statement that ends it."""
        if self.gid is not None:
            return f"ROLLBACK PREPARED '{self.gid.replace(chr(39), 2 * chr(39))}'"
        return f"SELECT pg_terminate_backend({self.pid})"

    def __str__(self) -> str:
        since = "" if self.open_s is None else f", open for {duration(max(0.0, self.open_s))}"
        if self.gid is not None:
            return f"the prepared transaction {shown(self.gid)!r}{since}"
        who = ", ".join(
            shown(word) for word in (self.application_name, self.role, self.state) if word
        )
        return f"the transaction of pid {self.pid} ({who}){since}"


@dataclass(frozen=True, slots=True)
class LoggedAttempt:
    """A row of the attempt log. *event_details* is JSON: plain SQL, or an earlier pggit, may have
    written anything there.
    """

    created_at: Instant
    event_type: str
    http_status: int | None
    response_time_ms: int | None
    worker_id: str | None
    event_details: Any

    @property
    def details(self) -> Mapping[str, Any]:
        """*event_details* where they are an object, else an empty one."""
        return self.event_details if isinstance(self.event_details, dict) else {}


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that decides when a delivery is sent, as it was at *now*.

    *settings* None: the webhook is not registered; *lane* None: no worker has looked at it yet.
    *refusal*: why it is held, as a worker found it by its options.
    *in_flight* counts its leases, *ahead* the deliveries that go first, up to `MOST_AHEAD`. *log*
    holds its attempts, the oldest first.
    """

    now: float
    row: Row
    disabled_reason: str | None
    settings: WebhookSettings | None
    lane: Lane | None
    refusal: str | None
    in_flight: int
    ahead: int
    workers: Sequence[Worker]
    lockers: Sequence[OpenTransaction]
    log: Sequence[LoggedAttempt]

    @property
    def last_reason(self) -> str | None:
        """Why the last attempt failed, in the words of the attempt log."""
        return self.log[-1].details.get("reason") if self.log else None


def read(connection: Connection, delivery_id: int, defaults: WebhookDefaults) -> Facts | None:
    """Return what the database knows of a delivery, None where it cannot be seen. Raise
    `psycopg.Error`.

    Call it within `database.snapshot`: several statements must see the same moment.
    """
    # Workers' sessions do the same: without statistics the planner would read the whole queue.
    connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
    found = database.fetch_one(connection, "delivery_explain", delivery_id=delivery_id)
    if found is None:
        return None
    for column in ("next_retry_at", "delivered_at", "lease_until"):
        if found[column] is not None:
            found[column] = min(max(found[column], FIRST), LAST)
    webhook_id, now, disabled_reason = (
        found["webhook_id"],
        found.pop("now"),
        found.pop("disabled_reason"),
    )
    row = Row(status=Status(found.pop("delivery_status")), **found)
    only_this = {"webhook_ids": number_array([webhook_id])}
    registered = _first(connection, "read_settings", only_this)
    lane = _first(connection, "delivery_explain_lane", {"webhook_id": webhook_id})
    leases = _first(connection, "count_leases", only_this)
    ahead = database.fetch_one(
        connection, "delivery_explain_ahead", delivery_id=delivery_id, most=MOST_AHEAD
    )
    lockers = database.fetch(
        connection, "delivery_explain_lockers", delivery_id=delivery_id, webhook_id=webhook_id
    )
    return Facts(
        now=now,
        row=row,
        disabled_reason=disabled_reason,
        settings=None if registered is None else settings_of(registered, defaults),
        lane=None if lane is None else lane_of(lane),
        refusal=None if lane is None else lane[0],
        in_flight=leases[1] if leases else 0,
        ahead=ahead["ahead"] if ahead else 0,
        workers=[
            Worker(**worker) for worker in database.fetch(connection, "delivery_explain_workers")
        ],
        lockers=[OpenTransaction(**locker) for locker in lockers],
        log=attempts(connection, delivery_id),
    )


def attempts(connection: Connection, delivery_id: int) -> list[LoggedAttempt]:
    """Return the attempts of a delivery that the log still holds, the oldest first."""
    rows = database.fetch(connection, "delivery_attempts", delivery_id=delivery_id)
    return [LoggedAttempt(**row) for row in rows]


def producers(connection: Connection) -> list[OpenTransaction]:
    """Return the open transactions that may have inserted deliveries, the oldest first."""
    return [
        OpenTransaction(what="queue", **row)
        for row in database.fetch(connection, "delivery_explain_producers")
    ]


def _first(
    connection: Connection, statement: str, parameters: dict[str, Any]
) -> tuple[Any, ...] | None:
    return connection.execute(statements.load(statement).encode(), parameters).fetchone()
