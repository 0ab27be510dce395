"""The sender threads of one worker, and the claimed deliveries that wait for them.

Which delivery a free thread begins next is decided in core/slots.py, how much to claim and how many
threads to run in core/sizing.py; here are the threads and their lock.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from webhookd import logs
from webhookd.core.lane import exchange_s
from webhookd.core.model import Delivery, GivenBack, Lost, Outcome, Result
from webhookd.core.sizing import Growth, Throughput, all_blocked
from webhookd.core.slots import Exchange, Kind, Slots
from webhookd.postgres.claim import BODY_BYTES
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.results import ResultQueue
from webhookd.worker.wakeup import WakeReason, WakeupPipe

log = logs.Logger("webhookd.senders")

IDLE_EXIT_S = 10.0
# No record needs a body, and results may have to wait for a database that is away. But to copy a
# delivery costs more than a small body holds.
SMALL_BODY_BYTES = 4096
# Bodies of slow lanes have a share of their own: in the others' they would stop all claims.
SLOW_BODY_BYTES = BODY_BYTES // 2


class _Sender:
    """A thread. *exchange*: what it does, None between two. *delay_s*: how long it has waited for
    a processor in all, as of the last time it was weighed; *thread_id* is the kernel's.

    While it is parked it waits for *gate*, a lock that nobody holds for long: who releases it has
    put an exchange here.
    """

    __slots__ = ("delay_s", "exchange", "gate", "left", "thread_id")

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.left = False
        self.thread_id: int | None = None
        self.delay_s = 0.0
        self.gate = threading.Lock()
        self.gate.acquire()


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
        self._lock = threading.Lock()  # guards the next three; no exchange happens under it
        self._slots = Slots(max_threads)
        self._senders: list[_Sender] = []
        self._parked: list[_Sender] = []  # the one that worked last is the first to be woken
        self._wants_room = self._wants_slow = self._wants_new = False
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
        with self._lock:
            return self._slots.all_waiting() + self._slots.all_running()

    # How much to claim

    def room_bytes(self) -> int:
        """Return how many bytes of bodies to claim now; 0 or less while too many are held here."""
        slots = self._slots
        return BODY_BYTES - slots.body_bytes(Kind.FAST) - slots.body_bytes(Kind.NEW)

    def room(self) -> int:
        """Return how many deliveries of lanes that are not slow to claim now; 0 or less while
        enough wait here already to keep every sender busy.
        """
        if self.room_bytes() <= 0:
            return 0
        now = time.monotonic()
        throughput = self._throughput  # read once: another thread may store a newer one meanwhile
        if throughput.due(now):
            finished, self._finished = self._finished, 0
            self._throughput = throughput = throughput.measured(finished, now)
        slots = self._slots
        slow = slots.running(Kind.SLOW)
        waiting = slots.waiting(Kind.FAST)
        if slots.takes_new():
            waiting += slots.waiting(Kind.NEW)
        return throughput.room(
            waiting=waiting,
            busy=slots.running(Kind.FAST) + slots.running(Kind.NEW),
            threads=max(0, self.threads - slow),
            max_threads=max(1, self._max_threads - slow),
        )

    def slow_room(self) -> int:
        """Return how many deliveries of slow lanes to claim now. If there are none, the dispatcher
        is woken once there is room for some.
        """
        with self._lock:
            room = self._slow_room()
            self._wants_slow = room == 0
        return room

    def takes_new(self) -> bool:
        """Return whether to claim deliveries of lanes that are not measured yet. If not, the
        dispatcher is woken once that changes.
        """
        with self._lock:
            takes = self._slots.takes_new()
            self._wants_new = not takes
        return takes

    def call_for_room(self) -> None:
        """Wake the dispatcher, once, as soon as there is room again."""
        self._wants_room = True

    # What the dispatcher does

    def submit(self, deliveries: Sequence[Delivery]) -> None:
        """Have *deliveries* sent: the lanes take turns, and those of one lane keep their order."""
        if not deliveries:
            return
        now = time.monotonic()
        with self._lock:
            self._slots.add(deliveries)
            started = self._assign(now)
            if not self._senders:
                started.append(self._new_sender())
        self._start(started)

    def tick(self, now: float) -> bool:
        """Grow or shrink the pool if it is time, and give back what must not wait here. Return
        whether to tick again in a few ms.
        """
        with self._lock:
            slots = self._slots
            slots.turned(now)
            surplus = slots.surplus()
            started = self._assign(now)
            waiting = slots.could_begin()
            # Those of others may turn out to be slow while they wait for a slot.
            again = waiting > 0 or slots.all_waiting() > slots.waiting(Kind.SLOW)
            since = self._since()
        self._start(started)
        self._give_back(surplus)
        if waiting == 0:
            self._growth = self._growth.ticked(blocked=False)
            return again
        if self._growth.due(now):
            self._weigh(now)
        self._growth = self._growth.ticked(blocked=all_blocked(since, now))
        with self._lock:
            more = self._growth.more(
                waiting=waiting, threads=len(self._senders), max_threads=self._max_threads
            )
            started = [self._new_sender() for _ in range(more)]
        self._start(started)
        return again

    def withdraw(self) -> list[Delivery]:
        """Take back the deliveries that no sender has begun."""
        with self._lock:
            return self._slots.withdraw()

    # With the lock held

    def _slow_room(self) -> int:
        if self._slots.body_bytes(Kind.SLOW) >= SLOW_BODY_BYTES:
            return 0
        return self._slots.slow_room()

    def _since(self) -> list[float | None]:
        """Return when each thread began its exchange; None: it has none."""
        exchanges = [sender.exchange for sender in self._senders]
        return [None if exchange is None else exchange.since for exchange in exchanges]

    def _assign(self, now: float) -> list[_Sender]:
        """Have parked threads begin what may begin. Return threads to start.

        Slow exchanges must not hold all threads: one more is ready for the next fast delivery, as
        long as there is a slot for it. It uses no processor until then.
        """
        while self._parked and (exchange := self._slots.begin(now)) is not None:
            sender = self._parked.pop()
            sender.exchange = exchange
            sender.gate.release()
        if 0 < len(self._senders) <= self._slots.running(Kind.SLOW) and self._may_grow():
            return [self._new_sender()]
        return []

    def _may_grow(self) -> bool:
        return len(self._senders) < self._max_threads

    def _not_slow(self) -> int:
        """Return how many threads no slow exchange holds."""
        return len(self._senders) - self._slots.running(Kind.SLOW)

    def _new_sender(self) -> _Sender:
        sender = _Sender()
        self._senders.append(sender)
        return sender

    # Threads

    def _start(self, senders: Sequence[_Sender]) -> None:
        for sender in senders:
            thread = threading.Thread(
                target=self._run, args=(sender,), name="webhookd-sender", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads for us
                with self._lock:
                    self._senders.remove(sender)
                    threads = len(self._senders)
                log.warning("no further sender thread", threads=threads, error=str(error))

    def _weigh(self, now: float) -> None:
        with self._lock:
            senders = list(self._senders)
            threads = max(1, self._not_slow())
        starved_s = 0.0
        for sender in senders:
            delay_s = _run_delay_s(sender.thread_id)
            starved_s += delay_s - sender.delay_s
            sender.delay_s = delay_s
        self._growth = self._growth.weighed(starved_s, threads=threads, now=now)
        self._one_leaves = self._growth.crowded(threads=threads)

    def _run(self, sender: _Sender) -> None:
        sender.thread_id = threading.get_native_id()
        exchange = self._first(sender)
        while not sender.left:
            if exchange is None:
                exchange = self._wait(sender)
            else:
                exchange = self._finish(sender, exchange, self._send(exchange.delivery))

    def _first(self, sender: _Sender) -> Exchange | None:
        now = time.monotonic()
        with self._lock:
            exchange = self._begin_or_park(sender, now)
            started = self._assign(now)
        self._start(started)
        return exchange

    def _begin_or_park(self, sender: _Sender, now: float) -> Exchange | None:
        sender.exchange = exchange = self._slots.begin(now)
        if exchange is None:
            self._parked.append(sender)
        return exchange

    def _wait(self, sender: _Sender) -> Exchange | None:
        """Wait, parked, for an exchange. None: there was none for a while."""
        if not sender.gate.acquire(timeout=IDLE_EXIT_S):
            with self._lock:
                if sender.exchange is None:
                    if self._may_rest():
                        self._parked.remove(sender)
                        self._leave(sender)
                    return None
            sender.gate.acquire()  # at once: it was given an exchange just after the time was up
        return sender.exchange

    def _may_rest(self) -> bool:
        """Return whether an idle thread may go. The last one stays beside slow exchanges."""
        slots = self._slots
        idle = slots.all_running() == 0 or self._not_slow() > 1
        return idle and slots.all_waiting() == 0

    def _leave(self, sender: _Sender) -> None:
        sender.left = True
        self._senders.remove(sender)

    def _send(self, delivery: Delivery) -> Outcome:
        try:
            return self._runner.deliver(delivery)
        except Exception:
            # A fault of ours, not the receiver's. How far the exchange got is not known: that is a
            # lost lease.
            log.exception("delivery fault", delivery_id=delivery.delivery_id)
            return Lost()

    def _finish(self, sender: _Sender, ended: Exchange, outcome: Outcome) -> Exchange | None:
        """Hand the *outcome* on. Return the exchange that *sender* begins now; None: it is parked,
        or has left.
        """
        exchange, now = None, time.monotonic()
        with self._lock:
            slots = self._slots
            slots.end(ended, exchange_s=exchange_s(outcome))
            sender.exchange = None
            if self._one_leaves and self._not_slow() > 1:
                self._one_leaves = False  # threads crowd
                self._leave(sender)
            else:
                exchange = self._begin_or_park(sender, now)
            started = self._assign(now)
            last = slots.is_last(ended)
            surplus = slots.surplus()
            wakes = self._has_what_was_wanted()
        self._finished += 1
        delivery = ended.delivery
        if len(delivery.body) > SMALL_BODY_BYTES:
            delivery = delivery._replace(body=b"")
        self._results.put(Result(delivery, outcome), last=last)
        if started:
            self._start(started)
        if surplus:
            self._give_back(surplus)
        if self._wants_room and self.room() > 0:
            self._wants_room, wakes = False, True
        if wakes:
            self._wakeup.wake(WakeReason.ROOM)
        return exchange

    def _has_what_was_wanted(self) -> bool:
        has = False
        if self._wants_slow and self._slow_room() > 0:
            self._wants_slow, has = False, True
        if self._wants_new and self._slots.takes_new():
            self._wants_new, has = False, True
        return has

    def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Have *deliveries* recorded as returned without an attempt: other workers may have slots
        for them.
        """
        for delivery in deliveries:
            self._results.put(Result(delivery, GivenBack()), last=True)


def _run_delay_s(thread_id: int | None) -> float:
    """Return how long a thread has been ready to run without a processor, since it began; 0 where
    that is not known.
    """
    try:
        return int(Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):  # not Linux, or the thread has ended
        return 0.0
