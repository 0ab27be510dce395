"""Waiting for what other processes or threads do."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    predicate: Callable[[], T], timeout_s: float = 20.0, *, what: str = "", every_s: float = 0.01
) -> T:
    """Return the first true result of *predicate*, called every *every_s* seconds. Blocks.

    Raise `AssertionError` if there is none within *timeout_s*. That ends a test that hangs; it does
    not measure speed, since the machine may be slow.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"not within {timeout_s:g} s: {what or predicate} (last result: {result!r})"
            )
        time.sleep(every_s)
