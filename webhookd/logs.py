"""Structured logs on stderr: one line for each event, as key=value or as JSON.

`log.info("event", key=value)`: the event is a constant text; what varies goes into fields. All text
passes `redact` before it is written, so that no secret and no query of a URL gets into a log, not
even through the message of an exception.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from webhookd.text import printable

_REDACTIONS = (
    (re.compile(r"whsec_[A-Za-z0-9+/=_-]+"), "whsec_(hidden)"),
    # In all that looks like a URL: the user and password, then the query and fragment.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#@]*@"), r"\1"),
    (re.compile(r"""(?i)\b([a-z][a-z0-9+.-]*://[^\s"'<>?#]*)[?#][^\s"'<>]*"""), r"\1?(hidden)"),
    (re.compile(r"""(?i)\b((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)"""), r"\1(hidden)"),
)
_BARE = re.compile(r"[\w./:+@,()\[\]-]+", re.ASCII)


class Logger:
    """Writes events to the standard library's logger *name*. Threads may share it.

    A field is a value of JSON; any other value is written as its text. *exc_info* adds a traceback:
    of the exception that is being handled (True), or of the given one.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: object) -> None:
        self.write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        self.write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self.write(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        self.write(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Write an error with the traceback of the exception that is being handled."""
        self.write(logging.ERROR, event, fields, exc_info=True)

    def critical(
        self, event: str, /, *, exc_info: bool | BaseException | None = None, **fields: object
    ) -> None:
        self.write(logging.CRITICAL, event, fields, exc_info=exc_info)

    def write(
        self,
        level: int,
        event: str,
        fields: Mapping[str, object],
        *,
        exc_info: bool | BaseException | None = None,
    ) -> None:
        """Write *event* at *level*, one of the standard library's numbers."""
        self._logger.log(level, event, exc_info=exc_info, extra={"fields": fields})


def configure(log_format: str, level: str, *, worker: str | None = None) -> None:
    """Write the process's logs to stderr as *log_format* (`text` or `json`); those of webhookd
    itself from *level* on.

    It replaces the handler of an earlier call: a worker calls it again after the fork, with its
    name.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if log_format == "json" else TextFormatter(worker))
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
    root.addHandler(handler)
    # Libraries log only when something is wrong: at debug level urllib3 logs every URL in full.
    root.setLevel(logging.WARNING)
    logging.getLogger("webhookd").setLevel(level.upper())
    # The pool writes several lines for each failed connection; the dispatcher and the recorder
    # write one.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    # Warnings of Python itself (a deprecated call in a library) go to the same stream.
    logging.captureWarnings(True)


def safe_url(url: str) -> str:
    """Return *url* without what may be secret: user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError:
        return "(malformed URL)"
    if not parts.scheme or not parts.hostname:
        return "(malformed URL)"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}" + ("?(hidden)" if parts.query else "")


def redact(text: str) -> str:
    """Return *text* without secrets, passwords, and the users, passwords and queries of URLs."""
    for pattern, replacement in _REDACTIONS:
        text = pattern.sub(replacement, text)
    return text


class _Formatter(logging.Formatter):
    """What both formats share: the keys of a line and their order."""

    def __init__(self, worker: str | None) -> None:
        super().__init__()
        self._worker = worker

    def _keys(self, record: logging.LogRecord) -> dict[str, Any]:
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "ts": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": redact(record.getMessage()),
        }
        if self._worker is not None:
            line["worker"] = self._worker
        line["pid"] = record.process
        fields = getattr(record, "fields", {})
        # A field with the name of one of these keys must not replace it.
        line.update(
            (f"{name}_" if name in line else name, _plain(value)) for name, value in fields.items()
        )
        return line

    def _traceback(self, record: logging.LogRecord) -> str | None:
        parts = [self.formatException(record.exc_info)] if record.exc_info else []
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return redact("\n".join(parts)) if parts else None


class TextFormatter(_Formatter):
    """`key=value` pairs. A value that is not a plain word is quoted as a JSON string. A traceback
    follows on lines of its own, indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = " ".join(f"{key}={_quoted(value)}" for key, value in self._keys(record).items())
        traceback = self._traceback(record)
        if traceback is None:
            return line
        return "\n".join([line, *("    " + printable(part) for part in traceback.splitlines())])


class JsonFormatter(_Formatter):
    """One JSON object in each line; a traceback is the field `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        line = self._keys(record)
        traceback = self._traceback(record)
        if traceback is not None:
            line["traceback"] = traceback
        return json.dumps(line, allow_nan=False)


def _plain(value: object) -> Any:
    """Return *value* as JSON can express it, redacted."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        # JSON has neither NaN nor infinity.
        return round(value, 6) if abs(value) < float("inf") else str(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return redact(str(value))


def _quoted(value: object) -> str:
    if isinstance(value, str):
        if _BARE.fullmatch(value):
            return value
        # With any unprintable character, all others than ASCII are escaped: a receiver's answer
        # must not control a terminal.
        return json.dumps(value, ensure_ascii=not value.isprintable())
    if isinstance(value, list | dict):
        text = json.dumps(value)
        return text if _BARE.fullmatch(text) else json.dumps(text)
    return json.dumps(value)
