"""The kinds of values that options take, as click's parameter types.

Each parses what the command line, the environment or a TOML file gave.
"""

import ipaddress
import math
import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import click

from webhookd.errors import UnusableError

if TYPE_CHECKING:
    # Generic since click 8.4. At run time, older releases do not accept the subscript.
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

LONGEST_S = 30 * 86400.0  # far longer waits overflow the clocks of the C calls below
SLOWEST_RATE = 1 / LONGEST_S  # or a token would take longer
MOST_RETRIES = 1000  # the registry's CHECKs have this and the next number, too
FASTEST_GROWTH = 100.0  # of the delays between retries
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


class Kind(_ParamType, ABC):
    """A kind of value. *allowed* completes the sentence "must be ...".

    A value of a *secret* kind never reaches an error message.
    """

    name = "value"  # click wants one
    secret: ClassVar[bool] = False

    def __init__(self, allowed: str, metavar: str) -> None:
        self.allowed = allowed
        self.metavar = metavar

    @abstractmethod
    def parse(self, raw: object) -> Any:
        """Return the value. Raise `ValueError`, its message an optional detail, if it is not
        allowed. A value that has been parsed already is returned as it is.
        """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse *value* for click. Raise `click.BadParameter`, one line without the name."""
        try:
            return self.parse(value)
        except ValueError as fault:
            given = "the value given (hidden)" if self.secret else shown(value)
            detail = f" ({fault})" if str(fault) else ""
            self.fail(f"must be {self.allowed}, not {given}{detail}", param, ctx)


class Whole(Kind):
    """A whole number within bounds, both included."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__(f"a whole number from {low} to {high}", "N")
        self._low, self._high = low, high

    def parse(self, raw: object) -> int:
        if isinstance(raw, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", raw.strip()):
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int) or not self._low <= raw <= self._high:
            raise ValueError
        return raw


class Number(Kind):
    """A finite number from *least* (which *means* something) to *high*, both included; with *zero*
    also 0.
    """

    def __init__(
        self,
        high: float,
        metavar: str = "N",
        *,
        least: float = 0.0,
        means: str = "",
        zero: bool = True,
    ) -> None:
        also = "0, or " if least and zero else ""
        super().__init__(f"{also}a number from {least:.3g}{means} to {high:.15g}", metavar)
        self._least, self._high, self._zero = least, high, zero

    def parse(self, raw: object) -> float:
        value = _number(raw)
        if not (self._zero and value == 0) and not self._least <= value <= self._high:
            raise ValueError
        return value


def growth() -> Number:
    """Return the kind of a factor by which delays grow."""
    return Number(FASTEST_GROWTH, least=1.0, zero=False)


def rate(high: float) -> Number:
    """Return the kind of a rate per second: 0 (no limit), or at least one in `LONGEST_S`."""
    return Number(high, least=SLOWEST_RATE, means=f" (one in {LONGEST_S / 86400:.0f} days)")


class Seconds(Kind):
    """A duration above zero: a number of seconds, or a number with the unit ms, s, m, h or d. With
    *zero* also 0.
    """

    def __init__(self, longest_s: float = LONGEST_S, *, zero: bool = False) -> None:
        bounds = (
            f"{'from' if zero else 'above'} 0 {'to' if zero else 'and at most'} {longest_s:.0f} s"
        )
        super().__init__(
            f"a duration {bounds}, in seconds or with a unit: ms, s, m, h, d", "SECONDS"
        )
        self._longest_s, self._zero = longest_s, zero

    def parse(self, raw: object) -> float:
        unit_s = 1.0
        if isinstance(raw, str) and (
            match := re.fullmatch(r"(.*?[0-9.])\s*(ms|s|m|h|d)", raw.strip())
        ):
            raw, unit_s = match[1], _UNITS_S[match[2]]
        value = _number(raw) * unit_s
        if not (self._zero and value == 0) and not 0.0 < value <= self._longest_s:
            raise ValueError
        return value


class Bytes(Kind):
    """An amount of memory, at least *least*, or 0 if *zero*: a number of bytes, or a number with
    the unit K, M or G (of 1024).
    """

    def __init__(self, least: int, *, zero: bool = True) -> None:
        low = f"{least >> 20}M" if least >= 1 << 20 else f"{least >> 10}K"
        amount = f"{'0, or ' if zero else ''}an amount of memory of at least {low}"
        super().__init__(f"{amount}, in bytes or with a unit: K, M, G", "BYTES")
        self._least = least
        self._zero = zero

    def parse(self, raw: object) -> int:
        unit = 1
        if isinstance(raw, str) and (
            match := re.fullmatch(r"(.*?[0-9.])\s*([KMG])i?B?", raw.strip(), re.IGNORECASE)
        ):
            raw, unit = match[1], _UNITS_BYTES[match[2].upper()]
        value = int(_number(raw) * unit)
        if not (self._zero and value == 0) and not self._least <= value < 1 << 60:
            raise ValueError
        return value


class Flag(Kind):
    """Yes or no."""

    def __init__(self) -> None:
        super().__init__("1, 0, true, false, yes or no", "")

    def parse(self, raw: object) -> bool:
        if isinstance(raw, bool):
            return raw
        if isinstance(raw, str) and raw.strip().lower() in _WORDS:
            return _WORDS[raw.strip().lower()]
        raise ValueError


class Choice(Kind):
    """One of a few words."""

    def __init__(self, *words: str) -> None:
        super().__init__("one of " + ", ".join(words), "|".join(words))
        self._words = words

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or raw.strip().lower() not in self._words:
            raise ValueError
        return raw.strip().lower()


class Pattern(Kind):
    """Text that matches a regular expression as a whole; *allowed* says the same in words."""

    def __init__(self, expression: str, allowed: str, metavar: str) -> None:
        super().__init__(allowed, metavar)
        self._expression = expression

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or not re.fullmatch(self._expression, raw):
            raise ValueError
        return raw


class Folder(Kind):
    """Not wanted (None), wanted in the default folder (""), or a folder's path."""

    def __init__(self) -> None:
        super().__init__("true, false, or a folder's path", "DIR")

    def parse(self, raw: object) -> str | None:
        if isinstance(raw, str) and raw.strip().lower() in _WORDS:
            raw = _WORDS[raw.strip().lower()]
        if isinstance(raw, bool):
            return "" if raw else None
        if not isinstance(raw, str) or "\0" in raw:
            raise ValueError
        return raw


class Networks(Kind):
    """Networks in CIDR notation: a list, or text with commas."""

    def __init__(self) -> None:
        super().__init__("networks such as 10.0.0.0/8 or fd00::/8", "CIDR")

    def parse(self, raw: object) -> tuple[str, ...]:
        texts = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(texts, list | tuple):
            raise ValueError
        return tuple(_network(part) for text in texts for part in _parts(text))


class Ports(Kind):
    """TCP ports: a list, or text with commas."""

    def __init__(self) -> None:
        super().__init__("ports from 1 to 65535", "PORT")

    def parse(self, raw: object) -> tuple[int, ...]:
        texts = raw.split(",") if isinstance(raw, str) else raw
        if not isinstance(texts, list | tuple):
            raise ValueError
        one = Whole(1, 65535)
        return tuple(
            one.parse(part)
            for text in texts
            for part in (_parts(text) if isinstance(text, str) else [text])
        )


class Dsn(Kind):
    """A connection string of PostgreSQL, as far as it can be judged without libpq.

    `check_dsn` does the rest.
    """

    secret = True

    def __init__(self) -> None:
        examples = "postgresql://user@host/database or 'host=... dbname=...'"
        super().__init__(f"a connection string such as {examples}", "DSN")

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str) or "\0" in raw:
            raise ValueError
        if not (raw.startswith(("postgresql://", "postgres://")) or re.match(r"\s*\w+\s*=", raw)):
            scheme = re.match(r"[a-z0-9+]+://", raw)
            raise ValueError(f"{scheme[0]} is not a scheme that libpq knows" if scheme else "")
        return raw


def check_dsn(dsn: str, name: str) -> None:
    """Raise `UnusableError`, with the option's *name*, if libpq cannot parse *dsn*.

    Imports psycopg.
    """
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as fault:
        # libpq quotes pieces of the string. In a malformed string any piece can hold the password.
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
