"""Database roles that own nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.listening import Connection
from tests.support.postgres import Database, Server


@contextmanager
def acting(database: Database, server: Server, *grants: str) -> Iterator[Connection]:
    """A connection of a role that has USAGE on the schema and *grants*, and owns nothing."""
    role = server.create_role()
    for grant in ("USAGE ON SCHEMA pggit", *grants):
        database.execute(f'GRANT {grant} TO "{role}"')
    with database.connect(user=role) as connection:
        yield connection
