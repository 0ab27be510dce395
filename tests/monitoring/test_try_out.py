"""monitoring/try_out.py, as `make monitoring` runs it, on other ports."""

import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.monitoring.stack import (
    MONITORING,
    alertmanager_program,
    get,
    get_json,
    prometheus_program,
    query,
)
from tests.support.waiting import eventually
from webhookd.demo import local

SCRIPT = MONITORING / "try_out.py"


def free_ports() -> list[int]:
    """Return six free ports in a row."""

    def found() -> list[int]:
        first = random.randrange(20000, 30000)
        ports = list(range(first, first + 6))
        return [] if local.ports_in_use(ports) else ports

    return eventually(found, what="six free ports in a row")


def options(ports: list[int]) -> list[str]:
    names = ("--metrics-port", "--prometheus-port", "--alertmanager-port", "--alerts-port")
    return [
        text
        for name, port in zip(names, [ports[0], *ports[3:]], strict=True)
        for text in (name, str(port))
    ]


def test_one_command_starts_a_fleet_under_load_and_every_url_that_it_prints_answers(
    tmp_path: Path,
) -> None:
    prometheus_program(), alertmanager_program()
    ports, log = free_ports(), tmp_path / "log"
    with local.program(
        [sys.executable, str(SCRIPT), *options(ports), "--seconds", "120"], log
    ) as process:
        eventually(
            lambda: (
                "ends everything and removes it" in log.read_text() or process.poll() is not None
            ),
            60,
            what="ready",
        )
        told = log.read_text()
        urls = re.findall(r"http://\S+", told)
        assert len(urls) >= 8, told
        for url in urls:
            assert get(url), url
        prometheus = f"http://127.0.0.1:{ports[3]}"
        eventually(
            lambda: len(query(prometheus, 'up{service="webhook-delivery"} == 1')) == 3,
            30,
            what="three targets up",
        )
        eventually(
            lambda: query(prometheus, "sum(webhook_deliveries_total) > 0"), 30, what="deliveries"
        )
        known = get_json(f"{prometheus}/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
        assert [alertmanager["url"] for alertmanager in known] == [
            f"http://localhost:{ports[4]}/api/v2/alerts"
        ]
        status = re.search(r"^  (\S+/webhookd) status --dsn \"(.*)\"$", told, re.MULTILINE)
        assert status, told
        shown = subprocess.run(
            [status[1], "status", "--dsn", status[2]],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "worker-3" in shown.stdout, shown.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    assert local.ports_in_use(ports) == []
    home = re.search(r"logs are in (\S+)\.", told)
    assert home and Path(home[1]).parent == Path(tempfile.gettempdir())
    assert not Path(home[1]).exists()


def test_a_port_that_is_taken_is_named_in_one_line() -> None:
    ports = free_ports()
    with socket.create_server(("127.0.0.1", ports[1])):
        command = [sys.executable, str(SCRIPT), *options(ports)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        rf"make monitoring: port {ports[1]} is taken: .*--metrics-port.*\n", done.stderr
    )


def test_without_root_a_missing_program_is_named_with_the_command_that_installs_it(
    tmp_path: Path,
) -> None:
    """The PATH has neither Prometheus nor apt-get, which the program treats like not being root."""
    command = [sys.executable, str(SCRIPT), *options(free_ports())]
    done = subprocess.run(
        command,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    install = (
        "sudo apt-get install --yes --no-install-recommends prometheus prometheus-alertmanager"
    )
    assert done.stderr.endswith(f"{install}\n")
    assert done.stderr.count("\n") == 1
