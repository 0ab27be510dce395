"""The storms' fixture, their seed, and the table at the end of the run."""

import random
from collections.abc import Iterator

import pytest

from tests.storm.storm import Account, Storm
from tests.storm.table import table
from tests.support.postgres import Database, Server

ACCOUNTS = pytest.StashKey[list[Account]]()


@pytest.fixture
def account(request: pytest.FixtureRequest) -> Account:
    """This test's line in the table: its module is the family."""
    family = request.module.__name__.rpartition("test_")[2].replace("_", " ")
    account = Account(family, request.node.name.removeprefix("test_").replace("_", " "))
    request.config.stash.setdefault(ACCOUNTS, []).append(account)
    return account


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this storm's choices, printed where the storm fails."""
    given: int | None = request.config.getoption("--storm-seed")
    seed = random.SystemRandom().randrange(10**6) if given is None else given
    print(f"--storm-seed {seed}")
    return seed


@pytest.fixture
def storm(account: Account, database: Database, seed: int) -> Storm:
    """A storm on the shared PostgreSQL, which stays up."""
    return Storm(account, database, random.Random(seed))


@pytest.fixture
def server_storm(account: Account, private_server: Server, seed: int) -> Iterator[Storm]:
    """A storm with its own PostgreSQL (`private_server`), which may be killed."""
    database = private_server.create_migrated()
    # A crash soon after CREATE DATABASE would set copied sequences back: PostgreSQL logs them 32
    # values ahead, but has not done so yet.
    database.execute("CHECKPOINT")
    yield Storm(account, database, random.Random(seed))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    accounts = config.stash.get(ACCOUNTS, [])
    if not accounts:
        return
    text = table(accounts)
    terminalreporter.section("storms")
    terminalreporter.write_line(text)
    if path := config.getoption("--storm-table"):
        path.write_text(text + "\n")
