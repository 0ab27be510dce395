"""A pgbouncer between webhookd and a test's database."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.postgres import Database
from tests.support.waiting import eventually
from webhookd.embedded import programs

PORT = 6432


@contextmanager
def pgbouncer(
    database: Database,
    mode: str,
    *,
    sessions: int = 50,
    more: str = "",
    inside: Sequence[str] = (),
    addresses: str = "",
) -> Iterator[str]:
    """A pgbouncer in front of *database* with at most *sessions* there; yields the folder of its
    socket.

    *more* are lines of its configuration. *inside* is a command to run it with, such as `ip netns
    exec NAME`. It listens on *addresses*, too.
    """
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        pytest.skip("NO PGBOUNCER: install Debian's pgbouncer")
    server = conninfo_to_dict(database.dsn)
    account = programs.server_account()
    with tempfile.TemporaryDirectory(prefix="webhookd-", dir="/tmp") as folder:
        settings = Path(folder, "pgbouncer.ini")
        settings.write_text(
            f"[databases]\n{database.name} = host={server['host']} port={server['port']} "
            f"user={server['user']}\n[pgbouncer]\n"
            f"listen_addr = {addresses}\nlisten_port = {PORT}\nunix_socket_dir = "
            f"{folder}\npool_mode = {mode}\n"
            f"auth_type = any\nmax_client_conn = 100\ndefault_pool_size = {sessions}\n"
            f"ignore_startup_parameters = extra_float_digits\n{more}\n"
        )
        settings.chmod(0o644)
        os.chown(folder, account.uid, account.gid)
        switch = ["-u", account.name] if account.switch else []
        process = subprocess.Popen(
            [*inside, program, *switch, str(settings)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: _listens(f"{folder}/.s.PGSQL.{PORT}"), what="pgbouncer listens")
            yield folder
        finally:
            process.send_signal(signal.SIGQUIT)  # at once
            process.wait(20)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


def through(database: Database, host: str) -> str:
    """Return the DSN of *database* by way of the pgbouncer at *host*, an address or the folder of
    its socket.
    """
    return make_conninfo(database.dsn, host=host, port=PORT)
