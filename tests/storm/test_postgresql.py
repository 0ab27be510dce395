"""PostgreSQL dies, is cut off, locked, out of connections, poisoned, or on another time than the
workers.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from tests.storm.postgresql_faults import PATIENT, Proxy, await_work
from tests.storm.sink import Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, alive, refused, wait_until_ready
from tests.support.postgres import Server
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(400)]
POISONED = str(Path(__file__).with_name("poisoned_webhookd.py"))
SESSIONS = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE application_name LIKE 'webhookd/%' AND datname = current_database()"
)


def keep_busy(storm: Storm, deliveries: int = 1500) -> None:
    """Insert more, if needed, so that workers are busy during the next fault."""
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
                what="the postmaster has ended the others too",
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
            await_work(storm)
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
        await_work(storm)
        proxy.cut, proxy.lose_commit = 0.005, 0.02
        while min(proxy.happened["cut"], proxy.happened["lose_commit"]) < 40:
            keep_busy(storm)
            time.sleep(0.1)
        proxy.cut = proxy.lose_commit = 0.0
        storm.inject("cut anywhere", proxy.happened["cut"])
        storm.inject("answer to COMMIT lost", proxy.happened["lose_commit"])
        proxy.cut_all()
        await_work(storm)
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
                # Its successor finds no connection free: this test takes those of the dead worker.
                if workers:
                    os.kill(workers.pop(), signal.SIGKILL)
                    storm.inject("worker killed", kills=1)
                time.sleep(0.02)
        storm.inject("out of connections")
        assert not workers
        successors = set(daemon.workers())
        taken.close()
        storm.insert(4000)
        await_work(storm)
        storm.settle()
        assert set(daemon.workers()) == successors
        assert daemon.stop() == 0
        storm.account(sink, refused=refused(daemon))


READ_ALL = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;"
    " SELECT count(*) FROM pggit.alert_delivery_queue"
)
LOCK_A_LANE = (
    "UPDATE pggit.webhook_health_metrics SET last_check_at = now() WHERE webhook_id = 2001"
)
# Some of these are in flight, some wait, some are delivered.
LOCK_ROWS = "SELECT FROM pggit.alert_delivery_queue WHERE webhook_id = 2002 FOR UPDATE"
INSERT_MORE = (
    "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
    " SELECT 2003, '{}' FROM generate_series(1, 500)"
)
NOT_LOCKED = (
    "SELECT count(*)::int FROM pggit.alert_delivery_queue"
    " WHERE webhook_id NOT IN (2001, 2002) AND delivery_status <> 'delivered'"
)


def test_transactions_left_open(storm: Storm, server: Server) -> None:
    """Also a role whose settings would make every statement fail. Only locked rows wait."""
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
        leave_open(READ_ALL)
        leave_open(LOCK_A_LANE)
        leave_open(LOCK_ROWS)
        application = leave_open(INSERT_MORE)
        storm.insert(4000)
        with storm.recovering():
            eventually(
                lambda: storm.database.execute(NOT_LOCKED) == [(0,)],
                60.0,
                what="everything else is delivered",
            )
        time.sleep(20.0)
        application.commit()
        storm.inserted(500)
        with storm.recovering():
            eventually(
                lambda: storm.database.execute(NOT_LOCKED) == [(0,)],
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
            "SELECT q.delivery_status, q.leases_lost, l.event_details->>'reason'"
            " FROM pggit.alert_delivery_queue q"
            " LEFT JOIN pggit.alert_delivery_log l USING (delivery_id) WHERE q.webhook_id = %s",
            [poison],
        )
        assert ends == [("failed", 6, "lost 6 leases")] * rows
        storm.account(sink, may_fail=[poison], refused=refused(daemon))


def test_clocks_off_by_hours(storm: Storm, monkeypatch: pytest.MonkeyPatch) -> None:
    """One host is hours behind the database, another is hours ahead. Half of the attempts fail, so
    that the times of retries are tested too.
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
        late = (
            "SELECT 1 FROM pggit.alert_delivery_queue"
            " WHERE abs(extract(epoch FROM delivered_at - created_at)) > 300"
        )
        assert not storm.database.execute(late)
        assert all(count == 2 for count in sink.arrivals.values())
        for daemon in daemons:
            assert daemon.stop() == 0
        storm.account(sink, refused=sum(map(refused, daemons)))
