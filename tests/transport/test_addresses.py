"""Which addresses the transport connects to: names, lookups that fail or drag on, and what is not
allowed.
"""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.receivers import Receiver, answering, answering_once, black_hole
from tests.support.transport import LOOPBACK, SHORT_S, post, resolving
from webhookd.core.answer import AnswerKind
from webhookd.transport.addresses import MAX_ADDRESSES, DeadAddresses, has_source
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress


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
    # Two wait until their deadline. The others give their senders back after a moment.
    assert sorted((answer.kind, answer.error) for answer in answers) == [
        *[(AnswerKind.SHORTAGE, "too many wait for the DNS lookup of this name")] * 2,
        *[(AnswerKind.TIMEOUT, "timed out while resolving slow.example.com")] * 2,
    ]
    assert calls == ["slow.example.com"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://user:hunter2@127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/",
    ],
)
def test_a_url_that_names_loopback_is_not_allowed_by_default_and_nothing_is_connected(
    url: str,
) -> None:
    with Receiver(answering()) as receiver:
        strict = Transport(Egress(allow_http=True, ports=[receiver.port]))
        answer = post(strict, url.format(port=receiver.port))
        assert (answer.kind, receiver.connections) == (AnswerKind.NOT_ALLOWED, 0)
    assert answer.error
    assert "hunter2" not in answer.error


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "localhost"])
def test_a_name_that_resolves_to_loopback_is_retried_and_nothing_is_connected(host: str) -> None:
    with Receiver(answering()) as receiver:
        strict = Transport(Egress(allow_http=True, ports=[receiver.port]))
        answer = post(strict, receiver.url(host=host))
        # Unlike a literal address it may resolve to another one tomorrow.
        assert (answer.kind, receiver.connections) == (AnswerKind.NO_ANSWER, 0)
    assert answer.error is not None
    assert answer.error.startswith(f"{host}: the address 127.0.0.1 is loopback")


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
        assert (answer.kind, receiver.connections) == (AnswerKind.NO_ANSWER, 0)
    assert answer.error is not None
    assert answer.error.startswith("hooks.example.com: the address ")


def test_the_port_of_a_name_is_judged_with_the_address_that_it_has() -> None:
    # Another network permits the port, so the URL itself passes.
    egress = Egress(allow_http=True, networks=["10.0.0.0/8"], own=set())
    named = Transport(egress, resolve=resolving("8.8.8.8"))
    answer = post(named, "http://hooks.example.com:9000/")
    assert (answer.kind, answer.error) == (
        AnswerKind.NO_ANSWER,
        "hooks.example.com: the port 9000 is not allowed for http; --allow-port permits it",
    )


def test_a_dead_first_address_is_tried_last_the_next_time() -> None:
    both = Transport(LOOPBACK, resolve=resolving("127.0.0.2", "127.0.0.1"))
    with Receiver(answering_once()) as receiver, black_hole("127.0.0.2", receiver.port):
        url = receiver.url(host="hooks.example.com")
        first = post(both, url, timeout_s=4.0)
        assert receiver.wait_for_closed(1)
        second = post(both, url, timeout_s=4.0)
        both.close()
    assert (first.http_status, second.http_status, second.reused) == (200, 200, False)
    assert first.connect_s is not None and second.connect_s is not None
    assert first.connect_s > 1.0 > second.connect_s


def test_addresses_that_are_all_dead_are_tried_in_their_own_order_and_live_ones_come_first() -> (
    None
):
    now = 1000.0
    dead = DeadAddresses(clock=lambda: now)
    for address in ("a", "b"):
        dead.mark(address, 80)
    assert dead.last(["a", "b"], 80) == ["a", "b"]
    assert dead.last(["a", "c", "b", "d"], 80) == ["c", "d", "a", "b"]
    assert dead.last(["a", "c"], 443) == ["a", "c"]
    dead.unmark("a", 80)
    assert dead.last(["b", "a"], 80) == ["a", "b"]
    now += 60.0
    assert dead.last(["b", "c"], 80) == ["b", "c"]


def test_only_so_many_dead_addresses_are_remembered() -> None:
    dead = DeadAddresses(clock=lambda: 0.0)
    for number in range(MAX_ADDRESSES + 1):
        dead.mark(str(number), 80)
    assert dead.last(["0", "x"], 80) == ["0", "x"]
    assert dead.last(["1", "x"], 80) == ["x", "1"]


def test_a_family_that_this_host_does_not_have_is_no_shortage() -> None:
    # Where there is no route at all, the kernel names no source address.
    assert has_source("127.0.0.1")
    assert not has_source("255.255.255.255")


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
