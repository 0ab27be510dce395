"""How a lane's speed follows its exchanges."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from tests.support.values import delivery
from webhookd.core.answer import Answer, AnswerKind
from webhookd.core.breaker import Breaker
from webhookd.core.bucket import Bucket
from webhookd.core.lane import Lane, settle_lane
from webhookd.core.lifecycle import settle
from webhookd.core.model import Attempted, GivenBack, Lost, Outcome, Result
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


def test_results_measure_a_lane_and_one_that_is_fast_again_is_looked_at_at_once() -> None:
    lane = Lane(
        webhook_id=1,
        breaker=Breaker(),
        bucket=Bucket(None, 0.0),
        in_flight=3,
        hold_until=None,
        runnable_at=500.0,
        blocked_by=None,
        health="healthy",
        speed=Speed(0.16, slow=True),
    )
    item = delivery()
    fast = Attempted(Answer(AnswerKind.RESPONSE, 0.01, http_status=200), ended=0.0)
    late = Attempted(Answer(AnswerKind.TIMEOUT, 5.0), ended=0.0)

    def settled(*outcomes: Outcome) -> Lane:
        pairs = [
            (
                Result(item, outcome),
                settle(item, outcome, now_at=datetime.fromtimestamp(1000, tz=UTC), u=0.5),
            )
            for outcome in outcomes
        ]
        return settle_lane(lane, pairs, now=1000.0)

    again = settled(fast)
    assert again.speed == lane.speed.after(0.01)
    assert again.speed.slow is False
    assert again.runnable_at == 1000.0, "looks of fast lanes may not go back that far"
    assert settled(late).speed == lane.speed.after(5.0)
    assert settled(late).runnable_at == 500.0
    assert settled(GivenBack(), Lost()).speed == lane.speed
