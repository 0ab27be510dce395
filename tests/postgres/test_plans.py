"""What the hot statements cost in pages, in the states that mislead a planner: the trap that stalls
such queues.

A queue's statistics are taken when next to nothing is due, and its table is mostly history. A plan
made with them may read a whole index, or the table, for each of two hundred results. Counting pages
shows that on any machine, however noisy.
"""

import re
from collections.abc import Callable, Mapping

import pytest

from tests.support.engine import (
    ROOMY,
    Engine,
    answered,
    engine,
    insert,
    register,
    unseen,
)
from tests.support.faults import replaced
from tests.support.plans import Pages, counted, nodes
from tests.support.postgres import Database
from webhookd.postgres import session, statements
from webhookd.postgres.retention import Keep, removals, removing

WEBHOOKS = 50
pytestmark = pytest.mark.every_postgres

HISTORY, BACKLOG = 30_000, 20_000
BATCH = 200

HOT = (
    "lock_lanes",
    "read_settings",
    "claim",
    "lock_recorded_lanes",
    "settle",
    "update_lanes",
    "next_look",
    "expired_leases",
)


def deliver(worker: Engine, *, rounds: int, in_flight: int = 0) -> Pages:
    """Claim and record some batches of 200 as a busy worker would while so many more are
    *in_flight*; return what that cost.
    """
    for _ in range(in_flight // BATCH):
        worker.claim(BATCH)
    with counted(worker, *HOT) as pages:
        for number in range(rounds):
            deliveries = list(worker.claim(BATCH).deliveries)
            worker.finish(deliveries, answered(500 if number % 3 == 2 else 200))
            worker.claimer.next_look(worker.connection)
            worker.recorder.lost_leases(worker.connection)
    return pages


def fill(database: Database, *, analysed: bool) -> None:
    """Make the registry, the lanes and a history of delivered rows; statistics are taken now (while
    nothing is due) or never.
    """
    leave_statistics(database)
    populate(database)
    if analysed:
        database.execute("VACUUM ANALYZE")


def leave_statistics(database: Database) -> None:
    database.execute(
        "ALTER TABLE pggit.alert_delivery_queue SET (autovacuum_enabled = off);"
        "ALTER TABLE pggit.webhook_health_metrics SET (autovacuum_enabled = off)"
    )


def populate(database: Database) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, circuit_failure_threshold)"
        " SELECT n, 'https://receiver.example/', 100000 FROM generate_series(1, %s) n",
        [WEBHOOKS],
    )
    database.import_rows(
        "INSERT INTO pggit.alert_delivery_queue"
        " (webhook_id, message_body, delivery_status, attempts, created_at, next_retry_at, "
        "delivered_at)"
        " SELECT 1 + n %% %s, '{\"some\": \"message\"}', 'delivered', 1, at, at, at"
        " FROM generate_series(1, %s) n, LATERAL (SELECT now() - n * interval '1 s' AS at) t",
        [WEBHOOKS, HISTORY],
    )


def enqueue(
    database: Database, count: int, *, webhook: str = f"1 + n % {WEBHOOKS}", due: str = "now()"
) -> None:
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, next_retry_at)"
        f' SELECT {webhook}, \'{{"some": "message"}}\', {due} FROM generate_series(1, {count}) n'
    )


def evenly(database: Database) -> None:
    enqueue(database, BACKLOG)


def half_in_one_lane(database: Database) -> None:
    enqueue(database, BACKLOG, webhook=f"CASE WHEN n % 2 = 0 THEN 1 ELSE 1 + n % {WEBHOOKS} END")


def mostly_scheduled(database: Database) -> None:
    """A hundred rows that workers have looked at wait for their retry, for each that is due."""
    with unseen(database) as connection:
        connection.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status, "
            "routed, next_retry_at)"
            " SELECT 1 + n %% %s, '{}', 'retrying', true, now() + interval '1 hour' + n * "
            "interval '1 ms'"
            " FROM generate_series(1, %s) n",
            [WEBHOOKS, BACKLOG],
        )
    enqueue(database, BACKLOG // 100)


LOADS = {
    "evenly": evenly,
    "half in one lane": half_in_one_lane,
    "mostly scheduled": mostly_scheduled,
}
# Pages a row (claim, settle) or a call, at most; about three times what PostgreSQL 18 needs. A plan
# that reads an index or the table for each row needs hundreds of times as many.
A_ROW = {"claim": 30, "settle": 45}
A_CALL = {
    "lock_lanes": 750,
    "read_settings": 50,
    "claim": 300,
    "lock_recorded_lanes": 120,
    "settle": 300,
    "update_lanes": 300,
    "next_look": 150,
    "expired_leases": 20,
}
# Where each lane has one due row, a claim reaches for two hundred of them instead of twenty.
A_CALL_OVER_MANY_LANES = A_CALL | {
    "read_settings": 100,
    "lock_recorded_lanes": 200,
    "next_look": 300,
}


def assert_within_bounds(pages: Pages, *, rows: int, a_call: Mapping[str, int] = A_CALL) -> None:
    assert set(pages) == set(HOT)
    most = {name: (max(pages[name]), a_call[name] + A_ROW.get(name, 0) * rows) for name in HOT}
    assert {name: cost for name, cost in most.items() if cost[0] > cost[1]} == {}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
@pytest.mark.parametrize(
    "analysed", [True, False], ids=["statistics of an idle queue", "no statistics at all"]
)
def test_no_hot_statement_reads_more_than_its_own_rows(
    database: Database, analysed: bool, load: Callable[[Database], None]
) -> None:
    fill(database, analysed=analysed)
    load(database)
    with engine(database, defaults=ROOMY) as worker:
        pages = deliver(worker, rounds=9, in_flight=0 if load is mostly_scheduled else 2000)
    assert_within_bounds(
        pages, rows=BATCH, a_call=A_CALL_OVER_MANY_LANES if load is mostly_scheduled else A_CALL
    )


def test_plans_from_when_all_was_empty_serve_full_tables(database: Database) -> None:
    """A worker keeps its plans until somebody analyses the tables: for the first minutes of a new
    fleet, those for empty ones.
    """
    leave_statistics(database)
    database.execute("VACUUM ANALYZE")
    with engine(database, defaults=ROOMY) as worker:
        register(database, 100_000)
        for _ in range(5):
            insert(database, 100_000)
            deliver(worker, rounds=1)
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url) SELECT n, 'https://a.example/' FROM "
            "generate_series(1001, 11000) n"
        )
        while worker.claim(BATCH).lanes:
            pass  # lanes of the registry are looked at once
        populate(database)
        evenly(database)
        pages = deliver(worker, rounds=9, in_flight=2000)
    assert_within_bounds(pages, rows=BATCH, a_call=A_CALL_OVER_MANY_LANES)


JOINING = (
    "settle",
    "update_lanes",
    "held_claims",
)  # two hundred rows with as many: each with each would be forty thousand
LOOKING_UP = (*HOT[:6], "held_claims", "missing_lanes")


@pytest.mark.parametrize("name", LOOKING_UP)
def test_rows_are_looked_up_although_the_planner_believes_that_there_are_hardly_any(
    database: Database, name: str
) -> None:
    """A page's worth of rows would be read as quickly from end to end, and that plan would stay
    while the table grows.
    """
    leave_statistics(database)
    database.execute("VACUUM ANALYZE")
    register(database, 1)
    numbers: dict[str, str] = {}
    text = re.sub(
        r"%\((\w+)\)s",
        lambda found: numbers.setdefault(found[1], f"${len(numbers) + 1}"),
        statements.load(name),
    )
    nothing = ", ".join(["NULL"] * len(numbers))
    with session.connect(database.dsn, application_name="test") as connection:
        for count in (1, 3, 27):
            insert(database, 1, count)
            with session.transaction(connection, batch=True) as cursor:
                cursor.execute(f"PREPARE tried AS {text}".encode())
                [(plan,)] = cursor.execute(
                    f"EXPLAIN (FORMAT JSON) EXECUTE tried ({nothing})".encode()
                )
                cursor.execute("DEALLOCATE tried")
            scans = [
                node
                for node in nodes(plan[0]["Plan"])
                if node.get("Index Name", "").endswith("_pkey")
            ]
            assert [node["Index Name"] for node in scans if "Index Cond" not in node] == []
            assert name not in JOINING or "Hash Join" in {
                node["Node Type"] for node in nodes(plan[0]["Plan"])
            }


def test_the_bounds_catch_the_trap(database: Database) -> None:
    """With the condition that a planner takes for a reason to read the index of leased rows, a
    batch costs far too much.
    """

    def trapped(name: str, text: str) -> str:
        return (
            replaced(text, "IS NOT DISTINCT FROM 'sending'", "= 'sending'")
            if name == "settle"
            else text
        )

    fill(database, analysed=True)
    evenly(database)
    with engine(database, mutate=trapped) as worker:
        pages = deliver(worker, rounds=5, in_flight=8000)
    assert max(pages["settle"]) > 45 * BATCH + 300


BLOCKED, ROWS_EACH = 2000, 10


@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never analysed"])
def test_a_new_row_is_found_without_a_visit_to_the_lanes_that_are_blocked(
    database: Database, analysed: bool
) -> None:
    fill(database, analysed=False)
    with unseen(database) as connection:
        connection.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, enabled)"
            " SELECT n, 'https://receiver.example/', n %% 2 = 0 FROM generate_series(1001, 1000 "
            "+ %s) n",
            [BLOCKED],
        )
        connection.execute(  # half of them paused, half with an open circuit
            "INSERT INTO pggit.webhook_health_metrics (webhook_id, circuit_state, circuit_until, "
            "runnable_at, blocked_by)"
            " SELECT n, CASE WHEN n %% 2 = 0 THEN 'open' ELSE 'closed' END, now() + interval '1 h',"
            " CASE WHEN n %% 2 = 0 THEN now() + interval '1 h' END, CASE WHEN n %% 2 = 0 THEN "
            "'circuit' ELSE 'paused' END"
            " FROM generate_series(1001, 1000 + %s) n",
            [BLOCKED],
        )
        connection.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, routed)"
            " SELECT 1001 + n %% %s, '{}', true FROM generate_series(1, %s) n",
            [BLOCKED, BLOCKED * ROWS_EACH],
        )
    if analysed:
        database.execute("ANALYZE")
    with engine(database) as worker:
        worker.take_all()  # lanes of the registry are looked at once
        enqueue(database, 1, webhook="7")
        with counted(worker, *HOT) as pages:
            assert [item.webhook_id for item in worker.claim(BATCH).deliveries] == [7]
            worker.claimer.next_look(worker.connection)
    cost = {name: sum(counts) for name, counts in pages.items()}
    assert cost.keys() == {"lock_lanes", "read_settings", "claim", "next_look"}
    assert sum(cost.values()) < 250, cost


STRETCH = 64  # pages
# A row that goes is read, locked and deleted on its page, and looked for in what refers to it;
# about three times what is needed.
A_REMOVED_ROW, A_STRETCH = 12, 400


@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never analysed"])
@pytest.mark.parametrize("referred", [False, True], ids=["alone", "with a foreign key"])
@pytest.mark.parametrize(
    ("name", "table"),
    [("remove_deliveries", "alert_delivery_queue"), ("remove_attempts", "alert_delivery_log")],
)
def test_a_removal_reads_its_own_stretch_of_pages_only(
    database: Database, name: str, table: str, referred: bool, analysed: bool
) -> None:
    fill(database, analysed=False)
    database.execute(
        "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, "
        "event_details, created_at)"
        " SELECT delivery_id, webhook_id, 'delivered', '{\"attempt\": 1}', created_at FROM "
        "pggit.alert_delivery_queue"
    )
    if referred:
        key = "delivery_id" if table == "alert_delivery_queue" else "log_id"
        database.execute(
            f"CREATE TABLE public.referrer (r bigint REFERENCES pggit.{table}); CREATE INDEX ON "
            "public.referrer (r);"
            f"INSERT INTO public.referrer SELECT {key} FROM pggit.{table} WHERE {key} % 10 = 0"
        )
    if analysed:
        database.execute("ANALYZE")
    [removal] = [item for item in removals(Keep(1.0, 1.0, 1.0)) if item.table_name == table]
    with (
        engine(database) as worker,
        counted(worker, name) as pages,
        worker.connection.cursor() as cursor,
    ):
        statement = removing(cursor, removal)
        assert statement is not None
        gone = []
        for first in range(0, 5 * STRETCH, STRETCH):
            stretch = {"first": f"({first},0)", "end": f"({first + STRETCH},0)"}
            gone.append(cursor.execute(statement.encode(), stretch | removal.keep_s).rowcount)
    assert min(gone) > 500
    assert len(pages[name]) == 5
    assert max(pages[name]) < A_STRETCH + A_REMOVED_ROW * max(gone), (pages, gone)
