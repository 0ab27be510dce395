"""No wakeup is lost: a choreography of a real dispatcher for each way to lose one, and races."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.daemon import Daemon, arrivals
from tests.support.postgres import Database
from tests.support.receivers import Receiver, answering
from tests.support.schedule_faults import (
    BelievesANotification,
    DoesNotLookWhenOneIsGone,
    IgnoresOtherNames,
    LooksAndDoesNotOutwait,
    NeitherOutwaitsNorLooks,
    NeverListensAgain,
    OutwaitsAndDoesNotLook,
    SwallowsWhatComesWhileOutwaiting,
)
from tests.support.stage import FLAG_DOWN, INSERT, LEVELS, CuedDuty, Member, Stage, flag, staged
from tests.support.waiting import eventually
from tests.support.wakeup_faults import (
    FLAG_IN_A_ROW,
    OverlooksPreparedTransactions,
    OverlooksTheRegistry,
    ReadsProducersEarly,
)
from webhookd.core.schedule import Schedule
from webhookd.worker.wakeup import WakeReason

# Long enough for any pause that a dispatcher makes of itself; one that lost its wakeup never looks
# again.
NEVER_S = 1.0


# Choreographies


Scenario = Callable[[Stage, float], bool]


def an_insert_from_before_the_flag_commits_late(stage: Stage, within_s: float) -> bool:
    with stage.database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        stage.start()
    return stage.arrived(1, within_s=within_s)


def an_insert_comes_and_goes_between_the_last_look_and_the_flag(
    stage: Stage, within_s: float
) -> bool:
    stage.cues.at("before the flag is up", lambda: stage.database.execute(INSERT))
    stage.start()
    return stage.arrived(1, within_s=within_s)


def an_insert_begins_between_the_last_look_and_the_flag(stage: Stage, within_s: float) -> bool:
    with stage.database.connect(autocommit=False) as producer:
        stage.cues.at("before the flag is up", lambda: producer.execute(INSERT))
        stage.start()
    return stage.arrived(1, within_s=within_s)


def an_insert_commits_once_the_flag_is_up(stage: Stage, within_s: float) -> bool:
    with stage.database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        stage.cues.at("once the flag is up", producer.commit)
        stage.start()
    return stage.arrived(1, within_s=within_s)


def an_insert_comes_after_the_last_look(stage: Stage, within_s: float) -> bool:
    def after_the_first_look() -> None:
        stage.cues.at("after a look", lambda: stage.database.execute(INSERT))

    stage.cues.at("once the flag is up", after_the_first_look)
    stage.start()
    return stage.arrived(1, within_s=within_s)


def a_prepared_insert_is_committed_late(stage: Stage, within_s: float) -> bool:
    with stage.database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        producer.execute("PREPARE TRANSACTION 'late'")
        producer.rollback()
    stage.start()
    stage.database.execute("COMMIT PREPARED 'late'")
    return stage.arrived(1, within_s=within_s)


def an_insert_is_prepared_while_it_is_outwaited(stage: Stage, within_s: float) -> bool:
    with stage.database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        stage.start()
        producer.execute("PREPARE TRANSACTION 'meanwhile'")
        producer.rollback()
        stage.settle()
    stage.database.execute("COMMIT PREPARED 'meanwhile'")
    return stage.arrived(1, within_s=within_s)


def an_insert_comes_while_another_is_outwaited(stage: Stage, within_s: float) -> bool:
    with stage.database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        stage.start()
        stage.database.execute(INSERT)
        return stage.arrived(1, within_s=within_s)


def an_operator_resumes_the_webhook_in_a_long_transaction(stage: Stage, within_s: float) -> bool:
    stage.database.execute("UPDATE pggit.webhooks SET enabled = false")
    stage.database.execute(INSERT)
    stage.start()
    stage.lose_room()
    with stage.database.connect(autocommit=False) as operator:
        operator.execute(
            "UPDATE pggit.webhooks SET enabled = true"
        )  # the flag is down: notifies no worker
        stage.find_room()
        stage.settle()
    return stage.arrived(1, within_s=within_s)


def an_insert_has_a_snapshot_from_before_the_flag(stage: Stage, within_s: float) -> bool:
    with stage.database.connect(autocommit=False) as producer:
        producer.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        producer.execute("SELECT FROM pggit.webhooks")
        stage.start()
        producer.execute(INSERT)
    return stage.arrived(1, within_s=within_s)


def the_duty_is_handed_over_with_the_flag_down(stage: Stage, within_s: float) -> bool:
    looker = Member(stage.database)
    try:
        looker.take()
        looker.duty.lower(looker.connection)
        looker_gives_way = threading.Event()
        stage.cues.at(
            "once the flag is up", looker_gives_way.set
        )  # the dispatcher has found that another has it
        with stage.database.connect(autocommit=False) as producer:
            producer.execute(INSERT)
            stage.begin()
            assert looker_gives_way.wait(20)
            looker.hand_over()
            stage.settle()
            assert flag(stage.database) == stage.duty.wake_number
        return stage.arrived(1, within_s=within_s)
    finally:
        looker.close()


def an_old_notification_comes_after_the_duty_was_dropped(
    stage: Stage, within_s: float, *, and_then: Callable[[], None] = lambda: None
) -> bool:
    stage.start()
    with stage.database.connect(autocommit=False) as producer:
        producer.execute(INSERT)  # will notify this worker, by number
        stage.lose_room()
        stage.database.execute(INSERT)

        def before_the_look() -> None:
            producer.commit()
            and_then()

        stage.cues.at("before a look", before_the_look)
        stage.find_room()
        assert stage.arrived(2, within_s=20)
    stage.settle()
    stage.database.execute(INSERT)
    return stage.arrived(3, within_s=within_s)


def the_sweep_wakes_with_an_old_notification(stage: Stage, within_s: float) -> bool:
    def sweep() -> None:
        stage.wakeup.wake(WakeReason.SWEEP)

    return an_old_notification_comes_after_the_duty_was_dropped(stage, within_s, and_then=sweep)


def the_worker_with_the_duty_does_not_answer(stage: Stage, within_s: float) -> bool:
    deaf = Member(stage.database)
    try:
        deaf.take()
        taken = threading.Event()
        stage.cues.at("once the flag is up", taken.set)
        stage.begin()
        assert taken.wait(20)
        stage.settle()
        assert flag(stage.database) == deaf.duty.wake_number
        stage.database.execute(INSERT)
        return stage.arrived(1, within_s=within_s)
    finally:
        deaf.close()


def the_listening_connection_is_cut(stage: Stage, within_s: float) -> bool:
    stage.start()
    stage.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
        "'test/listen'"
    )
    stage.database.execute(INSERT)
    return stage.arrived(1, within_s=within_s)


SCENARIOS: list[Scenario] = [
    an_insert_from_before_the_flag_commits_late,
    an_insert_comes_and_goes_between_the_last_look_and_the_flag,
    an_insert_begins_between_the_last_look_and_the_flag,
    an_insert_commits_once_the_flag_is_up,
    an_insert_comes_after_the_last_look,
    a_prepared_insert_is_committed_late,
    an_insert_is_prepared_while_it_is_outwaited,
    an_insert_comes_while_another_is_outwaited,
    an_operator_resumes_the_webhook_in_a_long_transaction,
    an_insert_has_a_snapshot_from_before_the_flag,
    the_duty_is_handed_over_with_the_flag_down,
    an_old_notification_comes_after_the_duty_was_dropped,
    the_sweep_wakes_with_an_old_notification,
    the_worker_with_the_duty_does_not_answer,
    the_listening_connection_is_cut,
]


@pytest.mark.parametrize(
    "scenario", SCENARIOS, ids=lambda scenario: scenario.__name__.replace("_", " ")
)
def test_no_wakeup_is_lost_when(scenario: Scenario, database: Database) -> None:
    with staged(database) as stage:
        assert scenario(stage, 20.0)


# The same with a step left out: the choreographies must notice


@pytest.mark.parametrize(
    ("schedule", "scenario"),
    [
        (LooksAndDoesNotOutwait, an_insert_from_before_the_flag_commits_late),
        (LooksAndDoesNotOutwait, an_insert_begins_between_the_last_look_and_the_flag),
        (LooksAndDoesNotOutwait, the_duty_is_handed_over_with_the_flag_down),
        (OutwaitsAndDoesNotLook, an_insert_comes_and_goes_between_the_last_look_and_the_flag),
        (NeitherOutwaitsNorLooks, an_insert_commits_once_the_flag_is_up),
        (DoesNotLookWhenOneIsGone, an_insert_from_before_the_flag_commits_late),
        (SwallowsWhatComesWhileOutwaiting, an_insert_comes_while_another_is_outwaited),
        (BelievesANotification, the_duty_is_handed_over_with_the_flag_down),
        (BelievesANotification, an_old_notification_comes_after_the_duty_was_dropped),
        (IgnoresOtherNames, the_worker_with_the_duty_does_not_answer),
        (NeverListensAgain, the_listening_connection_is_cut),
    ],
)
def test_a_schedule_that_leaves_out_a_step_loses_one(
    schedule: type[Schedule], scenario: Scenario, database: Database
) -> None:
    with staged(database, schedule=schedule()) as stage:
        assert not scenario(stage, NEVER_S)


@pytest.mark.parametrize(
    ("duty", "scenario"),
    [
        (ReadsProducersEarly, an_insert_begins_between_the_last_look_and_the_flag),
        (OverlooksPreparedTransactions, a_prepared_insert_is_committed_late),
        (OverlooksPreparedTransactions, an_insert_is_prepared_while_it_is_outwaited),
        (OverlooksTheRegistry, an_operator_resumes_the_webhook_in_a_long_transaction),
    ],
)
def test_a_duty_that_overlooks_producers_loses_one(
    duty: type[CuedDuty], scenario: Scenario, database: Database
) -> None:
    with staged(database, duty=duty) as stage:
        assert not scenario(stage, NEVER_S)


def test_a_flag_in_a_row_would_lose_one(database: Database) -> None:
    database.execute(FLAG_IN_A_ROW)
    with staged(database) as stage:
        assert not an_insert_has_a_snapshot_from_before_the_flag(stage, NEVER_S)


# Races

PRODUCERS = 6
BURST = 90  # enough for the flag to be lowered
# A lost wakeup is repaired by the sweep 30 s later, or by the next insert; a round has no next
# insert.
GUARD_S = 8.0


class Racer:
    """One producer of a race, with a connection and dice of its own."""

    def __init__(self, database: Database, seed: int) -> None:
        self._connection = database.connect(autocommit=False)
        self._dice = random.Random(seed)

    def burst(self, inserts: int) -> list[int]:
        return [self._insert(commit=True, held_s=0.0) for _ in range(inserts)]

    def straggle(self) -> list[int]:
        """Insert a few rows about when the flag goes up again, in transactions that stay open for a
        while.
        """
        committed = []
        for _ in range(2):
            time.sleep(self._dice.uniform(0, 0.2))
            commit = self._dice.random() < 0.8
            held_s = self._dice.choice([0.0, 0.05, 0.4])
            delivery_id = self._insert(commit=commit, held_s=held_s)
            if commit:
                committed.append(delivery_id)
        return committed

    def _insert(self, *, commit: bool, held_s: float) -> int:
        self._connection.execute(
            f"SET TRANSACTION ISOLATION LEVEL {self._dice.choice(LEVELS)}".encode()
        )
        if self._dice.random() < 0.5:
            self._connection.execute("SELECT FROM pggit.webhooks")
        row = self._connection.execute(INSERT + " RETURNING delivery_id").fetchone()
        assert row is not None
        time.sleep(held_s)
        if commit:
            self._connection.commit()
        else:
            self._connection.rollback()
        return int(row[0])

    def close(self) -> None:
        self._connection.close()


def race(
    database: Database, receiver: Receiver, *, rounds: int, guard_s: float, seed: int
) -> tuple[int, int]:
    """Run *rounds* of a burst and its stragglers, or fewer if one does not arrive in time.

    Return how many rows were committed, and how many of them had not arrived *guard_s* after their
    round.
    """
    committed: set[int] = set()
    racers = [Racer(database, seed * 100 + number) for number in range(PRODUCERS)]
    with ThreadPoolExecutor(PRODUCERS) as threads:
        for _ in range(rounds):
            for work in (lambda racer: racer.burst(BURST // PRODUCERS), Racer.straggle):
                for delivery_ids in threads.map(work, racers):
                    committed.update(delivery_ids)
            # Rows of the burst that were too many for one claim need no wakeup; stragglers do.
            deadline = time.monotonic() + guard_s
            while committed - arrivals(receiver).keys() and time.monotonic() < deadline:
                time.sleep(0.02)
            if committed - arrivals(receiver).keys():
                break
    for racer in racers:
        racer.close()
    assert arrivals(receiver).keys() <= committed, "what was rolled back is never sent"
    return len(committed), len(committed - arrivals(receiver).keys())


def test_three_workers_miss_nothing_of_what_racing_producers_commit(database: Database) -> None:
    with Receiver(answering()) as receiver, Daemon(database.dsn) as daemon:
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second, max_in_flight) "
            "VALUES (1, %s, 0, 1000)",
            [receiver.url()],
        )
        eventually(lambda: flag(database) > FLAG_DOWN)
        committed, lost = race(database, receiver, rounds=14, guard_s=GUARD_S, seed=1)
        assert (lost, committed > 1200) == (0, True)
        assert daemon.stop() == 0


@pytest.mark.parametrize("schedule", [LooksAndDoesNotOutwait, NeitherOutwaitsNorLooks])
def test_the_race_catches_a_schedule_that_does_not_outwait(
    schedule: type[Schedule], database: Database
) -> None:
    with staged(database, schedule=schedule()) as stage:
        stage.start()
        _, lost = race(database, stage.receiver, rounds=25, guard_s=NEVER_S, seed=2)
        assert lost > 0
