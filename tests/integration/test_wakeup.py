"""Wakeups against a real PostgreSQL: who keeps the watch, what inserts tell, and one choreography for each way to lose a wakeup.

The choreographies run a real dispatcher without the housekeeping's sweep: a wakeup that is lost stays lost. tests/property has a
model of the protocol that tries all interleavings; here the worst of them are danced with PostgreSQL itself.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.acceptance.daemon import Daemon, arrivals
from tests.postgres import Database
from tests.receivers import Receiver, answering
from tests.waiting import eventually
from webhookd import queries, store
from webhookd.bell import Bell, News
from webhookd.claims import BODY_BYTES, Claim, Claimer, Defaults, NextLook
from webhookd.core.model import Result
from webhookd.delivery import Courier
from webhookd.dispatcher import Dispatcher
from webhookd.egress import Egress
from webhookd.hints import Hints
from webhookd.listener import WAKE_CHANNEL, Listener
from webhookd.metrics import Metrics
from webhookd.recording import Recording
from webhookd.records import Recorder
from webhookd.senders import Senders
from webhookd.transport import Transport
from webhookd.watch import Watch

FLAG_DOWN = 1
INSERT = "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
# Long enough for any pause that a dispatcher makes of itself; one that lost its wakeup never looks again.
NEVER_S = 1.0
DEFAULTS = Defaults(5.0, 50, 0.0, 20, 5.0, 1800.0, 5, 60.0)


# Who keeps the watch -------------------------------------------------------------------------------------------------


class Member:
    """One incarnation's watch, driven by hand."""

    def __init__(self, database: Database) -> None:
        self.incarnation = uuid4()
        self.listener = Listener(database.dsn, application_name="test/listen")
        self.connection = store.connect(database.dsn, application_name="test/work")
        self.watch = Watch(self.listener, worker_id="test", incarnation=self.incarnation, metrics_address="127.0.0.1:1")
        self.watch.register(self.connection)
        with store.open_pool(database.dsn, application_name="test/probe", size=1) as pool:
            ended = threading.Event()
            self.listener.open(pool, ended.set)
            assert ended.wait(20) and self.listener.opened()

    def take(self) -> bool:
        return self.watch.take(self.connection)

    def hand_over(self) -> None:
        self.watch.hand_over(self.connection)

    def heard(self) -> list[str]:
        """Return the payloads that came until a probe of its own came."""
        word = f"probe {uuid4()}"
        self.connection.execute("SELECT pg_notify(%s, %s)", [WAKE_CHANNEL, word])
        payloads: list[str] = []

        def complete() -> bool:
            payloads.extend(self.listener.drain())
            return word in payloads

        eventually(complete)
        return [payload for payload in payloads if not payload.startswith("probe")]

    def close(self) -> None:
        self.listener.close()
        self.connection.close()


@pytest.fixture
def join(database: Database) -> Iterator[Callable[[], Member]]:
    members: list[Member] = []

    def join_one() -> Member:
        members.append(Member(database))
        return members[-1]

    yield join_one
    for member in members:
        member.close()


Join = Callable[[], Member]


def flag(database: Database) -> int:
    return int(database.execute("SELECT last_value FROM pggit.wake_flag")[0][0])


def age(database: Database, incarnation: UUID) -> None:
    """Make that worker one that has given no sign of life for a while."""
    database.execute("UPDATE pggit.workers SET seen_at = now() - interval '21 seconds' WHERE incarnation = %s", [incarnation])


@pytest.mark.every_postgres
def test_only_one_of_three_keeps_the_watch(database: Database, join: Join) -> None:
    first, second, third = join(), join(), join()
    assert len({member.watch.wake_number for member in (first, second, third)}) == 3
    assert flag(database) == FLAG_DOWN
    assert [first.take(), second.take(), third.take()] == [True, False, False]
    assert flag(database) == first.watch.wake_number > FLAG_DOWN
    assert first.take(), "taking it again is harmless"


def test_the_watch_is_kept_with_the_flag_down_too(database: Database, join: Join) -> None:
    first, second = join(), join()
    first.take()
    first.watch.lower(first.connection)
    assert (flag(database), first.watch.looking, first.watch.keeping) == (FLAG_DOWN, True, True)
    assert not second.take()
    assert first.take()
    assert (flag(database), first.watch.looking) == (first.watch.wake_number, False)


@pytest.mark.parametrize("lowered", [False, True])
def test_the_watch_is_handed_to_a_worker_that_has_room_and_that_one_is_told(
    database: Database, join: Join, lowered: bool
) -> None:
    keeper, full, free = join(), join(), join()
    keeper.take(), full.take(), free.take()
    full.hand_over()  # keeps nothing: it only says that it has no room
    assert flag(database) == keeper.watch.wake_number
    assert free.heard() == []
    if lowered:
        keeper.watch.lower(keeper.connection)
    keeper.hand_over()
    assert not keeper.watch.keeping
    assert flag(database) == free.watch.wake_number
    assert free.heard() == [str(free.watch.wake_number)]
    assert not keeper.take() and not full.take()


def test_without_an_heir_the_watch_is_dropped_and_the_first_to_have_room_takes_it(database: Database, join: Join) -> None:
    first, second = join(), join()
    first.take(), second.take()
    second.hand_over()
    first.hand_over()
    assert flag(database) == FLAG_DOWN
    assert second.take()
    assert flag(database) == second.watch.wake_number
    assert not first.take()


def test_a_worker_that_is_silent_neither_keeps_nor_inherits_the_watch(database: Database, join: Join) -> None:
    dead, second, third = join(), join(), join()
    dead.take(), second.take(), third.take()
    age(database, dead.incarnation)
    assert second.take(), "the flag still names the dead one"
    age(database, third.incarnation)
    second.hand_over()
    assert flag(database) == FLAG_DOWN
    # A dead one that kept the watch by looking.
    dead.watch.lower(dead.connection)
    assert flag(database) == FLAG_DOWN
    assert second.take()


def test_who_hands_over_what_another_has_taken_meanwhile_changes_nothing(database: Database, join: Join) -> None:
    stalled, second, third = join(), join(), join()
    stalled.take(), second.take(), third.take()
    age(database, stalled.incarnation)
    second.take()
    assert stalled.watch.keeping, "it cannot know"
    stalled.hand_over()
    assert flag(database) == second.watch.wake_number


def test_a_worker_that_leaves_hands_the_watch_over_and_is_struck(database: Database, join: Join) -> None:
    first, second = join(), join()
    first.take(), second.take()
    first.watch.leave(first.connection)
    assert flag(database) == second.watch.wake_number
    assert second.heard()[:1] == [str(second.watch.wake_number)]
    assert database.execute("SELECT incarnation FROM pggit.workers") == [(second.incarnation,)]


def test_a_row_that_has_vanished_registers_again_under_a_number_of_its_own(database: Database, join: Join) -> None:
    member = join()
    member.take()
    number = member.watch.wake_number
    database.execute("DELETE FROM pggit.workers")
    assert not member.take(), "nobody keeps the watch without a row"
    member.watch.register(member.connection)
    assert member.watch.wake_number > number
    assert not member.watch.keeping
    assert member.take()
    assert flag(database) == member.watch.wake_number


# Whom to outwait -----------------------------------------------------------------------------------------------------


@pytest.mark.every_postgres
def test_open_and_prepared_inserts_are_outwaited_and_readers_are_not(database: Database, join: Join) -> None:
    member = join()
    if database.execute("SHOW max_prepared_transactions") == [("0",)]:
        pytest.fail("tests/postgres.py must start its servers with max_prepared_transactions")
    with database.connect(autocommit=False) as reader, database.connect(autocommit=False) as producer:
        reader.execute("SELECT count(*) FROM pggit.alert_delivery_queue")
        assert member.watch.lockers(member.connection) == set()
        producer.execute("SAVEPOINT a")
        producer.execute(INSERT)
        assert len(member.watch.lockers(member.connection)) == 1
        producer.execute("SET LOCAL webhookd.notify = off")
        producer.execute("PREPARE TRANSACTION 'kept open'")
        assert len(member.watch.lockers(member.connection)) == 1
        with database.connect() as other:
            other.execute("COMMIT PREPARED 'kept open'")
        assert member.watch.lockers(member.connection) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending'",
        "UPDATE pggit.webhooks SET enabled = true",
        "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy', consecutive_failures = 0",
        "SELECT pggit.update_webhook_health(1, 200, 1)",
        "COPY pggit.alert_delivery_queue (webhook_id, message_body) FROM STDIN",
    ],
)
def test_whatever_looks_at_the_flag_is_outwaited(database: Database, join: Join, statement: str) -> None:
    member = join()
    with database.connect(autocommit=False) as operator:
        if statement.startswith("COPY"):
            with operator.cursor().copy(statement.encode()) as copy:
                copy.write(b"1\t{}\n")
        else:
            operator.execute(statement.encode())
        assert len(member.watch.lockers(member.connection)) == 1
    assert member.watch.lockers(member.connection) == set()


# What an insert tells ------------------------------------------------------------------------------------------------

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@pytest.mark.parametrize("level", LEVELS)
def test_an_insert_tells_the_keeper_at_every_isolation_level(database: Database, join: Join, level: str) -> None:
    member = join()
    with database.connect(autocommit=False) as producer:
        producer.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        producer.execute("SELECT count(*) FROM pggit.webhooks")  # its snapshot is older than the flag
        member.take()
        producer.execute(INSERT)
        assert member.heard() == [], "not before the commit"
    assert member.heard() == [str(member.watch.wake_number)]


def test_while_the_flag_is_down_no_insert_notifies(database: Database, join: Join) -> None:
    member = join()
    database.execute(INSERT)
    member.take()
    member.watch.lower(member.connection)
    database.execute(INSERT)
    with database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        producer.execute("PREPARE TRANSACTION 'silent'")  # a transaction that notifies could not
    with database.connect() as other:
        other.execute("ROLLBACK PREPARED 'silent'")
    assert member.heard() == []


def test_one_transaction_tells_once_whatever_its_savepoints_do(database: Database, join: Join) -> None:
    member = join()
    member.take()
    with database.connect(autocommit=False) as producer:
        producer.execute("SAVEPOINT a")
        producer.execute(INSERT)
        producer.execute("RELEASE a")
        for _ in range(5):
            producer.execute(INSERT)
    assert member.heard() == [str(member.watch.wake_number)]
    with database.connect(autocommit=False) as producer:
        producer.execute("SAVEPOINT a")
        producer.execute(INSERT)
        producer.execute("ROLLBACK TO a")
    assert member.heard() == []


@pytest.mark.every_postgres
def test_two_phase_users_can_switch_the_notification_off(database: Database, join: Join) -> None:
    member = join()
    member.take()
    with database.connect() as producer:
        producer.execute("BEGIN")
        producer.execute(INSERT)
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            producer.execute("PREPARE TRANSACTION 'told'")
        producer.execute("BEGIN; SET LOCAL webhookd.notify = off")
        producer.execute(INSERT)
        producer.execute("PREPARE TRANSACTION 'untold'")
        producer.execute("COMMIT PREPARED 'untold'")
    assert member.heard() == []


def test_a_producer_needs_no_right_but_to_insert(database: Database, join: Join) -> None:
    member = join()
    member.take()
    role = f"producer_{uuid4().hex[:8]}"
    database.execute(
        f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA pggit TO {role}; GRANT INSERT ON pggit.alert_delivery_queue TO {role}"
    )
    try:
        with database.connect() as producer:
            producer.execute(f"SET ROLE {role}".encode())
            producer.execute("SET search_path = ''")
            producer.execute(INSERT)
        assert member.heard() == [str(member.watch.wake_number)]
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending' WHERE delivery_status = 'failed'",
        "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() WHERE delivery_status = 'retrying'",
        "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy', consecutive_failures = 0",
        "UPDATE pggit.webhooks SET enabled = true",
        "UPDATE pggit.webhooks SET max_in_flight = 7",
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (2, 'https://example.com/')",
        "SELECT pggit.update_webhook_health(1, 200, 1)",
    ],
)
def test_whatever_else_makes_rows_claimable_tells_too(database: Database, join: Join, statement: str) -> None:
    database.execute("INSERT INTO pggit.webhooks (webhook_id, url, enabled) VALUES (1, 'https://example.com/', false)")
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status, next_retry_at)"
        " VALUES (1, '{}', 'failed', now()), (1, '{}', 'retrying', now() + interval '1 hour')"
    )
    database.execute("UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', health_status = 'unavailable'")
    member = join()
    member.take()
    database.execute(statement)
    assert member.heard() == [str(member.watch.wake_number)]


# Choreographies ------------------------------------------------------------------------------------------------------


class Cues:
    """What the test does at certain moments in the dispatcher's life, each once; and how often it has looked."""

    def __init__(self) -> None:
        self.looks = 0
        self._acts: dict[str, Callable[[], object]] = {}

    def at(self, moment: str, act: Callable[[], object]) -> None:
        self._acts[moment] = act

    def reached(self, moment: str) -> None:
        act = self._acts.pop(moment, None)
        if act is not None:
            act()


class CuedClaimer(Claimer):
    cues: Cues

    def claim(self, connection: store.Connection, *, limit: int, body_bytes: int = BODY_BYTES) -> Claim:
        self.cues.looks += 1
        self.cues.reached("before a look")
        return super().claim(connection, limit=limit, body_bytes=body_bytes)

    def next_look(self, connection: store.Connection) -> NextLook:
        next_look = super().next_look(connection)
        self.cues.reached("after a look")
        return next_look


class CuedWatch(Watch):
    cues: Cues

    def take(self, connection: store.Connection) -> bool:
        self.cues.reached("before the flag is up")
        taken = super().take(connection)
        self.cues.reached("once the flag is up")
        return taken


class CuedSenders(Senders):
    room_now: int | None = None
    turns = 0  # of the dispatcher's loop

    def tick(self, now: float) -> bool:
        self.turns += 1
        return super().tick(now)

    def room(self) -> int:
        return super().room() if self.room_now is None else self.room_now


class Stage:
    """A dispatcher with everything around it, in a thread; one webhook (1), whose receiver answers well."""

    def __init__(self, database: Database, receiver: Receiver, dispatcher: type[Dispatcher], watch: type[CuedWatch]) -> None:
        self.database = database
        self.receiver = receiver
        self.cues = Cues()
        self.bell = Bell()
        self.pool = store.open_pool(database.dsn, application_name="test/pool", size=2)
        self.transport = Transport(Egress(True, ["127.0.0.0/8"]))
        metrics, hints = Metrics("test", max_webhooks=10), Hints()
        results: queue.SimpleQueue[Result | None] = queue.SimpleQueue()
        courier = Courier(self.transport, hints, installation="wh_test")
        self.senders = CuedSenders(courier, results, most=4, bell=self.bell)
        recorder = Recorder(worker_id="test", defaults=DEFAULTS)
        backlog = self.senders.backlog
        self.recording = Recording(
            self.pool, recorder, results, hints=hints, metrics=metrics, bell=self.bell, backlog=backlog
        )
        incarnation = uuid4()
        listener = Listener(database.dsn, application_name="test/listen")
        self.watch = watch(listener, worker_id="test", incarnation=incarnation, metrics_address="127.0.0.1:1")
        claimer = CuedClaimer(worker_id="test", incarnation=incarnation, defaults=DEFAULTS)
        self.watch.cues = claimer.cues = self.cues
        self.dispatcher = dispatcher(
            self.pool, claimer, self.watch, self.senders, self.recording, metrics=metrics, bell=self.bell, beat=lambda: None
        )
        self._thread = threading.Thread(target=self.dispatcher.run, name="dispatcher")

    def begin(self) -> None:
        self.recording.start()
        self._thread.start()

    def start(self) -> None:
        """Start the dispatcher and wait until it sleeps, the flag up in its name."""
        self.begin()
        eventually(lambda: self.watch.wake_number and flag(self.database) == self.watch.wake_number, what="flag up")
        self.settle()

    def settle(self) -> None:
        """Wait until the dispatcher has not looked at the queue for a while."""
        seen, since = self.cues.looks, time.monotonic()

        def quiet() -> bool:
            nonlocal seen, since
            if self.cues.looks != seen:
                seen, since = self.cues.looks, time.monotonic()
            return time.monotonic() - since > 0.35

        eventually(quiet, what="the dispatcher sleeps")

    def lose_room(self) -> None:
        """Take the dispatcher's room away and wait until it has dropped the watch."""
        self.senders.room_now = 0
        self.bell.ring(News.LOST)  # only so that it notices
        eventually(lambda: flag(self.database) == FLAG_DOWN, what="the watch is dropped")

    def find_room(self) -> None:
        """Let it take one delivery at a time."""
        self.senders.room_now = 1
        self.bell.ring(News.ROOM)

    def arrived(self, count: int, *, within_s: float) -> bool:
        return self.receiver.wait_for_requests(count, timeout_s=within_s)

    def stop(self) -> None:
        self.dispatcher.stop()
        if self._thread.ident is not None:
            self._thread.join(20)
            self.recording.stop(timeout_s=5)
        self.watch.listener.close()
        self.pool.close()
        self.transport.close()


Scenario = Callable[[Stage, float], bool]


def an_insert_from_before_the_flag_commits_late(stage: Stage, within_s: float) -> bool:
    with stage.database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        stage.start()
    return stage.arrived(1, within_s=within_s)


def an_insert_comes_and_goes_between_the_last_look_and_the_flag(stage: Stage, within_s: float) -> bool:
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
        operator.execute("UPDATE pggit.webhooks SET enabled = true")  # the flag is down: tells nobody
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


def the_watch_is_handed_over_with_the_flag_down(stage: Stage, within_s: float) -> bool:
    looker = Member(stage.database)
    try:
        looker.take()
        looker.watch.lower(looker.connection)
        looker_gives_way = threading.Event()
        stage.cues.at("once the flag is up", looker_gives_way.set)  # the dispatcher has found that another keeps it
        with stage.database.connect(autocommit=False) as producer:
            producer.execute(INSERT)
            stage.begin()
            assert looker_gives_way.wait(20)
            looker.hand_over()
            stage.settle()
            assert flag(stage.database) == stage.watch.wake_number
        return stage.arrived(1, within_s=within_s)
    finally:
        looker.close()


def an_old_notification_comes_after_the_watch_was_dropped(
    stage: Stage, within_s: float, *, and_then: Callable[[], None] = lambda: None
) -> bool:
    stage.start()
    with stage.database.connect(autocommit=False) as producer:
        producer.execute(INSERT)  # will tell this worker, by number
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


def the_sweep_rings_with_an_old_notification(stage: Stage, within_s: float) -> bool:
    def sweep() -> None:
        stage.bell.ring(News.SWEEP)

    return an_old_notification_comes_after_the_watch_was_dropped(stage, within_s, and_then=sweep)


def the_keeper_does_not_answer(stage: Stage, within_s: float) -> bool:
    deaf = Member(stage.database)
    try:
        deaf.take()
        taken = threading.Event()
        stage.cues.at("once the flag is up", taken.set)
        stage.begin()
        assert taken.wait(20)
        stage.settle()
        assert flag(stage.database) == deaf.watch.wake_number
        stage.database.execute(INSERT)
        return stage.arrived(1, within_s=within_s)
    finally:
        deaf.close()


def the_listening_connection_is_cut(stage: Stage, within_s: float) -> bool:
    stage.start()
    stage.database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test/listen'")
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
    the_watch_is_handed_over_with_the_flag_down,
    an_old_notification_comes_after_the_watch_was_dropped,
    the_sweep_rings_with_an_old_notification,
    the_keeper_does_not_answer,
    the_listening_connection_is_cut,
]


@contextmanager
def staged(
    database: Database, dispatcher: type[Dispatcher] = Dispatcher, watch: type[CuedWatch] = CuedWatch
) -> Iterator[Stage]:
    with Receiver(answering()) as receiver:
        database.execute("INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, %s)", [receiver.url()])
        stage = Stage(database, receiver, dispatcher, watch)
        try:
            yield stage
        finally:
            stage.stop()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__.replace("_", " "))
def test_no_wakeup_is_lost_when(scenario: Scenario, database: Database) -> None:
    with staged(database) as stage:
        assert scenario(stage, 20.0)


def turns_in_half_a_second(stage: Stage) -> int:
    before = stage.senders.turns
    threading.Event().wait(0.5)
    return stage.senders.turns - before


def test_a_dispatcher_without_room_does_not_spin(database: Database) -> None:
    with staged(database) as stage, database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        stage.start()
        stage.lose_room()  # while it outwaits the producer
        assert turns_in_half_a_second(stage) < 50


def test_an_operator_who_holds_a_new_row_does_not_make_workers_spin(database: Database) -> None:
    with staged(database) as stage, database.connect(autocommit=False) as operator:
        stage.start()
        stage.lose_room()
        database.execute(INSERT)
        operator.execute("SELECT FROM pggit.alert_delivery_queue FOR UPDATE")
        stage.find_room()
        looks = stage.cues.looks
        assert turns_in_half_a_second(stage) < 50
        operator.commit()
        assert stage.arrived(1, within_s=20)
        assert stage.cues.looks > looks


def test_an_operator_who_holds_a_lane_with_new_rows_does_not_make_workers_spin(database: Database) -> None:
    with staged(database) as stage, database.connect(autocommit=False) as operator:
        stage.start()
        operator.execute("SELECT FROM pggit.webhook_health_metrics FOR UPDATE")
        database.execute(INSERT)
        assert turns_in_half_a_second(stage) < 50
        operator.commit()
        assert stage.arrived(1, within_s=20)


def test_a_suspect_row_is_tried_when_it_is_due(database: Database) -> None:
    with staged(database) as stage:
        database.execute(INSERT)
        database.execute(
            "UPDATE pggit.alert_delivery_queue"
            " SET routed = true, leases_lost = 3, next_retry_at = clock_timestamp() + interval '1.5 seconds'"
        )
        stage.start()
        assert turns_in_half_a_second(stage) < 50
        assert stage.arrived(1, within_s=20)


def test_a_suspect_row_has_its_turn_while_every_claim_is_full(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhookd.dispatcher.SUSPECTS_EVERY_S", 0.05)
    with staged(database) as stage:
        stage.start()
        stage.lose_room()
        database.execute(INSERT)
        database.execute("UPDATE pggit.alert_delivery_queue SET routed = true, leases_lost = 3")
        [(suspect,)] = database.execute("SELECT delivery_id FROM pggit.alert_delivery_queue")
        # Many lanes: one alone would look empty whenever a record has it locked.
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url) SELECT 1 + i, url FROM pggit.webhooks, generate_series(1, 20) i"
        )
        database.execute(INSERT.replace("VALUES (1, '{}')", "SELECT 2 + i % 20, '{}' FROM generate_series(1, 1000) i"))
        stage.find_room()  # for one at a time: a claim is full as long as there is anything
        assert stage.arrived(1001, within_s=60)
        assert [f"wh_test_{suspect}\r\n".encode() in request for request in stage.receiver.requests].index(True) < 900


# The same with a step left out: the choreographies must notice -------------------------------------------------------


class NeitherOutwaitsNorLooks(Dispatcher):
    def _begin_outwait(self, connection: store.Connection, now: float) -> None:
        pass


class LooksAndDoesNotOutwait(Dispatcher):
    def _begin_outwait(self, connection: store.Connection, now: float) -> None:
        self._look_at = now


class OutwaitsAndDoesNotLook(Dispatcher):
    def _begin_outwait(self, connection: store.Connection, now: float) -> None:
        timer = self._look_at
        super()._begin_outwait(connection, now)
        self._look_at = timer


class DoesNotLookWhenOneIsGone(Dispatcher):
    def _outwait(self, now: float) -> None:
        timer = self._look_at
        super()._outwait(now)
        self._look_at = timer


class SwallowsWhatComesWhileOutwaiting(Dispatcher):
    def _notifications(self, payloads: list[str], now: float) -> None:
        if not self._outwaited:
            super()._notifications(payloads, now)


class KeepsTheWatchOnceItHearsItsName(Dispatcher):
    def _notifications(self, payloads: list[str], now: float) -> None:
        super()._notifications(payloads, now)
        self._watched = True


class MindsItsOwnNameOnly(Dispatcher):
    def _notifications(self, payloads: list[str], now: float) -> None:
        super()._notifications([payload for payload in payloads if payload == str(self._watch.wake_number)], now)


class NeverListensAgain(Dispatcher):
    listened = False

    def _keep_listening(self, now: float) -> None:
        self.listened = self.listened or self._listener.connected
        if not self.listened:
            super()._keep_listening(now)


class ReadsLockersEarly(CuedWatch):
    early: frozenset[str] = frozenset()

    def take(self, connection: store.Connection) -> bool:
        self.early = frozenset(super().lockers(connection))
        return super().take(connection)

    def lockers(self, connection: store.Connection) -> set[str]:
        return set(self.early) & super().lockers(connection)


class OverlooksPreparedTransactions(CuedWatch):
    def lockers(self, connection: store.Connection) -> set[str]:
        rows = connection.execute(queries.load("lockers") + " AND l.pid IS NOT NULL").fetchall()
        return {row[0] for row in rows}


class OverlooksTheRegistry(CuedWatch):
    def lockers(self, connection: store.Connection) -> set[str]:
        only = " AND l.relation = 'pggit.alert_delivery_queue'::regclass"
        return {row[0] for row in connection.execute(queries.load("lockers") + only).fetchall()}


# A flag in a row: a transaction sees it as its snapshot has it. (A sequence is always read as it is now.)
FLAG_IN_A_ROW = """
CREATE OR REPLACE FUNCTION pggit.wake_after_insert() RETURNS trigger LANGUAGE plpgsql STABLE AS $$
DECLARE
    keeper bigint;
BEGIN
    SELECT wake_number INTO keeper FROM pggit.workers WHERE has_room;
    IF keeper > 1 THEN
        PERFORM pg_catalog.pg_notify('webhookd_wake', keeper::text);
    END IF;
    RETURN NULL;
END $$
"""


@pytest.mark.parametrize(
    ("dispatcher", "scenario"),
    [
        (LooksAndDoesNotOutwait, an_insert_from_before_the_flag_commits_late),
        (LooksAndDoesNotOutwait, an_insert_begins_between_the_last_look_and_the_flag),
        (LooksAndDoesNotOutwait, the_watch_is_handed_over_with_the_flag_down),
        (OutwaitsAndDoesNotLook, an_insert_comes_and_goes_between_the_last_look_and_the_flag),
        (NeitherOutwaitsNorLooks, an_insert_commits_once_the_flag_is_up),
        (DoesNotLookWhenOneIsGone, an_insert_from_before_the_flag_commits_late),
        (SwallowsWhatComesWhileOutwaiting, an_insert_comes_while_another_is_outwaited),
        (KeepsTheWatchOnceItHearsItsName, the_watch_is_handed_over_with_the_flag_down),
        (KeepsTheWatchOnceItHearsItsName, an_old_notification_comes_after_the_watch_was_dropped),
        (MindsItsOwnNameOnly, the_keeper_does_not_answer),
        (NeverListensAgain, the_listening_connection_is_cut),
    ],
)
def test_a_dispatcher_that_leaves_out_a_step_loses_one(
    dispatcher: type[Dispatcher], scenario: Scenario, database: Database
) -> None:
    with staged(database, dispatcher=dispatcher) as stage:
        assert not scenario(stage, NEVER_S)


@pytest.mark.parametrize(
    ("watch", "scenario"),
    [
        (ReadsLockersEarly, an_insert_begins_between_the_last_look_and_the_flag),
        (OverlooksPreparedTransactions, a_prepared_insert_is_committed_late),
        (OverlooksPreparedTransactions, an_insert_is_prepared_while_it_is_outwaited),
        (OverlooksTheRegistry, an_operator_resumes_the_webhook_in_a_long_transaction),
    ],
)
def test_a_watch_that_overlooks_lockers_loses_one(watch: type[CuedWatch], scenario: Scenario, database: Database) -> None:
    with staged(database, watch=watch) as stage:
        assert not scenario(stage, NEVER_S)


def test_a_flag_in_a_row_would_lose_one(database: Database) -> None:
    database.execute(FLAG_IN_A_ROW)
    with staged(database) as stage:
        assert not an_insert_has_a_snapshot_from_before_the_flag(stage, NEVER_S)


# Races ---------------------------------------------------------------------------------------------------------------

PRODUCERS = 6
BURST = 90  # enough for the keeper to lower the flag
# A lost wakeup is made good by the sweep 30 s later, or by the next insert; a round has no next insert.
GUARD_S = 8.0


class Racer:
    """One producer of a race, with a connection and dice of its own."""

    def __init__(self, database: Database, seed: int) -> None:
        self._connection = database.connect(autocommit=False)
        self._dice = random.Random(seed)

    def burst(self, inserts: int) -> list[int]:
        return [self._insert(commit=True, held_s=0.0) for _ in range(inserts)]

    def straggle(self) -> list[int]:
        """Insert a few rows about when the flag goes up again, in transactions that stay open for a while."""
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
        self._connection.execute(f"SET TRANSACTION ISOLATION LEVEL {self._dice.choice(LEVELS)}".encode())
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


def race(database: Database, receiver: Receiver, *, rounds: int, guard_s: float, seed: int) -> tuple[int, int]:
    """Run *rounds* of a burst and its stragglers, or fewer if one does not arrive in time.

    Return how many rows were committed, and how many of them had not arrived *guard_s* after their round.
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
            "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second, max_in_flight) VALUES (1, %s, 0, 1000)",
            [receiver.url()],
        )
        eventually(lambda: flag(database) > FLAG_DOWN)
        committed, lost = race(database, receiver, rounds=14, guard_s=GUARD_S, seed=1)
        assert (lost, committed > 1200) == (0, True)
        assert daemon.stop() == 0


@pytest.mark.parametrize("dispatcher", [LooksAndDoesNotOutwait, NeitherOutwaitsNorLooks])
def test_the_race_catches_a_dispatcher_that_does_not_outwait(dispatcher: type[Dispatcher], database: Database) -> None:
    with staged(database, dispatcher=dispatcher) as stage:
        stage.start()
        _, lost = race(database, stage.receiver, rounds=25, guard_s=NEVER_S, seed=2)
        assert lost > 0
