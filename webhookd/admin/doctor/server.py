"""Checks of the database server and of the connection to it."""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.conninfo import conninfo_to_dict

from webhookd.admin.doctor.findings import Finding, error, note, ok, warning
from webhookd.admin.doctor.installation import CONNECT_TIMEOUT_S, STATEMENT_TIMEOUT_S, Installation
from webhookd.core.model import WORKER_DEAD_AFTER_S
from webhookd.embedded import server as embedded
from webhookd.postgres import session

OLDEST_MAJOR, NEWEST_MAJOR = 14, 18
SKEW_WARNING_S = 1.0
# Receivers accept five minutes between a signature's time and their own (Standard Webhooks).
SKEW_REJECTED_S = 300.0
NOTIFY_S = 2.0
NOTIFICATIONS_WARNING, NOTIFICATIONS_ERROR = 0.1, 0.5
CONNECTIONS_A_WORKER = 3
OLD_SNAPSHOT_S, VERY_OLD_SNAPSHOT_S = 600, 3600
# How far a replica may be behind in a busy minute; its age is not known.
OLD_SNAPSHOT_XIDS = 1_000_000


def server(installation: Installation) -> Iterator[Finding]:
    """The version, and whether the server takes writes."""
    found = installation.row("doctor_server")
    if found["major"] < OLDEST_MAJOR:
        yield error(
            f"PostgreSQL {found['version']} is too old: webhookd needs {OLDEST_MAJOR} or newer"
        )
    elif found["major"] > NEWEST_MAJOR:
        yield note(
            f"PostgreSQL {found['version']}: this webhookd was tried with {OLDEST_MAJOR} to "
            f"{NEWEST_MAJOR}"
        )
    if found["standby"]:
        yield error(
            "a standby, which takes no writes: no worker can claim here; name every host in the "
            "DSN, with "
            "target_session_attrs=read-write",
            "webhookd --dsn 'postgresql://host1,host2/database?target_session_attrs=read-write'",
        )
    yield ok(f"PostgreSQL {found['version']}")


def embedded_server(installation: Installation) -> Iterator[Finding]:
    """Whether this is the PostgreSQL that webhookd starts for trying it out."""
    config = installation.config
    running = embedded.running_dsn(Path(config.embedded) if config.embedded else None)
    if config.dsn is None or (
        running and conninfo_to_dict(running)["host"] == conninfo_to_dict(config.dsn).get("host")
    ):
        yield warning(
            "the embedded PostgreSQL is for trying out: it has no backup and no replica, and "
            "stops with webhookd",
            "webhookd --dsn postgresql://user@host/database",
        )


def clock(installation: Installation) -> Iterator[Finding]:
    """This host's clock against the database's. Deliveries are due and signed by the database's
    clock, so only the times in this host's logs and `webhook test` suffer.
    """
    best: tuple[float, float] | None = None
    for _ in range(3):
        sent_at = time.time()
        row = installation.connection.execute(
            "SELECT extract(epoch FROM clock_timestamp())::float8"
        ).fetchone()
        back_at = time.time()
        assert row is not None
        measured = ((back_at - sent_at) / 2, (sent_at + back_at) / 2 - row[0])
        best = measured if best is None else min(best, measured)
    assert best is not None
    uncertain_s, ahead_s = best
    sure_s = abs(ahead_s) - uncertain_s
    way = "ahead of" if ahead_s > 0 else "behind"
    text = f"this host's clock is {abs(ahead_s):.3g} s {way} the database's"
    if sure_s > SKEW_WARNING_S:
        text += ": the times in this host's logs are off by that"
        if sure_s > SKEW_REJECTED_S:
            text += ", and receivers may reject `webhookd webhook test` from here"
        yield warning(f"{text}; set both clocks by NTP", "timedatectl set-ntp true")


def listen(installation: Installation) -> Iterator[Finding]:
    """Whether a notification reaches another session."""
    dsn, option = installation.config.listen_dsn, "--listen-dsn"
    if dsn is None:
        dsn, option = installation.dsn, "--dsn"
    try:
        listener = psycopg.connect(
            dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, prepare_threshold=None
        )
    except psycopg.OperationalError as failure:
        yield error(
            f"{option} leads to no database: {session.message_of(failure)}; deliveries start up "
            "to 2 s late"
        )
        return
    with listener:
        lent = session.is_transaction_pooled(listener, lambda: nullcontext(installation.connection))
        if not lent and _hears(listener, installation.connection):
            return
        other = not lent and _place(listener) != _place(installation.connection)
    if other:
        yield error(
            f"{option} leads to another database than --dsn: workers are not notified of inserts"
        )
        return
    yield error(
        f"a NOTIFY is not heard through {option}: a pooler in transaction mode, which LISTEN "
        "cannot pass; deliveries start late",
        installation.commands.start("--listen-dsn postgresql://user@host-of-postgresql/database"),
    )


def _hears(listener: psycopg.Connection[Any], sender: psycopg.Connection[Any]) -> bool:
    channel = f"webhookd_doctor_{uuid4().hex}"
    listener.execute(f"LISTEN {channel}".encode())
    with sender.transaction():
        sender.execute(f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S:g}s'".encode())
        sender.execute("SELECT pg_notify(%s, '')", [channel])
    heard = any(True for _ in listener.notifies(timeout=NOTIFY_S, stop_after=1))
    listener.execute(f"UNLISTEN {channel}".encode())  # behind a pooler the session may stay open
    return heard


def _place(connection: psycopg.Connection[tuple[object, ...]]) -> tuple[object, ...] | None:
    return connection.execute(
        "SELECT pg_postmaster_start_time(), oid FROM pg_catalog.pg_database WHERE datname = "
        "current_database()"
    ).fetchone()


def notifications(installation: Installation) -> Iterator[Finding]:
    """A full queue of notifications fails every COMMIT that notifies."""
    found = installation.row("doctor_notifications")
    if found["usage"] < NOTIFICATIONS_WARNING:
        return
    detail = (
        f"the server's queue of notifications is {found['usage']:.0%} full; once it is full, "
        "applications' commits fail"
    )
    run = None
    if found["pid"] is not None:
        detail += (
            f"; a session that listens is in a transaction, probably {found['pid']} of "
            f"{found['usename']}"
            f" ({found['application_name'] or 'no name'}), for {found['age_s']:.0f} s"
        )
        run = installation.commands.sql(f"SELECT pg_terminate_backend({found['pid']})")
    yield (error if found["usage"] >= NOTIFICATIONS_ERROR else warning)(detail, run)


def connections(installation: Installation) -> Iterator[Finding]:
    """Whether as many connections are left as workers need: those of all workers where none is
    alive, else those of one replacement.
    """
    alive = any(
        row["seen_s_ago"] < WORKER_DEAD_AFTER_S for row in installation.rows("doctor_workers")
    )
    needed = CONNECTIONS_A_WORKER * (1 if alive else installation.config.workers)
    whose = "a worker that is replaced" if alive else f"{installation.config.workers} workers"
    for row in installation.rows("doctor_connections"):
        if row["most"] - row["used"] < needed:
            restart = " (takes a restart of the server)" if row["name"] == "max_connections" else ""
            yield warning(
                f"{row['name']} leaves {max(0, row['most'] - row['used'])} of {row['most']} "
                f"connections, and {whose} needs"
                f" {needed}{restart}",
                installation.commands.sql(
                    f"{row['command']}{row['used'] + needed + CONNECTIONS_A_WORKER}"
                ),
            )


def insight(installation: Installation) -> Iterator[Finding]:
    """Whether the checks of other sessions saw them."""
    found = installation.row("doctor_insight")
    if not found["sees_all"]:
        yield note(
            f"the role {found['role']} does not see other roles' sessions: old transactions and "
            "locks of theirs are not reported;"
            " a superuser may GRANT pg_monitor TO "
            f"{psycopg.sql.Identifier(found['role']).as_string()}"
        )


def snapshots(installation: Installation) -> Iterator[Finding]:
    """Old transactions and the like: dead rows accumulate behind them, and every claim has to skip
    them.
    """
    for row in installation.rows(
        "doctor_snapshots", old_s=OLD_SNAPSHOT_S, old_xids=OLD_SNAPSHOT_XIDS
    ):
        since = f"{row['xids']} transactions" if row["age_s"] is None else f"{row['age_s']:.0f} s"
        detail = (
            f"{row['holder']} for {since}: dead rows of the queue cannot be removed, and claims "
            "slow down"
        )
        finding = error if (row["age_s"] or 0) >= VERY_OLD_SNAPSHOT_S else warning
        yield finding(detail, installation.commands.sql(row["command"]))
