"""Where the fleet's workers serve their metrics."""

from tests.support.engine import Engine
from tests.support.postgres import Database
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.targets import TargetsReader


def test_the_addresses_of_all_workers_are_known_after_the_first_run(
    database: Database, enlisted: Engine, pool: Pool
) -> None:
    assert TargetsReader().targets is None
    reader = TargetsReader()
    database.execute("UPDATE pggit.workers SET metrics_address = 'host-a:9090'")
    reader.run(pool)
    assert reader.targets is not None
    [group] = reader.targets
    assert group["targets"] == ["host-a:9090"]
