"""A reason why a delivery waits, and how instants, counts and rates read in its text."""

from dataclasses import dataclass
from datetime import UTC, datetime

from webhookd.admin.facts import LAST, Facts
from webhookd.core.model import WebhookSettings
from webhookd.text import duration, shown


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that holds a delivery back, or that ended it.

    *until*: when that ends (inf: not by itself; None: it holds nothing back). *run*: webhookd
    commands that help; *sql*: statements that help.
    """

    name: str
    text: str
    until: float | None = None
    run: tuple[str, ...] = ()
    sql: tuple[str, ...] = ()

    @property
    def until_at(self) -> datetime | str | None:
        """*until* as an instant, "never" where it does not end by itself, or None."""
        if self.until is None:
            return None
        return datetime.fromtimestamp(self.until, UTC) if self.until < LAST else "never"


def in_(facts: Facts, at: float) -> str:
    """Return *at* as "2026-11-24 03:50:00Z (in 12 s)"."""
    return f"{instant(at)} (in {duration(at - facts.now)})" if at < LAST else "never"


def until(facts: Facts, at: float) -> str:
    """Return *at* as "until 2026-11-24 03:50:00Z (in 12 s)"."""
    return f"until {in_(facts, at)}" if at < LAST else "for ever"


def instant(at: float) -> str:
    return shown(datetime.fromtimestamp(at, UTC))


def counted(number: int, one: str, many: str) -> str:
    """Return "1 attempt" or "2 attempts"."""
    return f"{number:,} {one if number == 1 else many}"


def ordinal(number: int) -> str:
    """Return "1st", "2nd", "11th"."""
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def rate(settings: WebhookSettings) -> str:
    return f"{settings.rate:g} a second, burst {settings.burst}"
