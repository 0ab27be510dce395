"""Schedules and duties that leave out a step of the wakeup protocol, each for tests that must
notice.

tests/property/wakeup_model.py explores the schedules in every interleaving; tests/worker/
test_lost_wakeups.py lets real dispatchers follow them.
"""

import math
from typing import Any, Self

from tests.support.stage import CuedDuty
from webhookd.core.schedule import NOBODY, Action, Listening, Schedule
from webhookd.postgres import session, statements


class NeitherOutwaitsNorLooks(Schedule):
    def producers_read(self, now: float, *, producers: frozenset[str]) -> Self:
        return (
            super()
            .producers_read(now, producers=producers)
            ._replace(outwait=NOBODY, look_at=self.look_at)
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


class StaysSilentWithoutRoom(Schedule):
    """Keeps the duty when it has no room."""

    def next(self, now: float) -> Action:
        action = super().next(now)
        return Action.WAIT if action is Action.HAND_OVER_DUTY else action


class KeepsTheDutyWhileTheDatabaseIsAway(Schedule):
    def away(self, now: float, *, u: float) -> Self:
        duty = (self.holds_duty, self.polling, self.duty_assigned)
        holds_duty, polling, duty_assigned = duty
        return (
            super()
            .away(now, u=u)
            ._replace(holds_duty=holds_duty, polling=polling, duty_assigned=duty_assigned)
        )


class DoesNotLookOnceItListensAgain(Schedule):
    def listener_opened(self, now: float) -> Self:
        return self._replace(listening=Listening.OPEN, duty_assigned=False)


class ReadsProducersEarly(CuedDuty):
    early: frozenset[str] = frozenset()

    def take(self, connection: session.Connection) -> bool:
        self.early = super().open_producers(connection)
        return super().take(connection)

    def open_producers(self, connection: session.Connection) -> frozenset[str]:
        return self.early & super().open_producers(connection)


class OverlooksPreparedTransactions(CuedDuty):
    def open_producers(self, connection: session.Connection) -> frozenset[str]:
        query = statements.load("open_producers") + " AND l.pid IS NOT NULL"
        return frozenset(row[0] for row in connection.execute(query))


class OverlooksTheRegistry(CuedDuty):
    def open_producers(self, connection: session.Connection) -> frozenset[str]:
        only = " AND l.relation = 'pggit.alert_delivery_queue'::regclass"
        query = statements.load("open_producers") + only
        return frozenset(row[0] for row in connection.execute(query))


# A flag in a row: a transaction sees it as its snapshot has it. (A sequence is always read as it is
# now.)
FLAG_IN_A_ROW = """
CREATE OR REPLACE FUNCTION pggit.wake_after_insert() RETURNS trigger LANGUAGE plpgsql STABLE AS $$
DECLARE
    named bigint;
BEGIN
    SELECT wake_number INTO named FROM pggit.workers WHERE has_room;
    IF named > 1 THEN
        PERFORM pg_catalog.pg_notify('webhookd_wake', named::text);
    END IF;
    RETURN NULL;
END $$
"""
