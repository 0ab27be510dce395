"""What webhookd costs the application: commits a second of 16 clients that insert single rows, with and without its triggers.

    python -m bench.insert_cost [--seconds 5] [--rounds 7]

The fleet is stopped and the flag is down. Each round runs the same pgbench script on the same table three times, in alternating
order: without triggers, with webhookd's, and for comparison with a trigger that notifies on every insert. fsync is on.
"""

import argparse
import os
import re
import statistics
import subprocess
from pathlib import Path

from bench import command
from bench.postgres import Postgres, running_postgres
from webhookd import postgres_programs
from webhookd.migrate import migrate

CLIENTS = 16
DATABASE = "insert_cost"
TABLE = "pggit.alert_delivery_queue"
INSERT = f"INSERT INTO {TABLE} (webhook_id, message_body) VALUES (1, '{{\"n\": 1}}');\n"
PLAIN_NOTIFY = f"""
CREATE FUNCTION plain_notify() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('plain', ''); RETURN NULL; END $$;
CREATE TRIGGER plain_notify AFTER INSERT ON {TABLE} FOR EACH STATEMENT EXECUTE FUNCTION plain_notify()
"""
OURS = ("wake_after_insert", "fill_in_defaults")
VARIANTS: dict[str, tuple[str, ...]] = {"without": (), "with": OURS, "notify": ("plain_notify",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=5, help="of one pgbench run")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with running_postgres() as postgres:
        migrate(postgres.create(DATABASE))
        script = postgres.home / "insert.sql"
        script.write_text(INSERT)
        report(measure(postgres, script, seconds=options.seconds, rounds=options.rounds))


def measure(postgres: Postgres, script: Path, *, seconds: int, rounds: int) -> dict[str, list[float]]:
    """Return the commits a second of each variant, round by round."""
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with postgres.connect(DATABASE) as connection:
        connection.execute(PLAIN_NOTIFY.encode())
        for number in range(rounds):
            names = list(VARIANTS)
            for name in names if number % 2 == 0 else reversed(names):
                for trigger in (*OURS, "plain_notify"):
                    verb = "ENABLE" if trigger in VARIANTS[name] else "DISABLE"
                    connection.execute(f"ALTER TABLE {TABLE} {verb} TRIGGER {trigger}".encode())
                connection.execute(f"TRUNCATE {TABLE}".encode())
                postgres.checkpoint()
                rates[name].append(pgbench(postgres, script, seconds=seconds))
    return rates


def pgbench(postgres: Postgres, script: Path, *, seconds: int) -> float:
    environment = os.environ | postgres.environment(DATABASE)
    program = postgres_programs.package_binaries() / "pgbench"
    arguments = ["-n", "-M", "prepared", "-c", str(CLIENTS), "-j", "2", "-T", str(seconds), "-f", str(script)]
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"tps = ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def report(rates: dict[str, list[float]]) -> None:
    print(f"{CLIENTS} clients, single-row inserts, {len(rates['without'])} rounds, {os.cpu_count()} cores")
    print(f"{'':10}{'commits/s':>12}   of those without triggers, round by round")
    for name, its in rates.items():
        ratios = [mine / base for mine, base in zip(its, rates["without"], strict=True)]
        middle = f"{statistics.median(ratios):.2f} [{min(ratios):.2f} to {max(ratios):.2f}]"
        print(f"{name:10}{statistics.median(its):12.0f}   {middle}")


if __name__ == "__main__":
    command.run(main)
