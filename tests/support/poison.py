"""Bodies that are huge as text, or that cannot be read, as an older release, a restored dump or
logical replication leave them: no trigger has measured them.
"""

from tests.support.postgres import Database

# 12 million characters that JSON writes with six each; 150 KB stored.
CONTROL_CHARACTERS = r"to_jsonb(repeat(E'\x01', 12000000))"
# A number of six characters that has 131,072 digits. 600 of them: 80 MB as text.
LONG_NUMBERS = "(SELECT jsonb_agg('1e131071'::jsonb) FROM generate_series(1, 600))"
# The same with more than 1 GB: more than PostgreSQL can hold as text.
TOO_LONG_NUMBERS = "(SELECT jsonb_agg('1e131071'::jsonb) FROM generate_series(1, 8300))"
# 1.6 KB stored, 13 MB as text.
THIRTEEN_MB = "(SELECT jsonb_agg('1e131071'::jsonb) FROM generate_series(1, 100))"


def insert_unmeasured(
    database: Database, webhook_id: int, body: str, *, count: int = 1
) -> list[int]:
    """Insert deliveries with *body*, an SQL expression; return their ids."""
    with database.connect() as connection, connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        rows = connection.execute(
            "INSERT INTO pggit.alert_delivery_queue (webhook_id, message_body)"
            f" SELECT %s, {body} FROM generate_series(1, %s) RETURNING delivery_id".encode(),
            [webhook_id, count],
        ).fetchall()
    return [delivery_id for (delivery_id,) in rows]


def insert_corrupted(database: Database, webhook_id: int) -> int:
    """Insert a delivery whose body has lost what was stored of it outside of its row; return its
    id.
    """
    [delivery_id] = insert_unmeasured(
        database,
        webhook_id,
        "(SELECT jsonb_agg(md5(n::text)) FROM generate_series(1, 1000) n)",
    )
    corrupt(database, delivery_id)
    return delivery_id


def corrupt(database: Database, delivery_id: int) -> None:
    """Delete what is stored of this delivery's body outside of its row."""
    [(toast, name)] = database.execute(
        "SELECT reltoastrelid::bigint, reltoastrelid::regclass::text FROM pg_class"
        " WHERE oid = 'pggit.alert_delivery_queue'::regclass"
    )
    [(chunk,)] = database.execute(
        "SELECT pg_column_toast_chunk_id(message_body) FROM pggit.alert_delivery_queue"
        " WHERE delivery_id = %s",
        [delivery_id],
    )
    assert chunk is not None
    with database.connect() as connection:
        connection.execute("SET allow_system_table_mods = on")
        # PostgreSQL deletes nothing from what it knows as a table of that kind.
        become = "UPDATE pg_class SET relkind = %s WHERE oid = %s"
        connection.execute(become, ["r", toast])
        connection.execute(f"DELETE FROM {name} WHERE chunk_id = %s".encode(), [chunk])
        connection.execute(become, ["t", toast])
        connection.execute("VACUUM pggit.alert_delivery_queue")  # until then it is still read
