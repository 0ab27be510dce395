"""The request that goes out for one delivery: our headers, the webhook's own, and the signature.

This is the one place that knows which headers webhookd sends. Workers, `webhookd webhook test`,
the registration of webhooks and the doctor all use it, so they cannot disagree. It also says why
no request to a webhook can be sent (`refusal`); a worker holds such a webhook's deliveries.
"""

import json
import math
import re
from collections.abc import Iterator
from sys import getsizeof
from typing import NamedTuple

from webhookd import __version__
from webhookd.cache import ByteCache
from webhookd.core.model import WebhookSettings
from webhookd.core.signing import parse_secret, sign
from webhookd.transport.egress import Egress, NotAllowed, Target, is_address

USER_AGENT = f"webhookd/{__version__}"

# A webhook's row may replace these, but not remove them.
_DEFAULTS = {"content-type": "application/json", "user-agent": USER_AGENT}
# Where the request goes, how its end is found (RFC 9112, 6), and what concerns one connection only
# (RFC 9110, 7.6.1, with the older names of RFC 2616, 13.5.1).
_RESERVED = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNSAFE_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_SHOWN = 60  # characters of a header's name in a message

# A webhook's are the same for each of its deliveries. By the JSON of its row.
_made_lines: ByteCache[str | None, bytes] = ByteCache(8 << 20)


class Request(NamedTuple):
    """A request without what depends on its URL. *header_lines* are complete lines in wire form."""

    header_lines: bytes
    body: bytes

    def to_bytes(self, start: bytes) -> bytes:
        """Return all bytes to send; *start* comes from `start_lines`."""
        # One formatting, so that a large body is copied once.
        lines, body = self
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (start, lines, len(body), body)


def start_lines(path: str, authority: str) -> bytes:
    """Return the request line and the host header; both parts come checked from `Egress.target`."""
    return f"POST {path} HTTP/1.1\r\nhost: {authority}\r\n".encode("ascii")


def build_request(
    settings: WebhookSettings, *, message_id: str, timestamp: int, body: bytes
) -> Request:
    """Return the request for one attempt, signed if the webhook has a secret; with the old one
    besides, after the new one, if *timestamp* is before the old one's end.

    *timestamp* is in Unix seconds, *message_id* ASCII without a dot. Raise `NotAllowed` for headers
    or a secret that cannot be used: an unsigned request would be worse than none, since the
    receiver relies on the signature.
    """
    fixed = header_lines(settings.headers)
    lines = f"webhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\n"
    signatures: list[str] = []
    try:
        for secret in _secrets(settings, at=timestamp):
            key = parse_secret(secret)
            signatures.append(sign(key, message_id=message_id, timestamp=timestamp, body=body))
    except ValueError as reason:
        raise NotAllowed(
            f"the webhook's secret cannot be used ({reason}): `webhookd webhook "
            "rotate-secret` writes a new one"
        ) from None
    if signatures:
        lines += f"webhook-signature: {' '.join(signatures)}\r\n"
    return Request(fixed + lines.encode("ascii"), body)


def refusal(settings: WebhookSettings, egress: Egress) -> str | None:
    """Return why no request to this webhook can be sent under the options in *egress*, in one line
    without a secret and without the URL's query; None: one can be sent.

    What a name resolves to may change at any time: it is judged at each connection, not here.
    """
    return next((reason for _, reason in refusals(settings, egress)), None)


def refusals(settings: WebhookSettings, egress: Egress) -> Iterator[tuple[str, str]]:
    """Yield all such reasons, each with the column of the webhook's row."""
    try:
        checked_target(settings.url, egress)
    except NotAllowed as reason:
        yield "url", str(reason)
    yield from unusable(settings)


def checked_target(url: str, egress: Egress) -> Target:
    """Return the parts of *url*. Raise `NotAllowed` where no request can be sent there: as
    `Egress.target` does, and for an address in it that is not allowed.
    """
    target = egress.target(url)
    if is_address(target.host):
        egress.check_address(target.host)
    return target


def unusable(settings: WebhookSettings) -> Iterator[tuple[str, str]]:
    """Yield those reasons that hold under any options."""
    try:
        parse_headers(settings.headers)
    except NotAllowed as reason:
        yield "headers", str(reason)
    try:
        for secret in _secrets(settings, at=-math.inf):
            parse_secret(secret)
    except ValueError as reason:
        yield "secret", f"the secret cannot be used: {reason}"


def _secrets(settings: WebhookSettings, *, at: float) -> tuple[str, ...]:
    """Return the secrets that sign a request of that instant (epoch seconds), the newest first."""
    secret, old, old_until_at = settings.secret, settings.old_secret, settings.old_secret_until_at
    if secret is None:
        return ()
    if old is None or old_until_at is None or at >= old_until_at:
        return (secret,)
    return (secret, old)


def header_lines(text: str | None) -> bytes:
    """Return content-type, user-agent and the headers in a row's JSON *text* in wire form (UTF-8).

    Raise `NotAllowed` as `parse_headers` does.
    """
    lines = _made_lines.get(text)
    if lines is None:
        lines = _make_lines(text)
        _made_lines.put(text, lines, getsizeof(text) + getsizeof(lines))
    return lines


def _make_lines(text: str | None) -> bytes:
    own = parse_headers(text)
    replaced = {name.lower() for name in own}
    ours = {name: value for name, value in _DEFAULTS.items() if name not in replaced}
    return "".join([f"{name}: {value}\r\n" for name, value in (ours | own).items()]).encode()


def parse_headers(text: str | None) -> dict[str, str]:
    """Return the headers in a row's JSON *text*, by name as the row spells it; None has none.

    A string, a number or a boolean is sent as JSON writes it; null is no header. Raise `NotAllowed`
    with one line, no value in it, for what is not sent: see `_check_name` and `_value`.
    """
    if text is None:
        return {}
    try:
        # Numbers keep their text: 1.10 stays 1.10, and no number is too long.
        found = json.loads(text, parse_float=str, parse_int=str)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NotAllowed("the webhook's headers cannot be read: they must be a JSON object")
    headers: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name, value in found.items():
        if value is None:
            continue
        folded = _check_name(name)
        if folded in seen:
            raise NotAllowed(
                f"the headers {_shown(seen[folded])} and {_shown(name)} are the same to a "
                "receiver: keep one"
            )
        seen[folded] = name
        headers[name] = _value(name, value)
    return headers


def _check_name(name: str) -> str:
    """Return *name* as a receiver may see it. Raise `NotAllowed` for a reserved or malformed one.

    CGI and its successors (WSGI, PHP) turn `-`, `_` and other punctuation into the same character,
    so that `Webhook_Id` would be a second webhook-id.
    """
    if not _NAME.fullmatch(name):
        raise NotAllowed(
            "a header's name is empty or contains a character that is not allowed there"
        )
    folded = re.sub(r"[^0-9a-z]", "-", name.lower())
    if folded in _RESERVED or folded.startswith("webhook-"):
        raise NotAllowed(f"the header {_shown(name)} is set by webhookd or by HTTP: leave it out")
    if folded in _DEFAULTS and folded != name.lower():
        raise NotAllowed(f"the header {_shown(name)} must be spelled {folded}")
    return folded


def _value(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        raise NotAllowed(
            f"the value of the header {_shown(name)} is a list or an object: write a string"
        )
    # A line break would let a value add another header or another request.
    if _UNSAFE_IN_VALUE.search(value):
        raise NotAllowed(
            f"the value of the header {_shown(name)} contains a character that is not allowed there"
        )
    return value


def _shown(name: str) -> str:
    return repr(name[:_SHOWN])
