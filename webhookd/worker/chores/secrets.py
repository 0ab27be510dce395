"""Old secrets leave: the table, once they have ended, and this worker's memory."""

from typing import ClassVar

from webhookd import cache
from webhookd.postgres import statements
from webhookd.worker.chores.chore import Pool

ERASED_AT_ONCE = 1000  # rows that one statement locks


class OldSecrets:
    """Erases old secrets that have ended. They sign no longer before that: see `{settings_columns}`
    in `postgres.rows`.
    """

    name: ClassVar[str] = "old_secrets"
    interval_s: ClassVar[float] = 30.0
    shared: ClassVar[bool] = True

    def run(self, pool: Pool) -> None:
        """Erase all that there are. Blocks for some statements."""
        while True:
            with pool.connection() as connection:
                erased = connection.execute(
                    statements.load("erase_old_secrets"), {"limit": ERASED_AT_ONCE}
                ).rowcount
            if erased < ERASED_AT_ONCE:
                return


class UnusedEntries:
    """Lets go what this worker remembers and has not used since the run before last. Headers may
    hold secrets, and so may URLs.
    """

    name: ClassVar[str] = "caches"
    interval_s: ClassVar[float] = 120.0
    shared: ClassVar[bool] = False

    def run(self, pool: Pool) -> None:
        """Age the caches. Blocks for no I/O."""
        cache.age_all()
