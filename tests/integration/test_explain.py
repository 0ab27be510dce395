"""Why a delivery has not gone out: each cause, put into the real tables, is told; what is said to be free, a claim takes."""

import json
import math
import random
import shlex
import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from click.testing import CliRunner

from tests.acceptance.test_cli import webhookd
from tests.engine import (
    ROOMY,
    STANDARD,
    TEN_MINUTES_S,
    Engine,
    answered,
    engine,
    insert,
    let_pass,
    register,
    timed_out,
    unseen,
)
from tests.postgres import Database
from webhookd.claims import Defaults
from webhookd.cli import delivery_facts
from webhookd.cli.explain import Reason, reasons
from webhookd.cli.main import cli
from webhookd.core.answer import Answer, AnswerKind
from webhookd.core.model import Attempted

LANE = "UPDATE pggit.webhook_health_metrics SET {} WHERE webhook_id = 1"


@pytest.fixture
def worker(database: Database) -> Iterator[Engine]:
    """A worker that is known to be alive and to have room."""
    with engine(database, defaults=STANDARD) as worker:
        enlist(database, worker.worker_id, worker.incarnation)
        yield worker


def enlist(
    database: Database, worker_id: str, incarnation: UUID, *, seen_s_ago: float = 0.0, has_room: bool = True
) -> None:
    """Enter a worker's row as the worker itself would."""
    database.execute(
        "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version, seen_at, has_room)"
        " VALUES (%s, %s, 'somehost', 4711, '0', now() - %s * interval '1 second', %s)",
        [incarnation, worker_id, seen_s_ago, has_room],
    )


def explained(database: Database, delivery_id: int) -> list[Reason]:
    """Read the facts as the command does, and return what they mean."""
    with database.connect() as connection:
        return explained_by(connection, delivery_id, STANDARD)


def explained_by(connection: psycopg.Connection[tuple[Any, ...]], delivery_id: int, defaults: Defaults) -> list[Reason]:
    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
    with connection.transaction():
        facts = delivery_facts.read(connection, delivery_id, defaults)
    assert facts is not None
    return reasons(facts)


def names(found: list[Reason]) -> list[str]:
    return [reason.name for reason in found]


def only(found: list[Reason], name: str) -> Reason:
    """Return the one reason, which is *name*."""
    assert names(found) == [name]
    return found[0]


def left_s(database: Database, reason: Reason) -> float:
    """Return in how many seconds the reason ends, by the database's clock."""
    assert reason.until is not None
    return reason.until - float(database.execute("SELECT extract(epoch FROM now())::float8")[0][0])


def set_lane(database: Database, columns: str) -> None:
    """Put the lane of webhook 1 into a state that only workers write; no trigger sees it."""
    with unseen(database) as connection:
        connection.execute(LANE.format(columns).encode())


# Nothing holds it ---------------------------------------------------------------------------------------------------


def test_a_due_delivery_that_nothing_holds_is_said_to_be_free(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    free = only(explained(database, delivery_id), "free")
    assert "the next claim takes it" in free.text
    assert free.run == ()


def test_one_that_has_been_due_for_long_points_to_the_doctor(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1, due_in_s=-600)
    free = only(explained(database, delivery_id), "free")
    assert "10 min" in free.text
    assert free.run == ("webhookd doctor",)


def test_workers_that_have_no_room_are_said_to_be_busy(database: Database) -> None:
    enlist(database, "worker-1", uuid4(), has_room=False)
    register(database, 1)
    [delivery_id] = insert(database, 1)
    only(explained(database, delivery_id), "busy")


# The fleet ----------------------------------------------------------------------------------------------------------


def test_without_any_worker_that_comes_first(database: Database) -> None:
    register(database, 1, enabled=False)
    [delivery_id] = insert(database, 1)
    first, second = explained(database, delivery_id)
    assert (first.name, first.until, first.run) == ("no_worker", math.inf, ("webhookd doctor",))
    assert "No worker is registered" in first.text
    assert second.name == "paused"


def test_the_last_sign_of_a_silent_fleet_is_named(database: Database) -> None:
    enlist(database, "worker-1", uuid4(), seen_s_ago=900)
    enlist(database, "worker-2", uuid4(), seen_s_ago=300)
    register(database, 1)
    [delivery_id] = insert(database, 1)
    silent = only(explained(database, delivery_id), "no_worker")
    assert "worker-2 (somehost, pid 4711), 5 min ago" in silent.text


def test_a_lease_names_its_worker_and_its_end(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    assert len(worker.take()) == 1
    leased = only(explained(database, delivery_id), "leased")
    assert leased.text.startswith("worker-1 (somehost, pid 4711) has it in hand")
    assert " (in 3" in leased.text
    assert 5 < left_s(database, leased) <= 35, "5 s for the exchange, 30 s of margin"


def test_a_lease_whose_worker_is_silent_or_struck_says_so(database: Database, worker: Engine) -> None:
    enlist(database, "worker-2", uuid4())
    register(database, 1)
    [delivery_id] = insert(database, 1)
    assert len(worker.take()) == 1
    database.execute("UPDATE pggit.workers SET seen_at = now() - interval '25 s' WHERE worker_id = 'worker-1'")
    silent = only(explained(database, delivery_id), "leased_by_dead")
    assert "worker-1 (somehost, pid 4711) claimed it and was last seen 2" in silent.text
    database.execute("DELETE FROM pggit.workers WHERE worker_id = 'worker-1'")
    struck = only(explained(database, delivery_id), "leased_by_dead")
    assert "worker-1 claimed it and is no longer registered" in struck.text


def test_a_lease_that_ran_out_says_since_when(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    assert len(worker.take()) == 1
    let_pass(database, 45)
    expired = only(explained(database, delivery_id), "lease_expired")
    assert "ran out 1" in expired.text


def test_lost_leases_are_told_and_from_the_third_on_the_delivery_is_tried_alone(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    for lost in range(1, 4):
        assert len(worker.take()) == 1
        worker.release(worker.incarnation)
        found = explained(database, delivery_id)
        if lost < 3:
            assert names(found) == ["free", "leases_lost"]
    suspect = only(found, "suspect")
    assert "3 claims of it were lost" in suspect.text and "given up after 6" in suspect.text
    assert suspect.until is not None, "it has a backoff of its own"
    let_pass(database, TEN_MINUTES_S)
    assert names(explained(database, delivery_id)) == ["free", "suspect"]


# The webhook --------------------------------------------------------------------------------------------------------


def test_an_unregistered_webhook_says_how_to_register_it(database: Database, worker: Engine) -> None:
    [delivery_id] = insert(database, 77)
    for _ in range(2):  # before a worker looked at it, and after
        missing = only(explained(database, delivery_id), "unregistered")
        assert missing.run == ("webhookd webhook add URL --id 77",)
        assert worker.take_all() == []


def test_a_paused_webhook_says_why_and_how_to_resume_it(database: Database, worker: Engine) -> None:
    register(database, 1, enabled=False, disabled_reason="HTTP 410")
    [delivery_id] = insert(database, 1)
    paused = only(explained(database, delivery_id), "paused")
    assert "HTTP 410" in paused.text
    assert paused.run == ("webhookd webhook resume 1",)


def test_an_open_circuit_says_until_when_and_a_half_open_one_that_its_probe_is_out(database: Database, worker: Engine) -> None:
    register(database, 1)
    earlier = insert(database, 1, 5)
    worker.finish(worker.take(), answered(500))
    [delivery_id] = insert(database, 1)
    opened = only(explained(database, delivery_id), "circuit_open")
    assert "after 5 failures in a row" in opened.text
    assert 30 < left_s(database, opened) <= 60
    assert opened.run == ("webhookd webhook test 1",)
    let_pass(database, 61)
    assert names(explained(database, delivery_id)) == ["free", "probe_due"]
    [probe] = worker.take()
    others = [one for one in (*earlier, delivery_id) if one != probe.delivery_id]
    half_open = explained(database, others[0])[0]
    assert half_open.name == "circuit_half_open"
    only(explained(database, probe.delivery_id), "leased")


def test_a_receivers_retry_after_holds_the_webhook(database: Database, worker: Engine) -> None:
    register(database, 1)
    insert(database, 1)
    worker.finish(worker.take(), answered(429, retry_after="1200"))
    [delivery_id] = insert(database, 1)
    hold = only(explained(database, delivery_id), "hold")
    assert "Retry-After" in hold.text
    assert "(in 20 min)" in hold.text


def test_the_in_flight_cap_counts_real_leases(database: Database, worker: Engine) -> None:
    register(database, 1, max_in_flight=2)
    insert(database, 1, 2)
    assert len(worker.take()) == 2
    [delivery_id] = insert(database, 1)
    assert "2 of 2 are in flight" in only(explained(database, delivery_id), "in_flight").text
    # A DELETE strands the counter. A claim counts anew before it believes it, and so does this.
    database.execute("DELETE FROM pggit.alert_delivery_queue WHERE delivery_status = 'sending'")
    set_lane(database, "runnable_at = now(), blocked_by = NULL")
    only(explained(database, delivery_id), "free")


def test_the_rate_limit_tells_the_next_token_and_about_when_its_turn_comes(database: Database, worker: Engine) -> None:
    register(database, 1, rate_limit_per_second=0.01, rate_limit_burst=3)
    rows = insert(database, 1, 13)
    assert len(worker.take()) == 3
    behind, rate = explained(database, rows[-1])
    assert (behind.name, rate.name) == ("behind", "rate")
    assert "0.01 a second, burst 3" in rate.text
    assert "9 deliveries of webhook 1 go first" in behind.text
    assert 900 < left_s(database, behind) <= 1000, "ten tokens at 100 s each"
    assert 0 < left_s(database, rate) <= 100


def test_several_causes_are_told_with_the_one_that_lasts_longest_first(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1, due_in_s=300)
    set_lane(
        database,
        "circuit_state = 'open', circuit_until = now() + interval '1 minute', consecutive_failures = 5,"
        " hold_until = now() + interval '1 hour', tokens = 0, tokens_at = now()",
    )
    assert names(explained(database, delivery_id)) == ["hold", "scheduled", "circuit_open", "rate"]


def test_a_lane_that_waits_for_its_timer_is_parked(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    with unseen(database) as connection:
        connection.execute("UPDATE pggit.alert_delivery_queue SET routed = true")
    set_lane(database, "runnable_at = now() + interval '1 hour', blocked_by = 'rate'")
    parked = only(explained(database, delivery_id), "parked")
    assert "(in 60 min)" in parked.text and "rate" in parked.text
    set_lane(database, "runnable_at = NULL, blocked_by = NULL")
    assert "sweep" in only(explained(database, delivery_id), "parked").text


# The delivery itself ------------------------------------------------------------------------------------------------


def test_a_backoff_tells_the_attempt_its_time_and_the_last_answer(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    worker.finish(worker.take(), timed_out())
    backoff = only(explained(database, delivery_id), "backoff")
    assert "Attempt 2 of 4 is due" in backoff.text
    assert "timeout" in backoff.text
    assert backoff.run == (f"webhookd delivery retry {delivery_id}",)


def test_one_that_is_put_off_for_ever_says_so(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    database.execute("UPDATE pggit.alert_delivery_queue SET next_retry_at = 'infinity'")
    assert "for ever" in only(explained(database, delivery_id), "scheduled").text


def test_a_long_line_before_it_is_counted_up_to_a_bound(database: Database, worker: Engine) -> None:
    register(database, 1, rate_limit_per_second=0)
    rows = insert(database, 1, delivery_facts.MOST_AHEAD + 5)
    free, behind = explained(database, rows[5])
    assert (free.name, behind.name) == ("free", "behind")
    assert "5 deliveries of webhook 1 go first" in behind.text
    assert "10,000 or more" in explained(database, rows[-1])[1].text
    assert "1 delivery of webhook 1 goes first" in explained(database, rows[1])[1].text
    assert names(explained(database, rows[0])) == ["free"]


def test_a_finished_delivery_tells_its_end(database: Database, worker: Engine) -> None:
    register(database, 1, 2)
    [good], [bad] = insert(database, 1), insert(database, 2)
    for claimed in worker.take():
        worker.finish([claimed], answered(200 if claimed.delivery_id == good else 400))
    assert "by worker-1, at the 1st attempt" in only(explained(database, good), "delivered").text
    failed = only(explained(database, bad), "failed")
    assert "after 1 attempt " in failed.text and "400" in failed.text
    assert failed.run == (f"webhookd delivery retry {bad}",)


def test_a_failed_delivery_whose_webhook_was_disabled_says_both(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    worker.finish(worker.take(), answered(410))
    failed, gone = explained(database, delivery_id)
    assert (failed.name, gone.name, gone.until) == ("failed", "gone", None)
    assert "answered 410 Gone" in gone.text and "paused" not in gone.text
    assert gone.run == ("webhookd webhook resume 1",)
    [waiting] = insert(database, 1)
    assert only(explained(database, waiting), "gone").text == gone.text


def test_a_target_that_is_not_allowed_says_that_a_retry_alone_is_no_help(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    refusal = "the address 10.0.0.1 is private; --allow-network permits such targets"
    worker.finish(worker.take(), Attempted(Answer(AnswerKind.NOT_ALLOWED, 0.0, error=refusal), time.monotonic()))
    assert "Start the service with --allow-network first" in only(explained(database, delivery_id), "failed").text


def test_an_id_that_no_webhook_can_have_is_not_to_be_registered(database: Database, worker: Engine) -> None:
    [delivery_id] = insert(database, 0)
    unregistered = only(explained(database, delivery_id), "unregistered")
    assert (unregistered.run, len(unregistered.sql)) == ((), 1)
    database.execute(unregistered.sql[0])
    only(explained(database, delivery_id), "failed")


@pytest.mark.parametrize("instant", ["infinity", "-infinity", "20000-01-01", "0044-03-15 BC"])
def test_instants_that_no_calendar_has_are_shown_all_the_same(database: Database, worker: Engine, instant: str) -> None:
    register(database, 1, 2)
    [waiting], [done] = insert(database, 1), insert(database, 2)
    worker.finish(worker.take(), answered(200))
    columns = "created_at = %(at)s, next_retry_at = %(at)s, attempted_at = %(at)s, delivered_at = %(at)s, lease_until = %(at)s"
    for status, number in (("pending", waiting), ("sending", waiting), ("delivered", done)):
        database.execute(
            f"UPDATE pggit.alert_delivery_queue SET {columns}, delivery_status = %(status)s WHERE delivery_id = %(number)s",
            {"at": instant, "status": status, "number": number},
        )
        assert explained(database, number)
    database.execute("UPDATE pggit.alert_delivery_log SET created_at = %s", [instant])
    for command in (["list"], ["list", "--json"], ["show", str(done)], ["show", str(done), "--json"]):
        shown = CliRunner().invoke(cli, ["delivery", *command, "--dsn", database.dsn], catch_exceptions=False)
        assert (shown.exit_code, instant[:5] in shown.output) == (0, True)
    assert CliRunner().invoke(cli, ["delivery", "explain", str(done), "--dsn", database.dsn]).exit_code == 0


def test_a_row_or_lane_that_somebody_else_has_locked_is_told(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    with database.connect(autocommit=False, application_name="somebody") as connection:
        connection.execute("SELECT FROM pggit.alert_delivery_queue FOR UPDATE")
        locked = only(explained(database, delivery_id), "locked")
        assert worker.take() == []
        assert f"pid {connection.info.backend_pid}" in locked.text and "somebody" in locked.text
        assert locked.sql == (f"SELECT pg_terminate_backend({connection.info.backend_pid})",)
        connection.rollback()
        connection.execute("UPDATE pggit.webhook_health_metrics SET last_check_at = now()")
        assert "lane of webhook 1" in only(explained(database, delivery_id), "locked").text
        connection.rollback()
    only(explained(database, delivery_id), "free")


# It agrees with the engine ------------------------------------------------------------------------------------------


def test_what_is_said_to_be_free_is_exactly_what_a_claim_takes(database: Database) -> None:
    """Lanes and rows in states at random, each of one webhook; no instant so close that time decides."""
    chance = random.Random(0)
    webhooks = range(1, 101)
    register(database, *webhooks, rate_limit_per_second=0.001, rate_limit_burst=3, max_in_flight=2)
    for webhook_id in webhooks:
        insert(database, webhook_id, chance.choice([1, 1, 3]) if webhook_id % 7 else 1)  # of suspects any may go first
    when = [None, "now() - interval '1 hour'", "now() + interval '1 hour'"]
    with unseen(database) as connection:
        connection.execute("UPDATE pggit.webhooks SET enabled = false WHERE webhook_id % 11 = 0")
        connection.execute("DELETE FROM pggit.webhooks WHERE webhook_id % 13 = 0")
        for webhook_id in webhooks:
            state = chance.choice(["closed", "closed", "open", "half_open"])
            until = when[chance.randrange(3)] if state == "closed" else chance.choice(when[1:])
            lane = {
                "circuit_state": f"'{state}'",
                "circuit_until": until,
                "hold_until": chance.choice([*when, None, None]),
                "tokens": chance.choice([None, "0.5", "1.5", "3"]),
                "in_flight": chance.choice(["0", "0", "2"]),  # 2 is the cap, and stranded
                "runnable_at": chance.choice([*when, when[1]]),
            }
            columns = ", ".join(f"{name} = {value or 'NULL'}" for name, value in lane.items())
            connection.execute(f"UPDATE pggit.webhook_health_metrics SET {columns} WHERE webhook_id = {webhook_id}".encode())
            row = {
                "routed": chance.choice(["true", "false"]),
                "leases_lost": chance.choice(["0", "0", "0", "1"]),
                "next_retry_at": chance.choice([when[1], when[1], when[2]]),
            }
            columns = ", ".join(f"{name} = {value}" for name, value in row.items())
            connection.execute(f"UPDATE pggit.alert_delivery_queue SET {columns} WHERE webhook_id = {webhook_id}".encode())
        suspects = "webhook_id % 7 = 0 AND webhook_id > 50"
        connection.execute(f"UPDATE pggit.alert_delivery_queue SET leases_lost = 4, routed = true WHERE {suspects}".encode())
        # A suspect's claim believes the counter, until a claim of other rows or the sweep has counted anew.
        connection.execute(f"UPDATE pggit.webhook_health_metrics SET in_flight = 0 WHERE {suspects}".encode())
    with engine(database, defaults=ROOMY) as worker:
        enlist(database, worker.worker_id, worker.incarnation)
        first_of = database.execute("SELECT min(delivery_id) FROM pggit.alert_delivery_queue GROUP BY webhook_id")
        with database.connect() as connection:
            said = {delivery_id: explained_by(connection, delivery_id, ROOMY) for (delivery_id,) in sorted(first_of)}
        free = {one for one, found in said.items() if all(reason.until is None for reason in found)}
        taken = {claimed.delivery_id for claimed in worker.take_all(1000)}
        for _ in webhooks:
            taken |= {claimed.delivery_id for claimed in worker.claimer.claim_suspect(worker.connection).deliveries}
    assert 10 < len(free) < 90, "the states are mixed"
    differing = sorted(free ^ (taken & said.keys()))
    assert differing == [], [(one, one in free, said[one]) for one in differing]


# The command --------------------------------------------------------------------------------------------------------


def test_the_command_prints_causes_what_to_run_and_the_attempts(database: Database, worker: Engine) -> None:
    register(database, 1)
    [delivery_id] = insert(database, 1)
    worker.finish(worker.take(), answered(503, excerpt="down for maintenance"))
    database.execute("UPDATE pggit.webhooks SET enabled = false, disabled_reason = 'by ops'")
    done = webhookd("delivery", "explain", str(delivery_id), dsn=database.dsn)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"delivery {delivery_id} for webhook 1 (https://receiver.example/1): retrying"
    assert lines[2:4] == ["- Webhook 1 is paused: by ops.", "    webhookd webhook resume 1"]
    assert lines[4].startswith("- Attempt 2 of 4 is due ")
    assert "down for maintenance" in lines[-1]
    report = json.loads(webhookd("delivery", "explain", str(delivery_id), "--json", dsn=database.dsn).stdout)
    paused, backoff = report["reasons"]
    assert (paused["reason"], paused["until"]) == ("paused", "never")
    assert backoff["until"].endswith("Z")
    assert report["log"][0]["http_status"] == 503
    # Pasted, a command must reach the same database.
    elsewhere = webhookd("delivery", "explain", str(delivery_id), "--dsn", database.dsn, dsn="host=/nowhere")
    command = next(line for line in elsewhere.stdout.splitlines() if "webhook resume 1" in line)
    assert webhookd(*shlex.split(command)[1:], dsn="host=/nowhere").returncode == 0
    assert database.execute("SELECT enabled FROM pggit.webhooks") == [(True,)]


def test_a_retry_says_what_the_delivery_then_waits_for(database: Database, worker: Engine) -> None:
    register(database, 1, enabled=False, disabled_reason="410 Gone")
    register(database, 2)
    insert(database, 2, 5)
    worker.finish(worker.take(), answered(500))
    ids = [str(one) for webhook_id in (1, 2, 3) for one in insert(database, webhook_id)]
    retry = ["delivery", "retry", "--dsn", database.dsn]
    lines = CliRunner().invoke(cli, [*retry, *ids], catch_exceptions=False).output.splitlines()
    assert lines[0] == "3 will be sent again"
    for number, words in zip(ids, ("410 Gone", "circuit of webhook 2 is open", "registered webhook 3"), strict=True):
        told = next(at for at, line in enumerate(lines) if line.startswith(f"delivery {number} waits."))
        assert words in lines[told]
        assert f"delivery explain {number}" in lines[told + 1]
    database.execute("UPDATE pggit.alert_delivery_queue SET delivery_status = 'failed' WHERE webhook_id <> 2")
    failed = CliRunner().invoke(cli, [*retry, "--failed"], catch_exceptions=False).output
    assert failed.startswith("2 will be sent again\n") and failed.count("waits.") == 2
    register(database, 4)
    [free] = insert(database, 4)
    assert CliRunner().invoke(cli, [*retry, str(free)], catch_exceptions=False).output == "1 will be sent again\n"


def test_a_delivery_that_is_not_committed_yet_points_to_the_producers_open_transaction(database: Database) -> None:
    insert(database, 1)
    with database.connect(autocommit=False, application_name="shop") as producer:
        row = producer.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}') RETURNING delivery_id"
        ).fetchone()
        assert row is not None
        done = webhookd("delivery", "explain", str(row[0]), dsn=database.dsn)
        as_json = webhookd("delivery", "explain", str(row[0]), "--json", dsn=database.dsn)
        pid = producer.info.backend_pid
    assert done.returncode == as_json.returncode == 1
    assert done.stderr.count("\n") == 1 and f"no delivery {row[0]} can be seen" in done.stderr
    assert f"the newest delivery is {row[0] - 1}" in done.stdout
    assert f"pid {pid} (shop, " in done.stdout and "idle in transaction" in done.stdout
    assert [one["pid"] for one in json.loads(as_json.stdout)["producers"]] == [pid]


def test_a_prepared_transaction_is_named_too(database: Database) -> None:
    with database.connect(autocommit=False) as producer:
        producer.execute("SET LOCAL webhookd.notify = off")
        producer.execute("INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')")
        producer.execute("PREPARE TRANSACTION 'order-9'")
        producer.rollback()
    try:
        done = webhookd("delivery", "explain", "999", dsn=database.dsn)
    finally:
        database.execute("ROLLBACK PREPARED 'order-9'")
    assert "the prepared transaction 'order-9', open for" in done.stdout
    assert "no transaction" in webhookd("delivery", "explain", "999", dsn=database.dsn).stdout
