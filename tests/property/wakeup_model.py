"""A model of the wakeup protocol, small enough to try every interleaving of it.

Each step is what PostgreSQL does at one instant: a statement with its snapshot, a commit that shows
rows, releases locks and delivers notifications, a write to a sequence that all sessions see at
once. Between any two steps of one participant, any steps of the others may happen. Time is left
out: a timer that is set may go off at any step. The sweep every 30 s is not modelled, since a
wakeup that only the sweep repairs is lost.

What a worker does next is decided by the product's own `core.schedule.Schedule`; the model only
carries it out, as the dispatcher does (webhookd/worker/dispatcher.py), and is PostgreSQL for it
(the statements of webhookd/worker/watch.py).
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from tests.property.wakeup_state import (
    FLAG_DOWN,
    NOW,
    Mind,
    Producer,
    Stage,
    State,
    Worker,
)
from tests.support import schedule_faults as faults
from webhookd.core.schedule import BURST_NOTIFIES, Action, Listening, Schedule


class Defect(StrEnum):
    """One step of the protocol left out or done wrong."""

    # In the schedule.
    LISTEN_AFTER_FLAG = "the worker listens only after it has raised the flag and looked"
    NO_LOOK_AFTER_RAISING = "the worker does not look again once the flag is up"
    NO_OUTWAITING = "the worker does not outwait the producers that looked before the flag was up"
    NO_LOOK_WHEN_ONE_IS_GONE = "the worker outwaits a producer and does not look once it is gone"
    NOTIFICATION_SWALLOWED = "a notification that comes during the outwaiting leads to no look"
    OTHERS_NOT_ALERTED = "a worker ignores notifications that name another"
    HEIR_DOES_NOT_OUTWAIT = "a worker that hears its name has the duty and outwaits no producer"
    NAME_TAKEN_AT_ITS_WORD = "... and outwaits, though it may have dropped the flag meanwhile"
    DROPPED_FOR_GOOD = "a worker that dropped the duty does not take it up again"
    LOOKER_SLEEPS = "a worker with the flag down sleeps without raising it"
    KEPT_WITHOUT_ROOM = "a worker without room does not hand the duty over"
    NO_LOOK_ONCE_LISTENING = "a worker that listens again does not look"
    # In what the worker sends to PostgreSQL, or in the trigger.
    PRODUCERS_READ_EARLY = "the producers to outwait are read before the flag is up"
    PREPARED_NOT_COUNTED = "prepared transactions are not among those to outwait"
    OLD_SNAPSHOT = "the trigger sees the flag as its transaction's snapshot has it"
    HEIR_NOT_TOLD = "the duty is handed over without a notification"


SCHEDULES: Mapping[Defect, type[Schedule]] = {
    Defect.LISTEN_AFTER_FLAG: faults.TakesTheDutyBeforeItListens,
    Defect.NO_LOOK_AFTER_RAISING: faults.OutwaitsAndDoesNotLook,
    Defect.NO_OUTWAITING: faults.LooksAndDoesNotOutwait,
    Defect.NO_LOOK_WHEN_ONE_IS_GONE: faults.DoesNotLookWhenOneIsGone,
    Defect.NOTIFICATION_SWALLOWED: faults.SwallowsWhatComesWhileOutwaiting,
    Defect.OTHERS_NOT_ALERTED: faults.IgnoresOtherNames,
    Defect.HEIR_DOES_NOT_OUTWAIT: faults.BelievesANotification,
    Defect.NAME_TAKEN_AT_ITS_WORD: faults.OutwaitsWithoutTheFlag,
    Defect.DROPPED_FOR_GOOD: faults.LeavesTheDutyOnceItGaveItAway,
    Defect.LOOKER_SLEEPS: faults.SleepsWithTheFlagDown,
    Defect.KEPT_WITHOUT_ROOM: faults.KeepsTheDutyWithoutRoom,
    Defect.NO_LOOK_ONCE_LISTENING: faults.DoesNotLookOnceItListensAgain,
}

Move = tuple[str, State]


class Fleet(NamedTuple):
    """Producers have one transaction each. A worker may lose its room *saturations* times in all,
    *crashes* of them may die, *mistakes* times a living one may be taken for dead, and *failures*
    times PostgreSQL does not answer or a LISTEN connection is cut.
    """

    producers: int
    workers: int
    saturations: int = 0
    crashes: int = 0
    mistakes: int = 0
    failures: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self._asdict().items() if count)


@dataclass(frozen=True, slots=True)
class Exploration:
    """*lost*: the steps to the nearest lost wakeup, None if there is none anywhere. *seen*: every
    state that can be reached.
    """

    seen: frozenset[State]
    lost: tuple[str, ...] | None


def explore(fleet: Fleet, defect: Defect | None = None) -> Exploration:
    """Try every interleaving of *fleet* until a wakeup is lost."""
    schedule = Schedule if defect is None else SCHEDULES.get(defect, Schedule)
    first = Mind.first(schedule())
    start = State(
        flag=FLAG_DOWN,
        row_waits=False,
        producers=(Producer(),) * fleet.producers,
        workers=(Worker(first),) * fleet.workers,
        saturations_left=fleet.saturations,
        crashes_left=fleet.crashes,
        mistakes_left=fleet.mistakes,
        failures_left=fleet.failures,
    )
    model = _Model(defect)
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    queue = deque([start])
    while queue:
        state = queue.popleft()
        if state.lost_wakeup():
            return Exploration(frozenset(came_from), _path(came_from, state))
        for label, after in model.moves(state):
            if after not in came_from:
                came_from[after] = (state, label)
                queue.append(after)
    return Exploration(frozenset(came_from), None)


def _path(came_from: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    labels = []
    while (step := came_from[state]) is not None:
        state, label = step
        labels.append(label)
    return tuple(reversed(labels))


class _Model:
    """The protocol, with at most one *defect*."""

    def __init__(self, defect: Defect | None) -> None:
        self._defect = defect

    def moves(self, state: State) -> Iterator[Move]:
        """Yield everything that can happen next."""
        for index, producer in enumerate(state.producers):
            for label, after in self._producer(state, index, producer):
                yield f"producer {index + 1} {label}", after
        for number, worker in enumerate(state.workers, 1):
            for label, after in self._worker(state, number, worker):
                yield f"worker {number} {label}", after

    # The application

    def _producer(self, state: State, index: int, producer: Producer) -> Iterator[Move]:
        match producer.stage:
            case Stage.IDLE:
                yield "begins", state.with_producer(index, stage=Stage.BEGUN, snapshot=state.flag)
            case Stage.BEGUN:
                yield "inserts", state.with_producer(index, stage=Stage.LOCKED)
            case Stage.LOCKED:
                seen = producer.snapshot if self._defect is Defect.OLD_SNAPSHOT else state.flag
                looked = state.with_producer(
                    index, stage=Stage.LOOKED, notify=seen, snapshot=FLAG_DOWN
                )
                yield "looks at the flag", looked
            case Stage.LOOKED | Stage.PREPARED:
                # PREPARE refuses to carry a NOTIFY.
                if producer.stage is Stage.LOOKED and producer.notify == FLAG_DOWN:
                    yield "prepares", state.with_producer(index, stage=Stage.PREPARED)
                ended = state.with_producer(index, stage=Stage.ENDED, notify=FLAG_DOWN)
                yield "rolls back", ended
                committed = ended._replace(row_waits=True)
                told = committed.notified(producer.notify) if producer.notify else committed
                yield "commits", told
            case Stage.ENDED:
                pass

    # A worker

    def _worker(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        if not worker.alive:
            if worker.row:
                yield "is deleted from the workers", state.with_worker(number, row=False)
            return
        yield from self._acts(state, number, worker)
        if not worker.mind.schedule.todo:  # else it does the rest first, without a wait
            yield from self._learns(state, number, worker)
            yield from self._suffers(state, number, worker)
        if state.crashes_left:
            dead = state._replace(crashes_left=state.crashes_left - 1, healing=True)
            left = Worker(
                worker.mind.dead(),
                alive=False,
                row=worker.row,
                row_has_room=worker.row_has_room,
                row_polling=worker.row_polling,
            )
            yield "dies", dead.with_worker(number, **left._asdict())

    def _acts(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        """Yield what the schedule says, carried out as by the dispatcher."""
        for action, mind in worker.mind.actions.items():
            for label, after in self._does(state, number, action, mind):
                yield label, after
                if state.failures_left:
                    # The answer is lost; a claim's rows are given back.
                    failed = after._replace(
                        failures_left=state.failures_left - 1, row_waits=state.row_waits
                    )
                    away = mind.after("away", NOW, u=0.0)
                    yield f"{label}, unanswered", failed.with_worker(number, mind=away)

    def _does(self, state: State, number: int, action: Action, mind: Mind) -> Iterator[Move]:
        match action:
            case Action.OPEN_LISTENER:
                opening = mind.after("listener_opening", NOW, new_number=False)
                yield "registers", state.with_worker(number, mind=opening, row=True)
            case Action.LOOK:
                yield from self._looks(state, number, mind)
            case Action.ASK_NEXT_LOOK:
                yield from self._rests(state, number, mind)
            case Action.TAKE_DUTY:
                yield self._takes(state, number, mind)
            case Action.READ_PRODUCERS | Action.OUTWAIT:
                yield self._reads_producers(state, number, action, mind)
            case Action.LOWER_FLAG:
                lowered = state._replace(flag=FLAG_DOWN)
                mind = mind.after("flag_lowered", NOW)
                yield "lowers the flag", lowered.with_worker(number, mind=mind, row_polling=True)
            case Action.HAND_OVER_DUTY:
                yield from self._hands_over(state, number, mind)
            case _:
                raise AssertionError(action)

    def _looks(self, state: State, number: int, mind: Mind) -> Iterator[Move]:
        claim = {"found": state.row_waits, "full": False, "exhausted": True}
        claimed = mind.after("looked", NOW, claimed=state.row_waits, contended=False, **claim)
        yield "claims", state._replace(row_waits=False).with_worker(number, mind=claimed)
        if state.row_waits:
            held = mind.after("looked", NOW, claimed=False, contended=True, **claim)
            yield "finds the lane locked", state.with_worker(number, mind=held)

    def _rests(self, state: State, number: int, mind: Mind) -> Iterator[Move]:
        """The claim brought all there was; a younger snapshot says whether that is still so."""
        early = frozenset[str]()
        if self._defect is Defect.PRODUCERS_READ_EARLY:
            early = state.open_producers()
        rested = mind.after("rested", NOW, **_answer(new_rows=state.row_waits))
        yield "asks when to look", state.with_worker(number, mind=rested, early=early)
        if mind.schedule.polling:
            rested = mind.quiet().after("rested", NOW, **_answer(new_rows=state.row_waits))
            yield "asks after a quiet while", state.with_worker(number, mind=rested, early=early)

    def _takes(self, state: State, number: int, mind: Mind) -> Move:
        held = not state.duty_assigned(besides=number)
        after = state._replace(flag=number) if held else state
        mind = mind.after("duty_taken", held=held)
        return "raises the flag" if held else "leaves the duty to another", after.with_worker(
            number, mind=mind, row_has_room=True, row_polling=False
        )

    def _reads_producers(self, state: State, number: int, action: Action, mind: Mind) -> Move:
        producers = state.open_producers()
        if self._defect is Defect.PREPARED_NOT_COUNTED:
            producers = frozenset(
                name for name in producers if state.producers[int(name)].stage is not Stage.PREPARED
            )
        if action is Action.OUTWAIT:
            mind = mind.after("outwaited", NOW, producers=producers)
            return "outwaits", state.with_worker(number, mind=mind)
        if self._defect is Defect.PRODUCERS_READ_EARLY:
            producers = state.workers[number - 1].early
        mind = mind.after("producers_read", NOW, producers=producers)
        return "reads the producers", state.with_worker(number, mind=mind, early=frozenset())

    def _hands_over(self, state: State, number: int, mind: Mind) -> Iterator[Move]:
        mind = mind.after("handed_over", NOW)
        without = state.with_worker(number, mind=mind, row_has_room=False, row_polling=False)
        if not state.workers[number - 1].row_polling and state.flag != number:
            yield "says that it has no room", without
            return
        heirs = [
            heir
            for heir, other in enumerate(state.workers, 1)
            if heir != number and other.row and not other.row_stale and other.row_has_room
        ]
        if not heirs:
            yield "drops the duty", without._replace(flag=FLAG_DOWN)
        for heir in heirs:
            named = without._replace(flag=heir)
            told = named if self._defect is Defect.HEIR_NOT_TOLD else named.notified(heir)
            yield f"hands over to {heir}", told

    # What a worker learns, and what happens to it

    def _learns(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        mind = worker.mind
        if mind.schedule.listening is Listening.OPENING:
            # What was notified before it knows is lost.
            opened = mind.after("listener_opened", NOW)
            heard = state.with_worker(number, mind=opened, listening=True, inbox=frozenset())
            yield "listens", heard
        if worker.inbox:
            named = number in worker.inbox
            heard = state.with_worker(number, inbox=frozenset())
            told = mind.after("notified", NOW, mine=int(named), called=False)
            label = "hears its name" if named else "hears another named"
            yield label, heard.with_worker(number, mind=told)
            if named:
                often = mind.after("notified", NOW, mine=BURST_NOTIFIES, called=False)
                yield "hears its name often", heard.with_worker(number, mind=often)
        if not worker.has_room:
            yield "has room again", state.with_worker(number, mind=mind.after("room_returned", NOW))
        if state.healing and not state.duty_assigned() and mind.schedule.look_at > NOW:
            doubting = mind.after("duty_doubted", NOW)
            yield "finds that no worker has the duty", state.with_worker(number, mind=doubting)

    def _suffers(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        if worker.has_room and state.saturations_left:
            full = worker.mind.after("with_room", NOW, has_room=False)
            saturated = state._replace(saturations_left=state.saturations_left - 1)
            yield "has no room", saturated.with_worker(number, mind=full)
        if worker.listening and state.failures_left:
            deaf = worker.mind.after("listener_lost", NOW)
            cut = state._replace(failures_left=state.failures_left - 1)
            yield (
                "loses its LISTEN connection",
                cut.with_worker(number, mind=deaf, listening=False, inbox=frozenset()),
            )
        if worker.row_stale:
            yield "gives a sign of life", state.with_worker(number, row_stale=False)
        elif state.mistakes_left:
            mistaken = state._replace(mistakes_left=state.mistakes_left - 1, healing=True)
            yield "is taken for dead", mistaken.with_worker(number, row_stale=True)


def _answer(*, new_rows: bool) -> dict[str, object]:
    """Return what ASK_NEXT_LOOK brings where no lane is scheduled."""
    never = float("inf")
    return {
        "lane_s": never,
        "new_rows": new_rows,
        "quarantine_s": never,
        "answered_at": NOW,
        "u": 0.0,
    }
