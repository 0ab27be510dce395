"""The steps of tests/property/lease_model.py in random schedules on the real statements, with the
same rules after each step.

What test_fence.py has not: workers that die and come back as another incarnation of the same name,
transactions that fail at any of their statements or at COMMIT, COMMITs whose answer is lost, rows
that kill six workers, and a lane at its cap whose counter is wrong.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from unittest.mock import patch

import psycopg
import pytest

from tests.support import breaking
from tests.support.engine import engine, register
from tests.support.faults import Fault
from tests.support.lease_schedule import Schedule
from tests.support.lease_workers import DEFAULTS, WEBHOOKS, Worker
from tests.support.postgres import Database, Server
from webhookd.postgres import claim, horizon
from webhookd.postgres.horizon import Horizon

WORKERS = 3


@pytest.fixture(scope="module")
def scheduled(embedded_server: Server) -> Iterator[Database]:
    """One database for all schedules: each begins by emptying it."""
    database = embedded_server.create_migrated()
    register(database, *WEBHOOKS)
    yield database
    embedded_server.drop(database)


@pytest.fixture
def looks_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each worker believe it from its first claim on, whatever the machine."""
    monkeypatch.setattr(horizon, "SLOW_LOOK_S", 0.0)


def run_schedules(
    database: Database,
    seeds: range,
    *,
    steps: int = 100,
    mutate: Callable[[str, str], str] | None = None,
) -> Counter[str]:
    """Run one schedule for each seed; return what happened how often. A failure's note names its
    seed.
    """
    happened: Counter[str] = Counter()
    with ExitStack() as stack:
        engines = [
            stack.enter_context(
                engine(database, f"worker-{number}", defaults=DEFAULTS, mutate=mutate)
            )
            for number in range(1, WORKERS + 1)
        ]
        session = stack.enter_context(database.connect())
        for seed in seeds:
            schedule = Schedule([Worker(engine) for engine in engines], session, seed)
            try:
                schedule.run(steps)
            except AssertionError as error:
                error.add_note(f"schedule of seed {seed}")
                raise
            happened += schedule.happened
    return happened


def test_whatever_breaks_each_row_has_one_owner_and_one_end(scheduled: Database) -> None:
    happened = run_schedules(scheduled, range(8))
    # What a schedule is for did happen.
    expected = (
        "refused",
        "released",
        "suspect claimed",
        "claimed unheard",
        "recorded unheard",
        "given up",
    )
    assert all(happened[what] for what in expected), happened


def test_a_low_water_mark_under_an_old_snapshot_hides_no_row_for_ever(
    scheduled: Database, looks_are_slow: None
) -> None:
    happened = run_schedules(scheduled, range(8))
    assert happened["released"] and happened["recorded unheard"], happened


def test_a_lane_whose_mark_outlives_its_last_row_is_found(
    scheduled: Database, looks_are_slow: None
) -> None:
    def keep(horizon: Horizon, webhook_id: int, first_at: float | None, *, now_at: float) -> None:
        horizon._lanes[webhook_id] = now_at, math.inf

    with (
        patch.object(Horizon, "note_claim", keep),
        pytest.raises(AssertionError, match="nobody's for ever"),
    ):
        run_schedules(scheduled, range(40))


FAULTS = {
    "record does not look at the token": Fault(
        "settle", "q.lease_token = r.token", "q.lease_token IS NOT NULL"
    ),
    "record keeps the lease": Fault(
        "settle", "lease_until = NULL, leased_by = NULL", "leased_by = NULL"
    ),
    "lost lease spends a retry": Fault(
        "settle", "q.retry_count + r.retries", "q.retry_count + r.retries + r.losses"
    ),
    "lost lease is not counted": Fault("settle", "leases_lost = q.leases_lost + r.losses,", ""),
    "given back is an attempt": Fault(
        "settle", "q.attempts + (r.age_s IS NOT NULL)::int", "q.attempts + 1"
    ),
    "dead are known by name": Fault(
        "leases_of",
        "q.leased_by = %(incarnation)s",
        "q.worker_id IN (SELECT o.worker_id FROM pggit.alert_delivery_queue o WHERE o.leased_by "
        "= %(incarnation)s)",
    ),
    "dead hold what ran out": Fault(
        "leases_of", "AND q.leased_by", "AND q.lease_until <= now() AND q.leased_by"
    ),
    "reap takes leases that have not run out": Fault(
        "expired_leases", "AND q.lease_until <= now()", ""
    ),
    "quarantined rows are claimed with the rest": Fault(
        "claim",
        "AND w.leases_lost < 3 AND w.next_retry_at BETWEEN to_timestamp(l.mark) AND now()",
        "",
    ),
    "record forgets what is in flight": Fault("update_lanes", "in_flight = r.in_flight,", ""),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_step_of_the_statements_left_out_is_found(scheduled: Database, fault: Fault) -> None:
    with pytest.raises((AssertionError, psycopg.Error)):
        run_schedules(scheduled, range(40), mutate=fault)


def test_a_lane_at_its_cap_that_is_not_counted_afresh_is_found(scheduled: Database) -> None:
    with (
        patch.object(claim, "recounted", lambda cursor, lanes, settings: lanes),
        pytest.raises(AssertionError),
    ):
        run_schedules(scheduled, range(40))


def test_a_transaction_that_keeps_what_came_before_its_failure_is_found(
    scheduled: Database,
) -> None:
    with (
        patch.object(breaking, "_transaction", breaking.statement_by_statement),
        pytest.raises(AssertionError),
    ):
        run_schedules(scheduled, range(40))


@pytest.mark.storm
def test_whatever_breaks_in_many_long_schedules(
    scheduled: Database, request: pytest.FixtureRequest
) -> None:
    given: int | None = request.config.getoption("--storm-seed")
    first = random.SystemRandom().randrange(10**6) if given is None else given
    print(f"--storm-seed {first}")
    run_schedules(scheduled, range(first, first + 30), steps=400)
