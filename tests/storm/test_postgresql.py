"""PostgreSQL dies, is cut off, full, read-only, out of connections, locked, replaced, or on another
time than the workers.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.storm.postgresql_faults import Proxy, ServiceManager
from tests.storm.sink import Sink
from tests.storm.storm import Account, Storm
from tests.support.daemon import Daemon, alive, refused, wait_until_ready
from tests.support.postgres import Database, Server, running_server
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(400)]

POISONED = str(Path(__file__).with_name("poisoned_webhookd.py"))
# What a lease that nobody gives back costs: this timeout and 30 s.
PATIENT = "timeout_seconds = 3"
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'webhookd/%' AND datname = current_database()"
WATCHDOG_S = 20.0  # twice what it must be for a machine that is busy


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceManager:
    """The service manager that webhookd's watchdog reports to."""
    path = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    return ServiceManager(path)


def recovered(storm: Storm) -> None:
    """Measure how long it takes until something else is delivered; the server may be away still."""
    with storm.recovering():
        before = storm.finished()
        eventually(
            lambda: storm.finished() > before or storm.unfinished() == 0, 60.0, what="work goes on"
        )


def keep_busy(storm: Storm, deliveries: int = 1500) -> None:
    """See to it that there is something to deliver while the next fault happens."""
    if storm.unfinished() < 500:
        storm.insert(deliveries, max_retries=10)


def test_restarted_and_killed(server_storm: Storm, private_server: Server) -> None:
    storm, server = server_storm, private_server

    def kill_backend() -> None:
        if sessions := [row[0] for row in storm.database.execute(SESSIONS)]:
            os.kill(storm.random.choice(sessions), signal.SIGKILL)
            storm.inject("backend killed", kills=1)
            eventually(
                lambda: not any(map(alive, sessions)),
                what="the postmaster has ended the others, too",
            )

    def kill_postmaster() -> None:
        server.kill()
        storm.inject("postmaster killed", kills=1)
        server.restart()

    def shut_down_at_once() -> None:
        assert server.process.pid is not None
        os.kill(server.process.pid, signal.SIGQUIT)
        eventually(lambda: not server.process.alive())
        storm.inject("immediate restart")
        server.restart()

    def shut_down_fast() -> None:
        storm.inject("fast restart")
        server.restart()

    faults: list[Callable[[], None]] = [kill_backend] * 15 + [
        kill_postmaster,
        shut_down_at_once,
        shut_down_fast,
    ] * 4
    storm.random.shuffle(faults)
    with Sink() as sink, Daemon(storm.database.dsn) as daemon:
        storm.register(sink, settings=PATIENT)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        for fault in faults:
            keep_busy(storm)
            time.sleep(storm.random.uniform(0, 0.5))
            fault()
            recovered(storm)
        storm.settle()
        assert set(daemon.workers()) == workers, "a database that is away must not cost a worker"
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))


def test_connections_cut(storm: Storm) -> None:
    with (
        Sink() as sink,
        Proxy(storm.database.dsn, storm.random) as proxy,
        Daemon(proxy.dsn) as daemon,
    ):
        storm.register(sink, settings=PATIENT)
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        for _ in range(40):
            keep_busy(storm)
            if sessions := storm.database.execute(SESSIONS):
                storm.database.execute(
                    "SELECT pg_terminate_backend(%s)", storm.random.choice(sessions)
                )
                storm.inject("session terminated")
            time.sleep(storm.random.uniform(0, 0.1))
        recovered(storm)
        proxy.cut, proxy.lose_commit = 0.005, 0.02
        while min(proxy.happened["cut"], proxy.happened["lose_commit"]) < 40:
            keep_busy(storm)
            time.sleep(0.1)
        proxy.cut = proxy.lose_commit = 0.0
        storm.inject("cut anywhere", proxy.happened["cut"])
        storm.inject("answer to COMMIT lost", proxy.happened["lose_commit"])
        proxy.cut_all()
        recovered(storm)
        storm.settle(timeout_s=150.0)
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))


def test_out_of_connections(server_storm: Storm) -> None:
    storm = server_storm
    with Sink() as sink, Daemon(storm.database.dsn) as daemon, ExitStack() as taken:
        storm.register(sink, settings=PATIENT)
        wait_until_ready(storm.database)
        storm.insert(4000)
        workers = daemon.workers()
        until = time.monotonic() + 6.0
        while time.monotonic() < until:
            try:
                taken.enter_context(storm.database.connect())
            except psycopg.OperationalError:
                if workers:  # its successor finds no connection, and this test takes what it had
                    os.kill(workers.pop(), signal.SIGKILL)
                    storm.inject("worker killed", kills=1)
                time.sleep(0.02)
        storm.inject("out of connections")
        assert not workers
        successors = set(daemon.workers())
        taken.close()
        storm.insert(4000)
        recovered(storm)
        storm.settle()
        assert set(daemon.workers()) == successors
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 500 MB."""
    disk = Path("/run") / f"webhookd-test-{os.getpid()}"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", str(disk)]
    if (
        os.geteuid() != 0
        or subprocess.run(command, check=False, capture_output=True).returncode != 0
    ):
        disk.rmdir()
        pytest.skip("NO SMALL DISK: only root may mount one, and not in every container")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)
    disk.rmdir()


def test_disk_full(small_disk: Path, account: Account, seed: int, manager: ServiceManager) -> None:
    settings = ("max_wal_size=64MB", "min_wal_size=32MB", "wal_recycle=off")
    with running_server(settings=settings, parent=small_disk) as server:
        storm = Storm(account, server.create_migrated(), random.Random(seed))
        with Sink() as sink, Daemon(storm.database.dsn) as daemon:
            storm.register(sink, settings=PATIENT)
            wait_until_ready(storm.database)
            workers = set(daemon.workers())
            ballast = small_disk / "ballast"
            for what in ("tables", "WAL", "tables", "WAL"):
                storm.insert(4000, max_retries=10)
                fill(ballast)
                storm.inject(f"disk full for {what}")
                if what == "WAL":
                    with suppress(
                        psycopg.OperationalError
                    ):  # the next segment finds no room: the server panics
                        storm.database.execute("SELECT pg_switch_wal()")
                eventually(lambda: refuses(storm, ballast), 60.0, what="an INSERT finds no room")
                time.sleep(3.0)
                ballast.unlink()
                if not server.process.alive():  # it ran out of space for its WAL, and gave up
                    storm.inject("server gave up")
                    server.restart()
                recovered(storm)
            storm.settle()
            assert "No space left on device" in server.process.log.read_text()
            assert set(daemon.workers()) == workers
            assert manager.longest_silence_s() < WATCHDOG_S
            assert daemon.stop() == 0
            storm.account(sink, refused=refused(daemon))


def refuses(storm: Storm, ballast: Path) -> bool:
    """Insert deliveries, and return whether PostgreSQL would not; *ballast* takes what a checkpoint
    has freed.
    """
    fill(ballast)
    try:
        storm.insert(2000, max_retries=10)
    except psycopg.OperationalError:
        return True
    return False


def fill(path: Path) -> None:
    """Have *path* take all that is free on its file system, down to the last page."""
    with path.open("ab", buffering=0) as ballast:
        for size in (2**20, 4096):
            with suppress(OSError):
                while ballast.write(bytes(size)) == size:
                    pass


@pytest.mark.parametrize("way", ["multi-host", "virtual address"])
def test_failover(
    server_storm: Storm, private_server: Server, manager: ServiceManager, way: str
) -> None:
    """A virtual address leads to the replica before that is promoted: read-only for a while."""
    storm, primary = server_storm, private_server.dsn(server_storm.database.name)
    with private_server.replica() as host, Proxy(primary, storm.random) as proxy, Sink() as sink:
        replica = make_conninfo(primary, host=host)
        both = make_conninfo(
            primary,
            host=f"{conninfo_to_dict(primary)['host']},{host}",
            target_session_attrs="read-write",
        )
        with Daemon(both if way == "multi-host" else proxy.dsn) as daemon:
            storm.register(sink, settings=PATIENT)
            wait_until_ready(storm.database)
            workers = set(daemon.workers())
            storm.insert(6000)
            eventually(lambda: storm.finished() > 1000)
            private_server.kill()
            storm.inject("primary killed", kills=1)
            proxy.lead_to(replica)
            proxy.cut_all()
            storm.database = Database(storm.database.name, replica)
            if way == "virtual address":
                storm.inject("read-only")
                time.sleep(5.0)
            storm.database.execute("SELECT pg_promote()")
            storm.inject("failover")
            recovered(storm)
            storm.insert(2000)
            storm.settle()
            assert set(daemon.workers()) == workers
            assert manager.longest_silence_s() < WATCHDOG_S
            assert daemon.stop() == 0
            storm.account(sink, refused=refused(daemon))


def test_transactions_left_open(storm: Storm, server: Server) -> None:
    """And a role whose settings would make every statement fail. Only what is locked waits."""
    role = server.create_role(options="LOGIN SUPERUSER")
    for setting in (
        "statement_timeout = '20ms'",
        "lock_timeout = '1ms'",
        "default_transaction_read_only = on",
    ):
        storm.database.execute(f"ALTER ROLE {role} SET {setting}")
    storm.inject("role's tiny timeouts")
    with (
        Sink() as sink,
        ExitStack() as left_open,
        Daemon(server.dsn(storm.database.name, role)) as daemon,
    ):

        def leave_open(statement: str) -> psycopg.Connection[tuple[object, ...]]:
            connection = left_open.enter_context(storm.database.connect(autocommit=False))
            connection.execute(statement.encode())
            storm.inject("transaction left open")
            return connection

        storm.register(sink, settings=PATIENT)
        wait_until_ready(storm.database)
        storm.insert(4000)
        eventually(lambda: storm.finished() > 100)
        leave_open(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM "
            "pggit.alert_delivery_queue"
        )
        leave_open(
            "UPDATE pggit.webhook_health_metrics SET last_check_at = now() WHERE webhook_id = 2001"
        )
        # Some of these are in flight, some wait, some are delivered.
        leave_open("SELECT FROM pggit.alert_delivery_queue WHERE webhook_id = 2002 FOR UPDATE")
        application = leave_open(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) SELECT 2003, '{}' "
            "FROM generate_series(1, 500)"
        )
        storm.insert(4000)
        others = (
            "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE webhook_id NOT IN (2001, "
            "2002)"
            " AND delivery_status <> 'delivered'"
        )
        with storm.recovering():
            eventually(
                lambda: storm.database.execute(others) == [(0,)],
                60.0,
                what="everything else is delivered",
            )
        time.sleep(20.0)
        application.commit()
        storm.inserted(500)
        with storm.recovering():
            eventually(
                lambda: storm.database.execute(others) == [(0,)],
                20.0,
                what="delivered once it is committed",
            )
        left_open.pop_all().close()
        storm.settle()
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))


def test_poison(storm: Storm) -> None:
    poison, rows = 2050, 5
    with (
        Sink() as sink,
        Daemon(storm.database.dsn, program=[POISONED, str(poison)], workers=4) as daemon,
    ):
        storm.register(sink, count=51, settings=PATIENT)
        wait_until_ready(storm.database, workers=4)
        storm.insert(rows, webhooks=1, first=poison)
        storm.insert(4000)
        storm.settle(timeout_s=200.0)
        deaths = daemon.log().count("poisoned by")
        storm.inject("worker poisoned", deaths, kills=deaths)
        assert daemon.stop() == 0
        ends = storm.database.execute(
            "SELECT q.delivery_status, q.leases_lost, l.event_details->>'reason' FROM "
            "pggit.alert_delivery_queue q"
            " LEFT JOIN pggit.alert_delivery_log l USING (delivery_id) WHERE q.webhook_id = %s",
            [poison],
        )
        assert ends == [("failed", 6, "lost 6 leases")] * rows
        storm.account(sink, may_fail=[poison], refused=refused(daemon))


def test_clocks_off_by_hours(storm: Storm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts, one hours behind the database and one hours ahead; half of the attempts fail, so
    that retries are timed too.
    """
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("NO FAKETIME: install Debian's faketime")

    def every_other(webhook_id: int, nth: int) -> bytes:
        return b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % (200 if nth > 1 else 500)

    with Sink(every_other) as sink, ExitStack() as hosts:
        storm.register(sink, settings=PATIENT + ", circuit_failure_threshold = 1000000")
        with monkeypatch.context() as environment:
            environment.setenv("LD_PRELOAD", str(library))
            environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            daemons = []
            for node, offset in (("behind", "-7h"), ("ahead", "+5h")):
                environment.setenv("FAKETIME", offset)
                daemons.append(hosts.enter_context(Daemon(storm.database.dsn, "--node", node)))
                storm.inject(f"clock {offset}")
        wait_until_ready(storm.database, workers=6)
        storm.insert(4000)
        with storm.recovering():
            storm.settle()
        assert (
            storm.database.execute(
                "SELECT count(DISTINCT worker_id) FROM pggit.alert_delivery_log"
            )[0][0]
            >= 2
        )
        late = "SELECT 1 FROM pggit.alert_delivery_queue WHERE abs(extract(epoch FROM delivered_at - created_at)) > 300"
        assert not storm.database.execute(late)
        assert all(count == 2 for count in sink.arrivals.values())
        for daemon in daemons:
            assert daemon.stop() == 0
        storm.account(sink, refused=sum(map(refused, daemons)))
