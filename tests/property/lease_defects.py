"""The defects that are planted in lease_model.py."""

from enum import StrEnum


class Defect(StrEnum):
    """One step or check of the protocol that is missing or wrong."""

    NO_TOKEN_CHECK = "a record checks the row's status only"
    NO_STATUS_CHECK = "a record checks the token only"
    NO_FENCE = "a record accepts any row: reaped, claimed again, recorded"
    TOKEN_REPEATS = "all claims have the same token"
    TOKEN_KEPT = "a record leaves the token in the row"
    HOLDER_KEPT = "a record leaves the holder in the row"
    LEASE_KEPT = "a record leaves the lease in the row"
    NO_TOKEN_SET = "a claim draws no token"
    NO_LEASE_SET = "a claim sets no end of its lease"
    NO_HOLDER_SET = "a claim does not store which incarnation holds it"
    HELD_ROWS_CLAIMED = "a claim takes rows that others hold"
    FINAL_ROWS_CLAIMED = "a claim takes delivered rows"
    QUARANTINED_WITH_OTHERS = "a claim takes rows in quarantine with the others"
    QUARANTINED_BESIDE_OTHERS = "a worker takes a row in quarantine while others are outstanding"
    QUARANTINE_NOT_CLAIMED = "no worker looks for rows in quarantine"
    CLAIM_NOT_COUNTED = "a claim does not count its rows as in flight"
    QUARANTINED_NOT_COUNTED = "the claim of a row in quarantine does not count it as in flight"
    RECORD_NOT_COUNTED = "a record does not subtract its rows from those in flight"
    REFUSED_COUNTED = "a record subtracts rows that the fence refused from those in flight"
    LANE_NOT_LOCKED = "claims and records read the lane without a lock"
    NO_RECOUNT = "the leases of a lane at its limit are not counted again"
    REAP_BEFORE_THE_END = "a reap does not check lease_until"
    NO_REAP = "no worker reaps"
    RELEASE_BY_NAME = "a dead worker's leases are found by its name, which its successor has too"
    RELEASE_OF_ALL = "the release of a dead worker takes all leases"
    NO_RELEASE = "no worker releases the leases of the dead"
    RELEASE_BEFORE_DEATH = "the supervisor has leases released before it waited for the process"
    DEAD_FORGOTTEN = "the dead are forgotten once a worker was told, which may die first"
    LOST_SPENDS_RETRY = "a lost lease spends a retry"
    LOST_NOT_COUNTED = "a lost lease is not counted"
    RETRY_NOT_COUNTED = "a retry is not counted"
    ATTEMPT_NOT_COUNTED = "an attempt is not counted"
    POSTED_RETURNED = "a worker returns what it has posted"
    FAILED_RECORD_BELIEVED = "a worker treats a record that failed as stored"
    DOUBT_FORGOTTEN = "a worker forgets a claim whose COMMIT was not answered"
    CLAIM_IN_TWO = "a claim commits its rows before it has stored the lane"
    RECORD_IN_TWO = "a record commits its rows before it has stored the lane"
    RETURNED_AGAIN = "a worker returns what it has recorded"


# Mistakes of a worker that the fence repairs. They must break nothing, unless the fence is broken
# too.
TOLERATED = (Defect.RETURNED_AGAIN,)
