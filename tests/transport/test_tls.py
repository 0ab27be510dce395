"""Certificates and handshakes, good and bad, and exchanges within TLS."""

import re
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
import trustme

from tests.support.receivers import (
    Behaviour,
    Peer,
    Receiver,
    answering,
    answering_early,
    answering_once,
    dripping,
    never_reading,
    server_tls,
)
from tests.support.transport import BODY, LARGE, LOOPBACK, SHORT_S, post, resolving
from webhookd.core.answer import AnswerKind
from webhookd.errors import UnusableError
from webhookd.transport.client import Transport


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_sender(authority: trustme.CA) -> Iterator[Transport]:
    with authority.cert_pem.tempfile() as bundle:
        sender = Transport(LOOPBACK, ca_bundle=bundle, resolve=resolving("127.0.0.1"))
    yield sender
    sender.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("host", ["hooks.example.com", "hooks.example.com.", "127.0.0.1"])
def test_a_certificate_for_the_host_is_accepted_and_the_connection_kept(
    tls_sender: Transport, authority: trustme.CA, host: str, version: ssl.TLSVersion
) -> None:
    context = server_tls(authority.issue_cert("hooks.example.com", "127.0.0.1"))
    context.maximum_version = version
    with Receiver(answering(), tls=context) as receiver:
        answers = [
            post(tls_sender, receiver.url(host=host), body=body) for body in (BODY, LARGE, BODY)
        ]
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
            "hooks.example.com",
            not_before=datetime(2020, 1, 1, tzinfo=UTC),
            not_after=datetime(2020, 2, 1, tzinfo=UTC),
        ),
        "expired",
    ),
    "another authority": (
        lambda _: trustme.CA().issue_cert("hooks.example.com"),
        "issuer certificate|self-signed",
    ),
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


def test_a_certificate_without_the_address_in_the_url_is_no_answer(
    tls_sender: Transport, authority: trustme.CA
) -> None:
    certificate = authority.issue_cert("hooks.example.com", "127.0.0.2")
    with Receiver(answering(), tls=server_tls(certificate)) as receiver:
        answer = post(tls_sender, receiver.url(host="127.0.0.1"))
    assert (answer.kind, receiver.requests) == (AnswerKind.NO_ANSWER, [])
    assert "mismatch" in (answer.error or "")


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
    "plain http": (
        answering_once(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        AnswerKind.NO_ANSWER,
        "TLS: ",
    ),
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
def test_a_handshake_that_fails_or_drags_on_ends_within_the_deadline(
    tls_sender: Transport, name: str
) -> None:
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


def test_an_answer_dripped_inside_tls_ends_at_the_deadline(
    tls_sender: Transport, authority: trustme.CA
) -> None:
    context = server_tls(authority.issue_cert("hooks.example.com"))
    with Receiver(dripping(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 999), tls=context) as receiver:
        answer = post(tls_sender, receiver.url(host="hooks.example.com"), timeout_s=SHORT_S)
        receiver.stopping.set()
    assert (answer.kind, answer.error) == (AnswerKind.TIMEOUT, "timed out while reading the answer")


def test_an_answer_that_comes_early_is_used_over_tls_too(
    tls_sender: Transport, authority: trustme.CA
) -> None:
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
