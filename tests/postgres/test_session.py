"""What webhookd's connections make of a server that cannot be written to just now."""

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.support.postgres import Database, Server
from webhookd.postgres import session
from webhookd.postgres.arrays import text_array


def test_a_server_that_is_read_only_counts_as_away(database: Database) -> None:
    connection = session.connect(database.dsn, application_name="test")
    connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        connection.execute("DELETE FROM pggit.workers")
    assert connection.closed, "the next one may lead to the primary"


def test_a_plan_that_a_migration_changed_costs_the_connection_only(database: Database) -> None:
    database.execute("CREATE TABLE pggit.later AS SELECT 1 AS n")
    with session.connect(database.dsn, application_name="test") as connection:
        for _ in range(3):  # prepared from the second time on
            connection.execute("SELECT * FROM pggit.later")
        database.execute("ALTER TABLE pggit.later ALTER n TYPE text")
        with pytest.raises(psycopg.OperationalError, match="cached plan"):
            connection.execute("SELECT * FROM pggit.later")
        assert connection.closed


@pytest.mark.every_postgres
def test_a_client_encoding_of_the_role_does_not_matter(server: Server, database: Database) -> None:
    role = server.create_role(options="LOGIN SUPERUSER")
    database.execute(f"ALTER ROLE {role} SET client_encoding = latin1")
    for dsn in (
        make_conninfo(database.dsn, user=role),
        make_conninfo(database.dsn, client_encoding="latin1"),
    ):
        with session.connect(dsn, application_name="test") as connection:
            assert connection.execute("SELECT to_jsonb(%s::text)::text", ["日本"]).fetchone() == (
                '"日本"',
            )


@pytest.mark.every_postgres
def test_array_literals_hold_whatever_text_there_is(database: Database) -> None:
    texts = [
        "",
        "NULL",
        None,
        "{1,2}",
        "a,b",
        " blank ",
        "line\nbreak\t",
        "ü€𝄞",
        "'",
        "back\\slash",
        '\\"',
        'a "quoted" one',
    ]
    with session.connect(database.dsn, application_name="test") as connection:
        [(back,)] = connection.execute("SELECT %s::text[]", [text_array(texts)])
    assert back == texts
