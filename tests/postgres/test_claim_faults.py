"""Claims whose COMMIT goes unanswered, and rows that kill their workers."""

import math
from typing import Any

import psycopg
import pytest

from tests.support.blocks import block, unblock
from tests.support.engine import (
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
    register,
    statuses,
    unseen,
)
from tests.support.postgres import Database
from webhookd.postgres import statements
from webhookd.postgres.claimed import ClaimInDoubtError

# A claim in doubt


def lose_the_commits_answer(
    worker: Engine, monkeypatch: pytest.MonkeyPatch, *, stored: bool
) -> None:
    """Have the connection break with the next COMMIT: after it was *stored*, or before."""
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
    database: Database,
    worker: Engine,
    other: Engine,
    monkeypatch: pytest.MonkeyPatch,
    suspect: bool,
    stored: bool,
) -> None:
    register(database, 1, rate_limit_per_second=0.01, rate_limit_burst=20)
    lanes_of(database, 1)
    due = insert(database, 1)
    if suspect:
        with unseen(database) as connection:
            connection.execute(
                "UPDATE pggit.alert_delivery_queue SET leases_lost = 3, routed = true"
            )
    lose_the_commits_answer(worker, monkeypatch, stored=stored)
    with pytest.raises(ClaimInDoubtError) as doubt:
        worker.claimer.claim_quarantined(worker.connection) if suspect else worker.claim()
    assert ids(doubt.value.deliveries) == due
    assert statuses(database) == {"sending" if stored else "pending": 1}
    recorded = other.finish(doubt.value.deliveries, given_back())
    assert (len(recorded.accepted), len(recorded.refused)) == ((1, 0) if stored else (0, 1))
    row, state = delivery(database, due[0]), lane(database, 1)
    assert (row["delivery_status"], row["leases_lost"], row["attempts"]) == (
        "pending",
        3 if suspect else 0,
        0,
    )
    assert (state["in_flight"], state["tokens"] or 20) == (0, pytest.approx(20, abs=0.1))
    again = other.claimer.claim_quarantined(other.connection) if suspect else other.claim()
    assert ids(again.deliveries) == due


def test_a_claim_that_failed_before_it_took_anything_is_in_no_doubt(
    database: Database, worker: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_the_commits_answer(worker, monkeypatch, stored=True)
    with pytest.raises(psycopg.OperationalError) as failure:
        worker.claim()
    assert not isinstance(failure.value, ClaimInDoubtError)


# Poison


def lose(database: Database, worker: Engine) -> None:
    """Have every lease run out, and released."""
    let_pass(database, TEN_MINUTES_S)
    worker.release()


def test_a_row_that_lost_three_leases_is_claimed_alone_and_nowhere_else(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    [suspect] = insert(database, 1)
    for _ in range(3):
        assert ids(worker.take_all()) == [suspect]
        lose(database, worker)
    assert 0 < worker.claimer.next_look(worker.connection).quarantined_s <= 6
    let_pass(database, TEN_MINUTES_S)
    assert worker.claimer.next_look(worker.connection).quarantined_s <= 0
    [healthy] = insert(database, 1)
    assert ids(worker.take_all()) == [healthy]
    [claimed] = worker.claimer.claim_quarantined(worker.connection).deliveries
    assert (claimed.delivery_id, claimed.leases_lost) == (suspect, 3)
    assert not worker.claimer.claim_quarantined(worker.connection).deliveries
    worker.finish([claimed], answered(200))
    assert delivery(database, suspect)["delivery_status"] == "delivered"


def test_after_six_lost_leases_a_row_is_failed_and_says_why(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    [poison] = insert(database, 1)
    delays = []
    for _ in range(3):
        worker.take_all()
        lose(database, worker)
    for _ in range(3):
        let_pass(database, TEN_MINUTES_S)
        assert ids(worker.claimer.claim_quarantined(worker.connection).deliveries) == [poison]
        lose(database, worker)
        delays.append(worker.claimer.next_look(worker.connection).quarantined_s)
    row = delivery(database, poison)
    assert (row["delivery_status"], row["leases_lost"], row["retry_count"], row["attempts"]) == (
        "failed",
        6,
        0,
        0,
    )
    [(event, status, details)] = database.execute(
        "SELECT event_type, http_status, event_details->>'reason' FROM pggit.alert_delivery_log"
    )
    assert (event, status, details) == ("failed", None, "lost 6 leases")
    assert 15 < delays[0] < 25 and 60 < delays[1] < 100
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
            "UPDATE pggit.alert_delivery_queue SET leases_lost = 3, routed = true WHERE "
            "delivery_id = %s",
            [suspect],
        )
    lanes_of(database, 1)
    assert not worker.claimer.claim_quarantined(worker.connection).deliveries
    assert worker.claimer.next_look(worker.connection).quarantined_s > 0
    assert delivery(database, suspect)["leases_lost"] == 3
    unblock(database, worker, cause, in_flight)
    let_pass(database, 61)
    assert ids(worker.claimer.claim_quarantined(worker.connection).deliveries) == [suspect]


def test_a_suspect_counts_for_tokens_in_flight_and_the_probe(database: Database) -> None:
    register(database, 1, rate_limit_per_second=1, rate_limit_burst=5, circuit_failure_threshold=1)
    [suspect] = insert(database, 1)
    with engine(database) as worker:
        worker.finish(worker.take_all(), answered(500))
        with unseen(database) as connection:
            connection.execute("UPDATE pggit.alert_delivery_queue SET leases_lost = 3")
        let_pass(database, TEN_MINUTES_S)
        [claimed] = worker.claimer.claim_quarantined(worker.connection).deliveries
        state = lane(database, 1)
        assert (state["circuit_state"], state["in_flight"], state["tokens"]) == ("half_open", 1, 4)
        worker.finish([claimed], answered(200))
        assert (lane(database, 1)["circuit_state"], lane(database, 1)["in_flight"]) == ("closed", 0)
        assert delivery(database, suspect)["delivery_status"] == "delivered"
        assert_books_balance(database)


def test_a_counter_that_is_wrong_does_not_keep_a_suspect_from_its_turn(
    database: Database, worker: Engine
) -> None:
    register(database, 1, max_in_flight=2)
    [suspect, *others] = insert(database, 1, 3)
    with unseen(database) as connection:
        connection.execute(
            "UPDATE pggit.alert_delivery_queue SET leases_lost = 3, routed = true WHERE "
            "delivery_id = %s",
            [suspect],
        )
    assert ids(worker.take_all()) == others
    database.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_status = 'sending'")
    assert lane(database, 1)["in_flight"] == 2
    assert ids(worker.claimer.claim_quarantined(worker.connection).deliveries) == [suspect]
    assert lane(database, 1)["in_flight"] == 1


@pytest.mark.every_postgres
@pytest.mark.parametrize("when", ["infinity", "-infinity"])
def test_a_row_due_at_an_infinite_time_stops_nobody(database: Database, when: str) -> None:
    """Before PostgreSQL 17 no interval is infinite, so that a difference of such instants is an
    error.
    """
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, enabled) VALUES (1, 'x', true), (2, 'x', "
        "false)"
    )
    database.import_rows(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at, "
        "first_attempted_at)"
        f" SELECT n, '1', '{when}', '{when}' FROM generate_series(1, 2) n"
    )
    with engine(database) as worker:
        assert len(worker.claim(10).deliveries) == (when == "-infinity")
        worker.claim(10)
        look = worker.claimer.next_look(worker.connection)
        assert (look.lane_s, look.new_rows) == (math.inf, False), (
            "looks for what may not go, and never sleeps"
        )
    for name in ("measure_depth", "status_waiting"):
        database.execute(statements.load(name))
    database.execute(statements.load("doctor_waiting"), {"overdue_s": 60.0})
