"""When a worker looks: after each event, and over all sequences of them. The protocol between
workers is explored by tests/property/wakeup_model.py.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhookd.core.quarantine import ALONE_WITHIN_S
from webhookd.core.schedule import (
    AWAY_MAX_S,
    BURST_NOTIFIES,
    BURST_S,
    CALL_EVERY_S,
    CONTENDED_FIRST_S,
    CONTENDED_MAX_S,
    DEAF_LOOK_S,
    LISTEN_AGAIN_S,
    LISTEN_MAX_S,
    LOOK_EVERY_S,
    NOT_NAMED_S,
    OUTWAIT_MAX_S,
    QUIET_S,
    SATURATED_S,
    Action,
    Schedule,
)

NOW = 1000.0
PRODUCERS = frozenset({"a", "b"})


def listening() -> Schedule:
    """A worker that listens and has its first look to do."""
    return Schedule().listener_opening(NOW, new_number=True).listener_opened(NOW)


def looked(schedule: Schedule, now: float = NOW, **claim: bool) -> Schedule:
    brought = {"claimed": False, "found": False, "full": False, "exhausted": True}
    return schedule.looked(now, **(brought | {"contended": False} | claim))


def rested(schedule: Schedule, now: float = NOW, **answer: Any) -> Schedule:
    asked: dict[str, Any] = {"lane_s": math.inf, "new_rows": False, "quarantine_s": math.inf}
    return schedule.rested(now, **(asked | {"answered_at": now, "u": 0.0} | answer))


def idle(schedule: Schedule) -> Schedule:
    """Look, find nothing, take the duty, look again, find nothing."""
    schedule = rested(looked(schedule)).duty_taken(held=True)
    return rested(looked(schedule.producers_read(NOW, producers=frozenset())))


# The usual way


def test_an_idle_worker_takes_the_duty_looks_once_more_and_sleeps() -> None:
    schedule = listening()
    assert schedule.next(NOW) is Action.LOOK
    schedule = looked(schedule)
    assert schedule.next(NOW) is Action.ASK_NEXT_LOOK
    schedule = rested(schedule)
    assert schedule.next(NOW) is Action.TAKE_DUTY
    schedule = schedule.duty_taken(held=True)
    assert schedule.next(NOW) is Action.READ_PRODUCERS
    schedule = schedule.producers_read(NOW, producers=frozenset())
    assert schedule.next(NOW) is Action.LOOK
    schedule = rested(looked(schedule))
    assert (schedule.next(NOW), schedule.wake_at()) == (Action.WAIT, math.inf)


def test_a_worker_that_leaves_the_duty_to_another_sleeps_at_once() -> None:
    schedule = rested(looked(listening())).duty_taken(held=False)
    assert (schedule.next(NOW), schedule.wake_at()) == (Action.WAIT, math.inf)


def test_it_wakes_for_the_next_lane_and_without_the_duty_a_little_later() -> None:
    assert rested(looked(idle(listening())), lane_s=7.0, u=0.5).wake_at() == NOW + 7.0
    other = rested(looked(listening())).duty_taken(held=False)
    assert rested(looked(other), lane_s=7.0, u=0.5).wake_at() == NOW + 7.0 + NOT_NAMED_S / 2


def test_it_does_not_take_the_duty_before_it_listens() -> None:
    schedule = rested(looked(Schedule().listener_opening(NOW, new_number=True)))
    assert (schedule.next(NOW), schedule.wake_at()) == (Action.WAIT, NOW + DEAF_LOOK_S)


# What looks bring


def test_a_full_claim_calls_the_others_now_and_then_and_looks_again_at_once() -> None:
    full = looked(listening(), full=True, claimed=True, found=True)
    assert full.next(NOW) is Action.CALL_ALL
    called = full.called_all(NOW).quarantine_asked(math.inf, answered_at=NOW)
    assert called.next(NOW) is Action.LOOK
    again = looked(called, NOW, full=True, claimed=True, found=True)
    assert again.next(NOW) is Action.LOOK
    later = NOW + CALL_EVERY_S
    assert looked(called, later, full=True, claimed=True).next(later) is Action.CALL_ALL


def test_while_others_hold_what_is_due_the_pauses_grow_until_something_is_claimed() -> None:
    schedule = listening().quarantine_asked(math.inf, answered_at=NOW)
    pauses = []
    for _ in range(8):
        schedule = looked(schedule, contended=True)
        pauses.append(schedule.look_at - NOW)
    assert pauses[:2] == pytest.approx([CONTENDED_FIRST_S, 2 * CONTENDED_FIRST_S])
    assert pauses[-1] == pytest.approx(CONTENDED_MAX_S)
    assert rested(looked(schedule), new_rows=True).look_at == pytest.approx(NOW + CONTENDED_MAX_S)
    schedule = looked(looked(schedule, claimed=True, found=True), contended=True)
    assert schedule.look_at == pytest.approx(NOW + CONTENDED_FIRST_S)


@pytest.mark.parametrize("due", [{"new_rows": True}, {"lane_s": 0.0}])
def test_it_looks_at_once_where_more_came_while_it_claimed(due: dict[str, Any]) -> None:
    schedule = rested(looked(listening(), claimed=True, found=True), **due)
    assert schedule.next(NOW) is Action.LOOK


# The duty


def test_it_looks_each_time_that_an_open_producer_is_gone_and_reads_less_and_less_often() -> None:
    schedule = rested(looked(idle(listening()).producers_read(NOW, producers=PRODUCERS)))
    pauses = []
    for _ in range(10):
        assert schedule.next(schedule.wake_at()) is Action.OUTWAIT
        schedule = schedule.outwaited(NOW, producers=PRODUCERS | {"later"})
        pauses.append(schedule.wake_at() - NOW)
    assert pauses == sorted(pauses) and pauses[-1] == pytest.approx(OUTWAIT_MAX_S)
    schedule = schedule.outwaited(NOW, producers=frozenset({"b", "later"}))
    assert schedule.next(NOW) is Action.LOOK
    schedule = rested(looked(schedule))
    assert schedule.outwait.at - NOW < OUTWAIT_MAX_S / 10
    schedule = rested(looked(schedule.outwaited(NOW, producers=frozenset())))
    assert schedule.wake_at() == math.inf


def test_many_notifications_in_a_moment_lower_the_flag_until_it_is_quiet() -> None:
    schedule = idle(listening())
    for number in range(BURST_NOTIFIES):
        assert schedule.next(NOW) is not Action.LOWER_FLAG
        schedule = schedule.notified(NOW + number * 0.001, mine=1, called=False)
    now = NOW + BURST_NOTIFIES * 0.001
    assert schedule.next(now) is Action.LOWER_FLAG
    schedule = schedule.flag_lowered(now)
    assert rested(looked(schedule, now), now).wake_at() == pytest.approx(now + LOOK_EVERY_S)
    quiet = now + QUIET_S
    assert rested(looked(schedule, quiet), quiet).next(quiet) is Action.TAKE_DUTY


def test_as_many_notifications_over_a_longer_time_do_not() -> None:
    schedule = idle(listening())
    for number in range(2 * BURST_NOTIFIES):
        schedule = schedule.notified(
            NOW + number * BURST_S / (BURST_NOTIFIES - 2), mine=1, called=False
        )
        assert Action.LOWER_FLAG not in schedule.todo


def test_another_ones_name_makes_it_look_later_and_a_call_to_all_at_once() -> None:
    schedule = rested(looked(listening())).duty_taken(held=False)
    assert schedule.notified(NOW, mine=0, called=False).wake_at() == NOW + NOT_NAMED_S
    assert schedule.notified(NOW, mine=0, called=True).next(NOW) is Action.LOOK


def test_its_own_name_makes_it_look_and_take_the_duty() -> None:
    schedule = rested(looked(listening())).duty_taken(held=False)
    schedule = schedule.notified(NOW, mine=1, called=False)
    assert schedule.holds_duty and schedule.next(NOW) is Action.LOOK
    assert rested(looked(schedule)).next(NOW) is Action.TAKE_DUTY


def test_without_room_it_hands_the_duty_over_but_not_for_a_moment() -> None:
    schedule = idle(listening()).with_room(NOW, has_room=False)
    assert (schedule.next(NOW), schedule.wake_at()) == (Action.WAIT, NOW + SATURATED_S)
    assert schedule.with_room(NOW, has_room=True).wake_at() == math.inf
    schedule = schedule.with_room(NOW + SATURATED_S, has_room=False)
    assert schedule.next(NOW + SATURATED_S) is Action.HAND_OVER_DUTY
    schedule = schedule.handed_over(NOW)
    assert schedule.wake_at() == math.inf
    schedule = schedule.room_returned(NOW)
    assert schedule.next(NOW) is Action.LOOK
    assert rested(looked(schedule)).next(NOW) is Action.TAKE_DUTY


# The LISTEN connection and the database


def test_a_listener_that_fails_is_opened_again_with_growing_pauses() -> None:
    schedule, pauses = rested(looked(Schedule())), []
    for _ in range(8):
        schedule = schedule.listener_failed(NOW, deaf=False, u=1.0)
        pauses.append(schedule.listen_at - NOW)
    assert pauses[:2] == [2 * LISTEN_AGAIN_S, 4 * LISTEN_AGAIN_S] and pauses[-1] == LISTEN_MAX_S
    assert schedule.next(schedule.listen_at) is Action.OPEN_LISTENER
    assert schedule.look_at == NOW + DEAF_LOOK_S
    deaf = Schedule().listener_failed(NOW, deaf=True, u=1.0)
    assert deaf.listen_at == NOW + LISTEN_MAX_S


def test_a_listener_that_is_lost_is_opened_again_and_its_worker_looks() -> None:
    lost = idle(listening()).listener_lost(NOW + 500)
    assert lost.next(NOW + 500) is Action.OPEN_LISTENER
    opening = lost.listener_opening(NOW + 500, new_number=False)
    assert opening.wake_at() == NOW + 500 + DEAF_LOOK_S
    opened = opening.listener_opened(NOW + 501)
    assert opened.next(NOW + 501) is Action.LOOK
    assert rested(looked(opened)).next(NOW) is Action.TAKE_DUTY


def test_a_new_number_has_no_duty() -> None:
    unregistered = idle(listening()).unregistered(NOW)
    assert unregistered.next(NOW) is Action.OPEN_LISTENER
    assert not unregistered.listener_opening(NOW, new_number=True).holds_duty
    assert unregistered.listener_opening(NOW, new_number=False).holds_duty


def test_while_the_database_is_away_nothing_is_asked_for_a_growing_pause() -> None:
    schedule = alone(idle(listening()).quarantine_asked(0.0, answered_at=NOW), NOW)
    assert schedule.next(NOW) is Action.LOOK_AT_QUARANTINE
    pauses = []
    for failures in range(1, 9):
        schedule = schedule.away(NOW, u=0.0)
        assert (schedule.next(NOW), schedule.failures) == (Action.WAIT, failures)
        assert not schedule.holds_duty
        assert schedule.unregistered(NOW).away(NOW, u=0.0).next(NOW) is Action.WAIT
        pauses.append(schedule.look_at - NOW)
    assert pauses == sorted(pauses) and pauses[-1] == AWAY_MAX_S / 2
    assert looked(schedule).failures == 0


# Rows in quarantine


def alone(schedule: Schedule, now: float) -> Schedule:
    """Take the turn to try such a row."""
    return schedule.with_quarantine(schedule.quarantine.taken(now, held=True, free_in_s=0.0))


def test_a_row_in_quarantine_is_tried_once_it_is_due_and_nothing_is_outstanding() -> None:
    schedule = idle(listening()).quarantine_asked(5.0, answered_at=NOW)
    assert schedule.wake_at() == NOW + 5.0
    assert schedule.next(NOW + 5.0) is Action.TAKE_QUARANTINE
    schedule = alone(schedule, NOW + 5.0).with_room(NOW + 5.0, has_room=False)
    assert schedule.quarantine.alone
    assert schedule.next(NOW + 5.0) is Action.LOOK_AT_QUARANTINE
    delayed = schedule.with_quarantine(schedule.quarantine.delayed(NOW + 5.01))
    assert delayed.wake_at() == NOW + 5.01
    sent = schedule.quarantine_looked(NOW + 5.0, timeout_s=5.0, found=True)
    assert sent.quarantine.alone
    for found in (False, True):
        missed = schedule.quarantine_looked(NOW + 5.0, timeout_s=None, found=found)
        assert not missed.quarantine.alone
        # The worker was without room while it was alone. It must not sleep until its next beat.
        assert missed.wake_at() <= NOW + 5.0
        missed = missed.with_room(NOW + 5.0, has_room=True)
        assert missed.next(NOW + 5.0) is Action.LEAVE_QUARANTINE
        assert missed.done().next(NOW + 5.0) is Action.LOOK


def test_a_turn_that_takes_too_long_is_given_back() -> None:
    schedule = alone(idle(listening()).quarantine_asked(0.0, answered_at=NOW), NOW)
    over = schedule.turned(NOW + ALONE_WITHIN_S)
    assert not over.quarantine.alone
    assert over.next(NOW + ALONE_WITHIN_S) is Action.LEAVE_QUARANTINE


# All sequences of events

flags, seconds = st.booleans(), st.sampled_from([-1.0, 0.0, 0.003, 0.3, 11.0, math.inf])
producers = st.sets(st.sampled_from("abc")).map(frozenset)
units = st.floats(0, 1, exclude_max=True)
Event = Callable[[Schedule, float], Schedule]


def event(name: str, **details: st.SearchStrategy[Any]) -> st.SearchStrategy[Event]:
    def happen(drawn: dict[str, Any]) -> Event:
        return lambda schedule, now: getattr(schedule, name)(now, **drawn)

    return st.fixed_dictionaries(details).map(happen)


claims = {key: flags for key in ("claimed", "found", "full", "exhausted", "contended")}
OUTSIDE = [
    event("with_room", has_room=flags),
    event("notified", mine=st.sampled_from([0, 1, BURST_NOTIFIES]), called=flags),
    event("room_returned"),
    event("lane_due", in_s=st.sampled_from([-1.0, 0.0, 0.3])),
    event("duty_doubted"),
    event("unregistered"),
    event("listener_opened"),
    event("listener_failed", deaf=flags, u=units),
    event("listener_lost"),
    event("away", u=units),
]
DONE: dict[Action, st.SearchStrategy[Event]] = {
    Action.OPEN_LISTENER: event("listener_opening", new_number=flags),
    Action.LOOK: event("looked", **claims),
    Action.CALL_ALL: event("called_all"),
    Action.ASK_NEXT_LOOK: st.tuples(seconds, flags, seconds, units).map(
        lambda answer: (
            lambda schedule, now: schedule.rested(
                now,
                lane_s=answer[0],
                new_rows=answer[1],
                quarantine_s=answer[2],
                answered_at=now,
                u=answer[3],
            )
        )
    ),
    Action.ASK_QUARANTINE: seconds.map(
        lambda due_s: lambda schedule, now: schedule.quarantine_asked(due_s, answered_at=now)
    ),
    Action.TAKE_QUARANTINE: st.tuples(flags, st.sampled_from([0.0, 0.3, 11.0])).map(
        lambda turn: (
            lambda schedule, now: schedule.with_quarantine(
                schedule.quarantine.taken(now, held=turn[0], free_in_s=turn[1])
            )
        )
    ),
    Action.LEAVE_QUARANTINE: st.just(lambda schedule, now: schedule.done()),
    Action.LOOK_AT_QUARANTINE: event(
        "quarantine_looked", timeout_s=st.sampled_from([None, 5.0]), found=flags
    ),
    Action.TAKE_DUTY: flags.map(lambda held: lambda schedule, now: schedule.duty_taken(held=held)),
    Action.READ_PRODUCERS: event("producers_read", producers=producers),
    Action.OUTWAIT: event("outwaited", producers=producers),
    Action.LOWER_FLAG: event("flag_lowered"),
    Action.HAND_OVER_DUTY: event("handed_over"),
}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_it_waits_exactly_until_there_is_something_to_do(data: st.DataObject) -> None:
    schedule, now = Schedule(), NOW
    for _ in range(data.draw(st.integers(1, 40))):
        schedule = schedule.turned(now)
        action = schedule.next(now)
        if action is not Action.WAIT:
            if not schedule.has_room and not schedule.todo:
                assert action not in (Action.LOOK, Action.OUTWAIT)
            schedule = data.draw(DONE[action])(schedule, now)
            continue
        wake_at = schedule.wake_at()
        assert wake_at > now, "it would spin"
        if data.draw(flags) and wake_at < math.inf:
            before = now + (wake_at - now) * 0.999
            assert schedule.turned(before).next(before) is Action.WAIT, "it would be late"
            now = wake_at
            woken = schedule.turned(now)
            assert woken is not schedule or woken.next(now) is not Action.WAIT
        else:
            schedule = data.draw(st.one_of(OUTSIDE))(schedule, now)
