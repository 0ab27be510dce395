"""What this process may lack for an exchange, told apart from what is wrong with a receiver."""

import errno
import socket
import ssl

from webhookd.core.answer import ShortageKind

_KINDS = {
    errno.EMFILE: ShortageKind.DESCRIPTOR,
    errno.ENFILE: ShortageKind.DESCRIPTOR,
    errno.ENOMEM: ShortageKind.MEMORY,
    errno.ENOBUFS: ShortageKind.MEMORY,
    errno.EADDRNOTAVAIL: ShortageKind.PORT,
}
_MESSAGES = {
    ShortageKind.LOOKUP: "too many DNS lookups run",
    ShortageKind.DESCRIPTOR: "no file descriptor left; raise LimitNOFILE",
    ShortageKind.MEMORY: "no memory left",
    ShortageKind.PORT: "no local port left",
    ShortageKind.THREAD: "no further thread can be started",
}


class Shortage(Exception):
    """This process lacks something of *kind*, and no byte of a request was sent."""

    def __init__(self, kind: ShortageKind, message: str | None = None) -> None:
        super().__init__(message or _MESSAGES[kind])
        self.kind = kind


def shortage_of(error: BaseException) -> ShortageKind | None:
    """Return what *error* says that this process lacks; None for any other error."""
    if isinstance(error, MemoryError):
        return ShortageKind.MEMORY
    if isinstance(error, socket.gaierror):
        return ShortageKind.MEMORY if error.errno == socket.EAI_MEMORY else None
    if not isinstance(error, OSError) or isinstance(error, ssl.SSLError):
        return None  # the errno of an SSLError is no errno
    return _KINDS.get(error.errno or 0)


def descriptor_shortage() -> ShortageKind | None:
    """Return what keeps a socket from being made now, if anything does.

    The system's resolver does not tell: without a descriptor it calls every name unknown.
    """
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        return shortage_of(error)
    return None
