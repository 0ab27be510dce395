"""What the sweep repairs and removes."""

from tests.support.engine import Engine, insert, lane, register
from tests.support.postgres import Database
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.sweeper import Sweeper
from webhookd.worker.wakeup import WakeReason, WakeupPipe


def test_leases_that_a_delete_left_counted_are_counted_again_and_the_dispatcher_looks(
    database: Database, worker: Engine, pool: Pool
) -> None:
    register(database, 1)
    insert(database, 1, 2)
    worker.take_all()
    database.execute(
        "SET session_replication_role = replica; DELETE FROM pggit.alert_delivery_queue"
    )
    assert lane(database, 1)["in_flight"] == 2
    wakeup = WakeupPipe()
    Sweeper(wakeup).run(pool)
    assert lane(database, 1)["in_flight"] == 0
    assert wakeup.drain() == [WakeReason.SWEEP]


def test_workers_that_died_unseen_and_old_minutes_are_removed(
    database: Database, enlisted: Engine, pool: Pool
) -> None:
    database.execute(
        "INSERT INTO pggit.worker_minutes (minute, worker_id, delivered, failed, timeouts,"
        " circuit_opens, rate_limit_hits, durations, slowest_seconds)"
        " SELECT now() - age * interval '1 hour', 'w', 0, 0, 0, 0, 0, '{}', 0"
        " FROM unnest(ARRAY[1, 26]) AS age"
    )
    Sweeper(WakeupPipe()).run(pool)
    assert database.execute("SELECT count(*) FROM pggit.workers") == [(1,)]
    database.execute("UPDATE pggit.workers SET seen_at = now() - interval '2 hours'")
    Sweeper(WakeupPipe()).run(pool)
    assert database.execute("SELECT count(*) FROM pggit.workers") == [(0,)]
    assert database.execute("SELECT count(*) FROM pggit.worker_minutes") == [(1,)]
