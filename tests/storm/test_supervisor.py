"""The supervisor dies, its workers fail to boot or fall ill, and signals come while thousands of
deliveries are under way.
"""

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.storm.sink import Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, refused, wait_until_ready
from tests.support.postgres import Server
from tests.support.receivers import OK
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(400)]

SICK = str(Path(__file__).with_name("sick_webhookd.py"))
LEASED = "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE delivery_status = 'sending'"
LONG_LEASES = "timeout_seconds = 60"  # 90 s, so a test that is faster has not waited for them
SHORT_LEASES = "timeout_seconds = 1"  # 31 s


def answer_after(pause_s: float) -> Callable[[int, int], bytes]:
    def answer(webhook_id: int, nth: int) -> bytes:
        time.sleep(pause_s)
        return OK

    return answer


def free_ports(count: int) -> int:
    """Return the first of *count* free ports in a row."""
    for first in range(21000, 32000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
            return first
    raise AssertionError("no free ports")


def members(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, pgrp = path.read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def wait_until_gone(group: int) -> None:
    eventually(lambda: not members(group), 60.0, what="the orphans have left")


def wait_for_arrivals(sink: Sink, more: int) -> None:
    came = sink.arrivals.total()
    eventually(lambda: sink.arrivals.total() >= came + more, 90.0, what="more arrive")


def arrived_once(sink: Sink) -> bool:
    return set(sink.arrivals.values()) == {1}


class Restarted:
    """One webhookd after another on the same ports. `current` is the last one; `refused` counts
    over all of them.
    """

    def __init__(self, storm: Storm, *options: str) -> None:
        self._dsn = storm.database.dsn
        self._options = ("--metrics-port", str(free_ports(3)), *options)
        self._all: list[Daemon] = []
        self.start()

    @property
    def current(self) -> Daemon:
        return self._all[-1]

    def start(self) -> None:
        self._all.append(Daemon(self._dsn, *self._options))

    def works(self) -> bool:
        """Return whether all of its workers are ready. Fails if it has ended, for example because a
        port is taken.
        """
        assert self.current.process.poll() is None, self.current.log()
        return self.current.log().count("worker ready") >= 3

    def refused(self) -> int:
        return sum(map(refused, self._all))

    def close(self) -> None:
        for daemon in self._all:
            with suppress(ProcessLookupError):  # the living and orphans
                os.killpg(daemon.process.pid, signal.SIGKILL)
            daemon.__exit__(None, None, None)


@contextmanager
def restarted(storm: Storm, *options: str) -> Iterator[Restarted]:
    daemons = Restarted(storm, *options)
    try:
        yield daemons
    finally:
        daemons.close()


def test_supervisor_killed(storm: Storm) -> None:
    with Sink(answer_after(0.02)) as sink, restarted(storm) as daemons:
        storm.register(sink, settings=LONG_LEASES)
        for number in range(20):
            storm.insert(500)
            if number % 2:  # while the workers boot
                time.sleep(storm.random.uniform(0.3, 1.5))
            else:
                eventually(daemons.works, 60.0)
                time.sleep(storm.random.uniform(0.0, 0.5))
            group = daemons.current.process.pid
            daemons.current.signal(signal.SIGKILL)
            storm.inject("supervisor killed", kills=1)
            daemons.current.wait()
            daemons.start()  # on the ports that the orphans had
            with storm.recovering():
                wait_until_gone(group)
        with storm.recovering():
            eventually(daemons.works, 60.0)
        storm.settle()
        assert daemons.current.stop() == 0
        storm.account(sink, refused=daemons.refused())
        assert arrived_once(sink), "orphans finish what they have started"


def test_supervisor_killed_while_postgresql_is_away(
    server_storm: Storm, private_server: Server
) -> None:
    """Workers that wait for a database, at their start or with outstanding deliveries, end when the
    supervisor has died.
    """
    storm = server_storm
    with Sink(answer_after(0.02)) as sink, restarted(storm, "--drain-timeout", "2") as daemons:
        storm.register(sink, settings=SHORT_LEASES)
        storm.insert(2000)
        eventually(lambda: sink.arrivals.total() > 300)
        private_server.halt()  # if it were killed, it would forget an unknown number of claims
        storm.inject("PostgreSQL stopped")
        for _ in range(2):  # the first with outstanding deliveries, the second at its start
            group = daemons.current.process.pid
            eventually(lambda: "database unreachable" in daemons.current.log(), 60.0)
            daemons.current.signal(signal.SIGKILL)
            storm.inject("supervisor killed", kills=1)
            daemons.current.wait()
            with storm.recovering():
                wait_until_gone(group)
            daemons.start()
        private_server.restart()
        storm.settle()
        assert daemons.current.stop() == 0
        storm.account(sink, refused=daemons.refused())


def test_everything_killed_at_once(storm: Storm) -> None:
    with Sink(answer_after(0.02)) as sink, restarted(storm) as daemons:
        storm.register(sink, settings=SHORT_LEASES)
        for _ in range(12):
            storm.insert(400)
            wait_for_arrivals(sink, 1)
            time.sleep(storm.random.uniform(0.0, 0.5))
            os.killpg(daemons.current.process.pid, signal.SIGKILL)
            storm.inject("supervisor and 3 workers killed", kills=4)
            daemons.current.wait()
            daemons.start()
        with storm.recovering():  # no supervisor saw the deaths: the leases must expire
            storm.settle()
        assert daemons.current.stop() == 0
        storm.account(sink, refused=daemons.refused())


def test_a_worker_that_cannot_boot(storm: Storm) -> None:
    with Sink() as sink, Daemon(storm.database.dsn, program=[SICK, "boot", "1", "1000"]) as daemon:
        storm.register(sink)
        wait_until_ready(storm.database, workers=2)
        pauses: list[float] = []
        while len(pauses) < 6:
            storm.insert(500)
            storm.settle()  # by its siblings
            pauses = [float(found) for found in re.findall(r"restart_in_s=([0-9.]+)", daemon.log())]
        storm.inject("worker killed at its start", len(pauses), kills=len(pauses))
        assert pauses[0] == 0
        assert all(
            pause >= 0.5 * 2 ** (number - 1) / 2 for number, pause in enumerate(pauses) if number
        ), pauses
        assert daemon.stop() == 0
        storm.account(sink)
        assert arrived_once(sink)


def reload(storm: Storm, daemon: Daemon) -> None:
    """Replace all workers."""
    before = set(daemon.workers())
    daemon.signal(signal.SIGHUP)
    storm.inject("HUP")
    if storm.random.random() < 0.5:  # before the first reload has ended
        time.sleep(storm.random.uniform(0.0, 1.0))
        daemon.signal(signal.SIGHUP)
        storm.inject("HUP")
    eventually(lambda: len(set(daemon.workers()) - before) == 3, 60.0)


def resize(storm: Storm, daemon: Daemon) -> None:
    """Add some workers and remove as many, some before they have started."""
    steps = storm.random.randint(1, 3)
    for number in (signal.SIGTTIN, signal.SIGTTOU):
        for _ in range(steps):
            daemon.signal(number)
            storm.inject(number.name.removeprefix("SIG"))
            # Two pending signals of a kind would be one.
            time.sleep(storm.random.uniform(0.05, 1.0))
    eventually(lambda: len(daemon.workers()) == 3, 60.0)


def recycle(storm: Storm, daemon: Daemon) -> None:
    """Wait until some worker has passed its limit."""
    seen = daemon.log().count("has passed its limit")
    eventually(
        lambda: daemon.log().count("has passed its limit") > seen or storm.unfinished() == 0, 60.0
    )
    storm.inject("worker recycled", daemon.log().count("has passed its limit") - seen)


@pytest.mark.parametrize(
    ("order", "options"),
    [(reload, ()), (resize, ()), (recycle, ("--worker-max-deliveries", "200"))],
)
def test_without_a_crash(
    storm: Storm, order: Callable[[Storm, Daemon], None], options: tuple[str, ...]
) -> None:
    """Nothing fails, nothing is sent twice, nothing is mistaken for a crash."""
    with Sink(answer_after(0.01)) as sink, Daemon(storm.database.dsn, *options) as daemon:
        storm.register(sink, settings=LONG_LEASES)
        wait_until_ready(storm.database)
        for _ in range(6):
            storm.insert(1500)
            order(storm, daemon)
        storm.settle()
        assert daemon.stop() == 0
        storm.account(sink)
        assert arrived_once(sink)
        assert storm.database.execute(
            "SELECT sum(attempts)::int, max(retry_count) FROM pggit.alert_delivery_queue"
        ) == [(9000, 0)]
        assert "restart_in_s" not in daemon.log()


def test_drain_deadline_passed(storm: Storm) -> None:
    with Sink(answer_after(3.0)) as sink, restarted(storm, "--drain-timeout", "1") as daemons:
        storm.register(sink, settings=LONG_LEASES)
        for _ in range(3):
            storm.insert(100)
            wait_for_arrivals(sink, 20)
            with storm.recovering():
                assert daemons.current.stop() == 0
                assert storm.database.execute(LEASED) == [(0,)], "released at once"
            storm.inject("drain deadline passed")
            daemons.start()
        storm.settle(timeout_s=120.0)
        assert storm.database.execute(
            "SELECT sum(leases_lost) > 0 FROM pggit.alert_delivery_queue"
        ) == [(True,)]
        storm.account(sink, refused=daemons.refused())


def test_stopped_while_postgresql_is_away(server_storm: Storm, private_server: Server) -> None:
    storm = server_storm
    with Sink(answer_after(0.02)) as sink, restarted(storm, "--drain-timeout", "2") as daemons:
        storm.register(sink, settings=SHORT_LEASES)
        for _ in range(3):
            storm.insert(500)
            wait_for_arrivals(sink, 50)
            private_server.halt()
            daemons.current.signal(signal.SIGTERM)
            storm.inject("PostgreSQL stopped, then TERM")
            assert daemons.current.wait() == 0, "workers ended without a kill"
            private_server.restart()
            daemons.start()
        with storm.recovering():  # what was not recorded is sent again when its lease expires
            storm.settle()
        assert daemons.current.stop() == 0
        storm.account(sink, refused=daemons.refused())


@pytest.mark.parametrize(
    ("illness", "probability"),
    [("dispatcher", 0.1), ("exchange", 0.005), ("sender", 0.005), ("recorder", 0.05)],
)
def test_falling_ill(storm: Storm, illness: str, probability: float) -> None:
    program = [SICK, illness, str(probability), "8"]
    with (
        Sink(answer_after(0.01)) as sink,
        Daemon(storm.database.dsn, "--heartbeat-timeout", "3", program=program) as daemon,
    ):
        storm.register(sink, settings=LONG_LEASES)
        wait_until_ready(storm.database)
        seen = 0
        while seen < 8:
            storm.insert(500)
            with storm.recovering():  # a dispatcher's illness costs the heartbeat timeout
                storm.settle(timeout_s=80.0)
            seen = daemon.log().count("fell ill")
        storm.inject(f"{illness} fell ill", seen)
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))
