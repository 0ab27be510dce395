"""The parent process: keeps N workers running and turns signals into starts, drains and
replacements.

One thread, one selector: it waits for signals (a pipe), heartbeats and the next timer, and does not
tick while idle. It holds no database connection and no lock, so it can fork at any time. The goal
is kept as a few values (how many slots are wanted, which generation of the configuration is
current, whether everything stops). Each turn moves the workers one step towards it.

    TERM, INT   drain and stop; a second one kills
    QUIT        stop without draining
    HUP         reload: workers are replaced one by one
    TTIN, TTOU  one worker more, one fewer
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
from webhookd.supervisor.signals import SignalPipe
from webhookd.supervisor.systemd import Notifier

if TYPE_CHECKING:
    from webhookd.config.options import Config

from webhookd import logs

log = logs.Logger("webhookd.supervisor")

# A database that is away must not make the service manager's start time out.
_READY_AT_LATEST_S = 10.0
_QUICK_STOP_S = 2.0
# Workers of a supervisor that was killed close their ports as soon as they notice its death.
_PORT_PATIENCE_S = 2.0
# A timer that is noticed later than this means that this process did not run (the host was
# suspended or frozen). Its workers may not have run either: their silence is no sign of a hang.
_OVERSLEPT_S = 1.0


@dataclass(slots=True)
class _Stop:
    """The shutdown under way. *lenient*: a worker that does not drain is no failure."""

    code: ExitCode
    lenient: bool = False


class Supervisor:
    """Runs *run_worker* in `config.workers` forked processes until told to stop.

    *run_worker* gets the configuration and its lifeline in the new process and returns the exit
    code (see `lifeline.ExitCode`). *reload* is called on SIGHUP. It returns the configuration of
    the workers that replace the present ones, or raises `UnusableError`: then nothing changes.
    """

    def __init__(
        self,
        config: "Config",
        run_worker: Callable[["Config", Lifeline], int],
        reload: Callable[[], "Config"] | None = None,
    ) -> None:
        self._reload = reload
        self._signals = SignalPipe()
        self._selector = selectors.DefaultSelector()
        self._notifier = Notifier(os.environ)
        self._fleet = Fleet(
            config, run_worker, selector=self._selector, detach=self._detach_in_child
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

        Call it once, in the main thread. If workers cannot run, print their reason to stderr. Raise
        `UnusableError` if a metrics port is taken; no worker has been started then.
        """
        # The workers inherit this. It prints the stacks on SIGABRT: a hung worker gets that signal
        # from here, a hung supervisor from systemd.
        faulthandler.enable()
        try:
            with self._signals:
                self._selector.register(self._signals, selectors.EVENT_READ)
                now = time.monotonic()
                for number in range(1, self._wanted + 1):
                    self._fleet.add_slot(number, now=now, patience_s=_PORT_PATIENCE_S)
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
            for slot, _ in self._fleet.children():
                slot.restart = slot.restart.forget_silence(now)
        for key, _ in events:
            if isinstance(key.data, Slot):
                self._fleet.on_heartbeat(key.data, now)
        for signum in self._signals.read():
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
                self._on_worker_exit(death)
            return
        log.info("signal received", signal=signum.name)
        if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._shut_down(signum, now)
        elif self._stop is not None:
            return  # a shutdown is not interrupted
        elif signum is signal.SIGHUP:
            self._begin_reload(now)
        elif signum is signal.SIGTTIN:
            self._resize(self._wanted + 1, now)
        elif signum is signal.SIGTTOU:
            self._resize(max(1, self._wanted - 1), now)

    def _shut_down(self, signum: signal.Signals, now: float) -> None:
        """Stop everything: drain, or quit on SIGQUIT. A second TERM or INT kills at once."""
        again = self._stop is not None
        if self._stop is None:
            self._stop = _Stop(ExitCode.DRAINED)
            log.info("stopping")
            self._notifier.stopping()
        if signum is signal.SIGQUIT:
            self._stop.lenient = True
        for _, child in self._fleet.children():
            if signum is signal.SIGQUIT:
                child.request_stop(signal.SIGQUIT, kill_at=now + _QUICK_STOP_S)
            elif again:
                child.kill_at = now
            else:
                self._fleet.drain(child, now)

    def _on_worker_exit(self, death: Death) -> None:
        if self._stop is not None and not self._stop.lenient and death.code != ExitCode.DRAINED:
            self._stop.code = max(self._stop.code, ExitCode.FAILED)
        if death.slot.number > self._wanted:
            self._fleet.remove_slot(death.slot.number)

    def _give_up(self, refusal: str, now: float) -> None:
        """React to a worker that can never run: go back to the last configuration that worked, or
        stop everything if there is none.
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
            log.warning("metrics ports change only with a restart")
        log.info("reload started")
        self._notifier.reloading()
        self._is_ready = False
        # During another reload *before* is not proven yet: keep the older one, which worked.
        self._fallback = self._fallback or before
        self._replace_all(config, now)

    def _replace_all(self, config: "Config", now: float) -> None:
        before = self._fleet.config
        self._fleet.set_config(config, now=now)
        # Compare the configurations, not the present number: without a change in the file, the
        # number that SIGTTIN and SIGTTOU have set stays.
        if config.workers != before.workers:
            self._resize(config.workers, now)

    def _advance_roll(self, now: float) -> None:
        """Drain one worker that is stale or asks to be recycled, if every other one works.

        So N-1 workers always work, and each replacement takes over the port.
        """
        wanted = [slot for number, slot in self._fleet.slots.items() if number <= self._wanted]
        stale = [
            slot
            for slot in wanted
            if (child := slot.child) is not None
            and (child.recycle_requested or child.generation != self._fleet.generation)
            and not child.stop_requested
        ]
        # First a worker that does not work anyway: False sorts before True.
        following = min(stale, key=lambda slot: slot.is_working, default=None)
        if following is None or following.child is None:
            return
        if all(slot.is_working for slot in wanted if slot is not following):
            self._fleet.drain(following.child, now)

    def _resize(self, wanted: int, now: float) -> None:
        """Move towards *wanted* slots: bind and fill new ones, or drain those with the highest
        numbers.
        """
        for number in range(self._wanted + 1, wanted + 1):
            # A slot whose worker is still draining stays as it is; the next worker fills it.
            if number not in self._fleet.slots:
                try:
                    self._fleet.add_slot(number, now=now)
                except UnusableError as error:
                    log.error("worker not added", reason=str(error))
                    return
            self._wanted = number
        for number in range(self._wanted, wanted, -1):
            child = self._fleet.slots[number].child
            if child is None:
                self._fleet.remove_slot(number)
            elif not child.stop_requested:
                self._fleet.drain(child, now)
            self._wanted = number - 1
        log.info("workers wanted", workers=self._wanted)

    def _report(self, now: float) -> None:
        """Tell the service manager how many workers run, and once all do that we are ready."""
        self._notifier.keep_alive(now)
        if self._stop is not None:
            self._notifier.status(
                f"stopping, {sum(1 for _ in self._fleet.children())} workers left"
            )
            return
        slots = [slot for number, slot in self._fleet.slots.items() if number <= self._wanted]
        running = sum(slot.is_working for slot in slots)
        self._notifier.status(f"{running} of {self._wanted} workers running")
        current = all(
            slot.child and slot.child.generation == self._fleet.generation for slot in slots
        )
        is_late = self._ready_at_latest is not None and self._ready_at_latest <= now
        if not self._is_ready and (is_late or (current and running == self._wanted)):
            self._is_ready = True
            self._ready_at_latest = None
            self._fallback = None
            log.info("ready", running=running, workers=self._wanted)
            self._notifier.ready()

    def _detach_in_child(self) -> None:
        self._signals.detach_in_child()
        self._selector.close()
