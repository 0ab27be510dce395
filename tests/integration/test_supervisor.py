"""Real forks, real signals: the supervisor is a process of its own and its workers report what happens to them."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.supervised import Supervised, is_alive, supervised
from tests.supervised_program import Mode
from tests.waiting import eventually


def all_working(program: Supervised, count: int = 3) -> dict[int, int]:
    """Wait for the first workers; return their pids by number."""
    return {number: program.working(number)["pid"] for number in range(1, count + 1)}


def test_each_worker_gets_its_name_port_and_incarnation_and_no_siblings_sockets(tmp_path: Path) -> None:
    with supervised(tmp_path, node="berlin") as program:
        seats = [program.working(number) for number in (1, 2, 3)]
    assert [seat["name"] for seat in seats] == ["berlin/worker-1", "berlin/worker-2", "berlin/worker-3"]
    assert len({seat["port"] for seat in seats}) == 3
    assert len({seat["incarnation"] for seat in seats}) == 3
    assert [seat["sockets"] for seat in seats] == [1, 1, 1]


def test_without_a_node_workers_are_named_by_number_alone(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=1) as program:
        assert program.working(1)["name"] == "worker-1"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_drains_every_worker_and_exits_0(tmp_path: Path, signum: signal.Signals) -> None:
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


def test_a_worker_that_does_not_drain_in_time_is_killed_and_the_exit_code_is_1(tmp_path: Path) -> None:
    with supervised(tmp_path, {2: Mode.STUBBORN}, drain_timeout=0.1) as program:
        pids = all_working(program)
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 1
        assert not is_alive(pids[2])
        assert [line["worker"] for line in program.logs("worker killed: its time to leave was up")] == ["worker-2"]


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
        assert {order for line in program.reports("draining") for order in line["orders"]} == {"SIGQUIT"}


def test_a_hung_worker_prints_its_stacks_and_is_replaced_while_its_siblings_go_on(tmp_path: Path) -> None:
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
        # Whatever beats were on their way have been read by then.
        eventually(lambda: time.monotonic() > frozen_at + 0.3)
        program.signal(signal.SIGSTOP)
        eventually(lambda: time.monotonic() > frozen_at + 4.0)
        program.signal(signal.SIGCONT)
        program.signal(signal.SIGTTIN)
        eventually(lambda: program.logs("worker started")[3:])  # so it has judged the silence
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
        assert len(program.reports("started", number=1)) == len(program.reports("started", number=3)) == 1
        assert is_alive(one["pid"]) and is_alive(three["pid"])


def test_a_killed_worker_comes_back_on_its_port_and_one_sibling_hears_of_it(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        all_working(program)
        before = program.working(2)
        os.kill(before["pid"], signal.SIGKILL)
        after = program.working(2, besides=before["pid"])
        lost = eventually(lambda: program.reports("lost"))
        assert [line["incarnation"] for line in lost] == [before["incarnation"]]
        assert lost[0]["number"] in (1, 3)
        assert after["port"] == before["port"]
        assert after["incarnation"] != before["incarnation"]
        assert after["lost"] == []
        with socket.create_connection(("127.0.0.1", after["port"]), timeout=10):
            pass


def test_the_only_worker_s_replacement_hears_of_its_death_in_its_seat(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=1) as program:
        before = program.working(1)
        os.kill(before["pid"], signal.SIGKILL)
        assert program.working(1, besides=before["pid"])["lost"] == [before["incarnation"]]


def test_a_keeper_that_dies_soon_after_is_inherited_from_together_with_what_it_was_told(tmp_path: Path) -> None:
    with supervised(tmp_path, workers=2) as program:
        all_working(program, 2)
        first, keeper = program.working(1), program.working(2)
        os.kill(first["pid"], signal.SIGKILL)
        eventually(lambda: program.reports("lost", pid=keeper["pid"]))
        heir = program.working(1, besides=first["pid"])
        os.kill(keeper["pid"], signal.SIGKILL)
        eventually(lambda: len(program.reports("lost", pid=heir["pid"])) == 2)
        heard = {line["incarnation"] for line in program.reports("lost", pid=heir["pid"])}
        assert heard == {first["incarnation"], keeper["incarnation"]}


def test_a_worker_that_drained_by_itself_is_replaced_and_nobody_is_told(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        pids = all_working(program)
        os.kill(pids[1], signal.SIGTERM)
        program.working(1, besides=pids[1])
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 0
        assert not program.reports("lost")


def test_when_the_supervisor_is_killed_its_workers_drain_and_leave(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        pids = all_working(program)
        os.kill(pids[2], signal.SIGKILL)  # so that one of them was forked beside living siblings
        pids[2] = program.working(2, besides=pids[2])["pid"]
        program.signal(signal.SIGKILL)
        program.exit_code()
        eventually(lambda: not any(is_alive(pid) for pid in pids.values()))
        assert sorted(line["number"] for line in program.reports("draining") if line["orphan"]) == [1, 2, 3]


def test_a_worker_that_stays_does_not_hide_the_supervisor_s_death_from_its_siblings(tmp_path: Path) -> None:
    with supervised(tmp_path, {3: Mode.STUBBORN}) as program:
        pids = all_working(program)
        program.signal(signal.SIGKILL)
        program.exit_code()
        eventually(lambda: not (is_alive(pids[1]) or is_alive(pids[2])))
        assert is_alive(pids[3])


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
        after = {number: program.working(number, besides=before[number]["pid"]) for number in (1, 2, 3)}
        eventually(lambda: len(program.logs("ready")) == 2)
        assert [after[number]["timeout"] for number in (1, 2, 3)] == [9.0, 9.0, 9.0]
        assert [after[number]["port"] for number in (1, 2, 3)] == [before[number]["port"] for number in (1, 2, 3)]
        assert fewest_working(program, 3) == 2
        program.signal(signal.SIGTERM)
        assert program.exit_code() == 0
        assert not program.reports("lost")


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
    changes = [1 if line["event"] == "working" else -1 for line in program.reports("working", "draining")]
    totals = [sum(changes[: n + 1]) for n in range(len(changes))]
    return min(totals[totals.index(count) :])


def test_worn_workers_are_replaced_one_at_a_time_on_their_ports_and_not_as_crashes(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.SLOW_BOOT, 2: Mode.WORN, 3: Mode.WORN}) as program:
        worn = {number: program.working(number) for number in (2, 3)}
        for number in (2, 3):
            program.set_mode(number, Mode.WORK)
        program.set_mode(1, Mode.WORK)
        booting = eventually(lambda: program.reports("booting"))[0]["pid"]
        assert not program.logs("worker draining"), "two of three work: none of them is taken away"
        os.kill(booting, signal.SIGKILL)
        after = {number: program.working(number, besides=worn[number]["pid"]) for number in (2, 3)}
        assert [after[number]["port"] for number in (2, 3)] == [worn[number]["port"] for number in (2, 3)]
        assert fewest_working(program, 3) == 2
        leaving = [line for line in program.logs("worker exited") if line["worker_pid"] != booting]
        assert [(line["status"], "restart_in_s" in line) for line in leaving] == [(0, False), (0, False)]
        assert len(program.logs("worker started")) == 6
        assert is_alive(program.working(1)["pid"])


def test_a_reload_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    with supervised(tmp_path) as program:
        pids = all_working(program)
        (tmp_path / "reload.json").write_text(json.dumps({"unusable": "retry_base is -1: must be above 0"}))
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


def test_workers_that_can_never_run_stop_everything_with_one_line_and_exit_2(tmp_path: Path) -> None:
    with supervised(tmp_path, dict.fromkeys((1, 2, 3), Mode.REFUSE)) as program:
        assert program.exit_code() == 2
        lines = [line for line in program.stderr.splitlines() if "schema 99" in line]
        assert lines == ["webhookd: schema 99 is newer than this webhookd: upgrade it"]
        assert "Traceback" not in program.stderr


def test_one_worker_that_can_never_run_has_the_others_drained(tmp_path: Path) -> None:
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


def test_a_worker_more_that_finds_no_port_leaves_the_others_working(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with supervised(tmp_path, workers=1, metrics_port=port - 1) as program:
            program.working(1)
            program.signal(signal.SIGTTIN)
            assert str(port) in eventually(lambda: program.logs("no worker added"))[0]["reason"]
            program.signal(signal.SIGTERM)
            assert program.exit_code() == 0


def test_an_idle_supervisor_does_not_tick(tmp_path: Path) -> None:
    with supervised(tmp_path, {1: Mode.ONE_BEAT}, workers=1, heartbeat_timeout=3600.0) as program:
        program.working(1)
        eventually(lambda: program.logs("ready"))

        def wakeups() -> int:
            status = Path(f"/proc/{program.process.pid}/status").read_text()
            return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

        settled_at = time.monotonic()
        eventually(lambda: time.monotonic() > settled_at + 0.5)
        before, since = wakeups(), time.monotonic()
        eventually(lambda: time.monotonic() > since + 1.5)
        assert wakeups() - before <= 2
