"""PostgreSQL servers and databases for tests, all of them started by webhookd's own launcher."""

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.waiting import eventually
from webhookd.embedded import programs
from webhookd.embedded import server as embedded
from webhookd.embedded.directory import PORT
from webhookd.schema.migrate import migrate

# Crashes of the server are tested by killing it, not the machine: nothing here needs to reach the
# disk.
QUICK = (
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=64MB",
    "max_connections=200",
    "max_wal_size=512MB",
)
# Two-phase commits are tested, and a server must be told in advance.
SETTINGS = (*QUICK, "max_prepared_transactions=10", "log_min_messages=warning")


@dataclass(slots=True)
class Database:
    """One database of a test server. `dsn` names it; connections are in autocommit mode unless told
    otherwise.
    """

    name: str
    dsn: str

    def connect(
        self, *, autocommit: bool = True, **options: Any
    ) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a connection (also a context manager); *options* are psycopg's or libpq's, such as
        `user`.
        """
        return psycopg.connect(self.dsn, autocommit=autocommit, **options)

    def import_rows(self, statement: str, params: Any = None) -> list[tuple[Any, ...]]:
        """Run an INSERT into the queue whose engine columns are kept, such as finished rows."""
        return self._execute(statement, params, options="-c webhookd.import=on")

    def execute(self, statement: str, params: Any = None) -> list[tuple[Any, ...]]:
        """Run one statement, or several without parameters, by itself and return the last one's
        rows.
        """
        return self._execute(statement, params)

    def _execute(self, statement: str, params: Any, **options: Any) -> list[tuple[Any, ...]]:
        with self.connect(**options) as connection:
            cursor = connection.execute(statement.encode(), params)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []


@dataclass(slots=True)
class Server:
    """A running PostgreSQL with databases to clone. `version` is the major one."""

    process: embedded.Embedded
    home: Path
    version: int = 0
    _templates: dict[str, str] = field(default_factory=dict)

    def dsn(self, database: str, user: str = programs.USER) -> str:
        return make_conninfo(self.process.dsn, dbname=database, user=user)

    def create(
        self, *, template: str = "template0", owner: str = programs.USER, encoding: str = "UTF8"
    ) -> Database:
        """Make a database with a new name from *template*, which has *encoding* or is template0."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._administer(
            "CREATE DATABASE {} TEMPLATE {} OWNER {} ENCODING {}", name, template, owner, encoding
        )
        return Database(name=name, dsn=self.dsn(name))

    def create_migrated(self) -> Database:
        """Make a database with webhookd's schema: a copy of one that was migrated once for all
        tests.
        """
        if "migrated" not in self._templates:
            template = self.create()
            migrate(template.dsn)
            self._templates["migrated"] = template.name
        database = self.create(template=self._templates["migrated"])
        # Every test's database counts as an installation of its own, not as a copy that must not
        # send.
        database.execute(
            "UPDATE pggit.installation SET installation_id = gen_random_uuid(),"
            " database_oid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return database

    def create_role(self, *, options: str = "LOGIN") -> str:
        """Make a role of a fresh name that is no superuser, and return the name."""
        name = f"role_{uuid.uuid4().hex[:12]}"
        self._administer("CREATE ROLE {} " + options, name)
        return name

    def drop(self, database: Database) -> None:
        """Drop a database with whatever is still connected to it; the server's end drops what will
        not go.
        """
        with suppress(psycopg.errors.ObjectInUse):
            self._administer("DROP DATABASE IF EXISTS {} WITH (FORCE)", database.name)

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL; its sessions end within milliseconds."""
        self.process.kill()

    def restart(self) -> None:
        """Start again after `kill` (recovery included), or stop and start; blocks until connections
        are taken.
        """
        if self.process.alive():
            self.process.halt()
        self.process.launch()

    def halt(self) -> None:
        """Shut down; `restart` brings the server back with the same DSN."""
        self.process.halt()

    @contextmanager
    def replica(self) -> Iterator[str]:
        """Run a streaming replica, which every COMMIT waits for that is durable; yield the folder
        of its socket (its host).

        The server is stopped for a moment to be copied. `SELECT pg_promote()` promotes the replica.
        """
        home = self.home / "replica"
        self.halt()
        home.mkdir()
        subprocess.run(["cp", "-a", self.process.directory / "data", home / "data"], check=True)
        self.restart()
        data, primary = home / "data", conninfo_to_dict(self.dsn("postgres"))["host"]
        (data / "standby.signal").touch()
        with (data / "postgresql.auto.conf").open("a") as settings:
            settings.write(
                f"primary_conninfo = 'host={primary} user={programs.USER} "
                "application_name=replica'\n"
            )
        account = programs.server_account()
        program = (
            programs.runnable(programs.package_binaries(), self.process.directory, account)
            / "postgres"
        )
        if account.switch:
            os.chown(home, account.uid, account.gid)
        options = [
            part
            for setting in (*SETTINGS, "listen_addresses=", f"port={PORT}")
            for part in ("-c", setting)
        ]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-D", data, "-k", home, *options],
                cwd="/",
                env=programs.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
                **account.popen_arguments(),
            )
        try:
            self._administer("ALTER SYSTEM SET synchronous_standby_names = 'replica'")
            self._administer("SELECT pg_reload_conf()")
            with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
                synchronous = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
                eventually(
                    lambda: connection.execute(synchronous).fetchall(),
                    60.0,
                    what="the replica follows",
                )
            yield str(home)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)

    def _administer(self, statement: str, *names: str) -> None:
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextmanager
def running_server(
    binaries: Path | None = None, settings: tuple[str, ...] = (), *, parent: Path | None = None
) -> Iterator[Server]:
    """Run a server in a new directory below *parent* (the system's temporary one), and remove both
    in the end.

    pytest's own temporary directories are closed to all but their owner, so a server could not use
    them under root.
    """
    home = Path(tempfile.mkdtemp(prefix="webhookd-test-", dir=parent))
    home.chmod(0o755)
    try:
        server = Server(
            embedded.start(home / "pg", binaries=binaries, settings=(*SETTINGS, *settings)), home
        )
        try:
            with psycopg.connect(server.dsn("postgres")) as connection:
                server.version = connection.info.server_version // 10000
            yield server
        finally:
            server.process.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def system_binaries() -> Path | None:
    """Return the `bin` directory of a PostgreSQL that is installed here: WEBHOOKD_TEST_PG_BIN, else
    Debian's newest.
    """
    named = os.environ.get("WEBHOOKD_TEST_PG_BIN")
    if named:
        return Path(named)
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda path: int(path.parent.name), default=None)
