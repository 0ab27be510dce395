"""A database that hangs with its connections open, as on a frozen disk: no worker is killed for it
and nothing is sent twice.
"""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.conninfo import make_conninfo

from tests.support.daemon import (
    Daemon,
    arrivals,
    insert,
    register,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver
from tests.support.waiting import eventually

HEARTBEAT_TIMEOUT_S = 4.0  # on a busy machine a worker needs seconds for its imports
BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name LIKE 'webhookd/%'"
)


def answer_slowly(peer: Peer) -> None:
    while peer.read_request() is not None:
        time.sleep(0.05)
        peer.send(OK)


@contextmanager
def hanging(database: Database) -> Iterator[None]:
    """Stop the backends of all workers with SIGSTOP."""
    backends = [row[0] for row in database.execute(BACKENDS)]
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in backends:
            os.kill(pid, signal.SIGCONT)


def test_workers_outlive_a_database_that_hangs_for_longer_than_the_heartbeat_timeout(
    database: Database,
) -> None:
    options = ("--heartbeat-timeout", str(HEARTBEAT_TIMEOUT_S), "--threads", "8")
    with Receiver(answer_slowly) as receiver, Daemon(database.dsn, *options) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        workers = sorted(daemon.workers())
        insert(database, 600)
        eventually(lambda: len(receiver.requests) > 50, what="deliveries under way")
        with hanging(database):
            # The hang has to last: twice as long as a worker without heartbeats may live.
            time.sleep(2 * HEARTBEAT_TIMEOUT_S)
        wait_until_delivered(database, 600)
        assert sorted(daemon.workers()) == workers, "the same processes"
        assert "worker hung" not in daemon.log()
        assert daemon.stop() == 0
    assert len(receiver.requests) == 600
    assert set(arrivals(receiver).values()) == {1}


def test_workers_told_to_stop_exit_although_the_database_hangs(database: Database) -> None:
    with (
        Receiver(answer_slowly) as receiver,
        Daemon(database.dsn, "--drain-timeout", "1") as daemon,
    ):
        register(database, receiver)
        wait_until_ready(database)
        insert(database, 600)
        eventually(lambda: len(receiver.requests) > 50, what="deliveries under way")
        with hanging(database):
            assert daemon.stop() == 0
        assert "worker killed" not in daemon.log()


def test_a_listen_host_that_hangs_costs_only_the_notifications(
    database: Database,
) -> None:
    # It accepts connections and never answers.
    with socket.create_server(("127.0.0.1", 0)) as silent, Receiver(answer_slowly) as receiver:
        listen_dsn = make_conninfo(
            database.dsn, host="127.0.0.1", port=silent.getsockname()[1], connect_timeout=12
        )
        with Daemon(database.dsn, "--listen-dsn", listen_dsn, workers=1) as daemon:
            register(database, receiver)
            inserted = 0
            # One whole attempt to connect, and part of the next.
            while daemon.log().count("LISTEN connection could not be opened") == 0 or inserted < 60:
                insert(database, 1)
                inserted += 1
                time.sleep(0.25)
            wait_until_delivered(database, inserted)
            assert daemon.log().count("LISTEN connection could not be opened") == 1, "logged once"
            assert "unreachable" not in daemon.log()
            waited = (
                "SELECT extract(epoch FROM max(delivered_at - created_at))::float8"
                " FROM pggit.alert_delivery_queue"
            )
            assert database.execute(waited)[0][0] < 8.0, (
                "one poll every 2 s, and room for a busy machine"
            )
            assert daemon.stop() == 0
