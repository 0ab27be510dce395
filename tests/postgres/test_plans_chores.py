"""What it costs in pages to look for deliveries to give up and webhooks to disable, beside a
backlog of 100,000 rows.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.engine import Engine, engine, register, unseen
from tests.support.plans import counted
from tests.support.postgres import Database
from webhookd.postgres import statements

pytestmark = pytest.mark.every_postgres

BACKLOG, WEBHOOKS = 100_000, 50
AFTER_S, BATCH = 86_400.0, 500
OF_A_DAY, OF_A_WEEK = "now() - interval '20 hours'", "now() - interval '7 days'"
# Pages a lane, and a row that fails (read, locked, changed, logged, its indexes); about three times
# what PostgreSQL 18 needs.
A_LANE, A_FAILED_ROW, A_CALL = 36, 90, 100


def fill(database: Database, *, created: str, routed: str, analysed: bool) -> None:
    """Make a backlog of rows that were attempted (those that are *routed*, unless all are new) and
    wait; statistics are of now, or there are none. *created* and *routed* are SQL.
    """
    register(database, *range(1, WEBHOOKS + 1))
    database.execute("ALTER TABLE pggit.alert_delivery_queue SET (autovacuum_enabled = off)")
    with unseen(database) as connection:
        connection.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, delivery_status,"
            " routed, attempts, created_at, first_attempted_at, next_retry_at)"
            " SELECT 1 + n %% %s, '{}', CASE WHEN r THEN 'retrying' ELSE 'pending' END, r,"
            f" r::int, {created}, CASE WHEN r THEN {created} END, CASE WHEN r"
            f" THEN now() + interval '1 hour' ELSE {created} END"
            f" FROM generate_series(1, %s) n, LATERAL (SELECT {routed} AS r) t",
            [WEBHOOKS, BACKLOG],
        )
    if analysed:
        database.execute("ANALYZE")


def run(worker: Engine, name: str, **parameters: Any) -> tuple[int, Sequence[tuple[Any, ...]]]:
    """Run a chore's statement; return the pages that it touched, and its rows."""
    with counted(worker, name) as pages:
        rows = worker.connection.execute(statements.load(name).encode(), parameters).fetchall()
    [cost] = pages[name]
    return cost, rows


def give_up(worker: Engine) -> tuple[int, int]:
    """Run one batch; return its pages, and how many rows failed."""
    cost, [(_, failed)] = run(
        worker,
        "give_up",
        after_s=AFTER_S,
        behind=-(2**63),
        lanes=1000,
        limit=BATCH,
        reason="gave up after 24 h",
        worker_id="worker-1",
    )
    return cost, failed


@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never analysed"])
@pytest.mark.parametrize("routed", ["true", "false", "n %% 2 = 0"], ids=["retried", "new", "mixed"])
def test_to_find_nothing_to_give_up_reads_a_few_pages_of_each_lane(
    database: Database, routed: str, analysed: bool
) -> None:
    fill(database, created=OF_A_DAY, routed=routed, analysed=analysed)
    with engine(database) as worker:
        cost, failed = give_up(worker)
    assert failed == 0
    assert cost < A_CALL + A_LANE * WEBHOOKS, cost


@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never analysed"])
@pytest.mark.parametrize("routed", ["true", "false", "n %% 2 = 0"], ids=["retried", "new", "mixed"])
def test_a_batch_that_is_given_up_reads_its_own_rows_only(
    database: Database, routed: str, analysed: bool
) -> None:
    fill(database, created=OF_A_WEEK, routed=routed, analysed=analysed)
    with engine(database) as worker:
        for _ in range(3):
            cost, failed = give_up(worker)
            assert failed == BATCH
            assert cost < A_CALL + A_LANE * WEBHOOKS + A_FAILED_ROW * BATCH, cost


LOG = (
    "INSERT INTO pggit.alert_delivery_log (delivery_id, webhook_id, event_type, event_details,"
    " created_at)"
    " SELECT n, 1 + n %% %s, 'retrying', '{\"reason\": \"HTTP 500\"}',"
    " now() - n * interval '1 ms' FROM generate_series(1, %s) n"
)


@pytest.mark.parametrize("analysed", [True, False], ids=["analysed", "never analysed"])
def test_to_look_for_webhooks_to_disable_reads_lanes_and_not_the_backlog(
    database: Database, analysed: bool
) -> None:
    fill(database, created=OF_A_WEEK, routed="true", analysed=False)
    with unseen(database) as connection:
        connection.execute(LOG.encode(), [WEBHOOKS, BACKLOG])
        connection.execute(
            "INSERT INTO pggit.webhook_health_metrics (webhook_id) SELECT webhook_id"
            " FROM pggit.webhooks ON CONFLICT DO NOTHING"
        )
        connection.execute(  # as a record leaves it: with the time of its row in the log
            b"UPDATE pggit.webhook_health_metrics h SET failing_since = now() - CASE"
            b" WHEN webhook_id % 2 = 0 THEN interval '2 days' ELSE interval '1 hour' END,"
            b" last_failure_at = (SELECT max(created_at) FROM pggit.alert_delivery_log l"
            b" WHERE l.webhook_id = h.webhook_id)"
        )
    if analysed:
        database.execute("ANALYZE")
    with engine(database) as worker:
        cost, disabled = run(worker, "disable_failing", after_s=AFTER_S)
        again, none = run(worker, "disable_failing", after_s=AFTER_S)
    assert len(disabled) == WEBHOOKS // 2 and none == []
    assert all(reason.endswith("; the last one: HTTP 500") for _, reason in disabled)
    assert cost < A_CALL + A_LANE * WEBHOOKS, cost
    assert again < A_CALL + 3 * WEBHOOKS, again
