"""Where the fleet's workers serve their metrics."""

from typing import ClassVar

from webhookd.metrics.discovery import TargetGroups, target_groups
from webhookd.postgres import statements
from webhookd.worker.chores.chore import EVERY_TURN_S, Pool


class TargetsReader:
    """Keeps the addresses that this worker's endpoint answers for `/targets`.

    *targets* is None until the first run. It stays as it was while the database is away: Prometheus
    goes on scraping.
    """

    name: ClassVar[str] = "targets"
    interval_s: ClassVar[float] = EVERY_TURN_S
    shared: ClassVar[bool] = False

    def __init__(self) -> None:
        self.targets: TargetGroups | None = None

    def run(self, pool: Pool) -> None:
        """Read them. Blocks for one statement."""
        with pool.connection() as connection:
            self.targets = target_groups(connection.execute(statements.load("worker_targets")))
