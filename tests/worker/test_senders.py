"""The sender pool against real receivers: it grows for blocked exchanges only, and hands back what
it has not begun.
"""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.descriptors import crowded_out
from tests.support.receivers import OK, Behaviour, Peer, Receiver, answering
from tests.support.values import delivery, settings
from tests.support.waiting import eventually
from webhookd.core.answer import ShortageKind
from webhookd.core.model import Attempted, Delivery, GivenBack
from webhookd.core.speed import Speed
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.circuits import LocalCircuits
from webhookd.worker.results import ResultQueue
from webhookd.worker.senders import SenderPool
from webhookd.worker.wakeup import WakeReason, WakeupPipe


class Rig:
    """A sender pool with its queue of results, and deliveries for one receiver."""

    def __init__(self, receiver: Receiver, *, max_threads: int) -> None:
        self.transport = Transport(Egress(True, ["127.0.0.0/8"]))
        self.results = ResultQueue()
        self.wakeup = WakeupPipe()
        runner = AttemptRunner(self.transport, LocalCircuits(), installation="wh_test")
        self.senders = SenderPool(runner, self.results, max_threads=max_threads, wakeup=self.wakeup)
        self._settings = settings(url=receiver.url())

    def deliveries(self, count: int) -> list[Delivery]:
        return [
            delivery(delivery_id=number, settings=self._settings) for number in range(1, count + 1)
        ]

    def tick(self) -> None:
        self.senders.tick(time.monotonic())


@contextmanager
def rig(behaviour: Behaviour, *, max_threads: int) -> Iterator[tuple[Rig, Receiver]]:
    with Receiver(behaviour) as receiver:
        made = Rig(receiver, max_threads=max_threads)
        yield made, receiver
        made.senders.withdraw()
        made.transport.close()


def held(release: threading.Event) -> Behaviour:
    """A receiver that answers once *release* is set."""

    def answer(peer: Peer) -> None:
        while peer.read_request() is not None:
            release.wait(20)
            peer.send(OK)

    return answer


def test_slow_exchanges_get_all_slots_but_the_reserve_and_one_thread_stays_ready() -> None:
    release = threading.Event()
    with rig(held(release), max_threads=8) as (made, receiver):
        made.senders.submit(made.deliveries(20))

        def grown() -> bool:
            made.tick()
            return made.senders.threads == 7

        eventually(grown)
        assert receiver.wait_for_requests(6)
        for _ in range(10):
            made.tick()
        assert made.senders.threads == 7
        # The surplus has gone back; what is left waits for one of the six slots.
        assert made.senders.backlog() == 6
        assert len(made.results) == 14
        release.set()
        eventually(lambda: len(made.results) == 20)
        outcomes = [item.outcome for item in made.results.take(within_s=0.0, gather_s=0.0)]
        assert outcomes.count(GivenBack()) == 14


def test_the_pool_grows_to_its_limit_while_fast_lanes_keep_every_sender_waiting() -> None:
    def quick(peer: Peer) -> None:
        while peer.read_request() is not None:
            time.sleep(0.05)
            peer.send(OK)

    with rig(quick, max_threads=8) as (made, _):
        made.senders.submit(made.deliveries(2000))

        def grown() -> bool:
            made.tick()
            return made.senders.threads == 8

        eventually(grown)
        for _ in range(10):
            made.tick()
        assert made.senders.threads == 8


def test_a_fast_delivery_does_not_wait_for_slow_ones_that_hold_every_other_slot() -> None:
    release = threading.Event()
    fast = Speed(0.01, slow=False)
    with (
        rig(held(release), max_threads=4) as (made, receiver),
        Receiver(held(release)) as victim,
    ):
        slow = [item._replace(speed=Speed(1.0, slow=True)) for item in made.deliveries(10)]
        made.senders.submit(slow)
        assert receiver.wait_for_requests(2)
        assert made.senders.slow_room() == 0
        assert made.senders.room() > 0, "what waits for slow receivers takes no room of others"
        for number in range(2):
            to_victim = delivery(
                webhook_id=2 + number,
                delivery_id=100 + number,
                settings=settings(url=victim.url()),
                speed=fast,
            )
            made.senders.submit([to_victim])
            if number == 0:
                assert victim.wait_for_requests(1, timeout_s=3.0), (
                    "a thread is ready without a tick"
                )
        # The first one holds that thread, so the pool has to grow for the second.

        def grown() -> bool:
            made.tick()
            return len(victim.requests) == 2

        eventually(grown, 4.0)
        assert len(receiver.requests) == 2
        release.set()


def test_senders_that_wait_for_the_processor_get_no_company_and_leave_but_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nobody can be starved to order: the kernel's word is put into its mouth.
    starving_since = math.inf
    monkeypatch.setattr(
        "webhookd.worker.senders._run_delay_s",
        lambda thread_id: max(0.0, time.monotonic() - starving_since),
    )

    def slow(peer: Peer) -> None:
        while peer.read_request() is not None:
            time.sleep(0.02)
            peer.send(OK)

    with rig(slow, max_threads=8) as (made, _):
        made.senders.submit(made.deliveries(2000))

        def ticked(threads: int) -> bool:
            made.tick()
            return made.senders.threads == threads

        eventually(lambda: ticked(8))
        starving_since = time.monotonic()
        eventually(lambda: ticked(1))
        assert len(made.results) < 2000, "there was work for all of them"
        starving_since = math.inf
        eventually(lambda: ticked(8))


def test_a_fast_receiver_is_served_by_one_sender() -> None:
    def fast(peer: Peer) -> None:
        while peer.read_request() is not None:
            peer.send(OK)

    with rig(fast, max_threads=8) as (made, _):
        made.senders.submit(made.deliveries(200))
        eventually(lambda: len(made.results) == 200)
        assert made.senders.threads == 1
        assert made.senders.backlog() == 0
        first = made.results.take(within_s=0.0, gather_s=0.0)[0]
        assert isinstance(first.outcome, Attempted)
        assert first.outcome.answer.http_status == 200


def test_what_no_sender_has_begun_can_be_withdrawn() -> None:
    release = threading.Event()

    def stuck(peer: Peer) -> None:
        peer.read_request()
        release.wait(20)

    with rig(stuck, max_threads=1) as (made, receiver):
        made.senders.submit(made.deliveries(5))
        assert receiver.wait_for_requests(1)
        assert [one.delivery_id for one in made.senders.withdraw()] == [2, 3, 4, 5]
        assert made.senders.backlog() == 1
        release.set()
        eventually(lambda: made.senders.backlog() == 0)


def test_the_dispatcher_is_woken_once_there_is_room_again() -> None:
    release = threading.Event()

    def slow(peer: Peer) -> None:
        while peer.read_request() is not None:
            release.wait(20)
            peer.send(OK)

    with rig(slow, max_threads=1) as (made, _):
        made.senders.submit(made.deliveries(made.senders.room()))
        assert made.senders.room() <= 0
        made.senders.call_for_room()
        assert made.wakeup.drain() == []
        release.set()
        eventually(lambda: WakeReason.ROOM in made.wakeup.drain())


def test_more_is_asked_for_once_little_is_left() -> None:
    def quick(peer: Peer) -> None:
        while peer.read_request() is not None:
            time.sleep(0.002)
            peer.send(OK)

    shares: list[float] = []  # of what is held once more has come, those that were left
    with rig(quick, max_threads=1) as (made, _):
        until = time.monotonic() + 20
        while len(shares) < 10 and time.monotonic() < until:
            left = made.senders.backlog()
            if (room := made.senders.room()) > 0:
                made.senders.submit(made.deliveries(room))
                shares.append(left / (left + room))
            time.sleep(0.0005)
    assert len(shares) == 10
    assert max(shares) < 0.4  # where half is left, claims are twice as many and half as large


def test_a_delivery_too_late_for_its_lease_is_given_back_and_not_sent() -> None:
    with rig(lambda peer: None, max_threads=1) as (made, receiver):
        runner = AttemptRunner(made.transport, LocalCircuits(), installation="wh_test")
        late = made.deliveries(1)[0]._replace(start_before=0.0)
        assert runner.deliver(late) == GivenBack()
        assert receiver.connections == 0


def test_without_a_descriptor_a_delivery_is_given_back_and_its_siblings_are_held_back() -> None:
    with rig(answering(), max_threads=1) as (made, receiver):
        circuits = LocalCircuits()
        runner = AttemptRunner(made.transport, circuits, installation="wh_test")
        first, second = made.deliveries(2)
        with crowded_out():
            assert runner.deliver(first) == GivenBack(
                "no file descriptor left; raise LimitNOFILE", ShortageKind.DESCRIPTOR
            )
        assert runner.deliver(second) == GivenBack()
        circuits.mark_recorded({first.webhook_id}, now=time.monotonic())
        later = second._replace(claimed=time.monotonic())
        assert isinstance(runner.deliver(later), Attempted)
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("changed", [{"url": "ftp://a.example/"}, {"secret": "hunter2"}])
def test_what_the_row_rules_out_is_given_back_with_the_reason(changed: dict[str, Any]) -> None:
    with rig(answering(), max_threads=1) as (made, receiver):
        runner = AttemptRunner(made.transport, LocalCircuits(), installation="wh_test")
        [given] = made.deliveries(1)
        outcome = runner.deliver(given._replace(settings=given.settings._replace(**changed)))
        assert isinstance(outcome, GivenBack)
        assert outcome.reason is not None and outcome.shortage is None
        assert "hunter2" not in outcome.reason
        assert receiver.connections == 0
