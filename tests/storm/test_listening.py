"""Connections to PostgreSQL fall silent without being closed, as behind a firewall that has lost
them, or lead through a pooler.
"""

import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.storm.sink import Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, refused, wait_until_ready
from tests.support.pgbouncer import pgbouncer, through
from tests.support.postgres import Database
from tests.support.receivers import OK
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(400)]

# The range for tests of network devices (RFC 2544), which is used nowhere else.
OUTSIDE, WORK, LISTEN = "198.18.77.1", "198.18.77.2", "198.18.77.3"


class Network:
    """A network namespace in which programs can run, and whose addresses can be made silent. Needs
    root.
    """

    def __init__(self, stack: ExitStack) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("NO NETWORK NAMESPACE: needs root and Debian's iproute2")
        self.name = f"storm{os.getpid()}"
        if subprocess.run(["ip", "netns", "add", self.name], check=False).returncode != 0:
            pytest.skip("NO NETWORK NAMESPACE: this machine does not allow one")
        stack.callback(_ip, "netns", "del", self.name)
        ends = f"a{os.getpid()}", f"b{os.getpid()}"
        made = subprocess.run(
            [
                "ip",
                "link",
                "add",
                ends[0],
                "type",
                "veth",
                "peer",
                "name",
                ends[1],
                "netns",
                self.name,
            ],
            check=False,
        )
        if made.returncode != 0:
            pytest.skip("NO VETH: this kernel does not have it")
        # The link is removed at once; a namespace lives on while a process is in it.
        stack.callback(_ip, "link", "del", ends[0])
        _ip("addr", "add", f"{OUTSIDE}/29", "dev", ends[0])
        _ip("link", "set", ends[0], "up")
        for address in (WORK, LISTEN):
            _ip("-n", self.name, "addr", "add", f"{address}/29", "dev", ends[1])
        _ip("-n", self.name, "link", "set", ends[1], "up")

    @contextmanager
    def pgbouncer(self, database: Database, mode: str) -> Iterator[None]:
        """A pgbouncer on all addresses of the network."""
        with pgbouncer(
            database, mode, inside=("ip", "netns", "exec", self.name), addresses="0.0.0.0"
        ):
            yield

    @contextmanager
    def silent(self, address: str) -> Iterator[None]:
        """Let *address* drop all that it sends, even answers to the end of a connection."""
        _ip("-n", self.name, "rule", "add", "from", address, "blackhole")
        try:
            yield
        finally:
            _ip("-n", self.name, "rule", "del", "from", address, "blackhole")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack)


def listeners(daemon: Daemon) -> list[int]:
    """Return the state of each worker's LISTEN connection: 1 while it works."""
    found = []
    for port in daemon.metrics_ports():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            found += re.findall(
                r"^webhookd_listener_connected\S* ([01])", answer.read().decode(), re.MULTILINE
            )
    return [int(value) for value in found]


def latency_s(storm: Storm, sink: Sink) -> float:
    """Return how long a single row takes from its insert to the receiver."""
    came, began = sink.arrivals.total(), time.monotonic()
    storm.insert(1)
    eventually(lambda: sink.arrivals.total() > came, 60.0, every_s=0.001)
    return time.monotonic() - began


def best_latency_s(storm: Storm, sink: Sink) -> float:
    """Return the best of five. A busy machine delays single ones; a worker without notifications
    looks every 2 s only.
    """
    return min(latency_s(storm, sink) for _ in range(5))


def test_listen_falls_silent(storm: Storm, network: Network) -> None:
    with network.pgbouncer(storm.database, "session"), Sink() as sink:
        options = ("--listen-dsn", through(storm.database, LISTEN))
        with Daemon(through(storm.database, WORK), *options) as daemon:
            storm.register(sink)
            wait_until_ready(storm.database)
            eventually(lambda: listeners(daemon) == [1, 1, 1])
            latency_s(storm, sink)  # once: after a burst the worker on duty polls by itself
            with network.silent(LISTEN):
                storm.inject("LISTEN silent", 3)
                storm.insert(1000)
                with storm.recovering():  # 30 s at most: no worker is notified
                    storm.settle()
                eventually(
                    lambda: listeners(daemon) == [0, 0, 0], 90.0, what="the silence is noticed"
                )
                # Workers look every 2 s, except while they try to connect, which takes 10 s.
                with storm.recovering():
                    storm.insert(1000)
                    storm.settle(timeout_s=25.0)
            eventually(lambda: listeners(daemon) == [1, 1, 1], 90.0, what="listening again")
            assert best_latency_s(storm, sink) < 0.5
            storm.settle()
            assert daemon.stop() == 0
            storm.account(sink)
            assert set(sink.arrivals.values()) == {1}


def test_every_connection_falls_silent(storm: Storm, network: Network) -> None:
    def slowly(webhook_id: int, nth: int) -> bytes:
        time.sleep(0.02)
        return OK

    with (
        network.pgbouncer(storm.database, "session"),
        Sink(slowly) as sink,
        Daemon(through(storm.database, WORK)) as daemon,
    ):
        storm.register(sink, settings="timeout_seconds = 5")
        wait_until_ready(storm.database)
        workers = daemon.workers()
        storm.insert(5000)
        eventually(lambda: sink.arrivals.total() > 200)
        with network.silent(WORK):
            storm.inject("connections silent", 9)
            eventually(
                lambda: daemon.log().count("database unreachable") >= 3,
                120.0,
                what="the silence is noticed",
            )
        before = storm.finished()
        with storm.recovering():
            eventually(lambda: storm.finished() > before, 60.0)
        storm.settle(timeout_s=120.0)
        assert daemon.workers() == workers
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))


def test_a_transaction_pooler(storm: Storm) -> None:
    with pgbouncer(storm.database, "transaction") as folder, Sink() as sink:
        storm.register(sink)
        with Daemon(through(storm.database, folder)) as daemon:
            eventually(
                lambda: daemon.log().count("LISTEN is deaf") == 3,
                60.0,
                what="logged by each worker",
            )
            assert listeners(daemon) == [0, 0, 0]
            storm.inject("LISTEN through a transaction pooler", 3)
            for _ in range(3):
                storm.insert(1000)
                with storm.recovering():
                    storm.settle()
            assert daemon.log().count("LISTEN is deaf") == 3
            assert daemon.stop() == 0
        with Daemon(through(storm.database, folder), "--listen-dsn", storm.database.dsn) as daemon:
            wait_until_ready(storm.database)
            eventually(lambda: listeners(daemon) == [1, 1, 1])
            assert best_latency_s(storm, sink) < 0.5
            storm.settle()
            assert "deaf" not in daemon.log()
            assert daemon.stop() == 0
        storm.account(sink)
        assert set(sink.arrivals.values()) == {1}
