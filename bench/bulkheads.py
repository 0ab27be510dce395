"""What do bad neighbours cost a webhook whose receiver is fast, and what does it cost them?

    python -m bench.bulkheads [--kinds slow,silent,dead,unregistered,mixed] [--counts 10,40,100]
                              [--rows 10000,100000,1000000] [--short]

The victim gets 8 deliveries a second, within its default limit of 10. Beside it are so many
neighbours of one kind, all with a backlog:

slow          receivers that answer 200 after 4.8 s
silent        names, each in its own domain, for which the name server never answers
dead          half refuse connections, half drop all packets
unregistered  rows for ids that do not exist, 100 for each, one INSERT
mixed         of 100, 40 are slow and 60 silent

Each point has a database and a fleet of three workers of its own, with defaults. The neighbours
come first and are measured alone, then the victim joins them. Latency runs from the return of the
victim's COMMIT to the last byte of its request. What has not arrived when the point ends counts
with the time that it has waited. Takes some 9 minutes, --short some 3.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import command, neighbours
from bench.deliveries import Connection
from bench.figures import percentile
from bench.fleet import Fleet, running_fleet
from bench.neighbours import ANSWER_S, KINDS, Surroundings
from bench.pictures import pyplot
from bench.postgres import Postgres, running_postgres
from bench.processes import Meter
from bench.report import RESULTS, Report
from webhookd.schema.migrate import migrate

RATE = 8.0  # of the victim, deliveries a second
# All slow exchanges end together at first, so a window is a multiple of their time.
WINDOW_S, SHORT_WINDOW_S = 3 * ANSWER_S, 2 * ANSWER_S
WARM_UP_S = ANSWER_S + 1
LINGER_S = 5.0  # for the victim's last arrivals
NEIGHBOUR_RATE, NEIGHBOUR_BURST = 10, 20  # the defaults: no backlog needs more rows
COUNTS, SHORT_COUNTS = "10,40,100", "40"
ROWS, SHORT_ROWS = "10000,100000,1000000", "100000"
# What must hold beside the victim alone. On two busy cores one time slice more is no neighbour's
# fault, hence the milliseconds.
P50_TIMES, P50_SLACK_S, MAX_S, KEPT = 2.0, 0.02, 1.0, 0.7
NOTE = """\
The victim: {rate:g} deliveries a second for {window:.1f} s, fast receiver. Three workers with
defaults. Milliseconds from the victim's commit to its arrival; `>`: not all had arrived {linger:g}
s after the last commit. Neighbours, alone and beside the victim: requests a second at slow
receivers, else attempts a second. CPU: seconds of webhookd and of PostgreSQL a second, beside the
victim. A point holds if p50 is at most {times:g} x that without neighbours (or {slack:g} ms more),
nothing takes longer than {most:g} s, the circuit stays closed, and slow neighbours keep {kept:g} of
what they reach alone.\
"""

_ATTEMPTS = "SELECT count(*) FROM pggit.alert_delivery_log WHERE webhook_id <> %s"
_CIRCUIT = """
SELECT coalesce(max(circuit_epoch), 0) > 0, coalesce(max(failed_deliveries), 0)
  FROM pggit.webhook_health_metrics WHERE webhook_id = %s
"""


@dataclass(frozen=True, slots=True)
class Victim:
    """*latencies_s*: one for each delivery sent, of those that never arrived what they waited."""

    latencies_s: Sequence[float]
    arrived: int
    failed_attempts: int
    circuit_opened: bool

    def ms(self, share: float) -> float:
        return percentile(self.latencies_s, share) * 1000

    def max_ms(self) -> float:
        return max(self.latencies_s) * 1000


@dataclass(frozen=True, slots=True)
class Point:
    """*alone* and *beside*: the neighbours' throughput without and with the victim."""

    kind: str
    count: int
    victim: Victim
    alone: float
    beside: float
    webhookd_cpu: float
    postgres_cpu: float

    def kept(self) -> float | None:
        """Return the neighbours' share of what they reach alone; None for those that deliver
        nothing anyway.
        """
        if not neighbours.slow_count(self.kind, self.count):
            return None
        return self.beside / max(self.alone, 0.1)

    def faults(self, alone: Victim) -> list[str]:
        """Return what does not hold, in words; *alone* is the victim without neighbours."""
        victim, kept = self.victim, self.kept()
        wrong = []
        if victim.ms(0.5) > max(P50_TIMES * alone.ms(0.5), alone.ms(0.5) + P50_SLACK_S * 1000):
            wrong.append("p50")
        if victim.max_ms() > MAX_S * 1000:
            wrong.append("max")
        if victim.circuit_opened:
            wrong.append("circuit")
        if kept is not None and kept < KEPT:
            wrong.append("neighbours")
        return wrong


@dataclass(frozen=True, slots=True)
class Bench:
    postgres: Postgres
    around: Surroundings
    window_s: float

    def measure(self, kind: str, count: int) -> Point:
        """Measure one point on a new database. Blocks for a minute at most, and as long as the
        neighbours' INSERT takes.
        """
        dsn = self.postgres.create("bulkheads")
        migrate(dsn)
        with (
            self.postgres.connect("bulkheads") as connection,
            running_fleet(
                dsn,
                module="tests.support.name_server",
                log=self.postgres.home / f"{kind}-{count}.log",
            ) as fleet,
        ):
            neighbours.register_victim(connection, self.around)
            self._send(connection, first=0, count=4)  # connections, prepared statements
            self._arrivals(0, 4)
            rows_each = NEIGHBOUR_BURST + int(NEIGHBOUR_RATE * (WARM_UP_S + 3 * self.window_s))
            neighbours.add_neighbours(connection, self.around, kind, count, rows_each=rows_each)
            alone = 0.0
            if neighbours.slow_count(kind, count):
                time.sleep(WARM_UP_S)
                alone = self._throughput_alone(connection, kind)
            return self._with_victim(connection, fleet, kind, count, alone)

    def _throughput_alone(self, connection: Connection, kind: str) -> float:
        before = self._done(connection, kind)
        time.sleep(self.window_s)
        return (self._done(connection, kind) - before) / self.window_s

    def _with_victim(
        self, connection: Connection, fleet: Fleet, kind: str, count: int, alone: float
    ) -> Point:
        before = self._done(connection, kind)
        meter = Meter({"webhookd": [fleet.pid], "postgres": [self.postgres.pid]})
        committed = self._send(connection, first=100, count=int(RATE * self.window_s))
        elapsed_s, spent = meter.elapsed_s(), meter.spent_s()
        beside = (self._done(connection, kind) - before) / elapsed_s
        arrivals = self._arrivals(100, len(committed))
        ended = time.monotonic()
        opened, failed = connection.execute(_CIRCUIT.encode(), [neighbours.VICTIM]).fetchone() or (
            False,
            0,
        )
        return Point(
            kind=kind,
            count=count,
            victim=Victim(
                [arrivals.get(n, ended) - at for n, at in committed.items()],
                arrived=len(arrivals),
                failed_attempts=failed,
                circuit_opened=opened,
            ),
            alone=alone,
            beside=beside,
            webhookd_cpu=spent["webhookd"] / elapsed_s,
            postgres_cpu=spent["postgres"] / elapsed_s,
        )

    def _send(self, connection: Connection, *, first: int, count: int) -> dict[int, float]:
        """Insert for the victim at RATE; return the monotonic instants of the commits by number.
        Blocks until the last one's period is over.
        """
        began, committed = time.monotonic(), {}
        for index in range(count):
            neighbours.insert_for_victim(connection, first + index)
            committed[first + index] = time.monotonic()
            time.sleep(max(0.0, began + (index + 1) / RATE - time.monotonic()))
        return committed

    def _arrivals(self, first: int, count: int) -> dict[int, float]:
        """Return when the victim's deliveries arrived first, by number. Blocks until all have, for
        LINGER_S at most.
        """
        numbers, found = range(first, first + count), dict[int, float]()
        deadline = time.monotonic() + LINGER_S
        while True:
            for number, at in self.around.fast.arrivals().items():
                if number in numbers:
                    found.setdefault(number, at)
            if len(found) == count or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def _done(self, connection: Connection, kind: str) -> int:
        """Return the requests at slow receivers so far, or else the neighbours' attempts."""
        if kind in ("slow", "mixed"):
            return self.around.slow.requests()
        row = connection.execute(_ATTEMPTS.encode(), [neighbours.VICTIM]).fetchone()
        assert row is not None
        return int(row[0])


def add_table(report: Report, points: Sequence[Point]) -> None:
    """Add a table of all *points*, the first without neighbours, with the verdict on each."""
    heads = [
        *("neighbours", "p50 ms", "p99 ms", "max ms", "arrived", "failed attempts", "circuit"),
        *("alone /s", "beside /s", "kept", "CPU webhookd", "CPU PostgreSQL", "verdict"),
    ]
    rows = []
    for point in points:
        victim, kept = point.victim, point.kept()
        sent = len(victim.latencies_s)
        more = ">" if victim.arrived < sent else ""
        rows.append(
            [
                f"{point.count:,} {point.kind}" if point.count else "none",
                f"{victim.ms(0.5):,.0f}",
                f"{more}{victim.ms(0.99):,.0f}",
                f"{more}{victim.max_ms():,.0f}",
                f"{victim.arrived}/{sent}",
                str(victim.failed_attempts),
                "OPENED" if victim.circuit_opened else "closed",
                "-" if kept is None else f"{point.alone:,.1f}",
                f"{point.beside:,.1f}",
                "-" if kept is None else f"{kept:.2f}",
                f"{point.webhookd_cpu:.2f}",
                f"{point.postgres_cpu:.2f}",
                ", ".join(point.faults(points[0].victim)) or "holds",
            ]
        )
    report.table(heads, rows)


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw the victim's p50 and p99 over the number of neighbours into a PNG."""
    kinds = list(dict.fromkeys(point.kind for point in points[1:]))
    figure, axes = pyplot().subplots(
        1, len(kinds), figsize=(3.4 * len(kinds), 3.2), sharey=True, squeeze=False
    )
    for place, kind in zip(axes.flat, kinds, strict=True):
        shown = [points[0], *(point for point in points if point.kind == kind and point.count)]
        labels = [f"{point.count:,}" for point in shown]
        place.plot(labels, [point.victim.ms(0.5) for point in shown], "o-", label="p50")
        place.plot(labels, [point.victim.ms(0.99) for point in shown], "s--", label="p99")
        place.axhline(MAX_S * 1000, color="tab:red", linewidth=0.8)
        place.set_yscale("log")
        place.set_title(f"{kind}{' rows' if kind == 'unregistered' else ''}", fontsize=9)
    axes[0][0].set_ylabel("victim: ms from commit to arrival")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    options = _options()
    pyplot()
    window_s = SHORT_WINDOW_S if options.short else WINDOW_S
    plan = [("none", 0)]
    for kind in options.kinds.split(","):
        if kind not in KINDS:
            raise SystemExit(f"no kind {kind}: {', '.join(KINDS)}")
        counts = {"unregistered": options.rows, "mixed": "100"}.get(kind, options.counts)
        plan += [(kind, int(count)) for count in counts.split(",")]
    with running_postgres() as postgres, neighbours.surroundings() as around:
        note = NOTE.format(
            rate=RATE,
            window=window_s,
            linger=LINGER_S,
            times=P50_TIMES,
            slack=P50_SLACK_S * 1000,
            most=MAX_S,
            kept=KEPT,
        )
        report = Report("bulkheads", "Bulkheads", postgres=postgres.version(), notes=[note])
        bench = Bench(postgres, around, window_s)
        points = []
        for kind, count in plan:
            points.append(bench.measure(kind, count))
            print(f"{kind} {count}: p50 {points[-1].victim.ms(0.5):.0f} ms", flush=True)
    add_table(report, points)
    bad = sum(bool(point.faults(points[0].victim)) for point in points)
    report.note(f"Points that do not hold: {bad} of {len(points)}.")
    if options.full:
        report.note("![p50 and p99](bulkheads.png)")
        draw(points, RESULTS / "bulkheads.png")
        report.write()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", help="some kinds only; then nothing is written")
    parser.add_argument("--counts", help=f"of neighbours, not mixed; default {COUNTS}")
    parser.add_argument("--rows", help=f"of unregistered ids; default {ROWS}")
    parser.add_argument(
        "--short", action="store_true", help=f"{SHORT_COUNTS} neighbours only; writes nothing"
    )
    options = parser.parse_args()
    options.full = not (options.kinds or options.counts or options.rows or options.short)
    options.kinds = options.kinds or ",".join(KINDS)
    options.counts = options.counts or (SHORT_COUNTS if options.short else COUNTS)
    options.rows = options.rows or (SHORT_ROWS if options.short else ROWS)
    return options


if __name__ == "__main__":
    command.run(main)
