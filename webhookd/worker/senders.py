"""The sender threads of one worker, and the claimed deliveries that wait for them.

Threads that fight for the interpreter lock cost a great deal, threads that wait for receivers are
all the throughput there is. So the pool starts with one and grows only while work waits and every
sender has been blocked in an exchange for a while. Where it is the processor that they wait for,
more of them would only cost more: then the pool shrinks.
"""

import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from webhookd import logs
from webhookd.core.model import Delivery, Lost, Outcome, Result
from webhookd.postgres.claim import BODY_BYTES
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.results import ResultQueue
from webhookd.worker.wakeup import WakeReason, WakeupPipe

log = logs.Logger("webhookd.senders")

BLOCKED_AFTER_S = 0.003  # an exchange that lasts longer than this is waiting, not computing
TICKS_TO_GROW = (
    2  # one look is not enough: a fast receiver's hiccup must not leave sixteen threads behind
)
IDLE_EXIT_S = 10.0
# Every so often: for what share of their time senders were ready to run and did not. Above the
# first share no more are started, above the second one leaves.
WEIGH_EVERY_S = 0.1
STARVED, CROWDED = 0.2, 0.5
# Claims are sized to so much work, and made once no more than so much of it waits: few large claims
# cost less than many small ones, and what stays in the queue any worker may take.
WORK_AHEAD_S, WORK_LEFT_S = 0.1, 0.02
RATE_EVERY_S = 0.025  # how often it is looked at how fast that goes
SMALLEST_CAPACITY = 16
LARGEST_CAPACITY = 400
# No record needs a body, and results may have to wait for a database that is away; but a copy costs
# more than a small one holds.
SMALL_BODY_BYTES = 4096


@dataclass(slots=True, eq=False)
class _Sender:
    """Written by its own thread, read by the dispatcher. *since*: monotonic begin of the exchange
    under way, None between two.

    *thread_id* is the kernel's; *delay_s* is for how long, as of the last look, it has waited for a
    processor in all.
    """

    since: float | None = None
    thread_id: int | None = None
    delay_s: float = 0.0


class SenderPool:
    """Takes deliveries from the dispatcher, carries them out on its threads, and puts results where
    the recorder finds them.
    """

    def __init__(
        self, courier: AttemptRunner, results: ResultQueue, *, most: int, bell: WakeupPipe
    ) -> None:
        self._courier = courier
        self._results = results
        self._most = most
        self._bell = bell
        self._queue: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _senders and _body_bytes
        self._body_bytes = 0  # waiting or in an exchange
        self._senders: list[_Sender] = []
        self._wants_room = False
        self._blocked_ticks = 0
        self._starved = 0.0  # the share of their time that senders wait for a processor
        self._weighed_at = -math.inf
        self._one_leaves = False
        self._finished = 0  # exchanges; written by senders without the lock: an estimate is enough
        self._rate = 0.0  # exchanges a second; falls slowly
        self._rated_at = time.monotonic()

    @property
    def threads(self) -> int:
        return len(self._senders)

    def backlog(self) -> int:
        """Return how many deliveries are waiting or in an exchange."""
        return self._queue.qsize() + sum(1 for sender in self._senders if sender.since is not None)

    def room_bytes(self) -> int:
        """Return how many bytes of bodies to claim now; 0 or less while too many are held here."""
        return BODY_BYTES - self._body_bytes

    def room(self) -> int:
        """Return how many deliveries to claim now; 0 while enough wait here already to keep every
        sender busy.
        """
        if self.room_bytes() <= 0:
            return 0
        capacity = self._capacity()
        return capacity - self.backlog() if self._queue.qsize() <= self._rate * WORK_LEFT_S else 0

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Queue *deliveries*; they go out in this order."""
        self._hold(sum(len(delivery.body) for delivery in deliveries))
        for delivery in deliveries:
            self._queue.put(delivery)
        if deliveries and not self._senders:
            self._start(1)

    def call_for_room(self) -> None:
        """Ring the bell, once, as soon as there is room again."""
        self._wants_room = True

    def tick(self, now: float) -> bool:
        """Grow if every sender has been blocked for some ticks while work waits, shrink if they
        wait for the processor.

        Return whether to tick again in a few ms.
        """
        waiting = self._queue.qsize()
        if waiting == 0:
            self._blocked_ticks = 0
            return False
        if now - self._weighed_at >= WEIGH_EVERY_S:
            self._weigh(now)
        begun = [sender.since for sender in self._senders]
        blocked = all(since is not None and now - since > BLOCKED_AFTER_S for since in begun)
        self._blocked_ticks = self._blocked_ticks + 1 if blocked and self._starved < STARVED else 0
        if self._blocked_ticks >= TICKS_TO_GROW and len(begun) < self._most:
            # By half at a time: 64 slow receivers' worth of threads within a fifth of a second.
            self._start(min(waiting, self._most - len(begun), 1 + len(begun) // 2))
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

    def _capacity(self) -> int:
        now = time.monotonic()
        elapsed = now - self._rated_at
        if elapsed >= RATE_EVERY_S:
            finished, self._finished = self._finished, 0
            # Up at once, since small claims are dear when there is much to do; down with a memory
            # of a quarter of a second.
            rate = finished / elapsed
            self._rate += (rate - self._rate) * (
                1.0 if rate > self._rate else min(1.0, elapsed * 4)
            )
            self._rated_at = now
        wanted = max(
            SMALLEST_CAPACITY, int(self._rate * WORK_AHEAD_S) + self.threads, self.threads * 2
        )
        return min(wanted, max(LARGEST_CAPACITY, self._most * 2))

    def _weigh(self, now: float) -> None:
        elapsed_s, self._weighed_at = now - self._weighed_at, now
        with self._lock:
            senders = list(self._senders)
        waited_s = 0.0
        for sender in senders:
            delay_s = _run_delay_s(sender.thread_id)
            waited_s += delay_s - sender.delay_s
            sender.delay_s = delay_s
        self._starved = (
            waited_s / (elapsed_s * len(senders))
            if senders and elapsed_s < 10 * WEIGH_EVERY_S
            else 0.0
        )
        self._one_leaves = self._starved > CROWDED and len(senders) > 1

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
            self._carry(sender, delivery)
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

    def _carry(self, sender: _Sender, delivery: Delivery) -> None:
        sender.since = time.monotonic()
        try:
            outcome: Outcome = self._courier.deliver(delivery)
        except Exception:
            # A fault of ours, not the receiver's, and nobody knows how far the exchange got: that
            # is a lost lease.
            log.exception("delivery fault", delivery_id=delivery.delivery_id)
            outcome = Lost()
        # Idle before the result is seen: the recorder commits at once when nobody is busy any more.
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
            self._bell.ring(WakeReason.ROOM)


def _run_delay_s(thread_id: int | None) -> float:
    """Return for how long a thread has been ready to run without a processor, since it began; 0
    where that is not known.
    """
    try:
        return int(Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # not Linux, or the thread has ended
        return 0.0
