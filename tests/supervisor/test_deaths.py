"""Workers that hang, crash or are killed, and a supervisor that is killed: which worker is
replaced, which is told of it, which stays.
"""

import os
import signal
import socket
import time
from pathlib import Path

from tests.support.supervised import all_working, is_alive, supervised
from tests.support.supervised_program import Mode
from tests.support.waiting import eventually


def test_a_hung_worker_prints_its_stacks_and_is_replaced_while_its_siblings_go_on(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, heartbeat_timeout=1.5) as program:
        pids = all_working(program)
        os.kill(pids[2], signal.SIGUSR1)
        replacement = program.working(2, besides=pids[2])
        assert "Fatal Python error: Aborted" in program.stderr
        assert "in hang_here" in program.stderr
        assert program.logs("worker hung: no heartbeat")[0]["worker"] == "worker-2"
        assert program.logs("worker exited")[0]["signal"] == "SIGABRT"
        assert replacement["number"] == 2
        assert is_alive(pids[1]) and is_alive(pids[3])


def test_a_worker_that_was_stopped_by_a_signal_is_killed_and_replaced(tmp_path: Path) -> None:
    with supervised(tmp_path, heartbeat_timeout=1.5) as program:
        pids = all_working(program)
        os.kill(pids[3], signal.SIGSTOP)
        program.working(3, besides=pids[3])
        assert program.logs("worker exited")[0]["signal"] == "SIGKILL"


def test_a_worker_that_never_beats_is_replaced(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.MUTE}, heartbeat_timeout=1.5) as program:
        mute = eventually(lambda: program.reports("started", number=1))[0]["pid"]
        program.set_mode(1, Mode.WORK)
        program.working(1, besides=mute)
        assert program.logs("worker hung: no heartbeat")[0]["worker_pid"] == mute


def test_silence_while_everything_was_frozen_is_no_hang(tmp_path: Path) -> None:
    with supervised(tmp_path, heartbeat_timeout=1.5) as program:
        pids = all_working(program)
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)
        frozen_at = time.monotonic()
        # The supervisor has read the last beats by then.
        eventually(lambda: time.monotonic() > frozen_at + 0.3)
        program.signal(signal.SIGSTOP)
        eventually(lambda: time.monotonic() > frozen_at + 4.0)
        program.signal(signal.SIGCONT)
        program.signal(signal.SIGTTIN)
        eventually(lambda: program.logs("worker started")[3:])  # so it has seen the silence
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
        program.working(4)
        assert not program.logs("worker hung: no heartbeat")


def test_a_crash_loop_backs_off_and_leaves_the_siblings_alone(tmp_path: Path) -> None:
    with supervised(tmp_path, {2: Mode.CRASH}) as program:
        one, three = program.working(1), program.working(3)
        exits = eventually(lambda: program.logs("worker exited")[3:])
        exits = program.logs("worker exited")
        assert [line["status"] for line in exits[:4]] == [1, 1, 1, 1]
        assert exits[0]["restart_in_s"] == 0
        for line, ceiling_s in zip(exits[1:], (0.5, 1.0, 2.0), strict=False):
            assert ceiling_s / 2 - 0.01 <= line["restart_in_s"] <= ceiling_s
        program.set_mode(2, Mode.WORK)
        program.working(2)
        assert (
            len(program.reports("started", number=1))
            == len(program.reports("started", number=3))
            == 1
        )
        assert is_alive(one["pid"]) and is_alive(three["pid"])


def test_a_killed_worker_comes_back_on_its_port_and_one_sibling_is_told(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        all_working(program)
        before = program.working(2)
        os.kill(before["pid"], signal.SIGKILL)
        after = program.working(2, besides=before["pid"])
        told = eventually(lambda: program.reports("told of death"))
        assert [line["incarnation"] for line in told] == [before["incarnation"]]
        assert told[0]["number"] in (1, 3)
        assert after["port"] == before["port"]
        assert after["incarnation"] != before["incarnation"]
        assert after["dead_siblings"] == []
        with socket.create_connection(("127.0.0.1", after["port"]), timeout=10):
            pass


def test_the_only_worker_s_replacement_learns_of_its_death_from_its_lifeline(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, workers=1) as program:
        before = program.working(1)
        os.kill(before["pid"], signal.SIGKILL)
        assert program.working(1, besides=before["pid"])["dead_siblings"] == [before["incarnation"]]


def test_when_a_recipient_dies_soon_the_next_is_told_of_it_and_of_what_it_was_told(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, workers=2) as program:
        all_working(program, 2)
        first, recipient = program.working(1), program.working(2)
        os.kill(first["pid"], signal.SIGKILL)
        eventually(lambda: program.reports("told of death", pid=recipient["pid"]))
        successor = program.working(1, besides=first["pid"])
        os.kill(recipient["pid"], signal.SIGKILL)
        eventually(lambda: len(program.reports("told of death", pid=successor["pid"])) == 2)
        told = {
            line["incarnation"] for line in program.reports("told of death", pid=successor["pid"])
        }
        assert told == {first["incarnation"], recipient["incarnation"]}


def test_a_worker_that_drained_by_itself_is_replaced_and_no_sibling_is_told(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        pids = all_working(program)
        os.kill(pids[1], signal.SIGTERM)
        program.working(1, besides=pids[1])
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 0
        assert not program.reports("told of death")


def test_when_the_supervisor_is_killed_its_workers_drain_and_exit(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        pids = all_working(program)
        os.kill(pids[2], signal.SIGKILL)  # so that one of them was forked beside living siblings
        pids[2] = program.working(2, besides=pids[2])["pid"]
        program.signal(signal.SIGKILL)
        program.exit_code()
        eventually(lambda: not any(is_alive(pid) for pid in pids.values()))
        assert sorted(line["number"] for line in program.reports("draining") if line["orphan"]) == [
            1,
            2,
            3,
        ]


def test_a_worker_that_stays_does_not_hide_the_supervisor_s_death_from_its_siblings(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, {3: Mode.STUBBORN}) as program:
        pids = all_working(program)
        program.signal(signal.SIGKILL)
        program.exit_code()
        eventually(lambda: not (is_alive(pids[1]) or is_alive(pids[2])))
        assert is_alive(pids[3])
