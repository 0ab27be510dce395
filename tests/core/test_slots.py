"""Which lanes may begin: the rules for any number of slots and any order of events, beside a model
that counts for itself; and planted mistakes.
"""

from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from tests.support.values import delivery
from webhookd.core import slots as real
from webhookd.core.slots import NEW_EACH, Kind, Reserve
from webhookd.core.speed import SLOW_AFTER_S, UNMEASURED, Speed

SPEEDS = {
    Kind.FAST: Speed(0.01, slow=False),
    Kind.NEW: UNMEASURED,
    Kind.SLOW: Speed(1.0, slow=True),
}
LANES = {number: list(Kind)[number % 3] for number in range(9)}


class Known:
    """What the model knows of a lane with deliveries here."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self.rows: deque[int] = deque()
        self.running: list[tuple[int, float]] = []  # deliveries, and when they began
        self.since = 0  # the begin before which it began to wait for its turn
        self.last = -1  # the begin that was its last turn


class Worker(RuleBasedStateMachine):
    """A worker with a thread for each slot: after each event all begins that may."""

    core: ModuleType = real
    properties: Sequence[Callable[["Worker"], None]] = ()

    @initialize(slots=st.sampled_from([1, 2, 3, 4, 5, 8, 17]))
    def start(self, slots: int) -> None:
        self.count, self.now, self.ids, self.begins = slots, 1000.0, 0, 0
        self.slots = self.core.Slots(slots)
        self.reserve = Reserve.of(slots)
        self.lanes: dict[int, Known] = {}
        self.exchanges: list[real.Exchange] = []
        self.skipped = dict.fromkeys(Kind, 0)

    @rule(number=st.sampled_from(sorted(LANES)), count=st.sampled_from([1, 2, 5, 30]))
    def rows_come(self, number: int, count: int) -> None:
        lane = self.lanes.setdefault(number, Known(SPEEDS[LANES[number]]))
        if not lane.rows:
            lane.since = self.begins
        ids = range(self.ids, self.ids + count)
        self.ids += count
        lane.rows.extend(ids)
        self.slots.add(
            [
                delivery(delivery_id=one, webhook_id=number, speed=SPEEDS[LANES[number]])
                for one in ids
            ]
        )
        self.fill()

    @rule(span_s=st.sampled_from([0.01, 0.3, 1.0]))
    def time_passes(self, span_s: float) -> None:
        self.now += span_s
        self.slots.turned(self.now)
        self.fill()

    @rule(which=st.integers(0, 30), known=st.booleans())
    def an_exchange_ends(self, which: int, known: bool) -> None:
        if not self.exchanges:
            return
        exchange = self.exchanges.pop(which % len(self.exchanges))
        number, took_s = exchange.delivery.webhook_id, self.now - exchange.since
        lane, was = self.lanes[number], self.kind(self.lanes[number])
        lane.running.remove((exchange.delivery.delivery_id, exchange.since))
        if known:
            lane.speed = lane.speed.after(took_s)
        if self.kind(lane) is not was or was is Kind.NEW:
            lane.since = self.begins
        self.slots.end(exchange, exchange_s=took_s if known else None)
        self.fill()

    def fill(self) -> None:
        self.take_surplus()
        while len(self.exchanges) < self.count:
            may = [kind for kind in Kind if self.may_begin(kind)]
            exchange = self.slots.begin(self.now)
            self.take_surplus()
            if exchange is None:
                assert may == [], "work-conserving"
                break
            self.begun(exchange, may)
        self.lanes = {
            number: lane for number, lane in self.lanes.items() if lane.rows or lane.running
        }
        for holds in self.properties:
            holds(self)

    def begun(self, exchange: real.Exchange, may: list[Kind]) -> None:
        one, number = exchange.delivery.delivery_id, exchange.delivery.webhook_id
        lane = self.lanes[number]
        kind = self.kind(lane)
        assert kind in may, f"a {kind.name} lane may not begin"
        self.skipped = {
            other: self.skipped[other] + 1 if other in may and other is not kind else 0
            for other in Kind
        }
        assert max(self.skipped.values()) <= 2, "a kind of lanes starves"
        for other in self.lanes.values():
            if other is not lane and self.is_queued(other) and self.kind(other) is kind:
                assert other.since >= lane.last, "a lane starves"
        assert lane.rows.popleft() == one, "the rows of one lane keep their order"
        lane.running.append((one, exchange.since))
        self.begins += 1
        lane.last = lane.since = self.begins
        self.exchanges.append(exchange)

    def take_surplus(self) -> None:
        for item in self.slots.surplus():
            self.lanes[item.webhook_id].rows.remove(item.delivery_id)
        for number in [n for n, lane in self.lanes.items() if not (lane.rows or lane.running)]:
            del self.lanes[number]

    # The model

    def kind(self, lane: Known) -> Kind:
        overdue = any(self.now - since >= SLOW_AFTER_S for _, since in lane.running)
        if overdue or lane.speed.slow:
            return Kind.SLOW
        return Kind.NEW if lane.speed.slow is None else Kind.FAST

    def of(self, kind: Kind) -> list[Known]:
        return [lane for lane in self.lanes.values() if self.kind(lane) is kind]

    def running(self, kind: Kind) -> int:
        return sum(len(lane.running) for lane in self.of(kind))

    def is_queued(self, lane: Known) -> bool:
        return bool(lane.rows) and (self.kind(lane) is not Kind.NEW or len(lane.running) < NEW_EACH)

    def may_begin(self, kind: Kind) -> bool:
        """The rules of the module in its words."""
        if not any(self.is_queued(lane) for lane in self.of(kind)):
            return False
        slow = self.running(Kind.SLOW)
        not_fast = slow + self.running(Kind.NEW)
        others = any(self.is_queued(lane) for lane in self.of(Kind.FAST) + self.of(Kind.NEW))
        return {
            Kind.FAST: True,
            Kind.NEW: not_fast < self.reserve.not_fast,
            Kind.SLOW: not_fast < self.reserve.not_fast
            and slow < (self.reserve.half if others else self.reserve.slow),
        }[kind]


def the_rules_hold(worker: Worker) -> None:
    """Each begin is checked against them as it happens."""


def the_sums_are_right(worker: Worker) -> None:
    for kind in Kind:
        lanes = worker.of(kind)
        waiting = sum(len(lane.rows) for lane in lanes)
        running = worker.running(kind)
        assert worker.slots.waiting(kind) == waiting
        assert worker.slots.running(kind) == running
        assert worker.slots.body_bytes(kind) == 2 * (waiting + running)


def what_could_begin_is_known(worker: Worker) -> None:
    if len(worker.exchanges) < worker.count:
        assert worker.slots.could_begin() == 0 or worker.of(Kind.NEW)


def slow_rows_do_not_gather(worker: Worker) -> None:
    room = worker.slots.slow_room()
    held = worker.slots.running(Kind.SLOW) + worker.slots.waiting(Kind.SLOW)
    assert room == 0 or room + held <= worker.reserve.slow * 9 // 8


PROPERTIES = {
    holds.__name__: holds
    for holds in (
        the_rules_hold,
        the_sums_are_right,
        what_could_begin_is_known,
        slow_rows_do_not_gather,
    )
}


def drive(
    core: ModuleType, properties: Sequence[Callable[[Worker], None]], profile: settings
) -> None:
    machine = type("Driven", (Worker,), {"core": core, "properties": properties})
    run_state_machine_as_test(machine, settings=profile)


def test_the_rules_hold_whatever_comes() -> None:
    drive(real, list(PROPERTIES.values()), settings(CHECK, max_examples=300))


@pytest.mark.parametrize("mutant", planted_in("slots"), ids=str)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises((AssertionError, KeyError)):
        drive(mutant.plant(), [PROPERTIES[mutant.killed_by]], HUNT)


@given(st.integers(1, 1024))
def test_the_reserve_leaves_slots_to_each_kind(slots: int) -> None:
    reserve = Reserve.of(slots)
    assert 1 <= reserve.half <= reserve.slow <= reserve.not_fast <= slots
    if slots > 1:
        assert reserve.not_fast < slots, "one at least for fast lanes alone"
        assert slots / 2 <= reserve.slow <= slots - slots // 8
    if slots >= 4:
        assert reserve.slow < reserve.not_fast, "one at least for new lanes"


def test_new_lanes_are_not_claimed_while_they_prove_silent() -> None:
    slots = real.Slots(8)
    slots.add([delivery(delivery_id=n, webhook_id=n) for n in range(20)])
    while (exchange := slots.begin(1000.0)) is not None:
        last = exchange
    assert slots.running(Kind.NEW) == 7
    assert slots.takes_new(), "they may all be fast"
    slots.turned(1000.0 + SLOW_AFTER_S)
    assert slots.running(Kind.SLOW) == 7
    assert not slots.takes_new()
    assert len(slots.surplus()) == 13 - 7, "as many wait as could ever be under way"
    slots.add([delivery(delivery_id=99, webhook_id=99, speed=SPEEDS[Kind.FAST])])
    fast = slots.begin(1000.5)
    assert fast is not None
    assert fast.delivery.webhook_id == 99
    slots.end(last, exchange_s=5.0)
    assert slots.begin(1000.6) is not None, "the next new lane has its turn"


def test_what_a_claim_knows_of_a_lane_counts_unless_this_worker_knows_better() -> None:
    slots = real.Slots(8)
    slots.add([delivery(delivery_id=1)] * 3)
    assert slots.waiting(Kind.NEW) == 3
    slots.add([delivery(delivery_id=2, speed=SPEEDS[Kind.FAST])])
    assert slots.waiting(Kind.FAST) == 4
    slots.add([delivery(delivery_id=3, speed=SPEEDS[Kind.SLOW])])
    assert slots.waiting(Kind.SLOW) == 5
    slots.add([delivery(delivery_id=4, speed=SPEEDS[Kind.FAST])])
    assert slots.waiting(Kind.SLOW) == 6


def test_all_that_waits_can_be_withdrawn() -> None:
    slots = real.Slots(2)
    slots.add([delivery(delivery_id=n, webhook_id=n % 3) for n in range(9)])
    exchange = slots.begin(1000.0)
    assert exchange is not None
    assert len(slots.withdraw()) == 8
    assert slots.all_waiting() == 0
    assert slots.begin(1000.0) is None
    slots.end(exchange, exchange_s=0.01)
    assert slots.is_last(exchange)
