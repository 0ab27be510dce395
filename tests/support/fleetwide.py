"""What must hold for a fleet on several hosts together: played against it, and counted where it
counts, at the receiver.

limited   a webhook with a rate limit: never more arrivals than its bucket has given out by then
broken    one that always fails, one exchange at a time: exactly as many attempts as open its
          circuit, then one probe a period
crowded   one whose receiver takes its time: never more exchanges at once than its cap
plain     twenty others: each delivery arrives once
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.storm.sink import ERROR, Sink
from tests.support.postgres import Database
from tests.support.receivers import OK
from tests.support.waiting import eventually

LIMITED, BROKEN, CROWDED, PLAIN = 1, 2, 3, range(11, 31)
RATE, BURST = 50.0, 10
THRESHOLD, OPEN_S = 5, 1.0
CAP, HELD_S = 4, 0.02


@dataclass(frozen=True, slots=True)
class Seen:
    """What came.

    *limited_excess*: the most arrivals beyond what the bucket had given out at any moment (0 or
    less: none), of which *limited_share* came in the end. *probe_gaps_s*: from the attempt that
    opened the circuit on. The others: plain deliveries.
    """

    limited_excess: float
    limited_share: float
    before_open: int
    probe_gaps_s: list[float]
    most_at_once: int
    deliveries: int
    missing: int
    repeated: int
    by_host: Counter[str]


class Stage:
    """The webhooks, and what arrives for them; register with `prepare`, then `play`."""

    def __init__(self, database: Database, host: str) -> None:
        self.database = database
        self.arrivals: defaultdict[int, list[float]] = defaultdict(list)  # monotonic, by webhook
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self.sink = Sink(self._answer, host=host)

    def prepare(self) -> None:
        """Register the webhooks."""
        columns = (
            "rate_limit_per_second, rate_limit_burst, circuit_failure_threshold,"
            " circuit_open_seconds, max_in_flight"
        )
        for webhook_id, values in {
            LIMITED: f"{RATE}, {BURST}, NULL, NULL, NULL",
            BROKEN: f"0, NULL, {THRESHOLD}, {OPEN_S}, 1",
            CROWDED: f"0, NULL, NULL, NULL, {CAP}",
            **dict.fromkeys(PLAIN, "0, NULL, NULL, NULL, NULL"),
        }.items():
            self.database.execute(
                f"INSERT INTO pggit.webhooks (webhook_id, url, retry_base_seconds, {columns})"
                f" VALUES ({webhook_id}, '{self.sink.url(f'/{webhook_id}')}', 0.1, {values})"
            )

    def play(self, *, seconds: float, deliveries: int) -> Seen:
        """Insert for all webhooks at once, *deliveries* for the plain ones, and count for so many
        *seconds* at least.
        """
        began = time.monotonic()
        enough = BURST + int(RATE * seconds) * 2
        self.database.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
            f" SELECT {PLAIN[0]} + i % {len(PLAIN)}, '{{}}' FROM generate_series(1, "
            f"{deliveries}) i;"
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
            f" SELECT {LIMITED}, '{{}}' FROM generate_series(1, {enough});"
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body, max_retries)"
            f" SELECT {BROKEN}, '{{}}', 1000 FROM generate_series(1, 20);"
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
            f" SELECT {CROWDED}, '{{}}' FROM generate_series(1, {int(seconds / HELD_S)})"
        )
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        limited, broken = self.arrivals[LIMITED][:], self.arrivals[BROKEN][:]
        given = BURST + RATE * (time.monotonic() - began)
        self.database.execute(
            f"UPDATE pggit.webhooks SET enabled = false WHERE webhook_id IN ({LIMITED}, {BROKEN})"
        )
        open_rows = (
            "SELECT count(*)::int FROM pggit.alert_delivery_queue"
            f" WHERE webhook_id NOT IN ({LIMITED}, {BROKEN}) AND delivery_status <> 'delivered'"
        )
        eventually(
            lambda: self.database.execute(open_rows) == [(0,)], 60.0, what="all is delivered"
        )
        plain = [row[0] for row in self.database.execute(
            f"SELECT delivery_id FROM pggit.alert_delivery_queue WHERE webhook_id >= {PLAIN[0]}"
        )]  # fmt: skip
        hosts = self.database.execute(
            "SELECT split_part(worker_id, '/', 1) FROM pggit.alert_delivery_queue WHERE "
            f"webhook_id >= {PLAIN[0]}"
        )
        return Seen(
            limited_excess=max(
                nth - (BURST + RATE * (at - began)) for nth, at in enumerate(limited, start=1)
            ),
            limited_share=len(limited) / given,
            before_open=sum(at < broken[THRESHOLD - 1] + OPEN_S / 2 for at in broken),
            probe_gaps_s=[
                later - earlier
                for earlier, later in zip(broken[THRESHOLD - 1 :], broken[THRESHOLD:], strict=False)
            ],
            most_at_once=self.most_at_once,
            deliveries=len(plain),
            missing=sum(self.sink.arrivals[delivery_id] == 0 for delivery_id in plain),
            repeated=sum(max(0, self.sink.arrivals[delivery_id] - 1) for delivery_id in plain),
            by_host=Counter(row[0] for row in hosts),
        )

    def _answer(self, webhook_id: int, nth: int) -> bytes:
        with self._lock:
            self.arrivals[webhook_id].append(time.monotonic())
        if webhook_id == BROKEN:
            return ERROR
        if webhook_id == CROWDED:
            with self._held():
                time.sleep(HELD_S)
        return OK

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        yield
        with self._lock:
            self._at_once -= 1
