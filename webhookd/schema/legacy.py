"""Takes over the tables, views and functions of an earlier pggit, in the transaction of the first
migration.

The tables keep their rows, extra columns, grants and foreign keys; the views and functions are made
anew with the grants that they had. What cannot be brought into shape is refused, and the
transaction changes nothing.
"""

from importlib import resources
from typing import Any

import psycopg

from webhookd.errors import UnusableError

# Raised by sql/adopt/earlier_tables.sql with a message for people.
REFUSED = "WD001"

Connection = psycopg.Connection[tuple[Any, ...]]


def prepare(connection: Connection) -> list[str]:
    """Make an earlier pggit's tables fit for migration 0001 and return the grants to give again
    after it.

    Does nothing on a database without such tables. Raise `UnusableError` where they cannot be
    adopted.
    """
    try:
        grants = [row[0] for row in connection.execute(_statement("earlier_grants"))]
        for (drop,) in connection.execute(_statement("earlier_drops")).fetchall():
            connection.execute(drop.encode())
        connection.execute(_statement("earlier_tables"))
        return grants
    except psycopg.OperationalError:
        raise  # a lock that was not to be had is tried again
    except psycopg.Error as error:
        message, detail = error.diag.message_primary or str(error), error.diag.message_detail
        if detail and error.sqlstate != REFUSED:
            message += f" ({detail.partition(chr(10))[0]})"
        raise UnusableError(
            f"the earlier pggit's tables cannot be adopted, nothing was changed: {message}"
        ) from error


def finish(connection: Connection, grants: list[str]) -> None:
    """Give the grants of the earlier views and functions to the new ones."""
    for grant in grants:
        connection.execute(grant.encode())


def _statement(name: str) -> bytes:
    return (resources.files("webhookd.sql") / "adopt" / f"{name}.sql").read_bytes()
