"""The circuit breaker through claims, votes, resets and time; each property must catch the
mutants planted for it.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
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

from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.core import breaker
from webhookd.core.answer import CircuitVote

OPEN_S = 30.0
LEASE_S = 35.0
spans = st.sampled_from([30.0, 29.0, 35.0, 1.0])
# Failures in a row are what it takes to get anywhere.
votes = st.sampled_from(
    [CircuitVote.FAILURE, CircuitVote.FAILURE, CircuitVote.SUCCESS, CircuitVote.NEUTRAL]
)


class Event(Enum):
    NOTHING = auto()
    CLAIM = auto()
    PROBE = auto()
    VOTE = auto()
    ABANDON = auto()
    RESET = auto()


class Circuit(RuleBasedStateMachine):
    """One webhook's breaker. Every step stores the state before, the event and the state
    after, and then checks the properties.
    """

    core: ModuleType = breaker
    properties: Sequence[Callable[["Circuit"], None]] = ()

    @initialize(
        threshold=st.integers(1, 3),
        under_way=st.integers(0, 2),
        failed=st.sampled_from([3, 2, 1, 0]),
        waited_s=spans,
    )
    def start(self, threshold: int, under_way: int, failed: int, waited_s: float) -> None:
        """Begin anywhere between a new breaker and one that is being probed, with attempts of the
        first generation under way.
        """
        self.threshold = threshold
        self.now = 1000.0
        self.before = self.after = self.core.Breaker()
        self.event = Event.NOTHING
        self.vote: CircuitVote | None = None
        self.flying: list[int] = []  # the generations that attempts were claimed under
        self.counts = False  # the attempt that ended belongs to the present generation
        self.failures = 0  # in a row, since the breaker last closed
        self.opened = 0.0
        self.probe_until = 0.0
        for _ in range(under_way):
            self.claim()
        for _ in range(min(failed, threshold)):
            self.claim()
            self.attempt_ends(0, CircuitVote.FAILURE)
        self.time_passes(waited_s)
        self.claim()

    @precondition(lambda self: self.after.state != "closed")
    @rule(span_s=spans)
    def time_passes(self, span_s: float) -> None:
        self.now += span_s
        self.step(Event.NOTHING, self.after)

    @rule(count=st.integers(1, 3))
    def workers_claim(self, count: int) -> None:
        for _ in range(count):
            self.claim()

    def claim(self) -> None:
        blocked_until = self.after.blocked_until
        if blocked_until is None:
            self.step(Event.CLAIM, self.after)
        elif blocked_until > self.now:
            return
        else:
            self.probe_until = self.now + LEASE_S
            self.step(Event.PROBE, self.after.begin_probe(lease_until=self.probe_until))
        self.flying.append(self.after.generation)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 3), vote=votes)
    def attempt_ends(self, which: int, vote: CircuitVote) -> None:
        generation = self.flying.pop(-1 - which % len(self.flying))
        after = self.after.vote(
            vote, generation=generation, now=self.now, threshold=self.threshold, open_s=OPEN_S
        )
        self.step(Event.VOTE, after, generation=generation, vote=vote)

    @rule(sequence=st.lists(votes, min_size=1, max_size=3))
    def attempts_begin_and_end(self, sequence: list[CircuitVote]) -> None:
        for vote in sequence:
            self.claim()
            if self.flying:
                self.attempt_ends(0, vote)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 3))
    def attempt_is_returned(self, which: int) -> None:
        generation = self.flying.pop(-1 - which % len(self.flying))
        self.step(
            Event.ABANDON,
            self.after.abandon_probe(generation=generation, now=self.now),
            generation=generation,
        )

    @precondition(lambda self: self.flying)
    @rule()
    def operator_resets(self) -> None:
        self.step(Event.RESET, self.after.reset())

    @rule(threshold=st.integers(1, 3))
    def owner_sets_the_threshold(self, threshold: int) -> None:
        self.threshold = threshold

    def step(
        self,
        event: Event,
        after: breaker.Breaker,
        *,
        generation: int = -1,
        vote: CircuitVote | None = None,
    ) -> None:
        self.before, self.after, self.event, self.vote = self.after, after, event, vote
        self.counts = generation == self.before.generation
        if event is Event.RESET or (self.counts and vote is CircuitVote.SUCCESS):
            self.failures = 0
        elif self.counts and vote is CircuitVote.FAILURE:
            self.failures += 1
        if self.opens_now():
            self.opened = self.now
        if self.counts and self.before.state == "half_open" and vote in (None, CircuitVote.NEUTRAL):
            self.probe_until = self.now

        for holds in self.properties:
            holds(self)

    def opens_now(self) -> bool:
        return bool(self.after.state == "open" and self.before.state != "open")


def opens_exactly_at_the_threshold(circuit: Circuit) -> None:
    if circuit.before.state == "closed":
        failed = circuit.counts and circuit.vote is CircuitVote.FAILURE
        assert circuit.opens_now() == (failed and circuit.failures >= circuit.threshold)


def failures_in_a_row_are_counted(circuit: Circuit) -> None:
    assert circuit.after.failures == circuit.failures


def admits_nothing_before_the_open_time_is_over(circuit: Circuit) -> None:
    if circuit.after.state == "open":
        assert circuit.after.blocked_until == circuit.opened + OPEN_S


def admits_one_probe_until_its_lease_ends(circuit: Circuit) -> None:
    if circuit.after.state == "half_open":
        assert circuit.after.blocked_until == circuit.probe_until


def a_probe_makes_the_breaker_half_open(circuit: Circuit) -> None:
    if circuit.event is Event.PROBE:
        assert circuit.after.state == "half_open"


def attempts_flow_freely_while_closed(circuit: Circuit) -> None:
    assert (circuit.after.blocked_until is None) == (circuit.after.state == "closed")


def an_attempt_of_another_generation_changes_nothing(circuit: Circuit) -> None:
    if circuit.event in (Event.VOTE, Event.ABANDON) and not circuit.counts:
        assert circuit.after == circuit.before


def a_neutral_attempt_lets_the_next_probe_go(circuit: Circuit) -> None:
    says_nothing = circuit.event is Event.ABANDON or circuit.vote is CircuitVote.NEUTRAL
    if says_nothing and circuit.counts:
        assert (circuit.after.state, circuit.after.failures) == (
            circuit.before.state,
            circuit.before.failures,
        )
        if circuit.before.state == "half_open":
            assert circuit.after.blocked_until is not None
            assert circuit.after.blocked_until <= circuit.now
        else:
            assert circuit.after == circuit.before


def a_probe_that_succeeds_closes(circuit: Circuit) -> None:
    if (
        circuit.counts
        and circuit.before.state == "half_open"
        and circuit.vote is CircuitVote.SUCCESS
    ):
        assert (circuit.after.state, circuit.after.failures) == ("closed", 0)


def a_probe_that_fails_opens_again(circuit: Circuit) -> None:
    if (
        circuit.counts
        and circuit.before.state == "half_open"
        and circuit.vote is CircuitVote.FAILURE
    ):
        assert circuit.after.state == "open"


def a_reset_closes(circuit: Circuit) -> None:
    if circuit.event is Event.RESET:
        assert (circuit.after.state, circuit.after.failures) == ("closed", 0)
        assert circuit.after.generation > circuit.before.generation, (
            "or attempts from before it would count"
        )


def each_transition_starts_a_generation(circuit: Circuit) -> None:
    moved = circuit.before.state != circuit.after.state or circuit.event in (
        Event.PROBE,
        Event.RESET,
    )
    assert circuit.after.generation == circuit.before.generation + moved


def health_follows_the_circuit(circuit: Circuit) -> None:
    health = {
        "open": "unavailable",
        "half_open": "degraded",
        "closed": "degraded" if circuit.failures else "healthy",
    }
    assert circuit.after.health() == health[circuit.after.state]


PROPERTIES: dict[str, Callable[[Circuit], None]] = {
    holds.__name__: holds
    for holds in (
        opens_exactly_at_the_threshold,
        failures_in_a_row_are_counted,
        admits_nothing_before_the_open_time_is_over,
        admits_one_probe_until_its_lease_ends,
        a_probe_makes_the_breaker_half_open,
        attempts_flow_freely_while_closed,
        an_attempt_of_another_generation_changes_nothing,
        a_neutral_attempt_lets_the_next_probe_go,
        a_probe_that_succeeds_closes,
        a_probe_that_fails_opens_again,
        a_reset_closes,
        each_transition_starts_a_generation,
        health_follows_the_circuit,
    )
}


def drive(core: ModuleType, properties: Sequence[Callable[[Circuit], None]], how: settings) -> None:
    machine = type("CircuitOf", (Circuit,), {"core": core, "properties": properties})
    run_state_machine_as_test(machine, settings=how)


def test_the_breaker_keeps_its_properties() -> None:
    drive(breaker, list(PROPERTIES.values()), CHECK)


@pytest.mark.parametrize("mutant", planted_in("breaker"), ids=str)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises(AssertionError):
        drive(mutant.plant(), [PROPERTIES[mutant.killed_by]], HUNT)


def test_every_property_catches_a_mutant() -> None:
    assert set(PROPERTIES) == {mutant.killed_by for mutant in planted_in("breaker")}
