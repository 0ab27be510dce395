"""Claims and records of two workers, or a worker and an operator, at the same moment."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.engine import (
    Engine,
    answered,
    engine,
    given_back,
    insert,
    lane,
    register,
    statuses,
)
from tests.support.faults import replaced
from tests.support.postgres import Database
from tests.support.waiting import eventually
from webhookd.core.model import Delivery, Result

GATE = 770_077
WAIT = f"(SELECT pg_advisory_xact_lock({GATE})) IS NOT NULL"
TIMER_HAS_COME = "h.runnable_at BETWEEN to_timestamp(%(lanes_from)s) AND now()"


@contextmanager
def stopped_at_the_gate(database: Database, worker: Engine) -> Iterator[list[Delivery]]:
    """Have *worker* claim, and stop inside the statement that holds the gate; it goes on when the
    body ends.

    The list that the body gets holds the claim's deliveries afterwards.
    """
    taken: list[Delivery] = []
    claiming = threading.Thread(target=lambda: taken.extend(worker.claim(10).deliveries))
    with database.connect() as gate:
        gate.execute("SELECT pg_advisory_lock(%s)", [GATE])
        claiming.start()
        eventually(
            lambda: database.execute(
                "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                [GATE],
            ),
            what="the claim stops at the gate",
        )
        yield taken
    claiming.join(30)
    assert not claiming.is_alive()


def pausing_before_the_locks(name: str, text: str) -> str:
    return (
        replaced(text, TIMER_HAS_COME, f"{TIMER_HAS_COME} AND {WAIT}")
        if name == "lock_lanes"
        else text
    )


def with_the_rows_of_the_locks_snapshot(name: str, text: str) -> str:
    """Take the rows that the lanes' own statement saw, as a claim of one statement would."""
    seen = (
        "(SELECT set_config('test.seen', coalesce(string_agg(q.delivery_id::text, ','), '0'), true)"
        " FROM pggit.alert_delivery_queue q WHERE q.delivery_status IN ('pending', 'retrying')) "
        "IS NOT NULL"
    )
    if name == "lock_lanes":
        return replaced(text, TIMER_HAS_COME, f"{TIMER_HAS_COME} AND {seen} AND {WAIT}")
    if name == "claim":
        listed = (
            "w.delivery_id = ANY (string_to_array(current_setting('test.seen'), ',')::bigint[])"
        )
        due = "w.next_retry_at BETWEEN to_timestamp(l.mark) AND now()"
        return replaced(text, due, f"{due} AND {listed}")
    return text


@pytest.mark.parametrize(
    ("mutate", "taken_count"),
    [(pausing_before_the_locks, 1), (with_the_rows_of_the_locks_snapshot, 0)],
    ids=["as it is", "in one statement with the locks"],
)
def test_a_claim_sees_what_was_recorded_until_it_had_the_lane(
    database: Database, mutate: Callable[[str, str], str], taken_count: int
) -> None:
    register(database, 1)
    insert(database, 1)
    with (
        engine(database, "worker-1") as owner,
        engine(database, "worker-2", mutate=mutate) as claimant,
    ):
        held = owner.take()
        database.execute("UPDATE pggit.webhook_health_metrics SET runnable_at = now()")
        with stopped_at_the_gate(database, claimant) as taken:
            owner.finish(held, given_back())
        assert len(taken) == taken_count


def pausing_with_the_locks(name: str, text: str) -> str:
    if name != "claim":
        return text
    return replaced(
        text, "WHERE l.quota > 0 ), claimed", f"WHERE l.quota > 0 AND {WAIT} ), claimed"
    )


def without_locks(name: str, text: str) -> str:
    return replaced(text, "FOR NO KEY UPDATE SKIP LOCKED", "") if name == "lock_lanes" else text


@pytest.mark.parametrize("locks", [True, False], ids=["as it is", "without the lanes' locks"])
def test_two_claims_at_the_same_moment_keep_to_the_cap(database: Database, locks: bool) -> None:
    def second(name: str, text: str) -> str:
        return text if locks else without_locks(name, text)

    register(database, 1, max_in_flight=5)
    insert(database, 1, 20)
    with (
        engine(
            database,
            "worker-1",
            mutate=lambda name, text: pausing_with_the_locks(name, second(name, text)),
        ) as one,
        engine(database, "worker-2", mutate=second) as two,
    ):
        with stopped_at_the_gate(database, one) as taken:
            two.connection.execute("SET lock_timeout = '5s'")
            others = two.claim(10).deliveries
        kept = (
            len(taken) + len(others)
            == 5
            == statuses(database)["sending"]
            == lane(database, 1)["in_flight"]
        )
        assert kept == locks


def test_a_cancel_that_commits_while_its_result_is_being_recorded_is_not_overwritten(
    database: Database,
) -> None:
    register(database, 1)
    insert(database, 1, 2)
    with engine(database) as worker:
        cancelled, other = worker.take()
        with database.connect(autocommit=False) as operator:
            operator.execute(
                "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE "
                "delivery_id = %s",
                [cancelled.delivery_id],
            )
            recorded = worker.finish([cancelled, other], answered(200))
            assert [result.delivery for result in recorded.accepted] == [other]
            assert [result.delivery for result in recorded.deferred] == [cancelled]
            operator.commit()
        assert [result.delivery for result in worker.record(recorded.deferred).refused] == [
            cancelled
        ]
    assert statuses(database) == {"failed": 1, "delivered": 1}


def test_recorders_meet_rows_in_any_order(database: Database) -> None:
    """Two batches with the same lanes, shuffled differently, recorded at once: neither waits for
    the other for ever.
    """
    register(database, *range(1, 6))
    for webhook_id in range(1, 6):
        insert(database, webhook_id, 40)
    with engine(database, "worker-1") as one, engine(database, "worker-2") as two:
        work = [(one, one.take(100)), (two, two.take(100))]
        left: list[int] = []

        def record(recorder: Engine, deliveries: list[Delivery]) -> None:
            random.Random(recorder.worker_id).shuffle(deliveries)
            results = [Result(delivery, answered(200)) for delivery in deliveries]
            while results:
                results = list(recorder.record(results).deferred)
            left.append(len(results))

        threads = [threading.Thread(target=record, args=item) for item in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert left == [0, 0]
    assert statuses(database) == {"delivered": 200}
