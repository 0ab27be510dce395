"""One delivery from its insert to its end, through every outcome in any order; and mutants."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import ModuleType

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support import values
from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.core import lifecycle
from webhookd.core.answer import Answer, AnswerKind, CircuitVote, ShortageKind
from webhookd.core.breaker import Breaker
from webhookd.core.model import Attempted, Delivery, GivenBack, Lost, Outcome, WebhookSettings

NOW_AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY_S = 86_400.0
BASE_S, FACTOR, CAP_S = 1.0, 3.0, 18.0
WAITING = ("pending", "retrying")
SETTINGS = WebhookSettings(
    webhook_id=1,
    url="https://example.com/",
    enabled=True,
    secret=None,
    old_secret=None,
    old_secret_until_at=None,
    headers=None,
    timeout_s=5.0,
    max_in_flight=50,
    rate=10.0,
    burst=20,
    max_retries=10,
    retry_base_s=BASE_S,
    retry_factor=FACTOR,
    retry_max_s=CAP_S,
    circuit_threshold=5,
    circuit_open_s=60.0,
)

NEW = Delivery(
    delivery_id=1,
    webhook_id=1,
    token=1,
    breaker=Breaker(),
    body=b"{}",
    retry_count=0,
    max_retries=0,
    attempts=0,
    leases_lost=0,
    age_s=0.0,
    settings=SETTINGS,
    claimed=0.0,
    start_before=0.0,
)


def answered(status: int, retry_after: str | None = None) -> Attempted:
    return Attempted(Answer(AnswerKind.RESPONSE, 0.1, status, retry_after), 0.0)


TIMED_OUT = Attempted(Answer(AnswerKind.TIMEOUT, 5.0), 0.0)
REFUSED = Attempted(Answer(AnswerKind.NO_ANSWER, 0.1), 0.0)
SHORT = GivenBack("no memory left", ShortageKind.MEMORY)
NOT_ALLOWED = GivenBack("loopback")

retried = st.sampled_from(
    [
        answered(500),
        answered(503, "3"),
        answered(503, "3600"),
        answered(401),
        answered(404, "3"),
        answered(302, "3"),
        answered(101),
        TIMED_OUT,
        REFUSED,
    ]
)
throttled = st.sampled_from(
    [answered(429), answered(429, "0"), answered(429, "3"), answered(429, "3600")]
)
final = st.sampled_from([answered(200), answered(410)])
draws = st.sampled_from([0.0, 0.5, 0.999])


class Life(RuleBasedStateMachine):
    """One row of the queue. A settlement is applied as the record's statement applies it."""

    core: ModuleType = lifecycle
    properties: Sequence[Callable[["Life"], None]] = ()

    @initialize(max_retries=st.integers(0, 2), leases_lost=st.integers(0, 2))
    def start(self, max_retries: int, leases_lost: int) -> None:
        self.delivery = NEW._replace(max_retries=max_retries, leases_lost=leases_lost)
        self.status = "pending"
        self.spending = 0  # attempts that were not throttled

    @precondition(lambda self: self.status in WAITING)
    @rule(outcome=st.one_of(retried, throttled), u=draws)
    def attempt_fails(self, outcome: Attempted, u: float) -> None:
        self.step(outcome, u)

    @precondition(lambda self: self.status in WAITING)
    @rule(outcome=final, u=draws)
    def attempt_ends_it(self, outcome: Attempted, u: float) -> None:
        self.step(outcome, u)

    @precondition(lambda self: self.status in WAITING)
    @rule(
        outcome=st.sampled_from([Lost(), Lost(), GivenBack(), SHORT, NOT_ALLOWED]),
        count=st.integers(1, 3),
        u=draws,
    )
    def the_outcome_is_unknown(self, outcome: Outcome, count: int, u: float) -> None:
        for _ in range(count):
            if self.status in WAITING:
                self.step(outcome, u)

    @precondition(lambda self: self.delivery.attempts > 0 and self.status in WAITING)
    @rule(span_s=st.sampled_from([DAY_S, DAY_S - 1.0, 1.0]))
    def time_passes(self, span_s: float) -> None:
        self.delivery = self.delivery._replace(age_s=self.delivery.age_s + span_s)

    @precondition(lambda self: self.status not in WAITING)
    @rule(max_retries=st.integers(0, 2), leases_lost=st.integers(0, 2))
    def the_next_row_comes(self, max_retries: int, leases_lost: int) -> None:
        self.start(max_retries, leases_lost)

    def step(self, outcome: Outcome, u: float) -> None:
        self.before, self.before_status, self.outcome, self.u = (
            self.delivery,
            self.status,
            outcome,
            u,
        )
        self.answer = outcome.answer if isinstance(outcome, Attempted) else None
        self.http_status = self.answer.http_status if self.answer else None
        self.settlement: lifecycle.Settlement = self.core.settle(
            self.before, outcome, now_at=NOW_AT, u=u
        )
        self.spending += self.answer is not None and self.http_status != 429
        self.status = self.settlement.status.value
        self.delivery = self.before._replace(
            retry_count=self.before.retry_count + self.settlement.spends_retry,
            leases_lost=self.before.leases_lost + self.settlement.loses_lease,
            attempts=self.before.attempts + (self.answer is not None),
        )
        for holds in self.properties:
            holds(self)


def retries_never_exceed_their_limit(life: Life) -> None:
    assert life.delivery.retry_count <= life.delivery.max_retries
    assert life.spending <= life.delivery.max_retries + 1, "the first attempt is no retry"


def all_retries_are_used(life: Life) -> None:
    if life.http_status in (101, 302, 401, 404, 500, 503):
        left = life.before.retry_count < life.before.max_retries
        assert (life.status, life.settlement.spends_retry) == (
            ("retrying", True) if left else ("failed", False)
        )
        assert left or life.settlement.reason == f"HTTP {life.http_status}; no retries left"


def only_success_delivers(life: Life) -> None:
    assert (life.status == "delivered") == (life.http_status == 200)


def refusals_fail_at_once(life: Life) -> None:
    if life.http_status == 410:
        assert life.status == "failed"
        assert (life.settlement.delay_s, life.settlement.hold_s, life.settlement.spends_retry) == (
            None,
            None,
            False,
        )
    assert life.settlement.disables_webhook == (life.http_status == 410)


def throttling_spends_nothing_and_ends_after_a_day(life: Life) -> None:
    if life.http_status == 429:
        assert life.delivery.retry_count == life.before.retry_count
        assert life.status == ("failed" if life.before.age_s >= DAY_S else "retrying")


def only_throttling_ends_after_a_day(life: Life) -> None:
    if life.settlement.reason.endswith("for a day"):
        assert (life.http_status, life.status) == (429, "failed")


def a_returned_delivery_is_unchanged(life: Life) -> None:
    if isinstance(life.outcome, GivenBack):
        assert life.delivery == life.before
        assert (
            life.status == life.before_status == ("retrying" if life.before.attempts else "pending")
        )
        settlement = life.settlement
        if life.outcome.reason is None:
            assert (settlement.delay_s, settlement.hold_s) == (None, None), "it is due at once"
        else:
            # The whole webhook waits for about a second, or its backlog would be claimed meanwhile.
            assert settlement.delay_s == settlement.hold_s == pytest.approx(0.5 + life.u)
            assert settlement.reason == life.outcome.reason


def an_attempt_that_was_none_is_given_back_too(life: Life) -> None:
    for kind in (AnswerKind.NOT_ALLOWED, AnswerKind.SHORTAGE):
        attempt = Attempted(Answer(kind, 0.0, error="no memory left"), 0.0)
        settlement = life.core.settle(life.before, attempt, now_at=NOW_AT, u=life.u)
        returned = life.core.settle(
            life.before, GivenBack("no memory left"), now_at=NOW_AT, u=life.u
        )
        assert settlement == returned


def without_an_attempt_no_vote_and_no_retry(life: Life) -> None:
    if life.answer is None:
        assert (life.delivery.retry_count, life.delivery.attempts) == (
            life.before.retry_count,
            life.before.attempts,
        )
        assert life.settlement.vote is None
        assert life.status in (("retrying" if life.before.attempts else "pending"), "failed")


def a_row_that_loses_leases_is_tried_alone_and_fails(life: Life) -> None:
    assert life.settlement.loses_lease == isinstance(life.outcome, Lost)
    if isinstance(life.outcome, Lost):
        lost = life.before.leases_lost + 1
        assert (life.status == "failed") == (lost >= 6)
        assert (life.settlement.delay_s is None) == (lost < 3 or lost >= 6)
        if life.settlement.delay_s is not None:
            assert life.settlement.delay_s == pytest.approx(
                min(CAP_S, BASE_S * FACTOR ** (lost - 3) * (0.8 + 0.4 * life.u))
            )
        if life.status == "failed":
            assert (life.settlement.event, life.settlement.reason) == ("failed", "lost 6 leases")


def the_delay_is_retry_after_or_the_backoff(life: Life) -> None:
    if life.answer is None or life.status != "retrying":
        return
    if life.answer.retry_after is not None:
        assert life.settlement.delay_s == min(float(life.answer.retry_after), CAP_S)
    else:
        # A 429 moves no retry_count, so its backoff grows with the attempts.
        tries = life.before.attempts if life.http_status == 429 else life.before.retry_count
        assert life.settlement.delay_s == pytest.approx(
            min(CAP_S, BASE_S * FACTOR**tries * (0.8 + 0.4 * life.u))
        )


def retry_after_holds_the_whole_webhook(life: Life) -> None:
    wished = (
        life.http_status in (429, 503)
        and life.answer is not None
        and life.answer.retry_after is not None
    )
    expected_s = min(float(life.answer.retry_after or 0), CAP_S) if wished and life.answer else None
    assert isinstance(life.outcome, GivenBack) or life.settlement.hold_s == expected_s, (
        "also where this row has failed: the others would be told the same"
    )


def every_attempt_is_logged_and_votes(life: Life) -> None:
    if life.answer is not None:
        assert life.settlement.event == life.status
        neutral = life.http_status == 429
        success = life.http_status == 200
        vote = (
            CircuitVote.SUCCESS
            if success
            else CircuitVote.NEUTRAL
            if neutral
            else CircuitVote.FAILURE
        )
        assert life.settlement.vote is vote
    elif life.status != "failed":
        assert life.settlement.event is None


PROPERTIES: dict[str, Callable[[Life], None]] = {
    holds.__name__: holds
    for holds in (
        retries_never_exceed_their_limit,
        all_retries_are_used,
        only_success_delivers,
        refusals_fail_at_once,
        throttling_spends_nothing_and_ends_after_a_day,
        only_throttling_ends_after_a_day,
        a_returned_delivery_is_unchanged,
        an_attempt_that_was_none_is_given_back_too,
        without_an_attempt_no_vote_and_no_retry,
        a_row_that_loses_leases_is_tried_alone_and_fails,
        the_delay_is_retry_after_or_the_backoff,
        retry_after_holds_the_whole_webhook,
        every_attempt_is_logged_and_votes,
    )
}


def drive(core: ModuleType, properties: Sequence[Callable[[Life], None]], how: settings) -> None:
    machine = type("LifeOf", (Life,), {"core": core, "properties": properties})
    run_state_machine_as_test(machine, settings=how)


def test_a_delivery_keeps_its_properties() -> None:
    drive(lifecycle, list(PROPERTIES.values()), CHECK)


@pytest.mark.parametrize("mutant", planted_in("lifecycle"), ids=str)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises(AssertionError):
        drive(mutant.plant(), [PROPERTIES[mutant.killed_by]], HUNT)


@pytest.mark.parametrize("u", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("outcome", [REFUSED, TIMED_OUT, answered(401), answered(404)], ids=str)
def test_a_receiver_that_is_away_for_minutes_or_hours_has_its_delivery_by_the_defaults(
    outcome: Attempted, u: float
) -> None:
    for away_s in (33.0, 3600.0, DAY_S):
        now, waiting = 0.0, Delivery(**(NEW._asdict() | {"settings": values.settings()}))
        waiting = waiting._replace(max_retries=waiting.settings.max_retries)
        while now <= away_s:
            settlement = lifecycle.settle(waiting, outcome, now_at=NOW_AT, u=u)
            assert settlement.status.value == "retrying"
            assert settlement.delay_s is not None
            now += settlement.delay_s
            waiting = waiting._replace(
                retry_count=waiting.retry_count + 1, attempts=waiting.attempts + 1
            )
        assert lifecycle.settle(waiting, answered(200), now_at=NOW_AT, u=u).event == "delivered"


def test_every_property_catches_a_mutant() -> None:
    assert set(PROPERTIES) == {mutant.killed_by for mutant in planted_in("lifecycle")}
