"""When rows in quarantine are tried: in time, for a tenth of the time at most, and not over and
over when none is found.
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhookd.core.quarantine import (
    ALONE_WITHIN_S,
    ASK_EVERY_S,
    MISSED_FIRST_S,
    MISSED_MAX_S,
    REST_FACTOR,
    TRY_EVERY_S,
    Quarantine,
)


def alone(at: float) -> Quarantine:
    """Return one whose worker has the turn since *at*."""
    return Quarantine().asked(0.0, answered_at=at).taken(at, held=True, free_in_s=0.0)


def missed(quarantine: Quarantine, *, at: float) -> Quarantine:
    """Find none at that time, although one has long been due."""
    return quarantine.missed(at).asked(-1000.0, answered_at=at)


def test_a_row_that_is_not_found_is_tried_less_and_less_often() -> None:
    quarantine, at = Quarantine(), 5000.0
    pauses: list[float] = []
    for _ in range(6):
        quarantine = missed(quarantine, at=at)
        pauses.append(quarantine.due_at - at)
        at = quarantine.due_at
    assert pauses[:2] == [MISSED_FIRST_S, MISSED_FIRST_S * 2]
    assert pauses[-1] == MISSED_MAX_S
    assert missed(quarantine.put_off(at), at=at).due_at == at + MISSED_FIRST_S


@pytest.mark.parametrize(
    ("due_s", "due_at"),
    [(-0.25, 5000.25), (-0.75, 5000.0 + MISSED_FIRST_S), (math.inf, math.inf)],
)
def test_a_row_that_came_due_after_none_was_found_is_tried_at_once(
    due_s: float, due_at: float
) -> None:
    quarantine = Quarantine().missed(5000.0).asked(due_s, answered_at=5000.5)
    assert quarantine.due_at == due_at
    assert quarantine.ask_at == 5000.5 + ASK_EVERY_S


def test_a_worker_is_alone_only_while_it_has_the_turn() -> None:
    quarantine = Quarantine().asked(0.0, answered_at=5000.0)
    assert quarantine.due_at == 5000.0 and not quarantine.turned(5000.0).alone
    waits = quarantine.taken(5000.0, held=False, free_in_s=7.0)
    assert (waits.alone, waits.due_at, waits.try_at) == (False, 5007.0, math.inf)
    has_it = quarantine.taken(5000.0, held=True, free_in_s=0.0)
    assert (has_it.alone, has_it.due_at, has_it.try_at) == (True, math.inf, 5000.0)
    assert has_it.asked(0.0, answered_at=5001.0).due_at == math.inf


def test_a_worker_is_alone_for_a_while_and_again_after_nine_times_as_long() -> None:
    quarantine = alone(5000.0)
    assert quarantine.turned(5000.0 + ALONE_WITHIN_S - 1) == quarantine
    given_up_at = quarantine.changes_at
    assert given_up_at == 5000.0 + ALONE_WITHIN_S
    quarantine = quarantine.turned(given_up_at)
    assert not quarantine.alone
    assert quarantine.due_at == given_up_at + REST_FACTOR * ALONE_WITHIN_S
    assert quarantine.asked(0.0, answered_at=given_up_at).due_at == quarantine.due_at


def test_a_worker_stays_alone_for_as_long_as_the_exchange_may_last() -> None:
    quarantine = alone(5000.0).sent(5001.0, timeout_s=600.0)
    assert quarantine.turned(5601.0).alone
    assert not quarantine.turned(5601.0 + ALONE_WITHIN_S).alone
    # Then it tries no other.
    assert not quarantine.is_over(5001.0) and quarantine.is_over(5601.0)


def test_one_is_tried_only_while_alone_and_not_before_nothing_is_outstanding() -> None:
    quarantine = Quarantine().asked(0.0, answered_at=5000.0)
    assert quarantine.delayed(5001.0).try_at == math.inf
    # While the database is away the turn is not asked for either.
    assert quarantine.delayed(5001.0).due_at == 5001.0
    quarantine = alone(5000.0)
    assert quarantine.try_at == 5000.0
    assert quarantine.delayed(5001.0).try_at == 5001.0
    assert quarantine.sent(5002.0, timeout_s=1.0).try_at == 5002.0 + TRY_EVERY_S
    for ended in (quarantine.put_off(5002.0), quarantine.missed(5002.0)):
        assert ended.try_at == math.inf and not ended.alone


EVENTS = st.sampled_from(["asked", "taken", "refused", "sent", "put_off", "missed", "delayed"])


@settings(max_examples=300)
@given(st.lists(st.tuples(EVENTS, st.floats(0.0, 30.0)), max_size=60))
def test_a_worker_is_alone_for_a_tenth_of_its_time_at_most(
    events: list[tuple[str, float]],
) -> None:
    """Whatever happens: from the begin of one turn to that of the next, nine tenths are for others.
    Only what a dispatcher may do is done: it takes the turn when that is due, and tries while it is
    alone.
    """
    quarantine, now = Quarantine(), 5000.0
    begun_at, alone_s = math.inf, 0.0
    for event, pause_s in events:
        before, now = now, now + pause_s
        if quarantine.alone:
            alone_s += min(now, quarantine.changes_at) - before
        quarantine = quarantine.turned(now)
        if event == "asked":
            quarantine = quarantine.asked(-5.0, answered_at=now)
        elif event in ("taken", "refused") and now >= quarantine.due_at:
            if event == "taken":
                if begun_at < math.inf:
                    assert alone_s <= (now - begun_at) / 10 + 1e-6
                begun_at, alone_s = now, 0.0
            quarantine = quarantine.taken(now, held=event == "taken", free_in_s=1.0)
        elif quarantine.alone and event == "sent" and not quarantine.is_over(now):
            quarantine = quarantine.sent(now, timeout_s=5.0)
        elif quarantine.alone and event == "put_off":
            quarantine = quarantine.put_off(now)
        elif quarantine.alone and event == "missed":
            quarantine = quarantine.missed(now)
        elif event == "delayed":
            quarantine = quarantine.delayed(now + 0.1)
