"""What the supervisor hands to a worker at the fork, and the two pipes' words.

Both pipes carry lines and single bytes, each written whole or not at all (they are shorter than
PIPE_BUF):

    heartbeat pipe, worker -> supervisor
        b"."                     the dispatcher's loop turns
        b"R"                     the same, and: this worker has passed a limit and is to be replaced
        b"U<line>\\n"            this worker can never run (schema, configuration); the line says why
    lifeline pipe, supervisor -> worker
        b"lost <incarnation>\\n" that sibling is dead: release its leases
        end of file              the supervisor is gone: drain and leave
"""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

_BEAT, _WORN_BEAT = b".", b"R"
_LOST = b"lost "
_REFUSAL_BYTES = 4000  # below PIPE_BUF (4096), so that the whole line arrives or none of it


class ExitCode(IntEnum):
    """How a worker, and webhookd as a whole, ended."""

    DRAINED = 0
    FAILED = 1
    UNUSABLE = 2


@dataclass(frozen=True, slots=True)
class Lifeline:
    """One worker's place. *incarnation* is new with every process and owns its leases;
    *metrics_socket* listens already.

    *heartbeat_fd* is the non-blocking write end, *lifeline_fd* the blocking read end. *lost* names
    dead siblings that nobody else lived to hear of: release their leases as for a `lost` line. Read
    by the worker only.
    """

    number: int
    name: str
    incarnation: UUID
    heartbeat_fd: int
    lifeline_fd: int
    metrics_socket: socket.socket
    lost: tuple[UUID, ...] = ()

    def beat(self, *, worn: bool = False) -> None:
        """Tell the supervisor that the dispatcher's loop turned. About once a second is enough.

        *worn*: replace this worker when its turn comes. It goes on until it is told to drain.

        Never blocks, never raises for a full or broken pipe. Each call wakes the supervisor: not
        for each delivery.
        """
        self._tell(_WORN_BEAT if worn else _BEAT)

    def refuse(self, line: str) -> None:
        """Tell the supervisor that no worker can ever run, and why in one line. Leave with
        `ExitCode.UNUSABLE` then.
        """
        text = " ".join(line.split()).encode()[:_REFUSAL_BYTES]
        self._tell(b"U" + text + b"\n")

    def _tell(self, message: bytes) -> None:
        # Full: 64 KiB of beats are waiting to be read, enough proof of life. Broken: the lifeline
        # tells the same.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.heartbeat_fd, message)


def is_worn(beats: bytes) -> bool:
    """Return whether one of these *beats* asks for a replacement."""
    return _WORN_BEAT in beats


def lost_line(incarnation: UUID) -> bytes:
    """Return the lifeline's word for a dead sibling."""
    return _LOST + str(incarnation).encode() + b"\n"


def parse_lost_line(line: bytes) -> UUID:
    """Return the incarnation in a line of the lifeline, newline or not. Raise `ValueError` for
    anything else.
    """
    if not line.startswith(_LOST):
        raise ValueError(f"not a word of the lifeline: {line!r}")
    return UUID(line.removeprefix(_LOST).decode("ascii").strip())
