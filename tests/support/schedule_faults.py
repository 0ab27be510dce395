"""Schedules that leave out a step of the wakeup protocol, each for tests that must notice.

tests/property/wakeup_model.py explores them in every interleaving; tests/worker/
test_lost_wakeups.py lets real dispatchers follow some of them.
"""

import math
from typing import Any, Self

from webhookd.core.schedule import NO_PRODUCERS, Action, Listening, Schedule


class NeitherOutwaitsNorLooks(Schedule):
    def producers_read(self, now: float, *, producers: frozenset[str]) -> Self:
        return (
            super()
            .producers_read(now, producers=producers)
            ._replace(outwait=NO_PRODUCERS, look_at=self.look_at)
        )


class LooksAndDoesNotOutwait(Schedule):
    def producers_read(self, now: float, *, producers: frozenset[str]) -> Self:
        return super().producers_read(now, producers=frozenset())


class OutwaitsAndDoesNotLook(Schedule):
    def producers_read(self, now: float, *, producers: frozenset[str]) -> Self:
        return super().producers_read(now, producers=producers)._replace(look_at=self.look_at)


class DoesNotLookWhenOneIsGone(Schedule):
    def outwaited(self, now: float, *, producers: frozenset[str]) -> Self:
        return super().outwaited(now, producers=producers)._replace(look_at=self.look_at)


class SwallowsWhatComesWhileOutwaiting(Schedule):
    def notified(self, now: float, *, mine: int, called: bool) -> Self:
        return self if self.outwait.producers else super().notified(now, mine=mine, called=called)


class BelievesANotification(Schedule):
    """Hears its name, and regards the duty as its own from then on, without taking it."""

    def notified(self, now: float, *, mine: int, called: bool) -> Self:
        heard = super().notified(now, mine=mine, called=called)
        return heard._replace(duty_assigned=True)


class OutwaitsWithoutTheFlag(Schedule):
    """As above, and outwaits producers, although it may have dropped the flag meanwhile."""

    def notified(self, now: float, *, mine: int, called: bool) -> Self:
        heard = super().notified(now, mine=mine, called=called)
        if self.holds_duty or not heard.holds_duty:
            return heard
        return heard._replace(duty_assigned=True, todo=(Action.READ_PRODUCERS,))


class IgnoresOtherNames(Schedule):
    def notified(self, now: float, *, mine: int, called: bool) -> Self:
        return super().notified(now, mine=mine, called=called) if mine else self


class NeverListensAgain(Schedule):
    def listener_lost(self, now: float) -> Self:
        return super().listener_lost(now)._replace(listen_at=math.inf)


class TakesTheDutyBeforeItListens(Schedule):
    def rested(self, now: float, **answer: Any) -> Self:
        listening = self.listening
        rested = self._replace(listening=Listening.OPEN)
        return (
            super(TakesTheDutyBeforeItListens, rested)
            .rested(now, **answer)
            ._replace(listening=listening)
        )

    def listener_opened(self, now: float) -> Self:
        return self._replace(listening=Listening.OPEN)


class LeavesTheDutyOnceItGaveItAway(Schedule):
    def handed_over(self, now: float) -> Self:
        return super().handed_over(now)._replace(duty_assigned=True)


class SleepsWithTheFlagDown(Schedule):
    """Looks every few milliseconds for a while, then sleeps without raising the flag."""

    def rested(self, now: float, **answer: Any) -> Self:
        rested = super().rested(now, **answer)
        if not (self.polling and Action.TAKE_DUTY in rested.todo):
            return rested
        return rested._replace(todo=(), polling=False)


class KeepsTheDutyWithoutRoom(Schedule):
    def _timetable(self) -> tuple[tuple[float, Action], ...]:
        return tuple(
            (at, action)
            for at, action in super()._timetable()
            if action is not Action.HAND_OVER_DUTY
        )


class DoesNotLookOnceItListensAgain(Schedule):
    def listener_opened(self, now: float) -> Self:
        return super().listener_opened(now)._replace(look_at=math.inf)
