"""`webhookd demo`, as the README's first command runs it."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.waiting import eventually

COMMAND = [sys.executable, "-m", "webhookd", "demo"]


def leftovers() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("webhookd-demo-*"))


def test_the_demo_delivers_a_thousand_and_shows_a_circuit_open_and_close() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "1,000 delivered" in done.stdout
    assert "circuit of webhook 2049 opened" in done.stdout
    assert "circuit of webhook 2049 closed" in done.stdout
    assert "1,000 at the receivers, 0 repeated" in done.stdout
    assert all(f"worker-{number}" in done.stdout for number in (1, 2, 3))


def test_an_interrupted_demo_stops_what_it_started() -> None:
    before = set(leftovers())
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        COMMAND, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    ) as demo:
        os.close(inside)
        shown = b""
        while b"delivered" not in shown:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                raise AssertionError(f"the demo ended early:\n{shown.decode()}") from None
        demo.send_signal(signal.SIGINT)
        while True:
            try:
                if not os.read(terminal, 65536):
                    break
            except OSError:  # the other end is closed: EIO on Linux
                break
        assert demo.wait(60) == 130
    os.close(terminal)
    eventually(lambda: set(leftovers()) <= before, what="the demo's temporary database is gone")
