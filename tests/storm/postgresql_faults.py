"""What a storm puts between webhookd and PostgreSQL, and how it waits for webhookd to go on."""

import itertools
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.storm.storm import Storm
from tests.support.waiting import eventually

PATIENT = "timeout_seconds = 3"  # a lease that is not returned costs this timeout and 30 s

COMMITTED = b"C\0\0\0\x0bCOMMIT\0"  # CommandComplete: the answer to COMMIT


class Proxy:
    """Passes connections on to the PostgreSQL of *dsn* (which names the folder of its socket), and
    breaks them.

    *cut* is the probability that a piece of traffic, in either direction, is cut in the middle
    together with its connection. *lose_commit* is the probability that the answer to a COMMIT never
    arrives. `happened` counts both by these names.
    """

    def __init__(self, dsn: str, rng: random.Random) -> None:
        self.dsn = make_conninfo(dsn, host="127.0.0.1", sslmode="disable", gssencmode="disable")
        self.cut = 0.0
        self.lose_commit = 0.0
        self.happened: Counter[str] = Counter()
        self._random = rng
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.lead_to(dsn)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.dsn = make_conninfo(self.dsn, port=self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def lead_to(self, dsn: str) -> None:
        """Pass later connections on to another server."""
        there = conninfo_to_dict(dsn)
        self._target = f"{there['host']}/.s.PGSQL.{there['port']}"

    def cut_all(self) -> None:
        """Cut every connection."""
        with self._lock:
            connections = list(self._connections)
        _shut(*connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _shut(self._listener)
        self._listener.close()
        self.cut_all()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(self._target)
                except OSError:
                    client.close()
                    server.close()
                    continue
                with self._lock:
                    self._connections |= {client, server}
                for source, sink, fate in (
                    (client, server, self._cut_point),
                    (server, client, self._answer_point),
                ):
                    threading.Thread(
                        target=self._pass_on, args=(source, sink, fate), daemon=True
                    ).start()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, fate: Callable[[bytes], int | None]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                point = fate(data)
                sink.sendall(data[:point])
                if point is not None:
                    break
        _shut(source, sink)
        with self._lock:
            self._connections.discard(source)
        source.close()  # the other thread closes the other one

    def _cut_point(self, data: bytes) -> int | None:
        """Return how many bytes of *data* pass before the cut; None: no cut, all of it."""
        with self._lock:
            if self._random.random() >= self.cut:
                return None
            self.happened["cut"] += 1
            return self._random.randrange(len(data))

    def _answer_point(self, data: bytes) -> int | None:
        at = data.find(COMMITTED)
        with self._lock:
            if at >= 0 and self._random.random() < self.lose_commit:
                self.happened["lose_commit"] += 1
                return at
        return self._cut_point(data)


class ServiceManager:
    """Stands in for systemd with its watchdog: a notification socket at *path* that notes the time
    of each WATCHDOG=1.
    """

    def __init__(self, path: Path) -> None:
        self._fed = [time.monotonic()]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._listen, name="service manager", daemon=True).start()

    def longest_silence_s(self) -> float:
        """Return the longest time between two signs of life until now."""
        times = [*self._fed, time.monotonic()]
        return max(after - before for before, after in itertools.pairwise(times))

    def _listen(self) -> None:
        while True:
            if b"WATCHDOG=1" in self._socket.recv(65536):
                self._fed.append(time.monotonic())


def await_work(storm: Storm) -> None:
    """Measure how long it takes until the next delivery; the server may still be away."""
    with storm.recovering():
        before = storm.finished()
        eventually(
            lambda: storm.finished() > before or storm.unfinished() == 0, 60.0, what="work goes on"
        )


def _shut(*socks: socket.socket) -> None:
    for sock in socks:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
