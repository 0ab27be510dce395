"""How the other threads of a worker (and signal handlers) wake its dispatcher."""

import collections
import os
from contextlib import suppress
from enum import StrEnum


class WakeReason(StrEnum):
    ROOM = "room"  # a sender has become free
    LOST = "lost"  # leases of a dead worker were released
    SWEEP = "sweep"  # rows may have been missed, or no worker has the duty to be notified
    UNREGISTERED = "unregistered"  # this worker's row has vanished
    LISTENER = "listener"  # the LISTEN connection is open, or could not be opened
    STOP = "stop"


class WakeupPipe:
    """Any thread or signal handler may call `wake`; one thread waits for `fileno` and drains it."""

    def __init__(self) -> None:
        self._reasons: collections.deque[WakeReason | float] = collections.deque()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def wake(self, reason: WakeReason | float) -> None:
        """Leave *reason*, or the seconds after which a lane becomes runnable, and wake the
        dispatcher. Never blocks.
        """
        self._reasons.append(reason)
        with suppress(BlockingIOError):  # full: thousands of wakeups wait to be read already
            os.write(self._write, b".")

    def drain(self) -> list[WakeReason | float]:
        """Return the reasons left since the last call."""
        # The pipe first: a reason that comes after this read makes it readable again.
        with suppress(BlockingIOError):
            os.read(self._read, 65536)
        reasons = []
        while self._reasons:
            reasons.append(self._reasons.popleft())
        return reasons
