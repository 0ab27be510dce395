"""A receiver that counts what arrives, delivery by delivery, while thousands come."""

import re
import ssl
from collections import Counter
from collections.abc import Callable

from tests.support.receivers import OK, Behaviour, Peer, Receiver

ERROR = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"

_DELIVERY = re.compile(rb"\r\nwebhook-id: [^\r]*_([0-9]+)\r\n", re.IGNORECASE)
_WEBHOOK = re.compile(rb"POST /([0-9]+) ")

Answer = Callable[[int, int], bytes]
"""What to answer, given a webhook's id and how often the delivery has arrived; it may sleep."""


class Sink(Receiver):
    """Webhook 2001's URL is `url("/2001")`. *arrivals* counts complete requests by delivery id,
    *accepted* those answered with 2xx.

    *behaviour* replaces the plain HTTP server until `heal`; only requests that it reads with
    `Peer.read_request` are counted.
    """

    def __init__(
        self,
        answer: Answer = lambda webhook_id, nth: OK,
        *,
        behaviour: Behaviour | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.arrivals: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        self._answer = answer
        self._hostile = behaviour
        super().__init__(self._behave, host=host)

    def heal(self, tls: ssl.SSLContext | None = None) -> None:
        """Hang up, and serve plain HTTP (with *tls*, HTTPS) from now on."""
        self._hostile, self.tls = None, tls
        self.hang_up()

    def record(self, request: bytes) -> None:
        """Count *request* without keeping it: there are a hundred thousand of them."""
        with self._changed:
            self.arrivals[delivery_of(request)] += 1
            self._changed.notify_all()

    def accept(self, delivery_id: int) -> None:
        """Count a request that is being answered with 2xx."""
        with self._changed:
            self.accepted[delivery_id] += 1

    def answer(self, peer: Peer, request: bytes) -> None:
        """Answer *request* as the plain HTTP server does."""
        delivery_id = delivery_of(request)
        answer = self._answer(webhook_of(request), self.arrivals[delivery_id])
        if answer.startswith(b"HTTP/1.1 2"):
            self.accept(delivery_id)  # before it is sent, so before the success can be recorded
        peer.send(answer)

    def _behave(self, peer: Peer) -> None:
        (self._hostile or self._serve_http)(peer)

    def _serve_http(self, peer: Peer) -> None:
        while (request := peer.read_request()) is not None:
            self.answer(peer, request)


def delivery_of(request: bytes) -> int:
    """Return the delivery id in a request's `webhook-id` header."""
    found = _DELIVERY.search(request)
    assert found, request[:500]
    return int(found[1])


def webhook_of(request: bytes) -> int:
    """Return the webhook id in a request's path; 0 where there is none."""
    found = _WEBHOOK.match(request)
    return int(found[1]) if found else 0
