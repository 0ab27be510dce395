"""Planted faults: a statement with one step of the protocol left out."""

import re
from dataclasses import dataclass


def replaced(text: str, old: str, new: str) -> str:
    """Return *text* with *old* (whatever its white space) replaced.

    Raise `LookupError` for a fault that no longer fits the text: tests that expect an
    `AssertionError` of it must not pass.
    """
    pattern = r"\s+".join(re.escape(word) for word in old.split())
    changed, count = re.subn(pattern, lambda match: new, text)
    if not count:
        raise LookupError(f"the statement no longer contains: {old}")
    return changed


@dataclass(frozen=True, slots=True)
class Fault:
    """One step of the protocol left out: *old* in the statement *name* becomes *new*."""

    name: str
    old: str
    new: str

    def __call__(self, name: str, text: str) -> str:
        return replaced(text, self.old, self.new) if name == self.name else text
