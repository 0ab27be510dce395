"""The dispatcher: does what the schedule says, claims as much as there is room for, and otherwise
sleeps without polling.

It is the worker's main thread, one loop: ask `core.schedule` what to do, do it, report what came of
it, wait until something is due or happens. The other threads (recorder, chores, senders) and
signal handlers wake it through its wake-up pipe.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psycopg
from psycopg_pool import ConnectionPool

from webhookd import logs
from webhookd.core.lane import Budget
from webhookd.core.model import Delivery
from webhookd.core.quarantine import TRY_EVERY_S, TURN_S
from webhookd.core.schedule import Action, Schedule
from webhookd.errors import first_line
from webhookd.metrics.counters import Metrics
from webhookd.postgres import bodies, quarantine
from webhookd.postgres.claim import Claimer
from webhookd.postgres.claimed import Claim, ClaimInDoubtError
from webhookd.postgres.session import Connection
from webhookd.worker.events import Events
from webhookd.worker.held import HeldLog
from webhookd.worker.poison import BodyMeasurer, isolate
from webhookd.worker.recorder import Recorder
from webhookd.worker.senders import SenderPool

log = logs.Logger("webhookd.dispatcher")

BEAT_S = 1.0
TICK_S = 0.01  # how often the sender pool is asked whether it must grow, while work waits
HEALTHY_WITHIN_S = 10.0
REPORTED_AFTER = 3  # failures in a row: one cut connection is no event
FIRST = Schedule()


class Dispatcher:
    """One worker's main loop. *beat* is called about once a second while the loop turns."""

    def __init__(
        self,
        pool: ConnectionPool[Connection],
        claimer: Claimer,
        events: Events,
        senders: SenderPool,
        recorder: Recorder,
        *,
        metrics: Metrics,
        beat: Callable[[], None],
        schedule: Schedule = FIRST,
    ) -> None:
        self._pool = pool
        self._claimer = claimer
        self._senders = senders
        self._recorder = recorder
        self._metrics = metrics
        self._held_log = HeldLog()
        self._events = events
        self._duty = events.duty
        self._beat = beat
        self.measurer = BodyMeasurer(pool, events.wakeup, worker_id=claimer.worker_id)
        self.stopped_at: float | None = None  # monotonic
        self._turned_at = time.monotonic()
        self._database_up = False
        self._claimed_once = False
        # Only the dispatcher's thread touches what follows.
        self._schedule = schedule
        self._room = 0  # as of this turn
        self._beat_at = -math.inf

    # What other threads may call

    def stop(self) -> None:
        """Have `run` return soon: claim nothing more. May be called from a signal handler."""
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
        self._events.stop()

    def healthy(self) -> bool:
        """Return whether the loop turns and the database answers it."""
        return self._database_up and time.monotonic() - self._turned_at < HEALTHY_WITHIN_S

    def ready(self) -> bool:
        """Return whether deliveries can be made now."""
        return self.healthy() and self._claimed_once and self.stopped_at is None

    # The loop

    def run(self) -> None:
        """Claim and submit until `stop`. Raises only for faults of webhookd's own."""
        while self.stopped_at is None:
            now = self._turned_at = time.monotonic()
            if now >= self._beat_at:
                self._beat()
                self._beat_at = now + BEAT_S
                self._metrics.set_senders(
                    threads=self._senders.threads, outstanding=self._recorder.outstanding()
                )
            try:
                self._turn(now)
            except psycopg.DatabaseError as error:
                if isinstance(error, ClaimInDoubtError):
                    self._give_back(error.deliveries)
                elif bodies.may_be_row(error):
                    self._isolate(error)
                elif not isinstance(error, psycopg.OperationalError):
                    raise
                self._away(error)
            self._wait()

    def withdraw(self) -> None:
        """Give back what no sender has begun, and the duty; called after `run` returned. Raises
        `psycopg.Error`.
        """
        for delivery in self._senders.withdraw():
            self._recorder.give_back(delivery)
        with self._pool.connection() as connection:
            self._duty.hand_over(connection)

    def leave(self) -> None:
        """Hand the duty over and delete this worker's row; raises `psycopg.Error`."""
        with self._pool.connection() as connection:
            self._duty.leave(connection)
        self._duty.listener.close()

    def _turn(self, now: float) -> None:
        schedule = self._schedule.turned(now)
        self._room = 0 if schedule.quarantine.alone else self._senders.room()
        if self._room <= 0:
            self._senders.call_for_room()
        self._schedule = schedule.with_room(now, has_room=self._room > 0)
        action = self._schedule.next(now)
        if action is Action.LOOK_AT_QUARANTINE and self._recorder.outstanding() > 0:
            # What is outstanding would be lost with this worker if the row kills it.
            delayed = self._schedule.quarantine.delayed(now + TRY_EVERY_S)
            self._schedule = self._schedule.with_quarantine(delayed)
            return
        if action is not Action.WAIT:
            with self._pool.connection() as connection:
                self._schedule = self._do(action, connection, now)
                while self._schedule.todo:  # the rest of it, with the same connection
                    self._schedule = self._do(self._schedule.todo[0], connection, now)

    def _do(self, action: Action, connection: Connection, now: float) -> Schedule:
        """Do what the schedule says, and return the one that follows."""
        schedule, duty = self._schedule, self._duty
        match action:
            case Action.LOOK:
                schedule = self._look(connection, now)
            case Action.CALL_ALL:
                duty.call_all(connection)
                schedule = schedule.called_all(now)
            case Action.ASK_NEXT_LOOK:
                next_look = self._claimer.next_look(
                    connection, new=self._senders.takes_new(), slow=self._senders.slow_room() > 0
                )
                schedule = schedule.rested(
                    now,
                    lane_s=next_look.lane_s,
                    new_rows=next_look.new_rows,
                    quarantine_s=next_look.quarantined_s,
                    answered_at=time.monotonic(),
                    u=random.random(),
                )
            case Action.TAKE_DUTY:
                schedule = schedule.duty_taken(held=duty.take(connection))
            case Action.READ_PRODUCERS:
                schedule = schedule.producers_read(now, producers=duty.open_producers(connection))
            case Action.OUTWAIT:
                schedule = schedule.outwaited(now, producers=duty.open_producers(connection))
            case Action.LOWER_FLAG:
                duty.lower(connection)
                schedule = schedule.flag_lowered(now)
            case Action.HAND_OVER_DUTY:
                duty.hand_over(connection)
                schedule = schedule.handed_over(now)
            case Action.OPEN_LISTENER:
                schedule = self._open_listener(connection, now)
            case _:
                schedule = self._do_in_quarantine(action, connection, now)
        return schedule

    def _do_in_quarantine(self, action: Action, connection: Connection, now: float) -> Schedule:
        schedule = self._schedule
        match action:
            case Action.ASK_QUARANTINE:
                due_s = self._claimer.next_look(connection).quarantined_s
                return schedule.quarantine_asked(due_s, answered_at=time.monotonic())
            case Action.TAKE_QUARANTINE:
                turn = quarantine.take(connection, for_s=TURN_S)
                taken = schedule.quarantine.taken(now, held=turn.held, free_in_s=turn.free_in_s)
                return schedule.with_quarantine(taken)
            case Action.LEAVE_QUARANTINE:
                quarantine.leave(connection, rest_s=schedule.quarantine.rest_until - now)
                return schedule.done()
            case _:
                assert action is Action.LOOK_AT_QUARANTINE
                return self._look_at_quarantine(connection, now)

    def _wait(self) -> None:
        """Wait until something is due or happens."""
        now = time.monotonic()
        until = min(self._beat_at, self._schedule.wake_at())
        if self._senders.tick(now):
            until = min(until, now + TICK_S)
        self._schedule = self._events.wait(self._schedule, within_s=max(0.0, until - now))

    # Looks

    def _look(self, connection: Connection, now: float) -> Schedule:
        senders = self._senders
        budget = Budget(self._room, senders.slow_room(), takes_new=senders.takes_new())
        claim = self._claimer.claim(connection, budget, body_bytes=senders.room_bytes())
        self._submit(claim, now)
        if claim.unmeasured:
            self.measurer.add(claim.unmeasured)
        return self._schedule.looked(
            now,
            claimed=bool(claim.deliveries),
            found=bool(claim.deliveries or claim.lanes),
            full=claim.full,
            exhausted=claim.exhausted,
            contended=claim.contended,
        )

    def _look_at_quarantine(self, connection: Connection, now: float) -> Schedule:
        """Try the row that may kill its worker; nothing else is outstanding."""
        if self._schedule.quarantine.is_over(now):
            return self._schedule.quarantine_looked(now, timeout_s=None, found=True)
        claim = self._claimer.claim_quarantined(connection)
        self._submit(claim, now)
        timeout_s = claim.deliveries[0].settings.timeout_s if claim.deliveries else None
        return self._schedule.quarantine_looked(now, timeout_s=timeout_s, found=claim.lanes > 0)

    def _submit(self, claim: Claim, now: float) -> None:
        self._recorder.note_claimed(len(claim.deliveries))
        self._senders.submit(claim.deliveries)
        self._metrics.claimed(len(claim.deliveries))
        self._held_log.note(claim.held)
        for webhook_id in claim.rate_limited:
            self._metrics.rate_limited(webhook_id, now=now)
        if not self._database_up:
            self._database_up = True
            self._metrics.set_database_up(True)
            log.info("database answers")
        self._claimed_once = True

    def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        self._recorder.note_claimed(len(deliveries))
        for delivery in deliveries:
            self._recorder.give_back(delivery)

    # Listening, and faults

    def _open_listener(self, connection: Connection, now: float) -> Schedule:
        new_number = self._duty.register(connection)
        self._events.open_listener(self._pool)
        return self._schedule.listener_opening(now, new_number=new_number)

    def _isolate(self, error: psycopg.Error) -> None:
        """A row may be what a claim failed of: find it, so that all other rows go out."""
        with suppress(psycopg.OperationalError), self._pool.connection() as connection:
            isolate(self._claimer, connection, self.measurer, error)

    def _away(self, error: psycopg.Error) -> None:
        """The database does not answer, or not as it should: claim nothing for a moment. Nothing
        else stops.
        """
        self._schedule = self._schedule.away(time.monotonic(), u=random.random())
        if self._schedule.failures == REPORTED_AFTER:
            self._database_up = False
            self._metrics.set_database_up(False)
            what = "database unreachable" if bodies.is_outage(error) else "database refuses"
            log.warning(what, error=first_line(error))
