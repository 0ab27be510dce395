"""Bulkheads, with the real program: slow receivers, silent names and unregistered ids beside a
webhook whose receiver is fast. tests/storm/test_neighbours.py measures the same at full size.
"""

from contextlib import ExitStack

from tests.support.daemon import Daemon, wait_until_ready
from tests.support.name_server import PROGRAM, name_server
from tests.support.neighbours import (
    Fast,
    Slow,
    insert_unregistered,
    register,
    silent_host,
    trickle,
    trouble_of,
)
from tests.support.postgres import Database
from tests.support.waiting import eventually

VICTIM, SLOW, SILENT = 1, 1000, 2000
PAUSE_S = 1.5
# A slow webhook's rows last for minutes with 32 slots: 32 / 1.5 s are 21 deliveries a second.
BACKLOG = 100


def unfinished(database: Database, first: int, count: int) -> int:
    """Return how many deliveries of *count* webhooks are still to be sent."""
    ((rows,),) = database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue"
        " WHERE webhook_id BETWEEN %s AND %s AND delivery_status NOT IN ('delivered', 'failed')",
        [first, first + count - 1],
    )
    found: int = rows
    return found


def test_a_fast_webhook_passes_slow_silent_and_unregistered_neighbours(database: Database) -> None:
    with ExitStack() as stack:
        fast, slow = stack.enter_context(Fast()), stack.enter_context(Slow(PAUSE_S))
        names = stack.enter_context(name_server())
        stack.enter_context(
            Daemon(database.dsn, "--threads", "16", workers=2, program=list(PROGRAM))
        )
        wait_until_ready(database, workers=2)
        register(database, fast, first=VICTIM, host="'victim.fast.test'")
        register(database, slow, first=SLOW, count=20)
        register(database, slow, first=SILENT, count=10, host=silent_host())
        for first, count in ((SLOW, 20), (SILENT, 10)):
            database.execute(
                "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
                f" SELECT {first} + i % {count}, '{{}}'"
                f" FROM generate_series(1, {count * BACKLOG}) i"
            )
        eventually(lambda: slow.arrivals.total() >= 20, what="slow exchanges")
        eventually(lambda: len(names.questions) > 0, what="lookups without an answer")
        insert_unregistered(database, 20_000)

        committed = trickle(database, VICTIM, count=60, a_second=20)
        eventually(
            lambda: len(fast.arrived_at) == len(committed),
            20.0,
            what="the fast webhook's deliveries, beside its neighbours",
        )
        assert unfinished(database, SLOW, 20) > 0, "the neighbours were slow all the time"
        assert unfinished(database, SILENT, 10) > 0
        eventually(lambda: unfinished(database, VICTIM, 1) == 0, what="all is recorded")
        assert trouble_of(database, VICTIM) == (False, 0)
        assert set(fast.arrivals.values()) == {1}
