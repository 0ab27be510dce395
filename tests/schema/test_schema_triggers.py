"""What the schema's triggers make of changes that an operator or a producer commits, and which of
them wake a worker.
"""

import psycopg
import pytest

from tests.support.engine import (
    Engine,
    answered,
    attempts,
    delivery,
    given_back,
    ids,
    insert,
    let_pass,
    register,
    unseen,
)
from tests.support.listening import heard, watched
from tests.support.postgres import Database

pytestmark = pytest.mark.every_postgres


# Triggers


@pytest.mark.parametrize("final", [200, 404], ids=["delivered", "failed"])
def test_an_operator_puts_a_finished_delivery_back_by_its_status_alone(
    database: Database, worker: Engine, final: int
) -> None:
    register(database, 1, max_retries=0)
    [delivery_id] = insert(database, 1)
    worker.finish(worker.take(), answered(final))
    with watched(database) as listener:
        database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending'")
        assert heard(listener) == ["42"]
    row = delivery(database, delivery_id)
    assert (row["delivered_at"], row["first_attempted_at"], row["leases_lost"]) == (None, None, 0)
    worker.finish(worker.take_all(), answered(200))
    assert [event for event, _, _ in attempts(database, delivery_id)][-1] == "delivered"


def test_an_operator_brings_a_retry_forward(database: Database, worker: Engine) -> None:
    register(database, 1, retry_base_seconds=1000)
    [delivery_id] = insert(database, 1)
    worker.finish(worker.take(), answered(500))
    assert worker.take_all() == []
    with watched(database) as listener:
        database.execute("UPDATE pggit.alert_delivery_queue SET next_retry_at = now()")
        assert heard(listener) == ["42"]
    assert ids(worker.take_all()) == [delivery_id]


def test_an_operator_moves_a_delivery_to_another_webhook(
    database: Database, worker: Engine
) -> None:
    register(database, 1, enabled=False)
    register(database, 2)
    [delivery_id] = insert(database, 1)
    assert worker.take_all() == []
    with watched(database) as listener:
        database.execute("UPDATE pggit.alert_delivery_queue SET webhook_id = 2")
        assert heard(listener) == ["42"]
    [claimed] = worker.take_all()
    assert (claimed.delivery_id, claimed.webhook_id) == (delivery_id, 2)


def test_a_suspect_that_an_operator_puts_back_has_its_chances_again(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    with unseen(database) as connection:
        connection.execute(
            "UPDATE pggit.alert_delivery_queue SET leases_lost = 6, delivery_status = 'failed', "
            "routed = true"
        )
    database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending'")
    assert ids(worker.take_all()) == [delivery_id]


def test_no_statement_of_a_worker_is_taken_for_an_operators(
    database: Database, worker: Engine
) -> None:
    """The triggers for an operator's changes stay silent through a delivery's whole life."""
    register(database, 1, 2, retry_base_seconds=0.001)
    register(database, 3, enabled=False)
    triggers = database.execute(
        "SELECT tgname::text, tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger"
        " WHERE tgname IN ('requeue', 'reset_circuit')"
    )
    assert len(triggers) == 2
    for name, table, definition in triggers:
        database.execute(
            f"CREATE FUNCTION pggit.{name}_refused() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{name} fired'; END $$; DROP TRIGGER {name} ON {table};"
            + str(definition).replace(f"pggit.{name}()", f"pggit.{name}_refused()")
        )
    for webhook_id in (1, 2, 3, 4):
        insert(database, webhook_id, 8)
    for status in (500, 200, 429, 404, 404, 404, 404, 404, 200, 200):
        claimed = worker.take_all()
        worker.finish(claimed[:2], given_back())
        worker.finish(claimed[2:], answered(status))
        worker.finish(worker.take_all()[:3], answered(200))
        let_pass(database, 100)
        worker.release()
        worker.finish(worker.claimer.claim_quarantined(worker.connection).deliveries, answered(200))
        worker.sweep()


# Wakeups


def test_an_insert_notifies_only_while_the_flag_is_up(database: Database) -> None:
    with watched(database) as listener:
        insert(database, 1, 3)
        assert heard(listener) == ["42"]
        database.execute("SELECT setval('pggit.wake_flag', 1)")
        insert(database, 1, 3)
        assert heard(listener) == []


def test_a_producer_sees_a_flag_that_went_up_after_its_snapshot_at_every_isolation_level(
    database: Database,
) -> None:
    for isolation in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
        with database.connect() as listener, database.connect(autocommit=False) as producer:
            listener.execute("SELECT setval('pggit.wake_flag', 1)")
            listener.execute("LISTEN webhookd_wake")
            producer.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}".encode())
            producer.execute("SELECT count(*) FROM pggit.alert_delivery_queue")
            listener.execute("SELECT setval('pggit.wake_flag', 42)")
            producer.execute(
                "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
            )
            assert heard(listener) == []
            producer.commit()
            assert heard(listener) == ["42"], isolation


def test_copy_and_merge_and_a_subtransaction_notify(database: Database) -> None:
    with watched(database) as listener, database.connect() as producer:
        with producer.cursor().copy(
            "COPY pggit.alert_delivery_queue (webhook_id, message_body) FROM STDIN"
        ) as copy:
            copy.write_row([1, "{}"])
        assert heard(listener) == ["42"]
        with producer.transaction(), producer.transaction():
            producer.execute(
                "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
            )
        assert heard(listener) == ["42"]
        if producer.info.server_version >= 150000:
            producer.execute(
                "MERGE INTO pggit.alert_delivery_queue q USING (VALUES (1)) v (id) ON q.alert_id "
                "= v.id"
                " WHEN NOT MATCHED THEN INSERT (webhook_id, message_body) VALUES (v.id, '{}')"
            )
            assert heard(listener) == ["42"]


def test_a_transaction_can_be_prepared_while_the_flag_is_up_if_it_says_so(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    statement = "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
    name = f"prepared_{database.name}"
    with watched(database) as listener, database.connect() as producer:
        producer.execute(f"BEGIN; {statement}".encode())
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            producer.execute(f"PREPARE TRANSACTION '{name}'".encode())
        producer.execute(
            f"BEGIN; SET LOCAL webhookd.notify = off; {statement};"
            f" PREPARE TRANSACTION '{name}'".encode()
        )
        assert worker.take_all() == []
        producer.execute(f"COMMIT PREPARED '{name}'".encode())
        assert heard(listener) == []
    assert len(worker.take_all()) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pggit.webhooks SET enabled = true WHERE webhook_id = 1",
        "UPDATE pggit.webhooks SET rate_limit_per_second = 100 WHERE webhook_id = 1",
        "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (2, 'https://receiver.example/')",
        "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy', consecutive_failures "
        "= 0 WHERE webhook_id = 1",
        "SELECT pggit.update_webhook_health(1, 200, 10)",
    ],
    ids=["resume", "raised limit", "registration", "reset", "health function"],
)
def test_what_frees_a_lane_notifies(database: Database, statement: str) -> None:
    register(database, 1, enabled=False)
    database.execute(
        "UPDATE pggit.webhook_health_metrics"
        " SET health_status = 'unavailable', circuit_state = 'open', circuit_epoch = 1"
    )
    with watched(database) as listener:
        database.execute(statement)
        assert "42" in heard(listener)
