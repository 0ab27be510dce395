"""The first moments of a worker: it waits for the database, checks the schema, and already answers
health checks.
"""

import random
import threading
from concurrent import futures
from functools import partial

import psycopg

from webhookd import logs
from webhookd.config.options import Config
from webhookd.core.backoff import GrowingPause
from webhookd.errors import UnusableError, first_line
from webhookd.lifeline import Lifeline
from webhookd.metrics.discovery import TargetGroups
from webhookd.postgres import session, statements
from webhookd.schema import migrate
from webhookd.transport.background import in_background
from webhookd.worker.chores.targets import TargetsReader
from webhookd.worker.dispatcher import Dispatcher

log = logs.Logger("webhookd.worker")

RETRY_PAUSE = GrowingPause(first_s=0.2, max_s=2.0)
BEAT_EVERY_S = 0.1  # while a connection is opened


class Health:
    """What `/healthz`, `/readyz` and `/targets` answer, from the start of the process on. *stop* is
    set where the worker was told to leave before it was ready.

    The endpoint's thread asks, the main thread calls `attach`: no method blocks.
    """

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._dispatcher: Dispatcher | None = None
        self._targets: TargetsReader | None = None

    def attach(self, dispatcher: Dispatcher, targets: TargetsReader) -> None:
        """From now on ask the parts of a complete worker."""
        self._targets = targets
        self._dispatcher = dispatcher

    def alive(self) -> tuple[bool, str]:
        """Return that the process lives, since it answers. The supervisor watches its loop."""
        return (True, "alive")

    def ready(self) -> tuple[bool, str]:
        """Return whether this worker can deliver, and the reason in words."""
        if self._stop.is_set():
            return (False, "draining")
        if self._dispatcher is None:
            return (False, "waiting for the database")
        if self._dispatcher.ready():
            return (True, "ready")
        return (False, "the database does not answer")

    def stopping(self) -> bool:
        """Return whether this worker was told to leave, during the boot or later."""
        dispatcher = self._dispatcher
        return self._stop.is_set() or (dispatcher is not None and dispatcher.stopped_at is not None)

    def targets(self) -> TargetGroups | None:
        """Return the fleet's metrics endpoints, None before they were read."""
        return self._targets.targets if self._targets else None


def wait_for_database(config: Config, lifeline: Lifeline, stop: threading.Event) -> str | None:
    """Wait for the database and check its schema. Return the installation's name, which is part of
    every webhook-id; None if told to *stop* first.

    Blocks while the database is away, and beats meanwhile. Raises `UnusableError` for a schema that
    does not fit, or a database that refuses this role.
    """
    assert config.dsn is not None
    pause = RETRY_PAUSE
    while not stop.is_set():
        lifeline.beat()
        try:
            asked = in_background(
                partial(_check_installation, config.dsn, lifeline.name, config.max_body),
                name="webhookd-boot",
            )
            # Connecting may take longer than the heartbeat timeout, hence in another thread.
            while not asked.done() and not stop.is_set():
                lifeline.beat()
                futures.wait([asked], timeout=BEAT_EVERY_S)
            return asked.result() if asked.done() else None
        except psycopg.ProgrammingError as error:
            raise UnusableError(f"the database cannot be used: {first_line(error)}") from error
        except psycopg.OperationalError as error:
            if pause == RETRY_PAUSE:
                log.warning("database unreachable", error=first_line(error))
            stop.wait(pause.jittered(random.random()))
            pause = pause.longer()
    return None


def _check_installation(dsn: str, worker_name: str, max_body: int) -> str:
    with session.connect(dsn, application_name=f"webhookd/{worker_name}/boot") as connection:
        migrate.check(connection)
        _store_max_body(connection, max_body)
        row = connection.execute("SELECT installation_id FROM pggit.installation").fetchone()
        assert row is not None
        return f"wh_{row[0].hex[:16]}"


def _store_max_body(connection: session.Connection, max_body: int) -> None:
    try:
        connection.execute(statements.load("store_max_body"), {"max_body": max_body})
    except psycopg.errors.InsufficientPrivilege as error:
        # Deliveries do not depend on it; `webhookd doctor` prints the GRANT.
        log.warning("--max-body was not stored", error=first_line(error))
