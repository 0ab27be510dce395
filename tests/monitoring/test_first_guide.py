"""docs/metrics.md is right about each query of the first monitoring guide. PromQL is tried on a
real Prometheus that scrapes a busy fleet, SQL on that fleet's database.

PROMQL and SQL list files with the guide's queries, one in each file, comments included.
"""

import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.monitoring.doc_tables import code, items, one_line, queries, section
from tests.monitoring.stack import MONITORING, RULE_FILES, Stack
from tests.support.waiting import eventually

PROMQL = sorted((Path(__file__).parent / "seed").glob("section_*.promql"))
SQL = sorted((Path(__file__).parents[1] / "seed").glob("section_*.sql"))
WORKS, REFUSED, FALLS_SHORT = "works", "refused", "falls short"


def promql_of(path: Path) -> str:
    """Return a file's query on one line, as the document has it."""
    return " ".join(
        word
        for line in path.read_text().splitlines()
        if not line.startswith("#")
        for word in line.split()
    )


def section_of(path: Path) -> str:
    return path.name.split("_")[1]


BY_QUERY = {entry.query: entry for entry in queries()}


def without_threshold(query: str) -> str:
    """Return the value that an alert compares; it need not be above the threshold now."""
    return re.sub(r" (>|==) [\d.]+$", "", query)


# PromQL


def test_the_document_accounts_for_every_query_of_the_guide_and_no_other() -> None:
    documented = Counter(
        (number, query) for query, entry in BY_QUERY.items() for number in entry.sections
    )
    assert documented == Counter({(section_of(path), promql_of(path)) for path in PROMQL})
    assert {entry.verdict for entry in BY_QUERY.values()} == {WORKS, REFUSED, FALLS_SHORT}


@pytest.mark.parametrize("path", PROMQL, ids=lambda path: path.stem)
def test_a_query_is_refused_or_returns_data_as_the_document_says(
    path: Path, busy_stack: Stack
) -> None:
    query, verbatim = promql_of(path), path.read_text()
    if BY_QUERY[query].verdict == REFUSED:
        with pytest.raises(AssertionError, match="parse error"):
            busy_stack.query(verbatim)
        return
    busy_stack.query(verbatim)
    returns_data(busy_stack, without_threshold(query))


@pytest.mark.parametrize("query", [entry.use for entry in BY_QUERY.values() if entry.use])
def test_the_query_to_use_instead_returns_data(query: str, busy_stack: Stack) -> None:
    returns_data(busy_stack, query)


def test_every_recorded_name_of_the_document_has_data(busy_stack: Stack) -> None:
    named = {name for entry in BY_QUERY.values() for name in code(entry.why)}
    for name in {name for name in named if name.startswith("webhookd:")}:
        returns_data(busy_stack, name)


def test_the_examples_of_combining_workers_return_data(busy_stack: Stack) -> None:
    blocks = re.findall(r"(?s)```promql\n(.*?)```", section("## Combining workers"))
    # An indented line continues the one before.
    examples = [query for block in blocks for query in re.split(r"\n(?! )", block.strip())]
    assert len(examples) == 7
    for query in examples:
        returns_data(busy_stack, one_line(query))


def returns_data(busy_stack: Stack, query: str) -> None:
    """Wait until *query* has a sample above zero: a busy fleet has something to count for each."""

    def sample() -> list[dict[str, Any]]:
        return [sample for sample in busy_stack.query(query) if float(sample["value"][1]) > 0]

    eventually(sample, 30, what=query)


# Queries that fall short, and the alerts that do not

ATTEMPTS = "webhook_deliveries_total"
FAILURE_RATIO = f'(sum(rate({ATTEMPTS}{{status="failed"}}[5m])) / sum(rate({ATTEMPTS}[5m])))'
TARGET = 'job="w", instance="a:1", service="webhook-delivery"'
DEPTH_BY_CAUSE = "webhookd_queue_depth_by_cause"
TIMEOUTS_ONLY = {
    f'{ATTEMPTS}{{status="delivered", webhook_id="1", {TARGET}}}': "0+60x40",
    f'{ATTEMPTS}{{status="failed", webhook_id="1", {TARGET}}}': "0x40",
    f'{ATTEMPTS}{{status="timeout", webhook_id="1", {TARGET}}}': "0+60x40",
}
# Series in which a query misses a failure, or accuses a healthy fleet, after 30 minutes.
MISSED = {
    'rate(webhook_deliveries_total{status="failed"}[5m])': TIMEOUTS_ONLY,
    "worker_health_status == 0": {
        f'up{{worker_id="worker-1", {TARGET}}}': "1x10 0x30",
        f'worker_health_status{{worker_id="worker-1", {TARGET}}}': "1x10 stale",
    },
    **{f"{FAILURE_RATIO} > {threshold}": TIMEOUTS_ONLY for threshold in ("0.05", "0.20")},
    "increase(circuit_breaker_opens_total[1h]) > 0": {
        f'worker_health_status{{worker_id="worker-1", {TARGET}}}': "1x40",
        f'circuit_breaker_opens_total{{webhook_id="1", {TARGET}}}': "_x25 1x15",
    },
}
FALSE_ALARMS = {
    "webhook_queue_depth > 1000": {
        **{
            f'webhook_queue_depth{{worker_id="worker-{n}", {TARGET}}}': "5000x40" for n in (1, 2, 3)
        },
        f'{DEPTH_BY_CAUSE}{{cause="paused", worker_id="worker-1", {TARGET}}}': "5000x40",
    },
}


def test_there_is_a_case_for_each_query_that_falls_short() -> None:
    assert {*MISSED, *FALSE_ALARMS} == {
        query for query, entry in BY_QUERY.items() if entry.verdict == FALLS_SHORT
    }


def test_a_query_that_falls_short_is_wrong_where_the_one_to_use_is_right(
    tmp_path: Path,
) -> None:
    cases = []
    for query, series in MISSED.items():
        entry = BY_QUERY[query]
        # A panel that shows 0 misses it as well.
        shown = query if entry.alert else f"({query}) > 0"
        sees = firing(entry.alert) if entry.alert else entry.use
        cases.append(case(series, {shown: 0, f"({sees}) > 0": 1}))
    for query, series in FALSE_ALARMS.items():
        cases.append(case(series, {query: 3, firing(BY_QUERY[query].alert): 0}))
    promtool = shutil.which("promtool") or pytest.skip("NO PROMTOOL: install Debian's prometheus")
    path = tmp_path / "test.yml"
    rule_files = [str(MONITORING / name) for name in RULE_FILES]
    path.write_text(
        json.dumps({"rule_files": rule_files, "evaluation_interval": "30s", "tests": cases})
    )
    run = subprocess.run(
        [promtool, "test", "rules", path], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def firing(alert: str) -> str:
    return f'ALERTS{{alertname="{alert}", alertstate="firing"}}'


def case(series: dict[str, str], expected: dict[str, int]) -> dict[str, Any]:
    """Return a test for promtool: with *series* (a value a minute) each query of *expected* has so
    many samples after 30 minutes.
    """
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"count({query}) or vector(0)",
                "eval_time": "30m",
                "exp_samples": [{"labels": "{}", "value": samples}],
            }
            for query, samples in expected.items()
        ],
    }


# SQL


def subject_of(path: Path) -> str:
    """Return the first table, view or function that a statement names."""
    found = re.search(r"pggit\.\w+", path.read_text())
    assert found is not None
    return found[0]


def test_the_document_accounts_for_every_statement_of_the_guide_and_no_other() -> None:
    found = [re.match(r"Section (\d+), `(.+?)`", item) for item in items(section("### SQL"))]
    documented = [match.groups() for match in found if match]
    assert Counter(documented) == Counter((section_of(path), subject_of(path)) for path in SQL)


@pytest.mark.parametrize("path", SQL, ids=lambda path: path.stem)
def test_a_statement_finds_rows_in_the_database_of_a_busy_fleet(
    path: Path, busy_stack: Stack
) -> None:
    statement = path.read_text()
    if "INSERT INTO" not in statement and "UPDATE" not in statement:
        eventually(lambda: rows_of(busy_stack, statement), 30, what=path.stem)


def test_the_statements_that_write_do_what_they_say(busy_stack: Stack) -> None:
    load, count, reset = (
        next(path for path in SQL if path.stem == stem).read_text()
        for stem in ("section_8_load", "section_8_count", "section_7_reset_circuit")
    )
    with busy_stack.database.connect(autocommit=False) as connection:
        assert connection.execute(load.encode()).rowcount == 1000
        counted = connection.execute(count.encode()).fetchone()
        assert counted is not None
        assert counted[0] >= 1000
        connection.rollback()  # other tests use this fleet too

        def updated() -> bool:
            cursor = connection.execute(
                reset.replace("?", "%s").encode(), [busy_stack.webhooks["failing"]]
            )
            connection.rollback()
            return cursor.rowcount == 1

        eventually(updated, 30, what="the failing webhook is not healthy")


def rows_of(busy_stack: Stack, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(busy_stack.dsn, autocommit=True) as connection:
        return connection.execute(statement.encode()).fetchall()
