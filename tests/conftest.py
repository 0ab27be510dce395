"""Fixtures for every test. The server is started once a run; each test gets a database of its own."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Database, Server, running_server, system_binaries

EMBEDDED = "embedded"
SYSTEM = "system"
# These run programs with the default --metrics-port, for moments at least.
DEFAULT_PORT = ("test_cli.py", "test_cli_mistakes.py", "test_doctor_cli.py", "test_monitor_role.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Only this file is read early enough for options; tests/storm uses them."""
    parser.addoption("--storm-seed", type=int, help="repeat the choices of an earlier run (each storm prints its own)")
    parser.addoption("--storm-table", type=Path, help="write the table of all storms to this file")


def pytest_configure() -> None:
    """Undo what a shell does that runs the tests in the background: it ignores these, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that is marked `every_postgres` on the embedded PostgreSQL and on the system's own."""
    if "server" in metafunc.fixturenames and metafunc.definition.get_closest_marker("every_postgres"):
        metafunc.parametrize("server", [EMBEDDED, SYSTEM], indirect=True)


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def system_server() -> Iterator[Server]:
    binaries = system_binaries()
    if binaries is None:
        pytest.skip("NO SYSTEM POSTGRESQL: install Debian's postgresql or set WEBHOOKD_TEST_PG_BIN to its bin folder")
    with running_server(binaries) as server:
        yield server


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """The PostgreSQL that all tests share: never stop it or change its settings (`private_server` is for that)."""
    param: str = getattr(request, "param", EMBEDDED)
    server: Server = request.getfixturevalue(f"{param}_server")
    return server


@pytest.fixture
def private_server() -> Iterator[Server]:
    """A PostgreSQL for this test alone, to be killed, halted and restarted."""
    with running_server() as server:
        yield server


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    """A database with webhookd's schema, empty, for this test alone."""
    database = server.create_migrated()
    yield database
    server.drop(database)


@pytest.fixture
def empty_database(server: Server) -> Iterator[Database]:
    """A database without any schema of ours, for this test alone."""
    database = server.create()
    yield database
    server.drop(database)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one process of pytest-xdist run what belongs together: a file, users of the busy stack, those of the default port."""
    for item in items:
        group = "busy_stack" if "busy_stack" in getattr(item, "fixturenames", ()) else str(item.path)
        if item.path.name in DEFAULT_PORT:
            group = "default port"
        item.add_marker(pytest.mark.xdist_group(group))
