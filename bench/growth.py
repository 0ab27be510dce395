"""Does anything grow? What a claim costs and how fast a fleet drains, while one thing grows: seven
curves.

    python -m bench.growth [--only pending,snapshot] [--scale 1] [--minutes 10] [--rounds 3]
                           [--seconds 4]

At each point the claims of one worker are measured first, in milliseconds and pages, on a server
that is otherwise idle. They are made by webhookd's Claimer and ResultWriter with a worker's session
settings, claim 200 rows at most, and record each as delivered. Then a fleet of three delivers to
nginx for some rounds. Each arrival is replaced by a new row, so that the backlog keeps its level. A
curve is flat if its last point costs at most twice what the first does. Takes some 25 minutes and
15 GB below the temporary directory.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psycopg

from bench import backlog, command, deliveries, sink
from bench.curves import Curve, Point, add_table, add_verdicts, draw
from bench.fleet import running_fleet
from bench.pictures import pyplot
from bench.postgres import Postgres, running_postgres
from bench.probe import CLAIMS, LIMIT, depth_ms, of_fleet, probe
from bench.report import RESULTS, Report
from bench.statements import Statements
from webhookd.schema.migrate import migrate

EVERY_S = 0.02  # how often arrivals are replaced
WARM_UP_S = 2.0
MOST_ROWS = 10_000_000
EVENLY = f"1 + n % {deliveries.WEBHOOKS}"
NOTE = """\
Claims: webhookd's own Claimer and ResultWriter in a session with a worker's settings, {limit} rows
at most, medians and means of {claims}; a claim's pages are those of lock_lanes, read_settings,
claim and the next_look after it. Deliveries: three workers with defaults except the rate limit,
nginx, {webhooks} webhooks unless stated otherwise; each arrival is replaced by a new row. Rows were
made without triggers while fsync was off; it was on for all measurements. Under the old snapshot,
claims are the fleet's own, and their milliseconds are the server's.\
"""


class Stage(NamedTuple):
    """A state that is ready to be measured. New rows replace what arrives; *webhook* is a SQL
    expression over the row's number n for their webhook.
    """

    label: str
    webhook: str = EVENLY


@dataclass(slots=True)
class Bench:
    """What all curves share; `connection` is to the database of the current curve."""

    postgres: Postgres
    sink: sink.Sink
    options: argparse.Namespace
    connection: backlog.Connection
    dsn: str = ""

    def renew(self, webhooks: int = deliveries.WEBHOOKS) -> None:
        """Drop the database, and create it anew with so many webhooks."""
        self.connection.close()
        with self.postgres.connect("postgres") as connection:
            connection.execute("DROP DATABASE IF EXISTS growth WITH (FORCE)")
        self.dsn = self.postgres.create("growth")
        migrate(self.dsn)
        self.connection = self.postgres.connect("growth")
        deliveries.register(self.connection, self.sink.url, webhooks=webhooks)

    def rows(self, count: float) -> int:
        """Return *count* times the scale of the run."""
        return max(1000, int(count * self.options.scale))

    def raise_to(self, rows: int, *, webhook: str = EVENLY) -> None:
        """Bring the backlog to *rows*."""
        backlog.due(self.connection, rows - backlog.waiting(self.connection), webhook=webhook)

    def measure(self, stage: Stage) -> Point:
        level = backlog.Level(self.connection, self.sink, webhook=stage.webhook)
        claims = probe(self.dsn, self.connection, level)
        with running_fleet(self.dsn, busy=True):
            self.hold(level, WARM_UP_S)
            statements = Statements(self.connection)
            rates = [self.hold(level, self.options.seconds) for _ in range(self.options.rounds)]
            return Point(stage.label, claims, rates, depth_ms(statements))

    def hold(self, level: backlog.Level, seconds: float) -> float:
        """Keep the backlog's level for *seconds*; return the arrivals a second."""
        began, arrived = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            time.sleep(EVERY_S)
            arrived += level.hold()
        return arrived / (time.monotonic() - began)


# The curves. Each prepares a state, yields it to be measured, and goes on to the next.


def pending(bench: Bench) -> Iterator[Stage]:
    """pending rows"""
    bench.renew()
    for count in (1e3, 1e5, 1e6, MOST_ROWS):
        bench.raise_to(bench.rows(count))
        yield Stage(f"{bench.rows(count):,}")


def webhooks(bench: Bench) -> Iterator[Stage]:
    """webhooks that share 200,000 pending rows"""
    for count in (100, 10_000, 100_000):
        each = f"1 + n % {count}"
        bench.renew(count)
        bench.raise_to(bench.rows(200_000), webhook=each)
        yield Stage(f"{count:,}", each)


def circuits(bench: Bench) -> Iterator[Stage]:
    """of 1,000 webhooks with 100,000 pending rows, those with an open circuit"""
    bench.renew(1000)
    bench.raise_to(bench.rows(1e5), webhook="1 + n % 1000")
    yield Stage("none", "1 + n % 1000")
    bench.renew(1000)
    backlog.opened(bench.connection, bench.rows(1e4), first=901, webhooks=100)
    bench.raise_to(bench.rows(9e4), webhook="1 + n % 900")
    yield Stage("10 %", "1 + n % 1000")  # the open ones get new rows as well


def hot(bench: Bench) -> Iterator[Stage]:
    """one webhook's share of 1,000,000 pending rows"""
    half = f"CASE WHEN n % 2 = 0 THEN 1 ELSE {EVENLY} END"
    for label, webhook in (("2 %", EVENLY), ("half", half)):
        bench.renew()
        bench.raise_to(bench.rows(1e6), webhook=webhook)
        # Deliveries to all webhooks arrive in turn, so the hot one keeps its share.
        yield Stage(label)


def history(bench: Bench) -> Iterator[Stage]:
    """delivered rows behind 100,000 pending ones"""
    bench.renew()
    made = 0
    for count in (0, 1e6, MOST_ROWS):
        if count:
            backlog.delivered(bench.connection, bench.rows(count) - made, webhook=EVENLY)
            made = bench.rows(count)
        bench.raise_to(bench.rows(1e5))
        yield Stage(f"{made:,}")


def retries(bench: Bench) -> Iterator[Stage]:
    """scheduled retries for each of 10,000 due rows"""
    bench.renew()
    made = 0
    for count in (0, 10, 100):
        if count:
            backlog.scheduled(bench.connection, bench.rows(count * 1e4) - made, webhook=EVENLY)
            made = bench.rows(count * 1e4)
        bench.raise_to(bench.rows(1e4))
        yield Stage(f"{count}")


def snapshot(bench: Bench) -> list[Point]:
    """minutes that an old snapshot has been held, with 10,000 pending rows"""
    # The last point is the second minute after the snapshot has ended.
    bench.renew()
    bench.raise_to(bench.rows(1e4))
    level = backlog.Level(bench.connection, bench.sink, webhook=EVENLY)
    points = []
    with running_fleet(bench.dsn, busy=True), psycopg.connect(bench.dsn) as old:
        bench.hold(level, WARM_UP_S)
        for minute in range(bench.options.minutes + 2):
            statements = Statements(bench.connection)
            rate = bench.hold(level, 10.0 if minute == 0 else 60.0)
            points.append(Point(str(minute), of_fleet(statements), [rate], depth_ms(statements)))
            if minute == 0:
                old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                old.execute("SELECT count(*) FROM pggit.webhooks")
            elif minute == bench.options.minutes:
                old.rollback()
                bench.hold(level, 60.0)  # autovacuum runs once a minute
    return points


CURVES: Sequence[Callable[[Bench], Iterator[Stage]]] = (
    pending,
    webhooks,
    circuits,
    hot,
    history,
    retries,
)
NAMES = [curve.__name__ for curve in (*CURVES, snapshot)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        default=",".join(NAMES),
        help=f"some of {','.join(NAMES)}; then nothing is written",
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="of the numbers of rows; with another than 1 nothing is written",
    )
    parser.add_argument("--minutes", type=int, default=10, help="that the old snapshot is held")
    parser.add_argument("--rounds", type=int, default=3, help="of the fleet, at each point")
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round")
    options = parser.parse_args()
    pyplot()
    with running_postgres() as postgres, sink.nginx(postgres.home) as receivers:
        notes = [NOTE.format(limit=LIMIT, claims=CLAIMS, webhooks=deliveries.WEBHOOKS)]
        report = Report("growth", "What grows", postgres=postgres.version(), notes=notes)
        bench = Bench(postgres, receivers, options, postgres.connect("postgres"))
        curves = []
        for prepare in CURVES:
            if prepare.__name__ in options.only.split(","):
                points = [bench.measure(stage) for stage in prepare(bench)]
                curves.append(_finished(report, prepare, points))
        if snapshot.__name__ in options.only.split(","):
            *points, after = snapshot(bench)
            curves.append(_finished(report, snapshot, points))
            rate, pages = after.rates[0], after.claims.pages
            report.note(
                f"In the second minute after its end: {rate:,.0f} deliveries/s, {pages:,.0f} "
                "pages a claim."
            )
        bench.connection.close()
    add_verdicts(report, curves)
    if len(curves) == len(NAMES) and options.scale == 1:
        report.note("![curves](growth.png)")
        draw(curves, RESULTS / "growth.png")
        report.write()


def _finished(report: Report, curve: Callable[[Bench], object], points: Sequence[Point]) -> Curve:
    finished = Curve(curve.__name__, (curve.__doc__ or "").strip(), points)
    add_table(report, finished)
    return finished


if __name__ == "__main__":
    command.run(main)
