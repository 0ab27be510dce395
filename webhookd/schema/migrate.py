"""Creates and upgrades the schema, and checks when a worker boots whether the schema fits.

A migration is a file `sql/migrations/NNNN_name.sql` that never changes after its release. Comment
lines at its top say

    -- oldest webhookd: 0.1.0     the oldest release that may run on the schema after it
    -- without transaction        (only CREATE INDEX CONCURRENTLY and the like) each statement runs
                                  outside a transaction, ends with a semicolon at the end of a
                                  line, and can be run again

Every other migration is one transaction. It waits at most 2 s for a lock, because inserts wait
behind it, and is tried again.
"""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, LiteralString, cast

import psycopg
from psycopg import errors
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from webhookd import __version__, logs
from webhookd.errors import UnusableError, WebhookdError
from webhookd.postgres import session
from webhookd.schema import identity, legacy

log = logs.Logger("webhookd.migrate")

OLDEST_POSTGRES = 140000
# Any pair of numbers is possible. It must not change, or an old and a new webhookd could migrate at
# the same time.
ADVISORY_LOCK = (0x77686B64, 1)
LOCK_TIMEOUT = "2s"

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of sql/migrations."""

    version: int
    name: str
    text: str
    oldest_webhookd: str
    in_transaction: bool

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class AppliedMigration:
    """One row of pggit.webhookd_migrations."""

    version: int
    name: str
    checksum: str
    oldest_webhookd: str


def migrate(
    dsn: str, *, migrations: Sequence[Migration] | None = None, patience_s: float = 60.0
) -> list[str]:
    """Apply the migrations that the database does not have, and return their names, oldest first.

    It may run again, and several times at once. Blocks while another migration runs, and up to
    *patience_s* for the locks of each migration. Raise `UnusableError` when the schema or the
    server cannot be used, and then change nothing; `WebhookdError` when the database is not
    available or a migration did not get its locks.
    """
    known = load() if migrations is None else migrations
    with session.connect_command(dsn, role="migrate") as connection:
        if connection.behind_pooler:
            # The advisory lock belongs to a session; a pooler may run each statement in another.
            raise UnusableError(
                "migrate cannot go through a pooler such as pgbouncer: give --dsn PostgreSQL's "
                "own address"
            )
        _check_server(connection)
        _check_encoding(connection)
        _lock_migrations(connection)
        applied = _read_applied(connection)
        _check_history(known, applied)
        pending = [migration for migration in known if migration.version > len(applied)]
        unknown = [row.name for row in applied if row.version > len(known)]
        if unknown:
            raise UnusableError(
                f"the schema has the migration {unknown[-1]}, which webhookd {__version__} does "
                "not know: run `webhookd migrate` of the release that created it"
            )
        for migration in pending:
            _apply(connection, migration, patience_s=patience_s)
            log.info("migration applied", migration=migration.name)
        identity.remember_identity(connection)
        return [migration.name for migration in pending]


def check(
    connection: Connection,
    *,
    migrations: Sequence[Migration] | None = None,
    version: str = __version__,
) -> None:
    """Raise `UnusableError` unless a worker of release *version* may work on the connection's
    database.

    A newer schema fits as long as its migrations permit *version*. *connection* may be in any mode;
    nothing is written.
    """
    known = load() if migrations is None else migrations
    _check_server(connection)
    _check_encoding(connection)
    applied = _read_applied(connection)
    _check_history(known, applied)
    if not applied:
        raise UnusableError("the database has no schema of webhookd's: run `webhookd migrate`")
    missing = [migration.name for migration in known if migration.version > len(applied)]
    if missing:
        raise UnusableError(
            f"the schema is older than webhookd {version}, {missing[0]} is missing: run "
            "`webhookd migrate`"
        )
    for row in applied:
        if _release(row.oldest_webhookd) > _release(version):
            raise UnusableError(
                f"the schema is newer, {row.name} needs webhookd {row.oldest_webhookd} or later: "
                f"upgrade this {version}"
            )
    identity.refuse_copy(connection)


def load() -> list[Migration]:
    """Return the packaged migrations, oldest first. Their numbers start at 1 and have no gap."""
    folder = resources.files("webhookd.sql") / "migrations"
    files = sorted(
        (file.name, file.read_text("utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    )
    migrations = [parse(name.removesuffix(".sql"), text) for name, text in files]
    for expected, migration in enumerate(migrations, start=1):
        if migration.version != expected:
            raise UnusableError(
                f"webhookd's installation is damaged: migration {expected:04} is missing, "
                "install it again"
            )
    return migrations


def parse(name: str, text: str) -> Migration:
    """Return the migration in the file *name* (without its suffix). Raise `ValueError` where it is
    malformed.
    """
    header = {
        line.removeprefix("--").strip() for line in text.splitlines() if line.startswith("--")
    }
    numbered = re.fullmatch(r"(\d{4})_[a-z0-9_]+", name)
    oldest = [
        line.removeprefix("oldest webhookd:").strip()
        for line in header
        if line.startswith("oldest webhookd:")
    ]
    if numbered is None or len(oldest) != 1:
        raise ValueError(
            f"migration {name} needs a name like 0001_name and one line `-- oldest webhookd: 0.1.0`"
        )
    _release(oldest[0])
    in_transaction = "without transaction" not in header
    return Migration(
        version=int(numbered[1]),
        name=name,
        text=text,
        oldest_webhookd=oldest[0],
        in_transaction=in_transaction,
    )


def _check_server(connection: Connection) -> None:
    if connection.info.server_version < OLDEST_POSTGRES:
        raise UnusableError(
            f"PostgreSQL {connection.info.parameter_status('server_version')} is too old: "
            "webhookd needs 14 or newer"
        )


def _check_encoding(connection: Connection) -> None:
    # A receiver's answer may have characters that another encoding does not. Then the attempt could
    # not be recorded, and the delivery would be sent again and again.
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise UnusableError(
            f"the database's encoding is {encoding}, and webhookd needs UTF8: create a database "
            "with `createdb -E UTF8 -T template0 NAME`, and restore a dump of this one into it "
            "if it has data"
        )


def _lock_migrations(connection: Connection, patience_s: float = 600.0) -> None:
    """Wait until no other migration runs. Polls: a statement that waits for the lock would hold a
    snapshot, and CREATE INDEX CONCURRENTLY of the other migration waits for all snapshots.
    """
    deadline = time.monotonic() + patience_s
    logged = False
    while not _row(connection, "SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", ADVISORY_LOCK)[0]:
        if time.monotonic() > deadline:
            raise WebhookdError(
                f"another `webhookd migrate` has been running for {patience_s:.0f} s: see in "
                "pg_stat_activity what it waits for"
            )
        if not logged:
            log.info("waiting for another migration to end")
            logged = True
        time.sleep(0.1)


def _read_applied(connection: Connection) -> list[AppliedMigration]:
    if _row(connection, "SELECT pg_catalog.to_regclass('pggit.webhookd_migrations')")[0] is None:
        return []
    rows = connection.execute(
        "SELECT version, name, checksum, oldest_webhookd FROM pggit.webhookd_migrations ORDER BY "
        "version"
    ).fetchall()
    return [AppliedMigration(*row) for row in rows]


def _check_history(known: Sequence[Migration], applied: Sequence[AppliedMigration]) -> None:
    for expected, row in enumerate(applied, start=1):
        if row.version != expected:
            raise UnusableError(
                f"pggit.webhookd_migrations has later migrations but not {expected:04}: "
                "restore its row"
            )
    for migration, row in zip(known, applied, strict=False):
        if (migration.name, migration.checksum) != (row.name, row.checksum):
            raise UnusableError(
                f"the migration {row.name} was applied with other content than it has in webhookd "
                f"{__version__}: use the release that created the schema"
            )


def _apply(connection: Connection, migration: Migration, *, patience_s: float) -> None:
    attempts = Retrying(
        retry=retry_if_exception_type((errors.LockNotAvailable, errors.DeadlockDetected)),
        wait=wait_random_exponential(multiplier=0.1, max=2.0),
        stop=stop_after_delay(patience_s),
        before_sleep=_log_retry,
        reraise=True,
    )
    try:
        attempts(_apply_once, connection, migration)
    except (errors.LockNotAvailable, errors.DeadlockDetected) as error:
        raise WebhookdError(
            f"the migration {migration.name} did not get its locks within {patience_s:.0f} s: "
            "end the transactions that use pggit's tables and run it again"
        ) from error
    except psycopg.OperationalError as error:
        raise WebhookdError(
            f"the connection was lost during {migration.name}: {session.message_of(error)}"
        ) from error
    except psycopg.Error as error:
        raise UnusableError(
            f"the migration {migration.name} cannot be applied: {session.message_of(error)}"
        ) from error


def _log_retry(state: RetryCallState) -> None:
    log.info("migration waits for a lock", attempt=state.attempt_number)


def _apply_once(connection: Connection, migration: Migration) -> None:
    if migration.in_transaction:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'".encode())
            grants = legacy.prepare(connection) if migration.version == 1 else []
            _create_schema(connection)
            connection.execute(migration.text.encode())
            legacy.finish(connection, grants)
            _insert_row(connection, migration)
        return
    for statement in re.split(r";[ \t]*$", migration.text, flags=re.MULTILINE):
        if re.sub(r"--.*", "", statement).strip():
            connection.execute(statement.encode())
    with connection.transaction():
        _insert_row(connection, migration)


def _create_schema(connection: Connection) -> None:
    # CREATE SCHEMA IF NOT EXISTS needs the right to create a schema even where it exists, and the
    # owner may not have that right.
    if _row(connection, "SELECT pg_catalog.to_regnamespace('pggit')")[0] is None:
        connection.execute("CREATE SCHEMA pggit")


def _insert_row(connection: Connection, migration: Migration) -> None:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS pggit.webhookd_migrations ("
        " version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, "
        "oldest_webhookd text NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now(), applied_by text NOT NULL)"
    )
    connection.execute(
        "INSERT INTO pggit.webhookd_migrations (version, name, checksum, oldest_webhookd, "
        "applied_by)"
        " VALUES (%s, %s, %s, %s, %s)",
        (
            migration.version,
            migration.name,
            migration.checksum,
            migration.oldest_webhookd,
            __version__,
        ),
    )


def _release(text: str) -> tuple[int, ...]:
    """Return a release number as a tuple that can be compared, without a suffix such as `rc1`."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    if numbers is None:
        raise ValueError(f"{text!r} is not a release number")
    return tuple(map(int, numbers[0].split(".")))


def _row(
    connection: Connection, statement: LiteralString, params: Sequence[object] = ()
) -> tuple[Any, ...]:
    return cast(tuple[Any, ...], connection.execute(statement, params).fetchone())
