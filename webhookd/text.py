"""Values as text for people: on one line, and safe for a terminal."""

from datetime import UTC, datetime


def shown(value: object) -> str:
    """Return *value* as the text of a table's cell."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.6g}"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        case _:
            return printable(str(value))


def duration(seconds: float | None) -> str:
    """Return a duration with about two digits: `0.8 s`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds is None:
        return "-"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if abs(seconds) >= 10 else f"{seconds:.1f} s"


def printable(text: str) -> str:
    """Return *text* with all unprintable characters escaped, so that text from outside cannot
    control a terminal.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
