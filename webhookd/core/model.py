"""The values that flow through webhookd: a webhook's settings, a claimed delivery, and what became
of it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from webhookd.core.answer import Answer
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

# What `disabled_reason` says of a webhook whose receiver answered 410.
GONE_REASON = "410 Gone"


class WebhookDefaults(NamedTuple):
    """The limits of a webhook whose registry row leaves them NULL (see `WebhookSettings`)."""

    timeout_s: float
    max_in_flight: int
    rate: float
    burst: int
    retry_base_s: float
    retry_max_s: float
    circuit_threshold: int
    circuit_open_s: float


class WebhookSettings(NamedTuple):
    """The settings of one webhook: its registry row, with `WebhookDefaults` in place of NULL.

    *headers* is the row's JSON, not yet read: `webhookd.transport.request` judges it.
    """

    webhook_id: int
    url: str
    enabled: bool
    secret: str | None
    headers: str | None
    timeout_s: float
    max_in_flight: int
    rate: float
    burst: int
    retry_base_s: float
    retry_max_s: float
    circuit_threshold: int
    circuit_open_s: float


class Delivery(NamedTuple):
    """A claimed row. *token* fences its record; *breaker* is the circuit at the claim; *age_s* runs
    since the first attempt.
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
    """No exchange took place: drained, held back by the local view of the circuit, or too late for
    its lease.
    """


@dataclass(frozen=True, slots=True)
class Lost:
    """The lease ended; whether an exchange took place is unknown."""


Outcome = Attempted | GivenBack | Lost


class Result(NamedTuple):
    """A delivery and what became of it: all that the record needs."""

    delivery: Delivery
    outcome: Outcome
