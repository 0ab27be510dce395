"""The results that are not recorded yet."""

import collections
import threading

from webhookd.core.model import Result

BATCH = 200


class ResultQueue:
    """Hands results from many senders to the recorder, a batch at a time.

    The recorder is woken twice for each batch (it has begun; it is complete), not for each result:
    each wakeup would take the interpreter's lock from a sender.
    """

    def __init__(self) -> None:
        self._results: collections.deque[Result] = collections.deque()
        self._has_some = threading.Event()
        self._is_complete = threading.Event()  # a batch is full, or its last result has come
        self._closed = False

    def __len__(self) -> int:
        return len(self._results)

    @property
    def ended(self) -> bool:
        """Return whether it is closed and empty."""
        return self._closed and not self._results

    def put(self, result: Result, *, last: bool = False) -> None:
        """Add *result*; *last*: no other is expected soon. Never blocks; any thread may call it."""
        # Append first, then set. `take` clears the events first and then reads the queue: so a
        # result is either taken, or its event is still set for the next call. In the other order a
        # result could lie there unnoticed.
        self._results.append(result)
        if last or len(self._results) >= BATCH:
            self._is_complete.set()
        if not self._has_some.is_set():
            self._has_some.set()

    def take(self, *, within_s: float | None, gather_s: float) -> list[Result]:
        """Return at most a batch, maybe nothing. Only one thread may call it.

        Blocks for *within_s* until there is a result (None: without limit), then for *gather_s*
        until the batch is complete. Does not block once it is closed.
        """
        if self._has_some.wait(within_s):
            self._is_complete.wait(gather_s)
        if not self._closed:
            self._has_some.clear()
            self._is_complete.clear()
        taken: list[Result] = []
        while self._results and len(taken) < BATCH:
            taken.append(self._results.popleft())
        # What is left was announced before the events were cleared: announce it again.
        if self._results:
            self._has_some.set()
            if len(self._results) >= BATCH:
                self._is_complete.set()
        return taken

    def close(self) -> None:
        """Let `take` return at once from now on."""
        self._closed = True
        self._has_some.set()
        self._is_complete.set()
