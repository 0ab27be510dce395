"""Mistakes planted in webhookd.core, and for each the property that must catch it; and steps left
out of the stored breaker.

A property that passes says little until it is seen to fail. Here is what it has to fail for.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, Phase, settings

CHECK = settings(
    max_examples=80, stateful_step_count=30, deadline=None, database=None, derandomize=True
)
# A mutant has to be caught, not to be explained.
HUNT = settings(
    CHECK,
    max_examples=5000,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """webhookd.core.*module* with *was* replaced by *becomes*; *killed_by* is the property that
    must fail on it.
    """

    module: str
    was: str
    becomes: str
    killed_by: str

    def plant(self) -> ModuleType:
        """Return the changed module. Nothing else sees it: whoever imported the real one keeps it."""
        original = import_module(f"webhookd.core.{self.module}")
        assert original.__file__ is not None
        source = Path(original.__file__).read_text(encoding="utf-8")
        assert source.count(self.was) == 1, (
            f"{self.module}.py has {source.count(self.was)} times {self.was!r}: name it anew"
        )
        mutated = ModuleType(original.__name__)
        exec(compile(source.replace(self.was, self.becomes), f"<{self}>", "exec"), mutated.__dict__)
        return mutated

    def __str__(self) -> str:
        return f"{self.module}: {' '.join(self.was.split())} -> {' '.join(self.becomes.split()) or 'nothing'}"


def planted_in(module: str) -> list[Mutant]:
    return [mutant for mutant in MUTANTS if mutant.module == module]


# fmt: off
MUTANTS = (
    # The breaker.
    Mutant("breaker", "failures >= threshold", "failures > threshold", "opens_exactly_at_the_threshold"),
    Mutant("breaker", "failures >= threshold", "failures + 1 >= threshold", "opens_exactly_at_the_threshold"),
    Mutant("breaker", "failures = self.failures + 1", "failures = self.failures + 2", "opens_exactly_at_the_threshold"),
    Mutant("breaker", "replace(self, failures=0)", "self", "failures_in_a_row_are_counted"),
    Mutant("breaker", "CircuitState.OPEN, self.generation + 1, failures,", "CircuitState.OPEN, self.generation + 1, 0,",
           "failures_in_a_row_are_counted"),
    Mutant("breaker", "now + open_s", "now + open_s / 2", "admits_nothing_before_the_open_time_is_over"),
    Mutant("breaker", "generation + 1, until=lease_until)", "generation + 1)", "admits_one_probe_until_its_lease_ends"),
    Mutant("breaker", "return replace(self, until=now)", "return replace(self, until=None)",
           "admits_one_probe_until_its_lease_ends"),
    Mutant("breaker", "state=CircuitState.HALF_OPEN, generation", "generation", "a_probe_makes_the_breaker_half_open"),
    Mutant("breaker", "None if self.state is CircuitState.CLOSED else (self.until or 0.0)", "self.until or 0.0",
           "attempts_flow_freely_while_closed"),
    Mutant("breaker", "if generation != self.generation:", "if False:", "an_attempt_of_another_epoch_changes_nothing"),
    Mutant("breaker", "if generation == self.generation and self.state is", "if self.state is",
           "an_attempt_of_another_epoch_changes_nothing"),
    Mutant("breaker", "return self.abandon_probe(generation=generation, now=now)", "return self",
           "an_attempt_that_says_nothing_lets_the_next_probe_go"),
    Mutant("breaker", "if vote is CircuitVote.NEUTRAL:", "if False:", "an_attempt_that_says_nothing_lets_the_next_probe_go"),
    Mutant("breaker", "and self.state is CircuitState.HALF_OPEN:", ":", "an_attempt_that_says_nothing_lets_the_next_probe_go"),
    Mutant("breaker", "if self.state is CircuitState.CLOSED:", "if True:", "a_probe_that_succeeds_closes"),
    Mutant("breaker", "self.state is CircuitState.HALF_OPEN or failures >=", "failures >=", "a_probe_that_fails_opens_again"),
    Mutant("breaker", "by hand.\"\"\"\n        return Breaker(CircuitState.CLOSED, self.generation + 1)",
           "by hand.\"\"\"\n        return Breaker(CircuitState.CLOSED, self.generation)", "a_reset_closes"),
    Mutant("breaker", "by hand.\"\"\"\n        return Breaker(", "by hand.\"\"\"\n        return "
                                                                 "self or Breaker(",
           "a_reset_closes"),
    Mutant("breaker", "generation=self.generation + 1, until=lease", "until=lease", "each_transition_starts_an_epoch"),
    Mutant("breaker", "CircuitState.OPEN, self.generation + 1", "CircuitState.OPEN, self.generation", "each_transition_starts_an_epoch"),
    Mutant("breaker", "or self.failures:", "and self.failures:", "health_follows_the_circuit"),
    Mutant("breaker", "if self.state is CircuitState.OPEN:", "if False:", "health_follows_the_circuit"),
    # The bucket.
    Mutant("bucket", "return min(float(burst), self.tokens + max(0.0, now - self.at) * rate)",
           "return self.tokens + max(0.0, now - self.at) * rate", "is_never_above_the_burst"),
    Mutant("bucket", "min(float(burst), self.level(now, rate=rate, burst=burst) - count)",
           "self.level(now, rate=rate, burst=burst) - count", "is_never_above_the_burst"),
    Mutant("bucket", "- count)", "- count - 1)", "is_never_below_nothing"),
    Mutant("bucket", "max(0.0, now - self.at)", "(now - self.at)", "is_never_below_nothing"),
    Mutant("bucket", "- count), now)", "- count), self.at)", "lets_through_at_most_burst_and_rate"),
    Mutant("bucket", "(now, rate=rate, burst=burst) - count)", "(now, rate=rate, burst=burst))",
           "lets_through_at_most_burst_and_rate"),
    Mutant("bucket", "* rate)\n", "* rate * 2)\n", "lets_through_at_most_burst_and_rate"),
    Mutant("bucket", "max(0.0, now - self.at)", "abs(now - self.at)", "gains_nothing_from_a_clock_that_steps_back"),
    Mutant("bucket", "* rate)\n", "* rate * 0.75)\n", "refills_at_its_rate"),
    Mutant("bucket", "max(0.0, now - self.at) * rate", "0.0", "refills_at_its_rate"),
    Mutant("bucket", "now + missing / rate", "now + missing / rate + 0.25", "names_the_first_instant_of_the_next_token"),
    Mutant("bucket", "now + missing / rate", "now + missing * rate", "names_the_first_instant_of_the_next_token"),
    Mutant("bucket", "if missing <= 0", "if missing < 1", "names_the_first_instant_of_the_next_token"),
    Mutant("bucket", "return math.inf", "return float(burst)", "rate_nought_is_unlimited"),
    Mutant("bucket", "return Bucket(None, now)", "return Bucket(0.0, now)", "rate_nought_is_unlimited"),
    Mutant("bucket", "return float(burst)", "return 0.0", "a_new_bucket_is_full"),
    # The backoff.
    Mutant("backoff", "min(cap_s, base_s * 2.0 ** min(tries, 60) * (0.8 + 0.4 * u))",
           "min(cap_s, base_s * 2.0 ** min(tries, 60)) * (0.8 + 0.4 * u)", "never_exceeds_the_cap"),
    Mutant("backoff", "min(cap_s, base_s *", "max(cap_s, base_s *", "never_exceeds_the_cap"),
    Mutant("backoff", "0.4 * u", "0.5 * u", "stays_within_a_fifth_of_the_schedule"),
    Mutant("backoff", "0.8 + 0.4 * u", "u", "stays_within_a_fifth_of_the_schedule"),
    Mutant("backoff", "min(tries, 60)", "min(tries + 1, 60)", "stays_within_a_fifth_of_the_schedule"),
    Mutant("backoff", "min(tries, 60)", "min(tries, 3)", "stays_within_a_fifth_of_the_schedule"),
    Mutant("backoff", "min(tries, 60)", "(tries % 60)", "never_waits_less_after_more_tries"),
    Mutant("backoff", "min(tries, 60)", "(-tries)", "never_waits_less_after_more_tries"),
    Mutant("backoff", "min(tries, 60)", "tries", "takes_any_number_of_tries"),
    Mutant("backoff", "if tries < 0:", "if tries < -1:", "refuses_a_negative_number_of_tries"),
    Mutant("backoff", "* (0.8 + 0.4 * u)", "", "spreads_what_failed_together"),
    # The answer.
    Mutant("answer", "200 <= http_status < 300", "200 <= http_status <= 300", "every_status_is_in_the_table"),
    Mutant("answer", "200 <= http_status < 300", "200 <= http_status < 400", "every_status_is_in_the_table"),
    Mutant("answer", "if status == 410:", "if status == 404:", "every_status_is_in_the_table"),
    Mutant("answer", "disables_webhook=True", "disables_webhook=False", "every_status_is_in_the_table"),
    Mutant("answer", "frozenset({408, 425, 429})", "frozenset({408, 429})", "every_status_is_in_the_table"),
    Mutant("answer", "status >= 500 or", "status in (500, 502, 503, 504) or", "every_status_is_in_the_table"),
    Mutant("answer", "Decision.THROTTLED if status == 429 else Decision.RETRY", "Decision.RETRY", "every_status_is_in_the_table"),
    Mutant("answer", "CircuitVote.NEUTRAL if status == 429 else CircuitVote.FAILURE", "CircuitVote.FAILURE",
           "every_status_is_in_the_table"),
    Mutant("answer", "return Verdict(Decision.FAIL, CircuitVote.FAILURE, reason)",
           "return Verdict(Decision.FAIL, CircuitVote.NEUTRAL, reason)", "every_status_is_in_the_table"),
    Mutant("answer", "if status < 200:", "if False:", "every_status_is_in_the_table"),
    Mutant("answer", "status in (429, 503) and", "status == 429 and", "retry_after_is_obeyed_where_the_table_says_so"),
    Mutant("answer", "status in (429, 503) and", "", "retry_after_is_obeyed_where_the_table_says_so"),
    Mutant("answer", "retry_after_s=wait_s,", "", "retry_after_is_obeyed_where_the_table_says_so"),
    Mutant("answer", "Verdict(Decision.FAIL, CircuitVote.NEUTRAL, answer.error",
           "Verdict(Decision.RETRY, CircuitVote.NEUTRAL, answer.error",
           "an_exchange_without_an_answer_is_in_the_table"),
    Mutant("answer", "Verdict(Decision.FAIL, CircuitVote.NEUTRAL, answer.error",
           "Verdict(Decision.FAIL, CircuitVote.FAILURE, answer.error",
           "an_exchange_without_an_answer_is_in_the_table"),
    Mutant("answer", " or answer.http_status is None:", ":", "an_exchange_without_an_answer_is_in_the_table"),
    Mutant("answer", "text.isdigit()", "text.isdecimal() and len(text) < 6", "seconds_are_read"),
    Mutant("answer", "text = value.strip()", "text = value", "seconds_are_read"),
    Mutant("answer", "when.replace(tzinfo=UTC)", "when.astimezone(UTC).replace(hour=0)", "dates_are_read"),
    Mutant("answer", "(when - now_at)", "(now_at - when)", "dates_are_read"),
    Mutant("answer", "max(0.0, (when - now_at).total_seconds())", "(when - now_at).total_seconds()", "dates_are_read"),
    Mutant("answer", "(ValueError, TypeError, OverflowError)", "(TypeError, OverflowError)", "garbage_is_no_wish"),
    Mutant("answer", "(ValueError, TypeError, OverflowError)", "(ValueError, TypeError)", "garbage_is_no_wish"),
    Mutant("answer", "text.isascii() and ", "", "garbage_is_no_wish"),
    # The life of a delivery.
    Mutant("lifecycle", "delivery.retry_count >= delivery.max_retries", "delivery.retry_count > delivery.max_retries",
           "retries_never_exceed_their_limit"),
    Mutant("lifecycle", "spends_retry=not throttled", "spends_retry=False", "retries_never_exceed_their_limit"),
    Mutant("lifecycle", "delivery.retry_count >= delivery.max_retries", "delivery.attempts >= delivery.max_retries + 1",
           "all_retries_are_used"),
    Mutant("lifecycle", "delivery.retry_count >= delivery.max_retries", "delivery.retry_count + 1 >= delivery.max_retries",
           "all_retries_are_used"),
    Mutant("lifecycle", "case Decision.FAIL | Decision.GONE:", "case Decision.FAIL:", "refusals_fail_at_once"),
    Mutant("lifecycle", ", disables_webhook=verdict.disables_webhook", "", "refusals_fail_at_once"),
    Mutant("lifecycle", "Settlement(Status.DELIVERED, ", "Settlement(Status.FAILED, ", "only_success_delivers"),
    Mutant("lifecycle", "spends_retry=not throttled", "spends_retry=True", "throttling_spends_nothing_and_ends_after_a_day"),
    Mutant("lifecycle", "if throttled and delivery.age_s >= THROTTLED_FOR_AT_MOST_S:", "if False:",
           "throttling_spends_nothing_and_ends_after_a_day"),
    Mutant("lifecycle", "if not throttled and delivery", "if delivery", "throttling_spends_nothing_and_ends_after_a_day"),
    Mutant("lifecycle", "86_400.0", "3_600.0", "throttling_spends_nothing_and_ends_after_a_day"),
    Mutant("lifecycle", "if throttled and delivery.age_s", "if delivery.age_s", "only_throttling_ends_after_a_day"),
    Mutant("lifecycle", "\"given back\", None)", "\"given back\", None, loses_lease=True)", "what_was_given_back_is_as_it_was"),
    Mutant("lifecycle", "\"given back\", None)", "\"given back\", None, delay_s=5.0)", "what_was_given_back_is_as_it_was"),
    Mutant("lifecycle", "\"given back\", None)", "\"given back\", None, spends_retry=True)",
           "without_an_attempt_nothing_is_said_or_spent"),
    Mutant("lifecycle", "\"lease lost\", None,", "\"lease lost\", CircuitVote.FAILURE,",
           "without_an_attempt_nothing_is_said_or_spent"),
    Mutant("lifecycle", "if delivery.attempts else", "if delivery.leases_lost else",
           "without_an_attempt_nothing_is_said_or_spent"),
    Mutant("lifecycle", "GIVE_UP_AFTER = 6", "GIVE_UP_AFTER = 7", "a_row_that_loses_leases_is_tried_alone_and_given_up"),
    Mutant("lifecycle", "QUARANTINE_AFTER = 3\n", "QUARANTINE_AFTER = 2\n", "a_row_that_loses_leases_is_tried_alone_and_given_up"),
    Mutant("lifecycle", "backoff_s(lost - QUARANTINE_AFTER,", "backoff_s(lost,",
           "a_row_that_loses_leases_is_tried_alone_and_given_up"),
    Mutant("lifecycle", "delay_s=delay_s, loses_lease=True", "delay_s=delay_s",
           "a_row_that_loses_leases_is_tried_alone_and_given_up"),
    Mutant("lifecycle", "min(verdict.retry_after_s, settings.retry_max_s)", "verdict.retry_after_s",
           "the_delay_is_the_receivers_wish_or_the_backoff"),
    Mutant("lifecycle", "own_s if wished_s is None else wished_s", "own_s", "the_delay_is_the_receivers_wish_or_the_backoff"),
    Mutant("lifecycle", "own_s if wished_s is None else wished_s", "wished_s or own_s",
           "the_delay_is_the_receivers_wish_or_the_backoff"),
    Mutant("lifecycle", "delivery.attempts if throttled else delivery.retry_count", "delivery.retry_count",
           "the_delay_is_the_receivers_wish_or_the_backoff"),
    Mutant("lifecycle", "delivery.attempts if throttled else delivery.retry_count", "delivery.attempts",
           "the_delay_is_the_receivers_wish_or_the_backoff"),
    Mutant("lifecycle", "wished_s if verdict.holds_webhook else None", "wished_s", "a_wish_holds_the_whole_webhook"),
    Mutant("lifecycle", "wished_s if verdict.holds_webhook else None", "None", "a_wish_holds_the_whole_webhook"),
    Mutant("lifecycle",
           "no retries left\"\n                return Settlement(Status.FAILED, \"failed\", "
           "reason, verdict.vote, hold_s=hold_s)",
           "no retries left\"\n                return Settlement(Status.FAILED, \"failed\", "
           "reason, verdict.vote)",
           "a_wish_holds_the_whole_webhook"),
    Mutant("lifecycle", "\"delivered\", verdict.reason, verdict.vote", "\"delivered\", verdict.reason, None",
           "every_attempt_is_logged_and_votes"),
    Mutant("lifecycle", "Status.RETRYING,\n                \"retrying\"", "Status.RETRYING,\n                None",
           "every_attempt_is_logged_and_votes"),
    # The lane.
    Mutant("lane", "if not settings.enabled:", "if False:", "the_first_block_is_named_with_its_end"),
    Mutant("lane", "lane.hold_until > now:\n        return", "lane.hold_until >= now:\n        "
                                                             "return",
           "the_first_block_is_named_with_its_end"),
    Mutant("lane", "BlockedBy.HOLD, lane.hold_until)\n    if", "BlockedBy.HOLD, now)\n    if",
           "the_first_block_is_named_with_its_end"),
    Mutant("lane", "lane.breaker.blocked_until > now:", "False:", "the_first_block_is_named_with_its_end"),
    Mutant("lane", "if lane.in_flight >= settings.max_in_flight:", "if False:",
           "the_first_block_is_named_with_its_end"),
    Mutant("lane", "burst=settings.burst) < 1:", "burst=settings.burst) <= 0:", "a_probe_needs_room_and_a_token_too"),
    Mutant("lane", "return Admission(0, BlockedBy.UNREGISTERED)", "return Admission(0, "
                                                                  "BlockedBy.UNREGISTERED, now)",
           "the_first_block_is_named_with_its_end"),
    Mutant("lane", "min(wish, room, tokens)", "min(wish, room)", "gives_all_that_wish_room_and_tokens_allow"),
    Mutant("lane", "min(wish, room, tokens)", "min(wish, tokens)", "gives_all_that_wish_room_and_tokens_allow"),
    Mutant("lane", "min(wish, room, tokens)", "min(room, tokens, 20)", "gives_all_that_wish_room_and_tokens_allow"),
    Mutant("lane", "min(wish, room, tokens)", "1", "gives_all_that_wish_room_and_tokens_allow"),
    Mutant("lane", "if lane.breaker.blocked_until is not None:\n", "if False:\n", "a_probe_is_one_row"),
    Mutant("lane", "Admission(1, BlockedBy.CIRCUIT, probe=True)", "Admission(wish, "
                                                                  "BlockedBy.CIRCUIT, probe=True)",
           "a_probe_is_one_row"),
    Mutant("lane", "if lane.in_flight >= settings.max_in_flight:", "if False:", "a_probe_needs_room_and_a_token_too"),
    Mutant("lane", "if quota == tokens:", "if False:", "says_what_the_lane_waits_for_next"),
    Mutant("lane", "if quota == room:", "if False:", "says_what_the_lane_waits_for_next"),
    Mutant("lane", "lane.bucket.take(quota, now,", "lane.bucket.take(0, now,", "says_what_the_lane_waits_for_next"),
    Mutant("lane", "return Admission(quota, None, now)", "return Admission(quota)", "says_what_the_lane_waits_for_next"),
    Mutant("lane", "lane.in_flight - len(settled)", "lane.in_flight - 1", "every_claim_that_ends_makes_room"),
    Mutant("lane", "lane.in_flight - len(settled)", "lane.in_flight", "every_claim_that_ends_makes_room"),
    Mutant("lane", "replace(lane, runnable_at=wake_at)", "lane", "waiting_rows_are_looked_at_in_time"),
    Mutant("lane", "if wake_at < (math.inf if lane.runnable_at is None else lane.runnable_at):", "if lane.runnable_at is None:",
           "waiting_rows_are_looked_at_in_time"),
    Mutant("lane", "min(wake_at, now +", "max(wake_at if wake_at < math.inf else 0.0, now +",
           "waiting_rows_are_looked_at_in_time"),
    Mutant("lane", "in (Status.PENDING, Status.RETRYING)", "in (Status.PENDING,)", "waiting_rows_are_looked_at_in_time"),
    Mutant("lane", "if lane.breaker.generation != before.breaker.generation or", "if", "waiting_rows_are_looked_at_in_time"),
    Mutant("lane", "if lane.breaker.state is not CircuitState.CLOSED and lane.breaker != "
                   "before.breaker:", "if False:",
           "a_trip_parks_the_lane"),
    Mutant("lane", "runnable_at=lane.breaker.until, blocked_by=BlockedBy.CIRCUIT",
           "runnable_at=now, blocked_by=BlockedBy.CIRCUIT",
           "a_trip_parks_the_lane"),
    Mutant("lane", "lane.hold_until > now and lane.hold_until != before.hold_until", "False", "a_hold_parks_the_lane"),
    Mutant("lane", "runnable_at=lane.hold_until, blocked_by", "runnable_at=now, blocked_by", "a_hold_parks_the_lane"),
    Mutant("lane", "max(hold_until or 0.0, now + settlement.hold_s)", "now + settlement.hold_s",
           "a_hold_is_the_longest_that_was_asked_for"),
    Mutant("lane", "if settlement.hold_s is not None:", "if False:", "a_hold_is_the_longest_that_was_asked_for"),
    Mutant("lane", "if lane.blocked_by is not None:\n", "if False:\n", "a_block_that_still_holds_is_kept"),
    Mutant("lane", "or lane.blocked_by is BlockedBy.IN_FLIGHT", "or lane.blocked_by is not None",
           "a_block_that_still_holds_is_kept"),
    Mutant("lane", "or lane.blocked_by is BlockedBy.IN_FLIGHT", "", "room_is_used_at_once"),
    Mutant("lane", "generation=delivery.breaker.generation,\n", "generation=breaker.generation,\n", "a_reset_is_not_undone"),
    Mutant("lane", "abandon_probe(generation=delivery.breaker.generation, now=now)", "abandon_probe(generation=breaker.generation, now=now)",
           "the_breaker_hears_every_vote_in_order"),
    Mutant("lane", "if settlement.vote is None:", "if settlement.vote is not CircuitVote.FAILURE:",
           "the_breaker_hears_every_vote_in_order"),
    Mutant("lane", "threshold=settings.circuit_threshold", "threshold=5", "the_breaker_hears_every_vote_in_order"),
    Mutant("lane", "open_s=settings.circuit_open_s", "open_s=60.0", "the_breaker_hears_every_vote_in_order"),
    Mutant("lane", "in settled:\n", "in reversed(settled):\n", "the_breaker_hears_every_vote_in_order"),
    Mutant("lane", "bucket.take(-1,", "bucket.take(1,", "what_is_given_back_returns_its_token"),
    Mutant("lane", "if isinstance(result.outcome, GivenBack):", "if True:", "what_is_given_back_returns_its_token"),
    Mutant("lane", "[vote for vote in votes if vote is not CircuitVote.FAILURE]", "votes", "only_a_success_makes_healthy"),
    Mutant("lane", "telling[-1] is CircuitVote.NEUTRAL", "False", "only_a_success_makes_healthy"),
    Mutant("lane", "return before.health", "return \"healthy\"", "only_a_success_makes_healthy"),
    Mutant("lane", "if breaker.health() != \"healthy\":", "if False:", "health_follows_the_circuit"),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class StoredMutant:
    """A step that the stored breaker needs, left out.

    *place* is a statement of sql/queries, or `lane` (the core's), `reset_circuit` (the trigger's
    function), `token` (the dice). What is *rare* takes a long search to be caught: `make storm`
    does that.
    """

    place: str
    was: str
    becomes: str
    rare: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {' '.join(self.was.split())} -> {' '.join(self.becomes.split()) or 'nothing'}"


# fmt: off
STORED = (
    # The fence.
    StoredMutant("settle", "AND q.lease_token = r.token", ""),
    StoredMutant("settle", "SELECT delivery_id, token FROM settled", "SELECT delivery_id, token FROM result"),
    StoredMutant("token", "random", "always the same"),
    # The generation.
    StoredMutant("lane", "generation=delivery.breaker.generation,\n", "generation=breaker.generation,\n", rare=True),
    StoredMutant("update_lanes", "circuit_epoch = r.circuit_epoch,", ""),
    StoredMutant("claim", "circuit_epoch = h.circuit_epoch + t.probes::int,", ""),
    StoredMutant("claim_quarantined", "circuit_epoch = h.circuit_epoch + %(probe)s::int,", ""),
    StoredMutant("reset_circuit", "NEW.circuit_epoch := OLD.circuit_epoch + 1;", ""),
    # What a record stores.
    StoredMutant("update_lanes", "circuit_state = r.circuit_state,", ""),
    StoredMutant("update_lanes", "circuit_until = to_timestamp(r.circuit_until),", ""),
    StoredMutant("update_lanes", "consecutive_failures = r.failures,", ""),
    StoredMutant("update_lanes", "health_status = r.health_status,", ""),
    StoredMutant("update_lanes", "in_flight = r.in_flight,", ""),
    StoredMutant("update_lanes", "runnable_at = to_timestamp(r.runnable_at),", "", rare=True),
    # What the claim of a probe stores.
    StoredMutant("claim", "circuit_state = CASE WHEN t.probes THEN 'half_open' ELSE "
                          "h.circuit_state END,", ""),
    StoredMutant("claim", "circuit_until = CASE WHEN t.probes", "circuit_until = CASE WHEN false"),
    StoredMutant("claim", "health_status = CASE WHEN t.probes THEN 'degraded' ELSE "
                          "h.health_status END,", ""),
    StoredMutant("claim", "in_flight = l.in_flight + t.n,", ""),
    StoredMutant("claim", "l.probe AND count(c.webhook_id) > 0 AS probes", "l.probe AS probes", rare=True),
    StoredMutant("claim_quarantined", "circuit_state = CASE WHEN %(probe)s THEN 'half_open' ELSE "
                                  "h.circuit_state END,", "",
                 rare=True),
    StoredMutant("claim_quarantined", "circuit_until = CASE WHEN %(probe)s", "circuit_until = CASE WHEN false", rare=True),
    StoredMutant("claim_quarantined", "AND %(admitted)s", "", rare=True),
    # The operator's reset.
    StoredMutant("reset_circuit", "NEW.circuit_state := 'closed';", ""),
    StoredMutant("reset_circuit", "NEW.circuit_until := NULL;", ""),
    StoredMutant("reset_circuit", "NEW.runnable_at := now();", "", rare=True),
    StoredMutant("reset_circuit", "BEGIN", "BEGIN RETURN NEW;"),
    # Leases that nobody recorded.
    StoredMutant("leases_of", "THEN h.circuit_epoch ELSE -1 END", "THEN -1 ELSE -1 END"),
    StoredMutant("leases_of", "h.circuit_state = 'half_open' AND h.circuit_until = q.lease_until", "true", rare=True),
    StoredMutant("expired_leases", "AND q.lease_until <= now()", ""),
    # The locks.
    StoredMutant("lock_recorded_lanes", "FOR NO KEY UPDATE SKIP LOCKED", ""),
    StoredMutant("lock_lanes", "FOR NO KEY UPDATE SKIP LOCKED", ""),
    StoredMutant("lock_quarantined_lane", "FOR NO KEY UPDATE OF h, q SKIP LOCKED", ""),
)
# fmt: on
