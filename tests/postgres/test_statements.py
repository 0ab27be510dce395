"""The statements of sql/queries: each can be told from the others where an administrator looks for
it.
"""

import re
from importlib.resources import files

import pytest

from tests.support.engine import answered, engine, insert, register
from tests.support.postgres import running_server
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
