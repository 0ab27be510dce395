"""Reads the requests of the metrics endpoint. llhttp parses them, by way of httptools."""

import re
from dataclasses import dataclass
from http import HTTPStatus

import httptools

MAX_HEAD_BYTES = 16 * 1024
_LINE_END = re.compile(rb"\r?\n")
_EMPTY_LINES = len(b"\r\n\r\n")


@dataclass(frozen=True, slots=True)
class Request:
    """What the endpoint needs of a request. *path* is without the query; *by_prometheus*: it comes
    from Prometheus, or from a program that scrapes for it.
    """

    method: str
    path: str
    accept: str
    accept_encoding: str
    by_prometheus: bool

    @property
    def takes_gzip(self) -> bool:
        """Whether `Accept-Encoding` names gzip with a weight above 0 (RFC 9110, 12.5.3). A weight
        that cannot be read is a no.
        """
        for one in self.accept_encoding.lower().split(","):
            coding, *parameters = (part.strip() for part in one.split(";"))
            if coding in ("gzip", "x-gzip"):
                weights = (part[2:].strip() for part in parameters if part.startswith("q="))
                weight = next(weights, "1")
                return re.fullmatch(r"0\.\d*[1-9]\d*|1(\.0*)?", weight) is not None
        return False


class RequestReader:
    """Reads the first request of a connection. It is complete with its head: no request here has a
    body that matters, and what follows is ignored.
    """

    def __init__(self) -> None:
        self._received = 0
        self._head = _Head()
        self._parser = httptools.HttpRequestParser(self._head)
        self._held = b""  # a carriage return that may have its line feed still to come

    def feed(self, data: bytes) -> Request | HTTPStatus | None:
        """Take *data*; return the request, the status that refuses it, or None while its head is
        incomplete. Raises nothing.
        """
        self._received += len(data)
        if self._received > MAX_HEAD_BYTES:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        try:
            self._parser.feed_data(self._with_whole_line_ends(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # Also raised for what comes after a complete head, which does not matter.
            if not self._head.is_complete:
                return HTTPStatus.BAD_REQUEST
        if not self._head.is_complete:
            # llhttp skips empty lines before a request: the first one is allowed (RFC 9112, 2.2).
            only_empty_lines = not self._head.has_begun and self._received >= _EMPTY_LINES
            return HTTPStatus.BAD_REQUEST if only_empty_lines else None
        return self._request() or HTTPStatus.BAD_REQUEST

    def _with_whole_line_ends(self, data: bytes) -> bytes:
        """Return *data* with lines that all end with CRLF. People who type a request send a line
        feed alone, which RFC 9112 (2.2) allows and llhttp refuses after the first line.

        A carriage return alone stays, and is refused: with it one answer is made to look like two.
        """
        data = self._held + data
        self._held = b"\r" if data.endswith(b"\r") else b""
        return _LINE_END.sub(b"\r\n", data.removesuffix(b"\r"))

    def _request(self) -> Request | None:
        if not self._parser.get_http_version().startswith("1."):
            return None
        try:
            # A client that believes in a proxy names the whole URL, which servers must accept too
            # (RFC 9112, 3.2.2).
            path = httptools.parse_url(self._head.url).path or b""
        except httptools.HttpParserInvalidURLError:
            return None
        fields = self._head.fields
        return Request(
            self._parser.get_method().decode("latin-1"),
            path.decode("latin-1"),
            fields.get("accept", ""),
            fields.get("accept-encoding", ""),
            # Prometheus says with each scrape how long it will wait.
            by_prometheus="x-prometheus-scrape-timeout-seconds" in fields,
        )


class _Head:
    """What httptools calls while it parses. Only the first request counts."""

    def __init__(self) -> None:
        self.has_begun = self.is_complete = False
        self.url = b""
        self.fields: dict[str, str] = {}

    def on_message_begin(self) -> None:
        self.has_begun = True

    def on_url(self, url: bytes) -> None:
        if not self.is_complete:
            self.url += url  # may come in pieces

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.is_complete:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        known = self.fields.get(key)
        self.fields[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        self.is_complete = True
