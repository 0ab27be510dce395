"""Posting through a transport as a sender does, and names that resolve as a test wants."""

import socket
import time
from collections.abc import Sequence

from webhookd.core.answer import Answer
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress
from webhookd.transport.request import Request
from webhookd.transport.resolver import Resolve

LOOPBACK = Egress(allow_http=True, networks=["127.0.0.0/8"])
HEADER_LINES = b"content-type: application/json\r\nuser-agent: webhookd/1\r\nwebhook-id: msg_1\r\n"
BODY = b'{"alert": 1}'
LARGE = b"x" * 10_000_000
SHORT_S = 0.4
# How much later than its deadline an exchange may return on a machine that is busy; a hang is what
# this is for.
GUARD_S = 5.0


def post(sender: Transport, url: str, *, body: bytes = BODY, timeout_s: float = 20.0) -> Answer:
    began_at = time.monotonic()
    answer = sender.post(url, Request(HEADER_LINES, body), timeout_s=timeout_s)
    assert time.monotonic() - began_at < timeout_s + GUARD_S
    assert "\n" not in (answer.error or "")
    return answer


def resolving(*addresses: str) -> Resolve:
    """Return a resolver that finds *addresses* for every name."""

    def resolve(
        host: str, port: int, family: int, kind: int
    ) -> Sequence[tuple[int, int, int, str, tuple[object, ...]]]:
        return [
            (socket.AF_INET6, kind, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, kind, 6, "", (address, port))
            for address in addresses
        ]

    return resolve
