"""What was kept for long enough goes, nothing else does, and at which pace."""

import random
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.engine import answered, engine, insert, let_pass, register, unseen
from tests.support.postgres import Database
from tests.support.retention import (
    LOG,
    QUEUE,
    assert_counts_are_true,
    count,
    finished,
    ids,
    logged,
    removed,
    retention,
    rounds_are_due,
    whole_round,
)
from webhookd.cli.main import cli
from webhookd.config.options import Config
from webhookd.core.model import Result
from webhookd.postgres import session
from webhookd.postgres.retention import DAY_S, FIRST_PAGES, ROUNDS, Keep

pytestmark = pytest.mark.every_postgres


# What goes


def test_each_kind_of_row_goes_after_its_own_time(
    database: Database, connection: session.Connection
) -> None:
    register(database, 1)
    waiting = insert(database, 1, 3)
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET created_at = now() - interval '400 days'"
    )
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


def test_zero_is_for_ever(database: Database, connection: session.Connection) -> None:
    failed = finished(database, 2, days=3000, status="failed")
    delivered = finished(database, 2, days=3000)
    logged(database, 2, days=3000)
    whole_rounds = Keep.of(Config(keep_delivered=0, keep_failed=0, keep_log=0))
    rounds_are_due(database)
    retention(whole_rounds).turn(lambda: nullcontext(connection))
    assert ids(database) == {*failed, *delivered}
    retention(Keep.of(Config(keep_delivered=1, keep_failed=0, keep_log=0))).turn(
        lambda: nullcontext(connection)
    )
    assert ids(database) == set(failed)
    assert count(database, LOG) == 2


STATUSES = ("pending", "retrying", "sending", "delivered", "failed")


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_any_age_and_status_go_when_they_are_due_and_no_others(
    database: Database, connection: session.Connection, seed: int
) -> None:
    """What should go is told here from the values by other means than in the statement."""
    dice = random.Random(seed)
    now = datetime.now(UTC)

    def moment(*, missing: float) -> datetime | None:
        return (
            None
            if dice.random() < missing
            else now - timedelta(days=dice.choice([0, 1, 6, 8, 29, 31, 400]), seconds=600)
        )

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
                "INSERT INTO pggit.alert_delivery_queue (delivery_id, webhook_id, message_body, "
                "delivery_status, created_at,"
                " attempted_at, delivered_at, ended_at, next_retry_at, leases_lost) VALUES "
                "(%(delivery_id)s, 1,"
                " to_jsonb(%(body)s::text), %(delivery_status)s, %(created_at)s, "
                "%(attempted_at)s, %(delivered_at)s,"
                " %(ended_at)s, %(next_retry_at)s, %(leases_lost)s)",
                row,
            )
            if not _is_over(row, now):
                expected.add(number)
    whole_round(database, connection)
    assert ids(database) == expected
    assert 0 < len(expected) < 1499


def _is_over(row: dict[str, Any], now: datetime) -> bool:
    names = {"delivered": ["ended_at", "delivered_at"], "failed": ["ended_at", "attempted_at"]}.get(
        row["delivery_status"]
    )
    if names is None:
        return False
    if row["delivery_status"] == "failed" and row["leases_lost"] > 0:
        names.append("next_retry_at")
    ends = [row[name] for name in names if row[name] is not None]
    if not ends:
        ends = [row["attempted_at"] or row["created_at"]]
    return bool(
        max(ends) < now - timedelta(days=7 if row["delivery_status"] == "delivered" else 30)
    )


def test_a_delivery_that_was_ended_by_hand_is_kept_from_then_on(
    database: Database, connection: session.Connection
) -> None:
    insert(database, 1, 4)
    let_pass(database, 400 * DAY_S)
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE delivery_id <= 2"
    )
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET delivery_status = 'delivered' WHERE delivery_id > 2"
    )
    whole_round(database, connection)
    assert len(ids(database)) == 4
    with unseen(database) as writer:
        writer.execute(
            "UPDATE pggit.alert_delivery_queue SET ended_at = ended_at - interval '8 days'"
        )
    whole_round(database, connection)
    assert ids(database) == {1, 2}
    database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'pending'")
    assert database.execute("SELECT count(ended_at) FROM pggit.alert_delivery_queue") == [(0,)]


def test_a_delivery_that_failed_of_lost_leases_is_kept_from_the_last_one_on(
    database: Database, connection: session.Connection
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    let_pass(database, 400 * DAY_S)
    with engine(database) as worker:
        for _ in range(6):
            with unseen(database) as writer:
                writer.execute(
                    "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() - interval '1 s'"
                )
                writer.execute("UPDATE pggit.webhook_health_metrics SET runnable_at = now()")
            claimed = [
                *worker.take_all(),
                *worker.claimer.claim_quarantined(worker.connection).deliveries,
            ]
            assert [item.delivery_id for item in claimed] == [delivery_id]
            assert worker.release(worker.incarnation).accepted
    assert database.execute(
        "SELECT delivery_status, attempted_at FROM pggit.alert_delivery_queue"
    ) == [("failed", None)]
    whole_round(database, connection)
    assert ids(database) == {delivery_id}


def test_a_delivery_that_outlives_its_attempts_says_so(
    database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    [done] = finished(database, 1, days=20, status="failed")
    [new] = insert(database, 1)
    for command in ("show", "explain"):
        for delivery_id, words in ((done, "no longer in the attempt log"), (new, "no attempt yet")):
            cli.main(
                ["delivery", command, str(delivery_id), "--dsn", database.dsn],
                standalone_mode=False,
            )
            assert words in capsys.readouterr().out


# The pace


def test_a_turn_goes_through_as_many_pages_as_time_has_passed(
    database: Database, connection: session.Connection
) -> None:
    finished(database, 20_000, days=8)
    [(pages,)] = database.execute("SELECT pg_relation_size('pggit.alert_delivery_queue') / 8192")
    round_s = 7 * DAY_S / ROUNDS
    own = retention()
    for share in (0.1, 0.25):
        [(before,)] = database.execute(
            "SELECT next_page FROM pggit.retention WHERE table_name = %s", [QUEUE]
        )
        database.execute(
            "UPDATE pggit.retention SET turned_at = now() - %s * interval '1 s'", [share * round_s]
        )
        own.turn(lambda: nullcontext(connection))
        [(after,)] = database.execute(
            "SELECT next_page FROM pggit.retention WHERE table_name = %s", [QUEUE]
        )
        assert share * pages <= after - before <= share * pages + 2
    database.execute(
        "UPDATE pggit.retention SET turned_at = now() - %s * interval '1 s'",
        [0.5 * FIRST_PAGES / pages * round_s],
    )
    retention().turn(lambda: nullcontext(connection))
    assert database.execute(
        "SELECT next_page FROM pggit.retention WHERE table_name = %s", [QUEUE]
    ) == [(after,)]


def test_disk_use_becomes_constant(database: Database, connection: session.Connection) -> None:
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
                clock.execute(
                    "UPDATE pggit.alert_delivery_queue SET delivered_at = delivered_at - "
                    "interval '3 days'"
                )
                clock.execute(
                    "UPDATE pggit.alert_delivery_log SET created_at = created_at - interval '12 "
                    "days'"
                )
            whole_round(database, connection)
            for table in (QUEUE, LOG):
                database.execute(f"VACUUM pggit.{table}")
            size = "SELECT pg_total_relation_size('pggit.' || %s)"
            sizes.append([database.execute(size, [table])[0][0] for table in (QUEUE, LOG)])
    assert count(database, QUEUE) == count(database, LOG) == 2000
    for early, late in zip(sizes[4], sizes[8], strict=True):
        assert late <= early * 1.05
