"""A sign of life, and which chores fall to a worker."""

from uuid import uuid4

from tests.support.engine import Engine
from tests.support.postgres import Database
from webhookd.worker.chores.beat import Beat
from webhookd.worker.chores.bodies import QuarantineMeasurer
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.depth import DepthCounter
from webhookd.worker.chores.disabler import Disabler
from webhookd.worker.chores.finished import FinishedCounts
from webhookd.worker.chores.giver_up import GiverUp
from webhookd.worker.chores.pruner import Pruner
from webhookd.worker.chores.reaper import Reaper
from webhookd.worker.chores.secrets import OldSecrets
from webhookd.worker.chores.sweeper import Sweeper
from webhookd.worker.wakeup import WakeReason, WakeupPipe

INTERVALS_S = {"reap": 4.0, "sweep": 30.0}


def test_it_is_seen_and_the_database_knows_how_long_ago(
    database: Database, enlisted: Engine, pool: Pool
) -> None:
    database.execute("UPDATE pggit.workers SET seen_at = now() - interval '1 minute'")
    Beat(enlisted.incarnation, WakeupPipe()).run(pool, {})
    seen = "SELECT seen_at > now() - interval '10 s' FROM pggit.workers"
    assert database.execute(seen) == [(True,)]


def test_a_chore_falls_to_one_worker_and_not_again_within_its_interval(
    database: Database, pool: Pool
) -> None:
    first, second = (Beat(uuid4(), WakeupPipe()) for _ in range(2))
    assert first.run(pool, INTERVALS_S) == {"reap", "sweep"}
    assert second.run(pool, INTERVALS_S) == frozenset()
    database.execute("UPDATE pggit.chores SET last_run_at = last_run_at - interval '5 s'")
    assert second.run(pool, INTERVALS_S) == {"reap"}
    database.execute("UPDATE pggit.chores SET last_run_at = last_run_at - interval '26 s'")
    assert first.run(pool, INTERVALS_S) == {"reap", "sweep"}


def test_a_chore_that_this_worker_does_not_know_is_left_to_others(pool: Pool) -> None:
    assert Beat(uuid4(), WakeupPipe()).run(pool, {"reap": 4.0}) == {"reap"}
    assert Beat(uuid4(), WakeupPipe()).run(pool, INTERVALS_S) == {"sweep"}


def test_the_database_has_a_row_for_each_shared_chore_and_no_other(database: Database) -> None:
    chores = (
        Reaper,
        FinishedCounts,
        Sweeper,
        DepthCounter,
        Pruner,
        Disabler,
        GiverUp,
        OldSecrets,
        QuarantineMeasurer,
    )
    assert all(chore.shared for chore in chores)
    # The turn to try rows in quarantine is no chore, and has its row here all the same.
    shared = {chore.name for chore in chores} | {"quarantine"}
    assert {row[0] for row in database.execute("SELECT chore FROM pggit.chores")} == shared


def test_a_worker_whose_row_is_gone_is_to_register_again(pool: Pool) -> None:
    wakeup = WakeupPipe()
    Beat(uuid4(), wakeup).run(pool, {})
    assert wakeup.drain() == [WakeReason.UNREGISTERED]


def test_where_no_worker_is_notified_this_one_is_to_look(
    database: Database, enlisted: Engine, pool: Pool
) -> None:
    wakeup = WakeupPipe()
    beat = Beat(enlisted.incarnation, wakeup)
    beat.run(pool, {})
    assert wakeup.drain() == [WakeReason.SWEEP]
    database.execute("UPDATE pggit.workers SET looking = true")
    beat.run(pool, {})
    assert wakeup.drain() == []
