"""A supervisor with real forks and signals: what its workers get, how it stops them, and how it
ends when they cannot run.
"""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.supervised import all_working, is_alive, supervised
from tests.support.supervised_program import Mode
from tests.support.waiting import eventually


def test_each_worker_gets_its_name_port_and_incarnation_and_no_siblings_sockets(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, node="berlin") as program:
        workers = [program.working(number) for number in (1, 2, 3)]
    assert [worker["name"] for worker in workers] == [
        "berlin/worker-1",
        "berlin/worker-2",
        "berlin/worker-3",
    ]
    assert len({worker["port"] for worker in workers}) == 3
    assert len({worker["incarnation"] for worker in workers}) == 3
    assert [worker["sockets"] for worker in workers] == [1, 1, 1]


def test_without_a_node_workers_are_named_by_number_alone(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=1) as program:
        assert program.working(1)["name"] == "worker-1"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_drains_every_worker_and_exits_0(
    tmp_path: Path, signum: signal.Signals
) -> None:
    with supervised(tmp_path) as program:
        all_working(program)
        program.signal(signum)
        assert program.exit_code() == 0
        assert sorted(line["number"] for line in program.reports("draining")) == [1, 2, 3]


def test_control_c_in_a_terminal_reaches_the_whole_group_and_still_drains(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        all_working(program)
        os.killpg(program.process.pid, signal.SIGINT)
        assert program.exit_code() == 0
        assert len(program.reports("draining")) >= 3


def test_a_worker_stopped_while_it_boots_counts_as_drained(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.SLOW_BOOT}, workers=1) as program:
        eventually(lambda: program.reports("booting"))
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 0


def test_a_worker_that_does_not_drain_in_time_is_killed_and_the_exit_code_is_1(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, {2: Mode.STUBBORN}, drain_timeout=0.1) as program:
        pids = all_working(program)
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 1
        assert not is_alive(pids[2])
        assert [
            line["worker"] for line in program.logs("worker killed: it did not stop in time")
        ] == ["worker-2"]


def test_a_worker_that_fails_while_it_drains_makes_the_exit_code_1(tmp_path: Path) -> None:
    with supervised(tmp_path, {2: Mode.FAIL_DRAIN}) as program:
        all_working(program)
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 1


def test_a_second_stop_signal_kills_at_once(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.STUBBORN}, drain_timeout=3600.0) as program:
        all_working(program)
        program.signal(signal.SIGTERM)
        eventually(lambda: len(program.logs("worker exited")) == 2)
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 1


def test_quit_does_not_wait_for_a_drain_and_exits_0(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.STUBBORN}, drain_timeout=3600.0) as program:
        all_working(program)
        program.signal(signal.SIGQUIT)
        assert program.exit_code() == 0
        assert {name for line in program.reports("draining") for name in line["signals"]} == {
            "SIGQUIT"
        }


def test_workers_that_can_never_run_stop_everything_with_one_line_and_exit_2(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, dict.fromkeys((1, 2, 3), Mode.REFUSE)) as program:
        assert program.exit_code() == 2
        lines = [line for line in program.stderr.splitlines() if "schema 99" in line]
        assert lines == ["webhookd: schema 99 is newer than this webhookd: upgrade it"]
        assert "Traceback" not in program.stderr


def test_one_worker_that_can_never_run_makes_the_others_drain(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        pids = all_working(program)
        program.set_mode(2, Mode.REFUSE)
        os.kill(pids[2], signal.SIGKILL)
        assert program.exit_code() == 2
        assert sorted(line["number"] for line in program.reports("draining")) == [1, 3]


def test_an_exit_code_2_without_a_reason_stops_everything_too(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.EXIT_TWO}, workers=1) as program:
        assert program.exit_code() == 2
        assert program.stderr.splitlines()[-1].startswith("webhookd: worker-1 cannot run")


def test_a_taken_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with supervised(tmp_path, metrics_port=port - 1) as program:
            assert program.exit_code() == 2
            line = program.stderr.splitlines()[-1]
            assert line.startswith("webhookd: ") and str(port) in line and "--metrics-port" in line
            assert not program.reports()
            assert "Traceback" not in program.stderr


def test_an_added_worker_whose_port_is_taken_leaves_the_others_working(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with supervised(tmp_path, workers=1, metrics_port=port - 1) as program:
            program.working(1)
            program.signal(signal.SIGTTIN)
            assert str(port) in eventually(lambda: program.logs("worker not added"))[0]["reason"]
            program.signal(signal.SIGTERM)
            assert program.exit_code() == 0


def test_an_idle_supervisor_does_not_tick(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.ONE_BEAT}, workers=1, heartbeat_timeout=3600.0) as program:
        program.working(1)
        eventually(lambda: program.logs("ready"))

        def wakeups() -> int:
            status = Path(f"/proc/{program.process.pid}/status").read_text()
            return sum(
                int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line
            )

        settled_at = time.monotonic()
        eventually(lambda: time.monotonic() > settled_at + 0.5)
        before, since = wakeups(), time.monotonic()
        eventually(lambda: time.monotonic() > since + 1.5)
        assert wakeups() - before <= 2
