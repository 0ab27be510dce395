"""Creates and upgrades the schema, and tells at a worker's boot whether the schema fits.

A migration is a file `sql/migrations/NNNN_name.sql` that is never changed once released. Comment
lines at its top say

    -- oldest webhookd: 0.1.0     the oldest release that may keep running on the schema after it
    -- without transaction        (only CREATE INDEX CONCURRENTLY and the like) every statement by itself; a statement
                                  ends with a semicolon at the end of a line and must bear being run again

Every other migration is one transaction that waits 2 s at most for a lock, so that it never holds
up inserts for longer, and is tried again.
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
# Any pair of numbers would do; it must not change, or an old and a new webhookd would migrate side
# by side.
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
class Applied:
    """One row of pggit.webhookd_migrations."""

    version: int
    name: str
    checksum: str
    oldest_webhookd: str


def migrate(
    dsn: str, *, migrations: Sequence[Migration] | None = None, patience_s: float = 60.0
) -> list[str]:
    """Bring the database's schema up to date and return the names of the migrations that were
    applied, oldest first.

    Safe to repeat and to run several times at once. Blocks while another migration runs, and up to
    *patience_s* for the locks of each migration. Raise `UnusableError` when the schema or the
    server cannot be used, and change nothing then; `WebhookdError` when the database is away or the
    locks were not to be had.
    """
    known = load() if migrations is None else migrations
    with session.connect_command(dsn, role="migrate") as connection:
        if connection.behind_pooler:
            # Its lock belongs to a session, and a pooler may give each statement another.
            raise UnusableError(
                "migrate cannot go through a pooler such as pgbouncer: give --dsn PostgreSQL's "
                "own address"
            )
        _refuse_old_server(connection)
        _refuse_other_encoding(connection)
        _take_turn(connection)
        applied = _applied(connection)
        _compare(known, applied)
        pending = [migration for migration in known if migration.version > len(applied)]
        unknown = [row.name for row in applied if row.version > len(known)]
        if unknown:
            raise UnusableError(
                f"the schema has the migration {unknown[-1]}, which webhookd {__version__} does "
                "not know: "
                "run `webhookd migrate` of the release that made it"
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

    A newer schema is fine as long as its migrations tolerate *version*. *connection* may be in any
    mode; it is read from only.
    """
    known = load() if migrations is None else migrations
    _refuse_old_server(connection)
    _refuse_other_encoding(connection)
    applied = _applied(connection)
    _compare(known, applied)
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
    """Return the packaged migrations, oldest first; they are numbered from 1 without a gap."""
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
    """Return the migration in a file called *name* (without its suffix); raise `ValueError` for a
    malformed one.
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
            f"migration {name}: needs a name like 0001_name and one line `-- oldest webhookd: "
            "0.1.0`"
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


def _refuse_old_server(connection: Connection) -> None:
    if connection.info.server_version < OLDEST_POSTGRES:
        raise UnusableError(
            f"PostgreSQL {connection.info.parameter_status('server_version')} is too old: "
            "webhookd needs 14 or newer"
        )


def _refuse_other_encoding(connection: Connection) -> None:
    # What a receiver answers could not be recorded where the database has no such character, and
    # would be asked for again.
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise UnusableError(
            f"the database's encoding is {encoding}, and webhookd needs UTF8: make a database "
            "for it"
            " with `createdb -E UTF8 -T template0 NAME`, and restore a dump of this one into it "
            "where it holds data"
        )


def _take_turn(connection: Connection, patience_s: float = 600.0) -> None:
    """Let one migration run at a time. A waiting lock holds a snapshot, for which CREATE INDEX
    CONCURRENTLY waits.
    """
    deadline = time.monotonic() + patience_s
    told = False
    while not _row(connection, "SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", ADVISORY_LOCK)[0]:
        if time.monotonic() > deadline:
            raise WebhookdError(
                f"another `webhookd migrate` has been running for {patience_s:.0f} s: see what "
                "it waits for"
            )
        if not told:
            log.info("waiting for another migration to end")
            told = True
        time.sleep(0.1)


def _applied(connection: Connection) -> list[Applied]:
    if _row(connection, "SELECT pg_catalog.to_regclass('pggit.webhookd_migrations')")[0] is None:
        return []
    rows = connection.execute(
        "SELECT version, name, checksum, oldest_webhookd FROM pggit.webhookd_migrations ORDER BY "
        "version"
    ).fetchall()
    return [Applied(*row) for row in rows]


def _compare(known: Sequence[Migration], applied: Sequence[Applied]) -> None:
    for expected, row in enumerate(applied, start=1):
        if row.version != expected:
            raise UnusableError(
                f"pggit.webhookd_migrations has no migration {expected:04} but later ones: "
                "restore its row"
            )
    for migration, row in zip(known, applied, strict=False):
        if (migration.name, migration.checksum) != (row.name, row.checksum):
            raise UnusableError(
                f"the migration {row.name} was applied with another content than webhookd "
                f"{__version__} carries: "
                "use the release that made the schema"
            )


def _apply(connection: Connection, migration: Migration, *, patience_s: float) -> None:
    attempts = Retrying(
        retry=retry_if_exception_type((errors.LockNotAvailable, errors.DeadlockDetected)),
        wait=wait_random_exponential(multiplier=0.1, max=2.0),
        stop=stop_after_delay(patience_s),
        before_sleep=_tell_of_retry,
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
            f"the database went away during {migration.name}: {session.message_of(error)}"
        ) from error
    except psycopg.Error as error:
        raise UnusableError(
            f"the migration {migration.name} cannot be applied: {session.message_of(error)}"
        ) from error


def _tell_of_retry(state: RetryCallState) -> None:
    log.info("migration waits for a lock", attempt=state.attempt_number)


def _apply_once(connection: Connection, migration: Migration) -> None:
    if migration.in_transaction:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'".encode())
            grants = legacy.prepare(connection) if migration.version == 1 else []
            _create_schema(connection)
            connection.execute(migration.text.encode())
            legacy.finish(connection, grants)
            _enter(connection, migration)
        return
    for statement in re.split(r";[ \t]*$", migration.text, flags=re.MULTILINE):
        if re.sub(r"--.*", "", statement).strip():
            connection.execute(statement.encode())
    with connection.transaction():
        _enter(connection, migration)


def _create_schema(connection: Connection) -> None:
    # CREATE SCHEMA IF NOT EXISTS asks for the right to create one even where it exists, which its
    # owner may not have.
    if _row(connection, "SELECT pg_catalog.to_regnamespace('pggit')")[0] is None:
        connection.execute("CREATE SCHEMA pggit")


def _enter(connection: Connection, migration: Migration) -> None:
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
    """Return a release number in a form that compares; a suffix such as `rc1` is not looked at."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    if numbers is None:
        raise ValueError(f"{text!r} is no release number")
    return tuple(map(int, numbers[0].split(".")))


def _row(
    connection: Connection, statement: LiteralString, params: Sequence[object] = ()
) -> tuple[Any, ...]:
    return cast(tuple[Any, ...], connection.execute(statement, params).fetchone())
