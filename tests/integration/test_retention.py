"""What was kept for long enough goes, and nothing else does, whoever works or holds locks meanwhile."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.engine import answered, engine, insert, let_pass, register, unseen
from tests.postgres import Database
from webhookd import queries, store
from webhookd.cli.main import cli
from webhookd.config import Config
from webhookd.core.model import Result
from webhookd.metrics import Metrics
from webhookd.migrate import load, migrate
from webhookd.retention import DAY_S, FIRST_PAGES, ROUNDS, Keep, Retention

pytestmark = pytest.mark.every_postgres

KEEP = Keep.of(Config())
SOME_PAGES = {"first": "(0,0)", "end": "(64,0)", "keep_delivered_s": DAY_S, "keep_failed_s": DAY_S}
QUEUE, LOG = "alert_delivery_queue", "alert_delivery_log"
EARLIER = (Path(__file__).parents[1] / "earlier_pggit.sql").read_text("utf-8")
SEED = sorted((Path(__file__).parents[1] / "seed").glob("*.sql"))


@pytest.fixture
def connection(database: Database) -> Iterator[store.Connection]:
    with store.connect(database.dsn, application_name="webhookd/worker-1/test") as connection:
        yield connection


def retention(keep: Keep = KEEP) -> Retention:
    return Retention(keep, metrics=Metrics("worker-1", max_webhooks=1))


def rounds_are_due(database: Database) -> None:
    database.execute("UPDATE pggit.retention SET turned_at = now() - interval '1000 days'")


def whole_round(database: Database, connection: store.Connection, keep: Keep = KEEP) -> None:
    """Go through both tables once."""
    rounds_are_due(database)
    before = laps(database)
    retention(keep).turn(lambda: nullcontext(connection))
    assert all(after > earlier for after, earlier in zip(laps(database), before, strict=True))


def laps(database: Database) -> list[datetime]:
    return [row[0] for row in database.execute("SELECT lap_started_at FROM pggit.retention ORDER BY table_name")]


def finished(database: Database, count: int, *, days: float, status: str = "delivered") -> list[int]:
    """Insert deliveries that were finished so many days ago."""
    rows = database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status, attempts, created_at, attempted_at,"
        " delivered_at) SELECT 1, '{\"n\": 1}', %(status)s, 1, at, at, CASE WHEN %(status)s = 'delivered' THEN at END"
        " FROM generate_series(1, %(count)s), LATERAL (SELECT now() - %(days)s * interval '1 day' AS at) t RETURNING delivery_id",
        {"status": status, "count": count, "days": days},
    )
    return [row[0] for row in rows]


def logged(database: Database, count: int, *, days: float) -> None:
    database.execute(
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, created_at)"
        " SELECT n, 1, 'delivered', now() - %s * interval '1 day' FROM generate_series(1, %s) n",
        [days, count],
    )


def ids(database: Database) -> set[int]:
    return {row[0] for row in database.execute("SELECT delivery_id FROM pggit.alert_delivery_queue")}


def count(database: Database, table: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM pggit.{table}")[0][0])


def removed(database: Database) -> dict[str, int]:
    return dict(database.execute("SELECT table_name, removed::int FROM pggit.retention"))


def assert_counts_are_true(database: Database) -> None:
    assert database.execute("SELECT delivered_count, failed_count, total_count FROM pggit.count_pending_by_status()") == (
        database.execute(
            "SELECT count(*) FILTER (WHERE delivery_status = 'delivered'), count(*) FILTER (WHERE delivery_status = 'failed'),"
            " count(*) FROM pggit.alert_delivery_queue"
        )
    )


# What goes ----------------------------------------------------------------------------------------------------------


def test_each_kind_of_row_goes_after_its_own_time(database: Database, connection: store.Connection) -> None:
    register(database, 1)
    waiting = insert(database, 1, 3)
    database.execute("UPDATE pggit.alert_delivery_queue SET created_at = now() - interval '400 days'")
    kept = [*finished(database, 3, days=6.9), *finished(database, 3, days=29.9, status="failed")]
    finished(database, 3, days=7.1)
    finished(database, 3, days=30.1, status="failed")
    logged(database, 3, days=29.9)
    logged(database, 3, days=30.1)
    whole_round(database, connection)
    assert ids(database) == {*waiting, *kept}
    assert count(database, LOG) == count(database, "webhook_health_metrics") + 2 == 3
    assert removed(database) == {QUEUE: 6, LOG: 3}
    assert count(database, "webhooks") == 1
    assert_counts_are_true(database)


def test_zero_is_for_ever(database: Database, connection: store.Connection) -> None:
    failed = finished(database, 2, days=3000, status="failed")
    delivered = finished(database, 2, days=3000)
    logged(database, 2, days=3000)
    whole_rounds = Keep.of(Config(keep_delivered=0, keep_failed=0, keep_log=0))
    rounds_are_due(database)
    retention(whole_rounds).turn(lambda: nullcontext(connection))
    assert ids(database) == {*failed, *delivered}
    retention(Keep.of(Config(keep_delivered=1, keep_failed=0, keep_log=0))).turn(lambda: nullcontext(connection))
    assert ids(database) == set(failed)
    assert count(database, LOG) == 2


STATUSES = ("pending", "retrying", "sending", "delivered", "failed")


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_any_age_and_status_go_when_they_are_due_and_no_others(
    database: Database, connection: store.Connection, seed: int
) -> None:
    """What should go is told here from the values by other means than in the statement."""
    dice = random.Random(seed)
    now = datetime.now(UTC)

    def moment(*, missing: float) -> datetime | None:
        return None if dice.random() < missing else now - timedelta(days=dice.choice([0, 1, 6, 8, 29, 31, 400]), seconds=600)

    expected = set()
    with unseen(database) as writer:
        for number in range(1, 1500):
            status = dice.choice(STATUSES)
            row: dict[str, Any] = {
                "delivery_id": number,
                "delivery_status": status,
                "created_at": moment(missing=0.0),
                "attempted_at": moment(missing=0.3),
                "delivered_at": moment(missing=0.2),
                "ended_at": moment(missing=0.8),
                "next_retry_at": moment(missing=0.0),
                "leases_lost": dice.choice([0, 0, 6]),
                "body": "x" * dice.choice([1, 500, 3000]),
            }
            writer.execute(
                "INSERT INTO pggit.alert_delivery_queue (delivery_id, webhook_id, message_body, delivery_status, created_at,"
                " attempted_at, delivered_at, ended_at, next_retry_at, leases_lost) VALUES (%(delivery_id)s, 1,"
                " to_jsonb(%(body)s::text), %(delivery_status)s, %(created_at)s, %(attempted_at)s, %(delivered_at)s,"
                " %(ended_at)s, %(next_retry_at)s, %(leases_lost)s)",
                row,
            )
            if not _is_over(row, now):
                expected.add(number)
    whole_round(database, connection)
    assert ids(database) == expected
    assert 0 < len(expected) < 1499


def _is_over(row: dict[str, Any], now: datetime) -> bool:
    names = {"delivered": ["ended_at", "delivered_at"], "failed": ["ended_at", "attempted_at"]}.get(row["delivery_status"])
    if names is None:
        return False
    if row["delivery_status"] == "failed" and row["leases_lost"] > 0:
        names.append("next_retry_at")
    ends = [row[name] for name in names if row[name] is not None]
    if not ends:
        ends = [row["attempted_at"] or row["created_at"]]
    return bool(max(ends) < now - timedelta(days=7 if row["delivery_status"] == "delivered" else 30))


def test_a_delivery_that_was_ended_by_hand_is_kept_from_then_on(database: Database, connection: store.Connection) -> None:
    insert(database, 1, 4)
    let_pass(database, 400 * DAY_S)
    database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id <= 2")
    database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered' WHERE delivery_id > 2")
    whole_round(database, connection)
    assert len(ids(database)) == 4
    with unseen(database) as writer:
        writer.execute("UPDATE pggit.alert_delivery_queue SET ended_at = ended_at - interval '8 days'")
    whole_round(database, connection)
    assert ids(database) == {1, 2}
    database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending'")
    assert database.execute("SELECT count(ended_at) FROM pggit.alert_delivery_queue") == [(0,)]


def test_a_delivery_that_failed_of_lost_leases_is_kept_from_the_last_one_on(
    database: Database, connection: store.Connection
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    let_pass(database, 400 * DAY_S)
    with engine(database) as worker:
        for _ in range(6):
            with unseen(database) as writer:
                writer.execute("UPDATE pggit.alert_delivery_queue SET next_retry_at = now() - interval '1 s'")
                writer.execute("UPDATE pggit.webhook_health_metrics SET runnable_at = now()")
            claimed = [*worker.take_all(), *worker.claimer.claim_suspect(worker.connection).deliveries]
            assert [item.delivery_id for item in claimed] == [delivery_id]
            assert worker.release(worker.incarnation).accepted
    assert database.execute("SELECT delivery_status, attempted_at FROM pggit.alert_delivery_queue") == [("failed", None)]
    whole_round(database, connection)
    assert ids(database) == {delivery_id}


# Locks and company --------------------------------------------------------------------------------------------------


def test_rows_that_an_open_transaction_holds_hold_nothing_up(database: Database, connection: store.Connection) -> None:
    old = finished(database, 200, days=8)
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT FROM pggit.alert_delivery_queue WHERE delivery_id = %s FOR UPDATE", [old[7]])
        operator.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending' WHERE delivery_id = %s", [old[9]])
        started = time.monotonic()
        whole_round(database, connection)
        assert time.monotonic() - started < 2.0
        assert ids(database) == {old[7], old[9]}
        operator.commit()
    whole_round(database, connection)
    assert ids(database) == {old[9]}
    assert_counts_are_true(database)


@pytest.mark.parametrize("mode", ["ACCESS EXCLUSIVE", "SHARE"])
def test_a_locked_table_is_waited_for_no_longer_than_a_moment(
    database: Database, connection: store.Connection, mode: str
) -> None:
    finished(database, 200, days=8)
    logged(database, 10, days=31)
    rounds_are_due(database)
    with database.connect(autocommit=False) as operator:
        operator.execute(f"LOCK TABLE pggit.alert_delivery_queue IN {mode} MODE".encode())
        started = time.monotonic()
        retention().turn(lambda: nullcontext(connection))
        assert time.monotonic() - started < 1.5
        assert count(database, LOG) == 0
    assert len(ids(database)) == 200
    whole_round(database, connection)
    assert ids(database) == set()


def test_nobody_waits_for_a_removal(database: Database, connection: store.Connection) -> None:
    """Inserts, deliveries and changes of other rows go on while one is under way."""
    finished(database, 500, days=8)
    with store.transaction(connection) as cursor:
        assert cursor.execute(queries.load("remove_deliveries").encode(), SOME_PAGES).rowcount > 0
        register(database, 1)
        insert(database, 1, 5)
        with engine(database) as worker:
            assert len(worker.finish(worker.take(), answered(200)).accepted) == 5
        with database.connect() as other:
            other.execute("SET lock_timeout = '100ms'")
            other.execute("SELECT * FROM pggit.count_pending_by_status()")
            other.execute("UPDATE pggit.alert_delivery_queue SET alert_id = 1 WHERE delivery_id > 500")
            other.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_id > 500")


def test_two_workers_at_once_remove_each_row_once(database: Database) -> None:
    finished(database, 20_000, days=8)
    finished(database, 100, days=1)
    failures: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            with store.connect(database.dsn, application_name="webhookd/worker-1/test") as mine:
                own = retention()
                while not ended.is_set():
                    own.turn(lambda: nullcontext(mine))
        except BaseException as failure:
            failures.append(failure)

    rounds_are_due(database)
    workers = [threading.Thread(target=work) for _ in range(2)]
    for thread in workers:
        thread.start()
    until = time.monotonic() + 30
    while count(database, QUEUE) > 100 and time.monotonic() < until:
        rounds_are_due(database)
    ended.set()
    for thread in workers:
        thread.join()
    assert failures == []
    assert removed(database)[QUEUE] == 20_000
    assert count(database, QUEUE) == 100
    assert_counts_are_true(database)


def test_a_worker_that_is_killed_in_the_middle_leaves_the_counts_true(database: Database) -> None:
    finished(database, 6000, days=8)
    with (
        store.connect(database.dsn, application_name="webhookd/worker-1/test") as mine,
        pytest.raises(psycopg.OperationalError),
        store.transaction(mine) as cursor,
    ):
        cursor.execute(queries.load("retention_take"), {"table_name": QUEUE})
        assert cursor.execute(queries.load("remove_deliveries").encode(), SOME_PAGES).rowcount > 0
        database.execute("SELECT pg_terminate_backend(%s)", [mine.info.backend_pid])
        cursor.execute(queries.load("retention_advance"), {"table_name": QUEUE, "next_page": 64, "removed": 1})
    assert count(database, QUEUE) == 6000
    assert_counts_are_true(database)
    with store.connect(database.dsn, application_name="webhookd/worker-2/test") as other:
        whole_round(database, other)
    assert count(database, QUEUE) == 0
    assert removed(database)[QUEUE] == 6000
    assert_counts_are_true(database)


# The pace -----------------------------------------------------------------------------------------------------------


def test_a_turn_goes_through_as_many_pages_as_time_has_passed(database: Database, connection: store.Connection) -> None:
    finished(database, 20_000, days=8)
    [(pages,)] = database.execute("SELECT pg_relation_size('pggit.alert_delivery_queue') / 8192")
    round_s = 7 * DAY_S / ROUNDS
    own = retention()
    for share in (0.1, 0.25):
        [(before,)] = database.execute("SELECT next_page FROM pggit.retention WHERE table_name = %s", [QUEUE])
        database.execute("UPDATE pggit.retention SET turned_at = now() - %s * interval '1 s'", [share * round_s])
        own.turn(lambda: nullcontext(connection))
        [(after,)] = database.execute("SELECT next_page FROM pggit.retention WHERE table_name = %s", [QUEUE])
        assert share * pages <= after - before <= share * pages + 2
    database.execute("UPDATE pggit.retention SET turned_at = now() - %s * interval '1 s'", [0.5 * FIRST_PAGES / pages * round_s])
    retention().turn(lambda: nullcontext(connection))
    assert database.execute("SELECT next_page FROM pggit.retention WHERE table_name = %s", [QUEUE]) == [(after,)]


def test_disk_use_becomes_constant(database: Database, connection: store.Connection) -> None:
    """Days of ten seconds: what a day brings goes two days later."""
    register(database, 1)
    for table in (QUEUE, LOG):
        database.execute(f"ALTER TABLE pggit.{table} SET (autovacuum_enabled = off)")
    sizes = []
    with engine(database) as worker:
        for _ in range(9):
            insert(database, 1, 1000)
            while deliveries := worker.take(200):
                worker.record([Result(item, answered(200)) for item in deliveries])
            with unseen(database) as clock:
                clock.execute("UPDATE pggit.alert_delivery_queue SET delivered_at = delivered_at - interval '3 days'")
                clock.execute("UPDATE pggit.alert_delivery_log SET created_at = created_at - interval '12 days'")
            whole_round(database, connection)
            for table in (QUEUE, LOG):
                database.execute(f"VACUUM pggit.{table}")
            size = "SELECT pg_total_relation_size('pggit.' || %s)"
            sizes.append([database.execute(size, [table])[0][0] for table in (QUEUE, LOG)])
    assert count(database, QUEUE) == count(database, LOG) == 2000
    for early, late in zip(sizes[4], sizes[8], strict=True):
        assert late <= early * 1.05


# Foreign keys and upgrades ------------------------------------------------------------------------------------------


def test_what_foreign_keys_refer_to_stays_and_holds_nothing_up(database: Database, connection: store.Connection) -> None:
    old = finished(database, 1000, days=8)
    database.execute(
        "CREATE TABLE public.invoice (\"100% sure\" bigint REFERENCES pggit.alert_delivery_queue, note text);"
        'CREATE INDEX ON public.invoice ("100% sure");'
        "CREATE TABLE public.opened (delivery_id bigint REFERENCES pggit.alert_delivery_queue ON DELETE CASCADE);"
        "CREATE INDEX ON public.opened (delivery_id);"
    )
    database.execute("INSERT INTO public.invoice SELECT unnest(%s::bigint[])", [old[:500:2]])
    database.execute("INSERT INTO public.opened SELECT unnest(%s::bigint[])", [old])
    whole_round(database, connection)
    assert ids(database) == set(old[:500:2])
    assert database.execute("SELECT count(*) FROM public.opened") == [(250,)]
    assert_counts_are_true(database)


def test_nothing_is_removed_where_each_row_would_cost_a_whole_table(
    database: Database, connection: store.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    finished(database, 10, days=8)
    database.execute("CREATE TABLE public.invoice (delivery_id bigint REFERENCES pggit.alert_delivery_queue)")
    rounds_are_due(database)
    retention().turn(lambda: nullcontext(connection))
    assert len(ids(database)) == 10
    assert "a foreign key onto it has no index" in caplog.text
    database.execute("CREATE INDEX ON public.invoice (delivery_id)")
    whole_round(database, connection)
    assert ids(database) == set()


def test_a_row_that_cannot_be_looked_for_holds_up_its_own_pages_only(database: Database) -> None:
    """The worker's role may not read what refers to the queue."""
    old = finished(database, 3000, days=8)
    database.execute(
        "CREATE TABLE public.invoice (delivery_id bigint REFERENCES pggit.alert_delivery_queue);"
        "CREATE INDEX ON public.invoice (delivery_id);"
        "CREATE ROLE worker_of_retention LOGIN; GRANT USAGE ON SCHEMA pggit TO worker_of_retention;"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pggit TO worker_of_retention"
    )
    try:
        database.execute("INSERT INTO public.invoice VALUES (%s)", [old[0]])
        dsn = psycopg.conninfo.make_conninfo(database.dsn, user="worker_of_retention")
        with store.connect(dsn, application_name="webhookd/worker-1/test") as theirs:
            whole_round(database, theirs)
        assert old[0] in ids(database)
        assert 1 <= len(ids(database)) < 2000
        assert_counts_are_true(database)
    finally:
        database.execute("DROP OWNED BY worker_of_retention; DROP ROLE worker_of_retention")


def test_a_trigger_that_forbids_it_holds_up_its_own_pages_only(
    database: Database, connection: store.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    old = finished(database, 3000, days=8)
    database.execute(
        "CREATE FUNCTION public.forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'this one stays'; END $$;"
        f"CREATE TRIGGER forbid BEFORE DELETE ON pggit.alert_delivery_queue FOR EACH ROW WHEN (OLD.delivery_id = {old[0]})"
        " EXECUTE FUNCTION public.forbid()"
    )
    whole_round(database, connection)
    assert old[0] in ids(database)
    assert len(ids(database)) < 2000
    assert caplog.text.count("this one stays") == 1
    assert_counts_are_true(database)


def test_an_installation_is_upgraded_with_its_rows(empty_database: Database) -> None:
    migrate(empty_database.dsn, migrations=load()[:3])
    empty_database.execute("ALTER TABLE pggit.alert_delivery_log ADD COLUMN trace text DEFAULT 'none'")
    finished(empty_database, 50, days=8)
    kept = finished(empty_database, 50, days=1)
    logged(empty_database, 50, days=31)
    logged(empty_database, 50, days=1)
    role = f"reader_{empty_database.name}"
    empty_database.execute(f"CREATE ROLE {role}; GRANT SELECT (trace) ON pggit.alert_delivery_log TO {role}")
    try:
        assert migrate(empty_database.dsn) == [migration.name for migration in load()[3:]]
        with store.connect(empty_database.dsn, application_name="webhookd/worker-1/test") as connection:
            whole_round(empty_database, connection)
        assert ids(empty_database) == set(kept)
        assert empty_database.execute("SELECT trace, count(*) FROM pggit.alert_delivery_log GROUP BY 1") == [("none", 50)]
        may_read = f"SELECT has_column_privilege('{role}', 'pggit.alert_delivery_log', 'trace', 'SELECT')"
        assert empty_database.execute(may_read) == [(True,)]
        assert_counts_are_true(empty_database)
    finally:
        empty_database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_an_adopted_queue_loses_what_is_old_and_the_log_of_it_as_its_foreign_key_says(empty_database: Database) -> None:
    empty_database.execute(EARLIER)
    migrate(empty_database.dsn)
    empty_database.execute("UPDATE pggit.alert_delivery_log SET created_at = now() WHERE delivery_id = 4")
    with store.connect(empty_database.dsn, application_name="webhookd/worker-1/test") as connection:
        whole_round(empty_database, connection)
    assert ids(empty_database) == {1, 2, 3}
    assert empty_database.execute("SELECT log_id FROM pggit.alert_delivery_log ORDER BY 1") == [(3,)]
    assert_counts_are_true(empty_database)


@pytest.mark.parametrize("path", SEED, ids=lambda path: path.stem)
def test_the_first_guides_statements_go_on_working(database: Database, connection: store.Connection, path: Path) -> None:
    register(database, 1)
    finished(database, 30, days=8)
    finished(database, 30, days=1, status="failed")
    logged(database, 30, days=31)
    whole_round(database, connection)
    with database.connect() as reader:
        reader.execute(path.read_text().replace("?", "1").encode())


def test_a_delivery_that_outlives_its_attempts_says_so(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    [done] = finished(database, 1, days=20, status="failed")
    [new] = insert(database, 1)
    for command in ("show", "explain"):
        for delivery_id, words in ((done, "no longer in the attempt log"), (new, "no attempt yet")):
            cli.main(["delivery", command, str(delivery_id), "--dsn", database.dsn], standalone_mode=False)
            assert words in capsys.readouterr().out


def test_attempts_that_somebody_holds_are_left_to_the_next_round(database: Database, connection: store.Connection) -> None:
    logged(database, 20_000, days=31)
    with database.connect(autocommit=False) as operator:
        operator.execute("SELECT FROM pggit.alert_delivery_log ORDER BY log_id LIMIT 1 FOR UPDATE")
        started = time.monotonic()
        whole_round(database, connection)
        assert time.monotonic() - started < 2.0
        assert 1 <= count(database, LOG) < 5000
    whole_round(database, connection)
    assert count(database, LOG) == 0
