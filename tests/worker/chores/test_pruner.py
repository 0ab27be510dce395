"""A turn of the removal of what was kept for long enough."""

import threading

from tests.support.postgres import Database
from tests.support.retention import KEEP, finished, rounds_are_due
from webhookd.postgres.retention import Retention
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.pruner import Pruner

ROWS = "SELECT count(*)::int FROM pggit.alert_delivery_queue"


def test_old_rows_go_unless_the_worker_is_told_to_stop(database: Database, pool: Pool) -> None:
    finished(database, 3, days=1000)
    removed: dict[str, int] = {}
    stop = threading.Event()
    retention = Retention(KEEP, removed=lambda table, rows: removed.update({table: rows}))
    pruner = Pruner(retention, stop=stop)
    stop.set()
    rounds_are_due(database)
    pruner.run(pool)
    assert database.execute(ROWS) == [(3,)]
    stop.clear()
    rounds_are_due(database)
    pruner.run(pool)
    assert database.execute(ROWS) == [(0,)]
    assert removed["alert_delivery_queue"] == 3
