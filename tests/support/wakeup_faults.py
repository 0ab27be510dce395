"""Duties that leave out a step of the wakeup protocol, and a wrong trigger, for tests that must
notice. Schedules that do so are in schedule_faults.py.
"""

from tests.support.stage import CuedDuty
from webhookd.postgres import session, statements


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
