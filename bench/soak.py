"""A day in half an hour: a fleet at 80 % of its capacity, with retries, failures and open circuits.
Does anything grow?

    python -m bench.soak [--minutes 30] [--fleet "OPTIONS OF WEBHOOKD"]

Measures the capacity on the same mix first, then inserts at 80 % of it. Of 50 webhooks, 47 answer
5 % of the attempts with 500. Three always answer 503 and get one delivery in a hundred: their
circuits are open most of the time. Each minute adds a row to the table: what was delivered, what
claims cost, memory, dead rows, sizes. Claims at the end may cost 20 % more pages than in minute 5,
and the workers' memory may be 10 % larger.
"""

import argparse
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench import backlog, command, deliveries, sink
from bench.fleet import Fleet, running_fleet
from bench.pictures import pyplot
from bench.postgres import running_postgres
from bench.probe import Claims, of_fleet
from bench.report import RESULTS, Report
from bench.statements import Statements
from webhookd.schema.migrate import migrate

SHARE = 0.8
CALIBRATE_S, WARM_UP_S = 15.0, 5.0
BACKLOG = 10_000  # while the capacity is measured
EVERY_S = 0.02  # an insert of what is due by then
FAILING = 3
FLAKY = deliveries.WEBHOOKS - FAILING
MIX = f"CASE WHEN n % 100 = 0 THEN {FLAKY + 1} + n / 100 % {FAILING} ELSE 1 + n % {FLAKY} END"
AFTER = 5  # minutes, to compare the end with
CLAIM_GROWTH, MEMORY_GROWTH = 1.2, 1.1

_READ = """
SELECT (SELECT sum(n_dead_tup) FROM pg_stat_user_tables
         WHERE relname LIKE 'alert_delivery_queue%'),
       (SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'webhook_health_metrics'),
       (SELECT sum(pg_table_size(relid)) FROM pg_stat_user_tables
         WHERE relname LIKE 'alert_delivery_queue%'),
       (SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables
         WHERE relname LIKE 'alert_delivery_log%'),
       (SELECT sum(pg_relation_size(indexrelid)) FROM pg_stat_user_indexes
         WHERE indexrelname IN ('queue_new', 'queue_waiting', 'queue_leased')
            OR indexrelname LIKE 'lane_runnable%'),
       (SELECT count(*) FROM pggit.webhook_health_metrics WHERE circuit_state <> 'closed'),
       (SELECT coalesce(sum(deliveries), 0) FROM pggit.queue_depth
         WHERE cause IN ('due', 'rate', 'in_flight')),
       (SELECT coalesce(sum(deliveries), 0) FROM pggit.queue_depth WHERE cause = 'scheduled')
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One minute. Sizes are bytes: the queue's and the log's tables, and the indexes that claims
    read.
    """

    arrivals: float  # a second
    claims: Claims
    pss: Sequence[int]  # the supervisor's and each worker's
    dead_rows: int
    dead_lanes: int
    queue: int
    log: int
    hot_indexes: int
    circuits: int  # that are not closed
    due: int
    scheduled: int


class Feeder:
    """Inserts at *rate* a second, by the clock."""

    def __init__(self, level: backlog.Level, rate: float) -> None:
        self._level = level
        self._rate = rate
        self._began = time.monotonic()
        self._inserted = 0

    def run(self, until: float) -> None:
        """Insert until the monotonic instant *until*."""
        while (now := time.monotonic()) < until:
            due = int((now - self._began) * self._rate) - self._inserted
            self._level.put(due)
            self._inserted += due
            time.sleep(EVERY_S)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument(
        "--fleet", default="", help="further options of webhookd, as for its retention"
    )
    options = parser.parse_args()
    pyplot()
    with running_postgres() as postgres, sink.nginx(postgres.home) as receivers:
        dsn = postgres.create("soak")
        migrate(dsn)
        with postgres.connect("soak") as connection:
            register(connection, receivers.url)
            level = backlog.Level(connection, receivers, webhook=MIX)
            with running_fleet(dsn, *shlex.split(options.fleet)) as fleet:
                capacity = calibrate(level)
                rate = SHARE * capacity * (1 - sink.FLAKY)
                report = begin(
                    postgres.version(), capacity=capacity, rate=rate, fleet=options.fleet
                )
                samples = soak(
                    connection, fleet, receivers, Feeder(level, rate), minutes=options.minutes
                )
    add_table(report, samples)
    add_verdict(report, samples)
    if options.minutes >= 3 * AFTER:
        report.note("![minutes](soak.png)")
        draw(samples)
        report.write()


def register(connection: backlog.Connection, url: str) -> None:
    """Register all webhooks, most of them flaky, the last ones failing."""
    deliveries.register(connection, f"{url}/flaky")
    connection.execute(
        "UPDATE pggit.webhooks SET url = %s || '/failing/' || webhook_id WHERE webhook_id > %s",
        [url, FLAKY],
    )


def calibrate(level: backlog.Level) -> float:
    """Return how many attempts a second the fleet makes while there is always work. Afterwards
    wait until the backlog is sent.
    """
    level.put(BACKLOG)
    arrived, began = 0, time.monotonic()
    while (elapsed := time.monotonic() - began) < WARM_UP_S + CALIBRATE_S:
        time.sleep(EVERY_S)
        came = level.hold()
        arrived += came if elapsed >= WARM_UP_S else 0
    time.sleep(WARM_UP_S)
    return arrived / CALIBRATE_S


def soak(
    connection: backlog.Connection,
    fleet: Fleet,
    receivers: sink.Sink,
    feeder: Feeder,
    *,
    minutes: int,
) -> list[Sample]:
    """Feed for so many *minutes* and return a sample of each."""
    samples: list[Sample] = []
    began = time.monotonic()
    for minute in range(1, minutes + 1):
        statements, arrived, since = Statements(connection), receivers.requests(), time.monotonic()
        feeder.run(began + 60.0 * minute)
        arrivals = (receivers.requests() - arrived) / (time.monotonic() - since)
        row = connection.execute(_READ.encode()).fetchone()
        assert row is not None
        samples.append(Sample(arrivals, of_fleet(statements), fleet.pss_bytes(), *map(int, row)))
        print(
            f"minute {minute}: {arrivals:,.0f} arrivals/s, {samples[-1].claims.pages:,.0f} pages "
            "a claim",
            flush=True,
        )
    return samples


def begin(version: str, *, capacity: float, rate: float, fleet: str) -> Report:
    return Report(
        "soak",
        "A soak",
        postgres=version,
        notes=(
            f"Three workers, defaults except the rate limit{f', {fleet}' if fleet else ''};"
            f" {FLAKY} webhooks fail {sink.FLAKY:.0%} of their attempts, {FAILING} all of them."
            f" Capacity on this mix: {capacity:,.0f} attempts/s. Inserted: {rate:,.0f} rows/s, in"
            f" portions every {EVERY_S * 1000:.0f} ms; with the retries that is {SHARE:.0%} of the"
            " capacity.",
        ),
    )


def add_table(report: Report, samples: Sequence[Sample]) -> None:
    heads = (
        *("minute", "arrivals/s", "claims/s", "rows a claim", "ms a claim", "pages a claim"),
        *("pages a row", "heaviest worker, MB", "fleet, MB", "dead rows", "dead lanes"),
        *("queue, MB", "hot indexes, MB", "log, MB", "circuits not closed", "due", "scheduled"),
    )
    rows = []
    for minute, s in enumerate(samples, start=1):
        c = s.claims
        rows.append(
            (
                *(str(minute), f"{s.arrivals:,.0f}", f"{s.arrivals / max(c.rows, 0.1):,.0f}"),
                *(f"{c.rows:.0f}", f"{c.ms:.2f}", f"{c.pages:,.0f}", f"{pages_a_row(s):.1f}"),
                *(f"{max(s.pss[1:]) / 1e6:.1f}", f"{sum(s.pss) / 1e6:.1f}"),
                *(f"{s.dead_rows:,}", f"{s.dead_lanes:,}", f"{s.queue / 1e6:,.0f}"),
                *(f"{s.hot_indexes / 1e6:.1f}", f"{s.log / 1e6:,.0f}"),
                *(str(s.circuits), f"{s.due:,}", f"{s.scheduled:,}"),
            )
        )
    report.table(heads, rows)


def pages_a_row(sample: Sample) -> float:
    """Return the pages of a claim for each row that it returned; the number of rows varies with
    the load.
    """
    return sample.claims.pages / max(sample.claims.rows, 0.1)


def add_verdict(report: Report, samples: Sequence[Sample]) -> None:
    """Compare the last three minutes with the three around minute 5 (or with the first third of a
    shorter run).
    """
    at = min(AFTER, -(-len(samples) // 3)) - 1
    early, late = samples[max(0, at - 1) : at + 2], samples[-3:]
    rows = []
    for name, value, most in (
        ("pages a claim", lambda s: s.claims.pages, CLAIM_GROWTH),
        ("pages a row claimed", pages_a_row, CLAIM_GROWTH),
        ("memory of the fleet, MB", lambda s: sum(s.pss) / 1e6, MEMORY_GROWTH),
    ):
        before, after = median(map(value, early)), median(map(value, late))
        steady = "steady" if after / before <= most else "GROWS"
        rows.append(
            (name, f"{before:,.1f}", f"{after:,.1f}", f"{after / before:.2f}", f"{most:g}", steady)
        )
    report.table(
        ("", f"minute {at + 1}", "at the end", "ratio", "at most", ""), rows, title="At the end"
    )


def draw(samples: Sequence[Sample]) -> None:
    """Draw what must not grow (first row) and what may."""
    minutes = range(1, len(samples) + 1)
    figure, axes = pyplot().subplots(2, 3, figsize=(13, 6.5))
    for place, (title, values) in zip(
        axes.flat,
        (
            ("pages a row claimed", [pages_a_row(s) for s in samples]),
            ("memory of the fleet, MB", [sum(s.pss) / 1e6 for s in samples]),
            ("indexes that claims read, MB", [s.hot_indexes / 1e6 for s in samples]),
            ("arrivals/s", [s.arrivals for s in samples]),
            ("dead rows of the queue", [s.dead_rows for s in samples]),
            ("queue and log, MB", [(s.queue + s.log) / 1e6 for s in samples]),
        ),
        strict=True,
    ):
        place.plot(minutes, values, "o-", markersize=3)
        place.set_ylim(bottom=0)
        place.set_title(title, fontsize=10)
        place.set_xlabel("minute")
    figure.tight_layout()
    figure.savefig(RESULTS / "soak.png", dpi=110)


if __name__ == "__main__":
    command.run(main)
