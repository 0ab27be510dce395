"""The request of one attempt: what a webhook's row may add, and that each header goes once."""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from tests.support.values import settings as settings_of
from webhookd import __version__
from webhookd.core.signing import parse_secret, sign, verify
from webhookd.transport.egress import Egress, NotAllowed
from webhookd.transport.request import (
    build_request,
    header_lines,
    parse_headers,
    refusal,
    refusals,
    start_lines,
    unusable,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
BODY = b'{"alert": 1}'
NOW = 1_700_000_000
FORGED = {"webhook-id": "other", "Webhook-Signature": "v1,forged", "content-type": "text/plain"}
ONCE = (
    "host",
    "content-length",
    "content-type",
    "user-agent",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
)


def wire(headers: str | None, *, secret: str | None = SECRET) -> bytes:
    request = build_request(
        settings_of(headers=headers, secret=secret), message_id="wh_1_7", timestamp=NOW, body=BODY
    )
    return request.to_bytes(start_lines("/hook", "a.example"))


def reason(headers: Any) -> str:
    with pytest.raises(NotAllowed) as refused:
        header_lines(headers if isinstance(headers, str) else json.dumps(headers))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_request_has_our_headers_and_a_signature() -> None:
    head, _, body = wire('{"x-team": "billing"}').partition(b"\r\n\r\n")
    *lines, signature, length = head.split(b"\r\n")
    assert lines == [
        b"POST /hook HTTP/1.1",
        b"host: a.example",
        b"content-type: application/json",
        b"user-agent: webhookd/" + __version__.encode(),
        b"x-team: billing",
        b"webhook-id: wh_1_7",
        b"webhook-timestamp: %d" % NOW,
    ]
    assert length == b"content-length: 12"
    assert body == BODY
    assert verify(
        parse_secret(SECRET),
        message_id="wh_1_7",
        timestamp=NOW,
        body=BODY,
        signature=signature.decode().removeprefix("webhook-signature: "),
        now=NOW,
    )


@pytest.mark.parametrize(
    ("ends_in_s", "signers"),
    [
        (0.5, [SECRET, OLD_SECRET]),
        (86400.0, [SECRET, OLD_SECRET]),
        (float("inf"), [SECRET, OLD_SECRET]),
        (0.0, [SECRET]),
        (-0.5, [SECRET]),
    ],
)
def test_both_secrets_sign_before_the_old_ones_end_the_new_one_first(
    ends_in_s: float, signers: list[str]
) -> None:
    now = int(time.time())  # receivers refuse other timestamps
    settings = settings_of(
        secret=SECRET, old_secret=OLD_SECRET, old_secret_until_at=now + ends_in_s
    )
    request = build_request(settings, message_id="wh_1_7", timestamp=now, body=BODY)
    headers = dict(
        line.split(": ", 1) for line in request.header_lines.decode().splitlines() if line
    )
    assert headers["webhook-signature"].split(" ") == [
        sign(parse_secret(one), message_id="wh_1_7", timestamp=now, body=BODY) for one in signers
    ]
    for one in signers:
        Webhook(one).verify(BODY, headers)


def test_an_old_secret_signs_nothing_alone() -> None:
    settings = settings_of(secret=None, old_secret=OLD_SECRET, old_secret_until_at=NOW + 10.0)
    request = build_request(settings, message_id="wh_1_7", timestamp=NOW, body=BODY)
    assert b"webhook-signature" not in request.header_lines


def test_an_old_secret_that_cannot_sign_is_found_before_a_request_is_built() -> None:
    settings = settings_of(secret=SECRET, old_secret="hunter2", old_secret_until_at=NOW + 10.0)
    assert [column for column, _ in unusable(settings)] == ["secret"]
    with pytest.raises(NotAllowed, match="secret cannot be used"):
        build_request(settings, message_id="wh_1_7", timestamp=NOW, body=BODY)


def test_without_a_secret_there_is_no_signature() -> None:
    assert b"webhook-signature" not in wire(None, secret=None)


@pytest.mark.parametrize("secret", ["", "hunter2", "whsec_hunter2"])
def test_a_secret_that_cannot_sign_sends_nothing_and_is_not_repeated(secret: str) -> None:
    with pytest.raises(NotAllowed, match="secret cannot be used") as refused:
        wire(None, secret=secret)
    assert "hunter2" not in str(refused.value)


def test_the_row_replaces_content_type_and_user_agent_in_any_spelling() -> None:
    head = header_lines('{"Content-Type": "text/plain", "USER-AGENT": "ours/1"}')
    assert head == b"Content-Type: text/plain\r\nUSER-AGENT: ours/1\r\n"


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ('"blue"', "blue"),
        ('""', ""),
        ('"ü\\tx"', "ü\tx"),
        ("7", "7"),
        ("-0", "-0"),
        ("1.10", "1.10"),
        ("1e3", "1e3"),
        ("9" * 5000, "9" * 5000),
        ("true", "true"),
        ("false", "false"),
    ],
)
def test_a_value_is_sent_as_json_writes_it(value: str, sent: str) -> None:
    assert parse_headers(f'{{"x-value": {value}}}') == {"x-value": sent}
    assert f"\r\nx-value: {sent}\r\n".encode() in wire(f'{{"x-value": {value}}}')


def test_null_is_no_header_and_does_not_remove_ours() -> None:
    nothing = '{"x-a": null, "X-A": "1", "user-agent": null, "host": null}'
    assert parse_headers(nothing) == {"X-A": "1"}
    assert f"user-agent: webhookd/{__version__}".encode() in wire(nothing)


@pytest.mark.parametrize(
    "name",
    [
        "webhook-id",
        "Webhook-Signature",
        "webhook_timestamp",
        "WEBHOOK.ID",
        "webhook-anything",
        "Host",
        "content-length",
        "Content_Length",
        "transfer-encoding",
        "TE",
        "trailer",
        "expect",
        "connection",
        "Keep_Alive",
        "proxy-connection",
        "proxy-authorization",
        "upgrade",
    ],
)
def test_a_name_that_is_reserved_is_refused_in_any_spelling(name: str) -> None:
    said = reason({"x-a": "1", name: "hunter2"})
    assert f"the header {name!r} is set by webhookd or by HTTP" in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (FORGED, "'webhook-id'"),
        ({"X-A": 1, "x-a": 2}, "'X-A' and 'x-a' are the same"),
        ({"X-A": 1, "x_a": 2}, "'X-A' and 'x_a' are the same"),
        ({"content-type": "a/b", "Content-Type": "a/b"}, "are the same"),
        ({"user_agent": "x"}, "must be spelled user-agent"),
        ({"x-a": []}, "'x-a' is a list or an object"),
        ({"x-a": {"b": 1}}, "'x-a' is a list or an object"),
        ({"x-a": "1\r\nx-b: 2"}, "value of the header 'x-a' contains a character"),
        ({"x-a": "1\nx-b: 2"}, "value of the header 'x-a' contains a character"),
        ({"x-a": "1\r"}, "value of the header 'x-a' contains a character"),
        ({"x-a": "\x00"}, "value of the header 'x-a' contains a character"),
        ({"x-a": "\x7f"}, "value of the header 'x-a' contains a character"),
        ({"x-a": "\ud800"}, "value of the header 'x-a' contains a character"),
        ({"x a": "1"}, "a header's name"),
        ({"x-a:": "1"}, "a header's name"),
        ({"x-a: 1\r\nx-b": "2"}, "a header's name"),
        ({"x-ü": "2"}, "a header's name"),
        ({"x-a\n": "2"}, "a header's name"),
        ({"": "1"}, "a header's name"),
        ([1], "cannot be read"),
        ("null", "cannot be read"),
        ('"x"', "cannot be read"),
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ('{"x-a": ' + 3000 * "[" + 3000 * "]" + "}", "cannot be read"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_with_the_reason(headers: Any, words: str) -> None:
    assert words in reason(headers)


RESERVED_OR_NOT = ("connection", "te", "x-a", "authorization")
SPELLINGS = [
    spelling
    for name in (*ONCE, *RESERVED_OR_NOT)
    for base in (name, name.upper(), name.title(), name.swapcase())
    for spelling in (base, base.replace("-", "_"), base.replace("-", "."))
]
names = st.sampled_from(SPELLINGS) | st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = scalars | st.lists(scalars, max_size=2)
rows = st.dictionaries(names, values, max_size=6)


@given(st.one_of(rows, values))
@example(FORGED)
@example({"x-a": "1\r\nwebhook-id: other"})
@example({"Content-Type": "text/plain", "User-Agent": "x"})
def test_any_row_sends_each_of_our_headers_once_or_nothing(row: Any) -> None:
    try:
        sent = wire(json.dumps(row))
    except NotAllowed:
        return
    head, _, body = sent.partition(b"\r\n\r\n")
    assert body == BODY
    lines = head.split(b"\r\n")[1:]
    assert not [line for line in lines if b"\r" in line or b"\n" in line or b": " not in line]
    found = Counter(
        line.partition(b":")[0].decode("ascii").lower().replace("_", "-") for line in lines
    )
    assert {name: found[name] for name in ONCE} == dict.fromkeys(ONCE, 1)
    assert b"webhook-id: wh_1_7" in lines
    assert max(found.values()) == 1


@given(
    st.dictionaries(st.sampled_from(["X-Team", "x-zone", "authorization"]), st.text(), min_size=1)
)
def test_what_a_row_adds_arrives_as_it_was_written(row: dict[str, str]) -> None:
    try:
        parsed = parse_headers(json.dumps(row))
    except NotAllowed as refusal:
        assert "contains a character" in str(refusal)
        return
    assert parsed == row
    assert all(
        f"{name}: {value}\r\n".encode() in wire(json.dumps(row)) for name, value in row.items()
    )


@pytest.mark.parametrize("judge", [parse_headers, header_lines])
def test_a_refusal_is_the_same_for_registration_and_for_sending(
    judge: Callable[[str], object],
) -> None:
    with pytest.raises(NotAllowed, match="the header 'Host' is set by webhookd"):
        judge('{"Host": "a"}')


PLAIN = settings_of(url="https://a.example/")
STRICT, OPEN = Egress(allow_http=False), Egress(allow_http=True, networks=["127.0.0.0/8"])


@pytest.mark.parametrize(
    ("url", "strict", "lenient"),
    [
        ("https://a.example/?token=s3cr3t", None, None),
        ("http://a.example/?token=s3cr3t", "--allow-http permits it", None),
        ("https://127.0.0.1/?token=s3cr3t", "--allow-network permits such targets", None),
        ("https://10.0.0.1/", "is private", "is private"),
        ("https://u:s3cr3t@a.example/", "credentials", "credentials"),
        ("htps://a.example/", "the scheme 'htps'", "the scheme 'htps'"),
        ("a.example", "must start with https://", "must start with https://"),
        ("https://a.example/" + "x" * 9000, "is longer than", "is longer than"),
        ("https://localhost/", None, None),  # a name: what it resolves to is judged later
    ],
)
def test_a_refusal_says_why_nothing_can_be_sent_under_these_options(
    url: str, strict: str | None, lenient: str | None
) -> None:
    settings = PLAIN._replace(url=url)
    for egress, words in ((STRICT, strict), (OPEN, lenient)):
        reason = refusal(settings, egress)
        assert (reason is None) == (words is None)
        if reason is not None and words is not None:
            assert words in reason and "s3cr3t" not in reason and reason.isprintable()


def test_refusals_name_each_column_and_a_refusal_the_first() -> None:
    settings = PLAIN._replace(url="http://a.example/", secret="hunter2", headers='{"Host": "x"}')
    found = dict(refusals(settings, STRICT))
    assert list(found) == ["url", "headers", "secret"]
    assert refusal(settings, STRICT) == found["url"]
    assert list(dict(refusals(settings, OPEN))) == ["headers", "secret"]
    assert "hunter2" not in found["secret"]
