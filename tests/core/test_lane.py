"""A backlog that is claimed and settled in any order, and its lane; and planted mistakes.

`Backlog` does to its rows what claim.sql does to the queue's, so that the two halves of the lane,
`admit` and `settle_lane`, are tested together: a row that is due again must be looked at in time,
no matter what blocked its lane meanwhile.

A mutated module has enums of its own, so members of `BlockedBy` are compared with ==.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import ModuleType

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.core.test_admission import ADMIT, NOW, PLAIN, taken
from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.core import lane as lanes
from webhookd.core.answer import Answer, AnswerKind
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lane import Admission, BlockedBy, Lane
from webhookd.core.lifecycle import settle
from webhookd.core.model import Attempted, Delivery, GivenBack, Lost, Outcome, Result, Status

NOW_AT = datetime.fromtimestamp(NOW, tz=UTC)
OPEN_S, LEASE_S = PLAIN.circuit_open_s, 35.0
FRESH = Lane(1, Breaker(), Bucket(None, NOW), 0, None, None, None, "unknown")
DELIVERY = Delivery(1, 1, 1, Breaker(), b"{}", 0, 1000, 0, 0, 0.0, PLAIN, 0.0, 0.0)


def answered(status: int, retry_after: str | None = None) -> Attempted:
    return Attempted(Answer(AnswerKind.RESPONSE, 0.1, status, retry_after), 0.0)


good, bad, bad_for_long = answered(200), answered(500), answered(500, "50")
short_hold, long_hold = answered(429, "8"), answered(503, "50")
outcomes = st.sampled_from(
    [
        good,
        bad,
        bad_for_long,
        answered(404),
        answered(429),
        short_hold,
        long_hold,
        GivenBack(),
        Lost(),
    ]
)
telling = [
    [bad],
    [good, bad],
    [bad, bad_for_long],
    [long_hold, short_hold],
    [GivenBack()],
    [answered(429)],
    [answered(429), bad],
]
some_outcomes = st.one_of(st.sampled_from(telling), st.lists(outcomes, min_size=1, max_size=3))
rated = st.sampled_from([0.0, 0.0, 0.125])


class Backlog(RuleBasedStateMachine):
    """One webhook's rows, waiting and under way, and its lane. A row is the time at which it is
    due.
    """

    core: ModuleType = lanes
    properties: Sequence[Callable[["Backlog"], None]] = ()

    @initialize(
        rate=rated,
        cap=st.integers(1, 4),
        threshold=st.integers(1, 3),
        rows=st.sampled_from([1, 2, 3, 6]),
    )
    def start(self, rate: float, cap: int, threshold: int, rows: int) -> None:
        """Begin with a few claims of a new lane under way, or with a probe beside claims from
        before the circuit opened.
        """
        self.settings = PLAIN._replace(rate=rate, max_in_flight=cap, circuit_threshold=threshold)
        self.now = NOW
        self.lane = self.before = FRESH
        self.new = [NOW] * rows  # not looked at yet
        self.waiting: list[float] = []
        self.flying: list[Delivery] = []
        self.ended: list[tuple[Delivery, Outcome]] = []
        self.reset_generation = 0
        self.refusal: str | None = None
        self.look(3)
        while rows == 6 and self.flying and self.lane.breaker.state is CircuitState.CLOSED:
            self.claims_end(0, [bad], 0.0)
        self.time_passes(OPEN_S)

    @rule(span_s=st.sampled_from([1.0, 8.0, 30.0, 35.0, 64.0]))
    def time_passes(self, span_s: float) -> None:
        self.now += span_s
        self.look(3)

    @rule(rows=st.integers(1, 3))
    def rows_are_inserted(self, rows: int) -> None:
        self.new += [self.now] * rows
        self.look(3)

    @rule(wish=st.integers(1, 4))
    def look(self, wish: int) -> None:
        """Claim, if new rows or runnable_at ask for a look at this lane."""
        asked = self.lane.runnable_at is not None and self.lane.runnable_at <= self.now
        if not (self.new or asked):
            return
        admission = self.core.admit(
            self.lane, self.settings, now=self.now, wish=wish, refusal=self.refusal
        )
        if admission.probe:
            admission = Admission(1, BlockedBy.CIRCUIT, self.now + LEASE_S, probe=True)
        due = sorted([at for at in self.waiting if at <= self.now] + self.new)[: admission.quota]
        for at in due:
            (self.waiting if at in self.waiting else self.new).remove(at)
        if admission.quota == 0:
            self.waiting, self.new = self.waiting + self.new, []
        self.before, self.ended = self.lane, []
        self.lane = self.claimed(admission, len(due))
        self.flying += [DELIVERY._replace(breaker=self.lane.breaker, settings=self.settings)] * len(
            due
        )

    def claimed(self, admission: Admission, count: int) -> Lane:
        lane = taken(self.lane, count, self.settings, now=self.now)
        if admission.probe and count:
            lane = replace(
                lane,
                breaker=lane.breaker.begin_probe(lease_until=self.now + LEASE_S),
                health="degraded",
            )
        if count >= admission.quota:
            return replace(lane, blocked_by=admission.blocked_by, runnable_at=admission.runnable_at)
        later = min((at for at in self.waiting if at > self.now), default=None)
        return replace(lane, blocked_by=None, runnable_at=later)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 3), ends=some_outcomes, u=st.sampled_from([0.0, 0.999]))
    def claims_end(self, which: int, ends: list[Outcome], u: float) -> None:
        self.before, self.ended = self.lane, []
        settled = []
        for outcome in ends[: len(self.flying)]:
            delivery = self.flying.pop(which % len(self.flying))
            settlement = settle(delivery, outcome, now_at=NOW_AT, u=u)
            settled.append((Result(delivery, outcome), settlement))
            self.ended.append((delivery, outcome))
            if settlement.status in (Status.PENDING, Status.RETRYING):
                self.waiting.append(self.now + (settlement.delay_s or 0.0))
        self.lane = self.core.settle_lane(self.lane, settled, now=self.now)
        for holds in self.properties:
            holds(self)

    @precondition(lambda self: self.lane.breaker.failures)
    @rule()
    def operator_resets(self) -> None:
        closed = self.lane.breaker.reset()
        self.lane = replace(
            self.lane,
            breaker=closed,
            hold_until=None,
            runnable_at=self.now,
            blocked_by=BlockedBy.CONFIGURATION if is_held(self.lane) else None,
            health="healthy",
        )
        self.reset_generation = closed.generation

    @rule(refusal=st.sampled_from([None, None, "http is not allowed"]))
    def options_change(self, refusal: str | None) -> None:
        self.refusal = refusal
        if refusal is None and is_held(self.lane):
            self.lane = replace(self.lane, runnable_at=self.now)
            self.look(3)

    def outcomes(self) -> list[Outcome]:
        return [outcome for _, outcome in self.ended]


def is_held(lane: Lane) -> bool:
    return lane.blocked_by == BlockedBy.CONFIGURATION


def a_held_lane_stays_held(backlog: Backlog) -> None:
    """Whatever becomes of the claims made before: only a look ends it."""
    before, lane = backlog.before, backlog.lane
    if is_held(before):
        assert (lane.blocked_by, lane.runnable_at) == (before.blocked_by, before.runnable_at)


def every_claim_that_ends_makes_room(backlog: Backlog) -> None:
    assert backlog.lane.in_flight == len(backlog.flying)


def waiting_rows_are_looked_at_in_time(backlog: Backlog) -> None:
    """When they are due, or when the last thing that blocks their lane ends."""
    if not backlog.waiting or is_held(backlog.lane):
        return
    lane, settings_ = backlog.lane, backlog.settings
    latest = max(
        backlog.now,
        min(backlog.waiting),
        lane.hold_until or 0.0,
        lane.breaker.blocked_until or 0.0,
        lane.bucket.next_token_at(backlog.now, rate=settings_.rate, burst=settings_.burst),
    )
    assert lane.runnable_at is not None
    assert lane.runnable_at <= latest


def an_open_circuit_parks_the_lane(backlog: Backlog) -> None:
    breaker = backlog.lane.breaker
    if (
        not is_held(backlog.lane)
        and breaker.state is CircuitState.OPEN
        and breaker.generation != backlog.before.breaker.generation
    ):
        assert breaker.next_probe_at == backlog.now + OPEN_S
        assert backlog.lane.runnable_at is not None
        assert (
            backlog.lane.runnable_at >= breaker.next_probe_at
            or backlog.lane.runnable_at == backlog.lane.hold_until
        )
        assert backlog.lane.blocked_by in (BlockedBy.CIRCUIT, BlockedBy.HOLD)


def a_hold_parks_the_lane(backlog: Backlog) -> None:
    before, lane = backlog.before, backlog.lane
    if lane.hold_until != before.hold_until and not is_held(lane):
        assert (lane.runnable_at, lane.blocked_by) == (lane.hold_until, BlockedBy.HOLD)


def a_hold_is_the_longest_that_was_asked_for(backlog: Backlog) -> None:
    asked_s = {short_hold: 8.0, long_hold: 50.0}
    holds = [backlog.now + asked_s[outcome] for outcome in backlog.outcomes() if outcome in asked_s]
    assert (backlog.lane.hold_until or 0.0) == max([backlog.before.hold_until or 0.0, *holds])


def a_block_that_still_holds_is_kept(backlog: Backlog) -> None:
    """An attempt of another generation ends, and a circuit or a hold blocks the lane: no look is
    earlier than planned.
    """
    before, lane = backlog.before, backlog.lane
    untouched = (lane.breaker, lane.hold_until) == (before.breaker, before.hold_until)
    if untouched and before.blocked_by in (BlockedBy.CIRCUIT, BlockedBy.HOLD):
        assert (lane.blocked_by, lane.runnable_at) == (before.blocked_by, before.runnable_at)


def room_is_used_at_once(backlog: Backlog) -> None:
    if backlog.before.blocked_by == BlockedBy.IN_FLIGHT and backlog.lane.blocked_by not in (
        BlockedBy.HOLD,
        BlockedBy.CIRCUIT,
    ):
        assert (backlog.lane.runnable_at, backlog.lane.blocked_by) == (backlog.now, None)


def a_reset_is_not_undone(backlog: Backlog) -> None:
    if all(delivery.breaker.generation < backlog.reset_generation for delivery, _ in backlog.ended):
        assert backlog.lane.breaker == backlog.before.breaker


def the_breaker_gets_every_vote_in_order(backlog: Backlog) -> None:
    breaker = backlog.before.breaker
    for delivery, outcome in backlog.ended:
        generation = delivery.breaker.generation
        vote = settle(delivery, outcome, now_at=NOW_AT, u=0.0).vote
        if vote is None:
            breaker = breaker.abandon_probe(generation=generation, now=backlog.now)
        else:
            threshold = backlog.settings.circuit_threshold
            breaker = breaker.vote(
                vote, generation=generation, now=backlog.now, threshold=threshold, open_s=OPEN_S
            )
    assert backlog.lane.breaker == breaker


def a_returned_delivery_returns_its_token(backlog: Backlog) -> None:
    rate, burst = backlog.settings.rate, backlog.settings.burst
    if rate:
        before = backlog.before.bucket.level(backlog.now, rate=rate, burst=burst)
        returned = sum(isinstance(outcome, GivenBack) for outcome in backlog.outcomes())
        assert backlog.lane.bucket.level(backlog.now, rate=rate, burst=burst) == min(
            burst, before + returned
        )


def only_a_success_makes_healthy(backlog: Backlog) -> None:
    """A healthy webhook stays healthy after attempts from before a reset, but not after a neutral
    answer.
    """
    if backlog.lane.health == "healthy" and good not in backlog.outcomes():
        assert backlog.before.health == "healthy"
        assert answered(429) not in backlog.outcomes()


def health_follows_the_circuit(backlog: Backlog) -> None:
    if backlog.lane.breaker != backlog.before.breaker:
        assert backlog.lane.health in (backlog.lane.breaker.health(), "degraded")
    elif not any(isinstance(outcome, Attempted) for outcome in backlog.outcomes()):
        assert backlog.lane.health == backlog.before.health


SETTLE: dict[str, Callable[[Backlog], None]] = {
    holds.__name__: holds
    for holds in (
        a_held_lane_stays_held,
        every_claim_that_ends_makes_room,
        waiting_rows_are_looked_at_in_time,
        an_open_circuit_parks_the_lane,
        a_hold_parks_the_lane,
        a_hold_is_the_longest_that_was_asked_for,
        a_block_that_still_holds_is_kept,
        room_is_used_at_once,
        a_reset_is_not_undone,
        the_breaker_gets_every_vote_in_order,
        a_returned_delivery_returns_its_token,
        only_a_success_makes_healthy,
        health_follows_the_circuit,
    )
}


def drive(core: ModuleType, properties: Sequence[Callable[[Backlog], None]], how: settings) -> None:
    machine = type("BacklogOf", (Backlog,), {"core": core, "properties": properties})
    run_state_machine_as_test(machine, settings=how)


def test_a_backlog_keeps_its_properties() -> None:
    drive(lanes, list(SETTLE.values()), settings(CHECK, max_examples=200))


@pytest.mark.parametrize(
    "mutant", [mutant for mutant in planted_in("lane") if mutant.killed_by in SETTLE], ids=str
)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises(AssertionError):
        drive(mutant.plant(), [SETTLE[mutant.killed_by]], HUNT)


def test_every_property_catches_a_mutant() -> None:
    assert set(ADMIT) | set(SETTLE) == {mutant.killed_by for mutant in planted_in("lane")}
