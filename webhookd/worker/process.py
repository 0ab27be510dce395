"""A worker process: its parts, put together after the fork, and its life from boot to drain."""

import ctypes
import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psycopg

from webhookd import logs
from webhookd.config.delivery import delivery_options
from webhookd.config.options import Config
from webhookd.core.model import WebhookDefaults
from webhookd.errors import UnusableError
from webhookd.lifeline import ExitCode, Lifeline
from webhookd.metrics.counters import Metrics
from webhookd.metrics.discovery import address_of
from webhookd.metrics.endpoint import Endpoint
from webhookd.postgres import session
from webhookd.postgres.claim import Claimer
from webhookd.postgres.record import ResultWriter
from webhookd.postgres.retention import Keep, Retention
from webhookd.postgres.rows import defaults_of
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.boot import Health, wait_for_database
from webhookd.worker.chores.activity import ActivityWriter
from webhookd.worker.chores.beat import Beat
from webhookd.worker.chores.bodies import QuarantineMeasurer
from webhookd.worker.chores.chore import Chore, Pool
from webhookd.worker.chores.depth import DepthCounter, DepthReader
from webhookd.worker.chores.disabler import Disabler
from webhookd.worker.chores.finished import FinishedCounts
from webhookd.worker.chores.giver_up import GiverUp
from webhookd.worker.chores.held import HeldLanes
from webhookd.worker.chores.pruner import Pruner
from webhookd.worker.chores.reaper import Reaper
from webhookd.worker.chores.runner import ChoreRunner
from webhookd.worker.chores.secrets import OldSecrets, UnusedEntries
from webhookd.worker.chores.sweeper import Sweeper
from webhookd.worker.chores.targets import TargetsReader
from webhookd.worker.circuits import LocalCircuits
from webhookd.worker.dispatcher import Dispatcher
from webhookd.worker.events import Events
from webhookd.worker.judge import Judge
from webhookd.worker.listener import Listener
from webhookd.worker.recorder import Recorder
from webhookd.worker.results import ResultQueue
from webhookd.worker.senders import SenderPool
from webhookd.worker.siblings import LifelineReader, SiblingReleaser
from webhookd.worker.wakeup import WakeupPipe
from webhookd.worker.watch import NotifyDuty

log = logs.Logger("webhookd.worker")

MAX_UNANSWERED_S = 2.0  # how long a worker that is to leave waits for an answer of the database
# Each claim brings hundreds of values that no cycle holds. Python's default thresholds would look
# through them for cycles all the time and find none.
GARBAGE_THRESHOLDS = (10_000, 20, 20)
_M_MMAP_THRESHOLD = -3  # malloc.h
LARGE_BLOCK_BYTES = 1 << 20
POOL_SIZE = 2  # with the LISTEN connection that makes three a worker
DRAIN_POOL_TIMEOUT_S = 0.5


def run(config: Config, lifeline: Lifeline) -> int:
    """Work until told to stop; return the exit code. The whole life of a worker process."""
    threading.excepthook = _end_with_thread
    gc.freeze()  # memory that the supervisor filled stays shared between the workers
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    _return_large_blocks()
    stop = threading.Event()
    _on_signals(stop.set)
    reader = LifelineReader(lifeline, stop.set)
    reader.start()
    metrics = Metrics(lifeline.name, max_webhooks=config.metrics_webhooks)
    health = Health(stop)
    session.call_while_waiting(lambda waited_s: _beat_while_waiting(lifeline, health, waited_s))
    endpoint = Endpoint(
        lifeline.metrics_socket,
        metrics,
        alive=health.alive,
        ready=health.ready,
        targets=health.targets,
    )
    endpoint.start()
    try:
        installation = wait_for_database(config, lifeline, stop)
        if installation is None:
            return ExitCode.DRAINED
        worker = _Worker(config, lifeline, metrics, installation)
        metrics.set_health_check(worker.dispatcher.healthy)
        health.attach(worker.dispatcher, worker.targets)
        return worker.run(stop, reader)
    except UnusableError as error:
        lifeline.refuse(str(error))
        return ExitCode.UNUSABLE
    finally:
        endpoint.stop()


def _beat_while_waiting(lifeline: Lifeline, health: Health, waited_s: float) -> None:
    """What the main thread does while a statement of its own is not answered."""
    lifeline.beat()
    if waited_s > MAX_UNANSWERED_S and health.stopping():
        raise session.UnansweredError(
            f"no answer within {MAX_UNANSWERED_S:g} s, and this worker is to leave"
        )


class _Worker:
    """The parts of a worker, connected."""

    def __init__(
        self, config: Config, lifeline: Lifeline, metrics: Metrics, installation: str
    ) -> None:
        self._config = config
        self._lifeline = lifeline
        self._metrics = metrics
        self._recycle_requested = False
        defaults = defaults_of(config)
        self._pool = _open_pool(config, lifeline)
        self._wakeup = WakeupPipe()
        self._writer = ResultWriter(worker_id=lifeline.name, defaults=defaults)
        circuits, results = LocalCircuits(), ResultQueue()
        egress = Egress.of(config)
        self._transport = Transport(
            egress,
            connections_per_origin=config.threads,
            patient_lookups=max(1, config.threads // 4),
        )
        self._judge = Judge(egress)
        runner = AttemptRunner(self._transport, circuits, installation=installation)
        self._senders = SenderPool(runner, results, max_threads=config.threads, wakeup=self._wakeup)
        self._recorder = Recorder(
            self._pool,
            self._writer,
            results,
            circuits=circuits,
            metrics=metrics,
            wakeup=self._wakeup,
        )
        self.dispatcher = self._make_dispatcher(defaults)
        # Set when the chores are to end; a long one looks at it between its statements.
        chores_stop = threading.Event()
        self._reaper = Reaper(
            self._writer,
            metrics,
            self._wakeup,
            is_caught_up=self._recorder.is_caught_up,
            stop=chores_stop,
        )
        self._activity = ActivityWriter(metrics, worker_id=lifeline.name)
        self.targets = TargetsReader()
        self._chores = self._make_chores(chores_stop, defaults)

    def _make_dispatcher(self, defaults: WebhookDefaults) -> Dispatcher:
        config, lifeline = self._config, self._lifeline
        assert config.dsn is not None
        listener = Listener(
            config.listen_dsn or config.dsn, application_name=f"webhookd/{lifeline.name}/listen"
        )
        duty = NotifyDuty(
            listener,
            worker_id=lifeline.name,
            incarnation=lifeline.incarnation,
            metrics_address=address_of(lifeline.metrics_socket),
            options=delivery_options(config),
        )
        return Dispatcher(
            self._pool,
            Claimer(
                worker_id=lifeline.name,
                incarnation=lifeline.incarnation,
                defaults=defaults,
                judge=self._judge,
            ),
            Events(duty, self._wakeup, self._metrics),
            self._senders,
            self._recorder,
            metrics=self._metrics,
            beat=self._beat,
        )

    def _make_chores(self, stop: threading.Event, defaults: WebhookDefaults) -> ChoreRunner:
        retention = Retention(Keep.of(self._config), removed=self._metrics.removed)
        chores: tuple[Chore, ...] = (
            self._reaper,
            FinishedCounts(),
            Sweeper(self._wakeup),
            OldSecrets(),
            UnusedEntries(),
            self._activity,
            DepthReader(self._metrics),
            # Behind the reader, which withdraws all figures of the queue where a count is too old.
            HeldLanes(self._judge, self._metrics, self._wakeup, defaults=defaults),
            self.targets,
            # Last: a count may take until the database cancels it, and a removal takes a second.
            # Nothing else waits for them.
            DepthCounter(),
            QuarantineMeasurer(self.dispatcher.measurer),
            Pruner(retention, stop=stop),
            *self._make_optional_chores(stop),
        )
        beat = Beat(self._lifeline.incarnation, self._wakeup)
        return ChoreRunner(self._pool, beat, chores, self._metrics, stop=stop)

    def _make_optional_chores(self, stop: threading.Event) -> list[Chore]:
        config, chores = self._config, list[Chore]()
        if config.disable_after:
            chores.append(Disabler(self._metrics, after_s=config.disable_after))
        if config.give_up_after:
            chores.append(
                GiverUp(after_s=config.give_up_after, worker_id=self._lifeline.name, stop=stop)
            )
        return chores

    def run(self, stop: threading.Event, reader: LifelineReader) -> int:
        """Deliver until *stop* or the supervisor's end, then drain. Returns the exit code."""
        self._recorder.start()
        self._chores.start()
        SiblingReleaser(reader.lost, self._reaper, self._pool).start()
        _on_signals(self.dispatcher.stop)
        reader.on_end = self.dispatcher.stop
        # What came before the two lines above went to *stop* only.
        if stop.is_set() or reader.ended:
            self.dispatcher.stop()
        log.info("worker ready")
        self.dispatcher.run()
        return self._drain()

    def _beat(self) -> None:
        """Tell the supervisor that the dispatcher's loop turns, and whether this worker has passed
        a limit.

        It works on until the supervisor tells it to drain: workers are replaced one at a time.
        """
        if not self._recycle_requested:
            rss, deliveries = _resident_bytes(), self._recorder.completed()
            self._recycle_requested = (
                0 < self._config.worker_max_rss < rss
                or 0 < self._config.worker_max_deliveries <= deliveries
            )
            if self._recycle_requested:
                log.info(
                    "worker has passed its limit",
                    rss_mb=rss >> 20,
                    deliveries=deliveries,
                )
        self._lifeline.beat(recycle=self._recycle_requested)

    def _drain(self) -> int:
        """Finish what is in flight within the drain timeout, give back the rest, leave."""
        log.info("worker drains", outstanding=self._recorder.outstanding())
        assert self.dispatcher.stopped_at is not None
        deadline = self.dispatcher.stopped_at + self._config.drain_timeout
        # A database that is away must not delay this worker until the supervisor kills it.
        self._pool.timeout = DRAIN_POOL_TIMEOUT_S
        try:
            self.dispatcher.withdraw()
        except psycopg.Error as error:
            log.warning("draining while the database is unreachable", error=str(error))
        while self._recorder.outstanding() > 0 and time.monotonic() < deadline:
            self._lifeline.beat()
            time.sleep(0.01)
        unfinished = self._senders.backlog()
        recorded = self._recorder.stop(timeout_s=max(0.5, deadline - time.monotonic()))
        self._chores.stop()
        try:
            if not recorded:
                raise psycopg.OperationalError("results could not be recorded; their leases expire")
            self._activity.run(self._pool)
            if unfinished:
                # Exchanges still in progress: release their rows as those of a worker that died.
                self._reaper.release(self._pool, self._lifeline.incarnation)
            self.dispatcher.leave()
        except psycopg.Error as error:
            log.warning("stopped; the database was unreachable", error=str(error))
        self._pool.close(timeout=1.0)
        self._transport.close()
        log.info("worker drained", unfinished=unfinished)
        return ExitCode.DRAINED


def _open_pool(config: Config, lifeline: Lifeline) -> Pool:
    assert config.dsn is not None
    # No beat is sent while the main thread waits for a connection: it must wait for less than the
    # supervisor does.
    timeout_s = min(2.0, config.heartbeat_timeout / 3)
    return session.open_pool(
        config.dsn,
        application_name=f"webhookd/{lifeline.name}/work",
        size=POOL_SIZE,
        timeout_s=timeout_s,
    )


def _resident_bytes() -> int:
    """Return this process's resident memory, or its peak on a system that does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _end_with_thread(args: threading.ExceptHookArgs) -> None:
    """End the process with its first thread that dies. A worker without one of its threads is worse
    than none: the supervisor starts another, and a sibling releases this one's leases.
    """
    name = args.thread.name if args.thread else "?"
    log.critical("thread died", thread=name, exc_info=args.exc_value)
    os._exit(ExitCode.FAILED)


def _return_large_blocks() -> None:
    """Have glibc give the memory of each large body back when it is freed. Otherwise it keeps such
    blocks in its heaps from the second one on (mallopt(3), M_MMAP_THRESHOLD).
    """
    with suppress(AttributeError, OSError):  # another libc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def _on_signals(stop: Callable[[], None]) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, handle)
    # These are for the supervisor; a terminal sends them to the whole process group.
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
