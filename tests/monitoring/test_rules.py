"""The shipped rules, judged by promtool.

rules/*.yml, for promtool, say what each alert must do. The tests here run them, and show that they
can fail.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.monitoring.shipped import ALERTS, asked_for, known_metrics, promtool_program
from tests.monitoring.stack import (
    MONITORING,
)

RULE_TESTS = sorted((Path(__file__).parent / "rules").glob("*.yml"))


def test_every_rule_test_passes() -> None:
    # All at the same time: each promtool uses one processor.
    runs = [
        subprocess.Popen([promtool_program(), "test", "rules", str(path)]) for path in RULE_TESTS
    ]
    assert {path.name: run.wait(120) for path, run in zip(RULE_TESTS, runs, strict=True)} == {
        path.name: 0 for path in RULE_TESTS
    }


def test_for_each_alert_there_is_a_case_in_which_it_must_fire(tmp_path: Path) -> None:
    output = _test_rules_with(
        tmp_path, {alert: "vector(0) > 1" for alert in ALERTS}, cases="exp_annotations:", every="5m"
    )
    assert set(re.findall(r"alertname: (\w+), time", output)) == set(ALERTS)


def test_for_each_alert_there_is_a_fleet_in_which_it_must_be_silent(tmp_path: Path) -> None:
    output = _test_rules_with(
        tmp_path, {alert: "vector(1)" for alert in ALERTS}, cases="[70m]", every="5m"
    )
    fleets = re.findall(r"got: (.*)", output)
    assert [set(re.findall(r'alertname="(\w+)"', fleet)) for fleet in fleets] == [set(ALERTS)] * 3


# The expressions of the first monitoring guide, and for each a case that it misses.
FIRST_GUIDE = {
    "WorkerDown": ("worker_health_status == 0", "A process that died"),
    "CircuitBreakerOpen": ("increase(circuit_breaker_opens_total[1h]) > 0", "born at 1, since"),
    "HighFailureRate": (
        '(sum(rate(webhook_deliveries_total{status="failed"}[5m])) / '
        "sum(rate(webhook_deliveries_total[5m]))) > 0.05",
        "A tenth of all attempts times out",
    ),
    "CriticalFailureRate": (
        '(sum(rate(webhook_deliveries_total{status="failed"}[5m])) / '
        "sum(rate(webhook_deliveries_total[5m]))) > 0.20",
        "A tenth fails and a fifth times out",
    ),
    "HighP99Latency": (
        "histogram_quantile(0.99, rate(webhook_delivery_duration_seconds_bucket[5m])) > 5",
        "Every fiftieth attempt",
    ),
    "QueueBackpressure": ("webhook_queue_depth > 1000", "of a paused webhook raise no alert"),
    "HighRateLimitHits": (
        "increase(rate_limit_hits_total[5m]) > 100",
        "A webhook's rate is exceeded",
    ),
}


@pytest.mark.parametrize("alert", FIRST_GUIDE)
def test_the_first_guides_expression_fails_the_case_that_it_misses(
    alert: str, tmp_path: Path
) -> None:
    expression, case = FIRST_GUIDE[alert]
    assert alert in _test_rules_with(tmp_path, {alert: expression}, cases=case)


MISTAKES = {
    "openings of before Prometheus' start are taken for new": (
        "webhookd:circuit_opens:born1h",
        "min_over_time(circuit_breaker_opens_total[1h]) unless circuit_breaker_opens_total "
        "offset 1h",
        "Prometheus starts when",
    ),
    "a series that ended is taken for one that was born": (
        "webhookd:circuit_opens:born1h",
        "min_over_time(circuit_breaker_opens_total[1h]) and "
        "(count_over_time(circuit_breaker_opens_total[1h])"
        " < on (job, instance) group_left () count_over_time(worker_health_status[1h]))",
        "A worker is restarted",
    ),
    "queues are summed over workers": (
        "webhookd:queue_waiting:max",
        "sum(webhook_queue_depth)",
        "see 900 are not 1,800",
    ),
    "a night without traffic is 0/0": (
        "webhookd:failure_ratio:rate5m",
        "webhookd:failed_attempts:rate5m / sum(rate(webhook_deliveries_total[5m]))",
        "A quiet night",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_what_is_recorded_fails(mistake: str, tmp_path: Path) -> None:
    record, expression, case = MISTAKES[mistake]
    _test_rules_with(tmp_path, {record: expression}, cases=case)


def test_rules_ask_only_for_metrics_that_are_exported_or_recorded() -> None:
    for path in MONITORING.glob("webhook_*.yml"):
        rules = re.sub(r"(?m)^ *(#|- name:|- record:).*", "", path.read_text())
        assert asked_for(rules) <= known_metrics()


def _test_rules_with(
    folder: Path, expressions: dict[str, str], *, cases: str, every: str = ""
) -> str:
    """Run the cases that contain the text *cases*, with *expressions* in place of those of the
    alerts and records with these names.

    Return promtool's output; fail if it accepts the rules. *every*: another evaluation interval.
    """
    (folder / "monitoring").mkdir()
    for path in MONITORING.glob("webhook_*.yml"):
        text = path.read_text()
        for name, expression in expressions.items():
            rule = re.compile(
                rf"(?s)(- (?:alert|record): {name}\n +)expr: .*?(?=\n+ +(?:- |#|for:|labels:))"
            )
            # re.sub would interpret a single backslash.
            replacement = f"expr: {json.dumps(expression)}".replace("\\", r"\\")
            text = rule.sub(rf"\g<1>{replacement}", text)
        (folder / "monitoring" / path.name).write_text(text)
    copies = folder / "tests" / "monitoring" / "rules"
    copies.mkdir(parents=True)
    for path in RULE_TESTS:
        head, *found = re.split(r"(?m)^(?=  - name: )", path.read_text())
        head = (
            re.sub(r"(?m)^evaluation_interval: .*", f"evaluation_interval: {every}", head)
            if every
            else head
        )
        if chosen := [case for case in found if cases in case]:
            (copies / path.name).write_text(head + "".join(chosen))
    command = [promtool_program(), "test", "rules", *map(str, copies.iterdir())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "FAILED:\n" in output, output
    return output
