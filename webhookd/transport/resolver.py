"""Turns names into addresses within a deadline, which `getaddrinfo` by itself cannot do."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from webhookd import logs
from webhookd.transport.background import in_background

log = logs.Logger("webhookd.resolver")

# (host, port, family, type) -> what socket.getaddrinfo returns
Resolve = Callable[[str, int, int, int], Sequence[tuple[int, int, int, str, tuple[object, ...]]]]


class LookupFailed(Exception):
    """A name without addresses. The message names the cause in one line."""


class Resolver:
    """Runs each lookup in a daemon thread, at most *threads* at once. Safe to share between
    threads.

    All who ask for the same name wait for the same lookup: a name whose servers are silent holds
    one thread, however many deliveries go there, and does not starve the other names.
    """

    def __init__(self, resolve: Resolve, *, threads: int = 32) -> None:
        self._resolve = resolve
        self._threads = threads
        self._changed = threading.Condition()  # guards _running; notified when a lookup ends
        self._running: dict[str, Future[tuple[list[str], str]]] = {}

    def addresses(self, host: str, *, deadline: float) -> list[str]:
        """Return the addresses of *host*, in the resolver's order and without repetitions.

        Blocks until the monotonic *deadline* at most. Raise `TimeoutError` if the lookup takes
        longer, and `LookupFailed` if there are no addresses or if no thread was free for a lookup.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: host in self._running or len(self._running) < self._threads,
                _remaining_s(deadline),
            ):
                raise LookupFailed("resolver busy: every lookup thread is stuck")
            lookup = self._running.get(host) or self._start(host)
        addresses, error = lookup.result(_remaining_s(deadline))
        if not addresses:
            raise LookupFailed(error)
        return addresses

    def _start(self, host: str) -> Future[tuple[list[str], str]]:
        # The caller holds the lock, so the lookup cannot end before it is in the table.
        try:
            lookup = in_background(partial(self._look_up, host), name="webhookd-resolver")
        except RuntimeError:
            raise LookupFailed("resolver busy: no further thread can be started") from None
        self._running[host] = lookup
        return lookup

    def _look_up(self, host: str) -> tuple[list[str], str]:
        """Return the addresses, or an empty list and the cause.

        A value, since threads that share an exception write into the same traceback.
        """
        try:
            found = self._resolve(host, 0, socket.AF_UNSPEC, socket.SOCK_STREAM)
            addresses = dict.fromkeys(_address_text(sockaddr) for *_, sockaddr in found)
            return list(addresses), "DNS: name not known"
        except OSError as failure:
            return [], _describe(failure)
        except UnicodeError:
            return [], "DNS: not a valid name"
        except Exception:
            log.exception("lookup failed", host=host)
            return [], "DNS: the resolver failed"
        finally:
            with self._changed:
                del self._running[host]
                self._changed.notify_all()


def _remaining_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


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
    # The fourth member of an IPv6 address is its scope. Without it the egress check would not see
    # the zone.
    if len(sockaddr) == 4 and sockaddr[3] and "%" not in text:
        return f"{text}%{sockaddr[3]}"
    return text
