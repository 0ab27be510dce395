"""The restart policy against a model that remembers the whole history, and against planted mutants
that must fail.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from webhookd.core.restart import HEALTHY_LIFE_S, PAUSE, Phase, Restart, pause_s

SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, database=None, derandomize=True
)
# A mutant must be caught; a short example that explains it is not needed.
HUNT = settings(
    SETTINGS,
    max_examples=300,
    phases=(HypothesisPhase.generate,),
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)

draws = st.floats(0.0, 1.0, exclude_max=True)
instants = st.floats(0.0, 1e6)
short_spans = st.floats(0.0, 1.0)
spans = st.one_of(short_spans, st.floats(1.0, 100.0))


class Slot(RuleBasedStateMachine):
    """One slot through starts, beats and deaths. The model keeps plain lists and computes
    everything from them.
    """

    kind: type[Restart] = Restart

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.restart = self.kind.fresh(self.now)
        assert self.restart.since == self.now, "a new slot is filled at once"
        self.beats: list[float] = []
        # The healthy life of each worker that ended, from its first beat to its last.
        self.lives: list[float] = []

    @precondition(lambda self: self.restart.phase is Phase.WAITING)
    @rule(late_s=short_spans)
    def start(self, late_s: float) -> None:
        self.now = max(self.now, self.restart.since) + late_s
        self.restart = self.restart.started(self.now)
        self.beats = []
        assert self.restart.phase is Phase.STARTING
        assert self.restart.silent_at(7.0) == self.now + 7.0, (
            "a new worker has the whole timeout for its first beat"
        )

    @precondition(lambda self: self.restart.phase is not Phase.WAITING)
    @rule(span_s=spans)
    def beat(self, span_s: float) -> None:
        self.now += span_s
        self.restart = self.restart.beat(self.now)
        self.beats.append(self.now)
        assert self.restart.phase is Phase.RUNNING
        assert self.restart.silent_at(7.0) == self.now + 7.0, (
            "each beat gives the whole timeout again"
        )

    @precondition(lambda self: self.restart.phase is not Phase.WAITING)
    @rule(span_s=spans, u=draws)
    def die(self, span_s: float, u: float) -> None:
        self.now += span_s
        self.restart = self.restart.died(self.now, u=u)
        self.lives.append(self.beats[-1] - self.beats[0] if self.beats else 0.0)
        deaths = next(
            (n for n, life in enumerate(reversed(self.lives), 1) if life >= HEALTHY_LIFE_S),
            len(self.lives),
        )
        delay_s = self.restart.since - self.now
        assert self.restart.phase is Phase.WAITING
        if deaths == 1:
            assert delay_s == 0.0, "the first restart is immediate"
        else:
            ceiling_s = min(30.0, 0.5 * 2 ** (deaths - 2))
            assert 0.499 * ceiling_s <= delay_s <= 1.001 * ceiling_s

    @precondition(lambda self: self.restart.phase is not Phase.WAITING)
    @rule(span_s=spans)
    def parent_could_not_listen(self, span_s: float) -> None:
        self.now += span_s
        before = self.restart
        # Not a beat: only the silence up to now is forgotten.
        heard = before.forget_silence(self.now)
        assert heard.silent_at(7.0) == self.now + 7.0
        assert (heard.phase, heard.since, heard.failures) == (
            before.phase,
            before.since,
            before.failures,
        )


def property_model(kind: type[Restart], how: settings) -> None:
    run_state_machine_as_test(type("SlotOfKind", (Slot,), {"kind": kind}), settings=how)


def property_crash_loop_never_spins(kind: type[Restart], how: settings) -> None:
    """A worker that dies at its start is started at most 30 times in the first five minutes,
    for every jitter.
    """

    @how
    @given(st.lists(draws, min_size=40, max_size=40))
    def holds(us: list[float]) -> None:
        restart = kind.fresh(0.0)
        starts = 0
        for u in us:
            now = restart.since
            starts += now <= 300.0
            restart = restart.started(now).died(now, u=u)
        assert starts <= 30

    holds()


def property_comes_back_within_half_a_minute(kind: type[Restart], how: settings) -> None:
    @how
    @given(st.integers(1, 3000), instants, draws)
    def holds(failures: int, now: float, u: float) -> None:
        restart = replace(kind.fresh(now).started(now), failures=failures).died(now, u=u)
        assert now <= restart.since <= now + PAUSE.max_s

    holds()


def property_wrong_order_is_refused(kind: type[Restart], how: settings) -> None:
    @how
    @given(instants, draws)
    def holds(now: float, u: float) -> None:
        waiting = kind.fresh(now)
        starting = waiting.started(now)
        steps: list[Callable[[], Restart]] = [
            lambda: waiting.beat(now),
            lambda: waiting.died(now, u=u),
            lambda: starting.started(now),
            lambda: starting.beat(now).started(now),
        ]
        for step in steps:
            try:
                step()
            except ValueError:
                continue
            raise AssertionError("accepted")

    holds()


class FirstRestartWaits(Restart):
    def died(self, now: float, *, u: float) -> Self:
        after = super().died(now, u=u)
        return replace(after, since=now + pause_s(after.failures + 1, u=u))


class NeverBacksOff(Restart):
    def died(self, now: float, *, u: float) -> Self:
        return replace(super().died(now, u=u), since=now)


class NoCeiling(Restart):
    def died(self, now: float, *, u: float) -> Self:
        after = super().died(now, u=u)
        delay_s = (
            0.0
            if after.failures == 1
            else 0.5 * 2.0 ** min(after.failures - 2, 1000) * (0.5 + 0.5 * u)
        )
        return replace(after, since=now + delay_s)


class NoFloor(Restart):
    def died(self, now: float, *, u: float) -> Self:
        after = super().died(now, u=u)
        return replace(after, since=now + (after.since - now) * u)


class NeverForgives(Restart):
    def _lived_well(self) -> bool:
        return False


class ForgivesAnyLife(Restart):
    def _lived_well(self) -> bool:
        return self.phase is Phase.RUNNING


class CountsSilenceAsLife(Restart):
    def died(self, now: float, *, u: float) -> Self:
        # Here the time that the worker hung before its death counts as life too.
        return super(CountsSilenceAsLife, replace(self, heard=now)).died(now, u=u)


class CountsBootAsLife(Restart):
    def beat(self, now: float) -> Self:
        return replace(super().beat(now), since=self.since)


class LifeBeginsWithEachBeat(Restart):
    def beat(self, now: float) -> Self:
        return replace(super().beat(now), since=now)


class DeafToBeats(Restart):
    def beat(self, now: float) -> Self:
        return replace(super().beat(now), heard=self.heard)


class RemembersSilence(Restart):
    def forget_silence(self, now: float) -> Self:
        return self


class NoBootGrace(Restart):
    def started(self, now: float) -> Self:
        return replace(super().started(now), heard=-math.inf)


class LateFirstStart(Restart):
    @classmethod
    def fresh(cls, now: float) -> Self:
        return cls(Phase.WAITING, since=now + 1.0, heard=now)


class AnythingGoes(Restart):
    def started(self, now: float) -> Self:
        return replace(self, phase=Phase.STARTING, since=now, heard=now)


class BeatsWhileWaiting(Restart):
    def beat(self, now: float) -> Self:
        return self if self.phase is Phase.WAITING else super().beat(now)


PROPERTIES: dict[Callable[[type[Restart], settings], None], tuple[type[Restart], ...]] = {
    property_model: (
        FirstRestartWaits,
        NeverBacksOff,
        NoFloor,
        NeverForgives,
        ForgivesAnyLife,
        CountsSilenceAsLife,
        CountsBootAsLife,
        LifeBeginsWithEachBeat,
        DeafToBeats,
        RemembersSilence,
        NoBootGrace,
        LateFirstStart,
    ),
    property_crash_loop_never_spins: (NeverBacksOff, NoFloor),
    property_comes_back_within_half_a_minute: (NoCeiling,),
    property_wrong_order_is_refused: (AnythingGoes, BeatsWhileWaiting),
}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_the_policy_has(check: Callable[[type[Restart], settings], None]) -> None:
    check(Restart, SETTINGS)


@pytest.mark.parametrize(
    ("check", "mutant"),
    [
        pytest.param(check, mutant, id=mutant.__name__)
        for check, mutants in PROPERTIES.items()
        for mutant in mutants
    ],
)
def test_a_planted_mutant_is_caught(
    check: Callable[[type[Restart], settings], None], mutant: type[Restart]
) -> None:
    with pytest.raises((AssertionError, OverflowError)):
        check(mutant, HUNT)
