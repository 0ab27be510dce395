from collections.abc import Iterator

import pytest
from psycopg_pool import ConnectionPool

from tests.support.postgres import Database
from webhookd.postgres import session


@pytest.fixture
def pool(database: Database) -> Iterator[ConnectionPool[session.Connection]]:
    with session.open_pool(database.dsn, application_name="test/pool", size=1) as pool:
        yield pool
