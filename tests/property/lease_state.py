"""What lease_model.py and lease_steps.py are about: rows, claims, workers, faults, and what must
hold of them in every state.
"""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from webhookd.core.model import Status

SUSPECT_AFTER = 3  # as the statements have it
ENDS_AFTER = 6
NOBODY = 0
WAITING = (Status.PENDING, Status.RETRYING)
FINAL = (Status.DELIVERED, Status.FAILED)


class Kind(Enum):
    """What a step needs: nothing out of the ordinary, that a lease runs out, or that something goes
    wrong.
    """

    ORDINARY = 0
    RUNS_OUT = 1
    FAULT = 2


class End(Enum):
    """How a claim ended, as its holder or its reaper sees it."""

    OPEN = 0  # not at all so far
    DELIVERED = 1
    RETRY = 2
    GIVEN_BACK = 3
    LOST = 4


class Lease(Enum):
    NONE = 0
    RUNNING = 1
    RUN_OUT = 2


class Row(NamedTuple):
    """A queue row (first line: its state; second: its lease). The third line is what only the model
    knows.

    *owner*: the serial of the claim that the row was given to and that has not ended. *torn*: its
    status was changed behind every trigger's back. *requeued*: how often an operator did so openly.
    """

    status: Status = Status.PENDING
    retry_count: int = 0
    attempts: int = 0
    leases_lost: int = 0
    token: int = NOBODY
    leased_by: int = NOBODY
    worker: int = NOBODY
    lease: Lease = Lease.NONE
    owner: int = NOBODY
    torn: bool = False
    requeued: int = 0


class Claim(NamedTuple):
    """A delivery in a worker's memory: the row as it was at the claim, or when its lease was read
    as lost.
    """

    row: int
    token: int
    serial: int
    retry_count: int
    attempts: int
    leases_lost: int
    end: End = End.OPEN
    posted: bool = False


class Doing(Enum):
    """The transaction that a worker has open. Only a defect leaves one open where others can see
    it.
    """

    NOTHING = 0
    CLAIM = 1
    CLAIM_SUSPECT = 2
    RECORD = 3
    STORE_LANE = 4


class Worker(NamedTuple):
    """The process that has a name just now. *lost*: what it read as lost and has not recorded.

    *batch*: what its open record is about. *read*: in_flight as its open transaction read it.
    """

    incarnation: int
    hands: tuple[Claim, ...] = ()
    lost: tuple[Claim, ...] = ()
    doing: Doing = Doing.NOTHING
    batch: tuple[Claim, ...] = ()
    read: int = 0


class Faults(NamedTuple):
    """How many of each may still happen.

    *crashes*: deaths that the supervisor sees. *unseen*: deaths that nobody sees, such as a whole
    host's. *stalls*: leases that run out while their holder lives. *lost_records*, *lost_claims*:
    COMMITs whose answer is lost. *operations*: an operator cancels a row or makes it new.
    """

    crashes: int = 0
    unseen: int = 0
    stalls: int = 0
    lost_records: int = 0
    lost_claims: int = 0
    operations: int = 0


class Fleet(NamedTuple):
    """*cap*: max_in_flight. *poison*: the first row kills whoever posts it, and that as often as it
    takes.
    """

    rows: int
    workers: int
    max_retries: int = 0
    cap: int = 10
    faults: Faults = Faults()
    poison: bool = False

    def __str__(self) -> str:
        numbers = {**self._asdict(), **self.faults._asdict()}
        del numbers["faults"]
        return ", ".join(
            f"{what} {count}" for what, count in numbers.items() if count and count != 10
        )

    @property
    def needs_leases_to_run_out(self) -> bool:
        """Return whether rows may be left that nobody knows of: a death was not seen."""
        return bool(self.faults.unseen)


class State(NamedTuple):
    """*stranded*: by how much operators have made in_flight wrong. *dead*: incarnations (and names)
    to release.
    """

    rows: tuple[Row, ...]
    in_flight: int
    stranded: int
    workers: tuple[Worker, ...]
    dead: frozenset[tuple[int, int]]
    left: Faults
    wrong: str | None = None

    def with_worker(self, number: int, **changes: object) -> "State":
        workers = list(self.workers)
        workers[number - 1] = workers[number - 1]._replace(**changes)  # type: ignore[arg-type]
        return self._replace(workers=tuple(workers))

    def with_row(self, index: int, **changes: object) -> "State":
        rows = list(self.rows)
        rows[index] = rows[index]._replace(**changes)  # type: ignore[arg-type]
        return self._replace(rows=tuple(rows))

    def less(self, fault: str) -> "State":
        return self._replace(left=self.left._replace(**{fault: getattr(self.left, fault) - 1}))

    def leased(self) -> int:
        return sum(row.status is Status.SENDING for row in self.rows)

    def ended(self) -> bool:
        return all(row.status in FINAL for row in self.rows)

    def in_living_hands(self, serial: int) -> bool:
        return any(claim.serial == serial for worker in self.workers for claim in worker.hands)

    def serials(self, count: int) -> list[int]:
        """Return serials that nobody anywhere remembers: as good as new ones, and they keep the
        model finite.
        """
        known = {row.owner for row in self.rows} | {row.token for row in self.rows}
        for worker in self.workers:
            known.update(claim.serial for claim in (*worker.hands, *worker.lost, *worker.batch))
        return [number for number in range(1, len(known) + count + 1) if number not in known][
            :count
        ]

    def violation(self, max_retries: int) -> str | None:
        """Return which invariant does not hold here, if any."""
        if self.wrong:
            return self.wrong
        for row in self.rows:
            sending = row.status is Status.SENDING
            leased = {row.token != NOBODY, row.leased_by != NOBODY, row.lease is not Lease.NONE}
            holds = {
                "more retries than max_retries": row.retry_count <= max_retries,
                "a retry was spent without an attempt": row.retry_count <= row.attempts,
                "more attempts than the first and its retries": row.attempts
                <= (max_retries + 1) * (row.requeued + 1),
                "it went on after six lost leases": row.leases_lost
                < ENDS_AFTER + (row.status is Status.FAILED),
                "a lease without a claim, or a claim without a lease": leased == {sending}
                or row.torn,
                "owned and not sending, or sending and nobody's": (row.owner != NOBODY) == sending,
            }
            if not all(holds.values()):
                return next(broken for broken, held in holds.items() if not held)
        resting = all(worker.doing is Doing.NOTHING for worker in self.workers)
        if resting and self.in_flight - self.stranded != self.leased():
            return "in_flight does not say what is in flight"
        return None


class Move(NamedTuple):
    label: str
    after: State
    kind: Kind = Kind.ORDINARY


def plain_numbers(state: State) -> State:
    """Return *state* with claims and incarnations numbered as they come, and without the dead that
    hold nothing any more.
    """
    incarnations = {NOBODY: NOBODY}
    serials = {NOBODY: NOBODY}
    for worker in state.workers:
        incarnations.setdefault(worker.incarnation, len(incarnations))
    for row in state.rows:
        incarnations.setdefault(row.leased_by, len(incarnations))
        serials.setdefault(row.owner, len(serials))
        serials.setdefault(row.token, len(serials))
    for worker in state.workers:
        for claim in (*worker.hands, *worker.lost, *worker.batch):
            serials.setdefault(claim.serial, len(serials))
            serials.setdefault(claim.token, len(serials))

    dead = frozenset(
        (incarnations[incarnation], name)
        for incarnation, name in state.dead
        if any(row.leased_by == incarnation for row in state.rows)
    )
    if all(old == new for numbers in (incarnations, serials) for old, new in numbers.items()):
        return state if dead == state.dead else state._replace(dead=dead)

    def plainly(claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return in_order(
            [
                claim._replace(token=serials[claim.token], serial=serials[claim.serial])
                for claim in claims
            ]
        )

    return state._replace(
        rows=tuple(
            row._replace(
                token=serials[row.token],
                leased_by=incarnations[row.leased_by],
                owner=serials[row.owner],
            )
            for row in state.rows
        ),
        workers=tuple(
            worker._replace(
                incarnation=incarnations[worker.incarnation],
                hands=plainly(worker.hands),
                lost=plainly(worker.lost),
                batch=plainly(worker.batch),
            )
            for worker in state.workers
        ),
        dead=dead,
    )


def in_order(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    return tuple(sorted(claims, key=lambda claim: (claim.row, claim.serial, claim.end.value)))
