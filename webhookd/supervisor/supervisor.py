"""The parent process: keeps N workers running and turns signals into starts, drains and
replacements.

One thread, one selector: it waits for signals (a wakeup pipe), heartbeats and the next timer, and
does not tick while idle. It holds no database connection and no lock, so a fork is safe at any
time. What is to be is kept as a few values (how many places are wanted, which generation of the
configuration is current, whether everything stops); each turn moves the workers one step towards
it.

    TERM, INT   drain and stop; a second one kills        HUP         reload, workers replaced one by one
    QUIT        stop without draining                      TTIN, TTOU  one worker more, one fewer
"""

import faulthandler
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from webhookd.errors import UnusableError
from webhookd.lifeline import ExitCode, Lifeline
from webhookd.supervisor.fleet import Death, Fleet, Slot
from webhookd.supervisor.signals import SignalBox
from webhookd.supervisor.systemd import Notifier

if TYPE_CHECKING:
    from webhookd.config.load import Config

from webhookd import logs

log = logs.Logger("webhookd.supervisor")

# A database that is away must not make the service manager give up on the start.
_READY_AT_LATEST_S = 10.0
_QUICK_STOP_S = 2.0
# The workers of a supervisor that was killed let go of their ports as soon as they notice.
_PORT_PATIENCE_S = 2.0
# Later than this behind the next timer means that this process did not run; its workers may not
# have run either.
_OVERSLEPT_S = 1.0


@dataclass(slots=True)
class _Stop:
    """The shutdown under way. *lenient*: workers that do not drain are what was asked for."""

    code: ExitCode
    lenient: bool = False


class Supervisor:
    """Runs *run_worker* in `config.workers` forked processes until told to stop.

    *run_worker* gets the configuration and its seat in the new process and returns the exit code
    (see `seat.ExitCode`). *reload* is called on SIGHUP and returns the configuration to replace the
    workers with, or raises `UnusableError` to keep everything as it is.
    """

    def __init__(
        self,
        config: "Config",
        run_worker: Callable[["Config", Lifeline], int],
        reload: Callable[[], "Config"] | None = None,
    ) -> None:
        self._reload = reload
        self._signals = SignalBox()
        self._selector = selectors.DefaultSelector()
        self._notifier = Notifier(os.environ)
        self._fleet = Fleet(
            config, run_worker, selector=self._selector, detach=self._leave_in_child
        )
        self._wanted = config.workers
        self._stop: _Stop | None = None
        self._refusal: str | None = None
        self._fallback: Config | None = None  # the configuration before the reload under way
        self._is_ready = False  # as the service manager knows it
        self._ready_at_latest: float | None = None

    def run(self) -> int:
        """Run until stopped; blocks. Return 0 if all drained, 1 if workers were killed or failed, 2
        if none can run.

        To be called once, in the main thread. A worker's line on why it cannot run is printed to
        stderr. Raise `UnusableError` if a metrics port cannot be had; nothing has been started
        then.
        """
        # Inherited by the workers. Covers SIGABRT: a hung worker gets it from here, a hung
        # supervisor from systemd.
        faulthandler.enable()
        try:
            with self._signals:
                self._selector.register(self._signals, selectors.EVENT_READ)
                now = time.monotonic()
                for number in range(1, self._wanted + 1):
                    self._fleet.add_place(number, now=now, patience_s=_PORT_PATIENCE_S)
                self._ready_at_latest = now + _READY_AT_LATEST_S
                self._fleet.start_due(now)
                while self._stop is None or any(self._fleet.children()):
                    self._turn()
        finally:
            self._fleet.close()
            self._selector.close()
        log.info("stopped", exit_code=int(self._stop.code))
        if self._refusal is not None:
            print(f"webhookd: {self._refusal}", file=sys.stderr, flush=True)
        return int(self._stop.code)

    def _turn(self) -> None:
        """Wait for the next event or timer and act on it, once."""
        wake_at = self._next_timer()
        timeout_s = None if wake_at is None else max(0.0, wake_at - time.monotonic())
        events = self._selector.select(timeout_s)
        now = time.monotonic()
        if wake_at is not None and now - wake_at > _OVERSLEPT_S:
            for place, _ in self._fleet.children():
                place.restart = place.restart.forget_silence(now)
        for key, _ in events:
            if isinstance(key.data, Slot):
                self._fleet.hear(key.data, now)
        for signum in self._signals.take():
            self._act_on(signum, now)
        if self._fleet.refusal is not None:
            self._give_up(self._fleet.refusal, now)
        self._fleet.kill_overdue(now)
        if self._stop is None:
            self._fleet.start_due(now)
            self._advance_roll(now)
        self._report(now)

    def _next_timer(self) -> float | None:
        timers = list(self._fleet.timers(with_starts=self._stop is None))
        for timer in (self._notifier.keep_alive_at, None if self._stop else self._ready_at_latest):
            if timer is not None:
                timers.append(timer)
        return min(timers, default=None)

    def _act_on(self, signum: signal.Signals, now: float) -> None:
        if signum is signal.SIGCHLD:
            for death in self._fleet.reap(now):
                self._mourn(death)
            return
        log.info("signal received", signal=signum.name)
        if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._shut_down(signum, now)
        elif self._stop is not None:
            return  # nothing else matters any more
        elif signum is signal.SIGHUP:
            self._begin_reload(now)
        elif signum is signal.SIGTTIN:
            self._resize(self._wanted + 1, now)
        elif signum is signal.SIGTTOU:
            self._resize(max(1, self._wanted - 1), now)

    def _shut_down(self, signum: signal.Signals, now: float) -> None:
        """Stop everything: drain, or quit on SIGQUIT. Kill when asked again: who asks twice does
        not want to wait.
        """
        again = self._stop is not None
        if self._stop is None:
            self._stop = _Stop(ExitCode.DRAINED)
            log.info("stopping")
            self._notifier.stopping()
        if signum is signal.SIGQUIT:
            self._stop.lenient = True
        for _, child in self._fleet.children():
            if signum is signal.SIGQUIT:
                child.order(signal.SIGQUIT, kill_at=now + _QUICK_STOP_S)
            elif again:
                child.kill_at = now
            else:
                self._fleet.drain(child, now)

    def _mourn(self, death: Death) -> None:
        if self._stop is not None and not self._stop.lenient and death.code != ExitCode.DRAINED:
            self._stop.code = max(self._stop.code, ExitCode.FAILED)
        if death.place.number > self._wanted:
            self._fleet.remove_place(death.place.number)

    def _give_up(self, refusal: str, now: float) -> None:
        """A worker can never run. Go back to the configuration that worked, or stop everything if
        there is none.
        """
        self._fleet.refusal = None
        if self._fallback is not None and self._stop is None:
            log.error("reload undone: a worker cannot run with it", reason=refusal)
            fallback, self._fallback = self._fallback, None
            self._replace_all(fallback, now)
            return
        self._refusal = self._refusal or refusal
        if self._stop is None:
            self._shut_down(signal.SIGTERM, now)
        if self._stop is not None:
            self._stop.code = ExitCode.UNUSABLE

    def _begin_reload(self, now: float) -> None:
        before = self._fleet.config
        try:
            config = before if self._reload is None else self._reload()
        except UnusableError as error:
            log.error("reload refused, nothing changed", reason=str(error))
            return
        if (config.metrics_host, config.metrics_port) != (before.metrics_host, before.metrics_port):
            log.warning("metrics ports stay as they are until a restart")
        log.info("reload begun")
        self._notifier.reloading()
        self._is_ready = False
        # One that another reload has overtaken has not proved itself.
        self._fallback = self._fallback or before
        self._replace_all(config, now)

    def _replace_all(self, config: "Config", now: float) -> None:
        before = self._fleet.config
        self._fleet.adopt(config, now=now)
        # Only a change counts: what SIGTTIN and SIGTTOU have made of the number stays otherwise.
        if config.workers != before.workers:
            self._resize(config.workers, now)

    def _advance_roll(self, now: float) -> None:
        """Drain one stale or worn worker if every other one is in service: N-1 always work, and the
        ports stay.
        """
        wanted = [place for number, place in self._fleet.places.items() if number <= self._wanted]
        stale = [
            place
            for place in wanted
            if (child := place.child) is not None
            and (child.worn or child.generation != self._fleet.generation)
            and not child.ordered
        ]
        # One that does not work anyway is replaced before those that do.
        following = min(stale, key=lambda place: place.is_settled, default=None)
        if following is None or following.child is None:
            return
        if all(place.is_settled for place in wanted if place is not following):
            self._fleet.drain(following.child, now)

    def _resize(self, wanted: int, now: float) -> None:
        """Move towards *wanted* places: bind and fill new ones, drain those with the highest
        numbers.
        """
        for number in range(self._wanted + 1, wanted + 1):
            # A place whose worker is still draining is simply kept.
            if number not in self._fleet.places:
                try:
                    self._fleet.add_place(number, now=now)
                except UnusableError as error:
                    log.error("no worker added", reason=str(error))
                    return
            self._wanted = number
        for number in range(self._wanted, wanted, -1):
            child = self._fleet.places[number].child
            if child is None:
                self._fleet.remove_place(number)
            elif not child.ordered:
                self._fleet.drain(child, now)
            self._wanted = number - 1
        log.info("workers wanted", workers=self._wanted)

    def _report(self, now: float) -> None:
        """Tell the service manager where things stand."""
        self._notifier.keep_alive(now)
        if self._stop is not None:
            self._notifier.status(
                f"stopping, {sum(1 for _ in self._fleet.children())} workers left"
            )
            return
        places = [place for number, place in self._fleet.places.items() if number <= self._wanted]
        running = sum(place.is_settled for place in places)
        self._notifier.status(f"{running} of {self._wanted} workers running")
        current = all(
            place.child and place.child.generation == self._fleet.generation for place in places
        )
        is_late = self._ready_at_latest is not None and self._ready_at_latest <= now
        if not self._is_ready and (is_late or (current and running == self._wanted)):
            self._is_ready = True
            self._ready_at_latest = None
            self._fallback = None
            log.info("ready", running=running, workers=self._wanted)
            self._notifier.ready()

    def _leave_in_child(self) -> None:
        self._signals.leave_in_child()
        self._selector.close()
