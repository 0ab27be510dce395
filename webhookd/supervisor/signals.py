"""Signals as events of a select loop: a signal becomes a byte in a pipe."""

import os
import signal
from types import FrameType
from typing import Any, Self

WATCHED = (
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


class SignalPipe:
    """While entered, each watched signal becomes a byte in a pipe; `fileno()` is its read end.

    Main thread only.
    """

    def __init__(self) -> None:
        self._read_fd = -1
        self._write_fd = -1
        self._previous_fd = -1
        # The type of signal.getsignal: a handler, SIG_DFL, SIG_IGN, or None for a handler that C
        # code installed.
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for signum in WATCHED:
            self._previous[signum] = signal.signal(signum, _do_nothing)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._close()

    def fileno(self) -> int:
        """Return the descriptor that is readable while signals are waiting."""
        return self._read_fd

    def read(self) -> list[signal.Signals]:
        """Return the signals since the last call, in order. Does not block."""
        try:
            return [signal.Signals(byte) for byte in os.read(self._read_fd, 4096)]
        except BlockingIOError:
            return []

    def detach_in_child(self) -> None:
        """In a forked worker: leave the pipe, install the worker's first handlers, unblock signals.

        TERM, INT and QUIT exit with 0 until the worker installs its own handlers: it holds no
        lease yet. HUP, TTIN and TTOU are meant for the supervisor, but a terminal sends them to the
        whole process group: ignore them.
        """
        # First of all. The parent shares the pipe: with this wakeup descriptor still in place, a
        # signal to the worker would look like a signal to the supervisor.
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, _exit_at_once)
        for signum in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._close()
        unblock_signals()

    def _close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


def block_signals() -> None:
    """Block the watched signals during a fork.

    Otherwise a signal that arrives right after the fork, before the child has detached, would be
    written by the child into the supervisor's pipe.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)


def unblock_signals() -> None:
    """Undo `block_signals`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Do nothing: the wakeup descriptor has the number already."""


def _exit_at_once(signum: int, frame: FrameType | None) -> None:
    os._exit(0)
