"""The answer to one request, and what it means for the delivery.

The rules are those of Standard Webhooks 1.0 (2xx is success, 3xx is not, 410 disables the webhook).
Every other status is tried again, 4xx included: a deploy, a wrong route or a rotated secret answers
401, 403 or 404 for a while. `Retry-After` follows RFC 9110, section 10.2.3.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple


class AnswerKind(StrEnum):
    """How the exchange ended, as the transport saw it."""

    # A complete answer with a status.
    RESPONSE = "response"
    # The deadline passed, in any phase from DNS to the last byte.
    TIMEOUT = "timeout"
    # DNS, connection refused or reset, TLS, not HTTP, a name with an address that is not allowed: a
    # retry may help.
    NO_ANSWER = "no_answer"
    # The webhook's row or the options rule out every request (scheme, URL, port, literal address,
    # headers, secret). Nothing was connected.
    NOT_ALLOWED = "not_allowed"
    # This worker lacked something of its own. Nothing was sent.
    SHORTAGE = "shortage"


class ShortageKind(StrEnum):
    """What a worker lacked for an exchange."""

    LOOKUP = "lookup"  # too many lookups run, of all names or of this name's domain
    DESCRIPTOR = "descriptor"
    MEMORY = "memory"
    PORT = "port"
    THREAD = "thread"


class Answer(NamedTuple):
    """How one exchange ended. *elapsed_s* runs from before DNS to the last byte.

    *excerpt* is the start of the answer's body, made printable. *dns_s*, *connect_s*, *tls_s* and
    *first_byte_s* are None for a phase that did not happen: a reused connection has no DNS, connect
    and TLS. *shortage* is what lacked, with SHORTAGE.
    """

    kind: AnswerKind
    elapsed_s: float
    http_status: int | None = None
    retry_after: str | None = None
    excerpt: str = ""
    error: str | None = None
    reused: bool = False
    dns_s: float | None = None
    connect_s: float | None = None
    tls_s: float | None = None
    first_byte_s: float | None = None
    shortage: ShortageKind | None = None


class Decision(StrEnum):
    """What becomes of the delivery."""

    DELIVERED = "delivered"
    RETRY = "retry"  # spends one retry
    THROTTLED = "throttled"  # 429: tried again without spending a retry
    GONE = "gone"  # 410: fails, and the webhook is disabled
    GIVE_BACK = "give_back"  # no exchange took place, through no fault of the receiver


class CircuitVote(StrEnum):
    """What an attempt tells the webhook's circuit breaker."""

    SUCCESS = "success"
    FAILURE = "failure"
    # A 429 says nothing about the receiver's health, and no exchange says nothing either.
    NEUTRAL = "neutral"


class Verdict(NamedTuple):
    """What an answer means. *retry_after_s* is what the receiver asked for; with *holds_webhook*
    all deliveries of the webhook wait that long.
    """

    decision: Decision
    vote: CircuitVote
    reason: str
    retry_after_s: float | None = None
    holds_webhook: bool = False
    disables_webhook: bool = False


def classify(answer: Answer, *, now_at: datetime) -> Verdict:
    """Return what *answer* means. *now_at* (aware) turns a Retry-After date into seconds."""
    if answer.kind in (AnswerKind.NOT_ALLOWED, AnswerKind.SHORTAGE):
        # The whole webhook waits: its other deliveries would meet the same at once.
        return Verdict(
            Decision.GIVE_BACK,
            CircuitVote.NEUTRAL,
            answer.error or "no exchange took place",
            holds_webhook=True,
        )
    if answer.kind is AnswerKind.TIMEOUT:
        return Verdict(Decision.RETRY, CircuitVote.FAILURE, answer.error or "timeout")
    if answer.kind is AnswerKind.NO_ANSWER or answer.http_status is None:
        return Verdict(Decision.RETRY, CircuitVote.FAILURE, answer.error or "no answer")
    wait_s = (
        None if answer.retry_after is None else parse_retry_after(answer.retry_after, now_at=now_at)
    )
    return _classify_status(answer.http_status, wait_s)


def is_success(http_status: int | None) -> bool:
    """Return whether an answer with this status means that the receiver has the message."""
    return http_status is not None and 200 <= http_status < 300


@lru_cache(maxsize=1024)
def _classify_status(status: int, wait_s: float | None) -> Verdict:
    reason = f"HTTP {status}"
    if is_success(status):
        return Verdict(Decision.DELIVERED, CircuitVote.SUCCESS, reason)
    if status == 410:
        return Verdict(Decision.GONE, CircuitVote.FAILURE, reason, disables_webhook=True)
    return Verdict(
        Decision.THROTTLED if status == 429 else Decision.RETRY,
        CircuitVote.NEUTRAL if status == 429 else CircuitVote.FAILURE,
        reason,
        retry_after_s=wait_s,
        holds_webhook=status in (429, 503) and wait_s is not None,
    )


def parse_retry_after(value: str, *, now_at: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for (at least 0); None where it has neither
    form of RFC 9110.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        # The RFC allows a number of any length. The caller applies its own maximum, which is far
        # below 1e9.
        return min(float(text), 1e9)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - now_at).total_seconds())
