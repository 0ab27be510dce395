"""New rows of webhooks that nobody registered: parked in bulk, and in nobody's way."""

from tests.support.engine import Engine, insert, new_rows, register
from tests.support.postgres import Database
from tests.support.steps import park_all
from webhookd.postgres.unknown import PARKED_AT_ONCE

UNKNOWN = 12_000
VICTIM = 1_000_000


def flood(database: Database, ids: int = UNKNOWN) -> None:
    """Insert a row each for webhooks 1 to *ids*, in one statement."""
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
        " SELECT n, '{}' FROM generate_series(1, %s) n",
        [ids],
    )


def test_rows_of_registered_webhooks_are_found_although_unknown_ones_stand_before_them(
    database: Database, worker: Engine
) -> None:
    register(database, VICTIM)
    flood(database)
    for _ in range(3):
        insert(database, VICTIM)
        # One look finds out that it is crowded, the next one asks the registered webhooks.
        found = [*worker.claim().deliveries, *worker.claim().deliveries]
        assert [delivery.webhook_id for delivery in found] == [VICTIM]
    assert new_rows(database) >= UNKNOWN // 2


def test_of_many_registered_webhooks_each_has_its_turn(database: Database, worker: Engine) -> None:
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url)"
        " SELECT n, 'https://a.example/' FROM generate_series(50001, 53000) n"
    )
    flood(database, 20_000)
    late = [insert(database, webhook_id)[0] for webhook_id in (50_001, 51_500, 53_000)]
    # Some looks, for the circle through the registry: far fewer than it takes to park all.
    found = [item.delivery_id for _ in range(6) for item in worker.claim().deliveries]
    assert sorted(found) == late
    assert new_rows(database) > 20_000 - 7 * PARKED_AT_ONCE


def test_they_are_parked_once_without_a_lane_and_then_no_look_meets_them(
    database: Database, worker: Engine
) -> None:
    flood(database)
    park_all(database, worker)
    assert database.execute("SELECT count(*) FROM pggit.webhook_health_metrics") == [(0,)]
    assert not worker.claimer.next_look(worker.connection).new_rows


def test_a_registration_finds_rows_that_were_parked(database: Database, worker: Engine) -> None:
    flood(database, 30)
    park_all(database, worker)
    register(database, 7)
    [found] = worker.claim().deliveries
    assert found.webhook_id == 7
