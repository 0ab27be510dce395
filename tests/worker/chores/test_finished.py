"""The counts of finished deliveries are summed up, and their sum stays."""

from tests.support.postgres import Database
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.finished import FinishedCounts


def test_many_rows_become_one_with_the_same_sum(database: Database, pool: Pool) -> None:
    database.execute(
        "INSERT INTO pggit.finished_counts (delivered, failed)"
        " SELECT n, 1 FROM generate_series(1, 30) n"
    )
    FinishedCounts().run(pool)
    rows = "SELECT count(*)::int, sum(delivered)::int, sum(failed)::int FROM pggit.finished_counts"
    assert database.execute(rows) == [(1, 465, 30)]
