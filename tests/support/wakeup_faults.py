"""Dispatchers and watches that leave out a step of the wakeup protocol, each for tests that must
notice.
"""

from tests.support.stage import CuedWatch
from webhookd.postgres import session, statements
from webhookd.worker.dispatcher import Dispatcher


class NeitherOutwaitsNorLooks(Dispatcher):
    def _begin_outwait(self, connection: session.Connection, now: float) -> None:
        pass


class LooksAndDoesNotOutwait(Dispatcher):
    def _begin_outwait(self, connection: session.Connection, now: float) -> None:
        self._look_at = now


class OutwaitsAndDoesNotLook(Dispatcher):
    def _begin_outwait(self, connection: session.Connection, now: float) -> None:
        timer = self._look_at
        super()._begin_outwait(connection, now)
        self._look_at = timer


class DoesNotLookWhenOneIsGone(Dispatcher):
    def _outwait(self, now: float) -> None:
        timer = self._look_at
        super()._outwait(now)
        self._look_at = timer


class SwallowsWhatComesWhileOutwaiting(Dispatcher):
    def _notifications(self, payloads: list[str], now: float) -> None:
        if not self._outwaited:
            super()._notifications(payloads, now)


class KeepsTheWatchOnceItHearsItsName(Dispatcher):
    def _notifications(self, payloads: list[str], now: float) -> None:
        super()._notifications(payloads, now)
        self._watched = True


class MindsItsOwnNameOnly(Dispatcher):
    def _notifications(self, payloads: list[str], now: float) -> None:
        super()._notifications(
            [payload for payload in payloads if payload == str(self._watch.wake_number)], now
        )


class NeverListensAgain(Dispatcher):
    listened = False

    def _keep_listening(self, now: float) -> None:
        self.listened = self.listened or self._listener.connected
        if not self.listened:
            super()._keep_listening(now)


class ReadsLockersEarly(CuedWatch):
    early: frozenset[str] = frozenset()

    def take(self, connection: session.Connection) -> bool:
        self.early = frozenset(super().open_producers(connection))
        return super().take(connection)

    def open_producers(self, connection: session.Connection) -> set[str]:
        return set(self.early) & super().open_producers(connection)


class OverlooksPreparedTransactions(CuedWatch):
    def open_producers(self, connection: session.Connection) -> set[str]:
        rows = connection.execute(
            statements.load("open_producers") + " AND l.pid IS NOT NULL"
        ).fetchall()
        return {row[0] for row in rows}


class OverlooksTheRegistry(CuedWatch):
    def open_producers(self, connection: session.Connection) -> set[str]:
        only = " AND l.relation = 'pggit.alert_delivery_queue'::regclass"
        return {
            row[0]
            for row in connection.execute(statements.load("open_producers") + only).fetchall()
        }


# A flag in a row: a transaction sees it as its snapshot has it. (A sequence is always read as it is
# now.)
FLAG_IN_A_ROW = """
CREATE OR REPLACE FUNCTION pggit.wake_after_insert() RETURNS trigger LANGUAGE plpgsql STABLE AS $$
DECLARE
    keeper bigint;
BEGIN
    SELECT wake_number INTO keeper FROM pggit.workers WHERE has_room;
    IF keeper > 1 THEN
        PERFORM pg_catalog.pg_notify('webhookd_wake', keeper::text);
    END IF;
    RETURN NULL;
END $$
"""
