"""What webhookd costs the application: commits a second, and CPU of its sessions, of 16 clients
that insert single rows.

    python -m bench.insert_cost [--rounds 7] [--seconds 4] [--burst-rounds 5] [--burst 10]

Each round runs the same pgbench script on the same table, in alternating order; ratios are taken
round by round. fsync is on.

The first runs have the fleet stopped and the flag down: without triggers, with webhookd's triggers,
and with a trigger that notifies at every insert.

The second runs are bursts into a sleeping fleet, which delivers to nginx with all defaults, the
rate limit included. It wakes, delivers and routes on the same cores as the clients; that cost is
not the trigger's. So there are two runs without triggers. The fleet sleeps through one. During the
other the benchmark wakes the workers all the time, so that they do what they do with the trigger;
the trigger is compared with this one. (Without the rate limit the fleet takes all CPU that the
clients leave, and runs differ.)
"""

import argparse
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench import command, deliveries
from bench.deliveries import QUEUE, Connection
from bench.figures import estimate, ratio, verdict
from bench.fleet import running_fleet
from bench.postgres import Postgres, running_postgres
from bench.processes import ended_children_cpu_s, tree
from bench.report import Report
from bench.sink import Sink, nginx
from webhookd.embedded import programs
from webhookd.schema.migrate import migrate
from webhookd.worker.watch import CALL_ALL

CLIENTS = 16
REAPED_WITHIN_S = 10.0
DATABASE = "insert_cost"
SCRIPT = f"""\\set webhook random(1, {deliveries.WEBHOOKS})
INSERT INTO {QUEUE} (webhook_id, message_body) VALUES (:webhook, '{{"n": 1}}');
"""
PLAIN = "plain_notify"
PLAIN_NOTIFY = f"""
CREATE FUNCTION {PLAIN}() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN PERFORM pg_notify('plain', ''); RETURN NULL; END $$;
CREATE TRIGGER {PLAIN} AFTER INSERT ON {QUEUE} FOR EACH STATEMENT EXECUTE FUNCTION {PLAIN}()
"""
OURS = ("wake_after_insert", "fill_in_defaults")
CALL_EVERY_S = 0.005  # in a burst, the worker that holds the duty looks as often
WITHIN_S = 60.0
WARM = 5000  # deliveries before the first burst


@dataclass(frozen=True, slots=True)
class Variant:
    """*triggers* are enabled. With *called* the benchmark wakes the workers, in addition to what
    the triggers do.
    """

    name: str
    triggers: Sequence[str] = ()
    called: bool = False


WITHOUT, WITH = Variant("no triggers"), Variant("webhookd's triggers", OURS)
NOTIFYING = Variant("NOTIFY at every insert", (PLAIN,))
CALLED = Variant("no triggers, fleet woken otherwise", called=True)
STOPPED = (WITHOUT, WITH, NOTIFYING)
BURST = (WITHOUT, CALLED, WITH, NOTIFYING)


@dataclass(frozen=True, slots=True)
class Run:
    """Commits a second, CPU seconds of the inserting sessions for 1,000 commits, and arrivals a
    second meanwhile.
    """

    commits: float
    cpu: float
    arrivals: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=4, help="of a run without a fleet")
    parser.add_argument("--burst-rounds", type=int, default=5)
    parser.add_argument(
        "--burst", type=int, default=10, help="seconds of a burst into a sleeping fleet"
    )
    options = parser.parse_args()
    # The CPU of an autovacuum worker that ends during a run would count as a client session's.
    with running_postgres("autovacuum=off") as postgres, nginx(postgres.home) as sink:
        migrate(postgres.create(DATABASE))
        (postgres.home / "insert.sql").write_text(SCRIPT)
        report = Report(
            "insert_cost",
            "What inserts cost the application",
            postgres=postgres.version(),
            notes=(
                f"Median [95 % interval] of {options.rounds} alternating rounds (bursts:"
                f" {options.burst_rounds}) of pgbench, {CLIENTS} clients, single-row inserts."
                " CPU: seconds (user and system) of the clients' sessions for 1,000 commits.",
            ),
        )
        with postgres.connect(DATABASE) as connection:
            connection.execute(PLAIN_NOTIFY.encode())
            deliveries.register(connection, sink.url)
            stopped = measure(
                postgres, connection, sink, STOPPED, rounds=options.rounds, seconds=options.seconds
            )
            add(report, stopped, base=WITHOUT, target=0.9, title="Fleet stopped, flag down")
            reset(connection, WITH)
            with running_fleet(postgres.dsn(DATABASE), log=postgres.home / "fleet.log"):
                deliveries.insert(connection, WARM)
                await_delivered(connection)
                connection.execute("UPDATE pggit.webhooks SET rate_limit_per_second = NULL")
                burst = measure(
                    postgres,
                    connection,
                    sink,
                    BURST,
                    rounds=options.burst_rounds,
                    seconds=options.burst,
                    awaken=True,
                )
            add(
                report,
                burst,
                base=CALLED,
                target=0.8,
                title=f"A burst of {options.burst} s into a sleeping fleet of three",
            )
        report.note(
            "The fleet delivers and routes on the same cores as the clients. The difference"
            " between the first two rows is what that costs the clients; the difference between"
            " the second and the third is what the trigger costs. The plain NOTIFY wakes no"
            " worker, only the sessions that listen."
        )
        report.write()


def measure(
    postgres: Postgres,
    connection: Connection,
    sink: Sink,
    variants: Sequence[Variant],
    *,
    rounds: int,
    seconds: int,
    awaken: bool = False,
) -> dict[Variant, list[Run]]:
    """Return the runs of each variant, round by round. *awaken*: a fleet runs, and must be asleep
    before each.
    """
    runs: dict[Variant, list[Run]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            reset(connection, variant)
            postgres.checkpoint()
            if awaken:
                await_sleep(connection)
            before, cpu_s, sessions = (
                sink.requests(),
                ended_children_cpu_s(postgres.pid),
                set(tree(postgres.pid)),
            )
            with calling(postgres) if variant.called else nullcontext():
                commits = pgbench(postgres, postgres.home / "insert.sql", seconds=seconds)
            arrivals = (sink.requests() - before) / seconds
            await_reaped(postgres, sessions)
            spent = ended_children_cpu_s(postgres.pid) - cpu_s
            runs[variant].append(Run(commits, spent / (commits * seconds) * 1000, arrivals))
    return runs


def await_reaped(postgres: Postgres, before: set[int]) -> None:
    """Block until all processes that were not there *before* have ended: only then does the
    postmaster's time include theirs.
    """
    deadline = time.monotonic() + REAPED_WITHIN_S
    while left := set(tree(postgres.pid)) - before:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"sessions {sorted(left)} have not ended within {REAPED_WITHIN_S:g} s"
            )
        time.sleep(0.02)


def reset(connection: Connection, variant: Variant) -> None:
    """Empty the queue and set its triggers."""
    for trigger in (*OURS, PLAIN):
        verb = "ENABLE" if trigger in variant.triggers else "DISABLE"
        connection.execute(f"ALTER TABLE {QUEUE} {verb} TRIGGER {trigger}".encode())
    # What is left of the column's default without the trigger that numbers the rows.
    numbered = "fill_in_defaults" in variant.triggers
    default = "DROP DEFAULT" if numbered else "SET DEFAULT nextval('pggit.delivery_ids')"
    connection.execute(f"ALTER TABLE {QUEUE} ALTER delivery_id {default}".encode())
    connection.execute(f"TRUNCATE {QUEUE}, pggit.alert_delivery_log".encode())


def await_sleep(connection: Connection) -> None:
    """Block until a worker holds the duty to be notified and the flag is up. No sweep happens for
    the next half minute.
    """
    deadline = time.monotonic() + WITHIN_S
    quiet = 0
    while quiet < 20:  # a worker that has just been notified takes a moment to lower the flag
        row = connection.execute("SELECT last_value > 1 FROM pggit.wake_flag").fetchone()
        quiet = quiet + 1 if row == (True,) else 0
        if time.monotonic() > deadline:
            raise TimeoutError("the fleet does not go to sleep")
        time.sleep(0.05)
    # TRUNCATE removed claimed rows, but their lanes still count them as in flight.
    connection.execute("UPDATE pggit.webhook_health_metrics SET in_flight = 0 WHERE in_flight > 0")
    connection.execute("UPDATE pggit.chores SET last_run_at = now() WHERE chore = 'sweep'")


def await_delivered(connection: Connection) -> None:
    """Block until the fleet has delivered everything."""
    deadline = time.monotonic() + WITHIN_S
    while deliveries.incomplete(connection):
        if time.monotonic() > deadline:
            raise TimeoutError("the fleet does not deliver what was inserted")
        time.sleep(0.1)


@contextmanager
def calling(postgres: Postgres) -> Iterator[None]:
    """Wake all workers again and again from a thread, as a full claim does."""
    over = threading.Event()

    def call() -> None:
        with postgres.connect(DATABASE) as connection:
            connection.execute("SET synchronous_commit = off")
            while not over.wait(CALL_EVERY_S):
                connection.execute("SELECT pg_notify('webhookd_wake', %s)", [CALL_ALL])

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def pgbench(postgres: Postgres, script: Path, *, seconds: int) -> float:
    """Run the clients and return their commits a second."""
    environment = os.environ | postgres.environment(DATABASE)
    program = programs.package_binaries() / "pgbench"
    arguments = [
        "-n",
        "-M",
        "prepared",
        "-c",
        str(CLIENTS),
        "-j",
        "2",
        "-T",
        str(seconds),
        "-f",
        str(script),
    ]
    done = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def add(
    report: Report,
    runs: Mapping[Variant, Sequence[Run]],
    *,
    base: Variant,
    target: float,
    title: str,
) -> None:
    """Add a table that compares each variant with *base*."""
    rows = []
    for variant, its in runs.items():
        commits, cpu = ([getattr(run, part) for run in its] for part in ("commits", "cpu"))
        share = ratio(commits, [run.commits for run in runs[base]])
        more = ratio(cpu, [run.cpu for run in runs[base]])
        rows.append(
            (
                variant.name,
                estimate(commits).text(",.0f"),
                share.text(".2f"),
                f"{verdict(share, target, at_least=True)} (at least {target:g})"
                if variant is WITH
                else "",
                estimate(cpu).text(".3f"),
                more.text(".2f"),
                estimate([run.arrivals for run in its]).text(",.0f"),
            )
        )
    heads = (
        "",
        "commits/s",
        f"of '{base.name}'",
        "",
        "CPU for 1,000 commits",
        f"of '{base.name}'",
        "deliveries/s",
    )
    report.table(heads, rows, title=title)


if __name__ == "__main__":
    command.run(main)
