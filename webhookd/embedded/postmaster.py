"""The postmaster, PostgreSQL's main process: how it tells its state, and how it ends."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from webhookd.errors import UnusableError

PR_SET_PDEATHSIG = 1


def status_in(directory: Path) -> tuple[int, str] | None:
    """Return the process id and the status ("starting", "ready", ...) from postmaster.pid below
    *directory*; None where there is no such file.
    """
    try:
        lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else "starting"
    except (OSError, ValueError, IndexError):
        return None


def serves(pid: int, directory: Path) -> bool:
    """Return whether process *pid* is alive and its working directory is the data directory, as a
    postmaster's is. A zombie has none.
    """
    if not sys.platform.startswith("linux"):
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == (directory / "data").resolve()
    except OSError:
        return False


def wait_for_orphan(directory: Path, patience_s: float = 15.0) -> None:
    """Wait for a server whose parent was killed, while it shuts down. Raise `UnusableError` if it
    still runs after *patience_s*.
    """
    deadline = time.monotonic() + patience_s
    while (status := status_in(directory)) is not None:
        if not serves(status[0], directory):
            # A crash left the file. In a new container another process may have this pid, and then
            # PostgreSQL would refuse to start.
            (directory / "data" / "postmaster.pid").unlink(missing_ok=True)
            return
        if not sys.platform.startswith("linux"):
            os.kill(status[0], signal.SIGINT)  # nothing else ends it there
        if time.monotonic() > deadline:
            raise UnusableError(
                f"{directory} is in use by a PostgreSQL, pid {status[0]}: stop it first"
            )
        time.sleep(0.02)


def die_with_parent() -> Callable[[], None] | None:
    """Return what the child does between fork and exec, so that it gets SIGINT when its parent
    ends; None where the system has no such thing. libc is loaded before the fork: a forked child
    should not do that.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        # SIGINT is PostgreSQL's fast shutdown. A change of user clears this setting (prctl(2)), so
        # it must come after that.
        prctl(PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:  # it ended before prctl
            os._exit(1)

    return ask


def end(process: subprocess.Popen[bytes]) -> None:
    """End the postmaster; blocks up to 20 s."""
    # Fast shutdown, then immediate shutdown, then kill.
    for number, patience_s in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        process.send_signal(number)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        return
