"""Processes die in the middle of a run: nothing is lost, and what is repeated was in flight."""

import os
import random
import re
import signal

from tests.acceptance.daemon import (
    Daemon,
    alive,
    answer_ok,
    arrivals,
    insert,
    register,
    statuses,
    wait_until_delivered,
    wait_until_ready,
)
from tests.postgres import Database, Server
from tests.receivers import Receiver
from tests.waiting import eventually

DELIVERIES = 4000


def delivered(database: Database) -> int:
    return statuses(database).get("delivered", 0)


def assert_all_arrived(receiver: Receiver, *, repeated_at_most: int) -> None:
    counts = arrivals(receiver)
    assert len(counts) == DELIVERIES
    assert sum(counts.values()) - DELIVERIES <= repeated_at_most


def test_killing_workers_loses_nothing_and_repeats_at_most_what_was_in_flight(database: Database) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        insert(database, DELIVERIES)
        for quarter in range(1, 4):
            eventually(lambda quarter=quarter: delivered(database) >= DELIVERIES * quarter // 5)  # type: ignore[misc]
            if workers := daemon.workers():
                os.kill(random.choice(workers), signal.SIGKILL)
        # Far below a lease's 35 s: the supervisor saw the deaths, so a sibling released the leases at once.
        wait_until_delivered(database, DELIVERIES, timeout_s=30.0)
        lost = database.execute("SELECT sum(leases_lost)::int FROM pggit.alert_delivery_queue")[0][0]
        assert_all_arrived(receiver, repeated_at_most=lost)
        assert daemon.stop() == 0
        assert database.execute("SELECT count(*)::int FROM pggit.workers") == [(0,)]


def test_killing_the_supervisor_leaves_no_orphan_and_the_next_start_takes_over(database: Database) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        workers = daemon.workers()
        insert(database, DELIVERIES)
        eventually(lambda: delivered(database) >= DELIVERIES // 10)
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        eventually(lambda: not any(alive(pid) for pid in workers), what="workers gone")
        assert "sending" not in statuses(database)
        with Daemon(database.dsn) as successor:
            wait_until_delivered(database, DELIVERIES)
            assert_all_arrived(receiver, repeated_at_most=0)
            assert successor.stop() == 0


def test_killing_postgresql_loses_nothing_and_repeats_at_most_what_was_in_flight(private_server: Server) -> None:
    database = private_server.create_migrated()
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        workers = set(daemon.workers())
        insert(database, DELIVERIES)
        eventually(lambda: delivered(database) >= DELIVERIES // 5)
        private_server.kill()
        private_server.restart()
        wait_until_delivered(database, DELIVERIES, timeout_s=90.0)
        lost = database.execute("SELECT sum(leases_lost)::int FROM pggit.alert_delivery_queue")[0][0]
        # Claims commit without waiting for the disk, so the crash undid the last of them: their results meet the fence.
        refused = sum(map(int, re.findall(r"refused by the fence.* results=(\d+)", daemon.log())))
        logged = database.execute("SELECT count(*)::int FROM pggit.alert_delivery_log")[0][0]
        assert_all_arrived(receiver, repeated_at_most=lost + refused + (logged - DELIVERIES))
        assert set(daemon.workers()) == workers, "a database that is away must not cost a worker"
        assert daemon.stop() == 0


def test_draining_finishes_what_is_in_flight_and_gives_back_the_rest(database: Database) -> None:
    with Receiver(answer_ok) as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        insert(database, DELIVERIES)
        eventually(lambda: delivered(database) >= DELIVERIES // 10)
        assert daemon.stop() == 0
        after = statuses(database)
        assert "sending" not in after
        assert set(arrivals(receiver).values()) == {1}
        assert len(receiver.requests) == after["delivered"]
        assert database.execute("SELECT last_value::int FROM pggit.wake_flag") == [(1,)], "nobody to wake, so no NOTIFY"

