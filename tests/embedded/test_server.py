"""The embedded PostgreSQL: who may use a directory, what survives, and which process ends with
which.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from tests.support.waiting import eventually
from webhookd.embedded import programs
from webhookd.embedded import server as embedded
from webhookd.embedded.directory import default_directory
from webhookd.errors import UnusableError, WebhookdError

ROOT = os.geteuid() == 0
# Starts a server on a folder, prints its pid, and runs until it is killed or its input ends.
HOLDER = """
import sys, pathlib
from webhookd.embedded import server as embedded
server = embedded.start(pathlib.Path(sys.argv[1]))
print(server.pid, flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A new directory that the server's account can pass, unlike pytest's own under root."""
    path = Path(tempfile.mkdtemp(prefix="webhookd-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running(folder: Path, **options: object) -> Iterator[embedded.Embedded]:
    server = embedded.start(folder, **options)  # type: ignore[arg-type]  # passed on as they are
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Yield a process that runs a server on *folder*, and the server's pid."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        try:
            yield holder, int(holder.stdout.readline())
        finally:
            holder.kill()


def dead(pid: int) -> bool:
    """A zombie is dead too: in a container it may be reaped seconds later."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def modes(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mode for path in (folder, *folder.parents)}


def test_data_survives_a_restart(home: Path) -> None:
    with running(home / "pg") as server, psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    with running(home / "pg") as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchall() == [(42,)]


def test_no_other_user_can_reach_the_server(home: Path) -> None:
    with running(home / "pg") as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        for folder in (server.directory, server.directory / "data", server.directory / "socket"):
            assert folder.stat().st_mode & 0o077 == 0


def test_the_server_dies_with_its_killed_parent_and_the_next_start_finds_the_data(
    home: Path,
) -> None:
    with held_by_another_process(home / "pg") as (holder, server_pid):
        holder.kill()
        holder.wait()
        with running(home / "pg") as server:
            assert dead(server_pid)
            with psycopg.connect(server.dsn) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_killed_parent_leaves_no_server_behind(home: Path) -> None:
    with held_by_another_process(home / "pg") as (holder, server_pid):
        assert not dead(server_pid)
        holder.kill()
        eventually(lambda: dead(server_pid), what="the server ends")


def test_a_second_start_on_a_folder_is_refused_and_names_its_user(home: Path) -> None:
    with held_by_another_process(home / "pg") as (holder, server_pid):
        with pytest.raises(UnusableError) as refused:
            embedded.start(home / "pg")
        assert str(holder.pid) in str(refused.value)
        assert str(home / "pg") in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not dead(server_pid)


def test_a_forked_child_neither_holds_the_folder_nor_stops_the_server(home: Path) -> None:
    with running(home / "pg") as server:
        first = server.pid
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # a worker that outlives its parent
            server.stop()
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        try:
            assert server.alive()
            server.stop()
            with running(home / "pg") as again:
                assert again.pid != first
        finally:
            os.close(writer)
            os.waitpid(child, 0)


def test_a_crashed_server_is_launched_again_with_the_same_dsn(home: Path) -> None:
    with running(home / "pg") as server:
        with psycopg.connect(server.dsn) as connection:
            connection.execute("CREATE TABLE kept ()")
        server.kill()
        assert not server.alive()
        server.launch()
        with psycopg.connect(server.dsn) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_the_pid_file_of_a_crash_is_no_obstacle_when_its_pid_belongs_to_another_process(
    home: Path,
) -> None:
    with running(home / "pg") as server:
        server.kill()
    stale = home / "pg" / "data" / "postmaster.pid"
    lines = stale.read_text().splitlines()
    account = programs.server_account()
    # PostgreSQL itself believes any living process of its own account.
    stranger = subprocess.Popen(["sleep", "600"], **account.popen_arguments())
    try:
        stale.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        with running(home / "pg") as server:
            assert server.alive()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_folder_with_other_files_is_refused_and_left_alone(home: Path) -> None:
    folder = home / "photos"
    folder.mkdir(mode=0o755)
    (folder / "holiday.jpg").write_bytes(b"")
    before = folder.stat()
    with pytest.raises(UnusableError, match="not empty"):
        embedded.start(folder)
    assert os.listdir(folder) == ["holiday.jpg"]
    assert (folder.stat().st_mode, folder.stat().st_uid) == (before.st_mode, before.st_uid)


@pytest.mark.parametrize("name", ["x" * 120, "a,b", 'say "hi"', "it's", "back\\slash and space"])
def test_any_name_of_a_folder_will_do(home: Path, name: str) -> None:
    with running(home / name) as server, psycopg.connect(server.dsn) as connection:
        sockets = Path(connection.info.host)
        assert (sockets / ".s.PGSQL.5432").is_socket()
    if not sockets.is_relative_to(home):
        assert not sockets.exists()


def test_a_server_that_does_not_start_says_why_in_one_line(home: Path) -> None:
    with pytest.raises(WebhookdError) as failed:
        embedded.start(home / "pg", settings=["shared_buffers=nonsense"])
    assert "nonsense" in str(failed.value)
    assert "postgres.log" in str(failed.value)
    assert "\n" not in str(failed.value)
    with running(home / "pg") as server:  # the failure released the folder
        assert server.alive()


def test_an_interrupted_initdb_leaves_nothing_that_looks_like_a_database(home: Path) -> None:
    (home / "pg" / "data.partial").mkdir(parents=True)
    (home / "pg" / "data.partial" / "PG_VERSION").write_text("18\n")
    (home / "pg" / "lock").touch()
    with running(home / "pg") as server:
        assert server.alive()
        assert not (home / "pg" / "data.partial").exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finder = SimpleNamespace(find_spec=lambda name: None)
    monkeypatch.setattr(programs, "importlib", SimpleNamespace(util=finder))
    with pytest.raises(UnusableError, match=r"pip install 'webhookd\[embedded\]'.*--dsn"):
        embedded.start(Path("/nonexistent"))


def test_a_thread_other_than_the_main_one_cannot_start_it(home: Path) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            embedded.start(home / "pg")
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


def test_the_default_folder_follows_the_xdg_specification() -> None:
    assert default_directory({}, root=True) == Path("/var/lib/webhookd/postgres")
    assert default_directory({"XDG_DATA_HOME": "/d"}, root=False) == Path("/d/webhookd/postgres")
    for unset in ({}, {"XDG_DATA_HOME": ""}, {"XDG_DATA_HOME": "relative"}):
        assert default_directory(unset, root=False) == Path("~/.local/share/webhookd/postgres")


@pytest.mark.skipif(not ROOT, reason="NOT ROOT: only root switches to another account")
def test_under_root_programs_out_of_reach_are_copied_and_no_mode_is_changed(home: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    package = programs.package_binaries().parent.parent
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.parent / name, closed / name, symlinks=True)
    before = modes(closed / package.name)
    for _ in range(2):  # copies, then uses the copy
        with running(home / "pg", binaries=closed / package.name / "pginstall" / "bin") as server:
            assert server.alive()
            assert os.stat(f"/proc/{server.pid}").st_uid == programs.server_account().uid != 0
            copies = list((home / "pg").glob("program-*"))
            assert len(copies) == 1
    assert modes(closed / package.name) == before


@pytest.mark.skipif(not ROOT, reason="NOT ROOT: only root switches to another account")
def test_under_root_a_folder_out_of_reach_is_refused_and_no_mode_is_changed(home: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(UnusableError, match="cannot be reached by the user"):
        embedded.start(closed / "pg")
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(
    not ROOT, reason="NOT ROOT: every other test here runs as an ordinary user already"
)
def test_an_ordinary_user_can_start_it(home: Path) -> None:
    os.chown(home, 65534, 65534)
    user = {"user": 65534, "group": 65534, "extra_groups": []}
    try:
        subprocess.run(
            [sys.executable, "-c", "import webhookd.embedded.server"],
            check=True,
            capture_output=True,
            **user,
        )  # type: ignore[call-overload]
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("UNREACHABLE: an ordinary user cannot run this Python or read this checkout")
    done = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-c", HOLDER, str(home / "pg")],
        input="",
        capture_output=True,
        text=True,
        check=True,
        **user,
    )
    assert int(done.stdout) > 0
    assert (home / "pg" / "data" / "PG_VERSION").stat().st_uid == 65534


def test_stop_ends_sessions_that_are_open_and_may_be_repeated(home: Path) -> None:
    with running(home / "pg") as server:
        with psycopg.connect(server.dsn) as connection:
            connection.execute("SELECT 1")
            pid = server.pid
            server.stop()
            assert pid is not None
            assert dead(pid)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
