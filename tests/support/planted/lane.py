"""Defects planted in the lane, by the property that must catch them."""

MUTANTS = {
    "the_first_block_is_named_with_its_end": [
        ("if not settings.enabled:", "if False:"),
        ("if refusal is not None:", "if False:"),
        ("BlockedBy.CONFIGURATION, refusal=refusal)", "BlockedBy.CONFIGURATION)"),
        ("BlockedBy.CONFIGURATION, refusal=", "BlockedBy.CONFIGURATION, now, refusal="),
        ("lane.hold_until > now:\n        return", "lane.hold_until >= now:\n        return"),
        ("BlockedBy.HOLD, lane.hold_until)\n    if", "BlockedBy.HOLD, now)\n    if"),
        ("lane.breaker.blocked_until > now:", "False:"),
        ("if lane.in_flight >= settings.max_in_flight:", "if False:"),
        (
            "return Admission(0, BlockedBy.UNREGISTERED)",
            "return Admission(0, BlockedBy.UNREGISTERED, now)",
        ),
    ],
    "a_probe_needs_room_and_a_token_too": [
        ("burst=settings.burst) < 1:", "burst=settings.burst) <= 0:"),
        ("if lane.in_flight >= settings.max_in_flight:", "if False:"),
    ],
    "gives_what_wish_room_and_tokens_allow": [
        ("min(wish, room, tokens)", "min(wish, room)"),
        ("min(wish, room, tokens)", "min(wish, tokens)"),
        ("min(wish, room, tokens)", "min(room, tokens, 20)"),
        ("min(wish, room, tokens)", "1"),
    ],
    "a_probe_is_one_row": [
        ("if lane.breaker.blocked_until is not None:\n", "if False:\n"),
        (
            "Admission(1, BlockedBy.CIRCUIT, probe=True)",
            "Admission(wish, BlockedBy.CIRCUIT, probe=True)",
        ),
    ],
    "says_what_the_lane_waits_for_next": [
        ("if quota == tokens:", "if False:"),
        ("if quota == room:", "if False:"),
        ("lane.bucket.take(quota, now,", "lane.bucket.take(0, now,"),
        ("return Admission(quota, None, now)", "return Admission(quota)"),
    ],
    "a_held_lane_stays_held": [
        ("if lane.blocked_by is BlockedBy.CONFIGURATION:", "if False:"),
        (
            "if lane.blocked_by is BlockedBy.CONFIGURATION:\n        return lane",
            "if lane.blocked_by is BlockedBy.CONFIGURATION:\n        return replace("
            "lane, runnable_at=now)",
        ),
    ],
    "every_claim_that_ends_makes_room": [
        ("lane.in_flight - len(settlements)", "lane.in_flight - 1"),
        ("lane.in_flight - len(settlements)", "lane.in_flight"),
    ],
    "waiting_rows_are_looked_at_in_time": [
        ("replace(lane, runnable_at=wake_at)", "lane"),
        (
            "if wake_at < (math.inf if lane.runnable_at is None else lane.runnable_at):",
            "if lane.runnable_at is None:",
        ),
        ("min(wake_at, now +", "max(wake_at if wake_at < math.inf else 0.0, now +"),
        ("in (Status.PENDING, Status.RETRYING)", "in (Status.PENDING,)"),
        ("lane.breaker.generation != before.breaker.generation or", ""),
    ],
    "an_open_circuit_parks_the_lane": [
        (
            "if lane.breaker.state is not CircuitState.CLOSED and lane.breaker != before.breaker:",
            "if False:",
        ),
        (
            "runnable_at=lane.breaker.next_probe_at, blocked_by=BlockedBy.CIRCUIT",
            "runnable_at=now, blocked_by=BlockedBy.CIRCUIT",
        ),
    ],
    "a_hold_parks_the_lane": [
        ("lane.hold_until > now and lane.hold_until != before.hold_until", "False"),
        ("runnable_at=lane.hold_until, blocked_by", "runnable_at=now, blocked_by"),
    ],
    "a_hold_is_the_longest_that_was_asked_for": [
        ("max(hold_until or 0.0, now + settlement.hold_s)", "now + settlement.hold_s"),
        ("if settlement.hold_s is not None:", "if False:"),
    ],
    "a_block_that_still_holds_is_kept": [
        ("if lane.blocked_by is not None:\n", "if False:\n"),
        ("or lane.blocked_by is BlockedBy.IN_FLIGHT", "or lane.blocked_by is not None"),
    ],
    "room_is_used_at_once": [
        ("or lane.blocked_by is BlockedBy.IN_FLIGHT", ""),
    ],
    "a_reset_is_not_undone": [
        ("settlement.vote, generation=delivery.", "settlement.vote, generation="),
    ],
    "the_breaker_gets_every_vote_in_order": [
        (
            "abandon_probe(generation=delivery.breaker.generation, now=now)",
            "abandon_probe(generation=breaker.generation, now=now)",
        ),
        ("if settlement.vote is None:", "if settlement.vote is not CircuitVote.FAILURE:"),
        ("threshold=settings.circuit_threshold", "threshold=5"),
        ("open_s=settings.circuit_open_s", "open_s=60.0"),
        ("in settlements:", "in reversed(settlements):"),
    ],
    "a_returned_delivery_returns_its_token": [
        ("bucket.take(-1,", "bucket.take(1,"),
        ("if isinstance(result.outcome, GivenBack):", "if True:"),
    ],
    "only_a_success_makes_healthy": [
        ("[vote for vote in votes if vote is not CircuitVote.FAILURE]", "votes"),
        ("current[-1] is CircuitVote.NEUTRAL", "False"),
        ("return before.health", 'return "healthy"'),
    ],
    "health_follows_the_circuit": [
        ('if breaker.health() != "healthy":', "if False:"),
    ],
}
