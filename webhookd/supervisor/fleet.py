"""The numbered slots, the worker in each, and what outlives a worker: its port, the history of its
restarts, the leases that a sibling has to release.
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
    from webhookd.config.options import Config

from webhookd import logs

log = logs.Logger("webhookd.supervisor")

# A hung worker's time to print its stacks before it is killed.
ABORT_GRACE_S = 2.0
# What a worker may need beyond its own drain deadline to return the rest and exit.
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
    def is_working(self) -> bool:
        """Return whether a worker holds the slot, has beaten and is to stay."""
        return (
            self.child is not None and self.child.in_service and self.restart.phase is Phase.RUNNING
        )


@dataclass(frozen=True, slots=True)
class Death:
    """One worker's exit; *code* as `Child.reap` returns it."""

    slot: Slot
    child: Child
    code: int


class Fleet:
    """Starts, watches, reaps and kills workers. The supervisor decides how many and when to stop.

    *detach* runs first in each new worker process. *refusal* holds the line of a worker of the
    current generation that can never run; the supervisor acts on it and sets it back to None. Only
    the supervisor's loop calls these methods. None blocks, except `add_slot` as it says.
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
        self.slots: dict[int, Slot] = {}
        self.refusal: str | None = None
        self._run_worker = run_worker
        self._selector = selector
        self._detach = detach
        self._handover = Handover()

    def set_config(self, config: "Config", *, now: float) -> None:
        """Start workers with *config* from now on, in vacant slots at once.

        Workers of earlier generations are stale.
        """
        self.config = config
        self.generation += 1
        for slot in self.slots.values():
            if slot.child is None:
                # The new configuration may remove what made its workers die.
                slot.restart = Restart.fresh(now)

    def add_slot(self, number: int, *, now: float, patience_s: float = 0.0) -> None:
        """Bind the port of slot *number*; its worker is due at once.

        Blocks for at most *patience_s* while another process holds the port, then raises
        `UnusableError`.
        """
        port = self.config.metrics_port
        listener = _listen(
            self.config.metrics_host, port + number - 1 if port else 0, until=now + patience_s
        )
        self.slots[number] = Slot(number, listener, Restart.fresh(now))

    def remove_slot(self, number: int) -> None:
        """Close the port of a slot without a worker."""
        self.slots.pop(number).metrics_socket.close()

    def children(self) -> Iterator[tuple[Slot, Child]]:
        """Yield each slot that holds a living worker."""
        for slot in self.slots.values():
            if slot.child is not None:
                yield slot, slot.child

    def start_due(self, now: float) -> None:
        """Start a worker in each slot where one is due."""
        for slot in self.slots.values():
            if slot.restart.phase is Phase.WAITING and slot.restart.since <= now:
                self._start(slot, now)

    def on_heartbeat(self, slot: Slot, now: float) -> None:
        """Read the heartbeats of the worker in *slot*."""
        child = slot.child
        if child is None:
            return
        beaten, ended = child.read_beats()
        if ended and child.heartbeat_fd in self._selector.get_map():
            self._selector.unregister(child.heartbeat_fd)
        if beaten:
            is_first = slot.restart.phase is Phase.STARTING
            slot.restart = slot.restart.beat(now)
            if is_first:
                log.info("worker running", **_fields(child))
                self._handover.on_first_beat(child.incarnation, now)
                self._handover.tell(self._recipients(), now)
        self._apply_refusal(child, now)

    def reap(self, now: float) -> list[Death]:
        """Collect the workers that have ended. Does not block.

        Their slots wait for the next start; a sibling is told to release their leases.
        """
        deaths = []
        for slot, child in list(self.children()):
            code = child.reap()
            if code is None:
                continue
            self.on_heartbeat(slot, now)  # its last words may say why it cannot run
            self._on_exit(slot, child, code=code, now=now)
            deaths.append(Death(slot, child, code))
        return deaths

    def kill_overdue(self, now: float) -> None:
        """Abort the workers that hang, and kill those that did not stop in time."""
        for slot, child in self.children():
            if child.kill_at is not None and child.kill_at <= now:
                log.error("worker killed: it did not stop in time", **_fields(child))
                child.kill()
            elif child.in_service and slot.restart.silent_at(self.config.heartbeat_timeout) <= now:
                silence_s = round(now - slot.restart.heard, 1)
                log.error(
                    "worker hung: no heartbeat",
                    **(_fields(child) | {"silence_s": silence_s}),
                )
                child.abort(kill_at=now + ABORT_GRACE_S)

    def drain(self, child: Child, now: float) -> None:
        """Tell a worker to finish what is in flight and exit."""
        log.info("worker draining", **_fields(child))
        child.request_stop(signal.SIGTERM, kill_at=now + self.config.drain_timeout + DRAIN_GRACE_S)

    def timers(self, *, with_starts: bool) -> Iterator[float]:
        """Yield the monotonic instants of the next work of `kill_overdue` and, *with_starts*, of
        `start_due`.
        """
        for slot in self.slots.values():
            child = slot.child
            if child is None:
                if with_starts:
                    yield slot.restart.since
            elif child.kill_at is not None:
                yield child.kill_at
            elif child.in_service:
                yield slot.restart.silent_at(self.config.heartbeat_timeout)

    def close(self) -> None:
        """Close every port and pipe. Workers that still live drain and exit."""
        for _, child in self.children():
            child.close()
        for slot in self.slots.values():
            slot.metrics_socket.close()

    def _start(self, slot: Slot, now: float) -> None:
        node = self.config.node
        name = f"{node}/worker-{slot.number}" if node else f"worker-{slot.number}"
        slot.restart = slot.restart.started(now)
        try:
            child = spawn(
                partial(self._run_worker, self.config),
                partial(_detach_worker, self.slots, slot, self._detach),
                number=slot.number,
                name=name,
                generation=self.generation,
                metrics_socket=slot.metrics_socket,
                dead_siblings=self._handover.pending,
            )
        except OSError as error:
            slot.restart = slot.restart.died(now, u=random.random())
            log.error("worker not started", worker=name, error=str(error))
            return
        self._handover.on_start(child.incarnation)
        slot.child = child
        self._selector.register(child.heartbeat_fd, selectors.EVENT_READ, slot)
        host, port = slot.metrics_socket.getsockname()[:2]
        log.info("worker started", **(_fields(child) | {"metrics": f"{host}:{port}"}))

    def _on_exit(self, slot: Slot, child: Child, *, code: int, now: float) -> None:
        clean = code == ExitCode.DRAINED
        self._handover.on_exit(child.incarnation, clean=clean, heard=slot.restart.heard)
        if child.heartbeat_fd in self._selector.get_map():
            self._selector.unregister(child.heartbeat_fd)
        child.close()
        slot.child = None
        slot.restart = (
            Restart.fresh(now)
            if child.stop_requested
            else slot.restart.died(now, u=random.random())
        )
        fields = _fields(child) | exit_fields(code)
        if not child.stop_requested:
            fields["restart_in_s"] = round(slot.restart.since - now, 2)
        log.write(logging.INFO if clean else logging.ERROR, "worker exited", fields)
        if code == ExitCode.UNUSABLE and child.refusal is None:
            child.refusal = f"{child.name} cannot run and left no reason; see its log above"
            self._apply_refusal(child, now)
        self._handover.tell(self._recipients(), now)

    def _recipients(self) -> list[tuple[Child, float]]:
        """Return the workers that can be told of dead siblings, with the instants of their last
        beats, the most recent first: a worker that hangs already would release nothing.
        """
        working = [
            (child, slot.restart.heard) for slot, child in self.children() if slot.is_working
        ]
        return sorted(working, key=lambda recipient: recipient[1], reverse=True)

    def _apply_refusal(self, child: Child, now: float) -> None:
        if child.refusal is None:
            return
        if not child.stop_requested:
            # It should exit without this. If it does not, it is killed at the deadline.
            child.request_stop(signal.SIGTERM, kill_at=now + DRAIN_GRACE_S)
        # A stale worker refuses a configuration that has been replaced already.
        if child.generation == self.generation:
            self.refusal = child.refusal


def _fields(child: Child) -> dict[str, object]:
    return {"worker": child.name, "worker_pid": child.pid}


def _detach_worker(slots: dict[int, Slot], own: Slot, detach: Callable[[], None]) -> None:
    """In a new worker: close what belongs to the supervisor and to siblings.

    With a copy of a sibling's lifeline here, that sibling would not notice the supervisor's death.
    With a copy of its metrics socket, a removed slot's port would stay open.
    """
    detach()
    for slot in slots.values():
        if slot is not own:
            slot.metrics_socket.close()
            if slot.child is not None:
                slot.child.close()


def _listen(host: str, port: int, *, until: float) -> socket.socket:
    """Return a socket that listens already: SO_REUSEADDR lets two sockets bind one port, and only
    `listen` is sure to fail where another process holds it.
    """
    try:
        # Without the port, which it would take modulo 65536: worker 2 after port 65535 would get
        # port 0, which is any free port.
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
