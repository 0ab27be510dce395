"""Defects planted in the backoff, by the property that must catch them."""

MUTANTS = {
    "never_exceeds_the_cap": [
        (
            "min(cap_s, base_s * growth * (0.8 + 0.4 * u))",
            "min(cap_s, base_s * growth) * (0.8 + 0.4 * u)",
        ),
        ("return min(cap_s, base_s *", "return max(cap_s, base_s *"),
    ],
    "stays_within_a_fifth_of_the_schedule": [
        ("0.4 * u", "0.5 * u"),
        ("0.8 + 0.4 * u", "u"),
        ("growth = factor**tries", "growth = factor ** (tries + 1)"),
        ("growth = factor**tries", "growth = factor ** min(tries, 3)"),
        ("growth = factor**tries", "growth = 2.0**tries"),
    ],
    "never_waits_less_after_more_tries": [
        ("growth = factor**tries", "growth = factor ** (tries % 60)"),
        ("growth = factor**tries", "growth = factor ** (-tries)"),
        ("return cap_s", "return base_s"),
    ],
    "takes_any_number_of_tries": [
        ("except OverflowError:", "except ValueError:"),
    ],
    "refuses_a_negative_number_of_tries": [
        ("if tries < 0:", "if tries < -1:"),
    ],
    "spreads_what_failed_together": [
        ("* (0.8 + 0.4 * u)", ""),
    ],
    "a_pause_starts_with_the_first_and_doubles_up_to_the_maximum": [
        ("min(self.max_s,", "max(self.max_s,"),
        ("self.first_s * 2.0 **", "self.first_s + 2.0 **"),
        ("self.tries + 1", "self.tries"),
    ],
    "a_pause_takes_any_number_of_tries": [
        ("min(self.tries, 60)", "self.tries"),
    ],
    "jitter_leaves_at_least_half_of_a_pause_and_never_adds": [
        ("0.5 + 0.5 * u", "0.4 + 0.6 * u"),
        ("0.5 + 0.5 * u", "0.5 + u"),
    ],
    "jitter_spreads_those_that_wait_together": [
        ("(0.5 + 0.5 * u)", "0.75"),
    ],
    "a_pause_that_is_reset_is_the_first_one_again": [
        ("tries=0)", "tries=1)"),
    ],
}
