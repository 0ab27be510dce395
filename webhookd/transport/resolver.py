"""Turns names into addresses within a deadline, which `getaddrinfo` by itself cannot do."""

import socket
import threading
import time
from collections.abc import Callable, Sequence

from webhookd import logs

log = logs.Logger("webhookd.resolver")

# (host, port, family, type) -> what socket.getaddrinfo returns
Resolve = Callable[[str, int, int, int], Sequence[tuple[int, int, int, str, tuple[object, ...]]]]


class LookupFailed(Exception):
    """A name without addresses; the message is one line that names the cause."""


class Resolver:
    """Runs each lookup in a daemon thread, at most *threads* at once. Safe to share between
    threads.

    Everybody who asks for a name that is being looked up waits for that same lookup: one name whose
    servers are silent holds one thread, however many deliveries go there, and does not starve the
    other names.
    """

    def __init__(self, resolve: Resolve, *, threads: int = 32) -> None:
        self._resolve = resolve
        self._free = threading.BoundedSemaphore(threads)
        self._lock = threading.Lock()
        self._running: dict[
            str, _Lookup
        ] = {}  # guarded by _lock; whoever finishes a lookup removes it

    def addresses(self, host: str, *, deadline: float) -> list[str]:
        """Return the addresses of *host*, in the resolver's order and without repetitions.

        Blocks until the monotonic *deadline* at most. Raise `TimeoutError` when the deadline passes
        first and `LookupFailed` when there are none or no thread came free.
        """
        with self._lock:
            lookup = self._running.get(host)
            starts = lookup is None
            if lookup is None:
                lookup = self._running[host] = _Lookup()
        if starts:
            self._start(host, lookup, deadline)
        if not lookup.done.wait(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        if not lookup.addresses:
            raise LookupFailed(lookup.error)
        return lookup.addresses

    def _start(self, host: str, lookup: "_Lookup", deadline: float) -> None:
        if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
            self._finish(host, lookup, [], "resolver busy: every lookup thread is stuck")
            return
        try:
            threading.Thread(
                target=self._run, args=(host, lookup), name="webhookd-resolver", daemon=True
            ).start()
        except RuntimeError:
            self._free.release()
            self._finish(host, lookup, [], "resolver busy: no further thread can be started")

    def _run(self, host: str, lookup: "_Lookup") -> None:
        addresses: list[str] = []
        error = "DNS: name not known"
        try:
            found = self._resolve(host, 0, socket.AF_UNSPEC, socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(_address_text(sockaddr) for *_, sockaddr in found))
        except OSError as failure:
            error = _describe(failure)
        except UnicodeError:
            error = "DNS: not a valid name"
        except Exception:
            error = "DNS: the resolver failed"
            log.exception("lookup failed", host=host)
        finally:
            self._free.release()
            self._finish(host, lookup, addresses, error)

    def _finish(self, host: str, lookup: "_Lookup", addresses: list[str], error: str) -> None:
        with self._lock:
            del self._running[host]
        lookup.addresses = addresses
        lookup.error = error
        lookup.done.set()


class _Lookup:
    """One lookup in flight: the fields are written before *done* is set and read after it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.addresses: list[str] = []
        self.error = ""


def _describe(failure: OSError) -> str:
    if not isinstance(failure, socket.gaierror):
        return "DNS: the resolver failed"
    if failure.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
        return "DNS: name not known"
    if failure.errno == socket.EAI_AGAIN:
        return "DNS: temporary failure"
    return f"DNS: {failure.strerror or 'failed'}"


def _address_text(sockaddr: tuple[object, ...]) -> str:
    text = str(sockaddr[0])
    # The fourth member of an IPv6 address is its scope; without it the egress check would not see
    # the zone.
    if len(sockaddr) == 4 and sockaddr[3] and "%" not in text:
        return f"{text}%{sockaddr[3]}"
    return text
