"""Whether a delivery is free, and what is said of the workers that may take, hold or lost it; a
claim takes what is free.
"""

import math
import random
from typing import Any
from uuid import uuid4

import psycopg

from tests.support.engine import (
    ROOMY,
    TEN_MINUTES_S,
    Engine,
    engine,
    insert,
    let_pass,
    register,
    unseen,
)
from tests.support.explained import enlist, explained, explained_by, left_s, names, only
from tests.support.postgres import Database

# Nothing holds it


def test_a_due_delivery_that_nothing_holds_is_said_to_be_free(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    free = only(explained(database, delivery_id), "free")
    assert "the next claim takes it" in free.text
    assert free.run == ()


def test_one_that_has_been_due_for_long_points_to_the_doctor(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1, due_in_s=-600)
    free = only(explained(database, delivery_id), "free")
    assert "10 min" in free.text
    assert free.run == ("webhookd doctor",)


def test_workers_that_have_no_room_are_said_to_be_busy(database: Database) -> None:
    enlist(database, "worker-1", uuid4(), has_room=False)
    register(database, 1)
    [delivery_id] = insert(database, 1)
    only(explained(database, delivery_id), "busy")


# The fleet


def test_without_any_worker_that_comes_first(database: Database) -> None:
    register(database, 1, enabled=False)
    [delivery_id] = insert(database, 1)
    first, second = explained(database, delivery_id)
    assert (first.name, first.until, first.run) == ("no_worker", math.inf, ("webhookd doctor",))
    assert "No worker is registered" in first.text
    assert second.name == "paused"


def test_the_last_sign_of_a_silent_fleet_is_named(database: Database) -> None:
    enlist(database, "worker-1", uuid4(), seen_s_ago=900)
    enlist(database, "worker-2", uuid4(), seen_s_ago=300)
    register(database, 1)
    [delivery_id] = insert(database, 1)
    silent = only(explained(database, delivery_id), "no_worker")
    assert "worker-2 (somehost, pid 4711), 5 min ago" in silent.text


def test_a_lease_names_its_worker_and_its_end(database: Database, enlisted: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    assert len(enlisted.take()) == 1
    leased = only(explained(database, delivery_id), "leased")
    assert leased.text.startswith("worker-1 (somehost, pid 4711) is sending it; ")
    assert " (in 3" in leased.text
    assert 5 < left_s(database, leased) <= 35, "5 s for the exchange, 30 s of margin"


def test_a_lease_whose_worker_is_silent_or_struck_says_so(
    database: Database, enlisted: Engine
) -> None:
    enlist(database, "worker-2", uuid4())
    register(database, 1)
    [delivery_id] = insert(database, 1)
    assert len(enlisted.take()) == 1
    database.execute(
        "UPDATE pggit.workers SET seen_at = now() - interval '25 s' WHERE worker_id = 'worker-1'"
    )
    silent = only(explained(database, delivery_id), "leased_by_dead")
    assert "worker-1 (somehost, pid 4711) claimed it and was last seen 2" in silent.text
    database.execute("DELETE FROM pggit.workers WHERE worker_id = 'worker-1'")
    struck = only(explained(database, delivery_id), "leased_by_dead")
    assert "worker-1 claimed it and is no longer registered" in struck.text


def test_a_lease_that_ran_out_says_since_when(database: Database, enlisted: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    assert len(enlisted.take()) == 1
    let_pass(database, 45)
    expired = only(explained(database, delivery_id), "lease_expired")
    assert "expired 1" in expired.text


def test_lost_leases_are_told_and_from_the_third_on_the_delivery_is_tried_alone(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    for lost in range(1, 4):
        assert len(enlisted.take()) == 1
        enlisted.release(enlisted.incarnation)
        found = explained(database, delivery_id)
        if lost < 3:
            assert names(found) == ["free", "leases_lost"]
    held = only(found, "quarantine")
    assert "3 claims of it were lost" in held.text and "fails after 6" in held.text
    assert held.until is not None, "it has a backoff of its own"
    let_pass(database, TEN_MINUTES_S)
    assert names(explained(database, delivery_id)) == ["free", "quarantine"]


# It agrees with the engine


def set_random_state(
    connection: psycopg.Connection[tuple[Any, ...]], chance: random.Random, webhook_id: int
) -> None:
    """Put lane and deliveries of a webhook into a random state."""
    when = [None, "now() - interval '1 hour'", "now() + interval '1 hour'"]
    state = chance.choice(["closed", "closed", "open", "half_open"])
    until = when[chance.randrange(3)] if state == "closed" else chance.choice(when[1:])
    lane = {
        "circuit_state": f"'{state}'",
        "circuit_until": until,
        "hold_until": chance.choice([*when, None, None]),
        "tokens": chance.choice([None, "0.5", "1.5", "3"]),
        "in_flight": chance.choice(["0", "0", "2"]),  # 2 is the cap, and stranded
        "runnable_at": chance.choice([*when, when[1]]),
    }
    row = {
        "routed": chance.choice(["true", "false"]),
        "leases_lost": chance.choice(["0", "0", "0", "1"]),
        "next_retry_at": chance.choice([when[1], when[1], when[2]]),
    }
    for table, values in (("webhook_health_metrics", lane), ("alert_delivery_queue", row)):
        columns = ", ".join(f"{name} = {value or 'NULL'}" for name, value in values.items())
        connection.execute(
            f"UPDATE pggit.{table} SET {columns} WHERE webhook_id = {webhook_id}".encode()
        )


def quarantine_rows(connection: psycopg.Connection[tuple[Any, ...]], which: str) -> None:
    connection.execute(
        "UPDATE pggit.alert_delivery_queue SET leases_lost = 4, routed = true "
        f"WHERE {which}".encode()
    )
    # The claim of a row in quarantine trusts the counter, until a claim of other rows or the sweep
    # has counted again.
    connection.execute(
        f"UPDATE pggit.webhook_health_metrics SET in_flight = 0 WHERE {which}".encode()
    )


def test_a_claim_takes_exactly_the_deliveries_that_are_explained_as_free(
    database: Database,
) -> None:
    """Lanes and rows in random states, each of one webhook; no instant so close that time
    decides.
    """
    chance = random.Random(0)
    webhooks = range(1, 101)
    register(database, *webhooks, rate_limit_per_second=0.001, rate_limit_burst=3, max_in_flight=2)
    for webhook_id in webhooks:
        # Of several quarantined rows of one webhook any may go first.
        insert(database, webhook_id, chance.choice([1, 1, 3]) if webhook_id % 7 else 1)
    with unseen(database) as connection:
        connection.execute("UPDATE pggit.webhooks SET enabled = false WHERE webhook_id % 11 = 0")
        connection.execute("DELETE FROM pggit.webhooks WHERE webhook_id % 13 = 0")
        for webhook_id in webhooks:
            set_random_state(connection, chance, webhook_id)
        quarantine_rows(connection, "webhook_id % 7 = 0 AND webhook_id > 50")
    with engine(database, defaults=ROOMY) as worker:
        enlist(database, worker.worker_id, worker.incarnation)
        first_of = database.execute(
            "SELECT min(delivery_id) FROM pggit.alert_delivery_queue GROUP BY webhook_id"
        )
        with database.connect() as connection:
            said = {
                delivery_id: explained_by(connection, delivery_id, ROOMY)
                for (delivery_id,) in sorted(first_of)
            }
        free = {one for one, found in said.items() if all(reason.until is None for reason in found)}
        taken = {claimed.delivery_id for claimed in worker.take_all(1000)}
        for _ in webhooks:
            taken |= {
                claimed.delivery_id
                for claimed in worker.claimer.claim_quarantined(worker.connection).deliveries
            }
    assert 10 < len(free) < 90, "the states are mixed"
    differing = sorted(free ^ (taken & said.keys()))
    assert differing == [], [(one, one in free, said[one]) for one in differing]
