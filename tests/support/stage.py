"""Workers' duty driven by hand, and a dispatcher on a stage: the wakeup protocol against a real
PostgreSQL, cue by cue.

The dispatcher runs without the chore that sweeps: a wakeup that is lost stays lost.
tests/property has a model of the protocol that tries all interleavings; here the worst of them are
played with PostgreSQL itself.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch
from uuid import uuid4

from tests.support.engine import allow_all
from tests.support.postgres import Database
from tests.support.receivers import Receiver, answering
from tests.support.waiting import eventually
from webhookd.core.lane import Budget
from webhookd.core.model import WebhookDefaults
from webhookd.core.schedule import Schedule
from webhookd.metrics.counters import Metrics
from webhookd.postgres import horizon, session
from webhookd.postgres.claim import BODY_BYTES, Claimer
from webhookd.postgres.claimed import Claim, NextLook
from webhookd.postgres.record import ResultWriter
from webhookd.transport.client import Transport
from webhookd.transport.egress import Egress
from webhookd.worker.attempt import AttemptRunner
from webhookd.worker.circuits import LocalCircuits
from webhookd.worker.dispatcher import FIRST, Dispatcher
from webhookd.worker.events import Events
from webhookd.worker.listener import WAKE_CHANNEL, Listener
from webhookd.worker.recorder import Recorder
from webhookd.worker.results import ResultQueue
from webhookd.worker.senders import SenderPool
from webhookd.worker.wakeup import WakeReason, WakeupPipe
from webhookd.worker.watch import NotifyDuty

FLAG_DOWN = 1
INSERT = "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body) VALUES (1, '{}')"
LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
DEFAULTS = WebhookDefaults(5.0, 50, 0.0, 20, 10, 5.0, 4.0, 28_800.0, 5, 60.0)


def flag(database: Database) -> int:
    return int(database.execute("SELECT last_value FROM pggit.wake_flag")[0][0])


class Member:
    """One incarnation's duty to be notified, driven by hand."""

    def __init__(self, database: Database) -> None:
        self.incarnation = uuid4()
        self.listener = Listener(database.dsn, application_name="test/listen")
        self.connection = session.connect(database.dsn, application_name="test/work")
        self.duty = NotifyDuty(
            self.listener,
            worker_id="test",
            incarnation=self.incarnation,
            metrics_address="127.0.0.1:1",
            options={},
        )
        self.duty.register(self.connection)
        with session.open_pool(database.dsn, application_name="test/probe", size=1) as pool:
            ended = threading.Event()
            self.listener.open(pool, ended.set)
            assert ended.wait(20) and self.listener.opened()

    def take(self) -> bool:
        return self.duty.take(self.connection)

    def hand_over(self) -> None:
        self.duty.hand_over(self.connection)

    def heard(self) -> list[str]:
        """Return the payloads that came until a probe of its own came."""
        word = f"probe {uuid4()}"
        self.connection.execute("SELECT pg_notify(%s, %s)", [WAKE_CHANNEL, word])
        payloads: list[str] = []

        def complete() -> bool:
            payloads.extend(self.listener.drain())
            return word in payloads

        eventually(complete)
        return [payload for payload in payloads if not payload.startswith("probe")]

    def close(self) -> None:
        self.listener.close()
        self.connection.close()


class Cues:
    """What the test does at certain moments in the dispatcher's life, each once; and how often it
    has looked.
    """

    def __init__(self) -> None:
        self.looks = 0
        self._acts: dict[str, Callable[[], object]] = {}

    def at(self, moment: str, act: Callable[[], object]) -> None:
        self._acts[moment] = act

    def reached(self, moment: str) -> None:
        act = self._acts.pop(moment, None)
        if act is not None:
            act()


class CuedClaimer(Claimer):
    cues: Cues

    def claim(
        self, connection: session.Connection, budget: Budget, *, body_bytes: int = BODY_BYTES
    ) -> Claim:
        self.cues.looks += 1
        self.cues.reached("before a look")
        return super().claim(connection, budget, body_bytes=body_bytes)

    def next_look(
        self, connection: session.Connection, *, new: bool = True, slow: bool = True
    ) -> NextLook:
        next_look = super().next_look(connection, new=new, slow=slow)
        self.cues.reached("after a look")
        return next_look


class CuedDuty(NotifyDuty):
    cues: Cues

    def take(self, connection: session.Connection) -> bool:
        self.cues.reached("before the flag is up")
        taken = super().take(connection)
        self.cues.reached("once the flag is up")
        return taken


class CuedSenders(SenderPool):
    room_now: int | None = None
    turns = 0  # of the dispatcher's loop

    def tick(self, now: float) -> bool:
        self.turns += 1
        return super().tick(now)

    def room(self) -> int:
        return super().room() if self.room_now is None else self.room_now


class Stage:
    """A dispatcher with everything around it, in a thread; one webhook (1), whose receiver answers
    well.
    """

    def __init__(
        self,
        database: Database,
        receiver: Receiver,
        schedule: Schedule,
        duty: type[CuedDuty],
    ) -> None:
        self.database = database
        self.receiver = receiver
        self.cues = Cues()
        self.wakeup = WakeupPipe()
        self.pool = session.open_pool(database.dsn, application_name="test/pool", size=2)
        self.transport = Transport(Egress(True, ["127.0.0.0/8"]))
        metrics, hints = Metrics("test", max_webhooks=10), LocalCircuits()
        results = ResultQueue()
        runner = AttemptRunner(self.transport, hints, installation="wh_test")
        self.senders = CuedSenders(runner, results, max_threads=4, wakeup=self.wakeup)
        recorder = ResultWriter(worker_id="test", defaults=DEFAULTS)
        self.recording = Recorder(
            self.pool, recorder, results, circuits=hints, metrics=metrics, wakeup=self.wakeup
        )
        incarnation = uuid4()
        listener = Listener(database.dsn, application_name="test/listen")
        self.duty = duty(
            listener,
            worker_id="test",
            incarnation=incarnation,
            metrics_address="127.0.0.1:1",
            options={},
        )
        claimer = CuedClaimer(
            worker_id="test", incarnation=incarnation, defaults=DEFAULTS, judge=allow_all
        )
        self.duty.cues = claimer.cues = self.cues
        self.dispatcher = Dispatcher(
            self.pool,
            claimer,
            Events(self.duty, self.wakeup, metrics),
            self.senders,
            self.recording,
            metrics=metrics,
            beat=lambda: None,
            schedule=schedule,
        )
        self._thread = threading.Thread(target=self.dispatcher.run, name="dispatcher")

    def begin(self) -> None:
        self.recording.start()
        self._thread.start()

    def start(self) -> None:
        """Start the dispatcher and wait until it sleeps, the flag up in its name."""
        self.begin()
        eventually(
            lambda: self.duty.wake_number and flag(self.database) == self.duty.wake_number,
            what="flag up",
        )
        self.settle()

    def settle(self) -> None:
        """Wait until the dispatcher has not looked at the queue for a while."""
        seen, since = self.cues.looks, time.monotonic()

        def quiet() -> bool:
            nonlocal seen, since
            if self.cues.looks != seen:
                seen, since = self.cues.looks, time.monotonic()
            return time.monotonic() - since > 0.35

        eventually(quiet, what="the dispatcher sleeps")

    def lose_room(self) -> None:
        """Take the dispatcher's room away and wait until it has given up the duty."""
        self.senders.room_now = 0
        self.wakeup.wake(WakeReason.LOST)  # only so that it notices
        eventually(lambda: flag(self.database) == FLAG_DOWN, what="the duty is dropped")

    def find_room(self) -> None:
        """Let it take one delivery at a time."""
        self.senders.room_now = 1
        self.wakeup.wake(WakeReason.ROOM)

    def arrived(self, count: int, *, within_s: float) -> bool:
        return self.receiver.wait_for_requests(count, timeout_s=within_s)

    def stop(self) -> None:
        self.dispatcher.stop()
        if self._thread.ident is not None:
            self._thread.join(20)
            self.recording.stop(timeout_s=5)
        self.duty.listener.close()
        self.pool.close()
        self.transport.close()


@contextmanager
def staged(
    database: Database,
    schedule: Schedule = FIRST,
    duty: type[CuedDuty] = CuedDuty,
) -> Iterator[Stage]:
    with Receiver(answering()) as receiver:
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url) VALUES (1, %s)", [receiver.url()]
        )
        stage = Stage(database, receiver, schedule, duty)
        # A look that a busy machine makes slow is followed by looks that no wakeup asked for: they
        # would find what a planted defect has lost.
        with patch.object(horizon, "SLOW_LOOK_S", math.inf):
            try:
                yield stage
            finally:
                stage.stop()
