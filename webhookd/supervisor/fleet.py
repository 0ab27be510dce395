"""The numbered places, the worker in each, and what outlives a worker: port, restart history,
leases to release.
"""

import errno
import logging
import random
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from webhookd.core.restart import Phase, Restart
from webhookd.errors import UnusableError
from webhookd.lifeline import ExitCode, Lifeline
from webhookd.supervisor.child import Child, exit_fields, spawn
from webhookd.supervisor.handover import Handover

if TYPE_CHECKING:
    from webhookd.config.load import Config

from webhookd import logs

log = logs.Logger("webhookd.supervisor")

# A hung worker's time to print its stacks before it is killed.
ABORT_GRACE_S = 2.0
# What a worker may need beyond its own drain deadline to give back the rest and leave.
DRAIN_GRACE_S = 5.0
_BACKLOG = 128


@dataclass(slots=True)
class Slot:
    """A worker's number and port, held by one process after another."""

    number: int
    metrics_socket: socket.socket
    restart: Restart
    child: Child | None = None

    @property
    def is_settled(self) -> bool:
        """Return whether a worker holds the place, has beaten and is to stay."""
        return (
            self.child is not None and self.child.in_service and self.restart.phase is Phase.RUNNING
        )


@dataclass(frozen=True, slots=True)
class Death:
    """One worker's end; *code* as `Child.reap` returns it."""

    place: Slot
    child: Child
    code: int


class Fleet:
    """Starts, hears, reaps and kills workers. Decides nothing that a signal to the supervisor
    decides.

    *detach* runs first in each new worker process. *refusal* holds the line of a worker of the
    current generation that can never run; whoever acts on it sets it to None. Only the supervisor's
    loop calls anything here; nothing blocks.
    """

    def __init__(
        self,
        config: "Config",
        run_worker: Callable[["Config", Lifeline], int],
        *,
        selector: selectors.BaseSelector,
        detach: Callable[[], None],
    ) -> None:
        self.config = config
        self.generation = 0
        self.places: dict[int, Slot] = {}
        self.refusal: str | None = None
        self._run_worker = run_worker
        self._selector = selector
        self._detach = detach
        self._lost = Handover()

    def adopt(self, config: "Config", *, now: float) -> None:
        """Start workers with *config* from now on, in vacant places at once. Those of earlier
        generations are stale.
        """
        self.config = config
        self.generation += 1
        for place in self.places.values():
            if place.child is None:
                # Whatever made its workers die may be mended by the new configuration.
                place.restart = Restart.fresh(now)

    def add_place(self, number: int, *, now: float, patience_s: float = 0.0) -> None:
        """Bind the port of place *number*; its worker is due at once. Raise `UnusableError` if the
        port is taken.

        Blocks for at most *patience_s*, while somebody holds the port.
        """
        port = self.config.metrics_port
        listener = _listen(
            self.config.metrics_host, port + number - 1 if port else 0, until=now + patience_s
        )
        self.places[number] = Slot(number, listener, Restart.fresh(now))

    def remove_place(self, number: int) -> None:
        """Close the port of a place that no worker holds."""
        self.places.pop(number).metrics_socket.close()

    def children(self) -> Iterator[tuple[Slot, Child]]:
        """Yield each place that holds a living worker."""
        for place in self.places.values():
            if place.child is not None:
                yield place, place.child

    def start_due(self, now: float) -> None:
        """Fill the places whose worker is due."""
        for place in self.places.values():
            if place.restart.phase is Phase.WAITING and place.restart.since <= now:
                self._start(place, now)

    def hear(self, place: Slot, now: float) -> None:
        """Read the heartbeats of the worker in *place*."""
        child = place.child
        if child is None:
            return
        beaten, ended = child.read_beats()
        if ended and child.heartbeat_fd in self._selector.get_map():
            self._selector.unregister(child.heartbeat_fd)
        if beaten:
            is_first = place.restart.phase is Phase.STARTING
            place.restart = place.restart.beat(now)
            if is_first:
                log.info("worker running", **_fields(child))
                self._lost.first_beat(child.incarnation, now)
                self._lost.hand_over(self._keepers(), now)
        self._heed_refusal(child, now)

    def reap(self, now: float) -> list[Death]:
        """Collect the workers that have ended. Their places wait for the next start; their leases
        are handed over.
        """
        deaths = []
        for place, child in list(self.children()):
            code = child.reap()
            if code is None:
                continue
            self.hear(place, now)  # what it wrote last, perhaps why it cannot run
            self._bury(place, child, code=code, now=now)
            deaths.append(Death(place, child, code))
        return deaths

    def kill_overdue(self, now: float) -> None:
        """Abort the workers that hang and kill those whose time to leave is up."""
        for place, child in self.children():
            if child.kill_at is not None and child.kill_at <= now:
                log.error("worker killed: its time to leave was up", **_fields(child))
                child.kill()
            elif child.in_service and place.restart.silent_at(self.config.heartbeat_timeout) <= now:
                silence_s = round(now - place.restart.heard, 1)
                log.error(
                    "worker hung: no heartbeat",
                    **(_fields(child) | {"silence_s": silence_s}),
                )
                child.abort(kill_at=now + ABORT_GRACE_S)

    def drain(self, child: Child, now: float) -> None:
        """Tell a worker to finish what is in flight and leave."""
        log.info("worker draining", **_fields(child))
        child.order(signal.SIGTERM, kill_at=now + self.config.drain_timeout + DRAIN_GRACE_S)

    def timers(self, *, with_starts: bool) -> Iterator[float]:
        """Yield the monotonic instants at which `start_due` (if wanted) or `kill_overdue` has
        something to do.
        """
        for place in self.places.values():
            child = place.child
            if child is None:
                if with_starts:
                    yield place.restart.since
            elif child.kill_at is not None:
                yield child.kill_at
            elif child.in_service:
                yield place.restart.silent_at(self.config.heartbeat_timeout)

    def close(self) -> None:
        """Close every port and pipe. Workers that still live drain and leave."""
        for _, child in self.children():
            child.close()
        for place in self.places.values():
            place.metrics_socket.close()

    def _start(self, place: Slot, now: float) -> None:
        node = self.config.node
        name = f"{node}/worker-{place.number}" if node else f"worker-{place.number}"
        place.restart = place.restart.started(now)
        try:
            child = spawn(
                partial(self._run_worker, self.config),
                partial(_detach_worker, self.places, place, self._detach),
                number=place.number,
                name=name,
                generation=self.generation,
                metrics_socket=place.metrics_socket,
                lost=self._lost.waiting,
            )
        except OSError as error:
            place.restart = place.restart.died(now, u=random.random())
            log.error("worker not started", worker=name, error=str(error))
            return
        self._lost.started(child.incarnation)
        place.child = child
        self._selector.register(child.heartbeat_fd, selectors.EVENT_READ, place)
        host, port = place.metrics_socket.getsockname()[:2]
        log.info("worker started", **(_fields(child) | {"metrics": f"{host}:{port}"}))

    def _bury(self, place: Slot, child: Child, *, code: int, now: float) -> None:
        clean = code == ExitCode.DRAINED
        self._lost.died(child.incarnation, clean=clean, heard=place.restart.heard)
        if child.heartbeat_fd in self._selector.get_map():
            self._selector.unregister(child.heartbeat_fd)
        child.close()
        place.child = None
        place.restart = (
            Restart.fresh(now) if child.ordered else place.restart.died(now, u=random.random())
        )
        fields = _fields(child) | exit_fields(code)
        if not child.ordered:
            fields["restart_in_s"] = round(place.restart.since - now, 2)
        log.write(logging.INFO if clean else logging.ERROR, "worker exited", fields)
        if code == ExitCode.UNUSABLE and child.refusal is None:
            child.refusal = f"{child.name} cannot run and left no reason; its log above has more"
            self._heed_refusal(child, now)
        self._lost.hand_over(self._keepers(), now)

    def _keepers(self) -> list[tuple[Child, float]]:
        """Return the workers that may be told of dead siblings, with their last beats, the
        liveliest first.
        """
        settled = [
            (child, place.restart.heard) for place, child in self.children() if place.is_settled
        ]
        return sorted(settled, key=lambda keeper: keeper[1], reverse=True)

    def _heed_refusal(self, child: Child, now: float) -> None:
        if child.refusal is None:
            return
        if not child.ordered:
            # It should leave by itself; if it does not, the deadline sees to it.
            child.order(signal.SIGTERM, kill_at=now + DRAIN_GRACE_S)
        # A stale worker's refusal is about a configuration that has been replaced already.
        if child.generation == self.generation:
            self.refusal = child.refusal


def _fields(child: Child) -> dict[str, object]:
    return {"worker": child.name, "worker_pid": child.pid}


def _detach_worker(places: dict[int, Slot], own: Slot, detach: Callable[[], None]) -> None:
    """In a new worker: close what belongs to the supervisor and to siblings, or the dead would seem
    to live on.
    """
    detach()
    for place in places.values():
        if place is not own:
            place.metrics_socket.close()
            if place.child is not None:
                place.child.close()


def _listen(host: str, port: int, *, until: float) -> socket.socket:
    """Return a socket that listens already: only then is a port that somebody else holds sure to be
    refused.
    """
    try:
        # Without the port, which it would take modulo 65536: worker 2 beside port 65535 would get
        # just any port.
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, None, type=socket.SOCK_STREAM
        )[0]
        listener = socket.socket(family, kind, protocol)
        with ExitStack() as unless_done:
            unless_done.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _bind(listener, (address[0], port, *address[2:]), until=until)
            listener.listen(_BACKLOG)
            unless_done.pop_all()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnusableError(
            f"cannot serve metrics on {host} port {port} ({reason}): "
            "choose another --metrics-port (worker i takes metrics-port + i - 1)"
        ) from error
    return listener


def _bind(listener: socket.socket, address: tuple[object, ...], *, until: float) -> None:
    while True:
        try:
            listener.bind(address)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= until:
                raise
        time.sleep(0.05)
