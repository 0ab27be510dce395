"""systemd/webhookd.service and supervisord.conf, as far as a test can try them without systemd as
the first process.
"""

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.supervised import PROGRAM, ROOT, Supervised, is_alive
from tests.support.waiting import eventually
from webhookd.config.options import DEFAULTS
from webhookd.supervisor.fleet import DRAIN_GRACE_S

UNIT = ROOT / "systemd" / "webhookd.service"
SUPERVISORD_CONF = ROOT / "supervisord.conf"
BIN = Path(sys.executable).parent
# As a share of systemd's worst, times ten.
MOST_EXPOSURE = 30


def analyze(*arguments: str) -> "subprocess.CompletedProcess[str]":
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NO SYSTEMD-ANALYZE: the unit file has not been checked; install systemd")
    return subprocess.run(
        ["systemd-analyze", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def unit_settings() -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))


@pytest.fixture
def unit_here(tmp_path: Path) -> Path:
    """The unit with an executable that exists on this machine."""
    text, replaced = re.subn(
        r"^ExecStart=\S+", "ExecStart=/bin/sh", UNIT.read_text(), flags=re.MULTILINE
    )
    assert replaced == 1
    unit = tmp_path / "webhookd.service"
    unit.write_text(text)
    return unit


def test_systemd_finds_nothing_wrong_with_the_unit(unit_here: Path) -> None:
    verdict = analyze("verify", str(unit_here))
    # An unknown key is a mere warning with exit code 0.
    assert (verdict.stderr, verdict.returncode) == ("", 0)


def test_systemd_would_find_a_key_that_does_not_exist(unit_here: Path) -> None:
    unit_here.write_text(unit_here.read_text().replace("WatchdogSec=", "WatchdogSeconds="))
    assert "WatchdogSeconds" in analyze("verify", str(unit_here)).stderr


def test_the_unit_s_exposure_is_low(unit_here: Path) -> None:
    verdict = analyze(
        "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", str(unit_here)
    )
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


def test_a_unit_without_a_sandbox_would_be_too_exposed(unit_here: Path) -> None:
    kept = [
        line
        for line in unit_here.read_text().splitlines()
        if not line.startswith(("Protect", "Restrict", "System"))
    ]
    unit_here.write_text("\n".join(kept))
    verdict = analyze(
        "security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", str(unit_here)
    )
    assert verdict.returncode != 0


def test_the_unit_speaks_the_daemon_s_protocol() -> None:
    settings = unit_settings()
    assert settings["Type"] == "notify"
    assert settings["NotifyAccess"] == "main"
    assert settings["ExecReload"].endswith("kill -HUP $MAINPID")
    assert settings["KillMode"] == "mixed"
    assert settings["Restart"] == "on-failure"
    assert settings["RestartPreventExitStatus"] == "2"
    assert settings["EnvironmentFile"] == "-/etc/webhookd/environment"
    assert shlex.split(settings["ExecStart"])[-2:] == ["--workers", "3"]
    assert int(settings["WatchdogSec"]) >= 10


def test_both_managers_wait_longer_than_a_drain_takes() -> None:
    drain_s = DEFAULTS["drain_timeout"] + DRAIN_GRACE_S
    supervisord = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    supervisord.read(SUPERVISORD_CONF)
    assert int(unit_settings()["TimeoutStopSec"]) > drain_s
    assert supervisord.getint("program:webhookd", "stopwaitsecs") > drain_s


class Supervisord:
    """A running supervisord and the folder that it was started in."""

    def __init__(
        self, folder: Path, process: "subprocess.Popen[bytes]", environ: dict[str, str]
    ) -> None:
        self.folder = folder
        self.process = process
        self.environ = environ
        # Reads the reports of the workers of the stand-in.
        self.program = Supervised(folder, process)

    def ctl(self, *arguments: str) -> str:
        command = [
            sys.executable,
            str(BIN / "supervisorctl"),
            "-c",
            str(SUPERVISORD_CONF),
            *arguments,
        ]
        result = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return result.stdout + result.stderr

    def wait_for_status(self, state: str) -> None:
        eventually(
            lambda: state in self.ctl("status", "webhookd"),
            what=f"{state}: {self.ctl('status')} {self.output}",
        )

    @property
    def output(self) -> str:
        files = [self.folder / name for name in ("supervisord.out", "webhookd.log")]
        return "".join(file.read_text() for file in files if file.exists())


@contextmanager
def supervisord(folder: Path, stand_in: str) -> Iterator[Supervisord]:
    """Run supervisord on the real supervisord.conf; *stand_in* is the shell script that runs as
    `webhookd`.
    """
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "webhookd").write_text(f"#!/bin/sh\n{stand_in}\n")
    (bin_folder / "webhookd").chmod(0o755)
    environ = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with (folder / "supervisord.out").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(BIN / "supervisord"), "-n", "-c", str(SUPERVISORD_CONF)],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Supervisord(folder, process, environ)
    finally:
        # It stops its programs before it exits.
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def the_program(folder: Path) -> str:
    """Return a stand-in that is a real `Supervisor` with workers that only report."""
    fields = '{"workers": 3, "metrics_port": 0}'
    return f"echo \"$@\" > {folder}/arguments\nexec {sys.executable} {PROGRAM} {folder} '{fields}'"


def test_supervisord_starts_webhookd_reloads_it_and_drains_it(tmp_path: Path) -> None:
    (tmp_path / "stderr").symlink_to("webhookd.log")
    with supervisord(tmp_path, the_program(tmp_path)) as daemon:
        daemon.wait_for_status("RUNNING")
        first = {number: daemon.program.working(number)["pid"] for number in (1, 2, 3)}
        assert (tmp_path / "arguments").read_text() == "--workers 3\n"
        assert "signalled" in daemon.ctl("signal", "HUP", "webhookd")
        second = {
            number: daemon.program.working(number, besides=first[number])["pid"]
            for number in (1, 2, 3)
        }
        assert "stopped" in daemon.ctl("stop", "webhookd")
        daemon.wait_for_status("STOPPED")
        assert daemon.program.logs("stopped")[0]["exit_code"] == 0
        assert not any(is_alive(pid) for pid in second.values())


def test_supervisord_does_not_restart_what_ended_with_2(tmp_path: Path) -> None:
    with supervisord(tmp_path, f"echo start >> {tmp_path}/starts\nsleep 1.5\nexit 2") as daemon:
        daemon.wait_for_status("EXITED")
        assert (tmp_path / "starts").read_text() == "start\n"


def test_supervisord_restarts_what_failed(tmp_path: Path) -> None:
    with supervisord(tmp_path, f"echo start >> {tmp_path}/starts\nsleep 1.5\nexit 1") as daemon:
        eventually(
            lambda: (
                (tmp_path / "starts").exists()
                and (tmp_path / "starts").read_text().count("start") >= 2
            )
        )
        assert daemon.process.poll() is None


def test_webhookd_inherits_its_database_from_supervisord(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://db.example.com/app")
    with supervisord(
        tmp_path, 'echo "database $DATABASE_URL under $SUPERVISOR_ENABLED"\nexec sleep 60'
    ) as daemon:
        eventually(lambda: "database postgresql://db.example.com/app under 1" in daemon.output)
