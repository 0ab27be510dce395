"""Which names may be looked up beside which, and the pauses of names that fail; and mutants."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.core import lookups

NOW = 1000.0


def running(core: ModuleType, count: int, standing: str, *, slow: bool, domain: str = "") -> Any:
    """Return *count* lookups, each of a domain of its own unless one is given."""
    began_at = NOW - 1.0 if slow else NOW - 0.9
    return [
        core.Lookup(domain or f"d{number}-{standing}.test", core.Standing(standing), began_at)
        for number in range(count)
    ]


def may(core: ModuleType, standing: str, others: Any, host: str = "a.good.test") -> bool:
    allowed: bool = core.may_start(host, core.Standing(standing), others, now=NOW)
    return allowed


def silent_names_leave_threads_to_names_that_answer(core: ModuleType, _: settings) -> None:
    full = running(core, 96, "unknown", slow=True)
    assert may(core, "unknown", full[:95])
    assert not may(core, "unknown", full)
    assert may(core, "answered", full)
    # Names that answered, and hang now, count as troubled.
    mixed = running(core, 80, "unknown", slow=True) + running(core, 16, "troubled", slow=True)
    assert not may(core, "unknown", mixed)
    assert may(core, "unknown", full[:80] + running(core, 47, "answered", slow=True))


def no_more_threads_than_there_are(core: ModuleType, _: settings) -> None:
    full = running(core, 128, "answered", slow=False)
    for standing in ("answered", "unknown", "troubled"):
        assert not may(core, standing, full)
    assert may(core, "answered", full[:127])


def names_in_trouble_share_few_threads(core: ModuleType, _: settings) -> None:
    full = running(core, 16, "troubled", slow=False)
    assert may(core, "troubled", full[:15])
    assert not may(core, "troubled", full)
    assert may(core, "unknown", full)


def a_domain_holds_few_threads_once_its_lookups_are_slow(core: ModuleType, _: settings) -> None:
    of_domain = running(core, 40, "unknown", slow=True, domain="good.test")
    assert may(core, "unknown", of_domain[:3])
    assert not may(core, "unknown", of_domain[:4])
    assert not may(core, "unknown", of_domain[:4], "b.c.d.good.test.")
    assert may(core, "unknown", of_domain[:4], "good.test.example")
    assert may(core, "answered", of_domain[:15])
    assert not may(core, "answered", of_domain[:16])
    fast = running(core, 32, "unknown", slow=False, domain="good.test")
    assert may(core, "unknown", fast[:31])
    assert not may(core, "answered", fast)
    troubled = running(core, 2, "troubled", slow=False, domain="good.test")
    assert may(core, "troubled", troubled[:1])
    assert not may(core, "troubled", troubled)
    assert may(core, "unknown", troubled)


def a_domain_is_two_labels(core: ModuleType, _: settings) -> None:
    for host, domain in (
        ("a.b.example.com", "example.com"),
        ("example.com", "example.com"),
        ("example.com.", "example.com"),
        ("intranet", "intranet"),
    ):
        assert core.domain_of(host) == domain


def pauses_grow_to_a_minute(core: ModuleType, how: settings) -> None:
    @how
    @given(st.integers(1, 40), st.floats(0.0, 0.99))
    def holds(failures: int, early: float) -> None:
        trouble = core.Trouble.first("DNS: no answer", now=NOW)
        paused = [trouble.until - NOW]
        for _ in range(failures):
            # Whoever waited for the same lookup reports it as well: that is no further failure.
            within = trouble.since + (trouble.until - trouble.since) * early
            if within < trouble.until:
                assert trouble.again("DNS: other", now=within) == trouble
            began_at = trouble.until
            trouble = trouble.again("DNS: temporary failure", now=began_at)
            paused.append(trouble.until - began_at)
        assert paused == [min(2.0**number, 60.0) for number in range(failures + 1)]
        assert (trouble.since, trouble.reason) == (NOW, "DNS: temporary failure")
        just_before, much_later = trouble.until + 599.0, trouble.until + 600.0
        assert trouble.again("x", now=just_before).since == NOW
        assert trouble.again("x", now=much_later) == core.Trouble.first("x", now=much_later)

    holds()


PROPERTIES: dict[str, Callable[[ModuleType, settings], None]] = {
    holds.__name__: holds
    for holds in (
        silent_names_leave_threads_to_names_that_answer,
        no_more_threads_than_there_are,
        names_in_trouble_share_few_threads,
        a_domain_holds_few_threads_once_its_lookups_are_slow,
        a_domain_is_two_labels,
        pauses_grow_to_a_minute,
    )
}


@pytest.mark.parametrize("holds", PROPERTIES.values(), ids=PROPERTIES)
def test_lookups_have_the_property(holds: Callable[[ModuleType, settings], None]) -> None:
    holds(lookups, CHECK)


@pytest.mark.parametrize("mutant", planted_in("lookups"), ids=str)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises(AssertionError):
        PROPERTIES[mutant.killed_by](mutant.plant(), HUNT)


def test_every_property_catches_a_mutant() -> None:
    assert set(PROPERTIES) == {mutant.killed_by for mutant in planted_in("lookups")}
