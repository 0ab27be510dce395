"""The daily health check: each baseline's verdict on a real database, the quantile, the report."""

from typing import Any

import pytest

from tests.support.engine import Engine, answered, engine, insert, register
from tests.support.explained import set_lane
from tests.support.postgres import Database
from webhookd.admin import database as admin_database
from webhookd.admin import status
from webhookd.admin.status import Baseline, HealthCount, Queue, Unregistered
from webhookd.config.options import Config
from webhookd.metrics.counts import DURATION_BUCKETS_S

MINUTE = (
    "INSERT INTO pggit.worker_minutes (minute, worker_id, delivered, failed, timeouts, "
    "circuit_opens, rate_limit_hits, durations,"
    " slowest_seconds)"
    " VALUES (date_trunc('minute', now()) - %(minutes_ago)s * interval '1 minute', "
    "%(worker_id)s, %(delivered)s, %(failed)s, 0,"
    " %(opens)s, %(hits)s, %(durations)s, %(slowest)s)"
)
WORKER = (
    "INSERT INTO pggit.workers (incarnation, worker_id, host, pid, version, seen_at)"
    " VALUES (gen_random_uuid(), %s, 'here', 1, '0', now() - %s * interval '1 second')"
)


def report_of(database: Database) -> status.Report:
    with admin_database.connect(Config(dsn=database.dsn)) as connection:
        return status.read(connection)


def verdicts(database: Database) -> tuple[dict[str, tuple[Any, str]], bool]:
    """Return value and verdict of each baseline, and whether the report is critical."""
    report = report_of(database)
    return {one.name: (one.value, one.verdict) for one in report.baselines}, report.critical


def durations(**counts: int) -> list[int]:
    """Return counts by bucket: `up_to_2=5` are five attempts in the bucket that ends at 2 s."""
    by_bound = {
        f"up_to_{bound:g}".replace(".", "_"): index
        for index, bound in enumerate(DURATION_BUCKETS_S)
    }
    found = [0] * (len(DURATION_BUCKETS_S) + 1)
    for name, count in counts.items():
        found[by_bound.get(name, len(DURATION_BUCKETS_S))] = count
    return found


def busy(
    database: Database, *, minutes_ago: int = 1, worker_id: str = "worker-1", **numbers: Any
) -> None:
    values = {
        "delivered": 0,
        "failed": 0,
        "opens": 0,
        "hits": 0,
        "durations": durations(),
        "slowest": 100.0,
    } | numbers
    database.execute(MINUTE, {"minutes_ago": minutes_ago, "worker_id": worker_id, **values})


def test_a_quiet_night_with_living_workers_is_fine(database: Database) -> None:
    for number in (1, 2, 3):
        database.execute(WORKER, [f"worker-{number}", 2])
    found, critical = verdicts(database)
    assert not critical
    assert found == {
        "delivery latency p99, last hour": (None, "-"),
        "success rate, last hour": (None, "-"),
        "queue depth": (0.0, "ok"),
        "worker health, longest silence": (pytest.approx(2.0, abs=1.0), "ok"),
        "circuit openings, last hour": (0.0, "ok"),
        "rate limit hits a minute, last 5": (0.0, "ok"),
    }


def test_the_last_hour_of_all_workers_is_added_up(database: Database) -> None:
    database.execute(WORKER, ["worker-1", 2])
    busy(database, delivered=97, failed=1, opens=1, hits=40, durations=durations(up_to_0_5=98))
    busy(
        database,
        worker_id="worker-2",
        delivered=0,
        failed=2,
        opens=1,
        hits=35,
        durations=durations(up_to_5=2),
    )
    busy(
        database,
        minutes_ago=70,
        delivered=0,
        failed=999,
        opens=99,
        hits=999,
        durations=durations(up_to_120=999),
    )
    found, critical = verdicts(database)
    assert not critical
    assert found["success rate, last hour"] == (97.0, "warning")
    assert found["circuit openings, last hour"] == (2.0, "warning")
    assert found["rate limit hits a minute, last 5"] == (15.0, "warning")
    # As histogram_quantile does: the 99th of 100 stands half-way through the two in (2, 5].
    assert found["delivery latency p99, last hour"] == (pytest.approx(3.5), "warning")
    database.execute("UPDATE pggit.worker_minutes SET slowest_seconds = 2.5")
    assert verdicts(database)[0]["delivery latency p99, last hour"] == (2.5, "warning")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        (
            "delivery latency p99, last hour",
            {"delivered": 100, "durations": durations(up_to_0_5=90, up_to_10=10)},
        ),
        (
            "delivery latency p99, last hour",
            {"delivered": 100, "durations": durations(without_a_bound=100)},
        ),
        (
            "success rate, last hour",
            {"delivered": 94, "failed": 6, "durations": durations(up_to_0_5=100)},
        ),
        ("circuit openings, last hour", {"opens": 3}),
        ("rate limit hits a minute, last 5", {"hits": 505}),
    ],
)
def test_a_critical_baseline_makes_the_report_critical(
    database: Database, name: str, numbers: dict[str, Any]
) -> None:
    database.execute(WORKER, ["worker-1", 2])
    busy(database, **numbers)
    found, critical = verdicts(database)
    assert critical
    assert [one for one, (_, verdict) in found.items() if verdict == "critical"] == [name]


@pytest.mark.parametrize(
    ("silences_s", "verdict"), [([], "critical"), ([2, 30], "warning"), ([2, 200], "critical")]
)
def test_a_silent_worker_is_a_warning_and_after_two_minutes_down(
    database: Database, silences_s: list[int], verdict: str
) -> None:
    for number, silence_s in enumerate(silences_s):
        database.execute(WORKER, [f"worker-{number}", silence_s])
    found, critical = verdicts(database)
    assert found["worker health, longest silence"][1] == verdict
    assert critical == (verdict == "critical")


def test_what_waits_on_purpose_is_no_backlog(database: Database) -> None:
    database.execute(WORKER, ["worker-1", 2])
    register(database, 1, 2)
    database.execute("UPDATE pggit.webhooks SET enabled = false WHERE webhook_id = 1")
    insert(database, 1, 1500)  # paused
    insert(database, 2, 1500, due_in_s=3600)  # scheduled
    insert(database, 3, 1500)  # unregistered
    insert(database, 2, 101)
    found, critical = verdicts(database)
    assert (found["queue depth"], critical) == ((101.0, "warning"), False)
    insert(database, 2, 900)
    found, critical = verdicts(database)
    assert (found["queue depth"], critical) == ((1001.0, "critical"), True)


def test_the_report_names_what_stands_behind_the_baselines(database: Database) -> None:
    with engine(database) as worker:
        worker_fails(worker, database)
    insert(database, 9, 3)
    set_lane(database, "circuit_state = 'open', circuit_until = now() + interval '1 minute'")
    report = report_of(database)
    assert report.queue == Queue(3, 0, 1, 1, 5)
    assert [(one.cause, one.deliveries) for one in report.waiting] == [("unregistered", 3)]
    assert report.health == [HealthCount("degraded", 1)]
    [degraded] = report.attention
    assert (degraded.webhook_id, degraded.consecutive_failures) == (1, 1)
    assert degraded.success_rate_percent == 50.0
    assert report.errors_1h == 1
    [circuit] = report.circuits
    assert (circuit.webhook_id, circuit.circuit_state) == (1, "open")
    assert circuit.probe_in_s == pytest.approx(60.0, abs=30.0)
    assert report.unregistered == [Unregistered(9, 3)]
    assert report.workers == [] and report.critical


@pytest.mark.parametrize(
    ("counts", "slowest_s", "expected"),
    [
        ([], None, None),
        ([0, 0], 1.0, None),
        (durations(up_to_1=100), 1.0, 0.995),
        (durations(up_to_1=100), 0.75, 0.75),
        (durations(up_to_1=98, beyond=2), 300.0, 300.0),
    ],
)
def test_a_quantile_lies_within_its_bucket_and_never_above_the_slowest(
    counts: list[int], slowest_s: float | None, expected: float | None
) -> None:
    found = status.quantile(0.99, counts, slowest_s)
    assert found == (None if expected is None else pytest.approx(expected))


def worker_fails(worker: Engine, database: Database) -> None:
    register(database, 1, max_retries=0)
    insert(database, 1, 2)
    good, bad = worker.take()
    worker.finish([good], answered(200))
    worker.finish([bad], answered(404))


def test_a_measure_at_its_target_is_ok_and_beyond_critical_is_critical() -> None:
    falling = [
        Baseline("rate", value, " %", 99.0, 95.0).verdict
        for value in (100.0, 99.0, 98.9, 95.0, 94.9, None)
    ]
    rising = [
        Baseline("depth", value, "", 100.0, 1000.0).verdict
        for value in (0.0, 100.0, 101.0, 1000.0, 1001.0)
    ]
    assert falling == ["ok", "ok", "warning", "warning", "critical", "-"]
    assert rising == ["ok", "ok", "warning", "warning", "critical"]
