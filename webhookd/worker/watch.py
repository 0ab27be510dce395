"""The watch: of all workers of the fleet that have nothing to do, one is told of inserts.

Telling costs the application: NOTIFY makes committing transactions queue up behind one lock. So
inserts look at a flag and notify only while it is up. It is an eventcount (docs/architecture.md,
"Wakeups"): the keeper of the watch either sleeps with the flag up in its name, or keeps it down and
looks every few milliseconds itself. Who has no room hands the watch over, or drops it.
"""

import os
import socket
from uuid import UUID

from webhookd import __version__
from webhookd.postgres import session, statements
from webhookd.worker.listener import Listener

CALL_ALL = "all"


class NotifyDuty:
    """This incarnation's ear and row among the workers, and its part in the watch. Used by the
    dispatcher's thread only.

    Methods block for one short transaction and raise `psycopg.Error`.
    """

    def __init__(
        self, listener: Listener, *, worker_id: str, incarnation: UUID, metrics_address: str
    ) -> None:
        self.listener = listener
        self._parameters = {
            "incarnation": incarnation,
            "worker_id": worker_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "metrics_address": metrics_address,
        }
        self.wake_number = 0
        self.holds_duty = False  # this worker keeps the watch
        self.polling = False  # ... with the flag down

    def register(self, connection: session.Connection) -> None:
        """Enter this worker among the living, with a wake_number of its own; again if its row has
        vanished.
        """
        row = connection.execute(statements.load("register_worker"), self._parameters).fetchone()
        assert row is not None
        if row[0] != self.wake_number:
            self.wake_number, self.holds_duty, self.polling = row[0], False, False

    def take(self, connection: session.Connection) -> bool:
        """Raise the flag in this worker's name unless another worker keeps the watch; return
        whether this one keeps it now.

        If so, producers that looked at the flag before it was up may still commit unheard: outwait
        `lockers`.
        """
        with session.transaction(connection) as cursor:
            cursor.execute(statements.load("lock_watch"))
            row = cursor.execute(statements.load("take_watch"), self._parameters).fetchone()
        self.holds_duty, self.polling = bool(row and row[0]), False
        return self.holds_duty

    def open_producers(self, connection: session.Connection) -> set[str]:
        """Return the transactions that may have inserted without seeing the flag that is up now."""
        return {row[0] for row in connection.execute(statements.load("open_producers"))}

    def lower(self, connection: session.Connection) -> None:
        """Keep the watch with the flag down; this worker must look every few milliseconds from now
        on.
        """
        with session.transaction(connection) as cursor:
            cursor.execute(statements.load("lock_watch"))
            cursor.execute(statements.load("lower_flag"), self._parameters)
        self.polling = True

    def hand_over(self, connection: session.Connection) -> None:
        """Say that this worker has no room; if it keeps the watch, wake another that has, and make
        it the keeper.
        """
        with session.transaction(connection) as cursor:
            cursor.execute(statements.load("lock_watch"))
            cursor.execute(statements.load("hand_over_watch"), self._parameters)
        self.holds_duty = self.polling = False

    def call_all(self, connection: session.Connection) -> None:
        """Wake every worker: there is more to do than this one has room for."""
        connection.execute(
            statements.load("call_all"), {"payload": f"{CALL_ALL} {self.wake_number}"}
        )

    def calls_me(self, payload: str) -> bool:
        """Return whether *payload* is another worker's call to all."""
        return payload.startswith(CALL_ALL) and payload != f"{CALL_ALL} {self.wake_number}"

    def leave(self, connection: session.Connection) -> None:
        """Hand the watch over and strike this worker's row."""
        self.hand_over(connection)
        connection.execute(statements.load("leave"), self._parameters)
