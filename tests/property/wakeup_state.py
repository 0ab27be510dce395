"""What the model of the wakeup protocol knows: producers, workers, and the flag between them.

A worker decides with the product's own `Schedule`; here that has no times, or there would be no end
of states.
"""

import math
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

from webhookd.core.quarantine import Quarantine
from webhookd.core.schedule import Action, Schedule

FLAG_DOWN = 0  # otherwise the number of the worker that inserts notify
NOW, LATER = 0.0, 1.0
NO_QUARANTINE = Quarantine(ask_at=math.inf)
DEFAULTS = Schedule()


class Stage(Enum):
    """How far a producer's only transaction has come."""

    IDLE = 0
    BEGUN = 1  # has its snapshot, if it is REPEATABLE READ
    LOCKED = 2  # holds the RowExclusiveLock that every INSERT takes; its row is visible to itself
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


class Mind:
    """A worker's schedule without its times: a timer is due, set, or not set.

    A timer that is set may go off whenever the worker acts. *actions*: what it may do next, each
    with the mind that it then has. *awake*: it will look without being woken. There is one object
    for each schedule, so minds are compared by identity, and what an event makes of them is
    remembered: there are few, and they are asked a million times.
    """

    __slots__ = ("_after", "_minds", "_quiet", "actions", "awake", "outwaited", "schedule")

    def __init__(self, schedule: Schedule, minds: "dict[Schedule, Mind]") -> None:
        self.schedule = schedule
        self.outwaited = schedule.outwait.producers
        self.awake = schedule._replace(outwait=DEFAULTS.outwait).wake_at() < math.inf
        self._minds = minds
        minds[schedule] = self
        self._quiet: Mind | None = None
        self._after: dict[tuple[Any, ...], Mind] = {}
        self.actions: dict[Action, Mind] = {}
        for due in _timers_going_off(schedule):
            action = due.next(NOW)
            if action is not Action.WAIT:
                self.actions[action] = self._mind(due)

    @classmethod
    def first(cls, schedule: Schedule) -> "Mind":
        return cls(_timeless(schedule), {})

    def quiet(self) -> "Mind":
        """Return this mind a good while after it last found work. Only for the next event."""
        if self._quiet is None:
            self._quiet = Mind(self.schedule._replace(found_at=-math.inf), self._minds)
        return self._quiet

    def dead(self) -> "Mind":
        """Return the one mind that all the dead have."""
        return self._mind(type(self.schedule)())

    def after(self, event: str, *args: object, **details: object) -> "Mind":
        """Return what this mind is after an *event*, a method of the schedule."""
        key = (event, *args, *details.values())
        if key not in self._after:
            self._after[key] = self._mind(getattr(self.schedule, event)(*args, **details))
        return self._after[key]

    def _mind(self, schedule: Schedule) -> "Mind":
        timeless = _timeless(schedule)
        return self._minds.get(timeless) or Mind(timeless, self._minds)


def _timers_going_off(schedule: Schedule) -> Iterator[Schedule]:
    """Yield *schedule* as it is, and with each timer that is set gone off before the others."""
    yield schedule
    if schedule.look_at == LATER:
        yield schedule._replace(look_at=NOW)
    if schedule.outwait.at == LATER:
        yield schedule._replace(outwait=schedule.outwait._replace(at=NOW))
    if schedule.listen_at == LATER:
        yield schedule._replace(listen_at=NOW)
    if not schedule.has_room:
        yield schedule._replace(saturated_since=NOW - 1.0)


def _timeless(schedule: Schedule) -> Schedule:
    """Return *schedule* with times that say no more than due, set, or not set."""
    outwait = schedule.outwait
    return schedule._replace(
        look_at=_instant(schedule.look_at),
        found_at=NOW,
        contended=DEFAULTS.contended,
        call_at=NOW,
        saturated_since=NOW if schedule.saturated_since < math.inf else math.inf,
        outwait=DEFAULTS.outwait._replace(producers=outwait.producers, at=_instant(outwait.at)),
        notified_at=(),
        listen_at=_instant(schedule.listen_at),
        listen_pause=DEFAULTS.listen_pause,
        database_pause=DEFAULTS.database_pause,
        quarantine=NO_QUARANTINE,
    )


def _instant(at: float) -> float:
    if at <= NOW:
        return NOW
    return LATER if at < math.inf else math.inf


class Worker(NamedTuple):
    """The process (first lines), and its row in pggit.workers (last four)."""

    mind: Mind
    alive: bool = True
    listening: bool = False  # its session, whether it knows or not
    inbox: frozenset[int] = frozenset()
    early: frozenset[str] = frozenset()  # producers read too early, under that defect
    row: bool = False
    row_has_room: bool = False
    row_polling: bool = False
    row_stale: bool = False  # no sign of life for 20 s, though it lives: it is stalled

    @property
    def has_room(self) -> bool:
        return self.mind.schedule.has_room

    def asleep(self, open_producers: frozenset[str]) -> bool:
        """Return whether this worker will not look, unless a notification, the sweep, or the end of
        another producer makes it.
        """
        if not self.alive:
            return True
        if not self.has_room:
            # Room may take an exchange's whole timeout. A worker with the duty hands it over soon.
            return not self.mind.awake
        return not (self.inbox or self.mind.awake or self.mind.outwaited - open_producers)


class State(NamedTuple):
    flag: int
    row_waits: bool  # committed, and no worker has claimed it
    producers: tuple[Producer, ...]
    workers: tuple[Worker, ...]
    saturations_left: int
    crashes_left: int
    mistakes_left: int
    failures_left: int
    healing: bool = False  # after a crash or a mistake, signs of life find out who has the duty

    def lost_wakeup(self) -> bool:
        """Return whether a committed row waits, some worker has room for it, and none is going to
        look.
        """
        if not self.row_waits or not any(w.alive and w.has_room for w in self.workers):
            return False
        # The signs of life of a worker with room will find that no worker has the duty, once the
        # row of a dead one is deleted.
        if self.healing and (
            not self.duty_assigned() or any(w.row and not w.alive for w in self.workers)
        ):
            return False
        open_producers = self.open_producers()
        return all(worker.asleep(open_producers) for worker in self.workers)

    def duty_assigned(self, *, besides: int = 0) -> bool:
        """Return what take_watch and beat read: a registered worker looks, or the flag names it."""
        return any(
            worker.row and not worker.row_stale and (worker.row_polling or self.flag == number)
            for number, worker in enumerate(self.workers, 1)
            if number != besides
        )

    def open_producers(self) -> frozenset[str]:
        """Return the producers that pg_locks shows; a prepared one keeps its locks, and the name
        that it had before.
        """
        held = (Stage.LOCKED, Stage.LOOKED, Stage.PREPARED)
        return frozenset(
            str(index) for index, producer in enumerate(self.producers) if producer.stage in held
        )

    def with_worker(self, number: int, **changes: Any) -> "State":
        workers = list(self.workers)
        workers[number - 1] = workers[number - 1]._replace(**changes)
        return self._replace(workers=tuple(workers))

    def with_producer(self, index: int, **changes: Any) -> "State":
        producers = list(self.producers)
        producers[index] = producers[index]._replace(**changes)
        return self._replace(producers=tuple(producers))

    def notified(self, payload: int) -> "State":
        """Return the state after a NOTIFY was committed: every session that listens has it."""
        workers = (
            w._replace(inbox=w.inbox | {payload}) if w.listening else w for w in self.workers
        )
        return self._replace(workers=tuple(workers))
