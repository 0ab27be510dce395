"""Receivers that are hostile or broken in every way, all at once, beside healthy ones that must not
notice.
"""

import gzip
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

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
    server_tls,
    silent,
    speaking_first,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]

STUB_DNS = str(Path(__file__).with_name("stub_dns_webhookd.py"))
MB = 2**20
# Each hostile receiver has two webhooks. One's circuit never opens, so that its deliveries keep
# senders busy all the time, and they have retries enough to be delivered once it is healed; the
# other's deliveries have two retries and may fail.
PATIENT, HASTY = range(10_000, 20_000), range(20_000, 30_000)
BROKEN = "timeout_seconds = 1, retry_max_seconds = 2, circuit_open_seconds = 2"
OPTIONS = ("--circuit-open", "2", "--drain-timeout", "10")

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

# What is odd but a success all the same: what stands before the status, the rest of the answer, and
# whether it closes then.
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
    """Return a sink that answers every request with success, in the odd manner *name*."""
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
    """Return a sink that says 503 as soon as it has a request's head, and never reads the body."""

    def behave(peer: Peer) -> None:
        if (head := peer.read_head()) is not None:
            sink.record(head)
            peer.send(_UNAVAILABLE + b"content-length: 0\r\n\r\n")
            peer.stall()

    sink = Sink(behaviour=behave)
    return sink


def break_webhooks(storm: Storm, urls: list[str], deliveries: int) -> None:
    """Register a patient and a hasty webhook at each of *urls*, which are all broken, with
    *deliveries* in two parts.
    """
    for webhooks, retries, limits in (
        (PATIENT, 1000, "max_in_flight = 8, circuit_failure_threshold = 1000000"),
        (HASTY, 2, "max_in_flight = 50"),
    ):
        storm.database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second, "
            "retry_base_seconds)"
            " SELECT %s + n - 1, url, 0, 0.2 FROM unnest(%s::text[]) WITH ORDINALITY AS u (url, n)",
            [webhooks[0], urls],
        )
        of_these = f"webhook_id BETWEEN {webhooks[0]} AND {webhooks[-1]}"
        storm.database.execute(f"UPDATE pggit.webhooks SET {BROKEN}, {limits} WHERE {of_these}")
        storm.insert(deliveries // 2, webhooks=len(urls), first=webhooks[0], max_retries=retries)


def attempts_that_failed(storm: Storm) -> dict[int, int]:
    """Return how many attempts of each webhook failed so far."""
    return dict(
        storm.database.execute(
            "SELECT webhook_id, failed_deliveries::int FROM pggit.webhook_health_metrics"
        )
    )


def unfinished_of(storm: Storm, first: int, count: int) -> int:
    """Return how many deliveries of *count* webhooks are unfinished."""
    found: int = storm.database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE delivery_status IN "
        "('pending', 'retrying', 'sending')"
        f" AND webhook_id BETWEEN {first} AND {first + count - 1}"
    )[0][0]
    return found


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

        # They hang all the time now, and everybody else's deliveries pass them.
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
            "the hostile receivers were hostile all the while"
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
    # The receiver closes what lay idle for 3 s just when the next request is on its way: that is no
    # failed attempt.
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


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the programs that are started trust *authority*."""
    with authority.cert_pem.tempfile() as bundle:
        monkeypatch.setenv("SSL_CERT_FILE", bundle)
        yield


def expired(authority: trustme.CA) -> ssl.SSLContext:
    then, later = datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC)
    return server_tls(authority.issue_cert("127.0.0.1", not_before=then, not_after=later))


def self_signed(authority: trustme.CA) -> ssl.SSLContext:
    other = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with other.cert_pem.tempfile() as certificate, other.private_key_pem.tempfile() as key:
        context.load_cert_chain(certificate, key)
    return context


def old_protocol(authority: trustme.CA) -> ssl.SSLContext:
    context = server_tls(authority.issue_cert("127.0.0.1"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    return context


def wanting_a_client_certificate(authority: trustme.CA) -> ssl.SSLContext:
    context = server_tls(authority.issue_cert("127.0.0.1"))
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    return context


BROKEN_TLS: dict[str, Callable[[trustme.CA], ssl.SSLContext]] = {
    "expired certificate": expired,
    "another host's certificate": lambda authority: server_tls(
        authority.issue_cert("127.0.0.2", "hooks.example.com")
    ),
    "another authority's certificate": lambda _: server_tls(trustme.CA().issue_cert("127.0.0.1")),
    "self-signed certificate": self_signed,
    "old TLS": old_protocol,
    "client certificate wanted": wanting_a_client_certificate,
}
BROKEN_HANDSHAKES: dict[str, Behaviour] = {
    "plain http on the TLS port": speaking_first(
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
    ),
    "handshake garbage": speaking_first(b"\x16\x03\x03\xff\xff" + bytes(range(256)) * 300),
    "handshake that stalls": never_reading,
    "handshake dripping": lambda peer: peer.drip(
        b"\x16\x03\x03\x3f\x00\x02\x00\x3e\xfc" + b"\x03" * 9999, interval_s=1.0
    ),
    "handshake reset": lambda peer: peer.reset(),
    "handshake alert": speaking_first(b"\x15\x03\x03\x00\x02\x02\x28"),
}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_broken_in_every_way(storm: Storm, authority: trustme.CA, trusted: None) -> None:
    sound = server_tls(authority.issue_cert("127.0.0.1"))
    with ExitStack() as stack:
        good = stack.enter_context(Sink())
        good.heal(sound)
        broken = []
        for make in BROKEN_TLS.values():
            broken.append(stack.enter_context(Sink()))
            broken[-1].heal(make(authority))
        broken += [
            stack.enter_context(Sink(behaviour=behaviour))
            for behaviour in BROKEN_HANDSHAKES.values()
        ]
        daemon = stack.enter_context(Daemon(storm.database.dsn, *OPTIONS))
        wait_until_ready(storm.database)
        urls = [f"https://127.0.0.1:{sink.port}/hook" for sink in broken]
        break_webhooks(storm, urls, 2400)
        for fault in [*BROKEN_TLS, *BROKEN_HANDSHAKES]:
            storm.inject(fault)
        failing = [*PATIENT[: len(urls)], *HASTY[: len(urls)]]
        eventually(
            lambda: all(attempts_that_failed(storm).get(webhook_id) for webhook_id in failing), 60.0
        )

        storm.register(good, count=20)
        storm.insert(2000, webhooks=20)
        with storm.recovering():
            eventually(
                lambda: unfinished_of(storm, 2000, 20) == 0,
                120.0,
                what="the healthy webhooks' deliveries",
            )
        assert unfinished_of(storm, PATIENT[0], len(urls)) == 1200
        assert not any(sink.arrivals for sink in broken), (
            "nothing is sent to who has not proved who he is"
        )
        for sink in broken:
            sink.heal(sound)
        with storm.recovering():
            storm.settle(timeout_s=120.0)
        assert daemon.stop() == 0
        storm.account(good, *broken, may_fail=HASTY)


# --- DNS


def test_dns_that_fails_flaps_or_takes_ten_seconds(storm: Storm, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    with ExitStack() as stack:
        good, healing = stack.enter_context(Sink()), stack.enter_context(Sink())
        daemon = stack.enter_context(
            Daemon(storm.database.dsn, *OPTIONS, program=[STUB_DNS, str(healed)])
        )
        wait_until_ready(storm.database)
        names = [
            f"{kind}-{number}"
            for kind in ("slow", "unknown", "failing", "silly")
            for number in range(5)
        ]
        urls = [healing.url(host=f"{name}.storm.test") for name in names]
        break_webhooks(storm, urls, 2000)
        storm.inject("name that does not resolve", len(names))
        failing = [*PATIENT[: len(urls)], *HASTY[: len(urls)]]
        eventually(
            lambda: all(attempts_that_failed(storm).get(webhook_id) for webhook_id in failing), 60.0
        )

        # Half of the healthy ones have names that resolve at once, a few have names that resolve
        # every other time.
        storm.register(good, count=40)
        port = good.port
        storm.database.execute(
            "UPDATE pggit.webhooks SET url = 'http://good-' || webhook_id || "
            f"'.storm.test:{port}/' || webhook_id"
            " WHERE webhook_id BETWEEN 2000 AND 2019"
        )
        storm.database.execute(
            "UPDATE pggit.webhooks SET url = 'http://flapping-' || webhook_id || "
            f"'.storm.test:{port}/' || webhook_id,"
            " circuit_open_seconds = 0.5 WHERE webhook_id BETWEEN 2020 AND 2024"
        )
        storm.inject("name that flaps", 5)
        storm.insert(2000, webhooks=40, max_retries=20)
        with storm.recovering():
            eventually(
                lambda: unfinished_of(storm, 2000, 40) == 0,
                60.0,
                what="the healthy webhooks' deliveries",
            )
        assert unfinished_of(storm, PATIENT[0], len(urls)) == 1000
        # A lookup holds a sender until its webhook's timeout, not until it is over.
        slow = [*PATIENT[:5], *HASTY[:5]]
        reasons = "SELECT DISTINCT event_details->>'reason' FROM pggit.alert_delivery_log WHERE webhook_id = ANY (%s)"
        found = [reason for (reason,) in storm.database.execute(reasons, [slow])]
        assert found
        assert all(reason.startswith("timed out while resolving slow-") for reason in found), found

        # A drain does not wait for names: exit 0 within its deadline, with nothing left leased.
        assert daemon.stop() == 0
        leased = (
            "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL"
        )
        assert storm.database.execute(leased) == [(0,)]
        storm.inject("drain amid lookups")
        healed.touch()
        with (
            Daemon(storm.database.dsn, *OPTIONS, program=[STUB_DNS, str(healed)]) as successor,
            storm.recovering(),
        ):
            storm.settle(timeout_s=120.0)
            assert successor.stop() == 0
        storm.account(good, healing, may_fail=HASTY)
