"""Medians and ratios of rounds, with bootstrap intervals (percentile method, 95 %)."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RESAMPLES = 4000
SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with the bounds of its interval."""

    middle: float
    low: float
    high: float

    def text(self, form: str = ".3g", scale: float = 1.0) -> str:
        """Return `middle [low to high]`, each times *scale* in the format *form*."""
        middle, low, high = (
            format(value * scale, form) for value in (self.middle, self.low, self.high)
        )
        return f"{middle} [{low} to {high}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median of the rounds' *values*."""
    return _bootstrap(len(values), lambda rounds: statistics.median(values[i] for i in rounds))


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return the median of the ratios, round by round; both were measured in the same rounds."""
    return estimate([a / b for a, b in zip(mine, theirs, strict=True)])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that *share* (0 to 1) of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def verdict(reached: Estimate, target: float, *, at_least: bool) -> str:
    """Return whether *target* was reached. It is missed only if the whole interval is on the wrong
    side of it.
    """
    good = reached.middle >= target if at_least else reached.middle <= target
    if good:
        return "reached"
    return (
        "missed"
        if (reached.high < target if at_least else reached.low > target)
        else "within the interval"
    )


def _bootstrap(count: int, statistic: Callable[[Sequence[int]], float]) -> Estimate:
    # Seeded: the same rounds always give the same interval.
    dice = random.Random(count)
    rounds = range(count)
    found = sorted(statistic(dice.choices(rounds, k=count)) for _ in range(RESAMPLES))
    cut = int(RESAMPLES * (1 - SHARE) / 2)
    return Estimate(statistic(rounds), found[cut], found[-1 - cut])
