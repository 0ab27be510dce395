"""The shipped rules: their alerts and the metrics that exist; and promtool, which judges them."""

import re
import shutil
import subprocess

import pytest

from tests.monitoring.stack import MONITORING
from webhookd.metrics.counters import Metrics
from webhookd.metrics.exposition import Exposition

ALERTS = re.findall(r"(?m)^ +- alert: (\w+)$", (MONITORING / "webhook_alerts.yml").read_text())
_OURS = ("webhook_", "webhookd_", "webhookd:", "worker_health_", "rate_limit_", "circuit_breaker_")


def known_metrics() -> set[str]:
    """Return the names of the series that workers export and that the shipped rules record."""
    names = {
        "up",
        *re.findall(
            r"(?m)- record: (.+)$",
            "".join(path.read_text() for path in MONITORING.glob("webhook_*.yml")),
        ),
    }
    _, exposition = Exposition(Metrics("worker-1", max_webhooks=1)).render("")
    for name, kind in re.findall(r"(?m)^# TYPE (\S+) (\S+)$", exposition.decode()):
        names |= (
            {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
        )
    return names


def asked_for(promql: str) -> set[str]:
    """Return the names in *promql* that look like metrics of webhookd."""
    words = set(re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r'"[^"]*"', "", promql)))
    return {word for word in words if word.startswith(_OURS)} - {"webhook_id"}


def promtool_program() -> str:
    """Return promtool's path, or skip the test."""
    return shutil.which("promtool") or pytest.skip("NO PROMTOOL: install Debian's prometheus")


def promtool(*arguments: str) -> int:
    """Return promtool's exit code, or skip the test; what it prints shows where a test fails."""
    return subprocess.run([promtool_program(), *arguments], check=False, timeout=120).returncode
