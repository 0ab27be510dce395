"""Rows that become values and values that become rows: nothing is lost or exchanged on the way."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.engine import STANDARD, Engine, answered, insert, lane, register
from tests.support.postgres import Database
from tests.support.values import delivery
from webhookd.core.lane import Admission
from webhookd.core.lifecycle import settle
from webhookd.core.model import Result, WebhookDefaults, WebhookSettings
from webhookd.postgres import batches, rows, statements

# Every column of a lane has a value of its own, which differs from its default.
LANE = {
    "circuit_state": "'open'",
    "circuit_epoch": "11",
    "consecutive_failures": "12",
    "circuit_until": "to_timestamp(2000000013)",
    "hold_until": "to_timestamp(2000000014)",
    "tokens": "15.5",
    "tokens_at": "to_timestamp(1500000016)",
    "in_flight": "17",
    "runnable_at": "to_timestamp(2000000018)",
    "blocked_by": "'hold'",
    "health_status": "'unavailable'",
    "exchange_seconds": "0.19",
    "slow": "true",
}


def read_lane(worker: Engine) -> Sequence[Any]:
    parameters = {"webhook_ids": "{1}"}
    [row] = worker.connection.execute(statements.load("lock_recorded_lanes"), parameters).fetchall()
    return row


def test_a_lane_is_stored_as_it_was_read(database: Database, worker: Engine) -> None:
    register(database, 1)
    insert(database, 1)
    worker.take_all()
    assignments = ", ".join(f"{column} = {value}" for column, value in LANE.items())
    database.execute(f"UPDATE pggit.webhook_health_metrics SET {assignments}")
    read = rows.lane_of(read_lane(worker))
    assert (read.breaker.state, read.breaker.generation, read.breaker.failures) == ("open", 11, 12)
    assert (read.breaker.next_probe_at, read.hold_until) == (2000000013.0, 2000000014.0)
    assert (read.bucket.tokens, read.bucket.at) == (15.5, 1500000016.0)
    assert (read.in_flight, read.runnable_at) == (17, 2000000018.0)
    assert (read.blocked_by, read.health) == ("hold", "unavailable")
    assert read.speed == (0.19, True)
    before = lane(database, 1)
    database.execute(
        "UPDATE pggit.webhook_health_metrics SET circuit_state = 'closed', circuit_epoch = 0,"
        " consecutive_failures = 0, circuit_until = NULL, hold_until = NULL, tokens = NULL,"
        " tokens_at = now(), in_flight = 0, runnable_at = NULL, blocked_by = NULL,"
        " health_status = 'degraded', exchange_seconds = NULL, slow = NULL"
    )
    worker.connection.execute(
        statements.load("update_lanes"), batches.lane_parameters([read], {1: []})
    )
    assert rows.lane_of(read_lane(worker)) == read
    assert {
        name: value for name, value in lane(database, 1).items() if not name.endswith("_in_s")
    } == {name: value for name, value in before.items() if not name.endswith("_in_s")}


def test_each_setting_comes_from_its_own_column(database: Database, worker: Engine) -> None:
    limits = {column: 2.0 + place for place, column in enumerate(rows.LIMITS)}
    register(database, 1, **limits)
    insert(database, 1)
    [claimed] = worker.take_all()
    settings = claimed.settings
    found = {column: getattr(settings, limit.setting) for column, limit in rows.LIMITS.items()}
    assert found == limits


def test_limits_have_the_same_order_in_rows_defaults_and_settings() -> None:
    names = tuple(limit.setting for limit in rows.LIMITS.values())
    assert WebhookDefaults._fields == names
    assert WebhookSettings._fields[-len(names) :] == names


@given(st.lists(st.booleans(), min_size=10, max_size=10))
def test_a_default_fills_what_the_row_leaves_null(given_: list[bool]) -> None:
    limits = [None if left else 3 for left in given_]
    settings = rows.settings_of((1, *[None] * 6, *limits), STANDARD)
    assert (settings.url, settings.enabled, settings.headers) == ("", False, None)
    own = settings[-len(limits) :]
    expected = [
        default if mine is None else mine for mine, default in zip(limits, STANDARD, strict=True)
    ]
    assert list(own) == expected


@given(
    st.lists(st.floats(allow_nan=True), min_size=6, max_size=6),
    st.integers(-(2**31), 2**31 - 1),
)
def test_no_limit_leads_to_an_instant_that_postgresql_rejects(
    numbers: list[float], whole: int
) -> None:
    timeout_s, rate, base_s, factor, max_s, open_s = numbers
    limits = WebhookDefaults(
        timeout_s, whole, rate, whole, whole, base_s, factor, max_s, whole, open_s
    )
    clamped = rows.clamp_limits(limits)
    assert 0 <= clamped.timeout_s <= rows.LONGEST_TIMEOUT_S
    assert clamped.rate == 0 or 1e9 >= clamped.rate > 0
    assert clamped.burst >= 1
    assert clamped.max_retries >= 0
    assert 1 <= clamped.retry_factor <= 100
    for value in (clamped.retry_base_s, clamped.retry_max_s, clamped.circuit_open_s):
        assert 0 <= value <= 1e8
    assert rows.clamp_limits(clamped) == clamped


def filled(statement: str, parameters: Mapping[str, object]) -> bool:
    """Return whether each array that *statement* reads has a parameter."""
    arrays = set(re.findall(r"%\((\w+)\)s::\w+\[\]", statements.load(statement)))
    return arrays == set(parameters) and bool(arrays)


@pytest.mark.parametrize("count", [1, 3])
def test_a_statements_arrays_are_those_that_are_built(count: int) -> None:
    deliveries = [delivery(delivery_id=number) for number in range(count)]
    results = [Result(item, answered(500)) for item in deliveries]
    settled = [
        (result, settle(result.delivery, result.outcome, now_at=datetime.now(UTC), u=0.5))
        for result in results
    ]
    assert filled("settle", batches.settle_parameters(settled, now=0.0))
    one = rows.lane_of(
        (1, "closed", 0, 0, None, None, None, None, 0, None, None, "healthy", None, None, None)
    )
    assert filled("update_lanes", batches.lane_parameters([one], {1: settled}))
    admissions = batches.admission_parameters([one], [Admission(1)], [None], [-math.inf])
    assert filled("claim", admissions)
