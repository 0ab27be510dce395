"""Structured logs on stderr: one line an event, as key=value or as JSON.

`log.info("event", key=value)`: the event is a constant text, and what varies travels as fields.
Whatever ends up in a line passes `redact` first, so that neither a secret nor the query of a URL
gets into a log by way of an exception.
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
    # The user and password, then the query and fragment, of whatever looks like a URL.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/?#@]*@"), r"\1"),
    (re.compile(r"""(?i)\b([a-z][a-z0-9+.-]*://[^\s"'<>?#]*)[?#][^\s"'<>]*"""), r"\1?(hidden)"),
    (re.compile(r"""(?i)\b((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)"""), r"\1(hidden)"),
)
_BARE = re.compile(r"[\w./:+@,()\[\]-]+", re.ASCII)


class Logger:
    """Writes events with fields to the standard library's logger called *name*. Threads may share it.

    A field is JSON, or is shown as text. *exc_info* adds the traceback of the exception at hand (True)
    or of the one given.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        self.write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self.write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self.write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self.write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Write an error with the traceback of the exception that is being handled."""
        self.write(logging.ERROR, event, fields, exc_info=True)

    def critical(
        self, event: str, *, exc_info: bool | BaseException | None = None, **fields: object
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
    """Send the process's logs to stderr as *log_format* (`text` or `json`), webhookd's own from
    *level* on.

    Replaces what an earlier call has set up: a worker calls it again after the fork, with its name.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if log_format == "json" else TextFormatter(worker))
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
    root.addHandler(handler)
    # Libraries speak up when something is wrong; at debug level urllib3 would log every URL in
    # full.
    root.setLevel(logging.WARNING)
    logging.getLogger("webhookd").setLevel(level.upper())
    # The pool reports each failed connection in several lines; the dispatcher and the recorder say
    # it once.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    # Python's own warnings (a deprecated call in a library) belong into the same stream.
    logging.captureWarnings(True)


def safe_url(url: str) -> str:
    """Return *url* as it may be shown: scheme, host, port and path, without user, password, query
    and fragment.
    """
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
    """Return *text* without secrets, passwords, and the users and queries of URLs."""
    for pattern, replacement in _REDACTIONS:
        text = pattern.sub(replacement, text)
    return text


class _Formatter(logging.Formatter):
    """What both formats share: which keys a line has, and in what order."""

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
        # A field must not pose as one of the keys above.
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
    """`key=value` pairs; values that are not plain words are quoted like JSON strings. Tracebacks
    follow, indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = " ".join(f"{key}={_quoted(value)}" for key, value in self._keys(record).items())
        traceback = self._traceback(record)
        if traceback is None:
            return line
        return "\n".join([line, *("    " + printable(part) for part in traceback.splitlines())])


class JsonFormatter(_Formatter):
    """One JSON object a line; a traceback is the field `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        line = self._keys(record)
        traceback = self._traceback(record)
        if traceback is not None:
            line["traceback"] = traceback
        return json.dumps(line, allow_nan=False)


def _plain(value: object) -> Any:
    """Return *value* as JSON can hold it, redacted."""
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
        # Escaped throughout where anything is unprintable: a receiver's answer must not steer
        # somebody's terminal.
        return json.dumps(value, ensure_ascii=not value.isprintable())
    if isinstance(value, list | dict):
        text = json.dumps(value)
        return text if _BARE.fullmatch(text) else json.dumps(text)
    return json.dumps(value)
