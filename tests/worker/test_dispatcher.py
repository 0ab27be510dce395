"""When a dispatcher looks at the queue: not over and over while it gets nothing, and in time for
rows in quarantine.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.descriptors import SELECT_TAKES, crowded
from tests.support.engine import lanes_of, unseen
from tests.support.postgres import Database
from tests.support.receivers import Receiver, silent
from tests.support.stage import FLAG_DOWN, INSERT, Stage, flag, staged
from tests.support.waiting import eventually
from webhookd.worker.wakeup import WakeReason


def quarantined(database: Database, webhook_id: int = 1) -> None:
    """Insert a row that is due and lost three leases, without a notification."""
    lanes_of(database, webhook_id)
    with unseen(database) as connection:
        connection.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, body_bytes, routed, "
            "leases_lost) VALUES (%s, '{}', 2, true, 3)",
            [webhook_id],
        )


@contextmanager
def slow_webhook(database: Database) -> Iterator[Receiver]:
    """Register webhook 2, whose receiver never answers."""
    with Receiver(silent) as receiver:
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (2, %s)", [receiver.url()]
        )
        yield receiver


def turns_in_half_a_second(stage: Stage) -> int:
    before = stage.senders.turns
    threading.Event().wait(0.5)
    return stage.senders.turns - before


def hang_up(database: Database) -> None:
    """Cut the LISTEN connection, and wait until it is gone."""
    listening = "FROM pg_stat_activity WHERE application_name = 'test/listen'"
    [(mine,)] = database.execute(f"SELECT pid {listening}")
    database.execute("SELECT pg_terminate_backend(%s)", [mine])
    eventually(
        lambda: database.execute(f"SELECT 1 {listening} AND pid = %s", [mine]) == [], what="cut off"
    )


def test_a_dispatcher_without_room_does_not_spin(database: Database) -> None:
    with staged(database) as stage, database.connect(autocommit=False) as producer:
        producer.execute(INSERT)
        stage.start()
        stage.lose_room()  # while it outwaits the producer
        assert turns_in_half_a_second(stage) < 50


def test_a_dispatcher_waits_listens_and_listens_again_in_a_process_with_thousands_of_descriptors(
    database: Database,
) -> None:
    with crowded(), staged(database) as stage:
        stage.start()
        assert stage.duty.listener.fileno() > SELECT_TAKES
        hang_up(database)
        eventually(lambda: stage.duty.listener.connected, what="listens again")
        stage.settle()
        database.execute(INSERT)
        assert stage.arrived(1, within_s=20)


def test_an_operator_who_holds_a_new_row_does_not_make_workers_spin(database: Database) -> None:
    with staged(database) as stage, database.connect(autocommit=False) as operator:
        stage.start()
        stage.lose_room()
        database.execute(INSERT)
        operator.execute("SELECT FROM pggit.alert_delivery_queue FOR UPDATE")
        stage.find_room()
        looks = stage.cues.looks
        assert turns_in_half_a_second(stage) < 50
        operator.commit()
        assert stage.arrived(1, within_s=20)
        assert stage.cues.looks > looks


def test_an_operator_who_holds_a_lane_with_new_rows_does_not_make_workers_spin(
    database: Database,
) -> None:
    with staged(database) as stage, database.connect(autocommit=False) as operator:
        stage.start()
        operator.execute("SELECT FROM pggit.webhook_health_metrics FOR UPDATE")
        database.execute(INSERT)
        assert turns_in_half_a_second(stage) < 50
        operator.commit()
        assert stage.arrived(1, within_s=20)


def test_a_row_in_quarantine_is_tried_when_it_is_due(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhookd.core.quarantine.MISSED_FIRST_S", 600.0)
    with staged(database) as stage:
        database.execute(INSERT)
        database.execute(
            "UPDATE pggit.alert_delivery_queue"
            " SET routed = true, leases_lost = 3, next_retry_at = clock_timestamp() + interval "
            "'1.5 seconds'"
        )
        stage.start()
        assert turns_in_half_a_second(stage) < 50
        assert stage.arrived(1, within_s=20)


@pytest.mark.parametrize("held", ["alert_delivery_queue", "webhook_health_metrics"])
def test_an_operator_who_holds_a_row_in_quarantine_or_its_lane_does_not_make_workers_spin(
    database: Database, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    monkeypatch.setattr("webhookd.core.quarantine.MISSED_FIRST_S", 1.0)
    with staged(database) as stage, database.connect(autocommit=False) as operator:
        stage.start()
        quarantined(database)
        operator.execute(f"SELECT FROM pggit.{held} FOR UPDATE")
        stage.wakeup.wake(WakeReason.LOST)
        assert turns_in_half_a_second(stage) < 50
        operator.commit()
        assert stage.arrived(1, within_s=20)


def test_a_row_in_quarantine_without_a_lane_does_not_make_workers_spin(database: Database) -> None:
    with staged(database) as stage:
        stage.start()
        quarantined(database)
        database.execute("DELETE FROM pggit.webhook_health_metrics")
        stage.wakeup.wake(WakeReason.LOST)
        assert turns_in_half_a_second(stage) < 50


def test_a_row_in_quarantine_that_its_lane_does_not_admit_yet_keeps_no_other_waiting(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhookd.core.quarantine.MISSED_FIRST_S", 600.0)
    with staged(database) as stage:
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, enabled) SELECT 2, url, false FROM "
            "pggit.webhooks"
        )
        stage.start()
        for webhook_id in (2, 1):
            quarantined(database, webhook_id)
        stage.wakeup.wake(WakeReason.LOST)
        assert stage.arrived(1, within_s=20)


HELD = {
    "a new row": "SELECT FROM pggit.alert_delivery_queue WHERE webhook_id = 1 FOR UPDATE",
    "a lane with new rows": "SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = 1 FOR "
    "UPDATE",
    "a runnable lane": "SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = 1 FOR UPDATE",
}


@pytest.mark.parametrize("held", HELD)
def test_what_an_operator_holds_keeps_no_row_in_quarantine_of_another_webhook_waiting(
    database: Database, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    monkeypatch.setattr("webhookd.core.quarantine.ASK_EVERY_S", 1.0)
    with staged(database) as stage, database.connect(autocommit=False) as operator:
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url) SELECT 2, url FROM pggit.webhooks"
        )
        lanes_of(database, 1)
        stage.start()
        with unseen(database) as connection:
            if held == "a runnable lane":
                connection.execute(
                    "UPDATE pggit.webhook_health_metrics SET runnable_at = now() WHERE "
                    "webhook_id = 1"
                )
            else:
                connection.execute(INSERT)
        operator.execute(HELD[held])
        looks = stage.cues.looks
        stage.wakeup.wake(WakeReason.LOST)
        eventually(lambda: stage.cues.looks > looks + 5, what="it looks over and over")
        quarantined(database, 2)
        assert stage.arrived(1, within_s=20)


def test_a_result_that_an_operator_delays_keeps_no_others_waiting_for_a_row_in_quarantine(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ALONE_WITHIN_S", "MISSED_FIRST_S"):
        monkeypatch.setattr(f"webhookd.core.quarantine.{name}", 1.0)
    with (
        staged(database) as stage,
        slow_webhook(database) as slow,
        database.connect(autocommit=False) as operator,
    ):
        stage.start()
        database.execute(INSERT.replace("1", "2"))
        assert slow.wait_for_requests(1)
        operator.execute("SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = 2 FOR UPDATE")
        slow.hang_up()
        quarantined(database)
        stage.wakeup.wake(WakeReason.LOST)
        eventually(lambda: flag(database) == FLAG_DOWN, what="it claims nothing")
        database.execute(INSERT)
        assert stage.arrived(1, within_s=20)
        operator.commit()
        assert stage.arrived(2, within_s=20)


def test_a_row_in_quarantine_whose_own_result_an_operator_delays_keeps_no_others_waiting(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhookd.core.quarantine.ALONE_WITHIN_S", 0.1)
    with (
        staged(database) as stage,
        slow_webhook(database) as slow,
        database.connect(autocommit=False) as operator,
    ):
        stage.start()
        quarantined(database, 2)
        stage.wakeup.wake(WakeReason.LOST)
        assert slow.wait_for_requests(1)
        database.execute(INSERT)
        assert not stage.arrived(1, within_s=1.0), "the row in quarantine might kill that one, too"
        operator.execute("SELECT FROM pggit.webhook_health_metrics WHERE webhook_id = 2 FOR UPDATE")
        slow.hang_up()
        assert stage.arrived(1, within_s=20)


def test_a_row_in_quarantine_is_tried_while_every_claim_is_full(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webhookd.core.quarantine.ASK_EVERY_S", 0.05)
    with staged(database) as stage:
        stage.start()
        stage.lose_room()
        database.execute(INSERT)
        database.execute("UPDATE pggit.alert_delivery_queue SET routed = true, leases_lost = 3")
        [(row,)] = database.execute("SELECT delivery_id FROM pggit.alert_delivery_queue")
        # Many lanes: one alone would look empty whenever a record has it locked.
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url) SELECT 1 + i, url FROM pggit.webhooks, "
            "generate_series(1, 20) i"
        )
        database.execute(
            INSERT.replace(
                "VALUES (1, '{}')", "SELECT 2 + i % 20, '{}' FROM generate_series(1, 1000) i"
            )
        )
        stage.find_room()  # for one at a time: a claim is full as long as there is anything
        assert stage.arrived(1001, within_s=60)
        assert [
            f"wh_test_{row}\r\n".encode() in request for request in stage.receiver.requests
        ].index(True) < 900
