"""Webhooks whose names no DNS server answers, beside one with a fast receiver, which notices
nothing.
"""

from pathlib import Path

from tests.support.daemon import Daemon, answer_ok, arrivals, insert, wait_until_ready
from tests.support.postgres import Database
from tests.support.receivers import Receiver
from tests.support.waiting import eventually

STUB_DNS = str(Path(__file__).parents[1] / "storm" / "stub_dns_webhookd.py")
SILENT, VICTIM = range(3000, 3060), 2000
DELIVERIES = 200

REASONS = """
SELECT DISTINCT regexp_replace(event_details->>'reason', '\\d\\d:\\d\\d:\\d\\d UTC', 'T', 'g')
  FROM pggit.alert_delivery_log WHERE webhook_id >= %s
"""
LANE = """
SELECT circuit_state, failed_deliveries::int, successful_deliveries::int
  FROM pggit.webhook_health_metrics WHERE webhook_id = %s
"""

HAVE_FAILED = """
SELECT count(*)::int FROM pggit.webhook_health_metrics
 WHERE webhook_id >= %s AND failed_deliveries > 0
"""


def register_silent_names(database: Database) -> None:
    """Half of the names have a domain each, half have one together."""
    database.execute(
        "INSERT INTO pggit.webhooks (webhook_id, url)"
        " SELECT id, CASE WHEN id %% 2 = 0 THEN 'http://silent.d' || id || '.test/'"
        "                 ELSE 'http://silent-' || id || '.wild.test/' END"
        "   FROM generate_series(%s::int, %s::int) id",
        [SILENT[0], SILENT[-1]],
    )


def test_sixty_silent_names_cost_a_fast_webhook_neither_its_deliveries_nor_its_circuit(
    database: Database, tmp_path: Path
) -> None:
    program = [STUB_DNS, str(tmp_path / "never")]
    with Receiver(answer_ok) as receiver, Daemon(database.dsn, program=program) as daemon:
        wait_until_ready(database)
        register_silent_names(database)
        insert(database, 40 * len(SILENT), webhooks=len(SILENT), first=SILENT[0])
        database.execute(
            "INSERT INTO pggit.webhooks (webhook_id, url, rate_limit_per_second)"
            " VALUES (%s, %s, 0)",
            [VICTIM, receiver.url(host="good.victim.test")],
        )
        insert(database, DELIVERIES, webhooks=1, first=VICTIM)
        eventually(lambda: len(receiver.requests) >= DELIVERIES, 60.0, what="the good name's")
        eventually(
            lambda: database.execute(LANE, [VICTIM]) == [("closed", 0, DELIVERIES)],
            what="the good name's results",
        )
        assert set(arrivals(receiver).values()) == {1}

        eventually(
            lambda: database.execute(HAVE_FAILED, [SILENT[0]])[0][0] >= len(SILENT) // 2,
            60.0,
            what="attempts at silent names",
        )
        found = {reason for (reason,) in database.execute(REASONS, [SILENT[0]])}
        assert all(
            reason.startswith(("timed out while resolving silent", "DNS: no answer since T"))
            for reason in found
        ), found
        assert "resolver busy" not in daemon.log()
        assert daemon.stop() == 0
    leased = "SELECT count(*)::int FROM pggit.alert_delivery_queue WHERE lease_token IS NOT NULL"
    assert database.execute(leased) == [(0,)]
