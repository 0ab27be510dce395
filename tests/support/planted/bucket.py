"""Defects planted in the token bucket, by the property that must catch them."""

MUTANTS = {
    "is_never_above_the_burst": [
        (
            "return min(float(burst), self.tokens + max(0.0, now - self.at) * rate)",
            "return self.tokens + max(0.0, now - self.at) * rate",
        ),
        (
            "min(float(burst), self.level(now, rate=rate, burst=burst) - count)",
            "self.level(now, rate=rate, burst=burst) - count",
        ),
    ],
    "is_never_below_zero": [
        ("- count)", "- count - 1)"),
        ("max(0.0, now - self.at)", "(now - self.at)"),
    ],
    "lets_through_at_most_burst_and_rate": [
        ("- count), now)", "- count), self.at)"),
        ("(now, rate=rate, burst=burst) - count)", "(now, rate=rate, burst=burst))"),
        ("* rate)\n", "* rate * 2)\n"),
    ],
    "gains_nothing_from_a_clock_that_steps_back": [
        ("max(0.0, now - self.at)", "abs(now - self.at)"),
    ],
    "refills_at_its_rate": [
        ("* rate)\n", "* rate * 0.75)\n"),
        ("max(0.0, now - self.at) * rate", "0.0"),
    ],
    "names_the_first_instant_of_the_next_token": [
        ("now + missing / rate", "now + missing / rate + 0.25"),
        ("now + missing / rate", "now + missing * rate"),
        ("if missing <= 0", "if missing < 1"),
    ],
    "rate_zero_is_unlimited": [
        ("return math.inf", "return float(burst)"),
        ("return Bucket(None, now)", "return Bucket(0.0, now)"),
    ],
    "a_new_bucket_is_full": [
        ("return float(burst)", "return 0.0"),
    ],
}
