"""Checks of what the migrations made: tables, triggers, indexes, vacuum, rights."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache

from psycopg import errors

from webhookd.admin.doctor.findings import Finding, error, ok, warning
from webhookd.admin.doctor.installation import Installation
from webhookd.errors import UnusableError
from webhookd.schema import migrate
from webhookd.schema.expected import Schema, expected_schema

# How often its threshold a table's dead rows may outnumber, and for how long, before autovacuum
# counts as starved.
STARVED_FACTOR, STARVED_S = 10, 600

_WITHOUT_TRIGGER = {
    "wake_after_insert": "inserts wake no worker, and deliveries start up to 30 s late",
    "fill_in_defaults": "inserts with NULLs fail, and what is inserted as finished is not counted",
    "requeue": "a delivery that is changed by plain SQL is not sent again",
    "reset_circuit": "setting a webhook healthy does not close its circuit",
    "unpark_lane": "workers notice a change of the registry up to 30 s late",
    "count_deleted": "count_pending_by_status() counts deleted deliveries",
    "count_truncated": "count_pending_by_status() counts deleted deliveries",
}


def version(installation: Installation) -> Iterator[Finding]:
    """Whether workers would start on this schema, as they ask themselves; a copy that must not send
    among the reasons.
    """
    try:
        with installation.reading() as connection:
            migrate.check(connection)
    except UnusableError as refusal:
        command = re.search(r"`webhookd ([^`]+)`", str(refusal))
        yield error(
            f"workers refuse to start: {refusal}",
            installation.commands.webhookd(command[1]) if command else None,
        )
        return
    yield ok(migrate.load()[-1].name)


def tables(installation: Installation) -> Iterator[Finding]:
    """Whether every table is there, and one role owns them all, as migrations need."""
    for row in installation.rows("doctor_tables", tables=_schema(installation).tables):
        if row["owner"] is None:
            yield error(
                f"the table pggit.{row['name']} is missing or was renamed: give it its name "
                "back, or restore it"
            )
        elif row["owner"] != row["owner_of_most"]:
            yield warning(
                f"pggit.{row['name']} belongs to {row['owner']}, the other tables to "
                f"{row['owner_of_most']}:"
                " the next migration may fail",
                installation.commands.sql(
                    f'ALTER TABLE pggit.{row["name"]} OWNER TO "{row["owner_of_most"]}"'
                ),
            )


def triggers(installation: Installation) -> Iterator[Finding]:
    """Whether every trigger is there and fires."""
    found = {
        (row["table_name"], row["name"]): row["fires"]
        for row in installation.rows("doctor_triggers")
    }
    for (table, name), statement in _schema(installation).triggers.items():
        meaning = _WITHOUT_TRIGGER.get(name, "what it keeps correct becomes wrong")
        if (table, name) not in found:
            yield error(
                f"the trigger {name} on pggit.{table} is missing: {meaning}",
                installation.commands.sql(statement),
            )
        elif not found[table, name]:
            enable = f"ALTER TABLE pggit.{table} ENABLE TRIGGER {name}"
            yield error(
                f"the trigger {name} on pggit.{table} is disabled: {meaning}",
                installation.commands.sql(enable),
            )
    for row in installation.rows("doctor_replica_role"):
        yield warning(
            f"{row['who']} has session_replication_role = replica: no trigger fires there, and "
            "what is inserted starts late",
            installation.commands.sql(row["command"]),
        )


def indexes(installation: Installation) -> Iterator[Finding]:
    """Whether every index exists and is valid: without them a claim reads the whole history."""
    found = {row["name"]: row["valid"] for row in installation.rows("doctor_indexes")}
    for name, statement in _schema(installation).indexes.items():
        if name not in found:
            yield error(
                f"the index {name} is missing: statements read whole tables",
                installation.commands.sql(statement),
            )
        elif not found[name]:
            yield error(
                f"the index {name} is invalid, so nothing uses it",
                installation.commands.sql(f"REINDEX INDEX CONCURRENTLY pggit.{name}"),
            )


def vacuum(installation: Installation) -> Iterator[Finding]:
    """Whether autovacuum may clean up, and does: each claim and record leaves dead rows."""
    settings = {row["name"]: row["setting"] for row in installation.rows("doctor_settings")}
    sql = installation.commands.sql
    for name in ("autovacuum", "track_counts"):
        if settings[name] == "off":
            yield error(
                f"{name} is off: dead rows are not removed, and every claim slows down",
                sql(f"ALTER SYSTEM SET {name} = on", "SELECT pg_reload_conf()"),
            )
    for row in installation.rows("doctor_vacuum", tables=_schema(installation).tables):
        table = f"pggit.{row['name']}"
        if not row["enabled"]:
            yield error(
                f"autovacuum is off for {table}: its dead rows stay, and every claim slows down",
                sql(f"ALTER TABLE {table} RESET (autovacuum_enabled)"),
            )
        if (
            row["dead_rows"] > STARVED_FACTOR * row["bearable"]
            and (row["vacuumed_s"] or STARVED_S) >= STARVED_S
        ):
            since = "ever" if row["vacuumed_s"] is None else f"for {row['vacuumed_s']:.0f} s"
            yield warning(
                f"{table} has {row['dead_rows']} dead rows, vacuum is due from "
                f"{row['bearable']:.0f} on and has not run {since}:"
                " autovacuum does not keep up",
                sql(f"VACUUM (ANALYZE) {table}"),
            )


def rights(installation: Installation) -> Iterator[Finding]:
    """Whether the workers' role may do what they do, and whether every role may insert without
    further rights, and may not act with the owner's.
    """
    lacked = defaultdict(list)
    for row in installation.rows("doctor_rights", tables=_schema(installation).tables):
        lacked[row["role"]].append(row)
    for role, rows in lacked.items():
        what = "; ".join(row["what"] for row in rows)
        yield error(
            f"the role {role} lacks {what}: workers fail",
            installation.commands.sql(*(row["command"] for row in rows)),
        )
    for row in installation.rows("doctor_public_rights"):
        yield error(
            f"rights of PUBLIC: {row['what']}",
            installation.commands.sql(row["command"]),
        )


def _schema(installation: Installation) -> Schema:
    """Return what this database's own migrations made; what the others make is not missing yet."""
    try:
        return _made_by(installation.row("doctor_applied")["version"])
    except errors.InsufficientPrivilege:
        return _made_by(None)


@cache
def _made_by(version: int | None) -> Schema:
    return expected_schema(migrate.load()[:version])
