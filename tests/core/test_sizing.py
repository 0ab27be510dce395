"""How much is claimed and how many threads run: bounds, and when these change."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd.core.sizing import (
    BLOCKED_AFTER_S,
    BLOCKED_TICKS,
    CROWDED,
    FORGOTTEN_IN_S,
    MAX_CAPACITY,
    MEASURE_EVERY_S,
    MIN_CAPACITY,
    STARVED,
    WEIGH_EVERY_S,
    WORK_AHEAD_S,
    WORK_LEFT_S,
    Growth,
    Throughput,
    all_blocked,
)

NOW = 1000.0
counts = st.integers(0, 2000)
limits = st.integers(1, 512)
rates = st.floats(0, 1e5)
shares = st.floats(0, 2)


# How much to claim


@given(rates, counts, limits)
def test_the_capacity_is_bounded_and_feeds_every_thread(
    per_s: float, threads: int, max_threads: int
) -> None:
    threads = min(threads, max_threads)
    capacity = Throughput(NOW, per_s).capacity(threads=threads, max_threads=max_threads)
    assert max(MIN_CAPACITY, 2 * threads) <= capacity <= max(MAX_CAPACITY, 2 * max_threads)


@given(rates, rates, counts, limits)
def test_a_faster_worker_never_holds_less(
    per_s: float, more: float, threads: int, max_threads: int
) -> None:
    slow, fast = Throughput(NOW, per_s), Throughput(NOW, per_s + more)
    assert slow.capacity(threads=threads, max_threads=max_threads) <= fast.capacity(
        threads=threads, max_threads=max_threads
    )


@given(rates, counts, counts, counts, limits)
def test_room_and_what_is_held_never_exceed_the_capacity(
    per_s: float, waiting: int, busy: int, threads: int, max_threads: int
) -> None:
    throughput = Throughput(NOW, per_s)
    room = throughput.room(waiting=waiting, busy=busy, threads=threads, max_threads=max_threads)
    capacity = throughput.capacity(threads=threads, max_threads=max_threads)
    assert room <= 0 or room + waiting + busy == capacity
    if waiting > per_s * WORK_LEFT_S:
        assert room == 0, "enough waits to keep every sender busy"


def test_a_claim_is_a_tenth_of_a_seconds_work() -> None:
    room = Throughput(NOW, 2000.0).room(waiting=0, busy=0, threads=4, max_threads=16)
    assert room == 2000 * WORK_AHEAD_S + 4


def test_the_throughput_rises_at_once_and_falls_slowly() -> None:
    throughput = Throughput(NOW)
    assert not throughput.due(NOW + MEASURE_EVERY_S / 2)
    now = NOW + 2 * MEASURE_EVERY_S
    assert throughput.due(now)
    throughput = throughput.measured(100, now)
    assert throughput.per_s == pytest.approx(2000)
    assert not throughput.due(now)
    later = throughput.measured(0, now + FORGOTTEN_IN_S / 10)
    assert later.per_s == pytest.approx(1800)
    assert throughput.measured(0, now + FORGOTTEN_IN_S).per_s == 0.0


@given(rates, counts, st.floats(MEASURE_EVERY_S, 100))
def test_the_throughput_stays_between_what_it_was_and_what_is_measured(
    per_s: float, finished: int, elapsed_s: float
) -> None:
    measured = Throughput(0.0, per_s).measured(finished, elapsed_s).per_s
    now = finished / elapsed_s
    low, high = min(per_s, now), max(per_s, now)
    assert low * (1 - 1e-9) - 1e-9 <= measured <= high * (1 + 1e-9) + 1e-9


# How many threads


@given(st.lists(st.booleans(), max_size=6), shares, counts, counts, limits)
def test_threads_are_started_only_while_all_are_blocked_and_none_starves(
    blocked: list[bool], starved: float, waiting: int, threads: int, max_threads: int
) -> None:
    threads = min(threads, max_threads)
    growth = Growth(starved=starved)
    for all_are in blocked:
        growth = growth.ticked(blocked=all_are)
    more = growth.more(waiting=waiting, threads=threads, max_threads=max_threads)
    assert 0 <= more <= min(waiting, max_threads - threads)
    long_enough = len(blocked) >= BLOCKED_TICKS and all(blocked[-BLOCKED_TICKS:])
    if not long_enough or starved >= STARVED:
        assert more == 0
    elif waiting > 0 and threads < max_threads:
        assert more > 0


def test_64_threads_are_there_within_a_fifth_of_a_second() -> None:
    threads, ticks, growth = 1, 0, Growth()
    while threads < 64:
        growth, ticks = growth.ticked(blocked=True), ticks + 1
        threads += growth.more(waiting=1000, threads=threads, max_threads=64)
    assert ticks * 0.01 < 0.2


@given(shares, counts)
def test_a_thread_leaves_where_they_starve_and_the_last_one_stays(
    starved: float, threads: int
) -> None:
    crowded = Growth(starved=starved).crowded(threads=threads)
    assert crowded == (starved > CROWDED and threads > 1)


def test_the_share_that_starves_is_weighed_now_and_then() -> None:
    growth = Growth()
    assert growth.due(NOW)
    growth = growth.weighed(5.0, threads=2, now=NOW)
    assert growth.starved == 0.0, "how long that took is not known"
    assert not growth.due(NOW + WEIGH_EVERY_S / 2)
    growth = growth.weighed(0.06, threads=2, now=NOW + 0.1)
    assert growth.starved == pytest.approx(0.3)
    assert growth.weighed(1.0, threads=0, now=NOW + 0.2).starved == 0.0
    assert growth.weighed(5.0, threads=2, now=NOW + 60).starved == 0.0, "after a pause"
    assert math.isfinite(growth.starved)


@pytest.mark.parametrize(
    ("since", "blocked"),
    [
        ([], True),
        ([NOW - 2 * BLOCKED_AFTER_S], True),
        ([NOW - BLOCKED_AFTER_S / 2], False),
        ([NOW - 1, None], False),
    ],
)
def test_a_thread_is_blocked_once_its_exchange_lasts(
    since: list[float | None], blocked: bool
) -> None:
    assert all_blocked(since, NOW) is blocked
