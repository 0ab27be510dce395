"""What the supervisor hands to a worker at the fork, and the messages in the two pipes.

Both pipes carry single bytes and short lines. Each message is shorter than PIPE_BUF, so it is
written as a whole or not at all:

    heartbeat pipe, worker -> supervisor
        b"."                     the dispatcher's loop turns
        b"R"                     the same, and: recycle this worker, it has passed a limit
        b"U<line>\\n"            this worker can never run (schema, configuration); says why
    lifeline pipe, supervisor -> worker
        b"dead <incarnation>\\n" this sibling is dead: release its leases
        end of file              the supervisor is gone: drain and exit

The end of file needs no code in the supervisor: the kernel closes its write end when it dies, also
after SIGKILL. It arrives only if no other process holds that write end (see `supervisor.child`).
"""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

_BEAT, _RECYCLE_BEAT = b".", b"R"
_DEAD = b"dead "
_REFUSAL_BYTES = 4000  # below PIPE_BUF (4096), so that the line arrives as a whole or not at all


class ExitCode(IntEnum):
    """How a worker, and webhookd as a whole, ended."""

    DRAINED = 0
    FAILED = 1
    UNUSABLE = 2


@dataclass(frozen=True, slots=True)
class Lifeline:
    """One worker's identity, and its ends of the pipes to the supervisor.

    *incarnation* is new for each process and owns its leases. *metrics_socket* listens already.
    *heartbeat_fd* is the non-blocking write end, *lifeline_fd* the blocking read end; only the
    worker reads it. *dead_siblings* died while no other worker could be told: release their leases
    as for a `dead` line.
    """

    number: int
    name: str
    incarnation: UUID
    heartbeat_fd: int
    lifeline_fd: int
    metrics_socket: socket.socket
    dead_siblings: tuple[UUID, ...] = ()

    def beat(self, *, recycle: bool = False) -> None:
        """Tell the supervisor that the dispatcher's loop turned. About once a second is enough.

        *recycle* asks for a replacement. The worker goes on until the supervisor tells it to drain.

        Never blocks, never raises for a full or broken pipe. Each call wakes the supervisor, so do
        not call it for each delivery.
        """
        self._send(_RECYCLE_BEAT if recycle else _BEAT)

    def refuse(self, line: str) -> None:
        """Tell the supervisor that no worker can ever run, and why in one line.

        Exit with `ExitCode.UNUSABLE` then. Never blocks.
        """
        text = " ".join(line.split()).encode()[:_REFUSAL_BYTES]
        self._send(b"U" + text + b"\n")

    def _send(self, message: bytes) -> None:
        # Full: 64 KiB of unread beats prove well enough that this worker lives. Broken: the
        # supervisor is gone, and the lifeline's end of file says so too.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.heartbeat_fd, message)


def requests_recycling(beats: bytes) -> bool:
    """Return whether one of these *beats* asks for a replacement."""
    return _RECYCLE_BEAT in beats


def death_line(incarnation: UUID) -> bytes:
    """Return the lifeline's line for a dead sibling."""
    return _DEAD + str(incarnation).encode() + b"\n"


def parse_death_line(line: bytes) -> UUID:
    """Return the incarnation in a line of the lifeline, with its newline or without.

    Raise `ValueError` for any other line.
    """
    if not line.startswith(_DEAD):
        raise ValueError(f"not a line of the lifeline: {line!r}")
    return UUID(line.removeprefix(_DEAD).decode("ascii").strip())
