"""Signals as events of a select loop: the handlers record and do nothing else."""

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


class SignalBox:
    """While entered, every watched signal becomes a byte in a pipe; `fileno()` is its read end.
    Main thread only.
    """

    def __init__(self) -> None:
        self._read_fd = -1
        self._write_fd = -1
        self._previous_fd = -1
        # The type of signal.getsignal: a handler, SIG_DFL, SIG_IGN, or None for one that was set by
        # C code.
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for signum in WATCHED:
            self._previous[signum] = signal.signal(signum, _record)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._close()

    def fileno(self) -> int:
        """Return the descriptor that is readable while signals are waiting."""
        return self._read_fd

    def take(self) -> list[signal.Signals]:
        """Return the signals since the last call, in order. Does not block."""
        try:
            return [signal.Signals(byte) for byte in os.read(self._read_fd, 4096)]
        except BlockingIOError:
            return []

    def leave_in_child(self) -> None:
        """Make a forked worker deaf to the pipe, give it handlers of its own and let signals in
        again.

        TERM, INT and QUIT end it with 0 until the worker sets its own handlers: it holds nothing
        yet. HUP, TTIN and TTOU are for the supervisor and may come from a terminal to the whole
        process group.
        """
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, _leave)
        for signum in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(signum, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._close()
        allow_signals()

    def _close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


def hold_signals() -> None:
    """Hold the watched signals back over a fork: the child would write an early one into the
    supervisor's pipe.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)


def allow_signals() -> None:
    """Undo `hold_signals`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)


def _record(signum: int, frame: FrameType | None) -> None:
    """Do nothing: the wakeup descriptor has the number already."""


def _leave(signum: int, frame: FrameType | None) -> None:
    os._exit(0)
