"""The thread that runs a worker's chores."""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import psycopg
from psycopg_pool import PoolTimeout

from webhookd import logs
from webhookd.core.backoff import GrowingPause
from webhookd.errors import first_line
from webhookd.metrics.counters import Metrics
from webhookd.worker.chores.beat import Beat
from webhookd.worker.chores.chore import TURN_S, Chore, Pool

log = logs.Logger("webhookd.chores")

FIRST_TURN_S = 0.5  # the dispatcher registers this worker first
# A chore that fails in every turn is logged in growing pauses.
REPORT_PAUSE = GrowingPause(first_s=TURN_S, max_s=300.0)


class ChoreRunner:
    """Runs *chores* in their order, each turn those that are due, after a sign of life.

    A chore that fails is logged, and the others run as if it had not. A database that cannot be
    reached ends the turn instead: dispatcher and recorder report it, and *metrics* show no queue.
    *clock* returns monotonic seconds.
    """

    def __init__(
        self,
        pool: Pool,
        beat: Beat,
        chores: Sequence[Chore],
        metrics: Metrics,
        *,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._beat = beat
        self._chores = chores
        self._metrics = metrics
        self._stop = stop
        self._clock = clock
        self._intervals_s = {chore.name: chore.interval_s for chore in chores if chore.shared}
        self._due_at = {chore.name: 0.0 for chore in chores}  # monotonic; not of shared ones
        self._reports: dict[str, _Reports] = {}
        self._thread = threading.Thread(target=self._run, name="webhookd-chores", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Set *stop* and wait for half a second: no longer, should a statement be under way."""
        self._stop.set()
        self._thread.join(0.5)

    def turn(self) -> None:
        """Give a sign of life and run what is due. Blocks for as long as that takes; raises
        nothing.
        """
        granted: frozenset[str] = frozenset()

        def beat() -> None:
            nonlocal granted
            granted = self._beat.run(self._pool, self._intervals_s)

        if not self._attempt(self._beat.name, beat):
            return
        for chore in self._chores:
            if not self._is_due(chore, granted):
                continue
            if not self._attempt(chore.name, partial(chore.run, self._pool)):
                return

    def _run(self) -> None:
        pause_s = FIRST_TURN_S
        while not self._stop.wait(pause_s):
            pause_s = TURN_S
            self.turn()

    def _is_due(self, chore: Chore, granted: frozenset[str]) -> bool:
        if chore.shared:
            return chore.name in granted
        now = self._clock()
        if now < self._due_at[chore.name]:
            return False
        self._due_at[chore.name] = now + chore.interval_s
        return True

    def _attempt(self, name: str, run: Callable[[], object]) -> bool:
        """Run one chore. Return False where the database is away: the others could not run
        either, and each would wait for a connection in vain.
        """
        try:
            run()
        except PoolTimeout as error:
            self._metrics.set_queue(None)
            log.debug("chores wait for the database", error=first_line(error))
            return False
        except psycopg.OperationalError as error:
            if _is_lost_connection(error):
                # Not the end of the turn: if this statement ends its own connection each time, the
                # others must still run.
                self._metrics.set_queue(None)
                log.debug("chore lost its connection", chore=name, error=first_line(error))
            else:
                self._report(name, error)
        except Exception as error:
            self._report(name, error)
        else:
            self._reports.pop(name, None)
        return True

    def _report(self, name: str, error: Exception) -> None:
        reports = self._reports.setdefault(name, _Reports())
        if not reports.is_due(self._clock()):
            return
        if isinstance(error, psycopg.Error):
            log.warning("chore failed", chore=name, error=first_line(error))
        else:  # a mistake in the code: say where
            log.exception("chore failed", chore=name, error=str(error))


class _Reports:
    """When the failures of one chore are logged."""

    def __init__(self) -> None:
        self._pause = REPORT_PAUSE
        self._next_at = 0.0  # monotonic

    def is_due(self, now: float) -> bool:
        if now < self._next_at:
            return False
        self._next_at = now + self._pause.seconds
        self._pause = self._pause.longer()
        return True


def _is_lost_connection(error: psycopg.OperationalError) -> bool:
    """Return whether *error* says that the connection is lost (class 08, or no state) or that
    the server shuts down (57P), and not what is wrong with the statement.
    """
    state = error.sqlstate
    return state is None or state.startswith(("08", "57P"))
