"""The LISTEN connection: opened without holding anybody up, proved before it counts, and gone
without a trace.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from tests.support.descriptors import SELECT_TAKES, crowded
from tests.support.pgbouncer import pgbouncer, through
from tests.support.postgres import Database
from tests.support.waiting import eventually
from webhookd.postgres import session
from webhookd.worker.listener import WAKE_CHANNEL, DeafError, Listener, readable

Pool = ConnectionPool[session.Connection]


@pytest.fixture
def pool(database: Database) -> Iterator[Pool]:
    with session.open_pool(database.dsn, application_name="test/pool", size=1) as pool:
        yield pool


def opened(listener: Listener, pool: Pool) -> bool:
    ended = threading.Event()
    listener.open(pool, ended.set)
    assert ended.wait(20)
    return listener.opened()


def test_it_hears_whatever_is_committed_once_it_is_connected(
    database: Database, pool: Pool
) -> None:
    listener = Listener(database.dsn, application_name="test/listen")
    assert opened(listener, pool)
    assert listener.connected
    database.execute(f"NOTIFY {WAKE_CHANNEL}, 'news'")
    assert eventually(listener.drain) == ["news"]
    listener.close()
    assert not listener.connected


def test_it_hears_in_a_process_with_thousands_of_descriptors(
    database: Database, pool: Pool
) -> None:
    listener = Listener(database.dsn, application_name="test/listen")
    with crowded():
        assert opened(listener, pool)
        assert listener.fileno() > SELECT_TAKES
        database.execute(f"NOTIFY {WAKE_CHANNEL}, 'news'")
        assert readable([listener.fileno()], within_s=20) == {listener.fileno()}
        assert eventually(listener.drain) == ["news"]
        listener.close()


def test_whatever_is_broken_counts_as_readable() -> None:
    near, far = socket.socketpair()
    closed = os.dup(near.fileno())
    os.close(closed)
    with near:
        assert readable([near.fileno(), -1], within_s=0.01) == set()
        assert readable([near.fileno(), closed, -1], within_s=20) == {closed}
        far.close()
        assert readable([near.fileno(), -1], within_s=20) == {near.fileno()}


@pytest.mark.parametrize("within_s", [0.0101, 0.0, -1.0])
def test_waiting_ends_no_moment_too_early_and_never_takes_for_ever(within_s: float) -> None:
    began = time.monotonic()
    assert readable([], within_s=within_s) == set()
    assert within_s <= time.monotonic() - began < 5


def test_a_host_that_answers_nothing_holds_nobody_up(database: Database, pool: Pool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = make_conninfo(
            database.dsn, host="127.0.0.1", port=silent.getsockname()[1], connect_timeout=2
        )
        listener, ended = Listener(dsn, application_name="test/listen"), threading.Event()
        began = time.monotonic()
        listener.open(pool, ended.set)
        assert (listener.opening, listener.opened(), listener.connected) == (True, False, False)
        listener.open(pool, ended.set)  # gives up the first
        listener.close()
        assert time.monotonic() - began < 1.5, "two seconds is what one try takes"
        assert (listener.opening, listener.connected) == (False, False)
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            opened(listener, pool)
        assert not listener.opening


def test_what_opens_after_it_was_given_up_is_closed(database: Database, pool: Pool) -> None:
    listener, ended = Listener(database.dsn, application_name="test/given up"), threading.Event()
    listener.open(pool, ended.set)
    listener.close()
    assert ended.wait(20)
    mine = "SELECT count(*)::int FROM pg_stat_activity WHERE application_name = 'test/given up'"
    eventually(lambda: database.execute(mine) == [(0,)])


def test_a_way_to_another_database_is_deaf(database: Database, pool: Pool) -> None:
    listener = Listener(
        make_conninfo(database.dsn, dbname="postgres"), application_name="test/listen"
    )
    with pytest.raises(DeafError, match="did not arrive"):
        opened(listener, pool)
    assert not listener.connected


def test_a_pooler_of_sessions_is_listened_through(database: Database) -> None:
    with pgbouncer(database, "session") as folder:
        dsn = through(database, folder)
        with session.open_pool(dsn, application_name="test/pool", size=1) as pool:
            listener = Listener(dsn, application_name="test/listen")
            assert opened(listener, pool)
            database.execute(f"NOTIFY {WAKE_CHANNEL}, 'news'")
            assert eventually(listener.drain) == ["news"]
            listener.close()


@pytest.mark.parametrize("sessions", [1, 3])
@pytest.mark.parametrize("round_robin", [0, 1])
def test_a_pooler_of_transactions_is_found_out_before_listen(
    database: Database, sessions: int, round_robin: int
) -> None:
    with pgbouncer(
        database, "transaction", sessions=sessions, more=f"server_round_robin = {round_robin}"
    ) as folder:
        dsn = through(database, folder)
        with (
            session.open_pool(dsn, application_name="test/pool", size=1) as pool,
            ExitStack() as stack,
        ):
            connect = partial(psycopg.connect, dsn, autocommit=False, prepare_threshold=None)
            applications = [stack.enter_context(connect()) for _ in range(sessions)]
            for application in applications:  # each in a transaction: all sessions are there now
                application.execute("SELECT 1")
            for application in applications:
                application.rollback()
            with pytest.raises(DeafError, match="transaction mode"):
                opened(Listener(dsn, application_name="test/listen"), pool)
            for application in applications:
                assert application.execute("SELECT pg_listening_channels()").fetchall() == []


def test_a_pooler_of_transactions_that_others_share_is_found_out_by_its_silence(
    database: Database, pool: Pool
) -> None:
    with pgbouncer(database, "transaction", sessions=1) as folder:
        dsn = through(database, folder)
        with pytest.raises(DeafError, match="did not arrive"):
            opened(Listener(dsn, application_name="test/listen"), pool)  # pool has another way
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as application:
            assert application.execute("SELECT pg_listening_channels()").fetchall() == []
