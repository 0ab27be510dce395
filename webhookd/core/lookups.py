"""Which names may be looked up now, and for how long a name that fails is left alone.

A call of `getaddrinfo` cannot be ended, and a name whose servers are silent keeps its thread for
tens of seconds. These rules keep such names from the threads of names that answer. Times are
monotonic seconds.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple, Self

from webhookd.core.backoff import GrowingPause

# RFC 9520, section 3.2: a failure is remembered for at least 1 s and at most 5 minutes, longer each
# time that it persists.
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
# A failure this long after the last pause is a new trouble.
FORGOTTEN_S = 600.0

# A lookup that has taken this long is slow: most are done in a tenth of it.
SLOW_AFTER_S = 1.0

MAX_LOOKUPS = 128
# Kept free for names that have answered before.
RESERVED_LOOKUPS = 32
# Names whose last lookup hung or failed, together.
MAX_TROUBLED = 16
# One domain, whatever its names did before.
MAX_OF_DOMAIN = 32
# Once so many lookups of a domain are slow, no other name of it is asked for. Names that answered
# before are asked for until the second number.
MAX_SLOW_OF_DOMAIN = 4
MAX_SLOW_OF_KNOWN_DOMAIN = 16
MAX_TROUBLED_OF_DOMAIN = 2


class Standing(StrEnum):
    """What became of the last lookup of a name."""

    ANSWERED = "answered"
    UNKNOWN = "unknown"
    TROUBLED = "troubled"  # it hung, or the name's servers failed


class Lookup(NamedTuple):
    """A lookup that runs."""

    domain: str
    standing: Standing
    began_at: float


@dataclass(frozen=True, slots=True)
class Trouble:
    """A name that hung or whose servers failed, *since* then. It is not asked for until *until*.

    *reason* is one line.
    """

    reason: str
    since: float
    until: float
    pause: GrowingPause

    @classmethod
    def first(cls, reason: str, *, now: float) -> Self:
        """Return the trouble of a name that answered before, or was never asked for."""
        pause = GrowingPause(FIRST_PAUSE_S, MAX_PAUSE_S)
        return cls(reason, now, now + pause.seconds, pause)

    def again(self, reason: str, *, now: float) -> Self:
        """Return the trouble after another failure. Within the pause it grows no further: all who
        waited for one lookup report it.
        """
        if now < self.until:
            return self
        if now - self.until >= FORGOTTEN_S:
            return self.first(reason, now=now)
        pause = self.pause.longer()
        return replace(self, reason=reason, until=now + pause.seconds, pause=pause)


def domain_of(host: str) -> str:
    """Return the last two labels of *host*.

    That is a simplification: it takes all names below co.uk for one domain. They share its bounds
    while some of them are silent, and those that answered before hardly notice it.
    """
    return ".".join(host.rstrip(".").rsplit(".", 2)[-2:])


def may_start(host: str, standing: Standing, running: Collection[Lookup], *, now: float) -> bool:
    """Return whether a lookup of *host* may start beside those that are *running*."""
    if len(running) >= MAX_LOOKUPS:
        return False
    domain = domain_of(host)
    of_domain = [lookup for lookup in running if lookup.domain == domain]
    slow = sum(now - lookup.began_at >= SLOW_AFTER_S for lookup in of_domain)
    known = standing is Standing.ANSWERED
    if len(of_domain) >= MAX_OF_DOMAIN or slow >= (
        MAX_SLOW_OF_KNOWN_DOMAIN if known else MAX_SLOW_OF_DOMAIN
    ):
        return False
    if known:
        return True
    if sum(lookup.standing is not Standing.ANSWERED for lookup in running) >= (
        MAX_LOOKUPS - RESERVED_LOOKUPS
    ):
        return False
    return standing is Standing.UNKNOWN or (
        _troubled(running) < MAX_TROUBLED and _troubled(of_domain) < MAX_TROUBLED_OF_DOMAIN
    )


def _troubled(running: Collection[Lookup]) -> int:
    return sum(lookup.standing is Standing.TROUBLED for lookup in running)
