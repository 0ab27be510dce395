"""`webhookd listen`: a local receiver that prints what arrives and whether its signature is
valid.
"""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from webhookd.core.signing import sign
from webhookd.demo.receiver import MAX_BODY, Arrival, Receiver, printer
from webhookd.errors import WebhookdError
from webhookd.text import printable

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
BODY = b'{"a": 1}'


@contextmanager
def receiver(
    arrivals: list[Arrival], *, key: bytes | None = KEY, status: int = 200
) -> Iterator[tuple[str, int]]:
    """Run a receiver on a free port of loopback and yield its address."""
    running = Receiver("127.0.0.1", 0, key=key, status=status, show=arrivals.append)
    thread = threading.Thread(target=running.serve)
    thread.start()
    host, _, port = running.url.removeprefix("http://").rstrip("/").partition(":")
    try:
        yield host, int(port)
    finally:
        running.stop()
        thread.join()


def signed(key: bytes, *, body: bytes = BODY, timestamp: int | None = None) -> dict[str, str]:
    at = int(time.time()) if timestamp is None else timestamp
    signature = sign(key, message_id="msg_1", timestamp=at, body=body)
    return {"webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": signature}


def post(
    address: tuple[str, int], headers: dict[str, str], body: bytes = BODY, path: str = "/hook"
) -> int:
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request("POST", path, body=body, headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def test_an_arrival_is_shown_with_its_path_id_and_body() -> None:
    arrivals: list[Arrival] = []
    with receiver(arrivals) as address:
        assert post(address, signed(KEY), path="/hook?x=1") == 200
    assert [(one.path, one.message_id, one.signature, one.body) for one in arrivals] == [
        ("/hook?x=1", "msg_1", "valid", BODY)
    ]


@pytest.mark.parametrize(
    ("headers", "body", "verdict"),
    [
        pytest.param(signed(OTHER_KEY), BODY, "invalid", id="another key"),
        pytest.param(signed(KEY), b'{"a": 2}', "invalid", id="another body"),
        pytest.param({**signed(KEY), "webhook-id": "msg_2"}, BODY, "invalid", id="another id"),
        pytest.param(signed(KEY, timestamp=1_600_000_000), BODY, "invalid", id="replayed"),
        pytest.param({**signed(KEY), "webhook-timestamp": "soon"}, BODY, "invalid", id="no number"),
        pytest.param(
            {**signed(KEY), "webhook-timestamp": "9" * 400}, BODY, "invalid", id="a huge number"
        ),
        pytest.param({"webhook-id": "msg_1"}, BODY, "missing", id="unsigned"),
    ],
)
def test_what_is_not_signed_with_the_secret_does_not_pass(
    headers: dict[str, str], body: bytes, verdict: str
) -> None:
    arrivals: list[Arrival] = []
    with receiver(arrivals) as address:
        assert post(address, headers, body) == 200
    assert [one.signature for one in arrivals] == [verdict]


def test_without_a_secret_nothing_is_checked() -> None:
    arrivals: list[Arrival] = []
    with receiver(arrivals, key=None) as address:
        post(address, signed(OTHER_KEY))
    assert [one.signature for one in arrivals] == ["unchecked"]


def test_the_given_status_is_answered() -> None:
    with receiver([], status=503) as address:
        assert post(address, {}) == 503


@pytest.mark.parametrize("length", ["-1", str(MAX_BODY + 1), "many"])
def test_an_impossible_length_is_refused_and_the_next_request_served(length: str) -> None:
    arrivals: list[Arrival] = []
    with receiver(arrivals) as address:
        with socket.create_connection(address, timeout=20) as raw:
            raw.sendall(f"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n".encode())
            assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")
        assert post(address, signed(KEY)) == 200
    assert len(arrivals) == 1


def test_a_port_in_use_is_one_line_that_says_what_to_do() -> None:
    with receiver([]) as (host, port), pytest.raises(WebhookdError, match="give another --port"):
        Receiver(host, port, key=None, status=200, show=lambda arrival: None)


def test_lines_for_people_are_bounded_and_cannot_control_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = printer(as_json=False, printable=printable)
    show(Arrival(0.0, "/\x1b[2J", "\x9b31m", "valid", b"\x1b]0;x\x07" + b"a" * 100_000))
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert len(out) < 10_000


def test_lines_for_programs_are_one_json_object_for_each_arrival(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = printer(as_json=True, printable=printable)
    show(Arrival(1.5, "/hook", "msg_1", "valid", BODY))
    show(Arrival(2.5, "/hook", "msg_2", "missing", b"not json\n\xff"))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "at": 1.5,
        "path": "/hook",
        "webhook_id": "msg_1",
        "signature": "valid",
        "body": {"a": 1},
    }
    assert second["body"] == "not json\n\ufffd"
