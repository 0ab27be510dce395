"""One worker process as its parent sees it, and the fork that makes it."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn
from uuid import UUID, uuid4

from webhookd import logs
from webhookd.errors import UnusableError
from webhookd.lifeline import ExitCode, Lifeline, is_worn, lost_line
from webhookd.supervisor.signals import allow_signals, hold_signals
from webhookd.supervisor.systemd import ENVIRONMENT

log = logs.Logger("webhookd.supervisor")

_REFUSAL_LIMIT = 4096


@dataclass(slots=True)
class Child:
    """A living worker process. Everything here is written by the supervisor's loop only.

    *heartbeat_fd* is the non-blocking read end, *lifeline_fd* the non-blocking write end. *kill_at*
    (monotonic) is when SIGKILL follows.
    """

    pid: int
    name: str
    incarnation: UUID
    generation: int
    heartbeat_fd: int
    lifeline_fd: int
    kill_at: float | None = None
    ordered: bool = False  # told to leave
    worn: bool = False  # has passed a limit and wants to be replaced
    hung: bool = False
    refusal: str | None = None  # why it can never run, in its own words
    ended: bool = False  # waited for: its pid may be somebody else's by now
    _inbox: bytes = b""

    @property
    def in_service(self) -> bool:
        """Return whether it is expected to go on working."""
        return not (self.ordered or self.hung or self.refusal is not None)

    def read_beats(self) -> tuple[bool, bool]:
        """Return whether beats have come, and whether the pipe has ended. May set *worn* and
        *refusal*. Does not block.
        """
        beaten = False
        while True:
            try:
                data = os.read(self.heartbeat_fd, 65536)
            except BlockingIOError:
                return beaten, False
            if not data:
                return beaten, True
            beats, mark, rest = (self._inbox + data).partition(b"U")
            beaten = beaten or bool(beats)
            self.worn = self.worn or is_worn(beats)
            self._inbox = (mark + rest)[:_REFUSAL_LIMIT]
            if self.refusal is None and b"\n" in rest:
                self.refusal = rest.partition(b"\n")[0].decode(errors="replace")

    def entrust(self, incarnation: UUID) -> bool:
        """Ask it to release a dead sibling's leases. Return False if its lifeline takes nothing.
        Does not block.
        """
        try:
            os.write(self.lifeline_fd, lost_line(incarnation))
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    def order(self, signum: signal.Signals, *, kill_at: float) -> None:
        """Tell it to leave; SIGKILL follows at *kill_at*, or earlier if that was settled before."""
        self.ordered = True
        self._tell(signum, kill_at=kill_at)

    def abort(self, *, kill_at: float) -> None:
        """Have it print its threads' stacks and end; SIGKILL follows at *kill_at*."""
        self.hung = True
        self._tell(signal.SIGABRT, kill_at=kill_at)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._tell(signal.SIGKILL, kill_at=None)

    def reap(self) -> int | None:
        """Return None while it lives, then its exit code, or a signal's number negated. Does not
        block.
        """
        # By its own pid and never by -1: an embedded PostgreSQL is a child of this process as well.
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.ended = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Close the supervisor's ends of both pipes. A worker that still lives takes it for the
        supervisor's death.
        """
        os.close(self.heartbeat_fd)
        os.close(self.lifeline_fd)

    def _tell(self, signum: signal.Signals, *, kill_at: float | None) -> None:
        if kill_at is not None and self.kill_at is not None:
            kill_at = min(kill_at, self.kill_at)
        self.kill_at = kill_at
        if not self.ended:
            os.kill(self.pid, signum)


def spawn(
    work: Callable[[Lifeline], int],
    detach: Callable[[], None],
    *,
    number: int,
    name: str,
    generation: int,
    metrics_socket: socket.socket,
    lost: tuple[UUID, ...],
) -> Child:
    """Fork a worker that calls *work* with its seat and leaves with the code which that returns.

    *detach* runs first in the new process and closes what belongs to the supervisor and to
    siblings. Raise `OSError` if nothing could be started. The caller must have one thread only: a
    lock held by another one would stay locked in the child for ever.
    """
    heartbeat_read, heartbeat_write, lifeline_read, lifeline_write = pipes = _pipes()
    os.set_blocking(heartbeat_read, False)
    os.set_blocking(heartbeat_write, False)
    os.set_blocking(lifeline_write, False)
    seat = Lifeline(number, name, uuid4(), heartbeat_write, lifeline_read, metrics_socket, lost)
    _flush()  # or both processes would write what is buffered
    hold_signals()
    try:
        pid = os.fork()
        if pid == 0:
            _live(work, seat, detach=detach, parent_fds=(heartbeat_read, lifeline_write))
    except OSError:
        _close_all(pipes)
        raise
    finally:
        allow_signals()
    _close_all((heartbeat_write, lifeline_read))
    return Child(pid, name, seat.incarnation, generation, heartbeat_read, lifeline_write)


def exit_fields(code: int) -> dict[str, object]:
    """Return a log's fields for what `Child.reap` returned."""
    if code >= 0:
        return {"status": code}
    try:
        return {"signal": signal.Signals(-code).name}
    except ValueError:  # most real-time signals have no name
        return {"signal": -code}


def _live(
    work: Callable[[Lifeline], int],
    seat: Lifeline,
    *,
    detach: Callable[[], None],
    parent_fds: tuple[int, ...],
) -> NoReturn:
    code: int = ExitCode.FAILED
    try:
        detach()
        # Above all the lifeline's write end: held here, it would keep the end of file from this
        # very worker.
        _close_all(parent_fds)
        for variable in ENVIRONMENT:
            os.environ.pop(variable, None)
        code = work(seat)
    except UnusableError as error:
        seat.refuse(str(error))
        code = ExitCode.UNUSABLE
    except BaseException:  # the process's top frame: nothing may unwind into the supervisor's code
        log.critical(
            "worker failed",
            exc_info=True,
            worker=seat.name,
            pid=os.getpid(),
        )
    finally:
        try:
            _flush()
        finally:
            os._exit(code)


def _pipes() -> tuple[int, int, int, int]:
    heartbeat = os.pipe()
    try:
        lifeline = os.pipe()
    except OSError:
        _close_all(heartbeat)
        raise
    return *heartbeat, *lifeline


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


def _flush() -> None:
    for handler in logging.getLogger().handlers:
        with suppress(OSError, ValueError):
            handler.flush()
    for stream in (sys.stdout, sys.stderr):
        # Closed, or a pipe whose reader has left.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
