"""The directory of the embedded PostgreSQL: where it is, who may enter it, which process owns
it.
"""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from webhookd.embedded.programs import Account
from webhookd.errors import UnusableError

PORT = 5432
# sun_path holds 108 bytes with its final zero (unix(7)).
MAX_SOCKET_PATH = 107
# A directory that contains only these counts as empty.
IGNORED = frozenset({"lost+found"})


def resolve_directory(directory: Path | None) -> Path:
    """Return *directory*, or the default one, as an absolute path. Raise `RuntimeError` where that
    needs a home directory and there is none.
    """
    chosen = directory or default_directory(os.environ, root=os.geteuid() == 0)
    return chosen.expanduser().absolute()


def default_directory(environment: Mapping[str, str], *, root: bool) -> Path:
    """Return the directory where none is named: below /var/lib for root, else below the user's data
    directory (XDG Base Directory Specification).
    """
    if root:
        return Path("/var/lib/webhookd/postgres")
    data_home = environment.get("XDG_DATA_HOME", "")
    # The specification says to ignore a relative path.
    base = Path(data_home) if data_home.startswith("/") else Path("~/.local/share")
    return base / "webhookd" / "postgres"


def prepare_directory(directory: Path, account: Account) -> None:
    """Create *directory* for *account*. Raise `UnusableError` where it has other files in it or the
    account cannot reach it.
    """
    for missing in reversed([path for path in directory.parents if not path.exists()]):
        missing.mkdir(exist_ok=True)
        if account.switch:
            # The server's account must pass. It was created here, so its mode is ours to change.
            missing.chmod(0o755)
    directory.mkdir(mode=0o700, exist_ok=True)
    foreign = {entry.name for entry in directory.iterdir()} - IGNORED
    if foreign and "lock" not in foreign:
        raise UnusableError(
            f"{directory} is not empty and has no database of webhookd's: name another folder"
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
                f"{directory} cannot be reached by the user {account.name}, which runs "
                "PostgreSQL under root: name another folder with --embedded"
            )


def lock_directory(directory: Path) -> int:
    """Lock the directory for this process and return the lock's file descriptor. A POSIX lock:
    forked workers must not inherit it.
    """
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


def socket_directory(directory: Path, account: Account) -> Path:
    """Create and return the directory of the socket: below *directory*, or below /tmp where that
    path is too long or has characters that PostgreSQL cannot read.
    """
    sockets = directory / "socket"
    path = os.fsencode(sockets / f".s.PGSQL.{PORT}")
    # A comma ends the name for libpq and the server; a double quote begins a quotation for the
    # server.
    if len(path) > MAX_SOCKET_PATH or b"," in path or b'"' in path:
        sockets = Path(tempfile.mkdtemp(prefix="webhookd-", dir="/tmp"))
    sockets.mkdir(mode=0o700, exist_ok=True)
    if account.switch:
        os.chown(sockets, account.uid, account.gid)
    return sockets


def rotate_log(directory: Path, limit_bytes: int = 10_000_000) -> None:
    current = directory / "postgres.log"
    if current.exists() and current.stat().st_size > limit_bytes:
        current.replace(directory / "postgres.log.1")
