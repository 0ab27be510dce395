"""Claims and leases in every interleaving of a few workers and faults, and with each step left out
or done wrong.
"""

import pytest

from tests.property.lease_model import explore
from tests.property.lease_state import Faults, Fleet
from tests.property.lease_steps import TOLERATED, Defect
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

# Where a defect shows; elsewhere two workers and their retries do.
NEEDS = {
    Defect.NO_STATUS_CHECK: OPERATOR,
    Defect.SUSPECTS_WITH_THE_REST: POISON,
    Defect.SUSPECT_BESIDES_OTHERS: POISON,
    Defect.SUSPECTS_NOT_CLAIMED: POISON,
    Defect.SUSPECT_NOT_COUNTED: POISON,
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
# One seldom reached place for each fleet: an exploration could find nothing because nothing
# happened.
PLACES = {
    RETRIES: "is refused by the fence",
    DEATHS: "reads what a dead one held",
    LOST_ANSWERS: "records and does not hear of it",
    DOUBTS: "cannot commit its claim",
    UNSEEN: "claims 1 suspect",
    OPERATOR: "is made new",
    POISON: "claims 1 suspect",
}


@pytest.mark.parametrize("fleet", FLEETS, ids=str)
def test_no_interleaving_breaks_an_invariant(fleet: Fleet) -> None:
    exploration = explore(fleet)
    assert exploration.broken is None, exploration.steps
    assert PLACES[fleet] in exploration.reached


@pytest.mark.parametrize(
    "defect",
    [defect for defect in Defect if defect not in TOLERATED],
    ids=lambda defect: defect.name.lower().replace("_", " "),
)
def test_a_step_left_out_or_done_wrong_breaks_one(defect: Defect) -> None:
    exploration = explore(NEEDS.get(defect, RETRIES), defect)
    assert exploration.broken is not None, f"not found: {defect}"


@pytest.mark.parametrize(
    "defect", TOLERATED, ids=lambda defect: defect.name.lower().replace("_", " ")
)
def test_the_fence_makes_good_what_a_worker_does_twice(defect: Defect) -> None:
    one_worker = Fleet(rows=1, workers=1, max_retries=1)
    assert explore(RETRIES, defect).broken is None
    assert (
        explore(one_worker, Defect.NO_FENCE).broken is None
    )  # with nobody else and no mistake, nothing has to be refused
    assert explore(one_worker, Defect.NO_FENCE, defect).broken is not None


CORE_MUTANTS = (
    (
        Mutant(
            "lifecycle",
            "retry_count >= delivery.max_retries",
            "retry_count > delivery.max_retries",
            "",
        ),
        RETRIES,
    ),
    (Mutant("lifecycle", "spends_retry=not throttled", "spends_retry=False", ""), RETRIES),
    (Mutant("lifecycle", "lost >= GIVE_UP_AFTER", "lost > GIVE_UP_AFTER", ""), POISON),
    (Mutant("lifecycle", "delay_s=delay_s, loses_lease=True", "delay_s=delay_s", ""), POISON),
    (Mutant("lifecycle", "delivery.leases_lost + 1", "delivery.leases_lost", ""), POISON),
    (
        Mutant(
            "lifecycle",
            '"lease lost", None, delay_s',
            '"lease lost", None, spends_retry=True, delay_s',
            "",
        ),
        RETRIES,
    ),
    (
        Mutant(
            "lifecycle",
            '_waiting(delivery), None, "given back"',
            'Status.DELIVERED, None, "given back"',
            "",
        ),
        RETRIES,
    ),
    (
        Mutant(
            "lifecycle",
            "Status.RETRYING if delivery.attempts else Status.PENDING",
            "Status.SENDING",
            "",
        ),
        RETRIES,
    ),
    (
        Mutant(
            "lane",
            "in_flight=max(0, lane.in_flight - len(settlements))",
            "in_flight=lane.in_flight",
            "",
        ),
        RETRIES,
    ),
    (
        Mutant("lane", "lane.in_flight >= settings.max_in_flight", "lane.in_flight >= 0", ""),
        RETRIES,
    ),
)


@pytest.mark.parametrize(("mutant", "fleet"), CORE_MUTANTS, ids=str)
def test_a_mistake_in_the_products_own_core_breaks_one(mutant: Mutant, fleet: Fleet) -> None:
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
def test_no_interleaving_of_more_of_them_breaks_an_invariant(fleet: Fleet) -> None:
    exploration = explore(fleet)
    assert exploration.broken is None, exploration.steps
