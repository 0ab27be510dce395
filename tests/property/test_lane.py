"""A lane: what it admits for every state of it, and a backlog that is claimed and settled in any order; and planted mistakes.

`Backlog` does to its rows what claim.sql does to the queue's, so that the two halves of the lane, `admit` and `settle_lane`,
are seen together: a row that comes back must be looked at in time, whatever blocked its lane meanwhile.

A mutated module has enums of its own, so members of `BlockedBy` are compared with ==.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.property.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.core import lane as lanes
from webhookd.core.answer import Answer, AnswerKind
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lane import Admission, BlockedBy, Lane
from webhookd.core.lifecycle import settle
from webhookd.core.model import Attempted, Delivery, GivenBack, Lost, Outcome, Result, Settings, Status

NOW = 1000.0
NOW_AT = datetime.fromtimestamp(NOW, tz=UTC)
OPEN_S, LEASE_S, RETRY_MAX_S = 30.0, 35.0, 64.0
RECOUNT_S = 5.0
PLAIN = Settings(1, "https://example.com/", True, None, (), 5.0, 3, 0.0, 3, 1.0, RETRY_MAX_S, 2, OPEN_S)
FRESH = Lane(1, Breaker(), Bucket(None, NOW), 0, None, None, None, "unknown")
DELIVERY = Delivery(1, 1, 1, Breaker(), b"{}", 0, 1000, 0, 0, 0.0, PLAIN, 0.0, 0.0)

# admit --------------------------------------------------------------------------------------------------------------

instants = st.sampled_from([None, None, None, NOW - 1.0, NOW, NOW + 1.0, NOW + 8.0])
registered = st.builds(
    replace,
    st.just(PLAIN),
    enabled=st.sampled_from([True, True, True, False]),
    max_in_flight=st.integers(1, 4),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    burst=st.integers(1, 4),
)
lane_states = st.builds(
    Lane,
    webhook_id=st.just(1),
    breaker=st.one_of(
        st.just(Breaker()),
        st.builds(Breaker, st.sampled_from(CircuitState), st.integers(0, 2), st.integers(0, 2), instants),
    ),
    bucket=st.builds(Bucket, st.sampled_from([None, 0.0, 0.5, 1.0, 2.0, 4.0]), st.sampled_from([NOW - 1.0, NOW, NOW + 1.0])),
    in_flight=st.sampled_from([0, 0, 1, 2, 3, 4, 5]),
    hold_until=instants,
    runnable_at=instants,
    blocked_by=st.none(),
    health=st.just("unknown"),
)
wishes = st.integers(1, 5)


@dataclass(frozen=True, slots=True)
class Room:
    """A lane's state in the words of CONTRACT: what blocks it (the first of them counts), and what it has to give."""

    blocks: Sequence[tuple[str, float | None]]
    rows: float
    tokens: float

    @classmethod
    def of(cls, lane: Lane, setting: Settings | None) -> "Room":
        if setting is None:
            return cls([("unregistered", None)], 0, 0)
        rows = setting.max_in_flight - lane.in_flight
        level = lane.bucket.level(NOW, rate=setting.rate, burst=setting.burst)
        circuit_until = lane.breaker.until or 0.0
        found: list[tuple[bool, str, float | None]] = [
            (not setting.enabled, "paused", None),
            ((lane.hold_until or 0.0) > NOW, "hold", lane.hold_until),
            (lane.breaker.state is not CircuitState.CLOSED and circuit_until > NOW, "circuit", circuit_until),
            (rows <= 0, "in_flight", NOW + RECOUNT_S),
            (level < 1, "rate", NOW + (1 - level) / (setting.rate or math.inf)),
        ]
        return cls([(name, ends) for applies, name, ends in found if applies], rows, math.floor(min(level, 10.0**9)))


def the_first_block_is_named_with_its_end(core: ModuleType, how: settings) -> None:
    @how
    @given(lane_states, st.one_of(registered, registered, st.none()), wishes)
    def holds(lane: Lane, setting: Settings | None, wish: int) -> None:
        blocks = Room.of(lane, setting).blocks
        admission = core.admit(lane, setting, now=NOW, wish=wish)
        assert (admission.quota == 0) == bool(blocks)
        if blocks:
            assert (admission.blocked_by, admission.runnable_at, admission.probe) == (*blocks[0], False)

    holds()


def gives_all_that_wish_room_and_tokens_allow(core: ModuleType, how: settings) -> None:
    @how
    @given(lane_states, registered, wishes)
    def holds(lane: Lane, setting: Settings, wish: int) -> None:
        lane, setting = unblocked(lane, setting, Breaker())
        room = Room.of(lane, setting)
        admission = core.admit(lane, setting, now=NOW, wish=wish)
        assert (admission.quota, admission.probe) == (min(wish, room.rows, room.tokens), False)

    holds()


def a_probe_is_one_row(core: ModuleType, how: settings) -> None:
    states = st.sampled_from([CircuitState.OPEN, CircuitState.HALF_OPEN])

    @how
    @given(lane_states, registered, wishes, states, st.sampled_from([None, NOW - 1.0, NOW]))
    def holds(lane: Lane, setting: Settings, wish: int, state: CircuitState, until: float | None) -> None:
        lane, setting = unblocked(lane, setting, Breaker(state, 1, 2, until))
        admission = core.admit(lane, setting, now=NOW, wish=wish)
        assert (admission.quota, admission.probe, admission.blocked_by) == (1, True, "circuit")

    holds()


def a_probe_needs_room_and_a_token_too(core: ModuleType, how: settings) -> None:
    @how
    @given(lane_states, registered, st.booleans(), st.sampled_from([0.0, 0.5]))
    def holds(lane: Lane, setting: Settings, full: bool, tokens: float) -> None:
        lane, setting = unblocked(lane, replace(setting, rate=0.5), Breaker(CircuitState.OPEN, 1, 2, NOW))
        lane = replace(lane, in_flight=setting.max_in_flight) if full else replace(lane, bucket=Bucket(tokens, NOW))
        admission = core.admit(lane, setting, now=NOW, wish=1)
        assert (admission.quota, admission.probe) == (0, False)
        assert (admission.blocked_by, admission.runnable_at) == Room.of(lane, setting).blocks[0]

    holds()


def says_what_the_lane_waits_for_next(core: ModuleType, how: settings) -> None:
    """Once the quota is taken, another look now brings a row exactly if the admission named nothing to wait for."""

    @how
    @given(lane_states, registered, wishes)
    def holds(lane: Lane, setting: Settings, wish: int) -> None:
        lane, setting = unblocked(lane, setting, Breaker())
        admission = core.admit(lane, setting, now=NOW, wish=wish)
        after = Room.of(taken(lane, admission.quota, setting, now=NOW), setting)
        if admission.blocked_by is None:
            assert (after.blocks, admission.runnable_at) == ([], NOW)
        else:
            assert (admission.blocked_by, admission.runnable_at) in after.blocks

    holds()


def unblocked(lane: Lane, setting: Settings, breaker: Breaker) -> tuple[Lane, Settings]:
    """Return the two with *breaker*, and changed as far as something blocks them."""
    return replace(
        lane,
        breaker=breaker,
        bucket=replace(lane.bucket, tokens=max(lane.bucket.tokens or 4.0, 1.0)),
        in_flight=min(lane.in_flight, setting.max_in_flight - 1),
        hold_until=min(lane.hold_until or 0.0, NOW),
    ), replace(setting, enabled=True)


def taken(lane: Lane, count: int, setting: Settings, *, now: float) -> Lane:
    bucket = lane.bucket.take(count, now, rate=setting.rate, burst=setting.burst)
    return replace(lane, bucket=bucket, in_flight=lane.in_flight + count)


# A backlog ----------------------------------------------------------------------------------------------------------


def answered(status: int, retry_after: str | None = None) -> Attempted:
    return Attempted(Answer(AnswerKind.RESPONSE, 0.1, status, retry_after), 0.0)


good, bad, bad_for_long = answered(200), answered(500), answered(500, "50")
short_hold, long_hold = answered(429, "8"), answered(503, "50")
outcomes = st.sampled_from(
    [good, bad, bad_for_long, answered(404), answered(429), short_hold, long_hold, GivenBack(), Lost()]
)
some_outcomes = st.one_of(st.sampled_from([[bad], [good, bad], [bad, bad_for_long]]), st.lists(outcomes, min_size=1, max_size=3))
rated = st.sampled_from([0.0, 0.0, 0.125])


class Backlog(RuleBasedStateMachine):
    """One webhook's rows, waiting and under way, and its lane. A row is the time at which it is due."""

    core: ModuleType = lanes
    properties: Sequence[Callable[["Backlog"], None]] = ()

    @initialize(rate=rated, cap=st.integers(1, 4), threshold=st.integers(1, 3), rows=st.sampled_from([1, 2, 3, 6]))
    def start(self, rate: float, cap: int, threshold: int, rows: int) -> None:
        """Begin with a few claims of a new lane under way, or with a probe beside claims from before the circuit opened."""
        self.settings = replace(PLAIN, rate=rate, max_in_flight=cap, circuit_threshold=threshold)
        self.now = NOW
        self.lane = self.before = FRESH
        self.new = [NOW] * rows  # nobody has looked at them yet
        self.waiting: list[float] = []
        self.flying: list[Delivery] = []
        self.ended: list[tuple[Delivery, Outcome]] = []
        self.reset_epoch = 0
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
        """Claim, if anything calls for a look at this lane."""
        asked = self.lane.runnable_at is not None and self.lane.runnable_at <= self.now
        if not (self.new or asked):
            return
        admission = self.core.admit(self.lane, self.settings, now=self.now, wish=wish)
        if admission.probe:
            admission = Admission(1, BlockedBy.CIRCUIT, self.now + LEASE_S, probe=True)
        due = sorted([at for at in self.waiting if at <= self.now] + self.new)[: admission.quota]
        for at in due:
            (self.waiting if at in self.waiting else self.new).remove(at)
        if admission.quota == 0:
            self.waiting, self.new = self.waiting + self.new, []
        self.before, self.ended = self.lane, []
        self.lane = self.claimed(admission, len(due))
        self.flying += [replace(DELIVERY, breaker=self.lane.breaker, settings=self.settings)] * len(due)

    def claimed(self, admission: Admission, count: int) -> Lane:
        lane = taken(self.lane, count, self.settings, now=self.now)
        if admission.probe and count:
            lane = replace(lane, breaker=lane.breaker.begin_probe(lease_until=self.now + LEASE_S), health="degraded")
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
            self.lane, breaker=closed, hold_until=None, runnable_at=self.now, blocked_by=None, health="healthy"
        )
        self.reset_epoch = closed.epoch

    def outcomes(self) -> list[Outcome]:
        return [outcome for _, outcome in self.ended]


def every_claim_that_ends_makes_room(backlog: Backlog) -> None:
    assert backlog.lane.in_flight == len(backlog.flying)


def waiting_rows_are_looked_at_in_time(backlog: Backlog) -> None:
    """When they are due, or when the last thing that blocks their lane ends."""
    if not backlog.waiting:
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


def a_trip_parks_the_lane(backlog: Backlog) -> None:
    breaker = backlog.lane.breaker
    if breaker.state is CircuitState.OPEN and breaker.epoch != backlog.before.breaker.epoch:
        assert breaker.until == backlog.now + OPEN_S
        assert backlog.lane.runnable_at is not None
        assert backlog.lane.runnable_at >= breaker.until or backlog.lane.runnable_at == backlog.lane.hold_until
        assert backlog.lane.blocked_by in (BlockedBy.CIRCUIT, BlockedBy.HOLD)


def a_hold_parks_the_lane(backlog: Backlog) -> None:
    before, lane = backlog.before, backlog.lane
    if lane.hold_until != before.hold_until:
        assert (lane.runnable_at, lane.blocked_by) == (lane.hold_until, BlockedBy.HOLD)


def a_hold_is_the_longest_that_was_asked_for(backlog: Backlog) -> None:
    asked_s = {short_hold: 8.0, long_hold: 50.0}
    holds = [backlog.now + asked_s[outcome] for outcome in backlog.outcomes() if outcome in asked_s]
    assert (backlog.lane.hold_until or 0.0) == max([backlog.before.hold_until or 0.0, *holds])


def a_block_that_still_holds_is_kept(backlog: Backlog) -> None:
    """An attempt of another epoch ends while a circuit or a hold blocks the lane: nothing looks at it any earlier."""
    before, lane = backlog.before, backlog.lane
    untouched = (lane.breaker, lane.hold_until) == (before.breaker, before.hold_until)
    if untouched and before.blocked_by in (BlockedBy.CIRCUIT, BlockedBy.HOLD):
        assert (lane.blocked_by, lane.runnable_at) == (before.blocked_by, before.runnable_at)


def room_is_used_at_once(backlog: Backlog) -> None:
    if backlog.before.blocked_by == BlockedBy.IN_FLIGHT and backlog.lane.blocked_by not in (BlockedBy.HOLD, BlockedBy.CIRCUIT):
        assert (backlog.lane.runnable_at, backlog.lane.blocked_by) == (backlog.now, None)


def a_reset_is_not_undone(backlog: Backlog) -> None:
    if all(delivery.breaker.epoch < backlog.reset_epoch for delivery, _ in backlog.ended):
        assert backlog.lane.breaker == backlog.before.breaker


def the_breaker_hears_every_vote_in_order(backlog: Backlog) -> None:
    breaker = backlog.before.breaker
    for delivery, outcome in backlog.ended:
        epoch = delivery.breaker.epoch
        vote = settle(delivery, outcome, now_at=NOW_AT, u=0.0).vote
        if vote is None:
            breaker = breaker.abandon_probe(epoch=epoch, now=backlog.now)
        else:
            threshold = backlog.settings.circuit_threshold
            breaker = breaker.vote(vote, epoch=epoch, now=backlog.now, threshold=threshold, open_s=OPEN_S)
    assert backlog.lane.breaker == breaker


def what_is_given_back_returns_its_token(backlog: Backlog) -> None:
    rate, burst = backlog.settings.rate, backlog.settings.burst
    if rate:
        before = backlog.before.bucket.level(backlog.now, rate=rate, burst=burst)
        returned = sum(isinstance(outcome, GivenBack) for outcome in backlog.outcomes())
        assert backlog.lane.bucket.level(backlog.now, rate=rate, burst=burst) == min(burst, before + returned)


def only_a_success_makes_healthy(backlog: Backlog) -> None:
    became_healthy = backlog.lane.health == "healthy" != backlog.before.health
    assert not became_healthy or good in backlog.outcomes()


def health_follows_the_circuit(backlog: Backlog) -> None:
    if backlog.lane.breaker != backlog.before.breaker:
        assert backlog.lane.health in (backlog.lane.breaker.health(), "degraded")
    elif not any(isinstance(outcome, Attempted) for outcome in backlog.outcomes()):
        assert backlog.lane.health == backlog.before.health


ADMIT: dict[str, Callable[[ModuleType, settings], None]] = {
    holds.__name__: holds
    for holds in (
        the_first_block_is_named_with_its_end,
        gives_all_that_wish_room_and_tokens_allow,
        a_probe_is_one_row,
        a_probe_needs_room_and_a_token_too,
        says_what_the_lane_waits_for_next,
    )
}
SETTLE: dict[str, Callable[[Backlog], None]] = {
    holds.__name__: holds
    for holds in (
        every_claim_that_ends_makes_room,
        waiting_rows_are_looked_at_in_time,
        a_trip_parks_the_lane,
        a_hold_parks_the_lane,
        a_hold_is_the_longest_that_was_asked_for,
        a_block_that_still_holds_is_kept,
        room_is_used_at_once,
        a_reset_is_not_undone,
        the_breaker_hears_every_vote_in_order,
        what_is_given_back_returns_its_token,
        only_a_success_makes_healthy,
        health_follows_the_circuit,
    )
}


def drive(core: ModuleType, properties: Sequence[Callable[[Backlog], None]], how: settings) -> None:
    machine = type("BacklogOf", (Backlog,), {"core": core, "properties": properties})
    run_state_machine_as_test(machine, settings=how)


@pytest.mark.parametrize("holds", ADMIT.values(), ids=ADMIT)
def test_an_admission_has_the_property(holds: Callable[[ModuleType, settings], None]) -> None:
    holds(lanes, settings(CHECK, max_examples=150))


def test_a_backlog_keeps_its_properties_whatever_happens() -> None:
    drive(lanes, list(SETTLE.values()), settings(CHECK, max_examples=200))


@pytest.mark.parametrize("mutant", planted_in("lane"), ids=str)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    core = mutant.plant()
    with pytest.raises(AssertionError):
        if mutant.killed_by in ADMIT:
            ADMIT[mutant.killed_by](core, HUNT)
        else:
            drive(core, [SETTLE[mutant.killed_by]], HUNT)


def test_every_property_catches_a_mutant() -> None:
    assert set(ADMIT) | set(SETTLE) == {mutant.killed_by for mutant in planted_in("lane")}
