"""Adopts the tables, views and functions of an earlier pggit, in the transaction of the first
migration.

The tables keep their rows, extra columns, grants and foreign keys. The views and functions are
created again, with the grants that they had. Where a table cannot be adopted the transaction is
rolled back, and nothing has changed.
"""

from importlib import resources
from typing import Any

import psycopg

from webhookd.errors import UnusableError

# The SQLSTATE of sql/adopt/legacy_tables.sql for errors whose message says everything.
REFUSED = "WD001"

Connection = psycopg.Connection[tuple[Any, ...]]


def prepare(connection: Connection) -> list[str]:
    """Change the tables of an earlier pggit so that migration 0001 fits, and return the statements
    for `finish`. Without such tables, do nothing.

    Raise `UnusableError` where they cannot be adopted, `psycopg.OperationalError` where a lock was
    not granted in time.
    """
    try:
        grants = [row[0] for row in connection.execute(_statement("legacy_grants"))]
        for (drop,) in connection.execute(_statement("legacy_drops")).fetchall():
            connection.execute(drop.encode())
        connection.execute(_statement("legacy_tables"))
        return grants
    except psycopg.OperationalError:
        raise  # no lock: `migrate` tries again
    except psycopg.Error as error:
        message, detail = error.diag.message_primary or str(error), error.diag.message_detail
        if detail and error.sqlstate != REFUSED:
            message += f" ({detail.partition(chr(10))[0]})"
        raise UnusableError(
            f"the earlier pggit's tables cannot be adopted, nothing was changed: {message}"
        ) from error


def finish(connection: Connection, grants: list[str]) -> None:
    """Run the statements that `prepare` returned: they grant the rights on the old views and
    functions on the new ones.
    """
    for grant in grants:
        connection.execute(grant.encode())


def _statement(name: str) -> bytes:
    return (resources.files("webhookd.sql") / "adopt" / f"{name}.sql").read_bytes()
