"""The claim, lease, fence and record protocol, driven at random and compared with a model."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.engine import ROOMY, Engine, answered, engine
from tests.support.expected import MAX_RETRIES, OUTCOMES, Row
from tests.support.postgres import Database
from webhookd.core.model import Delivery, Result
from webhookd.core.sizing import Reach

WORKERS = 3
WEBHOOKS = (1, 2)
STEADY = ROOMY._replace(circuit_threshold=100_000, max_retries=MAX_RETRIES)
INDEX = st.integers(0, 10_000)


@dataclass(slots=True)
class Stage:
    """The database and what acts on it, made once; each run begins with `clear`."""

    database: Database
    workers: list[Engine]
    operator: psycopg.Connection[tuple[Any, ...]]
    unseen: psycopg.Connection[tuple[Any, ...]]  # its changes fire no trigger

    def clear(self) -> None:
        for worker in self.workers:
            # All that a claimer remembers; the same choices must lead to the same claims.
            worker.claimer._cursor, worker.claimer._reach = 0, Reach()
        self.unseen.execute("DELETE FROM pggit.alert_delivery_queue")
        self.unseen.execute("DELETE FROM pggit.alert_delivery_log")
        self.unseen.execute("DELETE FROM pggit.webhook_health_metrics")
        self.unseen.execute(
            "INSERT INTO pggit.webhook_health_metrics (webhook_id) SELECT webhook_id FROM "
            "pggit.webhooks"
        )

    def make_due(self) -> None:
        """Have the time of every waiting row and every lane come."""
        self.unseen.execute(
            "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() - interval '1 s'"
            " WHERE delivery_status IN ('pending', 'retrying') AND next_retry_at > now()"
        )
        self.unseen.execute(
            "UPDATE pggit.webhook_health_metrics SET runnable_at = now() WHERE runnable_at > now()"
        )

    def expire(self, delivery_id: int | None = None) -> None:
        self.unseen.execute(
            "UPDATE pggit.alert_delivery_queue SET lease_until = lease_until - interval '1 hour'"
            " WHERE delivery_status = 'sending' AND (%(id)s::bigint IS NULL OR delivery_id = "
            "%(id)s::bigint)",
            {"id": delivery_id},
        )


@contextmanager
def staged(database: Database, mutate: Callable[[str, str], str] | None = None) -> Iterator[Stage]:
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                engine(database, f"worker-{number}", defaults=STEADY, mutate=mutate)
            )
            for number in range(1, WORKERS + 1)
        ]
        operator, unseen = (
            stack.enter_context(database.connect()),
            stack.enter_context(database.connect()),
        )
        unseen.execute("SET session_replication_role = replica")
        yield Stage(database, workers, operator, unseen)


class Protocol(RuleBasedStateMachine):
    """Anything that workers and an operator may do, in any order, checked against `Row`."""

    stage: Stage

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, Row] = {}
        self.claims: list[
            tuple[Engine, Delivery]
        ] = []  # all there ever were: a result may come at any time, even twice
        self.read_lost: list[Result] = []
        self.stranded: set[int] = set()  # lanes whose counter an operator has made wrong

    @initialize()
    def begin(self) -> None:
        self.stage.clear()
        for webhook in WEBHOOKS:
            self.insert(webhook, 3)

    # The application and the workers

    @rule(webhook=st.sampled_from(WEBHOOKS), count=st.integers(1, 3))
    def insert(self, webhook: int, count: int) -> None:
        rows = self.stage.operator.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
            " SELECT %s, '{}' FROM generate_series(1, %s) RETURNING delivery_id",
            [webhook, count],
        ).fetchall()
        self.rows.update({row[0]: Row(webhook) for row in rows})

    @rule(worker=INDEX, limit=st.integers(1, 8))
    def claim(self, worker: int, limit: int) -> None:
        claimant = self.stage.workers[worker % WORKERS]
        self._claimed(claimant, list(claimant.claim(limit).deliveries), suspect=False)

    @rule(worker=INDEX)
    def claim_quarantined(self, worker: int) -> None:
        claimant = self.stage.workers[worker % WORKERS]
        self._claimed(
            claimant,
            list(claimant.claimer.claim_quarantined(claimant.connection).deliveries),
            suspect=True,
        )

    @precondition(lambda self: self.claims)
    @rule(claims=st.lists(INDEX, min_size=1, max_size=4), outcome=st.sampled_from(sorted(OUTCOMES)))
    def finish(self, claims: list[int], outcome: str) -> None:
        """A result comes: in time, late, or for the second time. The owner's counts, all others are
        refused.
        """
        chosen = {
            id(claim[1]): claim
            for claim in (self.claims[index % len(self.claims)] for index in claims)
        }
        recorder = next(iter(chosen.values()))[0]
        deliveries = [claim[1] for claim in chosen.values()]
        recorded = recorder.finish(deliveries, OUTCOMES[outcome]())
        assert not recorded.deferred
        accepted = {id(result.delivery) for result in recorded.accepted}
        for delivery in deliveries:
            row = self.rows[delivery.delivery_id]
            owns = row.holder is not None and row.holder[1] is delivery
            assert (id(delivery) in accepted) == owns, (
                f"{delivery.delivery_id}: accepted is not {owns}"
            )
            if owns:
                row.end(outcome)

    @precondition(lambda self: any(row.holder for row in self.rows.values()))
    @rule(which=INDEX)
    def lease_runs_out(self, which: int) -> None:
        held = [delivery_id for delivery_id, row in self.rows.items() if row.holder]
        self.stage.expire(held[which % len(held)])
        self.rows[held[which % len(held)]].expired = True

    @rule(worker=INDEX)
    def read_expired(self, worker: int) -> None:
        reaper = self.stage.workers[worker % WORKERS]
        self.read_lost = reaper.recorder.lost_leases(reaper.connection)
        assert {result.delivery.delivery_id for result in self.read_lost} == {
            delivery_id for delivery_id, row in self.rows.items() if row.expired
        }

    @rule(worker=INDEX)
    def record_expired(self, worker: int) -> None:
        """The second half of a reap, however much later: who recorded or re-claimed meanwhile keeps
        the row.
        """
        self._record_lost(self.stage.workers[worker % WORKERS], self.read_lost)

    @rule(worker=INDEX, dead=INDEX)
    def release(self, worker: int, dead: int) -> None:
        """The supervisor saw an incarnation die (or thought so: its late results are refused)."""
        survivor, victim = self.stage.workers[worker % WORKERS], self.stage.workers[dead % WORKERS]
        lost = survivor.recorder.lost_leases(survivor.connection, incarnation=victim.incarnation)
        assert {result.delivery.delivery_id for result in lost} == {
            delivery_id
            for delivery_id, row in self.rows.items()
            if row.holder and row.holder[0] is victim
        }
        self._record_lost(survivor, lost)

    @rule()
    def time_passes(self) -> None:
        self.stage.make_due()

    @rule(worker=INDEX)
    def sweep(self, worker: int) -> None:
        self.stage.workers[worker % WORKERS].sweep()
        self.stranded.clear()

    @precondition(lambda self: any(row.waiting for row in self.rows.values()))
    @rule(which=INDEX)
    def workers_keep_dying_of_it(self, which: int) -> None:
        """Two or three claims of a row end with their worker, one after the other."""
        waiting = [delivery_id for delivery_id, row in self.rows.items() if row.waiting]
        delivery_id = waiting[which % len(waiting)]
        self.rows[delivery_id].losses = 2 + which % 2
        self.stage.unseen.execute(
            "UPDATE pggit.alert_delivery_queue SET leases_lost = %s, routed = true, "
            "next_retry_at = now() - interval '1 s'"
            " WHERE delivery_id = %s",
            [2 + which % 2, delivery_id],
        )
        self.stage.make_due()

    # The operator

    @precondition(
        lambda self: any(row.status not in ("pending", "delivered") for row in self.rows.values())
    )
    @rule(which=INDEX)
    def requeue(self, which: int) -> None:
        chosen = [
            delivery_id
            for delivery_id, row in self.rows.items()
            if row.status not in ("pending", "delivered")
        ]
        delivery_id = chosen[which % len(chosen)]
        self.stage.operator.execute(
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending' WHERE delivery_id "
            "= %s",
            [delivery_id],
        )
        row = self.rows[delivery_id]
        self._strand(row)
        self.rows[delivery_id] = replace(
            row, status="pending", losses=0, holder=None, expired=False, torn=False
        )

    @precondition(lambda self: any(row.holder for row in self.rows.values()))
    @rule(which=INDEX)
    def cancel_unseen(self, which: int) -> None:
        held = [delivery_id for delivery_id, row in self.rows.items() if row.holder]
        delivery_id = held[which % len(held)]
        self.stage.unseen.execute(
            "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id "
            "= %s",
            [delivery_id],
        )
        row = self.rows[delivery_id]
        self._strand(row)
        self.rows[delivery_id] = replace(
            row, status="failed", holder=None, expired=False, torn=True
        )

    # What holds at all times

    @invariant()
    def rows_are_as_they_should_be(self) -> None:
        rows = self.stage.operator.execute(
            "SELECT q.delivery_id, q.delivery_status, q.retry_count, q.leases_lost, q.attempts, "
            "q.lease_token, q.leased_by,"
            " q.lease_until IS NOT NULL, q.max_retries, q.routed, q.delivered_at IS NOT NULL,"
            " (SELECT count(*) FROM pggit.alert_delivery_log l WHERE l.delivery_id = "
            "q.delivery_id AND http_status IS NOT NULL)"
            " FROM pggit.alert_delivery_queue q"
        ).fetchall()
        assert {row[0] for row in rows} == set(self.rows)
        for (
            delivery_id,
            status,
            retries,
            losses,
            attempts,
            token,
            leased_by,
            leased,
            most,
            routed,
            delivered,
            logged,
        ) in rows:
            row = self.rows[delivery_id]
            assert (status, retries, losses, attempts) == (
                row.status,
                row.retries,
                row.losses,
                row.attempts,
            ), delivery_id
            assert most is None and retries <= MAX_RETRIES
            assert logged == attempts
            assert delivered == (status == "delivered")
            if row.holder:
                owner, claimed = row.holder
                assert (token, leased_by, leased, routed) == (
                    claimed.token,
                    owner.incarnation,
                    True,
                    True,
                )
            elif not row.torn:
                assert (leased_by, leased) == (None, False)
                assert token is None or token < 0

    @invariant()
    def counters_say_what_is_in_flight(self) -> None:
        lanes = self.stage.operator.execute(
            "SELECT h.webhook_id, h.in_flight, (SELECT count(*) FROM pggit.alert_delivery_queue q"
            " WHERE q.webhook_id = h.webhook_id AND q.delivery_status = 'sending') FROM "
            "pggit.webhook_health_metrics h"
        ).fetchall()
        for webhook_id, counted, leased in lanes:
            assert counted == leased or (webhook_id in self.stranded and counted > leased)

    def teardown(self) -> None:
        """Whatever happened: with leases run out and the sweep done, every row that is not final
        comes to an end.
        """
        worker = self.stage.workers[0]
        for _ in range(12):
            if not any(row.waiting or row.holder for row in self.rows.values()):
                return
            self.stage.expire()
            worker.release()
            worker.sweep()
            self.stage.make_due()
            deliveries = [
                *worker.take_all(),
                *worker.claimer.claim_quarantined(worker.connection).deliveries,
            ]
            worker.finish(deliveries, answered(200))
            open_rows = self.stage.operator.execute(
                "SELECT count(*) FROM pggit.alert_delivery_queue WHERE delivery_status NOT IN "
                "('delivered', 'failed')"
            ).fetchone()
            if open_rows == (0,):
                return
        raise AssertionError("a row is nobody's for ever")

    def _claimed(self, claimant: Engine, deliveries: list[Delivery], *, suspect: bool) -> None:
        for delivery in deliveries:
            row = self.rows[delivery.delivery_id]
            assert row.waiting and row.holder is None, (
                f"{delivery.delivery_id} has an owner, or is at its end"
            )
            assert (row.losses >= 3) == suspect
            assert delivery.body == b"{}"
            row.status, row.holder = "sending", (claimant, delivery)
            self.claims.append((claimant, delivery))

    def _record_lost(self, recorder: Engine, lost: list[Result]) -> None:
        if not lost:
            return
        accepted = {result.delivery.delivery_id for result in recorder.record(lost).accepted}
        for result in lost:
            row = self.rows[result.delivery.delivery_id]
            current = row.holder is not None and row.holder[1].token == result.delivery.token
            assert (result.delivery.delivery_id in accepted) == current
            if current:
                row.lose()

    def _strand(self, row: Row) -> None:
        if row.status == "sending":
            self.stranded.add(row.webhook_id)


def run_protocol(stage: Stage, *, examples: int, phases: tuple[Phase, ...]) -> None:
    """Drive the machine through *examples* random histories; raise `AssertionError` (or what a
    statement raises) on a fault.
    """
    machine = type("StagedProtocol", (Protocol,), {"stage": stage})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )
