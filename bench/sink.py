"""Receivers on loopback that count: nginx for throughput, and one that waits or records arrival
times (bench/receiver.py).

nginx cannot wait, and its timestamps have milliseconds only. Debian's package (`apt-get install
nginx`) needs no configuration but ours: one worker process, connections that are never closed, no
log.
"""

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from webhookd.demo import local
from webhookd.errors import UnusableError

READY_WITHIN_S = 20.0
FLAKY = 0.05  # of the requests to a path below /flaky/ fail, and all below /failing/

_NGINX = """
daemon off;
pid {home}/nginx.pid;
error_log {home}/nginx.log;
worker_processes 1;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    split_clients $request_id $flaky {{ {flaky:.0%} 500; * 204; }}
    server {{
        listen {host}:{port}{tls};
        {certificate}
        location / {{ return 204; }}
        location /failing/ {{ return 503; }}
        location /flaky/ {{
            if ($flaky = 500) {{ return 500; }}
            return 204;
        }}
    }}
    server {{
        listen 127.0.0.1:{status_port};
        location / {{ stub_status; }}
    }}
}}
"""
_CERTIFICATE = "ssl_certificate {home}/certificate.pem; ssl_certificate_key {home}/key.pem;"


@dataclass(slots=True)
class Counts:
    """Since the sink started. A connection over TLS is one handshake."""

    requests: int
    connections: int


@dataclass(slots=True)
class Sink:
    """Any POST to `url` plus a path is answered with 204, but for nginx's /failing/ and /flaky/.

    `pid` is the root of its processes; `certificate` signs for TLS.
    """

    url: str
    pid: int
    _status: http.client.HTTPConnection
    _read: Callable[[bytes], Counts]
    certificate: Path | None = None
    _asked: int = field(default=0, init=False)

    def counts(self) -> Counts:
        """Ask the sink. These requests themselves are not counted."""
        counts = self._read(self.ask("/"))
        return Counts(counts.requests - self._asked, counts.connections - 1)

    def requests(self) -> int:
        return self.counts().requests

    def ask(self, path: str) -> bytes:
        self._status.request("GET", path)
        self._asked += 1
        return self._status.getresponse().read()


class SlowSink(Sink):
    """One that answers after a pause, and knows when the last byte of each request came."""

    def arrivals(self) -> dict[int, float]:
        """Return the monotonic instant of each request since the last call, by the number "n" in
        its body.
        """
        return {int(number): at for number, at in json.loads(self.ask("/arrivals"))}


@contextmanager
def nginx(home: Path, *, tls: bool = False, host: str = "127.0.0.1") -> Iterator[Sink]:
    """An nginx with its files in *home*/nginx. With *tls* a certificate is made for it. Blocks
    until it serves.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise UnusableError("no nginx is installed: apt-get install nginx")
    home = home / ("nginx-tls" if tls else "nginx")
    home.mkdir()
    home.chmod(0o755)
    certificate = _make_certificate(home) if tls else None
    port, status_port = _free_ports(2)
    configuration = home / "nginx.conf"
    text = _NGINX.format(
        home=home,
        host=host,
        port=port,
        flaky=FLAKY,
        status_port=status_port,
        tls=" ssl" if tls else "",
        certificate=_CERTIFICATE.format(home=home) if tls else "",
    )
    # Started by root, nginx's worker changes its user. That user owns no file here, and needs none.
    configuration.write_text(text)
    # -e: the log that nginx opens before it reads its configuration.
    with local.program(
        [program, "-e", str(home / "nginx.log"), "-c", str(configuration)]
    ) as process:
        status = _connected(status_port, process)
        yield Sink(
            f"http{'s' if tls else ''}://{host}:{port}",
            process.pid,
            status,
            _nginx_counts,
            certificate,
        )


@contextmanager
def receiver(delay_s: float = 0.0) -> Iterator[SlowSink]:
    """A receiver that answers each request *delay_s* after its last byte. Blocks until it runs."""
    (port,) = _free_ports(1)
    command = [sys.executable, "-m", "bench.receiver", str(port), str(delay_s)]
    with local.program(command) as process:
        yield SlowSink(
            f"http://127.0.0.1:{port}", process.pid, _connected(port, process), _receiver_counts
        )


def await_requests(sink: Sink, count: int, *, timeout_s: float, every_s: float = 0.005) -> float:
    """Block until *sink* has had *count* requests, and return the monotonic instant. Raise
    `TimeoutError` after *timeout_s*.
    """
    deadline = time.monotonic() + timeout_s
    while (had := sink.requests()) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{had} of {count} requests after {timeout_s:g} s")
        time.sleep(every_s)
    return time.monotonic()


def _nginx_counts(page: bytes) -> Counts:
    found = re.search(rb"handled requests\s+\d+ (\d+) (\d+)", page)
    assert found is not None, page
    return Counts(int(found[2]), int(found[1]))


def _receiver_counts(page: bytes) -> Counts:
    counts: dict[str, Any] = json.loads(page)
    return Counts(**counts)


def _connected(port: int, process: "subprocess.Popen[bytes]") -> http.client.HTTPConnection:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        status = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            status.connect()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return status


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def _make_certificate(home: Path) -> Path:
    certificate = home / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(home / "key.pem"), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    ssl.create_default_context(cafile=certificate)  # fails here, not in every delivery
    return certificate
