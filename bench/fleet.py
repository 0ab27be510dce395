"""A fleet of webhookd with its defaults, for the length of a `with` block."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench import processes
from bench.deliveries import Connection
from webhookd.demo import local

READY_WITHIN_S = 30.0
# The fleet is idle when the flag is up: then one worker holds the duty to be notified, and sleeps.
_IDLE = """
SELECT count(*) FILTER (WHERE seen_at > now() - interval '20 seconds') >= %s
       AND (SELECT last_value FROM pggit.wake_flag) > 1
  FROM pggit.workers
"""
_REGISTERED = "SELECT count(*) >= %s FROM pggit.workers"


@dataclass(frozen=True, slots=True)
class Fleet:
    """`pid` is the supervisor's."""

    pid: int

    def workers(self) -> list[int]:
        """Return the workers' process ids."""
        return [pid for pid in processes.tree(self.pid) if pid != self.pid]

    def pss_bytes(self) -> list[int]:
        """Return the proportional set size of the supervisor and of each worker, in this order."""
        return [processes.pss_bytes(pid) for pid in (self.pid, *self.workers())]


@contextmanager
def running_fleet(
    dsn: str,
    *options: str,
    workers: int = 3,
    certificate: Path | None = None,
    log: Path | None = None,
    busy: bool = False,
    module: str = "webhookd",
) -> Iterator[Fleet]:
    """Start webhookd on *dsn* and block until all its *workers* are idle.

    *busy*: work is waiting already, so block only until all have registered. *certificate* is the
    only one that they trust. *options* are those of the command line. The log goes to *log*, or,
    without one, warnings and errors go to the terminal. *module* is what `python -m` runs.
    """
    trust = ["env", f"SSL_CERT_FILE={certificate}"] if certificate else []
    quiet = ("--metrics-port", "0", "--log-level", "warning")
    command = local.webhookd(dsn, "--workers", str(workers), *quiet, *options, module=module)
    with psycopg.connect(dsn, autocommit=True) as connection:
        # Workers of an earlier fleet would be counted.
        connection.execute("DELETE FROM pggit.workers")
        with local.program([*trust, *command], log) as process:
            await_workers(connection, workers, busy=busy, alive=lambda: process.poll() is None)
            yield Fleet(process.pid)


def await_workers(
    connection: Connection,
    count: int,
    *,
    busy: bool = False,
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Block until *count* workers are idle, or (*busy*) have registered; raise `TimeoutError` if
    they do not within READY_WITHIN_S.
    """
    deadline = time.monotonic() + READY_WITHIN_S
    while connection.execute(_REGISTERED if busy else _IDLE, [count]).fetchone() != (True,):
        if not alive() or time.monotonic() > deadline:
            raise TimeoutError(
                f"webhookd is not {'up' if busy else 'idle'} after {READY_WITHIN_S:g} s"
            )
        time.sleep(0.05)
