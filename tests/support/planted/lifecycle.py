"""Defects planted in the life of a delivery, by the property that must catch them."""

MUTANTS = {
    "retries_never_exceed_their_limit": [
        (
            "delivery.retry_count >= delivery.max_retries",
            "delivery.retry_count > delivery.max_retries",
        ),
        ("spends_retry=not throttled", "spends_retry=False"),
    ],
    "all_retries_are_used": [
        (
            "delivery.retry_count >= delivery.max_retries",
            "delivery.attempts >= delivery.max_retries + 1",
        ),
        (
            "delivery.retry_count >= delivery.max_retries",
            "delivery.retry_count + 1 >= delivery.max_retries",
        ),
    ],
    "refusals_fail_at_once": [
        (", disables_webhook=verdict.disables_webhook", ""),
    ],
    "only_success_delivers": [
        ("Settlement(Status.DELIVERED, ", "Settlement(Status.FAILED, "),
    ],
    "throttling_spends_nothing_and_ends_after_a_day": [
        ("spends_retry=not throttled", "spends_retry=True"),
        ("if throttled and delivery.age_s >= MAX_THROTTLED_S:", "if False:"),
        ("if not throttled and delivery", "if delivery"),
        ("86_400.0", "3_600.0"),
    ],
    "only_throttling_ends_after_a_day": [
        ("if throttled and delivery.age_s", "if delivery.age_s"),
    ],
    "a_returned_delivery_is_unchanged": [
        ('"given back", None)', '"given back", None, loses_lease=True)'),
        ('"given back", None)', '"given back", None, delay_s=5.0)'),
        ("GIVEN_BACK_S * (0.5 + u)", "GIVEN_BACK_S"),
        ("delay_s=delay_s, hold_s=delay_s)", "delay_s=delay_s)"),
        ("delay_s=delay_s, hold_s=delay_s)", "hold_s=delay_s)"),
    ],
    "an_attempt_that_was_none_is_given_back_too": [
        (
            "case Decision.GIVE_BACK:\n            return _settle_returned(",
            "case Decision.GIVE_BACK:\n            return _settle_retry(delivery, verdict, u=u)\n"
            "            return _settle_returned(",
        ),
    ],
    "without_an_attempt_no_vote_and_no_retry": [
        ('"given back", None)', '"given back", None, spends_retry=True)'),
        ('"lease lost", None,', '"lease lost", CircuitVote.FAILURE,'),
        ("if delivery.attempts else", "if delivery.leases_lost else"),
    ],
    "a_row_that_loses_leases_is_tried_alone_and_fails": [
        ("GIVE_UP_AFTER = 6", "GIVE_UP_AFTER = 7"),
        ("QUARANTINE_AFTER = 3", "QUARANTINE_AFTER = 2"),
        ("delivery.settings, lost - QUARANTINE_AFTER", "delivery.settings, lost"),
        ("delay_s=delay_s, loses_lease=True", "delay_s=delay_s"),
    ],
    "the_delay_is_retry_after_or_the_backoff": [
        ("min(asked_s, settings.retry_max_s)", "asked_s"),
        ("own_s if asked_s is None else asked_s", "own_s"),
        ("own_s if asked_s is None else asked_s", "asked_s or own_s"),
        ("delivery.attempts if throttled else delivery.retry_count", "delivery.retry_count"),
        ("delivery.attempts if throttled else delivery.retry_count", "delivery.attempts"),
        ("factor=settings.retry_factor", "factor=2.0"),
        ("cap_s=settings.retry_max_s", "cap_s=1e9"),
    ],
    "retry_after_holds_the_whole_webhook": [
        ("asked_s if verdict.holds_webhook else None", "asked_s"),
        ("asked_s if verdict.holds_webhook else None", "None"),
        ('"failed", failure, verdict.vote, hold_s=hold_s', '"failed", failure, verdict.vote'),
    ],
    "every_attempt_is_logged_and_votes": [
        ('"delivered", verdict.reason, verdict.vote', '"delivered", verdict.reason, None'),
        ('Status.RETRYING,\n                "retrying"', "Status.RETRYING,\n                None"),
    ],
}
