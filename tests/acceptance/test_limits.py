"""What keeps a worker small, with the real program: workers are recycled, and claims are bounded by
their bytes.
"""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.daemon import (
    Daemon,
    arrivals,
    insert,
    register,
    wait_until_delivered,
    wait_until_ready,
)
from tests.support.postgres import Database
from tests.support.receivers import OK, Peer, Receiver
from tests.support.waiting import eventually


def answer_after(pause_s: float) -> Callable[[Peer], None]:
    def answer(peer: Peer) -> None:
        while peer.read_request() is not None:
            time.sleep(pause_s)
            peer.send(OK)

    return answer


def recycled(daemon: Daemon) -> list[str]:
    return re.findall(r"worker has passed its limit.*", daemon.log())


@pytest.mark.storm
def test_workers_replaced_under_load_lose_fail_and_repeat_nothing(database: Database) -> None:
    deliveries, options = 0, ("--worker-max-deliveries", "200", "--threads", "8")
    with Receiver(answer_after(0.03)) as receiver, Daemon(database.dsn, *options) as daemon:
        register(database, receiver)
        wait_until_ready(database)
        # More than three: a worker that replaced another has been replaced as well.
        while len(recycled(daemon)) <= 3:
            deliveries += 1000
            assert deliveries <= 20_000, "no worker is replaced"
            insert(database, 1000)
            wait_until_delivered(database, deliveries)
        assert daemon.stop() == 0
        log = daemon.log()
    assert len(receiver.requests) == deliveries
    assert set(arrivals(receiver).values()) == {1}
    assert database.execute("SELECT count(*)::int FROM pggit.alert_delivery_log") == [(deliveries,)]
    assert " error " not in log.lower() and "worker exited" in log and "restart_in_s" not in log, (
        log
    )


def test_a_worker_whose_memory_passes_the_limit_finishes_what_it_has_and_is_replaced(
    database: Database,
) -> None:
    noticed = threading.Event()

    def answer_once_noticed(peer: Peer) -> None:
        while peer.read_request() is not None:
            noticed.wait(20)
            peer.send(OK)

    options = ("--worker-max-rss", "128M", "--timeout", "30", "--max-body", "100M")
    with (
        Receiver(answer_once_noticed) as receiver,
        Daemon(database.dsn, *options, workers=1) as daemon,
    ):
        register(database, receiver)
        wait_until_ready(database, workers=1)
        (worker,) = daemon.workers()
        database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (2000, "
            "to_jsonb(repeat('x', 60000000)))"
        )
        eventually(lambda: "worker draining" in daemon.log(), what="the worker told to drain")
        assert "worker has passed its limit" in daemon.log()
        noticed.set()
        wait_until_delivered(database, 1)
        eventually(
            lambda: daemon.workers() and worker not in daemon.workers(), what="another worker"
        )
        assert daemon.stop() == 0
        assert "restart_in_s" not in daemon.log()
    assert set(arrivals(receiver).values()) == {1}


class HeadsOnly(Receiver):
    """Keeps the heads of requests, not their large bodies."""

    def record(self, request: bytes) -> None:
        super().record(request[:2000])


def peak_rss_mb(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) >> 10


@pytest.mark.storm
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc"
)
def test_large_bodies_are_claimed_by_their_bytes_even_where_they_are_stored_compressed(
    database: Database,
) -> None:
    with (
        HeadsOnly(answer_after(0.3)) as receiver,
        Daemon(database.dsn, "--timeout", "30", "--max-body", "10M", workers=1) as daemon,
    ):
        register(database, receiver)
        wait_until_ready(database, workers=1)
        (worker,) = daemon.workers()
        database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
            " SELECT 2000, to_jsonb(repeat('x', 8000000)) FROM generate_series(1, 60) n"
        )
        wait_until_delivered(database, 60)
        peak = peak_rss_mb(worker)
        assert daemon.workers() == [worker]
        assert daemon.stop() == 0
    assert set(arrivals(receiver).values()) == {1}
    assert len(receiver.requests) == 60
    assert peak < 450, f"{peak} MB; 700 without the bound"
