"""Values of the core with every field filled, for tests that care about one or two of them."""

import math

from webhookd.core.breaker import Breaker
from webhookd.core.model import Delivery, WebhookSettings
from webhookd.core.speed import UNMEASURED, Speed


def settings(  # noqa: PLR0913 (each field has a default here)
    *,
    webhook_id: int = 1,
    url: str = "http://127.0.0.1:1/",
    secret: str | None = None,
    old_secret: str | None = None,
    old_secret_until_at: float | None = None,
    headers: str | None = None,
    timeout_s: float = 5.0,
    max_in_flight: int = 50,
    rate: float = 0.0,
    burst: int = 20,
    circuit_threshold: int = 5,
) -> WebhookSettings:
    return WebhookSettings(
        webhook_id=webhook_id,
        url=url,
        enabled=True,
        secret=secret,
        old_secret=old_secret,
        old_secret_until_at=old_secret_until_at,
        headers=headers,
        timeout_s=timeout_s,
        max_in_flight=max_in_flight,
        rate=rate,
        burst=burst,
        max_retries=10,
        retry_base_s=5.0,
        retry_factor=4.0,
        retry_max_s=28_800.0,
        circuit_threshold=circuit_threshold,
        circuit_open_s=60.0,
    )


def delivery(
    *,
    delivery_id: int = 1,
    webhook_id: int = 1,
    breaker: Breaker | None = None,
    claimed: float = 0.0,
    settings: WebhookSettings = settings(),  # noqa: B008 (frozen)
    speed: Speed = UNMEASURED,
) -> Delivery:
    return Delivery(
        delivery_id=delivery_id,
        webhook_id=webhook_id,
        token=1,
        breaker=breaker or Breaker(),
        body=b"{}",
        retry_count=0,
        max_retries=3,
        attempts=0,
        leases_lost=0,
        age_s=0.0,
        settings=settings,
        claimed=claimed,
        start_before=math.inf,
        speed=speed,
    )
