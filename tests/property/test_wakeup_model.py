"""The wakeup protocol in every interleaving of a few producers and workers, and with each of its steps left out."""

import pytest

from tests.property.wakeup_model import Defect, Stage, State, Step, explore

# Where each defect loses its first wakeup; what is not named here shows with one worker.
TWO_WORKERS = {"producers": 1, "workers": 2, "saturations": 1}
NEEDS = {
    Defect.HEIR_NOT_TOLD: TWO_WORKERS,
    Defect.OTHERS_NOT_ALERTED: TWO_WORKERS | {"saturations": 2},
    Defect.MEMORY_TRUSTED: TWO_WORKERS | {"saturations": 0, "mistakes": 1},
}
ONE_WORKER = {"producers": 2, "workers": 1, "saturations": 2}


@pytest.mark.parametrize(
    "fleet",
    [
        ONE_WORKER,
        {"producers": 2, "workers": 2},
        TWO_WORKERS | {"saturations": 2},
        TWO_WORKERS | {"crashes": 1},
        TWO_WORKERS | {"mistakes": 1},
    ],
    ids=lambda fleet: ", ".join(f"{count} {what}" for what, count in fleet.items()),
)
def test_no_interleaving_loses_a_wakeup(fleet: dict[str, int]) -> None:
    exploration = explore(**fleet)
    assert exploration.lost is None
    assert all(is_reached(state_of_interest, exploration.seen) for state_of_interest in ("asleep", "heard", "outwaiting"))


@pytest.mark.parametrize("defect", Defect, ids=lambda defect: defect.name.lower().replace("_", " "))
def test_a_step_left_out_loses_one(defect: Defect) -> None:
    lost = explore(**NEEDS.get(defect, ONE_WORKER), defect=defect).lost
    assert lost is not None, f"not found: {defect}"
    # The trace ends with a row that nobody is going to look at.
    assert any("commits" in step for step in lost)


def is_reached(what: str, seen: frozenset[State]) -> bool:
    """Return whether the exploration came to the places that matter: it could be right because nothing happened."""
    match what:
        case "asleep":
            return any(
                state.flag and all(w.step is Step.DEAD or w.asleep(state.lockers()) for w in state.workers) for state in seen
            )
        case "heard":
            return any(state.row_waits and any(worker.inbox for worker in state.workers) for state in seen)
        case "outwaiting":
            return any(
                any(worker.outwaited for worker in state.workers)
                and any(producer.stage is Stage.PREPARED for producer in state.producers)
                for state in seen
            )
    raise AssertionError(what)
