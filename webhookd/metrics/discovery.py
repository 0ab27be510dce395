"""The fleet's metrics endpoints, in the form of Prometheus' service discovery over HTTP or from a
file.

A worker that went silent stays in the list until its row is removed. If its target vanished,
Prometheus could not show that it is down.
"""

import socket
from collections.abc import Iterable

SERVICE = "webhook-delivery"

TargetGroups = list[dict[str, object]]


def target_groups(workers: Iterable[tuple[str, str]]) -> TargetGroups:
    """Return the discovery document for pairs of worker_id and address. Of several workers at one
    address the last one counts.
    """
    by_address = {address: worker_id for worker_id, address in workers}
    return [
        {"targets": [address], "labels": {"worker_id": worker_id, "service": SERVICE}}
        for address, worker_id in by_address.items()
    ]


def address_of(sock: socket.socket) -> str:
    """Return host:port of a listening TCP socket. If it listens on every interface, host is this
    machine's name.
    """
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
