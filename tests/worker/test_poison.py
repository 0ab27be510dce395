"""The real program beside bodies that are huge as text, or that cannot be read."""

import re
from pathlib import Path

import pytest

from tests.support import poison
from tests.support.daemon import Daemon, answer_ok, insert, register, wait_until_ready
from tests.support.postgres import Database
from tests.support.receivers import Receiver
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(240)

VICTIM, POISONED = 2000, 3000
MAX_BYTES = 400 << 20


class ForgetfulReceiver(Receiver):
    """Answers well, and keeps the first bytes of each request only."""

    def __init__(self) -> None:
        super().__init__(answer_ok)

    def record(self, request: bytes) -> None:
        super().record(request[:500])


def memory(pid: int, what: str) -> int:
    """Return bytes: *what* is VmRSS, or VmHWM for the peak."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", text)
    assert found
    return int(found[1]) << 10


def waiting(database: Database, webhook_id: int) -> int:
    [(count,)] = database.execute(
        "SELECT count(*)::int FROM pggit.alert_delivery_queue"
        " WHERE webhook_id = %s AND delivery_status NOT IN ('delivered', 'failed')",
        [webhook_id],
    )
    return int(count)


def failures(database: Database) -> dict[int, str]:
    """Return the reasons of failed deliveries by id."""
    return dict(
        database.execute(
            "SELECT q.delivery_id, l.event_details ->> 'reason'"
            "  FROM pggit.alert_delivery_queue q JOIN pggit.alert_delivery_log l"
            " USING (delivery_id) WHERE q.delivery_status = 'failed' AND event_type = 'failed'"
        )
    )


def test_bodies_that_cannot_be_sent_fail_and_cost_their_neighbours_nothing(
    database: Database,
) -> None:
    with ForgetfulReceiver() as receiver, Daemon(database.dsn) as daemon:
        register(database, receiver, count=1, first=VICTIM)
        register(database, receiver, count=2, first=POISONED)
        wait_until_ready(database)
        workers = set(daemon.workers())
        poisoned = [
            *poison.insert_unmeasured(database, POISONED, poison.CONTROL_CHARACTERS),
            *poison.insert_unmeasured(database, POISONED, poison.LONG_NUMBERS),
            *poison.insert_unmeasured(database, POISONED, poison.TOO_LONG_NUMBERS),
            poison.insert_corrupted(database, POISONED + 1),
        ]
        neighbours = poison.insert_unmeasured(database, POISONED, "'{}'", count=20)
        insert(database, 200, webhooks=1, first=VICTIM)
        eventually(lambda: waiting(database, VICTIM) == 0, 60.0, what="the victim's arrive")
        eventually(lambda: waiting(database, POISONED) == 0, 120.0, what="the poison has failed")
        eventually(lambda: waiting(database, POISONED + 1) == 0, 60.0, what="the corrupted too")
        reasons = failures(database)
        assert set(reasons) == set(poisoned)
        too_large = re.compile(r"the body is \d+ bytes as text, more than \d+|cannot be read")
        assert all(too_large.search(reason) for reason in reasons.values())
        assert receiver.wait_for_requests(200 + len(neighbours))
        assert set(daemon.workers()) == workers
        assert max(memory(pid, "VmHWM") for pid in workers) < MAX_BYTES
        log = daemon.log()
        assert log.count("delivery failed: its body cannot be sent") == len(poisoned)
        assert "unreachable" not in log
        assert daemon.stop() == 0


def test_a_row_that_became_unreadable_costs_no_other_lane_anything(database: Database) -> None:
    """It was measured, and its disk corrupted it later: the claim's statement fails."""
    with ForgetfulReceiver() as receiver:
        register(database, receiver, count=1, first=VICTIM)
        register(database, receiver, count=1, first=POISONED)
        corrupted = poison.insert_corrupted(database, POISONED)
        database.execute("UPDATE pggit.alert_delivery_queue SET body_bytes = 1000")
        insert(database, 20, webhooks=1, first=POISONED)
        insert(database, 200, webhooks=1, first=VICTIM)
        with Daemon(database.dsn) as daemon:
            eventually(lambda: waiting(database, VICTIM) == 0, 60.0, what="the victim's arrive")
            eventually(lambda: waiting(database, POISONED) == 0, 60.0, what="the others, too")
            [(delivery_id, reason)] = failures(database).items()
            assert delivery_id == corrupted
            assert reason.startswith("the body cannot be read: ")
            log = daemon.log()
            assert "claim failed" in log and "unreachable" not in log
            assert daemon.stop() == 0


@pytest.mark.storm  # a minute: the server writes 1.5 GB of text
def test_small_rows_with_large_text_keep_a_worker_small(database: Database) -> None:
    """120 rows of 1.6 KB that are 13 MB as text: 1.5 GB in all."""
    rows = 120
    with ForgetfulReceiver() as receiver:
        register(database, receiver, count=1, first=POISONED)
        database.execute("UPDATE pggit.webhooks SET timeout_seconds = 60")
        poison.insert_unmeasured(database, POISONED, poison.THIRTEEN_MB, count=rows)
        with Daemon(database.dsn, workers=1) as daemon:
            eventually(lambda: waiting(database, POISONED) == 0, 200.0, what="all delivered")
            assert failures(database) == {} and receiver.wait_for_requests(rows)
            [worker] = daemon.workers()
            peak = memory(worker, "VmHWM")
            assert peak < MAX_BYTES
            eventually(
                lambda: memory(worker, "VmRSS") < peak / 2, 60.0, what="the memory is given back"
            )
            print(peak >> 20, memory(worker, "VmRSS") >> 20)
            assert daemon.stop() == 0
