"""Defects planted in the backoff, by the property that must catch them."""

MUTANTS = {
    "never_exceeds_the_cap": [
        (
            "min(cap_s, base_s * 2.0 ** min(tries, 60) * (0.8 + 0.4 * u))",
            "min(cap_s, base_s * 2.0 ** min(tries, 60)) * (0.8 + 0.4 * u)",
        ),
        ("min(cap_s, base_s *", "max(cap_s, base_s *"),
    ],
    "stays_within_a_fifth_of_the_schedule": [
        ("0.4 * u", "0.5 * u"),
        ("0.8 + 0.4 * u", "u"),
        ("min(tries, 60)", "min(tries + 1, 60)"),
        ("min(tries, 60)", "min(tries, 3)"),
    ],
    "never_waits_less_after_more_tries": [
        ("min(tries, 60)", "(tries % 60)"),
        ("min(tries, 60)", "(-tries)"),
    ],
    "takes_any_number_of_tries": [
        ("min(tries, 60)", "tries"),
    ],
    "refuses_a_negative_number_of_tries": [
        ("if tries < 0:", "if tries < -1:"),
    ],
    "spreads_what_failed_together": [
        ("* (0.8 + 0.4 * u)", ""),
    ],
}
