"""The recorder thread: gathers results and commits whatever has gathered. Under load batches grow
by themselves.
"""

import math
import threading
import time
from collections.abc import Sequence

import psycopg
import tenacity
from psycopg_pool import ConnectionPool

from webhookd import logs
from webhookd.core.answer import AnswerKind
from webhookd.core.model import Attempted, Delivery, GivenBack, Result
from webhookd.errors import first_line
from webhookd.metrics.counters import Metrics
from webhookd.metrics.counts import AttemptStatus, ObservedAttempt
from webhookd.postgres.record import RecordOutcome, ResultWriter
from webhookd.postgres.session import Connection
from webhookd.worker.circuits import LocalCircuits
from webhookd.worker.results import BATCH, ResultQueue
from webhookd.worker.wakeup import WakeupPipe

log = logs.Logger("webhookd.recorder")

GATHER_S = 0.04
DEFER_S = 0.003  # a lane is usually locked by another worker's claim, for a millisecond or two
DEFER_MOST_S = 0.25
STUCK_S = 1.0  # a record takes milliseconds


class Recorder:
    """Everything claimed and not yet recorded passes through here. The dispatcher enters
    deliveries, the thread ends them.
    """

    def __init__(
        self,
        pool: ConnectionPool[Connection],
        recorder: ResultWriter,
        results: ResultQueue,
        *,
        hints: LocalCircuits,
        metrics: Metrics,
        bell: WakeupPipe,
    ) -> None:
        self._results = results
        self._pool = pool
        self._recorder = recorder
        self._hints = hints
        self._metrics = metrics
        self._bell = bell
        self._lock = threading.Lock()
        self._outstanding = self._ended = 0
        self._deferred: list[Result] = []
        self._lock_rows_first = False
        self._defer_s = DEFER_S
        self._recording_since: float | None = None  # monotonic
        self._give_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhookd-recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def enter(self, count: int) -> None:
        """Note that *count* deliveries were claimed."""
        with self._lock:
            self._outstanding += count

    def give_back(self, delivery: Delivery) -> None:
        """Have *delivery* recorded as not attempted."""
        self._results.put(Result(delivery, GivenBack()), last=True)

    def settled(self) -> bool:
        """Return whether no finished exchange waits to be recorded for longer than one does under
        load.
        """
        since = self._recording_since
        stuck = since is not None and time.monotonic() - since >= STUCK_S
        return not stuck and not self._deferred and len(self._results) < BATCH

    def outstanding(self) -> int:
        """Return how many deliveries are claimed and not yet recorded."""
        return self._outstanding

    def ended(self) -> int:
        """Return how many deliveries have been claimed and are done with."""
        return self._ended

    def stop(self, *, timeout_s: float) -> bool:
        """Record what is there and end the thread; after *timeout_s* give up on a database that is
        away, and return False.
        """
        self._results.close()
        self._thread.join(timeout_s)
        recorded = not self._thread.is_alive()
        self._give_up.set()
        self._thread.join(0.5)
        return recorded

    def _run(self) -> None:
        while not (self._results.ended and not self._deferred):
            if self._give_up.is_set():
                return
            if batch := self._gather():
                self._recording_since = time.monotonic()
                self._record(batch)
                self._recording_since = None

    def _gather(self) -> list[Result]:
        """Return what was put off and what has come since; blocks for the first, and for 40 ms
        while there is more to come.
        """
        deferred, self._deferred = self._deferred, []
        if not deferred:
            return self._results.take(within_s=None, gather_s=GATHER_S)
        if self._results.ended:
            self._give_up.wait(self._defer_s)
        return deferred + self._results.take(within_s=self._defer_s, gather_s=GATHER_S)

    def _record(self, batch: Sequence[Result]) -> None:
        try:
            recorded = self._persist(batch)
        except psycopg.Error as error:
            self._record_one_by_one(batch, error)
            return
        except tenacity.RetryError:
            return  # told to leave while the database is away: the leases run out, and the rows are sent again
        self._deferred.extend(recorded.deferred)
        self._lock_rows_first = recorded.rows_held
        # The longer a lane stays locked the less often it is asked for; any progress starts afresh.
        progress = recorded.accepted or recorded.refused
        self._defer_s = DEFER_S if progress else min(DEFER_MOST_S, self._defer_s * 2)
        self._account(recorded)

    def _persist(self, batch: Sequence[Result]) -> RecordOutcome:
        """Record *batch*, for as long as it takes a database that is away to come back (or until
        told to give up).
        """
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=5),
            stop=tenacity.stop_when_event_set(self._give_up),
            sleep=tenacity.sleep_using_event(self._give_up),
            before_sleep=self._database_away,
        ):
            with attempt, self._pool.connection() as connection:
                recorded = self._recorder.record(
                    connection, batch, lock_rows_first=self._lock_rows_first
                )
        self._metrics.set_database_up(True)
        return recorded

    def _database_away(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number in (
            3,
            30,
            300,
        ):  # a deadlock or one cut connection is nobody's business
            self._metrics.set_database_up(False)
            log.warning("record waits for the database", error=first_line(error))

    def _record_one_by_one(self, batch: Sequence[Result], error: psycopg.Error) -> None:
        """One result that the database cannot take must not keep the others from being recorded."""
        if len(batch) > 1:
            for result in batch:
                self._record([result])
            return
        log.error(
            "result cannot be recorded; its lease will run out",
            delivery_id=batch[0].delivery.delivery_id,
            error=first_line(error),
        )
        self._leave(1)

    def _account(self, recorded: RecordOutcome) -> None:
        ended = len(recorded.accepted) + len(recorded.refused)
        if not ended:
            return
        self._hints.recorded(
            {result.delivery.webhook_id for result in recorded.accepted}, now=time.monotonic()
        )
        # What was given back unsent came too late for nobody.
        late = sum(not isinstance(result.outcome, GivenBack) for result in recorded.refused)
        self._metrics.recorded(len(recorded.accepted), refused=late)
        self._metrics.observe_attempts(
            [_observed(result) for result in recorded.accepted if _attempted(result)]
        )
        for webhook_id in recorded.tripped:
            self._metrics.circuit_opened(webhook_id)
            log.info("circuit opened", webhook_id=webhook_id)
        if late:
            log.warning("results refused by the fence", results=late)
        self._metrics.given_back(
            sum(isinstance(result.outcome, GivenBack) for result in recorded.accepted)
        )
        self._leave(ended)
        if recorded.next_look_s < math.inf:
            self._bell.wake(recorded.next_look_s)

    def _leave(self, count: int) -> None:
        with self._lock:
            self._outstanding -= count
            self._ended += count


def _attempted(result: Result) -> bool:
    return isinstance(result.outcome, Attempted)


def _observed(result: Result) -> ObservedAttempt:
    assert isinstance(result.outcome, Attempted)
    answer = result.outcome.answer
    if answer.kind is AnswerKind.TIMEOUT:
        status = AttemptStatus.TIMEOUT
    elif (
        answer.http_status is not None
        and 200 <= answer.http_status < 300
        and answer.kind is AnswerKind.RESPONSE
    ):
        status = AttemptStatus.DELIVERED
    else:
        status = AttemptStatus.FAILED
    return ObservedAttempt(result.delivery.webhook_id, status, answer.elapsed_s, answer)
