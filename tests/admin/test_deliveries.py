"""Deliveries without a command line: the list, one with its attempts, why it waits, sent again."""

from collections.abc import Iterator

import pytest

from tests.support import poison
from tests.support.engine import Engine, answered, insert, register, statuses
from tests.support.postgres import Database, Server
from webhookd.admin import database as admin_database
from webhookd.admin import deliveries
from webhookd.admin.database import Connection
from webhookd.admin.deliveries import Absence, Explanation
from webhookd.admin.doctor.commands import Commands
from webhookd.config.options import Config
from webhookd.errors import WebhookdError
from webhookd.postgres import session

COMMANDS = Commands("mydb", "--dsn mydb")


@pytest.fixture
def config(database: Database) -> Config:
    return Config(dsn=database.dsn)


@pytest.fixture
def connection(config: Config) -> Iterator[Connection]:
    with admin_database.connect(config) as connection:
        yield connection


def explained(connection: Connection, config: Config, delivery_id: int) -> Explanation:
    found = deliveries.explain(connection, delivery_id, config, COMMANDS)
    assert isinstance(found, Explanation)
    return found


def test_the_list_is_newest_first_and_of_one_status_or_webhook_where_asked_for(
    database: Database, connection: Connection, enlisted: Engine
) -> None:
    register(database, 1, max_retries=0)
    first, second = insert(database, 1, 2)
    enlisted.finish(enlisted.take(), answered(404))
    [third] = insert(database, 1)
    [other] = insert(database, 9)

    def listed(**chosen: object) -> list[int]:
        found = deliveries.list_deliveries(connection, **chosen)  # type: ignore[arg-type]
        return [one.delivery_id for one in found]

    assert listed() == [other, third, second, first]
    assert listed(limit=2) == [other, third]
    assert listed(status="failed") == [second, first]
    assert listed(webhook_id=1, status="pending") == [third]


def test_one_delivery_has_its_body_as_it_is_sent_and_its_attempts(
    database: Database, connection: Connection, enlisted: Engine
) -> None:
    register(database, 1)
    [(delivery_id,)] = database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
        " VALUES (1, '{\"big\": 12345678901234567890.50}') RETURNING delivery_id"
    )
    enlisted.finish(enlisted.take(), answered(503, excerpt="down"))
    found = deliveries.show(connection, delivery_id)
    assert (found.delivery_status, found.attempts) == ("retrying", 1)
    assert found.message_body == '{"big": 12345678901234567890.50}'
    [attempt] = found.log
    assert (attempt.event_type, attempt.http_status) == ("retrying", 503)
    assert (attempt.details["reason"], attempt.details["excerpt"]) == ("HTTP 503", "down")
    # Plain SQL, or an earlier pggit, may have logged anything.
    database.execute("UPDATE pggit.alert_delivery_log SET event_details = '[1]'")
    [foreign] = deliveries.show(connection, delivery_id).log
    assert (foreign.event_details, foreign.details) == ([1], {})
    with pytest.raises(WebhookdError, match="no delivery has the id 999"):
        deliveries.show(connection, 999)


def test_an_explanation_names_what_to_run_on_the_database_that_was_asked(
    database: Database, connection: Connection, config: Config, enlisted: Engine
) -> None:
    register(database, 1, enabled=False, disabled_reason="by ops")
    [delivery_id] = insert(database, 1)
    found = explained(connection, config, delivery_id)
    assert (found.webhook_id, found.status) == (1, "pending")
    assert found.url == "https://receiver.example/1"
    [paused] = found.reasons
    assert (paused.name, paused.until_at) == ("paused", "never")
    assert paused.run == ("webhookd webhook resume 1 --dsn mydb",)
    with database.connect(autocommit=False) as other:
        other.execute("SELECT FROM pggit.alert_delivery_queue FOR UPDATE")
        locked = explained(connection, config, delivery_id).reasons[0]
        assert locked.name == "locked" and locked.run[0].startswith("psql mydb -c ")


def test_explaining_leaves_the_connection_as_it_was(
    database: Database, connection: Connection, config: Config
) -> None:
    [delivery_id] = insert(database, 9)
    before = connection.isolation_level, connection.read_only
    explained(connection, config, delivery_id)
    assert (connection.isolation_level, connection.read_only) == before
    assert deliveries.retry(connection, [delivery_id]).count == 1


def test_an_absent_delivery_tells_the_newest_id_and_who_may_be_inserting_it(
    database: Database, connection: Connection, config: Config
) -> None:
    assert deliveries.explain(connection, 1, config, COMMANDS) == Absence(1, None, [])
    [newest] = insert(database, 1)
    with database.connect(autocommit=False, application_name="shop") as producer:
        producer.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
        )
        found = deliveries.explain(connection, newest + 1, config, COMMANDS)
        assert isinstance(found, Absence)
        assert found.newest_id == newest
        [one] = found.producers
        assert (one.application_name, one.pid) == ("shop", producer.info.backend_pid)


def test_deliveries_are_sent_again_unless_they_are_being_sent(
    database: Database, connection: Connection, enlisted: Engine
) -> None:
    register(database, 1, 2)
    [done], [held] = insert(database, 1), insert(database, 2)
    first, second = sorted(enlisted.take(), key=lambda one: one.webhook_id)
    enlisted.finish([first], answered(200))
    again = deliveries.retry(connection, [held, done, 999, done])
    assert (again.count, again.missing, again.samples) == (1, [held, 999], [done])
    assert statuses(database) == {"pending": 1, "sending": 1}
    enlisted.finish([second], answered(200))


def test_all_that_failed_is_sent_again_in_batches_or_what_failed_lately_or_of_one_webhook(
    database: Database, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "BATCH", 2)
    for webhook_id in (1, 2):
        insert(database, webhook_id, 3)
    fail = "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed', attempted_at = now()"

    def failed(after: str = "") -> None:
        database.execute(fail)
        database.execute(f"UPDATE pggit.alert_delivery_queue SET {after}" if after else fail)

    failed()
    everything = deliveries.retry_failed(connection)
    assert (everything.count, len(everything.samples)) == (6, 2)
    assert deliveries.retry_failed(connection).count == 0
    failed()
    assert deliveries.retry_failed(connection, webhook_id=2).count == 3
    assert statuses(database, 1) == {"failed": 3}
    failed("attempted_at = now() - interval '2 h' WHERE webhook_id = 1")
    assert deliveries.retry_failed(connection, since_s=3600.0).count == 3
    assert statuses(database, 1) == {"failed": 3}


def test_of_each_webhook_the_wait_that_lasts_longest_is_told(
    database: Database, connection: Connection, config: Config, enlisted: Engine
) -> None:
    register(database, 1)
    register(database, 2, enabled=False)
    [free], [paused], [unregistered] = (insert(database, one) for one in (1, 2, 3))
    ids = [free, paused, unregistered, 999]
    found = list(deliveries.waits(connection, ids, config, COMMANDS))
    assert [one.delivery_id for one in found] == [paused, unregistered]
    assert found[0].text.startswith("Webhook 2 is paused")
    assert found[1].run == f"webhookd delivery explain {unregistered} --dsn mydb"


def test_a_role_that_may_write_the_queue_only_hears_of_no_wait(
    server: Server, database: Database
) -> None:
    [delivery_id] = insert(database, 9)
    role = server.create_role()
    database.execute(
        f"GRANT USAGE ON SCHEMA pggit TO {role};"
        f"GRANT SELECT, UPDATE ON pggit.alert_delivery_queue TO {role}"
    )
    config = Config(dsn=database.dsn)
    with admin_database.connect(config) as connection:
        connection.execute(f"SET ROLE {role}".encode())
        assert list(deliveries.waits(connection, [delivery_id], config, COMMANDS)) == []
        connection.execute("RESET ROLE")
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_delivery_whose_body_is_too_large_or_corrupted_is_shown_without_it(
    database: Database,
) -> None:
    corrupted = poison.insert_corrupted(database, 1)
    [huge] = poison.insert_unmeasured(database, 1, "'{}'")
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET body_bytes = 100000000 WHERE delivery_id = %s",
        [huge],
    )
    with session.connect_command(database.dsn, role="test") as connection:
        for delivery_id in (corrupted, huge):
            assert deliveries.show(connection, delivery_id).message_body is None
        assert deliveries.show(connection, huge).body_bytes == 100_000_000
