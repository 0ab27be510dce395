"""The dispatcher: decides when to look at the queue, claims as much as there is room for, and
otherwise sleeps without polling.

It is the worker's main thread, one loop: wait for something to happen, look, submit. Whoever has
news for it (the recorder, the housekeeping, a signal, the supervisor) rings its bell.
"""

import collections
import math
import random
import time
from collections.abc import Callable, Sequence

import psycopg
from psycopg_pool import ConnectionPool

from webhookd import logs
from webhookd.core.model import Delivery
from webhookd.errors import first_line
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import WakeupCause
from webhookd.postgres.claim import Claim, Claimer, ClaimInDoubtError
from webhookd.postgres.session import Connection
from webhookd.worker.listener import DeafError, readable
from webhookd.worker.quarantine import Quarantine
from webhookd.worker.recorder import Recorder
from webhookd.worker.senders import SenderPool
from webhookd.worker.wakeup import WakeReason, WakeupPipe
from webhookd.worker.watch import NotifyDuty

log = logs.Logger("webhookd.dispatcher")

BEAT_S = 1.0
TICK_S = 0.01
# Others hold the lanes with work for the length of a claim or a record; an operator may hold one
# for an hour.
CONTENDED_FIRST_S, CONTENDED_MOST_S = 0.002, 0.05
NOT_NAMED_S = 0.25  # a worker that hears another named looks a little later: if that one is dead or busy, work is not lost
SATURATED_S = 0.01  # shorter than this, having no room is an ordinary moment under load
CALL_EVERY_S = 0.1  # under load every claim is full; then everybody is awake anyway
DEAF_LOOK_S = 2.0  # without a LISTEN connection
LISTEN_AGAIN_S, LISTEN_MOST_S = 1.0, 60.0  # between tries to have one
OUTWAIT_FIRST_S, OUTWAIT_MOST_S = 0.002, 0.25
# Faster than this, notifications cost more than looking.
BURST_NOTIFIES, BURST_S = 40, 0.2
LOOK_EVERY_S, QUIET_S = 0.005, 0.25


class Dispatcher:
    """One worker's main loop. *beat* is called about once a second while the loop turns."""

    def __init__(
        self,
        pool: ConnectionPool[Connection],
        claimer: Claimer,
        watch: NotifyDuty,
        senders: SenderPool,
        recording: Recorder,
        *,
        metrics: Metrics,
        bell: WakeupPipe,
        beat: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._claimer = claimer
        self._watch = watch
        self._listener = watch.listener
        self._senders = senders
        self._recording = recording
        self._metrics = metrics
        self._beat = beat
        self._bell = bell
        self.stopped_at: float | None = None  # monotonic
        self._turned_at = time.monotonic()
        self._database_up = False
        self._claimed_once = False
        # Monotonic times; only the dispatcher's thread touches what follows.
        self._beat_at = -math.inf
        self._look_at = -math.inf
        self._listen_at = -math.inf
        self._listen_failures = 0
        self._listen_told = ""
        self._contended_pause = CONTENDED_FIRST_S
        self._outwait_at = math.inf
        self._outwait_pause = OUTWAIT_FIRST_S
        self._outwaited: set[str] = set()
        self._saturated_since = math.inf
        self._call_at = -math.inf
        self._watched = False  # somebody keeps the watch, as far as this worker knows
        self._found_at = -math.inf
        self._suspects = Quarantine()
        self._failures = 0
        self._notified: collections.deque[float] = collections.deque(maxlen=BURST_NOTIFIES)

    # What other threads may call

    def stop(self) -> None:
        """Have `run` return soon: claim nothing more. May be called from a signal handler."""
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
        self._bell.ring(WakeReason.STOP)

    def healthy(self) -> bool:
        """Return whether the loop turns and the database answers it."""
        return self._database_up and time.monotonic() - self._turned_at < 10.0

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
                    threads=self._senders.threads, outstanding=self._recording.outstanding()
                )
            try:
                self._turn(now)
            except psycopg.OperationalError as error:
                if isinstance(error, ClaimInDoubtError):
                    self._give_back(error.deliveries)
                self._away(error)
            self._wait()

    def withdraw(self) -> None:
        """Give back what no sender has begun, and the watch; called after `run` returned. Raises
        `psycopg.Error`.
        """
        for delivery in self._senders.withdraw():
            self._recording.give_back(delivery)
        with self._pool.connection() as connection:
            self._watch.hand_over(connection)

    def leave(self) -> None:
        """Hand the watch over and strike this worker's row; raises `psycopg.Error`."""
        with self._pool.connection() as connection:
            self._watch.leave(connection)
        self._listener.close()

    def _turn(self, now: float) -> None:
        self._keep_listening(now)
        self._suspects.turn(now)
        if self._suspects.alone and self._recording.outstanding() == 0:
            self._look_at_suspect(now)
        room = 0 if self._suspects.alone else self._senders.room()
        if room <= 0:
            self._saturate(now)
            return
        self._saturated_since = math.inf
        if now >= self._look_at:
            self._look(room, now)
        elif now >= self._outwait_at:
            self._outwait(now)

    def _look(self, room: int, now: float) -> None:
        with self._pool.connection() as connection:
            claim = self._claimer.claim(
                connection, limit=room, body_bytes=self._senders.room_bytes()
            )
            self._submit(claim, now)
            if claim.deliveries or claim.lanes:
                self._found_at = now
            if claim.deliveries:
                self._contended_pause = CONTENDED_FIRST_S
            if claim.full and now >= self._call_at:
                self._watch.call_all(connection)
                self._call_at = now + CALL_EVERY_S
            if claim.exhausted and not claim.full and not claim.contended:
                self._rest(connection, now, claimed=bool(claim.deliveries))
                return
            if now >= self._suspects.see_at:
                self._suspects.see(
                    self._claimer.next_look(connection).quarantined_s, now=time.monotonic()
                )
            if claim.full or not claim.exhausted:
                self._look_at = now  # the next turn asks for room first
            else:
                self._look_soon(now)

    def _look_at_suspect(self, now: float) -> None:
        """Nothing is in hand: try the row that may kill its worker, so that it kills nothing else."""
        with self._pool.connection() as connection:
            claim = self._claimer.claim_quarantined(connection)
        self._submit(claim, now)
        if claim.deliveries:
            self._suspects.sent(now, timeout_s=claim.deliveries[0].settings.timeout_s)
            return
        if claim.lanes:
            self._suspects.put_off()
        else:
            self._suspects.missed(now)
        self._look_at = now

    def _submit(self, claim: Claim, now: float) -> None:
        self._recording.note_claimed(len(claim.deliveries))
        self._senders.submit(claim.deliveries)
        self._metrics.claimed(len(claim.deliveries))
        for webhook_id in claim.rate_limited:
            self._metrics.rate_limited(webhook_id, now=now)
        self._came_back()

    def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        self._recording.note_claimed(len(deliveries))
        for delivery in deliveries:
            self._recording.give_back(delivery)

    def _look_soon(self, now: float) -> None:
        """Look again in a moment: somebody holds what could be claimed. The longer it lasts the
        longer the pauses.
        """
        self._look_at = now + self._contended_pause
        self._contended_pause = min(CONTENDED_MOST_S, self._contended_pause * 2)

    def _rest(self, connection: Connection, now: float, *, claimed: bool) -> None:
        """Nothing more is due: set the timer, and see to it that inserts are noticed."""
        next_look = self._claimer.next_look(connection)
        due = next_look.new_rows or next_look.lane_s <= 0
        if not due or now >= self._suspects.see_at:
            self._suspects.see(next_look.quarantined_s, now=time.monotonic())
        if due:
            # If this look claimed nothing either, others have those lanes or rows locked just now.
            if claimed:
                self._look_at = now
            else:
                self._look_soon(now)
            return
        self._contended_pause = CONTENDED_FIRST_S
        self._look_at = (
            now
            + next_look.lane_s
            + (0.0 if self._watch.holds_duty else random.uniform(0, NOT_NAMED_S))
        )
        if self._watch.polling and now - self._found_at < QUIET_S:
            self._look_at = min(self._look_at, now + LOOK_EVERY_S)
        elif (not self._watched or self._watch.polling) and self._listener.connected:
            self._take_watch(connection, now)
        if not self._listener.connected:
            self._look_at = min(self._look_at, now + DEAF_LOOK_S)

    # The watch

    def _take_watch(self, connection: Connection, now: float) -> None:
        self._watch.take(connection)
        self._watched = True
        if self._watch.holds_duty:
            self._begin_outwait(connection, now)

    def _begin_outwait(self, connection: Connection, now: float) -> None:
        """Producers that looked before the flag was up commit unheard: look again each time one of
        them is gone.
        """
        self._outwaited = self._watch.open_producers(connection)
        self._outwait_pause = OUTWAIT_FIRST_S
        self._outwait_at = now + OUTWAIT_FIRST_S if self._outwaited else math.inf
        # One look in any case: a producer may have committed between the last look and the flag.
        self._look_at = now

    def _outwait(self, now: float) -> None:
        with self._pool.connection() as connection:
            left = self._outwaited & self._watch.open_producers(connection)
        if left != self._outwaited:
            self._look_at = now
            self._outwait_pause = OUTWAIT_FIRST_S
        self._outwaited = left
        self._outwait_pause = min(OUTWAIT_MOST_S, self._outwait_pause * 2)
        self._outwait_at = now + self._outwait_pause if left else math.inf

    def _saturate(self, now: float) -> None:
        """No room: ask to be told of it, and if that lasts let somebody else keep the watch."""
        self._saturated_since = min(self._saturated_since, now)
        self._senders.call_for_room()
        if self._watch.holds_duty and now - self._saturated_since >= SATURATED_S:
            with self._pool.connection() as connection:
                self._watch.hand_over(connection)
            self._watched = False
            self._look_at = now

    def _notifications(self, payloads: list[str], now: float) -> None:
        mine = str(self._watch.wake_number)
        if mine in payloads:
            if not self._watch.holds_duty:
                # Handed over, or an old notification that outlived a watch long dropped: only the
                # database knows. The next rest takes the watch, outwaiting included, or leaves it;
                # without room, it is handed on.
                self._metrics.woken(WakeupCause.HANDOVER)
                self._watch.holds_duty, self._watched = True, False
            else:
                self._metrics.woken(WakeupCause.NOTIFY)
            self._look_at = now
            self._notified.extend(now for payload in payloads if payload == mine)
            self._calm_down(now)
        elif any(self._watch.calls_me(payload) for payload in payloads):
            self._look_at = now
        elif payloads:
            self._look_at = min(self._look_at, now + NOT_NAMED_S)

    def _calm_down(self, now: float) -> None:
        """Lower the flag when notifications come thick: each costs every committing producer more
        than a look costs here.
        """
        burst = len(self._notified) == BURST_NOTIFIES and now - self._notified[0] < BURST_S
        if burst and self._watch.holds_duty and not self._watch.polling:
            with self._pool.connection() as connection:
                self._watch.lower(connection)
            self._notified.clear()
            self._outwaited, self._outwait_at = set(), math.inf
            self._found_at = now

    # Waiting and faults

    def _keep_listening(self, now: float) -> None:
        """Whatever fails here but the registration is the listener's own: deliveries go on,
        unannounced.
        """
        if self._listener.opening:
            try:
                opened = self._listener.opened()
            except psycopg.Error as error:
                self._stay_deaf(error, now)
                return
            if opened:
                self._metrics.set_listener_connected(True)
                self._listen_failures, self._listen_told = 0, ""
                # Whatever was notified while nobody listened is found by looking.
                self._watched = False
                self._look_at = now
        elif not self._listener.connected and now >= self._listen_at:
            with self._pool.connection() as connection:
                self._watch.register(connection)
            self._listen_at = now + LISTEN_AGAIN_S
            self._metrics.set_listener_connected(False)
            self._listener.open(self._pool, lambda: self._bell.ring(WakeReason.LISTENER))

    def _stay_deaf(self, error: psycopg.Error, now: float) -> None:
        """Look every 2 s, and try to listen again with growing pauses. Say so once."""
        deaf = isinstance(error, DeafError)
        self._listen_failures += 1
        pause = (
            LISTEN_MOST_S
            if deaf
            else min(LISTEN_MOST_S, LISTEN_AGAIN_S * 2.0 ** min(self._listen_failures, 10))
        )
        self._listen_at = now + pause * random.uniform(0.5, 1.0)
        self._look_at = min(self._look_at, now + DEAF_LOOK_S)
        event = "LISTEN is deaf" if deaf else "LISTEN connection not to be had"
        if event == self._listen_told:
            return
        self._listen_told = event
        hint = "a transaction-pooling pgbouncer? give --listen-dsn; " if deaf else ""
        fields = {"error": first_line(error), "hint": f"{hint}until then looking every 2 s"}
        log.warning(event, **fields)

    def _wait(self) -> None:
        now = time.monotonic()
        # Without room there is nothing to look for, and nothing to outwait.
        look_at = min(self._look_at, self._outwait_at) if self._room_wanted() else math.inf
        until = min(self._beat_at, look_at, self._suspects.due_at, self._listen_due())
        if self._watch.holds_duty and self._saturated_since < math.inf:
            until = min(until, self._saturated_since + SATURATED_S)
        if self._senders.tick(now) or self._suspects.alone:  # alone: until nothing is in hand
            until = min(until, now + TICK_S)
        try:
            listener = self._listener.fileno()
            ready = readable([self._bell.fileno(), listener], within_s=until - now)
            now = time.monotonic()
            if listener in ready:
                self._notifications(self._listener.drain(), now)
        except psycopg.OperationalError as error:
            self._listener.close()
            self._metrics.set_listener_connected(False)
            self._look_at = min(self._look_at, now + DEAF_LOOK_S)
            log.warning("LISTEN connection lost", error=first_line(error))
        self._read_news(now)

    def _listen_due(self) -> float:
        """Return when to try to listen again; the bell says when such a try has ended."""
        return math.inf if self._listener.connected or self._listener.opening else self._listen_at

    def _room_wanted(self) -> bool:
        return self._saturated_since == math.inf

    def _read_news(self, now: float) -> None:
        for news in self._bell.answer():
            if isinstance(news, float):
                self._look_at = min(self._look_at, now + max(0.0, news))
                continue
            if news is WakeReason.LISTENER:
                continue  # the next turn asks it
            self._look_at = now
            if news is WakeReason.ROOM:
                self._saturated_since = math.inf
            elif news is not WakeReason.STOP:
                self._metrics.woken(
                    WakeupCause.LOST if news is WakeReason.LOST else WakeupCause.SWEEP
                )
                self._watched = (
                    False  # memory may be wrong, and taking a watch that one keeps is harmless
                )
                if news is WakeReason.UNREGISTERED:
                    self._listener.close()  # opening it again registers again
                    self._listen_at = now

    def _away(self, error: psycopg.OperationalError) -> None:
        """The database does not answer: claim nothing, ask again with growing pauses. Nothing else
        stops.
        """
        self._failures += 1
        pause = min(5.0, 0.05 * 2.0 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        self._look_at = time.monotonic() + pause
        self._listen_at = max(self._listen_at, self._look_at)
        self._outwait_at = math.inf
        # Another worker may have been given the watch meanwhile, and a server that crashed may have
        # lost the flag.
        self._watch.holds_duty = self._watch.polling = self._watched = False
        if self._failures == 3:  # one cut connection is nobody's business
            self._database_up = False
            self._metrics.set_database_up(False)
            log.warning("database unreachable", error=first_line(error))

    def _came_back(self) -> None:
        if not self._database_up:
            self._database_up = True
            self._metrics.set_database_up(True)
            log.info("database answers")
        self._failures = 0
        self._claimed_once = True
