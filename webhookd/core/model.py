"""The values that flow through webhookd: a webhook's settings, a claimed delivery, and what became
of it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from webhookd.core.answer import Answer, ShortageKind
from webhookd.core.breaker import Breaker
from webhookd.core.speed import UNMEASURED, Speed


class Status(StrEnum):
    """delivery_status of a queue row."""

    PENDING = "pending"
    RETRYING = "retrying"
    SENDING = "sending"
    DELIVERED = "delivered"
    FAILED = "failed"


# A worker reports every few seconds (`pggit.workers.seen_at`). After the first of these it is taken
# for hung: another may take over its duties. After the second it counts as dead.
WORKER_SILENT_AFTER_S = 20.0
WORKER_DEAD_AFTER_S = 60.0

# Larger bodies, as text, are never sent: a worker holds several at once. One that was accepted
# under a larger --max-body than the present one is still sent, as long as it stays below this.
LARGEST_BODY_BYTES = 64 << 20

# What `disabled_reason` says of a webhook whose receiver answered 410.
MAX_WEBHOOK_ID = 2**53  # a JSON reader with floats keeps it exact; a CHECK of the registry says so
GONE_REASON = "410 Gone"


class WebhookDefaults(NamedTuple):
    """The limits of a webhook whose registry row leaves them NULL (see `WebhookSettings`)."""

    timeout_s: float
    max_in_flight: int
    rate: float
    burst: int
    max_retries: int
    retry_base_s: float
    retry_factor: float
    retry_max_s: float
    circuit_threshold: int
    circuit_open_s: float


class WebhookSettings(NamedTuple):
    """The settings of one webhook: its registry row, with `WebhookDefaults` in place of NULL.

    While a secret is rotated, *old_secret* signs as well in requests of before
    *old_secret_until_at* (epoch seconds by the database's clock); else both are None. *headers* is
    the row's JSON, not yet read: `webhookd.transport.request` judges it.
    """

    webhook_id: int
    url: str
    enabled: bool
    secret: str | None
    old_secret: str | None
    old_secret_until_at: float | None
    headers: str | None
    timeout_s: float
    max_in_flight: int
    rate: float
    burst: int
    max_retries: int
    retry_base_s: float
    retry_factor: float
    retry_max_s: float
    circuit_threshold: int
    circuit_open_s: float


class Delivery(NamedTuple):
    """A claimed row. *token* fences its record; *breaker* is the circuit at the claim; *age_s* runs
    since the first attempt. *max_retries* is the row's own, or else that of *settings*.
    """

    delivery_id: int
    webhook_id: int
    token: int
    breaker: Breaker
    body: bytes
    retry_count: int
    max_retries: int
    attempts: int
    leases_lost: int
    age_s: float
    settings: WebhookSettings
    claimed: float  # monotonic, before the claim was sent
    start_before: float  # monotonic: an exchange begun later could outlive the lease
    claimed_at: float = 0.0  # the same instant as `claimed` by the database's clock, epoch seconds
    speed: Speed = UNMEASURED  # the lane's, at the claim


class Attempted(NamedTuple):
    """An exchange took place and ended with *answer*. *ended* is monotonic."""

    answer: Answer
    ended: float


@dataclass(frozen=True, slots=True)
class GivenBack:
    """No exchange took place: drained, held back by the local view of the circuit, too late for its
    lease, or (with a *reason*) short of something or not allowed.

    With a *reason* the webhook waits for a moment, or it would be claimed again at once.
    """

    reason: str | None = None
    shortage: ShortageKind | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The lease ended; whether an exchange took place is unknown."""


Outcome = Attempted | GivenBack | Lost


class Result(NamedTuple):
    """A delivery and what became of it: all that the record needs."""

    delivery: Delivery
    outcome: Outcome
