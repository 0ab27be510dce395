"""How a lane's speed follows its exchanges."""

from hypothesis import given
from hypothesis import strategies as st

from webhookd.core.speed import (
    LONGEST_COUNTED_S,
    NOT_SLOW_BELOW_S,
    SLOW_AFTER_S,
    UNMEASURED,
    Speed,
)

times = st.floats(0, 600)


def after(*times_s: float, speed: Speed = UNMEASURED) -> Speed:
    for time_s in times_s:
        speed = speed.after(time_s)
    return speed


def test_the_first_exchange_decides() -> None:
    assert after(0.01) == Speed(0.01, slow=False)
    assert after(4.8).slow is True


def test_one_hiccup_does_not_make_a_fast_lane_slow_and_a_second_one_does() -> None:
    fast = after(*[0.02] * 5)
    assert fast.after(600.0).slow is False
    assert after(600.0, 600.0, speed=fast).slow is True


def test_a_slow_lane_is_fast_again_after_some_fast_exchanges() -> None:
    slow = after(*[4.8] * 20)
    assert after(*[0.02] * 8, speed=slow).slow is True
    assert after(*[0.02] * 10, speed=slow).slow is False


@given(st.lists(times, min_size=1))
def test_the_mean_stays_between_the_shortest_and_the_longest(times_s: list[float]) -> None:
    mean_s = after(*times_s).exchange_s
    assert mean_s is not None
    assert min(times_s[0], *times_s, LONGEST_COUNTED_S) - 1e-9 <= mean_s
    assert mean_s <= min(max(times_s), LONGEST_COUNTED_S) + 1e-9


@given(st.lists(st.floats(NOT_SLOW_BELOW_S + 0.001, SLOW_AFTER_S - 0.001)))
def test_between_the_two_bounds_nothing_changes(times_s: list[float]) -> None:
    fast, slow = Speed(0.2, slow=False), Speed(0.2, slow=True)
    assert after(*times_s, speed=fast).slow is False
    assert after(*times_s, speed=slow).slow is True
