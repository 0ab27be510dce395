"""What a claim brings, as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psycopg

from webhookd.core.model import Delivery
from webhookd.postgres.held import HeldChange


@dataclass(frozen=True, slots=True)
class Claim:
    """The outcome of one claim.

    *lanes* were looked at; *rate_limited* of them (webhook ids) kept due rows for lack of tokens.
    *full*: as many rows as the budget has, or as many bytes; or there were rows for which this
    worker has no slots. *exhausted*: there were no further lanes with work. *contended*: other
    workers had lanes with new rows locked just then. *unmeasured*: ids of due rows that stayed,
    because their bodies must be measured first. *held*: lanes that the configuration holds from now
    on, or no longer.
    """

    deliveries: Sequence[Delivery] = ()
    rate_limited: Sequence[int] = ()
    lanes: int = 0
    full: bool = False
    exhausted: bool = True
    contended: bool = False
    unmeasured: Sequence[int] = ()
    held: Sequence[HeldChange] = ()


class ClaimInDoubtError(psycopg.OperationalError):
    """The answer to a claim's COMMIT was lost: *deliveries* are this worker's or they are not.

    Record them as returned, so that they need not wait for their leases to expire. That is safe:
    after a rollback the fence rejects the record; while the COMMIT is pending, the lock on the lane
    delays it.
    """

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        super().__init__("the answer to a claim's COMMIT was lost")
        self.deliveries = deliveries


class NextLook(NamedTuple):
    """When to look again although nothing wakes the worker, in seconds (<= 0: now; inf: never).
    *new_rows*: there are some that no claim has looked at.
    """

    lane_s: float
    quarantined_s: float
    new_rows: bool
