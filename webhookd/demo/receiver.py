"""A receiver for the developer's own machine: prints what arrives and whether its signature is
valid.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from webhookd.core.signing import verify
from webhookd.errors import WebhookdError

MAX_BODY = 64 * 1024 * 1024
IDLE_S = 60.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. *message_id* is its header webhook-id; *signature* is valid, invalid, missing,
    or unchecked where no secret was given.
    """

    at: float
    path: str
    message_id: str
    signature: str
    body: bytes

    def as_json(self) -> str:
        """Return one line of JSON."""
        text = self.body.decode("utf-8", "replace")
        try:
            body = json.loads(text)
        except ValueError:
            body = text
        fields = {
            "at": self.at,
            "path": self.path,
            "webhook_id": self.message_id,
            "signature": self.signature,
            "body": body,
        }
        return json.dumps(fields, ensure_ascii=False)


class Receiver:
    """An HTTP server on *host*:*port* that answers *status* and calls *show* for each arrival, one
    at a time. With a *key* it verifies signatures.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        key: bytes | None,
        status: int,
        show: Callable[[Arrival], None],
    ) -> None:
        """Bind the port; raise `WebhookdError` where that is not possible."""
        self._key = key
        self._status = status
        self._show = show
        self._lock = threading.Lock()
        try:
            self._server = ThreadingHTTPServer((host, port), self._handler())
        except (OSError, OverflowError) as error:
            raise WebhookdError(
                f"cannot listen on {host} port {port} ({error}): give another --port"
            ) from error
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The URL of the server, with the port that it really has."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/"

    def serve(self) -> None:
        """Answer until `stop` is called from another thread, or the process is interrupted."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()

    def stop(self) -> None:
        """End `serve`; blocks until it no longer accepts connections."""
        self._server.shutdown()

    def _add_arrival(self, path: str, headers: dict[str, str], body: bytes) -> None:
        arrival = Arrival(
            time.time(),
            path,
            headers.get("webhook-id", "-"),
            self._check_signature(headers, body),
            body,
        )
        with self._lock:
            self._show(arrival)

    def _check_signature(self, headers: dict[str, str], body: bytes) -> str:
        if self._key is None:
            return "unchecked"
        signature, timestamp = (
            headers.get("webhook-signature"),
            headers.get("webhook-timestamp", ""),
        )
        if signature is None:
            return "missing"
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
            return "invalid"
        valid = verify(
            self._key,
            message_id=headers.get("webhook-id", ""),
            timestamp=int(timestamp),
            body=body,
            signature=signature,
            now=time.time(),
        )
        return "valid" if valid else "invalid"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = IDLE_S

            def do_POST(self) -> None:
                try:
                    length = int(self.headers.get("content-length", "0"))
                except ValueError:
                    length = -1
                if not 0 <= length <= MAX_BODY:
                    self.close_connection = True
                    self._reply(413)
                    return
                body = self.rfile.read(length)
                receiver._add_arrival(
                    self.path, {name.lower(): value for name, value in self.headers.items()}, body
                )
                self._reply(receiver._status)

            def _reply(self, status: int) -> None:
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Logs nothing: *show* prints the arrivals."""

        return Handler


def printer(*, as_json: bool, printable: Callable[[str], str]) -> Callable[[Arrival], None]:
    """Return a function that prints an arrival to stdout, as text or as one line of JSON.
    *printable* makes text from outside safe for a terminal.
    """

    def show(arrival: Arrival) -> None:
        if as_json:
            print(arrival.as_json(), flush=True)
            return
        at = time.strftime("%H:%M:%S", time.localtime(arrival.at))
        print(
            f"{at} {printable(arrival.path)}  {printable(arrival.message_id)}  signature "
            f"{arrival.signature}"
        )
        print(f"  {printable(arrival.body[:2000].decode('utf-8', 'replace'))}")
        sys.stdout.flush()

    return show
