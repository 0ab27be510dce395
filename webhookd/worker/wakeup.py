"""How the other threads of a worker (and signal handlers) wake its dispatcher."""

import collections
import os
from contextlib import suppress
from enum import StrEnum


class WakeReason(StrEnum):
    ROOM = "room"  # a sender has become free
    LOST = "lost"  # leases of a dead worker were released
    SWEEP = "sweep"  # something may have been missed, or nobody keeps the watch
    UNREGISTERED = "unregistered"  # this worker's row has vanished
    LISTENER = "listener"  # it listens, or has failed to
    STOP = "stop"


class WakeupPipe:
    """Rung from any thread or signal handler; one thread waits for `fileno` and answers."""

    def __init__(self) -> None:
        self._news: collections.deque[WakeReason | float] = collections.deque()
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def ring(self, news: WakeReason | float) -> None:
        """Leave *news*, or the seconds after which a lane becomes runnable, and wake the
        dispatcher. Never blocks.
        """
        self._news.append(news)
        with suppress(BlockingIOError):  # full: a thousand rings wait to be heard already
            os.write(self._write, b".")

    def answer(self) -> list[WakeReason | float]:
        """Return what was left since the last call."""
        # The pipe first: news that comes after this read rings again.
        with suppress(BlockingIOError):
            os.read(self._read, 65536)
        news = []
        while self._news:
            news.append(self._news.popleft())
        return news
