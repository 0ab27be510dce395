"""Random schedules of the steps of tests/property/lease_model.py on the real statements, with the
same rules after each step.

A schedule is nothing but its seed, which a failure names.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from uuid import UUID

import psycopg

from tests.support.breaking import Breaking, Broken
from tests.support.engine import given_back
from tests.support.expected import MAX_RETRIES, OUTCOMES, Row
from tests.support.lease_workers import WEBHOOKS, Worker
from webhookd.core.model import Delivery, Result
from webhookd.postgres import session as store
from webhookd.postgres.claimed import ClaimInDoubtError


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
        """Take *steps* steps, checking after each, and have everything come to its end; raises
        `AssertionError`.
        """
        self._clear()
        self._inserts()
        with patch.object(store, "transaction", self._breaking.transaction):
            for _ in range(steps):
                step = self._dice.choices(list(_STEPS), list(_STEPS.values()))[0]
                getattr(self, f"_{step}")()
                self._check()
            self._come_to_an_end()

    # The steps

    def _inserts(self) -> None:
        rows = self._session.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) SELECT %s, '{}' "
            "FROM generate_series(1, %s)"
            " RETURNING delivery_id, webhook_id",
            [self._dice.choice(WEBHOOKS), self._dice.randint(1, 3)],
        ).fetchall()
        self._rows |= {delivery_id: Row(webhook_id) for delivery_id, webhook_id in rows}

    def _claims(self, worker: Worker | None = None) -> None:
        claimant = worker or self._dice.choice(self._workers)
        limit = self._dice.randint(1, 6)
        self._claimed(
            claimant, lambda: list(claimant.engine.claim(limit).deliveries), suspect=False
        )

    def _claims_suspect(self, worker: Worker | None = None) -> None:
        worker = worker or self._dice.choice(self._workers)
        if not worker.hands and not worker.results:
            claimer, connection = worker.engine.claimer, worker.engine.connection
            self._claimed(
                worker, lambda: list(claimer.claim_quarantined(connection).deliveries), suspect=True
            )

    def _claimed(
        self, worker: Worker, claim: Callable[[], list[Delivery]], *, suspect: bool
    ) -> None:
        stored = self._breaks("claim")
        try:
            deliveries = claim()
        except ClaimInDoubtError as doubt:
            # As the dispatcher does: it cannot tell whether the claim was stored.
            worker.results += [
                (Result(delivery, given_back()), "given back") for delivery in doubt.deliveries
            ]
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
            assert row.waiting and row.holder is None, (
                "claimed though it has an owner, or is at its end"
            )
            assert (row.losses >= 3) == suspect, "a suspect row was not tried alone"
            row.status, row.holder = "sending", (worker.engine, delivery)

    def _posts(self) -> None:
        worker = self._one_of([worker for worker in self._workers if worker.hands])
        self._dice.shuffle(worker.hands)
        while worker.hands and self._dice.random() < 0.7:
            self._ends(worker, worker.hands.pop(), self._dice.choice(sorted(OUTCOMES)))

    def _ends(self, worker: Worker, delivery: Delivery, outcome: str) -> None:
        """Have a claim end with *outcome*; but the first row is poison: whoever posts it dies, and
        is seen to.
        """
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
        assert {id(result) for result in recorded.accepted} == {id(result) for result in owned}, (
            "not the owner's alone"
        )
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
        assert {result.delivery.delivery_id for result in worker.lost} == expected, (
            "not what ran out"
        )

    def _reads_what_the_dead_held(self, worker: Worker | None = None) -> None:
        worker = worker or self._dice.choice(self._workers)
        if self._dead:
            dead = min(self._dead)
            worker.lost = worker.engine.recorder.lost_leases(
                worker.engine.connection, incarnation=dead
            )
            expected = {
                key
                for key, row in self._rows.items()
                if row.holder and row.holder[0].incarnation == dead
            }
            assert {result.delivery.delivery_id for result in worker.lost} == expected, (
                "not what the dead one held"
            )
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
            assert {id(result) for result in recorded.accepted} == {
                id(result) for result in owned
            }, "not the holder's lease"
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
        """An operator cancels a delivery under way: the row is final, its result will be refused,
        and the lane miscounts.
        """
        held = [delivery_id for delivery_id, row in self._rows.items() if row.holder]
        if held:
            delivery_id = self._dice.choice(held)
            self._session.execute(
                "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE "
                "delivery_id = %s",
                [delivery_id],
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
            self._session.execute(
                "UPDATE pggit.webhook_health_metrics SET runnable_at = now() WHERE runnable_at "
                "IS NOT NULL"
            )

    # What holds after each

    def _check(self) -> None:
        rows = self._session.execute(
            "SELECT q.delivery_id, q.delivery_status, q.retry_count, q.leases_lost, q.attempts, "
            "q.max_retries,"
            " (q.lease_token IS NOT NULL AND q.lease_token > 0), q.leased_by, q.lease_until IS "
            "NOT NULL,"
            " (SELECT count(*) FROM pggit.alert_delivery_log l WHERE l.delivery_id = "
            "q.delivery_id AND l.http_status IS NOT NULL)"
            " FROM pggit.alert_delivery_queue q"
        ).fetchall()
        assert {row[0] for row in rows} == set(self._rows), "a row is gone"
        for (
            delivery_id,
            status,
            retries,
            losses,
            attempts,
            most,
            fenced,
            leased_by,
            leased,
            logged,
        ) in rows:
            row = self._rows[delivery_id]
            assert (status, retries, losses, attempts) == (
                row.status,
                row.retries,
                row.losses,
                row.attempts,
            ), delivery_id
            assert most is None and retries <= MAX_RETRIES
            assert attempts == logged, "an attempt was not counted once"
            assert (fenced, leased_by, leased) == (
                (True, row.holder[0].incarnation, True) if row.holder else (False, None, False)
            ), "a lease without a claim, or a claim without a lease"
        lanes = self._session.execute(
            "SELECT h.webhook_id, h.in_flight, h.total_deliveries, h.successful_deliveries FROM "
            "pggit.webhook_health_metrics h"
        ).fetchall()
        for webhook_id, in_flight, attempts, delivered in lanes:
            its = [row for row in self._rows.values() if row.webhook_id == webhook_id]
            assert attempts == sum(row.attempts for row in its), (
                "the lane did not count each attempt once"
            )
            assert delivered == sum(row.status == "delivered" for row in its)
            over = in_flight - sum(row.status == "sending" for row in its)
            assert 0 <= over <= self._stranded[webhook_id], (
                "in_flight does not say what is in flight"
            )
            self._stranded[webhook_id] = over  # less than it was, if it was counted afresh

    def _come_to_an_end(self) -> None:
        """Without faults from now on: deaths that were seen need no lease to run out, and no sweep
        mends a counter.
        """
        self._faults_left = False
        for _ in range(10 + len(self._rows)):
            for worker in self._workers:
                for read in (
                    self._reads_what_ran_out,
                    *[self._reads_what_the_dead_held] * (len(self._dead) + 1),
                ):
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

    # What the steps are made of

    def _breaks(self, what: str) -> bool:
        """Decide what happens to the next transaction; return whether its COMMIT is stored and not
        heard of.
        """
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
        return row.holder is not None and row.holder[1].token == result.delivery.token

    def _expire(self, delivery_id: int) -> None:
        self._rows[delivery_id].expired = True
        with _unseen(self._session):
            self._session.execute(
                "UPDATE pggit.alert_delivery_queue SET lease_until = now() - interval '1 s' "
                "WHERE delivery_id = %s",
                [delivery_id],
            )

    def _clear(self) -> None:
        with _unseen(self._session):
            for table in ("alert_delivery_queue", "alert_delivery_log", "webhook_health_metrics"):
                self._session.execute(f"DELETE FROM pggit.{table}".encode())
            self._session.execute(
                "INSERT INTO pggit.webhook_health_metrics (webhook_id) SELECT unnest(%s)",
                [list(WEBHOOKS)],
            )
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
