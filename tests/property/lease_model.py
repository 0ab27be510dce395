"""A model of claim, lease, fence, record, give back, release and reap, small enough to try every
interleaving of it.

One webhook's lane, its rows, and workers that may die between any two steps. Each step is what
happens at one instant: a transaction commits (or fails, or commits and its answer is lost), a POST
ends, a lease runs out, a process dies. A claim and a record lock the lane before they look at
anything, so nothing comes between their parts, and a death inside of one is a death before it. What
a row and a lane become is not modelled: `settle`, `admit` and `settle_lane` of webhookd.core say so
(lease_core.py). What guards them (lease_steps.py) follows webhookd/claims.py, webhookd/records.py,
webhookd/housekeeping.py and the statements behind them; tests/integration/test_fence.py and
test_lease_schedules.py hold the statements to the same rules.

Left out: time (whatever waits is due, and a lane may always be looked at: test_lane.py sees to
that), so also `start_before`, which makes a POST after its lease rare and is not what makes it
harmless; the wakeup (wakeup_model.py); circuit, tokens and holds (test_lane.py,
test_stored_breaker.py); who tells whom of a death (webhookd/lost.py: here every worker may ask the
supervisor who died); a COMMIT that arrives after its sender's death was seen (its leases run out,
as after a death that nobody saw); the sweep of the lanes, since a counter that only the sweep mends
blocks its lane too long.

What a row or claim has beyond its columns, so that the invariants can be told: `owner`, `serial`,
`posted`, `torn`, `requeued`, `stranded`.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from tests.property.lease_state import Fleet, Kind, Row, State, Worker
from tests.property.lease_steps import Defect, Model
from webhookd.core import lane as lanes
from webhookd.core import lifecycle


@dataclass(frozen=True, slots=True)
class Exploration:
    """*broken*: the invariant that failed first, None if all hold, with the *steps* to where it
    did. *seen*: how many states.

    *reached*: the places that matter and were come to; an exploration could be right because
    nothing happened.
    """

    seen: int
    broken: str | None
    steps: tuple[str, ...] = ()
    reached: frozenset[str] = frozenset()


def explore(
    fleet: Fleet,
    *defects: Defect,
    settles: ModuleType = lifecycle,
    settles_lane: ModuleType = lanes,
    most: int = 2_000_000,
) -> Exploration:
    """Try every interleaving of *fleet* until an invariant fails; then ask of every state whether
    its rows can still end.

    *settles* and *settles_lane* stand for the product's modules of those names. Raises
    `OverflowError` past *most* states.
    """
    start = State(
        rows=(Row(),) * fleet.rows,
        in_flight=0,
        stranded=0,
        workers=tuple(Worker(incarnation=number) for number in range(1, fleet.workers + 1)),
        dead=frozenset(),
        left=fleet.faults,
    )
    model = Model(fleet, frozenset(defects), settles, settles_lane)
    number: dict[State, int] = {start: 0}
    came_from: list[tuple[int, str]] = [(0, "")]
    backwards = {kind: (array("i"), array("i")) for kind in (Kind.ORDINARY, Kind.RUNS_OUT)}
    ended: list[int] = []
    reached: set[str] = set()
    queue = deque([start])
    while queue:
        state = queue.popleft()
        here = number[state]
        if state.ended():
            ended.append(here)
        for label, after, kind in model.moves(state):
            if after not in number:
                number[after] = len(came_from)
                came_from.append((here, label))
                reached.add(label.partition(": ")[2])
                if broken := after.violation(fleet.max_retries):
                    return Exploration(
                        len(number), broken, _path(came_from, number[after]), frozenset(reached)
                    )
                queue.append(after)
            if kind is not Kind.FAULT:
                froms, tos = backwards[kind]
                froms.append(here)
                tos.append(number[after])
        if len(number) > most:
            raise OverflowError(f"more than {most} states")
    for broken, kinds in _ends_that_must_be_near(fleet):
        stuck = _stuck(len(number), ended, [backwards[kind] for kind in kinds])
        if stuck is not None:
            return Exploration(len(number), broken, _path(came_from, stuck), frozenset(reached))
    return Exploration(len(number), None, (), frozenset(reached))


def _ends_that_must_be_near(fleet: Fleet) -> list[tuple[str, tuple[Kind, ...]]]:
    ends: list[tuple[str, tuple[Kind, ...]]] = [
        ("a row is nobody's for ever", (Kind.ORDINARY, Kind.RUNS_OUT))
    ]
    if not fleet.needs_leases_to_run_out:
        ends.append(("a row has to wait until a lease runs out", (Kind.ORDINARY,)))
    return ends


def _stuck(
    states: int, ended: Sequence[int], edges: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> int | None:
    """Return the nearest state from which no path leads along *edges* to one of *ended*."""
    before: list[list[int]] = [[] for _ in range(states)]
    for froms, tos in edges:
        for here, after in zip(froms, tos, strict=True):
            before[after].append(here)
    can_end = bytearray(states)
    stack = list(ended)
    while stack:
        state = stack.pop()
        if not can_end[state]:
            can_end[state] = 1
            stack.extend(before[state])
    nearest = can_end.find(0)  # states are numbered as they were reached
    return None if nearest < 0 else nearest


def _path(came_from: Sequence[tuple[int, str]], state: int) -> tuple[str, ...]:
    labels = []
    while state:
        state, label = came_from[state]
        labels.append(label)
    return tuple(reversed(labels))
