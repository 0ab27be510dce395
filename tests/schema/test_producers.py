"""What producers may write: the engine's own columns are ignored, bodies are bounded, and ids that
nobody registered cost others nothing.
"""

from typing import Any

import psycopg
import pytest

from tests.support.engine import (
    Engine,
    delivery,
    engine,
    ids,
    insert,
    new_rows,
    register,
    unseen,
)
from tests.support.postgres import Database, Server
from tests.support.roles import acting
from tests.support.steps import park_all
from webhookd.postgres import session
from webhookd.worker.chores.sweeper import Sweeper
from webhookd.worker.wakeup import WakeupPipe

pytestmark = pytest.mark.every_postgres

QUEUE = "pggit.alert_delivery_queue"
ONE = f"INSERT INTO {QUEUE} (webhook_id, message_body) VALUES (1, '{{}}')"

# What a producer may not decide, with a value that once did harm.
ENGINE_COLUMNS = {
    "delivery_id": "9223372036854775806",
    "delivery_status": "'delivered'",
    "retry_count": "2147483647",
    "attempts": "2147483647",
    "leases_lost": "3",
    "routed": "true",
    "worker_id": "'x'",
    "attempted_at": "'infinity'",
    "delivered_at": "'-infinity'",
    "first_attempted_at": "'infinity'",
    "ended_at": "now()",
    "lease_token": "7",
    "lease_until": "'infinity'",
    "leased_by": "gen_random_uuid()",
    "body_bytes": "-1",
}


def with_column(name: str, value: str, *, count: int = 1) -> str:
    return (
        f"INSERT INTO {QUEUE} (webhook_id, message_body, {name}) SELECT 1, '{{}}', {value}"
        f" FROM generate_series(1, {count})"
    )


@pytest.mark.parametrize("column", ENGINE_COLUMNS)
def test_what_an_insert_only_role_writes_into_the_engines_columns_is_ignored(
    database: Database, server: Server, worker: Engine, column: str
) -> None:
    register(database, 1)
    [plain] = insert(database, 1)
    expected = delivery(database, plain)
    count = 1 if column == "delivery_id" else 3
    with acting(database, server, f"INSERT ON {QUEUE}") as producer:
        for setting in ("off", "on"):  # the role lacks the right that an import takes
            producer.execute(f"SET webhookd.import = '{setting}'".encode())
            producer.execute(with_column(column, ENGINE_COLUMNS[column], count=count).encode())
    ours = [*ENGINE_COLUMNS, "max_retries"]
    for number in range(1, 2 * count + 1):
        row = delivery(database, plain + number)
        assert {name: row[name] for name in ours} == {name: expected[name] for name in ours} | {
            "delivery_id": plain + number,
            "body_bytes": 2,
        }
    assert len(worker.take_all()) == 1 + 2 * count


def test_ids_have_no_gap_and_other_producers_inserts_never_collide(database: Database) -> None:
    [first] = insert(database, 1)
    database.execute(with_column("delivery_id", str(first + 1)))
    database.execute(with_column("delivery_id", str(first)))
    with database.connect() as producer:
        with producer.cursor().copy(f"COPY {QUEUE} (webhook_id, message_body) FROM STDIN") as copy:
            copy.write_row([1, "{}"])
        assert producer.execute(f"{ONE} RETURNING delivery_id".encode()).fetchone() == (first + 4,)
    with unseen(database) as connection:  # without triggers
        connection.execute(ONE.encode())
    assert insert(database, 1) == [first + 6]
    assert database.execute(f"SELECT array_agg(delivery_id ORDER BY 1) FROM {QUEUE}") == [
        (list(range(first, first + 7)),)
    ]


def test_an_import_keeps_what_it_is_given_and_later_ids_follow_it(
    database: Database, server: Server
) -> None:
    columns = "delivery_id, delivery_status, attempts, created_at, delivered_at"
    values = "900, 'delivered', 4, '2020-01-01', '2020-01-02'"
    statement = (
        f"INSERT INTO {QUEUE} (webhook_id, message_body, {columns}) VALUES (1, '1', {values})"
    )
    grants = (f"INSERT ON {QUEUE}", f"UPDATE (delivery_status) ON {QUEUE}")
    with acting(database, server, *grants) as importer:
        importer.execute("SET webhookd.import = 'on'")
        importer.execute(statement.encode())
    row = delivery(database, 900)
    assert (row["delivery_status"], row["attempts"], row["body_bytes"]) == ("delivered", 4, 1)
    assert insert(database, 1) == [901]
    # An id that only a mistake reaches is kept, and the sequence does not follow it.
    database.import_rows(with_column("delivery_id", str(2**63 - 2)))
    assert insert(database, 1) == [902]


# Bodies

TOO_LARGE = {
    "one character more": "to_jsonb(repeat('x', 1048575))",
    "characters of six bytes": "to_jsonb(repeat(E'\\x01', 200000))",
    "a number of 131,072 digits": "('[' || repeat('1e131071,', 7000) || '1]')::jsonb",
    "zeros behind the point": "(SELECT jsonb_agg(round(1, 16383)) FROM generate_series(1, 100))",
    "numbers within objects": "jsonb_build_object('a', jsonb_build_array(1e131071, 1e131071,"
    " 1e131071, 1e131071, 1e131071, 1e131071, 1e131071, 1e131071))",
    "a hundred megabytes": "to_jsonb(repeat('x', 100000000))",
}


@pytest.mark.parametrize("stored", [False, True], ids=["made", "copied in compressed form"])
@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_body_that_is_too_large_as_text_is_refused_in_one_line(
    database: Database, name: str, stored: bool
) -> None:
    body = TOO_LARGE[name]
    if stored:
        database.execute(f"CREATE TABLE copied AS SELECT {body} AS body")
        body = "(SELECT body FROM copied)"
    [delivery_id] = insert(database, 1)
    for statement in (
        f"INSERT INTO {QUEUE} (webhook_id, message_body) SELECT 1, {body}",
        f"UPDATE {QUEUE} SET message_body = {body} WHERE delivery_id = {delivery_id}",
    ):
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            database.execute(statement)
        message = refused.value.diag.message_primary or ""
        assert "1048576 bytes" in message and "--max-body" in message


ALLOWED = {
    "a string up to the limit": "to_jsonb(repeat('x', 1048574))",
    "large numbers": "('[' || repeat('1e131071,', 7) || '1]')::jsonb",
    "many small numbers": "(SELECT jsonb_agg(1) FROM generate_series(1, 100000))",
    "many small objects": "(SELECT jsonb_agg('{}'::jsonb) FROM generate_series(1, 100000))",
    "deep": "(repeat('[', 3000) || repeat(']', 3000))::jsonb",
    "a scalar": "'null'::jsonb",
}


@pytest.mark.parametrize("name", ALLOWED)
def test_a_body_within_the_limit_is_taken_and_measured(database: Database, name: str) -> None:
    database.execute(f"CREATE TABLE copied AS SELECT {ALLOWED[name]} AS body")
    for body in (ALLOWED[name], "(SELECT body FROM copied)"):
        database.execute(f"INSERT INTO {QUEUE} (webhook_id, message_body) SELECT 1, {body}")
    assert database.execute(
        f"SELECT DISTINCT body_bytes = octet_length(message_body::text) FROM {QUEUE}"
    ) == [(True,)]


def test_the_limit_is_the_databases_and_a_changed_body_is_measured_again(
    database: Database,
) -> None:
    [delivery_id] = insert(database, 1)
    database.execute("UPDATE pggit.installation SET max_body_bytes = 65536")
    long = "UPDATE {} SET message_body = to_jsonb(repeat('x', {})) WHERE delivery_id = {}"
    database.execute(long.format(QUEUE, 65534, delivery_id))
    assert delivery(database, delivery_id)["body_bytes"] == 65536
    with pytest.raises(psycopg.errors.CheckViolation):
        database.execute(long.format(QUEUE, 65535, delivery_id))


# Ids that nobody registered


def pages(worker: Engine, *, looks: int = 5) -> int:
    """Buffers that some looks read, by the server's own count for this session's database."""
    found = 0
    for name in ("lock_lanes", "next_look"):
        statement = worker.claimer._statements[name]
        parameters = {
            "cursor": -(2**63),
            "known": "{}",
            "lanes": 10,
            "fresh_lanes": 16,
            "new_lanes": 10,
            "slow_lanes": 10,
            "new": True,
            "slow": True,
            **worker.claimer._horizon.marks.parameters(),
        }
        plan: Any = worker.connection.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
        ).fetchone()
        node = plan[0][0]["Plan"]
        found += node["Shared Hit Blocks"] + node["Shared Read Blocks"]
    return found


def test_a_hundred_thousand_ids_that_nobody_registered_cost_a_look_nothing_once_parked(
    database: Database,
) -> None:
    register(database, 200_000)
    with engine(database) as worker:
        worker.take_all()
        alone = pages(worker)
        database.execute(
            f"INSERT INTO {QUEUE} (webhook_id, message_body)"
            " SELECT n, '{}' FROM generate_series(1, 100000) n"
        )
        victims = insert(database, 200_000, 3)
        first, second = worker.claim(10), worker.claim(10)
        assert ids([*first.deliveries, *second.deliveries]) == victims
        park_all(database, worker)
        database.execute(f"VACUUM {QUEUE}")  # autovacuum does within a minute
        assert pages(worker) <= alone + 3, "the victim's lane and its rows"
        assert database.execute("SELECT count(*) FROM pggit.webhook_health_metrics") == [(1,)]
        register(database, 77)
        assert len(worker.take_all()) == 1, "found at once"


@pytest.mark.parametrize("order", ["before", "after"])
def test_rows_inserted_in_the_registrations_own_transaction_are_found_at_once(
    database: Database, worker: Engine, order: str
) -> None:
    registration = "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, 'https://a.example/')"
    with database.connect(autocommit=False) as producer:
        for statement in (registration, ONE) if order == "before" else (ONE, registration):
            producer.execute(statement.encode())
    assert len(worker.take_all()) == 1


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_rows_whose_insert_was_open_while_their_webhook_was_registered_are_found_at_once(
    database: Database, worker: Engine, level: str
) -> None:
    with database.connect(autocommit=False) as producer:
        producer.execute(f"SET TRANSACTION ISOLATION LEVEL {level}".encode())
        producer.execute("SELECT 1")  # its snapshot may be older than the registration
        register(database, 1)
        assert worker.take_all() == []  # the lane is parked
        producer.execute(ONE.encode())
    assert len(worker.take_all()) == 1


def test_the_sweep_finds_parked_rows_of_a_lane_that_no_timer_brings_up(
    database: Database, worker: Engine
) -> None:
    insert(database, 1)
    assert worker.take_all() == []
    assert new_rows(database) == 0
    with unseen(database) as connection:
        connection.execute("INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, 'https://a.b')")
    assert worker.take_all() == []
    with session.open_pool(database.dsn, application_name="test/pool", size=1) as pool:
        Sweeper(WakeupPipe()).run(pool)
    assert len(worker.take_all()) == 1


def test_a_row_that_an_operator_brings_back_waits_for_its_registration(
    database: Database, worker: Engine
) -> None:
    insert(database, 1)
    database.execute(f"UPDATE {QUEUE} SET delivery_status = 'failed'")
    database.execute(f"UPDATE {QUEUE} SET delivery_status = 'pending'")
    assert worker.take_all() == []
    assert new_rows(database) == 0
    register(database, 1)
    assert len(worker.take_all()) == 1


def test_rows_of_a_removed_webhook_wait_until_it_is_registered_again(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    insert(database, 1)
    worker.take_all()
    database.execute("DELETE FROM pggit.webhooks")
    insert(database, 1, 2)
    assert (worker.take_all(), new_rows(database)) == ([], 0)
    register(database, 1)
    assert len(worker.take_all()) == 2
