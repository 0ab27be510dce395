"""Forty slow receivers and sixty silent names, all with backlogs, 100,000 rows for ids that do not
exist and a killed worker: a fast webhook's deliveries arrive as if it were alone.
"""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import pytest

from tests.storm.sink import Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, refused, wait_until_ready
from tests.support.name_server import PROGRAM, name_server
from tests.support.neighbours import (
    UNREGISTERED,
    Fast,
    Slow,
    insert_unregistered,
    latencies,
    register,
    silent_host,
    trickle,
    trouble_of,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(400)]

VICTIM, SLOW, SILENT = 1, range(1000, 1040), range(2000, 2060)
PAUSE_S = 4.8  # just within the default --timeout
A_SECOND = 8.0  # within the default rate limit of 10
LINGER_S = 5.0
# Two noisy cores run workers, PostgreSQL and the receivers' threads. A row passes some six of their
# hands, each of which may wait for a time slice of 4 ms: that is no neighbour's fault.
P50_TIMES, P50_SLACK_S = 2.0, 0.025
# The machine itself stands still for more than a second now and then (a checkpoint, another
# guest). That hits a few neighbouring rows once. A shortage of slots would hit most of them.
MAX_S, LATE_SHARE, STALL_S = 1.0, 0.02, 2.5
# A worker's death delays what it was sending until its leases are released.
MAX_AFTER_KILL_S = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One phase: the latencies of the victim's deliveries in seconds, sorted."""

    phase: str
    latencies_s: Sequence[float]

    def text(self) -> str:
        values = self.latencies_s
        p99 = values[int(0.99 * len(values))]
        return (
            f"{self.phase}: {len(values)} deliveries, p50 {median(values) * 1000:.0f} ms, "
            f"p99 {p99 * 1000:.0f} ms, max {values[-1] * 1000:.0f} ms"
        )

    def late(self) -> int:
        return sum(value > MAX_S for value in self.latencies_s)

    def as_before(self, alone: "Seen") -> bool:
        """Return whether the contract holds, as far as two noisy cores can tell."""
        before = median(alone.latencies_s)
        return (
            median(self.latencies_s) <= max(P50_TIMES * before, before + P50_SLACK_S)
            and self.late() <= LATE_SHARE * len(self.latencies_s)
            and self.latencies_s[-1] <= STALL_S
        )


def watch(storm: Storm, fast: Fast, phase: str, *, seconds: float) -> Seen:
    """Let deliveries trickle in for *seconds*, wait for the last ones, and return what came."""
    committed = trickle(storm.database, VICTIM, count=int(seconds * A_SECOND), a_second=A_SECOND)
    storm.inserted(len(committed))
    deadline = time.monotonic() + LINGER_S
    while committed.keys() - fast.arrived_at.keys() and time.monotonic() < deadline:
        time.sleep(0.05)
    return Seen(phase, latencies(fast, committed))


def waiting(storm: Storm, webhooks: range) -> int:
    """Return how many deliveries of *webhooks* nobody has claimed."""
    found: int = storm.database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue"
        " WHERE delivery_status IN ('pending', 'retrying') AND webhook_id BETWEEN %s AND %s",
        [webhooks[0], webhooks[-1]],
    )[0][0]
    return found


def finish(storm: Storm, fast: Fast) -> None:
    """Register one of the unregistered ids, delete the rows of the others, and lift what delays the
    neighbours.
    """
    storm.database.execute(
        "DELETE FROM pggit.alert_delivery_queue WHERE webhook_id > %s", [UNREGISTERED]
    )
    register(storm.database, fast, first=UNREGISTERED)
    storm.inserted(
        storm.database.execute(
            "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE webhook_id = %s",
            [UNREGISTERED],
        )[0][0]
    )
    storm.database.execute(
        "UPDATE pggit.webhooks SET rate_limit_per_second = 0;"
        "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy',"
        " consecutive_failures = 0 WHERE circuit_state <> 'closed';"
        "UPDATE pggit.alert_delivery_queue SET next_retry_at = now()"
        " WHERE delivery_status = 'retrying'"
    )


def test_a_fast_webhook_does_not_notice_its_neighbours(
    storm: Storm, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        fast, slow = stack.enter_context(Fast()), stack.enter_context(Slow(PAUSE_S))
        healing = stack.enter_context(Sink())
        names = stack.enter_context(name_server())
        daemon = stack.enter_context(Daemon(storm.database.dsn, program=list(PROGRAM)))
        wait_until_ready(storm.database)
        register(storm.database, fast, first=VICTIM, host="'victim.fast.test'")
        watch(storm, fast, "warm-up", seconds=2.0)
        alone = watch(storm, fast, "alone", seconds=20.0)

        register(storm.database, slow, first=SLOW[0], count=len(SLOW))
        register(storm.database, healing, first=SILENT[0], count=len(SILENT), host=silent_host())
        # Deep enough for the storm; and a lane never gets more than 10 a second.
        for webhooks, each in ((SLOW, 400), (SILENT, 50)):
            storm.insert(
                each * len(webhooks), webhooks=len(webhooks), first=webhooks[0], max_retries=1000
            )
        storm.inject("slow receiver", len(SLOW))
        storm.inject("name without an answer", len(SILENT))
        eventually(lambda: slow.arrivals.total() > len(SLOW), 60.0, what="slow exchanges")
        eventually(lambda: len(names.questions) > 1, 60.0, what="lookups without an answer")
        seen = [watch(storm, fast, "100 neighbours", seconds=20.0)]

        insert_unregistered(storm.database, 100_000)
        storm.inject("100,000 rows for ids that do not exist")
        seen.append(watch(storm, fast, "and unregistered ids", seconds=15.0))

        os.kill(storm.random.choice(daemon.workers()), signal.SIGKILL)
        storm.inject("worker killed", kills=1)
        after = watch(storm, fast, "and a killed worker", seconds=15.0)
        with capsys.disabled():
            print("", *(phase.text() for phase in (alone, *seen, after)), sep="\n")

        assert waiting(storm, SLOW) > 0 and waiting(storm, SILENT) > 0, "all had backlogs"
        assert [phase.text() for phase in seen if not phase.as_before(alone)] == [], alone.text()
        assert after.latencies_s[-1] <= MAX_AFTER_KILL_S, after.text()
        assert trouble_of(storm.database, VICTIM) == (False, 0)

        # The names' pauses end with the worker that knows them.
        slow.hurry()
        names.heal()
        assert daemon.stop() == 0
        finish(storm, fast)
        with Daemon(storm.database.dsn, program=list(PROGRAM)) as successor:
            with storm.recovering():
                storm.settle(timeout_s=120.0)
            assert successor.stop() == 0
            storm.account(fast, slow, healing, refused=refused(daemon) + refused(successor))
