"""When rows in quarantine are tried: in time, and not over and over when none is found."""

import math

import pytest

from webhookd.core.quarantine import (
    ALONE_WITHIN_S,
    ASK_EVERY_S,
    MISSED_FIRST_S,
    MISSED_MAX_S,
    TRY_EVERY_S,
    Quarantine,
)


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
    assert missed(quarantine.put_off(), at=at).due_at == at + MISSED_FIRST_S


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


def test_a_worker_is_alone_for_a_while_and_again_later() -> None:
    quarantine = Quarantine().asked(0.0, answered_at=5000.0)
    given_up_at = 5000.0 + ALONE_WITHIN_S
    again_at = given_up_at + MISSED_FIRST_S
    alone = []
    for at in (4999.0, 5000.0, given_up_at - 1, given_up_at, again_at - 1, again_at):
        quarantine = quarantine.turned(at)
        assert quarantine.changes_at > at
        alone.append(quarantine.alone)
    assert alone == [False, True, True, False, False, True]


def test_a_worker_stays_alone_for_as_long_as_the_exchange_may_last() -> None:
    quarantine = Quarantine().asked(0.0, answered_at=5000.0).turned(5000.0)
    quarantine = quarantine.sent(5001.0, timeout_s=600.0)
    assert quarantine.turned(5601.0).alone
    assert not quarantine.turned(5601.0 + ALONE_WITHIN_S).alone


def test_one_is_tried_only_while_alone_and_not_before_nothing_is_outstanding() -> None:
    quarantine = Quarantine().asked(0.0, answered_at=5000.0)
    assert quarantine.delayed(5001.0).try_at == math.inf
    quarantine = quarantine.turned(5000.0)
    assert quarantine.try_at == 5000.0
    assert quarantine.delayed(5001.0).try_at == 5001.0
    assert quarantine.sent(5002.0, timeout_s=1.0).try_at == 5002.0 + TRY_EVERY_S
    assert quarantine.put_off().try_at == quarantine.missed(5002.0).try_at == math.inf
    assert not quarantine.put_off().alone and not quarantine.missed(5002.0).alone
