"""Receivers whose names do not resolve, or slowly, beside healthy ones that must not notice."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.storm.broken import (
    HASTY,
    OPTIONS,
    PATIENT,
    attempts_that_failed,
    break_webhooks,
    unfinished_of,
)
from tests.storm.sink import Sink
from tests.storm.storm import Storm
from tests.support.daemon import Daemon, wait_until_ready
from tests.support.waiting import eventually

pytestmark = [pytest.mark.storm, pytest.mark.timeout(300)]
STUB_DNS = str(Path(__file__).with_name("stub_dns_webhookd.py"))


# --- DNS


def register_healthy_names(storm: Storm, good: Sink) -> None:
    """Register 40 webhooks at *good*: 20 with names that resolve at once, 5 with names that resolve
    every other time.
    """
    storm.register(good, count=40)
    # Not in the domain of those that fail: a domain whose names hang holds few lookups.
    host = f"|| webhook_id || '.good.test:{good.port}/' || webhook_id"
    storm.database.execute(
        f"UPDATE pggit.webhooks SET url = 'http://good-' {host}"
        " WHERE webhook_id BETWEEN 2000 AND 2019"
    )
    storm.database.execute(
        f"UPDATE pggit.webhooks SET url = 'http://flapping-' {host}, circuit_open_seconds = 0.5"
        " WHERE webhook_id BETWEEN 2020 AND 2024"
    )
    storm.inject("name that flaps", 5)


def test_dns_that_fails_flaps_or_takes_ten_seconds(storm: Storm, tmp_path: Path) -> None:
    healed = tmp_path / "healed"
    with ExitStack() as stack:
        good, healing = stack.enter_context(Sink()), stack.enter_context(Sink())
        daemon = stack.enter_context(
            Daemon(storm.database.dsn, *OPTIONS, program=[STUB_DNS, str(healed)])
        )
        wait_until_ready(storm.database)
        names = [
            f"{kind}-{number}.{kind}.test"
            for kind in ("slow", "unknown", "failing", "silly")
            for number in range(5)
        ]
        urls = [healing.url(host=name) for name in names]
        break_webhooks(storm, urls, 2000)
        storm.inject("name that does not resolve", len(names))
        failing = [*PATIENT[: len(urls)], *HASTY[: len(urls)]]
        eventually(
            lambda: all(attempts_that_failed(storm).get(webhook_id) for webhook_id in failing), 60.0
        )

        register_healthy_names(storm, good)
        storm.insert(2000, webhooks=40, max_retries=20)
        with storm.recovering():
            eventually(
                lambda: unfinished_of(storm, 2000, 40) == 0,
                60.0,
                what="the healthy webhooks' deliveries",
            )
        assert unfinished_of(storm, PATIENT[5], len(urls) - 5) == 750
        # A lookup keeps a sender until its webhook's timeout at most, not until it has ended. While
        # it hangs no other delivery waits for it. (Its late answer counts: some are delivered.)
        slow = [*PATIENT[:5], *HASTY[:5]]
        reasons = (
            "SELECT DISTINCT event_details->>'reason' FROM pggit.alert_delivery_log"
            " WHERE webhook_id = ANY (%s) AND event_type <> 'delivered'"
        )
        found = [reason for (reason,) in storm.database.execute(reasons, [slow])]
        assert found
        told = ("timed out while resolving slow-", "DNS: no answer since ")
        assert all(reason.startswith(told) for reason in found), found

        # A drain does not wait for names: exit 0 within its deadline, with nothing left leased.
        assert daemon.stop() == 0
        leased = (
            "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL"
        )
        assert storm.database.execute(leased) == [(0,)]
        storm.inject("drain amid lookups")
        healed.touch()
        with (
            Daemon(storm.database.dsn, *OPTIONS, program=[STUB_DNS, str(healed)]) as successor,
            storm.recovering(),
        ):
            storm.settle(timeout_s=120.0)
            assert successor.stop() == 0
        storm.account(good, healing, may_fail=HASTY)
