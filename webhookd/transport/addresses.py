"""What this process remembers of addresses: which ones did not answer, and which are its own."""

import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from webhookd.core.answer import ShortageKind
from webhookd.transport.shortage import Shortage, shortage_of

DEAD_FOR_S = 60.0
OWN_KNOWN_S = 5.0
MAX_ADDRESSES = 4096
_DISCARD_PORT = 9  # any port does: nothing is sent


class DeadAddresses:
    """Addresses that did not answer a short while ago; they are tried after the others.

    That is RFC 8305 in spirit, without its parallel connections. Safe to share between threads.
    *clock* returns monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._dead: OrderedDict[tuple[str, int], float] = OrderedDict()  # until when

    def last(self, addresses: Sequence[str], port: int) -> list[str]:
        """Return *addresses* with the dead ones at the end, otherwise in the same order."""
        if not self._dead:
            return list(addresses)
        now = self._clock()
        with self._lock:
            dead = {one for one in addresses if self._dead.get((one, port), now) > now}
        return sorted(addresses, key=dead.__contains__)

    def mark(self, address: str, port: int) -> None:
        """Remember that *address* did not answer on *port*."""
        with self._lock:
            self._dead[address, port] = self._clock() + DEAD_FOR_S
            self._dead.move_to_end((address, port))
            if len(self._dead) > MAX_ADDRESSES:
                self._dead.popitem(last=False)

    def unmark(self, address: str, port: int) -> None:
        """Remember that *address* answered on *port*."""
        if self._dead:
            with self._lock:
                self._dead.pop((address, port), None)


class OwnAddresses:
    """Which addresses are this host's, asked of the kernel and believed for a few seconds.

    Safe to share between threads. *clock* returns monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[IPv4Address | IPv6Address, tuple[bool, float]] = {}

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        """Return whether *address* is the host's. Raise `Shortage` if no socket can be made."""
        now = self._clock()
        own, until = self._known.get(address, (False, now))
        if now < until:
            return own
        own = _is_own(address)
        with self._lock:
            if len(self._known) >= MAX_ADDRESSES:
                self._known.clear()
            self._known[address] = own, now + OWN_KNOWN_S
        return own


def has_source(address: str) -> bool:
    """Return whether this host has an address of its own to reach *address* from.

    Without IPv6 here a connect to an IPv6 address fails with the errno that also means that no
    local port is left.
    """
    return _source_for(ip_address(address)) is not None


def _is_own(address: IPv4Address | IPv6Address) -> bool:
    return _source_for(address) == address


def _source_for(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address | None:
    """Return the local address that the kernel takes for datagrams to *address*: for one of this
    host that is the same. None without a route, or without such a family here.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _DISCARD_PORT))
            return ip_address(probe.getsockname()[0])
    except OSError as error:
        kind = shortage_of(error)
        if kind is None or kind is ShortageKind.PORT:
            return None
        raise Shortage(kind) from None
