"""A webhook whose receiver is fast, and bad neighbours: receivers that take their time, names for
which the name server never answers, rows for webhooks that do not exist.
"""

import threading
import time
from collections.abc import Mapping

from tests.storm.sink import Sink, delivery_of
from tests.support.name_server import SILENT
from tests.support.postgres import Database
from tests.support.receivers import OK

UNREGISTERED = 500_000  # the first of the ids that do not exist
ROWS_A_STRANGER = 100  # rows for each of them


class Fast(Sink):
    """The victim's receiver: answers at once, and notes when each delivery arrived first
    (monotonic, by delivery id).
    """

    def __init__(self) -> None:
        self.arrived_at: dict[int, float] = {}
        super().__init__()

    def record(self, request: bytes) -> None:
        self.arrived_at.setdefault(delivery_of(request), time.monotonic())
        super().record(request)


class Slow(Sink):
    """Answers 200 after *pause_s*, and at once after `hurry`."""

    def __init__(self, pause_s: float) -> None:
        self._hurried = threading.Event()
        self._pause_s = pause_s
        super().__init__(self._wait)

    def hurry(self) -> None:
        """Answer what waits, and all that comes later, at once."""
        self._hurried.set()

    def stop(self) -> None:
        self.hurry()
        super().stop()

    def _wait(self, webhook_id: int, nth: int) -> bytes:
        self._hurried.wait(self._pause_s)
        return OK


def register(
    database: Database, sink: Sink, *, first: int, count: int = 1, host: str = "'127.0.0.1'"
) -> None:
    """Register *count* webhooks from id *first* on at *sink*, with the default limits. *host* is
    SQL over their `id`.
    """
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url, retry_base_seconds, retry_max_seconds)"
        f" SELECT id, 'http://' || {host} || ':{sink.port}/' || id, 0.2, 5"
        f" FROM generate_series({first}, {first + count - 1}) id"
    )


def silent_host() -> str:
    """Return SQL for hosts without an answer: half have a domain of their own, the others share
    one.
    """
    return (
        f"CASE WHEN id % 2 = 0 THEN '{SILENT}.neighbour-' || id || '.test'"
        f" ELSE '{SILENT}-' || id || '.shared.test' END"
    )


def insert_unregistered(database: Database, rows: int) -> None:
    """Insert *rows* deliveries in one statement, for ids that do not exist."""
    database.execute(
        "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, max_retries)"
        f" SELECT {UNREGISTERED} + i % {rows // ROWS_A_STRANGER}, jsonb_build_object('n', i), 10"
        f" FROM generate_series(1, {rows}) i"
    )


def trickle(
    database: Database, webhook_id: int, *, count: int, a_second: float
) -> dict[int, float]:
    """Insert *count* deliveries one by one; return the monotonic instants of the commits by
    delivery id. Blocks for as long as that takes.
    """
    committed = {}
    began = time.monotonic()
    with database.connect() as connection:
        for index in range(count):
            ((delivery_id,),) = connection.execute(
                "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body,"
                " max_retries) VALUES (%s, '{}', 10) RETURNING delivery_id",
                [webhook_id],
            ).fetchall()
            committed[delivery_id] = time.monotonic()
            time.sleep(max(0.0, began + (index + 1) / a_second - time.monotonic()))
    return committed


def latencies(fast: Fast, committed: Mapping[int, float]) -> list[float]:
    """Return the seconds from commit to arrival, sorted; until now for what has not arrived."""
    now = time.monotonic()
    return sorted(fast.arrived_at.get(number, now) - at for number, at in committed.items())


def trouble_of(database: Database, webhook_id: int) -> tuple[bool, int]:
    """Return whether the webhook's circuit ever opened, and how many of its attempts failed."""
    ((opened, failed),) = database.execute(
        "SELECT circuit_epoch > 0, failed_deliveries::int FROM pggit.webhook_health_metrics"
        " WHERE webhook_id = %s",
        [webhook_id],
    )
    return opened, failed
