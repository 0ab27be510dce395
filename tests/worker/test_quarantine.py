"""When suspects are tried: in time, and not over and over where one is not to be had."""

import math

from webhookd.worker.quarantine import ALONE_WITHIN_S, MISSED_FIRST_S, MISSED_MOST_S, Quarantine


def missed(suspects: Quarantine, *, at: float) -> float:
    """Have none be had *at* that time although one has long been due; return how long it waits
    then.
    """
    suspects.missed(at)
    suspects.see(-1000.0, now=at)
    return suspects.due_at - at


def test_what_is_not_to_be_had_is_tried_less_and_less_often() -> None:
    suspects, at = Quarantine(), 5000.0
    pauses: list[float] = []
    for _ in range(6):
        pauses.append(missed(suspects, at=at))
        at += pauses[-1]
    assert pauses[:2] == [MISSED_FIRST_S, MISSED_FIRST_S * 2]
    assert pauses[-1] == MISSED_MOST_S
    suspects.put_off()
    assert missed(suspects, at=at) == MISSED_FIRST_S


def test_what_has_come_due_since_nothing_was_to_be_had_is_tried_at_once() -> None:
    suspects = Quarantine()
    suspects.missed(5000.0)
    suspects.see(-0.25, now=5000.5)
    assert suspects.due_at == 5000.25
    suspects.see(-0.75, now=5000.5)
    assert suspects.due_at == 5000.0 + MISSED_FIRST_S
    suspects.see(math.inf, now=5000.5)
    assert suspects.due_at == math.inf


def alone(suspects: Quarantine, *, at: float) -> bool:
    suspects.turn(at)
    return suspects.alone


def test_being_alone_ends_and_comes_back() -> None:
    suspects = Quarantine()
    suspects.see(0.0, now=5000.0)
    given_up_at = 5000.0 + ALONE_WITHIN_S
    again_at = given_up_at + MISSED_FIRST_S
    assert [alone(suspects, at=at) for at in (5000.0, given_up_at - 1, given_up_at)] == [
        True,
        True,
        False,
    ]
    assert [alone(suspects, at=at) for at in (again_at - 1, again_at)] == [False, True]


def test_a_worker_stays_alone_for_as_long_as_a_suspects_exchange_may_last() -> None:
    suspects = Quarantine()
    suspects.see(0.0, now=5000.0)
    assert alone(suspects, at=5000.0)
    suspects.sent(5001.0, timeout_s=600.0)
    assert [alone(suspects, at=5001.0 + 600.0 + extra_s) for extra_s in (0.0, ALONE_WITHIN_S)] == [
        True,
        False,
    ]
