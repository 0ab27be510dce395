"""When a worker looks at the queue, and how it learns of new rows without polling.

`Schedule` is a value with events. In each turn the dispatcher says what time it is (`turned`) and
whether there is room (`with_room`), asks what to do (`next`), does it (that is the I/O), and says
what came of it (`looked`, `rested`, `duty_taken`, ...). Then it waits until `wake_at`, or until an
event comes (`notified`, `room_returned`, `away`, ...). The usual way:

    WAIT ---- timer, notification or room ----> LOOK ---- more is due ----> LOOK
                                                  |
                                        nothing more is due
                                                  v
                                           ASK_NEXT_LOOK ---- rows came meanwhile ----> LOOK
                                                  |
                          this worker does not know that a worker has the duty
                                                  v
                                              TAKE_DUTY ---- another has it ----> WAIT
                                                  |
                                           this worker has it
                                                  v
                                  READ_PRODUCERS, LOOK, OUTWAIT until all are gone ----> WAIT

NOTIFY costs the application: committing transactions queue behind one lock. So the trigger reads a
flag and notifies only while the flag names a worker. One worker of the fleet has the duty to be
notified. It is an eventcount (docs/architecture.md, "Wakeups"), and three rules keep it correct:

- After it has raised the flag, the worker looks once more: a producer may have committed between
  its last look and the flag, without a notification.
- It outwaits the producers that were open when the flag was up: their triggers may have read the
  flag before. They commit without a notification, so it looks each time that one of them is gone.
- Without room it hands the duty over, or no worker would learn of new rows. The heir takes the
  duty like any other worker, with both rules above; it does not rely on the notification alone.

tests/property/wakeup_model.py tries every interleaving of this very value with a small PostgreSQL.
"""

import math
from enum import Enum
from typing import NamedTuple, Self

from webhookd.core.backoff import GrowingPause
from webhookd.core.quarantine import Quarantine

# Others hold lanes with work for as long as a claim takes; an operator may do so for an hour.
CONTENDED_FIRST_S, CONTENDED_MAX_S = 0.002, 0.05
# A worker that hears another one named looks a little later: that one may be dead or busy.
NOT_NAMED_S = 0.25
SATURATED_S = 0.01  # shorter than this, having no room is an ordinary moment under load
CALL_EVERY_S = 0.1  # under load every claim is full; then all workers are awake anyway
DEAF_LOOK_S = 2.0  # how often to look without a LISTEN connection
LISTEN_AGAIN_S, LISTEN_MAX_S = 1.0, 60.0  # between two attempts to open one
OUTWAIT_FIRST_S, OUTWAIT_MAX_S = 0.002, 0.25
BURST_NOTIFIES, BURST_S = 40, 0.2  # faster than this, notifications cost more than looks
LOOK_EVERY_S, QUIET_S = 0.005, 0.25
AWAY_FIRST_S, AWAY_MAX_S = 0.1, 5.0


class Action(Enum):
    """What the dispatcher does next."""

    OPEN_LISTENER = "register this worker and begin to listen"
    LOOK = "claim what is due"
    CALL_ALL = "wake the other workers: there is more than this one has room for"
    ASK_NEXT_LOOK = "nothing more is due: ask when something will be"
    ASK_QUARANTINE = "ask when the next row in quarantine is due"
    TAKE_QUARANTINE = "take the turn to try rows in quarantine, unless another worker has it"
    LEAVE_QUARANTINE = "give the turn back"
    LOOK_AT_QUARANTINE = "once nothing is outstanding, claim a row in quarantine"
    TAKE_DUTY = "take the duty to be notified, unless another worker has it"
    READ_PRODUCERS = "read which producers may not have seen the flag that is up now"
    OUTWAIT = "read which of them are still open"
    LOWER_FLAG = "keep the duty with the flag down"
    HAND_OVER_DUTY = "give the duty to a worker with room"
    WAIT = "wait"


class Listening(Enum):
    CLOSED = 0
    OPENING = 1
    OPEN = 2


class Outwait(NamedTuple):
    """The open producers that may commit without a notification, and when to read them again."""

    producers: frozenset[str] = frozenset()
    at: float = math.inf
    pause: GrowingPause = GrowingPause(OUTWAIT_FIRST_S, OUTWAIT_MAX_S)


NO_PRODUCERS = Outwait()


class Schedule(NamedTuple):
    """What one worker is going to do, and when. Times are monotonic seconds; *u* is uniform in
    [0, 1).

    A NamedTuple and not a dataclass, as changes are frequent: `_replace` is six times as fast.
    """

    look_at: float = -math.inf
    todo: tuple[Action, ...] = ()  # what follows the last action at once; its events take it off
    claimed: bool = False  # by the look that ASK_NEXT_LOOK follows
    found_at: float = -math.inf  # when a look last found lanes with work
    contended: GrowingPause = GrowingPause(CONTENDED_FIRST_S, CONTENDED_MAX_S)
    call_at: float = -math.inf  # not earlier: CALL_ALL
    saturated_since: float = math.inf  # inf: there is room
    # The duty to be notified. *polling*: with the flag down; then this worker looks every few ms.
    # *duty_assigned*: some worker has it, as far as this one knows.
    holds_duty: bool = False
    polling: bool = False
    duty_assigned: bool = False
    outwait: Outwait = NO_PRODUCERS
    notified_at: tuple[float, ...] = ()  # the last notifications that named this worker
    listening: Listening = Listening.CLOSED
    listen_at: float = -math.inf  # not earlier: OPEN_LISTENER
    listen_pause: GrowingPause = GrowingPause(2 * LISTEN_AGAIN_S, LISTEN_MAX_S)
    database_pause: GrowingPause = GrowingPause(AWAY_FIRST_S, AWAY_MAX_S)
    quarantine: Quarantine = Quarantine()

    # What to do

    @property
    def has_room(self) -> bool:
        """Whether there was room at the last `with_room` or `room_returned`."""
        return self.saturated_since == math.inf

    @property
    def failures(self) -> int:
        """How many times in a row the database did not answer."""
        return self.database_pause.tries

    def next(self, now: float) -> Action:
        """Return what to do now. `turned` and `with_room` come first."""
        for at, action in self._timetable():
            if at <= now:
                return action
        return Action.WAIT

    def wake_at(self) -> float:
        """Return until when to wait if nothing happens; inf: for any length of time."""
        return min(self.quarantine.changes_at, *(at for at, _ in self._timetable()), math.inf)

    def _timetable(self) -> tuple[tuple[float, Action], ...]:
        """Return what to do and from when, the most urgent first."""
        if self.todo:
            return ((-math.inf, self.todo[0]),)
        look_at = outwait_at = hand_over_at = listen_at = math.inf
        if self.has_room:
            look_at, outwait_at = self.look_at, self.outwait.at
        elif self.holds_duty:
            hand_over_at = self.saturated_since + SATURATED_S
        if self.listening is Listening.CLOSED:
            listen_at = self.listen_at
        return (
            (listen_at, Action.OPEN_LISTENER),
            (self.quarantine.due_at, Action.TAKE_QUARANTINE),
            (self.quarantine.try_at, Action.LOOK_AT_QUARANTINE),
            (hand_over_at, Action.HAND_OVER_DUTY),
            (look_at, Action.LOOK),
            (outwait_at, Action.OUTWAIT),
        )

    # Before each action

    def turned(self, now: float) -> Self:
        """Note that time has passed."""
        quarantine = self.quarantine.turned(now)
        if quarantine is self.quarantine:
            return self
        return self._replace(quarantine=quarantine, todo=(*self.todo, Action.LEAVE_QUARANTINE))

    def with_room(self, now: float, *, has_room: bool) -> Self:
        """Note whether there is room for deliveries. While *quarantine.alone* there is none."""
        if has_room == self.has_room:
            return self
        return self._replace(saturated_since=math.inf if has_room else now)

    def done(self) -> Self:
        """Take the action off that was to follow."""
        return self._replace(todo=self.todo[1:])

    # What looks brought

    def looked(
        self,
        now: float,
        *,
        claimed: bool,
        found: bool,
        full: bool,
        exhausted: bool,
        contended: bool,
    ) -> Self:
        """LOOK *claimed* deliveries; *found* lanes with work. The rest is as in a claim: it brought
        as many as were asked for, there were no further lanes, others held some.
        """
        done = self.answered()
        if found:
            done = done._replace(found_at=now)
        if claimed:
            done = done._calm()
        if exhausted and not full and not contended:
            return done._replace(todo=(Action.ASK_NEXT_LOOK,), claimed=claimed)
        todo: tuple[Action, ...] = ()
        if full and now >= self.call_at:
            todo += (Action.CALL_ALL,)
        if now >= self.quarantine.ask_at:
            todo += (Action.ASK_QUARANTINE,)
        if full or not exhausted:
            return done._replace(todo=todo, look_at=now)  # room is asked for first
        return done._replace(todo=todo)._look_soon(now)

    def called_all(self, now: float) -> Self:
        return self.done()._replace(call_at=now + CALL_EVERY_S)

    def quarantine_asked(self, due_s: float, *, answered_at: float) -> Self:
        """ASK_QUARANTINE returned that the next row is due in *due_s*."""
        return self.done().with_quarantine(self.quarantine.asked(due_s, answered_at=answered_at))

    def rested(
        self,
        now: float,
        *,
        lane_s: float,
        new_rows: bool,
        quarantine_s: float,
        answered_at: float,
        u: float,
    ) -> Self:
        """ASK_NEXT_LOOK returned in how many seconds the next lane and the next row in quarantine
        are due, and whether there are rows that no worker has looked at.
        """
        done = self.done()._replace(claimed=False)
        due = new_rows or lane_s <= 0
        if not due or now >= self.quarantine.ask_at:
            quarantine = self.quarantine.asked(quarantine_s, answered_at=answered_at)
            done = done._replace(quarantine=quarantine)
        if due:
            # If this look claimed nothing either, others have locked those lanes or rows just now.
            return done._replace(look_at=now) if self.claimed else done._look_soon(now)
        look_at = now + lane_s + (0.0 if self.holds_duty else u * NOT_NAMED_S)
        hears = self.listening is Listening.OPEN
        if self.polling and now - self.found_at < QUIET_S:
            look_at = min(look_at, now + LOOK_EVERY_S)
        elif (self.polling or not self.duty_assigned) and hears:
            done = done._replace(todo=(Action.TAKE_DUTY,))
        if not hears:
            look_at = min(look_at, now + DEAF_LOOK_S)
        return done._calm()._replace(look_at=look_at)

    # The duty to be notified

    def duty_taken(self, *, held: bool) -> Self:
        """TAKE_DUTY raised the flag in this worker's name (*held*), or another has the duty."""
        done = self.done()._replace(holds_duty=held, polling=False, duty_assigned=True)
        return done._replace(todo=(Action.READ_PRODUCERS,)) if held else done

    def producers_read(self, now: float, *, producers: frozenset[str]) -> Self:
        """READ_PRODUCERS returned those that may not have seen the flag: look again each time one
        of them is gone.
        """
        outwait = Outwait(producers, now + OUTWAIT_FIRST_S) if producers else NO_PRODUCERS
        # One look in any case: a producer may have committed between the last look and the flag.
        return self.done()._replace(outwait=outwait, look_at=now)

    def outwaited(self, now: float, *, producers: frozenset[str]) -> Self:
        """OUTWAIT returned all that are open; later ones have seen the flag."""
        left = self.outwait.producers & producers
        gone = left != self.outwait.producers
        pause = (self.outwait.pause.reset() if gone else self.outwait.pause).longer()
        outwait = Outwait(left, now + pause.seconds, pause) if left else NO_PRODUCERS
        return self._replace(outwait=outwait, look_at=now if gone else self.look_at)

    def notified(self, now: float, *, mine: int, called: bool) -> Self:
        """Notifications came: *mine* of them name this worker; *called*: another calls all."""
        if mine == 0:
            return self._look_by(now if called else now + NOT_NAMED_S)
        notified_at = (self.notified_at + (now,) * mine)[-BURST_NOTIFIES:]
        heard = self._replace(look_at=now, notified_at=notified_at)
        if not self.holds_duty:
            # Handed over; or an old notification, and this worker has given the duty away since.
            # Only the database knows. The next rest takes the duty, outwaiting included, or leaves
            # it to another. Without room it is handed on.
            return heard._replace(holds_duty=True, duty_assigned=False)
        burst = len(notified_at) == BURST_NOTIFIES and now - notified_at[0] < BURST_S
        # Each notification costs every committing producer more than a look costs here. What else
        # was to be done is not needed: with the flag down this worker looks all the time.
        return heard._replace(todo=(Action.LOWER_FLAG,)) if burst and not self.polling else heard

    def flag_lowered(self, now: float) -> Self:
        """From now on this worker must look every few milliseconds: inserts notify no worker."""
        return self.done()._replace(
            polling=True, notified_at=(), outwait=NO_PRODUCERS, found_at=now
        )

    def handed_over(self, now: float) -> Self:
        """Another worker has the duty, or none: this worker's next rest finds out."""
        return self._replace(holds_duty=False, polling=False, duty_assigned=False, look_at=now)

    # What else wakes a worker

    def room_returned(self, now: float) -> Self:
        return self._replace(saturated_since=math.inf, look_at=now)

    def lane_due(self, now: float, *, in_s: float) -> Self:
        """A lane becomes runnable *in_s* from now."""
        return self._look_by(now + max(0.0, in_s))

    def duty_doubted(self, now: float) -> Self:
        """Rows may have been missed, or no worker has the duty. To take it twice does no harm."""
        return self._replace(duty_assigned=False, look_at=now)

    def unregistered(self, now: float) -> Self:
        """This worker's row has vanished: open the listener again, as that registers again."""
        return self.duty_doubted(now)._replace(listening=Listening.CLOSED, listen_at=now)

    # The LISTEN connection

    def listener_opening(self, now: float, *, new_number: bool) -> Self:
        """OPEN_LISTENER has begun. *new_number*: the flag cannot name this worker by it."""
        begun = self._replace(listening=Listening.OPENING, listen_at=now + LISTEN_AGAIN_S)
        return begun._replace(holds_duty=False, polling=False) if new_number else begun

    def listener_opened(self, now: float) -> Self:
        """What was notified before this is lost; a look finds it."""
        listen_pause = self.listen_pause.reset()
        opened = self._replace(listening=Listening.OPEN, listen_pause=listen_pause)
        return opened.duty_doubted(now)

    def listener_failed(self, now: float, *, deaf: bool, u: float) -> Self:
        """It could not be opened. *deaf*: it can, and hears nothing; that takes an operator."""
        pause = GrowingPause(LISTEN_MAX_S, LISTEN_MAX_S) if deaf else self.listen_pause
        return self._replace(
            listening=Listening.CLOSED,
            listen_at=now + pause.jittered(u),
            listen_pause=self.listen_pause.longer(),
        )._look_by(now + DEAF_LOOK_S)

    def listener_lost(self, now: float) -> Self:
        return self._replace(listening=Listening.CLOSED)._look_by(now + DEAF_LOOK_S)

    # Rows in quarantine

    def with_quarantine(self, quarantine: Quarantine) -> Self:
        """Note what an event made of `quarantine`."""
        return self._replace(quarantine=quarantine)

    def quarantine_looked(self, now: float, *, timeout_s: float | None, found: bool) -> Self:
        """LOOK_AT_QUARANTINE claimed a row whose exchange may take *timeout_s*, or none (None);
        *found*: its lane does not admit it yet.
        """
        if timeout_s is not None:
            quarantine = self.quarantine.sent(now, timeout_s=timeout_s)
            return self.answered()._replace(quarantine=quarantine)
        quarantine = self.quarantine.put_off(now) if found else self.quarantine.missed(now)
        # While it was alone this worker had no room; without it the look would wait for a beat.
        left = self.answered().room_returned(now)
        return left._replace(quarantine=quarantine, todo=(Action.LEAVE_QUARANTINE,))

    # The database

    def answered(self) -> Self:
        """The database answered a claim."""
        if self.failures == 0:
            return self
        return self._replace(database_pause=self.database_pause.reset())

    def away(self, now: float, *, u: float) -> Self:
        """The database did not answer: do nothing with it for a growing pause.

        Another worker may be given the duty meanwhile, and a server that crashed may lose the flag.
        """
        look_at = now + self.database_pause.jittered(u)
        return self._replace(
            look_at=look_at,
            todo=(),
            listen_at=max(self.listen_at, look_at),
            outwait=NO_PRODUCERS,
            holds_duty=False,
            polling=False,
            duty_assigned=False,
            quarantine=self.quarantine.delayed(look_at),
            database_pause=self.database_pause.longer(),
        )

    # Steps of these

    def _look_by(self, at: float) -> Self:
        return self if self.look_at <= at else self._replace(look_at=at)

    def _look_soon(self, now: float) -> Self:
        """Look again in a moment: others hold what could be claimed. The pauses grow."""
        return self._replace(
            look_at=now + self.contended.seconds, contended=self.contended.longer()
        )

    def _calm(self) -> Self:
        if self.contended.tries == 0:
            return self
        return self._replace(contended=self.contended.reset())
