"""The duty to be notified: of all workers of the fleet, one is notified of inserts.

NOTIFY costs the application: committing transactions queue behind one lock. So the trigger reads a
flag and notifies only while the flag names a worker. It is an eventcount (docs/architecture.md,
"Wakeups"): the worker with the duty either sleeps with the flag up in its name, or keeps the flag
down and looks every few milliseconds itself. Without room it hands the duty over.

When to do what is decided in core/schedule.py. Here are the statements.
"""

import json
import os
import socket
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from webhookd import __version__
from webhookd.postgres import session, statements
from webhookd.worker.listener import Listener

CALL_ALL = "all"


class NotifyDuty:
    """This incarnation's listener and its row in pggit.workers, and how the duty is taken and given
    away. Used by the dispatcher's thread only. The row holds *options*, by which commands judge.

    Methods block for one short transaction and raise `psycopg.Error`.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        worker_id: str,
        incarnation: UUID,
        metrics_address: str,
        options: Mapping[str, Any],
    ) -> None:
        self.listener = listener
        self._parameters = {
            "incarnation": incarnation,
            "worker_id": worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "metrics_address": metrics_address,
            "options": json.dumps(options),
        }
        self.wake_number = 0

    def register(self, connection: session.Connection) -> bool:
        """Enter this worker among the living; again if its row has vanished. Return whether it has
        a new wake_number: then the flag does not name it, whatever it had taken before.
        """
        row = connection.execute(statements.load("register_worker"), self._parameters).fetchone()
        assert row is not None
        before, self.wake_number = self.wake_number, row[0]
        return self.wake_number != before

    def take(self, connection: session.Connection) -> bool:
        """Raise the flag in this worker's name, unless another has the duty; return whether this
        worker has it now.

        If so, producers that read the flag before it was up may still commit without a
        notification: outwait `open_producers`.
        """
        with session.transaction(connection) as cursor:
            cursor.execute(statements.load("lock_watch"))
            row = cursor.execute(statements.load("take_watch"), self._parameters).fetchone()
        return bool(row and row[0])

    def open_producers(self, connection: session.Connection) -> frozenset[str]:
        """Return the transactions that may have inserted without seeing the flag that is up now."""
        rows = connection.execute(statements.load("open_producers"))
        return frozenset(row[0] for row in rows)

    def lower(self, connection: session.Connection) -> None:
        """Keep the duty with the flag down; this worker must look every few milliseconds now."""
        with session.transaction(connection) as cursor:
            cursor.execute(statements.load("lock_watch"))
            cursor.execute(statements.load("lower_flag"), self._parameters)

    def hand_over(self, connection: session.Connection) -> None:
        """Say that this worker has no room. If it has the duty, give it to a worker that has room,
        and notify that one; if there is none, lower the flag.
        """
        with session.transaction(connection) as cursor:
            cursor.execute(statements.load("lock_watch"))
            cursor.execute(statements.load("hand_over_watch"), self._parameters)

    def call_all(self, connection: session.Connection) -> None:
        """Wake every worker: there is more to do than this one has room for."""
        connection.execute(
            statements.load("call_all"), {"payload": f"{CALL_ALL} {self.wake_number}"}
        )

    def calls_me(self, payload: str) -> bool:
        """Return whether *payload* is another worker's call to all."""
        return payload.startswith(CALL_ALL) and payload != f"{CALL_ALL} {self.wake_number}"

    def leave(self, connection: session.Connection) -> None:
        """Hand the duty over and delete this worker's row."""
        self.hand_over(connection)
        connection.execute(statements.load("leave"), self._parameters)
