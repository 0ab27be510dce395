"""The identity of the database: distinguishes a copy from the original, and makes a copy usable.

A dump of production that is restored for staging contains production's pending deliveries. So the
schema stores in which cluster and database it was created, workers refuse to send from any other,
and `webhookd adopt` decides what happens to the copy. Replicas share the cluster's identifier, so a
failover does not look like a copy; a copy of all files of the cluster cannot be distinguished.
"""

from importlib import resources
from typing import Any

import psycopg

from webhookd.errors import UnusableError
from webhookd.postgres import session, statements

Connection = psycopg.Connection[tuple[Any, ...]]


def adopt(dsn: str, *, discard_pending: bool) -> int:
    """Make a copied database an original, and return how many deliveries were discarded.

    With *discard_pending* all pending deliveries become `failed`, and a new installation_id makes
    every later webhook-id differ from the original's. Without it the copy continues where the
    original stopped. Raise `UnusableError` where there is no schema or while workers run on it.
    """
    with session.connect_command(dsn, role="adopt") as connection, connection.transaction():
        if _value(connection, b"SELECT to_regclass('pggit.installation')") is None:
            raise UnusableError("the database has no schema of webhookd's: run `webhookd migrate`")
        _refuse_living_workers(connection)
        discarded = _discard_pending(connection) if discard_pending else 0
        system, oid = _identity(connection)
        connection.execute(
            "UPDATE pggit.installation SET system_identifier = %s, database_oid = %s", (system, oid)
        )
        return discarded


def remember_identity(connection: Connection) -> None:
    """Store the identity of this database, once: a copy keeps the original's until it is
    adopted.
    """
    system, oid = _identity(connection)
    connection.execute(
        "UPDATE pggit.installation SET system_identifier = %s, database_oid = %s WHERE "
        "database_oid = 0",
        (system, oid),
    )


def refuse_copy(connection: Connection) -> None:
    """Raise `UnusableError` when the database is a copy and was not adopted."""
    row = connection.execute(
        "SELECT system_identifier, database_oid::bigint FROM pggit.installation"
    ).fetchone()
    if row is None:
        raise UnusableError(
            "pggit.installation is empty: run `webhookd adopt --discard-pending` or `--continue`"
        )
    system, oid = _identity(connection)
    # A role may have no right to read the cluster's identifier. Then only the database's number is
    # compared.
    if oid != row[1] or (system and row[0] and system != row[0]):
        raise UnusableError(
            "this database is a copy of another one and has its pending deliveries: run `webhookd "
            "adopt --discard-pending` to start afresh, or `webhookd adopt --continue` where it "
            "replaces the original"
        )


def _identity(connection: Connection) -> tuple[str, int]:
    oid = _value(
        connection,
        b"SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database()",
    )
    may_read = _value(
        connection, b"SELECT has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE')"
    )
    # Two statements: PostgreSQL checks the right when the statement starts, also for a call inside
    # a CASE that is not reached.
    system = (
        _value(connection, b"SELECT system_identifier::text FROM pg_catalog.pg_control_system()")
        if may_read
        else ""
    )
    return str(system), int(oid)


def _refuse_living_workers(connection: Connection) -> None:
    living = connection.execute(statements.load("living_worker").encode()).fetchone()
    if living is not None:
        worker_id, host, dead_after_s = living
        raise UnusableError(
            f"{worker_id} on {host} reported to this database within the last {dead_after_s} s: "
            "stop its webhookd, or wait that long where the row was copied too"
        )


def _discard_pending(connection: Connection) -> int:
    discarded = connection.execute(_statement("discard_pending")).rowcount
    connection.execute(_statement("reset_lanes"))
    connection.execute("UPDATE pggit.installation SET installation_id = gen_random_uuid()")
    return discarded


def _statement(name: str) -> bytes:
    return (resources.files("webhookd.sql") / "adopt" / f"{name}.sql").read_bytes()


def _value(connection: Connection, statement: bytes) -> Any:
    row = connection.execute(statement).fetchone()
    return None if row is None else row[0]
