"""Signatures against published vectors, and against the reference package in both directions."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from webhookd.core import signing

NOW = 1_700_000_000

# The test suites of standard-webhooks: libraries/python/tests/test_webhooks.py and
# libraries/rust/src/lib.rs.
VECTORS = [
    pytest.param(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        id="python",
    ),
    pytest.param(
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
        "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        1649367553,
        b'{"email":"test@example.com","username":"test_user"}',
        "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
        id="rust",
    ),
]

keys = st.binary(min_size=24, max_size=64)
message_ids = st.text(alphabet="abcXYZ019_-", min_size=1, max_size=40)


@pytest.mark.parametrize(("secret", "message_id", "timestamp", "body", "signature"), VECTORS)
def test_published_vectors_are_signed_and_verified(
    secret: str, message_id: str, timestamp: int, body: bytes, signature: str
) -> None:
    key = signing.parse_secret(secret)
    assert signing.sign(key, message_id=message_id, timestamp=timestamp, body=body) == signature
    assert signing.verify(
        key,
        message_id=message_id,
        timestamp=timestamp,
        body=body,
        signature=signature,
        now=timestamp,
    )
    assert signing.format_secret(key) == secret


def test_the_published_wrong_signature_does_not_verify() -> None:
    assert not signing.verify(
        signing.parse_secret("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"),
        message_id="msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
        timestamp=1649367553,
        body=b'{"email":"test@example.com","username":"test_user"}',
        signature="v1,R3PTzyfHASBKHH98a7yexTwaJ4yNIcGhFQc1yuN+BPU=",
        now=1649367553,
    )


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_not base64!",
        "whsec_MfKQ9r8G",
        "whsec_" + "A" * 88 + "==",
        "whsec_é",
    ],
)
def test_a_malformed_secret_is_refused_without_being_repeated(secret: str) -> None:
    with pytest.raises(ValueError) as refused:
        signing.parse_secret(secret)
    payload = secret.removeprefix("whsec_")
    assert not payload or payload not in str(refused.value)


def test_a_dot_in_the_id_is_refused() -> None:
    with pytest.raises(ValueError, match="dot"):
        signing.sign(b"k" * 24, message_id="a.b", timestamp=NOW, body=b"")
    assert not signing.verify(
        b"k" * 24, message_id="a.b", timestamp=NOW, body=b"", signature="v1,", now=NOW
    )


@pytest.mark.parametrize(
    ("age", "verifies"), [(0, True), (300, True), (-300, True), (301, False), (-301, False)]
)
def test_only_timestamps_within_the_tolerance_verify(age: int, verifies: bool) -> None:
    key = b"k" * 24
    signature = signing.sign(key, message_id="m", timestamp=NOW, body=b"{}")
    assert verifies is signing.verify(
        key, message_id="m", timestamp=NOW, body=b"{}", signature=signature, now=NOW + age
    )


@pytest.mark.parametrize("stray", ["", "v1", "v1,", "v1a,AAAA", "v2,x", "\u2028", "\udcff", "v1,é"])
def test_one_good_signature_among_strange_ones_is_enough_and_the_strange_ones_alone_are_not(
    stray: str,
) -> None:
    key = b"k" * 24
    good = signing.sign(key, message_id="m", timestamp=NOW, body=b"{}")
    for signature, verifies in (
        (f"{stray} {good}", True),
        (f"{good} {stray}", True),
        (stray, False),
    ):
        assert verifies is signing.verify(
            key, message_id="m", timestamp=NOW, body=b"{}", signature=signature, now=NOW
        )


@given(
    key=keys, message_id=message_ids, body=st.binary(max_size=300), other=st.binary(max_size=300)
)
def test_a_signature_verifies_for_its_own_bytes_only(
    key: bytes, message_id: str, body: bytes, other: bytes
) -> None:
    signature = signing.sign(key, message_id=message_id, timestamp=NOW, body=body)
    for sent in (body, other):
        assert (sent == body) is signing.verify(
            key, message_id=message_id, timestamp=NOW, body=sent, signature=signature, now=NOW
        )
    assert not signing.verify(
        key, message_id=message_id, timestamp=NOW + 1, body=body, signature=signature, now=NOW
    )
    assert not signing.verify(
        key, message_id=message_id + "x", timestamp=NOW, body=body, signature=signature, now=NOW
    )


json_bodies = st.dictionaries(
    st.text(max_size=20), st.one_of(st.integers(), st.text(max_size=50)), max_size=5
)


@given(key=keys, message_id=message_ids, payload=json_bodies)
def test_the_reference_package_verifies_our_signatures(
    key: bytes, message_id: str, payload: dict[str, object]
) -> None:
    body = json.dumps(payload, ensure_ascii=False).encode()
    now = int(datetime.now(UTC).timestamp())
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": signing.sign(key, message_id=message_id, timestamp=now, body=body),
    }
    reference = Webhook(signing.format_secret(key))
    assert reference.verify(body, headers) == payload
    with pytest.raises(WebhookVerificationError):
        reference.verify(body + b" ", headers)


@given(key=keys, message_id=message_ids, payload=json_bodies)
def test_we_verify_signatures_of_the_reference_package(
    key: bytes, message_id: str, payload: dict[str, object]
) -> None:
    body = json.dumps(payload)
    at = datetime.fromtimestamp(NOW, UTC)
    signature = Webhook(signing.format_secret(key)).sign(message_id, at, body)
    assert signing.verify(
        key, message_id=message_id, timestamp=NOW, body=body.encode(), signature=signature, now=NOW
    )
