"""The states of lease_model.py: rows, claims, workers and faults, and the invariants of every
state.
"""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from webhookd.core.model import Status

QUARANTINE_AFTER = 3  # the same number as in the statements
GIVE_UP_AFTER = 6
NO_ID = 0
WAITING = (Status.PENDING, Status.RETRYING)
FINAL = (Status.DELIVERED, Status.FAILED)


class Kind(Enum):
    """What a step needs: nothing special, the end of a lease, or a fault."""

    ORDINARY = 0
    EXPIRES = 1
    FAULT = 2


class End(Enum):
    """How a claim ended, as its holder or its reaper sees it."""

    OPEN = 0  # not yet
    DELIVERED = 1
    RETRY = 2
    RETURNED = 3
    LOST = 4


class Lease(Enum):
    NONE = 0
    RUNNING = 1
    EXPIRED = 2


class Row(NamedTuple):
    """A queue row: its state, its lease, and at the end what only the model knows.

    *owner*: the serial of the claim that has the row and has not ended. *torn*: an operator changed
    its status in a session without triggers. *requeued*: how often an operator did so with them.
    """

    status: Status = Status.PENDING
    retry_count: int = 0
    attempts: int = 0
    leases_lost: int = 0
    token: int = NO_ID
    leased_by: int = NO_ID
    worker: int = NO_ID
    lease: Lease = Lease.NONE
    owner: int = NO_ID
    torn: bool = False
    requeued: int = 0


class Claim(NamedTuple):
    """A delivery in a worker's memory: the row as it was when it was claimed, or when its lease was
    found lost.
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
    """The transaction that a worker has open. Only with a defect do others see one open."""

    NOTHING = 0
    CLAIM = 1
    CLAIM_QUARANTINED = 2
    RECORD = 3
    STORE_LANE = 4


class Worker(NamedTuple):
    """The process that has a worker's name now. *lost*: leases that it found lost and has not
    recorded. *batch*: the claims of its open record. *read*: in_flight as its open transaction
    read it.
    """

    incarnation: int
    outstanding: tuple[Claim, ...] = ()
    lost: tuple[Claim, ...] = ()
    doing: Doing = Doing.NOTHING
    batch: tuple[Claim, ...] = ()
    read: int = 0


class Faults(NamedTuple):
    """How many of each may still happen.

    *crashes*: deaths that the supervisor sees. *unseen*: deaths that it does not see, such as that
    of a host. *stalls*: leases that expire while their holder lives. *lost_records*, *lost_claims*:
    COMMITs whose answer is lost. *operations*: an operator cancels a row or makes it new.
    """

    crashes: int = 0
    unseen: int = 0
    stalls: int = 0
    lost_records: int = 0
    lost_claims: int = 0
    operations: int = 0


class Fleet(NamedTuple):
    """*cap*: max_in_flight. *poison*: the first row kills every worker that posts it."""

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
    def needs_leases_to_expire(self) -> bool:
        """Return whether rows may remain that no worker knows of: a death was not seen."""
        return bool(self.faults.unseen)


class State(NamedTuple):
    """*stranded*: by how much operators made in_flight wrong. *dead*: the incarnations (and names)
    whose leases are to be released.
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

    def held_by_living(self, serial: int) -> bool:
        return any(
            claim.serial == serial for worker in self.workers for claim in worker.outstanding
        )

    def serials(self, count: int) -> list[int]:
        """Return serials that occur nowhere in the state. They serve as new ones, and the model
        stays finite.
        """
        known = {row.owner for row in self.rows} | {row.token for row in self.rows}
        for worker in self.workers:
            known.update(
                claim.serial for claim in (*worker.outstanding, *worker.lost, *worker.batch)
            )
        return [number for number in range(1, len(known) + count + 1) if number not in known][
            :count
        ]

    def violation(self, max_retries: int) -> str | None:
        """Return which invariant does not hold here, if any."""
        if self.wrong:
            return self.wrong
        for row in self.rows:
            sending = row.status is Status.SENDING
            leased = {row.token != NO_ID, row.leased_by != NO_ID, row.lease is not Lease.NONE}
            holds = {
                "more retries than max_retries": row.retry_count <= max_retries,
                "a retry was spent without an attempt": row.retry_count <= row.attempts,
                "more attempts than the first and its retries": row.attempts
                <= (max_retries + 1) * (row.requeued + 1),
                "it continued after six lost leases": row.leases_lost
                < GIVE_UP_AFTER + (row.status is Status.FAILED),
                "a lease without a claim, or a claim without a lease": leased == {sending}
                or row.torn,
                "owned and not sending, or sending and without an owner": (row.owner != NO_ID)
                == sending,
            }
            if not all(holds.values()):
                return next(broken for broken, held in holds.items() if not held)
        resting = all(worker.doing is Doing.NOTHING for worker in self.workers)
        if resting and self.in_flight - self.stranded != self.leased():
            return "in_flight is not the number of claimed rows"
        return None


class Move(NamedTuple):
    label: str
    after: State
    kind: Kind = Kind.ORDINARY


def plain_numbers(state: State) -> State:
    """Return *state* with claims and incarnations numbered in order, and without the dead that hold
    no lease any more. States that differ in numbers only become one.
    """
    incarnations = {NO_ID: NO_ID}
    serials = {NO_ID: NO_ID}
    for worker in state.workers:
        incarnations.setdefault(worker.incarnation, len(incarnations))
    for row in state.rows:
        incarnations.setdefault(row.leased_by, len(incarnations))
        serials.setdefault(row.owner, len(serials))
        serials.setdefault(row.token, len(serials))
    for worker in state.workers:
        for claim in (*worker.outstanding, *worker.lost, *worker.batch):
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
                outstanding=plainly(worker.outstanding),
                lost=plainly(worker.lost),
                batch=plainly(worker.batch),
            )
            for worker in state.workers
        ),
        dead=dead,
    )


def in_order(claims: Iterable[Claim]) -> tuple[Claim, ...]:
    return tuple(sorted(claims, key=lambda claim: (claim.row, claim.serial, claim.end.value)))


def idle(state: State, number: int) -> State:
    """Return *state* with no transaction open in worker *number*."""
    return state.with_worker(number, doing=Doing.NOTHING, batch=(), read=0)
