"""Backoff and growing pauses for all numbers of tries, bases, caps and draws, and under planted
mistakes.
"""

import math
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.config.options import Config
from webhookd.core import backoff
from webhookd.core.backoff import GrowingPause

tries_counts = st.one_of(st.integers(0, 12), st.integers(0, 5000))
bases = st.sampled_from([0.001, 1.0, 5.0])
caps = st.sampled_from([0.5, 1800.0, 1e300])
factors = st.one_of(st.sampled_from([1.0, 2.0, 4.0]), st.floats(1.0, 100.0))
maxima = st.sampled_from([5.0, 30.0, 1e300])
draws = st.one_of(
    st.sampled_from([0.0, 0.5, math.nextafter(1.0, 0.0)]), st.floats(0.0, 1.0, exclude_max=True)
)


def never_exceeds_the_cap(core: ModuleType, how: settings) -> None:
    @how
    @given(tries_counts, bases, factors, caps, draws)
    def holds(tries: int, base_s: float, factor: float, cap_s: float, u: float) -> None:
        assert 0 < core.backoff_s(tries, base_s=base_s, factor=factor, cap_s=cap_s, u=u) <= cap_s

    holds()


def stays_within_a_fifth_of_the_schedule(core: ModuleType, how: settings) -> None:
    @how
    @given(st.integers(0, 40), bases, factors, draws)
    def holds(tries: int, base_s: float, factor: float, u: float) -> None:
        waited_s = core.backoff_s(tries, base_s=base_s, factor=factor, cap_s=1e300, u=u)
        assert 0.7999 < waited_s / (base_s * factor**tries) < 1.2001

    holds()


def never_waits_less_after_more_tries(core: ModuleType, how: settings) -> None:
    @how
    @given(tries_counts, bases, factors, caps, draws)
    def holds(tries: int, base_s: float, factor: float, cap_s: float, u: float) -> None:
        def wait_s(count: int) -> float:
            waited: float = core.backoff_s(count, base_s=base_s, factor=factor, cap_s=cap_s, u=u)
            return waited

        assert wait_s(tries) <= wait_s(tries + 1) <= wait_s(tries + 60)

    holds()


def takes_any_number_of_tries(core: ModuleType, how: settings) -> None:
    @how
    @given(
        st.sampled_from([1023, 1024, 2**31 - 1]), bases, st.sampled_from([1.5, 4.0, 1e300]), draws
    )
    def holds(tries: int, base_s: float, factor: float, u: float) -> None:
        try:
            waited_s = core.backoff_s(tries, base_s=base_s, factor=factor, cap_s=1800.0, u=u)
            assert waited_s == 1800.0
        except OverflowError as error:
            raise AssertionError("overflows") from error

    holds()


def refuses_a_negative_number_of_tries(core: ModuleType, how: settings) -> None:
    @how
    @given(st.integers(-5, -1), draws)
    def holds(tries: int, u: float) -> None:
        try:
            core.backoff_s(tries, base_s=5.0, factor=2.0, cap_s=1800.0, u=u)
        except ValueError:
            return
        raise AssertionError("accepted")

    holds()


def spreads_what_failed_together(core: ModuleType, how: settings) -> None:
    @how
    @given(st.integers(0, 5), st.floats(0.0, 0.4), st.floats(0.6, 1.0, exclude_max=True))
    def holds(tries: int, low: float, high: float) -> None:
        early_s, late_s = (
            core.backoff_s(tries, base_s=5.0, factor=2.0, cap_s=1800.0, u=u) for u in (low, high)
        )
        assert early_s < 5.0 * 2**tries < late_s

    holds()


def a_pause_starts_with_the_first_and_doubles_up_to_the_maximum(
    core: ModuleType, how: settings
) -> None:
    @how
    @given(st.integers(0, 12), bases, maxima)
    def holds(tries: int, first_s: float, max_s: float) -> None:
        assert pause_after(core, tries, first_s, max_s).seconds == min(max_s, first_s * 2**tries)

    holds()


def a_pause_takes_any_number_of_tries(core: ModuleType, how: settings) -> None:
    @how
    @given(st.sampled_from([1023, 1024, 2**31 - 1]), bases)
    def holds(tries: int, first_s: float) -> None:
        try:
            assert core.GrowingPause(first_s, 1800.0, tries).seconds == 1800.0
        except OverflowError as error:
            raise AssertionError("overflows") from error

    holds()


def jitter_leaves_at_least_half_of_a_pause_and_never_adds(core: ModuleType, how: settings) -> None:
    @how
    @given(st.integers(0, 12), bases, maxima, draws)
    def holds(tries: int, first_s: float, max_s: float, u: float) -> None:
        pause = pause_after(core, tries, first_s, max_s)
        assert pause.seconds / 2 <= pause.jittered(u) <= pause.seconds

    holds()


def jitter_spreads_those_that_wait_together(core: ModuleType, how: settings) -> None:
    @how
    @given(st.integers(0, 12), st.floats(0.0, 0.4), st.floats(0.6, 1.0, exclude_max=True))
    def holds(tries: int, low: float, high: float) -> None:
        pause = pause_after(core, tries, 0.2, 2.0)
        assert pause.jittered(low) < 0.75 * pause.seconds < pause.jittered(high)

    holds()


def a_pause_that_is_reset_is_the_first_one_again(core: ModuleType, how: settings) -> None:
    @how
    @given(st.integers(0, 12), bases, maxima)
    def holds(tries: int, first_s: float, max_s: float) -> None:
        assert pause_after(core, tries, first_s, max_s).reset() == core.GrowingPause(first_s, max_s)

    holds()


def pause_after(core: ModuleType, tries: int, first_s: float, max_s: float) -> GrowingPause:
    pause: GrowingPause = core.GrowingPause(first_s, max_s)
    for _ in range(tries):
        pause = pause.longer()
    return pause


PROPERTIES: dict[str, Callable[[ModuleType, settings], None]] = {
    holds.__name__: holds
    for holds in (
        never_exceeds_the_cap,
        stays_within_a_fifth_of_the_schedule,
        never_waits_less_after_more_tries,
        takes_any_number_of_tries,
        refuses_a_negative_number_of_tries,
        spreads_what_failed_together,
        a_pause_starts_with_the_first_and_doubles_up_to_the_maximum,
        a_pause_takes_any_number_of_tries,
        jitter_leaves_at_least_half_of_a_pause_and_never_adds,
        jitter_spreads_those_that_wait_together,
        a_pause_that_is_reset_is_the_first_one_again,
    )
}


@pytest.mark.parametrize("holds", PROPERTIES.values(), ids=PROPERTIES)
def test_it_has_the_property(holds: Callable[[ModuleType, settings], None]) -> None:
    holds(backoff, CHECK)


@pytest.mark.parametrize("mutant", planted_in("backoff"), ids=str)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises(AssertionError):
        PROPERTIES[mutant.killed_by](mutant.plant(), HUNT)


def test_the_defaults_try_for_some_31_hours_and_never_rest_for_more_than_8() -> None:
    defaults = Config()
    waits_s = [
        backoff.backoff_s(
            tries,
            base_s=defaults.retry_base,
            factor=defaults.retry_factor,
            cap_s=defaults.retry_max,
            u=0.5,
        )
        for tries in range(defaults.max_retries)
    ]
    assert waits_s[:7] == pytest.approx([5, 20, 80, 320, 1280, 5120, 20480])
    assert waits_s[7:] == [8 * 3600.0] * 3
    assert sum(waits_s) / 3600 == pytest.approx(31.6, abs=0.1)


def test_every_property_catches_a_mutant() -> None:
    assert set(PROPERTIES) == {mutant.killed_by for mutant in planted_in("backoff")}
