"""What a worker hears over the lifeline pipe: which siblings died, and the supervisor's end."""

import os
import queue
import threading
from collections.abc import Callable
from uuid import UUID

import psycopg

from webhookd import logs
from webhookd.lifeline import Lifeline, parse_death_line
from webhookd.worker.chores.chore import Pool
from webhookd.worker.chores.reaper import Reaper

log = logs.Logger("webhookd.worker")

RELEASE_AGAIN_S = 1.0


class LifelineReader:
    """Reads *lifeline* in a thread, from the first moment on: a worker whose supervisor is gone
    must let go of its port even while it boots.

    *lost* are the incarnations of dead siblings whose leases are to be released. Once the
    supervisor is gone, *ended* is True and `on_end` is called.
    """

    def __init__(self, lifeline: Lifeline, on_end: Callable[[], None]) -> None:
        self.lost: queue.SimpleQueue[UUID] = queue.SimpleQueue()
        self.ended = False
        self.on_end = on_end
        self._lifeline = lifeline

    def start(self) -> None:
        threading.Thread(target=self._read, name="webhookd-lifeline", daemon=True).start()

    def _read(self) -> None:
        for incarnation in self._lifeline.dead_siblings:
            self.lost.put(incarnation)
        with os.fdopen(self._lifeline.lifeline_fd, "rb", closefd=False) as lines:
            for line in lines:
                try:
                    self.lost.put(parse_death_line(line))
                except ValueError as error:
                    log.warning("lifeline", error=str(error))
        log.warning("supervisor is gone")
        # The next supervisor wants to bind this port: hold it no longer than necessary.
        self._lifeline.metrics_socket.close()
        # Before on_end is read: code that replaces on_end looks at this afterwards, so that one of
        # the two sees the end.
        self.ended = True
        self.on_end()


class SiblingReleaser:
    """Releases the leases of dead siblings at once, in a thread: they need not expire."""

    def __init__(self, lost: queue.SimpleQueue[UUID], reaper: Reaper, pool: Pool) -> None:
        self._lost = lost
        self._reaper = reaper
        self._pool = pool

    def start(self) -> None:
        threading.Thread(target=self._run, name="webhookd-releases", daemon=True).start()

    def _run(self) -> None:
        while True:
            incarnation = self._lost.get()
            # Twice: a claim whose COMMIT the dead worker had sent may take effect a moment after
            # its leases were released.
            again = threading.Timer(RELEASE_AGAIN_S, self._release, args=[incarnation])
            again.daemon = True
            again.start()
            self._release(incarnation)

    def _release(self, incarnation: UUID) -> None:
        try:
            self._reaper.release(self._pool, incarnation)
        except psycopg.Error as error:
            log.warning(
                "leases of a dead worker not released; they expire",
                incarnation=str(incarnation),
                error=str(error),
            )
