"""Where a delivery's microseconds go: webhookd's CPU by thread and by library, PostgreSQL's time by
statement.

    python -m bench.profile [--rounds 3] [--deliveries 40000]

The fleet and the sink of bench.drain. Threads are counted by the kernel's scheduler, libraries by
perf (Debian's linux-perf), if there is one.
"""

import argparse
import shutil
import signal
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench import command
from bench.postgres import Postgres, running_postgres
from bench.report import Report
from bench.rounds import await_complete
from bench.sink import Sink, nginx
from bench.statements import Cost, Statements
from bench.systems import Webhookd

# By the kernel's names for threads, which bench.threads sets.
ROLES = {"python": "dispatcher", "sender": "senders", "recorder": "recorder"}
OTHERS = "others"
LIBRARIES = {
    "the kernel": ("[kernel",),
    "Python": ("libpython", "python3"),
    "the C library": ("libc.so",),
    "httptools (llhttp)": ("parser.cpython",),
    "psycopg and libpq": ("_psycopg.", "pq.cpython", "libpq"),
    "OpenSSL": ("libcrypto", "libssl"),
}
NOTE = """\
Medians of {rounds} rounds of {deliveries:,} deliveries: three workers with defaults but no rate
limit, nginx. Figures are per delivery. Threads: how long they ran, and how often they waited or
lost the processor; threads that ended within a round are left out. Statements: by
pg_stat_statements, which also counts the time that a session waits for a processor.\
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """How long a thread has run, and how often it waited or lost the processor."""

    seconds: float = 0.0
    waits: int = 0
    preemptions: int = 0

    def __add__(self, other: "Ran") -> "Ran":
        return Ran(
            self.seconds + other.seconds,
            self.waits + other.waits,
            self.preemptions + other.preemptions,
        )

    def __sub__(self, other: "Ran") -> "Ran":
        return Ran(
            self.seconds - other.seconds,
            self.waits - other.waits,
            self.preemptions - other.preemptions,
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """One round: sums over all workers by role, statement and library."""

    threads: Mapping[str, Ran]
    statements: Mapping[str, Cost]
    samples: Mapping[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deliveries", type=int, default=40_000, help="a round")
    options = parser.parse_args()
    system = Webhookd("webhookd", size=options.deliveries, module="bench.threads")
    with running_postgres() as postgres, nginx(postgres.home) as plain:
        system.install(postgres)
        profiles = [play(system, postgres, plain) for _ in range(options.rounds)]
        version = postgres.version()
    report = Report(
        "profile",
        "Where a delivery's time goes",
        postgres=version,
        notes=[NOTE.format(**vars(options))],
    )
    add_threads(report, [its.threads for its in profiles], options.deliveries)
    add_libraries(report, [its.samples for its in profiles])
    add_statements(report, [its.statements for its in profiles], options.deliveries)
    report.write()


def play(system: Webhookd, postgres: Postgres, plain: Sink) -> Profile:
    """Drain one round and measure it."""
    postgres.checkpoint()
    before, warm = plain.counts().requests, system.size // 20
    with system.running(postgres, plain), postgres.connect(system.database) as connection:
        system.insert(connection, first=0, count=warm)
        await_complete(system, connection, plain, before + warm)
        workers = [int(row[0]) for row in connection.execute("SELECT pid FROM pggit.workers")]
        statements, threads = Statements(connection), _threads(workers)
        with sampling(workers, postgres.home / "perf.data") as samples:
            system.insert(connection, first=warm, count=system.size)
            await_complete(system, connection, plain, before + warm + system.size)
        return Profile(_by_role(threads, _threads(workers)), statements.costs(), samples)


@contextmanager
def sampling(pids: Sequence[int], data: Path) -> Iterator[Counter[str]]:
    """Let perf sample *pids* during the block. The counter that this yields holds the samples by
    library afterwards; it stays empty without perf.
    """
    samples: Counter[str] = Counter()
    if shutil.which("perf") is None:
        yield samples
        return
    whom = ",".join(map(str, pids))
    recording = [
        "perf",
        "record",
        "--event",
        "cpu-clock",
        "--freq",
        "1000",
        "--output",
        str(data),
        "--pid",
        whom,
    ]
    perf = subprocess.Popen(recording, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield samples
    finally:
        perf.send_signal(signal.SIGINT)
        perf.wait()
    asking = [
        "perf",
        "report",
        "--input",
        str(data),
        "--stdio",
        "--sort",
        "dso",
        "--show-nr-samples",
        "--field-separator",
        "|",
    ]
    for line in subprocess.run(
        asking, check=False, capture_output=True, text=True
    ).stdout.splitlines():
        if line.strip() and not line.startswith("#"):
            _, count, library = (part.strip() for part in line.split("|")[:3])
            samples[
                next(
                    (name for name, files in LIBRARIES.items() if library.startswith(files)), OTHERS
                )
            ] += int(count)


def _threads(pids: Sequence[int]) -> dict[Path, tuple[str, Ran]]:
    """Return the role of each thread of *pids*, and what it has run since it began."""
    found = {}
    for task in (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            role = ROLES.get((task / "comm").read_text().strip(), OTHERS)
            status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            switches = (
                int(status[f"{kind}_ctxt_switches"]) for kind in ("voluntary", "nonvoluntary")
            )
            found[task] = (
                role,
                Ran(int((task / "schedstat").read_text().split()[0]) / 1e9, *switches),
            )
    return found


def _by_role(
    before: Mapping[Path, tuple[str, Ran]], after: Mapping[Path, tuple[str, Ran]]
) -> dict[str, Ran]:
    sums = dict.fromkeys((*ROLES.values(), OTHERS), Ran())
    for task, (role, ran) in after.items():
        sums[role] += ran - (before[task][1] if task in before else Ran())
    return sums


def add_threads(report: Report, rounds: Sequence[Mapping[str, Ran]], deliveries: int) -> None:
    rows = []
    for role in rounds[0]:
        its = [one[role] for one in rounds]
        seconds, waits, preemptions = (
            statistics.median(getattr(ran, part) for ran in its)
            for part in ("seconds", "waits", "preemptions")
        )
        rows.append(
            (
                role,
                f"{seconds / deliveries * 1e6:.1f}",
                f"{waits / deliveries:.2f}",
                f"{preemptions / deliveries:.2f}",
            )
        )
    report.table(("of webhookd", "us", "waits", "preemptions"), rows, title="webhookd, by thread")


def add_libraries(report: Report, rounds: Sequence[Mapping[str, int]]) -> None:
    if not all(rounds):
        report.note("perf is not installed: no figures by library.")
        return
    shares = {
        name: statistics.median(one[name] / sum(one.values()) for one in rounds)
        for name in (*LIBRARIES, OTHERS)
    }
    report.table(
        ("of webhookd's CPU", "share"),
        [
            (name, f"{share:.1%}")
            for name, share in sorted(shares.items(), key=lambda item: -item[1])
        ],
        title="webhookd, by library",
    )


def add_statements(report: Report, rounds: Sequence[Mapping[str, Cost]], deliveries: int) -> None:
    rows = []
    for name in sorted(rounds[0], key=lambda name: -rounds[0][name].ms):
        its = [one.get(name, Cost()) for one in rounds]
        calls, ms, pages = (
            statistics.median(getattr(cost, part) for cost in its)
            for part in ("calls", "ms", "pages")
        )
        if ms * 1000 / deliveries >= 0.1:
            rows.append(
                (
                    name,
                    f"{ms * 1000 / deliveries:.1f}",
                    f"{pages / deliveries:.1f}",
                    f"{deliveries / calls:.0f}",
                )
            )
    report.table(
        ("sql/queries", "us", "pages", "deliveries a call"), rows, title="PostgreSQL, by statement"
    )


if __name__ == "__main__":
    command.run(main)
