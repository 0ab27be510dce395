"""One round: a system drains a known number of deliveries into a sink, and each of them is checked
to have arrived.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench import processes
from bench.deliveries import Connection
from bench.postgres import Postgres
from bench.processes import Meter
from bench.sink import Counts, Sink, await_requests
from bench.systems import System
from webhookd.errors import WebhookdError

T = TypeVar("T")

WITHIN_S = 120.0
SETTLE_S = 0.5
POLL_S = 0.01  # of the sink's counter; precise to 1 % of a second, costs some 2 % of a core


@dataclass(frozen=True, slots=True)
class Round:
    """*queue*, *postgres*, *sink* and *other* are CPU milliseconds a delivery, which is CPU seconds
    per 1,000.
    """

    deliveries: int
    seconds: float
    queue: float
    postgres: float
    sink: float
    other: float  # the rest of the machine, as a share of one core
    pss_mb: Sequence[float]  # of each process of the queue, the first the root
    connections: int

    @property
    def rate(self) -> float:
        return self.deliveries / self.seconds

    @property
    def total(self) -> float:
        return self.queue + self.postgres + self.sink


def drain(system: System, postgres: Postgres, sink: Sink, count: int) -> Round:
    """Commit *count* deliveries to *system*, which is idle and warm, and wait until the last one is
    complete.

    The time is counted from the first request at the sink, CPU from the commit. Raise
    `WebhookdError` unless exactly as many requests arrived as deliveries were inserted, and all are
    complete.
    """
    postgres.checkpoint()
    before = sink.counts()
    warm = max(20, count // 20)
    with system.running(postgres, sink) as pids, postgres.connect(system.database) as connection:
        system.insert(connection, first=0, count=warm)
        await_complete(system, connection, sink, before.requests + warm)
        time.sleep(SETTLE_S)
        meter = Meter({"queue": pids, "postgres": [postgres.pid], "sink": [sink.pid]})
        with connection.transaction():
            system.insert(connection, first=warm, count=count)
            meter.start()
        began = await_requests(sink, before.requests + warm + 1, timeout_s=WITHIN_S, every_s=0.001)
        ended = await_complete(system, connection, sink, before.requests + warm + count)
        spent, elapsed_s = meter.spent_s(), meter.elapsed_s()
        pss_mb = [processes.pss_bytes(pid) / 1e6 for pid in processes.tree(*pids)]
    after = sink.counts()
    _account(system, postgres, before, after, warm + count)
    return Round(
        deliveries=count,
        seconds=ended - began,
        queue=spent["queue"] / count * 1000,
        postgres=spent["postgres"] / count * 1000,
        sink=spent["sink"] / count * 1000,
        other=spent["other"] / elapsed_s,
        pss_mb=pss_mb,
        connections=after.connections - before.connections,
    )


def alternate(
    systems: Sequence[System], rounds: int, measure: Callable[[System], T]
) -> dict[str, list[T]]:
    """Measure each of *systems* once a round, in the opposite order every other round; return the
    results by name.
    """
    results: dict[str, list[T]] = {system.name: [] for system in systems}
    for number in range(rounds):
        for system in systems if number % 2 == 0 else reversed(systems):
            results[system.name].append(measure(system))
    return results


def await_complete(system: System, connection: Connection, sink: Sink, requests: int) -> float:
    """Block until *sink* has had *requests* and *system* has completed everything; return the
    monotonic instant.

    Raise `TimeoutError` or `WebhookdError` if that takes longer than WITHIN_S.
    """
    await_requests(sink, requests, timeout_s=WITHIN_S, every_s=POLL_S)
    deadline = time.monotonic() + WITHIN_S
    while left := system.incomplete(connection):
        if time.monotonic() > deadline:
            raise WebhookdError(f"{system.name}: {left} deliveries were sent but never completed")
        time.sleep(POLL_S / 2)
    return time.monotonic()


def _account(
    system: System, postgres: Postgres, before: Counts, after: Counts, expected: int
) -> None:
    came = after.requests - before.requests
    with postgres.connect(system.database) as connection:
        left = system.incomplete(connection)
    if came != expected or left:
        raise WebhookdError(
            f"{system.name}: {expected} deliveries, but {came} requests came and {left} are not "
            "complete"
        )
