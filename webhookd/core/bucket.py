"""The token bucket of one webhook, as a value. RFC 2697 calls its two numbers the information rate
and the burst size.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bucket:
    """*tokens* at the time *at* (epoch seconds); *tokens* None is a full bucket."""

    tokens: float | None
    at: float

    def level(self, now: float, *, rate: float, burst: int) -> float:
        """Return the tokens at *now*. *rate* is tokens a second; 0 means unlimited. A clock that
        steps back adds none.
        """
        if rate == 0:
            return math.inf
        if self.tokens is None:
            return float(burst)
        return min(float(burst), self.tokens + max(0.0, now - self.at) * rate)

    def take(self, count: int, now: float, *, rate: float, burst: int) -> "Bucket":
        """Return the bucket after *count* tokens were taken (negative: returned)."""
        if rate == 0:
            return Bucket(None, now)
        return Bucket(min(float(burst), self.level(now, rate=rate, burst=burst) - count), now)

    def next_token_at(self, now: float, *, rate: float, burst: int) -> float:
        """Return when the bucket has a whole token; *now* if it has one already."""
        missing = 1.0 - self.level(now, rate=rate, burst=burst)
        return now if missing <= 0 else now + missing / rate
