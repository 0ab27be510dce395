"""Which waiting delivery a free sender begins next: the lanes take turns, and slow ones leave a
reserve of the slots to the others.

A worker has as many slots as threads at most. A slot is free until an exchange begins in it. If
deliveries went out in the order of their arrival, forty receivers that take five seconds would hold
every slot, and each other webhook would wait for them. So each lane is of one of three kinds: fast,
slow, or new, which is not measured yet. The rules, for T slots (see `Reserve`):

- Lanes of one kind take turns, a delivery each; the kinds take turns, too.
- A fast lane may use every slot.
- Slow lanes use at most `slow` of them. While others wait they begin nothing above `half`.
- Slow and new lanes together use at most `not_fast`: new receivers may all be silent.
- A new lane begins `NEW_EACH` exchanges at most until the first of them ends.
- A lane with an exchange that has been under way for `SLOW_AFTER_S` is slow, measured or not.

Nothing else keeps a slot free. Times are monotonic seconds. One lock must guard a `Slots`.
"""

from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple, Self

from webhookd.core.model import Delivery
from webhookd.core.speed import SLOW_AFTER_S, Speed

NEW_EACH = 2  # exchanges of a new lane at a time: one may be an accident, more tell nothing new
RESERVE_SHARE = 8  # one slot of so many is in the reserve
LEAST_RESERVE, LEAST_RESERVE_FROM = 2, 4  # so many slots, from so many on


class Reserve(NamedTuple):
    """How many exchanges slow lanes (*slow*), slow lanes while others wait (*half*), and slow and
    new ones together (*not_fast*) may have under way.
    """

    slow: int
    half: int
    not_fast: int

    @classmethod
    def of(cls, slots: int) -> Self:
        """Return the bounds for a worker of *slots* (>= 1). One slot has no reserve."""
        reserve = max(1, slots // RESERVE_SHARE) if slots > 1 else 0
        if slots >= LEAST_RESERVE_FROM:
            reserve = max(LEAST_RESERVE, reserve)
        # A half of the reserve is for fast lanes alone, the other half for new ones, too.
        return cls(slots - reserve, max(1, slots // 2), slots - (reserve + 1) // 2)


class Kind(IntEnum):
    """What a lane is, as far as this worker knows."""

    FAST = 0
    NEW = 1
    SLOW = 2


class _Ring:
    """The lanes of one kind: those that may begin, in the order of their turns; and the sums over
    all of them.
    """

    __slots__ = ("body_bytes", "kind", "lanes", "running", "waiting")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.lanes: deque[_LocalLane] = deque()
        self.running = self.waiting = self.body_bytes = 0


class _LocalLane:
    """A webhook with deliveries here. *claimed*: its speed as the last claim brought it; *overdue*:
    how many of its exchanges have been under way for too long; *queued*: it is in the ring's order.
    """

    __slots__ = ("body_bytes", "claimed", "overdue", "queued", "ring", "rows", "running", "speed")

    def __init__(self, speed: Speed, ring: _Ring) -> None:
        self.speed = self.claimed = speed
        self.ring = ring
        self.rows: deque[Delivery] = deque()
        self.running = self.overdue = self.body_bytes = 0
        self.queued = False


class Exchange:
    """A delivery that a sender has begun. *since* is when."""

    __slots__ = ("delivery", "ended", "lane", "overdue", "since")

    def __init__(self, delivery: Delivery, lane: _LocalLane, since: float) -> None:
        self.delivery, self.lane, self.since = delivery, lane, since
        self.ended = self.overdue = False


class Slots:
    """The deliveries of one worker that wait, and which of them may begin."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._reserve = Reserve.of(slots)
        self._fast, self._new, self._slow = self._rings = [_Ring(kind) for kind in Kind]
        self._turns = list(self._rings)  # the kind that has waited longest for its turn first
        self._lanes: dict[int, _LocalLane] = {}
        self._begun: deque[Exchange] = deque()  # those not yet found to be overdue, in order
        self._surplus: list[Delivery] = []
        self._silent = False  # new lanes turned out to be slow, and more of their kind wait

    # What is here

    def waiting(self, kind: Kind) -> int:
        """Return how many deliveries of lanes of this kind wait."""
        return self._rings[kind].waiting

    def running(self, kind: Kind) -> int:
        """Return how many exchanges of lanes of this kind are under way."""
        return self._rings[kind].running

    def body_bytes(self, kind: Kind) -> int:
        """Return how large the bodies are of what waits or is under way."""
        return self._rings[kind].body_bytes

    def all_waiting(self) -> int:
        return sum(ring.waiting for ring in self._rings)

    def all_running(self) -> int:
        return sum(ring.running for ring in self._rings)

    def is_last(self, exchange: Exchange) -> bool:
        """Return whether nothing else of the kind of *exchange*, which is over, will end soon.
        Slow exchanges do not count beside a fast one.
        """
        fast, new, slow = self._rings
        if fast.waiting or fast.running or new.waiting or new.running:
            return False
        return exchange.lane.ring is not slow or not (slow.waiting or slow.running)

    def slow_room(self) -> int:
        """Return how many deliveries of slow lanes to claim: those that may begin, and an eighth
        more, so that a slot that becomes free need not wait for a claim. 0 while that eighth waits.
        """
        most = self._reserve.slow
        ahead = most // RESERVE_SHARE
        room = most + ahead - self._slow.running - self._slow.waiting
        return room if room >= max(1, ahead) else 0

    def takes_new(self) -> bool:
        """Return whether to claim deliveries of new lanes: not while slow ones are in their way, as
        they would wait here for slots that other workers may have.
        """
        slow = self._slow.running
        in_the_way = slow > 0 and slow + self._new.running >= self._reserve.not_fast
        return not (self._silent or in_the_way)

    def could_begin(self) -> int:
        """Return how many waiting deliveries could begin, at most, if there were threads and slots
        for them: how many no rule holds back.
        """
        new = self._reserve.not_fast - self._slow.running - self._new.running
        slow = min(new, self._reserve.slow - self._slow.running)
        return (
            self._fast.waiting
            + min(self._new.waiting, max(0, new))
            + min(self._slow.waiting, max(0, slow))
        )

    # What happens

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Have *deliveries* wait; those of one lane keep their order."""
        for delivery in deliveries:
            lane = self._lanes.get(delivery.webhook_id)
            if lane is None:
                lane = _LocalLane(delivery.speed, self._rings[_kind(delivery.speed)])
                self._lanes[delivery.webhook_id] = lane
            elif delivery.speed is not lane.claimed:
                lane.claimed = delivery.speed
                # What is measured here is newer than what a claim knows, but other workers may have
                # found out that the lane is slow.
                if lane.speed.slow is None or delivery.speed.slow:
                    lane.speed = delivery.speed
                    self._place(lane)
            ring, size = lane.ring, len(delivery.body)
            lane.rows.append(delivery)
            lane.body_bytes += size
            ring.waiting += 1
            ring.body_bytes += size
            if not lane.queued:
                self._queue(lane)

    def begin(self, now: float) -> Exchange | None:
        """Begin the exchange whose turn it is; None if none may begin. The caller has a slot."""
        self.turned(now)
        ring = self._next_ring()
        if ring is None:
            return None
        lane = ring.lanes.popleft()
        delivery = lane.rows.popleft()
        lane.running += 1
        ring.running += 1
        ring.waiting -= 1
        if ring is not self._new and lane.rows:
            ring.lanes.append(lane)
        else:
            lane.queued = False
            self._queue(lane)
            if ring is self._new and not ring.waiting:
                self._silent = False
        exchange = Exchange(delivery, lane, now)
        self._begun.append(exchange)
        return exchange

    def end(self, exchange: Exchange, *, exchange_s: float | None) -> None:
        """*exchange* is over and took *exchange_s*; None: no request went out."""
        lane, delivery = exchange.lane, exchange.delivery
        ring, size = lane.ring, len(delivery.body)
        exchange.ended = True
        lane.running -= 1
        lane.body_bytes -= size
        ring.running -= 1
        ring.body_bytes -= size
        was = lane.speed.slow
        if exchange.overdue:
            lane.overdue -= 1
        if exchange_s is not None:
            lane.speed = lane.speed.after(exchange_s)
        if lane.rows or lane.running:
            if exchange.overdue or lane.speed.slow is not was:
                self._place(lane)
            if not lane.queued:
                self._queue(lane)
        else:
            # What was measured comes back with the next claim.
            del self._lanes[delivery.webhook_id]

    def turned(self, now: float) -> None:
        """Note that time has passed: lanes whose exchanges last too long are slow."""
        begun, before = self._begun, now - SLOW_AFTER_S
        while begun and (begun[0].ended or begun[0].since <= before):
            exchange = begun.popleft()
            if exchange.ended:
                continue
            exchange.overdue = True
            lane = exchange.lane
            lane.overdue += 1
            if lane.ring is self._new:
                self._place(lane)
                self._find_silent()
            else:
                self._place(lane)

    def surplus(self) -> list[Delivery]:
        """Return, once, the deliveries that turned out to be more than may wait here."""
        if not self._surplus:
            return []
        surplus, self._surplus = self._surplus, []
        return surplus

    def withdraw(self) -> list[Delivery]:
        """Return all that wait, and let nothing wait any more."""
        withdrawn: list[Delivery] = self.surplus()
        for lane in list(self._lanes.values()):
            self._take_back(lane, len(lane.rows))
        self._silent = False
        return withdrawn + self.surplus()

    # Steps of these

    def _next_ring(self) -> _Ring | None:
        fast, new, slow = self._fast, self._new, self._slow
        if not new.lanes and not slow.lanes:
            return fast if fast.lanes else None
        for ring in self._turns:
            if ring.lanes and self._may_begin(ring):
                self._turns.remove(ring)
                self._turns.append(ring)
                return ring
        return None

    def _may_begin(self, ring: _Ring) -> bool:
        if ring is self._fast:
            return True
        reserve, slow = self._reserve, self._slow.running
        if slow + self._new.running >= reserve.not_fast:
            return False
        if ring is self._new:
            return True
        others = self._fast.lanes or self._new.lanes
        return slow < (reserve.half if others else reserve.slow)

    def _queue(self, lane: _LocalLane) -> None:
        """Put *lane* at the end of its ring if it may begin."""
        if lane.rows and (lane.ring is not self._new or lane.running < NEW_EACH):
            lane.ring.lanes.append(lane)
            lane.queued = True

    def _place(self, lane: _LocalLane) -> None:
        """Move *lane* to the ring of its kind, if that has changed."""
        was = lane.ring
        ring = self._slow if lane.overdue else self._rings[_kind(lane.speed)]
        if ring is was:
            return
        if lane.queued:
            was.lanes.remove(lane)
            lane.queued = False
        lane.ring = ring
        was.running -= lane.running
        was.waiting -= len(lane.rows)
        was.body_bytes -= lane.body_bytes
        ring.running += lane.running
        ring.waiting += len(lane.rows)
        ring.body_bytes += lane.body_bytes
        if was is self._new and not was.waiting:
            self._silent = False
        self._queue(lane)
        if ring is self._slow:
            # As many as could begin soon may wait; others may have slots for the rest.
            most = max(0, self._reserve.slow - ring.running) + self._reserve.slow // RESERVE_SHARE
            self._take_back(lane, min(len(lane.rows), ring.waiting - most))

    def _find_silent(self) -> None:
        """A new lane turned out to be slow: others may be, too."""
        if not self._new.waiting:
            return
        self._silent = True
        for lane in list(self._lanes.values()):
            if lane.ring is self._new:
                excess = self._new.waiting - self._reserve.not_fast
                self._take_back(lane, min(len(lane.rows), excess))

    def _take_back(self, lane: _LocalLane, count: int) -> None:
        """Move the last *count* deliveries of *lane* that wait to the surplus."""
        if count <= 0:
            return
        ring = lane.ring
        taken = [lane.rows.pop() for _ in range(count)]
        size = sum(len(delivery.body) for delivery in taken)
        ring.waiting -= count
        ring.body_bytes -= size
        lane.body_bytes -= size
        self._surplus += reversed(taken)
        if not lane.rows:
            if lane.queued:
                ring.lanes.remove(lane)
                lane.queued = False
            if not lane.running:
                del self._lanes[taken[0].webhook_id]


def _kind(speed: Speed) -> Kind:
    if speed.slow:
        return Kind.SLOW
    return Kind.NEW if speed.slow is None else Kind.FAST
