"""Sums up how many deliveries have been finished."""

from typing import ClassVar

from webhookd.postgres import statements
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool


class FinishedCounts:
    """Folds the rows of pggit.finished_counts into one.

    Each record adds a row there instead of updating one that all workers would wait for.
    """

    name: ClassVar[str] = "fold"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = True

    def run(self, pool: Pool) -> None:
        """Sum up, unless there are few rows. Blocks for one statement."""
        with pool.connection() as connection:
            connection.execute(statements.load("fold_finished"))
