"""Array literals: one parameter holds a whole column of a batch.

They are cheaper to send than lists, and a batch of any size is the same prepared statement.
"""

from collections.abc import Iterable
from sys import getsizeof

from webhookd.cache import ByteCache

# Statuses, and the details that most attempts share.
_quoted_texts: ByteCache[str, str] = ByteCache(1 << 20)


def number_array(values: Iterable[float | int | None]) -> str:
    """Return *values* as PostgreSQL's array literal."""
    # One repr for the whole list: a record sends nine arrays of two hundred values.
    return "{" + repr(list(values))[1:-1].replace("None", "NULL") + "}"


_FLAGS = {True: "t", False: "f", None: "NULL"}


def flag_array(values: Iterable[bool | None]) -> str:
    """Return *values* as PostgreSQL's array literal."""
    return "{" + ",".join([_FLAGS[value] for value in values]) + "}"


def text_array(values: Iterable[str | None]) -> str:
    """Return *values* as PostgreSQL's array literal."""
    return "{" + ",".join(["NULL" if value is None else _quoted(value) for value in values]) + "}"


def _quoted(text: str) -> str:
    quoted = _quoted_texts.get(text)
    if quoted is None:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        quoted = f'"{escaped}"'
        _quoted_texts.put(text, quoted, getsizeof(text) + getsizeof(quoted))
    return quoted
