"""The steps of lease_model.py: what a worker, time and an operator may do next, and the same with a
step missing or wrong.
"""

from collections.abc import Iterator, Sequence
from types import ModuleType

from tests.property.lease_core import Core
from tests.property.lease_defects import Defect
from tests.property.lease_record import Record
from tests.property.lease_state import (
    FINAL,
    GIVE_UP_AFTER,
    NO_ID,
    QUARANTINE_AFTER,
    WAITING,
    Claim,
    Doing,
    End,
    Fleet,
    Kind,
    Lease,
    Move,
    Row,
    State,
    Worker,
    idle,
    in_order,
    plain_numbers,
)
from webhookd.core.model import Status


class Model:
    """The protocol, with *defects*."""

    def __init__(
        self,
        fleet: Fleet,
        defects: frozenset[Defect],
        settles: ModuleType,
        settles_lane: ModuleType,
    ) -> None:
        self._fleet = fleet
        self._defects = defects
        self._core = Core(fleet, settles, settles_lane)
        self._record = Record(self._core, defects)

    def moves(self, state: State) -> Iterator[Move]:
        """Yield everything that can happen next."""
        for number, worker in enumerate(state.workers, 1):
            for label, after, kind in self._worker_steps(state, number, worker):
                yield Move(f"worker {number}: {label}", plain_numbers(after), kind)
        for index, row in enumerate(state.rows):
            for label, after, kind in (
                *self._expires(state, index, row),
                *self._operations(state, index, row),
            ):
                yield Move(f"row {index + 1}: {label}", plain_numbers(after), kind)

    # A worker's process

    def _worker_steps(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        match worker.doing:
            case Doing.NOTHING:
                yield from self._dispatcher_steps(state, number, worker)
                yield from self._reap(state, number, worker)
                yield from self._begin_record(state, number, worker)
            case Doing.CLAIM | Doing.CLAIM_QUARANTINED:
                yield from self._commit_claim(state, number, worker)
            case Doing.RECORD:
                yield from self._record.commit(state, number, worker)
            case Doing.STORE_LANE:
                yield Move("stores the lane", idle(state._replace(in_flight=worker.read), number))
        yield from self._deaths(state, number, worker)

    def _deaths(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        if state.left.crashes:
            yield Move("dies", _died(state.less("crashes"), number), Kind.FAULT)
        if state.left.unseen:
            yield Move(
                "dies unseen",
                _died(state.less("unseen"), number, seen=False),
                Kind.FAULT,
            )
        if Defect.RELEASE_BEFORE_DEATH in self._defects:
            marked = state._replace(dead=state.dead | {(worker.incarnation, number)})
            yield Move("is reported dead while alive", marked, Kind.FAULT)

    # Claim and exchange: the dispatcher and its senders

    def _dispatcher_steps(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        if self._claimable(state) or state.in_flight >= self._fleet.cap:
            yield from self._begin(state, number, Doing.CLAIM)
        quarantined = (
            self._quarantined(state) and Defect.QUARANTINE_NOT_CLAIMED not in self._defects
        )
        if quarantined and (
            not worker.outstanding or Defect.QUARANTINED_BESIDE_OTHERS in self._defects
        ):
            yield from self._begin(state, number, Doing.CLAIM_QUARANTINED)
        for claim in worker.outstanding:
            if claim.end is not End.OPEN:
                if Defect.POSTED_RETURNED in self._defects and claim.end is not End.RETURNED:
                    yield Move(
                        "returns what it has posted",
                        self._end(state, number, claim, End.RETURNED),
                    )
                continue
            yield Move("returns", self._end(state, number, claim, End.RETURNED))
            if self._fleet.poison and claim.row == 0:
                yield Move("dies of its POST", _died(state, number))
                continue
            yield Move("is refused", self._end(state, number, claim, End.RETRY))
            yield Move("delivers", self._end(state, number, claim, End.DELIVERED))

    def _end(self, state: State, number: int, claim: Claim, end: End) -> State:
        after = claim._replace(end=end, posted=claim.posted or end in (End.DELIVERED, End.RETRY))
        outstanding = state.workers[number - 1].outstanding
        return state.with_worker(
            number,
            outstanding=in_order(after if other == claim else other for other in outstanding),
        )

    def _commit_claim(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        quarantined = worker.doing is Doing.CLAIM_QUARANTINED
        in_flight, stranded = worker.read, state.stranded
        if (
            not quarantined
            and in_flight >= self._fleet.cap
            and Defect.NO_RECOUNT not in self._defects
        ):
            in_flight, stranded = state.leased(), 0
        candidates = self._quarantined(state) if quarantined else self._claimable(state)
        counted = (
            Defect.QUARANTINED_NOT_COUNTED if quarantined else Defect.CLAIM_NOT_COUNTED
        ) not in self._defects
        for wish in range(1, 2 if quarantined or len(candidates) < 2 else len(candidates) + 1):
            quota = self._core.quota(in_flight, wish)
            taken = candidates[:quota]
            claimed, claims = self._lease(state, number, taken)
            now_in_flight = in_flight + len(taken) * counted
            label = f"claims {len(taken)}" + (" in quarantine" if quarantined else "")
            claimed = claimed._replace(stranded=stranded)
            if Defect.CLAIM_IN_TWO in self._defects:
                halfway = claimed.with_worker(
                    number, outstanding=in_order((*worker.outstanding, *claims))
                )
                yield Move(
                    f"{label} in part",
                    halfway.with_worker(number, doing=Doing.STORE_LANE, read=now_in_flight),
                )
                continue
            ended = idle(claimed._replace(in_flight=now_in_flight), number)
            yield Move(
                label,
                ended.with_worker(number, outstanding=in_order((*worker.outstanding, *claims))),
            )
            if taken and state.left.lost_claims:
                yield from self._doubtful_claims(
                    label, state.less("lost_claims"), ended.less("lost_claims"), number, claims
                )

    def _doubtful_claims(
        self, label: str, before: State, committed: State, number: int, claims: Sequence[Claim]
    ) -> Iterator[Move]:
        """Yield a claim whose COMMIT was not answered. The worker cannot know whether it is stored,
        and returns it.
        """
        outstanding = before.workers[number - 1].outstanding
        if Defect.DOUBT_FORGOTTEN not in self._defects:
            outstanding = in_order(
                (*outstanding, *(claim._replace(end=End.RETURNED) for claim in claims))
            )
        yield Move(
            f"{label} and gets no answer",
            committed.with_worker(number, outstanding=outstanding),
            Kind.FAULT,
        )
        yield Move(
            "cannot commit its claim",
            idle(before.with_worker(number, outstanding=outstanding), number),
            Kind.FAULT,
        )

    def _lease(self, state: State, number: int, rows: Sequence[int]) -> tuple[State, list[Claim]]:
        """Return *state* with *rows* leased to a worker, and its claims."""
        claims = []
        worker = state.workers[number - 1]
        after = state
        serials = state.serials(len(rows))
        for index, serial in zip(rows, serials, strict=True):
            row = state.rows[index]
            token = row.token if Defect.NO_TOKEN_SET in self._defects else serial
            if Defect.TOKEN_REPEATS in self._defects:
                token = next(
                    (
                        claim.token
                        for other in state.workers
                        for claim in other.outstanding
                        if claim.row == index
                    ),
                    serial,
                )
            if row.owner != NO_ID:
                after = after._replace(wrong="a row was claimed that had an owner")
            if row.status in FINAL:
                after = after._replace(wrong=f"a {row.status} row was claimed")
            if row.leases_lost >= QUARANTINE_AFTER and (len(rows) > 1 or worker.outstanding):
                after = after._replace(wrong="a row in quarantine was not tried alone")
            after = after.with_row(
                index,
                status=Status.SENDING,
                token=token,
                leased_by=NO_ID if Defect.NO_HOLDER_SET in self._defects else worker.incarnation,
                worker=number if Defect.RELEASE_BY_NAME in self._defects else NO_ID,
                lease=Lease.NONE if Defect.NO_LEASE_SET in self._defects else Lease.RUNNING,
                owner=serial,
            )
            claims.append(
                Claim(index, token, serial, row.retry_count, row.attempts, row.leases_lost)
            )
        return after, claims

    def _claimable(self, state: State) -> list[int]:
        statuses: set[Status] = set(WAITING)
        if Defect.HELD_ROWS_CLAIMED in self._defects:
            statuses.add(Status.SENDING)
        if Defect.FINAL_ROWS_CLAIMED in self._defects:
            statuses.add(Status.DELIVERED)
        below = (
            GIVE_UP_AFTER if Defect.QUARANTINED_WITH_OTHERS in self._defects else QUARANTINE_AFTER
        )
        return [
            index
            for index, row in enumerate(state.rows)
            if row.status in statuses and row.leases_lost < below
        ]

    @staticmethod
    def _quarantined(state: State) -> list[int]:
        return [
            i
            for i, row in enumerate(state.rows)
            if row.status in WAITING and row.leases_lost >= QUARANTINE_AFTER
        ]

    def _begin(
        self, state: State, number: int, doing: Doing, batch: tuple[Claim, ...] = ()
    ) -> Iterator[Move]:
        """Yield the steps of a transaction that finds the lane free. One that does not is tried
        again soon.
        """
        if any(worker.doing is Doing.STORE_LANE for worker in state.workers):
            return
        begun = state.with_worker(number, doing=doing, batch=batch, read=state.in_flight)
        if Defect.LANE_NOT_LOCKED in self._defects:
            yield Move("reads the lane", begun)
        elif doing is Doing.RECORD:
            yield from self._record.commit(begun, number, begun.workers[number - 1])
        else:
            yield from self._commit_claim(begun, number, begun.workers[number - 1])

    # Record: what became of a worker's own claims, and leases that others lost

    def _begin_record(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        finished = tuple(claim for claim in worker.outstanding if claim.end is not End.OPEN)
        batches = [finished] if finished else []
        if len(finished) > 1:
            batches += [(claim,) for claim in finished]
        for batch in batches:
            yield from self._begin(state, number, Doing.RECORD, batch)
        if worker.lost:
            yield from self._begin(state, number, Doing.RECORD, worker.lost)

    # Reap and release

    def _reap(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        """Leases are read first, and recorded as lost in another transaction, at any time later."""
        if worker.lost:
            return
        ends = (
            (Lease.RUNNING, Lease.EXPIRED)
            if Defect.REAP_BEFORE_THE_END in self._defects
            else (Lease.EXPIRED,)
        )
        lost = _read_lost(state, [i for i, row in enumerate(state.rows) if row.lease in ends])
        if lost and Defect.NO_REAP not in self._defects:
            yield Move("reads the expired leases", state.with_worker(number, lost=lost))
        if Defect.NO_RELEASE in self._defects:
            return
        for incarnation, name in state.dead:
            lost = _read_lost(
                state,
                [i for i, row in enumerate(state.rows) if self._held_by(row, incarnation, name)],
            )
            told = state.with_worker(number, lost=lost)
            if Defect.DEAD_FORGOTTEN in self._defects:
                told = told._replace(dead=state.dead - {(incarnation, name)})
            if lost:
                yield Move("reads the leases of the dead", told)

    def _held_by(self, row: Row, incarnation: int, name: int) -> bool:
        if Defect.RELEASE_OF_ALL in self._defects:
            return True
        return (
            row.worker == name
            if Defect.RELEASE_BY_NAME in self._defects
            else row.leased_by == incarnation
        )

    # Time and the operator

    def _expires(self, state: State, index: int, row: Row) -> Iterator[Move]:
        if row.lease is not Lease.RUNNING:
            return
        after = state.with_row(index, lease=Lease.EXPIRED)
        if not state.held_by_living(row.owner):
            yield Move("its lease expires", after, Kind.EXPIRES)
        elif state.left.stalls:
            yield Move("its lease expires while its holder lives", after.less("stalls"), Kind.FAULT)

    def _operations(self, state: State, index: int, row: Row) -> Iterator[Move]:
        """UPDATEs of delivery_status, with the trigger requeue or in a session without triggers."""
        if not state.left.operations:
            return
        operated = state.less("operations")
        if row.status is Status.SENDING:
            operated = operated._replace(stranded=state.stranded + 1)
        free = {
            "token": NO_ID,
            "leased_by": NO_ID,
            "lease": Lease.NONE,
            "owner": NO_ID,
            "torn": False,
        }
        if row.status not in FINAL:
            yield Move(
                "is cancelled", operated.with_row(index, status=Status.FAILED, **free), Kind.FAULT
            )
        if row.status is Status.SENDING:
            torn = operated.with_row(index, status=Status.FAILED, owner=NO_ID, torn=True)
            yield Move("is cancelled without triggers", torn, Kind.FAULT)
        if row.status in (Status.SENDING, Status.FAILED):
            new = operated.with_row(
                index, status=Status.PENDING, leases_lost=0, requeued=row.requeued + 1, **free
            )
            yield Move("is requeued", new, Kind.FAULT)


def _died(state: State, number: int, *, seen: bool = True) -> State:
    """Return *state* after a death. The next process of that name knows nothing of the last one."""
    incarnation = state.workers[number - 1].incarnation
    dead = state.dead | {(incarnation, number)} if seen else state.dead
    known = {row.leased_by for row in state.rows} | {worker.incarnation for worker in state.workers}
    fresh = next(new for new in range(1, len(known) + 2) if new not in known)
    workers = tuple(
        Worker(fresh) if at == number else worker for at, worker in enumerate(state.workers, 1)
    )
    return state._replace(workers=workers, dead=dead)


def _read_lost(state: State, rows: Sequence[int]) -> tuple[Claim, ...]:
    """Return what expired_leases.sql or leases_of.sql returns for those of *rows* that are
    sending.
    """
    read = [
        (index, state.rows[index]) for index in rows if state.rows[index].status is Status.SENDING
    ]
    return tuple(
        Claim(index, row.token, row.owner, row.retry_count, row.attempts, row.leases_lost, End.LOST)
        for index, row in read
    )
