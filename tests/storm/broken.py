"""Webhooks whose receivers are broken, and what became of their deliveries."""

from tests.storm.storm import Storm

# Each broken receiver has two webhooks. The circuit of the patient one never opens, so its
# deliveries keep senders busy all the time; they have enough retries to be delivered after it is
# healed. The deliveries of the hasty one have two retries and may fail.
PATIENT, HASTY = range(10_000, 20_000), range(20_000, 30_000)
BROKEN = "timeout_seconds = 1, retry_max_seconds = 2, circuit_open_seconds = 2"
OPTIONS = ("--circuit-open", "2", "--drain-timeout", "10")


def break_webhooks(storm: Storm, urls: list[str], deliveries: int) -> None:
    """Register a patient and a hasty webhook at each of *urls*, which are all broken. Each kind
    gets half of *deliveries*.
    """
    for webhooks, retries, limits in (
        (PATIENT, 1000, "max_in_flight = 8, circuit_failure_threshold = 1000000"),
        (HASTY, 2, "max_in_flight = 50"),
    ):
        storm.database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second,"
            " retry_base_seconds)"
            " SELECT %s + n - 1, url, 0, 0.2 FROM unnest(%s::text[]) WITH ORDINALITY AS u (url, n)",
            [webhooks[0], urls],
        )
        of_these = f"webhook_id BETWEEN {webhooks[0]} AND {webhooks[-1]}"
        storm.database.execute(f"UPDATE pggit.webhooks SET {BROKEN}, {limits} WHERE {of_these}")
        storm.insert(deliveries // 2, webhooks=len(urls), first=webhooks[0], max_retries=retries)


def attempts_that_failed(storm: Storm) -> dict[int, int]:
    """Return the number of failed attempts of each webhook."""
    return dict(
        storm.database.execute(
            "SELECT webhook_id, failed_deliveries::int FROM pggit.webhook_health_metrics"
        )
    )


def unfinished_of(storm: Storm, first: int, count: int) -> int:
    """Return how many deliveries of *count* webhooks are unfinished."""
    found: int = storm.database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue"
        " WHERE delivery_status IN ('pending', 'retrying', 'sending')"
        f" AND webhook_id BETWEEN {first} AND {first + count - 1}"
    )[0][0]
    return found
