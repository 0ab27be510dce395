"""A model of claim, lease, fence, record, return, release and reap, small enough to explore every
interleaving.

It has one webhook's lane, its rows, and workers that may die between any two steps. Each step is
what happens at one instant: a transaction commits (or fails, or commits and its answer is lost), a
POST ends, a lease expires, a process dies. A claim and a record lock the lane before they read
anything, so nothing happens between their parts, and a death inside one is a death before it. What
a row and a lane become is not modelled: `settle`, `admit` and `settle_lane` of webhookd.core decide
that (lease_core.py). What protects them (lease_steps.py) follows webhookd/postgres/claim.py and
record.py, the worker's reaper and the statements behind them; tests/postgres/test_fence.py and
test_lease_schedules.py hold the statements to the same rules.

Not in the model:

- time: every waiting row is due, and a lane may always be looked at (test_lane.py tests that). So
  also `start_before`, which makes a POST after the end of its lease rare, but not harmless;
- the wakeup (wakeup_model.py); circuit, tokens and holds (test_lane.py, test_stored_breaker.py);
- the handover of leases: here every worker may ask the supervisor which workers died;
- a COMMIT that arrives after its sender's death was seen: its leases expire, as after a death that
  was not seen;
- the sweep of the lanes: a counter that only the sweep corrects blocks its lane too long.

What a row or claim has beyond its columns, so that the invariants can be checked: `owner`,
`serial`, `posted`, `torn`, `requeued`, `stranded`.
"""

from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from tests.property.lease_defects import Defect
from tests.property.lease_state import Fleet, Kind, Row, State, Worker
from tests.property.lease_steps import Model
from webhookd.core import lane as lanes
from webhookd.core import lifecycle


@dataclass(frozen=True, slots=True)
class Exploration:
    """*broken*: the first invariant that failed, None if all hold; *steps* lead to it. *seen*: how
    many states.

    *reached*: the labels of all steps, since an exploration could find nothing because nothing
    happened.
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
    max_states: int = 2_000_000,
) -> Exploration:
    """Explore every interleaving of *fleet* until an invariant fails; then check for every state
    that its rows can still end.

    *settles* and *settles_lane* replace webhookd.core.lifecycle and lane. Raise `OverflowError`
    after *max_states* states.
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
    backwards = {kind: (array("i"), array("i")) for kind in (Kind.ORDINARY, Kind.EXPIRES)}
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
        if len(number) > max_states:
            raise OverflowError(f"more than {max_states} states")
    for broken, kinds in _required_ends(fleet):
        stuck = _stuck(len(number), ended, [backwards[kind] for kind in kinds])
        if stuck is not None:
            return Exploration(len(number), broken, _path(came_from, stuck), frozenset(reached))
    return Exploration(len(number), None, (), frozenset(reached))


def _required_ends(fleet: Fleet) -> list[tuple[str, tuple[Kind, ...]]]:
    ends: list[tuple[str, tuple[Kind, ...]]] = [
        ("a row is never claimed again", (Kind.ORDINARY, Kind.EXPIRES))
    ]
    if not fleet.needs_leases_to_expire:
        ends.append(("a row must wait until a lease expires", (Kind.ORDINARY,)))
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
    nearest = can_end.find(0)  # numbers follow the order in which states were reached
    return None if nearest < 0 else nearest


def _path(came_from: Sequence[tuple[int, str]], state: int) -> tuple[str, ...]:
    labels = []
    while state:
        state, label = came_from[state]
        labels.append(label)
    return tuple(reversed(labels))
