"""The SQL statements, one a file under sql/queries, loaded by name.

A statement may contain fragments: `{waiting}`, or `{waiting:q}` for the columns of a table with the
alias q. So a fact that several statements need has one home. The home is here, or where the
constant or the column list is that the fragment is made of. `@` in a fragment stands for the alias.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from webhookd.core.lane import BlockedBy
from webhookd.core.lifecycle import QUARANTINE_AFTER
from webhookd.core.model import (
    GONE_REASON,
    LARGEST_BODY_BYTES,
    MAX_WEBHOOK_ID,
    WORKER_DEAD_AFTER_S,
    WORKER_SILENT_AFTER_S,
    Status,
)
from webhookd.postgres import batches, rows


def _texts(values: Iterable[str]) -> str:
    return ", ".join(f"'{value}'" for value in values)


_WAITING = f"@delivery_status IN ({_texts([Status.PENDING, Status.RETRYING])})"

_GIVE_UP_BEFORE = "(now() - %(after_s)s * interval '1 second')"

# The conditions of rows must be those of the queue's partial indexes, or PostgreSQL uses none of
# them: queue_new, queue_waiting and queue_suspect of the first migration.
FRAGMENTS = (
    {
        "waiting": _WAITING,
        # See give_up.
        "give_up_before": _GIVE_UP_BEFORE,
        "gave_up": f"{_GIVE_UP_BEFORE} >= CASE"
        " WHEN @first_attempted_at IS NULL THEN greatest(@created_at, @next_retry_at)"
        " WHEN @first_attempted_at > @created_at + %(after_s)s * interval '1 second'"
        " THEN @first_attempted_at ELSE @created_at END",
        "new": f"NOT @routed AND {_WAITING}",
        "routed": f"@routed AND {_WAITING} AND @leases_lost < {QUARANTINE_AFTER}",
        "quarantined": f"{_WAITING} AND @leases_lost >= {QUARANTINE_AFTER}",
        # NULL for a body that was not measured yet.
        "sendable": f"@body_bytes <= {LARGEST_BODY_BYTES}",
        "undelivered": (
            f"@delivery_status IN ({_texts([Status.PENDING, Status.RETRYING, Status.SENDING])})"
        ),
        # What the registry's row says against a delivery, before its lane is asked.
        "barred": (
            f"CASE WHEN @webhook_id IS NULL THEN '{BlockedBy.UNREGISTERED}'"
            f" WHEN NOT @enabled THEN '{BlockedBy.PAUSED}' END"
        ),
        "configuration": f"'{BlockedBy.CONFIGURATION}'",
        "queue_causes": f"ARRAY[{_texts(['due', 'scheduled', *BlockedBy])}]",
        "possible_id": f"@webhook_id BETWEEN 1 AND {MAX_WEBHOOK_ID}",
        "gone_reason": f"'{GONE_REASON}'",
        "silent_after": f"interval '{WORKER_SILENT_AFTER_S:g} seconds'",
        "dead_after": f"interval '{WORKER_DEAD_AFTER_S:g} seconds'",
    }
    | rows.FRAGMENTS
    | batches.FRAGMENTS
)


@cache
def load(name: str) -> str:
    """Return the statement in sql/queries/*name*.sql with its fragments filled in.

    Raise `FileNotFoundError` where there is no such file, `KeyError` for an unknown fragment.

    Comments and line breaks are left out: psycopg remembers how it converted a query only if that
    has at most 4,096 characters. The name is put after the first word, so that pg_stat_statements,
    pg_stat_activity and the server's log say which statement it is. (From PostgreSQL 18 on
    pg_stat_statements drops a comment in front of the first word.)
    """
    text = files("webhookd.sql").joinpath("queries", f"{name}.sql").read_text(encoding="utf-8")
    text = re.sub(r"\{([a-z_]+)(?::(\w+))?\}", _fragment, re.sub(r"--.*", "", text))
    return re.sub(r"^\w+", rf"\g<0> /* webhookd:{name} */", " ".join(text.split()))


def _fragment(found: re.Match[str]) -> str:
    return FRAGMENTS[found[1]].replace("@", f"{found[2]}." if found[2] else "")
