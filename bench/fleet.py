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
# Asleep: the flag is up, so somebody keeps the watch.
_IDLE = """
SELECT count(*) FILTER (WHERE seen_at > now() - interval '20 seconds') >= %s AND (SELECT last_value FROM pggit.wake_flag) > 1
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
    """Start webhookd on *dsn* and block until its *workers* have gone to sleep; *certificate* is
    trusted beside nothing else.

    *busy*: work waits for them already, so block only until all have registered. *options* are the
    command line's. What it says goes to *log*, warnings and worse to the terminal without one.
    *module* is what Python runs for it.
    """
    trust = ["env", f"SSL_CERT_FILE={certificate}"] if certificate else []
    quiet = ("--metrics-port", "0", "--log-level", "warning")
    command = local.webhookd(dsn, "--workers", str(workers), *quiet, *options, module=module)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "DELETE FROM pggit.workers"
        )  # of an earlier fleet: they would be counted
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
    """Block until *count* workers have gone to sleep, or (*busy*) have registered; raise
    `TimeoutError` if they do not.
    """
    deadline = time.monotonic() + READY_WITHIN_S
    while connection.execute(_REGISTERED if busy else _IDLE, [count]).fetchone() != (True,):
        if not alive() or time.monotonic() > deadline:
            raise TimeoutError(
                f"webhookd is not {'up' if busy else 'idle'} after {READY_WITHIN_S:g} s"
            )
        time.sleep(0.05)
