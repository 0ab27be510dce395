"""Reads the requests of the metrics endpoint. llhttp parses them, by way of httptools."""

import re
from dataclasses import dataclass
from http import HTTPStatus

import httptools

MAX_HEAD_BYTES = 16 * 1024
_LINE_END = re.compile(rb"\r?\n")
_ORIGIN = re.compile(r"\Ahttps?://[^/?]*", re.IGNORECASE)


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
        self._received = b""

    def feed(self, data: bytes) -> Request | HTTPStatus | None:
        """Take *data*; return the request, the status that refuses it, or None while its head is
        incomplete. Raises nothing.
        """
        self._received += data
        if len(self._received) > MAX_HEAD_BYTES:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        # People who type a request send a line feed alone, which RFC 9112 (2.2) allows and llhttp
        # refuses after the first line. A carriage return alone stays, and is refused: with it one
        # answer is made to look like two. One empty line may come first (2.2, too).
        text = _LINE_END.sub(b"\r\n", self._received).removeprefix(b"\r\n")
        if text.startswith(b"\r\n"):
            return HTTPStatus.BAD_REQUEST
        head, end, _ = text.partition(b"\r\n\r\n")
        return _request(head + end) or HTTPStatus.BAD_REQUEST if end else None


def _request(text: bytes) -> Request | None:
    """Return the request with the whole head *text*, None if it is not HTTP/1."""
    head = _Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(text)
    except httptools.HttpParserUpgrade:
        pass  # asked for, and not granted
    except httptools.HttpParserError:
        return None
    # llhttp takes RTSP and ICE for HTTP, too.
    version = text.partition(b"\r\n")[0].rpartition(b" ")[2]
    if not head.is_complete or not version.startswith(b"HTTP/1."):
        return None
    # A client that believes in a proxy names the whole URL, which servers must accept, too
    # (RFC 9112, 3.2.2).
    path = _ORIGIN.sub("", head.url.decode("latin-1")).partition("?")[0]
    return Request(
        parser.get_method().decode("latin-1"),
        path,
        head.fields.get("accept", ""),
        head.fields.get("accept-encoding", ""),
        # Prometheus says with each scrape how long it will wait.
        by_prometheus="x-prometheus-scrape-timeout-seconds" in head.fields,
    )


class _Head:
    """What httptools calls while it parses."""

    def __init__(self) -> None:
        self.is_complete = False
        self.url = b""
        self.fields: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self.url += url  # may come in pieces

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1").strip()
        known = self.fields.get(key)
        self.fields[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        self.is_complete = True
