"""Defects planted in the circuit breaker, by the property that must catch them."""

MUTANTS = {
    "opens_exactly_at_the_threshold": [
        ("failures >= threshold", "failures > threshold"),
        ("failures >= threshold", "failures + 1 >= threshold"),
        ("failures = self.failures + 1", "failures = self.failures + 2"),
    ],
    "failures_in_a_row_are_counted": [
        ("replace(self, failures=0)", "self"),
        (
            "CircuitState.OPEN, self.generation + 1, failures,",
            "CircuitState.OPEN, self.generation + 1, 0,",
        ),
    ],
    "admits_nothing_before_the_open_time_is_over": [
        ("now + open_s", "now + open_s / 2"),
    ],
    "admits_one_probe_until_its_lease_ends": [
        ("generation + 1, next_probe_at=lease_until)", "generation + 1)"),
        ("replace(self, next_probe_at=now)", "replace(self, next_probe_at=None)"),
    ],
    "a_probe_makes_the_breaker_half_open": [
        ("state=CircuitState.HALF_OPEN, generation", "generation"),
    ],
    "attempts_flow_freely_while_closed": [
        (
            "None if self.state is CircuitState.CLOSED else (self.next_probe_at or 0.0)",
            "self.next_probe_at or 0.0",
        ),
    ],
    "an_attempt_of_another_generation_changes_nothing": [
        ("if generation != self.generation:", "if False:"),
        ("if generation == self.generation and self.state is", "if self.state is"),
    ],
    "a_neutral_attempt_lets_the_next_probe_go": [
        ("return self.abandon_probe(generation=generation, now=now)", "return self"),
        ("if vote is CircuitVote.NEUTRAL:", "if False:"),
        ("and self.state is CircuitState.HALF_OPEN:", ":"),
    ],
    "a_probe_that_succeeds_closes": [
        ("if self.state is CircuitState.CLOSED:", "if True:"),
    ],
    "a_probe_that_fails_opens_again": [
        ("self.state is CircuitState.HALF_OPEN or failures >=", "failures >="),
    ],
    "a_reset_closes": [
        (
            "return Breaker(CircuitState.CLOSED, self.generation + 1) def health",
            "return Breaker(CircuitState.CLOSED, self.generation)\n\n    def health",
        ),
        (
            "return Breaker(CircuitState.CLOSED, self.generation + 1) def health",
            "return self\n\n    def health",
        ),
    ],
    "each_transition_starts_a_generation": [
        ("generation=self.generation + 1, next_probe_at", "next_probe_at"),
        ("CircuitState.OPEN, self.generation + 1", "CircuitState.OPEN, self.generation"),
    ],
    "health_follows_the_circuit": [
        ("or self.failures:", "and self.failures:"),
        ("if self.state is CircuitState.OPEN:", "if False:"),
    ],
}
