"""The configurations for other monitoring systems: the metrics that they name exist, and the parts
that can be run work with a real fleet.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring import stack
from tests.support.waiting import eventually
from webhookd.metrics import merge

DATADOG = stack.MONITORING / "datadog" / "openmetrics.d" / "conf.yaml"
OTEL = stack.MONITORING / "otel-collector.yaml"

# Tags by which Datadog joins all data about a service.
RESERVED_TAGS = {"host", "device", "source", "service", "env", "version"}


def loaded(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def exported(busy_stack: stack.Stack) -> dict[str, set[str]]:
    """Return the labels of each family that a real, busy worker exports, by the family's name
    (without _total for a counter).
    """
    text = stack.get(f"http://127.0.0.1:{busy_stack.metrics_ports[0]}/metrics").decode()
    return {
        family.name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for family in merge.parse(text)
    }


def test_datadogs_check_asks_for_all_that_a_worker_exports_and_for_nothing_else(
    busy_stack: stack.Stack,
) -> None:
    instances = loaded(DATADOG)["instances"]
    families = exported(busy_stack)
    for number, instance in enumerate(instances, 1):
        assert instance["openmetrics_endpoint"] == f"http://localhost:{8000 + number - 1}/metrics"
        assert instance["tags"] == [f"worker_id:worker-{number}"]
        names = [name for metric in instance["metrics"] for name in metric]
        assert sorted(names) == sorted(families)
        renamed = [name for metric in instance["metrics"] for name in metric.values()]
        assert len(set(renamed)) == len(renamed)
        tags = {
            instance["rename_labels"].get(label, label)
            for labels in families.values()
            for label in labels
        }
        assert not tags & RESERVED_TAGS
    assert len(instances) == 3
    same = [
        {key: instance[key] for key in instance if key not in ("openmetrics_endpoint", "tags")}
        for instance in instances
    ]
    assert same[0] == same[1] == same[2]


def test_the_collectors_pipelines_use_what_is_defined_and_all_of_it(
    busy_stack: stack.Stack,
) -> None:
    config = loaded(OTEL)
    assert config.keys() == {"receivers", "processors", "exporters", "service"}
    pipelines = config["service"]["pipelines"]
    assert pipelines.keys() == {"metrics"}
    for kind in ("receivers", "processors", "exporters"):
        assert {name for pipeline in pipelines.values() for name in pipeline[kind]} == config[
            kind
        ].keys()
    assert pipelines["metrics"]["processors"][0] == "memory_limiter"
    text = OTEL.read_text()
    receivers = text[text.index("\nreceivers:") : text.index("\nprocessors:")]
    assert "$" not in receivers, "the Collector would take it for a variable"
    named = set(re.findall(r"\bwebhookd?_\w+", text))
    assert named and named <= exported(busy_stack).keys()


def test_what_the_collector_scrapes_with_finds_all_workers_of_a_real_fleet(
    busy_stack: stack.Stack, tmp_path: Path
) -> None:
    scrape_configs = loaded(OTEL)["receivers"]["prometheus"]["config"]["scrape_configs"]
    as_shipped = tmp_path / "as_shipped.json"
    as_shipped.write_text(json.dumps({"scrape_configs": scrape_configs}))
    promtool = shutil.which("promtool") or pytest.skip("NO PROMTOOL: install Debian's prometheus")
    done = subprocess.run(
        [promtool, "check", "config", as_shipped],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    first = busy_stack.metrics_ports[0]
    here = tmp_path / "prometheus.json"
    text = as_shipped.read_text().replace(
        "http://localhost:8000/targets", f"http://127.0.0.1:{first}/targets"
    )
    here.write_text(
        text.replace('"scrape_interval": "15s", "scrape_timeout": "5s"', '"scrape_interval": "1s"')
    )
    with stack.prometheus(stack.prometheus_program(), here) as url:
        up = eventually(
            lambda: found if len(found := stack.query(url, "up == 1")) == 3 else [],
            60,
            what="three workers up",
        )
        health = eventually(
            lambda: found if len(found := stack.query(url, "worker_health_status")) == 3 else [],
            60,
            what="their health",
        )
    assert {series["metric"]["worker_id"] for series in up} == {"worker-1", "worker-2", "worker-3"}
    assert {series["metric"]["job"] for series in up} == {"webhookd"}
    assert {(series["metric"]["worker_id"], series["metric"]["service"]) for series in health} == {
        (f"worker-{number}", "webhook-delivery") for number in (1, 2, 3)
    }
