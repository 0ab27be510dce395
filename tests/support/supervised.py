"""A supervisor as a process of its own, and what its workers reported."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.supervised_program import Mode
from tests.support.waiting import eventually

PROGRAM = Path(__file__).with_name("supervised_program.py")
ROOT = PROGRAM.parents[2]


class Supervised:
    """The running `supervised_program.py`; its folder and its process (the leader of a session and
    process group).
    """

    def __init__(self, folder: Path, process: "subprocess.Popen[bytes]") -> None:
        self.folder = folder
        self.process = process

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def logs(self, event: str) -> list[dict[str, Any]]:
        """Return the supervisor's log lines of that text."""
        return [line for line in read_lines(self.folder / "stderr") if line.get("log") == event]

    def reports(
        self, *events: str, number: int | None = None, pid: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the workers' reports, oldest first; every argument narrows them."""
        return [
            line
            for line in read_lines(self.folder / "report")
            if (not events or line["event"] in events)
            and (number is None or line["number"] == number)
            and (pid is None or line["pid"] == pid)
        ]

    def working(self, number: int, *, besides: int | None = None) -> dict[str, Any]:
        """Wait for a worker in slot *number* (other than pid *besides*) that beats; return its
        start report.
        """

        def newest() -> dict[str, Any] | None:
            running = {line["worker_pid"] for line in self.logs("worker running")}
            started = [
                line for line in self.reports("started", number=number) if line["pid"] in running
            ]
            return started[-1] if started and started[-1]["pid"] != besides else None

        found = eventually(newest, what=f"worker {number} works; stderr:\n{self.stderr}")
        assert found is not None
        return found

    def set_mode(self, number: int, mode: Mode) -> None:
        """Tell the next worker of that number what to do."""
        (self.folder / f"{number}.mode").write_text(mode)

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def exit_code(self, timeout_s: float = 20.0) -> int:
        """Wait for the end."""
        return self.process.wait(timeout_s)


@contextmanager
def supervised(
    folder: Path,
    modes: dict[int, Mode] | None = None,
    *,
    environ: dict[str, str] | None = None,
    **fields: Any,
) -> Iterator[Supervised]:
    """Run the program with these modes and fields of `Config`; kill it at the end."""
    for number, mode in (modes or {}).items():
        (folder / f"{number}.mode").write_text(mode)
    fields = {"workers": 3, "metrics_port": 0, "heartbeat_timeout": 60.0} | fields
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), json.dumps(fields)],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | (environ or {}),
            start_new_session=True,
        )
    try:
        yield Supervised(folder, process)
    finally:
        # The group outlives its leader as long as a worker lives.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def all_working(program: Supervised, count: int = 3) -> dict[int, int]:
    """Wait for the first workers; return their pids by number."""
    return {number: program.working(number)["pid"] for number in range(1, count + 1)}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of *path* that are JSON objects; its last line may be half written."""
    lines = []
    with suppress(FileNotFoundError):
        for text in path.read_text().splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    lines.append(line)
    return lines


def is_alive(pid: int) -> bool:
    """Return whether *pid* runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
