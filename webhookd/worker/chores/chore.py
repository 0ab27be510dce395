"""What every chore is."""

from typing import ClassVar, Protocol

from psycopg_pool import ConnectionPool

from webhookd.postgres import session

Pool = ConnectionPool[session.Connection]

TURN_S = 4.5  # from the end of one round of chores to the start of the next
# Every round, but for a *shared* chore in one worker only. Shorter than TURN_S, so that a worker
# which comes back a moment early does not skip a round.
EVERY_TURN_S = 4.0


class Chore(Protocol):
    """Something to do again and again.

    *interval_s* passes at least between the starts of two runs. A *shared* chore is run by one
    worker of the fleet at a time: the table pggit.chores has a row called *name* for it, and the
    database decides whose turn it is (`beat.Beat`). Every worker runs the other chores for itself.
    """

    name: ClassVar[str]
    interval_s: ClassVar[float]
    shared: ClassVar[bool]

    def run(self, pool: Pool) -> None:
        """Do it once. Blocks; raises `psycopg.Error`. Takes a connection only for a moment at a
        time: the worker's claims and records need the same two.
        """
