"""What a bounded history costs: a row by several methods of removing it, and disk use at a steady
rate.

    python -m bench.retention [--rows 60000] [--rounds 5] [--rate 200] [--seconds 300] [--keep 20]

First, in one run and alternating: finished deliveries are removed as webhookd does it, through an
index on the time of finishing, and by moving them to a partition that is dropped; attempts as
webhookd does it and by dropping daily partitions. What a method costs already when rows are stored
counts as well. CPU is that of the one backend, vacuum included (a dropped table needs none).

Then a fleet delivers at a constant rate and keeps rows for some seconds: tables and indexes must
stop growing. autovacuum looks every 5 s there, since the days are that short.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

from bench import deliveries
from bench.deliveries import Connection
from bench.figures import estimate, ratio
from bench.fleet import running_fleet
from bench.postgres import Postgres, running_postgres
from bench.report import Report
from bench.sink import nginx
from webhookd.postgres import session
from webhookd.postgres.arrays import number_array
from webhookd.postgres.retention import Keep, Retention
from webhookd.schema.migrate import migrate

DAY_S = 86_400
LOOPBACK = ("--allow-http", "--allow-network", "127.0.0.0/8")
SAMPLE_S, MOST_LINES = 5.0, 15
BATCH = 200  # of a record under load
QUEUE, LOG, PARTS, ARCHIVE = (
    f"pggit.{name}"
    for name in ("alert_delivery_queue", "alert_delivery_log", "log_by_day", "archive")
)
REMOVED_AT_ONCE = 1000

_STORE_ATTEMPTS = """
INSERT INTO {table} (delivery_id, webhook_id, event_type, event_details, http_status, response_time_ms, worker_id)
SELECT d, 5, 'delivered', e::jsonb, 200, 12.5, 'worker-1' FROM unnest(%s::bigint[], %s::text[]) AS r (d, e)
"""
_DETAIL = '{"attempt": 1, "connection": "reused", "excerpt": ""}'
# What the record does to a row, as far as removing can make it dearer.
_FINISH = f"""
UPDATE {QUEUE} q SET delivery_status = 'delivered', delivered_at = now(), attempted_at = now(), attempts = 1, lease_token = NULL
  FROM unnest(%s::bigint[]) AS r (id) WHERE q.delivery_id = r.id AND q.delivery_status IS NOT DISTINCT FROM 'sending'
"""
_BY_INDEX = f"""
DELETE FROM {QUEUE} WHERE delivery_id = ANY (ARRAY(
    SELECT delivery_id FROM {QUEUE} WHERE delivery_status IN ('delivered', 'failed') AND delivered_at < now() + interval '1 hour'
     ORDER BY delivered_at LIMIT {REMOVED_AT_ONCE} FOR UPDATE SKIP LOCKED))
"""
_MOVE = f"""
WITH moved AS (DELETE FROM {QUEUE} WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM {QUEUE} f WHERE ctid >= %s::tid AND ctid < %s::tid AND f.delivery_status IN ('delivered', 'failed')
       FOR UPDATE SKIP LOCKED)) RETURNING delivery_id, webhook_id, message_body, delivery_status, delivered_at)
INSERT INTO {ARCHIVE} SELECT * FROM moved
"""
_BY_DAY = f"""
CREATE TABLE {PARTS} (LIKE {LOG} INCLUDING DEFAULTS, PRIMARY KEY (log_id, created_at)) PARTITION BY RANGE (created_at);
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
class Cost:
    """Microseconds of the backend's CPU a row, and bytes of WAL for removing it (vacuum included)."""

    storing: float
    removing: float
    vacuum: float
    wal: float

    @property
    def total(self) -> float:
        return self.storing + self.removing + self.vacuum


@dataclass(frozen=True, slots=True)
class Method:
    """*prepare* empties the table, *fill* makes rows and returns how many, *remove* takes all of
    them away.
    """

    name: str
    table: str
    prepare: Callable[[session.Connection, int], None]
    fill: Callable[[session.Connection, int], int]
    remove: Callable[[session.Connection], None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=60_000, help="of one round of one method")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=200, help="deliveries a second of the fleet")
    parser.add_argument("--seconds", type=float, default=300.0, help="for which the fleet delivers")
    parser.add_argument(
        "--keep", type=float, default=20.0, help="seconds for which the fleet keeps everything"
    )
    options = parser.parse_args()
    with running_postgres("autovacuum_naptime=5s") as postgres:
        report = Report("retention", "What a bounded history costs", postgres=postgres.version())
        methods(report, postgres, rows=options.rows, rounds=options.rounds)
        steady(report, postgres, rate=options.rate, seconds=options.seconds, keep_s=options.keep)
        report.write()


# A row by several methods


def methods(report: Report, postgres: Postgres, *, rows: int, rounds: int) -> None:
    """Report what rows cost by each method."""
    migrate(postgres.create("methods"))
    with session.connect(postgres.dsn("methods"), application_name="bench") as connection:
        for table in (QUEUE, LOG):
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
        for title, known in (
            ("A delivery: finished by a record of 200, then removed", QUEUE_METHODS),
            (
                f"An attempt: stored by a record of {BATCH}, then removed",
                [log_by_pages(BATCH), log_by_days(BATCH)],
            ),
            (
                "An attempt: stored by a record of its own, then removed",
                [log_by_pages(1), log_by_days(1)],
            ),
        ):
            costs: dict[str, list[Cost]] = {method.name: [] for method in known}
            for number in range(rounds):
                for method in known if number % 2 == 0 else reversed(known):
                    # A record of one row takes long: a tenth of the rows will do.
                    count = rows // 10 if "of its own" in title else rows
                    costs[method.name].append(measure(connection, method, count))
            ours = [cost.total for cost in costs[known[0].name]]
            report.table(
                ["us of CPU a row", "storing", "removing", "vacuum", "total", "of webhookd's", "WAL bytes"],
                [[name, *figures(its), ratio([cost.total for cost in its], ours).text(".2f"),
                  estimate([cost.wal for cost in its]).text(".0f")] for name, its in costs.items()],
                title=title,
            )  # fmt: skip


def figures(costs: list[Cost]) -> list[str]:
    names = [field.name for field in fields(Cost) if field.name != "wal"]
    return [
        estimate([getattr(cost, name) for cost in costs]).text(".2f") for name in (*names, "total")
    ]


def measure(connection: session.Connection, method: Method, rows: int) -> Cost:
    """Store, remove and vacuum once."""
    method.prepare(connection, rows)
    connection.execute("CHECKPOINT")
    spent = [cpu_us(connection)]
    count = method.fill(connection, rows)
    spent.append(cpu_us(connection))
    if method.table == QUEUE:
        connection.execute(
            f"VACUUM {QUEUE}".encode()
        )  # of what finishing left: no method's business
    before, wal = cpu_us(connection), wal_bytes(connection)
    method.remove(connection)
    spent.append(cpu_us(connection))
    if method.table != PARTS:
        connection.execute(f"VACUUM {method.table}".encode())
    vacuum = cpu_us(connection) - spent[2]
    [left] = connection.execute(f"SELECT count(*) FROM {method.table}".encode()).fetchone() or [-1]
    assert left == 0, f"{method.name} left {left} rows"
    wal = wal_bytes(connection) - wal
    return Cost(
        (spent[1] - spent[0]) / count, (spent[2] - before) / count, vacuum / count, wal / count
    )


def cpu_us(connection: session.Connection) -> float:
    """Return the CPU time of the session's backend, precise to the microsecond."""
    return int(Path(f"/proc/{connection.info.backend_pid}/schedstat").read_text().split()[0]) / 1000


def wal_bytes(connection: session.Connection) -> int:
    [lsn] = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone() or [0]
    return int(lsn)


def queue_prepare(connection: session.Connection, rows: int) -> None:
    connection.execute(
        f"DROP INDEX IF EXISTS pggit.by_time; DROP TABLE IF EXISTS {ARCHIVE}; TRUNCATE {QUEUE}".encode()
    )
    deliveries.insert(connection, rows)
    connection.execute(
        f"UPDATE {QUEUE} SET delivery_status = 'sending', routed = true, lease_token = 1".encode()
    )
    connection.execute(f"VACUUM {QUEUE}".encode())


def queue_with_index(connection: session.Connection, rows: int) -> None:
    queue_prepare(connection, rows)
    connection.execute(
        f"CREATE INDEX by_time ON {QUEUE} (delivered_at) WHERE delivery_status IN ('delivered', "
        "'failed')".encode()
    )


def queue_with_archive(connection: session.Connection, rows: int) -> None:
    queue_prepare(connection, rows)
    # One partition of what would be one a day.
    connection.execute(
        f"CREATE TABLE {ARCHIVE} (delivery_id bigint PRIMARY KEY, webhook_id bigint, "
        "message_body jsonb, delivery_status text,"
        " delivered_at timestamptz)".encode()
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
    """Run webhookd's own code until everything is gone: two rounds, since a turn ends after a
    second.
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


# Disk use at a steady rate


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows, and megabytes with indexes."""

    at_s: float
    queue_rows: int
    queue_mb: float
    log_rows: int
    log_mb: float


def steady(report: Report, postgres: Postgres, *, rate: int, seconds: float, keep_s: float) -> None:
    """Report how tables grow under a fleet that keeps everything for *keep_s*."""
    dsn = postgres.create("steady")
    migrate(dsn)
    keep = [
        word
        for name in ("delivered", "failed", "log")
        for word in (f"--keep-{name}", repr(keep_s / DAY_S))
    ]
    samples: list[Sample] = []
    with nginx(postgres.home) as sink, postgres.connect("steady") as connection:
        deliveries.register(connection, sink.url)
        before = sink.requests()
        with running_fleet(dsn, *LOOPBACK, *keep):
            began, inserted, due_s = time.monotonic(), 0, 0.0
            while (elapsed_s := time.monotonic() - began) < seconds:
                if (late := int(elapsed_s * rate) - inserted) > 0:
                    deliveries.insert(connection, late)
                    inserted += late
                if elapsed_s >= due_s:
                    samples.append(sample(connection, elapsed_s))
                    due_s += SAMPLE_S
                time.sleep(0.05)
            samples.append(sample(connection, elapsed_s))
            removed = dict(
                connection.execute("SELECT table_name, removed FROM pggit.retention").fetchall()
            )
        sent = sink.requests() - before
    report.table(
        ["seconds", "deliveries", "MB", "attempts", "MB"],
        [
            [
                f"{s.at_s:.0f}",
                f"{s.queue_rows:,}",
                f"{s.queue_mb:.1f}",
                f"{s.log_rows:,}",
                f"{s.log_mb:.1f}",
            ]
            for s in samples[:: -(-len(samples) // MOST_LINES)]
        ],
        title=f"Tables and indexes of a fleet at {rate} deliveries a second that keeps rows for "
        f"{keep_s:g} s",
    )
    half, third = (
        samples[len(samples) // 3 : 2 * len(samples) // 3],
        samples[2 * len(samples) // 3 :],
    )
    growth = [
        max(getattr(s, name) for s in third) / max(getattr(s, name) for s in half)
        for name in ("queue_mb", "log_mb")
    ]
    report.note(
        f"{inserted:,} deliveries inserted, {sent:,} requests at the sink, "
        f"{removed['alert_delivery_queue']:,} deliveries and"
        f" {removed['alert_delivery_log']:,} attempts removed. The largest size of the last "
        f"third is {growth[0]:.2f} of that of"
        f" the middle third for the queue, {growth[1]:.2f} for the log: 1 is constant."
    )


def sample(connection: Connection, at_s: float) -> Sample:
    def look(table: str) -> tuple[int, float]:
        row = connection.execute(
            f"SELECT count(*), pg_total_relation_size('{table}') / 1e6 FROM {table}".encode()
        ).fetchone()
        assert row is not None
        return int(row[0]), float(row[1])

    return Sample(at_s, *look(QUEUE), *look(LOG))


if __name__ == "__main__":
    main()
