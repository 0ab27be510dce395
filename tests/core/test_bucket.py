"""The token bucket under any order of takes, returns and clocks, and under the mistakes planted for
each property.

Rates and times are dyadic fractions, so that sums are exact and "never above" can be tested without
a tolerance.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.core import bucket

TICK_S = 2.0**-10


class Tap(RuleBasedStateMachine):
    """One bucket; like a claim, `take` never takes more than the whole tokens in it."""

    core: ModuleType = bucket
    properties: Sequence[Callable[["Tap"], None]] = ()

    @initialize(rate=st.sampled_from([0.25, 0.5, 1.0, 2.0]), burst=st.integers(1, 3))
    def start(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.now = 1000.0
        self.bucket = self.core.Bucket(None, self.now)
        self.before = float(burst)  # the level before the last step
        self.stepped_s = 0.0
        self.run_s = 0.0  # how long the clock ran forwards
        self.taken: list[tuple[float, int]] = []  # (run_s, tokens)

    @rule(span_s=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0]))
    def time_passes(self, span_s: float) -> None:
        self.before, self.stepped_s = self.level(), span_s
        self.now += span_s
        self.run_s += span_s

    @rule(span_s=st.sampled_from([0.25, 1.0, 8.0]))
    def clock_steps_back(self, span_s: float) -> None:
        self.before, self.stepped_s = self.level(), -span_s
        self.now -= span_s

    @rule(wish=st.integers(0, 3))
    def take(self, wish: int) -> None:
        self.settle(min(wish, math.floor(self.level())))

    @rule(count=st.integers(1, 2))
    def give_back(self, count: int) -> None:
        self.settle(-count)

    def settle(self, count: int) -> None:
        self.before, self.stepped_s = self.level() - count, 0.0
        self.bucket = self.bucket.take(count, self.now, rate=self.rate, burst=self.burst)
        self.taken.append((self.run_s, count))

    def level(self) -> float:
        level: float = self.bucket.level(self.now, rate=self.rate, burst=self.burst)
        return level

    @invariant()
    def the_properties_hold(self) -> None:
        for holds in self.properties:
            holds(self)


def is_never_above_the_burst(tap: Tap) -> None:
    assert tap.level() <= tap.burst
    assert tap.bucket.tokens is None or tap.bucket.tokens <= tap.burst


def is_never_below_zero(tap: Tap) -> None:
    assert tap.level() >= 0


def lets_through_at_most_burst_and_rate(tap: Tap) -> None:
    """In every interval that begins and ends with a take. Tokens that were returned may go out
    again.
    """
    for first, (since_s, _) in enumerate(tap.taken):
        through = 0
        for until_s, count in tap.taken[first:]:
            through += count
            assert through <= tap.burst + tap.rate * (until_s - since_s)


def gains_nothing_from_a_clock_that_steps_back(tap: Tap) -> None:
    if tap.stepped_s < 0:
        assert tap.level() <= tap.before


def refills_at_its_rate(tap: Tap) -> None:
    # After a step back the bucket waits until the clock has caught up; before that it gains less.
    if (
        tap.stepped_s > 0
        and tap.bucket.tokens is not None
        and tap.bucket.at <= tap.now - tap.stepped_s
    ):
        assert tap.level() == min(tap.burst, tap.before + tap.rate * tap.stepped_s)


def names_the_first_instant_of_the_next_token(tap: Tap) -> None:
    at = tap.bucket.next_token_at(tap.now, rate=tap.rate, burst=tap.burst)
    if tap.level() >= 1:
        assert at == tap.now
    elif tap.bucket.at <= tap.now:
        assert tap.bucket.level(at, rate=tap.rate, burst=tap.burst) >= 1
        assert tap.bucket.level(at - TICK_S, rate=tap.rate, burst=tap.burst) < 1
    else:
        # The clock stepped back: an early look costs a little, a late one nothing is lost by
        # either.
        assert at > tap.now


def rate_zero_is_unlimited(tap: Tap) -> None:
    assert tap.bucket.level(tap.now, rate=0.0, burst=tap.burst) == math.inf
    emptied = tap.bucket.take(10**9, tap.now, rate=0.0, burst=tap.burst)
    assert emptied.level(tap.now, rate=0.0, burst=tap.burst) == math.inf
    assert emptied.level(tap.now, rate=tap.rate, burst=tap.burst) == tap.burst, (
        "a limit set later starts with a full bucket"
    )
    assert tap.bucket.next_token_at(tap.now, rate=0.0, burst=tap.burst) == tap.now


def a_new_bucket_is_full(tap: Tap) -> None:
    if tap.bucket.tokens is None:
        assert tap.level() == tap.burst


PROPERTIES: dict[str, Callable[[Tap], None]] = {
    holds.__name__: holds
    for holds in (
        is_never_above_the_burst,
        is_never_below_zero,
        lets_through_at_most_burst_and_rate,
        gains_nothing_from_a_clock_that_steps_back,
        refills_at_its_rate,
        names_the_first_instant_of_the_next_token,
        rate_zero_is_unlimited,
        a_new_bucket_is_full,
    )
}


def drive(core: ModuleType, properties: Sequence[Callable[[Tap], None]], how: settings) -> None:
    machine = type("TapOf", (Tap,), {"core": core, "properties": properties})
    run_state_machine_as_test(machine, settings=how)


def test_the_bucket_keeps_its_properties() -> None:
    drive(bucket, list(PROPERTIES.values()), CHECK)


@pytest.mark.parametrize("mutant", planted_in("bucket"), ids=str)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises(AssertionError):
        drive(mutant.plant(), [PROPERTIES[mutant.killed_by]], HUNT)


def test_every_property_catches_a_mutant() -> None:
    assert set(PROPERTIES) == {mutant.killed_by for mutant in planted_in("bucket")}
