"""Turns names into addresses within a deadline, which `getaddrinfo` by itself cannot do."""

import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple, TypeVar

from webhookd import logs
from webhookd.core.answer import ShortageKind
from webhookd.core.lookups import Lookup, Standing, Trouble, domain_of, may_start
from webhookd.transport.background import in_background
from webhookd.transport.shortage import Shortage, descriptor_shortage, shortage_of

log = logs.Logger("webhookd.resolver")

# (host, port, family, type) -> what socket.getaddrinfo returns
Resolve = Callable[[str, int, int, int], Sequence[tuple[int, int, int, str, tuple[object, ...]]]]

ANSWER_SHARED_S = 5.0
MAX_NAMES = 4096  # remembered; of those that answer and of those that do not
# How long a caller without patience waits for a lookup, from its begin.
SHORT_WAIT_S = 0.3
# A lookup that takes this long hangs, whether or not a caller still waits for it. A caller whose
# deadline is earlier says so sooner, but not before the second.
HUNG_AFTER_S = 5.0
LEAST_HUNG_S = 1.0
# So many callers wait for a slow lookup of one name until their deadline. The others need not: the
# lookup goes on without them.
MAX_PATIENT_OF_NAME = 2

V = TypeVar("V")


class LookupFailed(Exception):
    """A name without addresses. The message names the cause in one line."""


class _Found(NamedTuple):
    """What a lookup found. A value, not an exception: threads that share an exception write into
    the same traceback.

    Without addresses *error* is the cause. *is_trouble*: the name's servers failed, so they are
    left alone for a while; *shortage*: the cause lies here.
    """

    addresses: Sequence[str]
    error: str = "DNS: name not known"
    is_trouble: bool = False
    shortage: ShortageKind | None = None


class _Answered(NamedTuple):
    addresses: Sequence[str]
    until: float


@dataclass(slots=True, eq=False)
class _Running:
    """A lookup that runs. *patient*: callers that wait for it until their deadline."""

    began_at: float
    standing: Standing
    found: Future[_Found] = field(default_factory=Future)
    patient: int = 0


class Resolver:
    """Runs each lookup in a daemon thread. Safe to share between threads.

    All who ask for the same name share one lookup, and its answer for a few seconds more.
    `core.lookups` says how many lookups run at once, and for how long a name that hung or failed
    is left alone. So a name whose servers are silent takes few threads and few callers from the
    others. Of all callers *max_patient* wait for slow lookups until their deadline. *clock* returns
    monotonic seconds.
    """

    def __init__(
        self,
        resolve: Resolve,
        *,
        max_patient: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolve = resolve
        self._clock = clock
        self._max_patient = max_patient
        self._lock = threading.Lock()  # guards all below
        self._running: dict[str, _Running] = {}
        self._patient = 0
        self._answered: OrderedDict[str, _Answered] = OrderedDict()
        self._troubles: OrderedDict[str, Trouble] = OrderedDict()

    def addresses(self, host: str, *, deadline: float) -> Sequence[str]:
        """Return the addresses of *host*, in the resolver's order and without repetitions.

        Blocks until the monotonic *deadline* at most. Raise `TimeoutError` if the lookup takes
        longer, `LookupFailed` if there are no addresses or the name is left alone for now, and
        `Shortage` if no thread was free or too many wait for this name already.
        """
        with self._lock:
            now = self._clock()
            answer = self._answered.get(host)
            if answer is not None and now < answer.until:
                return answer.addresses
            self._check_trouble(host, now)
            lookup = self._running.get(host) or self._start(host, now)
            patient = self._take_patience(lookup)
        try:
            found = self._wait(host, lookup, deadline, patient=patient)
        finally:
            if patient:
                with self._lock:
                    self._patient -= 1
                    lookup.patient -= 1
        if found.shortage is not None:
            raise Shortage(found.shortage)
        if not found.addresses:
            raise LookupFailed(found.error)
        return found.addresses

    # These are called under the lock.

    def _check_trouble(self, host: str, now: float) -> None:
        """Raise `LookupFailed` while *host* is left alone, or while its lookup hangs."""
        running = self._running.get(host)
        if running is not None and now - running.began_at >= HUNG_AFTER_S:
            self._note_trouble(host, "DNS: no answer", now)
        trouble = self._troubles.get(host)
        if trouble is None:
            return
        if running is not None and running.began_at <= trouble.since:
            raise LookupFailed(f"{_since(trouble, now)}, and the lookup still runs")
        if now < trouble.until:
            raise LookupFailed(f"{_since(trouble, now)}; asked again at {_utc(trouble.until, now)}")

    def _start(self, host: str, now: float) -> _Running:
        standing = self._standing(host)
        others = [
            Lookup(domain_of(name), lookup.standing, lookup.began_at)
            for name, lookup in self._running.items()
        ]
        if not may_start(host, standing, others, now=now):
            raise Shortage(ShortageKind.LOOKUP)
        lookup = _Running(now, standing)
        try:
            # It ends under the lock, and so not before it is in the table.
            in_background(partial(self._look_up, host, lookup), name="webhookd-resolver")
        except RuntimeError:
            raise Shortage(ShortageKind.THREAD) from None
        self._running[host] = lookup
        return lookup

    def _standing(self, host: str) -> Standing:
        if host in self._troubles:
            return Standing.TROUBLED
        return Standing.ANSWERED if host in self._answered else Standing.UNKNOWN

    def _take_patience(self, lookup: _Running) -> bool:
        if self._patient >= self._max_patient or lookup.patient >= MAX_PATIENT_OF_NAME:
            return False
        self._patient += 1
        lookup.patient += 1
        return True

    def _note_trouble(self, host: str, reason: str, now: float) -> None:
        trouble = self._troubles.get(host)
        _remember(
            self._troubles,
            host,
            Trouble.first(reason, now=now) if trouble is None else trouble.again(reason, now=now),
        )
        running = self._running.get(host)
        if running is not None:
            running.standing = Standing.TROUBLED

    def _note(self, host: str, found: _Found) -> None:
        now = self._clock()
        if found.addresses:
            self._troubles.pop(host, None)
            _remember(self._answered, host, _Answered(found.addresses, now + ANSWER_SHARED_S))
        elif found.is_trouble:
            self._note_trouble(host, found.error, now)
        elif found.shortage is None:
            self._troubles.pop(host, None)  # its servers answer: there is no such name

    # These are called without it.

    def _wait(self, host: str, lookup: _Running, deadline: float, *, patient: bool) -> _Found:
        wait_s = max(0.0, deadline - time.monotonic())
        impatient_s = max(0.0, lookup.began_at + SHORT_WAIT_S - self._clock())
        gives_up = not patient and impatient_s < wait_s
        try:
            return lookup.found.result(impatient_s if gives_up else wait_s)
        except TimeoutError:
            with self._lock:
                if lookup.found.done():  # in this very moment
                    return lookup.found.result()
                now = self._clock()
                if not gives_up and now - lookup.began_at >= LEAST_HUNG_S:
                    self._note_trouble(host, "DNS: no answer", now)
                trouble = self._troubles.get(host)
        if not gives_up:
            raise TimeoutError
        if trouble is not None:
            raise LookupFailed(f"{_since(trouble, now)}, and the lookup still runs")
        raise Shortage(ShortageKind.LOOKUP, "too many wait for the DNS lookup of this name")

    def _look_up(self, host: str, lookup: _Running) -> None:
        found = self._find(host)
        with self._lock:
            del self._running[host]
            self._note(host, found)
            lookup.found.set_result(found)

    def _find(self, host: str) -> _Found:
        try:
            found = self._resolve(host, 0, socket.AF_UNSPEC, socket.SOCK_STREAM)
            return _Found(list(dict.fromkeys(_address_text(sockaddr) for *_, sockaddr in found)))
        except (OSError, MemoryError) as failure:
            shortage = shortage_of(failure) or descriptor_shortage()
            return _failed(failure) if shortage is None else _Found((), shortage=shortage)
        except UnicodeError:
            return _Found((), "DNS: not a valid name")
        except Exception:
            log.exception("lookup failed", host=host)
            return _Found((), "DNS: the resolver failed")


def _remember(table: "OrderedDict[str, V]", host: str, value: V) -> None:
    """Put *value* into *table*, and drop the name that was put there longest ago if it is full."""
    table[host] = value
    table.move_to_end(host)
    if len(table) > MAX_NAMES:
        table.popitem(last=False)


def _since(trouble: Trouble, now: float) -> str:
    return f"{trouble.reason} since {_utc(trouble.since, now)}"


def _utc(at: float, now: float) -> str:
    """Return the monotonic *at* as a time of day."""
    return f"{datetime.fromtimestamp(time.time() + at - now, tz=UTC):%H:%M:%S} UTC"


def _failed(failure: Exception) -> _Found:
    if not isinstance(failure, socket.gaierror):
        return _Found((), "DNS: the resolver failed", is_trouble=True)
    if failure.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
        return _Found(())
    if failure.errno == socket.EAI_AGAIN:
        return _Found((), "DNS: temporary failure", is_trouble=True)
    return _Found((), f"DNS: {failure.strerror or 'failed'}", is_trouble=True)


def _address_text(sockaddr: tuple[object, ...]) -> str:
    text = str(sockaddr[0])
    # The fourth member of an IPv6 address is its scope. Without it the egress check would not see
    # the zone.
    if len(sockaddr) == 4 and sockaddr[3] and "%" not in text:
        return f"{text}%{sockaddr[3]}"
    return text
