"""Held lanes: each mistake in a webhook's row, or in the options, holds its deliveries. None is
attempted, spent or failed, and all go out once the row or the options are right.
"""

from collections.abc import Iterator

import pytest

from tests.support.engine import (
    Engine,
    answered,
    engine,
    insert,
    lane,
    let_pass,
    register,
    unseen,
)
from tests.support.engine import (
    delivery as queued,
)
from tests.support.plans import counted
from tests.support.postgres import Database
from tests.support.values import settings as settings_of
from webhookd.postgres.held import HeldChange, count_held, held_webhooks_after, look_at_held
from webhookd.transport.egress import Egress
from webhookd.transport.request import refusal
from webhookd.worker.judge import Judge

PLAIN = settings_of(url="https://a.example/")
STRICT = Egress(allow_http=False)
OPEN = Egress(allow_http=True, networks=["0.0.0.0/0"])

# What an operator may write with plain SQL, and words of the reason.
MISTAKES = {
    "scheme": ("url", "http://receiver.example/1", "http is not allowed"),
    "other scheme": ("url", "ftp://receiver.example/1", "the scheme 'ftp'"),
    "literal address": ("url", "https://10.0.0.1/1", "the address 10.0.0.1 is private"),
    "literal IPv6 address": ("url", "https://[::1]/1", "loopback"),
    "malformed": ("url", "receiver.example/1", "must start with https://"),
    "white space": ("url", "https://receiver.example/1 ", "whitespace"),
    "no host": ("url", "https:///1", "no host"),
    "port": ("url", "https://receiver.example:99999/1", "malformed"),
    "credentials": ("url", "https://ann:pw@receiver.example/1", "contains credentials"),
    "secret": ("secret", "hunter2", "the secret cannot be used: a secret starts with whsec_"),
    "short secret": ("secret", "whsec_YQ==", "the secret cannot be used: a secret holds"),
    "reserved header": ("headers", '{"Host": "x"}', "the header 'Host'"),
    "forged header": ("headers", '{"webhook-id": "1"}', "the header 'webhook-id'"),
    "malformed header": ("headers", '{"a b": "x"}', "a header's name"),
    "header with a list": ("headers", '{"x-a": [1]}', "is a list or an object"),
    "headers that are no object": ("headers", '["x-a"]', "must be a JSON object"),
}

# Some of it is refused where it is written. Rows that an earlier version left may hold it.
DROP_CHECKS = """
DO $$ DECLARE found record; BEGIN
    FOR found IN SELECT conname FROM pg_constraint
                  WHERE conrelid = 'pggit.webhooks'::regclass AND contype = 'c' LOOP
        EXECUTE format('ALTER TABLE pggit.webhooks DROP CONSTRAINT %I', found.conname);
    END LOOP;
END $$
"""


@pytest.fixture
def strict(database: Database) -> Iterator[Engine]:
    with engine(database, judge=Judge(STRICT)) as worker:
        yield worker


def blocked(database: Database) -> tuple[object, ...]:
    state = lane(database, 1)
    return state["blocked_by"], state["blocked_reason"], state["runnable_at"]


def untouched(database: Database, delivery_ids: list[int]) -> bool:
    """Return whether nothing was attempted, spent or failed."""
    rows = [queued(database, delivery_id) for delivery_id in delivery_ids]
    state = lane(database, 1)
    return (
        {(one["delivery_status"], one["retry_count"], one["attempts"]) for one in rows}
        == {("pending", 0, 0)}
        and database.execute("SELECT count(*)::int FROM pggit.alert_delivery_log") == [(0,)]
        and (state["circuit_state"], state["in_flight"], state["tokens"]) == ("closed", 0, None)
    )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_holds_the_lane_and_its_correction_sends_what_waits(
    database: Database, strict: Engine, mistake: str
) -> None:
    column, value, words = MISTAKES[mistake]
    register(database, 1)
    database.execute(DROP_CHECKS)
    right = database.execute(f"SELECT {column} FROM pggit.webhooks")[0][0]
    database.execute(f"UPDATE pggit.webhooks SET {column} = %s", [value])
    waiting = insert(database, 1, 3)
    held = strict.claim()
    assert not held.deliveries
    [(webhook_id, reason)] = held.held
    assert webhook_id == 1 and reason is not None and words in reason
    assert "\n" not in reason and "pw" not in reason and "hunter2" not in reason
    assert blocked(database) == ("configuration", reason, None)
    assert untouched(database, waiting)
    # No look finds it, and no sweep wakes it.
    strict.sweep()
    assert strict.claim().lanes == 0
    database.execute(f"UPDATE pggit.webhooks SET {column} = %s", [right])
    claim = strict.claim()
    assert [delivery.delivery_id for delivery in claim.deliveries] == waiting
    assert claim.held == [HeldChange(1, None)]
    assert lane(database, 1)["blocked_reason"] is None
    assert lane(database, 1)["blocked_by"] != "configuration"


def test_a_change_that_does_not_help_is_held_again_without_a_word_and_another_reason_is_said(
    database: Database, strict: Engine
) -> None:
    register(database, 1)
    database.execute("UPDATE pggit.webhooks SET url = 'http://receiver.example/'")
    insert(database, 1)
    assert [change.webhook_id for change in strict.claim().held] == [1]
    before = blocked(database)
    database.execute("UPDATE pggit.webhooks SET name = 'invoices'")
    again = strict.claim()
    assert (again.lanes, again.held) == (1, [])
    assert blocked(database) == before
    database.execute("UPDATE pggit.webhooks SET url = 'https://127.0.0.1/'")
    [change] = strict.claim().held
    assert change.reason is not None and "loopback" in change.reason
    assert blocked(database) == ("configuration", change.reason, None)


def test_a_reset_of_the_circuit_does_not_end_it(database: Database, strict: Engine) -> None:
    register(database, 1)
    insert(database, 1, 5)
    strict.finish(strict.take(), answered(500))
    database.execute("UPDATE pggit.webhooks SET url = 'http://receiver.example/'")
    insert(database, 1)
    strict.claim()
    before = blocked(database)
    assert before[0] == "configuration"  # not the circuit, which is open: it comes first
    database.execute(
        "UPDATE pggit.webhook_health_metrics SET health_status = 'healthy',"
        " consecutive_failures = 0"
    )
    assert strict.claim().held == []
    assert blocked(database) == before


def test_what_was_claimed_before_does_not_end_it(database: Database, strict: Engine) -> None:
    register(database, 1)
    insert(database, 1, 6)
    flying = strict.take()
    database.execute("UPDATE pggit.webhooks SET url = 'http://receiver.example/'")
    insert(database, 1)
    strict.claim()
    before = blocked(database)
    strict.finish(flying[:1], answered(200))
    strict.finish(flying[1:], answered(500))
    assert lane(database, 1)["circuit_state"] == "open"
    assert blocked(database) == before and before[0] == "configuration"


@pytest.mark.parametrize("registered", [True, False])
def test_a_pause_or_a_removal_takes_the_reason_away(
    database: Database, strict: Engine, registered: bool
) -> None:
    register(database, 1)
    database.execute("UPDATE pggit.webhooks SET url = 'http://receiver.example/'")
    insert(database, 1)
    strict.claim()
    if registered:
        database.execute("UPDATE pggit.webhooks SET enabled = false")
    else:
        database.execute("DELETE FROM pggit.webhooks")
        assert look_at_held(strict.connection, [1]) == 1  # no trigger: the chore
    claim = strict.claim()
    assert (claim.lanes, claim.held) == (1, [])
    assert blocked(database) == ("paused" if registered else "unregistered", None, None)


def test_a_worker_with_other_options_has_it_looked_at_again(
    database: Database, strict: Engine
) -> None:
    register(database, 1, 2)
    database.execute("UPDATE pggit.webhooks SET url = 'http://10.0.0.1/' WHERE webhook_id = 1")
    waiting = insert(database, 1, 2)
    strict.claim()
    assert count_held(strict.connection) == 1
    with engine(database, "worker-2", judge=Judge(OPEN)) as other:
        defaults = other.claimer._defaults
        [settings] = held_webhooks_after(other.connection, 0, limit=10, defaults=defaults)
        assert settings.url == "http://10.0.0.1/"
        assert refusal(settings, STRICT) is not None and refusal(settings, OPEN) is None
        assert held_webhooks_after(other.connection, 1, limit=10, defaults=defaults) == []
        assert look_at_held(other.connection, [1]) == 1
        # Until a claim has judged it, it is held.
        assert lane(database, 1)["blocked_by"] == "configuration"
        claim = other.claim()
    assert [delivery.delivery_id for delivery in claim.deliveries] == waiting
    assert claim.held == [HeldChange(1, None)]
    assert count_held(strict.connection) == 0


def test_a_quarantined_row_of_a_held_lane_is_put_off(database: Database, strict: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    database.execute("UPDATE pggit.webhooks SET url = 'http://receiver.example/'")
    with unseen(database) as connection:
        connection.execute(b"UPDATE pggit.alert_delivery_queue SET leases_lost = 3, routed = true")
    claim = strict.claimer.claim_quarantined(strict.connection)
    assert not claim.deliveries and [change.webhook_id for change in claim.held] == [1]
    assert (lane(database, 1)["blocked_by"], queued(database, delivery_id)["leases_lost"]) == (
        "configuration",
        3,
    )
    assert strict.claimer.claim_quarantined(strict.connection).lanes == 0
    database.execute("UPDATE pggit.webhooks SET url = 'https://receiver.example/'")
    assert strict.claim().held == [HeldChange(1, None)]
    let_pass(database, 61)
    [delivery] = strict.claimer.claim_quarantined(strict.connection).deliveries
    assert delivery.delivery_id == delivery_id


def test_a_column_that_plain_sql_has_changed_is_set_right(
    database: Database, strict: Engine
) -> None:
    """`blocked_by` is no column for operators; yet it must not leave a lane without a way out."""
    register(database, 1)
    database.execute("UPDATE pggit.webhooks SET url = 'http://receiver.example/'")
    insert(database, 1)
    strict.claim()
    database.execute("UPDATE pggit.webhook_health_metrics SET blocked_by = NULL")
    assert count_held(strict.connection) == 1
    assert look_at_held(strict.connection, [1]) == 1
    assert strict.claim().held == []
    assert lane(database, 1)["blocked_by"] == "configuration"


def test_thousands_of_rows_of_a_held_lane_cost_others_nothing(
    database: Database, strict: Engine
) -> None:
    """They are parked once. After that a claim reads no more pages than without them."""
    register(database, 1, 2)
    insert(database, 2)
    strict.finish(strict.take(), answered(200))

    def pages_of_one_delivery() -> int:
        insert(database, 2)
        with counted(strict, "lock_lanes", "claim", "next_look") as pages:
            deliveries = strict.claim().deliveries
            strict.claimer.next_look(strict.connection)
        assert [delivery.webhook_id for delivery in deliveries] == [2]
        strict.finish(deliveries, answered(200))
        return sum(map(sum, pages.values()))

    before = max(pages_of_one_delivery() for _ in range(3))
    database.execute(
        "UPDATE pggit.webhooks SET url = 'http://receiver.example/' WHERE webhook_id = 1"
    )
    insert(database, 1, 10_000)
    looks = 0
    while strict.claim().lanes:
        looks += 1
    assert looks <= 10_000 / 500 + 2
    database.execute("VACUUM ANALYZE pggit.alert_delivery_queue")
    # Nothing leads to it any more: neither a timer nor a new row.
    assert strict.claimer.next_look(strict.connection).lane_s > 3600
    assert not strict.claimer.next_look(strict.connection).new_rows
    after = min(pages_of_one_delivery() for _ in range(3))
    assert after <= 2 * before + 20, (before, after)


def test_a_webhook_is_judged_again_when_its_row_changes_and_not_otherwise() -> None:
    judge = Judge(STRICT)
    settings = PLAIN._replace(url="http://a.example/")
    reason = judge(settings)
    assert reason == refusal(settings, STRICT) is not None
    assert judge(settings) is reason  # the very same text: not asked again
    assert judge(settings._replace(url="https://a.example/")) is None
    assert judge(settings._replace(secret="hunter2")) == reason
    assert judge(settings) == reason


def test_what_the_judge_remembers_is_bounded_and_holds_no_secret() -> None:
    judge = Judge(STRICT)
    settings = PLAIN._replace(secret="whsec_" + "c2VjcmV0" * 4)
    for webhook_id in range(25_000):
        judge(settings._replace(webhook_id=webhook_id))
    assert len(judge._known) <= 10_000
    assert "whsec_" not in repr(judge._known)
