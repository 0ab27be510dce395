"""Fixtures for all tests. The server starts once; each test gets a database of its own."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.doctor import add_worker
from tests.support.engine import STANDARD, Engine, engine
from tests.support.explained import enlist
from tests.support.postgres import Database, Server, running_server, system_binaries
from tests.support.transport import LOOPBACK
from webhookd.admin.doctor import queue as queue_checks
from webhookd.admin.doctor import server as server_checks
from webhookd.postgres import session
from webhookd.transport.client import Transport

EMBEDDED = "embedded"
SYSTEM = "system"
# These tests run programs with the default --metrics-port, at least for moments.
DEFAULT_PORT = ("test_commands.py", "test_mistakes.py", "test_doctor.py", "test_monitor_role.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only this file is read early enough for options; tests/storm uses them."""
    parser.addoption(
        "--storm-seed",
        type=int,
        help="repeat the choices of an earlier run (each storm prints its own)",
    )
    parser.addoption("--storm-table", type=Path, help="write the table of all storms to this file")


def pytest_configure() -> None:
    """Restore the handlers of these signals. A shell ignores them for a command in the background,
    and all that the tests start would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `every_postgres` on the embedded PostgreSQL and on the system's own."""
    if "server" in metafunc.fixturenames and metafunc.definition.get_closest_marker(
        "every_postgres"
    ):
        metafunc.parametrize("server", [EMBEDDED, SYSTEM], indirect=True)


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def system_server() -> Iterator[Server]:
    binaries = system_binaries()
    if binaries is None:
        pytest.skip(
            "NO SYSTEM POSTGRESQL: install Debian's postgresql or set WEBHOOKD_TEST_PG_BIN to "
            "its bin folder"
        )
    with running_server(binaries) as server:
        yield server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """The PostgreSQL that all tests share. Never stop it or change its settings: `private_server`
    is for that.
    """
    param: str = getattr(request, "param", EMBEDDED)
    server: Server = request.getfixturevalue(f"{param}_server")
    return server


@pytest.fixture
def private_server() -> Iterator[Server]:
    """A PostgreSQL for this test only, which it may kill, halt and restart."""
    with running_server() as server:
        yield server


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """An empty database with webhookd's schema, for this test only."""
    database = server.create_migrated()
    yield database
    server.drop(database)


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    """A database without webhookd's schema, for this test only."""
    database = server.create()
    yield database
    server.drop(database)


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
def connection(database: Database) -> Iterator[session.Connection]:
    """A worker's connection."""
    with session.connect(database.dsn, application_name="webhookd/worker-1/test") as connection:
        yield connection


@pytest.fixture(scope="module")
def module_database(embedded_server: Server) -> Iterator[Database]:
    """One database for the module. Every test repairs what it breaks, or empties it first."""
    database = embedded_server.create_migrated()
    yield database
    embedded_server.drop(database)


@pytest.fixture
def patient(module_database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """For the doctor: an empty queue and one living worker. Nothing changes, so the checks need not
    wait.
    """
    monkeypatch.setattr(server_checks, "NOTIFY_S", 0.3)
    monkeypatch.setattr(queue_checks, "SETTLE_S", 0.0)
    tables = (
        "alert_delivery_queue",
        "alert_delivery_log",
        "webhooks",
        "webhook_health_metrics",
        "workers",
    )
    deletions = ";".join(f"DELETE FROM pggit.{table}" for table in tables)
    module_database.execute("SET session_replication_role = replica;" + deletions)
    add_worker(module_database)
    return module_database


@pytest.fixture
def sender() -> Iterator[Transport]:
    with_loopback = Transport(LOOPBACK)
    yield with_loopback
    with_loopback.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process of pytest-xdist run the tests that belong together: those of a file, of the
    busy stack, of the default port.
    """
    for item in items:
        group = (
            "busy_stack" if "busy_stack" in getattr(item, "fixturenames", ()) else str(item.path)
        )
        if item.path.name in DEFAULT_PORT:
            group = "default port"
        item.add_marker(pytest.mark.xdist_group(group))
