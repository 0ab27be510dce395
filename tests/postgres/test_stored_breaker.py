"""The breaker as two workers store it, against the pure one, and with each step of the storing left
out.

Two incarnations claim and record on one database in any order; a plain `Breaker` beside them says
after each step what the lane must read and who may be claimed. Time passes by moving every stored
instant into the past.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.engine import (
    ROOMY,
    Engine,
    answered,
    engine,
    given_back,
    insert,
    lane,
    let_pass,
    register,
    unseen,
)
from tests.support.faults import replaced
from tests.support.mutants import CHECK, HUNT, Mutant, StoredMutant
from tests.support.planted.stored import STORED
from tests.support.postgres import Database, Server
from webhookd.core.answer import CircuitVote
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.model import Delivery, Outcome, Result
from webhookd.postgres import record

WEBHOOK_ID = 1
OPEN_S = 1000.0
LEASE_S = 35.0  # the exchange's 5 s, and 30 for local waiting
NEAR_S = 15.0  # a step takes milliseconds, but the machine is shared
# Whatever is retried is due at once.
DEFAULTS = ROOMY._replace(circuit_open_s=OPEN_S, max_retries=3, retry_base_s=1e-6, retry_max_s=1e-6)

OUTCOMES: dict[str, tuple[Outcome, CircuitVote | None]] = {
    "500": (answered(500), CircuitVote.FAILURE),
    "200": (answered(200), CircuitVote.SUCCESS),
    "404": (answered(404), CircuitVote.FAILURE),
    "429": (answered(429), CircuitVote.NEUTRAL),
    "given back": (given_back(), None),
}
ends = st.sampled_from(sorted(OUTCOMES, reverse=True))
which_worker = st.integers(0, 1)


@dataclass(frozen=True, slots=True)
class Held:
    """A claim, who made it, and when its lease ends (in the model's time)."""

    delivery: Delivery
    worker: int
    until: float


class Steady(psycopg.Connection[tuple[Any, ...]]):
    """Stays open when a `with` ends: to connect anew would take longer than most steps."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.rollback()
        else:
            self.commit()


class SteadyDatabase(Database):
    """A database whose statements share one connection, and whose transactions another."""

    def __init__(self, database: Database) -> None:
        super().__init__(database.name, database.dsn)
        self.statements = Steady.connect(database.dsn, autocommit=True)
        self.transactions = Steady.connect(database.dsn)

    def connect(self, **_: Any) -> psycopg.Connection[tuple[Any, ...]]:
        return self.transactions

    def execute(self, statement: str, params: Any = None) -> list[tuple[Any, ...]]:
        cursor = self.statements.execute(statement.encode(), params)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self.statements.close()
        self.transactions.close()


class Fleet(RuleBasedStateMachine):
    """Two workers and one webhook. `breaker` and `health` are the model; `held` is what the workers
    sit on.
    """

    database: SteadyDatabase
    workers: Sequence[Engine]

    @initialize(
        threshold=st.sampled_from([2, 1, 2, 3]),
        rows=st.integers(2, 4),
        suspects=st.integers(0, 1),
        failed=st.sampled_from([3, 2, 0]),
        outcome=st.sampled_from(["500", "404"]),
        probing=st.booleans(),
    )
    def start(
        self, threshold: int, rows: int, suspects: int, failed: int, outcome: str, probing: bool
    ) -> None:
        """Begin anywhere between a new webhook and one that is being probed, with a claim of the
        first epoch under way.
        """
        self.threshold = threshold
        self.now = 0.0
        self.suspects = 0
        self.breaker = Breaker()
        self.health = "unknown"
        self.held: list[Held] = []
        self.late: list[Held] = []  # recorded already, or somebody else's by now
        register(self.database, WEBHOOK_ID, circuit_failure_threshold=threshold)
        insert(self.database, WEBHOOK_ID, rows + suspects)
        self.claim(0, 1)
        for _ in range(min(failed, threshold)):
            self.claim(1, 1)
            if self.held[-1].worker == 1:
                self.record(1, [len(self.held) - 1], [outcome])
        self.rows_lose_leases(suspects)
        if probing:
            self.time_passes(OPEN_S + 1.0)
            self.claim_a_suspect(1)
            self.claim(1, 1)

    def teardown(self) -> None:
        for table in ("alert_delivery_queue", "webhooks", "webhook_health_metrics"):
            self.database.execute(f"DELETE FROM pggit.{table}")

    @rule(worker=which_worker, wish=st.integers(1, 2))
    def claim(self, worker: int, wish: int) -> None:
        may_go = self.may_go(wish, self.due("leases_lost < 3"))
        self.claimed(worker, self.workers[worker].take(wish), may_go)

    @precondition(lambda self: self.suspects)
    @rule(worker=which_worker)
    def claim_a_suspect(self, worker: int) -> None:
        engine = self.workers[worker]
        may_go = self.may_go(1, self.due("leases_lost >= 3"))
        self.claimed(worker, engine.claimer.claim_quarantined(engine.connection).deliveries, may_go)

    def claimed(self, worker: int, deliveries: Sequence[Delivery], may_go: int) -> None:
        assert len(deliveries) == may_go
        if deliveries and self.breaker.state is not CircuitState.CLOSED:
            self.breaker = self.breaker.begin_probe(lease_until=self.now + LEASE_S)
            self.health = "degraded"
        assert {delivery.breaker.generation for delivery in deliveries} <= {self.breaker.generation}
        self.held += [Held(delivery, worker, self.now + LEASE_S) for delivery in deliveries]

    @precondition(lambda self: self.held)
    @rule(
        worker=which_worker,
        which=st.lists(st.integers(0, 7), min_size=1, max_size=2),
        outcomes=st.lists(ends, min_size=2),
    )
    def record(self, worker: int, which: list[int], outcomes: list[str]) -> None:
        """Any worker may bring any result: what counts is whose claim it is."""
        chosen = {
            id(held): held for held in [self.held[number % len(self.held)] for number in which]
        }
        ended = list(zip(chosen.values(), outcomes, strict=False))
        results = [Result(held.delivery, OUTCOMES[outcome][0]) for held, outcome in ended]
        recorded = self.workers[worker].record(results)
        assert list(recorded.accepted) == results
        votes = []
        for held, outcome in ended:
            vote = OUTCOMES[outcome][1]
            generation = held.delivery.breaker.generation
            if vote is None:
                self.breaker = self.breaker.abandon_probe(generation=generation, now=self.now)
                continue
            votes.append(vote)
            self.breaker = self.breaker.vote(
                vote, generation=generation, now=self.now, threshold=self.threshold, open_s=OPEN_S
            )
        # A failure that counts shows in the breaker; the others were claimed before a reset.
        telling = [vote for vote in votes if vote is not CircuitVote.FAILURE]
        if self.breaker.health() != "healthy":
            self.health = self.breaker.health()
        elif telling:
            self.health = "degraded" if telling[-1] is CircuitVote.NEUTRAL else "healthy"
        self.ended([held for held, _ in ended])

    @precondition(lambda self: self.late)
    @rule(worker=which_worker, which=st.integers(0, 7), outcome=ends)
    def record_too_late(self, worker: int, which: int, outcome: str) -> None:
        result = Result(self.late[-1 - which % len(self.late)].delivery, OUTCOMES[outcome][0])
        assert list(self.workers[worker].record([result]).refused) == [result]

    @precondition(lambda self: self.held)
    @rule(worker=which_worker)
    def other_worker_dies(self, worker: int) -> None:
        recorded = self.workers[worker].release(self.workers[1 - worker].incarnation)
        orphaned = [held for held in self.held if held.worker != worker]
        assert len(recorded.accepted) == len(orphaned)
        for held in orphaned:
            before = self.breaker
            self.breaker = before.abandon_probe(
                generation=held.delivery.breaker.generation, now=self.now
            )
        self.ended(orphaned)

    @precondition(lambda self: self.held)
    @rule(worker=which_worker)
    def reap(self, worker: int) -> None:
        recorded = self.workers[worker].release()
        expired = [held for held in self.held if held.until <= self.now]
        assert len(recorded.accepted) == len(expired)
        self.ended(expired)

    @precondition(lambda self: self.breaker.failures)
    @rule()
    def operator_resets(self) -> None:
        """The seed's playbook, verbatim."""
        self.database.execute(
            "UPDATE pggit.webhook_health_metrics SET consecutive_failures = 0, health_status = "
            "'healthy',"
            " last_check_at = CURRENT_TIMESTAMP WHERE webhook_id = %s AND health_status != "
            "'healthy'",
            [WEBHOOK_ID],
        )
        if self.health != "healthy":
            self.breaker, self.health = self.breaker.reset(), "healthy"

    @rule(worker=which_worker)
    def operator_holds_the_row(self, worker: int) -> None:
        """What an open transaction holds is left alone, and nobody waits for it."""
        engine = self.workers[worker]
        results = [Result(held.delivery, answered(500)) for held in self.held[:1]]
        with self.database.connect(autocommit=False) as operator:
            operator.execute(
                "SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = %s FOR UPDATE",
                [WEBHOOK_ID],
            )
            assert engine.take(2) == []
            assert engine.claimer.claim_quarantined(engine.connection).deliveries == ()
            assert not results or list(engine.record(results).deferred) == results
            operator.rollback()

    @rule(span_s=st.sampled_from([OPEN_S + 1.0, LEASE_S + 5.0, OPEN_S / 2]))
    def time_passes(self, span_s: float) -> None:
        let_pass(self.database, span_s)
        self.now += span_s

    @rule(suspects=st.integers(0, 1))
    def rows_are_inserted(self, suspects: int) -> None:
        insert(self.database, WEBHOOK_ID, 1)
        self.rows_lose_leases(suspects)

    def rows_lose_leases(self, count: int) -> None:
        self.suspects += count
        with unseen(self.database) as connection:
            connection.execute(
                "UPDATE pggit.alert_delivery_queue SET leases_lost = 3, routed = true WHERE "
                "delivery_id IN ("
                " SELECT delivery_id FROM pggit.alert_delivery_queue WHERE delivery_status IN "
                "('pending', 'retrying')"
                " ORDER BY delivery_id LIMIT %s)",
                [count],
            )

    @invariant()
    def the_lane_reads_what_the_model_says(self) -> None:
        row = lane(self.database, WEBHOOK_ID)
        stored = (
            row["circuit_state"],
            row["circuit_epoch"],
            row["consecutive_failures"],
            row["health_status"],
        )
        assert stored == (
            self.breaker.state,
            self.breaker.generation,
            self.breaker.failures,
            self.health,
        )
        assert row["in_flight"] == len(self.held)
        assert (row["circuit_in_s"] is None) == (self.breaker.next_probe_at is None)
        assert (
            self.breaker.next_probe_at is None
            or abs(row["circuit_in_s"] - (self.breaker.next_probe_at - self.now)) < NEAR_S
        )

    def may_go(self, wish: int, due: int) -> int:
        blocked_until = self.breaker.blocked_until
        if blocked_until is None:
            return min(wish, due)
        return min(1, due) if blocked_until <= self.now else 0

    def due(self, which: str) -> int:
        ((count,),) = self.database.execute(
            "SELECT count(*) FROM pggit.alert_delivery_queue"
            " WHERE delivery_status IN ('pending', 'retrying') AND next_retry_at <= now() AND "
            f"{which}"
        )
        return int(count)

    def ended(self, claims: Sequence[Held]) -> None:
        self.held = [held for held in self.held if held not in claims]
        self.late += claims


def drive(database: Database, how: settings, mutant: StoredMutant | None = None) -> None:
    def mutate(name: str, text: str) -> str:
        return (
            replaced(text, mutant.was, mutant.becomes) if mutant and mutant.place == name else text
        )

    with ExitStack() as stack:
        steady = stack.enter_context(closing(SteadyDatabase(database)))
        workers = [
            stack.enter_context(engine(database, name, defaults=DEFAULTS, mutate=mutate))
            for name in ("worker-1", "worker-2")
        ]
        for worker in workers:
            # Nothing here waits for a lock; a mutant that does need not do so for long.
            worker.connection.execute("SET lock_timeout = '300ms'")
        if mutant:
            stack.enter_context(planted(steady, mutant))
        machine = type("FleetOf", (Fleet,), {"database": steady, "workers": workers})
        run_state_machine_as_test(machine, settings=how)


@contextmanager
def planted(database: Database, mutant: StoredMutant) -> Iterator[None]:
    """Plant what is not in a statement of sql/queries, and take it out again."""
    if mutant.place == "reset_circuit":
        ((text,),) = database.execute("SELECT pg_get_functiondef('pggit.reset_circuit'::regproc)")
        database.execute(replaced(text, mutant.was, mutant.becomes))
        try:
            yield
        finally:
            database.execute(text)
    elif mutant.place == "lane":
        settle_lane = Mutant("lane", mutant.was, mutant.becomes, "").plant().settle_lane
        with patch.object(record, "settle_lane", settle_lane):
            yield
    elif mutant.place == "token":
        with patch("webhookd.postgres.claim.secrets.randbits", lambda bits: bits):
            yield
    else:
        yield


@pytest.fixture(scope="module")
def shared_database(embedded_server: Server) -> Iterator[Database]:
    """One database for all runs: each example leaves it as empty as it found it."""
    database = embedded_server.create_migrated()
    yield database
    embedded_server.drop(database)


def test_the_stored_breaker_is_the_pure_one(shared_database: Database) -> None:
    drive(
        shared_database,
        settings(
            CHECK,
            max_examples=40,
            stateful_step_count=20,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=str(mutant), marks=[pytest.mark.storm] if mutant.rare else [])
        for mutant in STORED
    ],
)
def test_a_step_left_out_is_caught(shared_database: Database, mutant: StoredMutant) -> None:
    with pytest.raises((AssertionError, psycopg.Error)):
        drive(shared_database, settings(HUNT, max_examples=2000, stateful_step_count=20), mutant)
