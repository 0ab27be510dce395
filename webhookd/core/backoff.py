"""How long to wait before trying again."""

from dataclasses import dataclass, replace
from typing import Self


def backoff_s(tries: int, *, base_s: float, factor: float, cap_s: float, u: float) -> float:
    """Return *base_s* * *factor*^*tries* seconds, spread by a fifth to either side, never above
    *cap_s*.

    *tries* counts from 0; *u* is uniform in [0, 1). The spread keeps receivers that failed together
    from being hit together (AWS Architecture Blog, "Exponential Backoff And Jitter"); its mean is
    the schedule that the documentation states.
    """
    if tries < 0:
        raise ValueError(f"tries must be >= 0, got {tries}")
    try:
        growth = factor**tries
    except OverflowError:  # above 1e308: the cap ruled long before that
        return cap_s
    return min(cap_s, base_s * growth * (0.8 + 0.4 * u))


@dataclass(frozen=True, slots=True)
class GrowingPause:
    """A pause between tries: *first_s* seconds at first, then twice as long each time, at most
    *max_s*.

    A value: `longer` and `reset` return another one. *tries* counts the pauses before this one.
    """

    first_s: float
    max_s: float
    tries: int = 0

    @property
    def seconds(self) -> float:
        """The pause to make now, without jitter."""
        # 2.0 ** 1024 raises OverflowError; long before that the maximum rules.
        return min(self.max_s, self.first_s * 2.0 ** min(self.tries, 60))

    def jittered(self, u: float) -> float:
        """Return the pause times [0.5, 1) by *u*, uniform in [0, 1).

        This is "equal jitter" of the AWS Architecture Blog's "Exponential Backoff And Jitter":
        workers that wait for the same thing come back at different moments, and since at least half
        of the pause stays, none of them spins.
        """
        return self.seconds * (0.5 + 0.5 * u)

    def longer(self) -> Self:
        """Return the pause that follows this one."""
        return replace(self, tries=self.tries + 1)

    def reset(self) -> Self:
        """Return the first pause again."""
        return replace(self, tries=0)
