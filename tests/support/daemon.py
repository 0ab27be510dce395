"""The real program as a user runs it: `webhookd --workers 3` in a process of its own, and receivers
for it to deliver to.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver
from tests.support.waiting import eventually

LOOPBACK = ("--allow-http", "--allow-network", "127.0.0.0/8")
_STARTED = re.compile(r'metrics="?127\.0\.0\.1:(\d+)')


class Daemon:
    """`webhookd` with *arguments*, delivering to loopback. Context manager: stopped, and if need be
    killed, at the end.

    *reach*: the options that permit that. *program* are Python's own arguments, for a program that
    runs webhookd with faults in it.
    """

    def __init__(
        self,
        dsn: str,
        *arguments: str,
        workers: int = 3,
        program: Sequence[str] = ("-m", "webhookd"),
        reach: Sequence[str] = LOOPBACK,
    ) -> None:
        self._log = tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed in __exit__)
            "w+", prefix="webhookd-", suffix=".log"
        )
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WEBHOOKD_", "DATABASE_URL"))
        }
        options = (
            "--dsn",
            dsn,
            "--workers",
            str(workers),
            "--metrics-port",
            "0",
            *reach,
            *arguments,
        )
        self.process = subprocess.Popen(
            [sys.executable, *program, *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

    def log(self) -> str:
        """Return everything the processes have printed."""
        return Path(self._log.name).read_text()

    def workers(self) -> list[int]:
        """Return the process ids of the living workers."""
        return [
            pid
            for pid, parent, state in _processes()
            if parent == self.process.pid and state != "Z"
        ]

    def metrics_ports(self) -> list[int]:
        """Return the metrics ports in the order in which they were bound."""
        return [int(port) for port in dict.fromkeys(_STARTED.findall(self.log()))]

    def signal(self, number: signal.Signals) -> None:
        """Send *number* to the supervisor."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Return the exit code; fails if the daemon still runs after *timeout_s*."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """Ask for a drain and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            sys.stderr.write(self.log())
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self._log.close()


def alive(pid: int) -> bool:
    """Return whether process *pid* runs (a zombie does not)."""
    return any(found == pid and state != "Z" for found, _, state in _processes())


def _processes() -> Iterator[tuple[int, int, str]]:
    """Yield the id, the parent's id and the state of every process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            yield int(path.parent.name), int(parent), state


def answer_ok(peer: Peer) -> None:
    """A receiver that answers every request with 200."""
    while peer.read_request() is not None:
        peer.send(OK)


def headers_of(request: bytes) -> dict[str, str]:
    """Return the headers of a recorded request, names in lower case."""
    head = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head)
    }


def arrivals(receiver: Receiver) -> Counter[int]:
    """Return how often each delivery (by id) arrived."""
    return Counter(
        int(headers_of(request)["webhook-id"].rpartition("_")[2])
        for request in list(receiver.requests)
    )


def register(database: Database, receiver: Receiver, *, count: int = 50, first: int = 2000) -> None:
    """Register *count* webhooks from id *first* on, all at *receiver*, without a rate limit."""
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second)"
        f" SELECT {first} + i, '{receiver.url()}/' || i, 0 FROM generate_series(0, {count - 1}) i"
    )


def wait_until_ready(database: Database, *, workers: int = 3) -> None:
    """Wait until so many workers have looked at the queue and sleep."""
    ready = "SELECT count(*)::int FROM pggit.workers WHERE has_room"
    eventually(lambda: database.execute(ready) == [(workers,)], what=f"{workers} workers ready")


def insert(database: Database, deliveries: int, *, webhooks: int = 50, first: int = 2000) -> None:
    """Insert *deliveries* rows, spread evenly, in one statement."""
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
        f" SELECT {first} + i % {webhooks}, jsonb_build_object('n', i) FROM generate_series(1, "
        f"{deliveries}) i"
    )


def refused(daemon: Daemon) -> int:
    """Return how many results the fence refused: their deliveries may have been sent twice."""
    return sum(map(int, re.findall(r"refused by the fence.* results=(\d+)", daemon.log())))


def statuses(database: Database) -> dict[str, int]:
    """Return how many rows there are in each delivery_status."""
    return dict(
        database.execute(
            "SELECT delivery_status, count(*)::int FROM pggit.alert_delivery_queue GROUP BY 1"
        )
    )


def wait_until_delivered(database: Database, deliveries: int, *, timeout_s: float = 60.0) -> None:
    """Wait until all *deliveries* rows are delivered."""
    eventually(
        lambda: statuses(database) == {"delivered": deliveries},
        timeout_s,
        what=f"{deliveries} delivered",
    )
