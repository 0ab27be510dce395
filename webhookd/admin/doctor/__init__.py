"""`webhookd doctor`: what can be wrong with an installation, and the command that fixes it.

A check is a function from an `Installation` to findings; no finding means that all is well. Every
check is in one of the two tables below. Checks only read: each statement is a read-only transaction
of its own with a timeout, and what one check cannot see does not stop the others.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import psycopg
from psycopg import errors

from webhookd.admin import database, fleet
from webhookd.admin.doctor import queue, schema, server, workers
from webhookd.admin.doctor.commands import commands_for
from webhookd.admin.doctor.findings import Finding, Severity, error, note, ok, warning
from webhookd.admin.doctor.installation import (
    STATEMENT_TIMEOUT_S,
    Installation,
    open_installation,
)
from webhookd.config.load import LoadedConfig
from webhookd.errors import UnusableError, WebhookdError
from webhookd.postgres import session

Check = Callable[[Installation], Iterable[Finding]]

OF_ANY_DATABASE: Mapping[str, Check] = {
    "server": server.server,
    "embedded": server.embedded_server,
    "clock": server.clock,
    "listen": server.listen,
    "notifications": server.notifications,
    "insight": server.insight,
    "snapshots": server.snapshots,
    "schema": schema.version,
}
OF_THE_SCHEMA: Mapping[str, Check] = {
    "tables": schema.tables,
    "rights": schema.rights,
    "triggers": schema.triggers,
    "indexes": schema.indexes,
    "vacuum": schema.vacuum,
    "workers": workers.workers,
    "options": workers.options,
    "connections": server.connections,
    "endpoints": workers.endpoints,
    "ports": workers.ports,
    "locks": queue.locks,
    "waiting": queue.waiting,
    "circuits": queue.circuits,
    "leases": queue.leases,
    "quarantine": queue.quarantine,
    "lanes": queue.lanes,
    "rows": queue.rows,
    "attempts": queue.attempts,
    "retention": queue.retention,
    "targets": queue.targets,
    "secrets": queue.secrets,
    "headers": queue.headers,
}
MOST_FINDINGS = 10  # of one check: a screen is for reading


def diagnose(settings: LoadedConfig) -> Iterator[Finding]:
    """Connect to the database that *settings* lead to, and yield what all checks find.

    A database that cannot be reached or goes away is a finding, too. Raise `UnusableError` where
    no database is named.
    """
    dsn = database.dsn_of(settings.config)
    try:
        with open_installation(dsn, settings.config, commands_for(settings, dsn)) as installation:
            yield from examine(_as_the_fleet(installation, settings))
    except UnusableError:
        raise
    except WebhookdError as failure:
        yield replace(error(str(failure)), name="server")


def _as_the_fleet(installation: Installation, settings: LoadedConfig) -> Installation:
    """Return *installation* with the options by which the running workers deliver."""
    try:
        running = installation.rows("fleet_options")
    except psycopg.Error:
        return installation  # no schema, an older one, or no right to read it: the checks say so
    in_force = fleet.judged_by(running, settings)
    commands = commands_for(in_force, installation.dsn)
    return replace(
        installation, config=in_force.config, commands=commands, is_fleet=fleet.is_known(running)
    )


def examine(installation: Installation) -> Iterator[Finding]:
    """Yield at least one finding for each check, as it is made. Raise `WebhookdError` when the
    database goes away.
    """
    for name, check in OF_ANY_DATABASE.items():
        yield from _findings(name, check, installation)
    if installation.row("doctor_has_schema")["found"]:
        for name, check in OF_THE_SCHEMA.items():
            yield from _findings(name, check, installation)


def _findings(name: str, check: Check, installation: Installation) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in check(installation):
            found.append(finding)  # one by one: what a check found before it failed counts
    except errors.InsufficientPrivilege as refusal:
        found.append(note(f"not examined: {session.message_of(refusal)}"))
    except errors.QueryCanceled:
        found.append(
            warning(f"not examined: the database took longer than {STATEMENT_TIMEOUT_S:g} s")
        )
    except psycopg.Error as failure:
        if installation.connection.closed:
            raise WebhookdError(f"the database failed: {session.message_of(failure)}") from failure
        found.append(warning(f"not examined: {session.message_of(failure)}"))
    wrong = [finding for finding in found if finding.severity is not Severity.OK]
    shown = wrong[:MOST_FINDINGS] or found[:1] or [ok("")]
    if len(wrong) > MOST_FINDINGS:
        shown.append(
            replace(
                wrong[MOST_FINDINGS],
                detail=f"and {len(wrong) - MOST_FINDINGS} more like these",
                run=None,
            )
        )
    return [replace(finding, name=name) for finding in shown]
