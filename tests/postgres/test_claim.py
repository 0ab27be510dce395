"""What a claim takes, what it leaves, and who it waits for (nobody)."""

import threading
from collections import Counter

import pytest

from tests.support.engine import (
    ROOMY,
    TEN_MINUTES_S,
    Engine,
    answered,
    delivery,
    drop_checks,
    given_back,
    ids,
    insert,
    lane,
    lanes_of,
    let_pass,
    new_rows,
    register,
    statuses,
    unseen,
)
from tests.support.postgres import Database
from tests.support.steps import run_at_once
from webhookd.core.lane import Budget
from webhookd.core.model import Delivery
from webhookd.core.signing import format_secret
from webhookd.postgres.claimed import Claim

# What is due


def test_only_rows_whose_next_retry_at_has_come_are_claimed(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    due = insert(database, 1, 3)
    insert(database, 1, 2, due_in_s=60)
    assert ids(worker.take()) == due
    assert worker.take() == []


def test_a_created_at_in_the_future_delays_nothing(database: Database, worker: Engine) -> None:
    register(database, 1)
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, created_at) VALUES "
        "(1, '{}', now() + interval '1 day')"
    )
    assert len(worker.take()) == 1


def test_a_row_scheduled_for_later_leaves_queue_new_and_comes_up_when_it_is_due(
    database: Database, worker: Engine
) -> None:
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
    secret = format_secret(b"k" * 32)
    register(database, 1, secret=secret, timeout_seconds=2.5, headers='{"x-team": "billing"}')
    [delivery_id] = insert(database, 1)
    [claimed] = worker.take()
    assert claimed.delivery_id == delivery_id
    assert claimed.body == b'{"n": 1}'
    assert (
        claimed.retry_count,
        claimed.max_retries,
        claimed.attempts,
        claimed.leases_lost,
        claimed.age_s,
    ) == (0, ROOMY.max_retries, 0, 0, 0.0)
    assert claimed.settings.secret == secret
    assert claimed.settings.headers == '{"x-team": "billing"}'
    assert claimed.settings.timeout_s == 2.5
    assert claimed.settings.circuit_threshold == ROOMY.circuit_threshold
    row = delivery(database, delivery_id)
    assert row["delivery_status"] == "sending"
    assert row["worker_id"] == "worker-1"
    assert row["lease_token"] == claimed.token
    assert row["leased_by"] == str(worker.incarnation)


def test_the_lease_outlives_every_exchange_that_may_begin_under_it(
    database: Database, worker: Engine
) -> None:
    register(database, 1, timeout_seconds=120)
    register(database, 2)
    insert(database, 1)
    insert(database, 2)
    claimed = worker.take()
    assert len(claimed) == 2
    [(lease_s,)] = database.execute(
        "SELECT min(extract(epoch FROM lease_until - now())::float8) FROM "
        "pggit.alert_delivery_queue"
    )
    for item in claimed:
        assert item.start_before - item.claimed + item.settings.timeout_s < lease_s + 10


# Fairness


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
    "body",
    ["repeat('x', 32 * count(*)::int)", "string_agg(md5(i::text), '')"],
    ids=["compressed", "as it is"],
)
def test_a_claim_ends_once_its_bodies_come_to_the_bytes_asked_for_and_the_rest_is_due_at_once(
    database: Database, worker: Engine, body: str
) -> None:
    """Bodies of 1 MB each."""
    register(database, 1, 2)
    lanes_of(database, 1, 2)
    due = [*insert(database, 1, 4), *insert(database, 2, 4)]
    message = f"SELECT to_jsonb({body}) FROM generate_series(1, 31250) i"
    database.execute(
        f"UPDATE pggit.alert_delivery_queue SET message_body = ({message}), body_bytes = 1000002"
    )
    taken: list[int] = []
    for expected in (3, 3, 2):
        claim = worker.claimer.claim(worker.connection, Budget(100, 100), body_bytes=2_500_000)
        taken += ids(claim.deliveries)
        assert (len(claim.deliveries), claim.full) == (expected, expected == 3)
    assert sorted(taken) == sorted(due)


def test_a_body_larger_than_the_bytes_asked_for_goes_alone(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    lanes_of(database, 1)
    insert(database, 1, 2)
    for _ in range(2):
        assert (
            len(worker.claimer.claim(worker.connection, Budget(100, 100), body_bytes=1).deliveries)
            == 1
        )


def test_a_claim_looks_at_as_many_lanes_as_it_takes_to_be_full(
    database: Database, worker: Engine
) -> None:
    """One row a lane needs wide claims; once the lanes are deep again a claim reaches for few of
    them.
    """
    register(database, *range(1, 1001))
    lanes_of(database, *range(1, 1001))
    one_each = (
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
        " SELECT i, '{}' FROM generate_series(1, 1000) i"
    )
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


def test_lanes_behind_the_limit_get_their_turn_with_the_next_claims(
    database: Database, worker: Engine
) -> None:
    register(database, *range(1, 31))
    for webhook_id in range(1, 31):
        insert(database, webhook_id, 30)
    lanes_seen: Counter[int] = Counter()
    for _ in range(16):
        lanes_seen.update(item.webhook_id for item in worker.take(40))
    assert set(lanes_seen) == set(range(1, 31))


def test_a_lane_that_is_never_empty_does_not_starve_new_rows_of_webhooks_before_it(
    database: Database, worker: Engine
) -> None:
    register(database, 1, 9)
    insert(database, 9, 300)
    worker.take(20)
    [late] = insert(database, 1)
    taken: list[int] = []
    for _ in range(4):
        taken += ids(worker.take(20))
    assert late in taken


# Several workers


def test_two_claimers_at_once_never_take_one_row_twice(
    database: Database, worker: Engine, other: Engine
) -> None:
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
        operator.execute(
            "SELECT 1 FROM pggit.webhook_health_metrics WHERE webhook_id = 1 FOR UPDATE"
        )
        other.connection.execute("SET lock_timeout = '1ms'")  # any wait at all would fail
        assert ids(other.take_all()) == free
        operator.rollback()
    assert len(worker.take()) == 5


def test_a_queue_row_that_an_operator_holds_is_skipped_without_waiting(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    held, *free = insert(database, 1, 5)
    worker.connection.execute("SET lock_timeout = '1ms'")
    with database.connect(autocommit=False) as operator:
        operator.execute(
            "SELECT 1 FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", [held]
        )
        assert ids(worker.take_all()) == free
        operator.rollback()
    assert ids(worker.take_all()) == [held]


def test_a_tried_row_that_was_held_comes_up_with_the_sweep_although_others_wait_for_later(
    database: Database, worker: Engine
) -> None:
    register(database, 1, retry_base_seconds=1000)
    held, later = insert(database, 1, 2)
    [first, second] = worker.take()
    worker.finish([first], given_back())
    worker.finish([second], answered(500))
    with database.connect(autocommit=False) as operator:
        operator.execute(
            "SELECT 1 FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", [held]
        )
        assert worker.take_all() == []
        operator.rollback()
    worker.sweep()
    assert ids(worker.take_all()) == [held]
    assert delivery(database, later)["delivery_status"] == "retrying"


def test_a_suspect_whose_lane_is_gone_comes_up_with_the_sweep(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    [suspect] = insert(database, 1)
    worker.take_all()
    with unseen(database) as connection:
        connection.execute(
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', leases_lost = 3"
        )
        connection.execute("DELETE FROM pggit.webhook_health_metrics")
    assert worker.claimer.claim_quarantined(worker.connection) == Claim()
    worker.sweep()
    assert ids(worker.claimer.claim_quarantined(worker.connection).deliveries) == [suspect]


def test_a_registration_in_an_open_transaction_keeps_nobody_waiting(
    database: Database, worker: Engine
) -> None:
    register(database, 2)
    insert(database, 1)
    free = insert(database, 2, 3)
    worker.connection.execute("SET lock_timeout = '1s'")
    with database.connect(autocommit=False) as operator:
        operator.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, 'https://receiver.example/')"
        )
        assert ids(worker.take_all()) == free
        operator.commit()
    assert len(worker.take_all()) == 1


def test_max_in_flight_over_two_claimers_holds_exactly(
    database: Database, worker: Engine, other: Engine
) -> None:
    register(database, 1, 2, max_in_flight=7)
    lanes_of(database, 1, 2)
    insert(database, 1, 100)
    insert(database, 2, 100)
    assert run_at_once([worker, other], claims=20) == 14
    assert [lane(database, webhook_id)["in_flight"] for webhook_id in (1, 2)] == [7, 7]


def test_the_rate_over_two_claimers_holds_exactly(
    database: Database, worker: Engine, other: Engine
) -> None:
    register(database, 1, rate_limit_per_second=0.001, rate_limit_burst=9)
    lanes_of(database, 1)
    insert(database, 1, 100)
    assert run_at_once([worker, other], claims=20) == 9
    assert lane(database, 1)["blocked_by"] == "rate"


def test_webhooks_that_were_numbered_from_zero_or_below_go_on(
    database: Database, worker: Engine
) -> None:
    drop_checks(database)
    register(database, 0, -3, -(2**62))
    inserted = [insert(database, webhook_id)[0] for webhook_id in (0, -3, -(2**62))]
    assert sorted(ids(worker.take_all())) == inserted
