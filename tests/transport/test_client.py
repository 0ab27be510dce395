"""The transport's requests, the answers to them and its deadline, against real receivers, most of
them hostile.
"""

import gzip

import pytest

from tests.support.receivers import (
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
    never_reading,
    refusing,
    resetting,
    silent,
)
from tests.support.transport import BODY, HEADER_LINES, LARGE, SHORT_S, post
from webhookd.core.answer import AnswerKind
from webhookd.transport.client import Transport

# --- the request


def test_the_request_is_sent_byte_for_byte(sender: Transport) -> None:
    with Receiver(answering()) as receiver:
        answer = post(sender, receiver.url("/a/b?c=d&e"), body='{"ü": 1}'.encode())
    assert (answer.kind, answer.http_status, answer.excerpt, answer.error) == (
        AnswerKind.RESPONSE,
        200,
        "ok",
        None,
    )
    assert receiver.requests == [
        b"POST /a/b?c=d&e HTTP/1.1\r\n"
        b"host: 127.0.0.1:%d\r\n%b"
        b"content-length: 9\r\n"
        b"\r\n"
        b'{"\xc3\xbc": 1}' % (receiver.port, HEADER_LINES)
    ]


@pytest.mark.parametrize("size", [0, 1, 16_000, 16_384, 100_000, 10_000_000])
def test_a_body_of_any_size_arrives_whole_and_the_connection_is_kept(
    sender: Transport, size: int
) -> None:
    body = b"ab" * (size // 2) + b"c" * (size % 2)
    with Receiver(answering()) as receiver:
        answers = [post(sender, receiver.url(), body=body) for _ in range(2)]
    assert [answer.http_status for answer in answers] == [200, 200]
    assert [answer.reused for answer in answers] == [False, True]
    assert all(request.endswith(b"\r\n\r\n" + body) for request in receiver.requests)


# --- answers

ANSWERS: dict[str, tuple[bytes, int, str, str | None]] = {
    "length": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello", None),
    "no reason": (b"HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n", 200, "", None),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, "", None),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, "", None),
    "chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: "
        b"chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nretry-after: 9\r\n\r\n",
        200,
        "hello",
        None,
    ),
    "until the end": (b"HTTP/1.0 200 OK\r\nserver: x\r\n\r\nhello", 200, "hello", None),
    "coded until the end": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
        200,
        "hello",
        None,
    ),
    "continue": (b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK, 200, "ok", None),
    "early hints": (
        b"HTTP/1.1 103 Early Hints\r\nretry-after: 1\r\nlink: </x>\r\n\r\n" + OK,
        200,
        "ok",
        None,
    ),
    "redirect": (
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
        302,
        "",
        None,
    ),
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
    "too long a body": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 500 No\r\n\r\n",
        200,
        "ok",
        None,
    ),
    "garbage after": (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok\x00\xff", 200, "ok", None),
    "strange status": (b"HTTP/1.1 999 Hm\r\ncontent-length: 0\r\n\r\n", 999, "", None),
}


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_reads_the_same_whole_and_byte_by_byte(
    sender: Transport, name: str, in_pieces: bool
) -> None:
    raw, status, excerpt, retry_after = ANSWERS[name]
    with Receiver(dripping(raw, interval_s=0) if in_pieces else answering_once(raw)) as receiver:
        answer = post(sender, receiver.url())
    assert (answer.kind, answer.error) == (AnswerKind.RESPONSE, None)
    assert (answer.http_status, answer.excerpt, answer.retry_after) == (
        status,
        excerpt,
        retry_after,
    )


GARBAGE = {
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP"),
    "rtsp": (b"RTSP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", "not HTTP"),
    "a page": (b"<html></html>", "not HTTP"),
    "http/2": (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "not HTTP"),
    "bad header": (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "not HTTP"),
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n",
        "not HTTP",
    ),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk",
        "not HTTP",
    ),
    "negative length": (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "not HTTP"),
    "bad chunk": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "body is malformed",
    ),
    "upgrade": (
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nxyz",
        "switched protocols",
    ),
    "bare 101": (b"HTTP/1.1 101 Switching\r\n\r\nxyz", "switched protocols"),
    "cut head": (b"HTTP/1.1 200 OK\r\ncontent-le", "closed in the middle"),
    "cut body": (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello", "closed in the middle"),
    "cut chunk": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        "closed in the middle",
    ),
    "no last chunk": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        "closed in the middle",
    ),
    "only informational": (b"HTTP/1.1 100 Continue\r\n\r\n", "closed in the middle"),
    "nothing": (b"", "closed without an answer"),
}


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_whole_answer_is_no_answer(
    sender: Transport, name: str, in_pieces: bool
) -> None:
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
    with refusing() as port:
        answer = post(sender, f"http://127.0.0.1:{port}/")
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
    assert (answer.kind, answer.error) == (
        AnswerKind.NO_ANSWER,
        "the answer's headers are longer than 64 KiB",
    )


@pytest.mark.parametrize(
    "endlessly",
    [
        endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        endless(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", b"x"),
        endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        endless(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n1;", b"x"),
        endless(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"a: b\r\n"
        ),
    ],
    ids=["until the end", "length", "chunks", "chunk extension", "trailers"],
)
def test_an_endless_body_is_cut_off_and_its_status_stands(
    sender: Transport, endlessly: Behaviour
) -> None:
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
def test_an_answer_that_comes_before_the_request_was_read_is_used(
    sender: Transport, then_close: bool
) -> None:
    raw = b"HTTP/1.1 413 Too Large\r\ncontent-length: 8\r\n\r\ntoo long"
    with Receiver(answering_early(raw, then_close=then_close)) as receiver:
        answers = [post(sender, receiver.url(), body=LARGE) for _ in range(2)]
    assert [(answer.http_status, answer.excerpt, answer.reused) for answer in answers] == [
        (413, "too long", False)
    ] * 2


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


# --- the deadline


@pytest.mark.parametrize(
    ("behaviour", "body", "phase"),
    [
        (silent, BODY, "while waiting for the answer"),
        (never_reading, BODY, "while waiting for the answer"),
        (never_reading, LARGE * 3, "while sending"),
        (silent, LARGE, "while waiting for the answer"),
        (dripping(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 999), BODY, "while reading the answer"),
        (dripping(b"HTTP/1.1 100 Continue\r\n\r\n" * 999), BODY, "while reading the answer"),
        (
            dripping(b"x" * 9999, at_once=b"HTTP/1.1 200 OK\r\n\r\n"),
            BODY,
            "while reading the answer",
        ),
        (
            answering_then_holding(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"),
            BODY,
            "while reading the answer",
        ),
    ],
    ids=[
        "silence",
        "stall",
        "stall large",
        "silence large",
        "drip head",
        "drip 100",
        "drip body",
        "short body",
    ],
)
def test_a_slow_receiver_is_left_at_the_deadline(
    sender: Transport, behaviour: Behaviour, body: bytes, phase: str
) -> None:
    with Receiver(behaviour) as receiver:
        answer = post(sender, receiver.url(), body=body, timeout_s=SHORT_S)
        receiver.stopping.set()  # a behaviour that drips looks at this
    assert (answer.kind, answer.http_status, answer.error) == (
        AnswerKind.TIMEOUT,
        None,
        f"timed out {phase}",
    )
    assert answer.elapsed_s >= SHORT_S


def test_no_time_at_all_is_a_timeout(sender: Transport) -> None:
    with Receiver(answering()) as receiver:
        assert post(sender, receiver.url(), timeout_s=0).kind is AnswerKind.TIMEOUT
        assert post(sender, receiver.url(), timeout_s=-1).kind is AnswerKind.TIMEOUT
