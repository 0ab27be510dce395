"""The record of lease_model.py: a transaction that stores what became of a worker's own claims, or
of leases that others lost.
"""

from collections.abc import Iterator, Sequence

from tests.property.lease_core import Core
from tests.property.lease_defects import Defect
from tests.property.lease_state import (
    NO_ID,
    Claim,
    Doing,
    End,
    Kind,
    Lease,
    Move,
    Row,
    State,
    Worker,
    idle,
    in_order,
)
from webhookd.core.lifecycle import Settlement
from webhookd.core.model import Status


class Record:
    """What a record does, with *defects*."""

    def __init__(self, core: Core, defects: frozenset[Defect]) -> None:
        self._core = core
        self._defects = defects

    def commit(self, state: State, number: int, worker: Worker) -> Iterator[Move]:
        recorded, ended = self._settle(state, worker.batch)
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
        others = in_order(claim for claim in worker.outstanding if claim not in worker.batch)
        if Defect.RETURNED_AGAIN in self._defects and own:
            attempted = [claim for claim in worker.batch if claim.end is not End.RETURNED]
            others = in_order(
                (*others, *(claim._replace(end=End.RETURNED, posted=False) for claim in attempted))
            )
        changes: dict[str, object] = {"outstanding": others} if own else {"lost": ()}
        if Defect.RECORD_IN_TWO in self._defects:
            half = recorded.with_worker(number, doing=Doing.STORE_LANE, batch=(), read=in_flight)
            yield Move(f"{label} in part", half.with_worker(number, **changes))
            return
        stored = idle(recorded._replace(in_flight=in_flight), number)
        yield Move(label, stored.with_worker(number, **changes))
        if state.left.lost_records:
            yield Move(f"{label} and gets no answer", stored.less("lost_records"), Kind.FAULT)
            failed = idle(state.less("lost_records"), number)
            if Defect.FAILED_RECORD_BELIEVED in self._defects:
                failed = failed.with_worker(number, **changes)
            yield Move("cannot commit its record", failed, Kind.FAULT)

    def _settle(self, state: State, batch: Sequence[Claim]) -> tuple[State, list[Claim]]:
        """Return what settle.sql makes of the rows, and the claims that it accepted."""
        after = state
        passed = []
        for claim in batch:
            row = after.rows[claim.row]
            if not self._passes(row, claim):
                continue
            passed.append(claim)
            settlement = self._core.settlement(claim)
            if wrong := self._violation(state, row, claim, settlement):
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
                token=row.token if Defect.TOKEN_KEPT in self._defects else NO_ID,
                leased_by=row.leased_by if Defect.HOLDER_KEPT in self._defects else NO_ID,
                lease=row.lease if Defect.LEASE_KEPT in self._defects else Lease.NONE,
                owner=NO_ID,
            )
            if counted != claim.posted:
                after = after._replace(
                    wrong="an attempt was not counted, or one was that did not happen"
                )
        return after, passed

    def _passes(self, row: Row, claim: Claim) -> bool:
        if Defect.NO_FENCE in self._defects:
            return True
        token = row.token == claim.token or Defect.NO_TOKEN_CHECK in self._defects
        return token and (row.status is Status.SENDING or Defect.NO_STATUS_CHECK in self._defects)

    @staticmethod
    def _violation(state: State, row: Row, claim: Claim, settlement: Settlement) -> str | None:
        """Return what is wrong with a record that passed the fence."""
        if row.status is Status.DELIVERED:
            return "a delivered row changed, or was recorded twice"
        if (settlement.status is Status.DELIVERED) != (claim.end is End.DELIVERED):
            return "recorded as delivered and no receiver has it, or the reverse"
        if row.owner != claim.serial:
            return "recorded by a non-owner"
        if claim.end is End.LOST and row.lease is Lease.RUNNING and state.held_by_living(row.owner):
            return "a living worker lost a lease that had not expired"
        if settlement.spends_retry != (
            claim.end is End.RETRY and settlement.status is Status.RETRYING
        ):
            return "a retry was spent without a failed attempt"
        return None
