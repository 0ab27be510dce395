"""The recorder thread: gathers results and commits what has gathered, many in one transaction.

While one transaction runs, the next batch gathers: so batches grow with the load.
"""

import math
import threading
import time
from collections.abc import Sequence

import psycopg
import tenacity
from psycopg_pool import ConnectionPool

from webhookd import logs
from webhookd.core.answer import AnswerKind, is_success
from webhookd.core.backoff import GrowingPause
from webhookd.core.model import GONE_REASON, Attempted, Delivery, GivenBack, Result
from webhookd.errors import first_line
from webhookd.metrics.counters import Metrics, OncePerPeriod
from webhookd.metrics.counts import AttemptStatus, ObservedAttempt
from webhookd.metrics.declarations import SHORTAGES
from webhookd.postgres.record import RecordOutcome, ResultWriter
from webhookd.postgres.session import Connection
from webhookd.worker.circuits import LocalCircuits
from webhookd.worker.results import BATCH, ResultQueue
from webhookd.worker.wakeup import WakeupPipe

log = logs.Logger("webhookd.recorder")

SHORTAGE_LOGGED_EVERY_S = 60.0  # of each kind

GATHER_S = 0.04
# A lane is usually locked by another worker's claim, for a millisecond or two.
DEFER_PAUSE = GrowingPause(first_s=0.003, max_s=0.25)
STUCK_S = 1.0  # a record takes milliseconds
# Which tries in a row are logged. A deadlock or one connection that was cut is not worth a line.
LOGGED_TRIES = (3, 30, 300)


class Recorder:
    """Records results, and counts what is outstanding: claimed and not yet recorded.

    The dispatcher adds each claim with `note_claimed`, the thread subtracts what it has recorded.
    Every claimed delivery must come back as a result, or a worker would drain until its time is up.
    """

    def __init__(
        self,
        pool: ConnectionPool[Connection],
        writer: ResultWriter,
        results: ResultQueue,
        *,
        circuits: LocalCircuits,
        metrics: Metrics,
        wakeup: WakeupPipe,
    ) -> None:
        self._results = results
        self._pool = pool
        self._writer = writer
        self._circuits = circuits
        self._metrics = metrics
        self._shortages_logged = OncePerPeriod(SHORTAGE_LOGGED_EVERY_S)
        self._wakeup = wakeup
        self._lock = threading.Lock()  # guards the two counts below
        self._outstanding = self._completed = 0
        self._deferred: list[Result] = []
        self._lock_rows_first = False
        self._defer_pause = DEFER_PAUSE
        self._recording_since: float | None = None  # monotonic
        self._give_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhookd-recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def note_claimed(self, count: int) -> None:
        """Add *count* claimed deliveries to those outstanding. Before the first of them is sent:
        a result could be recorded first, and the count would fall below zero.
        """
        with self._lock:
            self._outstanding += count

    def give_back(self, delivery: Delivery) -> None:
        """Have *delivery* recorded as returned without an attempt. Never blocks."""
        self._results.put(Result(delivery, GivenBack()), last=True)

    def is_caught_up(self) -> bool:
        """Return whether no result has waited for longer than results do under load.

        Not so while the database is away, and until all that waited then is recorded. Any thread
        may ask.
        """
        since = self._recording_since
        stuck = since is not None and time.monotonic() - since >= STUCK_S
        return not stuck and not self._deferred and len(self._results) < BATCH

    def outstanding(self) -> int:
        """Return how many deliveries are claimed and not yet recorded."""
        return self._outstanding

    def completed(self) -> int:
        """Return how many claimed deliveries this worker is done with since its start."""
        return self._completed

    def stop(self, *, timeout_s: float) -> bool:
        """Record what is there and end the thread. Return whether all was recorded.

        Blocks for *timeout_s* and half a second at most: then it gives up on a database that is
        away.
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
        """Return the deferred results and those that have come since.

        Blocks until there is one, and then for 40 ms while more are expected. With deferred results
        it blocks no longer than they are to wait.
        """
        deferred, self._deferred = self._deferred, []
        if not deferred:
            return self._results.take(within_s=None, gather_s=GATHER_S)
        defer_s = self._defer_pause.seconds
        if self._results.ended:
            # A closed queue does not block, and without this pause the loop would spin.
            self._give_up.wait(defer_s)
        return deferred + self._results.take(within_s=defer_s, gather_s=GATHER_S)

    def _record(self, batch: Sequence[Result]) -> None:
        try:
            recorded = self._persist(batch)
        except psycopg.Error as error:
            self._record_one_by_one(batch, error)
            return
        except tenacity.RetryError:
            # Told to leave while the database is away: the leases expire, and the rows are sent
            # again.
            return
        self._deferred.extend(recorded.deferred)
        self._lock_rows_first = recorded.rows_held
        # The longer a lane stays locked, the less often it is tried. Any progress starts from the
        # first pause again.
        progress = recorded.accepted or recorded.refused
        self._defer_pause = DEFER_PAUSE if progress else self._defer_pause.longer()
        self._account(recorded)

    def _persist(self, batch: Sequence[Result]) -> RecordOutcome:
        """Record *batch*. Blocks until a database that is away is back; raises `RetryError` if told
        to give up first, and `psycopg.Error` for what no retry can cure.
        """
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(psycopg.OperationalError),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=5),
            stop=tenacity.stop_when_event_set(self._give_up),
            sleep=tenacity.sleep_using_event(self._give_up),
            before_sleep=self._database_away,
        ):
            with attempt, self._pool.connection() as connection:
                recorded = self._writer.record(
                    connection, batch, lock_rows_first=self._lock_rows_first
                )
        self._metrics.set_database_up(True)
        return recorded

    def _database_away(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if state.attempt_number in LOGGED_TRIES:
            self._metrics.set_database_up(False)
            log.warning("record waits for the database", error=first_line(error))

    def _record_one_by_one(self, batch: Sequence[Result], error: psycopg.Error) -> None:
        """Record each result of *batch* by itself: one that the database rejects must not keep the
        others from being recorded.
        """
        if len(batch) > 1:
            for result in batch:
                self._record([result])
            return
        log.error(
            "result cannot be recorded; its lease will expire",
            delivery_id=batch[0].delivery.delivery_id,
            error=first_line(error),
        )
        self._complete(1)

    def _account(self, recorded: RecordOutcome) -> None:
        ended = len(recorded.accepted) + len(recorded.refused)
        if not ended:
            return
        self._circuits.mark_recorded(
            {result.delivery.webhook_id for result in recorded.accepted}, now=time.monotonic()
        )
        # Only attempts were too late: the owner of a delivery that was given back did not send it.
        late = sum(not isinstance(result.outcome, GivenBack) for result in recorded.refused)
        self._metrics.recorded(len(recorded.accepted), refused=late)
        self._metrics.observe_attempts(
            [_observed(result) for result in recorded.accepted if _attempted(result)]
        )
        for webhook_id in recorded.tripped:
            self._metrics.circuit_opened(webhook_id)
            log.info("circuit opened", webhook_id=webhook_id)
        for webhook_id in recorded.disabled:
            self._metrics.webhook_disabled("gone")
            log.warning("webhook disabled", webhook_id=webhook_id, reason=GONE_REASON)
        if late:
            log.warning("results refused by the fence", results=late)
        self._account_returned(recorded.accepted)
        self._complete(ended)
        if recorded.next_look_s < math.inf:
            self._wakeup.wake(recorded.next_look_s)

    def _account_returned(self, accepted: Sequence[Result]) -> None:
        returned = [
            (result.delivery.webhook_id, result.outcome)
            for result in accepted
            if isinstance(result.outcome, GivenBack)
        ]
        self._metrics.given_back(len(returned))
        for webhook_id, outcome in returned:
            kind = outcome.shortage
            if kind is None:
                continue
            self._metrics.count(SHORTAGES, label=kind)
            if self._shortages_logged.admits(kind, now=time.monotonic()):
                log.warning(
                    "deliveries given back for want of something",
                    kind=kind,
                    reason=outcome.reason,
                    webhook_id=webhook_id,
                )

    def _complete(self, count: int) -> None:
        with self._lock:
            self._outstanding -= count
            self._completed += count


def _attempted(result: Result) -> bool:
    return isinstance(result.outcome, Attempted)


def _observed(result: Result) -> ObservedAttempt:
    assert isinstance(result.outcome, Attempted)
    answer = result.outcome.answer
    if answer.kind is AnswerKind.TIMEOUT:
        status = AttemptStatus.TIMEOUT
    elif is_success(answer.http_status) and answer.kind is AnswerKind.RESPONSE:
        status = AttemptStatus.DELIVERED
    else:
        status = AttemptStatus.FAILED
    return ObservedAttempt(result.delivery.webhook_id, status, answer.elapsed_s, answer)
