"""Short storms, which run with all other tests: processes die, and every delivery is accounted
for.
"""

import os
import signal

from tests.storm.sink import Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, alive, refused, statuses, wait_until_ready
from tests.support.postgres import Server
from tests.support.waiting import eventually

DELIVERIES = 4000


def await_finished(storm: Storm, count: int) -> None:
    eventually(lambda: storm.finished() >= count)


def test_workers_killed(storm: Storm) -> None:
    with Sink() as sink, Daemon(storm.database.dsn) as daemon:
        storm.register(sink)
        wait_until_ready(storm.database)
        storm.insert(DELIVERIES)
        for quarter in range(1, 4):
            await_finished(storm, DELIVERIES * quarter // 5)
            if workers := daemon.workers():
                os.kill(storm.random.choice(workers), signal.SIGKILL)
                storm.inject("worker killed", kills=1)
        # Far less than a lease's 35 s: the supervisor saw the deaths, so a sibling released the
        # leases at once.
        storm.settle(timeout_s=30.0)
        assert daemon.stop() == 0
        storm.account(sink)
        assert storm.database.execute("SELECT count(*)::int FROM pggit.workers") == [(0,)]


def test_supervisor_killed(storm: Storm) -> None:
    with Sink() as sink, Daemon(storm.database.dsn) as daemon:
        storm.register(sink)
        wait_until_ready(storm.database)
        workers = daemon.workers()
        storm.insert(DELIVERIES)
        eventually(lambda: storm.finished() >= DELIVERIES // 10)
        daemon.signal(signal.SIGKILL)
        daemon.wait()
        storm.inject("supervisor killed", kills=1)
        eventually(lambda: not any(alive(pid) for pid in workers), what="workers gone")
        assert "sending" not in statuses(storm.database)
        with Daemon(storm.database.dsn) as successor:
            storm.settle()
            assert successor.stop() == 0
        storm.account(sink)
        assert set(sink.arrivals.values()) == {1}


def test_postgresql_killed(server_storm: Storm, private_server: Server) -> None:
    storm = server_storm
    with Sink() as sink, Daemon(storm.database.dsn) as daemon:
        storm.register(sink)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        storm.insert(DELIVERIES)
        eventually(lambda: storm.finished() >= DELIVERIES // 5)
        private_server.kill()
        storm.inject("postmaster killed", kills=1)
        private_server.restart()
        storm.settle()
        assert set(daemon.workers()) == workers, "a database that is away must not cost a worker"
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))


def test_drain(storm: Storm) -> None:
    with Sink() as sink, Daemon(storm.database.dsn) as daemon:
        storm.register(sink)
        wait_until_ready(storm.database)
        storm.insert(DELIVERIES)
        eventually(lambda: storm.finished() >= DELIVERIES // 10)
        assert daemon.stop() == 0
        after = statuses(storm.database)
        assert "sending" not in after
        assert set(sink.arrivals.values()) == {1}
        assert len(sink.arrivals) == after["delivered"]
        assert storm.database.execute("SELECT last_value::int FROM pggit.wake_flag") == [(1,)], (
            "no worker to wake, so no NOTIFY"
        )
