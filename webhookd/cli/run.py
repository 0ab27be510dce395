"""The daemon: choose the database, start the embedded one if none is named, run the supervisor.

This process forks the workers, so it has one thread and never loads libpq: checks that need a
connection run in a child (`_check_in_child`, `_migrate`).
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from webhookd import logs
from webhookd.cli.output import print_table
from webhookd.config import load as configuration
from webhookd.config.load import LoadedConfig
from webhookd.config.options import OPTIONS, Config
from webhookd.embedded import server as embedded
from webhookd.errors import UnusableError
from webhookd.lifeline import Lifeline
from webhookd.supervisor.supervisor import Supervisor

log = logs.Logger("webhookd")

# These variables tell that a service manager started this process. A service that forgot its
# database must fail: on an embedded one it would look healthy, with an empty queue.
_SERVICE_MANAGERS = {
    "INVOCATION_ID": "systemd",
    "NOTIFY_SOCKET": "systemd",
    "SUPERVISOR_ENABLED": "supervisord",
}

_CHECK_TIMEOUT_S = 15


def run(settings: LoadedConfig) -> int:
    """Run webhookd in the foreground until it is told to stop; return the exit code. Blocks.

    Raise `UnusableError` if it cannot start.
    """
    config = settings.config
    logs.configure(config.log_format, config.log_level)
    _refuse_bad_dsns(settings)
    if config.dsn is not None:
        return _supervise(settings, embedded_dsn=None)
    if config.embedded is None:
        _refuse_under_a_service_manager()
    server = embedded.start(Path(config.embedded) if config.embedded else None)
    try:
        log.warning(
            "using an embedded PostgreSQL, which is for trying out: no backup, no replica",
            directory=str(server.directory),
            dsn=server.dsn,
        )
        _migrate(server.dsn)
        return _supervise(settings, embedded_dsn=server.dsn)
    finally:
        server.stop()


def print_settings(settings: LoadedConfig) -> None:
    """Print each option with its value, secrets hidden, and where it came from."""
    rows = [
        (
            configuration.flag_of(name),
            _shown(getattr(settings.config, name)),
            settings.sources[name],
        )
        for name in OPTIONS
    ]
    print_table(("option", "value", "from"), rows)


def _shown(value: object) -> str:
    match value:
        case None:
            return "-"
        case tuple():
            return ", ".join(map(str, value)) or "-"
        case _:
            return logs.redact(str(value))


def _supervise(settings: LoadedConfig, *, embedded_dsn: str | None) -> int:
    def reload() -> Config:
        fresh = settings.reload()
        if embedded_dsn is None and fresh.config.dsn is None:
            raise UnusableError(
                "the configuration names no database any more: add the DSN again, or restart with "
                "--embedded"
            )
        _refuse_bad_dsns(fresh)
        logs.configure(fresh.config.log_format, fresh.config.log_level)
        return in_force(fresh.config)

    def in_force(config: Config) -> Config:
        # The embedded PostgreSQL stays in use until a restart: a reload cannot move its data.
        return config if embedded_dsn is None else replace(config, dsn=embedded_dsn)

    config = in_force(settings.config)
    assert config.dsn is not None
    _refuse_bad_schema(config.dsn)
    return Supervisor(config, run_worker, reload).run()


def run_worker(config: Config, lifeline: Lifeline) -> int:
    """Run a worker in the forked child; return its exit code. Blocks."""
    # Imported in the child only: the parent must stay without threads and without libpq.
    from webhookd.worker import process

    logs.configure(config.log_format, config.log_level, worker=lifeline.name)
    return process.run(config, lifeline)


def _refuse_bad_dsns(settings: LoadedConfig) -> None:
    """Raise `UnusableError` for a DSN that libpq cannot parse."""
    if settings.config.dsn is not None or settings.config.listen_dsn is not None:
        _check_in_child(lambda: configuration.check_dsns(settings))


def _refuse_bad_schema(dsn: str) -> None:
    """Raise `UnusableError` if no worker could work on this database.

    If the database is away, return: the workers wait for it.
    """

    def check() -> None:
        import psycopg

        from webhookd.postgres import session
        from webhookd.schema import migrate

        with (
            suppress(psycopg.OperationalError),
            session.connect(dsn, application_name="webhookd/check") as connection,
        ):
            migrate.check(connection)

    _check_in_child(check)


def _check_in_child(check: Callable[[], None]) -> None:
    """Run *check* in a forked child and raise its `UnusableError` here.

    So this process never loads libpq. Blocks for at most `_CHECK_TIMEOUT_S`.
    """
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        # The child must never return into the parent's code: it ends here in every case.
        try:
            # Treat a database that hangs like one that is away: SIGALRM ends this child, which has
            # written nothing then.
            signal.alarm(_CHECK_TIMEOUT_S)
            check()
        except UnusableError as error:
            os.write(write_fd, str(error).encode()[:4000])
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as answer:
        refusal = answer.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    if refusal:
        raise UnusableError(refusal)


def _migrate(dsn: str) -> None:
    # In a process of its own: this one forks workers later and must not load libpq.
    command = [sys.executable, "-m", "webhookd", "migrate", "--dsn", dsn]
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise UnusableError(
            done.stderr.strip().removeprefix("webhookd: ")
            or "the embedded database cannot be migrated"
        )


def _refuse_under_a_service_manager() -> None:
    for variable, manager in _SERVICE_MANAGERS.items():
        # A desktop's terminal passes systemd's INVOCATION_ID on to its shells, but with stderr on a
        # terminal this is no service.
        if variable in os.environ and not (variable == "INVOCATION_ID" and sys.stderr.isatty()):
            raise UnusableError(
                f"started by {manager} without a database: set DATABASE_URL or WEBHOOKD_DSN, or "
                "use --embedded if you want an embedded PostgreSQL"
            )
