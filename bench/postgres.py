"""A PostgreSQL for one benchmark: durable (fsync and synchronous_commit on, as they are by
default), 512 MB of shared buffers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from webhookd.demo import local
from webhookd.embedded import programs, server

SETTINGS = ("shared_buffers=512MB", "max_connections=200", "max_wal_size=4GB")
STATEMENTS = "pg_stat_statements"
MAINTENANCE = "postgres"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server; `pid` is the postmaster's, `home` a folder that is removed together with
    the server.
    """

    process: server.Embedded
    home: Path
    settings: Sequence[str]

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def create(self, name: str) -> str:
        """Create the database *name* anew and return its DSN. It is empty, except for
        pg_stat_statements where the server has it.
        """
        with self.connect(MAINTENANCE) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0'.encode())
        if self._has_statements():
            with self.connect(name) as connection:
                connection.execute(f"CREATE EXTENSION {STATEMENTS}".encode())
        return self.dsn(name)

    def dsn(self, database: str) -> str:
        return make_conninfo(self.process.dsn, dbname=database)

    def environment(self, database: str) -> dict[str, str]:
        """Return libpq's variables for *database*, which asyncpg and node's pg read as well."""
        found = conninfo_to_dict(self.dsn(database))
        names = {"HOST": "host", "PORT": "port", "USER": "user", "DATABASE": "dbname"}
        return {f"PG{key}": str(found[name]) for key, name in names.items()}

    def connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a connection in autocommit mode."""
        return psycopg.connect(self.dsn(database), autocommit=True)

    def version(self) -> str:
        with self.connect(MAINTENANCE) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0])

    def checkpoint(self) -> None:
        """Write everything out, so that the next round does not pay for the last one."""
        with self.connect(MAINTENANCE) as connection:
            connection.execute("CHECKPOINT")

    def _has_statements(self) -> bool:
        return f"shared_preload_libraries={STATEMENTS}" in self.settings


@contextmanager
def running_postgres(*settings: str) -> Iterator[Postgres]:
    """A PostgreSQL in a temporary folder, with *settings* (`name=value`) after SETTINGS. Main
    thread only.
    """
    binaries = programs.package_binaries()
    if any(binaries.parent.rglob(f"{STATEMENTS}.so")):
        settings = (f"shared_preload_libraries={STATEMENTS}", *settings)
    settings = (*SETTINGS, *settings)
    local.leave_on_sigterm()
    with local.folder("webhookd-bench-") as home:
        process = server.start(home / "postgres", settings=settings)
        try:
            yield Postgres(process, home, settings)
        finally:
            process.stop()
