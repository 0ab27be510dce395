"""The steps of lease_model.py: what a worker, time and an operator may do next, and the same with a
step left out or wrong.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from types import ModuleType

from tests.property.lease_core import Core
from tests.property.lease_state import (
    ENDS_AFTER,
    FINAL,
    NOBODY,
    SUSPECT_AFTER,
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
    in_order,
    plain_numbers,
)
from webhookd.core.lifecycle import Settlement
from webhookd.core.model import Status


class Defect(StrEnum):
    """One step or guard of the protocol left out or done wrong."""

    NO_TOKEN_CHECK = "a record looks at the row's status alone"
    NO_STATUS_CHECK = "a record looks at the token alone"
    NO_FENCE = "a record accepts whatever became of the row: reaped, claimed anew, recorded"
    TOKEN_REPEATS = "all claims have the same token"
    TOKEN_KEPT = "a record leaves the token in the row"
    HOLDER_KEPT = "a record leaves the holder in the row"
    LEASE_KEPT = "a record leaves the lease in the row"
    NO_TOKEN_SET = "a claim draws no token"
    NO_LEASE_SET = "a claim sets no end of its lease"
    NO_HOLDER_SET = "a claim does not say which incarnation holds it"
    HELD_ROWS_CLAIMED = "a claim takes what others hold"
    FINAL_ROWS_CLAIMED = "a claim takes what has been delivered"
    SUSPECTS_WITH_THE_REST = "a claim takes suspect rows with the others"
    SUSPECT_BESIDES_OTHERS = "a worker takes a suspect row while it has others in hand"
    SUSPECTS_NOT_CLAIMED = "nobody looks for suspect rows"
    CLAIM_NOT_COUNTED = "a claim does not count its rows as in flight"
    SUSPECT_NOT_COUNTED = "a suspect's claim does not count it as in flight"
    RECORD_NOT_COUNTED = "a record does not take its rows from those in flight"
    REFUSED_COUNTED = "a record takes what the fence refused from those in flight"
    LANE_NOT_LOCKED = "claims and records read the lane without a lock"
    NO_RECOUNT = "a lane at its cap is not counted afresh"
    REAP_BEFORE_THE_END = "a reap does not look at lease_until"
    NO_REAP = "nobody reaps"
    RELEASE_BY_NAME = "a dead worker's leases are found by its name, which its successor has too"
    RELEASE_OF_ALL = "a dead worker's release takes everybody's leases"
    NO_RELEASE = "nobody releases a dead worker's leases"
    RELEASE_BEFORE_DEATH = "the supervisor has leases released before it waited for the process"
    DEAD_FORGOTTEN = (
        "the dead are forgotten once somebody was told, though that one may die before it releases"
    )
    LOST_SPENDS_RETRY = "a lost lease spends a retry"
    LOST_NOT_COUNTED = "a lost lease is not counted"
    RETRY_NOT_COUNTED = "a retry is not counted"
    ATTEMPT_NOT_COUNTED = "an attempt is not counted"
    POSTED_GIVEN_BACK = "a worker gives back what it has posted"
    FAILED_RECORD_BELIEVED = "a worker takes a record that failed for stored"
    DOUBT_FORGOTTEN = "a worker forgets a claim whose COMMIT was not answered"
    CLAIM_IN_TWO = "a claim commits its rows before it has stored the lane"
    RECORD_IN_TWO = "a record commits its rows before it has stored the lane"
    GIVEN_BACK_AGAIN = "a worker gives back what it has recorded"


# Mistakes of a worker that the fence makes good. They must break nothing, unless the fence is
# broken too.
TOLERATED = (Defect.GIVEN_BACK_AGAIN,)


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

    def moves(self, state: State) -> Iterator[Move]:
        """Yield everything that can happen next."""
        for number, worker in enumerate(state.workers, 1):
            for label, after, kind in self._lives(state, number, worker):
                yield Move(f"worker {number}: {label}", plain_numbers(after), kind)
        for index, row in enumerate(state.rows):
            for label, after, kind in (
                *self._runs_out(state, index, row),
                *self._operator(state, index, row),
            ):
                yield Move(f"row {index + 1}: {label}", plain_numbers(after), kind)

    # A worker's process

    def _lives(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        match worker.doing:
            case Doing.NOTHING:
                yield from self._dispatches(state, number, worker)
                yield from self._reaps(state, number, worker)
                yield from self._begins_record(state, number, worker)
            case Doing.CLAIM | Doing.CLAIM_SUSPECT:
                yield from self._commits_claim(state, number, worker)
            case Doing.RECORD:
                yield from self._commits_record(state, number, worker)
            case Doing.STORE_LANE:
                yield Move(
                    "stores the lane", self._rests(state._replace(in_flight=worker.read), number)
                )
        yield from self._dies(state, number, worker)

    def _dies(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        if state.left.crashes:
            yield Move("dies", _died(state.less("crashes"), number), Kind.FAULT)
        if state.left.unseen:
            yield Move(
                "dies, and nobody sees it",
                _died(state.less("unseen"), number, seen=False),
                Kind.FAULT,
            )
        if Defect.RELEASE_BEFORE_DEATH in self._defects:
            told = state._replace(dead=state.dead | {(worker.incarnation, number)})
            yield Move("is taken for dead", told, Kind.FAULT)

    # Claim and exchange: the dispatcher and its senders

    def _dispatches(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        if self._claimable(state) or state.in_flight >= self._fleet.cap:
            yield from self._begins(state, number, Doing.CLAIM)
        suspects = self._suspects(state) and Defect.SUSPECTS_NOT_CLAIMED not in self._defects
        if suspects and (not worker.hands or Defect.SUSPECT_BESIDES_OTHERS in self._defects):
            yield from self._begins(state, number, Doing.CLAIM_SUSPECT)
        for claim in worker.hands:
            if claim.end is not End.OPEN:
                if Defect.POSTED_GIVEN_BACK in self._defects and claim.end is not End.GIVEN_BACK:
                    yield Move(
                        "gives back what it has posted",
                        self._ends(state, number, claim, End.GIVEN_BACK),
                    )
                continue
            yield Move("gives back", self._ends(state, number, claim, End.GIVEN_BACK))
            if self._fleet.poison and claim.row == 0:
                yield Move("dies of its POST", _died(state, number))
                continue
            yield Move("is refused", self._ends(state, number, claim, End.RETRY))
            yield Move("delivers", self._ends(state, number, claim, End.DELIVERED))

    def _ends(self, state: State, number: int, claim: Claim, end: End) -> State:
        after = claim._replace(end=end, posted=claim.posted or end in (End.DELIVERED, End.RETRY))
        hands = state.workers[number - 1].hands
        return state.with_worker(
            number, hands=in_order(after if other == claim else other for other in hands)
        )

    def _commits_claim(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        suspect = worker.doing is Doing.CLAIM_SUSPECT
        in_flight, stranded = worker.read, state.stranded
        if not suspect and in_flight >= self._fleet.cap and Defect.NO_RECOUNT not in self._defects:
            in_flight, stranded = state.leased(), 0
        candidates = self._suspects(state) if suspect else self._claimable(state)
        counted = (
            Defect.SUSPECT_NOT_COUNTED if suspect else Defect.CLAIM_NOT_COUNTED
        ) not in self._defects
        for wish in range(1, 2 if suspect or len(candidates) < 2 else len(candidates) + 1):
            quota = self._core.quota(in_flight, wish)
            taken = candidates[:quota]
            claimed, claims = self._given(state, number, taken)
            now_in_flight = in_flight + len(taken) * counted
            label = f"claims {len(taken)}" + (" suspect" if suspect else "")
            claimed = claimed._replace(stranded=stranded)
            if Defect.CLAIM_IN_TWO in self._defects:
                halfway = claimed.with_worker(number, hands=in_order((*worker.hands, *claims)))
                yield Move(
                    f"{label} in part",
                    halfway.with_worker(number, doing=Doing.STORE_LANE, read=now_in_flight),
                )
                continue
            ended = self._rests(claimed._replace(in_flight=now_in_flight), number)
            yield Move(label, ended.with_worker(number, hands=in_order((*worker.hands, *claims))))
            if taken and state.left.lost_claims:
                yield from self._claims_in_doubt(
                    label, state.less("lost_claims"), ended.less("lost_claims"), number, claims
                )

    def _claims_in_doubt(
        self, label: str, before: State, committed: State, number: int, claims: Sequence[Claim]
    ) -> Iterator[Move]:
        """Yield a claim whose COMMIT was not answered: the worker cannot tell one from the other,
        and gives it back.
        """
        hands = before.workers[number - 1].hands
        if Defect.DOUBT_FORGOTTEN not in self._defects:
            hands = in_order((*hands, *(claim._replace(end=End.GIVEN_BACK) for claim in claims)))
        yield Move(
            f"{label} and does not hear of it",
            committed.with_worker(number, hands=hands),
            Kind.FAULT,
        )
        yield Move(
            "cannot commit its claim",
            self._rests(before.with_worker(number, hands=hands), number),
            Kind.FAULT,
        )

    def _given(self, state: State, number: int, rows: Sequence[int]) -> tuple[State, list[Claim]]:
        """Return *state* with *rows* leased to a worker, and what it knows of them then."""
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
                        for claim in other.hands
                        if claim.row == index
                    ),
                    serial,
                )
            if row.owner != NOBODY:
                after = after._replace(wrong="a row was claimed that had an owner")
            if row.status in FINAL:
                after = after._replace(wrong=f"a row was claimed that was {row.status}")
            if row.leases_lost >= SUSPECT_AFTER and (len(rows) > 1 or worker.hands):
                after = after._replace(wrong="a suspect row was not tried alone")
            after = after.with_row(
                index,
                status=Status.SENDING,
                token=token,
                leased_by=NOBODY if Defect.NO_HOLDER_SET in self._defects else worker.incarnation,
                worker=number if Defect.RELEASE_BY_NAME in self._defects else NOBODY,
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
        below = ENDS_AFTER if Defect.SUSPECTS_WITH_THE_REST in self._defects else SUSPECT_AFTER
        return [
            index
            for index, row in enumerate(state.rows)
            if row.status in statuses and row.leases_lost < below
        ]

    @staticmethod
    def _suspects(state: State) -> list[int]:
        return [
            i
            for i, row in enumerate(state.rows)
            if row.status in WAITING and row.leases_lost >= SUSPECT_AFTER
        ]

    def _begins(
        self, state: State, number: int, doing: Doing, batch: tuple[Claim, ...] = ()
    ) -> Iterator[Move]:
        """Yield what a transaction does that finds the lane free; one that does not is tried again
        soon.
        """
        if any(worker.doing is Doing.STORE_LANE for worker in state.workers):
            return
        begun = state.with_worker(number, doing=doing, batch=batch, read=state.in_flight)
        if Defect.LANE_NOT_LOCKED in self._defects:
            yield Move("reads the lane", begun)
        elif doing is Doing.RECORD:
            yield from self._commits_record(begun, number, begun.workers[number - 1])
        else:
            yield from self._commits_claim(begun, number, begun.workers[number - 1])

    # Record: what a worker's own claims became, and leases that others lost
    #

    def _begins_record(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        finished = tuple(claim for claim in worker.hands if claim.end is not End.OPEN)
        batches = [finished] if finished else []
        if len(finished) > 1:
            batches += [(claim,) for claim in finished]
        for batch in batches:
            yield from self._begins(state, number, Doing.RECORD, batch)
        if worker.lost:
            yield from self._begins(state, number, Doing.RECORD, worker.lost)

    def _commits_record(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        recorded, ended = self._settled(state, worker.batch)
        if len(ended) < len(worker.batch):
            label = "is refused by the fence"
        else:
            label = "records" if worker.batch[0].end is not End.LOST else "releases"
        if Defect.REFUSED_COUNTED in self._defects:
            ended = list(worker.batch)
        in_flight = worker.read
        if Defect.RECORD_NOT_COUNTED not in self._defects:
            in_flight = self._core.in_flight_after(in_flight, ended)
        own = worker.batch[0].end is not End.LOST
        rest = in_order(claim for claim in worker.hands if claim not in worker.batch)
        if Defect.GIVEN_BACK_AGAIN in self._defects and own:
            attempted = [claim for claim in worker.batch if claim.end is not End.GIVEN_BACK]
            rest = in_order(
                (*rest, *(claim._replace(end=End.GIVEN_BACK, posted=False) for claim in attempted))
            )
        changes: dict[str, object] = {"hands": rest} if own else {"lost": ()}
        if Defect.RECORD_IN_TWO in self._defects:
            half = recorded.with_worker(number, doing=Doing.STORE_LANE, batch=(), read=in_flight)
            yield Move(f"{label} in part", half.with_worker(number, **changes))
            return
        stored = self._rests(recorded._replace(in_flight=in_flight), number)
        yield Move(label, stored.with_worker(number, **changes))
        if state.left.lost_records:
            yield Move(f"{label} and does not hear of it", stored.less("lost_records"), Kind.FAULT)
            failed = self._rests(state.less("lost_records"), number)
            if Defect.FAILED_RECORD_BELIEVED in self._defects:
                failed = failed.with_worker(number, **changes)
            yield Move("cannot commit its record", failed, Kind.FAULT)

    def _settled(self, state: State, batch: Sequence[Claim]) -> tuple[State, list[Claim]]:
        """Return what settle.sql makes of the rows, and the claims that it let pass."""
        after = state
        passed = []
        for claim in batch:
            row = after.rows[claim.row]
            if not self._passes(row, claim):
                continue
            passed.append(claim)
            settlement = self._core.settlement(claim)
            if wrong := self._wrongly(state, row, claim, settlement):
                after = after._replace(wrong=wrong)
            spends, loses = settlement.spends_retry, settlement.loses_lease
            if Defect.LOST_SPENDS_RETRY in self._defects and claim.end is End.LOST:
                spends = True
            counted = (
                settlement.vote is not None and Defect.ATTEMPT_NOT_COUNTED not in self._defects
            )
            after = after.with_row(
                claim.row,
                status=settlement.status,
                retry_count=row.retry_count
                + (spends and Defect.RETRY_NOT_COUNTED not in self._defects),
                attempts=row.attempts + counted,
                leases_lost=row.leases_lost
                + (loses and Defect.LOST_NOT_COUNTED not in self._defects),
                token=row.token if Defect.TOKEN_KEPT in self._defects else NOBODY,
                leased_by=row.leased_by if Defect.HOLDER_KEPT in self._defects else NOBODY,
                lease=row.lease if Defect.LEASE_KEPT in self._defects else Lease.NONE,
                owner=NOBODY,
            )
            if counted != claim.posted:
                after = after._replace(
                    wrong="an attempt was not counted, or one that did not take place was"
                )
        return after, passed

    def _passes(self, row: Row, claim: Claim) -> bool:
        if Defect.NO_FENCE in self._defects:
            return True
        token = row.token == claim.token or Defect.NO_TOKEN_CHECK in self._defects
        return token and (row.status is Status.SENDING or Defect.NO_STATUS_CHECK in self._defects)

    @staticmethod
    def _wrongly(state: State, row: Row, claim: Claim, settlement: Settlement) -> str | None:
        """Return what is wrong with a record that passed the fence."""
        if row.status is Status.DELIVERED:
            return "a delivered row left delivered, or was recorded twice"
        if (settlement.status is Status.DELIVERED) != (claim.end is End.DELIVERED):
            return "recorded as delivered and no receiver has it, or the other way round"
        if row.owner != claim.serial:
            return "recorded by a non-owner"
        if (
            claim.end is End.LOST
            and row.lease is Lease.RUNNING
            and state.in_living_hands(row.owner)
        ):
            return "a living worker lost a lease that had not run out"
        if settlement.spends_retry != (
            claim.end is End.RETRY and settlement.status is Status.RETRYING
        ):
            return "a retry was spent on something else than a failed attempt"
        return None

    # Reap and release: the housekeeping

    def _reaps(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        """Leases are read first, and recorded as lost in a transaction of its own, however much
        later.
        """
        if worker.lost:
            return
        ends = (
            (Lease.RUNNING, Lease.RUN_OUT)
            if Defect.REAP_BEFORE_THE_END in self._defects
            else (Lease.RUN_OUT,)
        )
        lost = _read_lost(state, [i for i, row in enumerate(state.rows) if row.lease in ends])
        if lost and Defect.NO_REAP not in self._defects:
            yield Move("reads what ran out", state.with_worker(number, lost=lost))
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
                yield Move("reads what a dead one held", told)

    def _held_by(self, row: Row, incarnation: int, name: int) -> bool:
        if Defect.RELEASE_OF_ALL in self._defects:
            return True
        return (
            row.worker == name
            if Defect.RELEASE_BY_NAME in self._defects
            else row.leased_by == incarnation
        )

    def _rests(self, state: State, number: int) -> State:
        return state.with_worker(number, doing=Doing.NOTHING, batch=(), read=0)

    # Time and the operator

    def _runs_out(self, state: State, index: int, row: Row) -> Iterator[Move]:
        if row.lease is not Lease.RUNNING:
            return
        after = state.with_row(index, lease=Lease.RUN_OUT)
        if not state.in_living_hands(row.owner):
            yield Move("its lease runs out", after, Kind.RUNS_OUT)
        elif state.left.stalls:
            yield Move(
                "its lease runs out while its holder lives", after.less("stalls"), Kind.FAULT
            )

    def _operator(self, state: State, index: int, row: Row) -> Iterator[Move]:
        """UPDATEs of delivery_status, which the trigger requeue sees, or does not see in a session
        that fires none.
        """
        if not state.left.operations:
            return
        operated = state.less("operations")
        if row.status is Status.SENDING:
            operated = operated._replace(stranded=state.stranded + 1)
        free = {
            "token": NOBODY,
            "leased_by": NOBODY,
            "lease": Lease.NONE,
            "owner": NOBODY,
            "torn": False,
        }
        if row.status not in FINAL:
            yield Move(
                "is cancelled", operated.with_row(index, status=Status.FAILED, **free), Kind.FAULT
            )
        if row.status is Status.SENDING:
            torn = operated.with_row(index, status=Status.FAILED, owner=NOBODY, torn=True)
            yield Move("is cancelled behind the triggers", torn, Kind.FAULT)
        if row.status in (Status.SENDING, Status.FAILED):
            new = operated.with_row(
                index, status=Status.PENDING, leases_lost=0, requeued=row.requeued + 1, **free
            )
            yield Move("is made new", new, Kind.FAULT)


def _died(state: State, number: int, *, seen: bool = True) -> State:
    """Return *state* after a death, and with the next process of that name, which knows nothing of
    what the last one did.
    """
    incarnation = state.workers[number - 1].incarnation
    dead = state.dead | {(incarnation, number)} if seen else state.dead
    known = {row.leased_by for row in state.rows} | {worker.incarnation for worker in state.workers}
    fresh = next(new for new in range(1, len(known) + 2) if new not in known)
    workers = tuple(
        Worker(fresh) if at == number else worker for at, worker in enumerate(state.workers, 1)
    )
    return state._replace(workers=workers, dead=dead)


def _read_lost(state: State, rows: Sequence[int]) -> tuple[Claim, ...]:
    """Return what expired_leases.sql or leases_of.sql says of *rows* (those of them that are
    sending).
    """
    read = [
        (index, state.rows[index]) for index in rows if state.rows[index].status is Status.SENDING
    ]
    return tuple(
        Claim(index, row.token, row.owner, row.retry_count, row.attempts, row.leases_lost, End.LOST)
        for index, row in read
    )
