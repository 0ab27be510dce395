"""The table of answers, written down again for every status, and both forms of Retry-After; and
mutants.
"""

import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.mutants import CHECK, HUNT, Mutant, planted_in
from webhookd.core import answer

NOW_AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
# The parts of Retry-After dates, so that wrong dates look almost right.
DATE_PIECES = (
    *("Sun,", "Sunday,", "Sun", "06", "6", "Nov", "Nov-94", "06-Nov-94", "1994", "94"),
    *("08:49:37", "8.49", "::", "24:60:61", "GMT", "-0000", "+9999", "+99999999999999999999"),
    *("0", "-1", "1.5", "1e3", "²", "١٢", ",", ";", "", " ", "\x00"),
)


def every_status_is_in_the_table(core: ModuleType, _: settings) -> None:
    for status in range(100, 1000):
        verdict = core.classify(core.Answer(core.AnswerKind.RESPONSE, 0.1, status), now_at=NOW_AT)
        assert (verdict.decision, verdict.vote, verdict.disables_webhook) == expected(status), (
            status
        )
        assert verdict.reason == f"HTTP {status}"
        assert (verdict.retry_after_s, verdict.holds_webhook) == (None, False)


def expected(status: int) -> tuple[str, str, bool]:
    """Return CONTRACT's row for *status*: the decision, the circuit's vote, and whether the webhook
    is disabled.
    """
    if status // 100 == 2:
        return "delivered", "success", False
    if status == 429:
        return "throttled", "neutral", False
    if status == 410:
        return "gone", "failure", True
    return "retry", "failure", False


def retry_after_is_obeyed_where_the_table_says_so(core: ModuleType, _: settings) -> None:
    for status in range(100, 1000):
        for header, wished_s in (
            ("120", 120.0),
            ("Sun, 01 Mar 2026 12:02:00 GMT", 120.0),
            ("soon", None),
        ):
            verdict = core.classify(
                core.Answer(core.AnswerKind.RESPONSE, 0.1, status, header), now_at=NOW_AT
            )
            obeyed = status // 100 != 2 and status != 410
            assert verdict.retry_after_s == (wished_s if obeyed else None), status
            assert verdict.holds_webhook == (status in (429, 503) and wished_s is not None), status
            assert (verdict.decision, verdict.vote, verdict.disables_webhook) == expected(status), (
                status
            )


def an_exchange_without_an_answer_is_in_the_table(core: ModuleType, how: settings) -> None:
    @how
    @given(
        st.sampled_from(["timeout", "no_answer", "not_allowed", "shortage", "response"]),
        st.sampled_from([None, "refused"]),
        st.sampled_from([None, "120"]),
    )
    def holds(kind: str, error: str | None, retry_after: str | None) -> None:
        came = core.Answer(core.AnswerKind(kind), 5.0, retry_after=retry_after, error=error)
        try:
            verdict = core.classify(came, now_at=NOW_AT)
        except TypeError as fault:
            raise AssertionError("an answer without a status breaks the worker") from fault
        returned = kind in ("not_allowed", "shortage")
        table = ("give_back", "neutral") if returned else ("retry", "failure")
        assert (verdict.decision, verdict.vote) == table
        assert (verdict.retry_after_s, verdict.holds_webhook, verdict.disables_webhook) == (
            None,
            returned,
            False,
        )
        assert verdict.reason == (error or verdict.reason) != ""

    holds()


def seconds_are_read(core: ModuleType, how: settings) -> None:
    @how
    @given(
        st.integers(0, 10**40),
        st.sampled_from(["", "0", "0" * 20]),
        st.sampled_from(["", " ", "\t "]),
    )
    @example(1, "0" * 20, "")
    def holds(seconds: int, zeros: str, space: str) -> None:
        read_s = core.parse_retry_after(f"{space}{zeros}{seconds}{space}", now_at=NOW_AT)
        # More than a year is above every maximum.
        assert read_s is not None
        assert read_s == seconds if seconds < 10**7 else read_s >= 10**7

    holds()


def dates_are_read(core: ModuleType, how: settings) -> None:
    """The three forms of RFC 9110, section 5.6.7, all of them in GMT; a time in the past
    gives 0.
    """
    forms = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y")

    @how
    @given(st.integers(-(10**8), 10**8), st.sampled_from(forms))
    def holds(distance_s: int, form: str) -> None:
        text = (NOW_AT + timedelta(seconds=distance_s)).strftime(form)
        assert core.parse_retry_after(text, now_at=NOW_AT) == max(0, distance_s), text

    holds()


def a_malformed_header_is_ignored(core: ModuleType, how: settings) -> None:
    """A receiver may send anything: the result is None or at least 0, and nothing
    raises.
    """
    pieces = st.lists(st.sampled_from(DATE_PIECES), max_size=7).map(" ".join)
    scribble = st.text(string.printable, max_size=30)

    @how
    @given(st.one_of(pieces, scribble, st.text(max_size=10)))
    @example("")
    @example("²")
    @example("١٢")
    @example("-5")
    @example("Sun, 06 Nov 1994 08:49:37 +99999999999999999999")
    @example("Sun, 99 Nov 1994 08:49:37 GMT")
    def holds(text: str) -> None:
        try:
            read_s = core.parse_retry_after(text, now_at=NOW_AT)
        except (ValueError, TypeError, OverflowError) as fault:
            raise AssertionError(f"{text!r} breaks the worker") from fault
        assert read_s is None or read_s >= 0
        if not any(character in string.digits for character in text):
            assert read_s is None

    holds()


PROPERTIES: dict[str, Callable[[ModuleType, settings], None]] = {
    holds.__name__: holds
    for holds in (
        every_status_is_in_the_table,
        retry_after_is_obeyed_where_the_table_says_so,
        an_exchange_without_an_answer_is_in_the_table,
        seconds_are_read,
        dates_are_read,
        a_malformed_header_is_ignored,
    )
}


@pytest.mark.parametrize("holds", PROPERTIES.values(), ids=PROPERTIES)
def test_the_classification_has_the_property(holds: Callable[[ModuleType, settings], None]) -> None:
    holds(answer, settings(CHECK, max_examples=300))


@pytest.mark.parametrize("mutant", planted_in("answer"), ids=str)
def test_a_planted_mutant_is_caught_by_its_property(mutant: Mutant) -> None:
    with pytest.raises(AssertionError):
        PROPERTIES[mutant.killed_by](mutant.plant(), HUNT)


def test_every_property_catches_a_mutant() -> None:
    assert set(PROPERTIES) == {mutant.killed_by for mutant in planted_in("answer")}
