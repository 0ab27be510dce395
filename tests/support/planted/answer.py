"""Defects planted in the classification of an answer, by the property that must catch them."""

MUTANTS = {
    "every_status_is_in_the_table": [
        ("200 <= http_status < 300", "200 <= http_status <= 300"),
        ("200 <= http_status < 300", "200 <= http_status < 400"),
        ("if status == 410:", "if status == 404:"),
        ("disables_webhook=True", "disables_webhook=False"),
        ("200 <= http_status < 300", "200 <= http_status < 300 or http_status < 200"),
        ("is_success(status):", "is_success(status) or status == 304:"),
        ("Decision.THROTTLED if status == 429 else Decision.RETRY", "Decision.RETRY"),
        ("CircuitVote.NEUTRAL if status == 429 else CircuitVote.FAILURE", "CircuitVote.FAILURE"),
        (
            "CircuitVote.NEUTRAL if status == 429 else CircuitVote.FAILURE",
            "CircuitVote.NEUTRAL if status < 500 else CircuitVote.FAILURE",
        ),
        (
            "Decision.THROTTLED if status == 429 else Decision.RETRY",
            "Decision.RETRY if status >= 500 else Decision.GONE",
        ),
    ],
    "retry_after_is_obeyed_where_the_table_says_so": [
        ("status in (429, 503) and", "status == 429 and"),
        ("status in (429, 503) and", ""),
        ("retry_after_s=wait_s,", ""),
        ("retry_after_s=wait_s,", "retry_after_s=wait_s if status >= 429 else None,"),
    ],
    "an_exchange_without_an_answer_is_in_the_table": [
        ("(AnswerKind.NOT_ALLOWED, AnswerKind.SHORTAGE)", "(AnswerKind.NOT_ALLOWED,)"),
        ("(AnswerKind.NOT_ALLOWED, AnswerKind.SHORTAGE)", "(AnswerKind.SHORTAGE,)"),
        (
            "Decision.GIVE_BACK,\n            CircuitVote.NEUTRAL",
            "Decision.RETRY,\n            CircuitVote.NEUTRAL",
        ),
        (
            "Decision.GIVE_BACK,\n            CircuitVote.NEUTRAL",
            "Decision.GIVE_BACK,\n            CircuitVote.FAILURE",
        ),
        ("holds_webhook=True", "holds_webhook=False"),
        (" or answer.http_status is None:", ":"),
    ],
    "seconds_are_read": [
        ("text.isdigit()", "text.isdecimal() and len(text) < 6"),
        ("text = value.strip()", "text = value"),
    ],
    "dates_are_read": [
        ("when.replace(tzinfo=UTC)", "when.astimezone(UTC).replace(hour=0)"),
        ("(when - now_at)", "(now_at - when)"),
        ("max(0.0, (when - now_at).total_seconds())", "(when - now_at).total_seconds()"),
    ],
    "a_malformed_header_is_ignored": [
        ("(ValueError, TypeError, OverflowError)", "(TypeError, OverflowError)"),
        ("(ValueError, TypeError, OverflowError)", "(ValueError, TypeError)"),
        ("text.isascii() and ", ""),
    ],
}
