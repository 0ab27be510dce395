"""The sender threads of one worker, and the claimed deliveries that wait for them.

How much to claim and how many threads to run is decided in core/sizing.py; here are the threads,
their queue and their locks.
"""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from webhookd import logs
from webhookd.core.model import Delivery, Lost, Outcome, Result
from webhookd.core.sizing import Growth, Throughput, all_blocked
from webhookd.postgres.claim import BODY_BYTES
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.results import ResultQueue
from webhookd.worker.wakeup import WakeReason, WakeupPipe

log = logs.Logger("webhookd.senders")

IDLE_EXIT_S = 10.0
# No record needs a body, and results may have to wait for a database that is away. But to copy a
# delivery costs more than a small body holds.
SMALL_BODY_BYTES = 4096


@dataclass(slots=True, eq=False)
class _Sender:
    """Written by its own thread, read by the dispatcher. *since*: monotonic begin of the exchange
    under way, None between two.

    *thread_id* is the kernel's; *delay_s*: how long it has waited for a processor in all, as of the
    last time it was weighed.
    """

    since: float | None = None
    thread_id: int | None = None
    delay_s: float = 0.0


class SenderPool:
    """Takes deliveries from the dispatcher, sends them on its threads, and puts results where the
    recorder finds them.
    """

    def __init__(
        self, runner: AttemptRunner, results: ResultQueue, *, max_threads: int, wakeup: WakeupPipe
    ) -> None:
        self._runner = runner
        self._results = results
        self._max_threads = max_threads
        self._wakeup = wakeup
        self._queue: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _senders and _body_bytes
        self._body_bytes = 0  # waiting or in an exchange
        self._senders: list[_Sender] = []
        self._wants_room = False
        self._growth = Growth()  # the dispatcher's thread only
        self._one_leaves = False
        # Senders write both without the lock. An estimate is enough: a lost update costs one
        # measurement.
        self._finished = 0  # exchanges since the last measurement
        self._throughput = Throughput(time.monotonic())

    @property
    def threads(self) -> int:
        return len(self._senders)

    def backlog(self) -> int:
        """Return how many deliveries are waiting or in an exchange."""
        return self._queue.qsize() + self._busy()

    def room_bytes(self) -> int:
        """Return how many bytes of bodies to claim now; 0 or less while too many are held here."""
        return BODY_BYTES - self._body_bytes

    def room(self) -> int:
        """Return how many deliveries to claim now; 0 or less while enough wait here already to keep
        every sender busy.
        """
        if self.room_bytes() <= 0:
            return 0
        now = time.monotonic()
        throughput = self._throughput  # read once: another thread may store a newer one meanwhile
        if throughput.due(now):
            finished, self._finished = self._finished, 0
            self._throughput = throughput = throughput.measured(finished, now)
        return throughput.room(
            waiting=self._queue.qsize(),
            busy=self._busy(),
            threads=self.threads,
            max_threads=self._max_threads,
        )

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Queue *deliveries*; they go out in this order."""
        self._hold(sum(len(delivery.body) for delivery in deliveries))
        for delivery in deliveries:
            self._queue.put(delivery)
        if deliveries and not self._senders:
            self._start(1)

    def call_for_room(self) -> None:
        """Wake the dispatcher, once, as soon as there is room again."""
        self._wants_room = True

    def tick(self, now: float) -> bool:
        """Grow or shrink the pool if it is time. Return whether to tick again in a few ms."""
        waiting = self._queue.qsize()
        if waiting == 0:
            self._growth = self._growth.ticked(blocked=False)
            return False
        if self._growth.due(now):
            self._weigh(now)
        blocked = all_blocked([sender.since for sender in self._senders], now)
        self._growth = self._growth.ticked(blocked=blocked)
        self._start(
            self._growth.more(waiting=waiting, threads=self.threads, max_threads=self._max_threads)
        )
        return True

    def withdraw(self) -> list[Delivery]:
        """Take back the deliveries that no sender has begun."""
        deliveries: list[Delivery] = []
        while True:
            try:
                delivery = self._queue.get_nowait()
            except queue.Empty:
                return deliveries
            self._hold(-len(delivery.body))
            deliveries.append(delivery)

    def _hold(self, body_bytes: int) -> None:
        with self._lock:
            self._body_bytes += body_bytes

    def _busy(self) -> int:
        return sum(1 for sender in self._senders if sender.since is not None)

    def _weigh(self, now: float) -> None:
        with self._lock:
            senders = list(self._senders)
        starved_s = 0.0
        for sender in senders:
            delay_s = _run_delay_s(sender.thread_id)
            starved_s += delay_s - sender.delay_s
            sender.delay_s = delay_s
        self._growth = self._growth.weighed(starved_s, threads=len(senders), now=now)
        self._one_leaves = self._growth.crowded(threads=len(senders))

    def _start(self, count: int) -> None:
        for _ in range(count):
            sender = _Sender()
            with self._lock:
                self._senders.append(sender)
            threading.Thread(
                target=self._run, args=(sender,), name="webhookd-sender", daemon=True
            ).start()

    def _run(self, sender: _Sender) -> None:
        sender.thread_id = threading.get_native_id()
        while True:
            try:
                delivery = self._queue.get(timeout=IDLE_EXIT_S)
            except queue.Empty:
                if self._leave(sender, idle=True):
                    return
                continue
            self._send(sender, delivery)
            if self._one_leaves and self._leave(sender, idle=False):
                return

    def _leave(self, sender: _Sender, *, idle: bool) -> bool:
        """Return whether *sender* may go. The last one stays while there is work."""
        with self._lock:
            may = self._queue.qsize() == 0 if idle else self._one_leaves and len(self._senders) > 1
            if may:
                self._one_leaves = False
                self._senders.remove(sender)
            return may

    def _send(self, sender: _Sender, delivery: Delivery) -> None:
        sender.since = time.monotonic()
        try:
            outcome: Outcome = self._runner.deliver(delivery)
        except Exception:
            # A fault of ours, not the receiver's. How far the exchange got is not known: that is a
            # lost lease.
            log.exception("delivery fault", delivery_id=delivery.delivery_id)
            outcome = Lost()
        # Idle before the result is seen: the recorder commits at once when no sender is busy.
        sender.since = None
        self._finished += 1
        self._hold(-len(delivery.body))
        if len(delivery.body) > SMALL_BODY_BYTES:
            delivery = delivery._replace(body=b"")
        self._results.put(
            Result(delivery, outcome), last=self._queue.empty() and self.backlog() == 0
        )
        if self._wants_room and self.room() > 0:
            self._wants_room = False
            self._wakeup.wake(WakeReason.ROOM)


def _run_delay_s(thread_id: int | None) -> float:
    """Return how long a thread has been ready to run without a processor, since it began; 0 where
    that is not known.
    """
    try:
        return int(Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # not Linux, or the thread has ended
        return 0.0
