"""What senders have done and nobody has recorded yet."""

import collections
import threading

from webhookd.core.model import Result

BATCH = 200


class ResultQueue:
    """Hands results from many senders to the recorder, a batch at a time.

    The recorder is woken twice a batch, not for each result: each wakeup would take the
    interpreter's lock from a sender.
    """

    def __init__(self) -> None:
        self._results: collections.deque[Result] = collections.deque()
        self._some, self._ripe = threading.Event(), threading.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._results)

    @property
    def ended(self) -> bool:
        """Return whether there is nothing left, and nothing to come."""
        return self._closed and not self._results

    def put(self, result: Result, *, last: bool = False) -> None:
        """Add *result*; *last* says that none is to be expected soon. Never blocks; any thread may
        call it.
        """
        self._results.append(result)
        # After the append: `take` clears both and then empties the queue.
        if last or len(self._results) >= BATCH:
            self._ripe.set()
        if not self._some.is_set():
            self._some.set()

    def take(self, *, within_s: float | None, gather_s: float) -> list[Result]:
        """Return at most a batch, maybe nothing. For one thread.

        Blocks for *within_s* until there is a first result (None: for as long as it takes), then
        for *gather_s* until a batch is full or has its last; for nothing once it is closed.
        """
        if self._some.wait(within_s):
            self._ripe.wait(gather_s)
        if not self._closed:
            self._some.clear()
            self._ripe.clear()
        taken: list[Result] = []
        while self._results and len(taken) < BATCH:
            taken.append(self._results.popleft())
        if self._results:
            self._some.set()
            if len(self._results) >= BATCH:
                self._ripe.set()
        return taken

    def close(self) -> None:
        """Have `take` wait no more."""
        self._closed = True
        self._some.set()
        self._ripe.set()
