"""The statements of sql/queries: each can be told from the others where an administrator looks for
it.
"""

import re
from importlib.resources import files

import pytest

from tests.support.engine import answered, engine, insert, register
from tests.support.postgres import Database, running_server
from webhookd.core.lane import BlockedBy
from webhookd.metrics.counts import QueueCause
from webhookd.postgres import statements

NAMES = sorted(
    file.name.removesuffix(".sql") for file in files("webhookd.sql").joinpath("queries").iterdir()
)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("__")])
def test_a_statement_carries_its_name_and_no_comment(name: str) -> None:
    statement = statements.load(name)
    assert re.match(rf"[A-Z]+ /\* webhookd:{name} \*/ ", statement)
    assert "--" not in statement
    # Beyond that psycopg takes the statement apart at each execution.
    assert len(statement) <= 4096
    # Whoever has put something in front of the schema must not be met.
    assert not re.search(
        r"\b(FROM|JOIN|INTO|UPDATE) (alert_delivery|webhook|workers|queue_depth|chores)", statement
    )


def test_pg_stat_statements_names_what_a_worker_does() -> None:
    with running_server(settings=("shared_preload_libraries=pg_stat_statements",)) as server:
        database = server.create_migrated()
        database.execute("CREATE EXTENSION pg_stat_statements")
        register(database, 1)
        insert(database, 1)
        with engine(database) as worker:
            worker.finish(worker.take(), answered(200))
        found = {name for (name,) in database.execute(
            "SELECT substring(query FROM 'webhookd:(\\w+)') FROM pg_stat_statements WHERE query "
            "LIKE '%/* webhookd:%'"
        )}  # fmt: skip
    assert found >= {"lock_lanes", "claim", "settle", "update_lanes"}


def partial_index(database: Database, name: str) -> str:
    [(definition,)] = database.execute("SELECT pg_get_indexdef(to_regclass(%s))", [f"pggit.{name}"])
    return str(definition).partition(" WHERE ")[2]


@pytest.mark.parametrize(
    ("index", "fragment"),
    [("queue_new", "new"), ("queue_waiting", "routed"), ("queue_suspect", "quarantined")],
)
def test_a_condition_of_rows_is_that_of_its_index(
    database: Database, index: str, fragment: str
) -> None:
    """An index keeps the number of leases that it was made with, so the constant is not free."""
    condition = statements.FRAGMENTS[fragment].replace("@", "")
    database.execute(
        f"CREATE INDEX same ON pggit.alert_delivery_queue (webhook_id) WHERE {condition}"
    )
    assert partial_index(database, "same") == partial_index(database, index)


def test_what_rows_wait_for_has_the_same_names_everywhere(database: Database) -> None:
    assert {"due", "scheduled", *BlockedBy} == set(QueueCause)
    database.execute(statements.load("measure_depth"))
    assert {cause for (cause,) in database.execute("SELECT cause FROM pggit.queue_depth")} == {
        *QueueCause
    }
    [(check,)] = database.execute(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = 'pggit.webhook_health_metrics'::regclass"
        " AND pg_get_constraintdef(oid) LIKE '%%blocked_by%%'"
    )
    assert set(re.findall(r"'(\w+)'", check)) == {*BlockedBy}


def test_a_fragment_is_filled_in_with_the_alias_of_its_table() -> None:
    text = statements.load("lock_quarantined_lane")
    assert "WHERE q.delivery_status IN ('pending', 'retrying') AND q.leases_lost >= 3 AND" in text
    for name in NAMES:
        if not name.startswith("__"):
            assert not re.search(r"[{@]\w", statements.load(name)), name
