"""A request is read the same however its bytes arrive."""

from http import HTTPStatus
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhookd.metrics.request import MAX_HEAD_BYTES, Request, RequestReader

CHECK = settings(max_examples=200, deadline=None, database=None, derandomize=True)

REQUESTS = (
    b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\nAccept: */*\r\n\r\n",
    b"GET http://a:8000/metrics HTTP/1.1\nAccept-Encoding: gzip\nX: \n\n",
    b"HEAD /metrics HTTP/1.0\r\nX-Prometheus-Scrape-Timeout-Seconds: 5\r\n\r\nGET / HTTP/1.1\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: a\rSet-Cookie: b\r\n\r\n",
    b"\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
    b"not http at all\r\n\r\n",
)


def read(pieces: list[bytes]) -> Request | HTTPStatus | None:
    reader = RequestReader()
    for piece in pieces:
        answer = reader.feed(piece)
        if answer is not None:
            return answer
    return None


@CHECK
@given(st.sampled_from(REQUESTS), st.lists(st.integers(1, 100), max_size=20))
def test_the_pieces_do_not_matter(request: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(request), *(cut for cut in cuts if cut < len(request))})
    pieces = [request[start:end] for start, end in pairwise(places)]
    assert read(pieces) == read([request])


@pytest.mark.parametrize(
    "following",
    [
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"HEAD / HTTP/1.1\r\n\r\n",
        b"POST /",
        b"PRI * HTTP/2.0\r\n",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_what_follows_the_first_request_changes_nothing(method: str, following: bytes) -> None:
    first = f"{method} /metrics HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    assert read([first + following]) == Request(method, "/metrics", "", "", False)


@pytest.mark.parametrize("origin", ["http://web_1:8000", "http://a:70000", "HTTPS://a:"])
def test_a_whole_url_is_accepted_whatever_its_origin(origin: str) -> None:
    text = f"GET {origin}/metrics?x=1 HTTP/1.1\r\n\r\n".encode()
    assert read([text]) == Request("GET", "/metrics", "", "", False)


@pytest.mark.parametrize("text", [b"GET /healthz RTSP/1.0\r\n\r\n", b"\n\n", b"\r\n\r\n"])
def test_what_is_not_http_is_refused_at_once(text: bytes) -> None:
    assert read([text]) is HTTPStatus.BAD_REQUEST


def test_the_fields_that_decide_the_answer() -> None:
    assert read([REQUESTS[0]]) == Request("GET", "/metrics", "text/plain, */*", "", False)
    assert read([REQUESTS[1]]) == Request("GET", "/metrics", "", "gzip", False)
    assert read([REQUESTS[2]]) == Request("HEAD", "/metrics", "", "", True)
    assert read([REQUESTS[3]]) is HTTPStatus.BAD_REQUEST


@CHECK
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20))
def test_no_bytes_raise(pieces: list[bytes]) -> None:
    assert isinstance(read(pieces), Request | HTTPStatus | None)


def test_a_head_without_an_end_is_refused_at_its_limit() -> None:
    line = b"X: " + b"x" * 997
    lines = [b"GET / HTTP/1.1\r\n", *([line] * (MAX_HEAD_BYTES // len(line) + 1))]
    assert read(lines[:-2]) is None
    assert read(lines) is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
