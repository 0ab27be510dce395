"""Waiting for something that other processes or threads do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(predicate: Callable[[], T], timeout_s: float = 20.0, *, what: str = "") -> T:
    """Return *predicate*'s first true result. Blocks; raise `AssertionError` once *timeout_s* has passed without one.

    *timeout_s* guards against a hang and measures nothing: the machine may be slow.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or predicate} (last result: {result!r})")
        time.sleep(0.01)
