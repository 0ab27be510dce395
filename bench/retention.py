"""What a bounded history costs: CPU a row for several methods of removing it, and disk use at a
steady rate.

    python -m bench.retention [--rows 60000] [--rounds 5] [--rate 200] [--seconds 300] [--keep 20]

First the methods, alternating in one run. Finished deliveries are removed as webhookd does it,
through an index on the time of finishing, or by moving them to a partition that is dropped.
Attempts are removed as webhookd does it, or by dropping daily partitions. What a method adds to the
cost of storing rows counts as well. CPU is that of the one backend, vacuum included (a dropped
table needs none).

Then a fleet delivers at a constant rate and keeps rows for some seconds: tables and indexes must
stop growing. autovacuum runs every 5 s there, because rows live for so short a time.
"""

import argparse
import time
from dataclasses import dataclass, fields
from pathlib import Path

from bench import deliveries
from bench.deliveries import Connection
from bench.figures import estimate, ratio
from bench.fleet import running_fleet
from bench.postgres import Postgres, running_postgres
from bench.removal import (
    BATCH,
    LOG,
    PARTS,
    QUEUE,
    QUEUE_METHODS,
    Method,
    log_by_days,
    log_by_pages,
)
from bench.report import Report
from bench.sink import nginx
from webhookd.postgres import session
from webhookd.schema.migrate import migrate

DAY_S = 86_400
LOOPBACK = ("--allow-http", "--allow-network", "127.0.0.0/8")
SAMPLE_S, MOST_LINES = 5.0, 15
HEADS = (
    "us of CPU a row",
    "storing",
    "removing",
    "vacuum",
    "total",
    "of webhookd's",
    "WAL bytes",
)


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of the backend's CPU a row, and bytes of WAL to remove it (vacuum included)."""

    storing: float
    removing: float
    vacuum: float
    wal: float

    @property
    def total(self) -> float:
        return self.storing + self.removing + self.vacuum


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
                    # A record of one row is slow: a tenth of the rows is enough.
                    count = rows // 10 if "of its own" in title else rows
                    costs[method.name].append(measure(connection, method, count))
            ours = [cost.total for cost in costs[known[0].name]]
            report.table(
                HEADS,
                [
                    [
                        name,
                        *figures(its),
                        ratio([cost.total for cost in its], ours).text(".2f"),
                        estimate([cost.wal for cost in its]).text(".0f"),
                    ]
                    for name, its in costs.items()
                ],
                title=title,
            )


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
        # Dead rows that finishing left are the same for all methods.
        connection.execute(f"VACUUM {QUEUE}".encode())
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
        f"{inserted:,} deliveries inserted, {sent:,} requests at the sink,"
        f" {removed['alert_delivery_queue']:,} deliveries and"
        f" {removed['alert_delivery_log']:,} attempts removed. The largest size in the last third"
        f" is {growth[0]:.2f} of the largest in the middle third for the queue, {growth[1]:.2f}"
        " for the log: 1 is constant."
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
