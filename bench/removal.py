"""Methods of removing what is finished: webhookd's own, and those that it is compared with."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from bench import deliveries
from webhookd.postgres import session
from webhookd.postgres.arrays import number_array
from webhookd.postgres.retention import Keep, Retention

BATCH = 200  # of a record under load
QUEUE, LOG, PARTS, ARCHIVE = (
    f"pggit.{name}"
    for name in ("alert_delivery_queue", "alert_delivery_log", "log_by_day", "archive")
)
REMOVED_AT_ONCE = 1000

_STORE_ATTEMPTS = """
INSERT INTO {table}
       (delivery_id, webhook_id, event_type, event_details, http_status, response_time_ms,
        worker_id)
SELECT d, 5, 'delivered', e::jsonb, 200, 12.5, 'worker-1'
  FROM unnest(%s::bigint[], %s::text[]) AS r (d, e)
"""
_DETAIL = '{"attempt": 1, "connection": "reused", "excerpt": ""}'
# The part of a record that a method of removing can make more expensive.
_FINISH = f"""
UPDATE {QUEUE} q
   SET delivery_status = 'delivered', delivered_at = now(), attempted_at = now(), attempts = 1,
       lease_token = NULL
  FROM unnest(%s::bigint[]) AS r (id)
 WHERE q.delivery_id = r.id AND q.delivery_status IS NOT DISTINCT FROM 'sending'
"""
_BY_INDEX = f"""
DELETE FROM {QUEUE} WHERE delivery_id = ANY (ARRAY(
    SELECT delivery_id FROM {QUEUE}
     WHERE delivery_status IN ('delivered', 'failed') AND delivered_at < now() + interval '1 hour'
     ORDER BY delivered_at LIMIT {REMOVED_AT_ONCE} FOR UPDATE SKIP LOCKED))
"""
_MOVE = f"""
WITH moved AS (DELETE FROM {QUEUE} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {QUEUE} f
     WHERE ctid >= %s::tid AND ctid < %s::tid AND f.delivery_status IN ('delivered', 'failed')
       FOR UPDATE SKIP LOCKED))
    RETURNING delivery_id, webhook_id, message_body, delivery_status, delivered_at)
INSERT INTO {ARCHIVE} SELECT * FROM moved
"""
_BY_DAY = f"""
CREATE TABLE {PARTS} (LIKE {LOG} INCLUDING DEFAULTS, PRIMARY KEY (log_id, created_at))
    PARTITION BY RANGE (created_at);
CREATE SEQUENCE pggit.log_by_day_id;
ALTER TABLE {PARTS} ALTER log_id SET DEFAULT nextval('pggit.log_by_day_id');
CREATE INDEX ON {PARTS} (delivery_id);
CREATE INDEX ON {PARTS} (created_at, webhook_id) WHERE event_type IN ('retrying', 'failed');
CREATE INDEX ON {PARTS} USING brin (created_at) WITH (pages_per_range = 32);
CREATE TABLE {PARTS}_default PARTITION OF {PARTS} DEFAULT;
DO $$ BEGIN
    FOR day IN -30..3 LOOP
        EXECUTE format('CREATE TABLE {PARTS}_%s PARTITION OF {PARTS} FOR VALUES FROM (%L) TO (%L)',
                       day + 30, current_date + day, current_date + day + 1);
    END LOOP;
END $$
"""


@dataclass(frozen=True, slots=True)
class Method:
    """*prepare* empties the table, *fill* makes rows and returns their number, *remove* removes
    all of them.
    """

    name: str
    table: str
    prepare: Callable[[session.Connection, int], None]
    fill: Callable[[session.Connection, int], int]
    remove: Callable[[session.Connection], None]


def queue_prepare(connection: session.Connection, rows: int) -> None:
    connection.execute(
        f"DROP INDEX IF EXISTS pggit.by_time; DROP TABLE IF EXISTS {ARCHIVE};"
        f" TRUNCATE {QUEUE}".encode()
    )
    deliveries.insert(connection, rows)
    connection.execute(
        f"UPDATE {QUEUE} SET delivery_status = 'sending', routed = true, lease_token = 1".encode()
    )
    connection.execute(f"VACUUM {QUEUE}".encode())


def queue_with_index(connection: session.Connection, rows: int) -> None:
    queue_prepare(connection, rows)
    connection.execute(
        f"CREATE INDEX by_time ON {QUEUE} (delivered_at)"
        " WHERE delivery_status IN ('delivered', 'failed')".encode()
    )


def queue_with_archive(connection: session.Connection, rows: int) -> None:
    queue_prepare(connection, rows)
    # One partition stands for one a day.
    connection.execute(
        f"CREATE TABLE {ARCHIVE} (delivery_id bigint PRIMARY KEY, webhook_id bigint,"
        " message_body jsonb, delivery_status text, delivered_at timestamptz)".encode()
    )


def finish(connection: session.Connection, rows: int) -> int:
    """Finish all rows as records of 200 would."""
    [first] = connection.execute(f"SELECT min(delivery_id) FROM {QUEUE}".encode()).fetchone() or [0]
    for number in range(first, first + rows, BATCH):
        connection.execute(
            _FINISH.encode(),
            [number_array(range(number, min(number + BATCH, first + rows)))],
        )
    return rows


def by_pages(connection: session.Connection) -> None:
    """Run webhookd's own code until all rows are removed. A turn ends after a second, so it may
    take several.
    """
    retention = Retention(Keep(0.001, 0.001, 0.001), removed=lambda table, rows: None)
    for table in (QUEUE, LOG):
        while connection.execute(f"SELECT true FROM {table} LIMIT 1".encode()).fetchone():
            retention.turn(lambda: nullcontext(connection))


def by_index(connection: session.Connection) -> None:
    while connection.execute(_BY_INDEX.encode()).rowcount:
        pass


def by_moving(connection: session.Connection) -> None:
    [pages] = connection.execute("SELECT pg_relation_size(%s) / 8192", [QUEUE]).fetchone() or [0]
    for first in range(0, pages, 64):
        connection.execute(_MOVE.encode(), [f"({first},0)", f"({first + 64},0)"])
    connection.execute(f"DROP TABLE {ARCHIVE}".encode())


QUEUE_METHODS = [
    Method("webhookd: page by page", QUEUE, queue_prepare, finish, by_pages),
    Method("an index on the time of finishing", QUEUE, queue_with_index, finish, by_index),
    Method("moved to a partition, dropped later", QUEUE, queue_with_archive, finish, by_moving),
]


def log_prepare(connection: session.Connection, rows: int) -> None:
    connection.execute(f"TRUNCATE {LOG}; TRUNCATE {QUEUE}; DROP TABLE IF EXISTS {PARTS}".encode())
    connection.execute("DROP SEQUENCE IF EXISTS pggit.log_by_day_id")


def parts_prepare(connection: session.Connection, rows: int) -> None:
    log_prepare(connection, rows)
    connection.execute(_BY_DAY.encode())


def store_attempts(connection: session.Connection, rows: int, table: str, batch: int) -> int:
    statement = _STORE_ATTEMPTS.format(table=table).encode()
    for first in range(0, rows, batch):
        connection.execute(
            statement, [number_array(range(first, first + batch)), [_DETAIL] * batch]
        )
    return -(-rows // batch) * batch


def drop_days(connection: session.Connection) -> None:
    """Drop today's partition, where all the rows are."""
    connection.execute(f"DROP TABLE {PARTS}_30".encode())


def log_by_pages(batch: int) -> Method:
    return Method(
        "webhookd: page by page",
        LOG,
        log_prepare,
        lambda c, rows: store_attempts(c, rows, LOG, batch),
        by_pages,
    )


def log_by_days(batch: int) -> Method:
    return Method(
        "daily partitions, dropped",
        PARTS,
        parts_prepare,
        lambda c, rows: store_attempts(c, rows, PARTS, batch),
        drop_days,
    )
