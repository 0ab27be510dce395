"""The wakeup protocol in every interleaving of a few producers and workers, and with each of its
steps left out.
"""

import pytest

from tests.property.wakeup_model import Defect, Fleet, explore
from tests.property.wakeup_state import Stage, State

ONE_WORKER = Fleet(producers=2, workers=1, saturations=2)
# Defects that need more to show.
NEEDS = {
    Defect.HEIR_NOT_TOLD: Fleet(producers=1, workers=2, saturations=1),
    Defect.OTHERS_NOT_ALERTED: Fleet(producers=1, workers=2, saturations=2),
    Defect.KEPT_WITHOUT_ROOM: Fleet(producers=1, workers=2, saturations=1),
    Defect.NO_LOOK_ONCE_LISTENING: Fleet(producers=1, workers=1, failures=1),
}


@pytest.mark.parametrize(
    "fleet",
    [
        ONE_WORKER,
        Fleet(producers=2, workers=1, failures=2),
        Fleet(producers=2, workers=2),
        Fleet(producers=1, workers=2, saturations=2),
        Fleet(producers=1, workers=2, saturations=1, crashes=1),
        Fleet(producers=1, workers=2, mistakes=1),
        Fleet(producers=1, workers=2, failures=1),
    ],
    ids=str,
)
def test_no_interleaving_loses_a_wakeup(fleet: Fleet) -> None:
    exploration = explore(fleet)
    assert exploration.lost is None
    assert all(is_reached(place, exploration.seen) for place in ("asleep", "heard", "outwaiting"))


@pytest.mark.parametrize("defect", Defect, ids=lambda defect: defect.name.lower().replace("_", " "))
def test_a_step_left_out_loses_one(defect: Defect) -> None:
    lost = explore(NEEDS.get(defect, ONE_WORKER), defect).lost
    assert lost is not None, f"not found: {defect}"
    # The trace ends with a row that no worker is going to look at.
    assert any("commits" in step for step in lost)


def is_reached(what: str, seen: frozenset[State]) -> bool:
    """Return whether the exploration came to the places that matter: it could be right because
    nothing happened.
    """
    match what:
        case "asleep":
            return any(
                state.flag and all(w.asleep(state.open_producers()) for w in state.workers)
                for state in seen
            )
        case "heard":
            return any(
                state.row_waits and any(worker.inbox for worker in state.workers) for state in seen
            )
        case "outwaiting":
            return any(
                any(worker.mind.outwaited for worker in state.workers)
                and any(producer.stage is Stage.PREPARED for producer in state.producers)
                for state in seen
            )
    raise AssertionError(what)
