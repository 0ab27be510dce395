"""The steps of tests/property/lease_model.py in random schedules on the real statements, with the same rules after each step.

What test_fence.py has not: workers that die and come back as another incarnation of the same name, transactions that fail at any
of their statements or at COMMIT, COMMITs whose answer is lost, rows that kill six workers, and a lane at its cap whose counter is
wrong. A schedule is nothing but its seed, which a failure names.
"""

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.engine import ROOMY, Engine, Fault, answered, engine, given_back, register
from tests.postgres import Database, Server
from webhookd import store
from webhookd.claims import Claimer, ClaimInDoubtError
from webhookd.core.model import Delivery, Outcome, Result

WORKERS = 3
WEBHOOKS = (1, 2)
CAP = 2
MAX_RETRIES = 3  # the table's default
DEFAULTS = ROOMY._replace(max_in_flight=CAP, circuit_threshold=1_000_000)
OUTCOMES: dict[str, Callable[[], Outcome]] = {
    "delivered": lambda: answered(200),
    "fail": lambda: answered(404),
    "retry": lambda: answered(500),
    "given back": given_back,
}
Mutate = Callable[[str, str], str]


class Broken(psycopg.OperationalError):
    """The connection went, as far as the worker can tell."""


@dataclass(slots=True)
class Breaking:
    """What happens to the next transaction: it fails before its *fails_at*-th statement, at COMMIT, or is stored all the same."""

    fails_at: int | None = None
    commit: str = "succeeds"  # fails, is stored

    @contextmanager
    def transaction(self, connection: store.Connection, **options: Any) -> Iterator[Any]:
        fails_at, commit, self.fails_at, self.commit = self.fails_at, self.commit, None, "succeeds"
        with _TRANSACTION(connection, **options) as cursor:
            yield cursor if fails_at is None else _BreakingCursor(cursor, fails_at)
            if commit == "fails":
                raise Broken("before COMMIT")
        if commit == "is stored":
            raise Broken("after COMMIT")


_TRANSACTION = store.transaction


class _BreakingCursor:
    def __init__(self, cursor: psycopg.Cursor[Any], fails_at: int) -> None:
        self._cursor = cursor
        self._left = fails_at

    def execute(self, *arguments: Any) -> psycopg.Cursor[Any]:
        if self._left == 0:
            raise Broken("between two statements")
        self._left -= 1
        return self._cursor.execute(*arguments)


@dataclass(slots=True)
class Row:
    """What a queue row should be. *holder*: whose result it takes, the process and the token, and nobody else's."""

    webhook_id: int
    status: str = "pending"
    retries: int = 0
    losses: int = 0
    attempts: int = 0
    expired: bool = False
    holder: tuple[Engine, int] | None = None

    @property
    def waiting(self) -> bool:
        return self.status in ("pending", "retrying")

    def end(self, outcome: str) -> None:
        self.holder, self.expired = None, False
        if outcome == "given back":
            self.status = "retrying" if self.attempts else "pending"
            return
        self.attempts += 1
        if outcome == "retry" and self.retries < MAX_RETRIES:
            self.retries += 1
            self.status = "retrying"
        else:
            self.status = "delivered" if outcome == "delivered" else "failed"

    def lose(self) -> None:
        self.holder, self.expired = None, False
        self.losses += 1
        self.status = "failed" if self.losses == 6 else "retrying" if self.attempts else "pending"


@dataclass(slots=True, eq=False)
class Worker:
    """A name, the process that has it just now, and what that one remembers."""

    engine: Engine
    hands: list[Delivery] = field(default_factory=list)
    results: list[tuple[Result, str]] = field(default_factory=list)
    lost: list[Result] = field(default_factory=list)

    def anew(self) -> None:
        """Another process with the same name: nothing is left of the last one but its leases."""
        incarnation = uuid4()
        claimer = Claimer(worker_id=self.engine.worker_id, incarnation=incarnation, defaults=DEFAULTS)
        for statement in ("_lock_lanes", "_lock_suspect", "_count_leases", "_claim", "_claim_suspect"):
            setattr(claimer, statement, getattr(self.engine.claimer, statement))  # faults are planted in them
        self.engine = replace(self.engine, incarnation=incarnation, claimer=claimer)
        self.hands, self.results, self.lost = [], [], []


class Schedule:
    """One random history, and beside the database what every row of it should be."""

    def __init__(self, workers: list[Worker], session: psycopg.Connection[Any], seed: int) -> None:
        self._dice = random.Random(seed)
        self._breaking = Breaking()
        self._workers = workers
        self._session = session
        self._faults_left = True
        self._rows: dict[int, Row] = {}
        self._stranded: Counter[int] = Counter()
        self._dead: set[UUID] = set()  # the supervisor saw them die
        self.happened: Counter[str] = Counter()

    def run(self, steps: int) -> None:
        """Take *steps* steps, checking after each, and have everything come to its end; raises `AssertionError`."""
        self._clear()
        self._inserts()
        with patch.object(store, "transaction", self._breaking.transaction):
            for _ in range(steps):
                step = self._dice.choices(list(_STEPS), list(_STEPS.values()))[0]
                getattr(self, f"_{step}")()
                self._check()
            self._come_to_an_end()

    # The steps -------------------------------------------------------------------------------------------------------

    def _inserts(self) -> None:
        rows = self._session.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) SELECT %s, '{}' FROM generate_series(1, %s)"
            " RETURNING delivery_id, webhook_id",
            [self._dice.choice(WEBHOOKS), self._dice.randint(1, 3)],
        ).fetchall()
        self._rows |= {delivery_id: Row(webhook_id) for delivery_id, webhook_id in rows}

    def _claims(self, worker: Worker | None = None) -> None:
        claimant = worker or self._dice.choice(self._workers)
        limit = self._dice.randint(1, 6)
        self._claimed(claimant, lambda: list(claimant.engine.claim(limit).deliveries), suspect=False)

    def _claims_suspect(self, worker: Worker | None = None) -> None:
        worker = worker or self._dice.choice(self._workers)
        if not worker.hands and not worker.results:
            claimer, connection = worker.engine.claimer, worker.engine.connection
            self._claimed(worker, lambda: list(claimer.claim_suspect(connection).deliveries), suspect=True)

    def _claimed(self, worker: Worker, claim: Callable[[], list[Delivery]], *, suspect: bool) -> None:
        stored = self._breaks("claim")
        try:
            deliveries = claim()
        except ClaimInDoubtError as doubt:
            # As the dispatcher does: it cannot tell whether the claim was stored.
            worker.results += [(Result(delivery, given_back()), "given back") for delivery in doubt.deliveries]
            if stored:
                self.happened["claimed unheard"] += len(doubt.deliveries)
                self._hold(worker, doubt.deliveries, suspect=suspect)
            return
        except Broken:
            return
        if suspect and deliveries:
            self.happened["suspect claimed"] += 1
        self._hold(worker, deliveries, suspect=suspect)
        worker.hands += deliveries

    def _hold(self, worker: Worker, deliveries: Sequence[Delivery], *, suspect: bool) -> None:
        for delivery in deliveries:
            row = self._rows[delivery.delivery_id]
            assert row.waiting and row.holder is None, "claimed though it has an owner, or is at its end"
            assert (row.losses >= 3) == suspect, "a suspect row was not tried alone"
            row.status, row.holder = "sending", (worker.engine, delivery.token)

    def _posts(self) -> None:
        worker = self._one_of([worker for worker in self._workers if worker.hands])
        self._dice.shuffle(worker.hands)
        while worker.hands and self._dice.random() < 0.7:
            self._ends(worker, worker.hands.pop(), self._dice.choice(sorted(OUTCOMES)))

    def _ends(self, worker: Worker, delivery: Delivery, outcome: str) -> None:
        """Have a claim end with *outcome*; but the first row is poison: whoever posts it dies, and is seen to."""
        if delivery.delivery_id == min(self._rows) and outcome != "given back":
            self._dies(worker)
        else:
            worker.results.append((Result(delivery, OUTCOMES[outcome]()), outcome))

    def _records(self, worker: Worker | None = None) -> None:
        worker = worker or self._one_of([worker for worker in self._workers if worker.results])
        if not worker.results:
            return
        stored = self._breaks("record")
        batch = list(worker.results)
        owned = [result for result, _ in batch if self._owns(result)]
        try:
            recorded = worker.engine.record([result for result, _ in batch])
        except Broken:
            if stored:  # and the worker will try again
                self.happened["recorded unheard"] += len(owned)
                self._ended([(result, outcome) for result, outcome in batch if result in owned])
            return
        assert not recorded.deferred
        assert {id(result) for result in recorded.accepted} == {id(result) for result in owned}, "not the owner's alone"
        self.happened["refused"] += len(recorded.refused)
        self.happened["recorded"] += len(owned)
        self._ended([(result, outcome) for result, outcome in batch if result in owned])
        worker.results = []

    def _ended(self, results: list[tuple[Result, str]]) -> None:
        for result, outcome in results:
            self._rows[result.delivery.delivery_id].end(outcome)

    def _lease_runs_out(self) -> None:
        held = [delivery_id for delivery_id, row in self._rows.items() if row.holder]
        if held:
            self._expire(self._dice.choice(held))

    def _reads_what_ran_out(self, worker: Worker | None = None) -> None:
        worker = worker or self._dice.choice(self._workers)
        worker.lost = worker.engine.recorder.lost_leases(worker.engine.connection)
        expected = {delivery_id for delivery_id, row in self._rows.items() if row.expired}
        assert {result.delivery.delivery_id for result in worker.lost} == expected, "not what ran out"

    def _reads_what_the_dead_held(self, worker: Worker | None = None) -> None:
        worker = worker or self._dice.choice(self._workers)
        if self._dead:
            dead = min(self._dead)
            worker.lost = worker.engine.recorder.lost_leases(worker.engine.connection, incarnation=dead)
            expected = {key for key, row in self._rows.items() if row.holder and row.holder[0].incarnation == dead}
            assert {result.delivery.delivery_id for result in worker.lost} == expected, "not what the dead one held"
            if not worker.lost:
                self._dead.discard(dead)

    def _records_what_was_lost(self, worker: Worker | None = None) -> None:
        worker = worker or self._one_of([worker for worker in self._workers if worker.lost])
        if not worker.lost:
            return
        stored = self._breaks("record")
        owned = [result for result in worker.lost if self._owns(result)]
        try:
            recorded = worker.engine.record(worker.lost)
        except Broken:
            if not stored:
                return
        else:
            assert {id(result) for result in recorded.accepted} == {id(result) for result in owned}, "not the holder's lease"
            worker.lost = []
        for result in owned:
            row = self._rows[result.delivery.delivery_id]
            row.lose()
            self.happened["released"] += 1
            self.happened["given up"] += row.status == "failed"

    def _dies(self, worker: Worker | None = None) -> None:
        worker = worker or self._dice.choice(self._workers)
        self._dead.add(worker.engine.incarnation)
        worker.anew()

    def _is_operated(self) -> None:
        """An operator cancels a delivery under way: the row is final, its result will be refused, and the lane miscounts."""
        held = [delivery_id for delivery_id, row in self._rows.items() if row.holder]
        if held:
            delivery_id = self._dice.choice(held)
            self._session.execute(
                "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id = %s", [delivery_id]
            )
            row = self._rows[delivery_id]
            row.status, row.holder, row.expired = "failed", None, False
            self._stranded[row.webhook_id] += 1

    def _time_passes(self) -> None:
        with _unseen(self._session):
            self._session.execute(
                "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() - interval '1 s'"
                " WHERE delivery_status IN ('pending', 'retrying') AND next_retry_at > now()"
            )
            self._session.execute("UPDATE pggit.webhook_health_metrics SET runnable_at = now() WHERE runnable_at IS NOT NULL")

    # What holds after each -------------------------------------------------------------------------------------------

    def _check(self) -> None:
        rows = self._session.execute(
            "SELECT q.delivery_id, q.delivery_status, q.retry_count, q.leases_lost, q.attempts, q.max_retries,"
            " (q.lease_token IS NOT NULL AND q.lease_token > 0), q.leased_by, q.lease_until IS NOT NULL,"
            " (SELECT count(*) FROM pggit.alert_delivery_log l WHERE l.delivery_id = q.delivery_id AND l.http_status IS NOT NULL)"
            " FROM pggit.alert_delivery_queue q"
        ).fetchall()
        assert {row[0] for row in rows} == set(self._rows), "a row is gone"
        for delivery_id, status, retries, losses, attempts, most, fenced, leased_by, leased, logged in rows:
            row = self._rows[delivery_id]
            assert (status, retries, losses, attempts) == (row.status, row.retries, row.losses, row.attempts), delivery_id
            assert retries <= most == MAX_RETRIES
            assert attempts == logged, "an attempt was not counted once"
            assert (fenced, leased_by, leased) == (
                (True, row.holder[0].incarnation, True) if row.holder else (False, None, False)
            ), "a lease without a claim, or a claim without a lease"
        lanes = self._session.execute(
            "SELECT h.webhook_id, h.in_flight, h.total_deliveries, h.successful_deliveries FROM pggit.webhook_health_metrics h"
        ).fetchall()
        for webhook_id, in_flight, attempts, delivered in lanes:
            its = [row for row in self._rows.values() if row.webhook_id == webhook_id]
            assert attempts == sum(row.attempts for row in its), "the lane did not count each attempt once"
            assert delivered == sum(row.status == "delivered" for row in its)
            over = in_flight - sum(row.status == "sending" for row in its)
            assert 0 <= over <= self._stranded[webhook_id], "in_flight does not say what is in flight"
            self._stranded[webhook_id] = over  # less than it was, if it was counted afresh

    def _come_to_an_end(self) -> None:
        """Without faults from now on: deaths that were seen need no lease to run out, and no sweep mends a counter."""
        self._faults_left = False
        for _ in range(10 + len(self._rows)):
            for worker in self._workers:
                for read in (self._reads_what_ran_out, *[self._reads_what_the_dead_held] * (len(self._dead) + 1)):
                    read(worker)
                    self._records_what_was_lost(worker)
                while worker.hands:
                    self._ends(worker, worker.hands.pop(), "delivered")
                self._records(worker)
                self._time_passes()
                self._claims(worker)
                self._claims_suspect(worker)
                self._check()
            if all(row.status in ("delivered", "failed") for row in self._rows.values()):
                return
        raise AssertionError("a row is nobody's for ever")

    # What the steps are made of --------------------------------------------------------------------------------------

    def _breaks(self, what: str) -> bool:
        """Decide what happens to the next transaction; return whether its COMMIT is stored and not heard of."""
        self._breaking.fails_at, self._breaking.commit = None, "succeeds"
        if not self._faults_left or self._dice.random() < 0.7:
            return False
        self.happened[f"{what} broken"] += 1
        how = self._dice.choice(["statement", "fails", "is stored"])
        if how == "statement":
            self._breaking.fails_at = self._dice.randint(0, 3)
        else:
            self._breaking.commit = how
        return how == "is stored"

    def _one_of(self, workers: list[Worker]) -> Worker:
        """Return one of *workers*, or any if there is none."""
        return self._dice.choice(workers or self._workers)

    def _owns(self, result: Result) -> bool:
        row = self._rows[result.delivery.delivery_id]
        return row.holder is not None and row.holder[1] == result.delivery.token

    def _expire(self, delivery_id: int) -> None:
        self._rows[delivery_id].expired = True
        with _unseen(self._session):
            self._session.execute(
                "UPDATE pggit.alert_delivery_queue SET lease_until = now() - interval '1 s' WHERE delivery_id = %s", [delivery_id]
            )

    def _clear(self) -> None:
        with _unseen(self._session):
            for table in ("alert_delivery_queue", "alert_delivery_log", "webhook_health_metrics"):
                self._session.execute(f"DELETE FROM pggit.{table}".encode())
            self._session.execute("INSERT INTO pggit.webhook_health_metrics (webhook_id) SELECT unnest(%s)", [list(WEBHOOKS)])
        for worker in self._workers:
            worker.anew()


_STEPS = {
    "inserts": 5,
    "claims": 8,
    "claims_suspect": 3,
    "posts": 6,
    "records": 8,
    "lease_runs_out": 1,
    "reads_what_ran_out": 3,
    "reads_what_the_dead_held": 5,
    "records_what_was_lost": 4,
    "dies": 2,
    "is_operated": 2,
    "time_passes": 6,
}


@contextmanager
def _unseen(session: psycopg.Connection[Any]) -> Iterator[None]:
    """Have changes of *session* fire no trigger."""
    session.execute("SET session_replication_role = replica")
    yield
    session.execute("RESET session_replication_role")


@pytest.fixture(scope="module")
def scheduled(embedded_server: Server) -> Iterator[Database]:
    """One database for all schedules: each begins by emptying it."""
    database = embedded_server.create_migrated()
    register(database, *WEBHOOKS)
    yield database
    embedded_server.drop(database)


def run_schedules(database: Database, seeds: range, *, steps: int = 100, mutate: Mutate | None = None) -> Counter[str]:
    """Run one schedule for each seed; return what happened how often. A failure's note names its seed."""
    happened: Counter[str] = Counter()
    with ExitStack() as stack:
        engines = [
            stack.enter_context(engine(database, f"worker-{number}", defaults=DEFAULTS, mutate=mutate))
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
    expected = ("refused", "released", "suspect claimed", "claimed unheard", "recorded unheard", "given up")
    assert all(happened[what] for what in expected), happened


FAULTS = {
    "record does not look at the token": Fault("settle", "q.lease_token = r.token", "q.lease_token IS NOT NULL"),
    "record keeps the lease": Fault("settle", "lease_until = NULL, leased_by = NULL", "leased_by = NULL"),
    "lost lease spends a retry": Fault("settle", "q.retry_count + r.retries", "q.retry_count + r.retries + r.losses"),
    "lost lease is not counted": Fault("settle", "leases_lost = q.leases_lost + r.losses,", ""),
    "given back is an attempt": Fault("settle", "q.attempts + (r.age_s IS NOT NULL)::int", "q.attempts + 1"),
    "dead are known by name": Fault(
        "leases_of",
        "q.leased_by = %(incarnation)s",
        "q.worker_id IN (SELECT o.worker_id FROM pggit.alert_delivery_queue o WHERE o.leased_by = %(incarnation)s)",
    ),
    "dead hold what ran out": Fault("leases_of", "AND q.leased_by", "AND q.lease_until <= now() AND q.leased_by"),
    "reap takes leases that have not run out": Fault("expired_leases", "AND q.lease_until <= now()", ""),
    "suspects are claimed with the rest": Fault("claim", "AND w.leases_lost < 3 AND w.next_retry_at <= now()", ""),
    "record forgets what is in flight": Fault("update_lanes", "in_flight = r.in_flight,", ""),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_step_of_the_statements_left_out_is_found(scheduled: Database, fault: Fault) -> None:
    with pytest.raises((AssertionError, psycopg.Error)):
        run_schedules(scheduled, range(40), mutate=fault)


def test_a_lane_at_its_cap_that_is_not_counted_afresh_is_found(scheduled: Database) -> None:
    with patch.object(Claimer, "_recounted", lambda self, cursor, lanes, settings: lanes), pytest.raises(AssertionError):
        run_schedules(scheduled, range(40))


def test_a_transaction_that_keeps_what_came_before_its_failure_is_found(scheduled: Database) -> None:
    with patch.object(_module, "_TRANSACTION", statement_by_statement), pytest.raises(AssertionError):
        run_schedules(scheduled, range(40))


@contextmanager
def statement_by_statement(connection: store.Connection, **_: Any) -> Iterator[psycopg.Cursor[Any]]:
    with connection.cursor() as cursor:
        yield cursor


_module = sys.modules[__name__]


@pytest.mark.storm
def test_whatever_breaks_in_many_long_schedules(scheduled: Database, request: pytest.FixtureRequest) -> None:
    given: int | None = request.config.getoption("--storm-seed")
    first = random.SystemRandom().randrange(10**6) if given is None else given
    print(f"--storm-seed {first}")
    run_schedules(scheduled, range(first, first + 30), steps=400)
