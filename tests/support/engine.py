"""One worker's claims and records without its threads, and a look at what they leave in the
database.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from tests.support.postgres import Database
from webhookd.core.answer import Answer, AnswerKind, ShortageKind
from webhookd.core.lane import Budget
from webhookd.core.model import (
    Attempted,
    Delivery,
    GivenBack,
    Outcome,
    Result,
    WebhookDefaults,
    WebhookSettings,
)
from webhookd.postgres import lanes, session, statements
from webhookd.postgres.claim import Claimer
from webhookd.postgres.claimed import Claim
from webhookd.postgres.record import RecordOutcome, ResultWriter

# The documented defaults.
STANDARD = WebhookDefaults(
    timeout_s=5.0,
    max_in_flight=50,
    rate=10.0,
    burst=20,
    max_retries=10,
    retry_base_s=5.0,
    retry_factor=4.0,
    retry_max_s=28_800.0,
    circuit_threshold=5,
    circuit_open_s=60.0,
)
# The same without the two limits, for tests of something else.
ROOMY = STANDARD._replace(rate=0.0, max_in_flight=100_000)


def allow_all(settings: WebhookSettings) -> None:
    """Judge a webhook: a request can be sent to each."""


TEN_MINUTES_S = 600.0  # longer than any lease here


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """A worker incarnation: what it claims with and records with, and one connection that has a
    worker's settings.
    """

    worker_id: str
    incarnation: UUID
    connection: session.Connection
    claimer: Claimer
    recorder: ResultWriter
    statement_faults: Callable[[], AbstractContextManager[object]]

    def claim(self, limit: int = 100) -> Claim:
        return self.claimer.claim(self.connection, Budget(limit, limit))

    def take(self, limit: int = 100) -> list[Delivery]:
        """Claim as a dispatcher does: once more where the first look only made lanes for webhooks
        that had none.
        """
        deliveries = list(self.claim(limit).deliveries)
        if len(deliveries) < limit and self.claimer.next_look(self.connection).new_rows:
            deliveries += self.claim(limit - len(deliveries)).deliveries
        return deliveries

    def take_all(self, limit: int = 100) -> list[Delivery]:
        """Claim until two looks in a row bring nothing."""
        deliveries: list[Delivery] = []
        empty = 0
        while empty < 2:
            claimed = self.claim(limit).deliveries
            deliveries += claimed
            empty = 0 if claimed else empty + 1
        return deliveries

    def record(self, results: Iterable[Result]) -> RecordOutcome:
        return self.recorder.record(self.connection, list(results))

    def finish(self, deliveries: Iterable[Delivery], outcome: Outcome) -> RecordOutcome:
        return self.record([Result(delivery, outcome) for delivery in deliveries])

    def release(self, incarnation: UUID | None = None) -> RecordOutcome:
        """Reap what ran out, or whatever *incarnation* holds."""
        return self.record(self.recorder.lost_leases(self.connection, incarnation=incarnation))

    def sweep(self) -> None:
        """Do the chore of that name, for all lanes."""
        with self.statement_faults():
            lanes.repair_lanes(self.connection, lanes.suspicious_lanes(self.connection))


@contextmanager
def engine(
    database: Database,
    worker_id: str = "worker-1",
    *,
    defaults: WebhookDefaults = ROOMY,
    mutate: Callable[[str, str], str] | None = None,
    judge: Callable[[WebhookSettings], str | None] = allow_all,
) -> Iterator[Engine]:
    """Open a worker incarnation on *database*. *mutate* (name, text) -> text plants a fault in its
    statements. *judge*: as `Claimer` takes it.
    """
    incarnation = uuid4()
    load = statements.load

    def faults() -> AbstractContextManager[object]:
        if mutate is None:
            return nullcontext()
        return patch.object(statements, "load", lambda name: mutate(name, load(name)))

    with faults():
        claimer = Claimer(
            worker_id=worker_id, incarnation=incarnation, defaults=defaults, judge=judge
        )
        recorder = ResultWriter(worker_id=worker_id, defaults=defaults)
    with session.connect(database.dsn, application_name=f"webhookd/{worker_id}/test") as connection:
        yield Engine(worker_id, incarnation, connection, claimer, recorder, faults)


# Outcomes


def answered(
    status: int, *, seconds: float = 0.01, retry_after: str | None = None, excerpt: str = ""
) -> Attempted:
    """Return the outcome of an exchange that just ended with *status*."""
    answer = Answer(
        AnswerKind.RESPONSE, seconds, http_status=status, retry_after=retry_after, excerpt=excerpt
    )
    return Attempted(answer, time.monotonic())


def timed_out(seconds: float = 5.0) -> Attempted:
    return Attempted(Answer(AnswerKind.TIMEOUT, seconds, error="timeout"), time.monotonic())


def not_allowed() -> GivenBack:
    return GivenBack("not a public address")


def short_of_memory() -> GivenBack:
    return GivenBack("no memory left", ShortageKind.MEMORY)


def given_back() -> GivenBack:
    return GivenBack()


# What the application and the operator do


def register(database: Database, *webhook_ids: int, **columns: Any) -> None:
    """Register webhooks; *columns* are further ones of the registry."""
    names = ["webhook_id", "url", *columns]
    statement = sql.SQL("INSERT INTO pggit.webhooks ({}) VALUES ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, names)),
        sql.SQL(", ").join([sql.Placeholder()] * len(names)),
    )
    with database.connect(autocommit=False) as connection, connection.cursor() as cursor:
        for webhook_id in webhook_ids:
            cursor.execute(
                statement, [webhook_id, f"https://receiver.example/{webhook_id}", *columns.values()]
            )


def drop_checks(database: Database) -> None:
    """Have the registry take rows that could be written before it had its CHECKs."""
    database.execute("""
        DO $$
        DECLARE
            name text;
        BEGIN
            FOR name IN SELECT conname FROM pg_constraint
                         WHERE conrelid = 'pggit.webhooks'::regclass AND NOT convalidated
            LOOP
                EXECUTE format('ALTER TABLE pggit.webhooks DROP CONSTRAINT %I', name);
            END LOOP;
        END $$
    """)


def insert(
    database: Database, webhook_id: int, count: int = 1, *, due_in_s: float = 0.0
) -> list[int]:
    """Insert *count* deliveries, the first due first, and return their ids."""
    rows = database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at)"
        " SELECT %s, jsonb_build_object('n', n), now() + %s * interval '1 second' - (%s - n) * "
        "interval '1 ms'"
        " FROM generate_series(1, %s) n RETURNING delivery_id",
        [webhook_id, due_in_s, count, count],
    )
    return [row[0] for row in rows]


def claim_one(database: Database, worker: Engine, **columns: Any) -> Delivery:
    """Register webhook 1, insert one delivery and claim it."""
    register(database, 1, **columns)
    insert(database, 1)
    [claimed] = worker.take()
    return claimed


def lanes_of(database: Database, *webhook_ids: int) -> None:
    """Have a lane made for each webhook, as a worker's first look would."""
    database.execute(
        "INSERT INTO pggit.webhook_health_metrics (webhook_id) SELECT unnest(%s::bigint[]) ON "
        "CONFLICT DO NOTHING",
        [list(webhook_ids)],
    )


def let_pass(database: Database, seconds: float) -> None:
    """Have *seconds* pass for everything in the database, by moving its instants into the past;
    triggers do not see it.
    """
    tables = {
        "alert_delivery_queue": (
            "next_retry_at",
            "created_at",
            "attempted_at",
            "first_attempted_at",
            "lease_until",
        ),
        "webhook_health_metrics": (
            "circuit_until",
            "hold_until",
            "tokens_at",
            "runnable_at",
            "failing_since",
            "last_failure_at",
            "last_success_at",
        ),
    }
    with unseen(database) as connection:
        for table, columns in tables.items():
            moves = [
                sql.SQL("{0} = {0} - %(by)s * interval '1 second'").format(sql.Identifier(name))
                for name in columns
            ]
            statement = sql.SQL("UPDATE {} SET {}").format(
                sql.Identifier("pggit", table), sql.SQL(", ").join(moves)
            )
            connection.execute(statement, {"by": seconds})


@contextmanager
def unseen(database: Database) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A transaction whose changes fire no trigger."""
    with database.connect(autocommit=False) as connection:
        connection.execute("SET LOCAL session_replication_role = replica")
        yield connection


# What is there now


def new_rows(database: Database) -> int:
    """Return how many waiting rows no worker has looked at: those that stand in queue_new."""
    rows = database.execute(
        "SELECT count(*) FROM pggit.alert_delivery_queue WHERE NOT routed AND delivery_status IN "
        "('pending', 'retrying')"
    )
    return int(rows[0][0])


def delivery(database: Database, delivery_id: int) -> dict[str, Any]:
    """Return a queue row by column name."""
    return _one(
        database,
        "SELECT to_jsonb(q) FROM pggit.alert_delivery_queue q WHERE delivery_id = %s",
        delivery_id,
    )


def lane(database: Database, webhook_id: int) -> dict[str, Any]:
    """Return a webhook's health and lane by column name; `*_in_s` are its instants, in seconds from
    now.
    """
    return _one(
        database,
        "SELECT to_jsonb(h) || jsonb_build_object("
        " 'runnable_in_s', extract(epoch FROM runnable_at - now()), 'hold_in_s', extract(epoch "
        "FROM hold_until - now()),"
        " 'circuit_in_s', extract(epoch FROM circuit_until - now()))"
        " FROM pggit.webhook_health_metrics h WHERE webhook_id = %s",
        webhook_id,
    )


def statuses(database: Database, webhook_id: int | None = None) -> dict[str, int]:
    """Return how many deliveries (of one webhook) there are in each delivery_status."""
    return dict(
        database.execute(
            "SELECT delivery_status, count(*) FROM pggit.alert_delivery_queue"
            " WHERE %(id)s::bigint IS NULL OR webhook_id = %(id)s::bigint GROUP BY 1",
            {"id": webhook_id},
        )
    )


def attempts(database: Database, delivery_id: int) -> list[tuple[str, int | None, dict[str, Any]]]:
    """Return event type, HTTP status and details of a delivery's attempts, the first first."""
    return database.execute(
        "SELECT event_type, http_status, event_details FROM pggit.alert_delivery_log WHERE "
        "delivery_id = %s ORDER BY log_id",
        [delivery_id],
    )


def assert_books_balance(database: Database) -> None:
    """The health counters, the attempt log, the rows and the leases tell one story."""
    differing = database.execute(
        """
        SELECT h.webhook_id, h.total_deliveries, h.successful_deliveries, h.failed_deliveries,
               h.in_flight, l.*, q.*
          FROM pggit.webhook_health_metrics h
          LEFT JOIN LATERAL (
            SELECT count(*) AS logged,
                   count(*) FILTER (WHERE event_type = 'delivered') AS delivered,
                   avg(response_time_ms) AS mean_ms, min(response_time_ms) AS least_ms,
                   max(response_time_ms) AS most_ms
              FROM pggit.alert_delivery_log WHERE webhook_id = h.webhook_id) l ON true
          LEFT JOIN LATERAL (
            SELECT coalesce(sum(attempts), 0) AS attempted,
                   count(*) FILTER (WHERE delivery_status = 'delivered') AS delivered,
                   count(*) FILTER (WHERE delivery_status = 'sending') AS leased
              FROM pggit.alert_delivery_queue WHERE webhook_id = h.webhook_id) q ON true
         WHERE NOT (h.total_deliveries = l.logged AND l.logged = q.attempted
                    AND h.in_flight = q.leased
                    AND h.successful_deliveries = l.delivered AND l.delivered = q.delivered
                    AND h.failed_deliveries = h.total_deliveries - h.successful_deliveries)
            OR abs(h.avg_response_time_ms - l.mean_ms) > 0.01
            OR abs(h.min_response_time_ms - l.least_ms) > 0.01
            OR abs(h.max_response_time_ms - l.most_ms) > 0.01
        """
    )
    assert differing == []


def ids(deliveries: Iterable[Delivery]) -> list[int]:
    return [item.delivery_id for item in deliveries]


def recorded_ids(results: Sequence[Result]) -> list[int]:
    return [result.delivery.delivery_id for result in results]


def _one(database: Database, statement: str, key: int) -> dict[str, Any]:
    rows = database.execute(statement, [key])
    assert rows, f"no row {key}"
    row: dict[str, Any] = rows[0][0]
    return row
