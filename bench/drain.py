"""Throughput: how fast each system drains its queue into fast receivers, and what that costs; also
slow receivers, a hot webhook, and TLS.

    python -m bench.drain [--rounds 7] [--scale 1.0]

All systems take turns in one run, so read the ratios. bench/README.md says how each is set up.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence

from bench import command, deliveries
from bench.figures import estimate, ratio, verdict
from bench.postgres import Postgres, running_postgres
from bench.report import Report
from bench.rounds import Round, alternate, drain
from bench.sink import nginx, receiver
from bench.systems import (
    Bound,
    Graphile,
    Original,
    PgQueuer,
    Procrastinate,
    System,
    Webhookd,
    installed,
)
from webhookd.core.slots import Reserve
from webhookd.core.speed import SLOW_AFTER_S

Rounds = Mapping[str, Sequence[Round]]

WORKERS = 3
THREADS = 64
UNCAPPED = ("--max-in-flight", "1000000")
MINE = Webhookd("webhookd", size=20_000)
HOT = Webhookd("webhookd, one webhook, no cap", size=20_000, webhooks=1, options=UNCAPPED)
TLS = Webhookd("webhookd, TLS", size=20_000)
TUNED = (
    Graphile("graphile-worker tuned, 1 process", size=20_000, variant="tuned"),
    Graphile("graphile-worker tuned, 3 processes", size=20_000, processes=3, variant="tuned"),
)
PGQUEUER = PgQueuer("pgqueuer, 3 processes", size=12_000, processes=3)
ORIGINAL = Original("original shape, poll each second", size=400, pause_s=1)  # four polls
UNPAUSED = Original("original shape, no pause", size=2_500, pause_s=0)
BOUND = Bound("bound, 3 processes", size=40_000, processes=3)
SYSTEMS = (
    MINE,
    HOT,
    TLS,
    BOUND,
    *TUNED,
    Graphile("graphile-worker default, 1 process", size=3_000, variant="default"),
    PGQUEUER,
    Procrastinate("procrastinate, 1 process", size=800),
    Procrastinate("procrastinate, 3 processes", size=1_000, processes=3),
    ORIGINAL,
    UNPAUSED,
)
SMALLEST = 400  # deliveries a round, at any scale
SLOW_S = {0.05: 20_000, 0.5: 3_000}

LITTLE = 0.9
WORKER_MB = 80.0
QUIET = 0.2


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
    with (
        running_postgres() as postgres,
        nginx(postgres.home) as plain,
        nginx(postgres.home, tls=True) as tls,
    ):
        report = Report(
            "drain",
            "Throughput",
            postgres=postgres.version(),
            notes=(
                f"Median [95 % interval] of {options.rounds} rounds, alternating; bodies of"
                f" {len(deliveries.body(12345))} bytes, {deliveries.WEBHOOKS} endpoints, nginx on"
                f" loopback. webhookd: {WORKERS} workers and its defaults, except that no rate"
                " limit applies. CPU: seconds (user and system) per 1,000 deliveries."
                " PSS: of all processes together.",
            ),
        )
        systems = installed(SYSTEMS, postgres)

        def measure(system: System) -> Round:
            count = max(int(system.size * options.scale), min(system.size, SMALLEST))
            return drain(system, postgres, tls if system is TLS else plain, count)

        rounds = alternate(systems, options.rounds, measure)
        _report_rates(report, rounds)
        _report_ratios(report, rounds)
        _report_tls(report, rounds)
        _report_slow(report, postgres, rounds=min(5, options.rounds), scale=options.scale)
        report.write()


def _report_rates(report: Report, rounds: Rounds) -> None:
    rows = []
    for name, its in rounds.items():
        parts = [
            f"{estimate([getattr(r, part) for r in its]).middle:.3f}"
            for part in ("postgres", "sink")
        ]
        rows.append(
            (
                name,
                estimate([r.rate for r in its]).text(",.0f"),
                estimate([r.queue for r in its]).text(".3f"),
                *parts,
                estimate([r.total for r in its]).text(".3f"),
                f"{estimate([sum(r.pss_mb) for r in its]).middle:.0f}",
                f"{max(r.other for r in its):.2f}",
            )
        )
    heads = (
        "",
        "deliveries/s",
        "CPU of the queue",
        "PostgreSQL",
        "sink",
        "all three",
        "PSS, MB",
        "other CPU, cores",
    )
    report.table(heads, rows, title="Fast receivers")
    report.note(
        f"Other CPU: of the worst round, the benchmark itself included. Above some {QUIET} cores"
        " other programs disturbed the measurement."
    )


def _report_ratios(report: Report, rounds: Rounds) -> None:
    def values(name: str, part: str) -> list[float]:
        return [getattr(r, part) for r in rounds[name]]

    targets = ((PGQUEUER, 2.0), (ORIGINAL, 8.0), (UNPAUSED, 8.0), (BOUND, 0.8))
    comparisons = [
        ("rate", other.name, target) for other, target in targets if other.name in rounds
    ]
    tuned = [system.name for system in TUNED if system.name in rounds]
    if tuned:
        # Compare the rate with the fastest, and CPU with the one that needs least.
        for part, target, choose in (("total", 1.0, min), ("queue", 0.7, min), ("rate", 1.3, max)):
            best = choose(tuned, key=lambda name: statistics.median(values(name, part)))
            comparisons.insert(0, (part, best, target))
    words = {"rate": "deliveries/s", "queue": "CPU of the queue", "total": "CPU of all three"}
    rows = []
    for part, other, target in comparisons:
        found = ratio(values(MINE.name, part), values(other, part))
        sign = "at least" if part == "rate" else "at most"
        rows.append(
            (
                f"{words[part]}, against {other}",
                found.text(".2f"),
                f"{sign} {target:g}",
                verdict(found, target, at_least=part == "rate"),
            )
        )
    found = ratio(values(HOT.name, "rate"), values(MINE.name, "rate"))
    rows.append(
        (
            "deliveries/s of one hot webhook, against 50 webhooks",
            found.text(".2f"),
            "at least 0.6",
            verdict(found, 0.6, at_least=True),
        )
    )
    report.table(("webhookd", "ratio", "target", ""), rows, title="Against the targets")


def _report_tls(report: Report, rounds: Rounds) -> None:
    mine, tls = rounds[MINE.name], rounds[TLS.name]
    rate = ratio([r.rate for r in tls], [r.rate for r in mine])
    cpu = ratio([r.queue for r in tls], [r.queue for r in mine])
    handshakes = estimate([r.connections for r in tls])
    report.note(
        f"TLS with kept connections: {rate.text('.2f')} of the plain rate at {cpu.text('.2f')}"
        f" of its CPU; {handshakes.middle:.0f} handshakes for {tls[0].deliveries:,} deliveries and"
        " the warm-up."
    )


def _report_slow(report: Report, postgres: Postgres, *, rounds: int, scale: float) -> None:
    system = Webhookd("webhookd", size=0, processes=WORKERS, options=("--threads", str(THREADS)))
    rows = []
    for delay_s, size in SLOW_S.items():
        with receiver(delay_s) as sink:
            its = [drain(system, postgres, sink, int(size * scale)) for _ in range(rounds)]
        # Slow lanes leave a reserve to others.
        slots = Reserve.of(THREADS).slow if delay_s >= SLOW_AFTER_S else THREADS
        allowed = WORKERS * slots / delay_s
        share = estimate([r.rate / allowed for r in its])
        heaviest = estimate([max(r.pss_mb[1:]) for r in its])
        rows.append(
            (
                f"{1000 * delay_s:g} ms",
                f"{allowed:,.0f}",
                estimate([r.rate for r in its]).text(",.0f"),
                f"{share.text('.2f')} ({verdict(share, LITTLE, at_least=True)})",
                estimate([r.queue for r in its]).text(".3f"),
                f"{heaviest.text('.0f')} ({verdict(heaviest, WORKER_MB, at_least=False)})",
            )
        )
    heads = (
        "they answer after",
        "allowed/s",
        "deliveries/s",
        "share of it",
        "CPU of webhookd",
        "PSS of the heaviest worker, MB",
    )
    report.table(heads, rows, title="Slow receivers")
    report.note(
        f"Allowed: by Little's law, for {WORKERS} workers with {THREADS} threads each, all started"
        f" in the warm-up. Targets: a share of {LITTLE:g}, {WORKER_MB:.0f} MB. nginx cannot wait:"
        " these receivers are bench/receiver.py (epoll, one thread)."
    )


if __name__ == "__main__":
    command.run(main)
