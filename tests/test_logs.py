"""The lines of the log: their keys, their quoting, and what is never in them."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhookd import logs
from webhookd.logs import JsonFormatter, TextFormatter, redact, safe_url

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Reads what was logged after `configure`; at the end the process's logging is as before."""
    root, ours = logging.getLogger(), logging.getLogger("webhookd")
    pool = logging.getLogger("psycopg.pool")
    before = root.handlers[:], root.level, ours.level, pool.level
    yield lambda: capsys.readouterr().err
    logging.captureWarnings(False)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    pool.setLevel(before[3])


def record(event: str = "worker started", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("webhookd.worker", logging.INFO, __file__, 1, event, (), None)
    made.fields = fields
    return made


def parse_logfmt(line: str) -> dict[str, str]:
    """Read a line of key=value with JSON strings for quoted values, strictly."""
    decoder, found, at = json.JSONDecoder(), {}, 0
    while at < len(line):
        key, _, _ = line[at:].partition("=")
        at += len(key) + 1
        if line[at : at + 1] == '"':
            value, end = decoder.raw_decode(line, at)
        else:
            end = line.find(" ", at) if " " in line[at:] else len(line)
            value = line[at:end]
        found[key] = value
        at = end + 1
    return found


def test_a_text_line_has_the_event_its_fields_and_the_worker() -> None:
    line = parse_logfmt(
        TextFormatter("node/worker-1").format(
            record(webhook_id=3, reason="HTTP 503; no retries left")
        )
    )
    assert line["event"] == "worker started"
    assert line["level"] == "info"
    assert line["logger"] == "webhookd.worker"
    assert line["worker"] == "node/worker-1"
    assert line["webhook_id"] == "3"
    assert line["reason"] == "HTTP 503; no retries left"
    assert int(line["pid"]) > 0
    assert datetime.fromisoformat(line["ts"]).utcoffset() == timedelta(0)


def test_a_json_line_keeps_the_types_of_its_fields() -> None:
    line = json.loads(
        JsonFormatter(None).format(
            record(webhook_id=3, delay_s=1.5, ids=(1, 2), flag=True, none=None, odd=float("nan"))
        )
    )
    assert (line["webhook_id"], line["delay_s"], line["ids"], line["flag"], line["none"]) == (
        3,
        1.5,
        [1, 2],
        True,
        None,
    )
    assert line["odd"] == "nan"
    assert "worker" not in line


def test_a_field_cannot_pose_as_a_key_of_every_line() -> None:
    line = json.loads(JsonFormatter("worker-1").format(record(level="fake", pid=0, worker="fake")))
    assert (line["level"], line["worker"], line["level_"], line["worker_"]) == (
        "info",
        "worker-1",
        "fake",
        "fake",
    )


@given(value=st.text())
def test_any_text_is_one_line_and_reads_back(value: str) -> None:
    line = TextFormatter(None).format(record(value=value))
    assert line.isprintable()
    assert parse_logfmt(line)["value"] == redact(value)
    assert json.loads(JsonFormatter(None).format(record(value=value)))["value"] == redact(value)


@pytest.mark.parametrize("formatter", [TextFormatter(None), JsonFormatter(None)])
def test_a_traceback_is_kept_whole_and_redacted(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(f"no good: {SECRET} at https://user:pw@example.org/hook?token=abc")
    except ValueError:
        made = record()
        made.exc_info = sys.exc_info()
    text = formatter.format(made)
    assert "ValueError: no good" in text
    assert "https://example.org/hook" in text
    for hidden in (SECRET, "pw", "token=abc"):
        assert hidden not in text
    if isinstance(formatter, JsonFormatter):
        assert "Traceback" in json.loads(text)["traceback"]
    else:
        assert all(line.startswith("    ") for line in text.splitlines()[1:])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("https://user:pw@example.org:8443/a?token=1#x", "https://example.org:8443/a?(hidden)"),
        ("http://[::1]:80/", "http://[::1]:80/"),
        ("https://example.org:port/", "(malformed URL)"),
        ("example.org/a?token=1", "(malformed URL)"),
        ("http://[::1/?token=1", "(malformed URL)"),
        ("", "(malformed URL)"),
    ],
)
def test_a_url_is_shown_without_credentials_and_query(url: str, shown: str) -> None:
    assert safe_url(url) == shown


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"secret {SECRET}.", "MfKQ"),
        ("connect to postgresql://me:pass@db/x failed", "pass"),
        ("connect to postgresql://db/x?password=abc&a=b failed", "abc"),
        ("host=db password=abc user=me", "abc"),
        (r"host=db password = 'a\'bc d' user=me", "bc"),
        ("GET https://example.org/x?key=abc HTTP/1.1", "abc"),
    ],
)
def test_secrets_are_redacted_wherever_they_stand(text: str, hidden: str) -> None:
    assert hidden not in redact(text)
    assert hidden not in TextFormatter(None).format(record(text))
    assert hidden not in JsonFormatter(None).format(record(nested=[{"a": text}]))


def test_the_text_around_a_redaction_stays() -> None:
    assert redact("host=db password=abc user=me") == "host=db password=(hidden) user=me"
    assert (
        redact("see https://example.org/x?a=b for more")
        == "see https://example.org/x?(hidden) for more"
    )


def test_the_logger_writes_an_event_with_its_fields_at_its_level(stderr: Callable[[], str]) -> None:
    logs.configure("json", "info")
    log = logs.Logger("webhookd.example")
    log.debug("not seen")
    for write in (log.info, log.warning, log.error):
        write("row recorded", delivery_id=7, url="https://example.org/x?token=abc")
    lines = [json.loads(line) for line in stderr().splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "error"]
    for line in lines:
        assert (line["logger"], line["event"]) == ("webhookd.example", "row recorded")
        assert (line["delivery_id"], line["url"]) == (7, "https://example.org/x?(hidden)")
        assert "traceback" not in line


def test_the_logger_adds_the_traceback_that_is_asked_for(stderr: Callable[[], str]) -> None:
    logs.configure("json", "info")
    log = logs.Logger("webhookd.example")
    given = ValueError("given")
    try:
        raise LookupError("handled")
    except LookupError:
        log.exception("one", n=1)
        log.critical("two", exc_info=True, n=2)
        log.critical("three", exc_info=given, n=3)
        log.critical("four", n=4)
    lines = [json.loads(line) for line in stderr().splitlines()]
    assert [(line["level"], line["n"]) for line in lines] == [
        ("error", 1),
        ("critical", 2),
        ("critical", 3),
        ("critical", 4),
    ]
    assert [line.get("traceback", "").splitlines()[-1:] for line in lines] == [
        ["LookupError: handled"],
        ["LookupError: handled"],
        ["ValueError: given"],
        [],
    ]


def test_a_field_of_the_logger_cannot_replace_a_key_of_every_line(
    stderr: Callable[[], str],
) -> None:
    logs.configure("json", "info", worker="worker-1")
    logs.Logger("webhookd.example").info("real", event="fake", worker="fake", fields="fake")
    line = json.loads(stderr())
    assert (line["event"], line["worker"]) == ("real", "worker-1")
    assert (line["event_"], line["worker_"], line["fields"]) == ("fake", "fake", "fake")


def test_configure_logs_ours_from_the_level_on_and_libraries_only_when_something_is_wrong(
    stderr: Callable[[], str],
) -> None:
    logs.configure("json", "debug", worker="worker-2")
    logging.getLogger("webhookd.worker").debug("seen", extra={"fields": {"n": 1}})
    logging.getLogger("urllib3.connectionpool").info("not seen")
    logging.getLogger("urllib3.connectionpool").warning("seen as well")
    logging.getLogger("psycopg.pool").warning("the dispatcher has logged this")
    lines = [json.loads(line) for line in stderr().splitlines()]
    assert [(line["event"], line["worker"]) for line in lines] == [
        ("seen", "worker-2"),
        ("seen as well", "worker-2"),
    ]


def test_configure_again_replaces_the_handler(stderr: Callable[[], str]) -> None:
    logs.configure("text", "info")
    logs.configure("text", "warning", worker="worker-1")
    log = logging.getLogger("webhookd.worker")
    log.info("not seen")
    log.warning("seen once")
    logged = stderr()
    assert logged.count("\n") == 1
    assert "worker=worker-1" in logged
