"""The surroundings of `webhookd demo` and monitoring/try_out.py on one machine: a PostgreSQL,
receivers, and webhookd itself.

Each is a context manager that ends what it started. If this process is killed, the kernel ends the
others (on Linux).
"""

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from webhookd.embedded import server as embedded

END_WITHIN_S = 20.0


@contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A temporary folder, which is removed at the end."""
    home = Path(tempfile.mkdtemp(prefix=prefix))
    # Under root PostgreSQL runs as another user, who must be able to enter.
    home.chmod(0o755)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """An embedded PostgreSQL with its data in *directory*; yields its DSN. Blocks until it accepts
    connections.
    """
    server = embedded.start(directory)
    try:
        yield server.dsn
    finally:
        server.stop()


@contextmanager
def receivers(answer: Callable[[int, str], int]) -> Iterator[int]:
    """Receivers on one loopback port, which is yielded; http://127.0.0.1:PORT/2001 is for webhook
    2001.

    *answer* takes the webhook's id and the message's id (the header webhook-id) and returns the
    HTTP status. It runs in a thread for each connection and may sleep.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status = answer(int(self.path.rpartition("/")[2]), self.headers["webhook-id"])
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing: the caller shows what arrives."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # With the default of 5, the first connections of three workers would wait for a second.
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Logs nothing for a sender that closed its connection after a time-out."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
    ).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def program(command: Sequence[str], log: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """Run *command*, and end it with SIGTERM. Its output goes to *log*, or to where ours goes."""
    setpriv = shutil.which("setpriv")
    ending_with_us = [setpriv, "--pdeathsig", "TERM"] if setpriv else []
    output = log.open("wb") if log else None
    # In a session of its own: Ctrl-C must reach only this process, which ends all in order.
    process = subprocess.Popen(
        [*ending_with_us, *command], stdout=output, stderr=output, start_new_session=True
    )
    if output:
        output.close()
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def webhookd(dsn: str, *options: str, module: str = "webhookd") -> list[str]:
    """Return the command for webhookd with three workers that may deliver to `receivers`.

    *module* is the module that Python runs.
    """
    allowed = ["--allow-http", "--allow-network", "127.0.0.0/8"]
    return [sys.executable, "-m", module, "--dsn", dsn, "--workers", "3", *allowed, *options]


def ports_in_use(ports: Sequence[int]) -> list[int]:
    """Return those of *ports* on which something listens on 127.0.0.1 (0 stands for any port)."""
    in_use = []
    for port in ports:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            in_use.append(port)
    return in_use


def leave_on_sigterm() -> None:
    """End after SIGTERM as after Ctrl-C: through the context managers, which end what they
    started.
    """
    # Do not send SIGINT to this process: a shell starts background processes with SIGINT ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
