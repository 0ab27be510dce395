"""What dashboards read instead of the history: finished_counts, worker_minutes, the list of
targets. They agree with the rows.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.support.daemon import Daemon, answer_ok
from tests.support.engine import Engine, answered, engine, insert, register
from tests.support.postgres import Database, Server
from tests.support.receivers import Receiver, answering
from tests.support.waiting import eventually
from webhookd.postgres import statements
from webhookd.schema.identity import adopt
from webhookd.schema.migrate import load, migrate

HISTORY = 60_000


def counted(database: Database) -> tuple[int, ...]:
    return database.execute(
        "SELECT delivered_count, failed_count FROM pggit.count_pending_by_status()"
    )[0]


def in_the_queue(database: Database) -> tuple[int, ...]:
    return database.execute(
        "SELECT count(*) FILTER (WHERE delivery_status = 'delivered'), count(*) FILTER (WHERE "
        "delivery_status = 'failed')"
        " FROM pggit.alert_delivery_queue"
    )[0]


IMPORT = "SET webhookd.import = 'on'; "
CHANGES = (
    f"{IMPORT}INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status)"
    " SELECT 1, '{}', (ARRAY['pending', 'delivered', 'failed', 'retrying'])[1 + n % 4] FROM "
    "generate_series(1, 40) n",
    *(
        f"UPDATE pggit.alert_delivery_queue SET delivery_status = '{new}' WHERE delivery_status "
        f"= '{old}' AND delivery_id % 3 = 0"
        for old, new in (
            ("failed", "pending"),
            ("delivered", "failed"),
            ("sending", "delivered"),
            ("pending", "failed"),
        )
    ),
    "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed', lease_token = NULL, "
    "lease_until = NULL, leased_by = NULL"
    " WHERE delivery_status = 'sending'",
    "UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending', routed = true WHERE "
    "delivery_status = 'failed'",
    f"{IMPORT}INSERT INTO pggit.alert_delivery_queue (delivery_id, webhook_id, message_body, "
    "delivery_status)"
    " SELECT delivery_id, 1, '{}', 'delivered' FROM pggit.alert_delivery_queue ON CONFLICT DO "
    "NOTHING",
    f"{IMPORT}INSERT INTO pggit.alert_delivery_queue (delivery_id, webhook_id, message_body, "
    "delivery_status)"
    " SELECT delivery_id, 1, '{}', 'delivered' FROM pggit.alert_delivery_queue"
    " ON CONFLICT (delivery_id) DO UPDATE SET delivery_status = excluded.delivery_status",
    "DELETE FROM pggit.alert_delivery_queue WHERE delivery_id % 4 = 0",
    "DELETE FROM pggit.alert_delivery_queue WHERE false",
    "BEGIN; DELETE FROM pggit.alert_delivery_queue; ROLLBACK",
    "TRUNCATE pggit.alert_delivery_queue",
)


@pytest.mark.every_postgres
def test_the_counts_agree_with_the_rows_after_any_change(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    for round_ in range(2):
        for change in CHANGES:
            insert(database, 1, 20)
            claimed = worker.take(20)
            worker.finish(claimed[:8], answered(200))
            worker.finish(claimed[8:14], answered(404))
            worker.finish(claimed[14:16], answered(503))
            database.execute(change)
            assert counted(database) == in_the_queue(database), change
            if round_:
                fold(database)
                assert counted(database) == in_the_queue(database), change


def test_a_record_that_the_fence_refuses_counts_nothing(database: Database, worker: Engine) -> None:
    register(database, 1)
    insert(database, 1, 1)
    [delivery] = worker.take()
    database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed'")
    assert not worker.finish([delivery], answered(200)).accepted
    assert counted(database) == in_the_queue(database) == (0, 1)


def test_a_discarded_copy_counts_its_deliveries_as_failed(
    database: Database, worker: Engine
) -> None:
    register(database, 1)
    insert(database, 1, 5)
    worker.take(2)
    adopt(database.dsn, discard_pending=True)
    assert counted(database) == in_the_queue(database) == (0, 5)
    leases = database.execute(
        "SELECT count(lease_token) + count(lease_until) + count(leased_by) FROM "
        "pggit.alert_delivery_queue"
    )
    assert leases == [(0,)]


def test_counting_again_mends_any_difference(database: Database, worker: Engine) -> None:
    database.execute(CHANGES[0])
    database.execute("INSERT INTO pggit.finished_counts (delivered, failed) VALUES (-500, 77)")
    [recount] = [migration.text for migration in load() if migration.name == "0003_count_finished"]
    database.execute(recount)
    assert counted(database) == in_the_queue(database)


def test_a_workers_own_role_may_use_what_a_migration_adds(
    empty_database: Database, server: Server
) -> None:
    role = server.create_role()
    migrate(empty_database.dsn, migrations=load()[:1])
    empty_database.execute(
        f"GRANT USAGE ON SCHEMA pggit TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL "
        f"TABLES IN SCHEMA pggit TO {role};"
        f"GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA pggit TO {role}"
    )
    migrate(empty_database.dsn)
    register(empty_database, 1)
    insert(empty_database, 1)
    with engine(
        Database(empty_database.name, server.dsn(empty_database.name, user=role))
    ) as worker:
        assert worker.finish(worker.take(), answered(200)).accepted
    assert counted(empty_database) == (1, 0)


def test_no_other_role_borrows_the_owners_rights_from_a_trigger_function(
    database: Database, server: Server
) -> None:
    role = server.create_role()
    database.execute(f"GRANT USAGE ON SCHEMA pggit TO {role}")
    functions = database.execute(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'pggit'::regnamespace AND prosecdef "
        "AND prorettype = 'trigger'::regtype"
    )
    assert {"count_truncated", "unpark_lane"} < {name for (name,) in functions}
    with psycopg.connect(server.dsn(database.name, user=role), autocommit=True) as other:
        other.execute("CREATE TEMP TABLE mine (webhook_id bigint)")
        for (name,) in functions:
            statement = (
                "CREATE TRIGGER borrowed AFTER INSERT ON mine FOR EACH STATEMENT"
                f" EXECUTE FUNCTION pggit.{name}()"
            )
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                other.execute(statement.encode())


def fold(database: Database) -> None:
    database.execute(statements.load("fold_finished"))


def test_folding_leaves_one_row_and_does_nothing_while_there_is_little_to_fold(
    database: Database,
) -> None:
    database.execute(
        "INSERT INTO pggit.finished_counts (delivered, failed) SELECT n, 1 FROM "
        "generate_series(1, 19) n"
    )
    fold(database)
    assert database.execute("SELECT count(*)::int FROM pggit.finished_counts") == [
        (20,)
    ]  # with the migration's own
    database.execute("INSERT INTO pggit.finished_counts (delivered, failed) VALUES (810, -9)")
    fold(database)
    assert database.execute("SELECT delivered, failed FROM pggit.finished_counts") == [(1000, 10)]


# Plans

READERS = {
    "view": "SELECT * FROM pggit.v_webhook_health_dashboard",
    "function": "SELECT * FROM pggit.count_pending_by_status()",
    **{
        name: statements.load(name) for name in ("measure_depth", "status_minutes", "status_errors")
    },
    **{name: statements.load(name).replace("%(limit)s", "10") for name in ("status_unregistered",)},
}


@pytest.fixture(scope="module")
def long_history(embedded_server: Any) -> Iterator[Database]:
    """A queue of finished deliveries and their log, some of them waiting, with a planner that knows
    it.
    """
    database = embedded_server.create_migrated()
    register(database, *range(1, 51))
    database.execute(
        f"""
        {IMPORT}
        INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status, routed,
                                                created_at)
        SELECT 1 + n % 50, '{{}}', CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'delivered' END, false,
               now() - interval '30 days' * (1 - n::float8 / {HISTORY})
          FROM generate_series(1, {HISTORY}) n;
        INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, created_at)
        SELECT n, 1 + n % 50, CASE WHEN n % 20 = 0 THEN 'retrying' ELSE 'delivered' END,
               now() - interval '30 days' * (1 - n::float8 / {HISTORY})
          FROM generate_series(1, {HISTORY}) n;
        INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)
        SELECT 1 + n % 60, '{{}}' FROM generate_series(1, 500) n
        """
    )
    with database.connect() as connection:
        connection.execute("VACUUM ANALYZE pggit.alert_delivery_queue")
        connection.execute("VACUUM ANALYZE pggit.alert_delivery_log")
    yield database
    embedded_server.drop(database)


@pytest.mark.parametrize("name", READERS)
def test_nothing_that_is_read_again_and_again_scans_the_history(
    long_history: Database, name: str
) -> None:
    plans: list[str] = []
    with long_history.connect() as connection:
        connection.add_notice_handler(lambda notice: plans.append(notice.message_primary or ""))
        connection.execute("LOAD 'auto_explain'")
        for setting, value in {
            "client_min_messages": "notice",
            "auto_explain.log_min_duration": "0",
            "auto_explain.log_nested_statements": "on",
            "auto_explain.log_level": "notice",
        }.items():
            connection.execute("SELECT set_config(%s, %s, false)", [setting, value])
        plans.clear()
        connection.execute(READERS[name].encode())
    assert any("Index" in plan or "worker_minutes" in plan for plan in plans), plans
    for plan in plans:
        assert "Seq Scan on alert_delivery_" not in plan, plan
        assert "Seq Scan on pggit.alert_delivery_" not in plan, plan


# A fleet


def test_a_fleet_leaves_its_minutes_and_serves_the_list_of_its_endpoints(
    database: Database,
) -> None:
    unwilling = answering(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
    with Receiver(answer_ok) as good, Receiver(unwilling) as bad:
        for webhook_id, url in ((1, good.url()), (2, bad.url())):
            database.execute(
                "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (%s, %s)", [webhook_id, url]
            )
        insert(database, 1, 30)
        insert(database, 2, 5)
        with Daemon(database.dsn, "--circuit-threshold", "2") as daemon:
            finished = (
                "SELECT count(*) = 30 FROM pggit.alert_delivery_queue"
                " WHERE delivery_status = 'delivered'"
            )
            eventually(lambda: database.execute(finished) == [(True,)])
            served = eventually(lambda: targets(daemon.metrics_ports()[0]))
            rows = database.execute(statements.load("worker_targets"))
            assert [(group["labels"]["worker_id"], *group["targets"]) for group in served] == rows
            assert sorted(address for _, address in rows) == sorted(
                f"127.0.0.1:{port}" for port in daemon.metrics_ports()
            )
            assert daemon.stop() == 0
    [(delivered, failed, opens, hits, durations)] = database.execute(
        "SELECT sum(delivered)::int, sum(failed)::int, sum(circuit_opens)::int, "
        "sum(rate_limit_hits)::int,"
        " (SELECT sum(d)::int FROM pggit.worker_minutes, unnest(durations) d) FROM "
        "pggit.worker_minutes"
    )
    [attempts] = database.execute(
        "SELECT count(*) FILTER (WHERE event_type = 'delivered')::int, count(*) FILTER (WHERE "
        "event_type <> 'delivered')::int"
        " FROM pggit.alert_delivery_log"
    )
    assert (delivered, failed) == attempts
    assert durations == sum(attempts)
    assert opens >= 1
    assert hits >= 1  # 30 at once exceed the burst of 20


def targets(port: int) -> Any:
    """Return the three targets that a worker names, or nothing while it does not know them all."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/targets", timeout=10) as response:
            found = json.load(response)
    except urllib.error.HTTPError as error:
        assert error.code == 503
        return None
    return found if len(found) == 3 else None


@pytest.mark.parametrize(
    ("silent_s", "successor", "stays"),
    [(30, ("here", "worker-1"), True), (90, None, True), (90, ("here", "worker-1"), False),
     (90, ("there", "worker-1"), True), (90, ("here", "worker-2"), True), (3700, None, False)],
)  # fmt: skip
def test_a_dead_workers_row_stays_until_it_was_seen_or_replaced(
    database: Database, silent_s: int, successor: tuple[str, str] | None, stays: bool
) -> None:
    row = (
        "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version, seen_at)"
        " VALUES (%s, %s, %s, 1, '0', now() - %s::interval)"
    )
    dead = uuid4()
    with database.connect() as connection:
        connection.execute(row.encode(), [dead, "worker-1", "here", f"{silent_s} s"])
        if successor:
            connection.execute(row.encode(), [uuid4(), successor[1], successor[0], "1 s"])
        connection.execute(statements.load("sweep_workers").encode())
    assert database.execute(
        "SELECT EXISTS (SELECT FROM pggit.workers WHERE incarnation = %s)", [dead]
    ) == [(stays,)]
