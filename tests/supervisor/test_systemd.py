"""What the service manager is told: a real datagram socket stands in for systemd."""

import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.supervised import Supervised, supervised
from tests.support.supervised_program import Mode
from tests.support.waiting import eventually
from webhookd.supervisor.systemd import Notifier


class Manager:
    """Listens on a notification socket and keeps every line, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        while True:
            try:
                self.lines += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return self.lines

    def states(self) -> list[str]:
        """Return what was heard besides status lines and the watchdog."""
        return [
            line
            for line in self.heard()
            if not line.startswith(("STATUS=", "WATCHDOG=", "MONOTONIC_USEC="))
        ]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def any_manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@webhookd-test-{uuid.uuid4()}"
    manager = Manager(name)
    yield manager
    manager.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "notify"))
    yield manager
    manager.close()


def wait_for(manager: Manager, *states: str) -> None:
    eventually(lambda: manager.states() == list(states), what=f"{states}; heard {manager.heard()}")


def test_ready_reloading_and_stopping_come_in_their_order(
    any_manager: Manager, tmp_path: Path
) -> None:
    with supervised(tmp_path, environ={"NOTIFY_SOCKET": any_manager.name}) as program:
        wait_for(any_manager, "READY=1")
        before_us = time.monotonic_ns() // 1000
        program.signal(signal.SIGHUP)
        wait_for(any_manager, "READY=1", "RELOADING=1", "READY=1")
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 0
        wait_for(any_manager, "READY=1", "RELOADING=1", "READY=1", "STOPPING=1")
    stamps = [
        int(line.partition("=")[2])
        for line in any_manager.lines
        if line.startswith("MONOTONIC_USEC=")
    ]
    assert len(stamps) == 1
    assert before_us <= stamps[0] <= time.monotonic_ns() // 1000
    assert "STATUS=3 of 3 workers running" in any_manager.lines


def test_ready_waits_for_every_worker_s_first_beat(manager: Manager, tmp_path: Path) -> None:
    with supervised(tmp_path, {3: Mode.MUTE}, environ={"NOTIFY_SOCKET": manager.name}) as program:
        program.working(1)
        program.working(2)
        eventually(lambda: "STATUS=2 of 3 workers running" in manager.heard())
        assert manager.states() == []
        mute = eventually(lambda: program.reports("started", number=3))[0]["pid"]
        program.set_mode(3, Mode.WORK)
        os.kill(mute, signal.SIGKILL)
        wait_for(manager, "READY=1")


def test_ready_comes_after_ten_seconds_even_if_no_worker_beats(
    manager: Manager, tmp_path: Path
) -> None:
    started_at = time.monotonic()
    with supervised(tmp_path, {1: Mode.MUTE}, workers=1, environ={"NOTIFY_SOCKET": manager.name}):
        wait_for(manager, "READY=1")
    assert time.monotonic() - started_at >= 10


def test_a_refused_reload_is_not_announced(manager: Manager, tmp_path: Path) -> None:
    (tmp_path / "reload.json").write_text('{"unusable": "no"}')
    with supervised(tmp_path, workers=1, environ={"NOTIFY_SOCKET": manager.name}) as program:
        wait_for(manager, "READY=1")
        program.signal(signal.SIGHUP)
        eventually(lambda: program.logs("reload refused, nothing changed"))
        program.signal(signal.SIGTERM)
        program.exit_code()
        wait_for(manager, "READY=1", "STOPPING=1")


def test_workers_do_not_inherit_the_notification_socket(manager: Manager, tmp_path: Path) -> None:
    with supervised(tmp_path, workers=1, environ={"NOTIFY_SOCKET": manager.name}) as program:
        assert program.working(1)["notify_socket"] is None


def test_the_watchdog_is_fed_while_the_loop_turns_and_not_while_it_hangs(
    manager: Manager, tmp_path: Path
) -> None:
    environ = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "200000"}
    with supervised(tmp_path, {1: Mode.ONE_BEAT}, workers=1, environ=environ) as program:
        eventually(lambda: manager.heard().count("WATCHDOG=1") >= 3)
        program.signal(signal.SIGSTOP)
        eventually(lambda: state_of(program) == "T")
        before, since = manager.heard().count("WATCHDOG=1"), time.monotonic()
        eventually(lambda: time.monotonic() > since + 0.5)
        assert manager.heard().count("WATCHDOG=1") == before
        program.signal(signal.SIGCONT)
        eventually(lambda: manager.heard().count("WATCHDOG=1") >= before + 3)


def state_of(program: Supervised) -> str:
    return Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "2000000"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "0"},
    ],
)
def test_a_watchdog_that_is_not_meant_for_this_process_is_never_due(
    environ: dict[str, str],
) -> None:
    assert Notifier(environ).keep_alive_at is None


def test_the_watchdog_is_due_at_half_its_limit(manager: Manager) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.name,
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    notifier = Notifier(environ)
    notifier.keep_alive(100.0)
    notifier.keep_alive(101.4)
    assert manager.heard() == ["WATCHDOG=1"]
    assert notifier.keep_alive_at == 101.5
    notifier.keep_alive(101.5)
    assert manager.heard() == ["WATCHDOG=1", "WATCHDOG=1"]


def test_the_same_status_is_sent_once(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.name})
    for text in ("a", "a", "b", "a"):
        notifier.status(text)
    assert manager.heard() == ["STATUS=a", "STATUS=b", "STATUS=a"]


def test_a_manager_that_is_gone_is_logged_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "absent")}).ready()
    assert "service manager not reached" in caplog.text


def test_without_a_manager_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({})
    notifier.ready()
    notifier.status("running")
    assert not caplog.records
