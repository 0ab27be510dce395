"""Receivers whose TLS is broken in every way, beside a healthy one that must not notice."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
import trustme

from tests.storm.broken import (
    HASTY,
    OPTIONS,
    PATIENT,
    attempts_that_failed,
    break_webhooks,
    unfinished_of,
)
from tests.storm.sink import Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, wait_until_ready
from tests.support.receivers import (
    Behaviour,
    never_reading,
    server_tls,
    speaking_first,
)
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]


# --- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the programs that a test starts trust *authority*."""
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
            "nothing is sent to a receiver that has not proved its identity"
        )
        for sink in broken:
            sink.heal(sound)
        with storm.recovering():
            storm.settle(timeout_s=120.0)
        assert daemon.stop() == 0
        storm.account(good, *broken, may_fail=HASTY)
