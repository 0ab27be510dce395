"""Latency: from the acknowledged commit of an INSERT to its arrival at the receiver, on an idle
fleet and at 70 % of its capacity.

    python -m bench.latency [--rounds 5] [--seconds 10]

All systems take turns in one run. Producer and receiver read the same clock (CLOCK_MONOTONIC).
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench import command
from bench.deliveries import Connection
from bench.figures import estimate, percentile, ratio, verdict
from bench.postgres import Postgres, running_postgres
from bench.processes import Meter
from bench.report import Report
from bench.rounds import alternate, await_complete, drain
from bench.sink import SlowSink, receiver
from bench.systems import Graphile, Original, PgQueuer, Procrastinate, System, Webhookd, installed
from webhookd.errors import WebhookdError

RATE = 100  # inserts a second
MINE = Webhookd("webhookd, 3 workers", size=20_000)
PEERS = (
    Graphile("graphile-worker default", size=3_000, variant="default"),
    Graphile("graphile-worker tuned", size=20_000, variant="tuned"),
    PgQueuer("pgqueuer", size=5_000),
    Procrastinate("procrastinate", size=800),
)
ORIGINAL = Original("original shape, poll each second", size=0, pause_s=1)
ORIGINAL_RATE = 50  # it cannot do more than some 90
WARM = 100
SETTLE_S = 1.5  # long enough for every system to fall asleep

BUSY_SHARE = 0.7
BUSY_EVERY_S = 0.005
BUSY_P99_MS = 100.0
CAPACITY_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Trickle:
    """One round of steady inserts: milliseconds, and CPU seconds per 1,000 deliveries."""

    p50: float
    p99: float
    longest: float
    queue: float
    postgres: float
    rate: float  # inserts a second that were reached

    @property
    def total(self) -> float:
        """Without the CPU of the receiver, which is the same for all."""
        return self.queue + self.postgres


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of inserting, in each round")
    options = parser.parse_args()
    with running_postgres() as postgres, receiver() as sink:
        report = Report(
            "latency",
            "Latency",
            postgres=postgres.version(),
            notes=(
                f"Median [95 % interval] of {options.rounds} rounds, alternating,"
                f" {options.seconds:g} s of inserts each, one row a transaction, inserted in each"
                " system's own way. Receiver: bench/receiver.py. webhookd: 3 workers and its"
                " defaults, except that no rate limit applies; peers: one process. CPU: seconds"
                " (user and system) per 1,000 deliveries; PostgreSQL's includes the inserts.",
            ),
        )
        systems = installed((MINE, *PEERS), postgres)
        count = int(RATE * options.seconds)
        found = alternate(
            systems,
            options.rounds,
            lambda system: trickle(system, postgres, sink, rate=RATE, count=count),
        )
        _report_idle(report, found)
        for system in installed((ORIGINAL,), postgres):
            slow = trickle(
                system,
                postgres,
                sink,
                rate=ORIGINAL_RATE,
                count=int(ORIGINAL_RATE * options.seconds),
            )
            report.note(
                f"The {system.name}, one round at {ORIGINAL_RATE}/s: p50 {slow.p50:.0f} ms, p99"
                f" {slow.p99:.0f} ms."
            )
        _report_busy(
            report, systems, postgres, sink, rounds=options.rounds, seconds=options.seconds
        )
        report.write()


def trickle(
    system: System, postgres: Postgres, sink: SlowSink, *, rate: float, count: int, batch: int = 1
) -> Trickle:
    """Insert *count* deliveries at *rate* a second, *batch* a transaction, into *system*, which is
    idle and warm.

    Raise `WebhookdError` unless exactly those arrive, once each, and all become complete.
    """
    postgres.checkpoint()
    before = sink.requests()
    with system.running(postgres, sink) as pids, postgres.connect(system.database) as connection:
        insert_steadily(system, connection, rate=RATE, first=0, count=WARM)
        await_complete(system, connection, sink, before + WARM)
        time.sleep(SETTLE_S)
        sink.arrivals()
        meter = Meter({"queue": pids, "postgres": [postgres.pid]})
        inserted = insert_steadily(
            system, connection, rate=rate, first=WARM, count=count, batch=batch
        )
        took_s = meter.elapsed_s()
        await_complete(system, connection, sink, before + WARM + count)
        spent = meter.spent_s()
        arrived = sink.arrivals()
    came = sink.requests() - before
    if came != WARM + count or arrived.keys() != inserted.keys():
        raise WebhookdError(
            f"{system.name}: {WARM + count} deliveries, but {came} requests came, or others"
        )
    waits = [(arrived[number] - at) * 1000 for number, at in inserted.items()]
    return Trickle(
        p50=percentile(waits, 0.5),
        p99=percentile(waits, 0.99),
        longest=max(waits),
        queue=spent["queue"] / count * 1000,
        postgres=spent["postgres"] / count * 1000,
        rate=count / took_s,
    )


def insert_steadily(
    system: System, connection: Connection, *, rate: float, first: int, count: int, batch: int = 1
) -> dict[int, float]:
    """Insert *count* deliveries numbered from *first* at *rate*, *batch* a transaction; return when
    each was acknowledged.
    """
    acknowledged: dict[int, float] = {}
    began = time.monotonic()
    for done in range(0, count, batch):
        time.sleep(max(0.0, began + done / rate - time.monotonic()))
        size = min(batch, count - done)
        system.insert(connection, first=first + done, count=size)
        acknowledged.update(
            dict.fromkeys(range(first + done, first + done + size), time.monotonic())
        )
    return acknowledged


def _report_idle(report: Report, found: Mapping[str, Sequence[Trickle]]) -> None:
    rows = []
    for name, its in found.items():
        rows.append(
            (
                name,
                *(
                    estimate([getattr(it, part) for it in its]).text(".2f")
                    for part in ("p50", "p99")
                ),
                f"{max(it.longest for it in its):.0f}",
                *(
                    estimate([getattr(it, part) for it in its]).text(".2f")
                    for part in ("queue", "postgres", "total")
                ),
            )
        )
    heads = ("", "p50, ms", "p99, ms", "longest", "CPU of the queue", "PostgreSQL", "both")
    report.table(heads, rows, title=f"{RATE} inserts a second, idle fleet")
    peers = [name for name in found if name != MINE.name]
    if not peers:
        return
    rows = []
    for part, words, target in (
        ("p50", "p50", 1.3),
        ("p99", "p99", 1.0),
        ("queue", "CPU of the queue", 1.3),
        ("total", "CPU of both", 1.3),
    ):
        values = _values(part)
        best = min(peers, key=lambda name: statistics.median(values(found[name])))
        against = ratio(values(found[MINE.name]), values(found[best]))
        rows.append(
            (
                f"{words}, against {best}",
                against.text(".2f"),
                f"at most {target:g}",
                verdict(against, target, at_least=False),
            )
        )
    report.table(("webhookd", "ratio", "target", ""), rows, title="Against the best peer in each")


def _values(part: str) -> Callable[[Sequence[Trickle]], list[float]]:
    return lambda its: [getattr(it, part) for it in its]


def _report_busy(
    report: Report,
    systems: Sequence[System],
    postgres: Postgres,
    sink: SlowSink,
    *,
    rounds: int,
    seconds: float,
) -> None:
    """Run each system at the same share of its own capacity."""
    drains = alternate(
        systems, CAPACITY_ROUNDS, lambda system: drain(system, postgres, sink, system.size).rate
    )
    capacities = {name: statistics.median(rates) for name, rates in drains.items()}

    def busy(system: System) -> Trickle:
        rate = BUSY_SHARE * capacities[system.name]
        return trickle(
            system,
            postgres,
            sink,
            rate=rate,
            count=int(rate * seconds),
            batch=max(1, round(rate * BUSY_EVERY_S)),
        )

    found = alternate(systems, rounds, busy)
    rows = []
    for name, its in found.items():
        reached = estimate([it.rate / capacities[name] for it in its])
        p50, p99 = (estimate(_values(part)(its)) for part in ("p50", "p99"))
        target = (
            (f"at most {BUSY_P99_MS:g}", verdict(p99, BUSY_P99_MS, at_least=False))
            if name == MINE.name
            else ("", "")
        )
        rows.append(
            (
                name,
                f"{capacities[name]:,.0f}",
                reached.text(".2f"),
                p50.text(".1f"),
                p99.text(".1f"),
                *target,
            )
        )
    heads = ("", "deliveries/s it can do", "inserts, of that", "p50, ms", "p99, ms", "target", "")
    report.table(heads, rows, title=f"At {BUSY_SHARE:.0%} of each system's own capacity")
    report.note(
        f"Capacity: the median of {CAPACITY_ROUNDS} drains of a queue that was filled before, into"
        f" the same receiver. The inserts come every {BUSY_EVERY_S * 1000:g} ms, several in a"
        " transaction where the rate needs it, and take CPU too."
    )


if __name__ == "__main__":
    command.run(main)
