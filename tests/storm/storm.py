"""One storm: inserts deliveries, notes the faults, and accounts for every delivery at the end.

    storm.register(sink); storm.insert(5000); ... faults ...; storm.settle(); storm.account(sink)

The account compares, for each delivery, what the receivers saw with the row and the attempt log. It
compares the sums with the counters. What it proves:

lost      none: every committed delivery was answered with 2xx, unless its webhook may fail it
repeated  requests that arrived, but whose attempt was not recorded; at most one for each lease that
          was lost and for each result that the fence refused (claims commit without waiting for the
          disk, so PostgreSQL forgets some in a crash)
agreed    one 'delivered' event for each delivered row and none for others; attempts numbered from 1
          without a gap or a repeat; no more retries than allowed; no lease left, nothing in flight;
          counters equal to the sums
"""

import random
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import psycopg

from tests.storm.sink import Sink
from tests.support.engine import STANDARD
from tests.support.postgres import Database
from tests.support.waiting import eventually

# For storms whose attempts fail on purpose.
QUICK_RETRIES = ("--circuit-open", "1", "--retry-base", "0.2", "--drain-timeout", "10")

UNFINISHED = """
SELECT count(*)::int FROM pggit.alert_delivery_queue
 WHERE delivery_status IN ('pending', 'retrying', 'sending')
"""

ACCOUNT = """
SELECT q.delivery_id, q.webhook_id, q.delivery_status, q.attempts, q.retry_count,
       coalesce(q.max_retries, w.max_retries, %(max_retries)s),
       q.leases_lost, q.lease_token IS NULL AND q.lease_until IS NULL AND q.leased_by IS NULL,
       coalesce(l.attempts, '{}'), coalesce(l.delivered, 0), coalesce(l.answered, 0)
  FROM pggit.alert_delivery_queue q
  LEFT JOIN pggit.webhooks w USING (webhook_id)
  LEFT JOIN (SELECT delivery_id,
                    array_agg((event_details->>'attempt')::int ORDER BY log_id)
                        FILTER (WHERE event_details ? 'attempt') AS attempts,
                    count(*) FILTER (WHERE event_type = 'delivered') AS delivered,
                    count(*) FILTER (WHERE http_status IS NOT NULL) AS answered
               FROM pggit.alert_delivery_log GROUP BY delivery_id) l USING (delivery_id)
"""

HEALTH = """
SELECT h.webhook_id, h.total_deliveries, h.successful_deliveries, h.failed_deliveries,
       coalesce(l.attempts, 0)
  FROM pggit.webhook_health_metrics h
  LEFT JOIN (SELECT webhook_id, count(*) FILTER (WHERE event_details ? 'attempt') AS attempts
               FROM pggit.alert_delivery_log GROUP BY webhook_id) l USING (webhook_id)
 WHERE h.total_deliveries <> coalesce(l.attempts, 0)
    OR h.successful_deliveries + h.failed_deliveries <> h.total_deliveries
"""


@dataclass(slots=True)
class Account:
    """A line of the table. *allowed* bounds *repeated*; *recoveries* are seconds."""

    family: str
    storm: str
    faults: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    deliveries: int = 0
    lost: int = 0
    repeated: int = 0
    allowed: int = 0
    recoveries: list[float] = field(default_factory=list)

    def recovery(self) -> str:
        """Return the median and the worst time to recover."""
        return (
            f"{median(self.recoveries):.1f} / {max(self.recoveries):.1f} s"
            if self.recoveries
            else "-"
        )


class Storm:
    """What one test does to one database. *rng* is seeded: `--storm-seed` repeats its choices."""

    def __init__(self, account: Account, database: Database, rng: random.Random) -> None:
        self.database = database
        self.random = rng
        self._account = account
        self._acknowledged = 0

    def register(
        self, sink: Sink, *, count: int = 50, first: int = 2000, settings: str = ""
    ) -> Sequence[int]:
        """Register webhooks at *sink* without a rate limit and return their ids.

        *settings* is SQL for further columns, such as `max_in_flight = 5`.
        """
        ids = range(first, first + count)
        self.database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second,"
            " retry_base_seconds, retry_factor)"
            f" SELECT id, '{sink.url('')}/' || id, 0, 0.2, 2"
            f" FROM generate_series({ids[0]}, {ids[-1]}) id"
        )
        if settings:
            self.database.execute(
                f"UPDATE pggit.webhooks SET {settings}"
                f" WHERE webhook_id BETWEEN {ids[0]} AND {ids[-1]}"
            )
        return ids

    def insert(
        self, deliveries: int, *, webhooks: int = 50, first: int = 2000, max_retries: int = 3
    ) -> None:
        """Insert *deliveries* rows, spread evenly, in one transaction."""
        self.database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, max_retries)"
            f" SELECT {first} + i % {webhooks}, jsonb_build_object('n', i), {max_retries}"
            f" FROM generate_series(1, {deliveries}) i"
        )
        self.inserted(deliveries)

    def inserted(self, deliveries: int) -> None:
        """Count rows that the test inserted itself; fewer than 0 for those that it deleted."""
        self._acknowledged += deliveries

    def inject(self, fault: str, times: int = 1, *, kills: int = 0) -> None:
        """Note faults for the table; *kills* of them were SIGKILLs of a process."""
        self._account.faults[fault] += times
        self._account.kills += kills

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """Measure how long the body takes: from a fault (or the end of an outage) until work goes
        on.
        """
        began = time.monotonic()
        yield
        self._account.recoveries.append(time.monotonic() - began)

    def finished(self) -> int:
        """Return how many deliveries are finished."""
        return self._acknowledged - self.unfinished()

    def unfinished(self) -> int:
        """Return how many are not. Waits while the database is away."""

        def rows() -> list[tuple[int]]:
            try:
                return self.database.execute(UNFINISHED)
            except psycopg.OperationalError:
                return []

        return eventually(rows, 60.0, what="the database answers")[0][0]

    def settle(self, *, timeout_s: float = 90.0) -> None:
        """Wait until every delivery is delivered or failed and nothing is in flight."""
        # Not too often: it reads the whole queue.
        eventually(
            lambda: self.unfinished() == 0,
            timeout_s,
            what="every delivery is finished",
            every_s=0.2,
        )
        # The last record may be about to commit, or the next sweep must correct a lane's counter.
        in_flight = (
            "SELECT webhook_id, in_flight FROM pggit.webhook_health_metrics WHERE in_flight <> 0"
        )
        eventually(lambda: not self.database.execute(in_flight), 45.0, what="nothing is in flight")

    def account(self, *sinks: Sink, may_fail: Collection[int] = (), refused: int = 0) -> None:
        """Account for every delivery (see above). *may_fail* are webhooks; *refused* is the number
        of results that the fence refused.
        """
        arrivals: Counter[int] = sum((sink.arrivals for sink in sinks), Counter())
        accepted: Counter[int] = sum((sink.accepted for sink in sinks), Counter())
        account, wrong = self._account, []
        rows = self.database.execute(ACCOUNT, {"max_retries": STANDARD.max_retries})
        assert len(rows) >= self._acknowledged, (
            f"{self._acknowledged - len(rows)} committed rows are gone"
        )
        allowed = refused
        for row in rows:
            (
                delivery_id,
                webhook_id,
                status,
                attempts,
                retries,
                most,
                leases_lost,
                no_lease,
                numbers,
                delivered,
                answered,
            ) = row
            came = arrivals[delivery_id]
            account.deliveries += 1
            account.repeated += max(0, came - attempts)
            allowed += leases_lost
            failed_rightly = status == "failed" and webhook_id in may_fail
            lost = not failed_rightly and (status != "delivered" or accepted[delivery_id] == 0)
            account.lost += lost
            if (
                lost
                or delivered != (status == "delivered")
                or list(numbers) != list(range(1, attempts + 1))
                or came < answered
                or retries > max(most, 0)
                or not no_lease
            ):
                wrong.append((*row, f"arrived {came}, accepted {accepted[delivery_id]}"))
        account.allowed += allowed
        assert not wrong, f"{len(wrong)} deliveries do not add up, the first: {wrong[:5]}"
        assert account.repeated <= account.allowed, (
            f"{account.repeated} repeated, at most {account.allowed} explained"
        )
        assert not self.database.execute(HEALTH)
        self._counts_agree(rows)

    def _counts_agree(self, rows: Sequence[tuple[object, ...]]) -> None:
        counted = self.database.execute(
            "SELECT pending_count, retrying_count, delivered_count, failed_count"
            " FROM pggit.count_pending_by_status()"
        )
        by_status = Counter(row[2] for row in rows)
        assert counted == [
            tuple(by_status[status] for status in ("pending", "retrying", "delivered", "failed"))
        ]
