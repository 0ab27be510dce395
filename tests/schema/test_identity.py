"""A database that was copied: workers refuse it until it is adopted."""

from typing import Any

import pytest

from tests.support.postgres import Database, Server
from webhookd.errors import UnusableError
from webhookd.schema.identity import adopt
from webhookd.schema.migrate import check, migrate


def fill(database: Database) -> None:
    database.import_rows("""
        INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status) VALUES
            (1, '{}', 'pending'), (1, '{}', 'retrying'), (2, '{}', 'delivered'),
            (2, '{}', 'failed'), (3, '{}', 'pending');
        UPDATE pggit.alert_delivery_queue
           SET delivery_status = 'sending', routed = true, lease_token = 5,
               lease_until = now() + interval '1 minute'
         WHERE delivery_id = 5;
        INSERT INTO pggit.webhook_health_metrics
            (webhook_id, in_flight, circuit_state, circuit_until)
        VALUES (3, 1, 'open', now() + interval '1 hour');
    """)


def statuses(database: Database) -> list[tuple[Any, ...]]:
    return database.execute(
        "SELECT delivery_id, delivery_status FROM pggit.alert_delivery_queue ORDER BY 1"
    )


@pytest.fixture
def copy(server: Server, database: Database) -> Database:
    """A copy of a filled database, as CREATE DATABASE ... TEMPLATE or a dump makes it."""
    fill(database)
    return server.create(template=database.name)


@pytest.mark.every_postgres
def test_workers_refuse_a_copy_and_name_the_command(database: Database, copy: Database) -> None:
    with database.connect() as connection:
        check(connection)
    with (
        copy.connect() as connection,
        pytest.raises(UnusableError, match="webhookd adopt") as refusal,
    ):
        check(connection)
    assert "\n" not in str(refusal.value)
    migrate(copy.dsn)  # must not make it an original
    with copy.connect() as connection, pytest.raises(UnusableError, match="webhookd adopt"):
        check(connection)


def test_a_database_of_another_cluster_is_refused(database: Database) -> None:
    database.execute("UPDATE pggit.installation SET system_identifier = '1'")
    with database.connect() as connection, pytest.raises(UnusableError, match="webhookd adopt"):
        check(connection)


def test_a_copy_that_continues_keeps_everything(database: Database, copy: Database) -> None:
    adopt(copy.dsn, discard_pending=False)
    with copy.connect() as connection:
        check(connection)
    assert statuses(copy) == statuses(database)
    who = "SELECT installation_id FROM pggit.installation"
    assert copy.execute(who) == database.execute(who)


@pytest.mark.every_postgres
def test_a_copy_that_starts_afresh_fails_what_was_pending_and_says_why(
    database: Database, copy: Database
) -> None:
    assert adopt(copy.dsn, discard_pending=True) == 3
    with copy.connect() as connection:
        check(connection)
    assert statuses(copy) == [
        (1, "failed"),
        (2, "failed"),
        (3, "delivered"),
        (4, "failed"),
        (5, "failed"),
    ]
    assert copy.execute(
        "SELECT delivery_id, event_type, event_details ->> 'reason' FROM "
        "pggit.alert_delivery_log ORDER BY 1"
    ) == [
        (number, "failed", "discarded by webhookd adopt: the database is a copy")
        for number in (1, 2, 5)
    ]
    assert copy.execute(
        "SELECT in_flight, circuit_state, circuit_until FROM pggit.webhook_health_metrics WHERE "
        "webhook_id = 3"
    ) == [(0, "closed", None)]
    who = "SELECT installation_id FROM pggit.installation"
    assert copy.execute(who) != database.execute(who)


def test_a_database_that_workers_run_on_is_not_adopted(database: Database) -> None:
    fill(database)
    database.execute(
        "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version)"
        " VALUES (gen_random_uuid(), 'worker-1', 'there', 1, '0.1.0')"
    )
    with pytest.raises(UnusableError, match="worker-1 on there"):
        adopt(database.dsn, discard_pending=True)
    assert (5, "sending") in statuses(database)


def test_adopt_without_a_schema_is_refused(empty_database: Database) -> None:
    with pytest.raises(UnusableError, match="run `webhookd migrate`"):
        adopt(empty_database.dsn, discard_pending=False)
