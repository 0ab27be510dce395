"""Fixtures for tests of the engine, without its threads."""

from collections.abc import Iterator

import pytest

from tests.engine import Engine, engine
from tests.postgres import Database


@pytest.fixture
def worker(database: Database) -> Iterator[Engine]:
    with engine(database) as worker:
        yield worker


@pytest.fixture
def other(database: Database) -> Iterator[Engine]:
    with engine(database, "worker-2") as other:
        yield other
