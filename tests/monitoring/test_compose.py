"""compose.yml and Dockerfile, as far as they can be tested without a container engine."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from tests.monitoring.stack import MONITORING
from webhookd.config import load

ROOT = MONITORING.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# In a container localhost is the container itself.
HOSTS = {"localhost:8000": "webhookd:8000", "localhost:9093": "alertmanager:9093"}


def mounts(service: str) -> list[tuple[str, str]]:
    """Return the mounts of *service*: a path here or the name of a volume, and the target."""
    found = [volume.split(":") for volume in SERVICES[service].get("volumes", [])]
    return [(source, target) for source, target, *_ in found]


def environment(service: str) -> dict[str, str]:
    """Return the variables of *service* where the host's environment sets none of them."""
    given = SERVICES[service].get("environment", {})
    return {name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for name, value in given.items()}


def test_docker_compose_takes_it() -> None:
    program = shutil.which("docker-compose") or pytest.skip(
        "NO DOCKER-COMPOSE: install Debian's docker-compose"
    )
    command = [program, "--file", str(ROOT / "compose.yml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_mounts_and_waits_for_is_there(service: str) -> None:
    for source, target in mounts(service):
        assert (
            (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        ), source
        assert target.startswith("/")
    for name, wait in SERVICES[service].get("depends_on", {}).items():
        match wait["condition"]:
            case "service_healthy":
                assert "healthcheck" in SERVICES[name]
            case "service_completed_successfully":
                assert "restart" not in SERVICES[name], f"{name} would start again and again"


def test_nothing_is_published_but_on_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert [port for port in published if not port.startswith("127.0.0.1:")] == []


def test_prometheus_gets_what_discovery_ships_but_for_the_host_names() -> None:
    text = (MONITORING / "prometheus.discovery.yml").read_text()
    for here, there in HOSTS.items():
        assert here in text
        text = text.replace(here, there)
    assert yaml.safe_load(
        (MONITORING / "compose" / "prometheus.yml").read_text()
    ) == yaml.safe_load(text)


def test_prometheus_finds_its_configuration_and_rules_where_they_are_mounted(
    tmp_path: Path,
) -> None:
    program = shutil.which("promtool") or pytest.skip("NO PROMTOOL: install Debian's prometheus")
    for source, target in mounts("prometheus"):
        if source.startswith("."):
            copy = tmp_path / target.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, copy)
    (option,) = (
        word for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file=")
    )
    command = [program, "check", "config", f"{tmp_path}{option.partition('=')[2]}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rules found") == 2


def test_grafana_has_every_variable_that_its_provisioning_reads() -> None:
    texts = [path.read_text() for path in (MONITORING / "grafana" / "provisioning").rglob("*.yml")]
    read = {
        name
        for text in texts
        for name in re.findall(r"\$\{?([A-Z_]+)", re.sub(r"(?m)#.*$", "", text))
    }
    given = environment("grafana")
    assert read and read <= given.keys()
    assert given["MONITOR_PASSWORD"] in " ".join(map(str, SERVICES["monitor-role"]["command"]))
    dashboards = dict((target, source) for source, target in mounts("grafana"))[
        given["DASHBOARDS_PATH"]
    ]
    home = Path(given["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == given["DASHBOARDS_PATH"] and (ROOT / dashboards / home.name).exists()


def test_webhookd_understands_its_command_and_outlives_its_drain() -> None:
    service = SERVICES["webhookd"]
    words = service["command"]
    options = {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    with patch.dict(os.environ, environment("webhookd"), clear=True):
        settings = load.load(options).config
    assert settings.dsn == "postgresql://postgres@postgres/pggit"
    assert (
        f"127.0.0.1:8000-{7999 + settings.workers}:8000-{7999 + settings.workers}"
        in service["ports"]
    )
    assert float(service["stop_grace_period"].removesuffix("s")) > settings.drain_timeout + 5


def test_the_image_is_built_from_what_dockerignore_lets_through_and_does_not_run_as_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    let_through = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert sorted(copied) == sorted(let_through)
    # Without setup.py the image would hold no package.
    assert {"pyproject.toml", "setup.cfg", "setup.py"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    (user,) = (line.split()[1] for line in lines if line.startswith("USER "))
    assert int(user.partition(":")[0]) > 0
