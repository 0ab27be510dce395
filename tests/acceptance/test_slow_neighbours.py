"""Slow receivers beside a fast one, with real workers: they hold every slot but the reserve, and
the fast one's deliveries arrive all the same.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.daemon import Daemon, answer_ok, insert, register, wait_until_ready
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver
from tests.support.waiting import eventually
from webhookd.core.slots import Reserve

VICTIM = 1000
SLOW_LANES = 40
WORKERS, THREADS = 2, 8
OPTIONS = ("--threads", str(THREADS), "--timeout", "60")
SLOW_SLOTS = WORKERS * Reserve.of(THREADS).slow
KEPT = 0.7  # of what the slow ones reach alone


def delivered(database: Database, *, victim: bool) -> int:
    [(count,)] = database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue"
        " WHERE delivery_status = 'delivered' AND (webhook_id = %s) = %s",
        [VICTIM, victim],
    )
    return int(count)


def wait_for_victim(database: Database, deliveries: int) -> None:
    eventually(
        lambda: delivered(database, victim=True) == deliveries, 60, what="the victim's deliveries"
    )


@contextmanager
def set_in_the_end(event: threading.Event) -> Iterator[None]:
    try:
        yield
    finally:
        event.set()


def held(release: threading.Event) -> Callable[[Peer], None]:
    def answer(peer: Peer) -> None:
        while peer.read_request() is not None:
            release.wait(120)
            peer.send(OK)

    return answer


def test_a_fast_webhook_is_served_while_slow_ones_hold_all_other_slots(database: Database) -> None:
    release = threading.Event()
    with (
        Receiver(held(release)) as slow,
        Receiver(answer_ok) as victim,
        Daemon(database.dsn, *OPTIONS, workers=WORKERS) as daemon,
        set_in_the_end(release),
    ):
        register(database, victim, count=1, first=VICTIM)
        register(database, slow, count=SLOW_LANES)
        wait_until_ready(database, workers=WORKERS)
        insert(database, 1, webhooks=1, first=VICTIM)
        wait_for_victim(database, 1)
        insert(database, 5 * SLOW_LANES, webhooks=SLOW_LANES)
        assert slow.wait_for_requests(SLOW_SLOTS, timeout_s=60), "all slots but the reserve"
        for batch in range(1, 7):
            insert(database, 50, webhooks=1, first=VICTIM)
            wait_for_victim(database, 1 + 50 * batch)
        assert delivered(database, victim=False) == 0, "they still hold their slots"
        assert len(slow.requests) < WORKERS * THREADS
        assert database.execute(
            "SELECT circuit_state, slow FROM pggit.webhook_health_metrics WHERE webhook_id = %s",
            [VICTIM],
        ) == [("closed", False)]
        release.set()
        eventually(
            lambda: delivered(database, victim=False) == 5 * SLOW_LANES, 60, what="the slow ones"
        )
        assert len(slow.requests) == 5 * SLOW_LANES, "what was given back went out once"
        assert daemon.stop() == 0


def test_slow_webhooks_keep_most_of_their_own_throughput(database: Database) -> None:
    def take_their_time(peer: Peer) -> None:
        while peer.read_request() is not None:
            time.sleep(1.0)
            peer.send(OK)

    with (
        Receiver(take_their_time) as slow,
        Receiver(answer_ok) as victim,
        Daemon(database.dsn, *OPTIONS, workers=WORKERS) as daemon,
    ):
        register(database, victim, count=1, first=VICTIM)
        register(database, slow, count=SLOW_LANES)
        wait_until_ready(database, workers=WORKERS)
        insert(database, 1, webhooks=1, first=VICTIM)
        wait_for_victim(database, 1)
        insert(database, 20 * SLOW_LANES, webhooks=SLOW_LANES)
        assert slow.wait_for_requests(3 * SLOW_SLOTS, timeout_s=60)
        began, first = time.monotonic(), len(slow.requests)
        assert slow.wait_for_requests(first + 4 * SLOW_SLOTS, timeout_s=60)
        alone = 4 * SLOW_SLOTS / (time.monotonic() - began)
        began, first, fed = time.monotonic(), len(slow.requests), 1
        while len(slow.requests) < first + 4 * SLOW_SLOTS:
            insert(database, 20, webhooks=1, first=VICTIM)
            fed += 20
            wait_for_victim(database, fed)
        beside = (len(slow.requests) - first) / (time.monotonic() - began)
        assert delivered(database, victim=False) < 20 * SLOW_LANES, "they have a backlog"
        assert beside >= KEPT * alone
        assert daemon.process.poll() is None
