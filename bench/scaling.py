"""More workers and more hosts: how the drain rate grows, and whether the fleet's limits hold on
three hosts together.

    python -m bench.scaling [--rounds 7] [--scale 1]

One, two and three workers on this machine, and one on each of three hosts, take turns. The hosts
are network namespaces that this program makes; that needs root, and without it they are left out.
They reach PostgreSQL and the receivers over a bridge only. Then a receiver checks the limits while
two workers on each host deliver (tests/support/fleetwide.py says what must hold).
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from psycopg.conninfo import make_conninfo

from bench import command, deliveries
from bench.figures import estimate, ratio
from bench.fleet import await_workers
from bench.postgres import Postgres, running_postgres
from bench.report import Report
from bench.rounds import Round, alternate, drain
from bench.sink import Sink, nginx
from bench.systems import System, Webhookd
from tests.support.fleetwide import CAP, OPEN_S, THRESHOLD, Seen, Stage
from tests.support.hosts import MAIN, Host, admit_hosts, running_hosts
from tests.support.postgres import Database
from webhookd.errors import UnusableError
from webhookd.schema.migrate import migrate

SIZE = 20_000  # deliveries a round
COUNT = 3
PLAY_S, PLAYED = 10.0, 10_000


class OnHosts(Webhookd):
    """One worker on each of some hosts, each fleet with the same database."""

    def __init__(self, name: str, hosts: Sequence[Host]) -> None:
        super().__init__(name, size=SIZE, processes=len(hosts))
        self._hosts = hosts

    @contextmanager
    def running(self, postgres: Postgres, sink: Sink) -> Iterator[list[int]]:
        with postgres.connect(self.database) as connection, ExitStack() as stack:
            deliveries.empty(connection)
            deliveries.register(connection, sink.url)
            yield start(
                stack,
                connection,
                self._hosts,
                make_conninfo(postgres.dsn(self.database), host=MAIN),
                workers=1,
            )


def start(
    stack: ExitStack,
    connection: deliveries.Connection,
    hosts: Sequence[Host],
    dsn: str,
    *,
    workers: int,
) -> list[int]:
    """Start so many *workers* on each host, block until all are idle, and return the supervisors'
    process ids.
    """
    connection.execute("DELETE FROM pggit.workers")  # of an earlier fleet
    options = ("--workers", str(workers), "--log-level", "warning")
    pids = [stack.enter_context(host.webhookd(dsn, *options)).pid for host in hosts]
    await_workers(connection, workers * len(hosts))
    return pids


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        help="of the number of deliveries a round; below 1 only to try it",
    )
    options = parser.parse_args()
    with ExitStack() as stack:
        hosts, missing = make_hosts(stack)
        postgres = stack.enter_context(
            running_postgres(*([f"listen_addresses={MAIN}"] if hosts else []))
        )
        sinks = {"here": stack.enter_context(nginx(postgres.home))}
        (postgres.home / "bridge").mkdir(mode=0o755)
        systems: list[System] = [
            Webhookd(f"{count} on this machine", size=SIZE, processes=count) for count in (1, 2, 3)
        ]
        systems[0].install(postgres)
        if hosts:
            admit_hosts(postgres.process.directory / "data")
            with postgres.connect("postgres") as connection:
                connection.execute("SELECT pg_reload_conf()")
            sinks["bridge"] = stack.enter_context(nginx(postgres.home / "bridge", host=MAIN))
            systems.append(OnHosts(f"1 on each of {COUNT} hosts", hosts))

        def measure(system: System) -> Round:
            sink = sinks["bridge" if isinstance(system, OnHosts) else "here"]
            return drain(system, postgres, sink, int(system.size * options.scale))

        rounds = alternate(systems, options.rounds, measure)
        report = Report(
            "scaling",
            "More workers, more hosts",
            postgres=postgres.version(),
            notes=(
                f"Median [95 % interval] of {options.rounds} alternating rounds of"
                f" {int(SIZE * options.scale):,} deliveries to {deliveries.WEBHOOKS} webhooks,"
                " nginx; defaults except the rate limit. CPU: seconds for 1,000 deliveries.",
                *([f"Hosts: {missing}."] if missing else []),
            ),
        )
        add_rates(report, rounds)
        if hosts:
            add_limits(report, play(postgres, hosts))
        if options.scale >= 1:
            report.write()


def make_hosts(stack: ExitStack) -> tuple[Sequence[Host], str]:
    """Return hosts, or why there are none."""
    try:
        return stack.enter_context(running_hosts(COUNT)), ""
    except UnusableError as error:
        return (), str(error)


def add_rates(report: Report, rounds: Mapping[str, Sequence[Round]]) -> None:
    one = [its.rate for its in next(iter(rounds.values()))]
    rows = []
    for name, its in rounds.items():
        rates = [r.rate for r in its]
        parts = [
            estimate([getattr(r, part) for r in its]).text(".3f")
            for part in ("queue", "postgres", "total")
        ]
        rows.append((name, estimate(rates).text(",.0f"), ratio(rates, one).text(".2f"), *parts))
    report.table(
        (
            "workers",
            "deliveries/s",
            "of one worker's",
            "CPU of webhookd",
            "PostgreSQL",
            "with the sink",
        ),
        rows,
    )


def play(postgres: Postgres, hosts: Sequence[Host]) -> Seen:
    """Let two workers on each host deliver to limited webhooks; return what a receiver saw."""
    database = Database("limits", postgres.create("limits"))
    migrate(database.dsn)
    stage = Stage(database, MAIN)
    with ExitStack() as stack, database.connect() as connection:
        stack.enter_context(stage.sink)
        stage.prepare()
        start(stack, connection, hosts, make_conninfo(database.dsn, host=MAIN), workers=2)
        return stage.play(seconds=PLAY_S, deliveries=PLAYED)


def add_limits(report: Report, seen: Seen) -> None:
    held = {True: "holds", False: "BROKEN"}
    gap = min(seen.probe_gaps_s, default=OPEN_S)
    rows = (
        (
            "rate limit: arrivals beyond what the bucket gave, at any moment",
            f"{max(0.0, seen.limited_excess):.0f}",
            held[seen.limited_excess <= 0],
        ),
        ("rate limit: share of it that was used", f"{seen.limited_share:.2f}", ""),
        (
            "attempts before the circuit opened",
            str(seen.before_open),
            held[seen.before_open == THRESHOLD],
        ),
        (
            f"shortest time to a probe (of {len(seen.probe_gaps_s)}), s; open for {OPEN_S:g}",
            f"{gap:.3f}",
            held[gap >= OPEN_S],
        ),
        (
            f"most exchanges at once; the cap is {CAP}",
            str(seen.most_at_once),
            held[seen.most_at_once <= CAP],
        ),
        (
            f"of {seen.deliveries:,} deliveries never sent",
            str(seen.missing),
            held[seen.missing == 0],
        ),
        ("sent twice", str(seen.repeated), held[seen.repeated == 0]),
        (
            "by host",
            ", ".join(f"{name} {count:,}" for name, count in sorted(seen.by_host.items())),
            held[len(seen.by_host) == COUNT],
        ),
    )
    report.table(
        (f"counted at the receiver, two workers on each of {COUNT} hosts", "", ""),
        rows,
        title="For the fleet",
    )


if __name__ == "__main__":
    command.run(main)
