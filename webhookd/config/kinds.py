"""The kinds of values that options take: each parses what the command line, the environment or TOML
gave.
"""

import ipaddress
import math
import re
from dataclasses import dataclass
from typing import Any, Protocol

from webhookd.errors import UnusableError

LONGEST_S = 30 * 86400.0  # far longer waits overflow the clocks of the C calls below
SLOWEST_RATE = 1 / LONGEST_S  # or a token would take longer
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_BYTES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_WORDS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


class Kind(Protocol):
    """A kind of value. `parse` raises ValueError, its message an optional detail, for what is not
    *allowed*.
    """

    @property
    def allowed(self) -> str: ...

    @property
    def metavar(self) -> str: ...

    def parse(self, raw: object) -> Any: ...


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds, both included."""

    low: int
    high: int
    metavar: str = "N"

    @property
    def allowed(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def parse(self, raw: object) -> int:
        if isinstance(raw, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", raw.strip()):
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int) or not self.low <= raw <= self.high:
            raise ValueError
        return raw


@dataclass(frozen=True, slots=True)
class Number:
    """0, or a finite number from *least* (which *means* something) to *high*, both included."""

    high: float
    metavar: str = "N"
    least: float = 0.0
    means: str = ""

    @property
    def allowed(self) -> str:
        return f"{'0, or ' if self.least else ''}a number from {self.least:.3g}{self.means} to {self.high:.15g}"

    def parse(self, raw: object) -> float:
        value = _number(raw)
        if value != 0 and not self.least <= value <= self.high:
            raise ValueError
        return value


def rate(high: float) -> Number:
    """Return the kind of so many a second: 0 (no limit), or from one in the longest wait on."""
    return Number(high, least=SLOWEST_RATE, means=f" (one in {LONGEST_S / 86400:.0f} days)")


@dataclass(frozen=True, slots=True)
class Seconds:
    """A duration above zero: a number of seconds, or a number with the unit ms, s, m, h or d."""

    longest_s: float = LONGEST_S
    metavar: str = "SECONDS"

    @property
    def allowed(self) -> str:
        return f"a duration above 0 and at most {self.longest_s:.0f} s, in seconds or with a unit: ms, s, m, h, d"

    def parse(self, raw: object) -> float:
        unit_s = 1.0
        if isinstance(raw, str) and (
            match := re.fullmatch(r"(.*?[0-9.])\s*(ms|s|m|h|d)", raw.strip())
        ):
            raw, unit_s = match[1], _UNITS_S[match[2]]
        value = _number(raw) * unit_s
        if not 0.0 < value <= self.longest_s:
            raise ValueError
        return value


@dataclass(frozen=True, slots=True)
class Bytes:
    """An amount of memory, at least *least*, or 0: a number of bytes, or a number with the unit K,
    M or G (of 1024).
    """

    least: int
    metavar: str = "BYTES"

    @property
    def allowed(self) -> str:
        return f"0, or an amount of memory from {self.least >> 20}M on, in bytes or with a unit: K, M, G"

    def parse(self, raw: object) -> int:
        unit = 1
        if isinstance(raw, str) and (
            match := re.fullmatch(r"(.*?[0-9.])\s*([KMG])i?B?", raw.strip(), re.IGNORECASE)
        ):
            raw, unit = match[1], _UNITS_BYTES[match[2].upper()]
        value = int(_number(raw) * unit)
        if value != 0 and not self.least <= value < 1 << 60:
            raise ValueError
        return value


@dataclass(frozen=True, slots=True)
class Flag:
    """Yes or no."""

    allowed: str = "1, 0, true, false, yes or no"
    metavar: str = ""

    def parse(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and raw.strip().lower() in _WORDS:
            return _WORDS[raw.strip().lower()]
        raise ValueError


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return "one of " + ", ".join(self.words)

    @property
    def metavar(self) -> str:
        return "|".join(self.words)

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or raw.strip().lower() not in self.words:
            raise ValueError
        return raw.strip().lower()


@dataclass(frozen=True, slots=True)
class Pattern:
    """Text that matches a regular expression as a whole; *allowed* says the same in words."""

    expression: str
    allowed: str
    metavar: str

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(self.expression, raw):
            raise ValueError
        return raw


@dataclass(frozen=True, slots=True)
class Folder:
    """Not wanted (None), wanted in the default folder (""), or a folder's path."""

    allowed: str = "true, false, or a folder's path"
    metavar: str = "DIR"

    def parse(self, raw: object) -> str | None:
        if isinstance(raw, str) and raw.strip().lower() in _WORDS:
            raw = _WORDS[raw.strip().lower()]
        if isinstance(raw, bool):
            return "" if raw else None
        if not isinstance(raw, str) or "\0" in raw:
            raise ValueError
        return raw


@dataclass(frozen=True, slots=True)
class Networks:
    """Networks in CIDR notation: a list, or text with commas."""

    allowed: str = "networks such as 10.0.0.0/8 or fd00::/8"
    metavar: str = "CIDR"

    def parse(self, raw: object) -> tuple[str, ...]:
        texts = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(texts, list | tuple):
            raise ValueError
        return tuple(_network(part) for text in texts for part in _parts(text))


@dataclass(frozen=True, slots=True)
class Dsn:
    """A connection string of PostgreSQL, as far as it can be judged without libpq; `check_dsn` does
    the rest.
    """

    allowed: str = (
        "a connection string such as postgresql://user@host/database or 'host=... dbname=...'"
    )
    metavar: str = "DSN"

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or "\0" in raw:
            raise ValueError
        if not (raw.startswith(("postgresql://", "postgres://")) or re.match(r"\s*\w+\s*=", raw)):
            scheme = re.match(r"[a-z0-9+]+://", raw)
            raise ValueError(f"{scheme[0]} is not a scheme that libpq knows" if scheme else "")
        return raw


def check_dsn(dsn: str, name: str) -> None:
    """Raise UnusableError, calling the option *name*, where libpq cannot parse *dsn*. Imports
    psycopg.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as fault:
        # libpq quotes pieces of the string, and a badly written one has the password in any of
        # them.
        reason, quote, _ = str(fault).strip().replace('"="', "=").partition('"')
        reason = reason.rstrip(" :") + (" (hidden)" if quote else "")
        raise UnusableError(f"{name} is not a connection string of PostgreSQL: {reason}") from None


def shown(raw: object) -> str:
    """Return *raw* as an error message quotes it: on one line, and not too long."""
    text = (
        raw
        if isinstance(raw, str)
        else ", ".join(map(str, raw))
        if isinstance(raw, list | tuple)
        else str(raw)
    )
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, str | int | float):
        raise ValueError
    try:
        value = float(raw)
    except (ValueError, OverflowError):
        raise ValueError from None
    if not math.isfinite(value):
        raise ValueError
    return value


def _parts(text: object) -> list[str]:
    if not isinstance(text, str):
        raise ValueError
    return [part.strip() for part in text.split(",") if part.strip()]


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as fault:
        if "host bits" not in str(fault):
            raise ValueError(f"{text} is not a network") from None
        raise ValueError(
            f"{text} has host bits set: write {ipaddress.ip_network(text, strict=False)} for the "
            "network"
        ) from None
