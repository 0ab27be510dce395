"""A request is read the same however its bytes arrive."""

from http import HTTPStatus
from itertools import pairwise

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
