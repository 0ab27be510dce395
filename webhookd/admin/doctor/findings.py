"""What a check has to say."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is. A note is worth knowing and nothing is wrong."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def wrong(self) -> bool:
        return self in (Severity.WARNING, Severity.ERROR)


@dataclass(frozen=True, slots=True)
class Finding:
    """*detail*: what is so, and what it means. *run*: the command that fixes it. *name*: the
    check's, set by `examine`.
    """

    severity: Severity
    detail: str = ""
    run: str | None = None
    name: str = ""


def error(detail: str, run: str | None = None) -> Finding:
    """Deliveries are late or lost, or webhookd does not run."""
    return Finding(Severity.ERROR, detail, run)


def warning(detail: str, run: str | None = None) -> Finding:
    """Something costs time or will be an error one day."""
    return Finding(Severity.WARNING, detail, run)


def note(detail: str, run: str | None = None) -> Finding:
    return Finding(Severity.NOTE, detail, run)


def ok(detail: str) -> Finding:
    return Finding(Severity.OK, detail)
