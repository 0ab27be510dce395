"""A name server on loopback that does not answer for some names, and webhookd that asks it.

`python -m tests.support.name_server WEBHOOKD'S OPTIONS` is webhookd that resolves names below .test
(RFC 6761) at the server that the environment names. It waits for an answer as long as glibc does by
default. Other names are looked up as usual.
"""

import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Found = Sequence[tuple[int, int, int, str, tuple[object, ...]]]

PROGRAM = (__file__,)
SILENT = "silent"
# resolv.conf(5): "timeout" and "attempts".
TIMEOUT_S, ATTEMPTS = 5.0, 2

_PORT = "TEST_NAME_SERVER_PORT"
_HEAD = struct.Struct("!6H")
_QUESTION = struct.Struct("!2H")
_A, _IN = 1, 1
_ASKED, _ANSWERED = 0x0100, 0x8180
# A pointer to the question's name, type A, class IN, 1 s to live, four bytes: 127.0.0.1.
_LOOPBACK = b"\xc0\x0c" + struct.pack("!2HIH", _A, _IN, 1, 4) + socket.inet_aton("127.0.0.1")

_real = socket.getaddrinfo


class NameServer:
    """Answers each question with 127.0.0.1, except for names that begin with SILENT until `heal`.

    `questions` counts them by name; ones that are repeated count again.
    """

    def __init__(self) -> None:
        self.questions: Counter[str] = Counter()
        self._silent = True
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="name-server", daemon=True)
        self._thread.start()

    def heal(self) -> None:
        """Answer for all names from now on."""
        self._silent = False

    def stop(self) -> None:
        """End the thread: an empty packet is no question."""
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(20)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, asker = self._socket.recvfrom(512)
            if not question:
                return
            name = _name_of(question)
            self.questions[name] += 1
            if not (self._silent and name.startswith(SILENT)):
                self._socket.sendto(_answer(question), asker)


@contextmanager
def name_server() -> Iterator[NameServer]:
    """A name server. PROGRAM, started meanwhile, asks it. Not reentrant."""
    server = NameServer()
    os.environ[_PORT] = str(server.port)
    try:
        yield server
    finally:
        del os.environ[_PORT]
        server.stop()


def resolve(host: str, port: int | str | None, *rest: Any, **options: Any) -> Found:
    """Stand in for `socket.getaddrinfo`. Blocks for TIMEOUT_S * ATTEMPTS at most."""
    if not str(host).endswith(".test"):
        return _real(host, port, *rest, **options)
    labels = [label.encode("idna") for label in host.split(".")]
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", int(os.environ[_PORT])))
        sock.settimeout(TIMEOUT_S)
        for _ in range(ATTEMPTS):
            sock.send(_HEAD.pack(1, _ASKED, 1, 0, 0, 0) + name + _QUESTION.pack(_A, _IN))
            try:
                answer = sock.recv(512)
            except TimeoutError:
                continue
            address = (socket.inet_ntoa(answer[-4:]), 0)
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def _name_of(question: bytes) -> str:
    labels, at = [], _HEAD.size
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels)


def _answer(question: bytes) -> bytes:
    (number, *_) = _HEAD.unpack_from(question)
    return _HEAD.pack(number, _ANSWERED, 1, 1, 0, 0) + question[_HEAD.size :] + _LOOPBACK


if __name__ == "__main__":
    # Before the transport is imported: it uses this function as a default.
    socket.getaddrinfo = resolve  # type: ignore[assignment]
    from webhookd.cli.main import main

    main()
