"""The duty to be notified: which worker has it, whom that one outwaits, and what an insert says."""

from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.postgres import Database
from tests.support.stage import FLAG_DOWN, INSERT, LEVELS, Member, flag


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


def age(database: Database, incarnation: UUID) -> None:
    """Make that worker one that has given no sign of life for a while."""
    database.execute(
        "UPDATE pggit.workers SET seen_at = now() - interval '21 seconds' WHERE incarnation = %s",
        [incarnation],
    )


# Which worker has the duty


@pytest.mark.every_postgres
def test_only_one_of_three_has_the_duty(database: Database, join: Join) -> None:
    first, second, third = join(), join(), join()
    assert len({member.duty.wake_number for member in (first, second, third)}) == 3
    assert flag(database) == FLAG_DOWN
    assert [first.take(), second.take(), third.take()] == [True, False, False]
    assert flag(database) == first.duty.wake_number > FLAG_DOWN
    assert first.take(), "taking it again is harmless"


def test_the_lock_of_the_duty_is_a_row_that_is_made_again_where_it_is_missing(
    database: Database, join: Join
) -> None:
    first, second = join(), join()
    database.execute("TRUNCATE pggit.watch")
    assert first.take()
    assert database.execute("SELECT count(*) FROM pggit.watch") == [(1,)]
    with database.connect() as stranger:  # once any role could hold the duty up
        stranger.execute("SELECT pg_advisory_lock(2003132008)")
        first.duty.lower(first.connection)
        assert not second.take()


def test_a_worker_keeps_the_duty_with_the_flag_down(database: Database, join: Join) -> None:
    first, second = join(), join()
    first.take()
    first.duty.lower(first.connection)
    assert flag(database) == FLAG_DOWN
    assert not second.take()
    assert first.take()
    assert flag(database) == first.duty.wake_number


@pytest.mark.parametrize("lowered", [False, True])
def test_the_duty_is_handed_to_a_worker_that_has_room_and_that_one_is_notified(
    database: Database, join: Join, lowered: bool
) -> None:
    first, full, free = join(), join(), join()
    first.take(), full.take(), free.take()
    full.hand_over()  # has no duty: it only says that it has no room
    assert flag(database) == first.duty.wake_number
    assert free.heard() == []
    if lowered:
        first.duty.lower(first.connection)
    first.hand_over()
    assert flag(database) == free.duty.wake_number
    assert free.heard() == [str(free.duty.wake_number)]
    assert not first.take() and not full.take()


def test_without_an_heir_the_duty_is_dropped_and_the_first_to_have_room_takes_it(
    database: Database, join: Join
) -> None:
    first, second = join(), join()
    first.take(), second.take()
    second.hand_over()
    first.hand_over()
    assert flag(database) == FLAG_DOWN
    assert second.take()
    assert flag(database) == second.duty.wake_number
    assert not first.take()


def test_a_worker_that_is_silent_neither_keeps_nor_inherits_the_duty(
    database: Database, join: Join
) -> None:
    dead, second, third = join(), join(), join()
    dead.take(), second.take(), third.take()
    age(database, dead.incarnation)
    assert second.take(), "the flag still names the dead one"
    age(database, third.incarnation)
    second.hand_over()
    assert flag(database) == FLAG_DOWN
    # A dead one that had the duty with the flag down.
    dead.duty.lower(dead.connection)
    assert flag(database) == FLAG_DOWN
    assert second.take()


def test_to_hand_over_what_another_has_taken_meanwhile_changes_nothing(
    database: Database, join: Join
) -> None:
    stalled, second, third = join(), join(), join()
    stalled.take(), second.take(), third.take()
    age(database, stalled.incarnation)
    second.take()
    stalled.hand_over()  # it cannot know
    assert flag(database) == second.duty.wake_number


def test_a_worker_that_leaves_hands_the_duty_over_and_its_row_is_deleted(
    database: Database, join: Join
) -> None:
    first, second = join(), join()
    first.take(), second.take()
    first.duty.leave(first.connection)
    assert flag(database) == second.duty.wake_number
    assert second.heard()[:1] == [str(second.duty.wake_number)]
    assert database.execute("SELECT incarnation FROM pggit.workers") == [(second.incarnation,)]


def test_a_row_that_has_vanished_registers_again_under_a_number_of_its_own(
    database: Database, join: Join
) -> None:
    member = join()
    member.take()
    number = member.duty.wake_number
    database.execute("DELETE FROM pggit.workers")
    assert not member.take(), "a worker without a row cannot have the duty"
    assert member.duty.register(member.connection)
    assert member.duty.wake_number > number
    assert not member.duty.register(member.connection)
    assert member.take()
    assert flag(database) == member.duty.wake_number


# Whom to outwait


@pytest.mark.every_postgres
def test_open_and_prepared_inserts_are_outwaited_and_readers_are_not(
    database: Database, join: Join
) -> None:
    member = join()
    if database.execute("SHOW max_prepared_transactions") == [("0",)]:
        pytest.fail(
            "tests/support/postgres.py must start its servers with max_prepared_transactions"
        )
    with (
        database.connect(autocommit=False) as reader,
        database.connect(autocommit=False) as producer,
    ):
        reader.execute("SELECT count(*) FROM pggit.alert_delivery_queue")
        assert member.duty.open_producers(member.connection) == set()
        producer.execute("SAVEPOINT a")
        producer.execute(INSERT)
        assert len(member.duty.open_producers(member.connection)) == 1
        producer.execute("SET LOCAL webhookd.notify = off")
        producer.execute("PREPARE TRANSACTION 'kept open'")
        assert len(member.duty.open_producers(member.connection)) == 1
        with database.connect() as other:
            other.execute("COMMIT PREPARED 'kept open'")
        assert member.duty.open_producers(member.connection) == set()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending'",
        "UPDATE pggit.webhooks SET enabled = true",
        "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy', consecutive_failures "
        "= 0",
        "SELECT pggit.update_webhook_health(1, 200, 1)",
        "COPY pggit.alert_delivery_queue (webhook_id, message_body) FROM STDIN",
    ],
)
def test_a_transaction_whose_trigger_reads_the_flag_is_outwaited(
    database: Database, join: Join, statement: str
) -> None:
    member = join()
    with database.connect(autocommit=False) as operator:
        if statement.startswith("COPY"):
            with operator.cursor().copy(statement.encode()) as copy:
                copy.write(b"1\t{}\n")
        else:
            operator.execute(statement.encode())
        assert len(member.duty.open_producers(member.connection)) == 1
    assert member.duty.open_producers(member.connection) == set()


# What an insert says


@pytest.mark.parametrize("level", LEVELS)
def test_an_insert_notifies_the_worker_with_the_duty_at_every_isolation_level(
    database: Database, join: Join, level: str
) -> None:
    member = join()
    with database.connect(autocommit=False) as producer:
        producer.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        producer.execute(
            "SELECT count(*) FROM pggit.webhooks"
        )  # its snapshot is older than the flag
        member.take()
        producer.execute(INSERT)
        assert member.heard() == [], "not before the commit"
    assert member.heard() == [str(member.duty.wake_number)]


def test_while_the_flag_is_down_no_insert_notifies(database: Database, join: Join) -> None:
    member = join()
    database.execute(INSERT)
    member.take()
    member.duty.lower(member.connection)
    database.execute(INSERT)
    with database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        producer.execute("PREPARE TRANSACTION 'silent'")  # a transaction that notifies could not
    with database.connect() as other:
        other.execute("ROLLBACK PREPARED 'silent'")
    assert member.heard() == []


def test_one_transaction_notifies_once_with_any_savepoints(database: Database, join: Join) -> None:
    member = join()
    member.take()
    with database.connect(autocommit=False) as producer:
        producer.execute("SAVEPOINT a")
        producer.execute(INSERT)
        producer.execute("RELEASE a")
        for _ in range(5):
            producer.execute(INSERT)
    assert member.heard() == [str(member.duty.wake_number)]
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
        f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA pggit TO {role}; GRANT INSERT ON "
        f"pggit.alert_delivery_queue TO {role}"
    )
    try:
        with database.connect() as producer:
            producer.execute(f"SET ROLE {role}".encode())
            producer.execute("SET search_path = ''")
            producer.execute(INSERT)
        assert member.heard() == [str(member.duty.wake_number)]
    finally:
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending' WHERE delivery_status "
        "= 'failed'",
        "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() WHERE delivery_status = "
        "'retrying'",
        "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy', consecutive_failures "
        "= 0",
        "UPDATE pggit.webhooks SET enabled = true",
        "UPDATE pggit.webhooks SET max_in_flight = 7",
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (2, 'https://example.com/')",
        "SELECT pggit.update_webhook_health(1, 200, 1)",
    ],
)
def test_other_statements_that_make_rows_claimable_notify_too(
    database: Database, join: Join, statement: str
) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, enabled) VALUES (1, "
        "'https://example.com/', false)"
    )
    database.import_rows(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status, "
        "next_retry_at)"
        " VALUES (1, '{}', 'failed', now()), (1, '{}', 'retrying', now() + interval '1 hour')"
    )
    database.execute(
        "UPDATE pggit.webhook_health_metrics SET circuit_state = 'open', health_status = "
        "'unavailable'"
    )
    member = join()
    member.take()
    database.execute(statement)
    assert member.heard() == [str(member.duty.wake_number)]
