"""A million rows at once, and hundreds of thousands of webhooks, in steady memory."""

import time
from pathlib import Path

import pytest

from tests.storm.sink import ERROR, Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, wait_until_ready
from tests.support.receivers import OK
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(900)]

MB = 2**20


def memory(daemon: Daemon) -> int:
    """Return the memory of the largest worker in bytes; memory shared with its siblings is divided
    among them.
    """
    return max(_pss(pid) for pid in daemon.workers())


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def test_a_million_rows_in_one_transaction(storm: Storm) -> None:
    with Sink() as sink, Daemon(storm.database.dsn) as daemon:
        storm.register(sink, count=200)
        wait_until_ready(storm.database)
        storm.insert(1_000_000, webhooks=200)
        storm.inject("million rows in one transaction")
        with storm.recovering():  # until the first of them arrives
            eventually(lambda: len(sink.arrivals) > 0)
        eventually(lambda: len(sink.arrivals) > 100_000, 120.0)
        early = memory(daemon)
        eventually(lambda: len(sink.arrivals) > 950_000, 600.0)
        assert memory(daemon) - early < 16 * MB
        storm.settle()
        assert daemon.stop() == 0
        storm.account(sink)


def test_ten_thousand_of_two_hundred_thousand_webhooks_fail(storm: Storm) -> None:
    first, failing, webhooks = 2000, 10_000, 200_000
    sick_until = time.monotonic() + 3600

    def answer(webhook_id: int, nth: int) -> bytes:
        return ERROR if webhook_id < first + failing and time.monotonic() < sick_until else OK

    options = ("--circuit-open", "3", "--log-level", "warning")
    with Sink(answer) as sink, Daemon(storm.database.dsn, *options) as daemon:
        storm.register(sink, count=webhooks, first=first)
        wait_until_ready(storm.database)
        early = memory(daemon)
        storm.insert(webhooks, webhooks=webhooks, first=first)
        storm.insert(6 * failing, webhooks=failing, first=first, max_retries=50)
        storm.inject("webhook failing", failing)
        open_circuits = (
            "SELECT count(*)::int FROM pggit.webhook_health_metrics WHERE circuit_state <> 'closed'"
        )
        eventually(
            lambda: storm.database.execute(open_circuits)[0][0] >= failing * 9 // 10,
            400.0,
            every_s=2,
        )
        sick_until = time.monotonic()
        with storm.recovering():  # until all is delivered
            storm.settle(timeout_s=300.0)
        assert memory(daemon) - early < 64 * MB
        assert daemon.stop() == 0
        storm.account(sink, may_fail=range(first, first + failing))
