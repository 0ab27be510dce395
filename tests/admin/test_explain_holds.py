"""What keeps a delivery from going out, in its webhook or in itself: each cause, put into the real
tables, is told.
"""

import re
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from tests.support.engine import (
    Engine,
    answered,
    drop_checks,
    engine,
    insert,
    let_pass,
    register,
    timed_out,
    unseen,
)
from tests.support.explained import explained, left_s, names, only, set_lane
from tests.support.postgres import Database
from webhookd.admin import facts
from webhookd.admin.reason import Reason
from webhookd.transport.egress import Egress
from webhookd.worker.judge import Judge

# The webhook


def test_an_unregistered_webhook_says_how_to_register_it(
    database: Database, enlisted: Engine
) -> None:
    [delivery_id] = insert(database, 77)
    for _ in range(2):  # before a worker looked at it, and after
        missing = only(explained(database, delivery_id), "unregistered")
        assert missing.run == ("webhookd webhook add URL --id 77",)
        assert enlisted.take_all() == []


def test_a_paused_webhook_says_why_and_how_to_resume_it(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1, enabled=False, disabled_reason="HTTP 410")
    [delivery_id] = insert(database, 1)
    paused = only(explained(database, delivery_id), "paused")
    assert "HTTP 410" in paused.text
    assert paused.run == ("webhookd webhook resume 1",)


def test_an_open_circuit_says_until_when_and_a_half_open_one_that_its_probe_is_out(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    earlier = insert(database, 1, 5)
    enlisted.finish(enlisted.take(), answered(500))
    [delivery_id] = insert(database, 1)
    opened = only(explained(database, delivery_id), "circuit_open")
    assert "after 5 failures in a row" in opened.text
    assert 30 < left_s(database, opened) <= 60
    assert opened.run == ("webhookd webhook test 1",)
    let_pass(database, 61)
    assert names(explained(database, delivery_id)) == ["free", "probe_due"]
    [probe] = enlisted.take()
    others = [one for one in (*earlier, delivery_id) if one != probe.delivery_id]
    half_open = explained(database, others[0])[0]
    assert half_open.name == "circuit_half_open"
    only(explained(database, probe.delivery_id), "leased")


def test_a_receivers_retry_after_holds_the_webhook(database: Database, enlisted: Engine) -> None:
    register(database, 1)
    insert(database, 1)
    enlisted.finish(enlisted.take(), answered(429, retry_after="1200"))
    [delivery_id] = insert(database, 1)
    hold = only(explained(database, delivery_id), "hold")
    assert "Retry-After" in hold.text
    assert "(in 20 min)" in hold.text


def test_the_in_flight_cap_counts_real_leases(database: Database, enlisted: Engine) -> None:
    register(database, 1, max_in_flight=2)
    insert(database, 1, 2)
    assert len(enlisted.take()) == 2
    [delivery_id] = insert(database, 1)
    assert "2 of 2 are in flight" in only(explained(database, delivery_id), "in_flight").text
    # A DELETE strands the counter. A claim counts anew before it believes it, and so does this.
    database.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_status = 'sending'")
    set_lane(database, "runnable_at = now(), blocked_by = NULL")
    only(explained(database, delivery_id), "free")


def test_the_rate_limit_tells_the_next_token_and_about_when_its_turn_comes(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1, rate_limit_per_second=0.01, rate_limit_burst=3)
    rows = insert(database, 1, 13)
    assert len(enlisted.take()) == 3
    behind, rate = explained(database, rows[-1])
    assert (behind.name, rate.name) == ("behind", "rate")
    assert "0.01 a second, burst 3" in rate.text
    assert "9 deliveries of webhook 1 go first" in behind.text
    assert 900 < left_s(database, behind) <= 1000, "ten tokens at 100 s each"
    assert 0 < left_s(database, rate) <= 100


def test_several_causes_are_told_with_the_one_that_lasts_longest_first(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1, due_in_s=300)
    set_lane(
        database,
        "circuit_state = 'open', circuit_until = now() + interval '1 minute', "
        "consecutive_failures = 5,"
        " hold_until = now() + interval '1 hour', tokens = 0, tokens_at = now()",
    )
    assert names(explained(database, delivery_id)) == ["hold", "scheduled", "circuit_open", "rate"]


def test_a_lane_that_waits_for_its_timer_is_parked(database: Database, enlisted: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    with unseen(database) as connection:
        connection.execute("UPDATE pggit.alert_delivery_queue SET routed = true")
    set_lane(database, "runnable_at = now() + interval '1 hour', blocked_by = 'rate'")
    parked = only(explained(database, delivery_id), "parked")
    assert "(in 60 min)" in parked.text and "rate" in parked.text
    set_lane(database, "runnable_at = NULL, blocked_by = NULL")
    assert "sweep" in only(explained(database, delivery_id), "parked").text


# The delivery itself


def test_a_backoff_tells_the_attempt_its_time_and_the_last_answer(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    enlisted.finish(enlisted.take(), timed_out())
    backoff = only(explained(database, delivery_id), "backoff")
    assert "Attempt 2 of 11 is due" in backoff.text
    assert "timeout" in backoff.text
    assert backoff.run == (f"webhookd delivery retry {delivery_id}",)


def further_attempts(backoff: Reason) -> list[datetime]:
    """Return the times that the reason lists behind the next attempt's."""
    listed = backoff.text.partition(", then ")[2]
    return [
        datetime.fromisoformat(f"{at}+00:00")
        for at in re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", listed)
    ]


def test_a_backoff_lists_each_further_attempt_and_the_end(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    enlisted.finish(enlisted.take(), answered(404))
    backoff = only(explained(database, delivery_id), "backoff")
    assert backoff.until is not None
    times = [datetime.fromtimestamp(backoff.until, UTC), *further_attempts(backoff)]
    gaps_s = [(after - before).total_seconds() for before, after in pairwise(times)]
    # 5 s * 4^n, at most 8 h; the first of the ten retries is the one that it waits for.
    assert gaps_s == pytest.approx([min(5.0 * 4**n, 28_800.0) for n in range(1, 10)], abs=1.0)
    assert "a fifth sooner or later each. If all fail, it fails with the last one." in backoff.text


def test_an_attempt_that_a_429_answered_counts_none(database: Database, enlisted: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    for _ in range(2):
        enlisted.finish(enlisted.take(), answered(429, retry_after="1"))
        let_pass(database, 5)
    set_lane(database, "hold_until = NULL")
    database.execute(
        "UPDATE pggit.alert_delivery_queue SET next_retry_at = now() + interval '1 hour'"
    )
    backoff = only(explained(database, delivery_id), "backoff")
    assert "Attempt 1 of 11 is due" in backoff.text
    assert len(further_attempts(backoff)) == 10
    assert "429" in backoff.text


def test_a_long_list_of_attempts_is_cut_and_the_last_one_has_none(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1, max_retries=30)
    [delivery_id] = insert(database, 1)
    enlisted.finish(enlisted.take(), answered(500))
    backoff = only(explained(database, delivery_id), "backoff")
    assert "Attempt 2 of 31 is due" in backoff.text
    assert len(further_attempts(backoff)) == 12 and " and 17 more, " in backoff.text
    database.execute("UPDATE pggit.webhooks SET max_retries = 1")
    last = only(explained(database, delivery_id), "backoff")
    assert "Attempt 2 of 2 is due" in last.text and further_attempts(last) == []
    assert "If it fails, the delivery fails." in last.text
    database.execute("UPDATE pggit.alert_delivery_queue SET max_retries = 2")
    assert "Attempt 2 of 3" in only(explained(database, delivery_id), "backoff").text
    database.execute("UPDATE pggit.alert_delivery_queue SET max_retries = 0")
    assert "The last attempt is due" in only(explained(database, delivery_id), "backoff").text


def test_a_retry_that_is_put_off_for_ever_lists_no_attempt_after_it(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    enlisted.finish(enlisted.take(), answered(500))
    database.execute("UPDATE pggit.alert_delivery_queue SET next_retry_at = 'infinity'")
    backoff = only(explained(database, delivery_id), "backoff")
    assert "Attempt 2 of 11 waits for ever" in backoff.text
    assert further_attempts(backoff) == []


def test_a_delivery_of_a_slow_webhook_may_wait_for_a_slot(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    insert(database, 1)
    enlisted.finish(enlisted.take(), answered(200, seconds=4.8))
    [delivery_id] = insert(database, 1)
    slow = only(explained(database, delivery_id), "slow")
    assert slow.until is None, "the next claim that has slots for slow lanes takes it"
    assert "slow webhooks leave some slots to others" in slow.text
    assert [claimed.delivery_id for claimed in enlisted.take()] == [delivery_id]


def test_one_that_is_put_off_for_ever_says_so(database: Database, enlisted: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    database.execute("UPDATE pggit.alert_delivery_queue SET next_retry_at = 'infinity'")
    assert "for ever" in only(explained(database, delivery_id), "scheduled").text


def test_a_long_line_before_it_is_counted_up_to_a_bound(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1, rate_limit_per_second=0)
    rows = insert(database, 1, facts.MOST_AHEAD + 5)
    free, behind = explained(database, rows[5])
    assert (free.name, behind.name) == ("free", "behind")
    assert "5 deliveries of webhook 1 go first" in behind.text
    assert "10,000 or more" in explained(database, rows[-1])[1].text
    assert "1 delivery of webhook 1 goes first" in explained(database, rows[1])[1].text
    assert names(explained(database, rows[0])) == ["free"]


def test_a_finished_delivery_tells_its_end(database: Database, enlisted: Engine) -> None:
    register(database, 1, 2, max_retries=0)
    [good], [bad] = insert(database, 1), insert(database, 2)
    for claimed in enlisted.take():
        enlisted.finish([claimed], answered(200 if claimed.delivery_id == good else 400))
    assert "by worker-1, at the 1st attempt" in only(explained(database, good), "delivered").text
    failed = only(explained(database, bad), "failed")
    assert "after 1 attempt " in failed.text and "400" in failed.text
    assert failed.run == (f"webhookd delivery retry {bad}",)


def test_a_failed_delivery_whose_webhook_was_disabled_says_both(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    enlisted.finish(enlisted.take(), answered(410))
    failed, gone = explained(database, delivery_id)
    assert (failed.name, gone.name, gone.until) == ("failed", "gone", None)
    assert "answered 410 Gone" in gone.text and "paused" not in gone.text
    assert gone.run == ("webhookd webhook resume 1",)
    [waiting] = insert(database, 1)
    assert only(explained(database, waiting), "gone").text == gone.text


@pytest.mark.parametrize(
    ("column", "value", "words", "ends", "command"),
    [
        (
            "url",
            "http://receiver.example/",
            "held: http is not allowed",
            "the service runs with --allow-http, or",
            "SELECT url FROM ",
        ),
        (
            "url",
            "https://10.0.0.1/",
            "held: the address 10.0.0.1 is private",
            "the service runs with --allow-network 10.0.0.1, or",
            "SELECT url FROM ",
        ),
        (
            "url",
            "https://receiver.example:9000/",
            "held: the port 9000 is not allowed for https",
            "the service runs with --allow-port 9000 (and every other port that is needed",
            "SELECT url FROM ",
        ),
        ("url", "receiver", "held: the URL", "once its url is corrected", "SELECT url FROM "),
        (
            "headers",
            '{"Host": "x"}',
            "held: the header 'Host'",
            "once its headers are corrected",
            "SELECT headers FROM ",
        ),
        (
            "secret",
            "hunter2",
            "held: the secret cannot be used: a secret starts with whsec_",
            "once it has a new secret",
            "webhookd webhook rotate-secret 1",
        ),
    ],
)
def test_a_held_webhook_says_why_and_what_ends_it(
    database: Database,
    enlisted: Engine,
    column: str,
    value: str,
    words: str,
    ends: str,
    command: str,
) -> None:
    register(database, 1)
    drop_checks(database)  # a row from before them
    database.execute(f"UPDATE pggit.webhooks SET {column} = %s", [value])
    [delivery_id] = insert(database, 1)
    # No worker has looked at it: only what no option changes is known.
    assert names(explained(database, delivery_id)) == ["free" if column == "url" else "held"]
    with engine(database, judge=Judge(Egress(False, ports=(443,)))) as strict:
        assert strict.take() == []
    held = only(explained(database, delivery_id), "held")
    assert words in held.text and ends in held.text and "hunter2" not in held.text
    assert any(command in line for line in (*held.run, *held.sql))
    assert held.until_at == "never"


def test_a_delivery_that_failed_says_that_a_retry_would_be_held(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    enlisted.finish(enlisted.take(), answered(410))
    drop_checks(database)  # a row from before them
    database.execute("UPDATE pggit.webhooks SET enabled = true, secret = 'hunter2'")
    failed, held = explained(database, delivery_id)
    assert (failed.name, held.name, held.until) == ("failed", "held", None)
    database.execute("UPDATE pggit.webhooks SET secret = NULL")
    only(explained(database, delivery_id), "failed")


def test_an_id_that_no_webhook_can_have_is_not_to_be_registered(
    database: Database, enlisted: Engine
) -> None:
    [delivery_id] = insert(database, 0)
    unregistered = only(explained(database, delivery_id), "unregistered")
    assert (unregistered.run, len(unregistered.sql)) == ((), 1)
    database.execute(unregistered.sql[0])
    only(explained(database, delivery_id), "failed")


def test_a_row_or_lane_that_another_session_has_locked_is_named(
    database: Database, enlisted: Engine
) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    with database.connect(autocommit=False, application_name="report") as connection:
        connection.execute("SELECT FROM pggit.alert_delivery_queue FOR UPDATE")
        locked = only(explained(database, delivery_id), "locked")
        assert enlisted.take() == []
        assert f"pid {connection.info.backend_pid}" in locked.text and "report" in locked.text
        assert locked.sql == (f"SELECT pg_terminate_backend({connection.info.backend_pid})",)
        connection.rollback()
        connection.execute("UPDATE pggit.webhook_health_metrics SET last_check_at = now()")
        assert "lane of webhook 1" in only(explained(database, delivery_id), "locked").text
        connection.rollback()
    only(explained(database, delivery_id), "free")
