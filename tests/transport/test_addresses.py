"""Which addresses the transport connects to: names, lookups that fail or drag on, and what is not
allowed.
"""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.receivers import Receiver, answering, black_hole
from tests.support.transport import LOOPBACK, SHORT_S, post, resolving
from webhookd.core.answer import AnswerKind
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress
from webhookd.transport.resolver import LookupFailed, Resolver


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
        (
            socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure"),
            "DNS: Non-recoverable failure",
        ),
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
        answers = list(
            threads.map(
                lambda _: post(slow, "http://slow.example.com/x", timeout_s=SHORT_S), range(4)
            )
        )
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


def test_without_a_further_thread_a_lookup_fails_and_the_next_one_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(resolving("127.0.0.1"), threads=1)

    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(LookupFailed, match="no further thread"):
            resolver.addresses("a.example.com", deadline=time.monotonic() + 20)
    assert resolver.addresses("a.example.com", deadline=time.monotonic() + 20) == ["127.0.0.1"]


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


@pytest.mark.parametrize(
    "addresses", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1"), ("127.0.0.1", "::1")]
)
def test_a_name_with_one_address_that_is_not_allowed_is_not_connected_at_all(
    addresses: tuple[str, ...],
) -> None:
    strict = Transport(
        Egress(allow_http=True, networks=["127.0.0.1/32"]), resolve=resolving(*addresses)
    )
    with Receiver(answering()) as receiver:
        answer = post(strict, receiver.url(host="hooks.example.com"))
        assert (answer.kind, receiver.connections) == (AnswerKind.NOT_ALLOWED, 0)
    assert answer.error is not None
    assert answer.error.startswith("hooks.example.com: the address ")


def test_a_dead_first_address_leaves_time_for_the_second() -> None:
    both = Transport(LOOPBACK, resolve=resolving("127.0.0.2", "127.0.0.3", "127.0.0.1"))
    with (
        Receiver(answering()) as receiver,
        black_hole("127.0.0.2", receiver.port),
    ):  # nothing listens on 127.0.0.3
        answer = post(both, receiver.url(host="hooks.example.com"), timeout_s=4.0)
        both.close()
    assert answer.http_status == 200


def test_a_connection_that_is_never_accepted_ends_at_the_deadline(sender: Transport) -> None:
    with black_hole() as port:
        answer = post(sender, f"http://127.0.0.1:{port}/", timeout_s=SHORT_S)
    assert (answer.kind, answer.error) == (AnswerKind.TIMEOUT, "timed out while connecting")
