"""What a dispatcher waits for: its wake-up pipe and the LISTEN connection. The schedule learns of
all that comes.
"""

import random
import time

import psycopg
from psycopg_pool import ConnectionPool

from webhookd import logs
from webhookd.core.schedule import Schedule
from webhookd.errors import first_line
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import WakeupCause
from webhookd.postgres.session import Connection
from webhookd.worker.listener import DeafError, readable
from webhookd.worker.wakeup import WakeReason, WakeupPipe
from webhookd.worker.watch import NotifyDuty

log = logs.Logger("webhookd.events")


class Events:
    """Used by the dispatcher's thread only, but for `stop`."""

    def __init__(self, duty: NotifyDuty, wakeup: WakeupPipe, metrics: Metrics) -> None:
        self.duty = duty
        self._listener = duty.listener
        self.wakeup = wakeup
        self._metrics = metrics

    def stop(self) -> None:
        """End `wait`. May be called from any thread and from a signal handler."""
        self.wakeup.wake(WakeReason.STOP)

    def open_listener(self, pool: ConnectionPool[Connection]) -> None:
        """Begin to listen; returns at once. `wait` reports what came of it."""
        self._metrics.set_listener_connected(False)
        self._listener.open(pool, lambda: self.wakeup.wake(WakeReason.LISTENER))

    def wait(self, schedule: Schedule, *, within_s: float) -> Schedule:
        """Wait *within_s* for the first event, and return the schedule that knows all that came."""
        now = time.monotonic()
        try:
            listener = self._listener.fileno()
            ready = readable([self.wakeup.fileno(), listener], within_s=within_s)
            now = time.monotonic()
            if listener in ready:
                schedule = self._hear(schedule, self._listener.drain(), now)
        except psycopg.OperationalError as error:
            self._listener.close()
            self._metrics.set_listener_connected(False)
            schedule = schedule.listener_lost(now)
            log.warning("LISTEN connection lost", error=first_line(error))
        for reason in self.wakeup.drain():
            schedule = self._woken(schedule, reason, now)
        return schedule

    def _hear(self, schedule: Schedule, payloads: list[str], now: float) -> Schedule:
        if not payloads:
            return schedule
        mine = payloads.count(str(self.duty.wake_number))
        if mine:
            cause = WakeupCause.NOTIFY if schedule.holds_duty else WakeupCause.HANDOVER
            self._metrics.woken(cause)
        called = any(self.duty.calls_me(payload) for payload in payloads)
        return schedule.notified(now, mine=mine, called=called)

    def _woken(self, schedule: Schedule, reason: WakeReason | float, now: float) -> Schedule:
        match reason:
            case float():
                return schedule.lane_due(now, in_s=reason)
            case WakeReason.ROOM:
                return schedule.room_returned(now)
            case WakeReason.LISTENER:
                return self._see_listener(schedule, now)
            case WakeReason.LOST:
                self._metrics.woken(WakeupCause.LOST)
                return schedule.duty_doubted(now)
            case WakeReason.SWEEP:
                self._metrics.woken(WakeupCause.SWEEP)
                return schedule.duty_doubted(now)
            case WakeReason.UNREGISTERED:
                self._metrics.woken(WakeupCause.SWEEP)
                self._listener.close()
                return schedule.unregistered(now)
            case WakeReason.STOP:
                return schedule

    def _see_listener(self, schedule: Schedule, now: float) -> Schedule:
        """See what came of opening it. If that failed, deliveries go on without notifications."""
        try:
            opened = self._listener.opened()
        except psycopg.Error as error:
            deaf = isinstance(error, DeafError)
            return schedule.listener_failed(now, deaf=deaf, u=random.random())
        if not opened:  # that was one given up meanwhile
            return schedule
        self._metrics.set_listener_connected(True)
        return schedule.listener_opened(now)
