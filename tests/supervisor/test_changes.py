"""What changes under a running supervisor: the number of workers, the configuration, and workers
that ask to be recycled.
"""

import json
import os
import signal
import socket
from pathlib import Path

from tests.support.supervised import Supervised, all_working, is_alive, supervised
from tests.support.supervised_program import Mode
from tests.support.waiting import eventually


def test_ttin_adds_a_worker_and_ttou_drains_it_and_closes_its_port(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=1) as program:
        program.working(1)
        program.signal(signal.SIGTTIN)
        second = program.working(2)
        program.signal(signal.SIGTTOU)
        eventually(lambda: program.reports("draining", number=2))
        eventually(lambda: program.logs("worker exited"))
        eventually(lambda: is_refused(second["port"]))
        program.signal(signal.SIGTTOU)
        eventually(lambda: len(program.logs("workers wanted")) == 3)
        assert [line["workers"] for line in program.logs("workers wanted")] == [2, 1, 1]
        assert is_alive(program.working(1)["pid"])
        assert len(program.logs("worker started")) == 2


def is_refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_a_worker_wanted_again_while_it_drains_is_replaced_on_its_port(tmp_path: Path) -> None:
    with supervised(tmp_path, {2: Mode.STUBBORN}, workers=2, drain_timeout=3600.0) as program:
        before = program.working(2)
        program.signal(signal.SIGTTOU)
        eventually(lambda: program.logs("worker draining"))
        program.set_mode(2, Mode.WORK)
        program.signal(signal.SIGTTIN)
        eventually(lambda: len(program.logs("workers wanted")) == 2)
        os.kill(before["pid"], signal.SIGKILL)
        assert program.working(2, besides=before["pid"])["port"] == before["port"]


def test_hup_replaces_one_worker_at_a_time_with_the_new_configuration(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        before = {number: program.working(number) for number in (1, 2, 3)}
        (tmp_path / "reload.json").write_text(json.dumps({"timeout": 9.0}))
        program.signal(signal.SIGHUP)
        after = {
            number: program.working(number, besides=before[number]["pid"]) for number in (1, 2, 3)
        }
        eventually(lambda: len(program.logs("ready")) == 2)
        assert [after[number]["timeout"] for number in (1, 2, 3)] == [9.0, 9.0, 9.0]
        assert [after[number]["port"] for number in (1, 2, 3)] == [
            before[number]["port"] for number in (1, 2, 3)
        ]
        assert fewest_working(program, 3) == 2
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 0
        assert not program.reports("told of death")


def test_drains_that_were_ordered_do_not_count_as_deaths(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=1) as program:
        pid = program.working(1)["pid"]
        for _ in range(3):
            program.signal(signal.SIGHUP)
            pid = program.working(1, besides=pid)["pid"]
        os.kill(pid, signal.SIGKILL)
        program.working(1, besides=pid)
        assert program.logs("worker exited")[-1]["restart_in_s"] == 0


def fewest_working(program: Supervised, count: int) -> int:
    """Return how many workers were left at the worst moment after *count* of them worked."""
    changes = [
        1 if line["event"] == "working" else -1 for line in program.reports("working", "draining")
    ]
    totals = [sum(changes[: n + 1]) for n in range(len(changes))]
    return min(totals[totals.index(count) :])


def test_workers_are_recycled_one_at_a_time_on_their_ports_and_not_as_crashes(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, {1: Mode.SLOW_BOOT, 2: Mode.RECYCLE, 3: Mode.RECYCLE}) as program:
        old = {number: program.working(number) for number in (2, 3)}
        for number in (2, 3):
            program.set_mode(number, Mode.WORK)
        program.set_mode(1, Mode.WORK)
        booting = eventually(lambda: program.reports("booting"))[0]["pid"]
        assert not program.logs("worker draining"), "only two of three work: none of them may drain"
        os.kill(booting, signal.SIGKILL)
        after = {number: program.working(number, besides=old[number]["pid"]) for number in (2, 3)}
        assert [after[number]["port"] for number in (2, 3)] == [
            old[number]["port"] for number in (2, 3)
        ]
        assert fewest_working(program, 3) == 2
        leaving = [line for line in program.logs("worker exited") if line["worker_pid"] != booting]
        assert [(line["status"], "restart_in_s" in line) for line in leaving] == [
            (0, False),
            (0, False),
        ]
        assert len(program.logs("worker started")) == 6
        assert is_alive(program.working(1)["pid"])


def test_a_reload_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        pids = all_working(program)
        (tmp_path / "reload.json").write_text(
            json.dumps({"unusable": "retry_base is -1: must be above 0"})
        )
        program.signal(signal.SIGHUP)
        line = eventually(lambda: program.logs("reload refused, nothing changed"))[0]
        assert line["reason"] == "retry_base is -1: must be above 0"
        program.signal(signal.SIGTTIN)  # the loop goes on
        program.working(4)
        assert all(is_alive(pid) for pid in pids.values())
        assert "Traceback" not in program.stderr


def test_a_reload_whose_workers_cannot_run_is_undone(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.REFUSE_99}) as program:
        pids = all_working(program)
        (tmp_path / "reload.json").write_text(json.dumps({"timeout": 99.0}))
        program.signal(signal.SIGHUP)
        eventually(lambda: program.logs("reload undone: a worker cannot run with it"))
        assert program.working(1, besides=pids[1])["timeout"] == 5.0
        eventually(lambda: len(program.logs("ready")) == 2)
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 0


def test_hup_may_change_the_number_of_workers(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=2) as program:
        pids = all_working(program, 2)
        (tmp_path / "reload.json").write_text(json.dumps({"workers": 3}))
        program.signal(signal.SIGHUP)
        program.working(3)
        program.working(1, besides=pids[1])
        eventually(lambda: len(program.logs("ready")) == 2)
        (tmp_path / "reload.json").write_text(json.dumps({"workers": 1}))
        program.signal(signal.SIGHUP)
        eventually(lambda: len(program.logs("ready")) == 3)
        eventually(lambda: len(program.reports("draining", number=3)) == 1)


def test_a_stop_signal_ends_a_reload_under_way(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        pids = all_working(program)
        program.set_mode(1, Mode.MUTE)
        program.signal(signal.SIGHUP)
        eventually(lambda: len(program.reports("started", number=1)) == 2)
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 0
        assert {line["pid"] for line in program.reports("started", number=2)} == {pids[2]}
        assert {line["pid"] for line in program.reports("started", number=3)} == {pids[3]}
