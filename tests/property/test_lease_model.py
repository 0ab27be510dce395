"""Claims and leases in every interleaving of a few workers and faults, and with each step missing
or wrong.
"""

import pytest

from tests.property.lease_defects import TOLERATED, Defect
from tests.property.lease_model import explore
from tests.property.lease_state import Faults, Fleet
from tests.support.mutants import Mutant
from webhookd.core import lane as lanes
from webhookd.core import lifecycle

RETRIES = Fleet(rows=1, workers=2, max_retries=1, faults=Faults(stalls=1))
DEATHS = Fleet(rows=2, workers=2, faults=Faults(crashes=1))
LOST_ANSWERS = Fleet(rows=1, workers=2, faults=Faults(stalls=1, lost_records=1))
DOUBTS = Fleet(rows=1, workers=2, max_retries=1, faults=Faults(stalls=1, lost_claims=1))
UNSEEN = Fleet(rows=1, workers=2, faults=Faults(unseen=1, stalls=2))
OPERATOR = Fleet(rows=1, workers=1, max_retries=1, cap=1, faults=Faults(operations=2))
POISON = Fleet(rows=2, workers=1, poison=True)
FLEETS = (RETRIES, DEATHS, LOST_ANSWERS, DOUBTS, UNSEEN, OPERATOR, POISON)

# The fleet that shows a defect. For the others, two workers and their retries do.
NEEDS = {
    Defect.NO_STATUS_CHECK: OPERATOR,
    Defect.QUARANTINED_WITH_OTHERS: POISON,
    Defect.QUARANTINED_BESIDE_OTHERS: POISON,
    Defect.QUARANTINE_NOT_CLAIMED: POISON,
    Defect.QUARANTINED_NOT_COUNTED: POISON,
    Defect.LOST_NOT_COUNTED: POISON,
    Defect.NO_RECOUNT: OPERATOR,
    Defect.NO_REAP: UNSEEN,
    Defect.RELEASE_BY_NAME: DEATHS,
    Defect.RELEASE_OF_ALL: DEATHS,
    Defect.NO_RELEASE: DEATHS,
    Defect.DEAD_FORGOTTEN: Fleet(rows=1, workers=2, faults=Faults(crashes=2)),
    Defect.FAILED_RECORD_BELIEVED: LOST_ANSWERS,
    Defect.DOUBT_FORGOTTEN: DOUBTS,
    Defect.CLAIM_IN_TWO: DEATHS,
    Defect.RECORD_IN_TWO: DEATHS,
}
# One rare step for each fleet: an exploration could find nothing because nothing happened.
RARE_STEPS = {
    RETRIES: "is refused by the fence",
    DEATHS: "reads the leases of the dead",
    LOST_ANSWERS: "records and gets no answer",
    DOUBTS: "cannot commit its claim",
    UNSEEN: "claims 1 in quarantine",
    OPERATOR: "is requeued",
    POISON: "claims 1 in quarantine",
}


@pytest.mark.parametrize("fleet", FLEETS, ids=str)
def test_no_interleaving_breaks_an_invariant(fleet: Fleet) -> None:
    exploration = explore(fleet)
    assert exploration.broken is None, exploration.steps
    assert RARE_STEPS[fleet] in exploration.reached


@pytest.mark.parametrize(
    "defect",
    [defect for defect in Defect if defect not in TOLERATED],
    ids=lambda defect: defect.name.lower().replace("_", " "),
)
def test_a_missing_or_wrong_step_breaks_an_invariant(defect: Defect) -> None:
    exploration = explore(NEEDS.get(defect, RETRIES), defect)
    assert exploration.broken is not None, f"not found: {defect}"


@pytest.mark.parametrize(
    "defect", TOLERATED, ids=lambda defect: defect.name.lower().replace("_", " ")
)
def test_the_fence_repairs_what_a_worker_does_twice(defect: Defect) -> None:
    one_worker = Fleet(rows=1, workers=1, max_retries=1)
    assert explore(RETRIES, defect).broken is None
    # With one worker and no mistake, nothing has to be refused.
    assert explore(one_worker, Defect.NO_FENCE).broken is None
    assert explore(one_worker, Defect.NO_FENCE, defect).broken is not None


def _mutant(module: str, was: str, becomes: str) -> Mutant:
    return Mutant(module, was, becomes, killed_by="")


# fmt: off
CORE_MUTANTS = (
    (_mutant("lifecycle", "retry_count >= delivery.max", "retry_count > delivery.max"), RETRIES),
    (_mutant("lifecycle", "spends_retry=not throttled", "spends_retry=False"), RETRIES),
    (_mutant("lifecycle", "lost >= GIVE_UP_AFTER", "lost > GIVE_UP_AFTER"), POISON),
    (_mutant("lifecycle", "delay_s=delay_s, loses_lease=True", "delay_s=delay_s"), POISON),
    (_mutant("lifecycle", "delivery.leases_lost + 1", "delivery.leases_lost"), POISON),
    (_mutant("lifecycle", '"lease lost", None', '"lease lost", None, spends_retry=True'), RETRIES),
    (_mutant("lifecycle", '_waiting(delivery), None, "given back"',
                          'Status.DELIVERED, None, "given back"'), RETRIES),
    (_mutant("lifecycle", "Status.RETRYING if delivery.attempts else Status.PENDING",
                          "Status.SENDING"), RETRIES),
    (_mutant("lane", "max(0, lane.in_flight - len(settlements))", "lane.in_flight"), RETRIES),
    (_mutant("lane", "lane.in_flight >= settings.max_in_flight", "lane.in_flight >= 0"), RETRIES),
)
# fmt: on


@pytest.mark.parametrize(("mutant", "fleet"), CORE_MUTANTS, ids=str)
def test_a_mutant_of_the_core_breaks_an_invariant(mutant: Mutant, fleet: Fleet) -> None:
    core = {"lifecycle": lifecycle, "lane": lanes, mutant.module: mutant.plant()}
    exploration = explore(fleet, settles=core["lifecycle"], settles_lane=core["lane"])
    assert exploration.broken is not None


@pytest.mark.storm
@pytest.mark.parametrize(
    "fleet",
    [
        Fleet(rows=1, workers=2, max_retries=1, faults=Faults(crashes=1, stalls=1, lost_records=1)),
        Fleet(rows=1, workers=2, max_retries=1, faults=Faults(unseen=1, stalls=1, lost_claims=1)),
        Fleet(rows=1, workers=2, cap=1, faults=Faults(crashes=1, stalls=1, operations=1)),
        Fleet(rows=1, workers=3, faults=Faults(crashes=2, stalls=1)),
        Fleet(rows=2, workers=2, cap=1, faults=Faults(crashes=1, stalls=1)),
        Fleet(rows=1, workers=2, faults=Faults(crashes=1), poison=True),
    ],
    ids=str,
)
def test_no_interleaving_of_larger_fleets_breaks_an_invariant(fleet: Fleet) -> None:
    exploration = explore(fleet)
    assert exploration.broken is None, exploration.steps
