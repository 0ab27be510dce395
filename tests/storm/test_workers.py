"""Workers die, hang and stall at every step of a delivery."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.storm.sink import Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, refused, wait_until_ready
from tests.support.waiting import eventually

pytestmark = pytest.mark.storm

FAILING = str(Path(__file__).with_name("failing_webhookd.py"))
# Deliveries of lost leases are tried again at once, so a few deaths may cost a delivery the three
# leases after which it is tried alone.
SURVIVES = "timeout_seconds = 5"


def leases_of(storm: Storm, pid: int) -> int:
    """Return how many deliveries worker *pid* has claimed."""
    rows = storm.database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue q"
        " JOIN pggit.workers w ON q.leased_by = w.incarnation"
        " WHERE q.delivery_status = 'sending' AND w.pid = %s",
        [pid],
    )
    found: int = rows[0][0]
    return found


def kill_a_worker(storm: Storm, daemon: Daemon) -> None:
    """Kill one. Measure until its leases are released and something else was delivered."""
    before = storm.finished()
    workers = daemon.workers()
    if not workers:
        return
    victim = storm.random.choice(workers)
    os.kill(victim, signal.SIGKILL)
    storm.inject("worker killed", kills=1)
    with storm.recovering():
        eventually(
            lambda: (
                leases_of(storm, victim) == 0
                and (storm.finished() > before or storm.unfinished() == 0)
            )
        )


def test_killed_at_random_moments(storm: Storm) -> None:
    with Sink() as sink:
        storm.register(sink, settings=SURVIVES)
        for _ in range(3):  # a new supervisor replaces its first dead workers without a pause
            with Daemon(storm.database.dsn, workers=6) as daemon:
                wait_until_ready(storm.database, workers=6)
                storm.insert(8000)
                while storm.unfinished() > 500:
                    kill_a_worker(storm, daemon)
                    time.sleep(storm.random.uniform(0, 0.3))
                storm.settle()
                assert daemon.stop() == 0
        storm.account(sink)


@pytest.mark.parametrize(
    ("step", "probability"),
    [
        ("claim_uncommitted", 0.2),
        ("claimed", 0.2),
        ("claim_answer_lost", 0.2),
        ("sent", 0.01),
        ("record_uncommitted", 0.2),
        ("recorded", 0.2),
        ("record_answer_lost", 0.2),
    ],
)
def test_dying_at(storm: Storm, step: str, probability: float) -> None:
    kills = not step.endswith("_answer_lost")
    with (
        Sink() as sink,
        Daemon(
            storm.database.dsn, program=[FAILING, step, str(probability), "20"], workers=6
        ) as daemon,
    ):
        storm.register(sink, settings=SURVIVES)
        deaths = 0
        while deaths < 20:
            storm.insert(1000)
            storm.settle()
            deaths = daemon.log().count(f"failpoint {step}")
        storm.inject(f"died {step}" if kills else step, deaths, kills=deaths if kills else 0)
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))
        # Returned at once: no lease expired, nothing was sent twice.
        if step == "claim_answer_lost":
            assert storm.database.execute(
                "SELECT sum(leases_lost)::int FROM pggit.alert_delivery_queue"
            ) == [(0,)]
            assert set(sink.arrivals.values()) == {1}


def test_stopped_past_the_lease(storm: Storm) -> None:
    def slow(webhook_id: int, nth: int) -> bytes:
        time.sleep(0.5)
        return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    with Sink(slow) as sink, Daemon(storm.database.dsn, "--heartbeat-timeout", "300") as daemon:
        storm.register(sink, settings="timeout_seconds = 1, max_in_flight = 1000")
        wait_until_ready(storm.database)
        storm.insert(3000)
        eventually(lambda: storm.finished() > 100)
        victim = storm.random.choice(daemon.workers())
        os.kill(victim, signal.SIGSTOP)
        storm.inject("worker stopped past its leases")
        held = leases_of(storm, victim)
        with storm.recovering():  # the lease: the timeout and 30 s
            eventually(lambda: leases_of(storm, victim) == 0, 60.0)
        os.kill(victim, signal.SIGCONT)
        storm.settle()
        assert held > 0
        eventually(lambda: refused(daemon) > 0, what="the fence refuses the late record")
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))
