"""What a listener hears of the wake channel."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tests.support.postgres import Database

Connection = psycopg.Connection[tuple[Any, ...]]


@contextmanager
def watched(database: Database) -> Iterator[Connection]:
    """A connection that hears the wake channel, with the flag up."""
    with database.connect() as listener:
        listener.execute("LISTEN webhookd_wake")
        listener.execute("SELECT setval('pggit.wake_flag', 42)")
        yield listener


def heard(listener: Connection) -> list[str]:
    """Return what was notified until now; notifications of committed transactions are there at
    once.
    """
    listener.execute("SELECT 1")
    return [notification.payload for notification in listener.notifies(timeout=0)]
