"""The daemon: settle which database, start the embedded one if need be, hand over to the supervisor."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from webhookd import config as configuration
from webhookd import embedded, logs
from webhookd.cli.output import print_table
from webhookd.config import Config, Settings
from webhookd.errors import UnusableError
from webhookd.seat import ExitCode, WorkerSeat
from webhookd.supervisor import Supervisor

log = logging.getLogger("webhookd")

# What tells that a service manager started this process. Nobody wants a service with an empty queue that looks green.
_SERVICE_MANAGERS = {"INVOCATION_ID": "systemd", "NOTIFY_SOCKET": "systemd", "SUPERVISOR_ENABLED": "supervisord"}


def run(settings: Settings) -> int:
    """Run webhookd in the foreground until it is told to stop; return the exit code. Raise `UnusableError` before it starts."""
    config = settings.config
    logs.configure(config.log_format, config.log_level)
    if config.dsn is not None:
        return _supervise(settings, dsn=config.dsn)
    if config.embedded is None:
        _refuse_under_a_service_manager()
    server = embedded.start(Path(config.embedded) if config.embedded else None)
    try:
        log.warning("embedded PostgreSQL", extra={"fields": {"directory": str(server.directory), "dsn": server.dsn}})
        _migrate(server.dsn)
        return _supervise(settings, dsn=server.dsn)
    finally:
        server.stop()


def print_settings(settings: Settings) -> None:
    """Print each option with its value, secrets hidden, and where it came from."""
    rows = [
        (configuration.flag_of(name), _shown(getattr(settings.config, name)), settings.sources[name])
        for name in configuration.OPTIONS
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


def _supervise(settings: Settings, *, dsn: str) -> int:
    if _refused(dsn):
        return ExitCode.UNUSABLE

    def reload() -> Config:
        return replace(settings.reload().config, dsn=dsn)

    return Supervisor(replace(settings.config, dsn=dsn), run_worker, reload).run()


def run_worker(config: Config, seat: WorkerSeat) -> int:
    """Be a worker. Imported here, in the child: the parent must hold neither threads nor what they come with."""
    from webhookd import worker

    logs.configure(config.log_format, config.log_level, worker=seat.name)
    return worker.run(config, seat)


def _refused(dsn: str) -> bool:
    """Say in one line why no worker could work on this database, before any is started; one that is away is waited for.

    In a forked child, so that this process never loads libpq.
    """
    child = os.fork()
    if child == 0:
        code = ExitCode.DRAINED
        try:
            from webhookd import migrate, store

            with store.connect(dsn, application_name="webhookd/check") as connection:
                migrate.check(connection)
        except UnusableError as error:
            code = ExitCode.UNUSABLE
            print(f"webhookd: {error}", file=sys.stderr, flush=True)
        except Exception as error:  # the workers will meet it, and wait for the database or report it
            log.debug("database not checked", extra={"fields": {"error": str(error)}})
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ExitCode.UNUSABLE


def _migrate(dsn: str) -> None:
    # In a process of its own, so that this one, which will fork, never loads libpq.
    command = [sys.executable, "-m", "webhookd", "migrate", "--dsn", dsn]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UnusableError(done.stderr.strip().removeprefix("webhookd: ") or "the embedded database cannot be migrated")


def _refuse_under_a_service_manager() -> None:
    for variable, manager in _SERVICE_MANAGERS.items():
        # A desktop's terminal hands systemd's INVOCATION_ID on to its shells; whoever watches there is no service.
        if variable in os.environ and not (variable == "INVOCATION_ID" and sys.stderr.isatty()):
            raise UnusableError(
                f"started by {manager} without a database: set DATABASE_URL or WEBHOOKD_DSN, or give --embedded to mean it"
            )
