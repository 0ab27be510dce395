"""Standard Webhooks 1.0 signatures, version 1: HMAC-SHA256 over `{id}.{timestamp}.{body}`.

Source: github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md, "Signature
scheme".
"""

import base64
import binascii
import hmac

SECRET_PREFIX = "whsec_"
MIN_KEY_BYTES = 24
MAX_KEY_BYTES = 64
_VERSION = "v1,"


def parse_secret(text: str) -> bytes:
    """Return the key inside *text*, which is `whsec_` and base64.

    Raise ValueError for any other text; the message does not contain it. This takes half a
    microsecond, so no cache keeps secrets.
    """
    if not text.startswith(SECRET_PREFIX):
        raise ValueError(f"a secret starts with {SECRET_PREFIX}")
    try:
        key = binascii.a2b_base64(text.removeprefix(SECRET_PREFIX), strict_mode=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"what follows {SECRET_PREFIX} is not base64") from None
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(
            f"a secret holds {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes in base64, this one "
            f"{len(key)}"
        )
    return key


def format_secret(key: bytes) -> str:
    """Return *key* in the form that the registry stores: `whsec_` and base64."""
    return SECRET_PREFIX + base64.b64encode(key).decode("ascii")


def sign(key: bytes, *, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of the `webhook-signature` header for *body*.

    *message_id* is the `webhook-id` header, *timestamp* the `webhook-timestamp` in Unix seconds.
    Raise ValueError if the id contains a dot: the signed text would be ambiguous.
    """
    if "." in message_id:
        raise ValueError(f"a webhook-id must not contain a dot: {message_id!r}")
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return _VERSION + base64.b64encode(hmac.digest(key, signed, "sha256")).decode("ascii")


def verify(
    key: bytes,
    *,
    message_id: str,
    timestamp: int,
    body: bytes,
    signature: str,
    now: float,
    tolerance_s: float = 300.0,
) -> bool:
    """Return whether *signature* contains one that *key* made for this message.

    *signature* is one or several, separated by spaces. A *timestamp* that is more than
    *tolerance_s* away from *now* (both Unix seconds) does not verify: this stops replays.
    """
    if abs(now - timestamp) > tolerance_s or "." in message_id:
        return False
    expected = sign(key, message_id=message_id, timestamp=timestamp, body=body).encode("ascii")
    # Bytes, since compare_digest refuses text that is not ASCII, and a header may hold anything.
    candidates = signature.encode("utf-8", "surrogateescape").split(b" ")
    # A list, not a generator: every candidate is compared, so that the time taken does not tell
    # which one matched.
    return any([hmac.compare_digest(expected, candidate) for candidate in candidates])
