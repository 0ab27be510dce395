"""The transport against real receivers, most of them hostile."""

import gzip
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
import trustme

from tests.receivers import (
    OK,
    Behaviour,
    Peer,
    Receiver,
    answering,
    answering_early,
    answering_once,
    answering_then_holding,
    dripping,
    endless,
    hanging_up,
    hanging_up_on_the_second,
    never_reading,
    resetting,
    silent,
)
from webhookd import connection, transport
from webhookd.core.answer import Answer, AnswerKind
from webhookd.egress import Egress
from webhookd.errors import UnusableError
from webhookd.resolver import LookupFailed, Resolve, Resolver
from webhookd.transport import Transport

LOOPBACK = Egress(allow_http=True, networks=["127.0.0.0/8"])
HEADERS = [("content-type", "application/json"), ("User-Agent", "webhookd/1"), ("webhook-id", "msg_1")]
BODY = b'{"alert": 1}'
LARGE = b"x" * 10_000_000
SHORT_S = 0.4
# How much later than its deadline an exchange may return on a machine that is busy; a hang is what this is for.
GUARD_S = 5.0


@pytest.fixture
def sender() -> Iterator[Transport]:
    with_loopback = Transport(LOOPBACK)
    yield with_loopback
    with_loopback.close()


def post(sender: Transport, url: str, *, body: bytes = BODY, timeout_s: float = 20.0) -> Answer:
    began_at = time.monotonic()
    answer = sender.post(url, headers=HEADERS, body=body, timeout_s=timeout_s)
    assert time.monotonic() - began_at < timeout_s + GUARD_S
    assert "\n" not in (answer.error or "")
    return answer


def resolving(*addresses: str) -> Resolve:
    """Return a resolver that finds *addresses* for every name."""

    def resolve(
        host: str, port: int, family: int, kind: int
    ) -> Sequence[tuple[int, int, int, str, tuple[object, ...]]]:
        return [
            (socket.AF_INET6, kind, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, kind, 6, "", (address, port))
            for address in addresses
        ]

    return resolve


# --- the request ------------------------------------------------------------------------------------------------------


def test_the_request_is_sent_byte_for_byte(sender: Transport) -> None:
    with Receiver(answering()) as receiver:
        answer = post(sender, receiver.url("/a/b?c=d&e"), body='{"ü": 1}'.encode())
    assert (answer.kind, answer.http_status, answer.excerpt, answer.error) == (AnswerKind.RESPONSE, 200, "ok", None)
    assert receiver.requests == [
        b"POST /a/b?c=d&e HTTP/1.1\r\n"
        b"host: 127.0.0.1:%d\r\n"
        b"content-type: application/json\r\nUser-Agent: webhookd/1\r\nwebhook-id: msg_1\r\n"
        b"content-length: 9\r\n"
        b"\r\n"
        b'{"\xc3\xbc": 1}' % receiver.port
    ]


@pytest.mark.parametrize("size", [0, 1, 16_000, 16_384, 100_000, 10_000_000])
def test_a_body_of_any_size_arrives_whole_and_the_connection_is_kept(sender: Transport, size: int) -> None:
    body = b"ab" * (size // 2) + b"c" * (size % 2)
    with Receiver(answering()) as receiver:
        answers = [post(sender, receiver.url(), body=body) for _ in range(2)]
    assert [answer.http_status for answer in answers] == [200, 200]
    assert [answer.reused for answer in answers] == [False, True]
    assert all(request.endswith(b"\r\n\r\n" + body) for request in receiver.requests)


@pytest.mark.parametrize(
    "header",
    [
        ("x-a", "1\r\nx-b: 2"),
        ("x-a", "1\nx-b: 2"),
        ("x-a", "1\r"),
        ("x-a", "\x00"),
        ("x-a", "\x7f"),
        ("x-a", "\ud800"),
        ("x a", "1"),
        ("x-a:", "1"),
        ("x-a: 1\r\nx-b", "2"),
        ("", "1"),
        ("Host", "example.com"),
        ("Content-Length", "1"),
        ("transfer-encoding", "chunked"),
        ("connection", "upgrade"),
    ],
)
def test_a_header_that_could_split_the_request_is_not_sent(sender: Transport, header: tuple[str, str]) -> None:
    with Receiver(answering()) as receiver:
        answer = sender.post(receiver.url(), headers=[*HEADERS, header], body=BODY, timeout_s=20)
        assert (answer.kind, receiver.connections) == (AnswerKind.NOT_ALLOWED, 0)
    assert answer.error is not None
    assert "header" in answer.error


def test_a_header_value_goes_out_in_utf_8(sender: Transport) -> None:
    with Receiver(answering()) as receiver:
        sender.post(receiver.url(), headers=[("x-name", "ü\tx")], body=BODY, timeout_s=20)
    assert "\r\nx-name: ü\tx\r\n".encode() in receiver.requests[0]


# --- answers ----------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[bytes, int, str, str | None]] = {
    "length": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello", None),
    "no reason": (b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", 200, "", None),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, "", None),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, "", None),
    "chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nretry-after: 9\r\n\r\n",
        200,
        "hello",
        None,
    ),
    "until the end": (b"HTTP/1.0 200 OK\r\nserver: x\r\n\r\nhello", 200, "hello", None),
    "coded until the end": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello", 200, "hello", None),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK, 200, "ok", None),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nretry-after: 1\r\nlink: </x>\r\n\r\n" + OK, 200, "ok", None),
    "redirect": (b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", 302, "", None),
    "retry": (
        b"HTTP/1.1 429 Slow\r\nRetry-After:  7 \r\nretry-after: 8\r\ncontent-length: 0\r\n\r\n",
        429,
        "",
        "7",
    ),
    "unprintable": (
        b"HTTP/1.1 500 Oops\r\ncontent-length: 13\r\n\r\na\r\nb\x00\x1b[1m\xff\xe2\x82\xac",
        500,
        "a  b  [1m\ufffd\u20ac",
        None,
    ),
    "too long a body": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 500 No\r\n\r\n", 200, "ok", None),
    "garbage after": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok\x00\xff", 200, "ok", None),
    "strange status": (b"HTTP/1.1 999 Hm\r\ncontent-length: 0\r\n\r\n", 999, "", None),
}


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_reads_the_same_whole_and_byte_by_byte(sender: Transport, name: str, in_pieces: bool) -> None:
    raw, status, excerpt, retry_after = ANSWERS[name]
    with Receiver(dripping(raw, interval_s=0) if in_pieces else answering_once(raw)) as receiver:
        answer = post(sender, receiver.url())
    assert (answer.kind, answer.error) == (AnswerKind.RESPONSE, None)
    assert (answer.http_status, answer.excerpt, answer.retry_after) == (status, excerpt, retry_after)


GARBAGE = {
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP"),
    "rtsp": (b"RTSP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", "not HTTP"),
    "a page": (b"<html></html>", "not HTTP"),
    "http/2": (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "not HTTP"),
    "bad header": (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "not HTTP"),
    "length and chunks": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n", "not HTTP"),
    "two lengths": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk", "not HTTP"),
    "negative length": (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "not HTTP"),
    "bad chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "body is malformed"),
    "upgrade": (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nxyz", "switched protocols"),
    "bare 101": (b"HTTP/1.1 101 Switching\r\n\r\nxyz", "switched protocols"),
    "cut head": (b"HTTP/1.1 200 OK\r\ncontent-le", "closed in the middle"),
    "cut body": (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", "closed in the middle"),
    "cut chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel", "closed in the middle"),
    "no last chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", "closed in the middle"),
    "only informational": (b"HTTP/1.1 100 Continue\r\n\r\n", "closed in the middle"),
    "nothing": (b"", "closed without an answer"),
}


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_whole_answer_is_no_answer(sender: Transport, name: str, in_pieces: bool) -> None:
    raw, error = GARBAGE[name]
    with Receiver(dripping(raw, interval_s=0) if in_pieces else answering_once(raw)) as receiver:
        answer = post(sender, receiver.url("/hook?token=hunter2"))
    assert (answer.kind, answer.http_status, answer.reused) == (AnswerKind.NO_ANSWER, None, False)
    assert answer.error is not None
    assert error in answer.error
    assert "hunter2" not in answer.error


def test_a_reset_is_no_answer(sender: Transport) -> None:
    with Receiver(resetting) as receiver:
        answer = post(sender, receiver.url())
    assert (answer.kind, answer.error) == (AnswerKind.NO_ANSWER, "connection reset")


def test_a_refused_connection_is_no_answer(sender: Transport) -> None:
    with socket.socket() as bound:  # never listens
        bound.bind(("127.0.0.1", 0))
        answer = post(sender, f"http://127.0.0.1:{bound.getsockname()[1]}/")
    assert (answer.kind, answer.error) == (AnswerKind.NO_ANSWER, "connection refused")


@pytest.mark.parametrize(
    "endlessly",
    [
        endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        endless(b"HTTP/1.1 200 OK\r\nx: ", b"y"),
        endless(b"HTTP/1.1 200 ", b"y"),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["headers", "one header", "reason", "informational"],
)
def test_an_endless_head_is_cut_off(sender: Transport, endlessly: Behaviour) -> None:
    with Receiver(endlessly) as receiver:
        answer = post(sender, receiver.url())
    assert (answer.kind, answer.error) == (AnswerKind.NO_ANSWER, "the answer's headers are longer than 64 KiB")


@pytest.mark.parametrize(
    "endlessly",
    [
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        endless(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", b"x"),
        endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n1;", b"x"),
        endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a: b\r\n"),
    ],
    ids=["until the end", "length", "chunks", "chunk extension", "trailers"],
)
def test_an_endless_body_is_cut_off_and_its_status_stands(sender: Transport, endlessly: Behaviour) -> None:
    with Receiver(endlessly) as receiver:
        answer = post(sender, receiver.url())
        assert receiver.wait_for_closed(1)
    assert (answer.kind, answer.http_status, answer.excerpt[:1]) == (AnswerKind.RESPONSE, 200, "x")
    assert len(answer.excerpt) <= 256


def test_a_compressed_body_is_left_as_it_is(sender: Transport) -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    with Receiver(answering(head + bomb)) as receiver:
        answers = [post(sender, receiver.url()) for _ in range(2)]
    assert [answer.http_status for answer in answers] == [200, 200]
    assert b"accept-encoding" not in receiver.requests[0].lower()


@pytest.mark.parametrize("then_close", [True, False], ids=["then closes", "then stalls"])
def test_an_answer_that_comes_before_the_request_was_read_is_used(sender: Transport, then_close: bool) -> None:
    raw = b"HTTP/1.1 413 Too Large\r\ncontent-length: 8\r\n\r\ntoo long"
    with Receiver(answering_early(raw, then_close=then_close)) as receiver:
        answers = [post(sender, receiver.url(), body=LARGE) for _ in range(2)]
    assert [(answer.http_status, answer.excerpt, answer.reused) for answer in answers] == [(413, "too long", False)] * 2


def test_an_informational_answer_does_not_stop_a_large_request(sender: Transport) -> None:
    def behave(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if peer.read_request() is not None:
            peer.send(OK)

    with Receiver(behave) as receiver:
        answer = post(sender, receiver.url(), body=LARGE)
    assert answer.http_status == 200
    assert receiver.requests[0].endswith(LARGE)


def test_a_close_in_the_middle_of_a_large_request_is_no_answer(sender: Transport) -> None:
    def behave(peer: Peer) -> None:
        peer.read_head()

    with Receiver(behave) as receiver:
        answer = post(sender, receiver.url(), body=LARGE)
    assert answer.kind is AnswerKind.NO_ANSWER
    # Which of the two the kernel reports depends on how much was still on its way.
    assert answer.error in ("connection reset", "closed without an answer")


# --- the deadline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "body", "phase"),
    [
        (silent, BODY, "while waiting for the answer"),
        (never_reading, BODY, "while waiting for the answer"),
        (never_reading, LARGE * 3, "while sending"),
        (silent, LARGE, "while waiting for the answer"),
        (dripping(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 999), BODY, "while reading the answer"),
        (dripping(b"HTTP/1.1 100 Continue\r\n\r\n" * 999), BODY, "while reading the answer"),
        (dripping(b"x" * 9999, at_once=b"HTTP/1.1 200 OK\r\n\r\n"), BODY, "while reading the answer"),
        (answering_then_holding(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"), BODY, "while reading the answer"),
    ],
    ids=["silence", "stall", "stall large", "silence large", "drip head", "drip 100", "drip body", "short body"],
)
def test_a_slow_receiver_is_left_at_the_deadline(
    sender: Transport, behaviour: Behaviour, body: bytes, phase: str
) -> None:
    with Receiver(behaviour) as receiver:
        answer = post(sender, receiver.url(), body=body, timeout_s=SHORT_S)
        receiver.stopping.set()  # a behaviour that drips looks at this
    assert (answer.kind, answer.http_status, answer.error) == (AnswerKind.TIMEOUT, None, f"timed out {phase}")
    assert answer.elapsed_s >= SHORT_S


def test_no_time_at_all_is_a_timeout(sender: Transport) -> None:
    with Receiver(answering()) as receiver:
        assert post(sender, receiver.url(), timeout_s=0).kind is AnswerKind.TIMEOUT
        assert post(sender, receiver.url(), timeout_s=-1).kind is AnswerKind.TIMEOUT


# --- kept connections -------------------------------------------------------------------------------------------------


def test_one_connection_carries_many_requests_and_the_phases_are_told_apart(sender: Transport) -> None:
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
    assert (second.kind, second.reused, second.error) == (AnswerKind.NO_ANSWER, True, "closed without an answer")


def test_a_request_that_dies_on_an_idle_connection_is_sent_once_more(
    sender: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_IDLE_BEFORE_RESEND_S", 0.0)
    with Receiver(hanging_up_on_the_second) as receiver:
        first, second = post(sender, receiver.url()), post(sender, receiver.url())
        assert (receiver.connections, len(receiver.requests)) == (2, 3)
    assert (first.http_status, second.http_status) == (200, 200)
    assert not second.reused


def test_a_request_that_dies_on_a_new_connection_is_not_sent_again(
    sender: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_IDLE_BEFORE_RESEND_S", 0.0)
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


def test_threads_share_a_transport_and_each_gets_its_own_answer() -> None:
    def echo(peer: Peer) -> None:
        while (request := peer.read_request()) is not None:
            body = request.partition(b"\r\n\r\n")[2]
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    shared = Transport(LOOPBACK, connections_per_origin=4)
    with Receiver(echo) as receiver, ThreadPoolExecutor(8) as threads:
        bodies = [json.dumps({"number": number}) for number in range(400)]
        answers = list(threads.map(lambda body: post(shared, receiver.url(), body=body.encode()), bodies))
        shared.close()
    assert [answer.excerpt for answer in answers] == bodies
    assert all(answer.http_status == 200 for answer in answers)


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_sender(authority: trustme.CA) -> Iterator[Transport]:
    with authority.cert_pem.tempfile() as bundle:
        sender = Transport(LOOPBACK, ca_bundle=bundle, resolve=resolving("127.0.0.1"))
    yield sender
    sender.close()


def server_tls(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("host", ["hooks.example.com", "hooks.example.com.", "127.0.0.1"])
def test_a_certificate_for_the_host_is_accepted_and_the_connection_kept(
    tls_sender: Transport, authority: trustme.CA, host: str, version: ssl.TLSVersion
) -> None:
    context = server_tls(authority.issue_cert("hooks.example.com", "127.0.0.1"))
    context.maximum_version = version
    with Receiver(answering(), tls=context) as receiver:
        answers = [post(tls_sender, receiver.url(host=host), body=body) for body in (BODY, LARGE, BODY)]
        assert receiver.connections == 1
    assert [answer.http_status for answer in answers] == [200, 200, 200]
    assert [answer.reused for answer in answers] == [False, True, True]
    assert receiver.requests[1].endswith(LARGE)
    assert f"\r\nhost: {host.rstrip('.')}:{receiver.port}\r\n".encode() in receiver.requests[0]
    assert answers[0].tls_s is not None
    assert (answers[0].dns_s is None) == (host == "127.0.0.1")


def test_the_name_is_sent_in_the_handshake(tls_sender: Transport, authority: trustme.CA) -> None:
    names: list[str | None] = []
    context = server_tls(authority.issue_cert("hooks.example.com"))
    context.sni_callback = lambda sock, name, _: names.append(name)
    with Receiver(answering(), tls=context) as receiver:
        assert post(tls_sender, receiver.url(host="hooks.example.com")).http_status == 200
    assert names == ["hooks.example.com"]


BadCertificate = Callable[[trustme.CA], trustme.LeafCert]
BAD_CERTIFICATES: dict[str, tuple[BadCertificate, str]] = {
    "wrong name": (lambda authority: authority.issue_cert("other.example.com"), "mismatch"),
    "expired": (
        lambda authority: authority.issue_cert(
            "hooks.example.com", not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=datetime(2020, 2, 1, tzinfo=UTC)
        ),
        "expired",
    ),
    "another authority": (lambda _: trustme.CA().issue_cert("hooks.example.com"), "issuer certificate|self-signed"),
}


@pytest.mark.parametrize("name", BAD_CERTIFICATES)
def test_a_bad_certificate_is_no_answer_and_nothing_is_sent(
    tls_sender: Transport, authority: trustme.CA, name: str
) -> None:
    issue, reason = BAD_CERTIFICATES[name]
    with Receiver(answering(), tls=server_tls(issue(authority))) as receiver:
        answer = post(tls_sender, receiver.url(host="hooks.example.com"))
    assert (answer.kind, receiver.requests) == (AnswerKind.NO_ANSWER, [])
    assert answer.error is not None
    assert answer.error.startswith("TLS: certificate verify failed: ")
    assert re.search(reason, answer.error)


def test_a_self_signed_certificate_is_no_answer(tls_sender: Transport) -> None:
    other = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with other.cert_pem.tempfile() as certificate, other.private_key_pem.tempfile() as key:
        context.load_cert_chain(certificate, key)
    with Receiver(answering(), tls=context) as receiver:
        answer = post(tls_sender, receiver.url(host="hooks.example.com"))
    assert answer.kind is AnswerKind.NO_ANSWER
    assert answer.error is not None
    assert "self-signed certificate" in answer.error


def test_the_systems_authorities_do_not_trust_a_private_one(authority: trustme.CA) -> None:
    trusting = Transport(LOOPBACK)
    with Receiver(answering(), tls=server_tls(authority.issue_cert("127.0.0.1"))) as receiver:
        answer = post(trusting, receiver.url())
    assert answer.kind is AnswerKind.NO_ANSWER
    assert answer.error is not None
    assert answer.error.startswith("TLS: certificate verify failed: ")


TLS_FAILURES: dict[str, tuple[Behaviour, AnswerKind, str]] = {
    "plain http": (answering_once(b"HTTP/1.1 400 Bad Request\r\n\r\n"), AnswerKind.NO_ANSWER, "TLS: "),
    "hangs up": (lambda peer: None, AnswerKind.NO_ANSWER, "TLS: "),
    "resets": (lambda peer: peer.reset(), AnswerKind.NO_ANSWER, "TLS: "),
    "silence": (never_reading, AnswerKind.TIMEOUT, "timed out in the TLS handshake"),
    "drip": (
        lambda peer: peer.drip(b"\x16\x03\x03\x3f\x00\x02\x00\x3e\xfc" + b"\x03" * 9999),
        AnswerKind.TIMEOUT,
        "timed out in the TLS handshake",
    ),
}


@pytest.mark.parametrize("name", TLS_FAILURES)
def test_a_handshake_that_fails_or_drags_on_ends_within_the_deadline(tls_sender: Transport, name: str) -> None:
    def plain(peer: Peer) -> None:
        peer.sock.recv(1)  # the hello is there; a close with the rest unread would be a reset
        behaviour(peer)

    behaviour, kind, error = TLS_FAILURES[name]
    if name == "plain http":
        behaviour = _answer_to_anything
    with Receiver(plain) as receiver:
        url = f"https://hooks.example.com:{receiver.port}/"
        answer = post(tls_sender, url, timeout_s=SHORT_S if kind is AnswerKind.TIMEOUT else 20.0)
        receiver.stopping.set()
    assert answer.kind is kind
    assert answer.error is not None
    assert answer.error.startswith(error)
    assert answer.tls_s is None


def _answer_to_anything(peer: Peer) -> None:
    peer.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    peer.hold()


def test_an_answer_dripped_inside_tls_ends_at_the_deadline(tls_sender: Transport, authority: trustme.CA) -> None:
    context = server_tls(authority.issue_cert("hooks.example.com"))
    with Receiver(dripping(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 999), tls=context) as receiver:
        answer = post(tls_sender, receiver.url(host="hooks.example.com"), timeout_s=SHORT_S)
        receiver.stopping.set()
    assert (answer.kind, answer.error) == (AnswerKind.TIMEOUT, "timed out while reading the answer")


def test_an_answer_that_comes_early_is_used_over_tls_too(tls_sender: Transport, authority: trustme.CA) -> None:
    raw = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n"
    context = server_tls(authority.issue_cert("hooks.example.com"))
    with Receiver(answering_early(raw, then_close=False), tls=context) as receiver:
        answer = post(tls_sender, receiver.url(host="hooks.example.com"), body=LARGE)
    assert (answer.http_status, answer.reused) == (413, False)


@pytest.mark.parametrize("content", [None, b"not a certificate"], ids=["missing", "garbage"])
def test_a_bundle_that_cannot_be_read_is_unusable(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | None
) -> None:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusableError, match=r"^the CA bundle \S+ cannot be read: [^\n]+$"):
        Transport(LOOPBACK, ca_bundle=str(path))


# --- names and addresses ----------------------------------------------------------------------------------------------


def test_a_name_is_resolved_and_its_host_header_sent() -> None:
    named = Transport(LOOPBACK, resolve=resolving("127.0.0.1"))
    with Receiver(answering()) as receiver:
        answer = post(named, receiver.url(host="hooks.example.com"))
        named.close()
    assert answer.http_status == 200
    assert answer.dns_s is not None
    assert b"\r\nhost: hooks.example.com:%d\r\n" % receiver.port in receiver.requests[0]


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "DNS: name not known"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "DNS: temporary failure"),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"), "DNS: Non-recoverable failure"),
        (UnicodeError("label too long"), "DNS: not a valid name"),
        (OSError(5, "Input/output error"), "DNS: the resolver failed"),
        (RuntimeError("a bug"), "DNS: the resolver failed"),
    ],
)
def test_a_name_that_cannot_be_resolved_is_no_answer(failure: Exception, error: str) -> None:
    def resolve(*_: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        raise failure

    answer = post(Transport(LOOPBACK, resolve=resolve), "http://hooks.example.com/?token=hunter2")
    assert (answer.kind, answer.error) == (AnswerKind.NO_ANSWER, error)


def test_a_name_without_addresses_is_no_answer() -> None:
    answer = post(Transport(LOOPBACK, resolve=resolving()), "http://hooks.example.com/")
    assert (answer.kind, answer.error) == (AnswerKind.NO_ANSWER, "DNS: name not known")


def test_slow_names_end_at_the_deadline_and_share_one_lookup() -> None:
    released = threading.Event()
    calls: list[str] = []

    def resolve(host: str, *_: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        calls.append(host)
        released.wait(60)
        return []

    slow = Transport(LOOPBACK, resolve=resolve)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: post(slow, "http://slow.example.com/x", timeout_s=SHORT_S), range(4)))
    released.set()
    assert {(answer.kind, answer.error) for answer in answers} == {
        (AnswerKind.TIMEOUT, "timed out while resolving slow.example.com")
    }
    assert calls == ["slow.example.com"]


def test_when_every_lookup_thread_is_stuck_others_are_told_so() -> None:
    released = threading.Event()

    def resolve(host: str, *_: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        released.wait(60)
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]

    resolver = Resolver(resolve, threads=1)
    with pytest.raises(TimeoutError):
        resolver.addresses("stuck.example.com", deadline=time.monotonic() + 0.1)
    with pytest.raises(LookupFailed, match="resolver busy"):
        resolver.addresses("other.example.com", deadline=time.monotonic() + 0.1)
    released.set()
    assert resolver.addresses("other.example.com", deadline=time.monotonic() + 20) == ["127.0.0.1"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://127.1:{port}/",
        "http://0x7f.1:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://2130706433:{port}/",
        "http://localhost:{port}/",
        "http://user:hunter2@127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/",
    ],
)
def test_loopback_in_any_form_is_not_allowed_by_default_and_nothing_is_connected(url: str) -> None:
    strict = Transport(Egress(allow_http=True))
    with Receiver(answering()) as receiver:
        answer = post(strict, url.format(port=receiver.port))
        assert (answer.kind, receiver.connections) == (AnswerKind.NOT_ALLOWED, 0)
    assert answer.error
    assert "hunter2" not in answer.error


@pytest.mark.parametrize("addresses", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "::1")])
def test_a_name_with_one_address_that_is_not_allowed_is_not_connected_at_all(addresses: tuple[str, ...]) -> None:
    strict = Transport(Egress(allow_http=True, networks=["127.0.0.1/32"]), resolve=resolving(*addresses))
    with Receiver(answering()) as receiver:
        answer = post(strict, receiver.url(host="hooks.example.com"))
        assert (answer.kind, receiver.connections) == (AnswerKind.NOT_ALLOWED, 0)
    assert answer.error is not None
    assert answer.error.startswith("hooks.example.com: the address ")


def test_a_dead_first_address_leaves_time_for_the_second() -> None:
    both = Transport(LOOPBACK, resolve=resolving("127.0.0.2", "127.0.0.3", "127.0.0.1"))
    with Receiver(answering()) as receiver, ExitStack() as stack:
        _fill_backlog(stack, "127.0.0.2", receiver.port)  # never answers; nobody listens on 127.0.0.3
        answer = post(both, receiver.url(host="hooks.example.com"), timeout_s=4.0)
        both.close()
    assert answer.http_status == 200


def test_a_connection_that_is_never_accepted_ends_at_the_deadline(sender: Transport) -> None:
    with ExitStack() as stack:
        port = _fill_backlog(stack, "127.0.0.1", 0)
        answer = post(sender, f"http://127.0.0.1:{port}/", timeout_s=SHORT_S)
    assert (answer.kind, answer.error) == (AnswerKind.TIMEOUT, "timed out while connecting")


def _fill_backlog(stack: ExitStack, host: str, port: int) -> int:
    """Listen on *host* with a backlog that is full, so that the kernel drops what else wants to connect."""
    listener = stack.enter_context(socket.socket())
    listener.bind((host, port))
    listener.listen(0)
    for _ in range(4):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return int(listener.getsockname()[1])
