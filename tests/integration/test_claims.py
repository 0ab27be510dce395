"""What a claim takes, what it leaves, and who it waits for (nobody)."""

import math
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.engine import (
    ROOMY,
    STANDARD,
    TEN_MINUTES_S,
    Engine,
    answered,
    assert_books_balance,
    delivery,
    engine,
    given_back,
    ids,
    insert,
    lane,
    lanes_of,
    let_pass,
    not_allowed,
    register,
    statuses,
    unseen,
)
from tests.postgres import Database
from webhookd import queries
from webhookd.claims import ClaimInDoubtError
from webhookd.core.breaker import CircuitState
from webhookd.core.model import Delivery


@pytest.fixture
def worker(database: Database) -> Iterator[Engine]:
    with engine(database) as worker:
        yield worker


@pytest.fixture
def other(database: Database) -> Iterator[Engine]:
    with engine(database, "worker-2") as other:
        yield other


def new_rows(database: Database) -> int:
    """Return how many waiting rows no worker has looked at: those that stand in queue_new."""
    rows = database.execute(
        "SELECT count(*) FROM pggit.alert_delivery_queue WHERE NOT routed AND delivery_status IN ('pending', 'retrying')"
    )
    return int(rows[0][0])


# What is due --------------------------------------------------------------------------------------------------------


def test_only_rows_whose_next_retry_at_has_come_are_claimed(database: Database, worker: Engine) -> None:
    register(database, 1)
    due = insert(database, 1, 3)
    insert(database, 1, 2, due_in_s=60)
    assert ids(worker.take()) == due
    assert worker.take() == []


def test_a_created_at_in_the_future_delays_nothing(database: Database, worker: Engine) -> None:
    register(database, 1)
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, created_at) VALUES (1, '{}', now() + interval '1 day')"
    )
    assert len(worker.take()) == 1


def test_a_row_scheduled_for_later_leaves_queue_new_and_comes_up_when_it_is_due(database: Database, worker: Engine) -> None:
    register(database, 1)
    [scheduled] = insert(database, 1, due_in_s=3600)
    assert worker.take_all() == []
    assert new_rows(database) == 0
    assert 3500 < worker.claimer.next_look(worker.connection).lane_s <= 3600
    let_pass(database, 3601)
    assert ids(worker.take()) == [scheduled]


def test_within_a_lane_the_earliest_next_retry_at_goes_first_whether_new_or_tried_before(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    tried = insert(database, 1, 2)
    worker.finish(worker.take(), answered(500))
    let_pass(database, TEN_MINUTES_S)
    new = insert(database, 1, 2)
    older = insert(database, 1, 1, due_in_s=-3600)
    claimed = [worker.take(1)[0].delivery_id for _ in range(5)]
    assert claimed[0] == older[0]
    assert sorted(claimed[1:3]) == tried
    assert claimed[3:] == new


def test_a_claim_takes_no_more_than_its_limit(database: Database, worker: Engine) -> None:
    register(database, 1, 2, 3)
    for webhook_id in (1, 2, 3):
        insert(database, webhook_id, 40)
    assert [len(worker.take(limit)) for limit in (1, 7, 20, 50)] == [1, 7, 20, 50]
    assert len(worker.take_all()) == 120 - 78


def test_a_claim_carries_all_that_a_sender_needs(database: Database, worker: Engine) -> None:
    register(database, 1, secret="whsec_abc", timeout_seconds=2.5, headers='{"x-team": "billing"}')
    [delivery_id] = insert(database, 1)
    [claimed] = worker.take()
    assert claimed.delivery_id == delivery_id
    assert claimed.body == b'{"n": 1}'
    assert (claimed.retry_count, claimed.max_retries, claimed.attempts, claimed.leases_lost, claimed.age_s) == (0, 3, 0, 0, 0.0)
    assert claimed.settings.secret == "whsec_abc"
    assert claimed.settings.headers == (("x-team", "billing"),)
    assert claimed.settings.timeout_s == 2.5
    assert claimed.settings.circuit_threshold == ROOMY.circuit_threshold
    row = delivery(database, delivery_id)
    assert row["delivery_status"] == "sending"
    assert row["worker_id"] == "worker-1"
    assert row["lease_token"] == claimed.token
    assert row["leased_by"] == str(worker.incarnation)


def test_the_lease_outlives_every_exchange_that_may_begin_under_it(database: Database, worker: Engine) -> None:
    register(database, 1, timeout_seconds=120)
    register(database, 2)
    insert(database, 1)
    insert(database, 2)
    claimed = worker.take()
    assert len(claimed) == 2
    [(lease_s,)] = database.execute("SELECT min(extract(epoch FROM lease_until - now())::float8) FROM pggit.alert_delivery_queue")
    for item in claimed:
        assert item.start_before - item.claimed + item.settings.timeout_s < lease_s + 10


# Fairness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lanes_known", [False, True], ids=["new rows", "rows tried before"])
def test_a_lane_with_many_due_rows_does_not_keep_anothers_single_row_from_the_same_claim(
    database: Database, worker: Engine, lanes_known: bool
) -> None:
    register(database, 1, 2)
    lanes_of(database, 1, 2)
    many, [single] = insert(database, 1, 500), insert(database, 2)
    if lanes_known:
        worker.finish(worker.take_all(), answered(429))
        let_pass(database, TEN_MINUTES_S)
    claimed = ids(worker.claim(100).deliveries)
    assert single in claimed
    assert set(claimed) <= {*many, single}


@pytest.mark.parametrize(
    "body", ["repeat('x', 32 * count(*)::int)", "string_agg(md5(i::text), '')"], ids=["compressed", "as it is"]
)
def test_a_claim_ends_once_its_bodies_come_to_the_bytes_asked_for_and_the_rest_is_due_at_once(
    database: Database, worker: Engine, body: str
) -> None:
    """Bodies of 1 MB each."""
    register(database, 1, 2)
    lanes_of(database, 1, 2)
    due = [*insert(database, 1, 4), *insert(database, 2, 4)]
    message = f"SELECT to_jsonb({body}) FROM generate_series(1, 31250) i"
    database.execute(f"UPDATE pggit.alert_delivery_queue SET message_body = ({message})")
    taken: list[int] = []
    for expected in (3, 3, 2):
        claim = worker.claimer.claim(worker.connection, limit=100, body_bytes=2_500_000)
        taken += ids(claim.deliveries)
        assert (len(claim.deliveries), claim.full) == (expected, expected == 3)
    assert sorted(taken) == sorted(due)


def test_a_body_larger_than_the_bytes_asked_for_goes_alone(database: Database, worker: Engine) -> None:
    register(database, 1)
    lanes_of(database, 1)
    insert(database, 1, 2)
    for _ in range(2):
        assert len(worker.claimer.claim(worker.connection, limit=100, body_bytes=1).deliveries) == 1


def test_a_claim_looks_at_as_many_lanes_as_it_takes_to_be_full(database: Database, worker: Engine) -> None:
    """One row a lane needs wide claims; once the lanes are deep again a claim reaches for few of them."""
    register(database, *range(1, 1001))
    lanes_of(database, *range(1, 1001))
    one_each = "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) SELECT i, '{}' FROM generate_series(1, 1000) i"
    database.execute(one_each)
    brought = [len(worker.claim(100).deliveries) for _ in range(20)]
    assert brought[0] == 5  # as many lanes as deep ones would need
    assert sum(brought) == 1000
    assert sum(count > 0 for count in brought) < 16
    database.execute(one_each.replace("1000", "50"))
    for _ in range(20):
        database.execute(one_each.replace("1000", "50") + ", generate_series(1, 40)")
        lanes = worker.claim(100).lanes
    assert lanes <= 10  # five with new rows, five whose timer has come


def test_lanes_behind_the_limit_get_their_turn_with_the_next_claims(database: Database, worker: Engine) -> None:
    register(database, *range(1, 31))
    for webhook_id in range(1, 31):
        insert(database, webhook_id, 30)
    lanes_seen: Counter[int] = Counter()
    for _ in range(16):
        lanes_seen.update(item.webhook_id for item in worker.take(40))
    assert set(lanes_seen) == set(range(1, 31))


def test_a_lane_that_is_never_empty_does_not_starve_new_rows_of_webhooks_before_it(database: Database, worker: Engine) -> None:
    register(database, 1, 9)
    insert(database, 9, 300)
    worker.take(20)
    [late] = insert(database, 1)
    taken: list[int] = []
    for _ in range(4):
        taken += ids(worker.take(20))
    assert late in taken


# Several workers ----------------------------------------------------------------------------------------------------


def test_two_claimers_at_once_never_take_one_row_twice(database: Database, worker: Engine, other: Engine) -> None:
    register(database, *range(1, 11))
    for webhook_id in range(1, 11):
        insert(database, webhook_id, 60)
    taken: dict[str, list[Delivery]] = {}
    start = threading.Barrier(2)

    def drain(claimant: Engine) -> None:
        start.wait(20)
        mine: list[Delivery] = []
        while statuses(database).get("pending", 0):
            mine += claimant.claim(40).deliveries
        taken[claimant.worker_id] = mine

    threads = [threading.Thread(target=drain, args=[claimant]) for claimant in (worker, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    everything = ids(taken["worker-1"] + taken["worker-2"])
    assert len(everything) == len(set(everything)) == 600
    assert all(lane(database, webhook_id)["in_flight"] == 60 for webhook_id in range(1, 11))


def test_a_claimer_does_not_wait_for_lanes_that_another_transaction_holds(
    database: Database, worker: Engine, other: Engine
) -> None:
    register(database, 1, 2)
    insert(database, 1, 5)
    free = insert(database, 2, 5)
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT 1 FROM pggit.webhook_health_metrics WHERE webhook_id = 1 FOR UPDATE")
        other.connection.execute("SET lock_timeout = '1ms'")  # any wait at all would fail
        assert ids(other.take_all()) == free
        operator.rollback()
    assert len(worker.take()) == 5


def test_a_queue_row_that_an_operator_holds_is_skipped_without_waiting(database: Database, worker: Engine) -> None:
    register(database, 1)
    held, *free = insert(database, 1, 5)
    worker.connection.execute("SET lock_timeout = '1ms'")
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT 1 FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", [held])
        assert ids(worker.take_all()) == free
        operator.rollback()
    assert ids(worker.take_all()) == [held]


def test_a_tried_row_that_was_held_for_a_moment_comes_up_with_the_sweep_although_others_wait_for_later(
    database: Database, worker: Engine
) -> None:
    register(database, 1, retry_base_seconds=1000)
    held, later = insert(database, 1, 2)
    [first, second] = worker.take()
    worker.finish([first], given_back())
    worker.finish([second], answered(500))
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT 1 FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", [held])
        assert worker.take_all() == []
        operator.rollback()
    worker.sweep()
    assert ids(worker.take_all()) == [held]
    assert delivery(database, later)["delivery_status"] == "retrying"


def test_a_registration_in_an_open_transaction_keeps_nobody_waiting(database: Database, worker: Engine) -> None:
    register(database, 2)
    insert(database, 1)
    free = insert(database, 2, 3)
    worker.connection.execute("SET lock_timeout = '1s'")
    with database.connect(autocommit=False) as operator:
        operator.execute("INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, 'https://receiver.example/')")
        assert ids(worker.take_all()) == free
        operator.commit()
    assert len(worker.take_all()) == 1


def run_at_once(claimants: list[Engine], *, claims: int) -> int:
    """Have each of *claimants* claim so often at the same time; return how many rows they took altogether."""
    start = threading.Barrier(len(claimants))
    taken: list[int] = []

    def claim(claimant: Engine) -> None:
        start.wait(20)
        taken.extend(len(claimant.claim(100).deliveries) for _ in range(claims))

    threads = [threading.Thread(target=claim, args=[claimant]) for claimant in claimants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return sum(taken)


def test_max_in_flight_over_two_claimers_holds_exactly(database: Database, worker: Engine, other: Engine) -> None:
    register(database, 1, 2, max_in_flight=7)
    lanes_of(database, 1, 2)
    insert(database, 1, 100)
    insert(database, 2, 100)
    assert run_at_once([worker, other], claims=20) == 14
    assert [lane(database, webhook_id)["in_flight"] for webhook_id in (1, 2)] == [7, 7]


def test_the_rate_over_two_claimers_holds_exactly(database: Database, worker: Engine, other: Engine) -> None:
    register(database, 1, rate_limit_per_second=0.001, rate_limit_burst=9)
    lanes_of(database, 1)
    insert(database, 1, 100)
    assert run_at_once([worker, other], claims=20) == 9
    assert lane(database, 1)["blocked_by"] == "rate"


# Lanes that may not move --------------------------------------------------------------------------------------------


BLOCKED = ["unregistered", "paused", "circuit", "hold", "rate", "in_flight"]


def block(database: Database, worker: Engine, cause: str) -> list[Delivery]:
    """Have the lane of webhook 1 blocked by *cause*, without a waiting row; return what is in flight."""
    if cause == "unregistered":
        return []
    limits: dict[str, dict[str, float]] = {
        "rate": {"rate_limit_per_second": 0.01, "rate_limit_burst": 1},
        "in_flight": {"max_in_flight": 1},
    }
    register(database, 1, **limits.get(cause, {}))
    insert(database, 1, 5 if cause == "circuit" else 1)
    claimed = worker.take_all()
    if cause == "paused":
        worker.finish(claimed, answered(200))
        database.execute("UPDATE pggit.webhooks SET enabled = false WHERE webhook_id = 1")
    elif cause == "circuit":
        worker.finish(claimed, answered(404))
    elif cause == "hold":
        worker.finish(claimed, answered(429, retry_after="1000"))
        database.execute("DELETE FROM pggit.alert_delivery_queue")
    elif cause == "rate":
        worker.finish(claimed, answered(200))
    return claimed


def unblock(database: Database, worker: Engine, cause: str, in_flight: list[Delivery]) -> None:
    if cause == "unregistered":
        register(database, 1)
    elif cause == "paused":
        database.execute("UPDATE pggit.webhooks SET enabled = true WHERE webhook_id = 1")
    elif cause == "in_flight":
        worker.finish(in_flight, answered(200))
    else:
        let_pass(database, {"circuit": 61.0, "hold": 1001.0, "rate": 101.0}[cause])


@pytest.mark.parametrize("cause", BLOCKED)
def test_rows_of_a_blocked_webhook_leave_queue_new_and_go_out_once_it_is_free(
    database: Database, worker: Engine, cause: str
) -> None:
    in_flight = block(database, worker, cause)
    waiting = insert(database, 1, 3)
    assert worker.take_all() == []
    assert new_rows(database) == 0
    assert lane(database, 1)["blocked_by"] == cause
    look = worker.claimer.next_look(worker.connection)
    assert look.lane_s > 0
    assert not look.new_rows
    unblock(database, worker, cause, in_flight)
    assert worker.claimer.next_look(worker.connection).lane_s <= 0
    claimed = worker.take_all()
    assert ids(claimed) == waiting[: len(claimed)] != []


@pytest.mark.parametrize("cause", BLOCKED)
def test_a_blocked_webhook_does_not_keep_another_from_moving(database: Database, worker: Engine, cause: str) -> None:
    block(database, worker, cause)
    insert(database, 1, 200)
    register(database, 2)
    free = insert(database, 2, 30)
    assert ids(worker.take_all()) == free


def test_the_timers_of_blocked_lanes_say_when_they_are_free(database: Database, worker: Engine) -> None:
    expected = {"unregistered": None, "paused": None, "circuit": 60, "hold": 1000, "rate": 100, "in_flight": 5}
    for cause, seconds in expected.items():
        block(database, worker, cause)
        insert(database, 1, 3)
        worker.take_all()
        runnable_in_s = lane(database, 1)["runnable_in_s"]
        if seconds is None:
            assert runnable_in_s is None, cause
        else:
            assert seconds - 20 < runnable_in_s <= seconds, cause
        for table in ("alert_delivery_queue", "webhooks", "webhook_health_metrics", "alert_delivery_log"):
            database.execute(f"DELETE FROM pggit.{table}")


def test_a_backlog_of_new_rows_larger_than_one_turn_of_parking_leaves_queue_new_too(database: Database, worker: Engine) -> None:
    register(database, 1, enabled=False)
    insert(database, 1, 1200)
    for _ in range(4):
        worker.claim()
    assert new_rows(database) == 0
    database.execute("UPDATE pggit.webhooks SET enabled = true WHERE webhook_id = 1")
    assert len(worker.take_all(200)) == 1200


def test_a_raised_limit_frees_the_lane_at_once(database: Database, worker: Engine) -> None:
    register(database, 1, max_in_flight=1)
    insert(database, 1, 3)
    assert len(worker.take_all()) == 1
    database.execute("UPDATE pggit.webhooks SET max_in_flight = 3 WHERE webhook_id = 1")
    assert len(worker.take_all()) == 2


def test_new_rows_of_a_webhook_without_any_lane_row_are_found_by_the_second_look(database: Database, worker: Engine) -> None:
    register(database, 1)
    database.execute("DELETE FROM pggit.webhook_health_metrics")
    waiting = insert(database, 1, 3)
    assert list(worker.claim().deliveries) == []
    assert worker.claimer.next_look(worker.connection).new_rows
    assert ids(worker.claim().deliveries) == waiting


def test_routed_rows_whose_lane_row_was_deleted_come_up_with_the_sweep(database: Database, worker: Engine) -> None:
    register(database, 1)
    waiting = insert(database, 1, 3)
    worker.finish(worker.take(), given_back())
    database.execute("DELETE FROM pggit.webhook_health_metrics")
    assert worker.take_all() == []
    worker.sweep()
    assert ids(worker.take_all()) == waiting


# The rate -----------------------------------------------------------------------------------------------------------


def test_tokens_come_back_with_time_up_to_the_burst(database: Database) -> None:
    register(database, 1, rate_limit_per_second=2, rate_limit_burst=4)
    insert(database, 1, 100)
    with engine(database) as worker:
        assert len(worker.take_all()) == 4
        let_pass(database, 1.5)
        assert len(worker.take_all()) == 3
        let_pass(database, 3600)
        assert len(worker.take_all()) == 4


def test_only_a_lane_that_had_to_keep_due_rows_counts_as_rate_limited(database: Database) -> None:
    register(database, 1, 2, rate_limit_per_second=0.01, rate_limit_burst=2)
    insert(database, 1, 2)
    insert(database, 2, 3)
    lanes_of(database, 1, 2)
    with engine(database, defaults=STANDARD) as worker:
        assert list(worker.claim().rate_limited) == [2]
        assert list(worker.claim().rate_limited) == [2]  # the row left over is still new, and is parked only now
        assert list(worker.claim().rate_limited) == []
        insert(database, 1)
        assert list(worker.claim().rate_limited) == [1]


def test_a_row_that_somebody_has_locked_is_not_kept_for_want_of_tokens(database: Database) -> None:
    register(database, 1, rate_limit_per_second=0.01, rate_limit_burst=2)
    [locked, _] = insert(database, 1, 2)
    with engine(database, defaults=STANDARD) as worker, database.connect(autocommit=False) as operator:
        operator.execute("SELECT FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", [locked])
        claim = worker.claim()
    assert (len(claim.deliveries), list(claim.rate_limited)) == (1, [])


def test_the_default_rate_holds_where_the_registry_says_nothing(database: Database) -> None:
    register(database, 1)
    register(database, 2, rate_limit_per_second=0)
    insert(database, 1, 100)
    insert(database, 2, 100)
    with engine(database, defaults=STANDARD._replace(rate=0.001, max_in_flight=1000)) as worker:
        assert Counter(item.webhook_id for item in worker.take_all()) == {1: 20, 2: 100}


# The in-flight counter ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM pggit.alert_delivery_queue WHERE delivery_status = 'sending'",
        "TRUNCATE pggit.alert_delivery_queue",
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_status = 'sending'",
    ],
    ids=["deleted", "truncated", "cancelled"],
)
def test_claimed_rows_that_vanish_do_not_block_their_lane_for_ever(database: Database, worker: Engine, statement: str) -> None:
    register(database, 1, max_in_flight=4)
    insert(database, 1, 4)
    assert len(worker.take_all()) == 4
    database.execute(statement)
    fresh = insert(database, 1, 6)
    assert ids(worker.take_all()) == fresh[:4]
    assert lane(database, 1)["in_flight"] == 4


def test_the_sweep_mends_a_counter_that_blocks_nothing_yet(database: Database, worker: Engine) -> None:
    register(database, 1)
    insert(database, 1, 4)
    worker.take_all()
    database.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_id % 2 = 0")
    assert lane(database, 1)["in_flight"] == 4
    worker.sweep()
    assert lane(database, 1)["in_flight"] == 2


# A claim in doubt -----------------------------------------------------------------------------------------------------


def lose_the_commits_answer(worker: Engine, monkeypatch: pytest.MonkeyPatch, *, stored: bool) -> None:
    """Have the connection break with the next COMMIT: after it was *stored*, or before it was sent."""
    execute = worker.connection.execute

    def breaking(query: Any, *args: Any, **kwargs: Any) -> Any:
        if query == "COMMIT":
            if stored:
                execute(query)
            worker.connection.close()
            raise psycopg.OperationalError("connection lost")
        return execute(query, *args, **kwargs)

    monkeypatch.setattr(worker.connection, "execute", breaking)


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "rolled back"])
@pytest.mark.parametrize("suspect", [False, True], ids=["a claim", "a suspect's claim"])
def test_a_claim_whose_commit_was_not_answered_can_be_given_back_at_once(
    database: Database, worker: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch, suspect: bool, stored: bool
) -> None:
    register(database, 1, rate_limit_per_second=0.01, rate_limit_burst=20)
    lanes_of(database, 1)
    due = insert(database, 1)
    if suspect:
        with unseen(database) as connection:
            connection.execute("UPDATE pggit.alert_delivery_queue SET leases_lost = 3, routed = true")
    lose_the_commits_answer(worker, monkeypatch, stored=stored)
    with pytest.raises(ClaimInDoubtError) as doubt:
        worker.claimer.claim_suspect(worker.connection) if suspect else worker.claim()
    assert ids(doubt.value.deliveries) == due
    assert statuses(database) == {"sending" if stored else "pending": 1}
    recorded = other.finish(doubt.value.deliveries, given_back())
    assert (len(recorded.accepted), len(recorded.refused)) == ((1, 0) if stored else (0, 1))
    row, state = delivery(database, due[0]), lane(database, 1)
    assert (row["delivery_status"], row["leases_lost"], row["attempts"]) == ("pending", 3 if suspect else 0, 0)
    assert (state["in_flight"], state["tokens"] or 20) == (0, pytest.approx(20, abs=0.1))
    again = other.claimer.claim_suspect(other.connection) if suspect else other.claim()
    assert ids(again.deliveries) == due


def test_a_claim_that_failed_before_it_took_anything_is_in_no_doubt(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_commits_answer(worker, monkeypatch, stored=True)
    with pytest.raises(psycopg.OperationalError) as failure:
        worker.claim()
    assert not isinstance(failure.value, ClaimInDoubtError)


# The probe ----------------------------------------------------------------------------------------------------------


def trip(database: Database, worker: Engine) -> None:
    """Have webhook 1 registered, its circuit open for another 60 s, and nothing of it waiting."""
    register(database, 1)
    insert(database, 1, 5)
    worker.finish(worker.take_all(), answered(404))
    assert lane(database, 1)["circuit_state"] == "open"


def test_exactly_one_probe_goes_out_fleet_wide(database: Database, worker: Engine, other: Engine) -> None:
    trip(database, worker)
    insert(database, 1, 50)
    assert run_at_once([worker, other], claims=3) == 0
    let_pass(database, 61)
    assert run_at_once([worker, other], claims=20) == 1
    state = lane(database, 1)
    assert (state["circuit_state"], state["health_status"], state["blocked_by"]) == ("half_open", "degraded", "circuit")
    assert 20 < state["circuit_in_s"] < 60


def test_the_end_of_a_probes_lease_frees_the_next_probe(database: Database, worker: Engine, other: Engine) -> None:
    trip(database, worker)
    insert(database, 1, 5)
    let_pass(database, 61)
    [lost] = worker.take_all()
    let_pass(database, 20)
    assert other.take_all() == []
    let_pass(database, 30)
    [probe] = other.take_all()
    assert probe.breaker.state is CircuitState.HALF_OPEN
    assert probe.breaker.epoch == lost.breaker.epoch + 1


def test_a_probe_that_is_given_back_makes_way_for_the_next_at_once(database: Database, worker: Engine) -> None:
    trip(database, worker)
    insert(database, 1, 5)
    let_pass(database, 61)
    worker.finish(worker.take_all(), given_back())
    assert len(worker.take_all()) == 1


def test_a_probe_whose_worker_died_makes_way_for_the_next_at_once(database: Database, worker: Engine, other: Engine) -> None:
    trip(database, worker)
    insert(database, 1, 5)
    let_pass(database, 61)
    assert len(worker.take_all()) == 1
    other.release(worker.incarnation)
    assert len(other.take_all()) == 1


def test_a_due_circuit_without_rows_waits_for_the_next_insert(database: Database, worker: Engine) -> None:
    trip(database, worker)
    let_pass(database, 61)
    assert worker.take_all() == []
    assert math.isinf(worker.claimer.next_look(worker.connection).lane_s)
    insert(database, 1, 2)
    assert len(worker.take_all()) == 1


def test_a_probe_that_said_nothing_leaves_the_circuit_open_for_the_next(database: Database, worker: Engine) -> None:
    trip(database, worker)
    insert(database, 1, 5)
    let_pass(database, 61)
    worker.finish(worker.take_all(), not_allowed())
    assert lane(database, 1)["circuit_state"] == "half_open"
    assert len(worker.take_all()) == 1


# When to look again -------------------------------------------------------------------------------------------------


def test_an_empty_queue_asks_for_no_look_at_all(database: Database, worker: Engine) -> None:
    register(database, 1)
    worker.take_all()
    look = worker.claimer.next_look(worker.connection)
    assert (look.lane_s, look.suspect_s, look.new_rows) == (math.inf, math.inf, False)


def test_the_next_look_is_the_earliest_of_the_retries_due(database: Database, worker: Engine) -> None:
    register(database, 1, 2)
    insert(database, 1, due_in_s=500)
    insert(database, 2, due_in_s=300)
    assert worker.claimer.next_look(worker.connection).new_rows
    worker.take_all()
    assert 290 < worker.claimer.next_look(worker.connection).lane_s <= 300


def test_a_lane_with_more_due_rows_asks_to_be_looked_at_at_once(database: Database, worker: Engine) -> None:
    register(database, 1)
    insert(database, 1, 30)
    claim = worker.claim(10)
    assert claim.full
    assert worker.claimer.next_look(worker.connection).lane_s <= 0


def test_a_claim_says_whether_other_workers_hold_the_lanes_with_new_rows(database: Database, worker: Engine) -> None:
    register(database, 1, 2)
    worker.take_all()
    insert(database, 1)
    insert(database, 2)
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT 1 FROM pggit.webhook_health_metrics WHERE webhook_id = 2 FOR UPDATE")
        assert worker.claim().contended
        operator.rollback()
    assert not worker.claim().contended


# Poison -------------------------------------------------------------------------------------------------------------


def lose(database: Database, worker: Engine) -> None:
    """Have every lease run out, and released."""
    let_pass(database, TEN_MINUTES_S)
    worker.release()


def test_a_row_that_lost_three_leases_is_claimed_alone_and_nowhere_else(database: Database, worker: Engine) -> None:
    register(database, 1)
    [suspect] = insert(database, 1)
    for _ in range(3):
        assert ids(worker.take_all()) == [suspect]
        lose(database, worker)
    assert 0 < worker.claimer.next_look(worker.connection).suspect_s <= 6
    let_pass(database, TEN_MINUTES_S)
    assert worker.claimer.next_look(worker.connection).suspect_s <= 0
    [healthy] = insert(database, 1)
    assert ids(worker.take_all()) == [healthy]
    [claimed] = worker.claimer.claim_suspect(worker.connection).deliveries
    assert (claimed.delivery_id, claimed.leases_lost) == (suspect, 3)
    assert not worker.claimer.claim_suspect(worker.connection).deliveries
    worker.finish([claimed], answered(200))
    assert delivery(database, suspect)["delivery_status"] == "delivered"


def test_after_six_lost_leases_a_row_is_failed_and_says_why(database: Database, worker: Engine) -> None:
    register(database, 1)
    [poison] = insert(database, 1)
    delays = []
    for _ in range(3):
        worker.take_all()
        lose(database, worker)
    for _ in range(3):
        let_pass(database, TEN_MINUTES_S)
        assert ids(worker.claimer.claim_suspect(worker.connection).deliveries) == [poison]
        lose(database, worker)
        delays.append(worker.claimer.next_look(worker.connection).suspect_s)
    row = delivery(database, poison)
    assert (row["delivery_status"], row["leases_lost"], row["retry_count"], row["attempts"]) == ("failed", 6, 0, 0)
    [(event, status, details)] = database.execute(
        "SELECT event_type, http_status, event_details->>'reason' FROM pggit.alert_delivery_log"
    )
    assert (event, status, details) == ("failed", None, "lost 6 leases")
    assert 5 < delays[0] < 15 < delays[1] < 30
    assert math.isinf(delays[2])
    assert lane(database, 1)["in_flight"] == 0


@pytest.mark.parametrize("cause", ["unregistered", "paused", "circuit", "in_flight"])
def test_a_suspect_of_a_blocked_webhook_waits_and_goes_out_once_it_is_free(
    database: Database, worker: Engine, cause: str
) -> None:
    in_flight = block(database, worker, cause)
    [suspect] = insert(database, 1)
    with unseen(database) as connection:
        connection.execute(
            "UPDATE pggit.alert_delivery_queue SET leases_lost = 3, routed = true WHERE delivery_id = %s", [suspect]
        )
    lanes_of(database, 1)
    assert not worker.claimer.claim_suspect(worker.connection).deliveries
    assert worker.claimer.next_look(worker.connection).suspect_s > 0
    assert delivery(database, suspect)["leases_lost"] == 3
    unblock(database, worker, cause, in_flight)
    let_pass(database, 61)
    assert ids(worker.claimer.claim_suspect(worker.connection).deliveries) == [suspect]


def test_a_suspect_counts_for_tokens_in_flight_and_the_probe(database: Database) -> None:
    register(database, 1, rate_limit_per_second=1, rate_limit_burst=5, circuit_failure_threshold=1)
    [suspect] = insert(database, 1)
    with engine(database) as worker:
        worker.finish(worker.take_all(), answered(500))
        with unseen(database) as connection:
            connection.execute("UPDATE pggit.alert_delivery_queue SET leases_lost = 3")
        let_pass(database, TEN_MINUTES_S)
        [claimed] = worker.claimer.claim_suspect(worker.connection).deliveries
        state = lane(database, 1)
        assert (state["circuit_state"], state["in_flight"], state["tokens"]) == ("half_open", 1, 4)
        worker.finish([claimed], answered(200))
        assert (lane(database, 1)["circuit_state"], lane(database, 1)["in_flight"]) == ("closed", 0)
        assert delivery(database, suspect)["delivery_status"] == "delivered"
        assert_books_balance(database)


def test_a_counter_that_is_wrong_does_not_keep_a_suspect_from_its_turn(database: Database, worker: Engine) -> None:
    register(database, 1, max_in_flight=2)
    [suspect, *others] = insert(database, 1, 3)
    with unseen(database) as connection:
        connection.execute(
            "UPDATE pggit.alert_delivery_queue SET leases_lost = 3, routed = true WHERE delivery_id = %s", [suspect]
        )
    assert ids(worker.take_all()) == others
    database.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_status = 'sending'")
    assert lane(database, 1)["in_flight"] == 2
    assert ids(worker.claimer.claim_suspect(worker.connection).deliveries) == [suspect]
    assert lane(database, 1)["in_flight"] == 1


@pytest.mark.every_postgres
@pytest.mark.parametrize("when", ["infinity", "-infinity"])
def test_a_row_due_at_an_infinite_time_stops_nobody(database: Database, when: str) -> None:
    """Before PostgreSQL 17 no interval is infinite, so that a difference of such instants is an error."""
    database.execute("INSERT INTO pggit.webhooks (webhook_id, url, enabled) VALUES (1, 'x', true), (2, 'x', false)")
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at, first_attempted_at)"
        f" SELECT n, '1', '{when}', '{when}' FROM generate_series(1, 2) n"
    )
    with engine(database) as worker:
        assert len(worker.claim(10).deliveries) == (when == "-infinity")
        worker.claim(10)
    for name in ("next_look", "measure_depth", "status_waiting"):
        database.execute(queries.load(name))
    database.execute(queries.load("doctor_waiting"), {"overdue_s": 60.0})
