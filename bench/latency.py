"""How long from the commit of an INSERT to its arrival at the receiver, on an otherwise idle fleet of three workers.

    python bench/latency.py [--rate 20] [--deliveries 400]

Starts a PostgreSQL, a receiver and webhookd of its own, all on loopback, and stops them. The receiver and the producer read the
same clock (CLOCK_MONOTONIC, in one process).
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg

from webhookd import embedded
from webhookd.migrate import migrate

WEBHOOKS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=20.0, help="inserts a second")
    parser.add_argument("--deliveries", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="webhookd-bench-") as home:
        Path(home).chmod(0o755)
        server = embedded.start(Path(home) / "pg")
        try:
            migrate(server.dsn)
            measure(server.dsn, rate=options.rate, deliveries=options.deliveries)
        finally:
            server.stop()


def measure(dsn: str, *, rate: float, deliveries: int) -> None:
    arrived: dict[int, float] = {}
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        threading.Thread(target=accept, args=(listener, arrived), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with running_webhookd(dsn), psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second)"
                " SELECT i, %s, 0 FROM generate_series(1, %s) i",
                [url, WEBHOOKS],
            )
            time.sleep(3.0)  # boot and fall asleep: what is measured is an idle fleet
            sent = insert(connection, rate=rate, deliveries=deliveries)
            deadline = time.monotonic() + 20
            while len(arrived) < deliveries and time.monotonic() < deadline:
                time.sleep(0.05)
    latencies = sorted((arrived[number] - at) * 1000 for number, at in sent.items() if number in arrived)
    print(f"{len(latencies)} of {deliveries} arrived, {rate:g} inserts/s, {os.cpu_count()} cores")
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
        print(f"{name} {latencies[min(len(latencies) - 1, int(share * len(latencies)))]:7.2f} ms")


class running_webhookd:
    """Three workers for *dsn*, for the length of a `with` block."""

    def __init__(self, dsn: str) -> None:
        options = ("--allow-http", "--allow-network", "127.0.0.0/8", "--metrics-port", "0", "--log-level", "error")
        self._process = subprocess.Popen([sys.executable, "-m", "webhookd", "--dsn", dsn, "--workers", "3", *options])

    def __enter__(self) -> None:
        pass

    def __exit__(self, *failure: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def insert(connection: psycopg.Connection[tuple[object, ...]], *, rate: float, deliveries: int) -> dict[int, float]:
    """Insert one row at a time at *rate*; return when each commit was acknowledged."""
    sent = {}
    begun = time.monotonic()
    for number in range(deliveries):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        connection.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (%s, jsonb_build_object('n', %s::int))",
            [1 + number % WEBHOOKS, number],
        )
        sent[number] = time.monotonic()
    return sent


def accept(listener: socket.socket, arrived: dict[int, float]) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=receive, args=(peer, arrived), daemon=True).start()


def receive(peer: socket.socket, arrived: dict[int, float]) -> None:
    reader = peer.makefile("rb")
    while reader.readline():
        length = 0
        while (line := reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        at = time.monotonic()
        arrived[json.loads(reader.read(length))["n"]] = at
        peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


if __name__ == "__main__":
    main()
