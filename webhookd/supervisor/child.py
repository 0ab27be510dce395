"""One worker process as its parent sees it, and the fork that makes it.

Who holds which end of the pipes matters more than anything else here. A worker takes the end of
file on its lifeline for the supervisor's death, and a pipe ends only when no process holds its
write end any more. So a new worker closes the supervisor's ends of its own pipes (`_run_child`) and
of its siblings' (`fleet._detach_worker`), and the supervisor closes the worker's ends (`spawn`).
"""

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
from webhookd.lifeline import ExitCode, Lifeline, death_line, requests_recycling
from webhookd.supervisor.signals import block_signals, unblock_signals
from webhookd.supervisor.systemd import ENVIRONMENT

log = logs.Logger("webhookd.supervisor")

_REFUSAL_LIMIT = 4096


@dataclass(slots=True)
class Child:
    """A living worker process. Only the supervisor's loop writes to it.

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
    stop_requested: bool = False  # by the supervisor
    recycle_requested: bool = False  # by the worker: it has passed a limit
    hung: bool = False
    refusal: str | None = None  # why it can never run, in its own words
    reaped: bool = False  # waited for: its pid may belong to another process by now
    _inbox: bytes = b""

    @property
    def in_service(self) -> bool:
        """Return whether it is expected to go on working."""
        return not (self.stop_requested or self.hung or self.refusal is not None)

    def read_beats(self) -> tuple[bool, bool]:
        """Return whether beats have arrived, and whether the pipe has ended. Does not block.

        May set *recycle_requested* and *refusal*.
        """
        beaten = False
        while True:
            try:
                data = os.read(self.heartbeat_fd, 65536)
            except BlockingIOError:
                return beaten, False
            if not data:
                return beaten, True
            # Beats may precede a refusal, nothing follows it. Its line can be split over two reads.
            beats, mark, rest = (self._inbox + data).partition(b"U")
            beaten = beaten or bool(beats)
            self.recycle_requested = self.recycle_requested or requests_recycling(beats)
            self._inbox = (mark + rest)[:_REFUSAL_LIMIT]
            if self.refusal is None and b"\n" in rest:
                self.refusal = rest.partition(b"\n")[0].decode(errors="replace")

    def tell_of_death(self, incarnation: UUID) -> bool:
        """Ask it to release a dead sibling's leases. Does not block.

        Return False if its lifeline is full or broken.
        """
        try:
            os.write(self.lifeline_fd, death_line(incarnation))
        except (BlockingIOError, BrokenPipeError):
            return False
        return True

    def request_stop(self, signum: signal.Signals, *, kill_at: float) -> None:
        """Tell it to exit; SIGKILL follows at *kill_at*, or earlier if an earlier call said so."""
        self.stop_requested = True
        self._signal(signum, kill_at=kill_at)

    def abort(self, *, kill_at: float) -> None:
        """Have it print its threads' stacks and end; SIGKILL follows at *kill_at*."""
        self.hung = True
        self._signal(signal.SIGABRT, kill_at=kill_at)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL, kill_at=None)

    def reap(self) -> int | None:
        """Return None while it lives, else its exit code or, negated, the signal that ended it.

        Does not block.
        """
        # By its own pid and never by -1: an embedded PostgreSQL is a child of this process as well.
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.reaped = True
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """Close the supervisor's ends of both pipes.

        A worker that still lives takes that for the supervisor's death, and drains.
        """
        os.close(self.heartbeat_fd)
        os.close(self.lifeline_fd)

    def _signal(self, signum: signal.Signals, *, kill_at: float | None) -> None:
        if kill_at is not None and self.kill_at is not None:
            kill_at = min(kill_at, self.kill_at)
        self.kill_at = kill_at
        if not self.reaped:
            os.kill(self.pid, signum)


def spawn(
    work: Callable[[Lifeline], int],
    detach: Callable[[], None],
    *,
    number: int,
    name: str,
    generation: int,
    metrics_socket: socket.socket,
    dead_siblings: tuple[UUID, ...],
) -> Child:
    """Fork a worker that calls *work* with its lifeline and exits with the code that it returns.

    *detach* runs first in the new process and closes what belongs to the supervisor and to
    siblings. Raise `OSError` if no process could be started. The caller must have one thread only:
    fork copies no other thread, so a lock held by one would stay locked in the child for ever.
    """
    heartbeat_read, heartbeat_write, lifeline_read, lifeline_write = pipes = _pipes()
    os.set_blocking(heartbeat_read, False)
    os.set_blocking(heartbeat_write, False)
    os.set_blocking(lifeline_write, False)
    lifeline = Lifeline(
        number, name, uuid4(), heartbeat_write, lifeline_read, metrics_socket, dead_siblings
    )
    _flush()  # or both processes would write what is buffered
    block_signals()
    try:
        pid = os.fork()
        if pid == 0:
            _run_child(work, lifeline, detach=detach, parent_fds=(heartbeat_read, lifeline_write))
    except OSError:
        _close_all(pipes)
        raise
    finally:
        unblock_signals()
    _close_all((heartbeat_write, lifeline_read))
    return Child(pid, name, lifeline.incarnation, generation, heartbeat_read, lifeline_write)


def exit_fields(code: int) -> dict[str, object]:
    """Return the log fields for what `Child.reap` returned."""
    if code >= 0:
        return {"status": code}
    try:
        return {"signal": signal.Signals(-code).name}
    except ValueError:  # most real-time signals have no name
        return {"signal": -code}


def _run_child(
    work: Callable[[Lifeline], int],
    lifeline: Lifeline,
    *,
    detach: Callable[[], None],
    parent_fds: tuple[int, ...],
) -> NoReturn:
    code: int = ExitCode.FAILED
    try:
        detach()
        # The lifeline's write end above all: while this worker holds it, it never reads the end of
        # file that tells it of the supervisor's death.
        _close_all(parent_fds)
        for variable in ENVIRONMENT:
            os.environ.pop(variable, None)
        code = work(lifeline)
    except UnusableError as error:
        lifeline.refuse(str(error))
        code = ExitCode.UNUSABLE
    except BaseException:  # the process's top frame: nothing may unwind into the supervisor's code
        log.critical("worker failed", exc_info=True, worker=lifeline.name, pid=os.getpid())
    finally:
        try:
            _flush()
        finally:
            # Not sys.exit: the supervisor's `finally` blocks and exit handlers are not this
            # process's to run.
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
        # Closed, or a pipe without a reader.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
