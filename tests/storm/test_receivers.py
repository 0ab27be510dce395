"""Receivers that break HTTP in every way, all at once, beside healthy ones that must not notice."""

import gzip
import re
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.storm.broken import (
    HASTY,
    OPTIONS,
    PATIENT,
    attempts_that_failed,
    break_webhooks,
    unfinished_of,
)
from tests.storm.sink import Sink, delivery_of
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, wait_until_ready
from tests.support.receivers import (
    OK,
    Behaviour,
    Peer,
    answering,
    answering_then_holding,
    black_hole,
    closing_when_used_after,
    dripping,
    endless,
    hanging_up,
    never_reading,
    refusing,
    resetting,
    silent,
    speaking_first,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]
MB = 2**20
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\n"
_BOMB = gzip.compress(b"\0" * 50_000_000)
_BOMB_BODY = b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(_BOMB) + _BOMB
HOSTILE: dict[str, Behaviour] = {
    "silent": silent,
    "not even reading": never_reading,
    "reset": resetting,
    "hanging up": hanging_up,
    "hanging up at once": lambda peer: None,
    "dripping its head": dripping(OK, interval_s=1.0),
    "dripping its body": dripping(
        b"x" * 999, at_once=_UNAVAILABLE + b"content-length: 999\r\n\r\n", interval_s=1.0
    ),
    "garbage": speaking_first(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "garbage in a chunk": answering(_UNAVAILABLE + b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
    "endless headers": endless(_UNAVAILABLE, b"x-y: z\r\n"),
    "endless header": endless(_UNAVAILABLE + b"x: ", b"y"),
    "endlessly continuing": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "endless body": endless(_UNAVAILABLE + b"\r\n", b"x"),
    "endless chunks": endless(_UNAVAILABLE + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "gzip bomb": answering(_UNAVAILABLE + _BOMB_BODY),
    "content-length too large": answering_then_holding(
        _UNAVAILABLE + b"content-length: 9\r\n\r\nx"
    ),
    "content-length too small": answering(_UNAVAILABLE + b"content-length: 1\r\n\r\n" + OK),
    "two content-lengths": answering(
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"
    ),
    "switching protocols": answering(
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
    ),
}
# Odd answers that are still a success: bytes before the status, the answer, and whether the
# connection is closed afterwards.
ODD: dict[str, tuple[bytes, bytes, bool]] = {
    "100 before 200": (b"HTTP/1.1 100 Continue\r\n\r\n", OK, False),
    "close after each answer": (
        b"",
        OK.replace(b"content-type: text/plain", b"connection: close"),
        True,
    ),
    "http/1.0 until the end": (b"", b"HTTP/1.0 200 OK\r\n\r\nok", True),
    "bomb with 200": (b"", b"HTTP/1.1 200 OK\r\n" + _BOMB_BODY, False),
    "200 with more than it says": (b"", OK + OK, False),
}


def resident(daemon: Daemon) -> int:
    """Return the resident bytes of the largest worker."""
    found = [
        re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        for pid in daemon.workers()
    ]
    return max(int(match[1]) * 1024 for match in found if match)


def odd(name: str) -> Sink:
    """Return a sink that answers every request with success, in the odd way *name*."""
    before, answer, close = ODD[name]

    def behave(peer: Peer) -> None:
        while (request := peer.read_request()) is not None:
            sink.accept(delivery_of(request))
            peer.send(before + answer)
            if close:
                return

    sink = Sink(behaviour=behave)
    return sink


def answering_before_reading() -> Sink:
    """Return a sink that answers 503 after a request's head, and never reads the body."""

    def behave(peer: Peer) -> None:
        if (head := peer.read_head()) is not None:
            sink.record(head)
            peer.send(_UNAVAILABLE + b"content-length: 0\r\n\r\n")
            peer.stall()

    sink = Sink(behaviour=behave)
    return sink


def test_hostile_receivers_all_at_once(storm: Storm) -> None:
    with ExitStack() as stack:
        good = stack.enter_context(Sink())
        hostile = [stack.enter_context(Sink(behaviour=behaviour)) for behaviour in HOSTILE.values()]
        hostile.append(stack.enter_context(answering_before_reading()))
        odds = [stack.enter_context(odd(name)) for name in ODD]
        dead = [
            f"http://127.0.0.1:{stack.enter_context(port)}/" for port in (refusing(), black_hole())
        ]
        daemon = stack.enter_context(Daemon(storm.database.dsn, *OPTIONS))
        wait_until_ready(storm.database)
        workers = set(daemon.workers())
        early = resident(daemon)

        urls = [sink.url() for sink in hostile] + dead
        break_webhooks(storm, urls, 12_000)
        for fault in [*HOSTILE, "answering before reading", "refusing", "black hole"]:
            storm.inject(fault)
        storm.inject("odd answer", len(odds))
        failing = [*PATIENT[: len(urls)], *HASTY[: len(urls)]]
        eventually(
            lambda: all(attempts_that_failed(storm).get(webhook_id) for webhook_id in failing), 60.0
        )

        # The hostile receivers hang all the time now; deliveries to all others pass them.
        storm.register(good)
        storm.insert(10_000)
        for index, sink in enumerate(odds):
            storm.register(sink, count=1, first=3000 + index, settings="timeout_seconds = 20")
            storm.insert(200, webhooks=1, first=3000 + index)
        with storm.recovering():
            eventually(
                lambda: unfinished_of(storm, 2000, 1000 + len(odds)) == 0,
                120.0,
                what="the healthy webhooks' deliveries",
            )
        assert unfinished_of(storm, PATIENT[0], len(urls)) == 6000, (
            "the hostile receivers were hostile all the time"
        )
        assert resident(daemon) - early < 100 * MB
        assert set(daemon.workers()) == workers

        for sink in hostile:
            sink.heal()
        storm.database.execute(
            f"UPDATE pggit.webhooks SET url = '{good.url()}' WHERE url = ANY (%s)", [dead]
        )
        with storm.recovering():
            storm.settle(timeout_s=120.0)
        assert set(daemon.workers()) == workers
        assert daemon.stop() == 0
        storm.account(good, *hostile, *odds, may_fail=HASTY)


def test_connections_closed_while_idle(storm: Storm) -> None:
    # The receiver closes a connection that was idle for 3 s just when the next request is on its
    # way: that is no failed attempt.
    def serve(peer: Peer, request: bytes) -> None:
        sink.answer(peer, request)

    with (
        Sink(behaviour=closing_when_used_after(3.0, serve)) as sink,
        Daemon(storm.database.dsn) as daemon,
    ):
        storm.register(sink, settings="max_in_flight = 4")
        wait_until_ready(storm.database)
        for _ in range(3):
            storm.insert(500)
            storm.settle()
            time.sleep(4.0)
        storm.insert(500)
        storm.settle()
        assert sink.closed > 0
        storm.inject("connection closed while idle", sink.closed)
        assert daemon.stop() == 0
        assert set(sink.arrivals.values()) == {1}
        storm.account(sink)
        assert storm.database.execute("SELECT max(attempts) FROM pggit.alert_delivery_queue") == [
            (1,)
        ]
