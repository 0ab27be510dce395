"""Which connections the transport keeps, reuses and gives up, and what becomes of a request on one
that is gone.
"""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.descriptors import crowded_out
from tests.support.receivers import (
    Peer,
    Receiver,
    answering,
    answering_once,
    answering_then_holding,
    hanging_up,
    hanging_up_on_the_second,
)
from tests.support.transport import LOOPBACK, post, resolving
from webhookd.core.answer import AnswerKind, ShortageKind
from webhookd.transport import client, connection
from webhookd.transport.client import Transport
from webhookd.transport.connection import Connection, Dialer, Origin, Pool, tls_context
from webhookd.transport.resolver import Resolver


def test_one_connection_carries_many_requests_and_the_phases_are_told_apart(
    sender: Transport,
) -> None:
    with Receiver(answering()) as receiver:
        answers = [post(sender, receiver.url(f"/{number}")) for number in range(5)]
        assert receiver.connections == 1
    assert [answer.reused for answer in answers] == [False, True, True, True, True]
    first, second = answers[:2]
    assert (first.dns_s, first.tls_s, second.dns_s, second.connect_s, second.tls_s) == (None,) * 5
    assert first.connect_s is not None
    assert first.first_byte_s is not None
    assert 0 < first.connect_s + first.first_byte_s < first.elapsed_s
    assert second.first_byte_s is not None


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok!",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1000000,
    ],
    ids=["connection: close", "http/1.0", "byte too many", "body not read to its end"],
)
def test_a_connection_in_doubt_is_not_kept(sender: Transport, raw: bytes) -> None:
    with Receiver(answering_then_holding(raw)) as receiver:
        answers = [post(sender, receiver.url()) for _ in range(2)]
        assert (receiver.connections, len(receiver.requests)) == (2, 2)
    assert [(answer.http_status, answer.reused) for answer in answers] == [(200, False)] * 2


def test_a_kept_connection_that_was_closed_meanwhile_costs_nothing(sender: Transport) -> None:
    with Receiver(answering_once()) as receiver:
        for count in range(1, 4):
            answer = post(sender, receiver.url())
            assert (answer.http_status, answer.reused) == (200, False)
            assert receiver.wait_for_closed(count)
        assert len(receiver.requests) == 3


def test_a_receiver_that_hangs_up_on_a_fresh_reuse_gets_the_request_once(sender: Transport) -> None:
    with Receiver(hanging_up_on_the_second) as receiver:
        first, second = post(sender, receiver.url()), post(sender, receiver.url())
        assert (receiver.connections, len(receiver.requests)) == (1, 2)
    assert first.http_status == 200
    assert (second.kind, second.reused, second.error) == (
        AnswerKind.NO_ANSWER,
        True,
        "closed without an answer",
    )


def test_a_request_that_dies_on_an_idle_connection_is_sent_once_more(
    sender: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_IDLE_BEFORE_RESEND_S", 0.0)
    with Receiver(hanging_up_on_the_second) as receiver:
        first, second = post(sender, receiver.url()), post(sender, receiver.url())
        assert (receiver.connections, len(receiver.requests)) == (2, 3)
    assert (first.http_status, second.http_status) == (200, 200)
    assert not second.reused


def test_a_request_that_dies_on_a_new_connection_is_not_sent_again(
    sender: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_IDLE_BEFORE_RESEND_S", 0.0)
    with Receiver(hanging_up) as receiver:
        answer = post(sender, receiver.url())
        assert (receiver.connections, len(receiver.requests)) == (1, 1)
    assert (answer.kind, answer.error) == (AnswerKind.NO_ANSWER, "closed without an answer")


def test_close_closes_the_idle_connections() -> None:
    closing = Transport(LOOPBACK)
    with Receiver(answering()) as receiver:
        assert post(closing, receiver.url()).http_status == 200
        closing.close()
        assert receiver.wait_for_closed(1)


def test_the_origin_used_longest_ago_loses_its_connections() -> None:
    narrow = Transport(LOOPBACK, origins=1)
    with Receiver(answering()) as first, Receiver(answering()) as second:
        assert post(narrow, first.url()).http_status == 200
        assert post(narrow, second.url()).http_status == 200
        assert first.wait_for_closed(1)
        narrow.close()


def test_a_pool_lends_the_connection_used_last_and_keeps_no_more_than_it_may() -> None:
    dialer = Dialer(LOOPBACK, Resolver(resolving()), tls_context(None))
    pool = Pool(dialer, Origin("http", "a.example", 80), max_kept=2)
    pairs = [socket.socketpair() for _ in range(3)]
    connections = [Connection(near) for near, _ in pairs]
    for kept in connections:
        pool.give_back(kept)
    assert connections[2].sock.fileno() == -1  # closed: two are kept already
    assert (pool.borrow(), pool.borrow(), pool.borrow()) == (connections[1], connections[0], None)
    pool.give_back(connections[0])
    pool.give_back(connections[1])
    pairs[1][1].close()
    assert pool.borrow() is connections[0]  # the other one has ended
    pool.give_back(connections[0])
    del pool
    assert all(connection.sock.fileno() == -1 for connection in connections)
    for _, far in pairs:
        far.close()


def test_without_a_free_descriptor_the_idle_connections_make_room(
    sender: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = connection._connect
    shortages = [OSError(24, "Too many open files")]

    def connect_later(address: str, port: int, limit_s: float, deadline: float) -> socket.socket:
        if shortages:
            raise shortages.pop()
        return connect(address, port, limit_s, deadline)

    with Receiver(answering()) as idle, Receiver(answering()) as wanted:
        assert post(sender, idle.url()).http_status == 200
        monkeypatch.setattr(connection, "_connect", connect_later)
        assert post(sender, wanted.url()).http_status == 200
        assert idle.wait_for_closed(1)


def test_without_a_single_descriptor_an_exchange_is_a_shortage_of_ours(sender: Transport) -> None:
    with Receiver(answering()) as receiver:
        with crowded_out():
            answer = post(sender, receiver.url())
        assert (answer.kind, answer.shortage) == (AnswerKind.SHORTAGE, ShortageKind.DESCRIPTOR)
        assert answer.error == "no file descriptor left; raise LimitNOFILE"
        assert post(sender, receiver.url()).http_status == 200
        assert receiver.connections == 1


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (OSError(23, "Too many open files in system"), ShortageKind.DESCRIPTOR),
        (OSError(105, "No buffer space available"), ShortageKind.MEMORY),
        (OSError(12, "Cannot allocate memory"), ShortageKind.MEMORY),
        (MemoryError(), ShortageKind.MEMORY),
        (OSError(99, "Cannot assign requested address"), ShortageKind.PORT),
    ],
)
def test_what_this_process_lacks_is_not_the_receivers_fault(
    sender: Transport, monkeypatch: pytest.MonkeyPatch, failure: Exception, kind: ShortageKind
) -> None:
    def fail(*_: object) -> socket.socket:
        raise failure

    monkeypatch.setattr(connection, "_connect", fail)
    answer = post(sender, "http://127.0.0.1:9/")
    assert (answer.kind, answer.shortage) == (AnswerKind.SHORTAGE, kind)


def test_a_busy_connection_is_given_up_some_minutes_after_it_was_opened(
    sender: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver(answering()) as receiver:
        assert post(sender, receiver.url()).http_status == 200
        assert post(sender, receiver.url()).reused
        monkeypatch.setattr(connection, "MAX_AGE_S", 0.0)
        sender.close()  # the next one is opened with that age
        for count in (2, 3):
            assert not post(sender, receiver.url()).reused
            assert receiver.wait_for_closed(count)


def test_a_connection_that_has_become_too_old_while_it_was_idle_is_not_lent() -> None:
    pool = Pool(
        Dialer(LOOPBACK, Resolver(resolving()), tls_context(None)),
        Origin("http", "a.example", 80),
        max_kept=2,
    )
    near, far = socket.socketpair()
    with far:
        kept = Connection(near)
        ages_s = {round(Connection(near).give_up_at - time.monotonic()) for _ in range(50)}
        assert len(ages_s) > 10 and 240 <= min(ages_s) <= max(ages_s) <= 360
        pool.give_back(kept)
        kept.give_up_at = time.monotonic()
        assert pool.borrow() is None
        assert near.fileno() == -1


def test_threads_share_a_transport_and_each_gets_its_own_answer() -> None:
    def echo(peer: Peer) -> None:
        while (request := peer.read_request()) is not None:
            body = request.partition(b"\r\n\r\n")[2]
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    shared = Transport(LOOPBACK, connections_per_origin=4)
    with Receiver(echo) as receiver, ThreadPoolExecutor(8) as threads:
        bodies = [json.dumps({"number": number}) for number in range(400)]
        answers = list(
            threads.map(lambda body: post(shared, receiver.url(), body=body.encode()), bodies)
        )
        shared.close()
    assert [answer.excerpt for answer in answers] == bodies
    assert all(answer.http_status == 200 for answer in answers)
