"""A worker process: puts the parts together after the fork, runs the dispatcher in the main thread,
drains, leaves.
"""

import gc
import os
import queue
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from functools import partial
from pathlib import Path
from types import FrameType
from uuid import UUID

import psycopg

from webhookd import logs
from webhookd.config.load import Config
from webhookd.errors import UnusableError, first_line
from webhookd.lifeline import ExitCode, Lifeline, parse_lost_line
from webhookd.metrics.counters import Metrics
from webhookd.metrics.discovery import TargetGroups, address_of
from webhookd.metrics.endpoint import Endpoint
from webhookd.postgres import session
from webhookd.postgres.claim import Claimer, defaults_of
from webhookd.postgres.record import ResultWriter
from webhookd.postgres.retention import Keep, Retention
from webhookd.schema import migrate
from webhookd.transport.background import in_background
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.circuits import LocalCircuits
from webhookd.worker.dispatcher import Dispatcher
from webhookd.worker.events import Events
from webhookd.worker.housekeeping import Housekeeping
from webhookd.worker.listener import Listener
from webhookd.worker.recorder import Recorder
from webhookd.worker.results import ResultQueue
from webhookd.worker.senders import SenderPool
from webhookd.worker.wakeup import WakeupPipe
from webhookd.worker.watch import NotifyDuty

log = logs.Logger("webhookd.worker")

RELEASE_AGAIN_S = 1.0
UNANSWERED_S = 2.0  # so long a worker that is to leave waits for an answer of the database
# Values by the hundred come with each claim and die by themselves: to look them through for cycles
# as often as Python does by default finds nothing.
GARBAGE_THRESHOLDS = (10_000, 20, 20)
POOL_SIZE = 2  # with the LISTEN connection that makes three a worker


def run(config: Config, seat: Lifeline) -> int:
    """Work until told to stop; return the exit code. The whole life of a worker process."""
    threading.excepthook = _end_with_thread
    gc.freeze()  # what the supervisor made: shared memory stays shared
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    stop = threading.Event()
    _on_signals(stop.set)
    lifeline = _Lifeline(seat, stop)
    threading.Thread(target=lifeline.read, name="webhookd-lifeline", daemon=True).start()
    metrics = Metrics(seat.name, max_webhooks=config.metrics_webhooks)
    state = _Booting(stop)
    session.attend_waits(lambda waited_s: _attend(seat, state, waited_s))
    endpoint = Endpoint(
        seat.metrics_socket, metrics, alive=state.alive, ready=state.ready, targets=state.targets
    )
    endpoint.start()
    try:
        installation = _boot(config, seat, stop)
        if installation is None:
            return ExitCode.DRAINED
        worker = _Worker(config, seat, metrics, installation, lifeline)
        metrics.set_health_check(worker.dispatcher.healthy)
        state.worker = worker
        return worker.run(stop)
    except UnusableError as error:
        seat.refuse(str(error))
        return ExitCode.UNUSABLE
    finally:
        endpoint.stop()


class _Lifeline:
    """The supervisor's pipe, read from the first moment on: an orphan must let go of its port even
    while it boots.
    """

    def __init__(self, seat: Lifeline, stop: threading.Event) -> None:
        self.lost: queue.SimpleQueue[UUID] = (
            queue.SimpleQueue()
        )  # dead siblings whose leases are to be released
        self._seat = seat
        self.ended = False
        self.on_end: Callable[[], None] = stop.set

    def read(self) -> None:
        """Read until the supervisor is gone."""
        for incarnation in self._seat.lost:
            self.lost.put(incarnation)
        with os.fdopen(self._seat.lifeline_fd, "rb", closefd=False) as lines:
            for line in lines:
                try:
                    self.lost.put(parse_lost_line(line))
                except ValueError as error:
                    log.warning("lifeline", error=str(error))
        log.warning("supervisor is gone")
        # An orphan holds its port no longer than it must: the next supervisor wants it.
        self._seat.metrics_socket.close()
        self.ended = True  # before on_end is read: whoever changes that looks here afterwards
        self.on_end()


class _Booting:
    """What /healthz and /readyz say; the worker is there once the schema has been checked."""

    def __init__(self, stop: threading.Event) -> None:
        self.worker: _Worker | None = None
        self._stop = stop

    def alive(self) -> tuple[bool, str]:
        return (True, "alive")

    def ready(self) -> tuple[bool, str]:
        if self._stop.is_set():
            return (False, "draining")
        if self.worker is None:
            return (False, "waiting for the database")
        return (
            (True, "ready")
            if self.worker.dispatcher.ready()
            else (False, "the database does not answer")
        )

    def stopping(self) -> bool:
        return self._stop.is_set() or (
            self.worker is not None and self.worker.dispatcher.stopped_at is not None
        )

    def targets(self) -> TargetGroups | None:
        return self.worker.housekeeping.targets if self.worker else None


def _attend(seat: Lifeline, state: _Booting, waited_s: float) -> None:
    """What the main thread does while the database does not answer."""
    seat.beat()
    if waited_s > UNANSWERED_S and state.stopping():
        raise session.UnansweredError(
            f"no answer within {UNANSWERED_S:g} s, and this worker is to leave"
        )


def _boot(config: Config, seat: Lifeline, stop: threading.Event) -> str | None:
    """Wait for the database and check its schema; return the installation's name in webhook-ids,
    None if told to stop first.

    A database that is away is waited for; a schema that does not fit raises `UnusableError`.
    """
    assert config.dsn is not None
    failures = 0
    while not stop.is_set():
        seat.beat()
        try:
            asked = in_background(
                partial(_installation, config.dsn, seat.name), name="webhookd-boot"
            )
            while not asked.done() and not stop.is_set():
                seat.beat()  # connecting may take longer than a silent worker lives
                futures.wait([asked], timeout=0.1)
            return asked.result() if asked.done() else None
        except psycopg.ProgrammingError as error:
            raise UnusableError(f"the database cannot be used: {first_line(error)}") from error
        except psycopg.OperationalError as error:
            failures += 1
            if failures == 1:
                log.warning("database unreachable", error=first_line(error))
            stop.wait(min(2.0, 0.1 * 2.0**failures) * random.uniform(0.5, 1.0))
    return None


def _installation(dsn: str, name: str) -> str:
    with session.connect(dsn, application_name=f"webhookd/{name}/boot") as connection:
        migrate.check(connection)
        row = connection.execute("SELECT installation_id FROM pggit.installation").fetchone()
        assert row is not None
        return f"wh_{row[0].hex[:16]}"


class _Worker:
    """The parts of a worker, wired."""

    def __init__(
        self,
        config: Config,
        seat: Lifeline,
        metrics: Metrics,
        installation: str,
        lifeline: _Lifeline,
    ) -> None:
        assert config.dsn is not None
        self._lifeline = lifeline
        self._config = config
        self._seat = seat
        self._worn = False
        defaults = defaults_of(config)
        # Nobody beats while a connection is waited for.
        pause_s = min(2.0, config.heartbeat_timeout / 3)
        self._pool = session.open_pool(
            config.dsn,
            application_name=f"webhookd/{seat.name}/work",
            size=POOL_SIZE,
            timeout_s=pause_s,
        )
        recorder = ResultWriter(worker_id=seat.name, defaults=defaults)
        hints, bell = LocalCircuits(), WakeupPipe()
        egress = Egress(config.allow_http, config.allow_network)
        self._transport = Transport(egress, connections_per_origin=config.threads)
        results = ResultQueue()
        courier = AttemptRunner(self._transport, hints, installation=installation)
        self._senders = SenderPool(courier, results, max_threads=config.threads, wakeup=bell)
        self.recording = Recorder(
            self._pool,
            recorder,
            results,
            hints=hints,
            metrics=metrics,
            bell=bell,
        )
        listener = Listener(
            config.listen_dsn or config.dsn, application_name=f"webhookd/{seat.name}/listen"
        )
        duty = NotifyDuty(
            listener,
            worker_id=seat.name,
            incarnation=seat.incarnation,
            metrics_address=address_of(seat.metrics_socket),
        )
        self.dispatcher = Dispatcher(
            self._pool,
            Claimer(worker_id=seat.name, incarnation=seat.incarnation, defaults=defaults),
            Events(duty, bell, metrics),
            self._senders,
            self.recording,
            metrics=metrics,
            beat=self._beat,
        )
        self.housekeeping = Housekeeping(
            self._pool,
            recorder,
            Retention(Keep.of(config), removed=metrics.removed),
            worker_id=seat.name,
            incarnation=seat.incarnation,
            metrics=metrics,
            recorded=self.recording.settled,
            bell=bell,
        )

    def run(self, stop: threading.Event) -> int:
        """Deliver until *stop*, then drain. Returns the exit code."""
        self.recording.start()
        self.housekeeping.start()
        threading.Thread(target=self._release_lost, name="webhookd-releases", daemon=True).start()
        _on_signals(self.dispatcher.stop)
        self._lifeline.on_end = self.dispatcher.stop
        if stop.is_set() or self._lifeline.ended:
            self.dispatcher.stop()
        log.info("worker ready")
        self.dispatcher.run()
        return self._drain()

    def _beat(self) -> None:
        """Tell the supervisor that the loop turns, and whether this worker has passed a limit.

        It works on until the supervisor tells it to drain: workers are replaced one at a time.
        """
        if not self._worn:
            rss, deliveries = _resident_bytes(), self.recording.ended()
            self._worn = (
                0 < self._config.worker_max_rss < rss
                or 0 < self._config.worker_max_deliveries <= deliveries
            )
            if self._worn:
                log.info(
                    "worker has passed its limit",
                    rss_mb=rss >> 20,
                    deliveries=deliveries,
                )
        self._seat.beat(worn=self._worn)

    def _drain(self) -> int:
        """Finish what is in flight within the drain timeout, give back the rest, leave."""
        log.info("worker drains", outstanding=self.recording.outstanding())
        assert self.dispatcher.stopped_at is not None
        deadline = self.dispatcher.stopped_at + self._config.drain_timeout
        self._pool.timeout = (
            0.5  # a database that is away must not keep it longer than the supervisor waits
        )
        try:
            self.dispatcher.withdraw()
        except psycopg.Error as error:
            log.warning("drains without the database", error=str(error))
        while self.recording.outstanding() > 0 and time.monotonic() < deadline:
            self._seat.beat()
            time.sleep(0.01)
        unfinished = self._senders.backlog()
        code = ExitCode.DRAINED
        recorded = self.recording.stop(timeout_s=max(0.5, deadline - time.monotonic()))
        self.housekeeping.stop()
        try:
            if not recorded:
                raise psycopg.OperationalError(
                    "results could not be recorded; their leases run out"
                )
            self.housekeeping.publish_activity()
            if unfinished:
                # The exchanges that are still under way: their rows are released like those of a
                # worker that died.
                self.housekeeping.release(self._seat.incarnation)
            self.dispatcher.leave()
        except psycopg.Error as error:
            log.warning("left without the database", error=str(error))
        self._pool.close(timeout=1.0)
        self._transport.close()
        log.info("worker drained", unfinished=unfinished)
        return code

    def _release_lost(self) -> None:
        while True:
            self._release(self._lifeline.lost.get())

    def _release(self, incarnation: UUID, *, again: bool = True) -> None:
        if again:
            # A claim whose COMMIT the dead worker had sent may take effect a moment after its
            # leases were released.
            timer = threading.Timer(
                RELEASE_AGAIN_S, self._release, args=[incarnation], kwargs={"again": False}
            )
            timer.daemon = True
            timer.start()
        try:
            self.housekeeping.release(incarnation)
        except psycopg.Error as error:
            log.warning(
                "leases of a dead worker not released; they run out",
                incarnation=str(incarnation),
                error=str(error),
            )


def _resident_bytes() -> int:
    """Return this process's resident memory; where that is not known, what it was at most."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _end_with_thread(args: threading.ExceptHookArgs) -> None:
    """Half a worker is worse than none: the supervisor starts another, and a sibling releases this
    one's leases.
    """
    name = args.thread.name if args.thread else "?"
    log.critical("thread died", thread=name, exc_info=args.exc_value)
    os._exit(ExitCode.FAILED)


def _on_signals(stop: Callable[[], None]) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, handle)
    # The supervisor's business; a terminal sends it to the whole process group.
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
