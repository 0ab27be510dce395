"""A worker that starts while a host of its DSN takes connections and never says anything."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.postgres import Database, Server
from webhookd.config.options import Config
from webhookd.lifeline import Lifeline
from webhookd.worker.boot import wait_for_database


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield silent.getsockname()[1]


class Supervisor:
    """Sits at the other end of a worker's heartbeat pipe."""

    def __init__(self) -> None:
        self._heartbeat, beats = os.pipe()
        os.set_blocking(beats, False)
        os.set_blocking(self._heartbeat, False)
        self.lifeline = Lifeline(1, "worker-1", uuid4(), beats, -1, socket.socket())

    def beats(self) -> int:
        return len(os.read(self._heartbeat, 65536))

    def close(self) -> None:
        self.lifeline.metrics_socket.close()
        os.close(self._heartbeat)
        os.close(self.lifeline.heartbeat_fd)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.close()


def test_it_beats_while_it_connects(
    database: Database, supervisor: Supervisor, silent_port: int
) -> None:
    there = conninfo_to_dict(database.dsn)
    hosts, ports = f"127.0.0.1,{there['host']}", f"{silent_port},{there['port']}"
    dsn = make_conninfo(database.dsn, host=hosts, port=ports, connect_timeout=3)
    began = time.monotonic()
    assert wait_for_database(Config(dsn=dsn), supervisor.lifeline, threading.Event())
    assert time.monotonic() - began > 2.5, "the silent host came first"
    assert supervisor.beats() > 5, "ten a second, on a machine with nothing else to do"


def test_it_leaves_when_it_is_told_to(
    database: Database, supervisor: Supervisor, silent_port: int
) -> None:
    dsn = make_conninfo(database.dsn, host="127.0.0.1", port=silent_port, connect_timeout=60)
    stop = threading.Event()
    began = time.monotonic()
    threading.Timer(0.5, stop.set).start()
    assert wait_for_database(Config(dsn=dsn), supervisor.lifeline, stop) is None
    assert time.monotonic() - began < 30


def test_it_keeps_the_largest_body_in_the_database_and_boots_without_that_right(
    database: Database, server: Server, supervisor: Supervisor
) -> None:
    stored = "SELECT max_body_bytes FROM pggit.installation"

    def boot(dsn: str, max_body: int) -> None:
        config = Config(dsn=dsn, max_body=max_body)
        assert wait_for_database(config, supervisor.lifeline, threading.Event())

    boot(database.dsn, 200_000)
    assert database.execute(stored) == [(200_000,)]
    role = server.create_role()
    database.execute(
        f"GRANT USAGE ON SCHEMA pggit TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA pggit"
        f" TO {role}"
    )
    boot(server.dsn(database.name, user=role), 300_000)
    assert database.execute(stored) == [(200_000,)]
