"""What came back from one exchange, and what it means for the delivery.

The table is that of Standard Webhooks 1.0 (2xx is success, 3xx is not, 410 disables), with
`Retry-After` after RFC 9110, section 10.2.3.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple


class AnswerKind(StrEnum):
    """How the exchange ended, as the transport saw it."""

    RESPONSE = "response"  # a complete answer with a status
    TIMEOUT = "timeout"  # the deadline passed, in whatever phase
    NO_ANSWER = "no_answer"  # DNS, refused, reset, TLS, not HTTP: retrying may help
    NOT_ALLOWED = (
        "not_allowed"  # scheme, address or URL: nothing was connected, retrying cannot help
    )


class Answer(NamedTuple):
    """One exchange's end. *elapsed_s* runs from before DNS to the last byte.

    *excerpt* is the head of the answer's body, made printable. The phases are None where they did
    not happen (a reused connection has no DNS, connect and TLS).
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


class Decision(StrEnum):
    """What becomes of the delivery."""

    DELIVERED = "delivered"
    RETRY = "retry"  # spends one retry
    THROTTLED = "throttled"  # comes again without spending a retry (429)
    FAIL = "fail"
    GONE = "gone"  # fails, and the webhook is disabled (410)


class CircuitVote(StrEnum):
    """What an attempt tells the webhook's circuit breaker."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = (
        "neutral"  # 429 and targets that are not allowed say nothing about the receiver's health
    )


class Verdict(NamedTuple):
    """An answer, classified. *retry_after_s* is the receiver's own wish; *holds_webhook* stretches
    it over the whole webhook.
    """

    decision: Decision
    vote: CircuitVote
    reason: str
    retry_after_s: float | None = None
    holds_webhook: bool = False
    disables_webhook: bool = False


_RETRIED_STATUSES = frozenset({408, 425, 429})


def classify(answer: Answer, *, now_at: datetime) -> Verdict:
    """Return what *answer* means. *now_at* (aware) turns a Retry-After date into seconds."""
    if answer.kind is AnswerKind.NOT_ALLOWED:
        return Verdict(Decision.FAIL, CircuitVote.NEUTRAL, answer.error or "target not allowed")
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
    if status >= 500 or status in _RETRIED_STATUSES:
        return Verdict(
            Decision.THROTTLED if status == 429 else Decision.RETRY,
            CircuitVote.NEUTRAL if status == 429 else CircuitVote.FAILURE,
            reason,
            retry_after_s=wait_s,
            holds_webhook=status in (429, 503) and wait_s is not None,
        )
    if status < 200:
        # An informational status is never a final answer; a receiver that ends on one has not
        # answered at all.
        return Verdict(Decision.RETRY, CircuitVote.FAILURE, reason)
    return Verdict(Decision.FAIL, CircuitVote.FAILURE, reason)


def parse_retry_after(value: str, *, now_at: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for (at least 0), or None where it is
    neither form of RFC 9110.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        # A hundred digits are still a number to the RFC. The caller caps; to it a billion seconds
        # are as good as infinity.
        return min(float(text), 1e9)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - now_at).total_seconds())
