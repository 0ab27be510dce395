"""Fixtures for tests of the engine without its threads, of the doctor, and of the transport."""

from collections.abc import Iterator

import pytest

from tests.doctor import add_worker
from tests.engine import STANDARD, Engine, engine
from tests.explained import enlist
from tests.postgres import Database, Server
from tests.transport import LOOPBACK
from webhookd import store
from webhookd.doctor import queue, server
from webhookd.transport import Transport


@pytest.fixture
def worker(database: Database) -> Iterator[Engine]:
    with engine(database) as worker:
        yield worker


@pytest.fixture
def other(database: Database) -> Iterator[Engine]:
    with engine(database, "worker-2") as other:
        yield other


@pytest.fixture
def enlisted(database: Database) -> Iterator[Engine]:
    """A worker that is known to be alive and to have room, with the documented defaults."""
    with engine(database, defaults=STANDARD) as enlisted:
        enlist(database, enlisted.worker_id, enlisted.incarnation)
        yield enlisted


@pytest.fixture
def connection(database: Database) -> Iterator[store.Connection]:
    """A worker's connection."""
    with store.connect(database.dsn, application_name="webhookd/worker-1/test") as connection:
        yield connection


@pytest.fixture(scope="module")
def module_database(embedded_server: Server) -> Iterator[Database]:
    """One database for the module; every test mends what it breaks, or begins by emptying it."""
    database = embedded_server.create_migrated()
    yield database
    embedded_server.drop(database)


@pytest.fixture
def patient(module_database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """For the doctor: nothing in the queue, and one living worker; nothing moves, so nothing needs to be waited for."""
    monkeypatch.setattr(server, "NOTIFY_S", 0.3)
    monkeypatch.setattr(queue, "SETTLE_S", 0.0)
    tables = ("alert_delivery_queue", "alert_delivery_log", "webhooks", "webhook_health_metrics", "workers")
    deletions = ";".join(f"DELETE FROM pggit.{table}" for table in tables)
    module_database.execute("SET session_replication_role = replica;" + deletions)
    add_worker(module_database)
    return module_database


@pytest.fixture
def sender() -> Iterator[Transport]:
    with_loopback = Transport(LOOPBACK)
    yield with_loopback
    with_loopback.close()
