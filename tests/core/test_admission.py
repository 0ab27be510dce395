"""What a lane admits, for every state of it; and planted mistakes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.core import lane as lanes
from webhookd.core.breaker import Breaker, CircuitState
from webhookd.core.bucket import Bucket
from webhookd.core.lane import Budget, Lane
from webhookd.core.model import WebhookSettings
from webhookd.core.speed import UNMEASURED, Speed

NOW = 1000.0
RECOUNT_S = 5.0
PLAIN = WebhookSettings(
    1,
    "https://example.com/",
    True,
    None,
    None,
    None,
    None,
    5.0,
    3,
    0.0,
    3,
    10,
    1.0,
    2.0,
    64.0,
    2,
    30.0,
)

instants = st.sampled_from([None, None, None, NOW - 1.0, NOW, NOW + 1.0, NOW + 8.0])
registered = st.builds(
    PLAIN._replace,
    enabled=st.sampled_from([True, True, True, False]),
    max_in_flight=st.integers(1, 4),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    burst=st.integers(1, 4),
)
lane_states = st.builds(
    Lane,
    webhook_id=st.just(1),
    breaker=st.one_of(
        st.just(Breaker()),
        st.builds(
            Breaker, st.sampled_from(CircuitState), st.integers(0, 2), st.integers(0, 2), instants
        ),
    ),
    bucket=st.builds(
        Bucket,
        st.sampled_from([None, 0.0, 0.5, 1.0, 2.0, 4.0]),
        st.sampled_from([NOW - 1.0, NOW, NOW + 1.0]),
    ),
    in_flight=st.sampled_from([0, 0, 1, 2, 3, 4, 5]),
    hold_until=instants,
    runnable_at=instants,
    blocked_by=st.none(),
    health=st.just("unknown"),
)
wishes = st.integers(1, 5)
refusals = st.sampled_from([None, None, None, "http is not allowed"])


@dataclass(frozen=True, slots=True)
class Room:
    """A lane's state in the words of CONTRACT: what blocks it (the first of them counts), and the
    rows and tokens that are free.
    """

    blocks: Sequence[tuple[str, float | None]]
    rows: float
    tokens: float

    @classmethod
    def of(cls, lane: Lane, setting: WebhookSettings | None, refusal: str | None = None) -> "Room":
        if setting is None:
            return cls([("unregistered", None)], 0, 0)
        rows = setting.max_in_flight - lane.in_flight
        level = lane.bucket.level(NOW, rate=setting.rate, burst=setting.burst)
        circuit_until = lane.breaker.next_probe_at or 0.0
        found: list[tuple[bool, str, float | None]] = [
            (not setting.enabled, "paused", None),
            (refusal is not None, "configuration", None),
            ((lane.hold_until or 0.0) > NOW, "hold", lane.hold_until),
            (
                lane.breaker.state is not CircuitState.CLOSED and circuit_until > NOW,
                "circuit",
                circuit_until,
            ),
            (rows <= 0, "in_flight", NOW + RECOUNT_S),
            (level < 1, "rate", NOW + (1 - level) / (setting.rate or math.inf)),
        ]
        return cls(
            [(name, ends) for applies, name, ends in found if applies],
            rows,
            math.floor(min(level, 10.0**9)),
        )


def the_first_block_is_named_with_its_end(core: ModuleType, how: settings) -> None:
    @how
    @given(lane_states, st.one_of(registered, registered, st.none()), wishes, refusals)
    def holds(lane: Lane, setting: WebhookSettings | None, wish: int, refusal: str | None) -> None:
        blocks = Room.of(lane, setting, refusal).blocks
        admission = core.admit(lane, setting, now=NOW, wish=wish, refusal=refusal)
        assert (admission.quota == 0) == bool(blocks)
        if blocks:
            assert (admission.blocked_by, admission.runnable_at, admission.probe) == (
                *blocks[0],
                False,
            )
        # The reason comes with this block and with no other.
        assert admission.refusal == (refusal if admission.blocked_by == "configuration" else None)

    holds()


def gives_what_wish_room_and_tokens_allow(core: ModuleType, how: settings) -> None:
    @how
    @given(lane_states, registered, wishes)
    def holds(lane: Lane, setting: WebhookSettings, wish: int) -> None:
        lane, setting = unblocked(lane, setting, Breaker())
        room = Room.of(lane, setting)
        admission = core.admit(lane, setting, now=NOW, wish=wish)
        assert (admission.quota, admission.probe) == (min(wish, room.rows, room.tokens), False)

    holds()


def a_probe_is_one_row(core: ModuleType, how: settings) -> None:
    states = st.sampled_from([CircuitState.OPEN, CircuitState.HALF_OPEN])

    @how
    @given(lane_states, registered, wishes, states, st.sampled_from([None, NOW - 1.0, NOW]))
    def holds(
        lane: Lane, setting: WebhookSettings, wish: int, state: CircuitState, until: float | None
    ) -> None:
        lane, setting = unblocked(lane, setting, Breaker(state, 1, 2, until))
        admission = core.admit(lane, setting, now=NOW, wish=wish)
        assert (admission.quota, admission.probe, admission.blocked_by) == (1, True, "circuit")

    holds()


def a_probe_needs_room_and_a_token_too(core: ModuleType, how: settings) -> None:
    @how
    @given(lane_states, registered, st.booleans(), st.sampled_from([0.0, 0.5]))
    def holds(lane: Lane, setting: WebhookSettings, full: bool, tokens: float) -> None:
        lane, setting = unblocked(
            lane, setting._replace(rate=0.5), Breaker(CircuitState.OPEN, 1, 2, NOW)
        )
        lane = (
            replace(lane, in_flight=setting.max_in_flight)
            if full
            else replace(lane, bucket=Bucket(tokens, NOW))
        )
        admission = core.admit(lane, setting, now=NOW, wish=1)
        assert (admission.quota, admission.probe) == (0, False)
        assert (admission.blocked_by, admission.runnable_at) == Room.of(lane, setting).blocks[0]

    holds()


def says_what_the_lane_waits_for_next(core: ModuleType, how: settings) -> None:
    """Once the quota is taken, another look now finds a row exactly if the admission names nothing
    to wait for.
    """

    @how
    @given(lane_states, registered, wishes)
    def holds(lane: Lane, setting: WebhookSettings, wish: int) -> None:
        lane, setting = unblocked(lane, setting, Breaker())
        admission = core.admit(lane, setting, now=NOW, wish=wish)
        after = Room.of(taken(lane, admission.quota, setting, now=NOW), setting)
        if admission.blocked_by is None:
            assert (after.blocks, admission.runnable_at) == ([], NOW)
        else:
            assert (admission.blocked_by, admission.runnable_at) in after.blocks

    holds()


def unblocked(
    lane: Lane, setting: WebhookSettings, breaker: Breaker
) -> tuple[Lane, WebhookSettings]:
    """Return the two with *breaker*, without anything that blocks them."""
    return replace(
        lane,
        breaker=breaker,
        bucket=replace(lane.bucket, tokens=max(lane.bucket.tokens or 4.0, 1.0)),
        in_flight=min(lane.in_flight, setting.max_in_flight - 1),
        hold_until=min(lane.hold_until or 0.0, NOW),
    ), setting._replace(enabled=True)


def taken(lane: Lane, count: int, setting: WebhookSettings, *, now: float) -> Lane:
    bucket = lane.bucket.take(count, now, rate=setting.rate, burst=setting.burst)
    return replace(lane, bucket=bucket, in_flight=lane.in_flight + count)


ADMIT: dict[str, Callable[[ModuleType, settings], None]] = {
    holds.__name__: holds
    for holds in (
        the_first_block_is_named_with_its_end,
        gives_what_wish_room_and_tokens_allow,
        a_probe_is_one_row,
        a_probe_needs_room_and_a_token_too,
        says_what_the_lane_waits_for_next,
    )
}


@pytest.mark.parametrize("holds", ADMIT.values(), ids=ADMIT)
def test_an_admission_has_the_property(holds: Callable[[ModuleType, settings], None]) -> None:
    holds(lanes, settings(CHECK, max_examples=150))


@pytest.mark.parametrize(
    "mutant", [mutant for mutant in planted_in("lane") if mutant.killed_by in ADMIT], ids=str
)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises(AssertionError):
        ADMIT[mutant.killed_by](mutant.plant(), HUNT)


@given(
    st.lists(st.tuples(lane_states, st.one_of(st.none(), registered), refusals), max_size=6),
    st.integers(1, 12),
)
def test_a_limit_is_shared_by_lanes_and_never_exceeded(
    states: list[tuple[Lane, WebhookSettings | None, str | None]], limit: int
) -> None:
    locked = [replace(lane, webhook_id=number) for number, (lane, *_) in enumerate(states)]
    of_webhook = {number: item for number, (_, item, _) in enumerate(states) if item is not None}
    refused = {number: why for number, (*_, why) in enumerate(states) if why is not None}
    admitted = lanes.admit_all(
        locked, of_webhook, now=NOW, budget=Budget(limit, 0), lease_s=40.0, refusals=refused
    )
    given_out = [admission for _, admission in admitted]
    quotas = [admission.quota for admission in given_out]
    assert sum(quotas) <= limit
    assert len(given_out) == len(locked) or sum(quotas) == limit
    assert [lane for lane, _ in admitted] == locked[: len(admitted)]
    for number, (lane, admission) in enumerate(zip(locked, given_out, strict=False)):
        share = math.ceil((limit - sum(quotas[:number])) / (len(locked) - number))
        alone = lanes.admit(
            lane, of_webhook.get(number), now=NOW, wish=share, refusal=refused.get(number)
        )
        assert replace(admission, runnable_at=None) == replace(alone, runnable_at=None)
        assert admission.runnable_at == (NOW + 40.0 if alone.probe else alone.runnable_at)


speeds = st.sampled_from([UNMEASURED, Speed(0.01, slow=False), Speed(1.0, slow=True)])


@given(
    st.lists(st.tuples(lane_states, registered, speeds), max_size=8),
    st.integers(1, 12),
    st.integers(0, 4),
    st.booleans(),
)
def test_slow_and_new_lanes_take_nothing_from_the_others(
    found: list[tuple[Lane, WebhookSettings, Speed]], others: int, slow: int, takes_new: bool
) -> None:
    locked = [
        replace(lane, webhook_id=number, speed=speed)
        for number, (lane, _, speed) in enumerate(found)
    ]
    of_webhook = {number: item for number, (_, item, _) in enumerate(found)}
    budget = Budget(others, slow, takes_new=takes_new)
    admitted = lanes.admit_all(
        locked, of_webhook, now=NOW, budget=budget, lease_s=40.0, refusals={}
    )
    without_slow = [lane for lane in locked if not lane.speed.slow]
    alone = lanes.admit_all(
        without_slow, of_webhook, now=NOW, budget=budget, lease_s=40.0, refusals={}
    )
    assert [pair for pair in admitted if not pair[0].speed.slow] == alone
    assert sum(admission.quota for lane, admission in admitted if lane.speed.slow) <= slow
    for lane, admission in admitted:
        barred = slow == 0 if lane.speed.slow else lane.speed.slow is None and not takes_new
        assert not (barred and admission.quota)
        if admission.waits_for_slots:
            # It is in the index of its kind, and not behind lanes that came later.
            assert barred
            assert admission.runnable_at == min(lane.runnable_at or NOW, NOW)
    if slow == 0:
        assert {lane.webhook_id for lane in locked if lane.speed.slow} <= {
            lane.webhook_id for lane, _ in admitted
        }, "their new rows have been seen"
