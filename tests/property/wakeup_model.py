"""A model of the wakeup protocol, small enough to try every interleaving of it.

Each step is what PostgreSQL does at one instant: a statement with its snapshot, a commit that shows
rows, releases locks and delivers notifications, a write to a sequence that everybody sees at once.
Between any two steps of one participant, any steps of the others may happen. Time is left out: a
timer of some milliseconds is a step that may be taken whenever its timer is set. The sweep every 30
s is not modelled, since a wakeup that only the sweep makes good is lost.

Producers and workers follow webhookd/dispatcher.py, webhookd/watch.py and the statements behind
them; the names are theirs.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import NamedTuple

FLAG_DOWN = 0  # otherwise the number of the worker whom inserts notify


class Defect(StrEnum):
    """One step of the protocol left out or done wrong."""

    LISTEN_AFTER_FLAG = "the worker listens only after it has raised the flag and looked"
    NO_LOOK_AFTER_RAISING = "the worker does not look again once the flag is up"
    NO_OUTWAITING = "the worker does not outwait the producers that looked before the flag was up"
    LOCKERS_READ_EARLY = "the producers to outwait are read before the flag is up"
    PREPARED_NOT_COUNTED = "prepared transactions are not among those to outwait"
    NO_LOOK_WHEN_ONE_IS_GONE = "the worker outwaits a producer and does not look once it is gone"
    OLD_SNAPSHOT = "the trigger sees the flag as its transaction's snapshot has it"
    NOTIFICATION_SWALLOWED = "a notification that comes during the outwaiting leads to no look"
    OTHERS_NOT_ALERTED = "a worker ignores notifications that name another"
    HEIR_DOES_NOT_OUTWAIT = (
        "whoever hears its name keeps the watch from then on and outwaits nobody"
    )
    NAME_TAKEN_AT_ITS_WORD = "whoever hears its name keeps the watch from then on, though it may have dropped it meanwhile"
    HEIR_NOT_TOLD = "the watch is handed over without a notification"
    DROPPED_FOR_GOOD = "who dropped the watch does not take it up again"
    LOOKER_SLEEPS = "a worker that kept the watch by looking sleeps without raising the flag"


class Stage(Enum):
    """How far a producer's only transaction has come."""

    IDLE = 0
    BEGUN = 1  # has its snapshot, if it is REPEATABLE READ
    LOCKED = 2  # holds the RowExclusiveLock that every INSERT takes; the row is in, for itself only
    LOOKED = 3  # the trigger has run
    PREPARED = 4
    ENDED = 5


class Producer(NamedTuple):
    """*snapshot* and *notify*: the flag as it was at the begin, and as the trigger saw it
    (FLAG_DOWN: no NOTIFY at commit).
    """

    stage: Stage = Stage.IDLE
    snapshot: int = FLAG_DOWN
    notify: int = FLAG_DOWN


class Step(Enum):
    """What a worker does next."""

    REGISTER = 0
    LISTEN = 1
    WAIT = 2  # in select, or about to be
    REST = 3  # the claim brought all there was
    TAKE = 4
    READ_LOCKERS = 5
    LOWER = 6
    DEAD = 7


class Worker(NamedTuple):
    """The process (first line), and its row in pggit.workers (second line)."""

    step: Step = Step.REGISTER
    listening: bool = False
    inbox: frozenset[int] = frozenset()
    look_due: bool = False
    holds_duty: bool = False
    polling: bool = False
    watched: bool = False
    room: bool = True
    outwaited: frozenset[int] = frozenset()
    row: bool = False
    row_has_room: bool = False
    row_polling: bool = False
    row_stale: bool = (
        False  # no sign of life for 20 s, though it lives: stalled, or its housekeeping is
    )

    def asleep(self, open_producers: frozenset[int]) -> bool:
        """Return whether nothing but a notification, the sweep, or another producer's end will make
        this worker look.
        """
        if self.step is Step.DEAD:
            return True
        if not self.room:
            return (
                not self.holds_duty
            )  # a keeper hands over within 10 ms; room may take an exchange's whole timeout
        due = self.look_due or self.polling or not self.outwaited <= open_producers
        return self.step is Step.WAIT and not self.inbox and not due


class State(NamedTuple):
    flag: int
    row_waits: bool  # committed, and no worker has claimed it
    producers: tuple[Producer, ...]
    workers: tuple[Worker, ...]
    saturations_left: int
    crashes_left: int
    mistakes_left: int
    healing: bool = False  # after a crash or a mistake, signs of life every few seconds put right who keeps the watch

    def lost_wakeup(self) -> bool:
        """Return whether a committed row waits, somebody has room for it, and nobody is going to
        look.
        """
        if not self.row_waits or not any(
            worker.room and worker.step is not Step.DEAD for worker in self.workers
        ):
            return False
        # The signs of life of a worker with room will find that nobody keeps the watch, once a dead
        # one's row is struck.
        if self.healing and (
            not self.somebody_holds_duty()
            or any(w.row and w.step is Step.DEAD for w in self.workers)
        ):
            return False
        open_producers = self.open_producers()
        return all(worker.asleep(open_producers) for worker in self.workers)

    def somebody_holds_duty(self, *, besides: int = 0) -> bool:
        """Return what take_watch and beat read: a registered worker looks, or the flag names it."""
        return any(
            worker.row and not worker.row_stale and (worker.row_polling or self.flag == number)
            for number, worker in enumerate(self.workers, 1)
            if number != besides
        )

    def open_producers(self) -> frozenset[int]:
        """Return the producers that pg_locks shows; a prepared one keeps its locks, and the name
        that it had before.
        """
        held = (Stage.LOCKED, Stage.LOOKED, Stage.PREPARED)
        return frozenset(
            index for index, producer in enumerate(self.producers) if producer.stage in held
        )

    def with_worker(self, number: int, **changes: object) -> "State":
        workers = list(self.workers)
        workers[number - 1] = workers[number - 1]._replace(**changes)  # type: ignore[arg-type]
        return self._replace(workers=tuple(workers))

    def with_producer(self, index: int, **changes: object) -> "State":
        producers = list(self.producers)
        producers[index] = producers[index]._replace(**changes)  # type: ignore[arg-type]
        return self._replace(producers=tuple(producers))

    def notified(self, payload: int) -> "State":
        """Return the state after a NOTIFY was committed: every session that listens has it."""
        workers = (
            w._replace(inbox=w.inbox | {payload}) if w.listening else w for w in self.workers
        )
        return self._replace(workers=tuple(workers))


Move = tuple[str, State]


class Fleet(NamedTuple):
    """Producers have one transaction each. A worker may lose its room *saturations* times in all,
    *crashes* of them may die, and *mistakes* times a living one may be taken for dead.
    """

    producers: int
    workers: int
    saturations: int = 0
    crashes: int = 0
    mistakes: int = 0

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
    start = State(
        flag=FLAG_DOWN,
        row_waits=False,
        producers=(Producer(),) * fleet.producers,
        workers=(Worker(),) * fleet.workers,
        saturations_left=fleet.saturations,
        crashes_left=fleet.crashes,
        mistakes_left=fleet.mistakes,
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
                yield (
                    "looks at the flag",
                    state.with_producer(index, stage=Stage.LOOKED, notify=seen, snapshot=FLAG_DOWN),
                )
            case Stage.LOOKED | Stage.PREPARED:
                if (
                    producer.stage is Stage.LOOKED and producer.notify == FLAG_DOWN
                ):  # PREPARE refuses to carry a NOTIFY
                    yield "prepares", state.with_producer(index, stage=Stage.PREPARED)
                ended = state.with_producer(index, stage=Stage.ENDED, notify=FLAG_DOWN)
                yield "rolls back", ended
                committed = ended._replace(row_waits=True)
                yield (
                    "commits",
                    committed.notified(producer.notify) if producer.notify else committed,
                )
            case Stage.ENDED:
                pass

    # A worker

    def _worker(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        match worker.step:
            case Step.REGISTER:
                # The look that follows LISTEN is due already: it finds whatever was committed
                # before.
                late = self._defect is Defect.LISTEN_AFTER_FLAG
                following = Step.WAIT if late else Step.LISTEN
                yield (
                    "registers",
                    state.with_worker(number, step=following, row=True, look_due=True),
                )
            case Step.LISTEN:
                yield "listens", state.with_worker(number, step=Step.WAIT, listening=True)
            case Step.WAIT:
                yield from self._waits(state, number, worker)
            case Step.REST:
                yield from self._rests(state, number, worker)
            case Step.TAKE:
                yield self._takes(state, number)
            case Step.READ_LOCKERS:
                yield self._reads_lockers(state, number)
            case Step.LOWER:
                lowered = state._replace(flag=FLAG_DOWN)
                yield (
                    "lowers the flag",
                    lowered.with_worker(
                        number,
                        step=Step.WAIT,
                        polling=True,
                        row_polling=True,
                        outwaited=frozenset(),
                    ),
                )
            case Step.DEAD:
                if worker.row:
                    yield "is struck from the workers", state.with_worker(number, row=False)
        if worker.step is not Step.DEAD and state.crashes_left:
            dead = state._replace(crashes_left=state.crashes_left - 1, healing=True)
            left = Worker(
                step=Step.DEAD,
                row=worker.row,
                row_has_room=worker.row_has_room,
                row_polling=worker.row_polling,
            )
            yield "dies", dead.with_worker(number, **left._asdict())

    def _waits(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        """Yield what the dispatcher's loop does, whichever of select's sources is ready first."""
        if (
            self._defect is Defect.LISTEN_AFTER_FLAG
            and not worker.listening
            and worker.holds_duty
            and not worker.look_due
        ):
            yield "listens", state.with_worker(number, listening=True)
        if worker.inbox:
            yield from self._reads_notifications(state, number, worker)
        if worker.room and (worker.look_due or worker.polling):
            claimed = state._replace(row_waits=False).with_worker(
                number, step=Step.REST, look_due=False
            )
            yield "claims", claimed
        elif worker.room and worker.outwaited:
            yield self._outwaits(state, number, worker)
        if worker.room and state.saturations_left:
            saturated = state._replace(saturations_left=state.saturations_left - 1)
            yield "has no room", saturated.with_worker(number, room=False)
        if not worker.room:
            yield "has room again", state.with_worker(number, room=True, look_due=True)
            if worker.holds_duty:
                yield from self._hands_over(state, number, worker)
        if state.healing and not state.somebody_holds_duty() and not worker.look_due:
            yield (
                "finds that nobody keeps the watch",
                state.with_worker(number, look_due=True, watched=False),
            )
        if worker.row_stale:
            yield "gives a sign of life", state.with_worker(number, row_stale=False)
        elif state.mistakes_left:
            mistaken = state._replace(mistakes_left=state.mistakes_left - 1, healing=True)
            yield "is taken for dead", mistaken.with_worker(number, row_stale=True)

    def _rests(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        """The claim brought all there was; a younger snapshot says whether that is still so."""
        if state.row_waits:
            yield "sees new rows", state.with_worker(number, step=Step.WAIT, look_due=True)
            return
        if worker.polling:
            yield "will look in 5 ms", state.with_worker(number, step=Step.WAIT)
            if self._defect is Defect.LOOKER_SLEEPS:
                yield "goes to sleep", state.with_worker(number, step=Step.WAIT, polling=False)
                return
        takes = not worker.watched or worker.polling
        early = takes and self._defect is Defect.LOCKERS_READ_EARLY
        outwaited = state.open_producers() if early else worker.outwaited
        yield (
            "rests",
            state.with_worker(number, step=Step.TAKE if takes else Step.WAIT, outwaited=outwaited),
        )

    def _takes(self, state: State, number: int) -> Move:
        ours = {"watched": True, "polling": False, "row_has_room": True, "row_polling": False}
        if state.somebody_holds_duty(besides=number):
            return "leaves the watch to another", state.with_worker(
                number, step=Step.WAIT, holds_duty=False, **ours
            )
        following = Step.WAIT if self._defect is Defect.LOCKERS_READ_EARLY else Step.READ_LOCKERS
        raised = state._replace(flag=number)
        early = self._defect is Defect.LOCKERS_READ_EARLY
        return "raises the flag", raised.with_worker(
            number, step=following, holds_duty=True, look_due=early, **ours
        )

    def _reads_lockers(self, state: State, number: int) -> Move:
        look = self._defect is not Defect.NO_LOOK_AFTER_RAISING
        open_producers = self._open_producers(state)
        return "reads the lockers", state.with_worker(
            number, step=Step.WAIT, outwaited=open_producers, look_due=look
        )

    def _outwaits(self, state: State, number: int, worker: Worker) -> Move:
        left = worker.outwaited & self._open_producers(state)
        look = left != worker.outwaited and self._defect is not Defect.NO_LOOK_WHEN_ONE_IS_GONE
        return "outwaits", state.with_worker(number, outwaited=left, look_due=look)

    def _reads_notifications(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        if number not in worker.inbox:
            alert = self._defect is not Defect.OTHERS_NOT_ALERTED
            yield (
                "hears another named",
                state.with_worker(number, inbox=frozenset(), look_due=worker.look_due or alert),
            )
            return
        heard = state.with_worker(number, inbox=frozenset(), look_due=True)
        if not worker.holds_duty:
            # Handed over, or an old notification: the next claim's rest takes the watch or leaves
            # it.
            heard = heard.with_worker(number, holds_duty=True, watched=False)
            if self._defect is Defect.HEIR_DOES_NOT_OUTWAIT:
                heard = heard.with_worker(number, watched=True)
            elif self._defect is Defect.NAME_TAKEN_AT_ITS_WORD:
                heard = heard.with_worker(number, watched=True, step=Step.READ_LOCKERS)
        elif self._defect is Defect.NOTIFICATION_SWALLOWED and worker.outwaited:
            heard = heard.with_worker(number, look_due=worker.look_due)
        yield "hears its name", heard
        if not worker.polling:
            yield "hears its name often", heard.with_worker(number, step=Step.LOWER)

    def _hands_over(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        watched = self._defect is Defect.DROPPED_FOR_GOOD
        without = state.with_worker(
            number,
            holds_duty=False,
            polling=False,
            watched=watched,
            row_has_room=False,
            row_polling=False,
        )
        if not worker.row_polling and state.flag != number:
            yield "says that it has no room", without
            return
        heirs = [
            heir
            for heir, other in enumerate(state.workers, 1)
            if heir != number and other.row and not other.row_stale and other.row_has_room
        ]
        if not heirs:
            yield "drops the watch", without._replace(flag=FLAG_DOWN)
        for heir in heirs:
            told = without._replace(flag=heir)
            yield (
                f"hands over to {heir}",
                told if self._defect is Defect.HEIR_NOT_TOLD else told.notified(heir),
            )

    def _open_producers(self, state: State) -> frozenset[int]:
        """Return whom a worker outwaits."""
        if self._defect is Defect.NO_OUTWAITING:
            return frozenset()
        if self._defect is Defect.PREPARED_NOT_COUNTED:
            return frozenset(
                i for i in state.open_producers() if state.producers[i].stage is not Stage.PREPARED
            )
        return state.open_producers()
