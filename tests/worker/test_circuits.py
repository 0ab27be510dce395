"""What a worker holds back by itself, before the database knows."""

import math
from datetime import UTC, datetime

import pytest

from tests.support.values import delivery, settings
from webhookd.core.answer import Answer, AnswerKind, Verdict, classify
from webhookd.core.breaker import Breaker
from webhookd.core.model import Delivery
from webhookd.worker import circuits as circuits_module
from webhookd.worker.circuits import LocalCircuits

NOW_AT = datetime(2026, 1, 1, tzinfo=UTC)


def verdict(status: int, retry_after: str | None = None) -> Verdict:
    return classify(Answer(AnswerKind.RESPONSE, 0.01, status, retry_after), now_at=NOW_AT)


def claimed(at: float, *, failures: int = 0, generation: int = 0) -> Delivery:
    return delivery(
        breaker=Breaker(generation=generation, failures=failures),
        claimed=at,
        settings=settings(circuit_threshold=3),
    )


def test_the_failure_that_trips_the_circuit_holds_back_the_rest_of_the_batch() -> None:
    circuits = LocalCircuits()
    batch = [claimed(1.0) for _ in range(4)]
    for one in batch[:2]:
        circuits.observe(one, verdict(500))
        assert not circuits.holds_back(batch[3])
    circuits.observe(batch[2], verdict(500))
    assert circuits.holds_back(batch[3])


def test_failures_recorded_before_the_claim_count() -> None:
    circuits = LocalCircuits()
    circuits.observe(claimed(1.0, failures=2), verdict(500))
    assert circuits.holds_back(claimed(1.0))


def test_a_success_in_between_starts_the_count_afresh() -> None:
    circuits = LocalCircuits()
    for status in (500, 500, 200, 500, 500):
        circuits.observe(claimed(1.0), verdict(status))
    assert not circuits.holds_back(claimed(1.0))


def test_for_claims_made_after_the_record_the_database_decides() -> None:
    circuits = LocalCircuits()
    circuits.observe(claimed(1.0, failures=2), verdict(500))
    circuits.mark_recorded({1}, now=5.0)
    assert circuits.holds_back(claimed(4.9))
    assert not circuits.holds_back(claimed(5.1))


def test_a_retry_after_and_a_410_hold_back_at_once_and_a_lone_429_does_not() -> None:
    for status, retry_after, held in (
        (429, "60", True),
        (503, "60", True),
        (410, None, True),
        (429, None, False),
    ):
        circuits = LocalCircuits()
        circuits.observe(claimed(1.0), verdict(status, retry_after))
        assert circuits.holds_back(claimed(1.0)) is held, status


def test_other_webhooks_are_not_held_back() -> None:
    circuits = LocalCircuits()
    circuits.observe(claimed(1.0), verdict(410))
    assert not circuits.holds_back(delivery(webhook_id=2, claimed=-math.inf))


def test_webhooks_that_fail_once_and_never_again_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(circuits_module, "MAX_WEBHOOKS", 3)
    circuits = LocalCircuits()
    for webhook_id in (1, 2, 3, 2, 4, 5):
        circuits.observe(
            delivery(webhook_id=webhook_id, settings=settings(circuit_threshold=3)), verdict(500)
        )
    assert circuits._breakers.keys() == {3, 4, 5}
    # For a webhook that was forgotten the count starts from what the claim says.
    later = delivery(
        webhook_id=2, breaker=Breaker(failures=2), settings=settings(circuit_threshold=3)
    )
    circuits.observe(later, verdict(500))
    assert circuits.holds_back(later)
