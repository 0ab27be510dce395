"""What webhookd's own statements cost the server, in any session: calls, milliseconds and pages,
from pg_stat_statements.

Pages are shared buffers, hit or read. Measuring runs no statement of the fleet, so it can watch a
busy one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

CLAIM = ("lock_lanes", "read_settings", "count_leases", "claim", "next_look")
RECORD = ("lock_recorded_lanes", "settle", "update_lanes")

_READ = r"""
SELECT substring(query from '/\* webhookd:(\w+) \*/'), sum(calls)::float8, sum(total_exec_time),
       sum(shared_blks_hit + shared_blks_read)::float8, sum(rows)::float8
  FROM pg_stat_statements
 WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND query LIKE '%/* webhookd:%'
 GROUP BY 1
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Sums over the executions of one statement, or of several; *rows*: returned or changed."""

    calls: float = 0.0
    ms: float = 0.0
    pages: float = 0.0
    rows: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.calls + other.calls,
            self.ms + other.ms,
            self.pages + other.pages,
            self.rows + other.rows,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(
            self.calls - other.calls,
            self.ms - other.ms,
            self.pages - other.pages,
            self.rows - other.rows,
        )


class Statements:
    """Costs since `start` in *connection*'s database, over all sessions, by the name that a
    statement bears (`queries.load`).
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._before: Mapping[str, Cost] = {}
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self._before = self._read()

    def costs(self) -> dict[str, Cost]:
        """Return the cost of each statement; those that did not run are left out."""
        found = {name: cost - self._before.get(name, Cost()) for name, cost in self._read().items()}
        return {name: cost for name, cost in found.items() if cost.calls > 0}

    def _read(self) -> dict[str, Cost]:
        return {row[0]: Cost(*row[1:]) for row in self._connection.execute(_READ.encode())}


def together(costs: Mapping[str, Cost], names: Sequence[str] = CLAIM) -> Cost:
    """Return the sum over *names*; *calls* are those of the first, which runs once a claim."""
    total = sum((costs[name] for name in names if name in costs), Cost())
    first = costs.get(names[0], Cost())
    return Cost(first.calls, total.ms, total.pages, total.rows)
