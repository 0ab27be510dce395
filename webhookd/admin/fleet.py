"""The options that the running workers deliver by. Commands judge by them, so that nobody repeats
the service's command line.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import errors

from webhookd.admin import database
from webhookd.admin.database import Connection
from webhookd.config.delivery import DELIVERY_OPTIONS, with_delivery_options
from webhookd.config.load import LoadedConfig, flag_of

Rows = Sequence[Mapping[str, Any]]  # of sql/queries/fleet_options.sql


def options_in_force(connection: Connection, settings: LoadedConfig) -> LoadedConfig:
    """Return *settings* with the options of the worker that was started last, where the command was
    given none of its own. Without a living worker they stay as they are, and so they do for a role
    that may not read about workers.
    """
    try:
        return judged_by(read(connection), settings)
    except errors.InsufficientPrivilege:
        return settings


def read(connection: Connection) -> Rows:
    """Return the living workers and their options, the newest first."""
    return database.fetch(connection, "fleet_options")


def judged_by(workers: Rows, settings: LoadedConfig) -> LoadedConfig:
    """Return *settings* with the options of the newest of *workers*, see `options_in_force`."""
    known = [worker["options"] for worker in workers if worker["options"]]
    return with_delivery_options(settings, known[0]) if known else settings


def is_known(workers: Rows) -> bool:
    """Return whether one of *workers* stored the options by which it delivers."""
    return any(worker["options"] for worker in workers)


def disagreement(workers: Rows) -> str | None:
    """Return in one line how the options of *workers* differ; None: they are the same.

    An option that one of them does not store (another version) does not differ.
    """
    known = [worker for worker in workers if worker["options"]]
    for name in DELIVERY_OPTIONS:
        names_by_value: dict[str, list[str]] = {}
        for worker in known:
            if name in worker["options"]:
                value = json.dumps(worker["options"][name])
                names_by_value.setdefault(value, []).append(_named(worker))
        if len(names_by_value) > 1:
            said = "; ".join(
                f"{value} at {', '.join(sorted(names))}" for value, names in names_by_value.items()
            )
            return (
                f"the workers run with different options ({flag_of(name)}: {said}): the newest "
                "one's count for commands, and what is delivered depends on who claims it"
            )
    return None


def _named(worker: Mapping[str, Any]) -> str:
    return f"{worker['worker_id']} on {worker['host']}"
